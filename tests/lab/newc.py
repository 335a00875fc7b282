"""A writer of newc cpio archives, the format of an initramfs. Owners and nodes are only numbers here: no root needed.

The layout of a record is the kernel's ``Documentation/driver-api/early-userspace/buffer-format.rst``.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

_COPY_BYTES = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Node:
    """One name of the archive. ``mode`` has the type bits; ``source`` is a file to copy, else ``data`` is the content.

    ``link`` groups hard links: nodes of one non-empty ``link`` share an inode, the last one carries the content.
    """

    mode: int
    uid: int = 0
    gid: int = 0
    data: bytes = b""
    source: Path | None = None
    rdev: tuple[int, int] = (0, 0)
    link: str = ""


class Archive:
    """Names and what they are, written out by :meth:`write`. A later ``add`` of a name replaces the earlier one."""

    def __init__(self) -> None:
        self._nodes: dict[str, Node] = {}

    def __contains__(self, name: str) -> bool:
        return _clean(name) in self._nodes

    def __len__(self) -> int:
        return len(self._nodes)

    def names(self) -> list[str]:
        """Every name, without a leading slash, in order of adding."""
        return list(self._nodes)

    def add(self, name: str, node: Node) -> None:
        """Add ``node`` under ``name``; missing parent directories are made 0755 root."""
        name = _clean(name)
        parent = os.path.dirname(name)
        if parent and parent not in self._nodes:
            self.directory(parent)
        self._nodes[name] = node

    def directory(self, name: str, mode: int = 0o755, *, uid: int = 0, gid: int = 0) -> None:
        """A directory."""
        self.add(name, Node(mode=stat.S_IFDIR | mode, uid=uid, gid=gid))

    def file(self, name: str, content: bytes | Path, mode: int = 0o644, *, uid: int = 0, gid: int = 0) -> None:
        """A regular file: bytes, or a path whose content is copied when the archive is written."""
        data, source = (b"", content) if isinstance(content, Path) else (content, None)
        self.add(name, Node(mode=stat.S_IFREG | mode, uid=uid, gid=gid, data=data, source=source))

    def symlink(self, name: str, target: str) -> None:
        """A symbolic link to ``target``."""
        self.add(name, Node(mode=stat.S_IFLNK | 0o777, data=os.fsencode(target)))

    def device(self, name: str, kind: str, major: int, minor: int, mode: int = 0o600) -> None:
        """A device node; ``kind`` is ``c`` or ``b``."""
        bits = stat.S_IFCHR if kind == "c" else stat.S_IFBLK
        self.add(name, Node(mode=bits | mode, rdev=(major, minor)))

    def hardlinks(self, names: list[str], content: bytes, mode: int = 0o644) -> None:
        """One file under several names."""
        for position, name in enumerate(names):
            data = content if position == len(names) - 1 else b""
            self.add(name, Node(mode=stat.S_IFREG | mode, data=data, link=names[0]))

    def tree(
        self,
        directory: Path,
        under: str = "",
        *,
        owner: tuple[int, int] | None = None,
        keep: Callable[[str], bool] | None = None,
    ) -> None:
        """Everything below ``directory``, modes kept; owners too, unless ``owner`` is given.

        ``keep`` is asked with each relative name.
        """
        for path in sorted(directory.rglob("*")):
            relative = path.relative_to(directory).as_posix()
            if keep is not None and not keep(relative):
                continue
            self.path(path, f"{under}/{relative}", owner=owner)

    def path(self, path: Path, name: str, *, owner: tuple[int, int] | None = None) -> None:
        """One file, link or directory of this machine, under ``name``. Sockets and the like are left out."""
        info = path.lstat()
        uid, gid = owner or (info.st_uid, info.st_gid)
        if stat.S_ISLNK(info.st_mode):
            self.symlink(name, os.readlink(path))
        elif stat.S_ISDIR(info.st_mode):
            self.directory(name, stat.S_IMODE(info.st_mode), uid=uid, gid=gid)
        elif stat.S_ISREG(info.st_mode):
            self.file(name, path, stat.S_IMODE(info.st_mode), uid=uid, gid=gid)

    def write(self, out: BinaryIO) -> None:
        """The whole archive with its trailer, padded to 512 bytes. Directories come before what is in them."""
        inodes: dict[str, int] = {}
        counts: dict[str, int] = {}
        for node in self._nodes.values():
            if node.link:
                counts[node.link] = counts.get(node.link, 0) + 1
        written = 0
        for number, (name, node) in enumerate(self._nodes.items(), 1):
            inode = inodes.setdefault(node.link, number) if node.link else number
            directories = 2 if stat.S_ISDIR(node.mode) else 1
            written += _record(out, name, node, inode, counts.get(node.link, directories))
        written += _record(out, "TRAILER!!!", Node(mode=0), 0, 1)
        out.write(b"\0" * (-written % 512))


def _clean(name: str) -> str:
    """The name as the archive has it: no leading slash or dot."""
    return os.path.normpath("/" + name).lstrip("/")


def _record(out: BinaryIO, name: str, node: Node, inode: int, links: int) -> int:
    size = node.source.stat().st_size if node.source else len(node.data)
    raw = os.fsencode(name) + b"\0"
    fields = (inode, node.mode, node.uid, node.gid, links, 0, size, 0, 0, *node.rdev, len(raw), 0)
    head = b"070701" + b"".join(b"%08X" % field for field in fields) + raw
    head += b"\0" * (-len(head) % 4)
    out.write(head)
    if node.source:
        copied = 0
        with node.source.open("rb") as source:
            while piece := source.read(_COPY_BYTES):
                out.write(piece)
                copied += len(piece)
        if copied != size:
            raise OSError(f"{node.source} changed while it was copied")
    else:
        out.write(node.data)
    tail = -size % 4
    out.write(b"\0" * tail)
    return len(head) + size + tail
