"""The directory of a cache: what lies in it, whose it is, and the lock that says that it is in use."""

from __future__ import annotations

import os
import socket
import stat
from contextlib import suppress

from vmproxy.errors import Busy, NotPermitted, Refused

ENTRIES = "entries"
LOCK = "lock"
CONTROL = "control"
STATS = "stats.json"
LOG = "serve.log"
PIP = "pip"
SQUID = "squid"
NEW = ".new"


def _unusable(directory: str, error: OSError) -> NotPermitted:
    return NotPermitted(f"the directory cannot be used: {error.strerror}", where=directory, hint="--dir DIR")


def prepare(directory: str) -> None:
    """Make the directory, 0700 and ours. Raises NotPermitted, Refused."""
    try:
        os.makedirs(directory, mode=0o700, exist_ok=True)
        found = os.lstat(directory)
        if stat.S_ISLNK(found.st_mode) or (hasattr(os, "getuid") and found.st_uid != os.getuid()):
            raise Refused("the directory of the cache is not this user's own", where=directory, hint="--dir DIR")
        if os.name == "posix" and found.st_mode & 0o077:
            strangers = set(os.listdir(directory)) - {ENTRIES, LOCK, CONTROL, STATS, STATS + NEW, LOG, PIP, SQUID}
            if strangers:
                what = "the directory holds other files and is open to others"
                raise Refused(what, where=directory, hint="--dir DIR, a directory of its own")
            os.chmod(directory, 0o700)
    except OSError as error:
        raise _unusable(directory, error) from None


def is_there(directory: str) -> bool:
    """Whether there is such a directory. Raises NotPermitted where that cannot be seen, or not what is in it."""
    try:
        with os.scandir(directory):
            return True
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise _unusable(directory, error) from None


def askable() -> bool:
    """Whether a proxy that runs on a directory can be asked here: Python on Windows has no unix sockets."""
    return hasattr(socket, "AF_UNIX")


def lock(directory: str) -> int | None:
    """The lock of a directory, held until it is closed or this process ends. Raises Busy, NotPermitted."""
    try:
        handle = os.open(os.path.join(directory, LOCK), os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o600)
    except OSError as error:
        raise _unusable(directory, error) from None
    try:
        if os.name == "nt":
            import msvcrt

            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined,unused-ignore]
        else:
            import fcntl

            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(handle)
        hint = "vmproxy cache status shows it; --dir DIR for a second one"
        raise Busy("another cache runs on this directory", where=directory, hint=hint) from None
    return handle


def begin_log(directory: str) -> None:
    """Empty the log of the run before, where that is what we write into; to be called once the lock is ours.

    Until then another proxy may run on the directory, and go on writing into it.
    """
    with suppress(OSError):
        log = os.stat(os.path.join(directory, LOG))
        for number in (1, 2):
            if os.path.samestat(os.fstat(number), log):
                os.ftruncate(number, 0)
