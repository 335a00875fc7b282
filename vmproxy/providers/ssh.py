"""Any host with SSH: ``ssh://[user@]host[:port]``, or ``ssh:ALIAS`` of ssh_config (read by the transport)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from urllib.parse import unquote, urlsplit

from vmproxy.errors import UsageError
from vmproxy.model import Target, printable
from vmproxy.providers import Answers, Queries

_HOST = re.compile(r"[\w.:%-]{1,255}")
_USER = re.compile(r"[^\s\0-\x1f\x7f:/@-][^\s\0-\x1f\x7f:/]{0,255}")
_HINT = "ssh://[user@]host[:port] or ssh:ALIAS"


def queries(name: str, environ: Mapping[str, str], answers: Answers) -> Queries:
    """Nothing: the name says it all."""
    return Queries()


def parse(name: str, environ: Mapping[str, str], answers: Answers) -> Target:
    """The target; port 0 and an empty user leave it to ssh_config. Raises UsageError."""
    user, host, port = _url(name) if name.startswith("//") else _alias(name)
    if (
        not host
        or host.startswith("-")
        or not _HOST.fullmatch(host)
        or not host.isprintable()
        or (user and not (_USER.fullmatch(user) and user.isprintable()))
    ):
        raise UsageError(f"{printable(_masked(name)) or 'an empty text'} is no SSH address", hint=_HINT)
    return Target(name=f"ssh:{name}", provider="ssh", host=host, port=port, user=user)


def listing(environ: Mapping[str, str]) -> Queries:
    """Nothing: ssh_config can hold thousands of hosts that are no VMs."""
    return Queries()


def names(environ: Mapping[str, str], answers: Answers) -> tuple[str, ...]:
    """None of its own."""
    return ()


def _alias(name: str) -> tuple[str, str, int]:
    user, _, host = name.rpartition("@")
    return user, host, 0


def _url(name: str) -> tuple[str, str, int]:
    try:
        parts = urlsplit(f"ssh:{name}")
        port = parts.port
    except ValueError as error:
        raise UsageError(f"{printable(_masked(name))} is no SSH address", hint=_HINT) from error
    if parts.password is not None:
        raise UsageError("a password does not belong in an SSH address", hint="VMPROXY_SSH_PASSWORD holds it")
    if parts.path not in ("", "/") or parts.query or parts.fragment or port == 0:
        raise UsageError(f"{printable(name)} is no SSH address", hint=_HINT)
    return unquote(parts.username or ""), unquote(parts.hostname or ""), port or 0


def _masked(name: str) -> str:
    """Without what stands before the last @ but a plain user name: it could be a password."""
    head, at, tail = name.rpartition("@")
    return f"***@{tail}" if at and ":" in head.lstrip("/") else f"{head}{at}{tail}"
