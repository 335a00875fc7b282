"""``cache status --watch`` on a real pty: what is shown, how it ends, and the terminal afterwards."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.unit.cacheworld import Origin, fetch, origin, proxy, settings, talk
from vmproxy.cli.watch import frame

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 60.0
PICTURE = re.compile(r"\x1b\[H(.*?)\x1b\[J", re.DOTALL)


class Terminal:
    """A program on a pty of 60 columns and 12 rows."""

    def __init__(self, *words: str, **environ: str) -> None:
        self.master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 12, 60, 0, 0))
        self.before = termios.tcgetattr(slave)
        self.slave, self.text = slave, ""

        def own_terminal() -> None:
            os.setsid()
            fcntl.ioctl(0, termios.TIOCSCTTY, 0)

        self.process = subprocess.Popen(
            [sys.executable, "-m", "vmproxy", *words],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env={**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm", **environ},
            preexec_fn=own_terminal,  # noqa: PLW1509 - no threads in the child
        )

    def read(self, seconds: float = 0.1) -> None:
        """Take what it writes."""
        while select.select([self.master], [], [], seconds)[0]:
            self.text += os.read(self.master, 65536).decode("utf-8", "replace")
            seconds = 0.0

    def until(self, pattern: str) -> str:
        """Wait for a text. Raises AssertionError."""
        limit = time.monotonic() + SECONDS
        while not re.search(pattern, self.text):
            assert time.monotonic() < limit, self.text
            self.read()
        return self.text

    def ended(self) -> int:
        """Wait for its end, taking what it writes."""
        limit = time.monotonic() + SECONDS
        while self.process.poll() is None:
            assert time.monotonic() < limit
            self.read()
        self.read()
        return self.process.returncode

    def close(self) -> None:
        """End it."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self.master)
        os.close(self.slave)


@contextmanager
def watching(directory: Path, *words: str, **environ: str) -> Iterator[Terminal]:
    """The live view."""
    base = ("cache", "status", "--watch", "--interval", "0.2", "--dir", str(directory))
    terminal = Terminal(*base, *words, **environ)
    try:
        yield terminal
    finally:
        terminal.close()


@pytest.fixture(scope="module")
def server() -> Iterator[Origin]:
    """An origin."""
    with origin() as running:
        yield running


def test_it_follows_fits_and_leaves_the_terminal_as_it_was(tmp_path: Path, server: Origin) -> None:
    """Counters move while it runs, within width and height; tunnels are said to be never cached; no colour at all;
    q is exit 0, and cursor, screen and line discipline are as before."""
    url = server.serve("/w", b"w" * 4000, cache_control="max-age=60")
    own = settings(tmp_path / "c", ports=frozenset({server.server_port}))
    with proxy(own) as running, watching(tmp_path / "c", NO_COLOR="1") as terminal:
        terminal.until("0 of 0")
        for _ in range(3):
            fetch(running.address, url)
        terminal.until(r"2 of 3 \(67%\)")
        place = f"127.0.0.1:{server.server_port}"
        through = f"CONNECT {place} HTTP/1.1\r\nHost: {place}\r\n\r\nGET /w HTTP/1.0\r\n\r\n".encode()
        assert talk(running.address, through, end=False).endswith(b"wwww")
        terminal.until(r"tunnels: 1, 4\.\d KiB; https: is tunnelled and never")
        assert termios.tcgetattr(terminal.slave)[3] & termios.ICANON == 0
        os.write(terminal.master, b"xq")
        assert terminal.ended() == 0
        pictures = PICTURE.findall(terminal.text)
        for picture in pictures:
            lines = picture.replace("\x1b[K", "").split("\r\n")[:-1]
            assert len(lines) < 12 and all(len(line) < 60 for line in lines), lines
        assert "running: 127.0.0.1:" in pictures[-1] and "requests/s" in pictures[-1]
        assert not re.search(r"\x1b\[[0-9;]*m", terminal.text)
        assert terminal.text.index("\x1b[?1049h") == 0
        assert terminal.text.rstrip().endswith("\x1b[?25h\x1b[?1049l")
        assert termios.tcgetattr(terminal.slave) == terminal.before


@pytest.mark.parametrize(("end", "code"), [(b"\x03", 130), (signal.SIGTERM, 143)])
def test_a_signal_leaves_the_terminal_as_it_was(tmp_path: Path, end: bytes | int, code: int) -> None:
    """Ctrl-C and SIGTERM have their usual exit codes; no traceback; where no cache runs that is what is shown."""
    with watching(tmp_path / "none") as terminal:
        terminal.until("not running")
        if isinstance(end, bytes):
            os.write(terminal.master, end)
        else:
            terminal.process.send_signal(end)
        assert terminal.ended() == code
        assert "\x1b[?25h\x1b[?1049l" in terminal.text and "Traceback" not in terminal.text
        assert termios.tcgetattr(terminal.slave) == terminal.before


def test_a_dumb_terminal_gets_plain_lines(tmp_path: Path) -> None:
    """TERM=dumb: no escape at all."""
    with watching(tmp_path / "none", TERM="dumb") as terminal:
        terminal.until("(?s)not running.*not running")
        os.write(terminal.master, b"q")
        assert terminal.ended() == 0
        assert "\x1b" not in terminal.text


def test_without_a_terminal_it_is_exit_2(tmp_path: Path) -> None:
    """In a pipe, and with --json."""
    words = [sys.executable, "-m", "vmproxy", "cache", "status", "--watch", "--dir", str(tmp_path)]
    for more in ([], ["--json"]):
        done = subprocess.run([*words, *more], capture_output=True, text=True, check=False, cwd=ROOT, timeout=60)
        assert done.returncode == 2 and "terminal" in done.stderr


def test_a_picture_is_never_larger_than_the_terminal() -> None:
    """Long lines are cut with a mark, and rows beyond the last left out."""
    text = frame(["x" * 100, "short", "third", "fourth"], 20, 3)
    assert text.count("\n") == 2 and "x" * 18 + "…" in text and "x" * 19 not in text
    assert frame(["a"], 1, 1)
