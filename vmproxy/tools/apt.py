"""apt: Debian's and Ubuntu's package manager. PURE.

A file of our own beside the others (apt.conf(5): the files of apt.conf.d in the order of their names, then
/etc/apt/apt.conf; what is said last wins). ``#`` begins a comment where it stands first in a line. Inside quotes
everything is as it stands, but for the quote itself, for which there is no way to write it. ``Proxy::HOST`` is looked
up by the host's whole name: there are no domains, networks or ports.
"""

from __future__ import annotations

from vmproxy.model import BlockWish, Facts
from vmproxy.tools import Order, missing, no_secrets, plain

NAME = "apt"
_DIRECTORY = "/etc/apt/apt.conf.d"
FILE = f"{_DIRECTORY}/95vmproxy"
FILES = (FILE,)
SHELL = ()
PATHS = (_DIRECTORY,)


def render(order: Order, facts: Facts) -> tuple[BlockWish, ...]:
    """Both proxies, and each whole host name that goes without."""
    if _DIRECTORY not in facts.paths:
        raise missing(NAME, _DIRECTORY)
    no_secrets(order, NAME)
    lines = [f"Acquire::http::Proxy {_quoted(order.http)};", f"Acquire::https::Proxy {_quoted(order.https)};"]
    for entry in order.no_proxy:
        if entry.kind == "host" and not entry.port and ":" not in entry.host:
            lines += [f'Acquire::{scheme}::Proxy::{entry.host} "DIRECT";' for scheme in ("http", "https")]
    payload = "".join(f"{line}\n" for line in lines).encode()
    return (BlockWish(path=FILE, payload=payload, where="last", record={}),)


def unsaid(order: Order) -> tuple[str, ...]:
    """Domains, networks, ports, and IPv6 addresses, whose colons are apt's own separator."""
    return tuple(e.text for e in order.no_proxy if (e.kind != "host" or e.port or ":" in e.host) and e.text != "::1")


def objection(content: bytes, *, leaving: bool) -> str:
    """None: the file is ours."""
    return ""


def _quoted(value: str) -> str:
    return f'"{plain(value, name=NAME, barred=chr(34))}"'
