"""The files of a squid's store: which address each holds. Read only, but for :func:`purge` of a store nobody uses.

Squid begins each file with 0x03, the length of what follows, and fields of one byte type, a native int length and a
value; type 4 is the address, with a NUL behind it (squid's StoreSwapLogData and store_swap_meta).
"""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Iterator
from contextlib import suppress
from fnmatch import fnmatchcase

_OK = 3
_URL = 4
_HEAD_LIMIT = 64 << 10
_DIRECTORY = re.compile(r"[0-9A-F]{2}")
_FILE = re.compile(r"[0-9A-F]{8}")
_INDEX = ("swap.state", "swap.state.clean", "swap.state.last-clean")


def files(store: str) -> Iterator[tuple[str, int]]:
    """(path, size in bytes) of every file of a store; nothing where there is none."""
    for first in _names(store, _DIRECTORY):
        for second in _names(os.path.join(store, first), _DIRECTORY):
            place = os.path.join(store, first, second)
            for name in _names(place, _FILE):
                with suppress(OSError):
                    yield os.path.join(place, name), os.stat(os.path.join(place, name), follow_symlinks=False).st_size


def _names(directory: str, pattern: re.Pattern[str]) -> list[str]:
    try:
        return sorted(name for name in os.listdir(directory) if pattern.fullmatch(name))
    except OSError:
        return []


def address(path: str) -> str:
    """The address whose answer a file holds; "" where it cannot be read."""
    with suppress(OSError, struct.error, ValueError), open(path, "rb") as file:
        kind, length = struct.unpack("=Bi", file.read(5))
        if kind != _OK or not 5 < length <= _HEAD_LIMIT:
            return ""
        data = file.read(length - 5)
        while data:
            kind, length = struct.unpack("=Bi", data[:5])
            if length < 0:
                return ""
            if kind == _URL:
                return data[5 : 5 + length].rstrip(b"\0").decode("latin-1")
            data = data[5 + length :]
    return ""


def fitting(store: str, pattern: str) -> list[tuple[str, str, int]]:
    """(path, address, size in bytes) of the files whose address fits a glob."""
    found = ((path, address(path), size) for path, size in files(store))
    return [(path, url, size) for path, url, size in found if url and fnmatchcase(url, pattern)]


def purge(store: str, pattern: str) -> tuple[int, int]:
    """Remove files by a glob of their address from a store that no squid uses; (how many, bytes).

    Its index goes too: squid makes it anew from the files.
    """
    count = freed = 0
    for path, _url, size in fitting(store, pattern):
        with suppress(OSError):
            os.unlink(path)
            count, freed = count + 1, freed + size
    if count:
        for name in _INDEX:
            with suppress(OSError):
                os.unlink(os.path.join(store, name))
    return count, freed
