"""``rootfs:DIR``: the same promises for a root file system that is only a directory on this host."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.foreign_files import KEPT, REFUSED
from tests.unit.test_guest_files import Root as GuestRoot
from vmproxy import converge
from vmproxy.dirlock import lock
from vmproxy.errors import Busy, ForeignFile, Interrupted, NoGateway, NotPermitted, Refused, RolledBack
from vmproxy.guests import systemd
from vmproxy.guests.boot2docker import BOOTLOCAL, PROFILE
from vmproxy.machines import tree
from vmproxy.machines.tree import Tree
from vmproxy.managed import MADE
from vmproxy.model import Plan, ProxyURL, Report, Settings

GATEWAY = "10.0.2.2"
OUTSIDE = b"precious\n"


class Root:
    """A boot2docker root file system below ``directory``, and somebody's file beside it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory / "root"
        self.outside = directory / "outside"
        for name in ("etc", "var/lib/boot2docker"):
            (self.directory / name).mkdir(parents=True)
        (self.directory / "etc/os-release").write_text("ID=boot2docker\n")
        self.outside.write_bytes(OUTSIDE)

    def path(self, inside: str) -> Path:
        """A file of the VM on this host."""
        return self.directory / inside.lstrip("/")

    def write(self, inside: str, content: bytes, *, mode: int = 0o644) -> None:
        """A foreign file."""
        self.path(inside).write_bytes(content)
        self.path(inside).chmod(mode)

    def picture(self) -> dict[str, tuple[int, int, int, bytes]]:
        """Every file and link: mode, owner, bytes."""
        out = {}
        for path in sorted(self.directory.rglob("*")):
            seen = path.lstat()
            content = os.readlink(path).encode() if path.is_symlink() else path.read_bytes() if path.is_file() else b""
            out[str(path.relative_to(self.directory))] = (seen.st_mode, seen.st_uid, seen.st_gid, content)
        return out

    def tell(self, story: object, **settings: object) -> Report:
        """A story on this directory."""
        more = {"gateway": GATEWAY, **settings}
        report = story(f"rootfs:{self.directory}", Settings(given=frozenset(more), **more))  # type: ignore[operator, arg-type]
        assert isinstance(report, Report)
        return report


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Root]:
    """A fresh root file system; the file beside it is untouched whatever a test does."""
    made = Root(tmp_path)
    yield made
    assert made.outside.read_bytes() == OUTSIDE


def test_apply_again_status_remove(root: Root) -> None:
    """Both files are made, a second apply has nothing to do, status agrees, remove leaves nothing."""
    before = root.picture()
    assert root.tell(converge.apply).changed
    profile = root.path(PROFILE).read_bytes()
    assert b"export http_proxy='http://10.0.2.2:8123'\n" in profile
    assert root.path(BOOTLOCAL).stat().st_mode & 0o777 == 0o755
    applied = root.picture()
    assert set(applied) - set(before) == {PROFILE[1:], BOOTLOCAL[1:]}
    assert not root.tell(converge.apply).changed
    assert root.tell(converge.status).ok
    assert root.picture() == applied
    assert root.tell(converge.remove).changed
    assert root.picture() == before
    assert not root.tell(converge.remove).changed


@pytest.mark.parametrize("name", KEPT)
def test_f41_foreign_bytes_come_back(root: Root, name: str) -> None:
    """Every byte, mode and owner of both files is back after remove."""
    root.write(PROFILE, KEPT[name], mode=0o640)
    root.write(BOOTLOCAL, KEPT[name], mode=0o700)
    if os.geteuid() == 0:
        os.chown(root.path(PROFILE), 1000, 50)
    before = root.picture()
    assert root.tell(converge.apply).changed
    assert root.path(PROFILE).read_bytes().startswith(KEPT[name])
    assert root.picture()[PROFILE[1:]][:3] == before[PROFILE[1:]][:3]
    assert root.tell(converge.status).ok
    root.tell(converge.remove)
    assert root.picture() == before


@pytest.mark.parametrize("name", REFUSED)
def test_f41_what_cannot_work_is_refused_untouched(root: Root, name: str) -> None:
    """exit 6 with file and line, nothing touched."""
    root.write(PROFILE, REFUSED[name].content)
    before = root.picture()
    with pytest.raises(ForeignFile) as caught:
        root.tell(converge.apply)
    assert caught.value.where == f"{PROFILE}:{REFUSED[name].line}"
    assert root.picture() == before


def test_f42_a_file_that_does_not_parse(root: Root) -> None:
    """This host's own sh says so: refused, nothing touched."""
    root.write(PROFILE, b"if true; then\n")
    before = root.picture()
    with pytest.raises(ForeignFile, match="cannot parse"):
        root.tell(converge.apply)
    assert root.picture() == before


def test_credentials_narrow_the_mode(root: Root) -> None:
    """0600 with credentials, and the old mode again after remove."""
    root.write(PROFILE, b"# mine\n", mode=0o644)
    before = root.picture()
    proxy = ProxyURL(scheme="http", host="127.0.0.1", port=8123, username="me", password="hunter22")
    root.tell(converge.apply, proxy=proxy)
    assert root.path(PROFILE).stat().st_mode & 0o777 == 0o600
    root.tell(converge.remove)
    assert root.picture() == before


# ---- links and kinds ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["/outside", "../../../../outside", "{outside}"])
@pytest.mark.parametrize("path", [PROFILE, BOOTLOCAL])
def test_f38_a_link_out_of_the_directory_is_refused(root: Root, path: str, target: str) -> None:
    """The file is a symlink, wherever it leads: refused, what it leads to is neither read nor written."""
    root.path(path).symlink_to(target.format(outside=root.outside))
    before = root.picture()
    with pytest.raises(ForeignFile, match="symbolic link"):
        root.tell(converge.apply)
    assert root.picture() == before
    assert not root.tell(converge.remove).changed


def test_f38_fifos_directories_hard_links(root: Root) -> None:
    """Anything but a plain file with one name is refused by its kind."""
    place = root.path(PROFILE)
    os.mkfifo(place)
    with pytest.raises(ForeignFile, match="fifo"):
        root.tell(converge.apply)
    place.unlink()
    place.mkdir()
    with pytest.raises(ForeignFile, match="directory"):
        root.tell(converge.apply)
    place.rmdir()
    place.hardlink_to(root.outside)
    with pytest.raises(ForeignFile, match="hard link"):
        root.tell(converge.apply)
    place.unlink()


@pytest.mark.parametrize("target", ["/mnt/sda1", "../../mnt/sda1", "/mnt/one", "../../../../../../mnt/sda1"])
def test_links_of_directories_are_followed_inside(root: Root, target: str) -> None:
    """The persistent directory as a link, absolute, upwards or over another link: it stays inside of DIR, as in the
    VM."""
    persistent = root.path("/var/lib/boot2docker")
    persistent.rmdir()
    root.path("/mnt/sda1").mkdir(parents=True)
    root.path("/mnt/one").symlink_to("sda1")
    persistent.symlink_to(target)
    root.tell(converge.apply)
    assert sorted(path.name for path in root.path("/mnt/sda1").iterdir()) == ["bootlocal.sh", "profile"]
    root.tell(converge.remove)
    assert list(root.path("/mnt/sda1").iterdir()) == []


def test_a_loop_of_links_ends(root: Root) -> None:
    """Links in a circle: refused, no endless walk."""
    persistent = root.path("/var/lib/boot2docker")
    persistent.rmdir()
    persistent.symlink_to("other")
    root.path("/var/lib/other").symlink_to("boot2docker")
    with pytest.raises(Refused):
        root.tell(converge.apply)


@pytest.mark.parametrize("what", ["missing", "a file"])
def test_not_a_directory(tmp_path: Path, what: str) -> None:
    """A DIR that is none: exit 6 with its name."""
    place = tmp_path / "x"
    if what == "a file":
        place.write_bytes(b"")
    with pytest.raises(Refused, match="not a directory"):
        converge.apply(f"rootfs:{place}", Settings())


def test_not_a_known_system(root: Root) -> None:
    """Another system: refused; nothing is guessed."""
    root.write("/etc/os-release", b"ID=debian\n")
    with pytest.raises(Refused, match="not known"):
        root.tell(converge.apply)


def test_without_os_release_the_directory_tells(root: Root) -> None:
    """A disk's own tree with /var/lib/boot2docker and no os-release is boot2docker's."""
    root.path("/etc/os-release").unlink()
    assert root.tell(converge.apply).ok


# ---- what only the files say ----------------------------------------------------------------------------------------


def test_the_gateway_must_be_said(root: Root) -> None:
    """Files have no routes: exit 6 with the --gateway hint, unless the proxy is elsewhere."""
    before = root.picture()
    with pytest.raises(NoGateway) as caught:
        root.tell(converge.apply, gateway="")
    assert "--gateway" in caught.value.hint
    assert root.picture() == before
    elsewhere = ProxyURL(scheme="http", host="proxy.corp.test", port=3128)
    assert root.tell(converge.apply, gateway="", proxy=elsewhere).ok
    assert not root.path(BOOTLOCAL).exists()


def test_the_bridges_address(root: Root) -> None:
    """daemon.json's bip is docker0's address; without it the boot script looks when it runs."""
    root.tell(converge.apply)
    assert b"ip -4 -o addr show docker0" in root.path(BOOTLOCAL).read_bytes()
    config = root.path("/var/lib/boot2docker/etc/docker/daemon.json")
    config.parent.mkdir(parents=True)
    for broken in ('{"bip": 7}', "[]", "{", "\xff", "", "[" * 100_000):
        config.write_text(broken, encoding="latin-1")
        assert root.tell(converge.status).ok
    config.write_text('{"bip": "10.99.0.1/16"}')
    assert root.tell(converge.status).exit == 1
    root.tell(converge.apply)
    script = root.path(BOOTLOCAL).read_bytes()
    assert b"-d 10.99.0.1/32" in script
    assert b"addr show" not in script


def test_what_may_not_be_read_is_an_error_of_its_own(root: Root, monkeypatch: pytest.MonkeyPatch) -> None:
    """A directory that this user may not look into has nothing for him; a file that he may not read is exit 5."""
    root.path("/etc/sudoers.d").mkdir()
    root.write(PROFILE, b"# mine\n")
    scandir, opened = os.scandir, os.open

    def look(path: str) -> object:
        if path.endswith("sudoers.d"):
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return scandir(path)

    def read(path: str, *words: int, **more: int) -> int:
        if str(path).endswith("/profile"):
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return opened(path, *words, **more)

    monkeypatch.setattr(os, "scandir", look)
    assert root.tell(converge.remove).message == "nothing to do"
    monkeypatch.setattr(os, "open", read)
    with pytest.raises(NotPermitted) as caught:
        root.tell(converge.status)
    assert (caught.value.exit, caught.value.where) == (5, PROFILE)


def test_a_bip_that_is_no_address(root: Root) -> None:
    """Nonsense in bip never reaches a rule: refused, nothing written."""
    config = root.path("/var/lib/boot2docker/etc/docker/daemon.json")
    config.parent.mkdir(parents=True)
    config.write_text('{"bip": "1.2.3.4 -j ACCEPT\\n-A INPUT/24"}')
    with pytest.raises(Refused, match="no IPv4 address") as caught:
        root.tell(converge.apply)
    assert caught.value.where.endswith("daemon.json")
    assert not root.path(BOOTLOCAL).exists()


def test_a_docker_machines_remote_access_is_kept(root: Root) -> None:
    """userdata.tar and no profile: ours says DOCKER_REMOTE=yes, and remove leaves no profile again; with a profile of
    theirs it is not said."""
    root.write("/var/lib/boot2docker/userdata.tar", b"")
    before = root.picture()
    root.tell(converge.apply)
    assert b"export DOCKER_REMOTE='yes'\n" in root.path(PROFILE).read_bytes()
    assert root.tell(converge.status).ok
    root.tell(converge.remove)
    assert root.picture() == before
    root.write(PROFILE, b"# theirs\n")
    root.tell(converge.apply)
    assert b"DOCKER_REMOTE" not in root.path(PROFILE).read_bytes()


# ---- writing --------------------------------------------------------------------------------------------------------


def test_f68_a_dry_run_writes_nothing(root: Root) -> None:
    """The diff is there, no file is another, not even by its time."""
    root.write(PROFILE, b"# mine\n")
    before = root.picture(), root.path(PROFILE).stat().st_mtime_ns, root.path(PROFILE).parent.stat().st_mtime_ns
    report = converge.apply(
        f"rootfs:{root.directory}", Settings(gateway=GATEWAY, given=frozenset({"gateway"})), dry_run=True
    )
    assert PROFILE in report.diff
    assert "# mine" not in report.diff
    after = root.picture(), root.path(PROFILE).stat().st_mtime_ns, root.path(PROFILE).parent.stat().st_mtime_ns
    assert after == before


@pytest.mark.parametrize("at", [1, 2])
def test_a_disk_that_fails_at_a_file_puts_back_the_others(root: Root, monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    """The k-th rename fails: exit 7, all files as before, no temporary file."""
    root.write(BOOTLOCAL, b"echo mine\n", mode=0o700)
    before = root.picture()
    real, calls = os.replace, []

    def failing(source: str, target: str) -> None:
        calls.append(target)
        if len(calls) == at:
            raise OSError(28, "No space left on device", target)
        real(source, target)

    monkeypatch.setattr(os, "replace", failing)
    with pytest.raises(RolledBack, match="No space left"):
        root.tell(converge.apply)
    assert root.picture() == before


@pytest.mark.parametrize("why", [Interrupted(2), Refused("the second look cannot be read")], ids=["signal", "refusal"])
def test_a_disk_that_fails_at_the_way_back_is_not_hidden(
    root: Root, monkeypatch: pytest.MonkeyPatch, why: BaseException
) -> None:
    """A signal or a refusal behind the first file, and that one cannot be put back: exit 7, it is named, and nothing
    says that all is as before."""
    root.write(BOOTLOCAL, b"echo mine\n", mode=0o700)
    real, calls = os.replace, []

    def failing(source: str, target: str) -> None:
        calls.append(target)
        if len(calls) == 2:
            raise why
        if len(calls) > 2:
            raise OSError(5, "Input/output error", target)
        real(source, target)

    monkeypatch.setattr(os, "replace", failing)
    with pytest.raises(RolledBack, match=f"ROLLBACK INCOMPLETE: {why}; left: {BOOTLOCAL}") as caught:
        root.tell(converge.apply)
    assert not caught.value.rolled_back


def test_f39_an_edit_in_between_is_kept(root: Root, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file is edited after the look: looked at again, and the block stands behind the edit."""
    root.write(PROFILE, b"# mine\n")
    real = Tree.commit

    def late(self: Tree, plan: Plan, *words: object, **more: object) -> object:
        if b"edited" not in root.path(PROFILE).read_bytes():
            root.write(PROFILE, b"# mine\n# edited\n")
        return real(self, plan, *words, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(Tree, "commit", late)
    root.tell(converge.apply)
    assert root.path(PROFILE).read_bytes().startswith(b"# mine\n# edited\n# >>> vmproxy")
    root.tell(converge.remove)
    assert root.path(PROFILE).read_bytes() == b"# mine\n# edited\n"


def test_files_cannot_be_asked(root: Root) -> None:
    """verify on files: exit 6, status is the hint."""
    root.tell(converge.apply)
    with pytest.raises(Refused) as caught:
        root.tell(converge.verify)
    assert "status" in caught.value.hint


def test_what_a_killed_run_has_left_is_told_and_taken(root: Root) -> None:
    """A temporary file beside ours, and a directory that was to get its name: status says so, the next run clears."""
    before = root.picture()
    root.write("/var/lib/boot2docker/.vmproxy-ab12cd34", b"half")
    (root.path("/var/lib/boot2docker/.vmproxy-x") / MADE).mkdir(parents=True)
    found = [finding.subject for finding in root.tell(converge.status).findings]
    assert [f"file /var/lib/boot2docker/.vmproxy-{name}" in found for name in ("ab12cd34", "x")] == [True, True]
    assert root.tell(converge.remove).changed
    assert root.picture() == before


def test_a_directory_that_a_killed_run_has_made_goes(tmp_path: Path) -> None:
    """Its sign says whose it is, also to the next but one run; one without the sign stays."""
    root = GuestRoot(tmp_path / "root", "systemd", {})
    before = root.picture()
    place = root.path(systemd.DIRECTORY)
    (place / MADE).mkdir(parents=True)
    assert not root.tell(converge.status).ok
    root.tell(converge.apply)
    assert not (place / MADE).exists()
    root.tell(converge.remove)
    assert root.picture() == before
    (place / MADE).mkdir(parents=True)
    root.tell(converge.remove)
    assert root.picture() == before
    place.mkdir()
    root.tell(converge.apply)
    root.tell(converge.remove)
    assert place.is_dir()
    assert f"made={MADE} " in (Path(tree.__file__).parent / "change.sh").read_text()


def test_runs_on_a_directory_take_turns(root: Root) -> None:
    """While another run is at work nothing is written: exit 8 after --lock-timeout; its temporary files are its own."""
    handle = lock(str(root.directory), 0, where="x")
    assert handle is not None
    before = root.picture()
    root.write("/var/lib/boot2docker/.vmproxy-ab12cd34", b"its own")
    try:
        with pytest.raises(Busy):
            root.tell(converge.apply, lock_timeout_seconds=0.2)
    finally:
        os.close(handle)
    root.path("/var/lib/boot2docker/.vmproxy-ab12cd34").unlink()
    assert root.picture() == before
    assert root.tell(converge.apply).changed
