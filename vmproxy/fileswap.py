"""Two files of one directory change their names, in one step. Part of the room hostfiles.

Where the system can do that (Linux, renameat2(2) with RENAME_EXCHANGE), what a new file takes the place of can be
looked at afterwards: a write that came between the last look and the rename is then seen, and is not lost.
"""

from __future__ import annotations

import errno
import os
import sys

_EXCHANGE = 2  # linux/fs.h
_HERE = -100  # AT_FDCWD
_CANNOT = (errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.EPERM)


def swap(one: str, other: str) -> bool:
    """Exchange two names; False, with nothing done, where the system or the file system cannot. Raises OSError."""
    if sys.platform != "linux":
        return False
    import ctypes

    function = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)  # musl has it since 1.2.6
    if function is None:
        return False
    if function(_HERE, os.fsencode(one), _HERE, os.fsencode(other), ctypes.c_uint(_EXCHANGE)) == 0:
        return True
    number = ctypes.get_errno()
    if number in _CANNOT:
        return False
    raise OSError(number, os.strerror(number), other)
