"""A strict, stateful SSH server on loopback that remembers what it was asked, and misbehaves where it is told to.

It runs real commands with ``sh``, or one of the acts below. Whatever a client has no business asking for (a pty, the
agent, X11, forwarding, a second command in one channel) is refused and written down in ``seen``.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import paramiko
from paramiko.common import (
    AUTH_FAILED,
    AUTH_PARTIALLY_SUCCESSFUL,
    AUTH_SUCCESSFUL,
    MSG_NAMES,
    OPEN_FAILED_ADMINISTRATIVELY_PROHIBITED,
    OPEN_FAILED_CONNECT_FAILED,
    OPEN_SUCCEEDED,
)

_QUIET = logging.getLogger("fake-ssh-server")
_QUIET.addHandler(logging.NullHandler())
_QUIET.propagate = False
_QUIET.setLevel(logging.CRITICAL + 1)

_SECONDS = 60.0

Act = Callable[[paramiko.Channel, bytes], None]


@dataclass
class Rules:
    """Who is let in, and how commands go. ``forward``: it is a jump host, which connects to where it is asked to."""

    keys: frozenset[bytes] = frozenset()
    passwords: dict[str, str] = field(default_factory=dict)
    interactive: bool = False
    none: bool = False
    both: bool = False
    act: Act | None = None
    refuse_exec: bool = False
    refuse_session: bool = False
    first_channel: int = 0
    first_bytes: bytes | None = None
    then_silent: bool = False
    server_algorithms: dict[str, list[str]] = field(default_factory=dict)
    version: str = ""
    close_after_failures: int = 10
    forward: bool = False


class FakeServer:
    """Listens on 127.0.0.1; ``seen`` is everything asked for, ``packets`` the SSH messages that came, by name."""

    def __init__(self, host_keys: list[paramiko.PKey], rules: Rules) -> None:
        self.rules = rules
        self.host_keys = host_keys
        self.seen: list[str] = []
        self.packets: list[str] = []
        self.commands: list[bytes] = []
        self.offers: dict[str, str] = {}
        self.connections = 0
        self._transports: list[paramiko.Transport] = []
        self._idle: dict[paramiko.Transport, threading.Event] = {}
        self._sockets: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._children: list[subprocess.Popen[bytes]] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._closing = False
        self._spawn(self._accept)

    def close(self) -> None:
        """End everything this server has; threads are waited for."""
        self._closing = True
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._threads[0].join(_SECONDS)  # from here on nobody comes any more
        self._listener.close()
        for sock in self._sockets:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        for transport in self._transports:
            transport.close()
        for answered in list(self._idle.values()):
            answered.set()
        for child in self._children:
            child.kill()
            child.wait()
        for thread in self._threads:  # one that is only about to end may start another
            thread.join(_SECONDS)
            assert not thread.is_alive(), f"{thread} of the fake server did not end"
        for sock in self._sockets:
            sock.close()

    def auth_packets(self) -> int:
        """How many authentication requests came."""
        return self.packets.count("userauth-request") + self.packets.count("service-request")

    def run(self, channel: paramiko.Channel, command: bytes) -> None:
        """One exec in a thread of its own."""
        self.commands.append(command)
        answered = self._idle[channel.get_transport()]
        answered.clear()
        self._spawn(lambda: answered.wait(_SECONDS) and self._run(channel, command))

    def _spawn(self, target: Callable[[], None]) -> None:
        thread = threading.Thread(target=target, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            self._keep(sock)
            if self.rules.first_bytes is not None:
                with contextlib.suppress(OSError):
                    sock.sendall(self.rules.first_bytes)
                if not self.rules.then_silent:
                    sock.close()
                continue
            self._spawn(lambda sock=sock: self._serve(sock))  # type: ignore[misc]

    def _keep(self, sock: socket.socket) -> None:
        """It is closed with the server, also where that is closing already."""
        self._sockets.append(sock)
        if self._closing:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def _serve(self, sock: socket.socket) -> None:
        with contextlib.suppress(paramiko.SSHException, EOFError, OSError):  # the client may be gone at any step
            self._greet(sock)

    def _greet(self, sock: socket.socket) -> None:
        transport = paramiko.Transport(sock)
        self._transports.append(transport)
        transport.set_log_channel("fake-ssh-server")
        if self.rules.version:
            transport.local_version = self.rules.version
        for key in self.host_keys:
            transport.add_server_key(key)
        options = transport.get_security_options()
        for name, values in self.rules.server_algorithms.items():
            setattr(options, name, values)
        transport._channel_counter = self.rules.first_channel
        self._count(transport)
        transport.start_server(server=_Interface(self, transport))

    def _count(self, transport: paramiko.Transport) -> None:
        read = transport.packetizer.read_message

        answered = self._idle[transport] = threading.Event()

        def counted() -> tuple[int, paramiko.Message]:
            answered.set()  # the reply to the last request is out: an act may begin
            kind, message = read()
            self.packets.append(str(MSG_NAMES.get(kind, kind)))
            return kind, message

        transport.packetizer.read_message = counted

    def _run(self, channel: paramiko.Channel, command: bytes) -> None:
        with contextlib.suppress(OSError, EOFError, paramiko.SSHException):
            (self.rules.act or self.shell)(channel, command)

    def shell(self, channel: paramiko.Channel, command: bytes) -> None:
        """Run it with sh, as sshd does: stdin until its end, both outputs, the status, the end."""
        child = subprocess.Popen(
            ["sh", "-c", command.decode()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        self._children.append(child)
        if self._closing:  # who ends them may not have seen this one
            child.kill()
        assert child.stdin
        assert child.stdout
        assert child.stderr

        def feed() -> None:
            with contextlib.suppress(OSError, EOFError):
                while data := channel.recv(65536):
                    child.stdin.write(data)
                    child.stdin.flush()
            with contextlib.suppress(OSError):
                child.stdin.close()

        def copy(stream: object, send: Callable[[bytes], None]) -> None:
            with contextlib.suppress(OSError, EOFError):
                while data := stream.read1(65536):  # type: ignore[attr-defined]
                    send(data)

        with child.stdout, child.stderr:  # the client may be gone at any of these steps
            self._spawn(feed)
            errors = threading.Thread(target=copy, args=(child.stderr, channel.sendall_stderr), daemon=True)
            errors.start()
            copy(child.stdout, channel.sendall)
            errors.join()
            if (status := child.wait()) >= 0:  # one that a signal ended has no exit-status
                channel.send_exit_status(status)
            channel.shutdown_write()
            channel.close()

    def pass_on(self, transport: paramiko.Transport, number: int, sock: socket.socket) -> None:
        """Join the channel of that number, once it is open, and the socket."""
        self._keep(sock)

        def join() -> None:
            deadline, channel = time.monotonic() + _SECONDS, None
            while (channel is None or channel.chanid != number) and not self._closing and time.monotonic() < deadline:
                channel = transport.accept(0.5)
            if channel is None or channel.chanid != number:
                return
            self._spawn(lambda: up(channel))
            with contextlib.suppress(OSError, EOFError):
                while data := sock.recv(65536):
                    channel.sendall(data)
            with contextlib.suppress(OSError, EOFError):
                channel.close()

        def up(channel: paramiko.Channel) -> None:
            with contextlib.suppress(OSError, EOFError):
                while data := channel.recv(65536):
                    sock.sendall(data)
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

        self._spawn(join)

    def offer(self, channel: paramiko.Channel, kind: str) -> None:
        """Ask the client for a channel it must not give: x11, forwarded-tcpip or the agent; note what it says."""
        transport = channel.get_transport()
        try:
            if kind == "x11":
                transport.open_x11_channel(("127.0.0.1", 6000))
            elif kind == "forwarded-tcpip":
                transport.open_forwarded_tcpip_channel(("127.0.0.1", 1), ("127.0.0.1", 2))
            else:
                transport.open_forward_agent_channel()
            self.offers[kind] = "accepted"
        except paramiko.SSHException:
            self.offers[kind] = "refused"


class _Interface(paramiko.ServerInterface):
    """paramiko's questions, answered by the rules of one server; one object a connection."""

    def __init__(self, server: FakeServer, transport: paramiko.Transport) -> None:
        self._server = server
        self._transport = transport
        self._rules = server.rules
        self._passed: set[str] = set()
        self._failures = 0
        self._running: set[int] = set()

    def _judge(self, method: str, good: bool) -> int:
        self._server.seen.append(f"auth {method} {'good' if good else 'bad'}")
        if not good:
            self._failures += 1
            return AUTH_FAILED
        self._passed.add(method)
        if self._rules.both and self._passed < {"publickey", "password"}:
            return AUTH_PARTIALLY_SUCCESSFUL
        return AUTH_SUCCESSFUL

    def get_allowed_auths(self, username: str) -> str:
        methods = ["publickey"] if self._rules.keys else []
        methods += ["keyboard-interactive" if self._rules.interactive else "password"] if self._rules.passwords else []
        return ",".join(methods) or "publickey"

    def check_auth_none(self, username: str) -> int:
        self._server.seen.append("auth none")
        return AUTH_SUCCESSFUL if self._rules.none else AUTH_FAILED

    def check_auth_publickey(self, username: str, key: paramiko.PKey) -> int:
        return self._judge("publickey", key.asbytes() in self._rules.keys)

    def check_auth_password(self, username: str, password: str) -> int:
        right = not self._rules.interactive and self._rules.passwords.get(username) == password
        return self._judge("password", right)

    def check_auth_interactive(self, username: str, submethods: str) -> int | paramiko.InteractiveQuery:
        if not self._rules.interactive:
            return AUTH_FAILED
        self._user = username
        return paramiko.InteractiveQuery("", "", ("Password: ", False))

    def check_auth_interactive_response(self, responses: list[str]) -> int:
        return self._judge("password", responses == [self._rules.passwords.get(self._user)])

    def check_channel_request(self, kind: str, chanid: int) -> int:
        self._server.seen.append(f"open {kind}")
        if kind == "session" and not self._rules.refuse_session:
            return OPEN_SUCCEEDED
        return OPEN_FAILED_ADMINISTRATIVELY_PROHIBITED

    def check_channel_exec_request(self, channel: paramiko.Channel, command: bytes) -> bool:
        self._server.seen.append("exec")
        if self._rules.refuse_exec or channel.chanid in self._running:
            return False
        self._running.add(channel.chanid)
        self._server.run(channel, command)
        return True

    def check_channel_pty_request(self, *args: object) -> bool:
        self._server.seen.append("pty")
        return False

    def check_channel_shell_request(self, channel: paramiko.Channel) -> bool:
        self._server.seen.append("shell")
        return False

    def check_channel_subsystem_request(self, channel: paramiko.Channel, name: str) -> bool:
        self._server.seen.append(f"subsystem {name}")
        return False

    def check_channel_x11_request(self, *args: object) -> bool:
        self._server.seen.append("x11")
        return False

    def check_channel_forward_agent_request(self, channel: paramiko.Channel) -> bool:
        self._server.seen.append("agent")
        return False

    def check_channel_env_request(self, channel: paramiko.Channel, name: bytes, value: bytes) -> bool:
        self._server.seen.append("env")
        return False

    def check_port_forward_request(self, address: str, port: int) -> bool:
        self._server.seen.append("port forward")
        return False

    def check_channel_direct_tcpip_request(self, chanid: int, _origin: object, to: tuple[str, int]) -> int:
        self._server.seen.append(f"direct-tcpip {to[0]}:{to[1]}")
        if not self._rules.forward:
            return OPEN_FAILED_ADMINISTRATIVELY_PROHIBITED
        try:
            sock = socket.create_connection(to, timeout=_SECONDS)
        except OSError:
            return OPEN_FAILED_CONNECT_FAILED
        sock.settimeout(None)
        self._server.pass_on(self._transport, chanid, sock)
        return OPEN_SUCCEEDED
