"""A directory of one run's, for ssh's own words and sockets, and those that runs left behind which were killed.

Whether its run is there still, the directory itself tells: it is locked (flock(2)) as long as that one lives, however
that ends, also in another PID namespace. It gets its name when it is locked: nobody takes a new one for an old one. One
that never got it, as its run was killed right then, is an old one after a minute.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
import threading
import time

from vmproxy.errors import UsageError

_ROOM = 60  # a unix socket's path ends at 104 or 108 bytes, and ssh adds 17 of its own
_NEW, _NEW_SECONDS = ".new", 60.0
_NAME = re.compile(r"vmproxy-[0-9a-f]{12}(?:\.new)?")
_swept: set[str] = set()
_sweeping = threading.Lock()


class RunDirectory:
    """Nobody else can read it. Raises UsageError where there is no place for it."""

    def __init__(self) -> None:
        usual = os.environ.get("TMPDIR") or "/tmp"  # noqa: S108 - a name that nobody guesses, made by us or not at all
        # ssh makes a shell's text of the way through jump hosts, with the path of its configuration as it stands.
        plain = len(usual) < _ROOM and re.fullmatch(r"[A-Za-z0-9_./+-]+", os.path.abspath(usual))
        parent = os.path.abspath(usual if plain and os.path.isdir(usual) else "/tmp")  # noqa: S108
        self._path = os.path.join(parent, f"vmproxy-{os.urandom(6).hex()}")
        try:
            self._held: int | None = _made(self._path)
        except OSError as error:
            raise UsageError(f"no directory for ssh's socket: {error.strerror}", where=parent, hint="TMPDIR") from error
        self._logs = 0
        with _sweeping:
            first = parent not in _swept
            _swept.add(parent)
        if first:
            sweep(parent)

    def path(self, name: str) -> str:
        """A file in it."""
        return os.path.join(self._path, name)

    def log(self) -> str:
        """The path of one more log file."""
        self._logs += 1
        return self.path(f"log{self._logs}")

    def remove(self) -> None:
        """Gone; safe to call twice."""
        with contextlib.suppress(OSError):
            for name in os.listdir(self._path):
                os.unlink(os.path.join(self._path, name))
            os.rmdir(self._path)
        held, self._held = self._held, None
        if held is not None:
            os.close(held)


def sweep(parent: str) -> None:
    """Remove the directories of this user's runs in ``parent`` that have ended without doing so themselves."""
    with contextlib.suppress(OSError):
        for name in filter(_NAME.fullmatch, os.listdir(parent)):
            with contextlib.suppress(OSError):
                _remove_dead(os.path.join(parent, name))


def _remove_dead(path: str) -> None:
    handle = _opened(path)
    try:
        seen = os.fstat(handle)
        if seen.st_uid != os.geteuid() or stat.S_IMODE(seen.st_mode) != 0o700:
            return
        if (path.endswith(_NEW) and time.time() - seen.st_mtime < _NEW_SECONDS) or not _lock(handle):
            return
        for name in os.listdir(handle):
            os.unlink(name, dir_fd=handle)
        if os.path.samestat(seen, os.lstat(path)):
            os.rmdir(path)
    finally:
        os.close(handle)


def _made(path: str) -> int:
    """A handle that locks the new directory. Raises OSError; there is none then."""
    new = f"{path}{_NEW}"
    os.mkdir(new, 0o700)
    held = -1
    try:
        held = _opened(new)
        _lock(held)
        os.rename(new, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.rmdir(new)
        if held >= 0:
            os.close(held)
        raise
    return held


def _opened(path: str) -> int:
    return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)


def _lock(handle: int) -> bool:
    """Whether it is ours now: not where its run lives, nor where the file system knows no such lock."""
    import fcntl

    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
