"""Who made a VM, and so how to get in. Pure: a provider says what it wants to know, and reads the answers.

A member is one module with the functions of :class:`Provider`, and its name in the list below; ``targets.py`` carries
the questions to the host through ``hostproc.py``. ``queries`` is called again with the answers until it wants nothing
more, so that a question may hang on an earlier answer (boot2docker's profile names its port).
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import field
from typing import Protocol, cast

from vmproxy.errors import UsageError
from vmproxy.model import Target
from vmproxy.values import dataclass

NAMES = ("boot2docker", "docker-machine", "ssh", "rootfs", "initrd", "local", "docker", "console")
BARE = ("boot2docker", "docker-machine")
"""Those that are asked for a bare name, in this order."""
FIRST_COUNTS = frozenset({"boot2docker"})
"""Bare names for which the first answer is taken: the classic VM, else docker-machine's of that name."""


@dataclass(frozen=True, kw_only=True)
class Queries:
    """What to find out on the host: the bytes of files, whether files are there, names in directories, open ports."""

    read: frozenset[str] = frozenset()
    exist: frozenset[str] = frozenset()
    listing: frozenset[str] = frozenset()
    ports: frozenset[tuple[str, int]] = frozenset()


@dataclass(frozen=True, kw_only=True)
class Answers:
    """What was found. A file that is not there is None."""

    read: Mapping[str, bytes | None] = field(default_factory=dict)
    exist: Mapping[str, bool] = field(default_factory=dict)
    listing: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    ports: Mapping[tuple[str, int], bool] = field(default_factory=dict)


class Provider(Protocol):
    """A module of this package."""

    def queries(self, name: str, environ: Mapping[str, str], answers: Answers) -> Queries:
        """Everything wanted, given these answers; what is answered already may be named again. Raises UsageError."""

    def parse(self, name: str, environ: Mapping[str, str], answers: Answers) -> Target | None:
        """The target, None where this provider has no VM of that name. Raises UsageError, Unreachable."""

    def listing(self, environ: Mapping[str, str]) -> Queries:
        """What to find out to list this provider's names."""

    def names(self, environ: Mapping[str, str], answers: Answers) -> tuple[str, ...]:
        """The names this provider knows, for shell completion."""


def load(name: str) -> Provider:
    """The provider of that name, imported now. Raises UsageError."""
    if name not in NAMES:
        raise UsageError(f"there is no provider named {name}", hint=f"one of: {', '.join(NAMES)}")
    return cast(Provider, importlib.import_module(f"vmproxy.providers.{name.replace('-', '_')}"))


def home(environ: Mapping[str, str]) -> str:
    """The user's directory as the VM tools find it: HOME, on Windows USERPROFILE. Raises UsageError."""
    found = environ.get("HOME") or environ.get("USERPROFILE")
    if not found:
        raise UsageError("HOME is not set", hint="HOME says where the VM tools keep their files")
    return found
