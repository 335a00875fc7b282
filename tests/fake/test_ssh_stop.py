"""A signal to another thread during a log-in: the wait for the other side ends there and then, whatever its limit.

Every limit is an hour here, and every wait of the test a minute: what ends in time has been ended.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.fake.conftest import Keys, Silent, read_all
from tests.fake.mute import Mute
from vmproxy.errors import Interrupted, NotPermitted, Unreachable
from vmproxy.stopping import Stop
from vmproxy.transports import _agent, _auth, ssh

HOUR, SECONDS = 3600.0, 60.0
ROOT = Path(__file__).resolve().parents[2]


def closed_by(client: socket.socket) -> bool:
    """Whether that client has closed its end, or does so now."""
    with client:
        with contextlib.suppress(ConnectionResetError):
            while client.recv(4096):
                pass
        return True


def string(data: bytes) -> bytes:
    """RFC 4251 section 5."""
    return struct.pack(">I", len(data)) + data


class MuteAgent(Mute):
    """An ssh-agent that answers no request: none at all, or none but the one for its keys, of which it has one."""

    def __init__(self, path: Path, blob: bytes = b"") -> None:
        self._blob = blob
        super().__init__(path)

    def talk(self, client: socket.socket) -> None:
        while True:
            (length,) = struct.unpack(">I", client.recv(4, socket.MSG_WAITALL))
            request = client.recv(length, socket.MSG_WAITALL)
            if request != b"\x0b" or not self._blob:  # SSH_AGENTC_REQUEST_IDENTITIES
                break
            client.sendall(string(b"\x0c" + struct.pack(">I", 1) + string(self._blob) + string(b"a key")))


@pytest.fixture
def begun(log_in: Callable[..., Any]) -> Callable[..., Callable[[], BaseException]]:
    """``begun(stop, port, …)``: a log-in in a thread of its own; what it returns waits for its end, and says how it
    was."""

    def begin(stop: Stop, port: int, **words: Any) -> Callable[[], BaseException]:
        raised: list[BaseException] = []

        def run() -> None:
            try:
                log_in(port, stoppable=stop.calling, connect_timeout_seconds=HOUR, **words)
            except BaseException as error:
                raised.append(error)

        thread = threading.Thread(target=run, daemon=True)
        thread.start()

        def ended() -> BaseException:
            thread.join(SECONDS)
            assert not thread.is_alive(), "it still waits for its limit"
            return raised[0]

        return ended

    return begin


@pytest.mark.parametrize("busy", [True, False], ids=["dialled by a thread", "dialled by itself"])
def test_f28_a_server_that_does_not_greet_is_not_waited_for(
    begun: Callable[..., Any], silent: Silent, busy: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Connected, no handshake: the socket is closed by us."""
    monkeypatch.setattr(ssh, "first_to_import", lambda: busy)
    stop = Stop()
    ended = begun(stop, silent.port)
    client = silent.client()
    stop.set(2)
    assert isinstance(ended(), Unreachable)
    assert closed_by(client)


@pytest.mark.parametrize("busy", [True, False], ids=["dialled by a thread", "dialled by itself"])
def test_f28_an_address_that_does_not_answer_is_not_waited_for(
    begun: Callable[..., Any], busy: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A connect that hangs, as SYNs are dropped, is ended; also where the signal comes right before it."""
    monkeypatch.setattr(ssh, "first_to_import", lambda: busy)
    stop, connecting = Stop(), threading.Event()
    connect = socket.socket.connect

    def noted(sock: socket.socket, address: Any) -> None:
        connecting.set()
        connect(sock, address)

    with contextlib.ExitStack() as stack:
        deaf = stack.enter_context(socket.socket())
        deaf.bind(("127.0.0.1", 0))
        deaf.listen(0)
        for _ in range(8):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(deaf.getsockname())
        monkeypatch.setattr(socket.socket, "connect", noted)
        ended = begun(stop, deaf.getsockname()[1])
        assert connecting.wait(SECONDS)
        stop.set(2)
        assert isinstance(ended(), Unreachable)


def test_f28_a_name_server_that_does_not_answer_is_not_waited_for(
    begun: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A look-up cannot be ended; who waits for it can."""
    stop, asked, answer = Stop(), threading.Event(), threading.Event()

    def look_up(*_args: object, **_words: object) -> None:
        asked.set()
        answer.wait(SECONDS)
        raise OSError

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    ended = begun(stop, 22, target={"host": "vm.test"})
    try:
        assert asked.wait(SECONDS)
        stop.set(2)
        assert isinstance(ended(), Unreachable)
    finally:
        answer.set()


@pytest.mark.parametrize("first", ["", "cat"], ids=["step by step", "in one burst"])
def test_f28_a_server_that_is_silent_at_the_log_in_is_not_waited_for(
    begun: Callable[..., Any], log_in: Callable[..., Any], serve: Callable[..., Any], relay: Callable[..., Any],
    first: str, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """After the handshake, too; and where that was the burst, the plain way is not taken after it."""
    for module in (_auth, ssh):
        monkeypatch.setattr(module, "SECONDS", HOUR)
    whole = relay(serve().port)
    log_in(whole.port).close()
    whole.close()  # all is counted then
    faulty = relay(serve().port, hold_after=whole.from_server - 40)
    stop = Stop()
    ended = begun(stop, faulty.port, known_hosts=os.devnull, first=first)
    limit = time.monotonic() + SECONDS
    while faulty.from_server < whole.from_server - 40 and time.monotonic() < limit:
        time.sleep(0.02)
    stop.set(2)
    assert isinstance(ended(), Unreachable | NotPermitted)


@pytest.mark.parametrize("kind", ["", "ed25519", "sk"], ids=["which keys", "a signature", "a touch"])
def test_f28_an_agent_that_does_not_answer_is_not_waited_for(
    begun: Callable[..., Any], serve: Callable[..., Any], keys: Keys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    kind: str,
) -> None:  # fmt: skip
    """It is paramiko's thread that waits for a signature, and that one does not notice the end of its connection."""
    for module, limit in ((_auth, "SECONDS"), (ssh, "SECONDS"), (_agent, "_SECONDS"), (_agent, "TOUCH_SECONDS")):
        monkeypatch.setattr(module, limit, HOUR)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("SSH_AUTH_SOCK", str(tmp_path / "agent"))
    security_key = b"".join(map(string, (b"sk-ssh-ed25519@openssh.com", bytes(32), b"ssh:")))
    blob = keys.blob(kind) if kind == "ed25519" else security_key if kind == "sk" else b""
    agent = MuteAgent(tmp_path / "agent", blob)
    stop = Stop()
    try:
        ended = begun(stop, serve().port, target={"only_identities": False, "identities": ()})
        assert agent.asked.wait(SECONDS)
        stop.set(2)
        assert isinstance(ended(), Unreachable | NotPermitted)
        assert agent.left.wait(SECONDS)
        assert not agent.unheard
    finally:
        agent.close()


@contextlib.contextmanager
def crowded(path: Path) -> Iterator[None]:
    """An agent that takes no more clients: its queue is full, and it does not look."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket(socket.AF_UNIX))
        listener.bind(str(path))
        listener.listen(0)
        for _ in range(8):
            filler = stack.enter_context(socket.socket(socket.AF_UNIX))
            filler.setblocking(False)
            try:
                filler.connect(str(path))
            except BlockingIOError:
                break
        else:
            raise AssertionError("it takes ever more")
        yield


def test_f28_an_agent_that_takes_no_clients_is_not_waited_for(
    begun: Callable[..., Any], serve: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A signal ends the wait for its queue."""
    waiting = threading.Event()
    monkeypatch.setattr(_agent, "_SECONDS", HOUR)
    monkeypatch.setattr(_agent, "_AGAIN_SECONDS", HOUR)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("SSH_AUTH_SOCK", str(tmp_path / "agent"))
    connect = socket.socket.connect

    def noted(sock: socket.socket, address: Any) -> None:
        try:
            connect(sock, address)
        except BlockingIOError:
            waiting.set()
            raise

    stop = Stop()
    with crowded(tmp_path / "agent"):
        monkeypatch.setattr(socket.socket, "connect", noted)
        ended = begun(stop, serve().port, target={"only_identities": False, "identities": ()})
        assert waiting.wait(SECONDS)
        stop.set(2)
        assert isinstance(ended(), Unreachable | NotPermitted)


def test_an_agent_that_takes_no_clients_is_none(
    log_in: Callable[..., Any], serve: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After its time the key files are tried."""
    monkeypatch.setattr(_agent, "_SECONDS", 0.2)
    monkeypatch.setenv("SSH_AUTH_SOCK", str(tmp_path / "agent"))
    with crowded(tmp_path / "agent"):
        assert read_all(log_in(serve().port, target={"only_identities": False}).start("echo in")) == b"in\n"


def test_f28_behind_a_jump_host_the_whole_way_is_closed(
    begun: Callable[..., Any], serve: Callable[..., Any], silent: Silent, keys: Keys, tmp_path: Path
) -> None:
    """The VM behind it does not greet: its connection and ours to the jump host end."""
    door = serve(host=("host_rsa",), keys=frozenset({keys.blob("ecdsa")}), forward=True)
    config = tmp_path / "ssh_config"
    config.write_text(
        f"Host door\n HostName 127.0.0.1\n Port {door.port}\n User guard\n"
        f" IdentityFile {keys.path('ecdsa')}\n IdentitiesOnly yes\n"
    )
    stop = Stop()
    ended = begun(stop, silent.port, jump="door", ssh_config=str(config))
    client = silent.client()
    stop.set(2)
    assert isinstance(ended(), Unreachable)
    assert closed_by(client)


def test_f28_after_the_signal_nobody_is_dialled(begun: Callable[..., Any], serve: Callable[..., Any]) -> None:
    """A log-in that would begin then does not."""
    server, stop = serve(), Stop()
    stop.set(15)
    error = begun(stop, server.port)()
    assert isinstance(error, Interrupted) and error.number == 15
    assert server.connections == 0


@pytest.mark.parametrize("by", ["paramiko", "openssh"])
def test_f28_a_signal_ends_several_log_ins(silent: Silent, tmp_path: Path, by: str) -> None:
    """``--jobs 2`` and two VMs that do not greet: exit 143 long before the limit, both connections closed by us."""
    names = ",".join(f"ssh://{user}@127.0.0.1:{silent.port}" for user in ("one", "two"))
    argv = [
        sys.executable,
        "-m",
        "vmproxy",
        "status",
        "--jobs",
        "2",
        "--connect-timeout",
        str(int(HOUR)),
        "--ssh",
        by,
        "--vm",
        names,
    ]
    own = {"HOME": str(tmp_path), "PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(argv, env=own, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        try:
            clients = [silent.client(), silent.client()]
            process.send_signal(signal.SIGTERM)
            out, err = process.communicate(timeout=SECONDS)
        finally:
            process.kill()
    assert process.returncode == 143, (out, err)
    assert all(closed_by(client) for client in clients)
