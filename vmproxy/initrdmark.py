"""How a member that we wrote is known: by numbers in its trailer, at which no kernel and no cpio looks. PURE."""

from __future__ import annotations

import hashlib

from vmproxy.errors import ForeignFile
from vmproxy.newc import Entry, trailer
from vmproxy.values import dataclass

_OURS = 0x766D7078  # "vmpx"
_FORMAT = 1
_APPENDED, _REWRITTEN = 1, 2


@dataclass(frozen=True, kw_only=True)
class Mark:
    """What we wrote into the trailer of a member of ours. ``base`` are the first 16 bytes of the sha256 of the image
    as it was before us, ``padding`` the zero bytes before the member, ``mode`` that of the image file before it was
    made private, None where it was not.

    ``appended`` False: the member is somebody else's, with our records in it.
    """

    appended: bool
    base: bytes
    padding: int = 0
    mode: int | None = None

    def trailer(self) -> bytes:
        """The record that ends the archive."""
        words = [int.from_bytes(self.base[at : at + 4], "big") for at in range(0, 16, 4)]
        return trailer(
            ino=_OURS,
            uid=_FORMAT,
            gid=self.padding,
            mtime=_APPENDED if self.appended else _REWRITTEN,
            check=0 if self.mode is None else self.mode + 1,
            **dict(zip(("devmajor", "devminor", "rdevmajor", "rdevminor"), words, strict=True)),
        )


def fingerprint(image: bytes) -> bytes:
    """What :class:`Mark` keeps of an image."""
    return hashlib.sha256(image).digest()[:16]


def read_mark(entry: Entry) -> Mark | None:
    """Ours, if it is. Raises ForeignFile for a newer one."""
    kind = entry.field("mtime")
    if entry.field("ino") != _OURS or kind not in (_APPENDED, _REWRITTEN):
        return None
    if entry.field("uid") > _FORMAT:
        raise ForeignFile("the image was changed by a newer vmproxy", hint="upgrade")
    words = (entry.field(name) for name in ("devmajor", "devminor", "rdevmajor", "rdevminor"))
    mode = entry.field("check")
    return Mark(
        appended=kind == _APPENDED,
        base=b"".join(word.to_bytes(4, "big") for word in words),
        padding=entry.field("gid") & 3,
        mode=(mode - 1) & 0o7777 if mode else None,
    )
