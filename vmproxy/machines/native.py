"""This machine itself (Linux): its route table by pyroute2, and what answers from here."""

from __future__ import annotations

import ipaddress
import socket
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from vmproxy.errors import Refused, UsageError
from vmproxy.model import Route

PROBE_SECONDS = 3.0
PROBE_LIMIT = 16  # gateways
_AF_INET, _AF_INET6 = 2, 10  # Linux's numbers
_HINT = "say whose with --vm TARGET, or hand in a table with --table FILE"


def routes() -> tuple[Route, ...]:
    """The unicast routes of all of this machine's tables, IPv4 and IPv6, interfaces named.

    Raises UsageError elsewhere than on Linux, Refused where the kernel does not tell.
    """
    if not sys.platform.startswith("linux"):
        raise UsageError("this machine's own routes can be read on Linux only", hint=_HINT)
    from pyroute2 import IPRoute
    from pyroute2.netlink.exceptions import NetlinkError

    from vmproxy.routewire import from_messages

    found: list[Route] = []
    try:
        with IPRoute() as kernel:
            links = {link["index"]: str(link.get_attr("IFLA_IFNAME")) for link in kernel.get_links()}
            for family in (_AF_INET, _AF_INET6):
                found += from_messages(kernel.get_routes(family=family), links)
    except (OSError, NetlinkError) as error:
        raise Refused("the kernel does not tell its routes", where=str(error), hint=_HINT) from error
    return tuple(found)


def reach(routes: Sequence[Route], port: int, *, timeout_seconds: float = PROBE_SECONDS) -> tuple[str, ...]:
    """Which of the routes' gateways take a TCP connection at ``port``, asked from this machine, all at a time.

    Of a table without end only the first are asked, so that the whole takes ``timeout_seconds``.
    """
    asked = list({route.gateway: route for route in routes if route.gateway}.values())[:PROBE_LIMIT]
    if not asked:
        return ()
    with ThreadPoolExecutor(max_workers=len(asked)) as pool:
        answers = pool.map(lambda route: _answers(route, port, timeout_seconds), asked)
        return tuple(route.gateway for route, yes in zip(asked, answers, strict=True) if yes)


def _answers(route: Route, port: int, timeout_seconds: float) -> bool:
    linklocal = ipaddress.ip_address(route.gateway).is_link_local and route.family == "inet6" and route.interface
    host = f"{route.gateway}%{route.interface}" if linklocal else route.gateway
    try:
        with socket.create_connection((host, port), timeout=timeout_seconds):
            return True
    except OSError:
        return False
