"""A serial line that falls silent, or says nothing but noise, while a command runs; and one that is only slow."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.fake.conftest import read_all
from tests.fake.test_console import Attach, Start, attach, eventually, serial
from vmproxy.errors import LostContact
from vmproxy.transports import _lineshell, console

__all__ = ["attach", "serial"]

Mangle = Callable[[bytes], bytes]


def nothing(_data: bytes) -> bytes:
    """Silence."""
    return b""


def noise(data: bytes) -> bytes:
    """As much, and nothing of it an answer."""
    return os.urandom(len(data))


def other_words(_data: bytes) -> bytes:
    """No request; and harmless, for a shell will read the last of it."""
    return b"# ?\n"


class Clock:
    """The transport's clock, which can be put forward: what takes minutes by it need not take them here."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.ahead = 0.0
        self.each = 0.0
        """Every rest between two questions is that much longer, by this clock."""
        monkeypatch.setattr(console, "time", SimpleNamespace(monotonic=self.now, sleep=self.sleep))

    def now(self) -> float:
        """Seconds."""
        return time.monotonic() + self.ahead

    def sleep(self, seconds: float) -> None:
        """A rest."""
        time.sleep(seconds)
        self.ahead += self.each


@pytest.mark.parametrize(
    ("down", "up"),
    [(nothing, None), (nothing, nothing), (noise, None), (None, other_words)],
    ids=["down", "both", "noise", "noise-up"],
)
def test_f74_a_line_that_falls_silent(
    serial: Start,
    attach: Attach,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    down: Mangle | None,
    up: Mangle | None,
) -> None:
    """No answer to anything: lost long before the time limit of what is waited for, and told without what came last;
    nothing is said any more, so that the command's input ends, and the next one finds the line usable."""
    monkeypatch.setattr(_lineshell, "SILENCE_SECONDS", 12)  # more than a machine may stall until it falls silent
    monkeypatch.setattr(_lineshell, "GONE_SECONDS", 4)
    over = tmp_path / "over"
    vm = serial("ash")
    connection = attach(vm)
    channel = connection.start(f"echo on; cat; echo > {over}")
    assert channel.receive(timeout_seconds=60) == b"on\n"
    vm.down, vm.up = down or vm.down, up or vm.up
    written: list[bytes] = []
    write = connection._line.write

    def noted(data: bytes, deadline: float) -> None:
        written.append(data)
        write(data, deadline)

    monkeypatch.setattr(connection._line, "write", noted)
    with monkeypatch.context() as impatient:
        impatient.setattr(console, "GONE_SECONDS", 3)
        with pytest.raises(LostContact) as caught:
            channel.receive(timeout_seconds=300)
        expected = r"no answer on the line for \d+ s|the VM's end .* took us for gone"
        assert re.fullmatch(expected, caught.value.what), caught
        before = len(written)
        assert before
        channel.close()
        with pytest.raises(LostContact):
            connection.start("echo again")
        assert len(written) == before
        eventually(over.exists, "the command's input did not end")
        connection.close()
    vm.down = vm.up = lambda data: data
    assert read_all(attach(vm).start("echo next"), timeout_seconds=60) == b"next\n"


@pytest.mark.parametrize("shell", ["dash", "ash", "bash"])
def test_noise_is_no_sign_of_life_for_the_vm(
    serial: Start, attach: Attach, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shell: str
) -> None:
    """Lines that are no request, without an end: the VM ends the command's input and gives the line back."""
    monkeypatch.setattr(_lineshell, "GONE_SECONDS", 2)
    over = tmp_path / "over"
    vm = serial(shell)
    channel = attach(vm).start(f"echo on; cat; echo > {over}")
    assert channel.receive(timeout_seconds=60) == b"on\n"
    vm.up = nothing

    def noisy() -> bool:
        vm.type(b"what is this\n\n")
        return over.exists()

    eventually(noisy, "the command's input did not end")


def test_a_command_that_is_quiet_for_long(
    serial: Start, attach: Attach, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not the command, the line has to speak: a restart of Docker may take minutes without a word."""
    monkeypatch.setattr(_lineshell, "SILENCE_SECONDS", 25)  # all that a terminal can count
    over = tmp_path / "over"
    waits = f"until [ -e {over} ]; do [ -d {tmp_path} ] && [ $((n += 1)) -lt 3000 ] || exit 1; sleep 0.1; done"
    channel = attach(serial("ash")).start(f"n=0; {waits}; echo done")
    clock = Clock(monkeypatch)
    quiet = 4 * console.GONE_SECONDS

    def rest(seconds: float) -> None:
        clock.sleep(seconds)
        if clock.ahead > quiet:
            over.touch()
            clock.each = 0.0

    clock.each = 10.0
    monkeypatch.setattr(console.time, "sleep", rest)
    assert read_all(channel, timeout_seconds=quiet + 120) == b"done\n"
    assert clock.ahead > quiet


def test_a_line_that_is_slow(serial: Start, attach: Attach, monkeypatch: pytest.MonkeyPatch) -> None:
    """What comes bit by bit, each answer late, comes whole; however long all of it takes."""
    monkeypatch.setattr(_lineshell, "SILENCE_SECONDS", 25)
    vm = serial("ash")
    channel = attach(vm).start("read x; head -c 48000 /dev/zero; exit 6")
    clock = Clock(monkeypatch)

    def slowly(data: bytes) -> bytes:
        time.sleep(len(data) / 65536)
        clock.ahead += len(data) / 1000
        return data

    vm.down = slowly
    channel.send(b"on\n", timeout_seconds=3600)
    assert read_all(channel, timeout_seconds=3600) == b"\0" * 48000
    assert channel.wait(timeout_seconds=3600) == 6
    assert clock.ahead > console.GONE_SECONDS
