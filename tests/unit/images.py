"""Initramfs images for tests: by our own writer, and by GNU cpio with gzip, xz and zstd."""

from __future__ import annotations

import stat
import subprocess
from collections.abc import Sequence
from pathlib import Path

from vmproxy.compression import packer
from vmproxy.newc import archive, record

SCRIPT = b"""#!/sbin/openrc-run
command=/usr/bin/docker
start() {
\tebegin "Starting Docker"
\teend $?
}
"""
KINDS = ("cpio", "gzip", "xz", "zstd", "lzma", "bzip2")
APPENDABLE = ("cpio", "gzip", "xz", "zstd")
MICROCODE = b"kernel/x86/microcode/GenuineIntel.bin"


def directory(name: bytes, *, mode: int = 0o755, **fields: int) -> bytes:
    """A directory's record."""
    return record(name, mode=stat.S_IFDIR | mode, **{"nlink": 2, **fields})


def file(name: bytes, content: bytes, *, mode: int = 0o644, **fields: int) -> bytes:
    """A plain file's record."""
    return record(name, content, mode=stat.S_IFREG | mode, **fields)


def link(name: bytes, target: bytes) -> bytes:
    """A symbolic link's record."""
    return record(name, target, mode=stat.S_IFLNK | 0o777)


def node(name: bytes, mode: int, *, major: int = 0, minor: int = 0) -> bytes:
    """A device's or a fifo's record."""
    return record(name, mode=mode, rdevmajor=major, rdevminor=minor)


def pack(content: bytes, kind: str) -> bytes:
    """Compressed as we do."""
    made = packer(kind)
    out: bytes = made.compress(content) + made.flush()
    return out


def moby_records(*, script: bytes = SCRIPT) -> list[bytes]:
    """Docker for Mac's file system in small: nodes, owners, hard links, links, odd names."""
    return [
        directory(b".", ino=1),
        directory(b"etc", ino=2),
        directory(b"etc/init.d", ino=3, mtime=1_460_000_000),
        file(b"etc/init.d/docker", script, mode=0o755, ino=721, uid=0, gid=0, mtime=1_459_999_999),
        file(b"etc/os-release", b"ID=alpine\nPRETTY_NAME='Alpine Linux v3.3'\n", ino=5),
        directory(b"usr", ino=6),
        directory(b"usr/bin", ino=7),
        file(b"usr/bin/mobyconfig", b"#!/bin/sh\nexit 1\n", mode=0o755, ino=8),
        file(b"usr/bin/one", b"", ino=9, nlink=3, mode=0o4755),
        file(b"usr/bin/two", b"", ino=9, nlink=3, mode=0o4755),
        file(b"usr/bin/three", b"shared\n", ino=9, nlink=3, mode=0o4755),
        directory(b"dev", ino=10),
        node(b"dev/console", stat.S_IFCHR | 0o600, major=5, minor=1),
        node(b"dev/sda", stat.S_IFBLK | 0o660, major=8),
        node(b"dev/fifo", stat.S_IFIFO | 0o600),
        link(b"bin", b"usr/bin"),
        file(b"etc/\xff\xfe", b"no UTF-8\n", uid=1234, gid=50, ino=11),
    ]


def moby(kind: str = "gzip", *, script: bytes = SCRIPT) -> bytes:
    """The image that Docker for Mac boots, in small."""
    return pack(archive(moby_records(script=script)), kind)


def early() -> bytes:
    """A plain archive with microcode, as Debian puts it in front, and zeros behind it up to the next kilobyte."""
    names = [b"kernel", b"kernel/x86", b"kernel/x86/microcode"]
    whole = archive([*(directory(name) for name in names), file(MICROCODE, bytes(range(256)) * 9)])
    return whole + bytes(-len(whole) % 1024)


def gnu(place: Path, kind: str) -> bytes:
    """A directory as GNU cpio and the program of that compression pack it."""
    names = sorted(path.relative_to(place).as_posix() for path in place.rglob("*"))
    packed = run(("cpio", "-o", "-H", "newc", "--quiet"), "\n".join([".", *names]).encode() + b"\n", cwd=place)
    programs = {
        "cpio": (),
        "gzip": ("gzip", "-9n"),
        "xz": ("xz", "--check=crc32", "-6"),
        "zstd": ("zstd", "-q", "-3"),
        "lzma": ("xz", "--format=lzma"),
    }
    return run(programs[kind], packed) if programs[kind] else packed


def run(argv: Sequence[str], stdin: bytes, *, cwd: Path | None = None) -> bytes:
    """A program's output; it must succeed."""
    return subprocess.run(argv, input=stdin, stdout=subprocess.PIPE, check=True, cwd=cwd).stdout
