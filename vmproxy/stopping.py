"""A signal for stories that run in threads: Python gives signals to the main thread alone."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from vmproxy.errors import Interrupted


class Stop:
    """Set once, by the thread that got the signal; the stories ask it wherever they begin a step, or wait in it."""

    def __init__(self) -> None:
        self.number = 0
        self._event = threading.Event()
        self._lock = threading.Lock()
        self._calls: dict[object, Callable[[], None]] = {}

    @property
    def is_set(self) -> bool:
        """Whether the signal came."""
        return self._event.is_set()

    def set(self, number: int) -> None:
        """Signal ``number`` came: wake whoever waits, and make every call that :meth:`calling` knows."""
        self.number = number
        with self._lock:
            self._event.set()
            calls = list(self._calls.values())
        for call in calls:
            call()

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
        """While this holds ``call`` is made, in the other thread, when it is set. Raises Interrupted where it is."""
        token = object()
        with self._lock:
            self.check()
            self._calls[token] = call
        try:
            yield
        finally:
            with self._lock:
                self._calls.pop(token, None)
