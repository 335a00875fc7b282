"""A directory of the host: locked by itself, so that no lock file is made; whether it can be written; its entries
brought to the disk. Part of the room hostfiles."""

from __future__ import annotations

import errno
import os
import time
from contextlib import suppress

from vmproxy.errors import Busy, NotPermitted

_PAUSE_SECONDS = 0.05


def lock(directory: str, seconds: float, *, where: str) -> int | None:
    """The open directory, locked until it is closed or this process ends; None where there is no such lock.

    Waits up to ``seconds`` for another run, then raises Busy, which names ``where``.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        return None
    limit = time.monotonic() + seconds
    try:
        handle = os.open(directory, os.O_RDONLY)
    except OSError:  # what cannot be read may be written all the same; if not, that is said then
        return None
    try:
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() >= limit:
                    raise Busy("another run of vmproxy holds it", where=where) from None
                time.sleep(_PAUSE_SECONDS)
            else:
                return handle
    except OSError:  # NFS locks no directory
        os.close(handle)
        return None
    except BaseException:
        os.close(handle)
        raise


def must_be_writable(directory: str, *, where: str) -> None:
    """Raises NotPermitted where no file can be made in the directory, as far as that can be known without making one;
    it names ``where``."""
    if os.access(directory, os.W_OK | os.X_OK):
        return
    if hasattr(os, "statvfs") and os.statvfs(directory).f_flag & os.ST_RDONLY:
        raise not_permitted(errno.EROFS, where=where)
    raise not_permitted(errno.EACCES, where=where)


def not_permitted(number: int, *, where: str) -> NotPermitted:
    """The error for EACCES, EPERM and EROFS."""
    hint = "run vmproxy as the user who may, or with sudo"
    if number == errno.EROFS:
        hint = "name a copy on a disk that can be written"
    return NotPermitted(f"not permitted: {os.strerror(number)}", where=where, hint=hint)


def settle(directory: str) -> None:
    """The directory's own entries on the disk; where that cannot be, the rename counts all the same."""
    if os.name != "posix":
        return
    with suppress(OSError):
        handle = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
