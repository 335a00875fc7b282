"""The file of an image on this host: read whole, and replaced whole or not at all. Part of the machine ``image``.

New bytes are on the disk, and read back, before they get the file's name; a run that ends before that leaves the file
as it was, and nothing beside it.
"""

from __future__ import annotations

import errno
import os
import re
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from vmproxy.dirlock import lock, must_be_writable, not_permitted
from vmproxy.errors import Busy, ForeignFile, NotPermitted, Refused, RolledBack, VmproxyError
from vmproxy.model import printable
from vmproxy.values import dataclass

_LIMIT_BYTES = 1 << 31
_PIECE_BYTES = 1 << 20
_MARK = ".vmproxy-"
_WHICH = "initrd:FILE is the VM's initramfs image"
_ELSEWHERE = "a proxy URL without credentials, or the image on a disk that keeps modes"
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)


@dataclass(frozen=True, kw_only=True)
class Seen:
    """One image file. ``path`` is where symbolic links lead; ``identity`` changes with every write, and ends with the
    time of the last one in ns; ``links`` counts the file's names."""

    path: str
    content: bytes
    mode: int
    owner: tuple[int, int]
    identity: tuple[int, ...]
    links: int = 1


def identity(path: str) -> tuple[int, ...]:
    """What changes with every write. Raises OSError."""
    now = os.stat(path)
    return (now.st_dev, now.st_ino, now.st_size, now.st_mtime_ns)


def read(path: str) -> Seen:
    """The whole file. Raises Refused where there is none, ForeignFile for what is no plain file of less than 2 GiB,
    NotPermitted."""
    with named(path):
        real = os.path.realpath(path)
        try:
            handle = os.open(real, os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0))
        except FileNotFoundError:
            raise Refused("there is no such file", where=path, hint="--vm initrd:FILE") from None
        seen = os.fstat(handle)
        if not stat.S_ISREG(seen.st_mode):
            os.close(handle)
            hint = "rootfs:DIR is for a directory" if stat.S_ISDIR(seen.st_mode) else _WHICH
            raise ForeignFile("this is no plain file", where=path, hint=hint)
        with os.fdopen(handle, "rb") as stream:
            if seen.st_size >= _LIMIT_BYTES:
                raise ForeignFile(f"this is no image of less than {_LIMIT_BYTES >> 30} GiB", where=path, hint=_WHICH)
            content = stream.read(seen.st_size)  # of a greater number Python takes the memory first
    return Seen(
        path=real,
        content=content,
        mode=stat.S_IMODE(seen.st_mode),
        owner=(seen.st_uid, seen.st_gid),
        identity=(seen.st_dev, seen.st_ino, seen.st_size, seen.st_mtime_ns),
        links=seen.st_nlink,
    )


def must_be_replaceable(seen: Seen) -> None:
    """Raises ForeignFile for a file that would be replaced under one of its names only, NotPermitted where nothing can
    be written beside it; as far as that can be known without writing."""
    if seen.links > 1:
        what, hint = "the file has more than one hard link", "make it a file of its own and run vmproxy again"
        raise ForeignFile(what, where=printable(seen.path), hint=hint)
    must_be_writable(os.path.dirname(seen.path), where=printable(seen.path))


@contextmanager
def new_file(
    seen: Seen, content: bytes, mode: int, *, date_ns: int | None = None, secret: bool = False
) -> Iterator[str]:
    """A file beside the one seen, with that content, mode and its owner, on the disk and read back; it is gone at the
    end unless it has got another name. ``date_ns`` is the time of its last change, None for now.

    Raises OSError, NotPermitted, RolledBack where the disk gives back other bytes, and Refused where it is ``secret``
    and the disk does not keep a mode that shuts others out."""
    directory = os.path.dirname(seen.path)
    handle, name = tempfile.mkstemp(prefix=_prefix(seen.path), dir=directory)
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(content)
            stream.flush()
            if os.name == "posix":
                own = os.fstat(stream.fileno())
                if seen.owner != (own.st_uid, own.st_gid):
                    _give(stream.fileno(), seen, own.st_uid)
                os.fchmod(stream.fileno(), mode)
                if secret and os.fstat(stream.fileno()).st_mode & 0o077:
                    what = "the disk cannot keep the image from being read by others; nothing was changed"
                    raise Refused(what, where=printable(seen.path), hint=_ELSEWHERE)
            if date_ns is not None:
                os.utime(stream.fileno() if os.utime in os.supports_fd else name, ns=(date_ns, date_ns))
            os.fsync(stream.fileno())
        if not holds(name, content):
            raise RolledBack("what was written reads differently; the image is as it was", where=seen.path)
        yield name
    finally:
        with suppress(FileNotFoundError):
            os.unlink(name)


def keeps_modes(path: str, mode: int) -> bool:
    """Whether a file beside this one can have that mode, by making one; True in doubt."""
    if os.name != "posix":
        return False
    try:
        handle, name = tempfile.mkstemp(prefix=_prefix(path), dir=os.path.dirname(path))
        try:
            os.fchmod(handle, mode)
            return stat.S_IMODE(os.fstat(handle).st_mode) == mode
        finally:
            os.close(handle)
            os.unlink(name)
    except OSError:
        return True


def _give(handle: int, seen: Seen, own: int) -> None:
    """Make the file the owner's of the one seen. Raises NotPermitted where only root may do that."""
    try:
        os.fchown(handle, *seen.owner)
    except PermissionError:
        user, group = seen.owner
        if user != own:
            what, hint = f"the file would lose its owner (uid {user})", "run vmproxy as that user, or with sudo"
        else:
            what = f"the file would lose its group (gid {group}), which you are not in"
            hint = "give it a group of yours (chgrp), or run vmproxy with sudo"
        raise NotPermitted(f"not permitted: {what}", where=printable(seen.path), hint=hint) from None


def holds(path: str, content: bytes) -> bool:
    """Whether the file has exactly these bytes; read piece by piece. Raises OSError."""
    at = 0
    with open(path, "rb") as stream:
        while piece := stream.read(_PIECE_BYTES):
            if content[at : at + len(piece)] != piece:
                return False
            at += len(piece)
    return at == len(content)


@contextmanager
def locked(path: str, seconds: float) -> Iterator[None]:
    """Hold the lock of the file's directory, and clear what a run cut short has left. Raises Busy."""
    directory = os.path.dirname(path)
    handle = lock(directory, seconds, where=path)
    try:
        if handle is not None:
            with suppress(OSError):
                for name in _parts(path):
                    with suppress(OSError):
                        os.unlink(name)
        yield
    finally:
        if handle is not None:
            os.close(handle)


def leftovers(path: str, backups: tuple[str, ...]) -> tuple[str, ...]:
    """What a run cut short has left beside the image: parts of a new one; and those ``backups``, which are left over
    if no run is at work. Nothing while another run is at it, or where there are no locks to tell."""
    directory = os.path.dirname(path)
    try:
        found = [*_parts(path), *backups]
        handle = lock(directory, 0, where=path) if found else None
    except (OSError, Busy):
        return ()
    if handle is None:
        return ()
    os.close(handle)
    return tuple(sorted(printable(name) for name in found if os.path.lexists(name)))


@contextmanager
def named(path: str) -> Iterator[None]:
    """An error of the system as one of ours: nothing was changed, whichever it is."""
    try:
        yield
    except OSError as error:
        raise _meant(error, path) from None


def _meant(error: OSError, path: str) -> VmproxyError:
    reason = error.strerror or type(error).__name__
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return not_permitted(error.errno, where=path)
    if error.errno in _FULL:
        return RolledBack(f"it cannot be written: {reason}; it is as it was", where=path, hint="make room")
    return Refused(f"it cannot be read or written: {reason}; nothing was changed", where=path, hint=_WHICH)


def _prefix(path: str) -> str:
    return f".{os.path.basename(path)}{_MARK}"


def _parts(path: str) -> list[str]:
    """Parts of a new image: plain files of the names that :func:`new_file` gives, and nobody else. Raises OSError."""
    directory, name = os.path.split(path)
    ours = re.compile(re.escape(f".{name}{_MARK}") + "[a-z0-9_]{8}")
    found = (os.path.join(directory, one) for one in os.listdir(directory) if ours.fullmatch(one))
    return sorted(one for one in found if os.path.isfile(one) and not os.path.islink(one))
