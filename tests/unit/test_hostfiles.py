"""A file of the user's is replaced whole or not at all, and nobody's write is lost."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import resource
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vmproxy import fileswap, hostfiles
from vmproxy.errors import Busy, ForeignFile, Refused, RolledBack, VmproxyError
from vmproxy.hostfiles import Done, Edit, Look

NEW = b"new bytes\n"


def to(content: bytes | None, **more: Any) -> Callable[[Look], Edit]:
    """The edit that wants just that."""
    return lambda _seen: Edit(content=content, **more)


def add(word: bytes) -> Callable[[Look], Edit]:
    """The edit that appends a word to whatever is there, once."""
    return lambda seen: Edit(content=(seen.content or b"") + (b"" if word in (seen.content or b"") else word))


def mode(path: Path) -> int:
    """Its permissions."""
    return stat.S_IMODE(path.stat().st_mode)


def only(directory: Path, *names: str) -> bool:
    """Nothing else stands in a directory: no temporary file, no lock file."""
    return sorted(os.listdir(directory)) == sorted(names)


def state(path: Path) -> tuple[Any, ...]:
    """Bytes, mode, owner, identity and times of a file."""
    seen = path.stat()
    return path.read_bytes(), seen.st_mode, seen.st_uid, seen.st_gid, seen.st_ino, seen.st_mtime_ns, seen.st_ctime_ns


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file that is there, 0640."""
    file = tmp_path / "config.json"
    file.write_bytes(b"old\n")
    file.chmod(0o640)
    return file


def test_a_new_file_is_0600_and_its_directories_0700(tmp_path: Path) -> None:
    """As the docker client makes them, also without a umask; the edit is told which directories are made."""
    path = tmp_path / "a" / "b" / "config.json"
    told: list[tuple[str, ...]] = []

    def edit(seen: Look) -> Edit:
        told.append(seen.missing)
        return Edit(content=NEW)

    before = os.umask(0)
    try:
        assert hostfiles.change(str(path), edit) == Done(changed=True)
    finally:
        os.umask(before)
    assert told == [(str(tmp_path / "a"), str(tmp_path / "a/b"))]
    assert path.read_bytes() == NEW
    assert (mode(path), mode(tmp_path / "a"), mode(tmp_path / "a/b")) == (0o600, 0o700, 0o700)
    assert path.stat().st_nlink == 1
    assert only(path.parent, "config.json")


def test_a_file_keeps_mode_and_owner(path: Path) -> None:
    """Replaced by rename (another inode), with its old mode and owner."""
    if os.geteuid() == 0:
        os.chown(path, 1234, 2345)
    path.chmod(0o4640)
    before = path.stat()
    assert hostfiles.change(str(path), to(NEW)) == Done(changed=True)
    after = path.stat()
    assert path.read_bytes() == NEW
    assert (after.st_mode, after.st_uid, after.st_gid) == (before.st_mode, before.st_uid, before.st_gid)
    assert after.st_ino != before.st_ino
    assert only(path.parent, path.name)


def test_what_is_right_already_is_not_written(path: Path) -> None:
    """Not even its times change."""
    before = state(path)
    assert hostfiles.change(str(path), to(b"old\n")) == Done(changed=False)
    assert state(path) == before


def test_a_file_with_credentials_is_closed_to_others(path: Path) -> None:
    """private: 0640 becomes 0600 and that is told; 0600 is not worth a word."""
    assert hostfiles.change(str(path), to(NEW, private=True)) == Done(changed=True, narrowed=True)
    assert mode(path) == 0o600
    assert hostfiles.change(str(path), to(b"more", private=True)) == Done(changed=True)


def test_symbolic_links_are_followed(tmp_path: Path) -> None:
    """Two links, one relative: they stay links, and the file behind them is replaced in its own directory."""
    real = tmp_path / "dotfiles" / "docker.json"
    real.parent.mkdir()
    real.write_bytes(b"old")
    real.chmod(0o644)
    (tmp_path / "link").symlink_to("dotfiles/docker.json")
    (tmp_path / "config.json").symlink_to(tmp_path / "link")
    hostfiles.change(str(tmp_path / "config.json"), to(NEW))
    assert real.read_bytes() == NEW
    assert mode(real) == 0o644
    assert (tmp_path / "config.json").is_symlink()
    assert (tmp_path / "link").is_symlink()
    assert only(real.parent, "docker.json")


def test_a_link_that_leads_nowhere_yet_makes_its_file(tmp_path: Path) -> None:
    """As the docker client does; removing gives back the link that leads nowhere."""
    link = tmp_path / "config.json"
    link.symlink_to("there.json")
    assert hostfiles.look(str(link)).content is None
    hostfiles.change(str(link), to(NEW))
    assert (tmp_path / "there.json").read_bytes() == NEW
    assert link.is_symlink()
    hostfiles.change(str(link), to(None))
    assert link.is_symlink()
    assert only(tmp_path, "config.json")


def test_a_link_into_a_missing_directory_is_refused(tmp_path: Path) -> None:
    """Whose directory that would be is not ours to say."""
    link = tmp_path / "config.json"
    link.symlink_to("nowhere/there.json")
    with pytest.raises(Refused, match="symbolic link"):
        hostfiles.change(str(link), to(NEW))
    assert only(tmp_path, "config.json")


@pytest.mark.parametrize("kind", ["fifo", "directory", "device", "loop", "below a file", "too long"])
def test_what_is_no_file_is_refused_at_once(kind: str, tmp_path: Path) -> None:
    """A fifo does not block, a device is not opened, a loop of links ends; exit 6 and nothing changed."""
    path = tmp_path / "config.json"
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "directory":
        path.mkdir()
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "loop":
        path.symlink_to("config.json")
    elif kind == "below a file":
        path.write_bytes(b"")
        path = path / "config.json"
    else:
        with path.open("wb") as stream:
            stream.truncate((16 << 20) + 1)
    with pytest.raises(Refused) as caught:
        hostfiles.change(str(path), to(NEW))
    assert caught.value.exit == 6
    assert caught.value.where == str(path)
    assert only(tmp_path, "config.json")


def meanwhile(monkeypatch: pytest.MonkeyPatch, what: Callable[[], object], times: int = 1) -> list[int]:
    """Have something happen when the new file is written and not yet renamed; the list counts the writes."""
    real = hostfiles._written
    seen: list[int] = []

    def written(*words: Any) -> str:
        name = real(*words)
        seen.append(1)
        if len(seen) <= times:
            what()
        return name

    monkeypatch.setattr(hostfiles, "_written", written)
    return seen


def test_f70_another_programs_write_is_kept_and_ours_is_made_anew(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three writers between our look and our rename, in each way one can write: all their words and ours are there."""

    def by_rename() -> None:
        other = path.with_name("other")
        other.write_bytes(path.read_bytes() + b"login%d " % len(writes))
        other.chmod(0o600)
        other.rename(path)

    writes = meanwhile(monkeypatch, by_rename, times=3)
    assert hostfiles.change(str(path), add(b"ours")) == Done(changed=True)
    assert path.read_bytes() == b"old\nlogin1 login2 login3 ours"
    assert mode(path) == 0o600
    assert len(writes) == 4
    assert only(path.parent, path.name)


def test_f70_a_write_in_place_of_the_same_length_and_time_is_seen(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bytes are compared, not only size, inode and time."""
    seen = path.stat()

    def in_place() -> None:
        path.write_bytes(b"OLD\n")
        os.utime(path, ns=(seen.st_atime_ns, seen.st_mtime_ns))

    meanwhile(monkeypatch, in_place)
    hostfiles.change(str(path), add(b"ours"))
    assert path.read_bytes() == b"OLD\nours"


def test_f70_a_file_that_comes_meanwhile_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """There was none when we looked: the one that came is edited, with its mode."""
    path = tmp_path / "d" / "config.json"

    def login() -> None:
        path.write_bytes(b"login ")
        path.chmod(0o644)

    meanwhile(monkeypatch, login)
    hostfiles.change(str(path), add(b"ours"))
    assert path.read_bytes() == b"login ours"
    assert mode(path) == 0o644


def last_moment(monkeypatch: pytest.MonkeyPatch, what: Callable[[], object], times: int = 1) -> list[int]:
    """Have something happen between the second look and the rename; the list counts the looks."""
    real = hostfiles._same
    seen: list[int] = []

    def same(look: Look) -> bool:
        answer = real(look)
        seen.append(1)
        if len(seen) <= times:
            what()
        return answer

    monkeypatch.setattr(hostfiles, "_same", same)
    return seen


def test_f70_a_file_that_comes_in_the_last_moment_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the second look and the name: a name that is taken is not taken away."""
    path = tmp_path / "config.json"
    last_moment(monkeypatch, lambda: path.write_bytes(b"login "))
    hostfiles.change(str(path), add(b"ours"))
    assert path.read_bytes() == b"login ours"


@pytest.mark.parametrize("way", ["by rename", "in place"])
def test_f70_a_write_in_the_last_moment_is_kept(way: str, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the second look and the rename, twice: what our file took the place of is looked at, and comes back."""

    def login() -> None:
        words = path.read_bytes() + b"login%d " % len(looks)
        target = path if way == "in place" else path.with_name("other")
        target.write_bytes(words)
        if way == "by rename":
            target.chmod(0o604)
            target.rename(path)

    looks = last_moment(monkeypatch, login, times=2)
    assert hostfiles.change(str(path), add(b"ours")) == Done(changed=True)
    assert path.read_bytes() == b"old\nlogin1 login2 ours"
    assert mode(path) == (0o640 if way == "in place" else 0o604)
    assert only(path.parent, path.name)


def test_f70_a_write_over_ours_before_it_is_taken_back_is_the_one_that_stays(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two logins, one just before our rename and one just after it: the later one stays, as it would without us."""
    real = hostfiles.swap
    swaps: list[int] = []

    def by_rename(words: bytes) -> None:
        path.with_name("other").write_bytes(words)
        path.with_name("other").rename(path)

    def swap(one: str, other: str) -> bool:
        swaps.append(1)
        if len(swaps) == 2:
            by_rename(b"second ")
        return real(one, other)

    monkeypatch.setattr(hostfiles, "swap", swap)
    last_moment(monkeypatch, lambda: by_rename(b"first "))
    hostfiles.change(str(path), add(b"ours"))
    assert path.read_bytes() == b"second ours"
    assert only(path.parent, path.name)


def test_where_two_names_cannot_change_places_it_is_renamed(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """macOS, Windows, old kernels, some file systems: one rename, and nothing is left over."""
    monkeypatch.setattr(hostfiles, "swap", lambda _one, _other: False)
    assert hostfiles.change(str(path), to(NEW)) == Done(changed=True)
    assert path.read_bytes() == NEW
    assert only(path.parent, path.name)


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.EINVAL])
def test_what_the_system_cannot_do_is_no_error(number: int, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An old kernel or another platform: False, so that the caller goes another way. Another failure is raised."""

    class Library:
        def __init__(self, *_words: object, **_more: object) -> None:
            self.renameat2 = lambda *_words: -1

    monkeypatch.setattr(ctypes, "CDLL", Library)
    monkeypatch.setattr(ctypes, "get_errno", lambda: number)
    assert not fileswap.swap(str(path), str(path))
    monkeypatch.setattr(ctypes, "get_errno", lambda: errno.EIO)
    with pytest.raises(OSError, match=r"Input/output"):
        fileswap.swap(str(path), str(path))
    monkeypatch.setattr(ctypes, "CDLL", lambda *_words, **_more: None)
    assert not fileswap.swap(str(path), str(path))


def test_f70_a_file_that_is_deleted_meanwhile_stays_deleted(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The edit is made anew on nothing."""
    meanwhile(monkeypatch, path.unlink)
    hostfiles.change(str(path), add(b"ours"))
    assert path.read_bytes() == b"ours"


def test_f70_a_link_that_is_turned_meanwhile_is_followed_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file that the link led to first keeps its bytes."""
    for name in ("one", "two"):
        (tmp_path / name).write_bytes(b"same")
    link = tmp_path / "config.json"
    link.symlink_to("one")

    def turn() -> None:
        (tmp_path / "new").symlink_to("two")
        (tmp_path / "new").rename(link)

    meanwhile(monkeypatch, turn)
    hostfiles.change(str(link), to(NEW))
    assert (tmp_path / "one").read_bytes() == b"same"
    assert (tmp_path / "two").read_bytes() == NEW


def test_f70_a_file_that_changes_all_the_time_is_busy(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exit 8 after some tries, with the other program's bytes and nothing of ours."""
    monkeypatch.setattr(hostfiles, "_PAUSE_SECONDS", 0.0)
    count = iter(range(1000))
    meanwhile(monkeypatch, lambda: path.write_bytes(b"login %d" % next(count)), times=1000)
    with pytest.raises(Busy) as caught:
        hostfiles.change(str(path), add(b"ours"))
    assert caught.value.exit == 8
    assert path.read_bytes().startswith(b"login ")
    assert only(path.parent, path.name)


def test_a_file_of_ours_is_deleted_only_while_it_is_ours(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """remove of a file that somebody writes at the last moment: it stays, and the edit is asked again."""
    real = hostfiles._same
    asked: list[bytes | None] = []

    def same(seen: Look) -> bool:
        if len(asked) == 1:
            path.write_bytes(b"login")
        return real(seen)

    def edit(seen: Look) -> Edit:
        asked.append(seen.content)
        return Edit(content=None if seen.content == b"old\n" else seen.content)

    monkeypatch.setattr(hostfiles, "_same", same)
    assert hostfiles.change(str(path), edit) == Done(changed=False)
    assert path.read_bytes() == b"login"
    assert asked == [b"old\n", b"login"]


def test_directories_made_for_a_file_go_with_it(tmp_path: Path) -> None:
    """As many as the edit says, as far as they are empty; the ones above stay."""
    path = tmp_path / "kept" / "a" / "b" / "config.json"
    (tmp_path / "kept").mkdir()
    hostfiles.change(str(path), to(NEW))
    hostfiles.change(str(path), to(None, directories=2))
    assert only(tmp_path / "kept")
    hostfiles.change(str(path), to(NEW))
    (path.parent / "contexts").mkdir()
    hostfiles.change(str(path), to(None, directories=2))
    assert only(path.parent, "contexts")


@pytest.mark.parametrize("there", [True, False])
@pytest.mark.parametrize("failure", ["too large", "fsync", "edit"])
def test_what_fails_leaves_everything_as_it_was(
    there: bool, failure: str, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk, an error of the disk, an edit that refuses: the old bytes or no file, no new directory, no rest."""
    target = path if there else path.parent / "d" / "e" / "config.json"
    before = state(path)
    error: type[VmproxyError] = RolledBack
    edit = to(b"x" * 100_000)
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    if failure == "too large":
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limit[1]))
    elif failure == "fsync":

        def fsync(_handle: int) -> None:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

        monkeypatch.setattr(os, "fsync", fsync)
    else:
        error = ForeignFile

        def refuse(_seen: Look) -> Edit:
            raise ForeignFile("not so", where="3:1", hint="do this")

        edit = refuse
    try:
        with pytest.raises(error) as caught:
            hostfiles.change(str(target), edit)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert caught.value.exit == (6 if failure == "edit" else 7)
    assert caught.value.where == (f"{target}:3:1" if failure == "edit" else str(target))
    assert caught.value.hint
    assert state(path) == before
    assert only(path.parent, path.name)


def test_a_signal_leaves_no_rest(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C between the new file and the rename: the old bytes, no temporary file, no lock held."""
    before = state(path)

    def interrupt() -> None:
        raise KeyboardInterrupt

    meanwhile(monkeypatch, interrupt)
    with pytest.raises(KeyboardInterrupt):
        hostfiles.change(str(path), to(NEW))
    assert state(path) == before
    assert hostfiles.change(str(path), to(NEW)).changed


def test_what_a_killed_run_left_is_cleared_by_the_next(path: Path) -> None:
    """SIGKILL between the new file and the rename leaves the old bytes and one file of ours, mode 0600; the next run
    removes that, and no other program's."""
    code = (
        "import os, signal, sys\n"
        "from vmproxy import hostfiles\n"
        "hostfiles._same = lambda seen: os.kill(os.getpid(), signal.SIGKILL)\n"
        "hostfiles.change(sys.argv[1], lambda seen: hostfiles.Edit(content=b'new'))\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], check=False, cwd=Path(__file__).parents[2])
    assert done.returncode == -signal.SIGKILL
    assert path.read_bytes() == b"old\n"
    (left,) = [name for name in os.listdir(path.parent) if name != path.name]
    assert left.startswith(".config.json.vmproxy-")
    assert mode(path.with_name(left)) == 0o640
    path.with_name("config.json123").write_bytes(b"the docker client's")
    assert not hostfiles.change(str(path), to(b"old\n")).changed
    assert only(path.parent, "config.json", "config.json123")


def test_two_runs_take_turns(path: Path) -> None:
    """Twenty runs at once that read and append: no word is lost."""
    words = [b"<%d>" % number for number in range(20)]
    limit = {"lock_timeout_seconds": 300.0}
    threads = [threading.Thread(target=hostfiles.change, args=(str(path), add(word)), kwargs=limit) for word in words]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(300)
    assert all(path.read_bytes().count(word) == 1 for word in words)
    assert only(path.parent, path.name)


def test_a_run_that_does_not_end_is_exit_8(path: Path) -> None:
    """The lock is held for longer than we wait: Busy, nothing changed; then it is free again."""
    before = state(path)
    handle = os.open(path.parent, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        with pytest.raises(Busy, match="another run") as caught:
            hostfiles.change(str(path), to(NEW), lock_timeout_seconds=0.1)
    finally:
        os.close(handle)
    assert caught.value.exit == 8
    assert state(path) == before
    assert hostfiles.change(str(path), to(NEW), lock_timeout_seconds=0.0).changed


def test_a_run_waits_for_the_one_before_it(path: Path) -> None:
    """The lock is given back while we wait."""
    handle = os.open(path.parent, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    timer = threading.Timer(0.2, os.close, (handle,))
    timer.start()
    assert hostfiles.change(str(path), to(NEW)).changed
    timer.join()


@pytest.mark.parametrize("missing", ["the module", "the lock"])
def test_without_a_lock_the_second_look_still_guards(missing: str, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows has no fcntl, NFS locks no directory: it goes on, and keeps another's write all the same."""
    if missing == "the module":
        monkeypatch.setitem(sys.modules, "fcntl", None)
    else:

        def flock(_handle: int, _how: int) -> None:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))

        monkeypatch.setattr(fcntl, "flock", flock)
    meanwhile(monkeypatch, lambda: path.write_bytes(b"login "))
    hostfiles.change(str(path), add(b"ours"))
    assert path.read_bytes() == b"login ours"


def test_where_there_are_no_hard_links_it_is_renamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """FAT and some network file systems: a new file comes all the same."""

    def link(*_words: object) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", link)
    hostfiles.change(str(tmp_path / "config.json"), to(NEW))
    assert (tmp_path / "config.json").read_bytes() == NEW
    assert only(tmp_path, "config.json")


def test_what_is_not_permitted_is_exit_5(path: Path) -> None:
    """As another user: a file that cannot be read, a directory that cannot be written; in a process of its own."""
    path.chmod(0)
    path.parent.chmod(0o555)
    for above in path.parent.parents:
        if above.name.startswith("pytest-"):
            above.chmod(0o755)
    code = (
        "import os, sys\n"
        "from vmproxy import errors, hostfiles\n"
        "if os.geteuid() == 0: os.setgid(12345); os.setuid(12345)\n"
        "for name in sys.argv[1:]:\n"
        "    try:\n"
        "        hostfiles.change(name, lambda seen: hostfiles.Edit(content=b'new'))\n"
        "    except errors.NotPermitted as error:\n"
        "        print(error.exit, error.hint)\n"
    )
    names = [str(path), str(path.parent / "new.json"), str(path.parent / "d" / "new.json")]
    try:
        done = subprocess.run(
            [sys.executable, "-c", code, *names],
            check=True,
            capture_output=True,
            text=True,
            cwd=Path(__file__).parents[2],
        )
    finally:
        path.chmod(0o600)
        path.parent.chmod(0o755)
    assert done.stdout.splitlines() == ["5 run vmproxy as the user whose file it is"] * 3, done.stderr
    assert path.read_bytes() == b"old\n"
    assert only(path.parent, path.name)


def test_the_bytes_are_on_the_disk_before_the_name(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """fsync of the file, rename, fsync of the directory, in this order."""
    calls: list[str] = []
    sync, swap = os.fsync, hostfiles.swap

    def fsync(handle: int) -> None:
        calls.append("directory" if stat.S_ISDIR(os.fstat(handle).st_mode) else "file")
        sync(handle)

    def named(one: str, other: str) -> bool:
        calls.append("rename")
        return swap(one, other)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(hostfiles, "swap", named)
    hostfiles.change(str(path), to(NEW))
    assert calls == ["file", "rename", "directory"]


def test_no_descriptor_is_left_open(path: Path) -> None:
    """As many after a hundred runs as before."""
    before = len(os.listdir("/proc/self/fd"))
    for number in range(100):
        hostfiles.change(str(path), to(b"%d" % number))
    assert len(os.listdir("/proc/self/fd")) == before
