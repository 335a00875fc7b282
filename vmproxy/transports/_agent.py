"""The keys of ssh-agent, for paramiko: with time limits, and an end to a key that is not signed with.

paramiko signs in the thread of its transport, and before it knows whether the server would take that key: an agent
that does not sign ends the connection. Its security keys (``sk-…``) want to be touched by a person, so they are the
last to try.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    import paramiko

    from vmproxy.transports._tcp import Line

_SECONDS = 20.0
TOUCH_SECONDS = 60.0
"""For a person to touch a security key; most of them give up by themselves after 30."""
_AGAIN_SECONDS = 0.05
_FAILURE = 5  # SSH_AGENT_FAILURE


class Keys:
    """What the agent holds; ``all`` is () where there is none or it does not answer. It is never forwarded.

    Whoever waits for it, paramiko's thread too, does so no longer where ``line`` is cut: that thread would not notice
    the end of its own connection meanwhile.
    """

    def __init__(self, line: Line) -> None:
        import paramiko

        self.all: tuple[paramiko.AgentKey, ...] = ()
        self._client: Any = None
        try:
            self._client = _open(line)
            self.all = tuple(self._client.get_keys())
        except (paramiko.SSHException, OSError, EOFError):
            pass

    @property
    def trouble(self) -> str:
        """Why the last signature was not given, "" where it was."""
        return cast(str, self._client.trouble) if self._client is not None else ""

    def allow_seconds(self, key: paramiko.PKey) -> float:
        """How long the agent may take to sign with that key, from now on."""
        seconds = TOUCH_SECONDS if wants_touch(key) else _SECONDS
        if self._client is not None:
            self._client.patience(seconds)
        return seconds

    def close(self) -> None:
        """Let the agent go."""
        if self._client is not None:
            self._client.close()


def wants_touch(key: paramiko.PKey) -> bool:
    """Whether that is a security key, which nothing but the agent and ssh can sign with."""
    return key.get_name().startswith("sk-")


def _dial(path: str, line: Line) -> socket.socket | None:
    """A connection to the agent; None where there is none, or it takes no more clients."""
    over = threading.Event()
    line.hangs_on(over.set)
    deadline = time.monotonic() + _SECONDS
    while True:
        sock = socket.socket(socket.AF_UNIX)
        try:
            sock.setblocking(False)
            sock.connect(path)
            return sock
        except BlockingIOError:  # its queue is full (connect(2): EAGAIN)
            sock.close()
            if time.monotonic() >= deadline or over.wait(_AGAIN_SECONDS):
                return None
        except OSError:
            sock.close()
            return None


def _open(line: Line) -> Any:
    """paramiko's client with a time limit on its socket: a stuck agent must not stop us, nor outlast ``line``."""
    import paramiko

    class Bounded(paramiko.Agent):
        trouble = ""

        def __init__(self) -> None:
            path = os.environ.get("SSH_AUTH_SOCK", "")
            if os.name == "nt" or not path:
                super().__init__()
                return
            paramiko.agent.AgentSSH.__init__(self)
            if (conn := _dial(path, line)) is not None:
                self._connect(conn)

        def _connect(self, conn: Any) -> None:
            self._socket = conn
            self.patience(_SECONDS)
            line.hangs_on(self.hang_up)
            try:
                super()._connect(conn)  # type: ignore[misc]
            except BaseException:
                conn.close()
                raise

        def patience(self, seconds: float) -> None:
            if hasattr(self._socket, "settimeout"):
                self._socket.settimeout(seconds)

        def hang_up(self) -> None:
            with contextlib.suppress(OSError, AttributeError):  # closed already; or not a socket, as Windows' agents
                self._socket.shutdown(socket.SHUT_RDWR)

        def _send_message(self, msg: Any) -> Any:
            self.trouble = "the agent does not answer"
            try:
                kind, answer = super()._send_message(msg)  # type: ignore[misc]
            except OSError as error:  # of one word, it would be an uncaught exception of paramiko's thread
                raise paramiko.SSHException(self.trouble) from error
            self.trouble = "the agent does not sign with it" if kind == _FAILURE else ""
            return kind, answer

    return Bounded()
