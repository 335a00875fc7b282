"""A VM's root file system as an initramfs image: only files are reached, and no root is needed.

A change appends one small member to the image, or with ``rewrite`` packs the member anew in which the file stands. The
new image is whole and checked before it gets the file's name: to put back there is nothing. As long as the image has
something of ours, the image as it was stands beside it, ``FILE.vmproxy-backup``, readable for the owner alone.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import NamedTuple

from vmproxy import blocks, dockerversion, guests, initrdedit
from vmproxy.dirlock import settle
from vmproxy.errors import ForeignFile, Refused
from vmproxy.initrd import Image
from vmproxy.machines import Conversation, Judge, Look, Outcome, Terms, Verdict, imagebackup, imagefile
from vmproxy.machines.reading import FILE_LIMIT_BYTES, os_release
from vmproxy.machines.tree import bridge, syntax_of
from vmproxy.model import Facts, File, Finding, Plan, Syntax, printable
from vmproxy.proof import Question

BACKUP = imagebackup.SUFFIX
_WHAT = "is the file whole, and an initramfs image?"


def open(path: str, *, rewrite: bool = False) -> ImageFile:
    """A machine over an image file. Raises Refused where it is none or cannot be read."""
    return ImageFile(path, rewrite=rewrite)


class ImageFile:
    """See :class:`vmproxy.machines.Machine`."""

    def __init__(self, path: str, *, rewrite: bool) -> None:
        self._path = printable(path)
        self._rewrite = rewrite
        try:
            self._seen = imagefile.read(path)
        except Refused as error:
            error.hint = imagebackup.hint(os.path.realpath(path)) or error.hint
            raise
        self._image = self._parsed(self._seen.content)

    def begin(self, look: Look, *, change: bool = False) -> None:
        """Nothing: the file is read at once."""

    def observe(self, look: Look) -> Facts:
        """Files, paths, os-release, and the bridge's address from daemon.json's ``bip`` where that is set."""
        with imagefile.named(self._path):
            changed = imagefile.identity(self._seen.path) != self._seen.identity
        if changed:
            self._seen = imagefile.read(self._seen.path)
            self._image = self._parsed(self._seen.content)
        return self._facts(self._image, look)

    def check(self, files: tuple[str, ...]) -> Mapping[str, Syntax]:
        """By this machine's shell."""
        contents = {path: file.content for path, file in self._files(self._image, files).items()}
        return {path: syntax_of(content) for path, content in contents.items() if content is not None}

    def commit(
        self, plan: Plan, terms: Terms, *, judge: Judge, verdict: Verdict, step: Callable[[str], None]
    ) -> Outcome:
        """Make the new image, look at it, and give it the file's name."""
        with imagefile.locked(self._seen.path, terms.lock_timeout_seconds), imagefile.named(self._path):
            if imagefile.identity(self._seen.path) != self._seen.identity:
                return _moved()
            paths = tuple(change.before.path for change in plan.files)
            now = self._files(self._image, paths)
            if any(now[change.before.path] != change.before for change in plan.files):
                return _moved()
            for change in plan.files:
                step(f"file {change.after.path}")
            made = self._prepared(plan) if plan.files else None
            if plan.leftovers:
                self._clear()
            if made is None:
                return Outcome(status="kept", restart="none", facts=self._facts(self._image, terms.look))
            return self._replace(made, terms, verdict)

    def rehearse(self, plan: Plan) -> None:
        """Make the new image, and forget it."""
        with imagefile.named(self._path):
            if plan:
                imagefile.must_be_replaceable(self._seen)
            if plan.files:
                self._prepared(plan)

    def prove(self, question: Question) -> tuple[Finding, ...]:
        """Files cannot be asked."""
        raise Refused("an image of files cannot ask a proxy", where=self._path, hint="vmproxy status")

    def reach(self, hosts: tuple[str, ...], port: int) -> tuple[str, ...]:
        """Files reach nothing."""
        return ()

    def converse(self, script: str, data: bytes) -> Conversation:
        """Files run nothing."""
        raise Refused("an image of files runs nothing", where=self._path, hint="name a VM that runs with --vm")

    def interrupt(self) -> bool:
        """What is begun is a matter of moments, and is brought to its end."""
        return True

    def close(self) -> None:
        """Nothing is held open."""

    # ---- reading ----------------------------------------------------------------------------------------------------

    def _parsed(self, content: bytes) -> Image:
        try:
            image = Image(content)
            image.must_be_read()
        except ForeignFile as error:
            raise self._of_this(error) from None
        return image

    def _of_this(self, error: ForeignFile) -> ForeignFile:
        """The error with the file's name, and a hint that helps: ``status`` would say the same."""
        where = f"{self._path}, {error.where}" if error.where else self._path
        hint = error.hint if error.hint != error.usual_hint else imagebackup.hint(self._seen.path) or _WHAT
        return ForeignFile(error.what, where=where, hint=hint)

    def _facts(self, image: Image, look: Look) -> Facts:
        try:
            return self._read(image, look)
        except ForeignFile as error:
            raise self._of_this(error) from None

    def _read(self, image: Image, look: Look) -> Facts:
        files = self._files(image, look.files)
        texts = {path: name for pattern in look.texts for path in self._matching(image, pattern)
                 if (name := self._plain(image, path)) is not None}  # fmt: skip
        others = {path: name for path in ("/etc/os-release", *look.configs)
                  if (name := self._plain(image, path)) is not None}  # fmt: skip
        read = image.contents({*texts.values(), *others.values()}, limit_bytes=FILE_LIMIT_BYTES)
        backup, notes = imagebackup.beside(self._backup, image)
        return Facts(
            live=False,
            os_release=os_release(read[others["/etc/os-release"]] if "/etc/os-release" in others else b""),
            paths=frozenset(path for pattern in look.paths for path in self._matching(image, pattern)),
            files=files,
            texts={path: read[name] for path, name in texts.items()},
            addresses=bridge(look.configs, lambda path: read[others[path]] if path in others else None),
            bridges=frozenset({"docker0"}),
            interfaces=frozenset({"docker0"}),
            docker_version=dockerversion.installed(lambda path: self._whole(image, path)) if look.docker else "",
            leftovers=(left := imagefile.leftovers(self._seen.path, () if backup == "none" else (self._backup,))),
            superseded=frozenset({printable(self._backup)} & {*left} if backup == "earlier" else ()),
            notes=notes,
            needs=() if self._rewrite or initrdedit.can_follow(image) else ("--rewrite",),
        )

    def _whole(self, image: Image, path: str) -> bytes | None:
        name = self._plain(image, path)
        return image.contents({name}, limit_bytes=dockerversion.LIMIT_BYTES)[name] if name is not None else None

    def _files(self, image: Image, paths: tuple[str, ...]) -> dict[str, File]:
        names = {path: image.place(_bytes(path)) for path in paths}
        plain = {name for name in names.values() if name and (node := image.node(name)) and node.kind == "file"}
        contents = image.contents(plain, limit_bytes=FILE_LIMIT_BYTES)
        return {path: image.file(path, contents) for path in paths}

    @staticmethod
    def _plain(image: Image, path: str) -> bytes | None:
        name = image.find(_bytes(path))
        node = image.node(name) if name is not None else None
        return name if node is not None and node.kind == "file" else None

    @staticmethod
    def _matching(image: Image, pattern: str) -> tuple[str, ...]:
        return tuple(path.decode("utf-8", "surrogateescape") for path in image.matching(_bytes(pattern)))

    # ---- what was before us -----------------------------------------------------------------------------------------

    @property
    def _backup(self) -> str:
        return imagebackup.path(self._seen.path)

    def _own_mode(self) -> int:
        """The image file's mode without us."""
        for mark in self._image.marks.values():
            if mark.mode is not None and self._seen.mode == _private(mark.mode):
                return mark.mode
        return self._seen.mode

    def _base(self) -> Image:
        """The image without us. Raises Refused where a rewritten one is not the one that we wrote."""
        mark = initrdedit.rewritten(self._image)
        if mark is None:
            content = initrdedit.without_ours(self._image)
            return self._image if content is self._image.content else self._parsed(content)
        base = self._parsed(imagebackup.read(self._backup, mark))
        hint = f"compare it with {printable(os.path.basename(self._backup))}"
        try:
            names = initrdedit.differing(base, self._image)
        except ForeignFile as error:
            raise Refused(error.what, where=self._path, hint=hint) from None
        paths = tuple("/" + name.decode("utf-8", "surrogateescape").removeprefix("./").strip("/") for name in names)
        ours, theirs = self._files(self._image, paths), self._files(base, paths)
        for path in paths:
            made = theirs[path].kind == "absent" and any(other.startswith(f"{path}/") for other in paths)
            if not (made and ours[path].kind == "dir") and not _is_ours(ours[path], theirs[path]):
                raise Refused("this file was changed since vmproxy wrote the image", where=printable(path), hint=hint)
        return base

    def _wanted(self, base: Image, plan: Plan) -> tuple[File, ...]:
        """The files that have to be other than in the image without us."""
        after = {change.after.path: change.after for change in plan.files}
        own = {number for number, mark in self._image.marks.items() if mark.appended}
        paths = [name.decode("utf-8", "surrogateescape") for name in self._image.names_in(own)]
        if initrdedit.rewritten(self._image) is not None:
            differing = initrdedit.differing(base, self._image)
            paths += ["/" + name.decode("utf-8", "surrogateescape").removeprefix("./").strip("/") for name in differing]
        kept = tuple(path for path in dict.fromkeys(paths) if path not in after)
        every = {**self._files(self._image, kept), **after}
        before = self._files(base, tuple(every))
        wanted = []
        for path, file in every.items():
            if file.content is None and before[path].content is not None:
                raise Refused(
                    "the file is in the image's own archive, and is not ours to take out",
                    where=path,
                    hint="take it out where the image is made",
                )
            if file.content is not None and file != before[path]:
                wanted.append(file)
        return tuple(wanted)

    # ---- writing ----------------------------------------------------------------------------------------------------

    def _prepared(self, plan: Plan) -> _Made:
        """The new image, whole and checked, nothing of it written. Raises Refused, NotPermitted, OSError."""
        imagefile.must_be_replaceable(self._seen)
        for change in plan.files:
            if change.shell and change.after.content is not None and not syntax_of(change.after.content).parses:
                raise Refused("the file would not parse any more", where=change.after.path)
        base = self._base()
        wanted = self._wanted(base, plan)
        mode = self._own_mode()
        secret = any(file.mode & 0o077 == 0 for file in wanted) and mode != _private(mode)
        image = self._made(base, wanted, mode if secret else None)
        self._compare(base, image, wanted)
        if image is not base:
            imagebackup.must_be_free(self._backup, base.content)
        return _Made(base, image, _private(mode) if secret else mode, secret)

    def _made(self, base: Image, wanted: tuple[File, ...], mode: int | None) -> Image:
        """The new image. ``mode`` is the file's own where it is made private, for the sake of a file in it that is."""
        if not wanted:
            return base
        change = initrdedit.rewrite if self._rewrite else initrdedit.append
        return self._parsed(change(base, wanted, mode=mode))

    def _compare(self, base: Image, image: Image, wanted: tuple[File, ...]) -> None:
        """Nothing but the wanted files is other than it was. Raises Refused."""
        paths = tuple(file.path for file in wanted)
        if tuple(self._files(image, paths).values()) != wanted:
            raise Refused("the new image would not have the files as they have to be", where=self._path)
        if not wanted:
            return
        if not self._rewrite:
            added = [number for number in image.members if image.spans[number].end > len(base.content)]
            right = image.content.startswith(base.content) and added == list(image.marks)
        else:
            right = len(initrdedit.differing(base, image)) <= len(wanted) + len({os.path.dirname(p) for p in paths})
        if not right:
            raise Refused("the new image would differ in more than these files", where=self._path)

    def _replace(self, made: _Made, terms: Terms, verdict: Verdict) -> Outcome:
        seen, base, image = self._seen, made.base, made.image
        gone = image is base
        notes: tuple[str, ...] = ()
        with imagefile.new_file(seen, image.content, made.mode, secret=made.secret) as name:
            outcome = Outcome(status="kept", restart="none", facts=self._facts(image, terms.look))
            if not verdict(outcome):
                return Outcome(status="undone", exit=7, text="the second look differs")
            fresh = not gone and imagebackup.keep(seen, base.content)
            try:
                if imagefile.identity(seen.path) != seen.identity:
                    return _moved()
                os.replace(name, seen.path)
                fresh = False
            finally:
                if fresh:
                    os.unlink(self._backup)
        if gone:
            notes = imagebackup.drop(self._backup, base.content)
        settle(os.path.dirname(seen.path))
        return Outcome(status="kept", restart="none", facts=outcome.facts, notes=notes)

    def _clear(self) -> None:
        """Take away the backup of an image without us; parts of a new one are gone when the directory is locked."""
        if not self._image.marks:
            imagebackup.drop(self._backup, self._image.content)
            settle(os.path.dirname(self._backup))


class _Made(NamedTuple):
    """The image without us, the new one (the same where nothing of ours is wanted), the new file's mode, and whether
    that is for the sake of a secret in it."""

    base: Image
    image: Image
    mode: int
    secret: bool


def _bytes(path: str) -> bytes:
    return path.encode("utf-8", "surrogateescape")


def _private(mode: int) -> int:
    return mode & 0o7700


def _moved() -> Outcome:
    return Outcome(status="moved", exit=6, text="the image was changed meanwhile")


def _is_ours(now: File, before: File) -> bool:
    """Whether a file is the one before but for our block, or our member of daemon.json."""
    from vmproxy import daemonjson

    if now.content is None:
        return False
    if now.path in guests.daemon_configs():
        is_ours, left = daemonjson.without(now.content)
    else:
        is_ours = blocks.find(now.content, path=now.path) is not None
        left = blocks.take(now.content, path=now.path) if is_ours else None
    if not is_ours:
        return False
    if before.kind == "absent":
        return left is None
    kept = (now.uid, now.gid, now.mode) in {
        (before.uid, before.gid, mode) for mode in (before.mode, _private(before.mode))
    }
    return kept and left == before.content
