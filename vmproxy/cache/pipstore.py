"""What the cache for pip keeps: proxpi's files below the cache's directory, counted and removed while nothing runs."""

from __future__ import annotations

import os
import shutil
from contextlib import suppress

from vmproxy.cache import place
from vmproxy.errors import Busy


def purge(directory: str) -> tuple[int, int] | None:
    """Remove all that is kept for pip; (how many files, bytes), None where something is kept and a cache runs there.

    proxpi knows its files by heart: while it runs they stay. Raises NotPermitted.
    """
    top = os.path.join(directory, place.PIP)
    if not os.path.isdir(top) or os.path.islink(top):
        return 0, 0
    if not os.listdir(top):
        return 0, 0
    try:
        handle = place.lock(directory)
    except Busy:
        return None
    try:
        before, size = _held(top)
        shutil.rmtree(top, ignore_errors=True)
        left, size_left = _held(top)
        return before - left, size - size_left
    finally:
        if handle is not None:
            os.close(handle)


def _held(top: str) -> tuple[int, int]:
    """(how many files, bytes); no link is followed."""
    count = size = 0
    for where, _directories, names in os.walk(top):
        for name in names:
            with suppress(OSError):
                size += os.lstat(os.path.join(where, name)).st_size
                count += 1
    return count, size


__all__ = ["purge"]
