"""A VM with nothing but a serial line: a real shell on a pty, and on the host's side a unix socket or another pty.

What goes either way may be cut, kept back or mixed with what an echo, a kernel or a log-in says.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import shlex
import shutil
import signal
import socket
import subprocess
import tempfile
import termios
import threading
import time
from collections.abc import Callable
from pathlib import Path

PROMPT = "moby:~# "
SHELLS = {
    "dash": ("dash", "-i"),
    "ash": ("busybox", "ash", "-i"),
    "bash": ("bash", "--norc", "--noprofile", "-i"),
}
# getty and login in a few lines: a session is a child, and the next one may log in after it.
_GETTY = """
trap : INT
while :; do
  stty sane; printf '\\r\\nWelcome to Moby\\r\\n\\r\\nmoby login: '
  IFS= read -r name || continue
  if [ "$name" != root ] || [ -n "$PASSWORD" ]; then
    [ -n "$name" ] || continue
    stty -echo; printf 'Password: '; IFS= read -r word; printf '\\r\\nLogin incorrect\\r\\n'; continue
  fi
  printf '\\r\\nLast login: Thu May 19 13:43:03 UTC 2016 on ttyS0\\r\\n'
  $SESSION
done
"""

Mangle = Callable[[bytes], bytes]


def _as_is(data: bytes) -> bytes:
    return data


class SerialVM:
    """One VM. ``down`` and ``up`` see every piece that goes to the host and to the VM, and give what arrives.

    ``getty``: nobody is logged in; ``password``: and root has one. ``uid`` is who the shell says it is. ``prompt`` is
    the shell's, ``tools`` a directory that is its whole PATH; ``by_tty``: the host's side is a terminal, not a socket.
    It is there once it has said ``ready``: a Ctrl-C would end a shell that is only about to begin.
    """

    def __init__(
        self,
        shell: str = "ash",
        *,
        getty: bool = False,
        password: bool = False,
        uid: int = 0,
        prompt: str = PROMPT,
        tools: Path | None = None,
        by_tty: bool = False,
        program: tuple[str, ...] | None = None,
        ready: bytes | None = None,
    ) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="serial-"))  # short: a socket's path has 108 characters
        self.down: Mangle = _as_is
        self.up: Mangle = _as_is
        self.sent = bytearray()
        """What reached the VM."""
        self.said = bytearray()
        """What the VM said, before ``down``."""
        (self.directory / "id").write_text(f"#!/bin/sh\necho {uid}\n")
        (self.directory / "id").chmod(0o755)
        path = str(tools) if tools else os.environ["PATH"]
        environ = {
            "PATH": f"{self.directory}:{path}",
            "PS1": prompt,
            "TERM": "vt100",
            "SESSION": shlex.join(SHELLS[shell]),
            "PASSWORD": "1" if password else "",
        }
        inside = program or (("sh", "-c", _GETTY) if getty or password else SHELLS[shell])
        self._master, slave = os.openpty()
        self._child = subprocess.Popen(
            (shutil.which("setsid") or "setsid", "--ctty", shutil.which(inside[0]) or inside[0], *inside[1:]),
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env=environ,
            cwd="/",
        )
        os.close(slave)
        self._guest: int | None = None
        self._listener: socket.socket | None = None
        self._client: socket.socket | int | None = None
        self.path = str(self.directory / "tty")
        if by_tty:
            self._client, self._guest = os.openpty()
            settings = termios.tcgetattr(self._guest)
            settings[3] &= ~termios.ECHO  # or the VM would read its own words
            termios.tcsetattr(self._guest, termios.TCSANOW, settings)
            self.path = os.ttyname(self._guest)  # and it stays open, or its other end would read errors
        else:
            self._listener = socket.socket(socket.AF_UNIX)
            self._listener.bind(self.path)
            self._listener.listen(1)
        self._wake, self._woken = os.pipe()
        self._ended = False
        self._hang_up = False
        self._thread = threading.Thread(target=self._carry, daemon=True)
        self._thread.start()
        if ready is None:
            ready = b"" if program else b"login: " if getty or password else prompt.encode()
        until = time.monotonic() + 60
        while ready not in self.said:
            assert time.monotonic() < until, f"{inside[0]} does not begin: {self.said!r}"
            time.sleep(0.01)

    @property
    def settings(self) -> list[object]:
        """Those of the host's terminal."""
        assert self._guest is not None
        return list(termios.tcgetattr(self._guest))

    def type(self, data: bytes) -> None:
        """What somebody typed before we came."""
        os.write(self._master, data)

    def hang_up(self) -> None:
        """Close the host's side of the line."""
        self._hang_up = True
        os.write(self._woken, b"x")

    def close(self) -> None:
        """End the VM."""
        self._ended = True
        os.write(self._woken, b"x")
        self._thread.join(60)
        with contextlib.suppress(OSError):
            self._child.send_signal(signal.SIGHUP)
        try:
            self._child.wait(2)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait(60)
        for descriptor in (self._wake, self._woken):
            os.close(descriptor)
        if self._listener:
            self._listener.close()
        if self._guest is not None:
            os.close(self._guest)
        shutil.rmtree(self.directory)

    def _carry(self) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(self._wake, selectors.EVENT_READ)
            selector.register(self._master, selectors.EVENT_READ)
            if self._listener:
                selector.register(self._listener, selectors.EVENT_READ)
            elif self._client is not None:
                selector.register(self._client, selectors.EVENT_READ)
            while not self._ended:
                for key, _events in selector.select():
                    self._step(selector, key.fileobj)
            self._lose(selector)
        os.close(self._master)

    def _step(self, selector: selectors.BaseSelector, ready: object) -> None:
        if ready is self._listener and self._listener:
            if self._client is None:  # as QEMU: one at a time
                self._client = self._listener.accept()[0]
                selector.register(self._client, selectors.EVENT_READ)
                selector.unregister(self._listener)
        elif ready == self._wake:
            os.read(self._wake, 100)
            if self._hang_up:
                self._hang_up = False
                self._lose(selector)
        elif ready == self._master:
            try:
                data = os.read(self._master, 4096)
            except OSError:  # the last of the VM's programs is gone
                selector.unregister(self._master)
                return
            self.said += data
            self._give(selector, self.down(data))
        elif ready is self._client and self._client is not None:
            try:
                data = (
                    self._client.recv(4096) if isinstance(self._client, socket.socket) else os.read(self._client, 4096)
                )
            except OSError:
                data = b""
            if data:
                data = self.up(data)
                self.sent += data
                self._feed(data)
            else:
                self._lose(selector)

    def _give(self, selector: selectors.BaseSelector, data: bytes) -> None:
        try:
            if isinstance(self._client, socket.socket):
                self._client.sendall(data)
            elif self._client is not None:
                os.write(self._client, data)
        except OSError:
            self._lose(selector)

    def echo(self, data: bytes) -> None:
        """Send something to the host, now; for ``up``."""
        if isinstance(self._client, socket.socket):
            self._client.sendall(data)

    def _feed(self, data: bytes) -> None:
        with contextlib.suppress(OSError):
            while data:
                data = data[os.write(self._master, data) :]

    def _lose(self, selector: selectors.BaseSelector) -> None:
        client, self._client = self._client, None
        if client is None:
            return
        with contextlib.suppress(KeyError, ValueError):
            selector.unregister(client)
        if isinstance(client, socket.socket):
            client.close()
            if self._listener:
                selector.register(self._listener, selectors.EVENT_READ)
        else:
            os.close(client)
