"""pip: its file for the whole machine, /etc/pip.conf. PURE.

pip reads it with Python's own RawConfigParser; ``proxy`` belongs to the section ``[global]``. One proxy serves http and
https, and there are no words for what goes without (pip's configuration, "proxy").
"""

from __future__ import annotations

from vmproxy.model import BlockWish, Facts
from vmproxy.tools import LOCAL, Order, _ini, missing, no_secrets

NAME = "pip"
FILE = "/etc/pip.conf"
_PROGRAMS = ("/usr/bin/pip3", "/usr/bin/pip", "/usr/local/bin/pip3", "/usr/local/bin/pip")
FILES = (FILE,)
SHELL = ()
PATHS = _PROGRAMS
TEXTS = ()


def render(order: Order, facts: Facts) -> tuple[BlockWish, ...]:
    """The proxy, with its section where the file has none."""
    if not any(path in facts.paths for path in _PROGRAMS):
        raise missing(NAME, _PROGRAMS[0])
    no_secrets(order, NAME)
    return (_ini.block(facts, FILE, "global", "proxy", order.https),)


def unsaid(order: Order) -> tuple[str, ...]:
    """Everything but this machine's own names, which no index has."""
    return tuple(entry.text for entry in order.no_proxy if entry.text not in LOCAL)


def overrides(facts: Facts) -> str:
    """Nothing that could be seen here."""
    return ""


def objection(content: bytes, *, leaving: bool) -> str:
    """Everything else in the file means what it meant."""
    return _ini.objection(content, "global", "proxy", leaving=leaving)
