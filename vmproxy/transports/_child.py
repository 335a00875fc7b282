"""A child process with three pipes as a channel: every wait has a limit, both outputs are drained at once.

One thread talks; another one may end the input or close, and the first hears of it within a quarter of a second. No
descriptor is read, written or closed but under the lock: a number that was closed may be somebody else's by then.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import subprocess
import threading
import time

from vmproxy.errors import LostContact
from vmproxy.model import printable

_STDERR_LIMIT_BYTES = 64 << 10
_PIECE_BYTES = 64 << 10
_END_SECONDS = 5.0
_SLICE_SECONDS = 0.25  # closing a descriptor wakes nobody who waits for it


class ChildChannel:
    """One running command; implements :class:`vmproxy.transports.Channel`. ``where`` is for errors."""

    def __init__(self, process: subprocess.Popen[bytes], limit_bytes: int, *, where: str = "") -> None:
        assert process.stdin and process.stdout and process.stderr  # noqa: S101 - all three are pipes
        self._process = process
        self._stdin, self._stdout, self._stderr = process.stdin, process.stdout, process.stderr
        self._left = limit_bytes
        self._where = where
        self._said = bytearray()
        self._ahead = bytearray()
        self._ended = False
        self._closed = False
        self._looked = 0.0
        """The deadline behind which one more look was made."""
        self._lock = threading.RLock()
        self._selector = selectors.DefaultSelector()
        for stream in (self._stdin, self._stdout, self._stderr):
            os.set_blocking(stream.fileno(), False)
        self._selector.register(self._stdout, selectors.EVENT_READ)
        self._selector.register(self._stderr, selectors.EVENT_READ)

    @property
    def stderr(self) -> bytes:
        """What came on stderr so far, at most 64 KiB."""
        return bytes(self._said)

    def send(self, data: bytes, *, timeout_seconds: float) -> None:
        """Write all of ``data``; what the command says meanwhile is kept. Raises LostContact."""
        deadline = time.monotonic() + timeout_seconds
        rest = memoryview(data)
        with self._lock:
            self._check_input()
            self._selector.register(self._stdin, selectors.EVENT_WRITE)
        try:
            while rest:
                self._pump(deadline, "the command does not read its input")
                with self._lock, contextlib.suppress(BlockingIOError):
                    self._check_input()
                    rest = rest[os.write(self._stdin.fileno(), rest) :]
        except BrokenPipeError as error:
            raise LostContact("the command ended before it had read its input", where=self._where) from error
        finally:
            with self._lock:
                if not self._closed:
                    self._selector.unregister(self._stdin)

    def receive(self, *, timeout_seconds: float) -> bytes:
        """The next piece of stdout, ``b""`` at its end. Raises LostContact."""
        deadline = time.monotonic() + timeout_seconds
        while not self._ahead and not self._ended:
            self._pump(deadline, f"no answer within {timeout_seconds:g} s")
        piece = bytes(self._ahead)
        self._ahead.clear()
        if not piece:
            self._check_end(max(0.0, deadline - time.monotonic()))
        return piece

    def end_input(self) -> None:
        """Close the command's stdin."""
        with self._lock, contextlib.suppress(OSError):
            self._stdin.close()

    def wait(self, *, timeout_seconds: float) -> int | None:
        """The exit status; None where a signal ended the command. Raises LostContact."""
        deadline = time.monotonic() + timeout_seconds
        while not self._ended:
            self._pump(deadline, f"the command did not end within {timeout_seconds:g} s")
        try:
            status = self._process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            raise LostContact(f"the command did not end within {timeout_seconds:g} s", where=self._where) from None
        self._drain_stderr()
        return status if status >= 0 else None

    def close(self) -> None:
        """Close all three pipes. The command ends by itself at the end of its input; it is not killed (it may be
        putting things back), only its end is waited for a little, so that no zombie stays."""
        self._close_pipes()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_END_SECONDS)
        self._process.returncode = self._process.returncode if self._process.returncode is not None else -1

    def _close_pipes(self) -> None:
        with self._lock:
            self._closed = True
            for stream in (self._stdin, self._stdout, self._stderr):
                with contextlib.suppress(OSError):
                    stream.close()
            self._selector.close()

    def _check_end(self, seconds: float) -> None:
        """Raise LostContact where the end of the output is a loss; a child's own end never is."""

    def _idle(self) -> None:
        """Called while nothing comes, every quarter of a second."""

    def _check_open(self) -> None:
        if self._closed:
            raise LostContact("the command was let go", where=self._where)

    def _check_input(self) -> None:
        self._check_open()
        if self._stdin.closed:
            raise LostContact("the command's input is closed", where=self._where)

    def _pump(self, deadline: float, late: str) -> None:
        """Wait until something can be read or written, and read what there is. Raises LostContact."""
        sending = not self._stdin.closed
        while True:
            self._check_open()
            left = deadline - time.monotonic()
            if left <= 0:
                if self._looked == deadline:
                    raise LostContact(late, where=self._where)
                self._looked = deadline  # what came while this process was stopped (^Z) is still to be read
            try:
                ready = self._selector.select(max(0.0, min(left, _SLICE_SECONDS)))
            except (OSError, ValueError):  # closed just now
                self._check_open()
                raise
            if ready or (sending and self._stdin.closed):
                break
            self._idle()
        with self._lock:
            self._check_open()
            for key, _events in ready:
                if key.fileobj is self._stderr:
                    self._drain_stderr()
                elif key.fileobj is self._stdout:
                    self._drain_stdout()

    def _drain_stdout(self) -> None:
        piece = os.read(self._stdout.fileno(), _PIECE_BYTES)
        if not piece:
            self._ended = True
            self._selector.unregister(self._stdout)
            return
        self._left -= len(piece)
        if self._left < 0:
            raise LostContact(f"the command says more than is believable: {printable(piece, limit=40)}")
        self._ahead += piece

    def _drain_stderr(self) -> None:
        with self._lock:
            if self._closed:
                return
            try:
                piece = os.read(self._stderr.fileno(), _PIECE_BYTES)
            except BlockingIOError:
                return
            if not piece and self._stderr in self._selector.get_map():
                self._selector.unregister(self._stderr)
        self._said += piece[: max(0, _STDERR_LIMIT_BYTES - len(self._said))]
