"""What a VM says when Dokku is asked and told: answers taken whole or not at all, every last word has its meaning."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from vmproxy import dokkucalls
from vmproxy.dokkucalls import Answer, Call
from vmproxy.dokkuhost import DokkuHost, Moved, restart_apps
from vmproxy.errors import Busy, LostContact, Refused, RolledBack, VmproxyError
from vmproxy.machines.frames import Frame
from vmproxy.model import Settings

SECRET = "hunter22"


class Talk:
    """A conversation that says these frames; ``after`` are those that come once its input has ended."""

    def __init__(self, frames: list[Any], after: list[Any]) -> None:
        self._frames, self._after, self.ended = frames, after, False

    def __enter__(self) -> Talk:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def end_input(self) -> None:
        self.ended = True

    def frames(self, _silence: float) -> Iterator[Frame]:
        for one in self._after if self.ended else self._frames:
            if isinstance(one, BaseException):
                raise one
            words, body = one if isinstance(one, tuple) else (one, b"")
            yield Frame(words=tuple(words.split()), body=body)


def host(*frames: Any, after: tuple[Any, ...] = ()) -> DokkuHost:
    """Dokku in a VM that says this."""
    machine = SimpleNamespace(converse=lambda _script, _data: Talk(list(frames), list(after)))
    session: Any = SimpleNamespace(machine=machine, name="vm", settings=Settings(), tell=lambda _text: None)
    return DokkuHost(session)


def test_answers_come_with_their_complaints() -> None:
    """Status, stdout to the byte, and of one that failed what it complained of."""
    said = host(("complaint 0", b" !     no\n"), ("said 0 20", b""), "result told 0")
    assert said.run(dokkucalls.apps()) == Answer(status=20, complaint=b" !     no\n")
    assert host(("said 0 0", b"\n@x\n"), "result told 0").run(dokkucalls.apps()).stdout == b"\n@x\n"


@pytest.mark.parametrize(
    "frames",
    [
        [], ["result told 0"], [("said 0 0", b"a")], [("said 0 0", b"a"), ("said 1 0", b"b"), "result told 0"],
        ["result gone 9"], ["result nonsense"], ["result"],
    ],
)  # fmt: skip
def test_answers_that_are_not_whole_are_lost_contact(frames: list[Any]) -> None:
    """Nothing is made up for an answer that is missing, and none too many is taken."""
    with pytest.raises(LostContact):
        host(*frames).run(dokkucalls.apps())


@pytest.mark.parametrize("status", ["", "x", "-1", "99999", "\u0661"])
def test_a_status_that_is_none_is_a_failure(status: str) -> None:
    """255, whatever a hostile VM says."""
    assert host((f"said 0 {status}", b""), "result told 0").run(dokkucalls.apps()).status == 255


@pytest.mark.parametrize(
    ("frames", "kind", "text"),
    [
        (["result absent 6"], Refused, "there is no Dokku"),
        (["result refused 6 /run/vmproxy is not ours"], Refused, "/run/vmproxy is not ours"),
        (["result busy 8 another vmproxy run holds it"], Busy, "another vmproxy run"),
        (["result moved 6"], Moved, ""),
        ([("complaint", f" ! bad {SECRET}\x1b[1m\n".encode()), "result undone 7 2"], RolledBack, "refuses: bad ***"),
        (["result undone 9 interrupted"], RolledBack, "everything was put back"),
        ([("complaint", b" !     bad\n"), "result incomplete 7 2"], RolledBack, "ROLLBACK INCOMPLETE"),
        (["step 0"], LostContact, "ended in the middle"),
        ([LostContact("silence")], LostContact, "puts Dokku's config back by itself"),
    ],
)
def test_the_last_word_of_a_change(frames: list[Any], kind: type[Exception], text: str) -> None:
    """Each is its own error; what Dokku complains of is made printable, without passwords."""
    with pytest.raises(kind) as caught:
        host(*frames).change((), hidden=(SECRET,))
    said = str(caught.value)
    assert text in said
    assert SECRET not in said
    assert "\x1b" not in said
    if isinstance(caught.value, VmproxyError):
        assert caught.value.hint


def test_a_change_that_is_kept() -> None:
    """Nothing is raised."""
    host("step 0", "result kept 0").change(())


def test_interrupted_it_stays_to_hear_the_end() -> None:
    """The end of input is the VM's sign to put back: then the interrupt goes on; done or not heard is said."""
    with pytest.raises(KeyboardInterrupt):
        host("step 0", KeyboardInterrupt(), after=("result undone 9 interrupted",)).change(())
    with pytest.raises(LostContact, match="done already"):
        host(KeyboardInterrupt(), after=("result kept 0",)).change(())
    with pytest.raises(RolledBack, match="INCOMPLETE"):
        host(KeyboardInterrupt(), after=("result incomplete 9 interrupted",)).change(())
    with pytest.raises(LostContact):
        host(KeyboardInterrupt(), after=()).change(())


def test_apps_that_do_not_start_again() -> None:
    """One line of Dokku's own, "" where all is well."""
    assert restart_apps(host(("said 0 0", b""), "result told 0")) == ""
    failing = host(("complaint 0", b" !     web\x07 failed\n"), ("said 0 1", b""), "result told 0")
    assert restart_apps(failing) == "web\\x07 failed"
    assert "fails" in restart_apps(host(("said 0 1", b""), "result told 0"))


def test_words_are_printable_ascii() -> None:
    """Data whose words are not ours is never sent."""
    for word in ("a\nb", "ä", ""):
        with pytest.raises(AssertionError):
            dokkucalls.ask((Call(words=(word,)),))
