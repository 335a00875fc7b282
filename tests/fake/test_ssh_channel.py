"""Commands over SSH: bytes both ways, ends, losses, limits; on a server with every fault we could think of."""

from __future__ import annotations

import itertools
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import paramiko
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fake.conftest import Keys, comes, read_all
from tests.fake.relay import Faults, Relay
from tests.fake.server import FakeServer, Rules
from vmproxy.errors import LostContact, NotPermitted, VmproxyError
from vmproxy.model import Target
from vmproxy.transports import SshOptions, _auth, _channel, ssh
from vmproxy.transports.ssh import connect


def says(stdout: bytes = b"", stderr: bytes = b"", status: int | None = 0, *, eof: bool = True) -> Any:
    """An act: these bytes, this status (None: none), then the end, with or without an EOF before it."""

    def act(channel: paramiko.Channel, _command: bytes) -> None:
        channel.sendall(stdout)
        channel.sendall_stderr(stderr)
        if status is not None:
            channel.send_exit_status(status)
        if eof:
            channel.shutdown_write()
        channel.close()

    return act


def test_both_streams_and_the_status(log_in: Callable[..., Any], serve: Callable[..., Any]) -> None:
    """What goes into stdin comes out; stderr is kept apart; the status is the command's own."""
    channel = log_in(serve().port).start("cat; echo oops >&2; exit 3")
    channel.send(b"\x00\xff in\r\n", timeout_seconds=60)
    channel.end_input()
    assert read_all(channel) == b"\x00\xff in\r\n"
    assert channel.wait(timeout_seconds=60) == 3
    assert channel.stderr == b"oops\n"
    channel.close()
    channel.close()


def test_many_channels_side_by_side(log_in: Callable[..., Any], serve: Callable[..., Any]) -> None:
    """One connection carries several commands at once, and one after the other; it logs in once."""
    server = serve()
    connection = log_in(server.port)
    both = [connection.start(f"read x; echo {name} $x") for name in ("a", "b")]
    for channel in reversed(both):
        channel.send(b"in\n", timeout_seconds=60)
    assert [read_all(channel) for channel in both] == [b"a in\n", b"b in\n"]
    assert read_all(connection.start("echo c")) == b"c\n"
    assert server.seen.count("auth publickey good") == 1


def test_output_comes_as_soon_as_it_is_there(log_in: Callable[..., Any], serve: Callable[..., Any]) -> None:
    """A piece is given before the command has ended: a dialogue works."""
    channel = log_in(serve().port).start("while read x; do echo got $x; done")
    for word in (b"one", b"two"):
        channel.send(word + b"\n", timeout_seconds=60)
        assert channel.receive(timeout_seconds=60) == b"got " + word + b"\n"
    channel.end_input()
    assert channel.receive(timeout_seconds=60) == b""
    assert channel.wait(timeout_seconds=60) == 0


def test_big_input_and_output_at_once(log_in: Callable[..., Any], serve: Callable[..., Any]) -> None:
    """Three megabytes through a command and back, more than any window; nothing is lost or changed."""
    data = os.urandom(3 << 20)
    channel = log_in(serve().port).start("cat >/dev/null; echo done")
    channel.send(data, timeout_seconds=60)
    channel.end_input()
    assert read_all(channel) == b"done\n"
    connection = log_in(serve(act=says(data)).port)
    assert read_all(connection.start("x")) == data


def test_five_megabytes_of_stderr_do_not_hang(log_in: Callable[..., Any], serve: Callable[..., Any]) -> None:
    """stderr is drained while stdout is awaited, and the first 64 KiB are kept (LIBRARIES section 4, trap a)."""
    channel = log_in(serve(act=says(b"out", b"e" * (5 << 20))).port).start("x")
    assert read_all(channel) == b"out"
    assert channel.stderr == b"e" * (64 << 10)
    assert channel.wait(timeout_seconds=60) == 0


def test_stderr_is_drained_while_we_send(log_in: Callable[..., Any], serve: Callable[..., Any]) -> None:
    """A command that fills stderr before it reads its input gets its input."""
    command = "head -c 4000000 /dev/zero >&2; cat | wc -c"
    channel = log_in(serve().port).start(command)
    channel.send(b"i" * 3_000_000, timeout_seconds=60)
    channel.end_input()
    assert read_all(channel).strip() == b"3000000"


@pytest.mark.parametrize("eof", [True, False])
@pytest.mark.parametrize("status", [0, 255, None])
def test_ends_of_a_command(
    log_in: Callable[..., Any], serve: Callable[..., Any], status: int | None, eof: bool
) -> None:
    """With and without an exit status, with and without EOF before the close: all bytes, and None for no status."""
    channel = log_in(serve(act=says(b"out", b"err", status, eof=eof)).port).start("x")
    assert read_all(channel) == b"out"
    assert channel.stderr == b"err"
    assert channel.wait(timeout_seconds=60) == status


def test_command_ended_by_a_signal(log_in: Callable[..., Any], serve: Callable[..., Any]) -> None:
    """exit-signal instead of exit-status is no status; it is neither 0 nor a hang."""

    def act(channel: paramiko.Channel, _command: bytes) -> None:
        message = paramiko.Message()
        message.add_byte(bytes([98]))
        message.add_int(channel.remote_chanid)
        message.add_string("exit-signal")
        message.add_boolean(False)
        message.add_string("KILL")
        message.add_boolean(False)
        message.add_string("")
        message.add_string("")
        channel.get_transport()._send_user_message(message)
        channel.close()

    channel = log_in(serve(act=act).port).start("x")
    assert read_all(channel) == b""
    assert channel.wait(timeout_seconds=60) is None


def test_f03_silent_command_times_out(log_in: Callable[..., Any], serve: Callable[..., Any]) -> None:
    """A command that says nothing within its limit is exit 9, for output and for the status; the limit is named."""
    hold = threading.Event()
    channel = log_in(serve(act=lambda _channel, _command: hold.wait(20) and None).port).start("x")
    with pytest.raises(LostContact, match=r"0\.2 s"):
        channel.receive(timeout_seconds=0.2)
    with pytest.raises(LostContact, match=r"0\.2 s"):
        channel.wait(timeout_seconds=0.2)
    hold.set()


def test_f03_what_came_while_we_were_stopped_is_no_silence(
    log_in: Callable[..., Any], serve: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Suspended (^Z) for longer than the limit: what the library's thread has not read by then is waited for."""
    channel = log_in(serve().port).start("sleep 0.5; echo on")
    hours = itertools.chain([0.0], itertools.repeat(3600.0))
    monkeypatch.setattr(_channel, "time", SimpleNamespace(monotonic=lambda: next(hours)))
    monkeypatch.setattr(_channel, "_LAST_LOOK_SECONDS", 60.0)
    assert channel.receive(timeout_seconds=30) == b"on\n"


def test_f03_slow_command_is_waited_for(log_in: Callable[..., Any], serve: Callable[..., Any]) -> None:
    """A slow answer within the limit is no error."""
    channel = log_in(serve().port).start("sleep 0.7; echo late")
    assert read_all(channel, timeout_seconds=60) == b"late\n"


def test_input_that_nobody_reads_times_out(log_in: Callable[..., Any], serve: Callable[..., Any]) -> None:
    """Sending more than the window to a command that does not read is exit 9, not a hang."""
    hold = threading.Event()
    channel = log_in(serve(act=lambda _channel, _command: hold.wait(30) and None).port).start("x")
    with pytest.raises(LostContact, match="no more input"):
        channel.send(b"x" * (8 << 20), timeout_seconds=0.5)
    hold.set()


def test_input_that_was_ended_by_its_limit_says_so(
    log_in: Callable[..., Any], serve: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where our own end of the connection is what the library hears first, and takes for the command's."""
    hold = threading.Event()
    channel = log_in(serve(act=lambda _channel, _command: hold.wait(30) and None).port).start("x")

    def late(_data: bytes) -> int:
        assert comes(lambda: not channel._connection.alive)
        return 0

    monkeypatch.setattr(channel._channel, "send", late)
    with pytest.raises(LostContact, match=r"no more input for 0\.2 s"):
        channel.send(b"x", timeout_seconds=0.2)
    hold.set()


def test_input_to_a_vm_whose_network_went(
    log_in: Callable[..., Any], serve: Callable[..., Any], relay: Callable[..., Any]
) -> None:
    """Where TCP itself takes no more bytes, a send still ends (paramiko's own write does not)."""
    hold = threading.Event()
    server = serve(act=lambda _channel, _command: hold.wait(30) and None)
    stalled = relay(server.port)
    channel = log_in(stalled.port).start("x")
    stalled.hold()
    with pytest.raises(LostContact, match=r"no more input|connection ended"):
        channel.send(b"x" * (64 << 20), timeout_seconds=0.5)
    hold.set()


def test_input_to_a_command_that_has_ended(log_in: Callable[..., Any], serve: Callable[..., Any]) -> None:
    """A closed channel says so; the connection is still good."""
    connection = log_in(serve().port)
    channel = connection.start("exit 4")
    assert read_all(channel) == b""
    assert channel.wait(timeout_seconds=60) == 4

    def send() -> None:
        limit = time.monotonic() + 30
        while time.monotonic() < limit:  # its status came; that it is closed may still be on the way
            channel.send(b"x", timeout_seconds=60)

    with pytest.raises(LostContact, match="has ended"):
        send()
    channel.end_input()
    assert read_all(connection.start("echo on")) == b"on\n"


def test_lost_connection_is_no_end_of_output(
    log_in: Callable[..., Any], serve: Callable[..., Any], relay: Callable[..., Any]
) -> None:
    """A connection that goes in the middle is exit 9, never an empty or a cut answer that looks whole."""
    between = relay(serve().port)
    channel = log_in(between.port).start("echo one; read x")
    assert channel.receive(timeout_seconds=60) == b"one\n"
    between.cut()
    with pytest.raises(LostContact, match="connection ended"):
        channel.receive(timeout_seconds=60)
    with pytest.raises(LostContact):
        channel.wait(timeout_seconds=60)
    with pytest.raises(LostContact):
        channel.send(b"x", timeout_seconds=60)
    channel.end_input()
    channel.close()


@pytest.mark.parametrize("jump", ["", "guard@127.0.0.1:{}"], ids=["directly", "through a jump host"])
def test_lost_connection_is_none_however_late_the_library_says_it(
    log_in: Callable[..., Any],
    serve: Callable[..., Any],
    relay: Callable[..., Any],
    keys: Keys,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    jump: str,
) -> None:
    """It ends the channels first, and its thread may get no turn for a while before it ends the connection."""
    ended, go_on = threading.Event(), threading.Event()
    unlink = paramiko.Channel._unlink  # type: ignore[attr-defined]

    def slowly(channel: paramiko.Channel) -> None:
        unlink(channel)
        ended.set()
        go_on.wait(60)

    (tmp_path / "ssh_config").write_text(f"Host *\n IdentityFile {keys.path('ed25519')}\n IdentitiesOnly yes\n")
    vm = serve(forward=True)
    between = relay((serve(forward=True) if jump else vm).port)
    way = {"jump": jump.format(between.port), "ssh_config": str(tmp_path / "ssh_config")} if jump else {}
    channel = log_in(vm.port if jump else between.port, **way).start("echo one; read x")
    assert channel.receive(timeout_seconds=60) == b"one\n"
    monkeypatch.setattr(paramiko.Channel, "_unlink", slowly)
    try:
        between.cut()
        with pytest.raises(LostContact):
            channel.receive(timeout_seconds=60)
        assert ended.is_set()
    finally:
        go_on.set()


def test_start_on_a_lost_connection(
    log_in: Callable[..., Any], serve: Callable[..., Any], relay: Callable[..., Any]
) -> None:
    """A command cannot be started on a connection that went: exit 9."""
    between = relay(serve().port)
    connection = log_in(between.port)
    between.cut()
    with pytest.raises(LostContact):
        connection.start("true")
    connection.close()
    connection.close()


@pytest.mark.parametrize("rules", [{"refuse_exec": True}, {"refuse_session": True}])
def test_server_that_runs_nothing(
    log_in: Callable[..., Any], serve: Callable[..., Any], rules: dict[str, bool]
) -> None:
    """A server that lets us in but runs no command is exit 5."""
    connection = log_in(serve(**rules).port)
    with pytest.raises(NotPermitted):
        connection.start("true")


def test_f11_endless_output_stops_at_the_cap(log_in: Callable[..., Any], serve: Callable[..., Any]) -> None:
    """A VM that never stops talking is cut off at the limit: exit 9, and the rest is not read."""

    def act(channel: paramiko.Channel, _command: bytes) -> None:
        while True:
            channel.sendall(b"\xff\x1b[2J" * 8192)

    channel = log_in(serve(act=act).port, output_limit_bytes=1 << 20).start("x")
    with pytest.raises(LostContact, match="more than 1048576 bytes"):
        read_all(channel)


def test_f11_endless_stderr_is_bounded(log_in: Callable[..., Any], serve: Callable[..., Any]) -> None:
    """A flood on stderr neither grows our memory nor keeps us past the limit."""

    sent = 0

    def act(channel: paramiko.Channel, _command: bytes) -> None:
        nonlocal sent
        while True:
            channel.sendall_stderr(b"e" * 30000)
            sent += 30000

    channel = log_in(serve(act=act).port).start("x")
    with pytest.raises(LostContact):
        channel.receive(timeout_seconds=0.5)
    limit = time.monotonic() + 60
    while sent < 8 << 20:  # more than any window: it is taken, and dropped
        assert len(channel.stderr) <= 64 << 10
        assert time.monotonic() < limit
    assert len(channel.stderr) == 64 << 10


@pytest.mark.parametrize("kind", ["x11", "forwarded-tcpip", "auth-agent@openssh.com"])
def test_t02_channels_the_server_opens_are_refused(
    log_in: Callable[..., Any], serve: Callable[..., Any], kind: str
) -> None:
    """A VM that opens a channel to our agent, display or ports gets none."""
    server: FakeServer

    def act(channel: paramiko.Channel, command: bytes) -> None:
        server.offer(channel, kind)
        says(b"done")(channel, command)

    server = serve(act=act)
    assert read_all(log_in(server.port).start("x")) == b"done"
    assert server.offers == {kind: "refused"}


def test_t02_nothing_but_the_command_is_asked_for(log_in: Callable[..., Any], serve: Callable[..., Any]) -> None:
    """No pty, agent, X11, environment, subsystem or forwarding is ever requested."""
    server = serve()
    connection = log_in(server.port)
    for _ in range(2):
        read_all(connection.start("true"))
    assert server.seen == ["auth publickey good", *["open session", "exec"] * 2]
    assert server.commands == [b"true"] * 2


def test_t05_the_command_is_sent_as_it_is(log_in: Callable[..., Any], serve: Callable[..., Any]) -> None:
    """Not a byte is added to the constant command."""
    server = serve()
    read_all(log_in(server.port).start("echo 'é' \"$HOME\" | cat"))
    assert server.commands == ["echo 'é' \"$HOME\" | cat".encode()]


def test_long_commands_are_a_bug_of_ours(log_in: Callable[..., Any], serve: Callable[..., Any]) -> None:
    """dropbear ends a connection over a command of 9,000 bytes: we never send one."""
    with pytest.raises(ValueError, match="dropbear"):
        log_in(serve().port).start("x" * 9000)


# P12


def _session(port: int, key: str, *, first: str = "", limit_seconds: float = 30.0) -> tuple[bytes, bytes, int | None]:
    """Log in, run, read; the whole of it."""
    target = Target(
        name="vm", provider="test", host="127.0.0.1", port=port, user="docker", identities=(key,), only_identities=True
    )
    options = SshOptions(known_hosts=os.devnull, connect_timeout_seconds=limit_seconds)
    connection = connect(target, options=options, first=first)
    try:
        channel = connection.start("x")
        channel.send(b"input", timeout_seconds=limit_seconds)
        channel.end_input()
        data = b""
        while piece := channel.receive(timeout_seconds=limit_seconds):
            data += piece
        return data, channel.stderr, channel.wait(timeout_seconds=limit_seconds)
    finally:
        connection.close()


WHOLE = (b"out" * 500, b"err" * 100, 7)


@pytest.fixture(scope="module")
def steady(keys: Keys) -> Any:
    """One server for all examples, which always says the same."""
    rules = Rules(keys=frozenset({keys.blob("ed25519")}), act=says(*WHOLE[:2], WHOLE[2]))
    server = FakeServer([keys.load("host_ed25519")], rules)
    yield server
    server.close()


@pytest.fixture
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Limits of a second, where the connection is to stall."""
    for module, name in ((_auth, "SECONDS"), (ssh, "SECONDS"), (_channel, "_START_SECONDS")):
        monkeypatch.setattr(module, name, 1.0)


@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
@pytest.mark.usefixtures("hurry")
@given(
    offset=st.integers(0, 5200),
    kind=st.sampled_from(["cut_after", "hold_after"]),
    piece_bytes=st.sampled_from([1, 7, 100, 65536]),
    delay=st.sampled_from([0.0, 0.002]),
    first=st.sampled_from(["", "x"]),
)
def test_p12_whole_or_an_error_at_every_byte(
    steady: FakeServer, keys: Keys, offset: int, kind: str, piece_bytes: int, delay: float, first: str
) -> None:
    """The connection ends or stalls after any byte, split and delayed: the whole answer or our error."""
    relay = Relay(steady.port, Faults(piece_bytes=piece_bytes, delay_seconds=delay, **{kind: offset}))
    try:
        outcome: object = _session(relay.port, keys.path("ed25519"), first=first, limit_seconds=1.0)
    except VmproxyError as error:
        outcome = error.exit
    finally:
        relay.close()
    assert outcome in (WHOLE, 4, 5, 9)


@settings(max_examples=10, deadline=None, suppress_health_check=list(HealthCheck))
@given(piece_bytes=st.integers(1, 300), delay=st.sampled_from([0.0, 0.005]))
def test_p12_split_and_late_bytes_change_nothing(
    steady: FakeServer, keys: Keys, piece_bytes: int, delay: float
) -> None:
    """However the bytes are cut and delayed, the answer is the same."""
    relay = Relay(steady.port, Faults(piece_bytes=piece_bytes, delay_seconds=delay))
    try:
        assert _session(relay.port, keys.path("ed25519")) == WHOLE
    finally:
        relay.close()
