"""``--jobs``: several VMs at a time. The stories are stand-ins; what tells, asks and ends them is real."""

from __future__ import annotations

import json
import linecache
import os
import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType, SimpleNamespace
from typing import Any

import pytest

import vmproxy
from vmproxy import errors
from vmproxy.cli import common, output, sidebyside
from vmproxy.cli.edge import run
from vmproxy.model import Event, Report, Settings
from vmproxy.stopping import Stop

SECONDS = 60
Story = Callable[..., Report]


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Callable[[Story], None]:
    """``told(story)``: from then on ``apply`` and ``status`` tell that story."""

    def tell(story: Story) -> None:
        module = SimpleNamespace(apply=story, status=story)
        monkeypatch.setitem(sys.modules, "vmproxy.converge", module)
        monkeypatch.setattr(vmproxy, "converge", module, raising=False)

    return tell


def test_so_many_at_a_time_and_no_more(told: Callable[[Story], None], capsys: pytest.CaptureFixture[str]) -> None:
    """With --jobs 3 three stories run at once, never four; the object has them in the order of --vm."""
    three = threading.Barrier(3)
    lock = threading.Lock()
    running: set[str] = set()
    most = []

    def story(target: str, _settings: Settings, **_words: Any) -> Report:
        with lock:
            running.add(target)
            most.append(len(running))
        three.wait(SECONDS)
        with lock:
            running.discard(target)
        return Report(target=target, message="in sync", changed=target == "e")

    told(story)
    names = ["f", "e", "d", "c", "b", "a"]
    assert run(["apply", "--jobs", "3", "--vm", ",".join(names), "--json"]) == 0
    assert [vm["vm"] for vm in json.loads(capsys.readouterr().out)["vms"]] == names
    assert max(most) == 3
    assert run(["apply", "--jobs", "3", "--vm", ",".join(names)]) == 0
    said = capsys.readouterr()
    assert sorted(said.out.splitlines()) == [f"{name}: in sync" for name in sorted(names)]
    assert said.err.splitlines()[-1] == "6 of 6 VMs well; 1 changed"


def test_one_failing_vm_does_not_stop_the_others(
    told: Callable[[Story], None],
    capsys: pytest.CaptureFixture[str],
    tmp_path: object,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An error and even a bug are that VM's own; the highest exit code counts, and one line names who is not well."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    def story(target: str, _settings: Settings, **_words: Any) -> Report:
        if target == "lost":
            raise errors.LostContact("contact was lost")
        if target == "bug":
            raise ZeroDivisionError
        return Report(target=target, message="in sync")

    told(story)
    assert run(["status", "--jobs", "9", "--vm", "a,lost,b,c"]) == 9
    said = capsys.readouterr()
    assert sorted(said.out.splitlines()) == ["a: in sync", "b: in sync", "c: in sync"]
    assert "vmproxy: error: lost: contact was lost" in said.err
    assert said.err.splitlines()[-1] == "3 of 4 VMs well; not well: lost"
    assert run(["status", "--jobs", "9", "--vm", "a,bug,b", "--json"]) == 70
    assert [vm["exit"] for vm in json.loads(capsys.readouterr().out)["vms"]] == [0, 70, 0]


def test_questions_and_steps_come_to_the_main_thread_one_at_a_time(
    told: Callable[[Story], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each story gets the answer to its own question; nobody but the main thread speaks."""
    speakers = set()
    answers = {}

    def ask(_self: output.Output, question: str) -> str:
        speakers.add(threading.current_thread())
        return question.upper()

    def progress(_self: output.Output, _event: Event) -> None:
        speakers.add(threading.current_thread())

    def story(target: str, _settings: Settings, **words: Any) -> Report:
        words["progress"](Event(target=target, text="looking"))
        answers[target] = words["ask"](f"password of {target}")
        return Report(target=target)

    monkeypatch.setattr(common, "may_ask", lambda: True)
    monkeypatch.setattr(output.Output, "ask", ask)
    monkeypatch.setattr(output.Output, "progress", progress)
    told(story)
    assert run(["status", "--jobs", "4", "--vm", "a,b,c,d"]) == 0
    assert answers == {name: f"PASSWORD OF {name.upper()}" for name in "abcd"}
    assert speakers == {threading.main_thread()}


@pytest.mark.parametrize("asking", [False, True])
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_f28_a_signal_stops_those_that_run_and_begins_no_other(
    name: str,
    asking: bool,
    told: Callable[[Story], None],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each running story puts back and is heard, whether the main thread waits or asks; exit 128 + n."""
    number = getattr(signal, name)
    two = threading.Barrier(2)
    put_back = []

    def ask(_self: output.Output, _question: str) -> str:
        os.kill(os.getpid(), number)
        signal.sigtimedwait([], SECONDS)
        pytest.fail("the signal did not interrupt")

    def story(target: str, _settings: Settings, *, stop: Stop, **words: Any) -> Report:
        two.wait(SECONDS)
        try:
            if target == "a":
                if asking:
                    words["ask"]("password")
                else:
                    os.kill(os.getpid(), number)
            stop.wait(SECONDS)
        except errors.Interrupted:
            put_back.append(target)
            raise
        pytest.fail("it was not stopped")

    monkeypatch.setattr(common, "may_ask", lambda: True)
    monkeypatch.setattr(output.Output, "ask", ask)
    told(story)
    before = signal.getsignal(number)
    assert run(["apply", "--jobs", "2", "--vm", "a,b,c,d"]) == 128 + number
    assert sorted(put_back) == ["a", "b"]
    assert capsys.readouterr().err.splitlines()[-1] in {
        f"0 of 4 VMs well; not well: {names}; 2 not begun" for names in ("a, b", "b, a")
    }
    assert signal.getsignal(number) is before


@pytest.mark.parametrize("late", [False, True], ids=["while asking", "behind the answer"])
def test_f28_no_story_waits_for_ever_for_an_answer(
    late: bool, told: Callable[[Story], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever the signal meets the main thread, the story that has asked gets its answer and is ended."""
    answers: list[object] = []
    lines: list[str] = []

    def signalled(frame: FrameType, event: str, _argument: object) -> Any:
        if event == "line" and linecache.getline(frame.f_code.co_filename, frame.f_lineno).strip() == "asked = False":
            sys.settrace(None)
            frame.f_trace = None
            lines.append("met")
            os.kill(os.getpid(), signal.SIGTERM)
        return signalled

    def ask(_self: output.Output, _question: str) -> str:
        if late:
            frame = sys._getframe(1)
            frame.f_trace = signalled
            sys.settrace(signalled)
        else:
            os.kill(os.getpid(), signal.SIGTERM)
        return "secret"

    def story(target: str, _settings: Settings, *, stop: Stop, **words: Any) -> Report:
        answers.append(words["ask"]("password"))
        stop.wait(SECONDS)
        return Report(target=target, message="not stopped")

    monkeypatch.setattr(common, "may_ask", lambda: True)
    monkeypatch.setattr(output.Output, "ask", ask)
    told(story)
    assert run(["apply", "--jobs", "2", "--vm", "a,b"]) == 128 + signal.SIGTERM
    assert len(answers) == 2
    assert lines == (["met"] if late else [])


def test_an_answer_that_cannot_be_read_is_none(
    told: Callable[[Story], None], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Bytes that are no text, or a terminal that is gone, end no other story: the question stays without an answer."""
    answers = {}

    def ask(_self: output.Output, question: str) -> str:
        raise UnicodeDecodeError("utf-8", b"\xff", 0, 1, question)

    def story(target: str, _settings: Settings, **words: Any) -> Report:
        answers[target] = words["ask"]("password")
        return Report(target=target, message="in sync")

    monkeypatch.setattr(common, "may_ask", lambda: True)
    monkeypatch.setattr(output.Output, "ask", ask)
    told(story)
    assert run(["status", "--jobs", "2", "--vm", "a,b"]) == 0
    assert answers == {"a": None, "b": None}
    said = capsys.readouterr()
    assert sorted(said.out.splitlines()) == ["a: in sync", "b: in sync"]
    assert "UnicodeDecodeError" in said.err


def test_a_stop_calls_whom_it_is_to_wake_and_lets_nobody_begin_after_it() -> None:
    """What is registered is called once; who comes later is turned away."""
    stop = Stop()
    called = []
    with stop.calling(lambda: called.append("within")):
        with stop.calling(lambda: called.append("gone")):
            pass
        stop.set(2)
    assert called == ["within"]
    for late in (stop.check, lambda: stop.wait(0), lambda: stop.calling(lambda: None).__enter__()):
        with pytest.raises(errors.Interrupted):
            late()


def test_a_stop_makes_its_calls_at_once_and_none_keeps_another_from_being_made() -> None:
    """One VM that takes its time, or fails, keeps no other one waiting; a second signal calls nobody again."""
    stop = Stop()
    three = threading.Barrier(3)
    met = []

    def call() -> None:
        met.append(three.wait(SECONDS))

    def bad() -> None:
        three.wait(SECONDS)
        raise ZeroDivisionError

    with stop.calling(call), stop.calling(bad), stop.calling(call):
        stop.set(2)
        stop.set(15)
    assert len(met) == 2
    assert stop.number == 2


def test_a_signal_before_all_are_called_calls_no_more(
    told: Callable[[Story], None], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A few VMs are called ahead, the others when the SSH library is there: after a signal in between, none is."""
    begun = []

    def story(target: str, _settings: Settings, *, stop: Stop, **_words: Any) -> Report:
        begun.append(target)
        stop.wait(SECONDS)
        raise AssertionError("the signal was not heard")

    told(story)
    monkeypatch.setattr(sidebyside._library, "wait", lambda: os.kill(os.getpid(), signal.SIGINT))
    names = [f"vm{number}" for number in range(20)]
    assert run(["apply", "--jobs", "20", "--vm", ",".join(names)]) == 130
    assert sorted(begun) == sorted(names[: sidebyside._AHEAD])
    assert capsys.readouterr().err


def test_a_library_that_cannot_be_imported_is_each_vms_own(
    told: Callable[[Story], None], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The stories that need it say so; the others are told to their end."""

    def story(target: str, _settings: Settings, **_words: Any) -> Report:
        return Report(target=target, message="in sync")

    def broken() -> None:
        raise ImportError("no paramiko")

    told(story)
    monkeypatch.setattr(sidebyside._library, "wait", broken)
    names = [f"vm{number}" for number in range(12)]
    assert run(["apply", "--jobs", "12", "--vm", ",".join(names)]) == 0
    assert capsys.readouterr().err.splitlines()[-1] == "12 of 12 VMs well"
