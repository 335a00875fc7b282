"""QEMU's machine protocol over its unix socket: ask, answer, hand over a file descriptor. Every wait has a limit."""

from __future__ import annotations

import json
import socket
import time
from pathlib import Path
from typing import Any


class QmpError(RuntimeError):
    """QEMU refused a command, or the connection is gone."""


class Qmp:
    """One connection. Events that arrive between answers are kept in :attr:`events`."""

    def __init__(self, path: Path, *, timeout_seconds: float = 120.0) -> None:
        self.events: list[dict[str, Any]] = []
        self._buffer = b""
        self._socket = _connect(path, timeout_seconds)
        self._read(time.monotonic() + timeout_seconds)
        self.ask("qmp_capabilities")

    def __enter__(self) -> Qmp:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def ask(self, command: str, *, fd: int | None = None, timeout_seconds: float = 120.0, **arguments: Any) -> Any:
        """Run one command and give its ``return``; ``fd`` travels beside it (for ``getfd``). Raises QmpError."""
        limit = time.monotonic() + timeout_seconds
        line = json.dumps({"execute": command, "arguments": arguments}).encode() + b"\n"
        self._socket.settimeout(timeout_seconds)
        try:
            if fd is None:
                self._socket.sendall(line)
            else:
                socket.send_fds(self._socket, [line], [fd])
        except OSError as error:
            raise QmpError(f"{command}: {error}") from error
        while True:
            answer = self._read(limit)
            if "return" in answer:
                return answer["return"]
            if "error" in answer:
                raise QmpError(f"{command}: {answer['error'].get('desc', answer['error'])}")
            self.events.append(answer)

    def close(self) -> None:
        """Close the socket; safe to call twice."""
        self._socket.close()

    def _read(self, limit: float) -> dict[str, Any]:
        while b"\n" not in self._buffer:
            self._socket.settimeout(max(0.01, limit - time.monotonic()))
            try:
                piece = self._socket.recv(65536)
            except OSError as error:
                raise QmpError(f"no answer: {error}") from error
            if not piece:
                raise QmpError("QEMU closed the connection")
            self._buffer += piece
        line, self._buffer = self._buffer.split(b"\n", 1)
        answer: dict[str, Any] = json.loads(line)
        return answer


def _connect(path: Path, timeout_seconds: float) -> socket.socket:
    limit = time.monotonic() + timeout_seconds
    while True:
        client = socket.socket(socket.AF_UNIX)
        try:
            client.settimeout(timeout_seconds)
            client.connect(str(path))
        except OSError as error:
            client.close()
            if time.monotonic() > limit:
                raise QmpError(f"cannot reach {path}: {error}") from error
            time.sleep(0.02)
        else:
            return client
