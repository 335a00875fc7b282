"""The compressions of an initramfs image's members, unpacked piece by piece, and packed. PURE.

A piece is never longer than :data:`PIECE_BYTES`, however much its data grows. gzip (RFC 1952), xz, lzma and bzip2 come
from the standard library; zstd (RFC 8878) is fed block by block.
"""

from __future__ import annotations

import bz2
import lzma
import zlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol

from vmproxy.errors import ForeignFile, Refused

PIECE_BYTES = 1 << 18
_FEED_BYTES = 1 << 16
_BLOCK_BYTES = 128 << 10  # RFC 8878 section 3.1.1.2.4: Block_Maximum_Size
_LZMA_MEMORY_BYTES = 70 << 20  # xz -9 needs 65 MiB to unpack
_WINDOW_BYTES = 32 << 20


class Decoder(Protocol):
    """The unpacked bytes, piece by piece; a piece may be empty. ``at`` is how far the packed ones are used."""

    at: int

    def __iter__(self) -> Iterator[bytes]:
        """Raises ForeignFile, and what :data:`ERRORS` and :func:`is_zstd_error` name."""


ERRORS = (zlib.error, lzma.LZMAError, OSError, EOFError, ValueError)
"""What the standard library raises for broken data."""


def is_zstd_error(error: Exception) -> bool:
    """Whether zstd's library, whichever it is, says that the data is broken."""
    return type(error).__name__ == "ZstdError"


def decoder(image: bytes, kind: str, start: int) -> Decoder:
    """For one member of that kind, which begins at ``start``. Raises Refused without zstd."""
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
        # gzip's own default: 9 takes four times as long for one percent less.
        "gzip": lambda: zlib.compressobj(6, zlib.DEFLATED, 31),
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
