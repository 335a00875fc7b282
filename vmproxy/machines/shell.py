"""Any VM that runs a POSIX sh: constant scripts over one channel. Values travel as data on stdin (DESIGN §6).

A look leaves the loader in the VM where it is, so that the change that follows needs no new channel, session and sudo.
"""

from __future__ import annotations

import functools
import ipaddress
import shlex
import time
from collections.abc import Callable, Container, Iterable, Mapping
from pathlib import Path

from vmproxy.cachehit import judge_fetches
from vmproxy.errors import Interrupted, LostContact, Refused, RolledBack, VmproxyError
from vmproxy.machines import Judge, Look, Outcome, Terms, Verdict
from vmproxy.machines.frames import Frame
from vmproxy.machines.loader import AS_ROOT, AS_USER, LOOK_SECONDS, PLAIN_ROOT, PLAIN_USER, Loader, NoShell, Run
from vmproxy.machines.sending import look_lines, look_words, plan_lines, question_lines
from vmproxy.model import Facts, Finding, Plan, Syntax, printable
from vmproxy.proof import Question
from vmproxy.proof import judge as judge_answer
from vmproxy.transports import Connection

STEP_SECONDS = 250.0  # the longest step is a second restart: 30 s for the old daemon, 120 s, and 90 s until it answers
_FIRST_CHANGE = "stage"
_AS_BEFORE = frozenset({"undone", "gone", "refused", "busy", "moved"})
"""Last words of commit.sh after which the VM is as it was."""
_NOTES = {
    "stale-lock": "the lock of a run that is gone was taken over",
    "cleared": "left by an earlier run, and removed: {}",
    "without-owner": "the disk does not keep owner and mode of {}; its content is right",
}


@functools.cache
def _text(name: str) -> str:
    """One script without its comment lines and indentation: fewer bytes on the way."""
    lines = Path(__file__).with_name(name).read_text("utf-8").splitlines()  # importlib.resources: 5 ms of imports
    return "\n".join(line.lstrip(" ") for line in lines if line.strip() and not line.lstrip().startswith("#")) + "\n"


_LOOK, _ASK, _PROVE, _CHANGE = "observe.sh", "ask.sh", "prove.sh", "change.sh"
"""Functions only: a loader that has them needs them no second time."""


def observe_script(look: Look, known: Container[str] = ()) -> str:
    """The look alone. Of ``known`` files the loader has the functions."""
    return _functions((_LOOK,), known) + look_words(look) + f"hear\nwhole {'look_rest' if look.rest else 'look'}\n"


def syntax_script(files: tuple[str, ...], known: Container[str] = ()) -> str:
    """Have the VM's shell read files without running them."""
    return _functions((_LOOK,), known) + look_words(Look(files=files)) + "hear\nlook_syntax\n"


def commit_script(look: Look, known: Container[str] = (), *, asks: bool = True, proves: bool = True) -> str:
    """The look's functions, the question and the proof where they are wanted, and the change."""
    needed = [_LOOK, *([_ASK] if asks or proves else []), *([_PROVE] if proves else []), _CHANGE]
    return _functions(needed, known) + look_words(look) + _text("commit.sh")


def prove_script(known: Container[str] = ()) -> str:
    """The proof alone, in a work directory of its own that it removes."""
    return _functions((_LOOK, _ASK, _PROVE), known) + look_words(Look()) + _text("proof.sh") + "exit\n"


def _functions(names: Iterable[str], known: Container[str]) -> str:
    out = ""
    for name in names:
        if name not in known:
            # The proof asks inside containers too: it has the question also as a text.
            out += f"ask_text={shlex.quote(_text(_ASK))}\n" * (name == _PROVE) + _text(name)
    return out


def _facts(frames: Iterable[Frame]) -> Facts:
    from vmproxy.machines.reading import facts  # only now: before, its time is the log-in's

    return facts(frames)


def _syntax(frames: Iterable[Frame]) -> Mapping[str, Syntax]:
    from vmproxy.machines.reading import syntax

    return syntax(frames)


def first_command(*, root: bool, plain_for: str = "") -> str:
    """What the first script will be started with: a transport may start it together with the log-in.

    ``plain_for`` is the user who logs in, where that is known and a look is likely to be all: what is then quickest.
    """
    if plain_for:
        return PLAIN_ROOT if root and plain_for != "root" else PLAIN_USER
    return AS_ROOT if root else AS_USER


def open(connection: Connection, *, first: str = "") -> Shell:
    """A machine over an open connection; the connection is closed with it. ``first`` is what was started."""
    return Shell(connection, first=first)


class Shell:
    """See :class:`vmproxy.machines.Machine`."""

    def __init__(self, connection: Connection, *, first: str = "") -> None:
        self._connection = connection
        self._plain = first if first in (PLAIN_ROOT, PLAIN_USER) else ""
        self._loader: Loader | None = None
        self._begun: tuple[Look, Run] | None = None
        self._changing: _Commit | None = None

    def begin(self, look: Look, *, change: bool = False) -> None:
        """Send the script of :meth:`observe`, and behind it, for a change, the functions of :meth:`commit`."""
        if self._begun is not None:  # its answer is still to come, and nobody wants it any more
            self._let_go()
        loader = self._loaded(root=look.root)
        may_follow = change and not loader.plain  # a plain shell reads ahead
        run = Run(loader, observe_script(look, loader.known), look_lines(look))
        loader.known.add(_LOOK)
        self._begun = (look, run)
        if may_follow:
            # They travel and are read while the answer is on its way.
            run.send_script(_functions((_ASK, _CHANGE), loader.known))
            loader.known.update((_ASK, _CHANGE))

    def observe(self, look: Look) -> Facts:
        """One script, read-only; the loader is there for the next."""
        if self._begun is None or self._begun[0] != look:
            self.begin(look)
        assert self._begun is not None  # noqa: S101 - just made
        (_look, run), self._begun = self._begun, None
        try:
            return _facts(run.until_end(LOOK_SECONDS))
        except NoShell:
            self._let_go()
        except BaseException:
            self._let_go()
            raise
        return self.observe(look)

    def check(self, files: tuple[str, ...]) -> Mapping[str, Syntax]:
        """One script, read-only, to the loader that has looked."""
        loader = self._loaded(root=True)
        run = Run(loader, syntax_script(files, loader.known), look_lines(Look()))
        loader.known.add(_LOOK)
        try:
            return _syntax(run.until_end(LOOK_SECONDS))
        except BaseException:
            self._let_go()
            raise

    def rehearse(self, plan: Plan) -> None:
        """Nothing: what was looked at has told all."""

    def prove(self, question: Question) -> tuple[Finding, ...]:
        """One script, the loader's last; what it makes it removes."""
        data = look_lines(Look()) + question_lines(question) + b".\n"
        loader = self._taken(root=True)
        with Run(loader, prove_script(loader.known), data) as run:
            legs = _Legs(question)
            for frame in run.frames(STEP_SECONDS):
                legs.take(frame)
                if frame.kind == "result":
                    raise Refused(printable(" ".join(frame.words[3:])))
            return legs.findings()

    def commit(
        self, plan: Plan, terms: Terms, *, judge: Judge, verdict: Verdict, step: Callable[[str], None]
    ) -> Outcome:
        """One script, the loader's last: see commit.sh for the steps."""
        data = look_lines(terms.look) + plan_lines(plan, terms)
        loader = self._taken(root=True)
        asks, proves = terms.check is not None, terms.proof is not None
        script = commit_script(terms.look, loader.known, asks=asks, proves=proves)
        with Run(loader, script, data) as run:
            self._changing = followed = _Commit(run, terms, judge=judge, verdict=verdict, step=step)
            try:
                return followed.follow()
            finally:
                self._changing = None

    def reach(self, hosts: tuple[str, ...], port: int) -> tuple[str, ...]:
        """One script without root, the loader's last: a TCP connection to each, nothing sent."""
        lines = [str(ipaddress.ip_address(host)) for host in hosts] + ["."]
        data = f"{port}\n".encode("ascii") + "".join(f"{line}\n" for line in lines).encode("ascii")
        with Run(self._taken(root=False), _text("reach.sh"), data) as run:
            run.end_input()
            heard = {frame.rest for frame in run.frames(LOOK_SECONDS) if frame.kind == "reached"}
        return tuple(host for host in hosts if host in heard)

    def converse(self, script: str, data: bytes) -> Run:
        """One script as root, the loader's last. Its input stays open until the caller ends or closes it."""
        return Run(self._taken(root=True), _text(script), data)

    def interrupt(self) -> bool:
        """The end of its input makes commit.sh put everything back."""
        followed = self._changing
        if followed is None:
            return False
        followed.interrupt()
        return True

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def _loaded(self, *, root: bool) -> Loader:
        """The loader that is there, or a new one where that has other rights."""
        if self._loader is not None and self._loader.root != root:
            self._let_go()
        if self._loader is None:
            plain, self._plain = self._plain, ""
            self._loader = Loader(self._connection, root=root, plain=plain)
        return self._loader

    def _taken(self, *, root: bool) -> Loader:
        """The same for a script after which the loader is gone; its channel is closed with the run."""
        loader = self._loaded(root=root)
        self._loader = None
        return loader

    def _let_go(self) -> None:
        """Give up the loader, whatever it is doing."""
        loader, self._loader, self._begun = self._loader, None, None
        if loader is not None:
            loader.channel.close()


# ---- what comes back ------------------------------------------------------------------------------------------------


class _Legs:
    """Collects the answers of a proof, leg by leg."""

    def __init__(self, question: Question | None, *, proving: bool = True) -> None:
        self._question, self._proving = question, proving
        self._answers: dict[str, dict[str, bytes]] = {}
        self._problems: dict[str, str] = {}

    def take(self, frame: Frame) -> None:
        if frame.kind == "leg" and len(frame.words) == 3:
            self._answers.setdefault(frame.words[1], {})[frame.words[2]] = frame.body
        elif frame.kind == "ran" and len(frame.words) == 3 and frame.words[2] != "0":
            self._problems[frame.words[1]] = (
                f"docker ends with {frame.words[2]}: {printable(frame.body.strip(), limit=100)}"
            )

    def finding(self, leg: str) -> Finding:
        question = self._question
        assert question is not None  # noqa: S101 - only asked where a question was put
        inside = leg != "vm"
        host, port = (
            (question.container_host, question.container_port) if inside else (question.vm_host, question.vm_port)
        )
        if leg == "bridge6":
            host = f"[{question.container_host6}]"
        answers = self._answers.get(leg, {})
        problem = self._problems.get(leg, "") if not answers else ""
        if not answers and not problem:
            problem = "no answer came back"
        how = judge_fetches if question.fetch and self._proving else judge_answer
        return how(leg, answers, where=f"{host}:{port}", problem=problem)

    def findings(self) -> tuple[Finding, ...]:
        return tuple(self.finding(leg) for leg in (self._question.legs if self._question else ()))


class _Commit:
    """Follows commit.sh from frame to frame, and speaks where it waits: after ``asked`` and after ``ready``."""

    def __init__(self, run: Run, terms: Terms, *, judge: Judge, verdict: Verdict, step: Callable[[str], None]) -> None:
        self._run, self._terms, self._judge, self._verdict, self._step = run, terms, judge, verdict, step
        self._changing = False
        self._interrupted = False
        self._told = False
        self._restart = "none"
        self._wrote = False
        self._look: list[Frame] = []
        self._looking = False
        self._check_legs = _Legs(terms.check, proving=False)
        self._proof_legs = _Legs(terms.proof)
        self._notes: list[str] = []
        self._log = ""
        self._seen: Outcome | None = None

    def interrupt(self) -> None:
        """From another thread: nothing more is said to the VM, and its last word is waited for."""
        self._interrupted = True
        self._run.end_input()

    def follow(self) -> Outcome:
        try:
            return self._follow()
        except KeyboardInterrupt as signal:
            # The end of input makes commit.sh put everything back; we stay to hear that it did.
            outcome = self._hear_out()
            if outcome is not None and outcome.status in _AS_BEFORE:
                if isinstance(signal, Interrupted):
                    signal.rolled_back = outcome.rolled_back
                raise
            if outcome is not None and outcome.status == "incomplete":
                text = f"interrupted; ROLLBACK INCOMPLETE: {outcome.text}"
                raise RolledBack(text, hint="vmproxy status", complete=False) from None
            raise LostContact(
                "interrupted, and the VM does not say that everything was put back", hint="vmproxy status"
            ) from None
        except LostContact as lost:
            state = "the VM puts everything back by itself" if self._changing else "nothing was changed"
            if self._told:
                state = "the change was made; only its last word is missing"
            raise LostContact(f"{lost.what}; {state}", where=lost.where, hint="vmproxy status") from lost
        except Exception as error:
            # Its second look cannot be read, or a bug of ours: "nothing was changed" is only said when it is so.
            if not self._changing:
                raise
            outcome = self._hear_out()
            if not isinstance(error, VmproxyError):
                raise
            if outcome is None or outcome.status not in _AS_BEFORE:
                raise LostContact(
                    f"{error.what}; the VM does not say that everything was put back",
                    where=error.where,
                    hint="vmproxy status",
                ) from error
            raise RolledBack(f"{error.what}; everything was put back", where=error.where, hint=error.hint) from error

    def _follow(self) -> Outcome:
        for frame in self._run.frames(STEP_SECONDS + self._terms.lock_timeout_seconds):
            outcome = self._take(frame)
            if outcome is not None:
                return outcome
        raise LostContact("the connection ended in the middle of the change")

    def _hear_out(self) -> Outcome | None:
        deadline = time.monotonic() + STEP_SECONDS
        try:
            self._run.end_input()
            for frame in self._run.frames(STEP_SECONDS):
                if frame.kind == "result":
                    return self._result(frame)
                if time.monotonic() > deadline:
                    return None
        except (LostContact, KeyboardInterrupt):
            return None
        return None

    def _take(self, frame: Frame) -> Outcome | None:
        kind = frame.kind
        if kind == "step":
            self._progress(frame)
        elif kind in ("leg", "ran"):
            (self._proof_legs if self._looking or self._changing else self._check_legs).take(frame)
        elif kind == "asked":
            agreed = self._judge(self._check_legs.finding("vm"))
            if frame.rest != "sure":
                self._say(b"go\n" if agreed else b"no\n")
            elif not agreed:  # a VM that contradicts itself
                self._run.end_input()
        elif kind == "restart":
            self._restart = frame.rest
        elif kind == "wrote":
            self._wrote = True
        elif kind == "log":
            self._log = "\n".join(printable(line, limit=300) for line in frame.body.splitlines()[-20:])
        elif kind == "ready":
            self._ready()
        elif kind == "result":
            return self._result(frame)
        elif self._looking:
            self._look.append(frame)
            self._looking = kind != "end"
        return None

    def _progress(self, frame: Frame) -> None:
        name = frame.words[1] if len(frame.words) > 1 else ""
        if name == _FIRST_CHANGE:
            self._changing = True
        elif name == "look":
            self._looking = True
        elif name in _NOTES:
            self._notes.append(_NOTES[name].format(printable(" ".join(frame.words[2:]))).strip())
        self._step(printable(frame.rest))

    def _ready(self) -> None:
        so_far = Outcome(
            status="ready",
            restart=self._restart,
            facts=_facts(self._look),
            findings=self._proof_legs.findings(),
            notes=tuple(self._notes),
        )
        self._seen = so_far
        keep = self._verdict(so_far)
        self._told = keep
        self._told = self._say(b"keep\n" if keep else b"undo\n") and keep

    def _say(self, word: bytes) -> bool:
        """Whether it could be said: not where the input was ended just now, and then its last word tells what came of
        that. Raises LostContact."""
        try:
            self._run.send(word)
        except LostContact:
            if not self._interrupted:
                raise
            return False
        return True

    def _result(self, frame: Frame) -> Outcome:
        status, code = (*frame.words[1:], "", "")[:2]
        seen = self._seen
        return Outcome(
            status=status,
            exit=int(code) if code.isascii() and code.isdigit() else 70,
            text=printable(" ".join(frame.words[3:]), limit=300),
            restart=self._restart,
            facts=seen.facts if seen else None,
            findings=seen.findings if seen else (),
            notes=tuple(self._notes),
            log=self._log,
            wrote=self._wrote,
        )
