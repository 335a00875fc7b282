"""Never an open proxy: who may ask, and for what, decided on addresses."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address, ip_network

import pytest

from vmproxy.cache.guard import check_settings, may_use, parse_network, plain, port_refused, target_refused
from vmproxy.cache.limits import CacheSettings
from vmproxy.errors import UsageError

USUAL = CacheSettings(directory="/nowhere")
LAN = replace(USUAL, address="192.168.56.1", clients=(ip_network("192.168.56.0/24"),))


@pytest.mark.parametrize(
    "text",
    [
        *("127.0.0.1", "127.9.9.9", "::1", "0.0.0.0", "0.1.2.3", "::", "169.254.169.254", "fe80::1", "224.0.0.1"),
        *("ff02::1", "255.255.255.255", "240.0.0.1", "10.0.0.1", "172.16.0.1", "192.168.1.1", "100.64.0.1", "fc00::1"),
        *("fd12::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "2002:7f00:1::", "64:ff9b::7f00:1", "64:ff9b::a00:1"),
        *("198.18.0.1", "192.0.2.1", "2001:db8::1", "fec0::1", "2001:0:53aa:64c:0:fbff:80ff:fffe", "::127.0.0.1"),
    ],
)
def test_t10_what_is_not_public_is_refused(text: str) -> None:
    """Loopback, link-local, private, special, and each of them inside an IPv6 address."""
    assert target_refused(USUAL, ip_address(text), 80, own=False)


@pytest.mark.parametrize("text", ["93.184.216.34", "2606:2800:220:1::1", "64:ff9b::5db8:d822", "::ffff:93.184.216.34"])
def test_t10_what_is_public_is_not(text: str) -> None:
    """A public address is asked, unless it is this machine's own."""
    assert not target_refused(USUAL, ip_address(text), 80, own=False)
    assert target_refused(USUAL, ip_address(text), 80, own=True)


def test_t10_named_networks_may_be_asked_but_not_the_proxy_itself() -> None:
    """--allow-target opens exactly its networks; the address the proxy listens on stays shut."""
    some = replace(USUAL, targets=(ip_network("10.1.0.0/16"), ip_network("127.0.0.0/8")))
    assert not target_refused(some, ip_address("10.1.2.3"), 80, own=False)
    assert not target_refused(some, ip_address("::ffff:10.1.2.3"), 80, own=False)
    assert target_refused(some, ip_address("10.2.0.1"), 80, own=False)
    assert not target_refused(some, ip_address("127.0.0.1"), 8080, own=True)
    assert "itself" in target_refused(some, ip_address("127.0.0.1"), 8123, own=True)
    everywhere = replace(some, address="0.0.0.0")
    assert "itself" in target_refused(everywhere, ip_address("127.0.0.5"), 8123, own=True)


def test_t10_another_address_needs_the_networks_of_its_clients() -> None:
    """--bind of anything but loopback is refused without --allow."""
    check_settings(USUAL)
    check_settings(replace(USUAL, address="::1"))
    check_settings(LAN)
    for address in ("0.0.0.0", "::", "192.168.56.1", "::ffff:10.0.0.1"):
        with pytest.raises(UsageError, match="--allow"):
            check_settings(replace(USUAL, address=address))


def test_t10_only_named_clients_may_use_it() -> None:
    """Loopback, and what --allow names; a client network is no target."""
    assert may_use(LAN, "127.0.0.1")
    assert may_use(LAN, "192.168.56.7")
    assert may_use(LAN, "::ffff:192.168.56.7")
    assert not may_use(LAN, "192.168.57.1")
    assert not may_use(LAN, "fe80::1%eth0")
    assert target_refused(LAN, ip_address("192.168.56.7"), 80, own=False)
    narrow = replace(LAN, clients=(ip_network("192.168.56.102/32"),))
    assert may_use(narrow, "192.168.56.1")  # this machine, at the address that is listened on
    assert may_use(narrow, "::ffff:192.168.56.1")
    assert not may_use(narrow, "192.168.56.2")
    assert not may_use(replace(narrow, address="0.0.0.0"), "0.0.0.0")
    assert not may_use(replace(narrow, address="0.0.0.0"), "192.168.56.1")


def test_t10_ports() -> None:
    """CONNECT to 443, http to 80 and what is above 1023; others by name."""
    assert not port_refused(USUAL, 443, tunnel=True)
    assert port_refused(USUAL, 22, tunnel=True)
    assert port_refused(USUAL, 8443, tunnel=True)
    assert not port_refused(USUAL, 80, tunnel=False)
    assert not port_refused(USUAL, 3142, tunnel=False)
    assert port_refused(USUAL, 25, tunnel=False)
    named = replace(USUAL, ports=frozenset((22, 25)))
    assert not port_refused(named, 22, tunnel=True)
    assert not port_refused(named, 25, tunnel=False)


def test_networks_are_read_strictly() -> None:
    """A network with bits behind its prefix, or a name, is refused."""
    assert str(parse_network("10.0.2.0/24")) == "10.0.2.0/24"
    for wrong in ("10.0.2.1/24", "example", "", "10.0.2.0/33"):
        with pytest.raises(UsageError):
            parse_network(wrong)


def test_an_ipv4_address_inside_ipv6_is_seen() -> None:
    """Mapped, 6to4 and NAT64 addresses are judged by the address they lead to."""
    assert str(plain(ip_address("::ffff:1.2.3.4"))) == "1.2.3.4"
    assert str(plain(ip_address("2002:102:304::"))) == "1.2.3.4"
    assert str(plain(ip_address("64:ff9b::102:304"))) == "1.2.3.4"
