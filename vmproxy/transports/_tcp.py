"""A TCP connection that is made in the background while slow things are imported or a name is looked up."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time
from collections.abc import Callable

from vmproxy.errors import Unreachable
from vmproxy.model import printable
from vmproxy.transports._jump import NAME_HINT

_TCP_INFO_BYTES, _RTT_OFFSET = 72, 68
"""struct tcp_info (linux/tcp.h): eight bytes, then words of four; the sixteenth of them is tcpi_rtt."""
_AGAIN_SECONDS = 0.05
GREETING = "SSH-2.0-vmproxy"
"""The line with which we say who we are (RFC 4253 section 4.2), without its end."""


def place(host: str, port: int) -> str:
    """``host:port`` for people, IPv6 in brackets, always printable."""
    return printable(f"[{host}]:{port}" if ":" in host else f"{host}:{port}")


_Address = tuple[int, tuple[str, int] | tuple[str, int, int, int]]
"""A socket's family, and what its connect takes."""


def _literal(host: str, port: int) -> list[_Address]:
    """The one address that ``host`` is, where it is an address as it stands and nobody has to be asked for it."""
    with contextlib.suppress(OSError, ValueError):
        socket.inet_pton(socket.AF_INET, host)
        return [(socket.AF_INET, (host, port))]
    with contextlib.suppress(OSError, ValueError):
        socket.inet_pton(socket.AF_INET6, host)
        return [(socket.AF_INET6, (host, port, 0, 0))]
    return []


def _looked_up(host: str, port: int) -> list[_Address]:
    """All addresses of a name. As bytes a name is taken as it is: to Python's own IDNA, which only other names need,
    belong four modules. Raises OSError, UnicodeError."""
    name = host.encode("ascii") if host.isascii() else host
    return [(info[0], info[4]) for info in socket.getaddrinfo(name, port, type=socket.SOCK_STREAM)]  # type: ignore[misc]


class Line:
    """What a log-in hangs on, for another thread that has to end it: then every wait for the other side ends."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._cut = False
        self._ends: list[Callable[[], None]] = []

    def hangs_on(self, end: Callable[[], None]) -> None:
        """From now on :meth:`cut` calls ``end`` too; at once where it was cut already."""
        with self._lock:
            self._ends.append(end)
            cut = self._cut
        if cut:
            end()

    def cut(self) -> None:
        """End it, and whatever it comes to hang on later."""
        with self._lock:
            self._cut = True
            ends = tuple(self._ends)
        for end in ends:
            end()


class Dial:
    """One connection attempt over all addresses of a name, started at once in a daemon thread.

    The thread also takes the name look-up, which has no time limit of its own; where there is neither a name to look up
    nor anything to be done meanwhile (not ``busy``), there is none. Nothing here reads ``*_proxy``. Where ``line`` is
    cut the attempt ends, and so does the connection that came of it.
    """

    def __init__(
        self, host: str, port: int, *, timeout_seconds: float, busy: bool = True, line: Line | None = None
    ) -> None:
        self.host = host
        self.port = port
        self.deadline = time.monotonic() + timeout_seconds
        self._timeout_seconds = timeout_seconds
        self._socket: socket.socket | None = None
        self._error: Exception | None = None
        self._trying: socket.socket | None = None
        self._given_up = False
        self._over = threading.Event()
        self._lock = threading.Lock()
        self._addresses = _literal(host, port)
        self._waited_for = False
        if line is not None:
            line.hangs_on(self.give_up)
        if not busy and self._addresses:
            self._waited_for = True
            self._run()
        else:
            threading.Thread(target=self._run, name="vmproxy-dial", daemon=True).start()

    def result(self) -> socket.socket:
        """The connected socket. Raises Unreachable at the deadline at the latest, with host and port."""
        self._over.wait(max(0.0, self.deadline - time.monotonic()) + 0.05)
        with self._lock:
            self._given_up = True
            if self._socket is not None:
                return self._socket
        where = place(self.host, self.port)
        error = self._error
        if isinstance(error, socket.gaierror):
            raise Unreachable("the host name is not known", where=where, hint=NAME_HINT) from error
        if error is None or isinstance(error, TimeoutError):
            raise Unreachable(
                f"no answer within {self._timeout_seconds:g} s",
                where=where,
                hint="is the VM running? --connect-timeout S",
            ) from error
        reason = printable(getattr(error, "strerror", None) or str(error)).lower()
        raise Unreachable(
            f"cannot connect: {reason}", where=where, hint="is the VM running, and its ssh server?"
        ) from error

    def give_up(self) -> None:
        """End it from another thread: :meth:`result`, and every wait on the socket that it gave."""
        with self._lock:
            self._given_up = True
        if self._waited_for:
            # A shutdown before the connect is begun is forgotten, and ends one under way only where the system lets it.
            while not self._over.wait(_AGAIN_SECONDS) and time.monotonic() < self.deadline:
                _hang_up(self._trying)
        self._over.set()
        _hang_up(self._socket or self._trying)

    def _run(self) -> None:
        try:
            self._make()
        finally:
            self._over.set()

    def _make(self) -> None:
        try:
            found = self._connect()
        except (OSError, UnicodeError) as error:
            self._error = error if isinstance(error, OSError) else socket.gaierror(str(error))
            return
        with self._lock:
            if not self._given_up:
                self._socket = found
                return
        found.close()

    def _connect(self) -> socket.socket:
        addresses = self._addresses or _looked_up(self.host, self.port)
        last: OSError = OSError("the name has no address")
        for index, (family, address) in enumerate(addresses):
            left = self.deadline - time.monotonic()
            if left <= 0 or self._given_up:
                raise TimeoutError
            sock = self._trying = _Greeter(family, socket.SOCK_STREAM)
            try:
                sock.settimeout(left / (len(addresses) - index))
                sock.connect(address)
                _tune(sock)
                sock.greet()
                return sock
            except OSError as error:
                sock.close()
                last = error
        raise last


class _Greeter(socket.socket):
    """A socket that has greeted the server already when the library comes to it.

    Both sides greet without waiting for each other, and the server's first packet comes in answer to our line: so it is
    there when the library has been imported, a round trip earlier.
    """

    _ahead = b""

    def greet(self) -> None:
        """Send our line now; where that fails, the library's own try will say why."""
        line = f"{GREETING}\r\n".encode("ascii")
        with contextlib.suppress(OSError):
            self._ahead = line[: super().send(line)]

    def send(self, data: bytes, flags: int = 0) -> int:  # type: ignore[override]
        """As of a socket; what was sent ahead is not sent twice."""
        ahead, self._ahead = self._ahead, b""
        if ahead and data[: len(ahead)] == ahead:
            return len(ahead)
        return super().send(data, flags)


def _hang_up(sock: socket.socket | None) -> None:
    """Wake up whoever waits on it; one that is closed, or not there, has nobody."""
    with contextlib.suppress(OSError):
        if sock is not None:
            sock.shutdown(socket.SHUT_RDWR)


def round_trip(sock: socket.socket) -> float | None:
    """Seconds, as the kernel has measured it on this connection (tcp(7): TCP_INFO, Linux); None elsewhere."""
    try:
        said = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_BYTES)
        microseconds: int = struct.unpack_from("=I", said, _RTT_OFFSET)[0]
    except (AttributeError, OSError, struct.error):
        return None
    return microseconds / 1e6


def _tune(sock: socket.socket) -> None:
    """No Nagle (it costs two 40 ms stalls per log-in, PERFORMANCE.md); a dead peer is noticed by the kernel too."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 60_000)
