"""The values that travel between the rooms: frozen, keyword-only, units in names. Imports nothing of ours."""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass, field
from typing import Literal

_BIDI = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def printable(text: str | bytes, *, limit: int = 200) -> str:
    """Text from outside as one printable line: controls, bidi marks and bad bytes become ``\\x..`` escapes.

    Used for everything that a VM said before it reaches a terminal or a log (RELIABILITY T03, P17).
    """
    if isinstance(text, bytes):
        text = text[: 4 * limit].decode("utf-8", "backslashreplace")
    out = []
    for char in text[: 4 * limit]:
        if char in _BIDI or unicodedata.category(char) in ("Cc", "Cf", "Cs", "Zl", "Zp", "Cn", "Co"):
            out.append(f"\\x{ord(char):02x}" if ord(char) < 256 else f"\\u{ord(char):04x}")
        else:
            out.append(char)
    line = "".join(out)
    return line if len(line) <= limit else line[: limit - 1] + "…"


@dataclass(frozen=True, kw_only=True)
class ProxyURL:
    """One proxy. ``password`` and ``username`` are percent-decoded; ``repr`` and ``str`` mask the password.

    ``host`` is an IP address (IPv6 without brackets) or an ASCII RFC 1123 name. ``url`` has everything.
    """

    scheme: str
    host: str
    port: int
    username: str = field(default="", repr=False)
    password: str = field(default="", repr=False)

    @property
    def has_credentials(self) -> bool:
        """Whether the URL carries a user name or a password."""
        return bool(self.username or self.password)

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        mask = "***@" if self.has_credentials else ""
        return f"{self.scheme}://{mask}{host}:{self.port}"


@dataclass(frozen=True, kw_only=True)
class Target:
    """Where a VM is and how to get in. Made by a provider; ``name`` is what the user said.

    ``transport`` is a name of the transports family (``ssh``) or "" where only files are reached (``directory``).
    ``identities`` are private key files in the order to try; ``only_identities`` keeps the agent and default keys out.
    ``passwords`` are well-known defaults of that VM kind (boot2docker's), tried last.
    """

    name: str
    provider: str
    transport: str = "ssh"
    host: str = ""
    port: int = 22
    user: str = ""
    identities: tuple[str, ...] = ()
    only_identities: bool = False
    known_hosts: str = ""
    host_key: str = ""
    directory: str = ""


@dataclass(frozen=True, kw_only=True)
class Result:
    """What one exec gave: bounded bytes, and the exit status (None where the VM gave none)."""

    stdout: bytes
    stderr: bytes
    status: int | None


@dataclass(frozen=True, kw_only=True)
class Route:
    """One unicast route. ``destination`` is CIDR text (``0.0.0.0/0`` for the default), ``gateway`` "" where there is none."""

    destination: str
    gateway: str = ""
    interface: str = ""
    metric: int = 0
    table: int = 254
    family: Literal["inet", "inet6"] = "inet"


@dataclass(frozen=True, kw_only=True)
class GatewayChoice:
    """The gateway chosen, one line of why, and every default route that was looked at."""

    gateway: str
    interface: str
    family: Literal["inet", "inet6"]
    reason: str
    candidates: tuple[Route, ...]


@dataclass(frozen=True, kw_only=True)
class Door:
    """The one opening for containers: ``bridges:listen_port`` on ``bridge_address`` leads to ``gateway:port``.

    ``bridges`` are interface names as iptables takes them (``docker0``, ``br-+``).
    """

    gateway: str
    port: int
    listen_port: int
    bridge_address: str
    bridges: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Rule:
    """One ``-A CHAIN …`` line of iptables-save, split into words (quotes removed)."""

    chain: str
    words: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Chain:
    """One chain of one table in order. ``policy`` is "" for user-defined chains."""

    table: str
    name: str
    policy: str = ""
    rules: tuple[Rule, ...] = ()


@dataclass(frozen=True, kw_only=True)
class File:
    """One file as seen or as wanted. ``content`` None means absent; ``kind`` is file, absent, link, dir or other."""

    path: str
    content: bytes | None = None
    mode: int = 0o644
    uid: int = 0
    gid: int = 0
    kind: str = "file"
    links: int = 1


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One point of a report: a leg of the proof, or a point of drift. ``subject`` is short and stable."""

    subject: str
    ok: bool
    detail: str = ""
    hint: str = ""
    code: str = ""
