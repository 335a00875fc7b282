"""Files put into an initramfs image and taken out again: behind everything, or where they stand. PURE.

Appended is one small member: the kernel unpacks it over what came before, and cut off again the image is what it was to
the byte. Rewritten is the member that holds the file: every other byte of the image is kept, and within the member
every other record, its owner, numbers and order.
"""

from __future__ import annotations

import stat
from collections.abc import Collection, Iterator

from vmproxy.compression import PIECE_BYTES, packer
from vmproxy.errors import ForeignFile
from vmproxy.initrd import Image, Node
from vmproxy.initrdmark import Mark, fingerprint
from vmproxy.members import APPENDABLE
from vmproxy.model import File
from vmproxy.newc import HEADER_BYTES, Entry, archive, field, record

_NEW_DIRECTORY = 0o755


def without_ours(image: Image) -> bytes:
    """The image without the members that we appended, and without the padding before them."""
    whole = memoryview(image.content)
    kept, at = [], 0
    for number, mark in sorted(image.marks.items()):
        if not mark.appended:
            continue
        span = image.spans[number]
        start = span.start - mark.padding
        if start < at or any(image.content[start : span.start]):
            what = "what vmproxy appended to the image does not stand as it was written"
            raise ForeignFile(what, hint="put the image back as its maker has it")
        kept.append(whole[at:start])
        at = span.end
    if not kept:
        return image.content
    kept.append(whole[at:])
    return b"".join(kept)


def can_follow(image: Image) -> bool:
    """Whether a kernel finds what is appended to the image."""
    return image.spans[image.members[-1]].kind in APPENDABLE


def rewritten(image: Image) -> Mark | None:
    """What we wrote into a member that we packed anew, if there is one."""
    return next((mark for mark in image.marks.values() if not mark.appended), None)


def append(base: Image, files: Collection[File], *, mode: int | None) -> bytes:
    """The image with one more member that holds these files, compressed as its last one is. ``mode`` is that of the
    image file where it is made private.

    Raises ForeignFile where nothing can follow that, or the directory of a file is missing.
    """
    kind = base.spans[base.members[-1]].kind
    if not can_follow(base):
        raise ForeignFile(
            f"after {kind} data a kernel does not find what is appended", hint="--rewrite, which packs the member anew"
        )
    padding = -len(base.content) % 4 if kind == "cpio" else 0
    mark = Mark(appended=True, base=fingerprint(base.content), padding=padding, mode=mode)
    whole = archive(list(_records(base, files)), mark.trailer(), block=4 if kind == "cpio" else 512)
    pack = packer(kind)
    return b"".join((base.content, bytes(padding), pack.compress(whole), pack.flush()))


def _records(base: Image, files: Collection[File]) -> Iterator[bytes]:
    """A record for each file, after the directories that are not there."""
    made: set[bytes] = set()
    inode = 0
    for file in files:
        name, node, missing = _where(base, file)
        if missing is not None and missing not in made:
            inode += 1
            made.add(missing)
            parent = base.node(base.find(missing.rpartition(b"/")[0]) or b"")
            yield record(
                _style(missing, parent), mode=stat.S_IFDIR | _NEW_DIRECTORY, ino=inode, nlink=2, mtime=_time(parent)
            )
        inode += 1
        near = missing if missing is not None else name
        yield _record(file, name, node or base.node(near.rpartition(b"/")[0]), inode)


def _where(base: Image, file: File) -> tuple[bytes, Node | None, bytes | None]:
    """A file's name in the image, what stands there, and its directory where that has to be made."""
    path = file.path.encode("utf-8", "surrogateescape")
    name = base.place(path)
    if name is not None:
        return name, base.node(name), None
    parent, _slash, last = path.rpartition(b"/")
    directory = base.place(parent)
    if directory is None or base.node(directory) is not None:
        hint = "make the directory where the image is made; or is another --guest the right one?"
        raise ForeignFile("the directory for this file is missing", where=file.path, hint=hint)
    return directory + b"/" + last, None, directory


def _record(file: File, name: bytes, near: Node | None, inode: int) -> bytes:
    """The file as a record with the name that it has there, or in the style of its directory's."""
    assert file.content is not None  # noqa: S101 - files that are to be gone are sorted out before
    return record(
        _style(name, near),
        file.content,
        mode=stat.S_IFREG | file.mode,
        ino=inode,
        uid=file.uid,
        gid=file.gid,
        mtime=_time(near),
    )


def _style(name: bytes, near: Node | None) -> bytes:
    """``./etc/x`` where its neighbours are written so, else ``etc/x``."""
    dotted = near is not None and near.raw.startswith(b"./", HEADER_BYTES)
    return b"." + name if dotted else name[1:]


def _time(near: Node | None) -> int:
    return 0 if near is None else field(near.raw, "mtime")


# ---- in place -------------------------------------------------------------------------------------------------------


def rewrite(base: Image, files: Collection[File], *, mode: int | None) -> bytes:
    """The image with these files in the members where they stand; a new one comes to the end of the member that has
    its directory. Each such member is packed anew with its own compression, everything else is kept.

    Raises ForeignFile where the directory of a file is missing.
    """
    mark = Mark(appended=False, base=fingerprint(base.content), mode=mode)
    edits: dict[int, dict[int, File]] = {}
    added: dict[int, list[File]] = {}
    for file in files:
        name, node, missing = _where(base, file)
        if node is not None:
            edits.setdefault(node.member, {})[node.position] = file
            continue
        near = base.node((missing or name).rpartition(b"/")[0])
        number = near.member if near is not None and near.member >= 0 else base.members[-1]
        added.setdefault(number, []).append(file)
    parts: list[bytes] = []
    for number, span in enumerate(base.spans):
        if number in edits or number in added:
            packed = _packed(base, number, edits.get(number, {}), added.get(number, ()), mark)
            later = any(other.kind == "cpio" for other in base.spans[number + 1 :])
            # A plain archive behind it has to stand at a multiple of 4 as before.
            parts += [*packed, bytes((span.end - span.start - sum(map(len, packed))) % 4 if later else 0)]
        else:
            parts.append(base.content[span.start : span.end])
    return b"".join(parts)


def _packed(base: Image, number: int, edits: dict[int, File], added: Collection[File], mark: Mark) -> list[bytes]:
    pack = packer(base.spans[number].kind)
    out: list[bytes] = []
    stream, items = base.walk(number)
    archives = _archives(base, number)
    for item in items:
        if isinstance(item, int):
            out.append(pack.compress(bytes(item)))
        elif item.is_trailer:
            archives -= 1
            if not archives:
                for new in _records(base, added):
                    out.append(pack.compress(new))
            out.append(pack.compress(item.raw if archives else mark.trailer()))
        elif item.position in edits:
            out.append(pack.compress(_edited(item, edits[item.position])))
        else:
            out.append(pack.compress(item.raw))
            size = item.size + -item.size % 4
            for piece in stream.pieces(size):
                out.append(pack.compress(piece))
    out.append(pack.flush())
    return out


def _archives(base: Image, number: int) -> int:
    _stream, items = base.walk(number)
    return sum(1 for item in items if not isinstance(item, int) and item.is_trailer)


def _edited(entry: Entry, file: File) -> bytes:
    """The same record with another content, mode and owner."""
    assert file.content is not None  # noqa: S101 - as above
    names = ("ino", "nlink", "mtime", "devmajor", "devminor", "rdevmajor", "rdevminor")
    return record(
        entry.name,
        file.content,
        entry.raw[:6],
        mode=stat.S_IFREG | file.mode,
        uid=file.uid,
        gid=file.gid,
        **{name: entry.field(name) for name in names},
    )


def differing(base: Image, other: Image) -> frozenset[bytes]:
    """The names, as they are written there, of the records in which the other image differs from its base: changed
    ones, and those before a trailer that only the other has.

    Raises ForeignFile where anything else differs: another member, the order, a record that is gone.
    """
    found: set[bytes] = set()
    others = iter(enumerate(other.spans))
    left, right = memoryview(base.content), memoryview(other.content)
    for number, one in enumerate(base.spans):
        place, two = next(others, (-1, one))
        if one.kind != "zeros" and two.kind == "zeros" and place > 0 and place - 1 in other.marks:
            place, two = next(others, (-1, one))  # what fills up a member of ours
        if place < 0 or one.kind != two.kind:
            raise _another()
        if left[one.start : one.end] == right[two.start : two.end]:
            continue
        if one.kind == "zeros":
            filled = (two.end - two.start) - (one.end - one.start)
            if not 0 <= filled < 4 or place - 1 not in other.marks:
                raise _another()
            continue
        mark = other.marks.get(place)
        if mark is None or mark.appended:
            raise _another()
        found |= _differing(base, number, other, place)
    if next(others, None) is not None:
        raise _another()
    return frozenset(found)


def _differing(base: Image, number: int, other: Image, place: int) -> set[bytes]:
    found: set[bytes] = set()
    left, ours = base.walk(number)
    right, theirs = other.walk(place)
    for one in ours:
        two = next(theirs, None)
        while _is_trailer(one) and isinstance(two, Entry) and not two.is_trailer:
            found.add(two.name)
            two = next(theirs, None)
        if isinstance(one, int) or isinstance(two, int) or two is None:
            if one != two:
                raise _another()
            continue
        if one.name != two.name:
            raise _another()
        if one.is_trailer:
            continue
        same = one.raw == two.raw
        if same:
            size = one.size
            while size:
                step = min(size, PIECE_BYTES)
                same = left.take(step) == right.take(step) and same
                size -= step
        if not same:
            found.add(one.name)
    if next(theirs, None) is not None:
        raise _another()
    return found


def _is_trailer(item: Entry | int) -> bool:
    return isinstance(item, Entry) and item.is_trailer


def _another() -> ForeignFile:
    return ForeignFile("the image is not the one that vmproxy wrote")
