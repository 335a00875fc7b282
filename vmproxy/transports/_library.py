"""paramiko, imported without what it drags along and we never use: a third of the time that its import takes."""

from __future__ import annotations

import contextlib
import functools
import importlib
import logging
import os
import sys
import threading
import types
from collections.abc import Iterator
from typing import Any

_importing = threading.Lock()
_first = [True]


def first() -> bool:
    """Whether the caller is the first to ask: it is the one whose :func:`library` will take its time."""
    return bool(_first) and _first.pop()  # one thread's, at once


def wait() -> None:
    """Come back when nobody is importing it any more."""
    if not _first:
        library()


@functools.cache
def library() -> Any:
    """The module ``paramiko``, with its log lines off; another user of it in this process finds it whole.

    ``invoke`` serves ``Match exec`` alone, and ``tempfile`` (with all compression) an agent for forwarding;
    ``importlib.metadata`` tells paramiko its own version and brings the zip, CSV and mail modules with it.
    """
    with _importing:
        if "paramiko" not in sys.modules:
            with contextlib.ExitStack() as stack:
                for module in (_Later("invoke"), _Later("tempfile"), _Metadata("importlib.metadata")):
                    stack.enter_context(_stand_in(module))
                import paramiko
        import paramiko

        quiet = logging.getLogger("vmproxy.ssh")
        if not quiet.handlers:
            quiet.addHandler(logging.NullHandler())
            quiet.propagate = False
            quiet.setLevel(logging.CRITICAL + 1)
    return paramiko


@contextlib.contextmanager
def _stand_in(module: _Later) -> Iterator[None]:
    """Have an import of that module find this one, unless the real one is there already."""
    name = module.__name__
    if name in sys.modules:
        yield
        return
    sys.modules[name] = module
    try:
        yield
    finally:
        module.give_way()


class _Later(types.ModuleType):
    """Stands for a module until something of it is used; importlib's LazyLoader loads at the import statement."""

    def give_way(self) -> None:
        """From now on an import finds the real one."""
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]

    def __getattr__(self, name: str) -> Any:
        self.give_way()
        return getattr(importlib.import_module(self.__name__), name)


class _Metadata(_Later):
    """``importlib.metadata`` as far as a package needs it that asks for its own version while it is imported."""

    def version(self, name: str) -> str:
        """The version in the name of the directory that pip leaves beside the package; else the real module's."""
        package: list[str] = getattr(sys.modules.get(name), "__path__", [])
        for directory in package:
            with contextlib.suppress(OSError):
                for entry in os.listdir(os.path.dirname(directory)):
                    if entry.startswith(f"{name}-") and entry.endswith(".dist-info"):
                        return entry[len(name) + 1 : -len(".dist-info")]
        return str(self.__getattr__("version")(name))
