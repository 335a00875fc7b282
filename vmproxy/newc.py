"""The archive format of an initramfs: ``newc`` cpio, read as a stream and written byte for byte as GNU cpio does. PURE.

The layout is that of Linux, ``Documentation/driver-api/early-userspace/buffer-format.rst``. Names are bytes; none of
them ever becomes a path of this host.
"""

from __future__ import annotations

import re
import stat
from collections.abc import Iterator, Sequence

from vmproxy.errors import ForeignFile
from vmproxy.members import Stream

HEADER_BYTES = 110
NAME_LIMIT_BYTES = 4096  # PATH_MAX
TRAILER = b"TRAILER!!!"
_HEADER = re.compile(rb"07070[12][0-9A-Fa-f]{104}")
_FIELDS = (
    *("ino", "mode", "uid", "gid", "nlink", "mtime", "filesize", "devmajor", "devminor", "rdevmajor", "rdevminor"),
    *("namesize", "check"),
)


class Entry:
    """One record. ``raw`` is its header with the name and the padding, ``position`` where that begins in the stream."""

    __slots__ = ("position", "raw")

    def __init__(self, raw: bytes, position: int) -> None:
        self.raw = raw
        self.position = position

    def field(self, name: str) -> int:
        """A number of the header."""
        return field(self.raw, name)

    @property
    def name(self) -> bytes:
        """As it stands there, up to the first NUL."""
        return self.raw[HEADER_BYTES : HEADER_BYTES + self.field("namesize") - 1].partition(b"\0")[0]

    @property
    def size(self) -> int:
        """Bytes of content, without padding."""
        return self.field("filesize")

    @property
    def is_trailer(self) -> bool:
        """Whether the archive ends here."""
        return self.name == TRAILER


def field(raw: bytes, name: str) -> int:
    """A number of a header."""
    at = 6 + 8 * _FIELDS.index(name)
    return int(raw[at : at + 8], 16)


def entries(stream: Stream, *, many: bool) -> Iterator[Entry | int]:
    """Each record of an archive with its trailer, and how many zero bytes stand where some do between archives.

    ``many``: other archives may follow until the stream ends, as inside one compressed member. Of a record's content
    the caller may take what it wants before it goes on. Raises ForeignFile for what is no archive, or cut short.
    """
    while True:
        begun = stream.position
        if begun % 4:
            raise _wrong("an archive does not stand at a multiple of 4 bytes", begun)
        head = stream.take(HEADER_BYTES)
        if not _HEADER.fullmatch(head):
            raise _wrong("this is no header of a newc archive", begun)
        size = field(head, "namesize")
        if not 0 < size <= NAME_LIMIT_BYTES:
            raise _wrong(f"a name of {size} bytes", begun)
        name = stream.take(size + -(HEADER_BYTES + size) % 4)
        if name[size - 1] != 0:
            raise _wrong("a name has no end", begun)
        entry = Entry(head + name, begun)
        length = entry.size
        after = stream.position + length + -length % 4
        yield entry
        for _piece in stream.pieces(after - stream.position):
            pass
        if entry.is_trailer:
            if not many:
                return
            zeros = stream.zeros()
            if zeros:
                yield zeros
            if not stream.more():
                return


def _wrong(what: str, position: int) -> ForeignFile:
    return ForeignFile(what, where=f"at byte {position} of the unpacked archive")


def record(name: bytes, content: bytes = b"", magic: bytes = b"070701", /, *, mode: int, **fields: int) -> bytes:
    """One record with its content and all padding. ``mode`` has the type bits; ``fields`` are the header's others, 0
    where they are not given, ``nlink`` 1."""
    numbers = {"nlink": 1, **fields, "mode": mode, "filesize": len(content), "namesize": len(name) + 1}
    if magic == b"070702" and stat.S_ISREG(mode):
        numbers["check"] = sum(content) & 0xFFFFFFFF
    head = magic + b"".join(b"%08X" % (numbers.get(key, 0) & 0xFFFFFFFF) for key in _FIELDS)
    return _padded(head + name + b"\0") + _padded(content)


def trailer(**fields: int) -> bytes:
    """The record that ends an archive."""
    return record(TRAILER, mode=0, **fields)


def archive(records: Sequence[bytes], end: bytes = b"", *, block: int = 512) -> bytes:
    """A whole archive with its trailer, padded to a block as GNU cpio does."""
    whole = b"".join(records) + (end or trailer())
    return whole + bytes(-len(whole) % block)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)
