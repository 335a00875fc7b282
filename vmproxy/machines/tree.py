"""A VM's root file system as a directory: only files are reached, no rule, no daemon, no question.

Links in it are followed as the VM would follow them, inside the directory, and only to read: what is written has a
plain
parent and is no link. A file is replaced whole or not at all, and all files or none. Runs take turns; what one that was
killed has left is told, and taken away by the next.
"""

from __future__ import annotations

import contextlib
import errno
import fnmatch
import ipaddress
import os
import stat as stats
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from json import loads

from vmproxy import dockerversion, hostproc
from vmproxy.dirlock import lock, must_be_writable, not_permitted
from vmproxy.errors import Busy, Interrupted, Refused, RolledBack, UsageError, VmproxyError
from vmproxy.machines import Conversation, Judge, Look, Outcome, Terms, Verdict
from vmproxy.machines.reading import FILE_LIMIT_BYTES, os_release
from vmproxy.model import Address, Facts, File, FileChange, Finding, Plan, Syntax, printable
from vmproxy.proof import Question

_LINKS = 40  # as the kernel's MAXSYMLINKS
_NAMES_LIMIT = 100_000
_PREFIX = ".vmproxy-"
_MADE = f"{_PREFIX}made"
"""As in change.sh: stands in a directory of ours while it may have to go again."""


def open(directory: str) -> Tree:
    """A machine over a directory. Raises Refused where it is none."""
    if not os.path.isdir(directory):
        raise Refused(
            "this is not a directory", where=printable(directory), hint="rootfs:DIR is the root of the VM's files"
        )
    return Tree(os.path.realpath(directory))


class Tree:
    """See :class:`vmproxy.machines.Machine`."""

    def __init__(self, root: str) -> None:
        self._root = root

    def begin(self, look: Look, *, change: bool = False) -> None:
        """Nothing: files are read at once."""

    def observe(self, look: Look) -> Facts:
        """Files, paths, os-release, and the bridge's address from daemon.json's ``bip`` (dockerd(8)) where that is
        set."""
        with contextlib.ExitStack() as held:
            try:
                self._lock(held, 0)
            except Busy:
                return replace(self._facts(look), busy=True)
            return replace(self._facts(look), leftovers=tuple(path for path, _ in self._left(look.files)))

    def _lock(self, held: contextlib.ExitStack, seconds: float) -> None:
        """Until ``held`` ends no other run changes this directory. Raises Busy."""
        handle = lock(self._root, seconds, where=printable(self._root))
        if handle is not None:
            held.callback(os.close, handle)

    def _left(self, files: tuple[str, ...]) -> list[tuple[str, str]]:
        """(the VM's path, this host's) of all that stands beside the files under our prefix."""
        found = []
        for parent in dict.fromkeys(map(os.path.dirname, files)):
            place = self._find(parent)
            names = _names(place) if place is not None else ()
            found += [(f"{parent}/{name}", f"{place}/{name}") for name in names if name.startswith(_PREFIX)]
        return found

    def _facts(self, look: Look) -> Facts:
        files = {path: self._file(path) for path in look.files}
        return Facts(
            live=False,
            os_release=os_release(self._read("/etc/os-release") or b""),
            paths=frozenset(path for pattern in look.paths for path in self._matching(pattern)),
            files=files,
            texts=self._texts(look.texts),
            addresses=bridge(look.configs, self._read),
            bridges=frozenset({"docker0"}),
            interfaces=frozenset({"docker0"}),
            docker_version=dockerversion.installed(self._whole) if look.docker else "",
        )

    def check(self, files: tuple[str, ...]) -> Mapping[str, Syntax]:
        """By this machine's shell."""
        contents = {path: self._file(path).content for path in files}
        return {path: syntax_of(content) for path, content in contents.items() if content is not None}

    def commit(
        self, plan: Plan, terms: Terms, *, judge: Judge, verdict: Verdict, step: Callable[[str], None]
    ) -> Outcome:
        """Replace each file; on any failure, put back those already replaced. Raises Busy."""
        with contextlib.ExitStack() as held:
            self._lock(held, terms.lock_timeout_seconds)
            self.rehearse(plan)
            unfinished = [os.path.dirname(place) for _, place in self._left(terms.look.files) if place.endswith(_MADE)]
            for _, place in self._left(terms.look.files):
                if not place.endswith(_MADE):
                    _discard(place)
            try:
                return self._commit(plan, terms, verdict, step)
            finally:
                for place in unfinished:  # made by a run that was cut short
                    _unmake(place)

    def _commit(self, plan: Plan, terms: Terms, verdict: Verdict, step: Callable[[str], None]) -> Outcome:
        done: list[FileChange] = []
        try:
            for change in plan.files:
                if self._file(change.before.path) != change.before:
                    text = f"{change.before.path} was changed meanwhile"
                    return self._put_back(done, Outcome(status="moved", exit=6, text=text))
                step(f"file {change.after.path}")
                self._write(change.after, checked=change.shell, directory=change.directory)
                done.append(change)
            outcome = Outcome(status="kept", restart="none", facts=self._facts(terms.look))
            if verdict(outcome):
                self._clear(done)
                return outcome
            return self._put_back(done, Outcome(status="undone", exit=7, text="the second look differs"))
        except OSError as error:
            text = printable(f"{error.strerror} ({error.filename})")
            return self._put_back(done, Outcome(status="undone", exit=7, text=text))
        except BaseException as error:
            why = error.what if isinstance(error, VmproxyError) else "interrupted"
            outcome = self._put_back(done, Outcome(status="undone", text=why))
            if outcome.status == "incomplete" and isinstance(error, KeyboardInterrupt | VmproxyError):
                text = f"ROLLBACK INCOMPLETE: {printable(outcome.text)}"
                raise RolledBack(text, hint="vmproxy status", complete=False) from error
            if isinstance(error, Interrupted):
                error.rolled_back = bool(done) and outcome.rolled_back
            raise

    def rehearse(self, plan: Plan) -> None:
        """Whether the files' directories can be written. Raises NotPermitted."""
        for change in plan.files:
            parent = os.path.dirname(change.before.path)
            place = self._find(parent) or self._find(os.path.dirname(parent))
            if place is not None:
                must_be_writable(place, where=change.before.path)

    def prove(self, question: Question) -> tuple[Finding, ...]:
        """Files cannot be asked."""
        raise Refused("a directory of files cannot ask a proxy", where=self._root, hint="vmproxy status")

    def reach(self, hosts: tuple[str, ...], port: int) -> tuple[str, ...]:
        """Files reach nothing."""
        return ()

    def converse(self, script: str, data: bytes) -> Conversation:
        """Files run nothing."""
        raise Refused("a directory of files runs nothing", where=self._root, hint="name a VM that runs with --vm")

    def interrupt(self) -> bool:
        """What is begun is a matter of moments, and is brought to its end."""
        return True

    def close(self) -> None:
        """Nothing is held open."""

    # ---- paths inside the directory ---------------------------------------------------------------------------------

    def _find(self, path: str) -> str | None:
        """Where a path of the VM is on the host, its links resolved inside the directory; None where it is not
        there."""
        parts = [part for part in path.split("/") if part not in ("", ".")]
        here, links = self._root, 0
        while parts:
            part = parts.pop(0)
            if part == "..":
                here = os.path.dirname(here) if here != self._root else here
                continue
            step = os.path.join(here, part)
            try:
                mode = os.lstat(step).st_mode
            except OSError:
                return None
            if stats.S_ISLNK(mode):
                links += 1
                if links > _LINKS:
                    return None
                target = os.readlink(step)
                parts = [piece for piece in target.split("/") if piece not in ("", ".")] + parts
                here = self._root if target.startswith("/") else here
            else:
                here = step
        return here

    def _matching(self, pattern: str) -> tuple[str, ...]:
        """The paths of the VM that a pattern stands for: ``*`` for any part of one name, links followed."""
        here = [""]
        for part in pattern.strip("/").split("/"):
            if "*" not in part:
                here = [f"{path}/{part}" for path in here]
                continue
            found = ((path, self._find(path)) for path in here)
            here = [
                f"{path}/{name}"
                for path, place in found
                if place is not None
                for name in _names(place)
                if not name.startswith(".") and fnmatch.fnmatchcase(name, part)
            ]
        return tuple(path for path in here if self._find(path) is not None)

    def _texts(self, patterns: tuple[str, ...]) -> dict[str, bytes]:
        read = {}
        for path in (path for pattern in patterns for path in self._matching(pattern)):
            if (place := self._find(path)) and os.path.isfile(place) and (content := self._read(path)) is not None:
                read[path] = content
        return read

    def _place(self, path: str) -> str:
        """Where a file is or would be: the parent resolved, the last part as it is. Raises Refused without a parent."""
        parent = self._find(os.path.dirname(path))
        if parent is None:
            raise Refused("the directory for this file is missing", where=path)
        return os.path.join(parent, os.path.basename(path))

    def _read(self, path: str) -> bytes | None:
        found = self._find(path)
        return _content(found, path) if found else None

    def _whole(self, path: str) -> bytes | None:
        found = self._find(path)
        return hostproc.read_file(found, limit_bytes=dockerversion.LIMIT_BYTES) if found else None

    def _file(self, path: str) -> File:
        try:
            place = self._place(path)
            seen = os.lstat(place)
        except (Refused, OSError):
            return File(path=path, kind="absent")
        kind = (
            "file"
            if stats.S_ISREG(seen.st_mode)
            else "link"
            if stats.S_ISLNK(seen.st_mode)
            else "dir"
            if stats.S_ISDIR(seen.st_mode)
            else "other"
        )
        content = _content(place, path) if kind == "file" else None
        return File(
            path=path,
            content=content,
            mode=stats.S_IMODE(seen.st_mode),
            uid=seen.st_uid,
            gid=seen.st_gid,
            kind=kind,
            links=seen.st_nlink,
        )

    # ---- writing ----------------------------------------------------------------------------------------------------

    def _write(self, after: File, *, checked: bool, directory: bool = False) -> None:
        parent = os.path.dirname(after.path)
        if directory and after.content is not None and self._find(parent) is None:
            self._make(self._place(parent))
        place = self._place(after.path)
        if after.content is None:
            if directory:
                with contextlib.suppress(OSError):
                    os.mkdir(os.path.join(os.path.dirname(place), _MADE))
            os.unlink(place)
            _flush_directory(place)
            return
        descriptor, temporary = tempfile.mkstemp(prefix=_PREFIX, dir=os.path.dirname(place))
        try:
            with os.fdopen(descriptor, "wb") as stream:
                stream.write(after.content)
                stream.flush()
                os.fsync(stream.fileno())
            if checked and not syntax_of(after.content).parses:
                raise Refused("the file would not parse any more", where=after.path)
            if hasattr(os, "chown"):
                with contextlib.suppress(PermissionError):
                    os.chown(temporary, after.uid, after.gid)
            os.chmod(temporary, after.mode)
            os.replace(temporary, place)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            if directory:
                _unmake(os.path.dirname(place))
            raise
        _flush_directory(place)

    def _clear(self, done: list[FileChange]) -> None:
        """Take away the directories that are ours and empty."""
        for change in done:
            place = self._find(os.path.dirname(change.before.path)) if change.directory else None
            if place is not None:
                _unmake(place)

    def _make(self, place: str) -> None:
        """A directory that comes with the sign that it is ours, in one rename."""
        new = tempfile.mkdtemp(prefix=_PREFIX, dir=os.path.dirname(place))
        os.mkdir(os.path.join(new, _MADE))
        os.chmod(new, 0o755)  # noqa: S103 - as all of /etc, whatever the umask is
        os.rename(new, place)

    def _put_back(self, done: list[FileChange], outcome: Outcome) -> Outcome:
        """``outcome`` once every file is as before; ``incomplete``, naming those that are not, where the disk fails
        again."""
        left = []
        for change in reversed(done):
            try:
                if change.before.content is None:
                    os.unlink(self._place(change.before.path))
                else:
                    self._write(change.before, checked=False)
            except OSError:
                left.append(change.before.path)
        self._clear(done)
        if not left:
            return outcome
        return Outcome(status="incomplete", exit=7, text=f"{outcome.text}; left: {' '.join(left)}")


def _names(place: str) -> tuple[str, ...]:
    """What is in a directory; nothing where it is none, or may not be looked into."""
    return hostproc.list_directory(place, limit=_NAMES_LIMIT)


def _content(place: str, path: str) -> bytes | None:
    """The bytes of a file. Raises NotPermitted for one that may not be read, UsageError for one that is odd or big."""
    try:
        return hostproc.read_file(place, limit_bytes=FILE_LIMIT_BYTES)
    except UsageError as error:
        if isinstance(error.__cause__, PermissionError):
            raise not_permitted(errno.EACCES, where=printable(path)) from None
        raise


def bridge(configs: tuple[str, ...], read: Callable[[str], bytes | None]) -> tuple[Address, ...]:
    """docker0's address as the first daemon.json says it that says one. Raises Refused."""
    for path in configs:
        try:
            config = loads(read(path) or b"{}")
        except (ValueError, RecursionError):
            continue
        if isinstance(config, Mapping) and isinstance(config.get("bip"), str):
            return (Address(interface="docker0", cidr=_ipv4(config["bip"], path)),)
    return ()


def _ipv4(text: str, path: str) -> str:
    try:
        return ipaddress.IPv4Interface(text).with_prefixlen
    except ValueError:
        raise Refused("bip is no IPv4 address", where=path, hint="dockerd would not start with it") from None


def _unmake(place: str) -> None:
    """Take the sign out of a directory of ours, and the directory away where it is empty."""
    with contextlib.suppress(OSError):
        os.rmdir(os.path.join(place, _MADE))
    with contextlib.suppress(OSError):
        os.rmdir(place)


def _discard(place: str) -> None:
    """Take away what a run that was killed has left: a file, or a directory that never got its name."""
    if os.path.isdir(place) and not os.path.islink(place):
        _unmake(place)
    else:
        with contextlib.suppress(OSError):
            os.unlink(place)


def _flush_directory(place: str) -> None:
    if os.name != "posix":
        return
    descriptor = os.open(os.path.dirname(place), os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def syntax_of(content: bytes) -> Syntax:
    """The same probes as observe.sh, by this host's sh where it has one."""
    complaint = _sh_n(content)
    if complaint is None:
        return Syntax(parses=True, tail_lives=True)
    tail = _sh_n(content + b"\n)\n")
    return Syntax(parses=not complaint, tail_lives=tail != "", message=complaint)


def _sh_n(content: bytes) -> str | None:
    """ "" where the text parses, else the complaint; None where this host has no sh. The text may hold a password: it
    goes through a pipe, and no file of it is ever there to be left behind."""
    ran = hostproc.run(("sh", "-n"), environ=os.environ, data=content)
    if ran is None:
        return None
    return "" if ran.status == 0 else printable(ran.stderr.strip()) or "it does not parse"
