"""Turns for many VMs that are near: some of them are logged in to and looked at, while the others wait.

VMs on one host share its processors with us. Fifty log-ins at once end at about the same time, and then fifty answers
wait for one interpreter while the other processors have nothing to do; a few at a time keep all of them busy. VMs that
are far away are another matter: there it is the wire that everybody waits for, and all wait at once.
"""

from __future__ import annotations

import os
import threading

NEAR_SECONDS = 0.001
"""A round trip that takes longer leads away from this host; on a wired LAN some are shorter, and wait a little, too."""
_AT_ONCE = max(8, 4 * (os.cpu_count() or 1))
_STILL_SECONDS = 0.3


class Turns:
    """``at_once`` turns are out at a time, until :meth:`open`. Where for ``still_seconds`` none is taken or given back
    (VMs that do not answer hold them), the rest need none either: it is about a few hundredths of the time, no more."""

    def __init__(self, *, at_once: int = _AT_ONCE, still_seconds: float = _STILL_SECONDS) -> None:
        self._at_once, self._still_seconds = at_once, still_seconds
        self._changed = threading.Condition()
        self._out = 0
        self._moves = 0
        self._open = False

    def take(self) -> None:
        """Wait for a turn."""
        with self._changed:
            while self._out >= self._at_once and not self._open:
                moves = self._moves
                self._changed.wait(self._still_seconds)
                self._open = self._open or self._moves == moves
            self._out += 1
            self._moves += 1

    def give(self) -> None:
        """Give one back."""
        with self._changed:
            self._out -= 1
            self._moves += 1
            self._changed.notify()

    def reached(self, round_trip_seconds: float | None) -> None:
        """A VM was reached, so far away; None where that cannot be told. One that is not near opens the gate."""
        if round_trip_seconds is None or round_trip_seconds > NEAR_SECONDS:
            with self._changed:
                self._open = True
                self._changed.notify_all()
