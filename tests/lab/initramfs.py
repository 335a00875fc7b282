"""The root of the QEMU VM as one compressed newc archive: chosen programs of the staged tree, their libraries, modules, scripts.

No root is needed for nodes and owners. Images are cached by what went into them.
"""

from __future__ import annotations

import fcntl
import gzip
import hashlib
import io
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

from tests.lab import elf, kmod, newc

GUEST = Path(__file__).with_name("guest")

_PROGRAMS = (
    "bin/bash bin/busybox bin/containerd bin/containerd-shim-runc-v2 bin/curl bin/docker bin/docker-init bin/openssl bin/ps "
    "bin/pgrep bin/ssh-keygen bin/sudo bin/strace bin/flock bin/nc.openbsd bin/dropbearkey bin/dbclient bin/tini-static bin/tc "
    "sbin/runc sbin/dockerd sbin/docker-proxy sbin/dropbear sbin/sshd sbin/ip sbin/bridge bin/ip bin/ss "
    "sbin/xtables-legacy-multi sbin/xtables-nft-multi sbin/e2fsck sbin/mke2fs sbin/mkfs.ext4 sbin/blkid sbin/fdisk "
    "lib/openssh/sftp-server"
).split()
_LIBRARIES = ("security/pam_unix.so", "security/pam_permit.so", "security/pam_deny.so", "libnss_files.so.2", "libgcc_s.so.1")
_ETC_LEFT_OUT = frozenset(
    "apt ca-certificates cron.d cron.daily dpkg init.d perl rc0.d rc1.d rc2.d rc3.d rc4.d rc5.d rc6.d rcS.d runit ssl sv "
    "systemd ufw update-motd.d docker dropbear".split()
)
_PRELOAD = (
    "virtio_pci virtio_blk virtio_net virtio_rng overlay bridge br_netfilter veth nf_conntrack nf_nat xt_conntrack xt_addrtype "
    "xt_MASQUERADE xt_tcpudp ip_tables iptable_nat iptable_filter nf_tables nft_compat nft_chain_nat"
).split()


@dataclass(frozen=True, kw_only=True)
class Image:
    """A kernel and the root that goes with it. ``key`` changes when anything in them does."""

    kernel: Path
    initrd: Path
    key: str


def build(cache: Path, tree: Path, kernel: Path) -> Image:
    """The image made of a staged tree and a fetched kernel (their directory names are their keys), from the cache or built now."""
    packer = _packer()
    sources = sorted(path for path in [*GUEST.rglob("*"), *Path(__file__).parent.glob("*.py")] if path.is_file())
    digest = hashlib.sha256(f"{tree.name} {kernel.name} {packer[0]}".encode())
    for path in sources:
        if path.suffix != ".py" or path.stem in ("initramfs", "kmod", "newc", "elf"):
            digest.update(f"\n{path.name} {path.stat().st_mode:o}\n".encode() + path.read_bytes())
    key = digest.hexdigest()[:16]
    (vmlinuz,) = (kernel / "boot").glob("vmlinuz-*")
    final = cache / f"root-{key}.cpio.{packer[0]}"
    with (cache / "lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not final.exists():
            archive = root(tree, kernel)
            with tempfile.NamedTemporaryFile(dir=cache, prefix="root-building-", delete=False) as out:
                try:
                    _pack(archive, cast(BinaryIO, out), packer)
                    os.replace(out.name, final)
                except BaseException:
                    os.unlink(out.name)
                    raise
        os.utime(final)
    return Image(kernel=vmlinuz, initrd=final, key=key)


def member(files: Iterable[tuple[str, bytes, int]], overlay: Path | None = None) -> bytes:
    """A small uncompressed archive to stand before the root's: ``/lab/…``, of which the boot script lays ``/lab/overlay`` over the root.

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
    for name in "proc sys dev run mnt usr/bin usr/sbin usr/lib usr/lib64 usr/local/bin usr/local/sbin usr/local/etc/ssh opt".split():
        archive.directory(name)
    archive.directory("tmp", 0o1777)
    archive.directory("root", 0o700)
    archive.directory("home/docker", uid=1000, gid=1000)
    for name in ("bin", "sbin", "lib", "lib64"):
        archive.symlink(name, f"usr/{name}")
    archive.device("dev/console", "c", 5, 1)
    archive.device("dev/null", "c", 1, 3, 0o666)
    archive.tree(tree / "etc", "etc", keep=lambda name: name.split("/")[0] not in _ETC_LEFT_OUT)
    triplet = next((tree / "usr/lib").glob("*-linux-gnu"))
    picked = [f"usr/{name}" for name in _PROGRAMS]
    picked += [f"usr/lib/{triplet.name}/{name}" for name in _LIBRARIES if (triplet / name).exists()]
    picked += [path.relative_to(tree).as_posix() for path in (triplet / "xtables").iterdir()]
    picked += [path.relative_to(tree).as_posix() for path in (tree / "usr/libexec/sudo").iterdir() if "json" not in path.name]
    picked += [path.relative_to(tree).as_posix() for path in (tree / "usr/sbin").iterdir() if _is_xtables_link(path)]
    _with_libraries(archive, tree, triplet, picked)
    _applets(archive, tree, triplet)
    version, files = kmod.modules(kernel)
    for name, content in files.items():
        archive.file(f"usr/lib/modules/{version}/{name}", content)
    archive.file("etc/lab.modules", (" ".join(_PRELOAD) + "\n").encode())
    _scripts(archive)
    return archive


def _is_xtables_link(path: Path) -> bool:
    return path.is_symlink() and path.name.startswith(("iptables", "ip6tables")) and "translate" not in path.name


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
                beside = target.lstrip("/") if target.startswith("/") else os.path.normpath(f"{os.path.dirname(name)}/{target}")
                pending.append(beside if beside.startswith("usr/") else f"usr/{beside}")
        elif path.is_file() and (needs := elf.needs(path)):
            if needs.interpreter:
                pending.append(f"usr{needs.interpreter}")
            for library in needs.libraries:
                found = next((place / library for place in places if (place / library).exists()), None)
                if found is None:
                    raise FileNotFoundError(f"{name} needs {library}, which the tree does not have")
                pending.append(found.relative_to(tree).as_posix())


def _applets(archive: newc.Archive, tree: Path, triplet: Path) -> None:
    """/bin/sh and every applet that no chosen program stands in for; the whole image runs on busybox as boot2docker's does."""
    loader = next((tree / "usr/lib64").glob("ld-linux*"), None) or next((tree / "usr/lib").glob("ld-linux*"))
    command = [loader, "--library-path", triplet, tree / "usr/bin/busybox", "--list-full"]
    listed = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout.split()  # noqa: S603
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
    for name in (
        "etc/init.d/vbox etc/init.d/xe-linux-distribution usr/local/etc/init.d/prltoolsd usr/local/etc/init.d/acpid "
        "usr/sbin/ntpd usr/sbin/crond usr/local/tce.installed/ca-certificates"
    ).split():
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
    with subprocess.Popen(packer[1], stdin=subprocess.PIPE, stdout=out) as process:  # noqa: S603 - a constant program
        archive.write(cast(BinaryIO, process.stdin))
        cast(BinaryIO, process.stdin).close()
        if process.wait(timeout=600):
            raise OSError(f"{packer[1][0]} ended with {process.returncode}")
