"""SIGINT, SIGTERM and SIGHUP become one ``Interrupted``, so that the story can put things back before it ends."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

from vmproxy.errors import Interrupted

_NAMES = ("SIGINT", "SIGTERM", "SIGHUP")
_listener: Callable[[int], bool] | None = None


@contextmanager
def as_interruption() -> Iterator[None]:
    """While this holds, the first signal raises ``Interrupted`` in the main thread and every later one is held.

    Held means forgotten: putting back must not be cut short by an impatient second Ctrl-C, and its own waits are all
    bounded. A signal that was ignored when we started (``nohup``) stays ignored.

    Python runs the handler wherever it happens to be. In a destructor or a weak reference's callback (every import
    ends in one) it drops what is raised, and tells only ``sys.unraisablehook``: then the signal is sent once more.
    """
    raised = False

    def handle(number: int, _frame: FrameType | None) -> None:
        nonlocal raised
        if not raised:
            raised = True
            if _listener is None or not _listener(number):
                raise Interrupted(number)

    usual_hook = sys.unraisablehook

    def dropped(unraisable: sys.UnraisableHookArgs) -> None:
        nonlocal raised
        if not isinstance(unraisable.exc_value, Interrupted):
            usual_hook(unraisable)
            return
        raised = False
        _once_more(unraisable.exc_value.number)

    before = {}
    for name in _NAMES:
        number = getattr(signal, name, None)  # Windows has no SIGHUP
        if number is None or signal.getsignal(number) is signal.SIG_IGN:
            continue
        with suppress(ValueError):  # not the main thread: then nobody sends us signals either
            before[number] = signal.signal(number, handle)
    sys.unraisablehook = dropped
    try:
        yield
    finally:
        sys.unraisablehook = usual_hook
        for number, old in before.items():
            signal.signal(number, old)


@contextmanager
def heard_by(listener: Callable[[int], bool]) -> Iterator[None]:
    """While this holds ``listener`` gets the signal's number, wherever the main thread happens to be, and says whether
    that is enough: then nothing is raised."""
    global _listener  # noqa: PLW0603
    before, _listener = _listener, listener
    try:
        yield
    finally:
        _listener = before


def _once_more(number: int) -> None:
    """Send ourselves a signal in a moment, when the callback that dropped the last one is over."""
    import _thread
    import threading

    def send() -> None:
        if not hasattr(signal, "pthread_kill"):  # Windows
            _thread.interrupt_main(signal.Signals(number))
        elif callable(signal.getsignal(number)):  # else nobody waits for it any more, and it would end us
            main = threading.main_thread().ident
            assert main is not None  # noqa: S101 - it runs
            signal.pthread_kill(main, number)  # a real one: it ends what that thread waits in

    later = threading.Timer(0.01, send)
    later.daemon = True
    later.start()
