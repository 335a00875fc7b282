"""A signal to another thread while the serial line is logged in to: the wait for it ends, whatever its limit."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fake.mute import Mute
from vmproxy.errors import LostContact
from vmproxy.model import Target
from vmproxy.stopping import Stop
from vmproxy.transports import SshOptions, _lineshell, console

HOUR, SECONDS = 3600.0, 60.0
ROOT = Path(__file__).resolve().parents[2]


class MuteLine(Mute):
    """A line by its socket: it shows a prompt, if any, once something was typed, and waits for the first line then."""

    def __init__(self, path: Path, prompt: bytes = b"") -> None:
        self._prompt = prompt
        super().__init__(path)

    def talk(self, client: socket.socket) -> None:
        heard = client.recv(4096)
        if self._prompt:
            client.sendall(self._prompt)
            while b"stty" not in heard and (piece := client.recv(4096)):
                heard += piece


@pytest.fixture(params=[b"", b"moby:~# "], ids=["no prompt", "no answer"])
def mute(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[MuteLine]:
    """The line."""
    line = MuteLine(tmp_path / "line", request.param)
    yield line
    line.close()


def test_f28_a_line_that_says_nothing_is_not_waited_for(mute: MuteLine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before a prompt and behind it: the log-in ends, and the line is let go."""
    monkeypatch.setattr(_lineshell, "_BEGIN_SECONDS", HOUR)
    target = Target(name="console:x", provider="console", transport="console", line=str(mute.path))
    stop, raised = Stop(), []

    def run() -> None:
        try:
            console.connect(target, options=SshOptions(connect_timeout_seconds=HOUR, stoppable=stop.calling))
        except LostContact as error:
            raised.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    assert mute.asked.wait(SECONDS)
    stop.set(15)
    thread.join(SECONDS)
    assert not thread.is_alive() and raised
    assert mute.left.wait(SECONDS)


def test_f28_a_signal_ends_several_log_ins(tmp_path: Path) -> None:
    """``--jobs 2`` and two lines that say nothing: exit 143 long before the limit, both let go."""
    lines = [MuteLine(tmp_path / name) for name in ("one", "two")]
    names = ",".join(f"console:{line.path}" for line in lines)
    words = ("status", "--jobs", "2", "--connect-timeout", str(int(HOUR)), "--vm", names)
    own = {"HOME": str(tmp_path), "PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)}
    argv = [sys.executable, "-m", "vmproxy", *words]
    with subprocess.Popen(argv, env=own, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        try:
            assert all(line.asked.wait(SECONDS) for line in lines)
            process.send_signal(signal.SIGTERM)
            out, err = process.communicate(timeout=SECONDS)
        finally:
            process.kill()
            for line in lines:
                line.close()
    assert process.returncode == 143, (out, err)
    assert all(line.left.wait(SECONDS) for line in lines)
