"""One stored response as a file: the body, then its block digests, its meta data and a footer. Bytes only; no paths.

The footer stands last, so that a file that was cut short has none, and so that a confirmation (304) can be appended:
newer meta data with their own footer, while whoever is reading the body goes on reading it.

::

    body | digests, 16 bytes for each 256 KiB of body | meta (JSON) | footer
    footer: magic, body length, digests' length, meta length, BLAKE2b of (the lengths, the digests, the meta)
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
from typing import BinaryIO

from vmproxy.cache.message import Fields
from vmproxy.cache.policy import Stored, fresh_until

BLOCK = 256 << 10
_MAGIC = b"vmpcach1"
_FOOTER = struct.Struct(">8sQII32s")
_LENGTHS = struct.Struct(">QII")
_DIGEST = 16
_TAIL_LIMIT = 64 << 20


class Corrupt(Exception):
    """A file that is not what was written."""


class Entry:
    """One stored response in the index. ``name`` is its file, ``size`` the file's length."""

    __slots__ = ("body", "fresh_until", "length", "name", "size", "stored", "touched", "url")

    def __init__(self, *, name: str, url: str, stored: Stored, length: int, size: int) -> None:
        self.name = name
        self.url = url
        self.stored = stored
        self.length = length
        self.size = size
        self.body: bytes | None = None  # a small one that is kept in memory, checked
        self.fresh_until = fresh_until(stored)
        self.touched = 0.0


def name_of(url: str, asked: tuple[tuple[str, str], ...]) -> str:
    """The file's name: SHA-256 of the address and of what Vary names."""
    return hashlib.sha256(json.dumps([url, asked]).encode()).hexdigest()


def digest(block: bytes | memoryview) -> bytes:
    """The checksum of one block of a body."""
    return hashlib.blake2b(block, digest_size=_DIGEST).digest()


class Digests:
    """The block digests of a body that is written piece by piece."""

    def __init__(self) -> None:
        self._found: list[bytes] = []
        self._now = hashlib.blake2b(digest_size=_DIGEST)
        self._in_block = 0

    def update(self, data: bytes) -> None:
        """Go on with ``data``."""
        rest = memoryview(data)
        while rest:
            piece = rest[: BLOCK - self._in_block]
            self._now.update(piece)
            self._in_block += len(piece)
            rest = rest[len(piece) :]
            if self._in_block == BLOCK:
                self._found.append(self._now.digest())
                self._now = hashlib.blake2b(digest_size=_DIGEST)
                self._in_block = 0

    def all(self) -> bytes:
        """The digests of every block so far, the last one included."""
        return b"".join([*self._found, self._now.digest()] if self._in_block else self._found)


def tail(url: str, stored: Stored, length: int, digests: bytes) -> bytes:
    """What follows the body in the file."""
    meta = json.dumps(
        {"url": url, "fields": stored.fields, "received": stored.received, "age": stored.age, "asked": stored.asked}
    ).encode()
    lengths = _LENGTHS.pack(length, len(digests), len(meta))
    check = hashlib.blake2b(lengths + digests + meta, digest_size=32).digest()
    return digests + meta + _FOOTER.pack(_MAGIC, length, len(digests), len(meta), check)


def read_tail(file: BinaryIO) -> tuple[str, Stored, int, bytes]:
    """(address, response, body length, digests) of an open file. Raises Corrupt, OSError."""
    size = os.fstat(file.fileno()).st_size
    if size < _FOOTER.size:
        raise Corrupt
    file.seek(size - _FOOTER.size)
    magic, length, digests_length, meta_length, check = _FOOTER.unpack(file.read(_FOOTER.size))
    rest = digests_length + meta_length
    if magic != _MAGIC or rest > _TAIL_LIMIT or length + rest + _FOOTER.size > size:
        raise Corrupt
    if digests_length != -(-length // BLOCK) * _DIGEST:
        raise Corrupt
    file.seek(size - _FOOTER.size - rest)
    data = file.read(rest)
    lengths = _LENGTHS.pack(length, digests_length, meta_length)
    if hashlib.blake2b(lengths + data, digest_size=32).digest() != check:
        raise Corrupt
    try:
        meta = json.loads(data[digests_length:])
        fields: Fields = [(str(name), str(value)) for name, value in meta["fields"]]
        asked = tuple((str(name), str(value)) for name, value in meta["asked"])
        stored = Stored(fields=fields, received=float(meta["received"]), age=float(meta["age"]), asked=asked)
        return str(meta["url"]), stored, length, data[:digests_length]
    except (ValueError, KeyError, TypeError):
        raise Corrupt from None


class Body:
    """The body of an open entry, read in blocks that are checked before anybody sees them. Close it."""

    def __init__(self, file: BinaryIO, length: int, digests: bytes) -> None:
        self._file = file
        self.length = length
        self._digests = digests

    def block(self, number: int) -> bytes:
        """Block ``number``. Raises Corrupt, OSError."""
        start = number * BLOCK
        self._file.seek(start)
        data = self._file.read(min(BLOCK, self.length - start))
        if digest(data) != self._digests[number * _DIGEST : (number + 1) * _DIGEST]:
            raise Corrupt
        return data

    def close(self) -> None:
        """Give the file back."""
        self._file.close()
