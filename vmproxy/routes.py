"""Which address is the host's, as a machine's route table says.

``parse`` finds the format by itself: `ip route` (also ``-o``, ``-6``, ``show table all``), `netstat -rn`, `route -n`,
/proc/net/route, and the bytes of `ip route save`. ``choose_gateway`` decides and says why; where the table does not
decide, it does not guess.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping, Sequence

from vmproxy.errors import NoGateway, Refused, VmproxyError
from vmproxy.model import GatewayChoice, Route
from vmproxy.routeparts import DEFAULTS, MAIN_TABLE
from vmproxy.routetext import parse_text
from vmproxy.values import dataclass

LIMIT = 4 << 20  # bytes; a VM's table has a few lines
_SAVED = (b"\x24\x12\x31\x45", b"\x45\x31\x12\x24")  # `ip route save`, in either byte order
HINT = "say which with --gateway IP"


@dataclass(frozen=True, kw_only=True)
class Sighting:
    """What `detect-gateway` found out on one machine: the choice, or the error that says why there is none.

    ``vm`` is the target's name, "" for this machine or a recorded table. ``answering`` are the candidates' addresses
    that took a connection, None where nobody asked.
    """

    vm: str = ""
    choice: GatewayChoice | None = None
    error: VmproxyError | None = None
    candidates: tuple[Route, ...] = ()
    answering: tuple[str, ...] | None = None
    networks: tuple[str, ...] = ()
    """Those without a hop in between in which the chosen gateway lies."""


def parse(data: bytes, links: Mapping[int, str] | None = None) -> tuple[Route, ...]:
    """The unicast routes of a table in any of the formats above, in its order; one route for each hop of a multipath.

    ``links`` maps interface indexes to names for `ip route save` bytes, which have only numbers (``if#2`` without it).
    Lines that cannot be used are skipped. Raises Refused where nothing can be used, where bytes are torn or of a
    foreign byte order, and beyond 4 MiB.
    """
    if len(data) > LIMIT:
        raise Refused(f"the route table is larger than {LIMIT >> 20} MiB")
    if not data.strip():
        raise Refused("the route table is empty", hint=HINT)
    if data[:4] in _SAVED:
        from vmproxy.routewire import parse_save

        return parse_save(data, links)
    return parse_text(data)


def default_routes(routes: Sequence[Route]) -> tuple[Route, ...]:
    """The default routes of the main table, best first, in an order that does not hang on the table's."""
    found = {route for route in routes if route.table == MAIN_TABLE and route.destination in DEFAULTS.values()}
    return tuple(sorted(found, key=_order))


def link_networks(routes: Sequence[Route], gateway: str) -> tuple[str, ...]:
    """The networks in which ``gateway`` is a neighbour, in CIDR; a default route without a hop is none of them."""
    address = ipaddress.ip_address(gateway)
    found = []
    for route in routes:
        if not route.gateway and route.table == MAIN_TABLE and route.destination not in DEFAULTS.values():
            network = ipaddress.ip_network(route.destination, strict=False)
            if network.version == address.version and address in network:
                found.append(str(network))
    return tuple(dict.fromkeys(found))


def _order(route: Route) -> tuple[str, int, int, str]:
    number = int(ipaddress.ip_address(route.gateway)) if route.gateway else 0
    return route.family, route.metric, number, route.interface


def choose_gateway(routes: Sequence[Route]) -> GatewayChoice:
    """The gateway of the main table's default route of lowest metric, IPv4 before IPv6.

    Raises NoGateway with the candidates where there is no default route, where the best one has no gateway (ppp, tun),
    where several gateways share the lowest metric, and where there is only IPv6 with a link-local gateway
    (RELIABILITY F08, F09).
    """
    candidates = default_routes(routes)
    mine = [route for route in candidates if route.family == "inet"] or list(candidates)
    if not mine:
        raise NoGateway("the main route table has no default route", hint=HINT)
    best = [route for route in mine if route.metric == mine[0].metric]
    first, lines = best[0], tuple(describe(route) for route in candidates)
    gateways = {route.gateway for route in best}
    if gateways == {""}:
        what = f"the default route has no gateway address ({describe(first)})"
        raise NoGateway(what, hint=HINT, candidates=lines)
    if len(gateways) > 1:
        what = f"{len(best)} default routes share the metric {first.metric}: {'; '.join(map(describe, best[:4]))}"
        raise NoGateway(what + ("; …" if len(best) > 4 else ""), hint=HINT, candidates=lines)
    if first.family == "inet6" and ipaddress.IPv6Address(first.gateway).is_link_local:
        what = f"there is a default route for IPv6 only, by a link-local gateway ({describe(first)})"
        raise NoGateway(what, hint=HINT, candidates=lines)
    if len(mine) == 1:
        reason = "the only default route"
    elif len(best) == len(mine):
        reason = f"the gateway of all {len(mine)} default routes"
    else:
        reason = f"the lowest metric, {first.metric}, of {len(mine)} default routes"
    if first.family == "inet6":
        reason += ", IPv6 only"
    return GatewayChoice(
        gateway=first.gateway, interface=first.interface, family=first.family, reason=reason, candidates=candidates
    )


def describe(route: Route) -> str:
    """One default route as a printable line."""
    parts = [route.gateway or "no gateway"]
    if route.interface:
        parts.append(f"dev {route.interface}")
    return " ".join([*parts, f"metric {route.metric}"])


def agree(text: GatewayChoice, saved: GatewayChoice) -> GatewayChoice:
    """The choice made from two readings of one machine's table; ``text``'s, which knows interface names.

    Raises NoGateway naming both where they differ (DESIGN §6).
    """
    if text.gateway == saved.gateway:
        return text
    raise NoGateway(
        f"two readings of the route table differ: {text.gateway} in its text, {saved.gateway} in its bytes",
        hint=HINT,
        candidates=tuple(sorted({describe(route) for route in (*text.candidates, *saved.candidates)})),
    )
