"""The transport's promises over a serial line, and P16: whatever comes in between, a command's output is its own."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fake.conftest import read_all
from tests.fake.contract import Contract
from tests.fake.serialvm import PROMPT, SHELLS, SerialVM
from vmproxy.model import Target
from vmproxy.transports import SshOptions, _line, console
from vmproxy.transports.console import ConsoleConnection

LogIn = Callable[..., ConsoleConnection]


@pytest.fixture(scope="module")
def machine() -> Iterator[SerialVM]:
    """One VM with a getty for all tests of the file."""
    vm = SerialVM("dash", getty=True)
    yield vm
    vm.close()


@pytest.fixture
def log_in(machine: SerialVM, monkeypatch: pytest.MonkeyPatch) -> Iterator[LogIn]:
    """Attach to it; one at a time has the line, so the last one lets go."""
    monkeypatch.setattr(_line, "_HANG_UP_SECONDS", 60.0)
    running: list[ConsoleConnection] = []

    def start(_port: int, *, target: object = None, first: str = "") -> ConsoleConnection:
        for connection in running:
            connection.close()
        wanted = Target(name="console:x", provider="console", transport="console", line=machine.path)
        options = SshOptions(connect_timeout_seconds=60)
        running.append(console.connect(wanted, options=options, first=first))
        return running[-1]

    yield start
    for connection in running:
        connection.close()


class TestConsole(Contract):
    """All of the contract but keys and host keys, which a serial line has not."""

    test_wrong_key_is_refused = None  # type: ignore[assignment]
    test_changed_host_key = None  # type: ignore[assignment]

    @pytest.fixture
    def vm(self) -> dict[str, Any]:
        """There is one."""
        return {"port": 0}

    def test_quick_commands_in_a_row(self, log_in: LogIn, vm: dict[str, Any]) -> None:
        """A command that is started while the last one's process ends is not lost."""
        connection = log_in(vm["port"])
        for number in range(20):
            assert read_all(connection.start(f"echo {number}")) == f"{number}\n".encode()

    def test_megabytes_both_ways(self, log_in: LogIn, vm: dict[str, Any]) -> None:
        """What is larger than any buffer on the way arrives whole: 200 kB up, and as much down by two streams."""
        data = os.urandom(200_000)
        connection = log_in(vm["port"])
        channel = connection.start("wc -c")
        channel.send(data, timeout_seconds=60)
        channel.end_input()
        assert read_all(channel, timeout_seconds=60).strip() == b"200000"
        assert len(read_all(connection.start("head -c 200000 /dev/zero; head -c 99999 /dev/zero >&2"))) == 200_000


def test_a_first_command_is_as_any_other(log_in: LogIn) -> None:
    """What is named at the log-in is started when it is asked for, once."""
    connection = log_in(0, first="echo in")
    assert read_all(connection.start("echo in")) == b"in\n"


# ---- P16 ------------------------------------------------------------------------------------------------------------

NOISE = st.one_of(
    st.sampled_from([PROMPT.encode(), b"\x1b[6n", b"\x1b[?2004h\x1b[31m", b"\r\nmoby login: ", b"Password: "]),
    st.sampled_from([b"\r\n", b"\0", b"\xff", b"\r\n@", b" .\r\n", b"@0123456789abcdef 1 yes .\r\n"]),
    st.just(b"[   12.345678] br0: port 2(veth1) entered forwarding state\r\n"),
    st.just(b'INIT: Id "S0" respawning too fast\r\n'),
    st.binary(max_size=40),
)
# After how many bytes of what the VM says, what comes in between; and whether what we say is echoed.
SCHEDULE = st.lists(st.tuples(st.integers(0, 3000), NOISE), max_size=6)


class Interleaved:
    """Puts each noise in its place of the stream, wherever pieces begin and end."""

    def __init__(self, vm: SerialVM, schedule: list[tuple[int, bytes]], *, echo: bool) -> None:
        self._vm, self._schedule, self._echo = vm, list(schedule), echo

    def down(self, data: bytes) -> bytes:
        out = b""
        while self._schedule and self._schedule[0][0] <= len(data):
            at, noise = self._schedule.pop(0)
            out += data[:at] + noise
            data = data[at:]
        if self._schedule:
            at, noise = self._schedule[0]
            self._schedule[0] = (at - len(data), noise)
        return out + data

    def up(self, data: bytes) -> bytes:
        if self._echo:
            self._vm.echo(data)
        return data


@pytest.fixture(scope="module")
def open_line() -> Iterator[tuple[SerialVM, ConsoleConnection]]:
    """A VM and one connection for all examples; what is broken is asked for again after a short while."""
    before, console._AGAIN_SECONDS = console._AGAIN_SECONDS, 0.1
    vm = SerialVM("dash", program=SHELLS["dash"], ready=PROMPT.encode())
    target = Target(name="console:x", provider="console", transport="console", line=vm.path)
    connection = console.connect(target, options=SshOptions(connect_timeout_seconds=60))
    yield vm, connection
    connection.close()
    vm.close()
    console._AGAIN_SECONDS = before


@settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
@given(schedule=SCHEDULE, echo=st.booleans(), data=st.binary(max_size=4000))
def test_p16_result_is_the_commands_own(
    open_line: tuple[SerialVM, ConsoleConnection], schedule: list[tuple[int, bytes]], echo: bool, data: bytes
) -> None:
    """Echo, prompts, escapes, kernel lines and garbage anywhere: stdout, stderr and status are the command's own."""
    vm, connection = open_line
    interleaved = Interleaved(vm, schedule, echo=echo)
    vm.down, vm.up = interleaved.down, interleaved.up
    channel = connection.start("cat; echo oops >&2; exit 9")
    channel.send(data, timeout_seconds=60)
    channel.end_input()
    assert read_all(channel, timeout_seconds=60) == data
    assert channel.wait(timeout_seconds=60) == 9
    assert channel.stderr == b"oops\n"
    channel.close()


@settings(max_examples=4, deadline=None, suppress_health_check=list(HealthCheck))
@given(schedule=SCHEDULE, left=NOISE, shell=st.sampled_from(sorted(SHELLS)))
def test_p16_on_the_way_in(schedule: list[tuple[int, bytes]], left: bytes, shell: str) -> None:
    """The same while the shell is being looked for, on a line with something left on it."""
    vm = SerialVM(shell)
    try:
        interleaved = Interleaved(vm, schedule, echo=False)
        vm.down = interleaved.down
        vm.type(left.replace(b"\x04", b"").replace(b"\n", b"").replace(b"\r", b""))  # no end of file, nothing run
        target = Target(name="console:x", provider="console", transport="console", line=vm.path)
        connection = console.connect(target, options=SshOptions(connect_timeout_seconds=60))
        assert read_all(connection.start("echo in"), timeout_seconds=60) == b"in\n"
        connection.close()
    finally:
        vm.close()
