"""From a line of which nothing is known to a program of ours at its far end.

Whoever used the line before may have left anything on it: half a command, a log-in prompt, a program, no echo, or an
earlier session of ours whose client was killed. So: listen, ask for a prompt, log in where that is asked, and try.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import time
from pathlib import Path
from typing import Literal

from vmproxy.errors import LostContact, NotPermitted, Refused
from vmproxy.model import printable
from vmproxy.transports._line import Line
from vmproxy.transports._lineframes import KERNEL, Answer, Answers, digest, plain

SILENCE_SECONDS = 15
"""After that long without a word from us the VM's end takes us for gone."""
GONE_SECONDS = 3 * SILENCE_SECONDS
"""After that long without an answer to anything we take the VM's end for gone; a slow line takes 10 s for a long one,
and one or two may be lost. The VM's end bears noise without a request of ours for as long."""
_KEEP_BYTES = 8 << 10
_QUIET_SECONDS = 0.3
_BEGIN_SECONDS = 6.0
_HEARD_SECONDS = 0.2  # for a signal to another thread to be noticed
_LOG_INS = 3
_IS_IT_UP = "is the VM up, and is its shell on this line?"
# ^E and ^U clear a line in every line editor and in a terminal's own; ^C also leaves a program, or an open quote.
_SOFT, _HARD = b"\x05\x15\n", b"\x03\x05\x15\n"
_LOGIN = re.compile(rb"(?<!Last )\blogin: *\Z")
_PASSWORD = re.compile(rb"(?i)(?:password|passphrase|passwort)[^\n]{0,40}: *\Z")
# A number before the % is how far an editor or a pager is in its file: what is typed for a shell would land in that.
# One that ends a word is a host's, as zsh has it in its prompt (%m%#).
_PROMPT = re.compile(rb"(?:[#$]|(?<!\d)%|[A-Za-z]-?\d+%|[^\n \t]> ?|[^\n]>) *\Z")

State = Literal["login", "password", "prompt", "unknown"]

# What is typed at the prompt, and so short, in single quotes, without "!": it must get through any line editor and any
# kind of shell. It takes lines up to a single dot, holds them against a digest, and runs them. Where the settings of
# the terminal are those of somebody dead, sane ones are given back in their place.
_READER = """\
n=$(printf "\\n.");n=${n%.};o=$(stty -g);case $(stty -a)$n in *-icanon*|*"-echo "*|*"-echo$n"*)o=sane;;esac;\
stty -echo -icanon min 0 time 200;p=;printf "\\n@%s%s 0 user %s .\\n" HALF1 HALF2 $(id -u);\
while IFS= read -r l;do case "$l" in .)break;;esac;p=$p$l$n;done;\
case $(printf %s "$p"|sha256sum) in DIGEST*)eval "$p";;\
*)stty $o;printf "\\n@%s%s 0 torn %s .\\n" HALF1 HALF2 "$(command -v sha256sum)";;esac"""


def state_of(text: bytes) -> State:
    """What a line waits for, from what came last. Kernel messages in between do not count."""
    lines = KERNEL.sub(b"", plain(text)[-_KEEP_BYTES:] + b"\n")
    last = lines.rstrip(b"\n\0").rpartition(b"\n")[2]
    if _PASSWORD.search(last):
        return "password"
    if _LOGIN.search(last):
        return "login"
    return "prompt" if _PROMPT.search(last) else "unknown"


def program(mark: str, call: str) -> str:
    """The far end's text, without comments and indentation. ``call`` is what our requests begin with."""
    lines = Path(__file__).with_name("console.sh").read_text("utf-8").splitlines()
    kept = [line.strip(" ") for line in lines if line.strip() and not line.lstrip().startswith("#")]
    return "\n".join([f"D={mark} U={call} T={SILENCE_SECONDS} N={GONE_SECONDS}", *kept]) + "\n"


class Opener:
    """Takes an open line to where the far end answers. ``mark`` and ``call`` are then what answers and requests begin
    with; ``answers`` has read everything so far."""

    def __init__(self, line: Line, *, timeout_seconds: float) -> None:
        self._line = line
        self._seconds = timeout_seconds
        self._deadline = time.monotonic() + timeout_seconds
        self._own: bool = False
        """We have logged in, and so we log out."""
        self._root = 0
        self._typed: int = 0
        self._given_up = False
        self.call = os.urandom(8).hex()
        self.mark = ""
        self.answers = Answers("")

    def run(self) -> None:
        """Raises LostContact at the deadline, NotPermitted, Refused; what we typed is then taken back."""
        try:
            self._run()
        except BaseException as error:
            if isinstance(error, LostContact) and error.hint == error.usual_hint:
                error.hint = _IS_IT_UP  # a look at the VM would say the same again
            if self._typed or self._own:
                with contextlib.suppress(LostContact):
                    self._line.write(_HARD + b"exit\n" * self._own, time.monotonic() + 1)
            raise

    def give_up(self) -> None:
        """From another thread: :meth:`run` ends, as at its deadline."""
        self._given_up = True

    def _run(self) -> None:
        text = self._gather(_QUIET_SECONDS, self._line.read(0.05))
        blind = 0
        for attempt in range(1000):
            quiet = min(_QUIET_SECONDS * (1 + attempt), 2.0)
            text = self._nudged(_HARD if attempt else _SOFT, quiet)
            state = state_of(text)
            if state == "login":
                state = self._log_in(quiet)
            blind = blind + 1 if state == "unknown" and not text.strip() else 0
            # A shell may have no prompt; but what is typed for it must not land in a log-in that is about to come.
            if (state == "prompt" or blind >= 2) and self._begin():
                return

    def _left(self) -> float:
        """Raises LostContact when there is nothing left."""
        left = self._deadline - time.monotonic()
        if left <= 0 or self._given_up:
            what = f"no usable prompt within {self._seconds:g} s{self._line.last_words()}"
            raise LostContact(what, where=self._line.place, hint=_IS_IT_UP)
        return left

    def _gather(self, quiet_seconds: float, text: bytes = b"") -> bytes:
        """What comes until nothing comes for that long."""
        while piece := self._read(min(quiet_seconds, self._left())):
            text = (text + piece)[-_KEEP_BYTES:]
        return text

    def _read(self, seconds: float) -> bytes:
        """What comes within that time. Raises LostContact at the deadline, and where nobody waits any more."""
        until = time.monotonic() + seconds
        while True:
            left = until - time.monotonic()
            if (data := self._line.read(max(0.0, min(left, _HEARD_SECONDS)))) or left <= _HEARD_SECONDS:
                return data
            self._left()

    def _nudged(self, keys: bytes, quiet_seconds: float) -> bytes:
        self._line.write(keys, time.monotonic() + self._left())
        return self._gather(quiet_seconds)

    def _log_in(self, quiet_seconds: float) -> State:
        """root, without a password. Raises LostContact where one is asked for."""
        if self._root >= _LOG_INS:
            raise LostContact(f"the VM does not let root in{self._line.last_words()}", where=self._line.place)
        self._root += 1
        text = self._nudged(b"root\n", max(quiet_seconds, 1.0))
        state = state_of(text)
        if state == "password":
            seen, self._own = self._line.last_words(), False
            self._line.write(b"\x03\n", self._deadline)
            raise LostContact(
                f"the VM wants a password for root{seen}",
                where=self._line.place,
                hint="a VM with a password is for ssh: --vm ssh://USER@HOST",
            )
        self._own = state != "login"
        return state

    def _begin(self) -> bool:
        """Start the far end from a prompt. False where nothing answers. Raises NotPermitted, Refused."""
        first, second = os.urandom(8).hex(), os.urandom(8).hex()
        self.mark = first + second
        self.answers = Answers(self.mark)
        text = program(self.mark, self.call)
        reader = (
            _READER.replace("HALF1", first)
            .replace("HALF2", second)
            .replace("DIGEST", digest(text.removesuffix("\n"))[:16])
        )
        # Our own log-in ends with our program; somebody else's shell stays, and a space keeps it out of most histories.
        self._typed += 1
        self._line.write(f" {'exec ' * self._own}sh -c {shlex.quote(reader)}\n".encode("ascii"), self._deadline)
        seconds = _BEGIN_SECONDS * self._typed
        answer = self._answer(seconds)
        if answer is None or answer.kind != "user":
            return False
        if answer.words != ("0",):
            self._line.write(b".\n", self._deadline)
            self._answer(_QUIET_SECONDS)
            self._typed, self._own = 0, False
            raise NotPermitted(
                f"the shell on the line is not root's (user {printable(' '.join(answer.words), limit=40)})",
                where=self._line.place,
                hint="log out there: root is then logged in",
            )
        self._line.write(f"{text}.\n".encode("ascii"), self._deadline)
        answer = self._answer(seconds)
        lack = ""
        if answer is not None and answer.kind == "lack":
            lack = " ".join(answer.words)
        elif answer is not None and answer.kind == "torn" and not any(answer.words):
            lack = "sha256sum"
        if lack:
            self._typed, self._own = 0, False
            raise Refused(
                f"the VM has no {printable(lack, limit=120)}",
                where=self._line.place,
                hint="over a serial line it needs base64, sha256sum, dd, mkfifo and stty",
            )
        return answer is not None and answer.kind == "ready"

    def _answer(self, seconds: float) -> Answer | None:
        until = time.monotonic() + min(seconds, self._left())
        while (left := until - time.monotonic()) > 0:
            for answer in self.answers.feed(self._read(left)):
                if answer.tag == 0 and answer.kind != "bye":
                    return answer
        return None
