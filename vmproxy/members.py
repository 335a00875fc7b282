"""The members of an initramfs image: where each begins and ends, and its bytes unpacked as a stream. PURE.

An image is archives one behind the other, each plain or compressed by itself, with zero bytes between them (Linux,
``Documentation/driver-api/early-userspace/buffer-format.rst`` and ``init/initramfs.c``). Nothing is unpacked as a
whole: a stream gives at most :data:`PIECE_BYTES` at once, ends at 200 times what went in, and the image at 2 GiB.
"""

from __future__ import annotations

import bz2
import lzma
import re
import zlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol

from vmproxy.errors import ForeignFile, Refused

PIECE_BYTES = 1 << 18
MOST_BYTES = 2 << 30
MOST_RATIO = 200
_SLACK_BYTES = 1 << 20
_FEED_BYTES = 1 << 16
_FIRST_BYTES = 1 << 12
_BLOCK_BYTES = 128 << 10  # RFC 8878 section 3.1.1.2.4: Block_Maximum_Size
_LZMA_MEMORY_BYTES = 70 << 20  # xz -9 needs 65 MiB to unpack
_WINDOW_BYTES = 32 << 20

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
        self._budget = budget
        self._start = start
        self._plain = kind == "cpio"
        self._pieces = self._copied(image) if self._plain else self._unpacked(image, kind)
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
            except StopIteration:
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

    def _copied(self, image: bytes) -> Iterator[bytes]:
        start, size = self._start, _FIRST_BYTES  # an image may have many small archives
        while start < len(image):
            yield image[start : start + size]
            start, size = start + size, min(2 * size, PIECE_BYTES)

    def _unpacked(self, image: bytes, kind: str) -> Iterator[bytes]:
        decoder = _decoder(image, kind, self._start)
        given = 0
        try:
            for piece in decoder:
                given += len(piece)
                self._budget.spend(len(piece))
                if given > MOST_RATIO * (decoder.at - self._start) + _SLACK_BYTES:
                    raise ForeignFile(f"the {kind} data grows to more than {MOST_RATIO} times its size")
                if piece:
                    yield piece
        except (zlib.error, lzma.LZMAError, OSError, EOFError, ValueError) as error:
            raise ForeignFile(f"the {kind} data is broken: {_reason(error)}") from None
        except Refused:
            raise
        except Exception as error:  # zstandard's own error, whichever library it is
            if type(error).__name__ != "ZstdError":
                raise
            raise ForeignFile("the zstd data is broken") from None
        self.end = decoder.at


def _reason(error: Exception) -> str:
    return str(error).partition(":")[2].strip() or str(error) or "no reason is known"


class _Decoder(Protocol):
    at: int

    def __iter__(self) -> Iterator[bytes]: ...


def _decoder(image: bytes, kind: str, start: int) -> _Decoder:
    if kind == "gzip":
        return _Gzip(image, start)
    if kind == "zstd":
        return _Zstd(image, start)
    made: dict[str, Callable[[], Any]] = {
        "xz": lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_LZMA_MEMORY_BYTES),
        "lzma": lambda: lzma.LZMADecompressor(lzma.FORMAT_ALONE, memlimit=_LZMA_MEMORY_BYTES),
        "bzip2": bz2.BZ2Decompressor,
    }
    return _Buffered(image, start, made[kind]())


class _Gzip:
    """One gzip member (RFC 1952): what follows it is another member of the image."""

    def __init__(self, image: bytes, start: int) -> None:
        self._image, self.at = image, start

    def __iter__(self) -> Iterator[bytes]:
        inflate = zlib.decompressobj(wbits=31)
        while not inflate.eof:
            feed = self._image[self.at : self.at + _FEED_BYTES]
            piece = inflate.decompress(feed, PIECE_BYTES)
            rest = inflate.unused_data if inflate.eof else inflate.unconsumed_tail
            self.at += len(feed) - len(rest)
            if not feed and not piece and not inflate.eof:
                raise ForeignFile("the gzip data is cut short")
            yield piece


class _Buffered:
    """bz2's and lzma's decompressors, which keep what they have not used."""

    def __init__(self, image: bytes, start: int, decompressor: Any) -> None:
        self._image, self.at, self._inner = image, start, decompressor

    def __iter__(self) -> Iterator[bytes]:
        inner = self._inner
        while not inner.eof:
            feed = self._image[self.at : self.at + _FEED_BYTES] if inner.needs_input else b""
            if inner.needs_input and not feed:
                raise ForeignFile("the compressed data is cut short")
            self.at += len(feed)
            piece = inner.decompress(feed, PIECE_BYTES)
            if inner.eof:
                self.at -= len(inner.unused_data)
            yield piece


class _Zstd:
    """One zstd frame (RFC 8878 section 3.1.1), fed block by block: no block gives more than 128 KiB."""

    def __init__(self, image: bytes, start: int) -> None:
        self._image, self.at = image, start

    def __iter__(self) -> Iterator[bytes]:
        inner = _zstd_library().decompressor()
        for end in self._ends():
            piece = inner.decompress(self._image[self.at : end])
            self.at = end
            yield piece
        if not inner.eof:
            raise ForeignFile("the zstd data is broken")

    def _ends(self) -> Iterator[int]:
        """Where the frame's header ends, and each of its blocks; the last one with the checksum."""
        image, at = self._image, self.at + 4
        flags = self._number(at, 1)
        single = flags >> 5 & 1
        if flags & 3:
            raise ForeignFile("the zstd data needs a dictionary")
        size_bytes = (1 if single else 0, 2, 4, 8)[flags >> 6]
        at += 1
        if single:
            window = self._number(at, size_bytes) + (256 if size_bytes == 2 else 0)
        else:
            exponent, mantissa = divmod(self._number(at, 1), 8)
            window = (1 << (10 + exponent)) // 8 * (8 + mantissa)
            at += 1
        if window > max(_WINDOW_BYTES, 2 * len(image)):
            raise ForeignFile(f"the zstd data wants a window of {window >> 20} MiB")
        at += size_bytes
        yield at
        last = 0
        while not last:
            head = self._number(at, 3)
            last, kind, size = head & 1, head >> 1 & 3, head >> 3
            if size > max(_BLOCK_BYTES, 1 if kind == 1 else 0) or kind == 3:
                raise ForeignFile("the zstd data is broken")
            at += 3 + (1 if kind == 1 else size)
            end = at + (4 if last and flags >> 2 & 1 else 0)
            if end > len(image):
                raise ForeignFile("the zstd data is cut short")
            yield end

    def _number(self, at: int, size: int) -> int:
        found = self._image[at : at + size]
        if len(found) < size:
            raise ForeignFile("the zstd data is cut short")
        return int.from_bytes(found, "little")


class _ZstdLibrary(NamedTuple):
    decompressor: Callable[[], Any]
    compressor: Callable[[], Any]


def _zstd_library() -> _ZstdLibrary:
    """Python 3.14's own, else the package zstandard. Raises Refused where there is neither."""
    import importlib

    try:
        own: Any = importlib.import_module("compression.zstd")
        options = {own.CompressionParameter.compression_level: 9, own.CompressionParameter.checksum_flag: 1}
        return _ZstdLibrary(own.ZstdDecompressor, lambda: own.ZstdCompressor(options=options))
    except ImportError:
        pass
    try:
        package: Any = importlib.import_module("zstandard")
    except ImportError:
        raise Refused(
            "the image is compressed with zstd, and this Python has no zstd", hint="pip install 'vmproxy[initrd]'"
        ) from None
    return _ZstdLibrary(
        lambda: package.ZstdDecompressor(max_window_size=1 << 31).decompressobj(),
        lambda: package.ZstdCompressor(level=9, write_checksum=True, write_content_size=False).compressobj(),
    )


def packer(kind: str) -> Any:
    """An object with ``compress(data)`` and ``flush()`` whose output the kernel reads: of xz's checks it knows only
    CRC32 (Linux, ``Documentation/staging/xz.rst``), of gzip no time is written. Raises Refused without zstd."""
    made: dict[str, Callable[[], Any]] = {
        "cpio": _Plain,
        "gzip": lambda: zlib.compressobj(9, zlib.DEFLATED, 31),
        "xz": lambda: lzma.LZMACompressor(lzma.FORMAT_XZ, check=lzma.CHECK_CRC32, preset=6),
        "lzma": lambda: lzma.LZMACompressor(lzma.FORMAT_ALONE, preset=6),
        "bzip2": lambda: bz2.BZ2Compressor(9),
        "zstd": lambda: _zstd_library().compressor(),
    }
    return made[kind]()


class _Plain:
    def compress(self, data: bytes) -> bytes:
        return data

    def flush(self) -> bytes:
        return b""
