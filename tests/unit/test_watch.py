"""One thread makes all calls whose time has come. Events with generous limits; nothing is measured."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from types import SimpleNamespace

import pytest

from vmproxy.transports import _watch
from vmproxy.transports._watch import Watch

SECONDS = 60
NEVER = 3600.0  # longer than any test


def threads(name: str) -> list[threading.Thread]:
    """Those of that name that live."""
    return [thread for thread in threading.enumerate() if thread.name == name]


def until(holds: Callable[[], bool]) -> None:
    """Wait until it holds."""
    limit = time.monotonic() + SECONDS
    while not holds():
        assert time.monotonic() < limit
        time.sleep(0.01)


def made(watch: Watch, seconds: float = 0.01) -> threading.Event:
    """A call that sets what this returns."""
    event = threading.Event()
    watch.add(seconds, event.set)
    return event


@pytest.mark.parametrize("seconds", [-1.0, 0.0, 0.05])
def test_a_call_is_made_when_its_time_has_come(seconds: float) -> None:
    """Once, in a thread of its own, be the time over already."""
    watch, called, where = Watch(), threading.Event(), list[str]()

    def call() -> None:
        where.append(threading.current_thread().name)
        called.set()

    token = watch.add(seconds, call)
    assert called.wait(SECONDS)
    watch.drop(token)  # as a block that ends just then does
    assert made(watch).wait(SECONDS)
    assert where == ["vmproxy late"]


def test_what_was_dropped_is_not_called(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its time comes, and that of one before and one behind it: these two are called. The clock is the test's."""
    clock = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(_watch, "time", SimpleNamespace(monotonic=lambda: clock.now))
    watch, called, before, behind = Watch(), list[str](), threading.Event(), threading.Event()
    watch.add(NEVER, before.set)
    tokens = [watch.add(NEVER + 1, lambda: called.append("dropped")) for _ in range(3)]
    watch.add(NEVER + 2, behind.set)
    for token in (*tokens, *tokens, object()):  # twice, and one that is none, are nothing
        watch.drop(token)
    clock.now += 2 * NEVER
    watch._ring()  # the thread sleeps by the machine's clock
    assert before.wait(SECONDS) and behind.wait(SECONDS)
    for thread in threads("vmproxy late"):
        thread.join(SECONDS)
    assert not called


def test_an_earlier_time_that_comes_later_is_not_waited_for_in_vain() -> None:
    """The thread sleeps for another's hour, and is woken for what is due before; the other is not made early."""
    watch = Watch()
    hour = made(watch, NEVER)
    until(lambda: 0 < watch._wakes < math.inf)
    assert made(watch, 0.2).wait(SECONDS)
    assert made(watch, 0.0).wait(SECONDS)
    assert not hour.is_set()


def test_an_idle_watch_is_woken() -> None:
    """Where all was made or dropped it sleeps without end, and still hears of the next one."""
    watch = Watch()
    for _ in range(3):
        assert made(watch).wait(SECONDS)
        until(lambda: watch._wakes == math.inf)


def test_a_call_that_blocks_holds_up_no_other() -> None:
    """Closing a connection may take its time: others whose time has come are made meanwhile."""
    watch, release, begun = Watch(), threading.Event(), threading.Event()

    def block() -> None:
        begun.set()
        release.wait(SECONDS)

    watch.add(0.0, block)
    assert begun.wait(SECONDS)
    try:
        assert [made(watch, seconds).wait(SECONDS) for seconds in (0.0, 0.01)] == [True, True]
        assert not release.is_set()
    finally:
        release.set()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_call_that_fails_is_its_own_affair() -> None:
    """What it raises ends its own thread, and no other call's."""
    watch, reached = Watch(), threading.Event()

    def fail() -> None:
        reached.set()
        raise RuntimeError("a call that fails")

    watch.add(0.0, fail)
    assert reached.wait(SECONDS)
    assert made(watch).wait(SECONDS)


def test_where_no_thread_is_to_be_had_calls_are_made_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """A limit on processes leaves no thread for a call: the watch makes it itself, and goes on."""
    watch = Watch()
    assert made(watch).wait(SECONDS)
    start, refused = threading.Thread.start, threading.Event()

    def refuse(thread: threading.Thread) -> None:
        if thread.name == "vmproxy late":
            refused.set()
            raise RuntimeError("can't start new thread")
        start(thread)

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        assert made(watch).wait(SECONDS)
        assert refused.is_set()
        assert made(watch).wait(SECONDS)
    assert made(watch).wait(SECONDS)


def test_hundreds_are_one_thread() -> None:
    """Of eight threads that add and drop by the hundred one watch comes; nothing of what was dropped is kept."""
    before = threads("vmproxy watch")
    watch, together = Watch(), threading.Barrier(8)

    def block() -> None:
        together.wait(SECONDS)
        for _ in range(100):
            tokens = [watch.add(NEVER, lambda: None) for _ in range(5)]
            for token in tokens:
                watch.drop(token)

    workers = [threading.Thread(target=block) for _ in range(8)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(SECONDS)
    assert not any(worker.is_alive() for worker in workers)
    assert not watch._calls
    (thread,) = set(threads("vmproxy watch")) - set(before)
    assert thread.daemon
    assert made(watch).wait(SECONDS)
    assert set(threads("vmproxy watch")) - set(before) == {thread}
