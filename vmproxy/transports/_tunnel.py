"""A TCP connection that a jump host makes for us: a direct-tcpip channel (RFC 4254 section 7.2) in a socket's place."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING, Any

from vmproxy.errors import Unreachable
from vmproxy.model import printable
from vmproxy.transports._tcp import place

if TYPE_CHECKING:
    import paramiko

    from vmproxy.transports._channel import SshConnection

_PROHIBITED = 1  # RFC 4254 section 5.1


class Passage:
    """The channel as a socket. Closing it never fails, also when the connection below went first."""

    def __init__(self, channel: paramiko.Channel) -> None:
        self._channel = channel

    def __getattr__(self, name: str) -> Any:
        return getattr(self._channel, name)

    @property
    def _closed(self) -> bool:  # paramiko looks for this word of socket.socket's
        return self._channel.closed

    @property
    def at_its_end(self) -> bool:
        """Whether it was closed, by whatever side, and all that came was read."""
        return bool(self._channel.closed or self._channel.eof_received) and not self._channel.recv_ready()

    def close(self) -> None:
        """Close; safe to call twice."""
        with contextlib.suppress(OSError, EOFError):
            self._channel.close()

    def shutdown(self, how: int) -> None:
        """As of a socket."""
        with contextlib.suppress(OSError, EOFError):
            self._channel.shutdown(how)


class Tunnel:
    """As :class:`vmproxy.transports._tcp.Dial`, from a host that we are logged in to. Nothing else is asked of it."""

    def __init__(self, below: SshConnection, host: str, port: int, *, timeout_seconds: float) -> None:
        self.host = host
        self.port = port
        self.deadline = time.monotonic() + timeout_seconds
        self._below = below
        self._timeout_seconds = timeout_seconds

    def result(self) -> Passage:
        """The open channel. Raises Unreachable at the deadline at the latest."""
        import paramiko

        where = f"{place(self.host, self.port)} from {self._below.place}"
        left = max(0.05, self.deadline - time.monotonic())
        with self._below.guard(left + 1.0):
            try:
                return Passage(self._below.forward(self.host, self.port, timeout_seconds=left))
            except paramiko.ChannelException as error:
                if error.code == _PROHIBITED:
                    raise Unreachable(
                        "the jump host does not pass connections on",
                        where=where,
                        hint="AllowTcpForwarding in the jump host's sshd_config",
                    ) from error
                reason = printable(str(error.text), limit=80).lower()
                raise Unreachable(
                    f"the jump host cannot connect: {reason}",
                    where=where,
                    hint="is the VM running, and its ssh server?",
                ) from error
            except (paramiko.SSHException, OSError, EOFError) as error:
                if time.monotonic() < self.deadline and not self._below.alive:
                    raise Unreachable("the connection to the jump host ended", where=where) from error
                raise Unreachable(
                    f"no answer within {self._timeout_seconds:g} s",
                    where=where,
                    hint="is the VM running? --connect-timeout S",
                ) from error
