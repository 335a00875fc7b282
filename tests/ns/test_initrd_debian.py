"""Debian's own initrd: made by its mkinitramfs, listed by its lsinitramfs, patched from outside. chroot needs root."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab import default_cache, tree
from vmproxy import converge
from vmproxy.initrd import Image
from vmproxy.model import Settings

PACKAGES = (
    *("initramfs-tools", "busybox", "zstd", "gzip", "cpio", "kmod", "udev", "libc-bin"),
    *("bash", "coreutils", "dash", "findutils", "grep", "mawk", "sed", "util-linux"),
)
PATH = "/usr/sbin:/usr/bin:/sbin:/bin"
VERSION = "6.1.0-test"
SCRIPT = "etc/init.d/docker"
MICROCODE = "kernel/x86/microcode/GenuineIntel.bin"
HOOK = f"""#!/bin/sh
[ "$1" = prereqs ] && exit 0
. /usr/share/initramfs-tools/hook-functions
early=$(mktemp -d)
mkdir -p "$early/{os.path.dirname(MICROCODE)}"
printf 'microcode %01000d' 1 >"$early/{MICROCODE}"
(cd "$early" && find kernel | cpio -o -H newc --quiet >"$early.cpio")
prepend_earlyinitramfs "$early.cpio"
rm -r "$early" "$early.cpio"
mkdir -p "$DESTDIR/etc/init.d" "$DESTDIR/usr/bin"
printf '#!/sbin/openrc-run\\ncommand=/usr/bin/docker\\n' >"$DESTDIR/{SCRIPT}"
printf '#!/bin/sh\\n' >"$DESTDIR/usr/bin/mobyconfig"
chmod 755 "$DESTDIR/{SCRIPT}" "$DESTDIR/usr/bin/mobyconfig"
"""
# What the installation of a kernel runs (its postinst.d/initramfs-tools), with that kernel's modules and a /boot of its
# own, which nobody else sees: root, kernel, work, boot, version.
_INSTALL = """
mount --make-rprivate / && mount -t tmpfs none "$3" && mkdir "$3/upper" "$3/work" &&
mount -t overlay -o "lowerdir=$2/lib/modules,upperdir=$3/upper,workdir=$3/work" none "$1/lib/modules" &&
mount --bind "$4" "$1/boot" && cp "$2/boot/config-$5" "$1/boot" &&
chroot "$1" /sbin/depmod "$5" && exec chroot "$1" /usr/sbin/update-initramfs -c -k "$5"
"""


def _finish(root: Path) -> None:
    """What mkinitramfs asks of a system: a kernel's name and what it unpacks, and a hook that adds the VM's files."""
    for name in ("lib/modules/" + VERSION, "boot", "tmp", "var/tmp", "dev", "proc", "sys", "etc/initramfs-tools/hooks"):
        (root / name).mkdir(parents=True, exist_ok=True)
    os.mknod(root / "dev/null", 0o20666, os.makedev(1, 3))
    text = "".join(f"CONFIG_RD_{kind}=y\n" for kind in ("GZIP", "ZSTD"))
    (root / f"boot/config-{VERSION}").write_text(text, encoding="ascii")
    hook = root / "etc/initramfs-tools/hooks/docker"
    hook.write_text(HOOK, encoding="ascii")
    hook.chmod(0o755)
    subprocess.run(["chroot", root, "/sbin/ldconfig"], check=True)


class Debian:
    """A staged Debian in which initrds are made and listed."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self.place = Path(tempfile.mkdtemp(dir=root / "tmp"))

    def _run(self, *argv: str) -> str:
        ran = subprocess.run(
            ["chroot", str(self._root), *argv],
            env={"PATH": PATH, "LC_ALL": "C"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert ran.returncode == 0, ran.stderr
        return ran.stdout

    def make(self, kind: str) -> Path:
        """A fresh initrd."""
        path = self.place / f"initrd-{kind}.img"
        self._run("mkinitramfs", "-c", kind, "-o", f"/tmp/{self.place.name}/{path.name}", VERSION)
        return path

    def installed(self) -> Path:
        """The ``/boot/initrd.img-VERSION`` of Debian's own kernel, with its modules, as update-initramfs makes it."""
        kernel = tree.fetch_kernel(default_cache())
        (modules,) = (kernel / "lib/modules").iterdir()
        work, boot = self.place / "work", self.place / "boot"
        work.mkdir()
        boot.mkdir()
        argv = ["unshare", "-m", "sh", "-c", _INSTALL, "sh", *map(str, (self._root, kernel, work, boot)), modules.name]
        ran = subprocess.run(argv, env={"PATH": PATH, "LC_ALL": "C"}, capture_output=True, text=True, check=False)
        assert ran.returncode == 0, ran.stderr
        return (boot / f"initrd.img-{modules.name}").rename(self.place / f"initrd.img-{modules.name}")

    def listed(self, path: Path) -> list[str]:
        """``lsinitramfs -l``, without the lines' sizes and times of our file."""
        lines = self._run("lsinitramfs", "-l", f"/tmp/{self.place.name}/{path.name}").splitlines()
        return [line if not line.endswith(f" {SCRIPT}") else SCRIPT for line in lines]

    def content(self, path: Path) -> bytes:
        """The script, as Debian's unmkinitramfs unpacks it."""
        out = self.place / "out"
        shutil.rmtree(out, ignore_errors=True)
        self._run("unmkinitramfs", f"/tmp/{self.place.name}/{path.name}", f"/tmp/{self.place.name}/out")
        # Of several members it makes early, early2… and main.
        return (out / "main" / SCRIPT).read_bytes()


@pytest.fixture(scope="module")
def debian() -> Iterator[Debian]:
    """One for all tests of this file; what is made in it is removed."""
    made = Debian(tree.stage(default_cache(), "mkinitramfs-early", PACKAGES, finish=_finish))
    yield made
    shutil.rmtree(made.place)


@pytest.mark.parametrize("kind", ["zstd", "gzip"])
def test_f73_debians_initrd(debian: Debian, kind: str) -> None:
    """Read, with the microcode in front, patched both ways, listed by Debian the same but for our file, and back to the
    byte."""
    path = debian.make(kind)
    assert len(debian.listed(path)) > 200
    patched_and_back(debian, path, kind)


def test_f73_the_initrd_in_debians_boot(debian: Debian) -> None:
    """The same of the one that the installation of Debian's own kernel makes in /boot, modules and all."""
    path = debian.installed()
    assert path.stat().st_size > 5 << 20
    assert sum(".ko" in line for line in debian.listed(path)) > 100
    patched_and_back(debian, path, "zstd")


def patched_and_back(debian: Debian, path: Path, kind: str) -> None:
    """Appended and removed, rewritten and removed; what is in it is asked of Debian's own programs."""
    before, listed = path.read_bytes(), debian.listed(path)
    assert SCRIPT in listed
    assert any(line.endswith(f" {MICROCODE}") for line in listed)
    settings = Settings(gateway="192.168.64.1", given=frozenset({"gateway"}))
    assert converge.apply(f"initrd:{path}", settings).changed
    assert debian.listed(path) == listed
    assert converge.remove(f"initrd:{path}", settings).changed
    assert path.read_bytes() == before
    rewriting = Settings(gateway="192.168.64.1", rewrite=True, given=frozenset({"gateway", "rewrite"}))
    assert converge.apply(f"initrd:{path}", rewriting).changed
    assert debian.listed(path) == listed
    assert b"export http_proxy='http://192.168.64.1:8123'" in debian.content(path)
    assert [span.kind for span in Image(path.read_bytes()).spans if span.kind != "zeros"] == ["cpio", kind]
    assert converge.status(f"initrd:{path}", settings).ok
    assert converge.remove(f"initrd:{path}", settings).changed
    assert path.read_bytes() == before
    assert sorted(other.name for other in debian.place.glob("initrd*")) == [path.name]
    path.unlink()
