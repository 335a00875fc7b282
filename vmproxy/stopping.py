"""A signal for stories that run in threads: Python gives signals to the main thread alone."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from vmproxy.errors import Interrupted
from vmproxy.turns import Turns

_CALL_SECONDS = 180.0  # the longest call lets go of a Docker engine that does not answer


class Stop:
    """Set once, by the thread that got the signal; the stories ask it wherever they begin a step, or wait in it.

    ``turns`` are for what only some of them do at a time.
    """

    def __init__(self) -> None:
        self.number = 0
        self.turns = Turns()
        self._event = threading.Event()
        self._lock = threading.Lock()
        self._calls: dict[object, Callable[[], None]] = {}
        self._made: dict[object, threading.Thread] = {}

    @property
    def is_set(self) -> bool:
        """Whether the signal came."""
        return self._event.is_set()

    def set(self, number: int) -> None:
        """Signal ``number`` came: wake whoever waits, and make every call that :meth:`calling` knows, all at once, each
        in a thread of its own: none waits for another one's VM. Once is enough."""
        self.number = self.number or number
        with self._lock:
            if self._event.is_set():
                return
            self._event.set()
            for token, call in self._calls.items():
                thread = threading.Thread(target=_made_by, args=(call,), name="vmproxy stop", daemon=True)
                self._made[token] = thread
                thread.start()

    def check(self) -> None:
        """Raises Interrupted once it is set."""
        if self.is_set:
            raise Interrupted(self.number)

    def wait(self, seconds: float) -> None:
        """Sleep. Raises Interrupted as soon as it is set."""
        self._event.wait(seconds)
        self.check()

    @contextmanager
    def calling(self, call: Callable[[], None]) -> Iterator[None]:
        """While this holds ``call`` is made, in another thread, when it is set; what it raises is lost. Where it is
        being made at the end, that is waited for. Raises Interrupted where it is set already."""
        token = object()
        with self._lock:
            self.check()
            self._calls[token] = call
        try:
            yield
        finally:
            with self._lock:
                self._calls.pop(token, None)
                thread = self._made.pop(token, None)
            if thread is not None:
                thread.join(_CALL_SECONDS)


def _made_by(call: Callable[[], None]) -> None:
    with suppress(Exception):
        call()
