"""``initrd:FILE``: the same promises for a root file system that is an initramfs image."""

from __future__ import annotations

import errno
import gc
import os
import resource
import shutil
import signal
import stat
import subprocess
import sys
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit import imagedisk, images
from tests.unit.imagedisk import GATEWAY, Disk
from vmproxy import blocks, converge, initrdedit, newc
from vmproxy.errors import Busy, ForeignFile, Interrupted, NoGateway, Refused, RolledBack, UsageError, VmproxyError
from vmproxy.initrd import Image
from vmproxy.machines import imagefile
from vmproxy.machines.image import BACKUP
from vmproxy.model import ProxyURL, Settings

BOTH = pytest.mark.parametrize("rewrite", [False, True], ids=["appended", "rewritten"])


@pytest.fixture
def disk(tmp_path: Path) -> Disk:
    """Docker for Mac's image in small, with gzip as upstream has it."""
    return imagedisk.moby(tmp_path)


def records(content: bytes, *, but: tuple[bytes, ...] = ()) -> list[tuple[int, bytes, bytes]]:
    """Every record of every member, trailers left out: member, header with name, content."""
    image, found = Image(content), []
    for number in image.members:
        stream, items = image.walk(number)
        for item in items:
            if not isinstance(item, int) and not item.is_trailer and item.name not in but:
                found.append((number, item.raw, stream.take(item.size)))
    return found


@BOTH
@pytest.mark.parametrize("kind", images.KINDS)
@pytest.mark.parametrize("front", [b"", images.early()], ids=["alone", "microcode"])
def test_f73_apply_again_status_remove(disk: Disk, kind: str, front: bytes, rewrite: bool) -> None:
    """Applied, in sync, nothing to do a second time; everything else in the image is as it was; gone to the byte."""
    disk.write(front + images.moby(kind))
    before, content = disk.picture(), disk.path.read_bytes()
    assert disk.tell(converge.status, rewrite=rewrite).message == "not applied"
    if not rewrite and kind not in images.APPENDABLE:
        with pytest.raises(ForeignFile) as caught:
            disk.tell(converge.apply)
        assert "--rewrite" in caught.value.hint
        assert disk.picture() == before
        return
    assert disk.tell(converge.apply, rewrite=rewrite).changed
    assert b"export http_proxy='http://192.168.64.1:8123'\n" in disk.read()
    assert disk.read().startswith(images.SCRIPT)
    assert set(disk.picture()) == {"initrd.img", "initrd.img" + BACKUP}
    assert disk.backup.read_bytes() == content
    assert stat.S_IMODE(disk.backup.stat().st_mode) == 0o600
    after = disk.path.read_bytes()
    if rewrite:
        assert records(after, but=(b"etc/init.d/docker",)) == records(content, but=(b"etc/init.d/docker",))
        assert after.startswith(front)
        assert len(Image(after).members) == len(Image(content).members)
    else:
        assert after.startswith(content)
        assert records(after)[: len(records(content))] == records(content)
        assert len(records(after)) == len(records(content)) + 1
    applied = disk.picture()
    assert not disk.tell(converge.apply, rewrite=rewrite).changed
    assert disk.tell(converge.status).message == "in sync"
    assert disk.picture() == applied
    assert disk.tell(converge.remove).changed
    assert disk.picture() == before
    assert not disk.tell(converge.remove).changed


@pytest.mark.parametrize("kind", ["cpio", "gzip", "xz", "zstd"])
def test_gnu_tools_read_what_was_made(disk: Disk, tmp_path: Path, kind: str) -> None:
    """The programs that packed the image unpack the new one: everything the same, and our file with our block."""
    root = tmp_path / "tree"
    (root / "etc/init.d").mkdir(parents=True)
    (root / "usr/bin").mkdir(parents=True)
    (root / "etc/init.d/docker").write_bytes(images.SCRIPT)
    (root / "etc/init.d/docker").chmod(0o755)
    (root / "usr/bin/mobyconfig").write_bytes(b"#!/bin/sh\n")
    (root / "usr/bin/mobyconfig").chmod(0o750)
    content = images.gnu(root, kind)
    program = {"cpio": ("cat",), "gzip": ("gzip", "-dc"), "xz": ("xz", "-dc"), "zstd": ("zstd", "-qdc")}[kind]
    listing = images.run(("cpio", "-itv", "--quiet"), images.run(program, content))
    for rewrite in (False, True):
        disk.write(content)
        disk.tell(converge.apply, rewrite=rewrite)
        for part in [disk.path.read_bytes()] if rewrite else [content, disk.path.read_bytes()[len(content) :]]:
            plain = images.run(program, part.lstrip(b"\0") if kind == "cpio" else part)
            place = tmp_path / f"out-{rewrite}"
            place.mkdir(exist_ok=True)
            images.run(("cpio", "-iumd", "--quiet"), plain, cwd=place)
        assert (place / "etc/init.d/docker").read_bytes() == disk.read()
        assert (place / "etc/init.d/docker").stat().st_mode & 0o7777 == 0o755
        assert (place / "usr/bin/mobyconfig").stat().st_mode & 0o7777 == 0o750
        if rewrite:
            now = images.run(("cpio", "-itv", "--quiet"), plain).splitlines()
            assert [line for line in now if b"docker" not in line] == [
                line for line in listing.splitlines() if b"docker" not in line
            ]
        # The compressor's own test takes the whole image, as lsinitramfs asks for.
        if kind != "cpio":
            images.run(program, disk.path.read_bytes())
        disk.tell(converge.remove)
        assert disk.path.read_bytes() == content


def test_another_wish_replaces_our_member(disk: Disk) -> None:
    """Another proxy, with or without --rewrite, in any order: one member of ours, one backup, and back to the byte."""
    before, content = disk.picture(), disk.path.read_bytes()
    for rewrite, port in ((False, 3128), (True, 3129), (True, 3130), (False, 3131)):
        disk.tell(converge.apply, proxy=ProxyURL(scheme="http", host="127.0.0.1", port=port), rewrite=rewrite)
        assert f"export http_proxy='http://{GATEWAY}:{port}'".encode() in disk.read()
        image = Image(disk.path.read_bytes())
        assert [mark.appended for mark in image.marks.values()] == [not rewrite]
        assert disk.backup.read_bytes() == content
    disk.tell(converge.remove)
    assert disk.picture() == before


def test_drift_is_seen(disk: Disk) -> None:
    """An update brings another image: status says so, apply puts it right; the backup is then the new image's."""
    disk.tell(converge.apply)
    newer = images.early() + images.moby(script=images.SCRIPT + b"# newer\n")
    disk.path.write_bytes(newer)
    report = disk.tell(converge.status)
    assert (report.exit, report.message) == (1, "not applied")
    assert disk.tell(converge.apply).changed
    assert disk.backup.read_bytes() == newer
    disk.tell(converge.remove)
    assert disk.path.read_bytes() == newer
    assert not disk.backup.exists()


def test_a_backup_of_another_image_stays(disk: Disk) -> None:
    """What stands under the backup's name and is not this image is not ours to delete: that is said."""
    content = disk.path.read_bytes()
    disk.tell(converge.apply)
    disk.backup.write_bytes(b"precious")
    report = disk.tell(converge.remove)
    assert disk.path.read_bytes() == content
    assert disk.backup.read_bytes() == b"precious"
    assert any("stays" in line for line in report.warnings)


def test_somebody_else_appends_behind_ours(disk: Disk) -> None:
    """Our member is taken out from between others; theirs stay to the byte."""
    content = disk.path.read_bytes()
    disk.tell(converge.apply)
    more = images.pack(newc.archive([images.file(b"etc/extra", b"1\n")]), "xz")
    disk.path.write_bytes(disk.path.read_bytes() + more)
    assert disk.tell(converge.status).ok
    disk.tell(converge.remove)
    assert disk.path.read_bytes() == content + more


def _other_member(content: bytes) -> bytes:
    return content + images.pack(newc.archive([images.file(b"etc/extra", b"1\n")]), "gzip")


def _other_record(content: bytes) -> bytes:
    at = len(images.early())
    image = Image(content)
    parts = [b""]
    stream, items = image.walk(image.members[-1])
    for item in items:
        if isinstance(item, int):
            parts.append(bytes(item))
        else:
            body = stream.take(item.size + -item.size % 4)
            parts.append(item.raw + (b"ID=other\n" + body[9:] if item.name == b"etc/os-release" else body))
    return content[:at] + images.pack(b"".join(parts), "gzip")


def _other_script(content: bytes) -> bytes:
    at = len(images.early())
    plain = images.run(("gzip", "-dc"), content[at:])
    return content[:at] + images.pack(plain.replace(b"Starting Docker", b"Starting Dinghy"), "gzip")


def _other_front(content: bytes) -> bytes:
    return content.replace(bytes(range(64, 128)), bytes(range(65, 129)), 1)


@pytest.mark.parametrize("change", [_other_member, _other_record, _other_script, _other_front])
def test_a_rewritten_image_that_is_not_ours_any_more(disk: Disk, change: object) -> None:
    """The backup comes back only for the image that was written: else exit 6, and both files are untouched."""
    disk.tell(converge.apply, rewrite=True)
    disk.path.write_bytes(change(disk.path.read_bytes()))  # type: ignore[operator]
    before = disk.picture()
    with pytest.raises(Refused) as caught:
        disk.tell(converge.remove)
    assert caught.value.exit == 6
    assert disk.picture() == before


@pytest.mark.parametrize("how", ["gone", "another", "a link"])
def test_a_rewritten_image_without_its_backup(disk: Disk, how: str) -> None:
    """Exit 6: what was there before is not guessed."""
    disk.tell(converge.apply, rewrite=True)
    aside = disk.backup.rename(disk.path.parent / "aside")
    if how == "another":
        disk.backup.write_bytes(images.moby())
    elif how == "a link":
        disk.backup.symlink_to(aside)
    before = disk.picture()
    with pytest.raises(Refused) as caught:
        disk.tell(converge.remove)
    assert BACKUP in caught.value.where
    assert disk.picture() == before


@BOTH
def test_credentials_make_the_image_private(disk: Disk, rewrite: bool) -> None:
    """A password in a file of the image: nobody else may read the image; remove gives the mode back."""
    disk.path.chmod(0o664)
    before = disk.picture()
    proxy = ProxyURL(scheme="http", host="proxy.corp", port=3128, username="ann", password="s3cret")
    disk.tell(converge.apply, proxy=proxy, rewrite=rewrite)
    assert b"s3cret" in disk.read()
    assert stat.S_IMODE(disk.path.stat().st_mode) == 0o600
    disk.tell(converge.apply, proxy=ProxyURL(scheme="http", host="proxy.corp", port=3128), rewrite=rewrite)
    assert stat.S_IMODE(disk.path.stat().st_mode) == 0o664
    disk.tell(converge.apply, proxy=proxy, rewrite=rewrite)
    disk.tell(converge.remove)
    assert disk.picture() == before


def test_owner_and_links_of_the_image_file(disk: Disk) -> None:
    """The new image has the old one's owner; a symbolic link to it stays one."""
    if os.geteuid() == 0:
        os.chown(disk.path, 1000, 50)
    owner = disk.path.stat().st_uid, disk.path.stat().st_gid
    name = disk.path.parent / "link"
    name.symlink_to("initrd.img")
    converge.apply(f"initrd:{name}", Settings(gateway=GATEWAY, given=frozenset({"gateway"})))
    assert name.is_symlink()
    assert b"http_proxy" in disk.read()
    for path in (disk.path, disk.backup):
        assert (path.stat().st_uid, path.stat().st_gid) == owner


@BOTH
def test_new_files_and_directories(disk: Disk, rewrite: bool) -> None:
    """A systemd image without docker.service.d: the directory is made in it, and is gone with the file."""
    content = newc.archive(
        [
            images.directory(b"."),
            *map(images.directory, [b"./etc", b"./etc/systemd", b"./etc/systemd/system", b"./usr", b"./usr/lib"]),
            *map(images.directory, [b"./usr/lib/systemd", b"./usr/bin"]),
            images.link(b"./lib", b"usr/lib"),
            images.file(b"./usr/lib/systemd/systemd", b"\x7fELF", mode=0o755),
            images.file(b"./usr/bin/dockerd", b"\x7fELF", mode=0o755),
        ]
    )
    disk.write(images.pack(content, "zstd"))
    before = disk.picture()
    assert disk.tell(converge.apply, rewrite=rewrite).changed
    drop_in = b"/etc/systemd/system/docker.service.d/10-vmproxy.conf"
    assert b"http_proxy=http://192.168.64.1:8123" in disk.read(drop_in)
    names = [raw[110:].partition(b"\0")[0] for _number, raw, _content in records(disk.path.read_bytes())]
    assert b"." + drop_in in names
    assert names.index(b"./etc/systemd/system/docker.service.d") < names.index(b"." + drop_in)
    assert disk.tell(converge.status).ok
    disk.tell(converge.remove)
    assert disk.picture() == before


def test_dry_run_shows_the_files_diff(disk: Disk) -> None:
    """The same unified diff as everywhere; nothing is written, no backup either."""
    before = disk.picture()
    report = converge.apply(
        f"initrd:{disk.path}", Settings(gateway=GATEWAY, given=frozenset({"gateway"})), dry_run=True
    )
    assert report.diff.startswith("--- /etc/init.d/docker\n+++ /etc/init.d/docker\n")
    assert "+export http_proxy='http://192.168.64.1:8123'" in report.diff
    assert disk.picture() == before


def test_what_needs_a_running_vm(disk: Disk) -> None:
    """Without --gateway the host's address is not known; nothing in a file can ask the proxy or run a program."""
    with pytest.raises(NoGateway):
        converge.apply(f"initrd:{disk.path}", Settings())
    disk.tell(converge.apply)
    with pytest.raises(Refused, match="cannot ask"):
        disk.tell(converge.verify)


def test_names_that_are_no_image(tmp_path: Path) -> None:
    """No file, a directory, a device, no name: one line, the right code."""
    for name, error, said in (
        (tmp_path / "none", Refused, "no such file"),
        (tmp_path, ForeignFile, "no plain file"),
        ("/dev/null", ForeignFile, "no plain file"),
        ("", UsageError, "names no file"),
    ):
        with pytest.raises(error, match=said):
            converge.status(f"initrd:{name}", Settings())


def test_a_sparse_file_of_gigabytes(tmp_path: Path) -> None:
    """More than 2 GiB is refused unread."""
    huge = tmp_path / "huge"
    with huge.open("wb") as stream:
        stream.truncate(3 << 30)
    with pytest.raises(ForeignFile, match="2 GiB"):
        converge.status(f"initrd:{huge}", Settings())


@pytest.mark.parametrize(
    "content",
    [
        b"hello",
        b"\x02\x21\x4c\x18" + bytes(range(99)),
        images.moby()[:-40],
        images.moby() + b"junk",
        images.pack(newc.archive([images.file(b"zeros", bytes(32 << 20))]), "gzip"),
    ],
    ids=["no image", "lz4", "truncated", "junk", "bomb"],
)
@BOTH
def test_f72_hostile_images_stay_untouched(disk: Disk, content: bytes, rewrite: bool) -> None:
    """Exit 6 in one line that names the file; the same bytes and nothing beside them, for every command."""
    disk.write(content)
    before = disk.picture()
    for story in (converge.apply, converge.status, converge.remove):
        with pytest.raises(ForeignFile) as caught:
            disk.tell(story, rewrite=rewrite)
        assert str(disk.path) in caught.value.where
        assert "\n" not in str(caught.value)
    assert disk.picture() == before


@pytest.fixture
def small_files() -> Iterator[None]:
    """No file of this process may grow beyond some kilobytes, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, handler)


@BOTH
def test_f72_a_full_disk(disk: Disk, small_files: None, rewrite: bool) -> None:
    """Exit 7: the image byte for byte, no part of a new one, no backup."""
    at = disk.path.with_suffix(".part")
    whole = images.pack(newc.archive([*images.moby_records(), images.file(b"noise", os.urandom(7450))]), "gzip")
    at.write_bytes(whole)
    at.rename(disk.path)
    before = disk.picture()
    with pytest.raises(RolledBack) as caught:
        disk.tell(converge.apply, rewrite=rewrite)
    assert caught.value.exit == 7
    assert disk.picture() == before


@BOTH
@pytest.mark.parametrize(
    "how", [OSError(errno.ENOSPC, "No space left on device"), Interrupted(15)], ids=["full", "term"]
)
@pytest.mark.parametrize("call", ["fsync", "replace", "fchmod"])
def test_f72_a_step_that_fails(
    disk: Disk, call: str, how: BaseException, rewrite: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each call of the system may fail at each of its turns, or be interrupted there: the image is as before or as
    wished, never between, and no part of a new one stays."""
    before = disk.picture()
    for turn in range(5):
        real, count = getattr(os, call), [turn]

        def fails(*args: object, _real: object = real, _count: list[int] = count, **more: object) -> object:
            _count[0] -= 1
            if _count[0] == -1:
                raise how
            return _real(*args, **more)  # type: ignore[operator]

        with monkeypatch.context() as patch:
            patch.setattr(imagefile.os, call, fails)
            try:
                disk.tell(converge.apply, rewrite=rewrite)
                whole = True
            except VmproxyError as error:
                whole = False
                assert error.exit == 7
            except Interrupted:
                whole = disk.picture()["initrd.img"] != before["initrd.img"]
        assert set(disk.picture()) <= {"initrd.img", "initrd.img" + BACKUP}
        if whole:
            assert disk.tell(converge.status).ok
        else:
            assert disk.picture()["initrd.img"] == before["initrd.img"]
        disk.tell(converge.remove)
        assert disk.picture()["initrd.img"] == before["initrd.img"]


def test_a_write_between_the_looks(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody replaces the image while we make ours: theirs is looked at anew, and nothing of it is lost."""
    newer = images.moby(script=images.SCRIPT + b"# newer\n")
    real, done = initrdedit.append, []

    def slow(*args: object, **more: object) -> bytes:
        if not done:
            done.append(1)
            shutil.copy(disk.path, disk.path.parent / "aside")
            disk.path.write_bytes(newer)
        return real(*args, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(initrdedit, "append", slow)
    assert disk.tell(converge.apply).changed
    assert b"# newer\n" in disk.read()
    disk.tell(converge.remove)
    assert disk.path.read_bytes() == newer


def test_two_runs_take_turns(disk: Disk) -> None:
    """While another run holds the directory, exit 8 after --lock-timeout; what a killed run left is cleared."""
    before = disk.picture()
    left = disk.path.parent / f".{disk.path.name}.vmproxy-abcdef_1"
    left.write_bytes(b"half")
    with imagefile.locked(str(disk.path), 1.0):
        assert not left.exists()
        with pytest.raises(Busy):
            disk.tell(converge.apply, lock_timeout_seconds=0.1)
    assert disk.picture() == before


# A run at an image that ends, as by SIGKILL, at the N-th call of one of the system's.
_KILLED = """
import os, sys
from vmproxy import converge
from vmproxy.model import Settings
story, path, rewrite, call, turn = sys.argv[1:]
real, left = getattr(os, call), [int(turn)]
def killed(*words, **more):
    if os.path.dirname(path) in map(os.path.dirname, map(str, words[:1])):
        if not left[0]:
            os._exit(137)
        left[0] -= 1
    return real(*words, **more)
setattr(os, call, killed)
settings = Settings(gateway="192.168.64.1", rewrite=rewrite == "True", given=frozenset({"gateway", "rewrite"}))
getattr(converge, story)(f"initrd:{path}", settings)
"""


@BOTH
@pytest.mark.parametrize(
    ("story", "call", "turn", "left"),
    [("apply", "replace", 0, "part"), ("apply", "replace", 1, "backup"), ("remove", "unlink", 0, "backup")],
    ids=["before the backup", "before the image", "before the backup goes"],
)
def test_f72_what_a_killed_run_has_left_is_cleared(
    disk: Disk, story: str, call: str, turn: int, left: str, rewrite: bool
) -> None:
    """The image is whole, ``status`` names what lies beside it, ``--dry-run`` and the next ``remove`` clear it; an
    ``apply`` makes its own backup."""
    before = disk.picture()
    if story == "remove":
        disk.tell(converge.apply, rewrite=rewrite)
    argv = [sys.executable, "-c", _KILLED, story, str(disk.path), str(rewrite), call, str(turn)]
    assert subprocess.run(argv, timeout=120, check=False).returncode == 137
    picture = disk.picture()
    assert picture["initrd.img"] == before["initrd.img"]
    beside = sorted(set(picture) - set(before))
    assert any(name.startswith(".initrd.img.vmproxy-") for name in beside) == (story == "apply")
    assert (disk.backup.name in beside) == (left == "backup")
    drift = [finding.subject for finding in disk.tell(converge.status).findings if "cut short" in finding.detail]
    assert drift == [f"file {disk.path.parent / name}" for name in beside]
    dry = converge.remove(f"initrd:{disk.path}", Settings(), dry_run=True)
    assert str(disk.path.parent / beside[-1]) in dry.diff
    assert disk.picture() == picture
    if story == "apply" and not rewrite:
        assert disk.tell(converge.apply).ok
        assert sorted(disk.picture()) == ["initrd.img", disk.backup.name]
    assert disk.tell(converge.remove, rewrite=rewrite).changed
    assert disk.picture() == before
    assert not disk.tell(converge.remove).changed


def test_a_backup_that_is_not_of_this_image_is_no_leftover(disk: Disk) -> None:
    """Where the image without us is another one, somebody may want its backup: it stays, and is no drift."""
    disk.backup.write_bytes(images.moby(script=images.SCRIPT + b"# older\n"))
    before = disk.picture()
    assert not disk.tell(converge.remove).changed
    assert disk.picture() == before


def test_a_file_packed_with_our_block(disk: Disk) -> None:
    """Somebody packs an applied file system anew: our block is taken out of the file, by a member without it."""
    disk.tell(converge.apply)
    packed = images.moby(script=disk.read())
    disk.write(packed)
    disk.backup.unlink()
    assert disk.tell(converge.status).ok
    disk.tell(converge.remove)
    assert disk.read() == images.SCRIPT
    assert blocks.find(disk.read()) is None
    assert disk.path.read_bytes().startswith(packed)


def test_f38_hard_links_and_links_in_the_image(disk: Disk) -> None:
    """A script with two names, or a link instead of it, is refused as in a running VM."""
    records = images.moby_records()
    for number, other in (
        (3, images.file(b"etc/init.d/docker", images.SCRIPT, mode=0o755, nlink=2)),
        (3, images.link(b"etc/init.d/docker", b"../../usr/bin/one")),
    ):
        content = [*records[:number], other, *records[number + 1 :]]
        disk.write(images.pack(newc.archive(content), "gzip"))
        before = disk.picture()
        with pytest.raises(ForeignFile):
            disk.tell(converge.apply)
        assert disk.picture() == before


def test_plain_archives_behind_a_rewritten_one_stay_aligned(disk: Disk) -> None:
    """A kernel reads a plain archive only at a multiple of 4 bytes: it stands there after --rewrite too."""
    for extra in range(4):
        front = images.moby(script=images.SCRIPT + os.urandom(extra).hex().join((b"# ".decode(), "\n")).encode())
        disk.write(front + bytes(-len(front) % 4) + images.early())
        content = disk.path.read_bytes()
        disk.tell(converge.apply, rewrite=True)
        assert disk.read(b"/" + images.MICROCODE) == bytes(range(256)) * 9
        disk.tell(converge.remove)
        assert disk.path.read_bytes() == content


def test_p14_memory_hangs_on_the_size_of_the_image(disk: Disk) -> None:
    """Apply, another wish, remove: no more than four times the image at once, both ways."""
    noise = images.file(b"noise", os.urandom(1 << 20) * 24)
    disk.write(newc.archive([*images.moby_records(), noise]))
    size = disk.path.stat().st_size
    for rewrite in (False, True):
        for port in (3128, 3129, 0):
            proxy = ProxyURL(scheme="http", host="127.0.0.1", port=port or 3129)
            gc.collect()
            tracemalloc.start()
            try:
                disk.tell(converge.apply if port else converge.remove, proxy=proxy, rewrite=rewrite)
                peak = tracemalloc.get_traced_memory()[1]
            finally:
                tracemalloc.stop()
            assert peak < 4 * size + (4 << 20)
