"""``local``: a child process keeps the promises that a channel over SSH keeps."""

from __future__ import annotations

import itertools
import os
import select
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from vmproxy.errors import LostContact, UsageError
from vmproxy.model import Target
from vmproxy.transports import SshOptions, _child, local

TARGET = Target(name="local", provider="local", transport="local")


@pytest.fixture
def connection() -> Iterator[local.LocalConnection]:
    """This machine, at most 1 MiB of output."""
    opened = local.connect(TARGET, options=SshOptions(output_limit_bytes=1 << 20))
    yield opened
    opened.close()


def read_all(channel: _child.ChildChannel) -> bytes:
    """Every piece to the end."""
    out = b""
    while piece := channel.receive(timeout_seconds=60):
        out += piece
    return out


def test_dialogue(connection: local.LocalConnection) -> None:
    """Bytes both ways, stderr apart, the status."""
    channel = connection.start("read x; echo got $x; cat; echo oops >&2; exit 3")
    channel.send(b"one\n", timeout_seconds=60)
    assert channel.receive(timeout_seconds=60) == b"got one\n"
    channel.send(b"\x00\x03\x04\xff\r\n", timeout_seconds=60)
    channel.end_input()
    assert read_all(channel) == b"\x00\x03\x04\xff\r\n"
    assert channel.wait(timeout_seconds=60) == 3
    assert channel.stderr == b"oops\n"


def test_big_input_and_output_at_once(connection: local.LocalConnection) -> None:
    """More than any pipe holds goes in while as much comes out; a flood on stderr stops nothing and is bounded."""
    data = os.urandom(900_000)
    channel = connection.start("dd if=/dev/zero bs=1024 count=300 >&2 2>/dev/null; exec cat")
    channel.send(data, timeout_seconds=60)
    channel.end_input()
    assert read_all(channel) == data
    assert channel.wait(timeout_seconds=60) == 0
    assert len(channel.stderr) == 64 << 10


def test_what_came_while_we_were_stopped_is_no_silence(
    connection: local.LocalConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Suspended (^Z) for longer than the limit: what has come by then is taken; the next silence has its end."""
    channel = connection.start("echo on; cat")
    assert select.select([channel._stdout], [], [], 60)[0]
    hours = itertools.chain([0.0], itertools.repeat(3600.0))
    monkeypatch.setattr(_child, "time", SimpleNamespace(monotonic=lambda: next(hours)))
    assert channel.receive(timeout_seconds=60) == b"on\n"
    hours = itertools.chain([0.0], itertools.repeat(3600.0))
    with pytest.raises(LostContact, match="60 s"):
        channel.receive(timeout_seconds=60)


def test_f03_silence_has_an_end(connection: local.LocalConnection, tmp_path: Path) -> None:
    """Nothing said, nothing read, no end: exit 9 each time when the time is over."""
    over = tmp_path / "over"
    channel = connection.start(f"until [ -e '{over}' ]; do sleep 0.1; done")
    with pytest.raises(LostContact, match=r"no answer within 0\.1 s"):
        channel.receive(timeout_seconds=0.1)
    with pytest.raises(LostContact, match="does not read"):
        channel.send(b"x" * 900_000, timeout_seconds=0.1)
    with pytest.raises(LostContact, match="did not end"):
        channel.wait(timeout_seconds=0.1)
    over.touch()


def test_f11_endless_output_stops_at_the_cap(connection: local.LocalConnection) -> None:
    """A command that never stops talking is exit 9 at the limit."""
    channel = connection.start("exec yes")
    with pytest.raises(LostContact, match="more than is believable"):
        read_all(channel)


def test_input_to_a_command_that_has_ended(connection: local.LocalConnection) -> None:
    """A command that is gone, and an input that was ended, are exit 9."""
    channel = connection.start("true")
    assert channel.wait(timeout_seconds=60) == 0
    with pytest.raises(LostContact, match="ended before"):
        channel.send(b"x" * 900_000, timeout_seconds=60)
    channel.end_input()
    with pytest.raises(LostContact, match="closed"):
        channel.send(b"x", timeout_seconds=60)


def test_command_ended_by_a_signal(connection: local.LocalConnection) -> None:
    """No status where there is none."""
    assert connection.start("kill -9 $$").wait(timeout_seconds=60) is None


def test_a_session_of_its_own_without_our_environment(
    connection: local.LocalConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A Ctrl-C at our terminal does not reach the command; it sees no proxy variable and no password of ours."""
    monkeypatch.setenv("http_proxy", "http://u:p@h:1")
    monkeypatch.setenv("VMPROXY_SSH_PASSWORD", "secret")
    channel = connection.start("read -r _ _ _ _ _ session _ </proc/self/stat; echo $$ $session; env")
    words = read_all(channel).decode()
    first, _, rest = words.partition("\n")
    pid, session = first.split()
    assert pid == session != str(os.getsid(0))
    assert "u:p@h" not in rest
    assert "secret" not in rest


def test_closing_ends_the_input_and_kills_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What runs hears the end of its input and may still put things back; close waits for it a little."""
    monkeypatch.setattr(_child, "_END_SECONDS", 60.0)
    done = tmp_path / "done"
    connection = local.connect(TARGET, options=SshOptions())
    channel = connection.start(f"trap '' PIPE; cat >/dev/null; sleep 0.3; echo x 2>/dev/null; touch '{done}'")
    channel.send(b"x\n", timeout_seconds=60)
    connection.close()
    connection.close()
    assert done.exists()


def wait_in(channel: _child.ChildChannel, monkeypatch: pytest.MonkeyPatch, talk: Callable[[], object]) -> list[object]:
    """What ``talk`` raises in another thread; the channel is closed from this one as soon as it waits."""
    waits = threading.Event()
    came: list[object] = []
    select = channel._selector.select

    def told(timeout: float | None = None) -> object:
        waits.set()
        return select(timeout)

    def run() -> None:
        try:
            came.append(talk())
        except BaseException as error:
            came.append(error)

    monkeypatch.setattr(channel._selector, "select", told)
    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    assert waits.wait(60)
    channel.close()
    thread.join(60)
    return came


@pytest.mark.parametrize("what", ["receive", "send", "wait"])
def test_f28_closing_from_another_thread_wakes_whoever_waits(
    what: str, connection: local.LocalConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Long before the limit, and contact is lost then, however often it is tried."""
    channel = connection.start("read -r x; exec sleep 0.1" if what != "send" else "exec sleep 1")
    talk: dict[str, Callable[[], object]] = {
        "receive": lambda: channel.receive(timeout_seconds=600),
        "send": lambda: channel.send(b"x" * 900_000, timeout_seconds=600),
        "wait": lambda: channel.wait(timeout_seconds=600),
    }
    came = wait_in(channel, monkeypatch, talk[what])
    assert [type(error) for error in came] == [LostContact]
    for again in talk.values():
        with pytest.raises(LostContact):
            again()
    channel.end_input()
    channel.close()


def test_f28_the_end_of_input_from_another_thread_ends_a_send(
    connection: local.LocalConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is still to be written is given up, and the answer to it can be heard."""
    channel = connection.start("read -r x; echo got $x; exec cat >/dev/null")
    full = threading.Event()
    select = channel._selector.select

    def told(timeout: float | None = None) -> object:
        channel.end_input()
        full.set()
        return select(timeout)

    monkeypatch.setattr(channel._selector, "select", told)
    with pytest.raises(LostContact, match="input is closed"):
        channel.send(b"one\n", timeout_seconds=600)
    assert full.is_set()
    assert read_all(channel) == b"got\n"


def test_f28_no_command_is_started_after_the_close() -> None:
    """A thread that was about to start one hears that contact is lost."""
    connection = local.connect(TARGET, options=SshOptions())
    connection.close()
    with pytest.raises(LostContact):
        connection.start("true")


def test_elsewhere_than_on_linux(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without /proc it is exit 2 and the way from the host is named."""
    monkeypatch.setattr(os.path, "exists", lambda _path: False)
    with pytest.raises(UsageError, match="Linux VM"):
        local.connect(TARGET, options=SshOptions())
