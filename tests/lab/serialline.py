"""The lab's own way over a VM's serial line: log in as root, ask, log out. It shares nothing with vmproxy's.

    with SerialLine(socket_path) as line:
        line.ask("docker info")

What is asked goes over in short lines that are each answered, and what is answered comes back in base64: neither the
line's echo nor a message of the kernel's in between can be taken for it. One reader at a time has the line.
"""

from __future__ import annotations

import base64
import binascii
import re
import secrets
import socket
import time
from pathlib import Path

KERNEL = re.compile(rb"\[ *\d+\.\d{6}\] [^\n]*\n")
"""A record of the kernel's on the line; it may stand in the middle of somebody else's word."""

_LINE_BYTES = 600
_ATTEMPT_SECONDS = 30.0
_BASE64 = re.compile(rb"[A-Za-z0-9+/]{1,76}={0,2}")


class SerialError(RuntimeError):
    """The line did not answer in time; the text carries the end of what came."""


class SerialLine:
    """One log-in. ``path`` is the unix socket of the line; ``limit_seconds`` is for log-in and log-out, each."""

    def __init__(self, path: Path, *, limit_seconds: float = 300.0) -> None:
        self._limit_seconds = limit_seconds
        self._seen = b""
        self._socket = socket.socket(socket.AF_UNIX)
        try:
            self._socket.settimeout(limit_seconds)
            self._socket.connect(str(path))
            self._log_in(time.monotonic() + limit_seconds)
        except BaseException:
            self._socket.close()
            raise

    def __enter__(self) -> SerialLine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def ask(self, script: str, *, limit_seconds: float = 300.0) -> tuple[int, bytes]:
        """Run ``script`` by sh: its status, and both its outputs as they came. Raises SerialError."""
        limit = time.monotonic() + limit_seconds
        self._command("S=", limit)
        packed = base64.b64encode(script.encode()).decode()
        for at in range(0, len(packed), _LINE_BYTES):
            self._command(f"S=${{S}}{packed[at : at + _LINE_BYTES]}", limit)
        run = 'echo "$S" | base64 -d >/run/asked; { sh /run/asked </dev/null 2>&1; echo " $?"; } | base64'
        lines = self._command(run, limit).replace(b"\r", b"").split(b"\n")
        try:
            answer = base64.b64decode(b"".join(line for line in lines if _BASE64.fullmatch(line)), validate=True)
        except binascii.Error as error:
            raise SerialError(f"no base64 came back: {lines[-20:]!r}") from error
        output, _, status = answer.rpartition(b" ")
        return int(status), output

    def close(self) -> None:
        """Log out, so that the next one finds a log-in, and go. Safe to call twice."""
        if self._socket.fileno() < 0:
            return
        try:
            self._send(b"exit\r")
            self._until(b"login: ", time.monotonic() + self._limit_seconds)
        except (SerialError, OSError):
            pass
        self._socket.close()

    def _log_in(self, limit: float) -> None:
        """Wake the line until it asks for a name or a shell answers."""
        while time.monotonic() < limit:
            attempt = min(limit, time.monotonic() + _ATTEMPT_SECONDS)
            try:
                self._send(b"\x03\r")
                if b"login: " not in self._until(b"login: ", attempt, b"# "):
                    # Somebody has left a shell there.
                    self._send(b"exit\r")
                    self._until(b"login: ", attempt)
                self._send(b"root\r")
                self._until(b"# ", attempt)
                # The shell's line editor would ask the terminal where its cursor is, at each line; read does not.
                self._command("stty -echo", attempt, end='; while read -r L; do eval "$L"; done')
            except SerialError:
                continue
            return
        raise SerialError(f"nobody to log in with: {self._seen[-500:]!r}")

    def _command(self, command: str, limit: float, *, end: str = "") -> bytes:
        """Run one short line in the shell of the log-in; what came up to its end."""
        word = secrets.token_hex(6)
        # Echoed, the two halves stand apart.
        self._send(f"{command}; echo {word[:6]}''{word[6:]}{end}\r".encode())
        came = self._until(word.encode(), limit)
        return came.removesuffix(word.encode())

    def _send(self, content: bytes) -> None:
        self._seen = b""
        self._socket.sendall(content)

    def _until(self, word: bytes, limit: float, other: bytes = b"") -> bytes:
        """What came up to ``word``, or to the end of what came once it has ``other``."""
        while word not in self._seen:
            if other and other in self._seen:
                return self._seen
            left = limit - time.monotonic()
            if left <= 0:
                raise SerialError(f"{word!r} did not come: {self._seen[-500:]!r}")
            self._socket.settimeout(left)
            try:
                came = self._socket.recv(1 << 16)
            except TimeoutError:
                continue
            if not came:
                raise SerialError(f"the line was closed: {self._seen[-500:]!r}")
            self._seen = KERNEL.sub(b"", self._seen + came)
        before, _, self._seen = self._seen.partition(word)
        return before + word
