"""The members of an initramfs image: where each begins and ends, and its bytes unpacked as a stream. PURE.

An image is archives one behind the other, each plain or compressed by itself, with zero bytes between them (Linux,
``Documentation/driver-api/early-userspace/buffer-format.rst`` and ``init/initramfs.c``). Nothing is unpacked as a
whole: a stream gives at most :data:`PIECE_BYTES` at once, ends at 200 times what went in, and the image at 2 GiB.
"""

from __future__ import annotations

import re
from collections.abc import Generator, Iterator
from typing import NamedTuple

from vmproxy.compression import ERRORS, PIECE_BYTES, decoder, is_zstd_error
from vmproxy.errors import ForeignFile, Refused

MOST_BYTES = 2 << 30
MOST_RATIO = 200
_SLACK_BYTES = 1 << 20
_FIRST_BYTES = 1 << 12

KINDS = ("cpio", "gzip", "xz", "zstd", "lzma", "bzip2")
"""What is read and written: a plain archive, and compressed ones."""
APPENDABLE = ("cpio", "gzip", "xz", "zstd")
"""What another member may follow: of the others the kernel's decoders do not say to the byte where they ended."""

_MAGIC = (
    (b"\x1f\x8b", "gzip"),
    (b"\xfd7zXZ\0", "xz"),
    (b"\x28\xb5\x2f\xfd", "zstd"),
    (b"BZh", "bzip2"),
    (b"\x5d\0\0", "lzma"),
    (b"\x02\x21\x4c\x18", "lz4"),
    (b"\x04\x22\x4d\x18", "lz4"),
    (b"\x89LZO\0", "lzop"),
)
_BOOTCONFIG = b"#BOOTCONFIG\n"
_NOT_ZERO = re.compile(rb"[^\0]")


class Span(NamedTuple):
    """``image[start:end]``; ``kind`` is one of :data:`KINDS`, zeros, or what is not read: lz4, lzop,
    unknown."""

    kind: str
    start: int
    end: int


class Budget:
    """How much all streams of one image may still give."""

    def __init__(self) -> None:
        self._left = MOST_BYTES

    def spend(self, size: int) -> None:
        """Raises ForeignFile where it is too much."""
        self._left -= size
        if self._left < 0:
            raise ForeignFile(f"the image unpacks to more than {MOST_BYTES >> 30} GiB")


def kind_at(image: bytes, start: int) -> str:
    """What begins there, as the kernel's loop decides it: a plain archive stands at a multiple of four."""
    if image[start] == 0:
        return "zeros"
    if image.startswith((b"070701", b"070702"), start) and start % 4 == 0:
        return "cpio"
    return next((kind for magic, kind in _MAGIC if image.startswith(magic, start)), "unknown")


def zeros_end(image: bytes, start: int) -> int:
    """The first byte from ``start`` that is not zero, or the end."""
    found = _NOT_ZERO.search(image, start)
    return found.start() if found else len(image)


def name_of_unknown(image: bytes, start: int) -> str:
    """What cannot be read, in words for people."""
    kind = kind_at(image, start)
    if kind != "unknown":
        return f"a member compressed with {kind}"
    if image.startswith((b"070707", b"\xc7\x71", b"\x71\xc7"), start):
        return "a cpio archive of the old format"
    if image.startswith((b"070701", b"070702"), start):
        return "a plain archive that does not stand at a multiple of 4 bytes"
    if image.startswith(b"MZ", start):
        return "a program (a unified kernel image?)"
    if image.rstrip(b"\0").endswith(_BOOTCONFIG):
        return "a boot configuration"
    return "something that is no archive"


class Stream:
    """The unpacked bytes of one member, from the front to the back; nothing is kept.

    ``position`` counts unpacked bytes. :meth:`finish` reads the rest, and then ``end`` is where the member ends in the
    image. Raises ForeignFile where the data is broken, cut short, or grows beyond the limits.
    """

    def __init__(self, image: bytes, kind: str, start: int, budget: Budget) -> None:
        self.position = 0
        self.end = start
        self._start = start
        self._plain = kind == "cpio"
        # They must not know this object: what refers to itself stays, and with it tens of megabytes of a dictionary.
        self._pieces = _copied(image, start) if self._plain else _unpacked(image, kind, start, budget)
        self._piece = b""
        self._at = 0

    def some(self, most: int) -> bytes:
        """The next bytes, at most so many and at least one; none at the end."""
        if not self.more():
            return b""
        found = self._piece[self._at : self._at + most]
        self._at += len(found)
        self.position += len(found)
        return found

    def take(self, size: int) -> bytes:
        """Exactly so many bytes."""
        found = self.some(size) if size else b""
        if len(found) == size:
            return found
        parts = [found]
        left = size - len(found)
        while left:
            found = self.some(left)
            if not found:
                raise ForeignFile("the archive is cut short")
            parts.append(found)
            left -= len(found)
        return b"".join(parts)

    def pieces(self, size: int) -> Iterator[bytes]:
        """Exactly so many bytes, piece by piece."""
        while size:
            found = self.some(min(size, PIECE_BYTES))
            if not found:
                raise ForeignFile("the archive is cut short")
            size -= len(found)
            yield found

    def more(self) -> bool:
        """Whether anything follows."""
        while self._at == len(self._piece):
            try:
                self._piece, self._at = next(self._pieces), 0
            except StopIteration as stop:
                if stop.value is not None:
                    self.end = stop.value
                return False
        return True

    def zeros(self) -> int:
        """Pass over zero bytes, and say how many there were."""
        count = 0
        while self.more():
            found = _NOT_ZERO.search(self._piece, self._at)
            step = (found.start() if found else len(self._piece)) - self._at
            self._at += step
            count += step
            if found:
                break
        self.position += count
        return count

    def finish(self) -> None:
        """Read to the end: of a plain archive that is here."""
        if self._plain:
            self.end = self._start + self.position
        else:
            while self.some(PIECE_BYTES):
                pass


def _copied(image: bytes, start: int) -> Generator[bytes, None, None]:
    size = _FIRST_BYTES  # an image may have many small archives
    while start < len(image):
        yield image[start : start + size]
        start, size = start + size, min(2 * size, PIECE_BYTES)


def _unpacked(image: bytes, kind: str, start: int, budget: Budget) -> Generator[bytes, None, int]:
    """The pieces; at their end, where the member ends."""
    packed = decoder(image, kind, start)
    given = 0
    try:
        for piece in packed:
            given += len(piece)
            budget.spend(len(piece))
            if given > MOST_RATIO * (packed.at - start) + _SLACK_BYTES:
                raise ForeignFile(f"the {kind} data grows to more than {MOST_RATIO} times its size")
            if piece:
                yield piece
    except ERRORS as error:
        raise ForeignFile(f"the {kind} data is broken: {_reason(error)}") from None
    except Refused:
        raise
    except Exception as error:
        if not is_zstd_error(error):
            raise
        raise ForeignFile("the zstd data is broken") from None
    return packed.at


def _reason(error: Exception) -> str:
    return str(error).partition(":")[2].strip() or str(error) or "no reason is known"
