"""A view that is shown anew on a terminal until somebody has seen enough: q, Ctrl-C, or a signal.

The terminal is as it was afterwards, whatever ended it. Lines are cut to its width, and there are no more than its
height.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

_ENTER, _LEAVE = "\x1b[?1049h\x1b[?25l", "\x1b[?25h\x1b[?1049l"
_HOME, _LINE_END, _BELOW = "\x1b[H", "\x1b[K", "\x1b[J"
_PAUSE_SECONDS = 0.1


def watch(lines: Callable[[], list[str]], *, seconds: float) -> None:
    """Show what ``lines`` gives every so many seconds, until q or Ctrl-C. Only for a terminal."""
    plain = os.environ.get("TERM", "dumb") == "dumb"
    with _keys() as pressed, _screen(plain=plain):
        while True:
            _write(frame(lines(), *_size(), plain=plain))
            until = time.monotonic() + seconds
            while time.monotonic() < until:
                if pressed(min(_PAUSE_SECONDS, max(0.0, until - time.monotonic()))) in ("q", "Q", "\x03", "\x04"):
                    return


def frame(lines: list[str], columns: int, rows: int, *, plain: bool = False) -> str:
    """One picture: each line within the width, as many as there is room for; ``plain`` for a terminal without
    addressing."""
    shown = [line if len(line) < columns else f"{line[: max(0, columns - 2)]}…" for line in lines[: max(1, rows - 1)]]
    if plain:
        return "".join(f"{line}\n" for line in (*shown, ""))
    return _HOME + "".join(f"{line}{_LINE_END}\n" for line in shown) + _BELOW


def _size() -> tuple[int, int]:
    try:
        found = os.get_terminal_size(sys.stdout.fileno())
    except OSError:
        return 80, 24
    return found.columns or 80, found.lines or 24


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


@contextmanager
def _screen(*, plain: bool) -> Iterator[None]:
    """The terminal's other screen, without a cursor."""
    if plain:
        yield
        return
    _write(_ENTER)
    try:
        yield
    finally:
        _write(_LEAVE)


@contextmanager
def _keys() -> Iterator[Callable[[float], str]]:
    """A function that waits for a key for some seconds; "" where none came, or nobody could press one."""
    if os.name == "nt":
        yield _windows_key
        return
    import select
    import termios
    import tty

    handle = sys.stdin.fileno() if sys.stdin is not None and sys.stdin.isatty() else -1
    if handle < 0:
        yield _no_key
        return

    def key(seconds: float) -> str:
        ready, _, _ = select.select([handle], [], [], seconds)
        return os.read(handle, 1).decode("latin-1") or "\x04" if ready else ""

    before = termios.tcgetattr(handle)
    try:
        tty.setcbreak(handle, termios.TCSANOW)  # Ctrl-C stays a signal
        yield key
    finally:
        with suppress(termios.error):
            termios.tcsetattr(handle, termios.TCSANOW, before)


def _no_key(seconds: float) -> str:
    time.sleep(seconds)
    return ""


def _windows_key(seconds: float) -> str:
    import msvcrt

    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if msvcrt.kbhit():  # type: ignore[attr-defined,unused-ignore]
            return str(msvcrt.getwch())  # type: ignore[attr-defined,unused-ignore]
        time.sleep(0.02)
    return ""
