"""Transport ``ssh``: paramiko, a bare Transport over our own socket.

Measured (PERFORMANCE.md): TCP_NODELAY is the one setting that matters, each wrong key costs two round trips, and the
import of paramiko takes as long as a log-in, so TCP connects meanwhile. The agent, X11 and ports are never forwarded:
nothing here asks for it, and paramiko refuses such channels when a server opens one.
"""

from __future__ import annotations

import contextlib
import getpass
import importlib
import logging
import socket
import sys
import threading
import time
import types
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vmproxy.errors import LostContact, NotPermitted, Unreachable, Untrusted, UsageError
from vmproxy.model import Target, printable
from vmproxy.transports import SshOptions, _known_hosts
from vmproxy.transports._auth import Endpoint, Login
from vmproxy.transports._tcp import Dial, place

if TYPE_CHECKING:
    import paramiko

_STDERR_LIMIT_BYTES = 64 << 10
_COMMAND_LIMIT_BYTES = 8 << 10  # dropbear drops a connection whose command passes about 9,000 bytes
_PIECE_BYTES = 64 << 10
_WEAK = {
    "macs": ["hmac-sha1", "hmac-md5", "hmac-sha1-96", "hmac-md5-96"],
    "ciphers": ["3des-cbc", "aes128-cbc", "aes192-cbc", "aes256-cbc"],
}


def connect(target: Target, *, options: SshOptions) -> SshConnection:
    """Connect, hold the host key against what is known, log in.

    Raises Unreachable (within the connect timeout), Untrusted (before any authentication), NotPermitted, UsageError.
    """
    if options.jump:
        raise UsageError("jump hosts are not supported yet", where=options.jump, hint="connect directly, without -J")
    endpoint = endpoint_of(target, options)
    pin = _known_hosts.check_pin(options.host_key or target.host_key) if options.host_key or target.host_key else ""
    dial = Dial(endpoint.host, endpoint.port, timeout_seconds=options.connect_timeout_seconds)
    known_path = Path(options.known_hosts or target.known_hosts or _known_hosts.default_path()).expanduser()
    name = endpoint.key_name or _known_hosts.host_name(endpoint.host, endpoint.port)
    known = b"" if pin else _known_hosts.read(known_path)
    library = _library()
    sock = dial.result()
    try:
        transport = _handshake(library, sock, dial, known, name)
    except BaseException:
        sock.close()
        raise
    connection = SshConnection(transport, sock, endpoint, options)
    try:
        key = transport.get_remote_server_key()
        blob = key.asbytes()
        if pin:
            _check_pin(pin, _known_hosts.fingerprint(blob), key.get_name(), endpoint)
        elif _known_hosts.trust(known_path, name=name, kind=key.get_name(), blob=blob, data=known):
            options.notify(f"new host key of {printable(name)} kept: {_known_hosts.fingerprint(blob)} ({known_path})")
        Login(transport, endpoint, options, connection.guard).run()
        transport.set_keepalive(options.keepalive_seconds)
    except BaseException:
        connection.close()
        raise
    return connection


def endpoint_of(target: Target, options: SshOptions) -> Endpoint:
    """The target with the user's options, ssh_config (for targets of the ``ssh`` provider only) and defaults."""
    for what, value in (("host", target.host), ("user", target.user)):
        if value.startswith("-") or any(char.isspace() or not char.isprintable() for char in value):
            raise UsageError(f"{printable(value)} is no {what} name")
    if not target.host:
        raise UsageError(f"{printable(target.name)} has no address")
    return Endpoint(
        host=target.host,
        port=target.port or 22,
        user=target.user or _login_name(),
        identities=options.identities + target.identities,
        only_identities=target.only_identities,
        passwords=target.passwords,
    )


def _login_name() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError, ImportError) as error:
        raise UsageError("no log-in name is known", hint="say it: ssh://USER@HOST") from error


_importing = threading.Lock()


class _Later(types.ModuleType):
    """Stands for a module until something of it is used; importlib's LazyLoader loads at the import statement."""

    def __getattr__(self, name: str) -> Any:
        return getattr(importlib.import_module(self.__name__), name)


def _library() -> Any:
    """paramiko, without what it imports and we never use, and without its log lines.

    ``invoke`` serves ``Match exec`` alone and takes half of the import; it is put in as a stand-in, so that another
    user of paramiko in this process still gets it.
    """
    if "paramiko" not in sys.modules and "invoke" not in sys.modules:
        with _importing:
            stand_in = _Later("invoke")
            sys.modules["invoke"] = stand_in
            try:
                import paramiko
            finally:
                if sys.modules.get("invoke") is stand_in:
                    del sys.modules["invoke"]
    import paramiko

    quiet = logging.getLogger("vmproxy.ssh")
    if not quiet.handlers:
        quiet.addHandler(logging.NullHandler())
        quiet.propagate = False
        quiet.setLevel(logging.CRITICAL + 1)
    return paramiko


def _handshake(library: Any, sock: socket.socket, dial: Dial, known: bytes, name: str) -> paramiko.Transport:
    """Banner and key exchange, until the dial's deadline. The server is not yet trusted after it."""
    where = place(dial.host, dial.port)
    transport: paramiko.Transport = library.Transport(sock, disabled_algorithms=_WEAK)
    transport.set_log_channel("vmproxy.ssh")
    transport.banner_timeout = transport.handshake_timeout = 60  # ours, below, is the shorter one
    kinds = [entry.kind for entry in _known_hosts.entries(known, name) if not entry.marker]
    offered = transport.get_security_options()
    first = [kind for kind in offered.key_types if kind in kinds or (kind.startswith("rsa-") and "ssh-rsa" in kinds)]
    offered.key_types = tuple(first) + tuple(kind for kind in offered.key_types if kind not in first)
    done = threading.Event()
    transport.start_client(event=done)
    in_time = done.wait(max(0.05, dial.deadline - time.monotonic()))
    if in_time and transport.is_active():
        return transport
    error = transport.get_exception()
    banner = transport.remote_version
    _shut(transport, sock)
    if not in_time:
        raise Unreachable("connected, but no SSH handshake in time", where=where, hint="--connect-timeout S") from error
    if isinstance(error, library.ssh_exception.IncompatiblePeer):
        raise Unreachable(
            f"no common algorithm with the ssh server {printable(banner, limit=60)}: {printable(str(error), limit=99)}",
            where=where,
            hint="servers that know only ssh-rsa (SHA-1) are not supported: a newer VM, or another key type there",
        ) from error
    detail = printable(str(error), limit=120) if error and str(error) else "the connection ended"
    raise Unreachable(f"no SSH handshake: {detail}", where=where, hint="is this the VM's ssh port?") from error


def _check_pin(pin: str, shown: str, kind: str, endpoint: Endpoint) -> None:
    if shown != pin:
        raise Untrusted(
            f"the host key is {shown} ({printable(kind, limit=40)}), wanted is {pin}; not logging in",
            where=place(endpoint.host, endpoint.port),
            hint="--host-key takes the fingerprint of the VM's key of that type",
        )


def _shut(transport: paramiko.Transport, sock: socket.socket) -> None:
    """Close at once: without the shutdown paramiko's reader notices only after its 100 ms poll."""
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)
    transport.close()
    sock.close()


class _Guard(contextlib.AbstractContextManager["_Guard"]):
    """Ends the connection when the block takes too long: paramiko has writes and waits without a limit."""

    def __init__(self, connection: SshConnection, seconds: float) -> None:
        self.fired = False
        self._connection = connection
        self._timer = threading.Timer(max(0.05, seconds), self._fire)
        self._timer.daemon = True

    def __enter__(self) -> _Guard:
        self._timer.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self._timer.cancel()

    def _fire(self) -> None:
        self.fired = True
        self._connection.close()


class SshConnection:
    """One logged-in connection; implements :class:`vmproxy.transports.Connection`."""

    def __init__(
        self, transport: paramiko.Transport, sock: socket.socket, endpoint: Endpoint, options: SshOptions
    ) -> None:
        self._transport = transport
        self._socket = sock
        self._options = options
        self.place = endpoint.place

    def start(self, command: str) -> SshChannel:
        """Start a command without a pty. Raises LostContact, NotPermitted."""
        if len(command.encode()) > _COMMAND_LIMIT_BYTES:
            raise ValueError("the command is too long for dropbear: it travels on stdin")
        library = _library()
        seconds = max(30.0, self._options.connect_timeout_seconds)
        with self.guard(seconds) as guard:
            try:
                channel = self._transport.open_session(timeout=seconds)
                channel.exec_command(command)
            except (library.SSHException, OSError, EOFError) as error:
                if guard.fired:
                    raise LostContact(f"no answer within {seconds:g} s", where=self.place) from error
                if self._transport.is_active() and not self._ended():
                    raise NotPermitted(
                        "the VM's ssh server does not run commands for us", where=self.place, hint="a forced command?"
                    ) from error
                raise LostContact("the connection ended", where=self.place) from error
        return SshChannel(self, channel, self._options.output_limit_bytes)

    def close(self) -> None:
        """Close; safe to call twice."""
        _shut(self._transport, self._socket)

    def guard(self, seconds: float) -> _Guard:
        """A block that may take that long; then the connection is closed."""
        return _Guard(self, seconds)

    def _ended(self) -> bool:
        """Whether the connection itself is gone (its reader has ended, or is about to)."""
        self._transport.join(0.2)
        return not self._transport.is_alive() or not self._transport.is_active()


class SshChannel:
    """One running command; implements :class:`vmproxy.transports.Channel`. Not for two threads at once."""

    def __init__(self, connection: SshConnection, channel: paramiko.Channel, output_limit_bytes: int) -> None:
        self._connection = connection
        self._channel = channel
        self._left_bytes = self._limit_bytes = output_limit_bytes
        self._stderr = bytearray()
        self._stirred = threading.Event()
        # Both pipes stir one event; it is looked at only after both were found empty, so no wake-up is lost.
        channel.in_buffer.set_event(self._stirred)
        channel.in_stderr_buffer.set_event(self._stirred)

    def send(self, data: bytes, *, timeout_seconds: float) -> None:
        """Write all of ``data``; stderr is drained meanwhile, so that the two sides cannot wait for each other."""
        deadline = time.monotonic() + timeout_seconds
        view = memoryview(data)
        with self._connection.guard(timeout_seconds + 1.0) as guard:
            while view:
                left = deadline - time.monotonic()
                try:
                    if left <= 0:
                        raise LostContact(f"the VM took no more input for {timeout_seconds:g} s", where=self._place)
                    self._channel.settimeout(min(left, 0.25))
                    sent = self._channel.send(bytes(view[:_PIECE_BYTES]))
                    if sent == 0:
                        raise LostContact("the command in the VM no longer reads its input", where=self._place)
                    view = view[sent:]
                except TimeoutError:
                    self._drain_stderr()
                except (OSError, EOFError) as error:
                    what = f"the VM took no more input for {timeout_seconds:g} s" if guard.fired else self._why_closed()
                    raise LostContact(what, where=self._place) from error

    def receive(self, *, timeout_seconds: float) -> bytes:
        """The next piece of stdout, b"" at its end. Raises LostContact on time-out, loss, or too much output."""
        deadline = time.monotonic() + timeout_seconds
        while True:
            self._drain_stderr()
            if self._channel.recv_ready():
                piece = self._channel.recv(_PIECE_BYTES)
                self._left_bytes -= len(piece)
                if self._left_bytes < 0:
                    self.close()
                    raise LostContact(f"the VM sends more than {self._limit_bytes} bytes", where=self._place)
                return piece
            if self._channel.closed or self._channel.eof_received:
                if self._channel.recv_ready() or self._channel.recv_stderr_ready():
                    continue  # it came between the two looks
                self._check_end()
                return b""
            left = deadline - time.monotonic()
            if left <= 0:
                raise LostContact(f"no output from the VM for {timeout_seconds:g} s", where=self._place)
            self._stirred.wait(left)

    def end_input(self) -> None:
        """Close the command's stdin. A connection that is already gone is noticed by the next receive."""
        with self._connection.guard(10.0), contextlib.suppress(OSError, EOFError):
            self._channel.shutdown_write()

    def wait(self, *, timeout_seconds: float) -> int | None:
        """The exit status after stdout has ended; None where the VM gave none. Raises LostContact."""
        if not self._channel.status_event.wait(timeout_seconds):
            raise LostContact(f"no exit status from the VM within {timeout_seconds:g} s", where=self._place)
        self._drain_stderr()
        status = self._channel.exit_status
        if status < 0:
            if self._connection._ended():
                raise LostContact("the connection ended", where=self._place)
            return None
        return status

    @property
    def stderr(self) -> bytes:
        """What came on stderr so far, at most 64 KiB."""
        self._drain_stderr()
        return bytes(self._stderr)

    def close(self) -> None:
        """End the channel; safe to call twice."""
        with self._connection.guard(10.0), contextlib.suppress(OSError, EOFError):
            self._channel.close()

    @property
    def _place(self) -> str:
        return self._connection.place

    def _drain_stderr(self) -> None:
        while self._channel.recv_stderr_ready():
            piece = self._channel.recv_stderr(_PIECE_BYTES)
            self._stderr += piece[: _STDERR_LIMIT_BYTES - len(self._stderr)]

    def _check_end(self) -> None:
        """An end of output that the VM announced is an end; one because the connection went is a loss."""
        if not self._channel.eof_received and self._channel.exit_status < 0 and self._connection._ended():
            raise LostContact("the connection ended in the middle of a command", where=self._place)

    def _why_closed(self) -> str:
        return "the connection ended" if self._connection._ended() else "the command in the VM has ended"
