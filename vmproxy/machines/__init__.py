"""The narrow waist: what can be asked of a VM, whatever the way in. One file per kind of machine."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import field
from typing import Any, Protocol, cast

from vmproxy.errors import Busy, Refused, UsageError
from vmproxy.machines.frames import Frame
from vmproxy.model import Facts, Finding, Plan, Syntax
from vmproxy.proof import Question
from vmproxy.values import dataclass

NAMES = ("shell", "tree", "image", "native")


@dataclass(frozen=True, kw_only=True)
class Look:
    """What to look at. ``files`` are read whole, ``paths`` are only looked for.

    ``texts`` are only read. In both a ``*`` stands for any part of one name.
    ``root`` asks for root (firewall rules, the daemon's environment); without it nothing that needs root is looked at.
    ``configs`` are places of daemon.json: a Docker that may have proxies from there is asked for them, and ``docker``
    asks it in any case, and for its version; for their ``bip`` they are read where there is no live bridge to look at.
    ``save`` adds ``ip route save`` bytes; ``listeners`` what listens for TCP; without ``stats`` a file's owner,
    links and mode are not looked at, but for whether it can be run; ``rest`` is for a second look which is only to
    fill in these: who sees more in it may give all. ``syntax`` asks the VM's shell about the files at once (see
    :meth:`Machine.check`); ``resolve`` is a name whose IPv4 addresses the VM shall look up.
    """

    root: bool = True
    files: tuple[str, ...] = ()
    paths: tuple[str, ...] = ()
    texts: tuple[str, ...] = ()
    configs: tuple[str, ...] = ()
    save: bool = False
    syntax: bool = False
    docker: bool = False
    listeners: bool = True
    stats: bool = True
    rest: bool = False
    resolve: str = ""


@dataclass(frozen=True, kw_only=True)
class Terms:
    """On which terms a plan is carried out. Times are limits in seconds.

    ``restart`` is auto, always or never; ``restart_argv`` the guest's commands in order, of constant words
    without blanks or quotes, each of which must succeed; ``reload_argv`` one that is run whenever files were changed;
    ``gone`` a file and the words of a command, which is run behind that where the file is one of those changed, and is
    not there any more; ``log`` the daemon's log file.
    ``legacy_writer`` is a Python in the VM and the directory of this package there: they write legacy rules instead of
    iptables-legacy-restore. ``daemon_pid`` is that of the look, 0 for none: where another one runs by now, it is looked
    again.
    ``check`` is the question asked before the first change, ``proof`` the one asked after the last.
    """

    look: Look
    lock_timeout_seconds: float = 30.0
    restart: str = "auto"
    restart_argv: tuple[tuple[str, ...], ...] = ()
    reload_argv: tuple[str, ...] = ()
    gone: tuple[tuple[str, ...], ...] = ()
    log: str = ""
    legacy_writer: tuple[str, str] | None = None
    daemon_pid: int | None = None
    check: Question | None = None
    proof: Question | None = None


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a commit ended. ``status`` is what commit.sh said last: kept, undone, incomplete, moved, busy, refused, gone.

    ``restart`` is none, yes, stopped or ``pending N`` (N running containers, ? unknown); ``facts`` the second look;
    ``wrote`` whether a rule or a file had been written when it was put back.
    """

    status: str
    exit: int = 0
    text: str = ""
    restart: str = "none"
    facts: Facts | None = None
    findings: tuple[Finding, ...] = ()
    notes: tuple[str, ...] = ()
    log: str = field(default="", repr=False)
    wrote: bool = False

    @property
    def rolled_back(self) -> bool:
        """Whether a change was begun and undone; one that was refused in its preparations was not."""
        return self.status == "undone" and (self.wrote or self.exit not in (Refused.exit, Busy.exit))


Judge = Callable[[Finding], bool]
Verdict = Callable[["Outcome"], bool]


class Conversation(Protocol):
    """A script that runs in the VM: a context manager whose end closes its channel."""

    def __enter__(self) -> Conversation:
        """Itself."""

    def __exit__(self, *_: object) -> None:
        """Close it."""

    def frames(self, silence_seconds: float) -> Iterator[Frame]:
        """What it says, until it ends. Raises LostContact, NotPermitted."""

    def end_input(self) -> None:
        """Nothing more comes: a script that waits for us gives up."""


class Machine(Protocol):
    """One VM that can be looked at, changed, and asked."""

    def begin(self, look: Look, *, change: bool = False) -> None:
        """Send a look on its way and do not wait: the next :meth:`observe` of the same look gives what it says.
        ``change``: a commit is likely to follow.
        Raises LostContact, NotPermitted."""

    def observe(self, look: Look) -> Facts:
        """One look; nothing is changed. Raises LostContact, NotPermitted, Refused."""

    def check(self, files: tuple[str, ...]) -> Mapping[str, Syntax]:
        """What the VM's own shell says of those files that are there, by path; nothing is run. Raises LostContact,
        NotPermitted, Refused."""

    def commit(
        self, plan: Plan, terms: Terms, *, judge: Judge, verdict: Verdict, step: Callable[[str], None]
    ) -> Outcome:
        """Carry out a plan, or put everything back. ``judge`` decides on the answer before the first change,
        ``verdict`` on the
        second look and the proof, while everything can still be put back. Raises LostContact, NotPermitted."""

    def rehearse(self, plan: Plan) -> None:
        """For ``--dry-run``: raises what :meth:`commit` would, as far as that can be known without asking the VM once
        more."""

    def prove(self, question: Question) -> tuple[Finding, ...]:
        """Ask from each vantage point; nothing stays behind. Raises LostContact, NotPermitted."""

    def reach(self, hosts: tuple[str, ...], port: int) -> tuple[str, ...]:
        """Those of ``hosts`` that take a TCP connection at ``port``; uses no root. Raises LostContact."""

    def converse(self, script: str, data: bytes) -> Conversation:
        """Run one of the constant scripts of this directory as root and listen to it; ``data`` is its stdin. The
        caller closes what comes back. Raises LostContact, NotPermitted, Refused."""

    def interrupt(self) -> bool:
        """From another thread: a change that is under way is to be put back, and whoever waits for it hears whether it
        was. False where there is none: then nothing keeps the caller from closing."""

    def close(self) -> None:
        """Let go of the VM; safe to call twice."""


def load(name: str) -> Any:
    """The machine module of that name, imported now. Each has ``open(...) -> Machine``."""
    if name not in NAMES:
        raise UsageError(f"there is no machine named {name}")
    return cast(Any, importlib.import_module(f"vmproxy.machines.{name}"))
