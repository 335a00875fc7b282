"""``initrd:FILE`` on disks that keep no modes, and dates that are coarse: which file is vmproxy's own backup."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.unit import imagedisk, images
from tests.unit.imagedisk import Disk
from vmproxy import converge
from vmproxy.errors import Refused
from vmproxy.model import ProxyURL

OTHER = ProxyURL(scheme="http", host="other.corp", port=3128)


@pytest.fixture
def disk(tmp_path: Path) -> Disk:
    """Docker for Mac's image in small."""
    return imagedisk.moby(tmp_path)


def keep_no_modes(disk: Disk, step_ns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a disk whose files all have mode 0755, and dates of that precision."""
    chmod, utime = os.fchmod, os.utime

    def coarse(name: str, *, ns: tuple[int, int]) -> None:
        utime(name, ns=(ns[0] // step_ns * step_ns, ns[1] // step_ns * step_ns))

    monkeypatch.setattr(os, "fchmod", lambda handle, _mode: chmod(handle, 0o755))
    monkeypatch.setattr(os, "utime", coarse)
    disk.path.chmod(0o755)


_MODELESS = pytest.mark.parametrize("step_ns", [100, 10_000_000, 2_000_000_000], ids=["share", "exfat", "vfat"])


@_MODELESS
@pytest.mark.parametrize("more", [{}, {"rewrite": True}], ids=["append", "rewrite"])
def test_a_disk_that_keeps_no_modes(
    disk: Disk, step_ns: int, more: dict[str, bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    """FAT, exFAT, Windows' disks in WSL, shares: our backup has the mode of every file there, and ``remove`` takes it
    away, however coarse the dates are; nothing else is left."""
    keep_no_modes(disk, step_ns, monkeypatch)
    before = disk.picture()
    disk.tell(converge.apply, **more)
    assert disk.backup.stat().st_mode & 0o777 == 0o755
    assert disk.backup.stat().st_mtime_ns % step_ns == 0
    disk.tell(converge.apply, proxy=OTHER, **more)
    assert not disk.tell(converge.remove).warnings
    assert disk.picture() == before


@pytest.mark.parametrize("more", [{}, {"rewrite": True}], ids=["append", "rewrite"])
def test_credentials_on_a_disk_that_keeps_no_modes(
    disk: Disk, more: dict[str, bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Everybody could read the image there: exit 6, and nothing has changed."""
    keep_no_modes(disk, 100, monkeypatch)
    before = disk.picture()
    proxy = ProxyURL(scheme="http", host="proxy.corp", port=3128, username="ann", password="s3cret")
    with pytest.raises(Refused, match="cannot keep the image from being read by others") as caught:
        disk.tell(converge.apply, proxy=proxy, **more)
    assert "s3cret" not in str(caught.value)
    assert disk.picture() == before


@_MODELESS
def test_an_update_on_a_disk_that_keeps_no_modes(disk: Disk, step_ns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The old image's backup is known by its date, and the next ``apply`` replaces it; where the date is too coarse to
    tell, it might be anybody's: exit 6, and it stays."""
    keep_no_modes(disk, step_ns, monkeypatch)
    disk.tell(converge.apply)
    old = disk.backup.read_bytes()
    disk.path.write_bytes(images.moby("xz"))
    if step_ns > 100:
        with pytest.raises(Refused, match="in the way"):
            disk.tell(converge.apply)
        assert any(str(disk.backup) in line for line in disk.tell(converge.remove).warnings)
        assert disk.backup.read_bytes() == old
        return
    said = {one.subject: one.detail for one in disk.tell(converge.status).findings}
    assert said[f"file {disk.backup}"] == "vmproxy's backup of an earlier image"
    disk.tell(converge.apply)
    assert disk.backup.read_bytes() == images.moby("xz")
    assert not disk.tell(converge.remove).warnings
    assert list(disk.picture()) == [disk.path.name]


@pytest.mark.parametrize(
    ("modes_are_kept", "mode", "ns"),
    [(True, 0o755, 0), (True, 0o644, 0), (False, 0o755, 123_456_700)],
    ids=["kept, dated as the image", "kept, another mode", "not kept, another date"],
)
def test_an_equal_copy_that_is_not_made_as_ours_stays(
    disk: Disk, modes_are_kept: bool, mode: int, ns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A copy of the user's own with the image's mode and whole seconds stays where the disk would have kept ours
    private, and one with another fraction of a second wherever it is; ``remove`` names it, and leaves nothing else."""
    disk.path.chmod(0o755)
    disk.backup.write_bytes(disk.path.read_bytes())
    disk.backup.chmod(mode)
    os.utime(disk.backup, ns=(1_460_000_000_000_000_000 + ns,) * 2)
    if not modes_are_kept:
        keep_no_modes(disk, 100, monkeypatch)
    before = disk.picture()
    disk.tell(converge.apply)
    report = disk.tell(converge.remove)
    assert any(str(disk.backup) in line and "stays" in line for line in report.warnings)
    assert disk.picture() == before


def test_a_backup_made_public_is_not_ours_any_more(disk: Disk) -> None:
    """Our date with a mode that is neither ours nor the image's: somebody changed it, and it stays."""
    disk.tell(converge.apply)
    disk.backup.chmod(0o640)
    assert any("stays" in line for line in disk.tell(converge.remove).warnings)
    assert disk.backup.exists()
