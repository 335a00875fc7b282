"""The lock of a change, in the shells that VMs have."""

from __future__ import annotations

import contextlib
import fcntl
import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from vmproxy.machines import shell

_SHELLS = [("dash",), ("busybox", "sh"), ("bash",)]
# What commit.sh has set by then, and a Ctrl-C in the midst of a program that must not have the lock.
_ENDS = {
    "at its end": "leave kept 0",
    "told while a program runs": "trap 'leave kept 0' TERM; limit 60 sh -c 'kill -TERM \"$1\"' sh $$",
}
_SCRIPT = """
nonce=n boot=b lock_timeout=0 naps=5 nap=0.2 locked=1 watcher='' checks='' own_dirs='' want_files=''
area=$1 work=$1/work
take_lock && : >"$1/taken"
"""


def _comes(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + 60
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)
    return condition()


def _free(lock: Path) -> bool:
    with lock.open("ab") as stream, contextlib.suppress(BlockingIOError):
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    return False


@pytest.mark.parametrize("words", _SHELLS, ids=" ".join)
@pytest.mark.parametrize("end", _ENDS)
def test_it_is_free_before_the_last_word(tmp_path: Path, words: tuple[str, ...], end: str) -> None:
    """Whoever has heard it may come again at once, with --lock-timeout 0: while nobody takes the last word, and so the
    shell cannot end, the lock is free already."""
    script = "\n".join(shell._text(name) for name in ("observe.sh", "change.sh")) + _SCRIPT + _ENDS[end]
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(writing, b"x" * 4096)
    os.set_blocking(writing, True)
    with subprocess.Popen([*words, "-c", script, "sh", str(tmp_path)], stdin=subprocess.DEVNULL, stdout=writing) as run:
        os.close(writing)
        try:
            assert _comes((tmp_path / "taken").exists)
            assert _comes(lambda: _free(tmp_path / "lock"))
            assert run.poll() is None
        finally:
            with os.fdopen(reading, "rb") as stream:
                said = stream.read()
    assert said.endswith(b"\n@n result kept 0\n")
