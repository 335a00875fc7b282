"""The root of the QEMU VM as one compressed newc archive: chosen programs, their libraries, kernel modules, scripts.

No root is needed for nodes and owners. Images are cached by what went into them.
"""

from __future__ import annotations

import fcntl
import gzip
import hashlib
import io
import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

from tests.lab import elf, kmod, newc

_OLD_SECONDS = 2 * 86400
GUEST = Path(__file__).with_name("guest")
_MAKERS = (__file__, kmod.__file__, newc.__file__, elf.__file__)

# Services and settings of the tree that the VM has no use for.
_ETC_LEFT_OUT = re.compile(
    r"(apt|ca-certificates|cron\..*|docker|dpkg|dropbear|init\.d|perl|rc.\.d|runit|sv|systemd|ufw|update-motd\.d)(/|$)"
)
_DIRECTORIES = (
    "proc sys dev run mnt usr/bin usr/sbin usr/lib usr/lib64 usr/local/bin usr/local/sbin usr/local/etc/ssh opt"
)
# Called by upstream's boot script; ``guest/nothing`` stands there.
_STAND_INS = (
    "etc/init.d/vbox etc/init.d/xe-linux-distribution usr/local/etc/init.d/prltoolsd usr/local/etc/init.d/acpid "
    "usr/sbin/ntpd usr/sbin/crond usr/local/tce.installed/ca-certificates"
)


@dataclass(frozen=True, kw_only=True)
class Image:
    """A kernel and the root that goes with it. ``key`` changes when anything in them does."""

    kernel: Path
    initrd: Path
    key: str


def build(cache: Path, tree: Path, kernel: Path) -> Image:
    """The image made of a staged tree and a fetched kernel, from the cache or built now.

    The names of the two directories are taken as keys of what is in them.
    """
    packer = _packer()
    return kept(cache, "root", f"{tree.name} {kernel.name}", kernel, [GUEST], packer, lambda: root(tree, kernel))


def kept(
    cache: Path,
    kind: str,
    parts: str,
    kernel: Path,
    guests: Iterable[Path],
    packer: tuple[str, tuple[str, ...]],
    make: Callable[[], newc.Archive],
) -> Image:
    """The image ``kind-KEY`` in the cache, or made now; KEY is of ``parts``, of the files below ``guests`` and of what
    makes an image. ``packer`` is an ending and the program's words."""
    digest = hashlib.sha256(f"{parts} {packer[0]}".encode())
    places = [*(path for guest in guests for path in sorted(guest.rglob("*"))), *map(Path, _MAKERS)]
    for path in places:
        if path.is_file():
            digest.update(f"\n{path.name} {path.stat().st_mode:o}\n".encode() + path.read_bytes())
    key = digest.hexdigest()[:16]
    (vmlinuz,) = (kernel / "boot").glob("vmlinuz-*")
    final = cache / f"{kind}-{key}.cpio.{packer[0]}"
    with (cache / "lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not final.exists():
            archive = make()
            with tempfile.NamedTemporaryFile(dir=cache, prefix=f"{kind}-building-", delete=False) as out:
                for old in cache.glob(f"{kind}-*"):
                    if time.time() - old.stat().st_mtime > _OLD_SECONDS:
                        old.unlink()
                try:
                    _pack(archive, cast(BinaryIO, out), packer)
                    os.replace(out.name, final)
                except BaseException:
                    os.unlink(out.name)
                    raise
        os.utime(final)
    return Image(kernel=vmlinuz, initrd=final, key=key)


def member(files: Iterable[tuple[str, bytes, int]], overlay: Path | None = None) -> bytes:
    """A small uncompressed archive to stand before the root's; at boot its ``/lab/overlay`` is laid over the root.

    ``files`` are ``(name below /lab, content, mode)``; ``overlay`` is a directory, its files owned by root.
    """
    archive = newc.Archive()
    archive.directory("lab/overlay")
    for name, content, mode in files:
        archive.file(f"lab/{name}", content, mode)
    if overlay is not None:
        archive.tree(overlay, "lab/overlay", owner=(0, 0))
    out = io.BytesIO()
    archive.write(out)
    return out.getvalue()


def root(tree: Path, kernel: Path) -> newc.Archive:
    """The whole root file system."""
    archive = newc.Archive()
    for name in _DIRECTORIES.split():
        archive.directory(name)
    archive.directory("tmp", 0o1777)
    archive.directory("root", 0o700)
    archive.directory("home/docker", uid=1000, gid=1000)
    for name in ("bin", "sbin", "lib", "lib64"):
        archive.symlink(name, f"usr/{name}")
    archive.device("dev/console", "c", 5, 1)
    archive.device("dev/null", "c", 1, 3, 0o666)
    archive.tree(tree / "etc", "etc", keep=lambda name: not _ETC_LEFT_OUT.match(name))
    programs(archive, tree, GUEST / "programs.txt")
    applets(archive, tree)
    modules(archive, kernel)
    _scripts(archive)
    return archive


def programs(archive: newc.Archive, tree: Path, chosen: Path) -> None:
    """Add what the lines of the file ``chosen`` name in the tree, patterns below /usr, with their libraries."""
    picked = []
    for line in chosen.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            picked += [path.relative_to(tree).as_posix() for path in sorted((tree / "usr").glob(line))]
    _with_libraries(archive, tree, next((tree / "usr/lib").glob("*-linux-gnu")), picked)


def modules(archive: newc.Archive, kernel: Path) -> None:
    """Add the kernel's modules, and the list of those that the guest loads."""
    version, files = kmod.modules(kernel)
    for name, content in files.items():
        archive.file(f"usr/lib/modules/{version}/{name}", content)
    archive.file("etc/lab.modules", GUEST / "modules.txt")


def _with_libraries(archive: newc.Archive, tree: Path, triplet: Path, picked: list[str]) -> None:
    """Add the files named in ``picked`` and, again and again, what they link to."""
    places = [triplet, tree / "usr/lib", tree / "usr/lib64", tree / "usr/libexec/sudo", triplet / "systemd"]
    pending = list(picked)
    while pending:
        name = pending.pop()
        path = tree / name
        if name in archive or not os.path.lexists(path):
            continue
        archive.path(path, name)
        if path.is_symlink():
            target = os.readlink(path)
            if "alternatives" not in target:
                to = os.path.normpath(os.path.join("/" + os.path.dirname(name), target)).lstrip("/")
                pending.append(to if to.startswith("usr/") else f"usr/{to}")
        elif path.is_file() and (needs := elf.needs(path)):
            if needs.interpreter:
                pending.append(f"usr{needs.interpreter}")
            for library in needs.libraries:
                found = next((place / library for place in places if (place / library).exists()), None)
                if found is None:
                    raise FileNotFoundError(f"{name} needs {library}, which the tree does not have")
                pending.append(found.relative_to(tree).as_posix())


def applets(archive: newc.Archive, tree: Path) -> None:
    """/bin/sh and every applet that no chosen program stands in for: the VM runs on busybox, as boot2docker does."""
    triplet = next((tree / "usr/lib").glob("*-linux-gnu"))
    loader = next((tree / "usr/lib64").glob("ld-linux*"), None) or next((tree / "usr/lib").glob("ld-linux*"))
    command = [str(loader), "--library-path", str(triplet), str(tree / "usr/bin/busybox"), "--list-full"]
    listed = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout.split()
    taken = {os.path.basename(name) for name in archive.names() if name.startswith(("usr/bin/", "usr/sbin/"))}
    for applet in listed:
        name = applet if applet.startswith("usr/") else f"usr/{applet}"
        if os.path.basename(name) not in taken and "/" in applet:
            archive.symlink(name, "/usr/bin/busybox")


def _scripts(archive: newc.Archive) -> None:
    """The guest's own scripts; ``guest/nothing`` stands where upstream's boot calls what the lab has no use for."""
    archive.file("init", GUEST / "init", 0o755)
    archive.file("etc/inittab", GUEST / "inittab")
    archive.file("opt/bootsync.sh", GUEST / "bootsync.sh", 0o755)
    archive.file("opt/bootlocal.sh", GUEST / "nothing", 0o755)
    for path in sorted((GUEST / "init.d").iterdir()):
        archive.file(f"etc/init.d/{path.name}", path, 0o755)
    for path in sorted((GUEST / "bin").iterdir()):
        archive.file(f"usr/local/bin/{path.name}", path, 0o755)
    archive.file("usr/local/etc/init.d/openssh", GUEST / "openssh", 0o755)
    archive.file("usr/local/etc/ssh/sshd_config", GUEST / "sshd_config")
    for name in _STAND_INS.split():
        archive.file(name, GUEST / "nothing", 0o755)
    archive.file("etc/resolv.conf.b2d", b"nameserver 10.0.2.3\n")


def _packer() -> tuple[str, tuple[str, ...]]:
    """``(ending, argv)`` of the best compressor here that the kernel can undo; ``gz`` needs no program."""
    for ending, argv in (("lz4", ("lz4", "-l", "-3", "-c")), ("zst", ("zstd", "-q", "-3", "-T2", "-c"))):
        if shutil.which(argv[0]):
            return ending, argv
    return "gz", ()


def _pack(archive: newc.Archive, out: BinaryIO, packer: tuple[str, tuple[str, ...]]) -> None:
    if not packer[1]:
        with gzip.GzipFile(fileobj=out, mode="wb", compresslevel=1, mtime=0) as compressed:
            archive.write(cast(BinaryIO, compressed))
        return
    with subprocess.Popen(packer[1], stdin=subprocess.PIPE, stdout=out) as process:
        archive.write(cast(BinaryIO, process.stdin))
        cast(BinaryIO, process.stdin).close()
        if process.wait(timeout=600):
            raise OSError(f"{packer[1][0]} ended with {process.returncode}")
