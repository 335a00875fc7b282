"""The backup beside an image: the image without us, while it has something of ours. Part of the machine ``image``.

Somebody else's file may stand under the backup's name. Ours is known by its date: that of the image, with the last six
digits made from the content. A file that differs from the image and has no such date is not ours: it is neither
replaced nor taken away. Ours is private, too, but for disks that keep no modes (FAT, exFAT, many shares).
"""

from __future__ import annotations

import hashlib
import os
import stat
from typing import Literal

from vmproxy import initrdedit
from vmproxy.dirlock import settle
from vmproxy.errors import Refused, VmproxyError
from vmproxy.initrd import Image
from vmproxy.initrdmark import Mark, fingerprint
from vmproxy.machines import imagefile
from vmproxy.model import printable

SUFFIX = ".vmproxy-backup"
_MODE = 0o600
_SECOND_NS = 1_000_000_000
_STEP_NS = 1_000  # Linux and macOS keep the time to 1 ns, NTFS to 100 ns
_EXFAT_NS = 10_000_000  # and FAT to 2 s
_PIECE_BYTES = 1 << 20

State = Literal["none", "ours", "earlier", "same", "foreign"]


def path(image: str) -> str:
    """Where the backup of an image stands."""
    return image + SUFFIX


def hint(image: str) -> str:
    """Where the image may still be whole, for one that is not, or is gone; "" where nothing of that name is there."""
    backup = path(image)
    if not os.path.isfile(backup) or os.path.islink(backup):
        return ""
    return f"the image as it was may be {printable(os.path.basename(backup))}, beside it"


def state(backup: str, base: bytes) -> State:
    """What stands there: ``ours``, the backup of this image; ``earlier``, ours of another image; ``same``, somebody
    else's file with the bytes of this image; ``foreign``, anything else. ``base`` is the image without us.

    Where file times are no finer than 10 ms, ours of another image cannot be told, and is foreign; where modes are not
    kept, either, ours of this image is ``same``. Raises OSError.
    """
    if not os.path.lexists(backup):
        return "none"
    seen = os.lstat(backup)
    if not stat.S_ISREG(seen.st_mode):
        return "foreign"
    private = os.name != "posix" or stat.S_IMODE(seen.st_mode) == _MODE
    mode_fits = private or _is_as_the_image(seen.st_mode, backup)
    digits = seen.st_mtime_ns % _SECOND_NS
    if seen.st_size == len(base) and imagefile.holds(backup, base):
        signed = digits == _digits_of(hashlib.sha256(base).digest())
        return "ours" if (signed and mode_fits) or (private and not digits) else "same"
    return "earlier" if mode_fits and digits and not digits % _STEP_NS and digits == _digits(backup) else "foreign"


def read(backup: str, mark: Mark) -> bytes:
    """The image as it was before it was rewritten. Raises Refused where that is not there, and what
    :func:`vmproxy.machines.imagefile.read` raises."""
    hint = "put the image back as its maker has it"
    if not os.path.isfile(backup) or os.path.islink(backup):
        raise Refused("the image was rewritten, and its backup is not there", where=printable(backup), hint=hint)
    content = imagefile.read(backup).content
    if fingerprint(content) != mark.base:
        raise Refused("this is not the backup of the image as it is now", where=printable(backup), hint=hint)
    return content


def beside(backup: str, image: Image) -> tuple[State, tuple[str, ...]]:
    """A backup of ours that no image needs, ``ours`` or ``earlier``, else ``none``; and a line for a reader about one
    that is not ours, or is missing where there is no other way back."""
    mark = initrdedit.rewritten(image)
    try:
        if mark is not None:
            read(backup, mark)
            return "none", ()
        found = state(backup, initrdedit.without_ours(image))
    except Refused as error:
        return "none", (f"there is no way back: {error}",) if mark is not None else ()
    except (OSError, VmproxyError):
        return "none", ()  # who needs it is told then
    if found == "foreign" or (found == "same" and not image.marks):
        return "none", (f"{printable(backup)} is not a backup that vmproxy made; it is left alone",)
    return "none" if image.marks or found == "same" else found, ()


def must_be_free(backup: str, base: bytes) -> None:
    """Raises Refused where somebody else's file stands in the way of a backup, OSError."""
    if state(backup, base) == "foreign":
        what = "this file is in the way of the image's backup, and is not one that vmproxy made"
        raise Refused(what, where=printable(backup), hint="move it away and run vmproxy again")


def keep(seen: imagefile.Seen, base: bytes) -> bool:
    """See that the image without us stands beside it; whether that is new. Raises Refused, OSError."""
    backup = path(seen.path)
    must_be_free(backup, base)
    before = state(backup, base)
    if before in ("ours", "same"):
        return False
    date = seen.identity[-1] // _SECOND_NS * _SECOND_NS + _digits_of(hashlib.sha256(base).digest())
    with imagefile.new_file(seen, base, _MODE, date_ns=date) as name:
        os.replace(name, backup)
    settle(os.path.dirname(backup))
    return before == "none"


def drop(backup: str, base: bytes) -> tuple[str, ...]:
    """Take the backup away, if it is ours; else say that it stays. Raises OSError."""
    found = state(backup, base)
    if found in ("ours", "earlier") or (found == "same" and _has_lost_its_signs(backup, base)):
        os.unlink(backup)
        return ()
    return () if found == "none" else (f"{printable(backup)} is not a backup that vmproxy made, and stays",)


def _is_as_the_image(mode: int, backup: str) -> bool:
    """Whether a mode may be the disk's own, which every file has; the bits for writing are a file's own even on FAT."""
    return not (mode ^ os.stat(backup.removesuffix(SUFFIX)).st_mode) & 0o555


def _has_lost_its_signs(backup: str, base: bytes) -> bool:
    """Whether this file with the image's bytes is what a disk would have made of ours that keeps neither its mode nor
    all of its date. Asks the disk by a file, thus for a run that writes."""
    own = _digits_of(hashlib.sha256(base).digest())
    coarse = os.lstat(backup).st_mtime_ns % _SECOND_NS in (0, own - own % _EXFAT_NS)
    return coarse and not imagefile.keeps_modes(backup.removesuffix(SUFFIX), _MODE)


def _digits(backup: str) -> int:
    made = hashlib.sha256()
    with open(backup, "rb") as stream:
        while piece := stream.read(_PIECE_BYTES):
            made.update(piece)
    return _digits_of(made.digest())


def _digits_of(digest: bytes) -> int:
    """Nanoseconds within a second, never 0."""
    return (1 + int.from_bytes(digest[:8], "big") % 999_999) * _STEP_NS
