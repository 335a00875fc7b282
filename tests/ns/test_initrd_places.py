"""Where an initramfs image lies: on a file system that cannot be written. The mount needs root."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.unit import images

PACKAGE = Path(__file__).resolve().parents[2]
# In a mount namespace of its own: nobody else sees the mount, and it ends with the shell.
READ_ONLY = 'mount -t tmpfs none "$1" && cp "$2" "$1/initrd.img" && mount -o remount,ro "$1" && shift 2 && exec "$@"'


@pytest.mark.parametrize("dry", [True, False], ids=["dry run", "run"])
def test_a_read_only_file_system(tmp_path: Path, dry: bool) -> None:
    """Exit 5 with the reason and a hint, from a dry run too; ``status`` reads there as anywhere."""
    (place := tmp_path / "there").mkdir()
    (image := tmp_path / "initrd.img").write_bytes(images.moby())
    target = ["--vm", f"initrd:{place}/initrd.img", "--proxy", "http://proxy.corp:3128"]
    before = ["unshare", "-m", "sh", "-c", READ_ONLY, "sh", str(place), str(image)]

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        argv = [*before, sys.executable, "-m", "vmproxy", *words, *target]
        environ = {**os.environ, "PYTHONPATH": str(PACKAGE)}
        return subprocess.run(argv, env=environ, capture_output=True, text=True, check=False, timeout=120)

    done = run("apply", *(["--dry-run"] if dry else []))
    assert done.returncode == 5, done.stderr
    assert "Read-only file system" in done.stderr
    assert "hint: name a copy of the image" in done.stderr
    assert not done.stdout
    assert run("status").returncode == 1
