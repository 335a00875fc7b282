"""Transport ``console``: a VM's serial line, by its terminal or its unix socket on the host.

A serial line is one stream, with echo, for one user, without an end. A small program at its far end (``console.sh``)
makes it carry commands with their three streams: we ask, it answers, and what is lost or broken on the way is asked
for again. It holds 8 bits clean data in base64. When we are silent for :data:`_lineshell.SILENCE_SECONDS`, it ends the
input of what runs, and gives the line back as it was. It answers at once, whatever the command does: so when nothing
that is an answer comes for :data:`_lineshell.GONE_SECONDS`, the line is dead, and we say no more, so that it does that.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time

from vmproxy.errors import LostContact, VmproxyError
from vmproxy.model import Target, printable
from vmproxy.transports import SshOptions
from vmproxy.transports._line import Line, open_line
from vmproxy.transports._lineframes import Answer, body, pieces
from vmproxy.transports._lineshell import GONE_SECONDS, SILENCE_SECONDS, Opener

_STDERR_LIMIT_BYTES = 64 << 10
_COMMAND_LIMIT_BYTES = 8 << 10
_START_SECONDS = 30.0
_END_SECONDS = 10.0
_BYE_SECONDS = 3.0
_ANSWER_SECONDS = 5.0
"""Every question may take that long, however short the time left for what it asks after."""
_AGAIN_SECONDS = 1.0
_AGAIN_AT_MOST_SECONDS = 10.0
_AGAIN_TIMES = 4  # as long as an answer usually takes: what is asked again too soon only keeps a slow VM busy
_PAUSE_SECONDS = (0.002, 0.25)


def connect(target: Target, *, options: SshOptions, first: str = "") -> ConsoleConnection:
    """Open the line, find or make a root shell there, start the far end.

    Raises UsageError, Unreachable, NotPermitted, Busy, Refused, and LostContact within the connect timeout.
    """
    line = open_line(target.line, timeout_seconds=options.connect_timeout_seconds)
    try:
        opener = Opener(line, timeout_seconds=options.connect_timeout_seconds)
        with options.stoppable(opener.give_up):
            opener.run()
        line.framed = True
        return ConsoleConnection(line, opener, options)
    except BaseException:
        line.close()
        raise


class ConsoleConnection:
    """Implements :class:`vmproxy.transports.Connection`."""

    def __init__(self, line: Line, opener: Opener, options: SshOptions) -> None:
        self._line, self._options = line, options
        self._call, self._answers = opener.call, opener.answers
        self._lock = threading.RLock()
        self._tag = 0
        self._torn = False
        self._again = 3 * _AGAIN_SECONDS
        self._usual = 0.0
        self._asked = time.monotonic()
        self._owed = 0.0  # since when the VM owes us an answer, 0 for not at all
        self._left = False  # the VM's end has said good-bye: whoever reads there now, it is not for us
        self._closing = threading.Event()
        self.place = line.place
        threading.Thread(target=self._stay_alive, name="vmproxy-console", daemon=True).start()

    def start(self, command: str) -> ConsoleChannel:
        """Start a command. Raises LostContact."""
        data = command.encode("utf-8")
        if len(data) > _COMMAND_LIMIT_BYTES:
            raise ValueError("the command is too long: it travels on stdin")
        deadline = time.monotonic() + _START_SECONDS
        identity = os.urandom(8).hex()
        for number, piece in enumerate(pieces(data), 1):
            words, lines = body(identity, number, piece)
            self.ask(f"command {words}", lines, deadline=deadline)
        if self.ask(f"start {identity}", deadline=deadline).kind != "yes":
            raise LostContact("the VM cannot start a command", where=self.place)
        return ConsoleChannel(self, identity, self._options.output_limit_bytes)

    def ask(self, request: str, lines: bytes = b"", *, identity: str = "", deadline: float) -> Answer:
        """One request and its answer; repeated while none comes. Raises LostContact at the deadline, and as soon as
        nothing was answered for :data:`GONE_SECONDS`: from then on nothing more is said, which tells the VM's end."""
        with self._lock:
            self._tag += 1
            if self._left:
                raise self._bye()
            if self._is_gone():
                raise self._silent(self._owed)
            text = f"{self._call} {self._tag} {request} .\n".encode("ascii") + lines
            began = time.monotonic()
            self._owed = self._owed or began
            first = True
            while True:
                until = min(deadline, self._owed + GONE_SECONDS)
                # Half a line of an earlier try, ours or one cut short by a signal, ends here.
                before, self._torn = (b"\n" if self._torn else b""), True
                self._line.write(before + text, until)
                self._torn = False
                answer = self._answer(identity, until)
                self._asked = time.monotonic()
                if answer is not None and answer.kind != "bad":
                    if first:  # of a repeated one nobody knows which it is the answer to (Karn's algorithm)
                        self._usual = max(self._asked - began, 0.8 * self._usual)
                        self._again = max(_AGAIN_SECONDS, _AGAIN_TIMES * self._usual)
                    self._owed = 0.0
                    return answer
                first = False
                if self._is_gone():
                    raise self._silent(self._owed)
                if time.monotonic() >= deadline:
                    raise self._silent(began)
                self._torn = True

    def _is_gone(self) -> bool:
        return self._owed > 0 and time.monotonic() - self._owed >= GONE_SECONDS

    def _silent(self, since: float) -> LostContact:
        return LostContact(f"no answer on the line for {time.monotonic() - since:.0f} s", where=self.place)

    def _bye(self) -> LostContact:
        return LostContact("the VM's end of the line took us for gone", where=self.place)

    def close(self) -> None:
        """Say good-bye, within a limit, and give the line back; safe to call twice."""
        self._closing.set()
        with self._lock:
            if self._line.closed:
                return
            try:
                with contextlib.suppress(LostContact):
                    if not self._left:
                        self._say_bye(time.monotonic() + _BYE_SECONDS)
            finally:
                self._line.close()

    def _say_bye(self, deadline: float) -> None:
        self._line.write(f"\n{self._call} 0 bye .\n".encode("ascii"), deadline)
        while (left := deadline - time.monotonic()) > 0:
            if any(answer.kind == "bye" for answer in self._answers.feed(self._line.read(left))):
                break

    def _answer(self, identity: str, deadline: float) -> Answer | None:
        """The answer to the last request; None where it should be asked again: after silence, or a broken line."""
        broken = self._answers.broken
        self._again = min(self._again, _AGAIN_AT_MOST_SECONDS)
        latest = min(deadline, time.monotonic() + _AGAIN_AT_MOST_SECONDS)
        while True:
            data = self._line.read(min(self._again, max(0.0, latest - time.monotonic())))
            for answer in self._answers.feed(data, identity):
                self._owed = time.monotonic()  # whatever it answers: the VM is there
                if answer.tag == self._tag:
                    return answer
                if answer.kind == "bye":
                    self._left = True
                    raise self._bye()
            if self._answers.broken != broken:
                return None
            if not data or time.monotonic() >= latest:
                self._again = min(2 * self._again, _AGAIN_AT_MOST_SECONDS)
                return None

    def _stay_alive(self) -> None:
        """Say something now and then, while nobody asks: a person may be thinking about a question."""
        while not self._closing.wait(SILENCE_SECONDS / 10):
            if time.monotonic() - self._asked > SILENCE_SECONDS / 5:
                with contextlib.suppress(VmproxyError, ValueError):
                    self.ask("alive", deadline=time.monotonic() + SILENCE_SECONDS / 3)


class ConsoleChannel:
    """One running command; implements :class:`vmproxy.transports.Channel`."""

    def __init__(self, connection: ConsoleConnection, identity: str, limit_bytes: int) -> None:
        self._connection, self._identity = connection, identity
        self._left = self._limit_bytes = limit_bytes
        self._ahead = bytearray()
        self._said = bytearray()
        self._next = {"out": 1, "err": 1}
        self._ended: set[str] = set()
        self._status: int | None = None
        self._sent = 0
        self._closed = False

    @property
    def stderr(self) -> bytes:
        """What came on stderr so far, at most 64 KiB."""
        return bytes(self._said)

    def send(self, data: bytes, *, timeout_seconds: float) -> None:
        """Write all of ``data``; what the command says meanwhile is kept. Raises LostContact."""
        deadline = time.monotonic() + timeout_seconds
        for piece in pieces(data):
            self._sent += 1  # first: what a signal cuts short here is never sent under its number again
            words, lines = body(self._identity, self._sent, piece)
            pause = _PAUSE_SECONDS[0]
            while (
                kind := self._connection.ask(f"data {words}", lines, deadline=_for_an_answer(deadline)).kind
            ) == "full":
                if time.monotonic() >= deadline:
                    raise LostContact(f"the VM took no more input for {timeout_seconds:g} s", where=self._place)
                if not self._poll(deadline):
                    pause = self._rest(pause, deadline)
            if kind != "yes":
                raise LostContact("the command in the VM no longer reads its input", where=self._place)

    def receive(self, *, timeout_seconds: float) -> bytes:
        """The next piece of stdout, ``b""`` at its end. Raises LostContact."""
        deadline = time.monotonic() + timeout_seconds
        pause = _PAUSE_SECONDS[0]
        while not self._ahead and "out" not in self._ended:
            if time.monotonic() >= deadline:
                raise LostContact(f"no output from the VM for {timeout_seconds:g} s", where=self._place)
            if not self._poll(deadline):
                pause = self._rest(pause, deadline)
        piece = bytes(self._ahead)
        self._ahead.clear()
        return piece

    def end_input(self) -> None:
        """Close the command's stdin. A line that is gone is noticed by the next receive."""
        with contextlib.suppress(LostContact):
            self._connection.ask(f"end {self._identity}", deadline=time.monotonic() + _END_SECONDS)

    def wait(self, *, timeout_seconds: float) -> int | None:
        """The exit status after stdout has ended. Raises LostContact."""
        deadline = time.monotonic() + timeout_seconds
        pause = _PAUSE_SECONDS[0]
        while self._status is None or "err" not in self._ended:
            if time.monotonic() >= deadline:
                if self._status is not None:
                    break
                raise LostContact(f"the command did not end within {timeout_seconds:g} s", where=self._place)
            if not self._poll(deadline):
                pause = self._rest(pause, deadline)
        return self._status

    def close(self) -> None:
        """End the command's input and let go of it; safe to call twice."""
        if self._closed:
            return
        self._closed = True
        with contextlib.suppress(LostContact):
            self._connection.ask(f"drop {self._identity}", deadline=time.monotonic() + _END_SECONDS)

    @property
    def _place(self) -> str:
        return self._connection.place

    def _poll(self, deadline: float) -> bool:
        """Ask what there is; whether there was something new. Raises LostContact."""
        if self._closed:
            raise LostContact("the command was let go", where=self._place)
        request = f"poll {self._identity} {self._next['out']} {self._next['err']}"
        answer = self._connection.ask(request, identity=self._identity, deadline=_for_an_answer(deadline))
        kind = answer.kind
        if kind in self._next:
            if answer.number != self._next[kind]:
                return False
            self._next[kind] += 1
            self._take(kind, answer.data)
            return True
        if kind == "status":
            new, self._status = self._status is None, answer.status
            return new
        if kind != "none":
            raise LostContact("the command in the VM is gone", where=self._place)
        return False

    def _take(self, kind: str, data: bytes) -> None:
        if not data:
            self._ended.add(kind)
        elif kind == "err":
            self._said += data[: max(0, _STDERR_LIMIT_BYTES - len(self._said))]
        else:
            self._left -= len(data)
            if self._left < 0:
                self.close()
                what = f"the VM sends more than {self._limit_bytes} bytes: {printable(data, limit=40)}"
                raise LostContact(what, where=self._place)
            self._ahead += data

    def _rest(self, seconds: float, deadline: float) -> float:
        """Wait a little before the next question, and say how long to wait then."""
        time.sleep(max(0.0, min(seconds, deadline - time.monotonic())))
        return min(2 * seconds, _PAUSE_SECONDS[1])


def _for_an_answer(deadline: float) -> float:
    return max(deadline, time.monotonic() + _ANSWER_SECONDS)
