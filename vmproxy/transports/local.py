"""``local``: vmproxy runs in the VM itself, and a command is a child process with three pipes.

What SSH gives for nothing is made here: the child has a session of its own, so that a Ctrl-C at the terminal reaches
only us, who close its input and let it put things back; and it has no terminal, no proxy variables, none of our files.
"""

from __future__ import annotations

import os
import subprocess

from vmproxy.errors import LostContact, NotPermitted, UsageError
from vmproxy.model import Target
from vmproxy.transports import SshOptions
from vmproxy.transports._child import ChildChannel


def connect(target: Target, *, options: SshOptions, first: str = "") -> LocalConnection:
    """This machine. Raises UsageError elsewhere than on Linux."""
    if not os.path.exists("/proc/self/status"):
        raise UsageError("local is for a Linux VM, from inside", hint="from its host: --vm ssh://USER@VM")
    return LocalConnection(options)


class LocalConnection:
    """Implements :class:`vmproxy.transports.Connection`; closing it ends the input of what still runs."""

    def __init__(self, options: SshOptions) -> None:
        self._options = options
        self._running: list[ChildChannel] = []
        self._closed = False

    def start(self, command: str) -> ChildChannel:
        """Start a command by /bin/sh. Raises NotPermitted where that cannot be, LostContact after :meth:`close`."""
        self._check_open()
        try:
            process = subprocess.Popen(  # noqa: S603 - a constant text, see machines/
                ["/bin/sh", "-c", command],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                bufsize=0,
                cwd="/",
                env={name: os.environ[name] for name in ("PATH", "HOME", "USER", "LOGNAME") if name in os.environ},
                start_new_session=True,
            )
        except OSError as error:
            raise NotPermitted(f"cannot run /bin/sh: {error.strerror}") from error
        channel = ChildChannel(process, self._options.output_limit_bytes)
        self._running.append(channel)
        if self._closed:  # by another thread, which may not have seen this one
            channel.close()
            self._check_open()
        return channel

    def close(self) -> None:
        """Close every channel, from whatever thread; no command is started any more. Safe to call twice."""
        self._closed = True
        for channel in list(self._running):
            channel.close()

    def _check_open(self) -> None:
        if self._closed:
            raise LostContact("the connection is closed")
