"""A serial line that falls silent, or says nothing but noise, while a command runs; and one that is only slow."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable
from pathlib import Path

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
    monkeypatch.setattr(_lineshell, "SILENCE_SECONDS", 3)
    monkeypatch.setattr(_lineshell, "GONE_SECONDS", 2)
    over = tmp_path / "over"
    vm = serial("ash")
    connection = attach(vm)
    channel = connection.start(f"echo on; cat; echo > {over}")
    assert channel.receive(timeout_seconds=30) == b"on\n"
    monkeypatch.setattr(console, "GONE_SECONDS", 3)
    vm.down, vm.up = down or vm.down, up or vm.up
    with pytest.raises(LostContact) as caught:
        channel.receive(timeout_seconds=40)
    assert re.fullmatch(r"no answer on the line for \d s|the VM's end .* took us for gone", caught.value.what), caught
    before = len(vm.sent)
    channel.close()
    with pytest.raises(LostContact):
        connection.start("echo again")
    assert len(vm.sent) == before
    eventually(over.exists, "the command's input did not end")
    connection.close()
    vm.down = vm.up = lambda data: data
    assert read_all(attach(vm).start("echo next")) == b"next\n"


@pytest.mark.parametrize("shell", ["dash", "ash", "bash"])
def test_noise_is_no_sign_of_life_for_the_vm(
    serial: Start, attach: Attach, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shell: str
) -> None:
    """Lines that are no request, without an end: the VM ends the command's input and gives the line back."""
    monkeypatch.setattr(_lineshell, "GONE_SECONDS", 2)
    over = tmp_path / "over"
    vm = serial(shell)
    channel = attach(vm).start(f"echo on; cat; echo > {over}")
    assert channel.receive(timeout_seconds=30) == b"on\n"
    vm.up = nothing

    def noisy() -> bool:
        vm.type(b"what is this\n\n")
        return over.exists()

    eventually(noisy, "the command's input did not end")


def test_a_command_that_is_quiet_for_long(serial: Start, attach: Attach, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not the command, the line has to speak: a restart of Docker may take minutes without a word."""
    channel = attach(serial("ash")).start("sleep 8; echo done")
    monkeypatch.setattr(console, "GONE_SECONDS", 6)
    assert read_all(channel) == b"done\n"


def test_a_line_that_is_slow(serial: Start, attach: Attach, monkeypatch: pytest.MonkeyPatch) -> None:
    """What comes bit by bit, each answer late, comes whole."""
    vm = serial("ash")
    channel = attach(vm).start("read x; head -c 12000 /dev/zero; sleep 4; exit 6")

    def slowly(data: bytes) -> bytes:
        time.sleep(len(data) / 4096)
        return data

    vm.down = slowly
    monkeypatch.setattr(console, "GONE_SECONDS", 8)
    channel.send(b"on\n", timeout_seconds=60)
    assert read_all(channel, timeout_seconds=60) == b"\0" * 12000
    assert channel.wait(timeout_seconds=60) == 6
