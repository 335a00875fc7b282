"""Programs inside the VM that do not see the proxy variables of whoever calls them: sudo, cron and services drop those.

A tool is one PURE module with the names of :class:`Tool`; the tuple below is the whole list. Nothing is written for a
tool that was not asked for.
"""

from __future__ import annotations

import importlib
import ipaddress
from collections.abc import Iterable, Mapping
from dataclasses import field
from functools import cache
from typing import Literal, Protocol, cast

from vmproxy.errors import Refused, UsageError
from vmproxy.model import BlockWish, Facts, printable
from vmproxy.values import dataclass

NAMES = ("apk", "apt", "dnf", "environment", "git", "npm", "pip", "sudo", "wget")

LOCAL = ("localhost", "127.0.0.1", "::1")
"""The names of no_proxy that mean the VM itself."""

NONE = "none"
"""The word that takes every tool off the list again."""


@dataclass(frozen=True, kw_only=True)
class Order:
    """What a tool is asked to write down: the variables as the VM itself uses them, in both cases.

    ``secret`` says that they hold credentials.
    """

    variables: Mapping[str, str] = field(repr=False)
    secret: bool = False

    @property
    def http(self) -> str:
        """The proxy's URL for http addresses."""
        return self.variables["http_proxy"]

    @property
    def https(self) -> str:
        """The proxy's URL for https addresses."""
        return self.variables["https_proxy"]

    @property
    def no_proxy(self) -> tuple[Entry, ...]:
        """What goes without the proxy, entry by entry."""
        return tuple(entry(text) for text in self.variables.get("no_proxy", "").split(",") if text)


class Tool(Protocol):
    """A module of this package."""

    NAME: str
    FILES: tuple[str, ...]
    """Every file that may carry a block for it, in the order of writing."""
    SHELL: tuple[str, ...]
    """Those of them that a shell reads."""
    PATHS: tuple[str, ...]
    """What has to be looked for, to know whether and where the VM has it."""
    TEXTS: tuple[str, ...]
    """Files of others that are only read: what may win over ours."""

    def render(self, order: Order, facts: Facts) -> tuple[BlockWish, ...]:
        """The blocks to write. Raises Refused where the VM has no such tool or a value cannot stand in its file."""

    def unsaid(self, order: Order) -> tuple[str, ...]:
        """The entries of no_proxy that it will not leave out, since its file has no words for them."""

    def overrides(self, facts: Facts) -> str:
        """What in the VM wins over our file, in one line, else ""."""

    def objection(self, content: bytes, *, leaving: bool) -> str:
        """Why our block in ``content``, a file that no shell reads, would not work; with ``leaving``, why it cannot be
        taken out. One line, else ""."""


def load(name: str) -> Tool:
    """The tool of that name. Raises UsageError."""
    if name not in NAMES:
        raise UsageError(
            f"there is no tool named {printable(name, limit=40)}", where="--tools", hint=f"--tools {','.join(NAMES)}"
        )
    return _loaded(name)


@cache
def _loaded(name: str) -> Tool:
    return cast(Tool, importlib.import_module(f"vmproxy.tools.{name}"))


def chosen(names: Iterable[str]) -> tuple[str, ...]:
    """A list of tools in the order of :data:`NAMES`, each once; ``none`` alone is the empty list. Raises UsageError."""
    wanted = set(names)
    if wanted == {NONE}:
        return ()
    for name in sorted(wanted):
        load(name)
    return tuple(name for name in NAMES if name in wanted)


def files(names: Iterable[str]) -> tuple[str, ...]:
    """Every file of these tools."""
    return tuple(path for name in names for path in load(name).FILES)


def paths(names: Iterable[str]) -> tuple[str, ...]:
    """What these tools want looked for."""
    return tuple(dict.fromkeys(path for name in names for path in load(name).PATHS))


def texts(names: Iterable[str]) -> tuple[str, ...]:
    """The files of others that these tools want read."""
    return tuple(path for name in names for path in load(name).TEXTS)


def owner(path: str) -> Tool | None:
    """The tool that a file belongs to."""
    return next((tool for tool in map(load, NAMES) if path in tool.FILES), None)


# ---- what tools have in common --------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One entry of no_proxy. ``kind``: a host (``host`` is its name or address, without brackets), all names
    ``below`` it, a network, everything (``all``), or ``other``: no tool's own words are known for it."""

    text: str
    kind: Literal["host", "below", "network", "all", "other"]
    host: str = ""
    port: int = 0

    @property
    def plain(self) -> str:
        """``*.a.b`` as ``.a.b``, which says the same to Docker's daemon and is known to more; all else as it is."""
        return self.text.removeprefix("*") if self.kind == "below" else self.text


def entry(text: str) -> Entry:
    """One entry, told apart as the Docker daemon does (:func:`vmproxy.proxyenv.bypasses`)."""
    if text == "*":
        return Entry(text=text, kind="all")
    if "/" in text:
        return Entry(text=text, kind="network")
    host, port = text, 0
    bare = text[1:-1] if text.startswith("[") and text.endswith("]") else text
    if not _is_address(bare):
        head, colon, tail = text.rpartition(":")
        if colon and tail.isascii() and tail.isdigit() and 0 < int(tail[:6]) < 65536:
            host, port = head, int(tail)
        bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    if _is_address(bare):
        return Entry(text=text, kind="host", host=bare, port=port)
    name = host.removeprefix("*")
    kind: Literal["host", "below"] = "below" if name.startswith(".") else "host"
    name = name.removeprefix(".")
    if not name or not all(label and label.replace("-", "").replace("_", "").isalnum() for label in name.split(".")):
        return Entry(text=text, kind="other")
    return Entry(text=text, kind=kind, host=name, port=port) if name.isascii() else Entry(text=text, kind="other")


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def no_secrets(order: Order, name: str) -> None:
    """Everybody in the VM runs these tools, so that everybody has to read their files. Raises Refused."""
    if order.secret:
        raise Refused(
            f"the proxy's credentials cannot be given to {name}: everybody in the VM reads its file",
            where="--tools",
            hint=f"leave out {name}, or name a proxy without credentials",
        )


def place(facts: Facts, name: str, places: Iterable[tuple[str, str]]) -> str:
    """The directory of a tool's file, by the first (path that shows it, directory) that the VM has. Raises Refused."""
    first = ""
    for sign, directory in places:
        first = first or sign
        if sign in facts.paths:
            if directory not in facts.paths:
                raise missing(name, directory)
            return directory
    raise missing(name, first)


class Missing(Refused):
    """The VM has no such tool."""


def missing(name: str, path: str) -> Missing:
    """The error for a VM without that tool."""
    return Missing(f"the VM has no {name}", where=f"{path} is missing", hint=f"--tools without {name}")


def plain(value: str, *, name: str, barred: str) -> str:
    """``value`` where none of the ``barred`` characters stands in it, nor white space or a control character.

    Raises Refused, without showing it.
    """
    if any(char in barred or char.isspace() or not char.isprintable() for char in value):
        raise Refused(
            f"no_proxy has a character that {name}'s file cannot carry", where="--no-proxy", hint="leave the entry out"
        )
    return value
