"""How bytes get into a VM and back. One file per way in; the names below are the whole list."""

from __future__ import annotations

import importlib
from typing import Protocol, cast

from vmproxy.errors import UsageError
from vmproxy.model import Target

NAMES = ("ssh",)


class Channel(Protocol):
    """One running command with its three streams. Every wait has a limit in seconds; every buffer a limit in bytes."""

    def send(self, data: bytes, *, timeout_seconds: float) -> None:
        """Write all of ``data`` to the command's stdin. Raises LostContact."""

    def receive(self, *, timeout_seconds: float) -> bytes:
        """The next piece of stdout as soon as there is one, ``b""`` at its end. Raises LostContact on time-out or loss.

        stderr is drained meanwhile and kept (bounded) for :attr:`stderr`.
        """

    def end_input(self) -> None:
        """Close the command's stdin."""

    def wait(self, *, timeout_seconds: float) -> int | None:
        """The exit status after stdout has ended; None where the VM gave none."""

    @property
    def stderr(self) -> bytes:
        """What came on stderr so far, at most 64 KiB."""

    def close(self) -> None:
        """End the channel; safe to call twice."""


class Connection(Protocol):
    """One connection to one VM: many channels, one at a time or side by side."""

    def start(self, command: str) -> Channel:
        """Start a command (a constant text, see machines/) without a pty. Raises LostContact, Unreachable."""

    def close(self) -> None:
        """Close; safe to call twice."""


class Transport(Protocol):
    """A module of this package."""

    def connect(self, target: Target, *, options: object) -> Connection:
        """Connect and authenticate. Raises Unreachable, Untrusted, NotPermitted."""


def load(name: str) -> Transport:
    """The transport of that name, imported now."""
    if name not in NAMES:
        raise UsageError(f"there is no transport named {name}", hint=f"one of: {', '.join(NAMES)}")
    return cast(Transport, importlib.import_module(f"vmproxy.transports.{name}"))
