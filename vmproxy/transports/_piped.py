"""A program of the host with its three streams as pipes, on every platform: threads read, and each wait has a limit."""

from __future__ import annotations

import contextlib
import os
import queue
import subprocess
import threading
import time
from collections.abc import Mapping
from typing import IO

from vmproxy import hostproc
from vmproxy.errors import LostContact, UsageError

_PIECE_BYTES = 64 << 10
_STDERR_LIMIT_BYTES = 64 << 10
_PIECES_AHEAD = 64


class Piped:
    """One running program. It leads a session of its own, so that a Ctrl-C at the terminal reaches only us.

    Raises UsageError where it is not installed.
    """

    def __init__(self, argv: tuple[str, ...], *, environ: Mapping[str, str]) -> None:
        # subprocess has that name on Windows only.
        group = int(getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0))
        try:
            self._process = subprocess.Popen(  # noqa: S603 - argv, never a shell
                argv,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                bufsize=0,
                env=hostproc.clean_environment(environ),
                start_new_session=os.name != "nt",
                creationflags=group,
            )
        except OSError as error:
            raise UsageError(f"the program cannot be started: {error.strerror}", where=argv[0]) from error
        assert self._process.stdin and self._process.stdout and self._process.stderr  # noqa: S101 - all are pipes
        self._stdin = self._process.stdin
        self._said = bytearray()
        self._pieces: queue.Queue[bytes] = queue.Queue(_PIECES_AHEAD)
        self._over = False
        self._closing = False
        self._threads = [
            threading.Thread(target=self._read, args=(self._process.stdout,), daemon=True),
            threading.Thread(target=self._read_errors, args=(self._process.stderr,), daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    @property
    def stderr(self) -> bytes:
        """What came on stderr so far, at most 64 KiB."""
        return bytes(self._said)

    def send(self, data: bytes, *, timeout_seconds: float) -> None:
        """Write all of ``data``. Raises LostContact."""
        if self._stdin.closed:
            raise LostContact("the command's input is closed")
        failed: list[OSError | ValueError] = []

        def write() -> None:
            rest = memoryview(data)
            try:
                while rest:
                    rest = rest[self._stdin.write(rest) or 0 :]
            except (OSError, ValueError) as error:
                failed.append(error)

        writer = threading.Thread(target=write, daemon=True)
        writer.start()
        writer.join(timeout_seconds)
        if writer.is_alive():
            raise LostContact("the command does not read its input")
        if failed:
            raise LostContact("the command ended before it had read its input") from failed[0]

    def receive(self, *, timeout_seconds: float) -> bytes:
        """The next piece of stdout, ``b""`` at its end. Raises LostContact."""
        if self._over:
            return b""
        try:
            piece = self._pieces.get(timeout=max(0.0, timeout_seconds))
        except queue.Empty:
            raise LostContact(f"no answer within {timeout_seconds:g} s") from None
        self._over = not piece
        return piece

    def end_input(self) -> None:
        """Close its stdin; safe to call twice."""
        with contextlib.suppress(OSError):
            self._stdin.close()

    def wait(self, *, timeout_seconds: float) -> int | None:
        """Its exit status; None where a signal ended it. Raises LostContact."""
        deadline = time.monotonic() + timeout_seconds
        try:
            status = self._process.wait(timeout_seconds)
        except subprocess.TimeoutExpired:
            raise LostContact(f"no end within {timeout_seconds:g} s") from None
        self._threads[1].join(max(0.0, deadline - time.monotonic()))
        return status if status >= 0 else None

    def close(self, *, patience_seconds: float = 0.0) -> None:
        """End its input, wait so long for its own end, then end it; safe to call twice."""
        self._closing = True
        self.end_input()
        try:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(patience_seconds)
        finally:  # also where a signal ends the wait
            if self._process.poll() is None:
                self._process.kill()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(5.0)
        for thread in self._threads:
            thread.join(5.0)

    def _read(self, stream: IO[bytes]) -> None:
        with contextlib.suppress(OSError, ValueError), stream:
            while piece := os.read(stream.fileno(), _PIECE_BYTES):
                self._put(piece)
        self._put(b"")

    def _put(self, piece: bytes) -> None:
        while True:
            with contextlib.suppress(queue.Full):
                self._pieces.put(piece, timeout=0.2)
                return
            if self._closing:  # nobody reads any more; the program must not wait for us
                return

    def _read_errors(self, stream: IO[bytes]) -> None:
        with contextlib.suppress(OSError, ValueError), stream:
            while piece := os.read(stream.fileno(), _PIECE_BYTES):
                self._said += piece[: max(0, _STDERR_LIMIT_BYTES - len(self._said))]
