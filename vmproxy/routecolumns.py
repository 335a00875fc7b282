"""Route tables in columns: `netstat -rn`, `route -n` (net-tools, busybox, BSD), /proc/net/route and ipv6_route."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence

from vmproxy.errors import Refused
from vmproxy.routeparts import Family, Row, destination_of, number_of, route_of

# linux/route.h
_RTF_UP, _RTF_GATEWAY, _RTF_REJECT = 0x1, 0x2, 0x200
_ALL = 0xFFFFFFFF

_HEX_DIGITS = frozenset("0123456789abcdefABCDEF")
_FLAGS = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz!")
_NO_DEVICE = "*"  # what the kernel prints of a blackhole and of a throw route, which have no flag of their own
_PROC = "/proc/net/route"
_TITLES: dict[str, Family] = {"Internet:": "inet", "Internet6:": "inet6"}
_NAMES = {
    "Destination": "destination",
    "Gateway": "gateway",
    "Genmask": "mask",
    "Flags": "flags",
    "Flag": "flags",
    "Metric": "metric",
    "Met": "metric",
    "Iface": "interface",
    "If": "interface",
    "Netif": "interface",
}


def title_of(words: Sequence[str]) -> Family | None:
    """The family that a title tells: net-tools' "Kernel IPv6 routing table", macOS's "Internet6:"."""
    if words[0] == "Kernel" and words[-2:] == ["routing", "table"]:
        return "inet6" if "IPv6" in words else "inet"
    return _TITLES.get(words[0]) if len(words) == 1 else None


def heading_of(words: Sequence[str]) -> dict[str, int] | None:
    """Where each column stands, by the heading above the rows; {} for /proc's, whose rows are known by themselves."""
    if words[:3] == ["Iface", "Destination", "Gateway"]:
        return {}
    if words[0] != "Destination":
        return None
    joined = " ".join(words).replace("Next Hop", "Gateway").split()
    columns = {_NAMES[word]: place for place, word in enumerate(joined) if word in _NAMES}
    return columns if {"destination", "gateway", "flags", "interface"} <= columns.keys() else None


def kind_of(columns: dict[str, int]) -> str:
    """The kind of table whose heading this is."""
    if not columns:
        return _PROC
    return "route -n" if "metric" in columns else "netstat -rn"


def column_row(words: Sequence[str], columns: dict[str, int] | None, family: Family) -> Row | None:
    """A row below a heading; or one whose heading was cut off (`| grep ^0.0.0.0`), of which the metric is not known."""
    if not columns:
        if len(words) != 8 or destination_of(words[0], words[2], "inet") is None:
            return None
        columns = {"destination": 0, "gateway": 1, "mask": 2, "flags": 3, "interface": 7}
    if len(words) <= max(columns.values()):
        return None
    cell = {name: words[place] for name, place in columns.items()}
    destination = destination_of(cell["destination"], cell.get("mask"), family)
    flags = cell["flags"]
    if destination is None or not _FLAGS.issuperset(flags):
        return None
    kind = kind_of(columns)
    # "!" rejects, and so do BSD's R and B; BSD's I holds only for sockets bound to that interface.
    bsd = not columns.keys() & {"mask", "metric"}
    if "U" not in flags or "!" in flags or cell["interface"] == _NO_DEVICE or (bsd and set(flags) & set("RBI")):
        return Row(kind=kind)
    route = route_of(
        destination=destination,
        gateway=cell["gateway"] if "G" in flags else None,
        interface=cell["interface"],
        metric=number_of(cell.get("metric", "0")),
    )
    return Row(kind=kind, routes=(route,)) if route else None


def proc_row(words: Sequence[str]) -> Row | None:
    """A row of /proc/net/route or /proc/net/ipv6_route, known by its hexadecimal columns.

    /proc/net/route prints addresses as numbers in the machine's own byte order (kernel, net/ipv4/fib_trie.c): little
    endian is taken; a mask that makes sense only the other way round is refused. Of a multipath it shows the first hop.
    """
    if len(words) == 10 and all(_is_hex(words[place], 32) for place in (0, 2, 4)):
        return _proc6_row(words)
    if len(words) < 8 or not all(_is_hex(words[place], 8) for place in (1, 2, 7)):
        return None
    mask = int.from_bytes(bytes.fromhex(words[7]), "little")
    if not _is_mask(mask):
        if _is_mask(int(words[7], 16)):
            raise Refused("/proc/net/route is in a foreign byte order", hint="give the output of `ip route` instead")
        return None
    if not _is_hex(words[3], 4):
        return None
    flags = int(words[3], 16)
    if not flags & _RTF_UP or flags & _RTF_REJECT or words[0] == _NO_DEVICE:
        return Row(kind=_PROC)
    destination, gateway = (ipaddress.IPv4Address(bytes.fromhex(words[place])[::-1]) for place in (1, 2))
    route = route_of(
        destination=str(ipaddress.IPv4Network((int(destination) & mask, mask.bit_count()))),
        gateway=str(gateway) if flags & _RTF_GATEWAY else None,
        interface=words[0],
        metric=number_of(words[6]),
    )
    return Row(kind=_PROC, routes=(route,)) if route else None


def _is_hex(text: str, digits: int) -> bool:
    return len(text) == digits and _HEX_DIGITS.issuperset(text)


def _is_mask(number: int) -> bool:
    """Whether the 32 bits are ones first, then zeros."""
    inverse = number ^ _ALL
    return not inverse & (inverse + 1)


def _proc6_row(words: Sequence[str]) -> Row | None:
    """A row of /proc/net/ipv6_route: bytes in network order; it holds the local and multicast tables too."""
    if not all(_is_hex(words[place], 2) for place in (1, 3)):
        return None
    if not all(_is_hex(words[place], 8) for place in (5, 8)):
        return None
    length, flags = int(words[1], 16), int(words[8], 16)
    if not flags & _RTF_UP or flags & _RTF_REJECT or words[3] != "00" or length > 128:
        return Row(kind=_PROC)
    route = route_of(
        destination=str(ipaddress.IPv6Network((bytes.fromhex(words[0]), length), strict=False)),
        gateway=str(ipaddress.IPv6Address(bytes.fromhex(words[4]))) if flags & _RTF_GATEWAY else None,
        interface=words[9],
        metric=int(words[5], 16),
    )
    return Row(kind=_PROC, routes=(route,)) if route else None
