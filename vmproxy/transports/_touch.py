"""Security keys (FIDO) that sign only when somebody touches them: the person hears of it, whoever speaks SSH."""

from __future__ import annotations

import threading
from collections.abc import Callable

from vmproxy.errors import NotPermitted
from vmproxy.model import printable

_SECONDS = 0.5  # a key that wants no touch has signed by then
_LOOKS = 3  # the same at four a second


def wanted(key: str) -> str:
    """The line that asks for it; ``key`` is what the key is called."""
    return f"touch your security key if it blinks: {printable(key, limit=120)} is to sign"


class Touch:
    """Looks, each time it is called, for a key that is waited for; ``awaited`` names it, "" for none. It is said once,
    when it was there three times in a row: one that wants no touch has signed by then."""

    def __init__(self, awaited: Callable[[], str], notify: Callable[[str], None]) -> None:
        self._awaited, self._notify = awaited, notify
        self._seen, self._times = "", 0

    def __call__(self) -> None:
        """Say it where it is time to."""
        key = self._awaited()
        self._times = self._times + 1 if key == self._seen else 1
        self._seen = key
        if key and self._times == _LOOKS:
            self._notify(wanted(key))

    def missed(self, seconds: float, where: str, *, another: str = "-i FILE names another key") -> NotPermitted | None:
        """The error where that time has passed and the key is still waited for; ``another`` says how to name one."""
        if not (key := self._awaited()):
            return None
        what = f"no touch of the security key within {seconds:g} s: {printable(key, limit=120)}"
        return NotPermitted(what, where=where, hint=f"once more, with a touch where it blinks; or {another}")


class Reminder:
    """While it is open and half a second has passed: the line is said. A context manager."""

    def __init__(self, key: str, notify: Callable[[str], None]) -> None:
        self._timer = threading.Timer(_SECONDS, notify, (wanted(key),))

    def __enter__(self) -> Reminder:
        self._timer.daemon = True
        self._timer.start()
        return self

    def __exit__(self, *_exception: object) -> None:
        self._timer.cancel()
        self._timer.join()
