"""squid's files, written and read: the configuration, its log, its store. Without squid."""

from __future__ import annotations

import re
import struct
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from vmproxy.cache import squidlog, squidstore
from vmproxy.cache.guard import Address, target_refused
from vmproxy.cache.limits import CacheSettings
from vmproxy.cache.parent import Parent, name_refused
from vmproxy.cache.squidconf import Run, forbidden, render, word
from vmproxy.cache.stats import Stats
from vmproxy.errors import UsageError
from vmproxy.model import ProxyURL
from vmproxy.noproxy import bypasses, matchers

RUN = Run(name="vmproxy-0123abcd", secret="00ff" * 8)


def conf(**changes: Any) -> list[str]:
    """The lines for such settings."""
    return render(CacheSettings(directory="/x", engine="squid", **changes), RUN).splitlines()


addresses = st.one_of(
    st.ip_addresses(v=4),
    st.ip_addresses(v=6),
    st.sampled_from(("10.0.0.1", "127.0.0.1", "169.254.169.254", "fe80::1", "fd00::1", "::1:0:0", "100::1")).map(
        ip_address
    ),
    st.ip_addresses(v=4).map(lambda four: IPv6Address(int(IPv6Address("64:ff9b::")) | int(four))),
    st.ip_addresses(v=4).map(lambda four: IPv6Address((0x2002 << 112) | (int(four) << 80))),
)


TARGETS = CacheSettings(directory="/x", targets=(ip_network("10.0.0.0/9"), ip_network("fd00::/16")))
FORBIDDEN = forbidden(TARGETS.targets, ())


@given(addresses)
def test_t10_squid_refuses_what_the_embedded_proxy_refuses(address: Address) -> None:
    """Every address that is no public one, also inside one of IPv6; one that is allowed by name is not refused."""
    # Squid takes a mapped address for IPv4.
    assume(not (isinstance(address, IPv6Address) and address.ipv4_mapped))
    refused = any(address in network for network in FORBIDDEN if network.version == address.version)
    if target_refused(TARGETS, address, 80, own=False):
        assert refused
    elif isinstance(address, IPv4Address) or address in ip_network("fd00::/16"):
        assert not refused or address in ip_network("192.0.0.0/24")
    assert not (address in ip_network("10.0.0.0/9") and refused)


def test_t10_own_addresses_are_refused_but_for_those_that_are_allowed() -> None:
    """One by one, out of a network that is allowed or not."""
    own = (ip_address("203.0.114.7"), ip_address("2600::7"))
    found = forbidden((), own)
    assert ip_network("203.0.114.7/32") in found
    assert ip_network("2600::7/128") in found
    assert ip_network("203.0.114.7/32") not in forbidden((ip_network("203.0.114.0/24"),), own)


texts = st.text(st.characters(exclude_categories=("Cc", "Cs")), max_size=12)


@given(texts.filter(lambda text: ":" not in text and not text.startswith(("*", "NEGOTIATE"))), texts)
def test_t10_no_password_ends_its_line(user: str, password: str) -> None:
    """The login is one word of percent-encoded bytes, whatever it holds, and nobody sees it elsewhere."""
    assume(user or password)
    lines = conf(upstream=ProxyURL(scheme="http", host="proxy.example", port=3128, username=user, password=password))
    found = [line for line in lines if "login=" in line]
    assert len(found) == 1
    assert re.fullmatch(
        r"cache_peer proxy\.example parent 3128 0 [a-z =-]+ login=(%[0-9A-F]{2})*:(%[0-9A-F]{2})*", found[0]
    )


def test_what_squid_reads_as_something_else_is_refused() -> None:
    """Users that mean another scheme for it; https; words that are none."""
    for user in ("*", "*me", "NEGOTIATE", "NEGOTIATE:x"):
        with pytest.raises(UsageError, match="something else"):
            conf(upstream=ProxyURL(scheme="http", host="h", port=1, username=user))
    with pytest.raises(UsageError, match="http: proxies only"):
        conf(upstream=ProxyURL(scheme="https", host="h", port=1))
    for text in ("", "a b", "a\nb", "a#b", '"', "'", "ü", "a\\b"):
        with pytest.raises(UsageError):
            word(text)
    for host in ("a b", "a\nhttp_access allow all", "ü"):
        with pytest.raises(UsageError):
            conf(upstream=ProxyURL(scheme="http", host=host, port=1))


entries = st.sampled_from(
    [
        *("example.com", ".example.com", "*.example.com", "example.com:8080", "10.0.0.1", "10.0.0.0/8", "fd00::/8"),
        *("[fd00::1]:81", "a-b.c", "*", "x:y", "bad host", "ex*mple.com", "10.0.0.1:80", "2001:db8::1"),
    ]
)
hosts = st.sampled_from(
    [
        *(
            "example.com",
            "a.example.com",
            "notexample.com",
            "10.0.0.1",
            "10.1.1.1",
            "11.0.0.1",
            "fd00::1",
            "2001:db8::1",
        ),
        *("a-b.c", "axb.c", "z.a-b.c", "localhost", "127.0.0.1", "::1"),
    ]
)


class Acls:
    """As much of squid's ACLs as ``squidconf`` uses, for one host and port."""

    def __init__(self, lines: list[str], host: str, port: int) -> None:
        self.lines = [line.split() for line in lines if line.startswith("acl ")]
        self.host = host
        self.port = port

    def __call__(self, name: str) -> bool:
        return any(self._one(words[2], words[3:]) for words in self.lines if words[1] == name)

    def _one(self, kind: str, values: list[str]) -> bool:
        flags = [value for value in values if value in ("-n", "-i")]
        rest = values[len(flags) :]
        if kind == "any-of":
            return any(map(self, rest))
        if kind == "all-of":
            return all(map(self, rest))
        if kind == "port":
            return any(low <= self.port <= high for low, high in (_range(one) for one in rest))
        if kind == "dstdom_regex":
            return any(re.search(one, self.host, re.IGNORECASE if "-i" in flags else 0) for one in rest)
        assert kind == "dst"
        assert "-n" in flags
        try:
            address = ip_address(self.host)
        except ValueError:
            return False
        networks = [ip_network(one) for one in rest]
        return any(address.version == network.version and address in network for network in networks)


def _range(text: str) -> tuple[int, int]:
    low, _, high = text.partition("-")
    return int(low), int(high or low)


@given(st.lists(entries, max_size=4), hosts, st.sampled_from([80, 81, 8080]))
def test_no_proxy_means_the_same_for_both_engines(no_proxy: list[str], host: str, port: int) -> None:
    """Go's rule: the ACL says what ``bypasses`` says, and so does the embedded proxy."""
    proxy = ProxyURL(scheme="http", host="proxy.example", port=3128)
    lines = conf(upstream=proxy, no_proxy=tuple(no_proxy))
    shown = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    assert Acls(lines, host, port)("direct") == bypasses(no_proxy, shown)
    settings = CacheSettings(directory="/x", upstream=proxy, no_proxy=tuple(no_proxy))
    assert Parent(settings).takes(host, port) != bypasses(no_proxy, shown)
    assert len(matchers(no_proxy)) == len(no_proxy)


@pytest.mark.parametrize(
    "host",
    [
        *("localhost", "a.localhost", "b.a.LOCALHOST.", "localhost.", "localhost.localdomain", "ip6-localhost"),
        *("ip6-loopback", "ip6-loopback.example", "notlocalhost", "localhost.example", "a.ip6-localhost", "example"),
    ],
)
def test_t10_names_of_this_machine_are_the_same_for_both_engines(host: str) -> None:
    """What is not sent to an upstream, squid denies before it allows what goes there."""
    lines = conf(upstream=ProxyURL(scheme="http", host="proxy.example", port=3128))
    assert Acls(lines, host, 80)("this_machine") == bool(name_refused(host))
    assert lines.index("http_access deny this_machine !direct") < lines.index("http_access allow clients !direct")


def test_the_same_limits_stand_in_both() -> None:
    """Size, clients, ports and times of the settings are squid's, and nobody but the named clients gets in."""
    lines = conf(
        address="192.168.56.1",
        port=8124,
        size=5 << 30,
        clients=(ip_network("192.168.56.0/24"),),
        ports=frozenset((8443, 5000)),
    )
    for wanted in (
        "http_port 192.168.56.1:8124",
        "cache_dir aufs store 5120 16 256",
        "acl clients src 127.0.0.0/8 ::1 192.168.56.0/24",
        "acl web_port port 80 1024-65535 5000 8443",
        "acl tunnel_port port 443 5000 8443",
        "acl itself_address dst 192.168.56.1",
        "client_ip_max_connections 2000",
        "request_timeout 20 seconds",
        "connect_timeout 10 seconds",
        "request_header_max_size 64 KB",
    ):
        assert wanted in lines
    narrow = conf(address="192.168.56.1", clients=(ip_network("192.168.56.102/32"),))
    assert "acl clients src 127.0.0.0/8 ::1 192.168.56.1 192.168.56.102/32" in narrow  # this machine itself
    access = [line for line in lines if line.startswith("http_access ")]
    assert access[-1] == "http_access deny all"
    assert access.index("http_access deny !clients") < access.index("http_access deny forbidden")
    assert access.index("http_access deny forbidden") < access.index("http_access allow clients")
    assert not [line for line in lines if line.startswith("cache_effective_user")]
    six = render(CacheSettings(directory="/x", address="::1"), Run(name="n", secret="s", user="proxy", group="proxy"))
    assert "http_port [::1]:8123\n" in six
    assert "cache_effective_user proxy\n" in six


# the log


def counted(*lines: str) -> tuple[Stats, list[str]]:
    """The counters and what -v says of lines."""
    stats = Stats()
    return stats, [squidlog.count(stats, line) for line in lines]


def test_the_log_becomes_the_counters() -> None:
    """Each of squid's words in its place; no query is ever said."""
    stats, said = counted(
        "TCP_MISS 200 1200 200 99 GET h.example 80 - http://h.example/a?token",
        "TCP_MEM_HIT 200 1200 200 99 GET h.example 80 - http://h.example/a",
        "TCP_REFRESH_UNMODIFIED 200 1200 200 99 GET h.example 8080 - http://h.example:8080/a",
        "TCP_REFRESH_MODIFIED 200 1200 200 99 GET h.example 80 - http://h.example/a",
        "TCP_MISS 200 1200 200 99 POST h.example 80 - http://h.example/a",
        "TCP_TUNNEL 200 5000 0 700 CONNECT h.example 443 - h.example:443",
        "TCP_DENIED 403 4000 300 99 GET 10.0.0.1 80 ERR_ACCESS_DENIED http://10.0.0.1/",
        "TCP_MISS 503 4000 300 99 GET h.example 80 ERR_CONNECT_FAIL http://h.example/b",
        "TCP_MISS 503 4000 300 99 GET new.example 80 ERR_DNS_FAIL http://new.example/b",
        "NONE_NONE 400 4000 300 99 GET - - ERR_INVALID_REQ error:invalid-request",
        "NONE_NONE 000 0 0 0 - - - - error:transaction-end-before-headers",
        "garbage",
        "",
    )
    total = stats.total
    assert (total["misses"], total["hits"], total["revalidated"], total["passed"]) == (2, 1, 1, 1)
    assert (total["tunnels"], total["refused"], total["errors"]) == (1, 2, 2)
    assert (total["bytes_saved"], total["bytes_fetched"], total["bytes_tunnelled"]) == (2000, 3000, 5700)
    assert set(stats.hosts) == {"h.example", "h.example:8080", "h.example:443", "(others)"}
    assert said[0] == "GET http://h.example/a?… misses"
    assert said[5] == "CONNECT h.example:443 tunnelled, never cached"
    assert said[6] == "refused, 403: GET http://10.0.0.1/"
    assert said[-3:] == ["", "", ""]


@given(st.text(max_size=80))
def test_any_line_is_read(line: str) -> None:
    """Hosts in the log are clients' own words: none harms, and none is counted that is no host."""
    stats, _said = counted(line, f"TCP_MISS 200 1 0 0 GET {line} 80 - x", f"TCP_HIT 200 1 0 {line} GET h 80 - x")
    assert all(re.fullmatch(r"[0-9A-Za-z._:\[\]()-]+", host) for host in stats.hosts)


def test_the_cache_manager_is_read() -> None:
    """Entries and bytes; addresses in memory, without squid's own pages; the last of what it complained of."""
    info = "Cache information:\n\tStorage Swap size:\t12 KB\n\t  54 StoreEntries\n\t     3 on-disk objects\n"
    assert squidlog.held(info) == {"entries": 3, "size": 12288}
    assert squidlog.held("") == {"entries": 0, "size": 0}
    objects = (
        "KEY 00\n\tGET http://a/x\n\tinmem_lo: 0\nKEY 01\n\tGET http://n:1/squid-internal-mgr/info\n\tHEAD http://b/\n"
    )
    assert squidlog.addresses(objects) == {"http://a/x", "http://b/"}
    said = b"2026/11/22 12:58:04| ERROR: one\n2026/11/22 12:58:04| FATAL: Bungled \x1b squid.conf\nCPU Usage: 0.009\n"
    assert squidlog.reason(said) == r"Bungled \x1b squid.conf"
    assert squidlog.reason(b"nothing") == ""


# the store


def put(store: Path, name: str, url: str, *, more: bytes = b"body") -> Path:
    """A file as squid writes it."""
    fields = b"".join(
        struct.pack("=Bi", kind, len(value)) + value
        for kind, value in ((3, b"K" * 16), (9, b"S" * 48), (4, url.encode() + b"\0"))
    )
    path = store / "00" / "0A" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(struct.pack("=Bi", 3, 5 + len(fields)) + fields + more)
    return path


def test_files_of_the_store_are_found_by_their_address(tmp_path: Path) -> None:
    """Purged by a glob, the index with them; what is no file of squid's is left alone."""
    one, two = put(tmp_path, "0000000A", "http://a.example/x"), put(tmp_path, "0000000B", "http://b.example/x?y")
    stranger = tmp_path / "00" / "0A" / "notes"
    stranger.write_bytes(one.read_bytes())
    (tmp_path / "swap.state").write_bytes(b"index")
    assert squidstore.address(str(two)) == "http://b.example/x?y"
    assert len(list(squidstore.files(str(tmp_path)))) == 2
    assert squidstore.purge(str(tmp_path), "http://c*") == (0, 0)
    assert (tmp_path / "swap.state").exists()
    assert squidstore.purge(str(tmp_path), "http://b*") == (1, len(one.read_bytes()) + 2)
    assert not (tmp_path / "swap.state").exists()
    assert squidstore.purge(str(tmp_path), "*")[0] == 1
    assert stranger.exists()
    assert squidstore.purge(str(tmp_path / "nowhere"), "*") == (0, 0)


@given(st.binary(max_size=200))
def test_any_file_is_read(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    """A file that is broken has no address."""
    path = tmp_path_factory.getbasetemp() / "any-file"
    for head in (b"", b"\x03\x40\0\0\0"):
        path.write_bytes(head + data)
        assert isinstance(squidstore.address(str(path)), str)
