"""/etc/environment: the variables that PAM gives to every session of the VM. PURE.

pam_env(8) reads it for log-ins, ``su``, cron, and on Debian and Ubuntu for ``sudo``: one ``NAME=value`` a line. It cuts
the line at ``#``, takes a quote at the value's beginning or end off, and joins two lines at a backslash. Scripts read
the file with the shell, so that what would be more than one word there is refused as well.
"""

from __future__ import annotations

from vmproxy.model import BlockWish, Facts
from vmproxy.tools import Order, missing, no_secrets, plain

NAME = "environment"
FILE = "/etc/environment"
FILES = (FILE,)
SHELL = ()
_PAM = "/etc/pam.d"
PATHS = (_PAM,)
TEXTS = ()


def render(order: Order, facts: Facts) -> tuple[BlockWish, ...]:
    """The variables in both cases. Without PAM nothing reads the file."""
    if _PAM not in facts.paths:
        raise missing(NAME, _PAM)
    no_secrets(order, NAME)
    lines = [f"{name}={plain(value, name=NAME, barred=_BARRED)}\n" for name, value in order.variables.items()]
    return (
        BlockWish(path=FILE, payload="".join(lines).encode(), where="last", record={}, names=tuple(order.variables)),
    )


_BARRED = "#\\\"'$`;&|()<>"


def unsaid(order: Order) -> tuple[str, ...]:
    """None: what reads the variables decides."""
    return ()


def overrides(facts: Facts) -> str:
    """Nothing that could be seen here."""
    return ""


def objection(content: bytes, *, leaving: bool) -> str:
    """None: each line stands for itself."""
    return ""
