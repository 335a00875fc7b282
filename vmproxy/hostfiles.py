"""One file of the user's on this host, replaced whole or not at all.

As the docker client replaces its config.json (docker/cli: cli/config/configfile/file.go, Save): missing directories
are made 0700, a new file is 0600, symbolic links are followed (one that leads nowhere yet, too), owner and mode are
kept, and the new bytes come by rename. Beyond that they are on the disk before the rename, and the file is looked at
once more right before it (and after it, where two names can change places): where another program wrote it meanwhile,
its bytes stay and the edit is made anew on them. What is left is a program that reads in the very microseconds between
our rename and its taking back, and writes again from that: no rename can guard against it.

Two runs of vmproxy take turns: they lock the directory, so that no lock file is left. Windows and some network file
systems have no such lock; then only the second look guards.
"""

from __future__ import annotations

import errno
import os
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace

from vmproxy.dirlock import lock, settle
from vmproxy.errors import Busy, ForeignFile, NotPermitted, Refused, RolledBack, VmproxyError
from vmproxy.fileswap import swap
from vmproxy.values import dataclass

_NEW_FILE = 0o600
_NEW_DIRECTORY = 0o700
_LIMIT_BYTES = 16 << 20
_TRIES = 20
_PAUSE_SECONDS = 0.05
_MARK = ".vmproxy-"
_MOST_LINKS = 40  # as Linux

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)


@dataclass(frozen=True, kw_only=True)
class Look:
    """One file as it is: ``real`` is where symbolic links lead, ``content`` None where there is none.

    ``missing`` are directories on the way that are not there, the outermost first. ``identity`` changes with every
    write.
    """

    path: str
    real: str
    content: bytes | None = None
    mode: int = _NEW_FILE
    owner: tuple[int, int] | None = None
    identity: tuple[int, ...] = ()
    missing: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Edit:
    """What a file should hold: ``content`` None for no file; then ``directories`` above it are removed too, if empty.

    ``private``: nobody but the owner may read it from now on.
    """

    content: bytes | None
    directories: int = 0
    private: bool = False


@dataclass(frozen=True, kw_only=True)
class Done:
    """How it ended. ``narrowed`` says that others could read the file before and cannot now."""

    changed: bool
    narrowed: bool = False


def look(path: str) -> Look:
    """The file at ``path``.

    Raises ForeignFile for what is no regular file or too long, NotPermitted, and Refused where it cannot be reached.
    """
    with _named(path):
        real = _followed(path)
        try:
            before = os.stat(real)
        except FileNotFoundError:
            return Look(path=path, real=real, missing=_missing(path, real))
        if not stat.S_ISREG(before.st_mode):
            raise ForeignFile("this is no regular file", where=path, hint="move it away")
        handle = os.open(real, os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0))
        with os.fdopen(handle, "rb") as stream:
            seen = os.fstat(stream.fileno())
            content = stream.read(_LIMIT_BYTES + 1)
    if not stat.S_ISREG(seen.st_mode) or len(content) > _LIMIT_BYTES:
        raise ForeignFile(f"this is no file of less than {_LIMIT_BYTES >> 20} MiB", where=path, hint="move it away")
    return Look(
        path=path,
        real=real,
        content=content,
        mode=stat.S_IMODE(seen.st_mode),
        owner=(seen.st_uid, seen.st_gid),
        identity=(seen.st_dev, seen.st_ino, seen.st_size, seen.st_mtime_ns),
    )


def change(path: str, edit: Callable[[Look], Edit], *, lock_timeout_seconds: float = 30.0) -> Done:
    """Replace the file by what ``edit`` makes of it; a file that is right already is not written.

    ``edit`` is pure and may be asked more than once. What it raises goes through with the file's name. Raises Busy
    where another run holds the lock for that long, or other programs write the file all the time; RolledBack where it
    cannot be written (the file is as it was); else what :func:`look` raises.
    """
    made: tuple[str, ...] = ()
    with _locked(path, lock_timeout_seconds):
        try:
            for _ in range(_TRIES):
                seen = look(path)
                with placed(path):
                    wanted = edit(replace(seen, missing=made + seen.missing))
                mode = seen.mode & ~0o077 if wanted.private else seen.mode
                if wanted.content == seen.content and (mode == seen.mode or seen.content is None):
                    return Done(changed=False)
                with _named(path):
                    for directory in seen.missing:
                        with suppress(FileExistsError):  # somebody else was quicker: then it is not ours
                            os.mkdir(directory, _NEW_DIRECTORY)
                            made = (*made, directory)
                    if _replaced(seen, wanted, mode):
                        made = ()
                        return Done(changed=True, narrowed=seen.content is not None and mode != seen.mode)
                time.sleep(_PAUSE_SECONDS)
            raise Busy("another program writes it all the time; nothing was changed", where=path)
        finally:
            _remove_empty(made[::-1])


@contextmanager
def placed(path: str) -> Iterator[None]:
    """What is wrong in the file's text, with the file's name before its line and column."""
    try:
        yield
    except ForeignFile as error:
        where = path + (f":{error.where}" if error.where else "")
        raise ForeignFile(error.what, where=where, hint=error.hint) from None


def _replaced(seen: Look, wanted: Edit, mode: int) -> bool:
    """Put the new bytes in place of those seen; False where others are there now."""
    directory = os.path.dirname(seen.real)
    if wanted.content is None:
        if not _same(seen):
            return False
        os.unlink(seen.real)
        settle(directory)
        above = [directory]
        while len(above) < wanted.directories:
            above.append(os.path.dirname(above[-1]))
        _remove_empty(above[: wanted.directories])
        return True
    temporary = _written(directory, seen, wanted.content, mode)
    ours = os.stat(temporary).st_ino
    try:
        if not _same(seen):
            return False
        if seen.content is None:
            return _put_new(temporary, seen.real)
        if not swap(temporary, seen.real):
            os.replace(temporary, seen.real)
            return True
        if _is_what_was_seen(temporary, seen):
            return True
        _put_back(temporary, seen.real, ours)
        return False
    finally:
        with suppress(FileNotFoundError):
            if os.stat(temporary).st_ino == ours or _is_what_was_seen(temporary, seen):
                os.unlink(temporary)
        settle(directory)


def _is_what_was_seen(path: str, seen: Look) -> bool:
    """Whether this is the file that was seen, under another name now."""
    now = look(path)
    return (now.identity, now.content) == (seen.identity, seen.content)


def _put_back(temporary: str, real: str, ours: int) -> None:
    """Give a write that came in the last moment its place again; where yet another has taken that meanwhile, it stays
    the last one."""
    swap(temporary, real)
    if os.stat(temporary).st_ino != ours:
        swap(temporary, real)
        os.unlink(temporary)


def _put_new(temporary: str, real: str) -> bool:
    """Give a file its name where nobody else has taken that meanwhile."""
    try:
        os.link(temporary, real)
    except FileExistsError:
        return False
    except OSError:  # a file system without hard links
        os.replace(temporary, real)
    return True


def _written(directory: str, seen: Look, content: bytes, mode: int) -> str:
    """A new file beside the old one, on the disk, with its owner and mode."""
    handle, name = tempfile.mkstemp(prefix=_prefix(seen.real), dir=directory)
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(content)
            stream.flush()
            if os.name == "posix":
                own = os.fstat(stream.fileno())
                if seen.owner and seen.owner != (own.st_uid, own.st_gid):
                    os.fchown(stream.fileno(), *seen.owner)
                os.fchmod(stream.fileno(), mode)
            os.fsync(stream.fileno())
    except BaseException:
        with suppress(OSError):
            os.unlink(name)
        raise
    return name


def _same(seen: Look) -> bool:
    """Whether the file is still the one that was seen."""
    now = look(seen.path)
    return (now.real, now.identity, now.content) == (seen.real, seen.identity, seen.content)


def _followed(path: str) -> str:
    """Where the file's own symbolic links lead. Those among its directories are the system's to follow: what their
    text says need not be where they lead (``/proc/PID/root``)."""
    real = os.path.join(os.getcwd(), path)
    for _ in range(_MOST_LINKS):
        if not os.path.islink(real):
            return real
        real = os.path.join(os.path.dirname(real), os.readlink(real))
    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))


def _missing(path: str, real: str) -> tuple[str, ...]:
    """Directories that are not there. Only the file's own are made, not those that a symbolic link leads to."""
    found: list[str] = []
    directory = os.path.dirname(real)
    while not os.path.lexists(directory):
        found.insert(0, directory)
        directory = os.path.dirname(directory)
    if found and os.path.islink(path):
        raise Refused("it is a symbolic link into a directory that is not there", where=path, hint=f"make {found[-1]}")
    return tuple(found)


def _remove_empty(directories: list[str] | tuple[str, ...]) -> None:
    """Remove directories, the innermost first, as far as they are empty."""
    for directory in directories:
        try:
            os.rmdir(directory)
        except OSError:
            return


@contextmanager
def _locked(path: str, seconds: float) -> Iterator[None]:
    """Hold the lock of the directory (of the first one above it that is there); clear what a run cut short left."""
    with _named(path):
        real = _followed(path)
        directory = os.path.dirname(real)
        while not os.path.isdir(directory) and os.path.dirname(directory) != directory:
            directory = os.path.dirname(directory)
        handle = lock(directory, seconds, where=path)
    try:
        if handle is not None and directory == os.path.dirname(real):
            _clear(directory, _prefix(real))
        yield
    finally:
        if handle is not None:
            os.close(handle)


def _clear(directory: str, prefix: str) -> None:
    """Remove new files that never got their name: nobody else makes them while we hold the lock."""
    with suppress(OSError):
        for name in os.listdir(directory):
            if name.startswith(prefix):
                with suppress(OSError):
                    os.unlink(os.path.join(directory, name))


def _prefix(real: str) -> str:
    return f".{os.path.basename(real)}{_MARK}"


@contextmanager
def _named(path: str) -> Iterator[None]:
    """An error of the system as one of ours."""
    try:
        yield
    except OSError as error:
        raise _meant(error, path) from None


def _meant(error: OSError, path: str) -> VmproxyError:
    reason = error.strerror or type(error).__name__
    if error.errno in (errno.EACCES, errno.EPERM):
        return NotPermitted(f"not permitted: {reason}", where=path, hint="run vmproxy as the user whose file it is")
    if error.errno in _FULL:
        return RolledBack(f"it cannot be written: {reason}; it is as it was", where=path, hint="make room")
    return Refused(f"it cannot be read or written: {reason}", where=path, hint="nothing was changed")
