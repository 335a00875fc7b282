"""One process of the ssh program, with pipes for its three streams."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable

from vmproxy.errors import UsageError
from vmproxy.hostproc import clean_environment
from vmproxy.transports._child import ChildChannel

END_SECONDS = 3.0


def popen(argv: list[str], *, own_session: bool) -> subprocess.Popen[bytes]:
    """Start it. Raises UsageError."""
    try:
        return subprocess.Popen(  # noqa: S603 - argv, never a shell
            argv,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
            env=clean_environment(os.environ),
            start_new_session=own_session,
        )
    except OSError as error:
        raise UsageError(f"ssh cannot be started: {error.strerror}", where=argv[0]) from error


class SshProcess(ChildChannel):
    """One ssh process. ssh ends by itself once its input and the VM's command have ended. ``idle`` is called every
    quarter of a second while it says nothing."""

    def __init__(
        self,
        process: subprocess.Popen[bytes],
        limit_bytes: int,
        *,
        where: str = "",
        idle: Callable[[], None] = lambda: None,
    ) -> None:
        super().__init__(process, limit_bytes, where=where)
        self._look = idle

    @property
    def ended(self) -> bool:
        """Whether the process has ended."""
        return self._process.poll() is not None

    @property
    def ending(self) -> bool:
        """Whether its output has ended, or was given up, and the process has not."""
        return (self._ended or self._stdout.closed) and not self.ended

    @property
    def over(self) -> bool:
        """Whether it has ended and nobody reads it any more."""
        return self._stdout.closed and self.ended

    def hears(self, line: bytes, seconds: float) -> bool:
        """Whether that line came on stdout; False where the process ends before. Raises LostContact."""
        deadline = time.monotonic() + seconds
        heard = b""
        while piece := self.receive(timeout_seconds=max(0.0, deadline - time.monotonic())):
            heard += piece
            if line in heard:
                return True
        return False

    def let_go(self) -> None:
        """Close the three pipes, so that the process can end."""
        self._close_pipes()

    def close(self, seconds: float = END_SECONDS) -> None:
        """Let go, wait that long, and end it if it has not. Safe to call twice."""
        self.let_go()
        for end in (signal.SIGTERM, signal.SIGKILL):
            try:
                self._process.wait(seconds)
                return
            except subprocess.TimeoutExpired:
                self._end(end)
                seconds = 2.0
        self._process.wait()

    def _idle(self) -> None:
        self._look()

    def _end(self, end: signal.Signals) -> None:
        """End it, and in a session of its own what it has started: a helper that waits for a touch does not notice."""
        process = self._process
        with contextlib.suppress(OSError):
            if process.poll() is None and os.getpgid(process.pid) == process.pid:
                os.killpg(process.pid, end)
            else:
                process.send_signal(end)
