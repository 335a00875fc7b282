"""``cache install`` with a real user systemd: it starts, comes up again, ends, moves, and leaves nothing.

The manager is Debian's, from packages that are staged and laid under this machine's own /usr, in namespaces of its own.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.lab import default_cache
from tests.lab.tree import stage

ROOT = Path(__file__).resolve().parents[2]
# Under /usr the machine's own files come first; what it has not comes from the tree.
SCRIPT = """
mount -t overlay -o ro,lowerdir=/usr:"$TREE/usr" none /usr
mount -t tmpfs none /run
echo 0 >"$GROUP/cgroup.procs"
exec "$@"
"""


@contextlib.contextmanager
def control_group() -> Iterator[Path]:
    """A control group for the manager, below one that systemd takes for its own."""
    top = Path("/sys/fs/cgroup")
    if not (top / "cgroup.controllers").exists():
        top = top / ("systemd" if (top / "systemd").exists() else "unified")
    group = Path(tempfile.mkdtemp(prefix="vmproxy-units-", dir=top))
    try:
        yield group
    finally:
        for path in (*sorted((p for p in group.rglob("*") if p.is_dir()), reverse=True), group):
            path.rmdir()


@pytest.fixture(scope="module")
def seen() -> Iterator[dict[str, Any]]:
    """What one run of the whole story saw."""
    tree = stage(default_cache(), "usermanager", ("systemd",))
    directory = tempfile.mkdtemp(prefix="vmpu-", dir="/tmp")
    with control_group() as group:
        words = [
            "unshare",
            "--mount",
            "--pid",
            "--net",
            "--fork",
            "--mount-proc",
            "--kill-child",
            "sh",
            "-ec",
            SCRIPT,
            "x",
        ]
        done = subprocess.run(
            [*words, "sh", "-ec", SCRIPT, "x", sys.executable, "-m", "tests.ns.userunits", directory],
            env={"PATH": os.environ["PATH"], "TREE": str(tree), "GROUP": str(group), "LC_ALL": "C.UTF-8"},
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
            timeout=1200,
        )
    shutil.rmtree(directory)
    assert done.returncode == 0, done.stderr[-3000:]
    yield json.loads(done.stdout)


def test_it_runs_and_is_the_units_process(seen: dict[str, Any]) -> None:
    """``install`` ends when the proxy answers; systemd finds nothing to say against the unit; it is enabled, and doing
    it again changes nothing."""
    found = seen["installed"]
    assert (found["code"], found["active"], found["enabled"]) == (0, "active", "enabled"), found
    assert found["status"]["pid"] == found["pid"] and found["status"]["listen"] == "127.0.0.1:4002"
    assert found["verify"] == ""
    assert seen["again"]["code"] == 0 and json.loads(seen["again"]["out"])["changed"] is False


def test_it_comes_up_again_and_ends_when_it_is_asked_to(seen: dict[str, Any]) -> None:
    """After SIGKILL systemd starts it again; after ``cache stop`` it does not; ``cache start`` goes by the unit, and
    ``install`` with another port moves it, and with another directory, too."""
    assert seen["killed"]["restarted"]
    assert seen["stopped"]["active"] == "inactive" and seen["stopped"]["result"] == "success", seen["stopped"]
    assert "by systemd" in seen["started"]["out"] and seen["started"]["active"] == "active"
    assert seen["moved"]["listen"] == "127.0.0.1:4003", seen["moved"]
    assert seen["elsewhere"]["code"] == 0 and seen["elsewhere"]["running"] == [False, True], seen["elsewhere"]


def test_one_in_the_background_is_kept_as_the_hint_says(seen: dict[str, Any]) -> None:
    """Beside a proxy in the background ``install`` is exit 6 and changes nothing; its hint's two commands end in a
    service with that one's options."""
    found = seen["background"]
    assert (found["begun"], found["code"], found["active"]) == (0, 6, "active"), found
    assert found["options"] == ["--port=4004", "--allow=10.9.0.0/16"]
    assert seen["kept"] == {"codes": [0, 0], "options": found["options"], "unit": True}, found


def test_it_goes_without_a_trace(seen: dict[str, Any]) -> None:
    """``uninstall`` ends it and takes file, link and directories; where the port is taken nothing stays either."""
    found = seen["gone"]
    assert (found["code"], found["active"], found["left"], found["running"]) == (0, "inactive", [], False), found
    assert (seen["taken"]["code"], seen["taken"]["files"], seen["taken"]["active"]) == (7, [], "inactive"), seen[
        "taken"
    ]
