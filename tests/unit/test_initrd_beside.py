"""``initrd:FILE``: what lies beside the image, what its files cannot tell, and dry runs that promise what will be."""

from __future__ import annotations

import errno
import os
from functools import partial
from pathlib import Path

import pytest

from tests.unit import imagedisk, images
from tests.unit.imagedisk import GATEWAY, Disk
from vmproxy import converge, dirlock
from vmproxy.errors import ForeignFile, NoGateway, NotPermitted, Refused, UsageError
from vmproxy.machines import imagebackup, imagefile
from vmproxy.model import ProxyURL, Report, Settings

ELSEWHERE = ProxyURL(scheme="http", host="proxy.corp", port=3128)
OTHER = ProxyURL(scheme="http", host="other.corp", port=3128)
APPLY_DRY = partial(converge.apply, dry_run=True)
REMOVE_DRY = partial(converge.remove, dry_run=True)


@pytest.fixture
def disk(tmp_path: Path) -> Disk:
    """Docker for Mac's image in small."""
    return imagedisk.moby(tmp_path)


def bare(disk: Disk, story: object) -> Report:
    """A story without any option."""
    report = story(f"initrd:{disk.path}", Settings())  # type: ignore[operator]
    assert isinstance(report, Report)
    return report


def drift(report: Report) -> dict[str, str]:
    """What a report says of files of this host."""
    return {one.subject.removeprefix("file "): one.detail for one in report.findings if "moby/" in one.subject}


# ---- the backup -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["text", "an image", "a private image", "a link", "a directory"])
def test_somebody_elses_file_is_not_replaced_by_a_backup(disk: Disk, what: str) -> None:
    """What stands under the backup's name and is not ours stops an ``apply``, dry or not: exit 6 with the hint to move
    it. ``status`` and ``remove`` name it, and nothing touches it."""
    if what == "text":
        disk.backup.write_bytes(b"mine\n")
    elif what == "a link":
        disk.backup.symlink_to(disk.path)
    elif what == "a directory":
        disk.backup.mkdir()
    else:
        disk.backup.write_bytes(images.moby("xz"))
        disk.backup.chmod(0o600 if "private" in what else 0o644)
    before, content = os.lstat(disk.backup), disk.path.read_bytes()
    for story in (APPLY_DRY, converge.apply):
        with pytest.raises(Refused, match="in the way") as caught:
            disk.tell(story)
        assert caught.value.exit == 6
        assert str(disk.backup) in caught.value.where
        assert "move it" in caught.value.hint
    for story in (converge.status, converge.remove):
        assert any(str(disk.backup) in line for line in disk.tell(story).warnings)
    assert not disk.tell(converge.remove).changed
    assert disk.path.read_bytes() == content
    after = os.lstat(disk.backup)
    assert (after.st_ino, after.st_mtime_ns, after.st_size) == (before.st_ino, before.st_mtime_ns, before.st_size)
    assert sorted(os.listdir(disk.path.parent)) == [disk.path.name, disk.backup.name]


def test_somebodys_own_copy_of_the_image_serves_and_stays(disk: Disk) -> None:
    """A copy that the user made under that very name is as good as ours; ``remove`` leaves it, and says so."""
    disk.backup.write_bytes(disk.path.read_bytes())
    before = disk.picture()
    assert not bare(disk, converge.remove).changed
    disk.tell(converge.apply)
    report = disk.tell(converge.remove)
    assert report.changed
    assert any(str(disk.backup) in line and "stays" in line for line in report.warnings)
    assert disk.picture() == before


def test_the_backup_of_an_image_that_was_replaced(disk: Disk) -> None:
    """An update brings another image: ``status`` and ``remove --dry-run`` name the old one's backup, ``remove`` takes
    it away."""
    disk.tell(converge.apply)
    disk.path.write_bytes(images.moby("xz"))
    before = disk.picture()
    report = disk.tell(converge.status)
    assert (report.exit, report.message) == (1, "not applied")
    assert drift(report) == {str(disk.backup): "vmproxy's backup of an earlier image"}
    assert str(disk.backup) in bare(disk, REMOVE_DRY).diff
    assert disk.picture() == before
    assert bare(disk, converge.remove).changed
    assert list(disk.picture()) == [disk.path.name]
    assert not bare(disk, converge.remove).changed


def test_a_backup_that_was_written_to_is_not_ours_any_more(disk: Disk) -> None:
    """The old image's backup with other bytes, or another date, is somebody's: it stays, and stops an ``apply``."""
    disk.tell(converge.apply)
    old = disk.backup.read_bytes()
    disk.path.write_bytes(images.moby("xz"))
    date = disk.backup.stat().st_mtime_ns
    for content, ns in ((old + b"\0" * 4, date), (old, date + 5_000)):
        disk.backup.write_bytes(content)
        os.utime(disk.backup, ns=(ns, ns))
        assert imagebackup.state(str(disk.backup), disk.path.read_bytes()) == "foreign"
        assert not bare(disk, converge.remove).changed
        with pytest.raises(Refused, match="in the way"):
            disk.tell(converge.apply)
        assert disk.backup.read_bytes() == content


def test_a_rewritten_image_whose_backup_is_lost(disk: Disk) -> None:
    """``status`` says that there is no way back any more, while there is still time to find the backup again."""
    disk.tell(converge.apply, rewrite=True)
    assert not disk.tell(converge.status).warnings
    disk.backup.rename(disk.path.parent / "aside")
    report = disk.tell(converge.status)
    assert report.ok
    assert any("no way back" in line and str(disk.backup) in line for line in report.warnings)


def test_a_disk_that_keeps_whole_seconds(disk: Disk) -> None:
    """Where dates have no fractions (HFS+), the backup of the image as it is without us is still known."""
    disk.tell(converge.apply)
    os.utime(disk.backup, (1_460_000_000, 1_460_000_000))
    disk.tell(converge.apply, proxy=OTHER)
    assert not disk.tell(converge.remove).warnings
    assert list(disk.picture()) == [disk.path.name]


@pytest.mark.parametrize("how", ["gone", "cut short"])
def test_an_image_that_is_broken_while_its_backup_is_whole(disk: Disk, how: str) -> None:
    """Exit 6 whatever is asked for; the hint names the backup, which stays, and put in place it is the image again."""
    content = disk.path.read_bytes()
    disk.tell(converge.apply)
    if how == "gone":
        disk.path.unlink()
    else:
        os.truncate(disk.path, disk.path.stat().st_size - 5)
    before = disk.picture()
    for story in (converge.status, converge.apply, converge.remove, REMOVE_DRY):
        with pytest.raises(Refused) as caught:
            disk.tell(story)
        assert disk.backup.name in caught.value.hint
    assert disk.picture() == before
    disk.backup.replace(disk.path)
    assert disk.tell(converge.status).message == "not applied"
    assert disk.path.read_bytes() == content


# ---- what files cannot tell -----------------------------------------------------------------------------------------


def test_status_needs_no_gateway_where_nothing_is_applied(disk: Disk) -> None:
    """Without any option: exit 1, "not applied", the litter by name, and a hint with what an ``apply`` needs; also
    after an update of the application."""
    left = disk.path.parent / f".{disk.path.name}.vmproxy-abcd1234"
    left.write_bytes(b"half")
    report = bare(disk, converge.status)
    assert (report.exit, report.message) == (1, "not applied")
    assert report.hint == f"vmproxy apply --vm initrd:{disk.path} --gateway IP"
    assert drift(report) == {str(left): "left behind by a run that was cut short"}
    disk.tell(converge.apply)
    assert bare(disk, converge.status).ok
    disk.path.write_bytes(images.moby("xz"))
    report = bare(disk, converge.status)
    assert (report.exit, report.message) == (1, "not applied")
    assert drift(report) == {str(disk.backup): "vmproxy's backup of an earlier image"}


def test_what_files_cannot_tell_is_said_as_it_is(disk: Disk) -> None:
    """Files have no routes and ask nobody: exit 6 in those words, never of a route table without a default route."""
    with pytest.raises(NoGateway, match="no route table") as caught:
        bare(disk, converge.apply)
    assert "--gateway IP" in caught.value.hint
    assert "--proxy URL" in caught.value.hint
    sighting = converge.detect_gateway(f"initrd:{disk.path}", Settings())
    assert sighting.error is not None
    assert "no route table" in sighting.error.what
    assert "--vm NAME" in sighting.error.hint
    with pytest.raises(Refused, match="cannot ask"):
        bare(disk, converge.verify)
    for settings in (Settings(), Settings(gateway=GATEWAY)):
        with pytest.raises(Refused, match="not in these files"):
            converge.env(f"initrd:{disk.path}", settings)
    assert converge.env(f"initrd:{disk.path}", Settings(proxy=ELSEWHERE)).variables


def test_only_what_is_named_as_our_parts_is_litter(disk: Disk) -> None:
    """A file of the user's with much the same name is neither named nor cleared."""
    beside = disk.path.parent
    mine = [
        f".{disk.path.name}.vmproxy-notes.txt",
        f".{disk.path.name}.vmproxy-MyNotes1",
        f"{disk.path.name}.vmproxy-abcd1234",
    ]
    for name in mine:
        (beside / name).write_bytes(b"mine")
    (beside / f".{disk.path.name}.vmproxy-abcd1234").symlink_to(mine[0])
    assert not drift(bare(disk, converge.status))
    disk.tell(converge.apply)
    disk.tell(converge.remove)
    assert all((beside / name).read_bytes() == b"mine" for name in mine)
    assert len(list(beside.iterdir())) == 1 + len(mine) + 1


@pytest.mark.parametrize("kind", ["initrd", "rootfs"])
@pytest.mark.parametrize("option", [{"jump": "bastion"}, {"host_key": "SHA256:" + "A" * 43}], ids=["jump", "host key"])
def test_files_are_not_reached_by_ssh(disk: Disk, kind: str, option: dict[str, str]) -> None:
    """--jump and --host-key with files are exit 2, not ignored."""
    place = disk.path if kind == "initrd" else disk.path.parent
    with pytest.raises(UsageError, match="reached by SSH"):
        converge.status(f"{kind}:{place}", Settings(**option))  # type: ignore[arg-type]


# ---- dry runs, and refusals -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["bzip2", "lzma"])
def test_a_dry_run_refuses_what_cannot_be_appended_to(disk: Disk, kind: str) -> None:
    """The same words as the run's; with --rewrite both go."""
    disk.write(images.moby(kind))
    said = []
    for story in (APPLY_DRY, converge.apply):
        with pytest.raises(ForeignFile) as caught:
            disk.tell(story)
        said.append((str(caught.value), caught.value.hint))
    assert said[0] == said[1]
    assert disk.tell(APPLY_DRY, rewrite=True).message == "would change"


def test_a_dry_run_refuses_an_image_that_is_not_ours_any_more(disk: Disk) -> None:
    """Another file of the rewritten member was packed anew: ``remove`` and ``apply`` are refused, dry or not."""
    disk.tell(converge.apply, rewrite=True)
    stream = images.run(("gzip", "-dc"), disk.path.read_bytes()[len(images.early()) :])
    disk.path.write_bytes(images.early() + images.pack(stream.replace(b"exit 1", b"exit 2"), "gzip"))
    before = disk.picture()
    for dry, real, more in ((REMOVE_DRY, converge.remove, {}), (APPLY_DRY, converge.apply, {"proxy": OTHER})):
        said = []
        for story in (dry, real):
            with pytest.raises(Refused) as caught:
                disk.tell(story, **more)
            said.append((str(caught.value), caught.value.hint))
        assert said[0] == said[1]
        assert "mobyconfig" in said[0][0]
    assert disk.picture() == before


@pytest.mark.parametrize(("flag", "number"), [(os.ST_RDONLY, errno.EROFS), (0, errno.EACCES)])
def test_a_dry_run_sees_where_nothing_can_be_written(
    disk: Disk, flag: int, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A read-only file system, or a directory of somebody else's: exit 5 with the reason and a hint, as the run."""
    real = os.statvfs(disk.path.parent)
    monkeypatch.setattr(dirlock.os, "access", lambda _path, _how: False)
    monkeypatch.setattr(dirlock.os, "statvfs", lambda _path: os.statvfs_result([*real[:8], flag, real[9]]))
    with pytest.raises(NotPermitted) as caught:
        disk.tell(APPLY_DRY)
    assert os.strerror(number) in caught.value.what
    assert caught.value.hint
    assert disk.tell(converge.status).message == "not applied"


def test_an_image_with_two_names(disk: Disk) -> None:
    """As any file in a VM: a change would reach one of the names only. Exit 6, dry or not, in and out."""
    other = disk.path.parent.parent / "other"
    os.link(disk.path, other)
    before = disk.picture()
    for story in (APPLY_DRY, converge.apply):
        with pytest.raises(ForeignFile, match="more than one hard link"):
            disk.tell(story)
    assert disk.picture() == before
    other.unlink()
    disk.tell(converge.apply)
    os.link(disk.path, other)
    with pytest.raises(ForeignFile, match="more than one hard link"):
        disk.tell(converge.remove)
    assert os.path.samefile(disk.path, other)


# ---- hints ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["bzip2", "gzip"])
def test_the_hint_of_status_is_a_command_that_goes(disk: Disk, kind: str) -> None:
    """Where an ``apply`` takes --rewrite, the hint has it: before, and after an ``apply`` with another proxy."""
    disk.write(images.moby(kind))
    more = " --rewrite" if kind == "bzip2" else ""
    hint = f"vmproxy apply --vm initrd:{disk.path}{more}"
    assert disk.tell(converge.status, proxy=OTHER).hint == hint
    disk.tell(converge.apply, proxy=ELSEWHERE, rewrite=True)
    assert disk.tell(converge.status, proxy=OTHER).hint == hint


@pytest.mark.parametrize("rewrite", [False, True], ids=["append", "rewrite"])
def test_the_hint_where_the_image_is_of_another_kind(disk: Disk, rewrite: bool) -> None:
    """--guest names a kind whose directories are not in the image: exit 6, and a hint about that, dry or not."""
    before = disk.picture()
    for story in (APPLY_DRY, converge.apply):
        with pytest.raises(ForeignFile, match="directory for this file is missing") as caught:
            disk.tell(story, guest="systemd", rewrite=rewrite)
        assert "--guest" in caught.value.hint
        assert "status" not in caught.value.hint
    assert disk.picture() == before


def test_hints_of_what_is_no_image(disk: Disk) -> None:
    """A directory, a device, a fifo, something huge, half an image: no hint sends to ``status``, which fails alike."""
    fifo, huge, half = (disk.path.parent / name for name in ("fifo", "huge", "half"))
    os.mkfifo(fifo)
    with huge.open("wb") as stream:
        stream.truncate(5 << 30)
    half.write_bytes(disk.path.read_bytes()[:-9])
    for place in (disk.path.parent, "/dev/zero", fifo, huge, half):
        for story in (converge.status, converge.apply):
            with pytest.raises(ForeignFile) as caught:
                story(f"initrd:{place}", Settings(gateway=GATEWAY))
            assert "status" not in caught.value.hint
            assert "image" in caught.value.hint or "rootfs:" in caught.value.hint


@pytest.mark.parametrize(("user", "word"), [(0, "group"), (1, "owner")])
def test_an_image_whose_owner_cannot_be_given(
    disk: Disk, user: int, word: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A group that one is not in, or another user: exit 5 with the reason, and what to do; nothing is left."""
    before = disk.picture()
    seen = imagefile.read(str(disk.path))

    def refuses(*_words: object) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(imagefile.os, "fchown", refuses)
    owner = (seen.owner[0] + user, seen.owner[1] + 1)
    monkeypatch.setattr(imagefile, "read", lambda _path: imagefile.Seen(**{**vars_of(seen), "owner": owner}))
    with pytest.raises(NotPermitted, match=word) as caught:
        disk.tell(converge.apply)
    assert caught.value.exit == 5
    assert "sudo" in caught.value.hint
    assert disk.picture() == before


def vars_of(seen: imagefile.Seen) -> dict[str, object]:
    """Its fields."""
    return {name: getattr(seen, name) for name in imagefile.Seen.__dataclass_fields__}


# ---- sh -n ----------------------------------------------------------------------------------------------------------


def test_a_script_goes_to_sh_without_a_file(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    """The text, which may hold a password, is read from a pipe: a run that is killed leaves no copy of it."""
    place = disk.path.parent.parent
    program, heard = place / "sh", place / "heard"
    program.write_text(f'#!/bin/sh\n[ -p /dev/stdin ] && echo "pipe: $*" >>{heard}\ncat >>{heard}\n')
    program.chmod(0o755)
    proxy = ProxyURL(scheme="http", host="proxy.corp", port=3128, username="ann", password="s3cret")
    monkeypatch.setenv("PATH", f"{place}:{os.environ['PATH']}")
    monkeypatch.setattr("tempfile.tempdir", str(place / "none"))
    with pytest.raises(ForeignFile, match="would not be read"):  # this sh takes anything, the probe's ")" too
        disk.tell(converge.apply, proxy=proxy)
    assert heard.read_text().startswith("pipe: -n\n")
    assert "\n)\n" in heard.read_text()
