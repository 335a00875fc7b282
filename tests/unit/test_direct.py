"""What containers reach without the proxy (P8 for the list that is made for them)."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmproxy import direct
from vmproxy.errors import UsageError
from vmproxy.model import Address
from vmproxy.noproxy import bypasses, merge

BASE = direct.entries(())


def test_what_is_always_there() -> None:
    """Local names, the loopback, and the name of the machine around."""
    assert BASE == ("localhost", "127.0.0.1", "::1", "127.0.0.0/8", "host.docker.internal")


def test_a_star_alone_stays_alone() -> None:
    """curl and Python read ``*`` only where it is the whole list."""
    assert direct.entries(("*",), names=("db",)) == ("*",)
    assert direct.entries(("*", "a.test"))[:2] == ("*", "a.test")


def test_other_spellings_stand_behind_what_was_said() -> None:
    """The user's own entries first, then the same in spellings that more tools know."""
    found = direct.entries(("a.test", "10.1.2.0/30", "[fd00::1]"))
    assert found[:3] == ("a.test", "10.1.2.0/30", "[fd00::1]")
    assert found[3:8] == ("10.1.2.0", "10.1.2.1", "10.1.2.2", "10.1.2.3", "fd00::1")


def test_a_star_before_a_domain_is_a_dot() -> None:
    """``*.a.b`` is understood by Go alone and cannot be an argument of docker run; ``.a.b`` means the same to Go."""
    assert direct.entries(("x.test", "*.corp.test", "y.test", ".corp.test"))[:3] == ("x.test", ".corp.test", "y.test")
    assert not {"*", "["} & set("".join(direct.entries(("*.Corp.test", "fd00::1", "10.0.0.0/30"), names=("db",))))


ENTRIES = st.one_of(
    st.sampled_from(
        [
            *("*", "a.test", ".a.test", "*.a.test", "a.test:80", "a.test.", "10.0.0.0/8", "10.1.2.0/29", "fd00::1"),
            *("[fd00::1]", "fd00::/120", "fd00::/126", "10.1.2.3", "LOCALHOST", "bücher.test", "10.", "w*", "%", "["),
            *("a b", "a,b", "::1%lo"),
        ]
    ),
    st.text(st.characters(exclude_categories=("Cc", "Cf", "Cs")), max_size=12),
    st.ip_addresses().map(str),
    st.ip_addresses().map(lambda ip: f"{ip}/{ip.max_prefixlen - 3}"),
)
HOSTS = ["a.test:80", "x.a.test:443", "10.1.2.3:80", "[fd00::1]:80", "10.1.2.9:80", "b.test:80", "xn--bcher-kva.test:1"]


@given(st.lists(ENTRIES, max_size=8), st.sampled_from(HOSTS), st.lists(st.sampled_from(["db", "web.a"]), max_size=2))
def test_p8_the_users_list_is_kept_and_never_reaches_less(said: list[str], host: str, names: list[str]) -> None:
    """Order kept, once each, again is the same, and what went direct still does (the Docker daemon's rule)."""
    found = direct.entries(said, names=names)
    kept = merge(["." + entry[2:] if entry == "*.a.test" else entry for entry in merge(said)])
    assert found[: len(kept)] == kept
    assert len({entry.lower() for entry in found}) == len(found) and "" not in found
    if bypasses(",".join(merge(said)), host):
        assert bypasses(found, host)
    assert merge(found) == found


@given(st.lists(ENTRIES, max_size=8), st.sampled_from(HOSTS))
def test_other_spellings_mean_the_same(said: list[str], host: str) -> None:
    """What is added for other tools lets nothing more go direct, by the Docker daemon's rule."""
    # Go takes a name that ends in a dot, and an address in brackets, as the name of nothing.
    said = [entry for entry in merge(said) if not entry.endswith((".", "]"))]
    if not bypasses(said, host):
        assert not bypasses(direct.entries(said), host)


def test_a_vm_is_its_addresses_and_dockers_networks() -> None:
    """Bridges by Docker's names and by what is known of Docker; no loopback, link-local or host route gets in."""
    addresses = [
        Address(interface="lo", cidr="127.0.0.1/8"),
        Address(interface="lo", cidr="::1/128", family="inet6"),
        Address(interface="eth0", cidr="10.0.2.15/24"),
        Address(interface="eth0", cidr="fe80::1/64", family="inet6"),
        Address(interface="docker0", cidr="172.17.0.1/16"),
        Address(interface="docker0", cidr="fd00:d::1/64", family="inet6"),
        Address(interface="br-0123456789ab", cidr="172.18.0.1/16"),
        Address(interface="br-lan", cidr="192.168.1.1/24"),
        Address(interface="docker_gwbridge", cidr="172.19.0.1/16"),
        Address(interface="mine", cidr="10.9.0.1/24"),
        Address(interface="docker0", cidr="10.8.0.1/32"),
    ]
    assert direct.of_vm(addresses, {"mine"}) == (
        *("10.0.2.15", "172.17.0.1", "fd00:d::1", "172.18.0.1", "192.168.1.1", "172.19.0.1", "10.9.0.1", "10.8.0.1"),
        *("172.17.0.0/16", "fd00:d::/64", "172.18.0.0/16", "172.19.0.0/16", "10.9.0.0/24"),
    )


def test_a_small_network_is_also_written_address_by_address() -> None:
    """For wget, apt and urllib, which know no networks; a large one is not: that would be thousands of entries."""
    small = direct.entries((), vm=direct.of_vm([Address(interface="docker0", cidr="10.200.0.1/29")]))
    assert {"10.200.0.0/29", "10.200.0.1", "10.200.0.2", "10.200.0.6"} <= set(small)
    large = direct.entries((), vm=direct.of_vm([Address(interface="docker0", cidr="10.200.0.1/24")]))
    assert "10.200.0.2" not in large


def test_a_vm_cannot_fill_the_list() -> None:
    """However many addresses a VM claims to have, the list stays short; text that is no address gets nowhere."""
    many = [Address(interface="docker0", cidr=f"{ipaddress.ip_address(0x0A000001 + i * 4)}/30") for i in range(5000)]
    assert len(direct.of_vm(many)) <= 2 * direct.MOST_ADDRESSES
    assert direct.of_vm([Address(interface="docker0", cidr="evil,*/16"), Address(interface="docker0", cidr="*")]) == ()


@pytest.mark.parametrize("name", ["db", "my_db", "web-1", "DB", "project_db_1", "db.local", "a", "_x", "x" * 63])
def test_names_of_containers_and_services(name: str) -> None:
    """Labels of RFC 1123, and underscores as Docker and Compose allow them."""
    assert direct.container_name(name) == name


@pytest.mark.parametrize(
    "name",
    ["", "*", "-x", "x-", ".x", "x.", "a..b", "a b", "a,b", "a/b", "a:1", "10.0.0.0/8", "ü", "a\n", "x" * 64, "$(id)"],
)
def test_what_is_no_name_is_refused(name: str) -> None:
    """A wildcard, a network, a port and anything that a shell would read is no container's name."""
    with pytest.raises(UsageError):
        direct.container_name(name)
