"""A session side by side with others: what a signal to another thread does to it. The machine is a stand-in."""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from vmproxy import converge, session
from vmproxy.cli.common import failed
from vmproxy.errors import Interrupted, LostContact, NotPermitted, Unreachable, Untrusted, VmproxyError
from vmproxy.machines import Look, Outcome, Terms
from vmproxy.model import Plan, Settings, Target
from vmproxy.stopping import Stop
from vmproxy.transports import SshOptions

SECONDS = 60


class Machine:
    """Notes what it is told; ``commit`` ends as it is told to."""

    def __init__(self) -> None:
        self.told: list[str] = []
        self.outcome: Callable[[], Outcome] = lambda: Outcome(status="kept")
        self.changing = False

    def begin(self, _look: Look, *, change: bool = False) -> None:
        self.told.append("begin")

    def commit(self, _plan: Plan, _terms: Terms, **_words: object) -> Outcome:
        return self.outcome()

    def interrupt(self) -> bool:
        self.told.append("interrupt")
        return self.changing

    def close(self) -> None:
        self.told.append("close")


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    """What every session connects to."""
    made = Machine()
    monkeypatch.setattr(session.Session, "_connect", lambda _self, _target: made)
    return made


def opened(stop: Stop | None, **words: Any) -> session.Session:
    """A session whose look is never answered."""
    return session.Session(
        "ssh://u@192.0.2.1", Settings(), tell=str, news=str, ask=words.pop("ask", None), stop=stop, **words
    )


def commit(one: session.Session) -> Outcome:
    """A change that changes nothing."""
    return one.commit(Plan(), Terms(look=Look()), judge=bool, verdict=bool)


@pytest.mark.parametrize("stop", [None, Stop()], ids=["alone", "side by side"])
def test_f31_a_transport_knows_that_others_are_at_work(stop: Stop | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that ssh asks nothing on a terminal that is not its own."""
    seen: list[SshOptions] = []

    def connect(_target: Target, *, options: SshOptions, first: str) -> None:
        seen.append(options)

    loaded = SimpleNamespace(connect=connect, open=lambda _connection, **_: Machine(), first_command=lambda **_: "")
    monkeypatch.setattr("vmproxy.transports.load", lambda _name: loaded)
    monkeypatch.setattr("vmproxy.machines.load", lambda _name: loaded)
    with opened(stop, ask=str):
        assert [options.side_by_side for options in seen] == [stop is not None]


@pytest.mark.parametrize("status", ["gone", "busy", "undone", "refused", "moved"])
def test_f28_a_change_that_ended_as_it_began_is_the_signals(machine: Machine, status: str) -> None:
    """Whatever word the VM has for the end of our input: side by side, too, it is 128 + n; without a signal the word
    itself counts."""
    stop = Stop()
    machine.changing = True

    def signalled() -> Outcome:
        stop.set(15)
        return Outcome(status=status, exit=9)

    with opened(stop) as one:
        machine.outcome = lambda: Outcome(status=status)
        assert commit(one).status == status
        machine.outcome = signalled
        with pytest.raises(Interrupted) as caught:
            commit(one)
    assert caught.value.exit == 128 + 15
    assert caught.value.rolled_back is (status == "undone")


@pytest.mark.parametrize("status", ["kept", "incomplete"])
def test_f28_a_change_that_is_there_is_not_denied(machine: Machine, status: str) -> None:
    """What was kept, or could not be put back, is said as it is."""
    stop = Stop()
    machine.changing = True

    def signalled() -> Outcome:
        stop.set(15)
        return Outcome(status=status)

    machine.outcome = signalled
    with opened(stop) as one:
        assert commit(one).status == status
    assert "interrupt" in machine.told


def test_f28_a_signal_after_a_change_says_that_it_stays(machine: Machine) -> None:
    """At the question whether Docker may be restarted, or in that restart: the change before it is not denied, and it
    is not said that all was put back."""
    kept = Outcome(status="kept")
    machine.outcome = lambda: kept

    def told() -> None:
        with opened(None) as one:
            commit(one)
            raise Interrupted(2, rolled_back=True)

    with pytest.raises(Interrupted) as caught:
        told()
    assert str(caught.value.what) == "interrupted; the change was made before, and stays"
    report = failed("box", caught.value)
    assert (report.changed, report.rolled_back, report.exit) == (True, False, 130)
    assert report.hint == "vmproxy status"


def test_f28_the_end_of_a_session_waits_for_its_interruption(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """A VM that is being let go by the other thread is let go before the story ends; then no signal comes to it."""
    stop = Stop()
    begun, go = threading.Event(), threading.Event()

    def interrupt() -> bool:
        begun.set()
        assert go.wait(SECONDS)
        machine.told.append("interrupt")
        return False

    join = threading.Thread.join

    def joined(thread: threading.Thread, timeout: float | None = None) -> None:
        go.set()
        join(thread, timeout)

    monkeypatch.setattr(threading.Thread, "join", joined)
    monkeypatch.setattr(machine, "interrupt", interrupt)

    def told() -> None:
        with opened(stop):
            stop.set(2)
            assert begun.wait(SECONDS)
            raise LostContact("let go")

    with pytest.raises(Interrupted):
        told()
    assert machine.told == ["interrupt", "close", "close"]


def test_f28_a_session_whose_begin_fails_is_forgotten(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """A signal that comes later is nothing to it: it holds no VM any more."""
    stop = Stop()

    def begin(_look: Look, *, change: bool = False) -> None:
        raise NotPermitted("no root")

    monkeypatch.setattr(machine, "begin", begin)
    with pytest.raises(NotPermitted):
        converge.status("ssh://u@192.0.2.1", Settings(), stop=stop)
    stop.set(2)
    assert machine.told == ["close"]


@pytest.mark.parametrize("kind", [NotPermitted, Unreachable, LostContact, Untrusted])
def test_f28_a_log_in_that_is_cut_off_is_the_signals(kind: type[VmproxyError], monkeypatch: pytest.MonkeyPatch) -> None:
    """What ends a log-in at a signal looks like a VM that says no, or nothing at all: it is 128 + n. That somebody else
    has taken the VM's place is said all the same."""
    stop = Stop()

    def connect(_target: Target, *, options: SshOptions, first: str) -> None:
        cut = threading.Event()
        with options.stoppable(cut.set):
            stop.set(2)
            assert cut.wait(SECONDS)
            raise kind("not let in")

    loaded = SimpleNamespace(connect=connect, open=None, first_command=lambda **_: "")
    monkeypatch.setattr("vmproxy.transports.load", lambda _name: loaded)
    monkeypatch.setattr("vmproxy.machines.load", lambda _name: loaded)
    with pytest.raises(kind if kind is Untrusted else Interrupted):
        opened(stop)
