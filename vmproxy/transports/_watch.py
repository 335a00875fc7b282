"""One thread that makes calls when their time has come, for all blocks that may take so long and no longer.

The standard library's timer is a thread for each: with fifty VMs at once those took a third of the threads there were.
"""

from __future__ import annotations

import contextlib
import math
import threading
import time
from collections.abc import Callable


class Watch:
    """Calls that are to be made at a time unless they are taken back before; almost all are.

    A signal may end what the main thread does here at any point, and a finalizer may come here again: so the lock is
    one that C code takes and gives back (a Condition does it in Python), and that its owner may take twice.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._bell = threading.Lock()  # held while there is no reason to look before the time
        self._bell.acquire()
        self._calls: dict[object, tuple[float, Callable[[], None]]] = {}
        self._wakes = -math.inf  # when the thread looks next; before all times while there is none

    def add(self, seconds: float, call: Callable[[], None]) -> object:
        """Have ``call`` made in that time, in a thread of its own; what this returns is for :meth:`drop`."""
        token, due = object(), time.monotonic() + seconds
        with self._lock:
            self._calls[token] = (due, call)
            if self._wakes == -math.inf:
                threading.Thread(target=self._run, name="vmproxy watch", daemon=True).start()
                self._wakes = due
            elif due < self._wakes:
                self._wakes = due
                self._ring()
        return token

    def drop(self, token: object) -> None:
        """Take it back. The thread is not woken for it: it finds less to do when its time comes."""
        with self._lock:
            self._calls.pop(token, None)

    def _ring(self) -> None:
        with contextlib.suppress(RuntimeError):  # it rings already
            self._bell.release()

    def _run(self) -> None:
        while True:
            with self._lock:
                now = time.monotonic()
                ready = [token for token, (due, _call) in self._calls.items() if due <= now]
                calls = [self._calls.pop(token)[1] for token in ready]
                self._wakes = min((due for due, _call in self._calls.values()), default=math.inf)
                left = min(max(0.0, self._wakes - now), threading.TIMEOUT_MAX)
            for call in calls:
                try:
                    threading.Thread(target=call, name="vmproxy late", daemon=True).start()
                except RuntimeError:  # no more threads are to be had
                    call()
            self._bell.acquire(timeout=left)


WATCH = Watch()
