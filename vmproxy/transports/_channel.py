"""A logged-in SSH connection and its channels: every wait has a limit, both streams are drained at once."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from typing import TYPE_CHECKING

from vmproxy.errors import LostContact, NotPermitted
from vmproxy.transports import SshOptions
from vmproxy.transports._watch import WATCH

if TYPE_CHECKING:
    import paramiko

    from vmproxy.transports._tunnel import Passage

_STDERR_LIMIT_BYTES = 64 << 10
_COMMAND_LIMIT_BYTES = 8 << 10  # dropbear drops a connection whose command passes about 9,000 bytes
_PIECE_BYTES = 64 << 10
_START_SECONDS = 30.0
_SETTLE_SECONDS = 20.0
_SETTLE_OTHERS_SECONDS = 1.0
_LAST_LOOK_SECONDS = 0.5


def shut(transport: paramiko.Transport, sock: socket.socket | Passage) -> None:
    """Close at once: without the shutdown paramiko's reader notices only after its 100 ms poll."""
    with contextlib.suppress(OSError, EOFError):
        sock.shutdown(socket.SHUT_RDWR)
    transport.close()
    sock.close()


def _is_at_its_end(sock: socket.socket | Passage) -> bool:
    """Whether the other side, or we, closed it, and all that came was read. paramiko ends the channels of a lost
    connection before the connection, so that a reader which gets no turn for a while would not look ended."""
    if not isinstance(sock, socket.socket):
        return sock.at_its_end
    try:
        return not sock.recv(1, socket.MSG_PEEK)  # it has a time limit of paramiko's, of 0.1 s
    except TimeoutError:
        return False
    except OSError:
        return True


class _Guard(contextlib.AbstractContextManager["_Guard"]):
    """Ends the connection when the block takes too long: paramiko has writes and waits without a limit."""

    def __init__(self, connection: SshConnection, seconds: float) -> None:
        self.fired = False
        self._connection = connection
        self._seconds = max(0.05, seconds)

    def __enter__(self) -> _Guard:
        self._token = WATCH.add(self._seconds, self._fire)
        return self

    def __exit__(self, *_exc: object) -> None:
        WATCH.drop(self._token)

    def _fire(self) -> None:
        self.fired = True
        self._connection.close()


class SshConnection:
    """One logged-in connection; implements :class:`vmproxy.transports.Connection`.

    ``below`` is the connection to a jump host that ``sock`` leads through; it is closed with this one.
    """

    def __init__(
        self,
        transport: paramiko.Transport,
        sock: socket.socket | Passage,
        place: str,
        options: SshOptions,
        below: SshConnection | None = None,
    ) -> None:
        self._transport = transport
        self._socket = sock
        self.below = below
        self._options = options
        self.place = place
        self._kept: tuple[str, paramiko.Channel] | None = None
        self._started: list[paramiko.Channel] = []

    def keep(self, command: str, channel: paramiko.Channel) -> None:
        """A command that was started along with the log-in, for the first :meth:`start` of it."""
        self._kept = (command, channel)
        self._started.append(channel)

    def start(self, command: str) -> SshChannel:
        """Start a command without a pty. Raises LostContact, NotPermitted."""
        if len(command.encode()) > _COMMAND_LIMIT_BYTES:
            raise ValueError("the command is too long for dropbear: it travels on stdin")
        kept, self._kept = self._kept, None
        if kept is not None:
            if kept[0] == command:
                return SshChannel(self, kept[1], self._options.output_limit_bytes)
            kept[1].close()
        import paramiko

        seconds = max(_START_SECONDS, self._options.connect_timeout_seconds)
        with self.guard(seconds) as guard:
            self._settle()
            try:
                channel = self._transport.open_session(timeout=seconds)
                channel.exec_command(command)
            except (paramiko.SSHException, OSError, EOFError) as error:
                if guard.fired:
                    raise LostContact(f"no answer within {seconds:g} s", where=self.place) from error
                if self._transport.is_active() and not self._ended():
                    raise NotPermitted(
                        "the VM's ssh server does not run commands for us", where=self.place, hint="a forced command?"
                    ) from error
                raise LostContact("the connection ended", where=self.place) from error
        self._started.append(channel)
        return SshChannel(self, channel, self._options.output_limit_bytes)

    def close(self) -> None:
        """Close; safe to call twice. The lowest comes first: then nothing above can wait for a peer that is gone."""
        if self.below is not None:
            self.below.close()
        shut(self._transport, self._socket)

    @property
    def alive(self) -> bool:
        """Whether the connection is still there, as far as is known."""
        return self._transport.is_active() and not self._ended()

    def forward(self, host: str, port: int, *, timeout_seconds: float) -> paramiko.Channel:
        """A TCP connection from there on. Raises what paramiko raises."""
        return self._transport.open_channel("direct-tcpip", (host, port), ("127.0.0.1", 0), timeout=timeout_seconds)

    def guard(self, seconds: float) -> _Guard:
        """A block that may take that long; then the connection is closed."""
        return _Guard(self, seconds)

    def _settle(self) -> None:
        """Let channels that are ending end.

        dropbear (2022.83) closes a channel that is opened while the process of another one ends, before the command
        has come, and then drops the connection over that command: seen in one of twenty starts, and in each where it
        was stopped for a while. It is waited for as long as a busy machine may need. Others lose nothing, and OpenSSH's
        keeps a channel that we have closed for as long as its command goes on.
        """
        fragile = "dropbear" in (self._transport.remote_version or "")
        deadline = time.monotonic() + (_SETTLE_SECONDS if fragile else _SETTLE_OTHERS_SECONDS)
        for channel in self._started:
            while (channel.closed or channel.eof_received) and not self._is_gone(channel):
                if time.monotonic() > deadline:
                    return
                time.sleep(0.002)
        self._started = [channel for channel in self._started if not self._is_gone(channel)]

    def _is_gone(self, channel: paramiko.Channel) -> bool:
        """Whether both sides have closed it: ``closed`` alone is true as soon as one side has."""
        known = getattr(self._transport, "_channels", None)
        return channel.closed if known is None else known.get(channel.get_id()) is None

    def _ended(self) -> bool:
        """Whether the connection itself is gone (its reader has ended, or is about to, however long it takes)."""
        self._transport.join(0.2)
        return not self._transport.is_alive() or not self._transport.is_active() or _is_at_its_end(self._socket)


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
        late = f"the VM took no more input for {timeout_seconds:g} s"
        view = memoryview(data)
        with self._connection.guard(timeout_seconds + 1.0) as guard:
            while view:
                left = deadline - time.monotonic()
                try:
                    if left <= 0:
                        raise LostContact(late, where=self._place)
                    self._channel.settimeout(min(left, 0.25))
                    sent = self._channel.send(bytes(view[:_PIECE_BYTES]))
                    if sent == 0:  # closed while it waited for room, by the VM or by the guard
                        what = late if guard.fired else "the command in the VM no longer reads its input"
                        raise LostContact(what, where=self._place)
                    view = view[sent:]
                except TimeoutError:
                    self._drain_stderr()
                except (OSError, EOFError) as error:
                    what = late if guard.fired else self._why_closed()
                    raise LostContact(what, where=self._place) from error

    def receive(self, *, timeout_seconds: float) -> bytes:
        """The next piece of stdout, b"" at its end. Raises LostContact on time-out, loss, or too much output."""
        deadline = time.monotonic() + timeout_seconds
        looked = False
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
                if looked:
                    raise LostContact(f"no output from the VM for {timeout_seconds:g} s", where=self._place)
                # While this process was stopped (^Z) its time went by; paramiko's thread has still to read what came.
                looked, left = True, _LAST_LOOK_SECONDS
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
