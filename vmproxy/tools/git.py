"""git: its system-wide configuration. PURE.

The settings stand in a file of our own that the system's file includes (git-config(1), "Includes"), because ``git
config --system http.sslVerify false`` writes into the first section of that name that it finds: into our block, were
``[http]`` in it. git has one proxy for http and https alike, and ``http.URL.proxy`` for the servers that go without,
where ``*`` stands for one label of a name.
"""

from __future__ import annotations

import re

from vmproxy.model import BlockWish, Facts
from vmproxy.tools import Entry, Order, no_secrets, place

NAME = "git"
_INCLUDED = "gitconfig.vmproxy"
_PLACES = (("/usr/bin/git", "/etc"), ("/usr/local/bin/git", "/usr/local/etc"))
FILES = tuple(f"{directory}/{name}" for _, directory in _PLACES for name in (_INCLUDED, "gitconfig"))
SHELL = ()
PATHS = tuple(path for place in _PLACES for path in place)
TEXTS = ()
_SECTION = re.compile(rb"[ \t]*\[")


def render(order: Order, facts: Facts) -> tuple[BlockWish, ...]:
    """The included file first: git passes over an include that is not there."""
    directory = place(facts, NAME, _PLACES)
    no_secrets(order, NAME)
    lines = ["[http]", f"    proxy = {_quoted(order.https)}"]
    for entry in order.no_proxy:
        for address in _addresses(entry):
            lines += [f"[http {_quoted(address)}]", '    proxy = ""']
    settings = "".join(f"{line}\n" for line in lines).encode()
    include = f"[include]\n    path = {_INCLUDED}\n".encode()
    return (
        BlockWish(path=f"{directory}/{_INCLUDED}", payload=settings, where="last", record={}),
        BlockWish(path=f"{directory}/gitconfig", payload=include, where="last", record={}, names=("proxy",)),
    )


def unsaid(order: Order) -> tuple[str, ...]:
    """Networks and whatever is no name."""
    return tuple(entry.text for entry in order.no_proxy if not _addresses(entry))


def overrides(facts: Facts) -> str:
    """Nothing that could be seen here."""
    return ""


def objection(content: bytes, *, leaving: bool) -> str:
    """A line behind our block that has no section of its own would lose its section with our block."""
    from vmproxy import blocks

    found = blocks.find(content) if leaving else None
    if found is None:
        return ""
    for line in content[found.end :].split(b"\n"):
        if line.strip() and not line.lstrip().startswith((b"#", b";")):
            return "" if _SECTION.match(line) else "a line behind our block has no section of its own"
    return ""


def _addresses(entry: Entry) -> tuple[str, ...]:
    """The servers of an entry, as ``http.URL`` names them."""
    if entry.kind not in ("host", "below"):
        return ()
    host = f"[{entry.host}]" if ":" in entry.host else entry.host
    port = f":{entry.port}" if entry.port else ""
    name = f"*.{host}" if entry.kind == "below" else host
    return tuple(f"{scheme}://{name}{port}" for scheme in ("http", "https"))


def _quoted(value: str) -> str:
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
