"""dnf, and yum before it: the package managers of Fedora and its relatives. PURE.

``proxy`` belongs to the section ``[main]`` (dnf.conf(5), yum.conf(5)): one URL for http and https; what goes without is
said in each repository's own section, not here.
"""

from __future__ import annotations

from vmproxy.model import BlockWish, Facts
from vmproxy.tools import LOCAL, Order, _ini, missing, no_secrets

NAME = "dnf"
FILES = ("/etc/dnf/dnf.conf", "/etc/yum.conf")
SHELL = ()
PATHS = FILES
TEXTS = ()


def render(order: Order, facts: Facts) -> tuple[BlockWish, ...]:
    """The proxy, in dnf's file where there is one: yum's is then a link to it."""
    path = next((path for path in FILES if path in facts.paths), "")
    if not path:
        raise missing(NAME, FILES[0])
    no_secrets(order, NAME)
    return (_ini.block(facts, path, "main", "proxy", order.https),)


def unsaid(order: Order) -> tuple[str, ...]:
    """Everything but this machine's own names, where no repository is."""
    return tuple(entry.text for entry in order.no_proxy if entry.text not in LOCAL)


def overrides(facts: Facts) -> str:
    """Nothing that could be seen here."""
    return ""


def objection(content: bytes, *, leaving: bool) -> str:
    """Everything else in the file means what it meant."""
    return _ini.objection(content, "main", "proxy", leaving=leaving)
