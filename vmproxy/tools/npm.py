"""npm: its file for the whole machine, which yarn 1 and pnpm read as well. PURE.

npm keeps it under its own prefix: Debian's in /etc, one of nodejs.org's archives in /usr/local/etc, and NodeSource's
package in /usr/etc (``npm config get globalconfig``). It is an ini file (npm's ``ini``): the last of two lines with the
same name wins, a line with a section makes all that follow part of that, ``${NAME}`` is replaced from the environment,
and a value between double quotes is read as JSON.
"""

from __future__ import annotations

import json
import re

from vmproxy.errors import Refused
from vmproxy.model import BlockWish, Facts
from vmproxy.tools import Order, no_secrets, place

NAME = "npm"
_DEBIAN = ("/usr/share/nodejs/npm", "/usr/share/npm")
_PLACES = (
    ("/usr/local/bin/npm", "/usr/local/etc"),
    *((path, "/etc") for path in _DEBIAN),
    ("/usr/bin/npm", "/usr/etc"),
)
FILES = tuple(dict.fromkeys(f"{directory}/npmrc" for _, directory in _PLACES))
SHELL = ()
PATHS = tuple(dict.fromkeys(path for place in _PLACES for path in place))
TEXTS = ()
_NAMES = ("proxy", "https-proxy", "noproxy")
_PLAIN = re.compile(r"[A-Za-z0-9.:/_,*@%~+-]+", re.ASCII)
_SECTION = re.compile(rb"^[ \t]*\[[^\]\n]*\][ \t\r]*$", re.MULTILINE)


def render(order: Order, facts: Facts) -> tuple[BlockWish, ...]:
    """Both proxies and the list."""
    directory = place(facts, NAME, _PLACES)
    no_secrets(order, NAME)
    lines = [f"proxy={_quoted(order.http)}", f"https-proxy={_quoted(order.https)}"]
    if order.no_proxy:
        lines.append(f"noproxy={_quoted(','.join(entry.plain for entry in order.no_proxy))}")
    payload = "".join(f"{line}\n" for line in lines).encode()
    return (BlockWish(path=f"{directory}/npmrc", payload=payload, where="last", record={}, names=_NAMES),)


def unsaid(order: Order) -> tuple[str, ...]:
    """npm compares names label by label: it knows no networks, ports or ``*``."""
    return tuple(entry.text for entry in order.no_proxy if entry.kind not in ("host", "below") or entry.port)


def overrides(facts: Facts) -> str:
    """Nothing that could be seen here."""
    return ""


def objection(content: bytes, *, leaving: bool) -> str:
    """Behind a section our lines would be part of it."""
    return "it has a section, of which our lines would be a part" if not leaving and _SECTION.search(content) else ""


def _quoted(value: str) -> str:
    if _PLAIN.fullmatch(value):
        return value
    if "${" in value:
        raise Refused("no_proxy has ${, which npm would replace", where="--no-proxy", hint="leave the entry out")
    return json.dumps(value, ensure_ascii=True)
