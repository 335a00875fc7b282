"""The directory that the ssh program works in: gone with its run, and after one that was killed with the next."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fake.conftest import Silent
from vmproxy.errors import UsageError
from vmproxy.transports import _rundir
from vmproxy.transports._rundir import RunDirectory

ROOT = Path(__file__).resolve().parents[2]
RUN = """
import sys
from vmproxy.transports._rundir import RunDirectory
directory = RunDirectory()
open(directory.log(), "w").write("words")
print(directory.path(""), flush=True)
sys.stdin.read()
"""


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """TMPDIR, with room for a socket, in which this process has not looked yet."""
    monkeypatch.setattr(_rundir, "_swept", set())
    with tempfile.TemporaryDirectory(prefix="vmpt-", dir="/tmp") as directory:
        monkeypatch.setenv("TMPDIR", directory)
        yield Path(directory)


def other_run() -> tuple[subprocess.Popen[str], Path]:
    """A run in another process, and its directory."""
    process = subprocess.Popen(
        [sys.executable, "-c", RUN], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    return process, Path(process.stdout.readline().strip())


def ended(process: subprocess.Popen[str], number: int = signal.SIGKILL) -> None:
    """It is gone."""
    process.send_signal(number)
    process.communicate(timeout=60)


def test_what_a_killed_run_left_goes_with_the_next(place: Path) -> None:
    """Its directory with all that is in it; that of a run which lives stays, and works on."""
    dead, left = other_run()
    alive, used = other_run()
    try:
        ended(dead)
        assert set(place.iterdir()) == {left, used} and (left / "log1").exists()
        ours = RunDirectory()
        assert {path.name for path in place.iterdir()} == {used.name, Path(ours.path("")).name}
        assert (used / "log1").read_text() == "words"
        ours.remove()
        ours.remove()
        assert list(place.iterdir()) == [used]
    finally:
        ended(alive)


def aged(path: Path) -> None:
    """It is an hour old."""
    os.utime(path, (time.time() - 3600,) * 2)


def test_a_run_that_was_killed_while_it_made_its_directory(place: Path) -> None:
    """What has no name yet goes when it is older than a minute and nobody holds it: its run is not about to name it."""
    argv = [sys.executable, "-c", f"import os\nos.rename = lambda *_: os.kill(os.getpid(), 9)\n{RUN}"]
    for _ in range(3):
        assert subprocess.run(argv, cwd=ROOT, timeout=60, check=False).returncode == -signal.SIGKILL
    dead, young, used = sorted(place.glob("vmproxy-*.new"))
    aged(dead)
    aged(used)
    os.utime(young)
    handle = os.open(used, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        RunDirectory().remove()
    finally:
        os.close(handle)
    assert set(place.iterdir()) == {young, used}


def held_below(place: Path) -> list[str]:
    """What this process has open there, also what is removed."""
    found = []
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):
            found.append(os.readlink(f"/proc/self/fd/{name}"))
    return [path for path in found if path.startswith(f"{place}/")]


@pytest.mark.parametrize(("module", "name"), [(_rundir, "_opened"), (os, "rename")], ids=["opened", "named"])
def test_a_directory_that_cannot_be_had_is_not_left(
    place: Path, monkeypatch: pytest.MonkeyPatch, module: object, name: str
) -> None:
    """In the middle of making it: one line that says why; no directory, no descriptor."""

    def fail(*_args: object) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(module, name, fail)
    with pytest.raises(UsageError, match="Too many open files"):
        RunDirectory()
    assert not held_below(place)
    assert list(place.iterdir()) == []


def test_several_of_one_run_leave_each_other_alone(place: Path) -> None:
    """Side by side, whoever looks: what this process holds is held."""
    several = [RunDirectory() for _ in range(3)]
    _rundir.sweep(str(place))
    assert len(list(place.iterdir())) == 3
    for one in several:
        one.remove()
    assert list(place.iterdir()) == []


def test_what_is_not_a_run_s_stays(place: Path) -> None:
    """Another name, mode or kind, a link to one, and one with a directory in it; of another user nothing is touched."""
    odd = ["vmproxy-0123456789ab.newer", "vmproxy-x.new", "vmproxy-0123456789ag", "vmproxy-x", "avmproxy-0123456789ab"]
    for name in odd:
        (place / name).mkdir(mode=0o700)
        aged(place / name)
    (place / "vmproxy-000000000001").mkdir(mode=0o755)
    (place / "vmproxy-000000000002").write_text("a file")
    (place / "vmproxy-000000000003").symlink_to(place / "vmproxy-x")
    (place / "vmproxy-000000000004").mkdir(mode=0o700)
    (place / "vmproxy-000000000004" / "inside").mkdir()
    before = sorted(place.rglob("*"))
    RunDirectory().remove()
    assert sorted(place.rglob("*")) == before


def test_another_users_stays(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where we could remove it, as root can."""
    dead, left = other_run()
    ended(dead)
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    _rundir.sweep(str(place))
    assert (left / "log1").exists()
    monkeypatch.undo()
    _rundir.sweep(str(place))
    assert not left.exists()


def test_a_killed_vmproxy_leaves_nothing_for_long(place: Path, silent: Silent) -> None:
    """``--ssh openssh``, killed in the middle of its log-in: the next run has its directory away, and its own."""
    words = ("status", "--ssh", "openssh", "--vm", f"ssh://u@127.0.0.1:{silent.port}", "--connect-timeout")
    argv = [sys.executable, "-m", "vmproxy", *words]
    own = {"HOME": str(place / "home"), "PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "TMPDIR": str(place)}
    killed = subprocess.Popen([*argv, "600"], env=own, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    with silent.client():
        ended(killed)
        assert len(list(place.glob("vmproxy-*"))) == 1
        again = subprocess.run([*argv, "0.5"], env=own, capture_output=True, text=True, timeout=120, check=False)
    assert again.returncode == 4, again
    assert list(place.glob("vmproxy-*")) == []
