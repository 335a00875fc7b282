"""A serial line on the host: a terminal or a unix socket, ours alone, its settings given back in the end."""

from __future__ import annotations

import atexit
import contextlib
import errno
import os
import select
import socket
import stat
import time
from typing import Any

from vmproxy.errors import Busy, LostContact, NotPermitted, Unreachable, UsageError
from vmproxy.model import printable
from vmproxy.transports._lineframes import plain
from vmproxy.transports._lineuse import name_of, socket_is_taken, users_of_terminal

_READ_BYTES = 16 << 10
_SEEN_BYTES = 400
_TOLD = 80
_PLACE = 60
_HANG_UP_SECONDS = 1.5  # a server may take that long to see that the last one has left
_IN_USE = "end the program that is attached (in screen: ctrl-a k; detaching is not enough)"
_WHO_MAY = "run vmproxy as a user who may read and write it (ls -l), or with sudo"


def pexpect_module(name: str) -> Any:
    """A module of pexpect. Raises UsageError without the extra."""
    import importlib

    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UsageError("console: needs pexpect", hint="pip install 'vmproxy[console]'") from error


class Line:
    """An open line. ``seen`` are the last bytes that came, for messages; not once it is ``framed``: then they are no
    words for a person, and take the place of what else is to be said."""

    def __init__(self, spawn: Any, place: str, *, restore: Any = None) -> None:
        self._spawn = spawn
        self._descriptor: int = spawn.child_fd
        self._restore = restore
        self._errors = pexpect_module("pexpect.exceptions")
        self.place = place
        self.seen = b""
        self.framed = False
        self.closed = False
        atexit.register(self.close)

    def read(self, seconds: float) -> bytes:
        """What comes within that time, b"" where nothing does. Raises LostContact at the end of the line."""
        if self.closed:
            raise LostContact("the line is closed", where=self.place)
        try:
            data: bytes = self._spawn.read_nonblocking(_READ_BYTES, max(0.0, seconds))
        except self._errors.TIMEOUT:
            return b""
        except BlockingIOError:
            return b""
        except (self._errors.EOF, OSError) as error:
            raise LostContact(f"the VM's end of the line is gone{self.last_words()}", where=self.place) from error
        self.seen = (self.seen + data)[-_SEEN_BYTES:]
        return data

    def write(self, data: bytes, deadline: float) -> None:
        """All of it until the deadline (of time.monotonic). Raises LostContact."""
        if self.closed:
            raise LostContact("the line is closed", where=self.place)
        rest = memoryview(data)
        while rest:
            left = deadline - time.monotonic()
            try:
                if not select.select((), (self._descriptor,), (), max(0.0, left))[1]:
                    raise LostContact(f"the line takes no more{self.last_words()}", where=self.place)
                rest = rest[os.write(self._descriptor, rest) :]
            except BlockingIOError:
                continue
            except OSError as error:
                raise LostContact(f"the VM's end of the line is gone{self.last_words()}", where=self.place) from error

    def last_words(self) -> str:
        """What was seen last, for the end of a message."""
        if self.framed:
            return ""
        tail = b" ".join(plain(self.seen).replace(b"\0", b" ").split())[-_TOLD:]
        return f"; last seen: {printable(tail, limit=10 * _TOLD)[-_TOLD:]}" if tail else "; nothing came from it"

    def close(self) -> None:
        """Give the terminal its settings back and let go; safe to call twice."""
        if self.closed:
            return
        self.closed = True
        atexit.unregister(self.close)
        try:
            if self._restore is not None:
                import termios

                with contextlib.suppress(OSError, termios.error):
                    # At once: what the VM has not taken of our last words must not keep us.
                    termios.tcsetattr(self._descriptor, termios.TCSANOW, self._restore)
        finally:
            # Of a socket whose other end is gone, pexpect's close ends in an error before the socket is closed.
            with contextlib.suppress(OSError):
                self._spawn.close()
            sock = getattr(self._spawn, "socket", None)
            if sock is not None:
                sock.close()


def open_line(path: str, *, timeout_seconds: float) -> Line:
    """The line at ``path``. Raises Unreachable, NotPermitted, Busy, UsageError."""
    if os.name == "nt":  # NUL is a character device there, too
        raise UsageError("console: needs a Linux or macOS host", where=_place(path))
    try:
        mode = os.stat(path).st_mode
    except OSError as error:
        raise _cannot_open(error, _place(path)) from error
    if stat.S_ISSOCK(mode):
        return _open_socket(path, timeout_seconds)
    if stat.S_ISCHR(mode):
        return _open_terminal(path)
    raise UsageError("neither a terminal nor a unix socket", where=_place(path), hint="console:PATH")


def _place(path: str) -> str:
    """The end of a path, for a message that has more to say."""
    text = printable(path)
    return text if len(text) <= _PLACE else f"…{text[1 - _PLACE :]}"


def _cannot_open(error: OSError, where: str) -> NotPermitted | Unreachable:
    what = f"cannot open the line: {error.strerror or error}"
    if isinstance(error, PermissionError):
        return NotPermitted(what, where=where, hint=_WHO_MAY)
    return Unreachable(what, where=where)


def _open_socket(path: str, timeout_seconds: float) -> Line:
    spawn_class = pexpect_module("pexpect.socket_pexpect").SocketSpawn
    where = _place(path)
    if not hasattr(socket, "AF_UNIX"):
        raise UsageError("this system's Python has no unix sockets", where=where)
    until = time.monotonic() + _HANG_UP_SECONDS
    while socket_is_taken(path):
        if time.monotonic() > until:
            raise Busy("the line is in use by another program", where=where, hint=_IN_USE)
        time.sleep(0.05)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.settimeout(timeout_seconds)
        sock.connect(path)
        sock.setblocking(False)
        return Line(spawn_class(sock), where)
    except BaseException as error:
        sock.close()
        if isinstance(error, (TimeoutError, BlockingIOError)):
            raise Busy("the line takes no connection: another program has it", where=where, hint=_IN_USE) from error
        if isinstance(error, OSError):
            raise _cannot_open(error, where) from error
        raise


def _open_terminal(path: str) -> Line:
    spawn_class = pexpect_module("pexpect.fdpexpect").fdspawn
    import fcntl
    import termios

    where = _place(path)
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if error.errno == errno.EBUSY:
            raise Busy("the line is in use by another program", where=where, hint=_IN_USE) from error
        raise _cannot_open(error, where) from error
    try:
        if not os.isatty(descriptor):
            raise UsageError("neither a terminal nor a unix socket", where=where, hint="console:PATH")
        # TIOCEXCL is not for us: a pseudo terminal keeps it after the death of who set it (seen on Linux 6.1), and then
        # nobody but root gets in until the VM ends.
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise Busy("the line is in use by another program", where=where, hint=_IN_USE) from error
        others = users_of_terminal(os.ttyname(descriptor))
        if others:
            raise Busy(f"the line is in use by {printable(name_of(others[0]))}", where=where, hint=_IN_USE)
        before = termios.tcgetattr(descriptor)
        line = Line(spawn_class(descriptor), where, restore=before)
    except BaseException:
        os.close(descriptor)
        raise
    try:
        _make_raw(descriptor)
        termios.tcflush(descriptor, termios.TCIFLUSH)  # what the VM said to nobody
    except BaseException:
        line.close()
        raise
    return line


def _make_raw(descriptor: int) -> None:
    """Eight bits, no echo, nothing translated (termios(3), cfmakeraw); speed and control lines as they are."""
    import termios

    mode = termios.tcgetattr(descriptor)
    mode[0] &= ~(
        termios.IGNBRK | termios.BRKINT | termios.PARMRK | termios.ISTRIP
        | termios.INLCR | termios.IGNCR | termios.ICRNL | termios.IXON | termios.IXOFF
    )  # fmt: skip
    mode[1] &= ~termios.OPOST
    mode[2] = mode[2] & ~(termios.CSIZE | termios.PARENB) | termios.CS8
    mode[3] &= ~(termios.ECHO | termios.ECHONL | termios.ICANON | termios.ISIG | termios.IEXTEN)
    mode[6][termios.VMIN], mode[6][termios.VTIME] = 1, 0
    termios.tcsetattr(descriptor, termios.TCSANOW, mode)
