"""P12 on a serial line: wherever it goes or falls silent, a command's answer is whole, or it is an error in time."""

from __future__ import annotations

import os
import time

import pytest

from tests.fake.conftest import read_all
from tests.fake.serialvm import SerialVM
from vmproxy.errors import LostContact
from vmproxy.model import Target
from vmproxy.transports import SshOptions, console

DATA = os.urandom(5000)
NEVER = 1 << 20


@pytest.mark.parametrize("way", ["down", "up"])
@pytest.mark.parametrize(
    ("how", "at"),
    [*(("hang-up", at) for at in (0, 1, 40, 300, 2500, 7000, NEVER)), *(("silence", at) for at in (0, 2500))],
)
def test_p12_whole_or_an_error_wherever_the_line_is_cut(
    monkeypatch: pytest.MonkeyPatch, how: str, at: int, way: str
) -> None:
    """After so many bytes of either side nothing more comes: never a part of the output that looks like all of it."""
    monkeypatch.setattr(console, "_START_SECONDS", 5.0)
    vm = SerialVM("dash")
    left = at

    def cut(data: bytes) -> bytes:
        nonlocal left
        piece = data[:left]
        left -= len(piece)
        if len(piece) < len(data) and how == "hang-up":
            vm.hang_up()
        return piece

    try:
        target = Target(name="console:x", provider="console", transport="console", line=vm.path)
        connection = console.connect(target, options=SshOptions(connect_timeout_seconds=60))
        setattr(vm, way, cut)
        began = time.monotonic()
        try:
            channel = connection.start("cat; exit 3")
            channel.send(DATA, timeout_seconds=60 if at == NEVER else 5)
            channel.end_input()
            told = read_all(channel, timeout_seconds=60 if at == NEVER else 5), channel.wait(timeout_seconds=60)
        except LostContact as error:
            assert error.exit == 9
            assert at != NEVER
            assert time.monotonic() - began < 60
        else:
            assert told == (DATA, 3)
            assert at == NEVER
        finally:
            connection.close()
    finally:
        vm.close()
