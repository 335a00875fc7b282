"""This machine itself (Linux): its routes by pyroute2, its legacy rules by python-iptables, what answers from here.

As a VM (``--vm local``) it is looked at and changed by the same constant scripts as every other; only the kernel is
asked directly where there is a library for it.
"""

from __future__ import annotations

import importlib.util
import ipaddress
import os
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from vmproxy.errors import Refused, UsageError
from vmproxy.machines import Conversation, Judge, Look, Machine, Outcome, Terms, Verdict, shell
from vmproxy.model import Facts, Finding, Plan, Route, Syntax
from vmproxy.proof import Question
from vmproxy.transports import Connection

PROBE_SECONDS = 3.0
PROBE_LIMIT = 16  # gateways
_AF_INET, _AF_INET6 = 2, 10  # Linux's numbers
_HINT = "say whose with --vm TARGET, or hand in a table with --table FILE"


first_command = shell.first_command


def open(connection: Connection, *, first: str = "") -> Native:
    """A machine over a connection to this machine itself; it is closed with it."""
    return Native(shell.open(connection, first=first))


class Native:
    """See :class:`vmproxy.machines.Machine`."""

    def __init__(self, scripts: Machine) -> None:
        self._scripts = scripts

    def begin(self, look: Look, *, change: bool = False) -> None:
        """As of any VM."""
        self._scripts.begin(look, change=change)

    def observe(self, look: Look) -> Facts:
        """As of any VM, with the routes from the kernel itself: all tables, every hop, no text between."""
        return replace(self._scripts.observe(look), routes=routes(), route_save=b"")

    def check(self, files: tuple[str, ...]) -> Mapping[str, Syntax]:
        """As of any VM."""
        return self._scripts.check(files)

    def commit(
        self, plan: Plan, terms: Terms, *, judge: Judge, verdict: Verdict, step: Callable[[str], None]
    ) -> Outcome:
        """As of any VM; legacy rules are written by python-iptables where it is installed (``legacytables.py``).

        nft rules never are: the library would write them to the legacy tables (LIBRARIES section 2).
        """
        if plan.rules is not None and plan.rules.variant == "legacy" and importlib.util.find_spec("iptc"):
            terms = replace(terms, legacy_writer=(sys.executable, _package_root()))
        return self._scripts.commit(plan, terms, judge=judge, verdict=verdict, step=step)

    def rehearse(self, plan: Plan) -> None:
        """Nothing: what was looked at has told all."""

    def prove(self, question: Question) -> tuple[Finding, ...]:
        """As of any VM."""
        return self._scripts.prove(question)

    def reach(self, hosts: tuple[str, ...], port: int) -> tuple[str, ...]:
        """As of any VM."""
        return self._scripts.reach(hosts, port)

    def converse(self, script: str, data: bytes) -> Conversation:
        """As of any VM."""
        return self._scripts.converse(script, data)

    def interrupt(self) -> bool:
        """As of any VM."""
        return self._scripts.interrupt()

    def close(self) -> None:
        """Close the connection."""
        self._scripts.close()


def _package_root() -> str:
    """The directory from which ``vmproxy`` is imported here."""
    return os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


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
