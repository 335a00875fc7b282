"""SIGINT, SIGTERM and SIGHUP become one ``Interrupted``, so that the story can put things back before it ends."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

from vmproxy.errors import Interrupted

_NAMES = ("SIGINT", "SIGTERM", "SIGHUP")


@contextmanager
def as_interruption() -> Iterator[None]:
    """While this holds, the first signal raises ``Interrupted`` in the main thread and every later one is held.

    Held means forgotten: putting back must not be cut short by an impatient second Ctrl-C, and its own waits are all
    bounded. A signal that was ignored when we started (``nohup``) stays ignored.
    """
    raised = False

    def handle(number: int, _frame: FrameType | None) -> None:
        nonlocal raised
        if not raised:
            raised = True
            raise Interrupted(number)

    before = {}
    for name in _NAMES:
        number = getattr(signal, name, None)  # Windows has no SIGHUP
        if number is None or signal.getsignal(number) is signal.SIG_IGN:
            continue
        with suppress(ValueError):  # not the main thread: then nobody sends us signals either
            before[number] = signal.signal(number, handle)
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)
