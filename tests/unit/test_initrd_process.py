"""``initrd:FILE`` as a user's process does it: without root, within its memory, and what was written is read again."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fake.realservers import open_directory
from tests.unit import imagedisk, images
from tests.unit.imagedisk import Disk
from vmproxy import converge, newc
from vmproxy.compression import packer
from vmproxy.errors import RolledBack
from vmproxy.initrd import Image
from vmproxy.machines import imagefile

BOTH = pytest.mark.parametrize("rewrite", [False, True], ids=["appended", "rewritten"])
NOBODY = 65534
ROOM_KB = 64 << 10
MOST_BYTES = 64 << 20
# A run at an image; what it said, and the most memory that its process has had.
_MEASURED = """
import sys
from vmproxy import converge
from vmproxy.errors import VmproxyError
from vmproxy.model import ProxyURL, Settings
given = frozenset({"gateway", "proxy"})
try:
    for port in (3128, 3129):  # the second time there is an image with us, one without, and a new one
        proxy = ProxyURL(scheme="http", host="127.0.0.1", port=port)
        converge.apply(f"initrd:{sys.argv[1]}", Settings(proxy=proxy, gateway="192.168.64.1", given=given))
    print("done")
except VmproxyError as error:
    print(error)
with open("/proc/self/status") as status:
    print(next(line.split()[1] for line in status if line.startswith("VmHWM:")))
"""


@pytest.fixture
def disk(tmp_path: Path) -> Disk:
    """Docker for Mac's image in small, with gzip as upstream has it."""
    return imagedisk.moby(tmp_path)


def as_nobody(story: Callable[[], None]) -> int:
    """How a process of a user without any right ends that tells the story: 0 where it did not fail."""
    pid = os.fork()
    if pid:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    try:
        if os.geteuid() == 0:
            os.setgroups([])
            os.setresgid(NOBODY, NOBODY, NOBODY)
            os.setresuid(NOBODY, NOBODY, NOBODY)
        assert os.geteuid() != 0
        story()
    except BaseException as error:
        # whatever it is, it must not get back into pytest
        os.write(2, f"{error!r}\n".encode())
        os._exit(1)
    os._exit(0)


@BOTH
@pytest.mark.parametrize("kind", ["cpio", "gzip", "xz", "zstd"])
@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")  # Python 3.12's, of a fork beside threads
def test_no_root_is_needed(disk: Disk, kind: str, rewrite: bool) -> None:
    """A user who owns the image, and nothing else, applies and removes, with the devices and owners in it as before."""
    with open_directory(0o755) as place:
        mine = Disk(place)

        def story() -> None:
            mine.write(images.early() + images.moby(kind))
            before = mine.picture()
            assert mine.tell(converge.apply, rewrite=rewrite).changed
            assert mine.tell(converge.status).ok
            assert b"export http_proxy=" in mine.read()
            console = Image(mine.path.read_bytes()).node(b"/dev/console")
            assert console is not None
            assert [newc.field(console.raw, name) for name in ("mode", "rdevmajor", "rdevminor")] == [0o20600, 5, 1]
            assert mine.tell(converge.remove).changed
            assert mine.picture() == before

        story()  # imports what a user without rights may not read where the tests run
        mine.path.unlink()
        if os.geteuid() == 0:
            os.chown(place, NOBODY, NOBODY)
        assert as_nobody(story) == 0


@BOTH
def test_members_of_every_kind_in_one_image(disk: Disk, rewrite: bool) -> None:
    """Microcode, then a member of each compression, the script in the middle one, a plain one behind zeros at the end:
    the file is changed where it counts, every other member is kept to the byte, and gone is gone."""
    names = {kind: b"etc/of-" + kind.encode() for kind in images.KINDS}
    other = {kind: images.pack(newc.archive([images.file(names[kind], b"1")]), kind) for kind in images.KINDS}
    front = images.early() + other["xz"] + other["zstd"]
    behind = other["lzma"] + other["gzip"]
    plain = front + images.moby("gzip") + behind
    disk.write(plain + bytes(-len(plain) % 4 + 8) + other["cpio"])
    before, content = disk.picture(), disk.path.read_bytes()
    assert disk.tell(converge.apply, rewrite=rewrite).changed
    after = disk.path.read_bytes()
    assert b"export http_proxy='http://192.168.64.1:8123'" in disk.read()
    assert after.startswith(front if rewrite else content)
    assert behind in after
    assert other["cpio"] in after
    for kind in ("lzma", "gzip", "cpio"):
        assert disk.read(b"/" + names[kind]) == b"1"
    assert disk.tell(converge.status).ok
    assert disk.tell(converge.remove).changed
    assert disk.picture() == before


@BOTH
@pytest.mark.parametrize("turn", [0, 1], ids=["the image", "its backup"])
def test_what_the_disk_gives_back_wrong_does_not_count(
    disk: Disk, turn: int, rewrite: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The new image is read again before it gets the name, and so is the backup: one byte that is another, and it is
    exit 7 with everything as it was."""
    before, real, left = disk.picture(), os.fsync, [turn]

    def fsync(handle: int) -> None:
        real(handle)
        left[0] -= 1
        if left[0] == -1:
            os.pwrite(handle, b"\x55", os.fstat(handle).st_size - 9)

    monkeypatch.setattr(imagefile.os, "fsync", fsync)
    with pytest.raises(RolledBack, match="reads differently") as caught:
        disk.tell(converge.apply, rewrite=rewrite)
    assert caught.value.exit == 7
    assert disk.picture() == before


def measured(path: Path) -> tuple[str, int]:
    """What an ``apply`` in a process of its own said, and its memory at most, in kB."""
    environ = {**os.environ, "PYTHONPATH": str(Path(converge.__file__).parents[1])}
    argv = [sys.executable, "-c", _MEASURED, str(path)]
    ran = subprocess.run(argv, env=environ, capture_output=True, text=True, timeout=240, check=True)
    said, most = ran.stdout.splitlines()
    return said, int(most)


def test_p14_the_memory_of_the_process(disk: Disk) -> None:
    """Not Python's objects alone: with all that zlib, lzma and zstd take, a hostile image costs at most 64 MiB and four
    times its own size more than a good one."""
    said, usual_kb = measured(disk.path)
    assert said == "done"
    head = newc.record(b"big", mode=0o100644)
    head = head[:54] + b"%08X" % MOST_BYTES + head[62:]
    for kind in ("gzip", "xz", "zstd", "lzma", "bzip2"):
        bomb = packer(kind)
        pieces = [bomb.compress(head), *(bomb.compress(bytes(1 << 20)) for _ in range(MOST_BYTES >> 20)), bomb.flush()]
        disk.write(b"".join(pieces))
        said, most_kb = measured(disk.path)
        assert "200 times" in said, said
        assert most_kb - usual_kb < ROOM_KB + 4 * disk.path.stat().st_size // 1024
    for count, answer in ((36_000, "done"), (90_000, "too many names")):
        many = b"".join(newc.record(b"%060x" % number, mode=0o100644) for number in range(count))
        disk.write(images.pack(many + newc.archive(images.moby_records()), "gzip"))
        said, most_kb = measured(disk.path)
        assert answer in said
        assert most_kb - usual_kb < ROOM_KB + 4 * disk.path.stat().st_size // 1024
