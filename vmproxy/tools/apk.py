"""apk: Alpine's package manager. PURE.

It has no setting for a proxy; all that it asks are the variables (apk-tools, libfetch). So these go where Alpine's own
``setup-proxy`` puts them, into a file that every log-in shell reads (/etc/profile.d, sourced by /etc/profile). Where
apk is run by sudo, the tool ``sudo`` lets them through.
"""

from __future__ import annotations

from vmproxy.model import BlockWish, Facts
from vmproxy.quoting import sh_exports
from vmproxy.tools import Order, missing, no_secrets

NAME = "apk"
_DIRECTORY = "/etc/profile.d"
_PROGRAMS = ("/sbin/apk", "/usr/sbin/apk", "/usr/bin/apk")
FILE = f"{_DIRECTORY}/vmproxy.sh"
FILES = (FILE,)
SHELL = FILES
PATHS = (_DIRECTORY, *_PROGRAMS)
TEXTS = ()


def render(order: Order, facts: Facts) -> tuple[BlockWish, ...]:
    """The variables in both cases."""
    if not any(path in facts.paths for path in _PROGRAMS):
        raise missing(NAME, _PROGRAMS[0])
    if _DIRECTORY not in facts.paths:
        raise missing(NAME, _DIRECTORY)
    no_secrets(order, NAME)
    payload = sh_exports(order.variables)
    return (BlockWish(path=FILE, payload=payload, where="end", record={}, names=tuple(order.variables)),)


def unsaid(order: Order) -> tuple[str, ...]:
    """apk compares the ends of names, and addresses with networks; it knows no ports."""
    return tuple(entry.text for entry in order.no_proxy if entry.port)


def overrides(facts: Facts) -> str:
    """Nothing that could be seen here."""
    return ""


def objection(content: bytes, *, leaving: bool) -> str:
    """None: the file is ours."""
    return ""
