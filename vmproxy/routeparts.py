"""The strict types that every word of a route table passes before it becomes part of a route (RELIABILITY T04)."""

from __future__ import annotations

import ipaddress
from typing import Literal

from vmproxy.model import Route
from vmproxy.values import dataclass

Family = Literal["inet", "inet6"]

MAIN_TABLE = 254  # linux/rtnetlink.h, RT_TABLE_MAIN
DEFAULTS: dict[Family, str] = {"inet": "0.0.0.0/0", "inet6": "::/0"}

# Sets and not expressions here and in the siblings: compiling those would be a good part of the whole run's time.
_IN_A_NAME = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_.@:-")
_LONGEST = 64  # characters of an address, its zone and its prefix length


@dataclass(frozen=True, kw_only=True)
class Row:
    """One recognised line: the kind of table that prints it, its routes, and whether all of the line was there."""

    kind: str
    routes: tuple[Route, ...] = ()
    whole: bool = True


def gateway_of(text: str, family: Family) -> str:
    """The address in its usual spelling where it can be a next hop of that family, else "".

    Unicast only; no loopback, no reserved and no IPv4-mapped address. A zone (``fe80::1%en0``) is left out.
    """
    if len(text) > _LONGEST:
        return ""
    text = text.partition("%")[0].strip("[]")
    try:
        address = ipaddress.IPv4Address(text) if family == "inet" else ipaddress.IPv6Address(text)
    except ValueError:
        return ""
    if address.is_unspecified or address.is_multicast or address.is_loopback:
        return ""
    if isinstance(address, ipaddress.IPv4Address):
        return "" if address.is_reserved or int(address) < 1 << 24 else str(address)
    return "" if address.ipv4_mapped is not None else str(address)


def interface_of(text: str) -> str:
    """The interface name where it is one (1 to 15 plain characters), else ""."""
    return text if 1 <= len(text) <= 15 and _IN_A_NAME.issuperset(text) else ""


def number_of(text: str) -> int | None:
    """A plain decimal number of 32 bits, else None."""
    if not (text.isascii() and text.isdigit() and len(text) <= 10):
        return None
    number = int(text)
    return number if number <= 0xFFFFFFFF else None


def destination_of(text: str, mask: str | None, family: Family) -> str | None:
    """CIDR text of a destination as the tables print it, None where it is none. ``family`` is that of "default"."""
    if text == "default":
        return DEFAULTS[family]
    if len(text) > _LONGEST:
        return None
    address, _, length = text.partition("/")
    address = address.strip("[]").partition("%")[0]
    if mask is not None:
        length = mask
    elif ":" not in address:
        parts = address.split(".")  # macOS and the BSDs print 10.0.2/24 and 127
        if not length and len(parts) < 4:
            length = str(8 * len(parts))
        address = ".".join(parts + ["0"] * (4 - len(parts)))
    try:
        return str(ipaddress.ip_network(f"{address}/{length}" if length else address, strict=False))
    except ValueError:
        return None


def route_of(
    *, destination: str, gateway: str | None, interface: str, metric: int | None, table: int = MAIN_TABLE
) -> Route | None:
    """A route from its words; ``gateway`` None is "on the link", ``metric`` None a number that could not be read.

    Where a word is no good, an ordinary route is dropped (None) and a default route is kept *without* a gateway: so it
    is never chosen, and never overlooked in favour of a worse one.
    """
    family: Family = "inet6" if ":" in destination else "inet"
    address = gateway_of(gateway, family) if gateway is not None else ""
    name = interface_of(interface)
    if (gateway is not None and not address) or (interface and not name) or metric is None:
        if destination != DEFAULTS[family]:
            return None
        address = ""
    return Route(
        destination=destination, gateway=address, interface=name, metric=metric or 0, table=table, family=family
    )
