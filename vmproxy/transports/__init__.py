"""How bytes get into a VM and back. One file per way in; the names below are the whole list."""

from __future__ import annotations

import importlib
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import field
from typing import Protocol, cast

from vmproxy.errors import UsageError
from vmproxy.model import Target
from vmproxy.values import dataclass

NAMES = ("ssh", "openssh", "local", "docker", "console")


class Secrets:
    """The password and the key passphrase that the environment holds; neither shows in ``repr``.

    The password belongs to the first VM that asks for it and is never given to another one (RELIABILITY T02).
    """

    def __init__(self, *, password: str = "", passphrase: str = "") -> None:
        self._password = password
        self._owner = ""
        self._lock = threading.Lock()
        self.passphrase = passphrase

    def password_for(self, place: str) -> str:
        """The password for ``place`` (``user@host:port``), "" where there is none or another place has it."""
        with self._lock:
            if self._password and not self._owner:
                self._owner = place
            return self._password if self._owner == place else ""


def _keep_quiet(_line: str) -> None:
    """The notify callback of somebody who does not want to know."""


def _know_nothing(_round_trip_seconds: float | None) -> None:
    """The reached callback of somebody whom it does not concern."""


def _nothing() -> None:
    """What is to be done while the server works, where nothing is."""


def _never(_call: Callable[[], None]) -> AbstractContextManager[None]:
    """The context of somebody whom nothing stops but an exception."""
    return nullcontext()


@dataclass(frozen=True, kw_only=True)
class SshOptions:
    """How to get in, as the user said it; "" and () mean "not said". Each transport takes what concerns it.

    ``ssh_config`` is OpenSSH's -F (``none`` for no file at all). ``host_key`` is the ``SHA256:…`` the VM must show.
    ``jump`` is OpenSSH's -J, ``helper_image`` the image to enter an engine's VM by.
    ``ask`` puts one question to the person at the terminal and gives the answer, or None; it is None where there is no
    terminal. With ``side_by_side`` others are at work at the same time: nobody but ``ask`` may use the terminal, and a
    question must not outlive a signal. ``notify`` takes one printable line at a time; ``reached`` is told how long a
    round trip to the VM takes, as soon as that is known, None where it cannot be told;
    ``meanwhile`` may be called while the server works at the log-in, and must not wait for anything.
    ``stoppable(call)`` is a context in which ``call`` may come from another thread, at a signal: what the caller waits
    for there is to end then, in whatever error. It raises Interrupted where the signal came before.
    ``output_limit_bytes`` bounds what one command may say on stdout, whatever the caller bounds.
    """

    connect_timeout_seconds: float = 10.0
    ssh_config: str = ""
    identities: tuple[str, ...] = ()
    known_hosts: str = ""
    host_key: str = ""
    jump: str = ""
    helper_image: str = ""
    output_limit_bytes: int = 16 << 20
    keepalive_seconds: int = 15
    secrets: Secrets = field(default_factory=Secrets, repr=False)
    ask: Callable[[str], str | None] | None = field(default=None, repr=False)
    side_by_side: bool = False
    notify: Callable[[str], None] = field(default=_keep_quiet, repr=False)
    reached: Callable[[float | None], None] = field(default=_know_nothing, repr=False)
    meanwhile: Callable[[], object] = field(default=_nothing, repr=False)
    stoppable: Callable[[Callable[[], None]], AbstractContextManager[None]] = field(default=_never, repr=False)


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
        """Start a command (a constant text, see machines/) without a pty. Raises LostContact, NotPermitted."""

    def close(self) -> None:
        """Close; safe to call twice."""


class Transport(Protocol):
    """A module of this package."""

    def connect(self, target: Target, *, options: SshOptions, first: str = "") -> Connection:
        """Connect and authenticate. Raises Unreachable, Untrusted, NotPermitted, UsageError.

        ``first`` is the command that the caller will start first, as it stands: a transport may start it in the same
        breath as the log-in, and hand it out at that ``start``. It may come to run twice, once with an empty input,
        when the connection is lost meanwhile: so it must do nothing before it has got input.
        """


def load(name: str) -> Transport:
    """The transport of that name, imported now."""
    if name not in NAMES:
        raise UsageError(f"there is no transport named {name}", hint=f"one of: {', '.join(NAMES)}")
    return cast(Transport, importlib.import_module(f"vmproxy.transports.{name}"))
