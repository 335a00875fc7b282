"""Route tables that no machine recorded: hostile, damaged, cut, and by chance."""

from __future__ import annotations

import ipaddress
import random
import struct
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vmproxy.errors import NoGateway, Refused
from vmproxy.model import GatewayChoice, Route
from vmproxy.routes import LIMIT, agree, choose_gateway, default_routes, parse

FOLDER = Path(__file__).parents[2] / "fixtures" / "routes"
RECORDED = sorted(path for path in FOLDER.glob("*/*") if path.suffix in (".txt", ".bin"))
INTERFACE = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_.@:-#")
GOOD = b"default via 10.0.2.2 dev eth0 \n10.0.2.0/24 dev eth0 scope link \n"


def gateway(data: bytes) -> str:
    """The chosen address."""
    return choose_gateway(parse(data)).gateway


def check(routes: tuple[Route, ...]) -> None:
    """Every field of every route is of its strict type (RELIABILITY T04)."""
    for route in routes:
        network = ipaddress.ip_network(route.destination)
        assert route.family == ("inet" if network.version == 4 else "inet6")
        assert len(route.interface) <= 15
        assert INTERFACE.issuperset(route.interface)
        assert 0 <= route.metric <= 0xFFFFFFFF
        if route.gateway:
            address = ipaddress.ip_address(route.gateway)
            assert address.version == network.version
            assert not any((address.is_multicast, address.is_unspecified, address.is_loopback))
            assert str(address) == route.gateway


def try_all(data: bytes) -> None:
    """Parse and choose: a result of strict types, or an error of ours."""
    refusal = None
    try:
        routes = parse(data)
        check(routes)
        choice = choose_gateway(routes)
    except Refused as error:
        refusal = error
    if refusal is None:
        assert choice.gateway
        assert choice.reason.isprintable()
    else:
        assert refusal.exit == 6
        assert str(refusal).isprintable()
        assert all(line.isprintable() for line in getattr(refusal, "candidates", ()))


@settings(deadline=None)
@given(st.binary(max_size=400))
def test_p7_arbitrary_bytes(data: bytes) -> None:
    """Arbitrary bytes never crash the parser."""
    try_all(data)


VOCABULARY = """
default 0.0.0.0/0 0.0.0.0 ::/0 10.0.2.0/24 via dev metric table nexthop tos from src inet6 unreachable blackhole dead
linkdown eth0 eth1 10.0.2.2 10.0.2.3 fe80::1 fd00::2 224.0.0.1 255.255.255.255 127.0.0.1 300.1.1.1 -1 0 1 100 UG U !
U! * 99999999999 - 00000000 0202000A 00FFFFFF FFFFFF00 0003 0001 0201 Destination Gateway Genmask Flags Metric Ref Use
Iface MSS Window irtt Next Hop Internet6: Kernel IPv6 routing table pref medium \x1b[31m \x00 \xff é \\
"""
WORDS = st.sampled_from(VOCABULARY.split())
LINES = st.lists(WORDS, max_size=12).map(" ".join)


@settings(deadline=None)
@given(st.lists(LINES, max_size=8).map("\n".join))
def test_p7_lines_of_the_tables_words(text: str) -> None:
    """Words of route tables in any order give a result of strict types or an error."""
    try_all(text.encode("utf-8"))


@settings(deadline=None)
@given(st.sampled_from(RECORDED), st.data())
def test_p7_mutated_recordings(path: Path, data: st.DataObject) -> None:
    """Recorded tables with bytes changed, removed, doubled or cut never crash."""
    table = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 6))):
        at = data.draw(st.integers(0, len(table)))
        size = data.draw(st.integers(0, 40))
        table[at : at + size] = data.draw(st.one_of(st.binary(max_size=8), st.just(bytes(table[at : at + size]) * 2)))
    try_all(bytes(table))


ROUTE = st.builds(
    lambda gateway, metric, interface: f"default via {gateway} dev {interface} metric {metric} ",
    st.integers(0x0A000001, 0x0AFFFFFE).map(ipaddress.IPv4Address),
    st.integers(0, 0xFFFFFFFF),
    st.sampled_from(["eth0", "eth1", "wlan0"]),
)


@settings(deadline=None)
@given(
    st.lists(ROUTE, min_size=1, max_size=6, unique_by=lambda line: line.split()[6]), st.randoms(use_true_random=False)
)
def test_p7_row_order_does_not_matter(rows: list[str], chance: random.Random) -> None:
    """Where metrics differ the lowest wins, whatever the order of the rows and of what stands between them."""
    best = min(rows, key=lambda line: int(line.split()[6]))
    mixed = [*rows, "10.0.2.0/24 dev eth0 scope link ", "not a route", "blackhole 10.66.0.0/16 "]
    chance.shuffle(mixed)
    choice = choose_gateway(parse("".join(f"{row}\n" for row in mixed).encode()))
    assert (choice.gateway, choice.interface) == (best.split()[2], best.split()[4])


@settings(deadline=None)
@given(st.permutations([("10.0.2.2", 5), ("10.0.2.3", 5), ("10.0.2.4", 9)]))
def test_f08_equal_metrics_read_alike_in_any_order(rows: list[tuple[str, int]]) -> None:
    """The error for equal metrics names the same candidates in the same order, however the table is sorted."""
    with pytest.raises(NoGateway) as caught:
        gateway("".join(f"default via {address} dev eth0 metric {metric}\n" for address, metric in rows).encode())
    assert caught.value.candidates == tuple(f"10.0.2.{n} dev eth0 metric {m}" for n, m in ((2, 5), (3, 5), (4, 9)))
    assert "--gateway" in caught.value.hint


@pytest.mark.parametrize(
    "junk",
    [
        pytest.param(b"\x00\xff\xfe\x80\n", id="invalid bytes"),
        pytest.param(b"\x1b]0;owned\x07default via 6.6.6.6 dev eth0\n", id="escape codes"),
        pytest.param(b"default via 6.6.6.6 dev eth0\r dev eth1\n", id="carriage return inside"),
        pytest.param(b"d\xc3\xa9fault via 6.6.6.6 dev eth0\n", id="not ASCII"),
        pytest.param(b"default via 6.6.6.6 dev eth0 " + b"x" * 20000 + b"\n", id="endless line"),
        pytest.param(b"$ ip route\n", id="prompt"),
        pytest.param(b"10.0.0.0/33 via 6.6.6.6 dev eth0\n", id="impossible prefix"),
        pytest.param(b"nexthop via 6.6.6.6 dev eth0\n", id="hop of no route"),
        pytest.param(b"10.0.0.1 is not a route\n", id="prose"),
        pytest.param(b"unreachable\nvia\nmetric 5\n", id="lone words"),
    ],
)
def test_t04_unusable_lines_are_skipped(junk: bytes) -> None:
    """A line that cannot be used does not spoil the rest, before or after it."""
    assert gateway(junk + GOOD) == "10.0.2.2"
    assert gateway(GOOD + junk) == "10.0.2.2"


@pytest.mark.parametrize(
    "line",
    [
        "default via 224.0.0.1 dev eth0",
        "default via 255.255.255.255 dev eth0",
        "default via 0.0.0.0 dev eth0",
        "default via 127.0.0.1 dev eth0",
        "default via 300.1.1.1 dev eth0",
        "default via 010.0.0.1 dev eth0",
        "default via host.example dev eth0",
        "default via $(reboot) dev eth0",
        "default via ::ffff:10.0.2.2 dev eth0",
        "default via 10.0.2.2 dev eth0;reboot",
        "default via 10.0.2.2 dev abcdefghijklmnop",
        "default via 10.0.2.2 dev eth0 metric -1",
        "default via 10.0.2.2 dev eth0 metric 4294967296",
        "default via 10.0.2.2 dev eth0 metric ²",
        "default via",
    ],
)
def test_t04_damaged_default_is_never_chosen(line: str) -> None:
    """A default route with a part that is no unicast address, interface or number is refused or skipped, not used."""
    with pytest.raises(Refused):
        gateway(f"{line}\n".encode())


def test_t04_damaged_default_is_not_overlooked() -> None:
    """A better default route that cannot be read does not leave the field to a worse one."""
    with pytest.raises(NoGateway) as caught:
        gateway(b"default via gateway.lan dev eth0 metric 10\ndefault via 10.0.2.2 dev eth1 metric 100\n")
    assert caught.value.candidates == ("no gateway dev eth0 metric 10", "10.0.2.2 dev eth1 metric 100")
    assert gateway(b"default via gateway.lan dev eth0 metric 200\n" + GOOD) == "10.0.2.2"


@pytest.mark.parametrize("data", [b"", b"\n \r\n", b"\x00" * 100, b"hello\n", b"\xff\xfe", b"<html></html>", b"{}"])
def test_t04_nothing_usable(data: bytes) -> None:
    """Input without any route table is refused with exit 6 and a hint."""
    with pytest.raises(Refused) as caught:
        parse(data)
    assert caught.value.exit == 6
    assert caught.value.hint


def test_f09_a_heading_alone_is_an_empty_table() -> None:
    """A machine without any route has no default route, which is something else than no table."""
    for data in (
        b"Kernel IP routing table\nDestination Gateway Genmask Flags Metric Ref Use Iface\n",
        b"Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n",
        struct.pack("=I", 0x45311224),
    ):
        assert parse(data) == ()
        with pytest.raises(NoGateway):
            choose_gateway(parse(data))


def test_t04_hops_inside_of_hops() -> None:
    """What no kernel writes is refused, however deep: it is not followed."""
    inner = b""
    for _ in range(5_000):
        hop = struct.pack("=HBBI", 8 + len(inner), 0, 0, 2) + inner
        inner = struct.pack("=HH", 4 + len(hop), 9) + hop
    head = struct.pack("=IHHII", 28 + len(inner), 24, 0, 0, 0) + struct.pack("=8BI", 2, 0, 0, 0, 254, 2, 0, 1, 0)
    with pytest.raises(Refused, match="damaged"):
        parse(struct.pack("=I", 0x45311224) + head + inner)


def test_t04_larger_than_the_limit() -> None:
    """More than 4 MiB is refused, and 4 MiB of it is read."""
    line = b"10.1.0.0/16 via 10.0.2.9 dev eth0" + b" onlink" * 2000 + b"\n"
    table = GOOD + line * ((LIMIT - len(GOOD)) // len(line))
    assert gateway(table) == "10.0.2.2"
    with pytest.raises(Refused, match="larger than 4 MiB"):
        parse(table + b"\n" * LIMIT)


def test_two_formats_in_one_input_are_refused() -> None:
    """Tables of two tools know different metrics, so that a mixture decides nothing."""
    table = b"Destination Gateway Genmask Flags Metric Ref Use Iface\n0.0.0.0 10.0.2.3 0.0.0.0 UG 0 0 0 eth0\n"
    with pytest.raises(Refused, match="mixes"):
        parse(GOOD + table)


def test_rows_cut_out_of_a_table() -> None:
    """`netstat -rn | grep ^0.0.0.0` loses the heading: one row decides, two have no metric that could."""
    row = b"0.0.0.0         10.0.2.2        0.0.0.0         UG        7 0          0 eth0\n"
    assert gateway(row) == "10.0.2.2"
    with pytest.raises(NoGateway, match="share the metric 0"):
        gateway(row + row.replace(b"10.0.2.2", b"10.0.2.3").replace(b"7", b"9"))
    assert gateway(b"eth0\t00000000\t0202000A\t0003\t0\t0\t0\t00000000\t0\t0\t0\n") == "10.0.2.2"


def test_proc_of_a_big_endian_machine_is_refused() -> None:
    """The same hexadecimal digits read the other way round would be another address: exit 6, not 2.2.0.10."""
    default = b"eth0\t00000000\t0A000202\t0003\t0\t0\t0\t00000000\t0\t0\t0\n"
    link = b"eth0\t0A000200\t00000000\t0001\t0\t0\t0\tFFFFFF00\t0\t0\t0\n"
    with pytest.raises(Refused, match="foreign byte order"):
        parse(default + link)


def test_a_last_line_without_newline() -> None:
    """A stripped table is taken; a last line that might be torn off before its metric ended is not."""
    assert gateway(GOOD.strip()) == "10.0.2.2"
    assert gateway(b"default via 10.0.2.2 dev eth0") == "10.0.2.2"
    first = b"default via 10.0.2.3 dev eth1 metric 100\n"
    assert gateway(first + b"default via 10.0.2.2 dev eth0 metric 600") == "10.0.2.3"
    with pytest.raises(Refused, match="ends inside its last line"):
        parse(first + b"default via 10.0.2.2 dev eth0 metric 6")
    with pytest.raises(NoGateway):
        gateway(b"default via 10.0.2.2")


def test_multipath_cut_after_its_first_hop() -> None:
    """One hop alone is a torn table: the kernel prints a route with one hop on one line."""
    with pytest.raises(NoGateway):
        gateway(b"default proto static\n\tnexthop via 10.0.2.2 dev eth0 weight 1\n")


def test_dead_hops_are_no_candidates() -> None:
    """A hop whose link is down is not used by the kernel, nor here."""
    table = (
        b"default\n\tnexthop via 10.0.2.2 dev eth0 weight 1\n\tnexthop via 10.0.3.2 dev eth1 weight 1 dead linkdown\n"
    )
    assert gateway(table) == "10.0.2.2"


def test_other_tables_are_no_candidates() -> None:
    """A default route of another table, by number or by name, is none of the main table's."""
    table = b"default via 10.9.0.1 dev eth1 table 77\ndefault via 10.9.0.2 dev eth1 table vpn\n"
    with pytest.raises(NoGateway, match="no default route"):
        gateway(table)
    assert gateway(table + GOOD) == "10.0.2.2"
    assert gateway(b"default via 10.0.2.2 dev eth0 table main\n") == "10.0.2.2"


def test_colours_are_no_escape_codes() -> None:
    """`ip -c route` in a file is as good as without colours."""
    assert gateway(b"default via \x1b[35m10.0.2.2 \x1b[0mdev \x1b[36meth0 \x1b[0mproto dhcp \n") == "10.0.2.2"


def test_every_torn_save_stream_is_refused() -> None:
    """Bytes of `ip route save` cut at any place but between messages are refused, never read as a shorter table."""
    data = (FOLDER / "multipath-behind-one" / "ip-save.bin").read_bytes()
    ends, at = {4}, 4
    while at < len(data):
        at += (struct.unpack_from("=I", data, at)[0] + 3) & ~3
        ends.add(at)
    for size in range(4, len(data)):
        if size not in ends:
            with pytest.raises(Refused, match="cut off or damaged"):
                parse(data[:size])


def test_save_stream_of_the_other_byte_order() -> None:
    """A foreign byte order is refused by name."""
    other = ">" if sys.byteorder == "little" else "<"
    with pytest.raises(Refused, match="foreign byte order"):
        parse(struct.pack(f"{other}I", 0x45311224) + bytes(32))


def test_save_stream_through_a_terminal() -> None:
    """A pty that turned newlines into CRLF has damaged the stream: refused."""
    data = (FOLDER / "one-default" / "ip-save.bin").read_bytes()
    assert b"\n" in data
    with pytest.raises(Refused):
        parse(data.replace(b"\n", b"\r\n"))


def test_hostile_interface_names_of_a_save_stream() -> None:
    """A name that is no interface name is not passed on; the index stands for it."""
    data = (FOLDER / "one-default" / "ip-save.bin").read_bytes()
    (route,) = default_routes(parse(data, dict.fromkeys(range(1, 99), "$(reboot)")))
    assert route.interface.startswith("if#")


def choice(address: str) -> GatewayChoice:
    """A choice by its address."""
    route = Route(destination="0.0.0.0/0", gateway=address, interface="eth0")
    return choose_gateway([route])


def test_agree() -> None:
    """Two readings of one table give the first's choice where they agree, else an error naming both."""
    assert agree(choice("10.0.2.2"), choice("10.0.2.2")) == choice("10.0.2.2")
    with pytest.raises(NoGateway, match=r"10\.0\.2\.2 in its text, 10\.0\.2\.3 in its bytes") as caught:
        agree(choice("10.0.2.2"), choice("10.0.2.3"))
    assert len(caught.value.candidates) == 2
    assert "--gateway" in caught.value.hint


def test_ipv4_comes_before_ipv6() -> None:
    """With both, IPv4 is chosen whatever the metrics, and IPv6's route stays a candidate."""
    found = choose_gateway(
        parse(b"default via fd00::2 dev eth0 metric 1 pref medium\ndefault via 10.0.2.2 dev eth0 metric 9\n")
    )
    assert (found.gateway, found.family) == ("10.0.2.2", "inet")
    assert [route.gateway for route in found.candidates] == ["10.0.2.2", "fd00::2"]
