"""A directory of the host: locked by itself, so that no lock file is made; its entries brought to the disk. Part of
the room hostfiles."""

from __future__ import annotations

import os
import time
from contextlib import suppress

from vmproxy.errors import Busy

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
