"""Dokku in one open VM: asked in two rounds, told all or nothing. The two ends of ``machines/dokku.sh``."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from vmproxy import dokkucalls, dokkufacts
from vmproxy.dokkucalls import Action, Answer, Call, Step
from vmproxy.dokkufacts import DokkuFacts
from vmproxy.errors import Busy, Interrupted, LostContact, Refused, RolledBack, VmproxyError
from vmproxy.machines import Conversation
from vmproxy.machines.frames import Frame
from vmproxy.model import printable
from vmproxy.preview import redact
from vmproxy.session import Session

SCRIPT = "dokku.sh"
CALL_SECONDS = 320.0
"""The longest silence: one call of Dokku's, which the script ends after 300 s."""


class Moved(Exception):
    """Somebody else changed Dokku's config between look and lock; nothing was changed."""


class DokkuHost:
    """One Dokku host over an open session."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self.known = False
        """Whether the last look found our record."""

    def look(self) -> DokkuFacts:
        """Two rounds of questions, nothing is changed. Raises Refused where there is no Dokku, or an old one."""
        self._session.tell("asking Dokku")
        first = self._ask(dokkufacts.first_questions())
        second = self._ask(dokkufacts.second_questions(first))
        facts = dokkufacts.read(first, second)
        self.known = bool(facts.record)
        return facts

    def run(self, call: Call) -> Answer:
        """One call, whatever it answers."""
        return self._ask((call,))[0][1]

    def change(
        self,
        steps: Iterable[Step],
        expect: Sequence[tuple[Action, Answer]] = (),
        *,
        hidden: tuple[str, ...] = (),
    ) -> None:
        """Carry steps out, all or none. Raises Moved, Busy, RolledBack, LostContact."""
        self._session.tell("telling Dokku")
        timeout = self._session.settings.lock_timeout_seconds
        data = dokkucalls.tell(steps, expect=expect, lock_timeout_seconds=timeout)
        with self._session.machine.converse(SCRIPT, data) as talk:
            listener = _Listener(hidden)
            try:
                listener.hear(talk)
            except KeyboardInterrupt as signal:
                talk.end_input()  # the VM puts everything back; we stay to hear that it did
                listener.hear(talk)
                if listener.words[:1] == ("kept",):
                    text = "interrupted when Dokku's part was done already"
                    raise LostContact(text, where=self._session.name, hint="vmproxy dokku status") from None
                if listener.words[:1] == ("undone",):
                    if isinstance(signal, Interrupted):
                        signal.rolled_back = True
                    raise
            except LostContact as lost:
                text = f"{lost.what}; the VM puts Dokku's config back by itself"
                raise LostContact(text, where=lost.where, hint="vmproxy dokku status") from lost
        listener.judge(self._session.name)

    def _ask(self, actions: Sequence[Action]) -> tuple[tuple[Action, Answer], ...]:
        if not actions:
            return ()
        answers: list[Answer] = []
        complaint = b""
        words: tuple[str, ...] = ()
        with self._session.machine.converse(SCRIPT, dokkucalls.ask(actions)) as talk:
            for frame in talk.frames(CALL_SECONDS):
                if frame.kind == "complaint":
                    complaint = frame.body
                elif frame.kind == "said":
                    answers.append(Answer(status=_number(frame), stdout=frame.body, complaint=complaint))
                    complaint = b""
                elif frame.kind == "result":
                    words = frame.words[1:]
        if words[:1] != ("told",):
            raise _refusal(words, self._session.name)
        if len(answers) != len(actions):
            raise LostContact("Dokku's answers do not arrive whole")
        return tuple(zip(actions, answers, strict=True))


class _Listener:
    """Hears how a change goes."""

    def __init__(self, hidden: tuple[str, ...]) -> None:
        self._hidden = hidden
        self._complaint = b""
        self.words: tuple[str, ...] = ()

    def hear(self, talk: Conversation) -> None:
        """Until the last word."""
        for frame in talk.frames(CALL_SECONDS):
            if frame.kind == "complaint":
                self._complaint = frame.body
            elif frame.kind == "result":
                self.words = frame.words[1:]
                return

    def judge(self, name: str) -> None:
        """What the last word means."""
        status = self.words[0] if self.words else ""
        if status == "kept":
            return
        if status == "moved":
            raise Moved
        complaint = self._complaint.decode("utf-8", "replace").strip().lstrip("! ")
        said = printable(redact(complaint, self._hidden), limit=100)
        if status == "undone":
            raise RolledBack(
                f"Dokku refuses: {said or 'it does not say why'}; everything was put back",
                where=name,
                hint="vmproxy dokku status",
            )
        if status == "incomplete":
            raise RolledBack(
                f"ROLLBACK INCOMPLETE: Dokku refuses: {said}", where=name, hint="vmproxy dokku status", complete=False
            )
        raise _refusal(self.words, name)


def restart_apps(host: DokkuHost) -> str:
    """``dokku ps:restart --all``; one line where it fails, else ""."""
    answer = host.run(Call(words=("ps:restart", "--all")))
    if answer.status == 0:
        return ""
    return printable(answer.complaint.strip().lstrip(b"! ") or b"dokku ps:restart --all fails", limit=150)


def _number(frame: Frame) -> int:
    word = frame.words[2] if len(frame.words) > 2 else ""
    return int(word) if word.isascii() and word.isdigit() and len(word) < 4 else 255


def _refusal(words: tuple[str, ...], name: str) -> VmproxyError:
    status = words[0] if words else ""
    text = printable(" ".join(words[2:]))
    if status == "absent":
        return Refused("there is no Dokku in this VM", where=name, hint="vmproxy apply is for a VM without Dokku")
    if status == "refused":
        return Refused(text, where=name)
    if status == "busy":
        return Busy(text, where=name, hint="try again, or --lock-timeout S")
    return LostContact("the conversation with Dokku ended in the middle", where=name, hint="vmproxy dokku status")
