"""This machine itself (Linux): its route table by pyroute2, and what answers from here."""

from __future__ import annotations

import socket
import sys

from vmproxy.errors import Refused, UsageError
from vmproxy.model import Route

PROBE_SECONDS = 3.0
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


def answers(route: Route, port: int, *, timeout_seconds: float = PROBE_SECONDS) -> bool:
    """Whether the route's gateway takes a TCP connection at ``port``, asked from this machine."""
    if not route.gateway:
        return False
    zone = f"%{route.interface}" if route.gateway.startswith("fe80:") and route.interface else ""
    try:
        with socket.create_connection((route.gateway + zone, port), timeout=timeout_seconds):
            return True
    except OSError:
        return False
