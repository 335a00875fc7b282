"""GNU wget: /etc/wgetrc. PURE.

One ``name = value`` a line, the value as it stands without the white space around it; the last of two wins, and ``#``
begins a comment only where it stands first (wget's manual, "Wgetrc Syntax"). busybox's wget reads no file; GNU's own
comes with one, so that a VM without it has no GNU wget.
"""

from __future__ import annotations

from vmproxy.model import BlockWish, Facts
from vmproxy.tools import Order, missing, no_secrets, plain

NAME = "wget"
FILE = "/etc/wgetrc"
FILES = (FILE,)
SHELL = ()
PATHS = (FILE,)
TEXTS = ()
_NAMES = ("http_proxy", "https_proxy", "no_proxy", "use_proxy")


def render(order: Order, facts: Facts) -> tuple[BlockWish, ...]:
    """Both proxies and the list."""
    if FILE not in facts.paths:
        raise missing(NAME, FILE)
    no_secrets(order, NAME)
    values = {"http_proxy": order.http, "https_proxy": order.https}
    if order.no_proxy:
        values["no_proxy"] = ",".join(entry.plain for entry in order.no_proxy)
    payload = "".join(f"{name} = {plain(value, name=NAME, barred='')}\n" for name, value in values.items()).encode()
    return (BlockWish(path=FILE, payload=payload, where="last", record={}, names=_NAMES),)


def unsaid(order: Order) -> tuple[str, ...]:
    """wget compares the ends of names: it knows no networks, ports or ``*``."""
    return tuple(entry.text for entry in order.no_proxy if entry.kind not in ("host", "below") or entry.port)


def overrides(facts: Facts) -> str:
    """Nothing that could be seen here."""
    return ""


def objection(content: bytes, *, leaving: bool) -> str:
    """None: each line stands for itself."""
    return ""
