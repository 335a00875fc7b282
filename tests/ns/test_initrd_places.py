"""Files of a VM on a file system that cannot be written. The mount needs root."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.unit import images

PACKAGE = Path(__file__).resolve().parents[2]
# In a mount namespace of its own: nobody else sees the mount, and it ends with the shell.
READ_ONLY = 'mount -t tmpfs none "$1" && cp -R "$2/." "$1" && mount -o remount,ro "$1" && shift 2 && exec "$@"'


@pytest.mark.parametrize("kind", ["initrd", "rootfs"])
def test_a_read_only_file_system(tmp_path: Path, kind: str) -> None:
    """Exit 5 with the reason and a hint, from a dry run too; ``status`` reads there as anywhere."""
    (place := tmp_path / "there").mkdir()
    (files := tmp_path / "files").mkdir()
    (files / "initrd.img").write_bytes(images.moby())
    (files / "var/lib/boot2docker").mkdir(parents=True)
    (files / "etc").mkdir()
    (files / "etc/os-release").write_text("ID=boot2docker\n")
    name = f"initrd:{place}/initrd.img" if kind == "initrd" else f"rootfs:{place}"
    before = ["unshare", "-m", "sh", "-c", READ_ONLY, "sh", str(place), str(files)]

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        argv = [*before, sys.executable, "-m", "vmproxy", *words, "--vm", name, "--proxy", "http://proxy.corp:3128"]
        environ = {**os.environ, "PYTHONPATH": str(PACKAGE)}
        return subprocess.run(argv, env=environ, capture_output=True, text=True, check=False, timeout=120)

    for words in (("apply", "--dry-run"), ("apply",)):
        done = run(*words)
        assert done.returncode == 5, done.stderr
        assert "Read-only file system" in done.stderr
        assert "hint: name a copy" in done.stderr
        assert not done.stdout
    assert run("status").returncode == 1
