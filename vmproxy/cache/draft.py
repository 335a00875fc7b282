"""A response that is being written into the store."""

from __future__ import annotations

import os
import threading
from contextlib import suppress
from typing import BinaryIO

from vmproxy.cache.entry import Digests, tail
from vmproxy.cache.policy import Stored

PART = ".part"


class Draft:
    """A response that is being written: a file nobody finds until :meth:`Store.publish`."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.length = 0
        self._digests = Digests()
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o600)
        self.file: BinaryIO = os.fdopen(handle, "w+b", buffering=0)
        self._one_at_a_time = threading.Lock()  # they share the file's position

    def write(self, data: bytes) -> None:
        """Go on with the body. Raises OSError; what was written before is there."""
        with self._one_at_a_time:
            self._put(data)
        self._digests.update(data)
        self.length += len(data)

    def _put(self, data: bytes) -> None:
        rest = memoryview(data)
        self.file.seek(self.length)
        while rest:
            rest = rest[self.file.write(rest) :]

    def read(self, start: int, count: int) -> bytes:
        """Bytes that were written."""
        with self._one_at_a_time:
            self.file.seek(start)
            return self.file.read(min(count, self.length - start))

    def finish(self, url: str, stored: Stored) -> int:
        """Write what follows the body; the file's size. Raises OSError."""
        rest = tail(url, stored, self.length, self._digests.all())
        with self._one_at_a_time:
            self._put(rest)
        return self.length + len(rest)

    def discard(self) -> None:
        """Remove it, if it was not published."""
        self.file.close()
        if self.path:
            with suppress(OSError):
                os.unlink(self.path)
            self.path = ""
