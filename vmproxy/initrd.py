"""An initramfs image as the kernel will see it: names, links, contents; a later record of a name wins. PURE.

``bytes`` in, nothing unpacked as a whole: what is kept are records without content, and how many there may be hangs
on the image's size. Ways that lead out of an image (``..``) end at its root, as in the VM; no name of it is ever a path
of this host.
"""

from __future__ import annotations

import fnmatch
import stat
from collections.abc import Collection, Iterator, Mapping
from typing import NamedTuple

from vmproxy.errors import ForeignFile
from vmproxy.initrdmark import Mark, read_mark
from vmproxy.members import KINDS, Budget, Span, Stream, kind_at, name_of_unknown, zeros_end
from vmproxy.model import File, printable
from vmproxy.newc import Entry, entries, field

MOST_LINKS = 40  # as the kernel's MAXSYMLINKS
_MOST_MEMBERS = 4096
_MOST_KEPT_BYTES = 18 << 20
"""While a change is made three images are held: 64 MiB are for all of them."""
_BYTES_A_RECORD = 256  # numbers, a tuple, a place in a dictionary; beside the header, the name and the path
_BYTES_A_LINK = 200  # the same of a hard link until its archive ends
_MOST_STEPS = 20_000_000
_TARGET_LIMIT_BYTES = 4096  # PATH_MAX


class Node(NamedTuple):
    """One name: its header and name, in which member and where in its stream, and where a symbolic link leads.

    ``data`` is where its content is: elsewhere for a hard link, whose content stands with the last of its names.
    """

    raw: bytes
    member: int
    position: int
    data: int
    size: int
    target: bytes

    @property
    def kind(self) -> str:
        """file, link, dir or other."""
        mode = field(self.raw, "mode")
        if stat.S_ISREG(mode):
            return "file"
        return "link" if stat.S_ISLNK(mode) else "dir" if stat.S_ISDIR(mode) else "other"


_ROOT = Node(
    raw=b"070701" + b"0" * 8 + b"%08X" % 0o40755 + b"0" * 88, member=-1, position=-1, data=-1, size=0, target=b""
)


class Image:
    """One image read. ``spans`` are its members and the zeros between them; ``marks`` those of ours by member number;
    ``unknown`` what cannot be read, which then reaches to the end.

    Raises ForeignFile, with the member's number, for what the kernel would not take either, and for what is too much.
    """

    def __init__(self, content: bytes) -> None:
        self.content = content
        self.spans: list[Span] = []
        self.marks: dict[int, Mark] = {}
        self.unknown: Span | None = None
        self._nodes: dict[bytes, Node] = {b"": _ROOT}
        self._left_bytes = max(_MOST_KEPT_BYTES, len(content) // 3)
        self._left_steps = _MOST_STEPS
        budget = Budget()
        at = 0
        while at < len(content):
            if len(self.spans) == _MOST_MEMBERS:
                raise ForeignFile(f"the image has more than {_MOST_MEMBERS} members")
            kind = kind_at(content, at)
            if kind == "zeros":
                end = zeros_end(content, at)
            elif kind in KINDS:
                end = self._member(kind, at, budget)
            else:
                end = len(content)
                self.unknown = Span(kind, at, end)
            self.spans.append(Span(kind, at, end))
            at = end

    @property
    def members(self) -> tuple[int, ...]:
        """The numbers of the spans that are archives."""
        return tuple(number for number, span in enumerate(self.spans) if span.kind in KINDS)

    def must_be_read(self) -> None:
        """Raises ForeignFile where there is no archive, or what follows them cannot be read."""
        if self.unknown is not None:
            what = name_of_unknown(self.content, self.unknown.start)
            more = ", which vmproxy does not read" if self.unknown.kind != "unknown" else ""
            raise ForeignFile(
                f"at byte {self.unknown.start} there is {what}{more}",
                hint="pack it with gzip, xz or zstd" if more else "is this an initramfs image?",
            )
        if not self.members:
            raise ForeignFile("there is no archive in it", hint="is this an initramfs image?")

    def _member(self, kind: str, start: int, budget: Budget) -> int:
        number = len(self.spans)
        stream = Stream(self.content, kind, start, budget)
        group: dict[tuple[int, ...], list[bytes]] = {}
        try:
            for entry in entries(stream, many=kind != "cpio"):
                if isinstance(entry, int):
                    continue
                self._keep(_BYTES_A_RECORD + len(entry.raw))
                if entry.is_trailer:
                    group = {}
                    mark = read_mark(entry)
                    if mark is not None:
                        self.marks[number] = mark
                    continue
                self._add(number, entry, stream, group)
            stream.finish()
        except ForeignFile as error:
            where = f"member {1 + sum(span.kind in KINDS for span in self.spans)}, {kind}"
            raise ForeignFile(error.what, where=f"{where}, {error.where}" if error.where else where) from None
        return stream.end

    def _keep(self, size: int) -> None:
        self._left_bytes -= size
        if self._left_bytes < 0:
            raise ForeignFile("the image has too many names for its size")

    def _step(self, count: int = 1) -> None:
        self._left_steps -= count
        if self._left_steps < 0:
            raise ForeignFile("the image has too many links to follow")

    def _add(self, number: int, entry: Entry, stream: Stream, group: dict[tuple[int, ...], list[bytes]]) -> None:
        mode, target = entry.field("mode"), b""
        data, size = stream.position, entry.size
        if stat.S_ISLNK(mode):
            if size > _TARGET_LIMIT_BYTES:
                raise ForeignFile("a symbolic link of more than 4096 bytes", where=f"at byte {entry.position}")
            target = stream.take(size).partition(b"\0")[0]
        parent, _slash, base = entry.name.rstrip(b"/").rpartition(b"/")
        if base in (b"", b".", b".."):
            return
        place = self.find(parent)
        if place is None or self._nodes[place].kind != "dir":
            return  # the kernel cannot make it either
        path = place + b"/" + base
        self._keep(len(path) + len(target))  # behind a link, a path is longer than its name
        node = Node(entry.raw, number, entry.position, data, size, target)
        self._nodes[path] = node
        if stat.S_ISREG(mode) and entry.field("nlink") > 1:
            key = tuple(entry.field(name) for name in ("ino", "devmajor", "devminor"))
            names = group.setdefault(key, [])
            names.append(path)
            self._keep(_BYTES_A_LINK)
            if size:
                self._step(len(names))  # with content for each name it would be the square of them
                for other in names:
                    seen = self._nodes[other]
                    if seen.member == number:
                        self._nodes[other] = seen._replace(data=data, size=size)

    # ---- what is in it ----------------------------------------------------------------------------------------------

    def find(self, path: bytes) -> bytes | None:
        """The name behind a path, links followed: ``/etc/passwd``, and nothing for the root; None where it leads
        nowhere."""
        parts = [part for part in path.split(b"/") if part not in (b"", b".")][::-1]
        here, links = b"", 0
        while parts:
            self._step()
            part = parts.pop()
            if self._nodes[here].kind != "dir":
                return None
            if part == b"..":
                here = here.rpartition(b"/")[0]
                continue
            step = here + b"/" + part
            node = self._nodes.get(step)
            if node is None:
                return None
            if node.target and node.kind == "link":
                links += 1
                if links > MOST_LINKS:
                    return None
                here = b"" if node.target.startswith(b"/") else here
                parts += [piece for piece in node.target.split(b"/") if piece not in (b"", b".")][::-1]
            else:
                here = step
        return here

    def place(self, path: bytes) -> bytes | None:
        """The name of a path, links followed but for its last part; None where its directory is not there."""
        parent, _slash, base = path.rpartition(b"/")
        found = self.find(parent)
        return None if found is None or self._nodes[found].kind != "dir" else found + b"/" + base

    def node(self, name: bytes) -> Node | None:
        """What stands under exactly this name, as :meth:`find` and :meth:`place` give them."""
        return self._nodes.get(name)

    def matching(self, pattern: bytes) -> tuple[bytes, ...]:
        """The paths that a pattern stands for: ``*`` for any part of one name, links followed."""
        here = [b""]
        for part in pattern.strip(b"/").split(b"/"):
            if b"*" not in part:
                here = [path + b"/" + part for path in here]
                continue
            found = ((path, self.find(path)) for path in here)
            here = [
                path + b"/" + name
                for path, place in found
                if place is not None
                for name in self._names(place)
                if not name.startswith(b".") and fnmatch.fnmatchcase(name, part)
            ]
        return tuple(path for path in here if self.find(path) is not None)

    def _names(self, directory: bytes) -> list[bytes]:
        before = directory + b"/"
        return sorted(
            name[len(before) :] for name in self._nodes if name.startswith(before) and b"/" not in name[len(before) :]
        )

    def names_in(self, numbers: Collection[int]) -> tuple[bytes, ...]:
        """The plain files whose last word stands in one of these members."""
        return tuple(name for name, node in self._nodes.items() if node.member in numbers and node.kind == "file")

    def contents(self, names: Collection[bytes], *, limit_bytes: int) -> dict[bytes, bytes]:
        """The bytes of these plain files; one pass over each member that has some. Raises ForeignFile for a file that
        is longer than ``limit_bytes``."""
        wanted: dict[int, dict[int, list[bytes]]] = {}
        found: dict[bytes, bytes] = {}
        for name in names:
            node = self._nodes[name]
            if node.size > limit_bytes:
                raise ForeignFile(f"the file is larger than {limit_bytes} bytes", where=printable(name))
            if node.size == 0:
                found[name] = b""
            else:
                wanted.setdefault(node.member, {}).setdefault(node.data, []).append(name)
        for number, places in wanted.items():
            stream = Stream(self.content, self.spans[number].kind, self.spans[number].start, Budget())
            for at in sorted(places):
                for _piece in stream.pieces(at - stream.position):
                    pass
                data = stream.take(self._nodes[places[at][0]].size)
                found.update(dict.fromkeys(places[at], data))
        return found

    def file(self, path: str, contents: Mapping[bytes, bytes]) -> File:
        """One file as the VM will have it; ``contents`` are those of :meth:`contents`."""
        name = self.place(path.encode("utf-8", "surrogateescape"))
        node = self._nodes.get(name) if name is not None else None
        if node is None or name is None:
            return File(path=path, kind="absent")
        return File(
            path=path,
            content=contents.get(name) if node.kind == "file" else None,
            mode=field(node.raw, "mode") & 0o7777,
            uid=field(node.raw, "uid"),
            gid=field(node.raw, "gid"),
            kind=node.kind,
            links=max(1, field(node.raw, "nlink")) if node.kind == "file" else 1,
        )

    def walk(self, number: int) -> tuple[Stream, Iterator[Entry | int]]:
        """One member once more from its beginning."""
        span = self.spans[number]
        stream = Stream(self.content, span.kind, span.start, Budget())
        return stream, entries(stream, many=span.kind != "cpio")
