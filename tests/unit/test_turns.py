"""Near VMs are looked at a few at a time; a far one, and VMs that do not answer, hold nobody up."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from tests.unit.test_session_stop import opened
from vmproxy import session, transports
from vmproxy.errors import Interrupted, Unreachable
from vmproxy.machines import Look
from vmproxy.model import Facts, Settings, Target
from vmproxy.stopping import Stop
from vmproxy.transports import SshOptions
from vmproxy.transports._tcp import round_trip
from vmproxy.turns import NEAR_SECONDS, Turns

LONG = 60.0


def waiting(turns: Turns) -> threading.Event:
    """Somebody who waits for a turn; set when it has come."""
    come = threading.Event()

    def take() -> None:
        turns.take()
        come.set()

    threading.Thread(target=take, daemon=True).start()
    return come


def test_so_many_at_once() -> None:
    """The turns there are are given without waiting; the next one comes when one is given back, and no further one."""
    turns = Turns(at_once=2, still_seconds=LONG)
    turns.take()
    turns.take()
    third, fourth = waiting(turns), waiting(turns)
    assert not third.wait(0.2) and not fourth.is_set()
    turns.give()
    deadline = time.monotonic() + LONG
    while not (third.is_set() or fourth.is_set()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    time.sleep(0.2)
    assert third.is_set() != fourth.is_set()
    turns.reached(None)
    assert third.wait(LONG) and fourth.wait(LONG)


@pytest.mark.parametrize("seconds", [None, NEAR_SECONDS * 1.01, 0.05])
def test_a_far_vm_opens_the_gate(seconds: float | None) -> None:
    """For those who wait and for all who come; where it cannot be told how far it is, too."""
    turns = Turns(at_once=1, still_seconds=LONG)
    turns.take()
    come = waiting(turns)
    turns.reached(seconds)
    assert come.wait(LONG)
    turns.take()


def test_a_near_vm_does_not() -> None:
    """A third of a millisecond is this host."""
    turns = Turns(at_once=1, still_seconds=LONG)
    turns.take()
    turns.reached(0.0003)
    assert not waiting(turns).wait(0.2)
    turns.reached(None)


def test_vms_that_do_not_answer_hold_nobody_up() -> None:
    """Where nothing moves for a while, the rest go on without turns, all at once."""
    turns = Turns(at_once=2, still_seconds=0.05)
    for _ in range(2):
        turns.take()
    assert all(come.wait(LONG) for come in [waiting(turns) for _ in range(20)])


class Counting(Turns):
    """Knows how many turns are out, and what was reached."""

    def __init__(self) -> None:
        super().__init__()
        self.out = 0
        self.far: list[float | None] = []

    def take(self) -> None:
        self.out += 1

    def give(self) -> None:
        self.out -= 1

    def reached(self, round_trip_seconds: float | None) -> None:
        self.far.append(round_trip_seconds)


class Machine:
    """Answers every look; ``open`` counts the turns that are out meanwhile."""

    def __init__(self, stop: Stop) -> None:
        self.stop = stop
        self.seen: list[int] = []

    def observe(self, _look: Look) -> Facts:
        self.seen.append(self.stop.turns.out)  # type: ignore[attr-defined]
        return Facts()

    def interrupt(self) -> bool:
        return False

    def close(self) -> None:
        """Nothing to close."""


Connect = Callable[..., Any]


@pytest.fixture
def stop() -> Stop:
    """One for many VMs, whose turns are counted."""
    made = Stop()
    made.turns = Counting()
    return made


def connected_by(monkeypatch: pytest.MonkeyPatch, stop: Stop, connect: Connect) -> Machine:
    """Have every session connect so."""

    class Loaded:
        """A transport and a machine."""

        made = Machine(stop)

        def connect(self, target: Target, *, options: SshOptions, first: str) -> None:
            connect(options)

        def open(self, _connection: None, *, first: str) -> Machine:
            return self.made

        def first_command(self, **_: object) -> str:
            return ""

    loaded = Loaded()
    monkeypatch.setattr(transports, "load", lambda _name: loaded)
    monkeypatch.setattr(session.machines, "load", lambda _name: loaded)
    return loaded.made


def test_a_turn_is_from_the_dial_to_the_first_answer(monkeypatch: pytest.MonkeyPatch, stop: Stop) -> None:
    """Later looks, and a change, need none; how far the VM is gets to the turns."""
    machine = connected_by(monkeypatch, stop, lambda options: options.reached(0.0001))
    assert isinstance(stop.turns, Counting)
    with opened(stop) as one:
        assert stop.turns.out == 1 and stop.turns.far == [0.0001]
        one.observe(Look())
        one.observe(Look())
        assert machine.seen == [1, 0]
        assert stop.turns.out == 0
    assert stop.turns.out == 0


def test_whoever_fails_gives_it_back(monkeypatch: pytest.MonkeyPatch, stop: Stop) -> None:
    """A VM that is not there, and one that is closed without a look."""
    assert isinstance(stop.turns, Counting)
    connected_by(monkeypatch, stop, lambda _options: None)
    opened(stop).close()
    assert stop.turns.out == 0

    def refuse(_options: SshOptions) -> None:
        raise Unreachable("no answer")

    connected_by(monkeypatch, stop, refuse)
    with pytest.raises(Unreachable):
        opened(stop)
    assert stop.turns.out == 0


def test_f28_a_signal_while_a_vm_does_not_answer_is_what_ended_it(monkeypatch: pytest.MonkeyPatch, stop: Stop) -> None:
    """Not the VM's silence: the exit code is the signal's, and the turn is given back."""
    assert isinstance(stop.turns, Counting)

    def silent(_options: SshOptions) -> None:
        stop.set(2)
        raise Unreachable("no answer within 10 s")

    connected_by(monkeypatch, stop, silent)
    with pytest.raises(Interrupted):
        opened(stop)
    assert stop.turns.out == 0


def test_no_turns_for_one_vm_nor_for_programs(monkeypatch: pytest.MonkeyPatch, stop: Stop) -> None:
    """One VM has nobody to wait for; ssh programs take what processors there are by themselves."""
    assert isinstance(stop.turns, Counting)
    seen: list[int] = []
    connected_by(monkeypatch, stop, lambda _options: seen.append(stop.turns.out))  # type: ignore[attr-defined]
    opened(None).close()
    words: dict[str, Any] = {"tell": str, "news": str, "ask": None}
    session.Session("ssh://u@192.0.2.1", Settings(ssh="openssh"), stop=stop, **words).close()
    assert seen == [0, 0]


def test_the_kernel_knows_the_round_trip() -> None:
    """On this host it is well below what is near; of a socket that is not connected nothing is known, or nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as sock:
        found = round_trip(sock)
    assert found is not None and 0 <= found < LONG
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert round_trip(ours) is None
