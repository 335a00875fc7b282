"""A real kernel unpacks what ``initrd:FILE`` makes: appended members and rewritten ones."""

from __future__ import annotations

import hashlib
import stat
import subprocess
from pathlib import Path

import pytest

from tests.lab import default_cache, tree
from tests.lab.serialline import KERNEL
from tests.unit import images
from vmproxy import converge
from vmproxy.initrd import Image
from vmproxy.model import Settings
from vmproxy.newc import archive

BOOT_SECONDS = 300
INIT = b"""#!/bin/busybox sh
for f in etc/init.d/docker usr/bin/one usr/bin/three; do
  echo "SUM $(/bin/busybox sha256sum $f) $(/bin/busybox stat -c '%a %u %h' $f) END"
done
/bin/busybox poweroff -f
"""


def bootable(kind: str) -> bytes:
    """Docker for Mac's image in small, with a busybox whose init says what it sees."""
    records = [record for record in images.moby_records() if not record[110:].startswith(b"bin\0")]
    records += [
        images.directory(b"bin"),
        images.file(b"bin/busybox", Path("/bin/busybox").read_bytes(), mode=0o755, ino=900),
        images.file(b"init", INIT, mode=0o755, ino=901),
    ]
    return images.early() + images.pack(archive(records), kind)


def boot(image: Path) -> dict[str, tuple[str, str]]:
    """What the kernel has made of the image: sha256, and mode, owner and number of names, by file."""
    kernel = next((tree.fetch_kernel(default_cache()) / "boot").glob("vmlinuz-*"))
    argv = ["qemu-system-x86_64", "-accel", "tcg", "-m", "256", "-nographic", "-nodefaults", "-serial", "stdio"]
    argv += ["-no-reboot", "-kernel", str(kernel), "-initrd", str(image)]
    argv += ["-append", "console=ttyS0 rdinit=/init quiet panic=-1 no_timer_check"]
    ran = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, timeout=BOOT_SECONDS, check=True)
    found = {}
    for line in KERNEL.sub(b"", ran.stdout).decode("ascii", "replace").splitlines():
        words = line.partition("SUM ")[2].split()
        if words[-1:] == ["END"]:
            found[words[1]] = (words[0], " ".join(words[2:-1]))
    assert found, ran.stdout[-2000:]
    return found


@pytest.mark.parametrize(
    ("kind", "rewrite"), [("cpio", False), ("gzip", False), ("xz", False), ("zstd", False), ("gzip", True)]
)
def test_the_kernel_takes_our_file(tmp_path: Path, kind: str, rewrite: bool) -> None:
    """The VM has our file with its mode, and everything else as before, hard links too; removed, the image is the
    one before to the byte."""
    path = tmp_path / "initrd.img"
    before = bootable(kind)
    path.write_bytes(before)
    settings = Settings(gateway="192.168.64.1", rewrite=rewrite, given=frozenset({"gateway", "rewrite"}))
    assert converge.apply(f"initrd:{path}", settings).changed
    image = Image(path.read_bytes())
    wanted = image.contents([b"/etc/init.d/docker"], limit_bytes=1 << 20)[b"/etc/init.d/docker"]
    assert b"export http_proxy='http://192.168.64.1:8123'" in wanted
    shared = hashlib.sha256(b"shared\n").hexdigest()
    assert boot(path) == {
        "etc/init.d/docker": (hashlib.sha256(wanted).hexdigest(), "755 0 1"),
        "usr/bin/one": (shared, f"{stat.S_ISUID | 0o755:o} 0 3"),
        "usr/bin/three": (shared, f"{stat.S_ISUID | 0o755:o} 0 3"),
    }
    assert converge.remove(f"initrd:{path}", settings).changed
    assert path.read_bytes() == before
