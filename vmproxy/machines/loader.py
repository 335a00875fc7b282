"""The loader: a constant command in the VM that takes scripts on stdin, one after the other, and evals them.

It becomes root where that is asked. Each script comes with its length before it and its data behind it; what it says
comes back in frames.
"""

from __future__ import annotations

import os
import shlex
import time
from collections.abc import Iterator

from vmproxy.errors import LostContact, NotPermitted
from vmproxy.machines.frames import Frame, Splitter
from vmproxy.model import printable
from vmproxy.transports import Channel, Connection

# Set by the shell itself: env(1) would be one more program to start.
_SETTLED = "LC_ALL=C PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin; export LC_ALL PATH; "
# Piece by piece, each a single read of at most what is missing; the x keeps newlines at a piece's end. With LC_ALL=C
# ${#s} is a number of bytes.
_LOADER = (
    f"{_SETTLED}"
    "umask 077; while IFS= read -r n && s= && "
    '{ while [ ${#s} -lt "$n" ] && p=$(dd bs=$((n - ${#s})) count=1 2>/dev/null; echo x) && p=${p%x} && [ -n "$p" ]; '
    'do s=$s$p; done; [ ${#s} = "$n" ]; }; do eval "$s"; done'
)
_BECOME_ROOT = (
    f"{_SETTLED}"
    # Whose shell it is tells /proc (proc(5): real, effective, ...); id would be one more process.
    'u=; while read -r k _ v _; do if [ "$k" = Uid: ]; then u=$v; break; fi; done 2>/dev/null </proc/self/status; '
    'if [ "${u:-$(id -u)}" = 0 ]; then eval "$1"; else exec sudo -n sh -c "$1" vmproxy; fi'
)
# `exec sh …` and single quotes mean the same to sh, csh and fish, whatever the account's login shell.
# The word vmproxy is what the shells call themselves in their complaints.
AS_USER = f"exec sh -c {shlex.quote(_LOADER)} vmproxy"
AS_ROOT = f"exec sh -c {shlex.quote(_BECOME_ROOT)} vmproxy {shlex.quote(_LOADER)}"

# Where nothing is likely to follow the look: a plain shell, which takes its first script as text. That is two programs
# less, of the seven or eight that a look starts. Behind it comes the loader, for what may follow all the same, and both
# are one command: a shell reads ahead, but reads a command to its end before it runs it, and what comes then is still
# to be sent.
PLAIN_USER = "exec sh -s"
PLAIN_ROOT = "exec sudo -n sh -s"

LOOK_SECONDS = 30.0
_PATIENCE = 10  # a whole script may take that many times its longest silence: a VM that drips ends too
OUTPUT_LIMIT_BYTES = 8 << 20


class NoShell(LostContact):
    """A plain shell ended before it said anything: a loader will do, or knows why not."""


class Loader:
    """The channel of one loader: it takes one script after the other. It has the functions of the ``known`` files.

    ``plain`` is the command of a plain shell, which is made a loader along with its first script.
    """

    def __init__(self, connection: Connection, *, root: bool, plain: str = "") -> None:
        self.root = root
        self.plain = bool(plain)
        self.channel: Channel = connection.start(plain or (AS_ROOT if root else AS_USER))
        self.heard = False
        self.known: set[str] = set()


class Run:
    """One script of a loader: its input, then frames until :meth:`until_end` or until the stream ends."""

    def __init__(self, loader: Loader, script: str, data: bytes) -> None:
        nonce = os.urandom(16).hex()
        self._splitter = Splitter(nonce, eager=frozenset({"asked", "ready", "step", "result", "end"}))
        self._loader = loader
        self._channel = loader.channel
        self.begun = False
        self._unsent: LostContact | None = None
        data = f"{nonce}\n".encode("ascii") + data
        self._plain, loader.plain = loader.plain, False
        if self._plain:  # all of it is read before any of it is run; where there is no here-document, a loader will do
            text = f"{{\n{{ {_SETTLED}umask 077\n{script}}} <<'.' || exit\n".encode()
            self._send(text + data + f"{_LOADER}\n}}\n".encode("ascii"))
        else:
            self.send_script(script, data)

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the loader, whatever it is doing."""
        self._channel.close()

    def send_script(self, script: str, data: bytes = b"") -> None:
        """A script and its data; behind the first of a run, one that says nothing."""
        body = script.encode("utf-8")
        self._send(f"{len(body)}\n".encode("ascii") + body + data)

    def _send(self, data: bytes) -> None:
        try:
            self.send(data)
        except LostContact as lost:  # the command ended before it had read all: what it said is the better reason
            self._unsent = lost

    def send(self, data: bytes) -> None:
        """More for the script's stdin. Raises LostContact."""
        self._channel.send(data, timeout_seconds=LOOK_SECONDS)

    def end_input(self) -> None:
        """Nothing more comes, for the script and for its loader."""
        self._channel.end_input()

    def until_end(self, silence_seconds: float) -> Iterator[Frame]:
        """Frames up to the look's last; the stream goes on."""
        for frame in self.frames(silence_seconds):
            yield frame
            if frame.kind == "end":
                return

    def frames(self, silence_seconds: float) -> Iterator[Frame]:
        """Frames as they come. ``silence_seconds`` bounds the wait for the next byte; the whole stream is bounded
        too, in bytes and in time."""
        taken = 0
        deadline = time.monotonic() + _PATIENCE * silence_seconds
        while True:
            left = deadline - time.monotonic()
            if left <= 0:
                raise LostContact(f"the VM is not done after {_PATIENCE * silence_seconds:g} s")
            piece = self._channel.receive(timeout_seconds=min(silence_seconds, left))
            if not piece:
                break
            taken += len(piece)
            if taken > OUTPUT_LIMIT_BYTES:
                raise LostContact(f"the VM says more than {OUTPUT_LIMIT_BYTES} bytes; nothing more is read")
            for frame in self._splitter.feed(piece):
                self.begun = self._loader.heard = True
                yield frame
        for frame in self._splitter.finish():
            self.begun = True
            yield frame
        if not self.begun:
            self._explain()

    def _explain(self) -> None:
        """Nothing of the script was heard: sudo said no, or there is no usable shell."""
        status = self._channel.wait(timeout_seconds=10)
        if self._plain:
            raise NoShell("the VM's shell does not answer")
        said = printable((self._channel.stderr or self._splitter.noise).strip(), limit=120)
        if self._loader.root and not self._loader.heard and "sudo" in said:
            raise NotPermitted(
                f"root is needed and sudo -n does not give it: {said or f'status {status}'}",
                hint="allow sudo without password for this user in the VM's sudoers (NOPASSWD), or log in as root",
            )
        if self._unsent is not None:
            raise self._unsent
        raise LostContact(f"the VM's shell does not answer: {said or f'status {status}'}; nothing was changed")
