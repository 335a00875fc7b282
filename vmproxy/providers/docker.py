"""``docker:[CONTEXT]``: the VM of the engine that the host's docker client reaches; nobody has to have a login there.

A context is a directory named after the SHA-256 of its name (docker/cli: cli/context/store).
"""

from __future__ import annotations

import hashlib
import ntpath
import posixpath
import re
from collections.abc import Mapping

from vmproxy.errors import UsageError
from vmproxy.model import Target, printable
from vmproxy.providers import Answers, Queries, home

_CONTEXT = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]{0,254}")  # docker/cli: cli/context/store, restrictedNamePattern
_BUILT_IN = "default"


def queries(name: str, environ: Mapping[str, str], answers: Answers) -> Queries:
    """Whether the context is there."""
    if not name or name == _BUILT_IN or not _CONTEXT.fullmatch(name):
        return Queries()
    return Queries(exist=frozenset({_meta(name, environ)}))


def parse(name: str, environ: Mapping[str, str], answers: Answers) -> Target:
    """The target of a context; without a name it is the client's current one. Raises UsageError."""
    if name and not _CONTEXT.fullmatch(name):
        shown = "***" if "@" in name else printable(name, limit=60)  # an address has a password before its @
        raise UsageError(f"{shown} is no name of a docker context", hint="docker context ls")
    if name and name != _BUILT_IN and not answers.exist.get(_meta(name, environ)):
        raise UsageError(f"docker knows no context {name}", where=_meta(name, environ), hint="docker context ls")
    return Target(name=f"docker:{name}", provider="docker", transport="docker", host="", port=0, context=name)


def listing(environ: Mapping[str, str]) -> Queries:
    """Nothing: the names of contexts stand inside files whose own names say nothing."""
    return Queries()


def names(environ: Mapping[str, str], answers: Answers) -> tuple[str, ...]:
    """None."""
    return ()


def _meta(name: str, environ: Mapping[str, str]) -> str:
    config = environ.get("DOCKER_CONFIG") or _join(home(environ), ".docker")
    return _join(config, "contexts", "meta", hashlib.sha256(name.encode("ascii")).hexdigest(), "meta.json")


def _join(base: str, *parts: str) -> str:
    if "\\" in base or base[1:2] == ":":
        return ntpath.join(base, *parts)
    return posixpath.join(base, *parts)
