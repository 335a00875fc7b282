"""What a namespace VM has on this machine beside its processes, and the sweep of what killed ones left.

A VM's directory and its control groups carry the process id and start time of the process that made it. Namespaces,
mounts and interfaces end with the processes and need no sweep.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import tempfile
import time
from pathlib import Path

from tests.lab.tree import LabError

CGROUPS = Path("/sys/fs/cgroup")
PREFIX = "vmproxy-ns"


def sweep() -> None:
    """Remove what VMs of processes that are gone have left: their directories and control groups."""
    for parent in (Path(tempfile.gettempdir()), *hierarchies()):
        for path in parent.glob(f"{PREFIX}-*"):
            found = re.match(rf"{PREFIX}-(\d+)-(\d+)-", path.name)
            if not found or started(int(found[1])) == int(found[2]):
                continue
            if parent.is_relative_to(CGROUPS):
                with contextlib.suppress(LabError):
                    remove_groups([path], seconds=5.0)
            else:
                shutil.rmtree(path, ignore_errors=True)


def started(pid: int) -> int:
    """When that process started, in clock ticks after boot; 0 where there is none. Tells a pid from its next owner."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[19])
    except OSError:
        return 0


def hierarchies() -> list[Path]:
    """The root of every control group hierarchy here: one on version 2, one per controller on version 1."""
    found = [line.split() for line in Path("/proc/self/mounts").read_text(encoding="utf-8").splitlines()]
    return [
        Path(words[1])
        for words in found
        if words[2] in ("cgroup", "cgroup2") and Path(words[1]).is_relative_to(CGROUPS)
    ]


def make_groups(name: str) -> list[Path]:
    """A control group of that name in every hierarchy, ready to take processes."""
    groups = []
    for root in hierarchies():
        group = root / name
        group.mkdir(exist_ok=True)
        for knob in ("cpuset.cpus", "cpuset.mems"):
            # Version 1 lets nobody into a group without processors and memory.
            if (root / knob).exists() and (root / "tasks").exists():
                (group / knob).write_text((root / knob).read_text(encoding="utf-8"), encoding="utf-8")
        groups.append(group)
    return groups


def remove_groups(groups: list[Path], seconds: float = 60.0) -> None:
    """Remove control groups from the leaves up, once the kernel has buried their processes. Raises LabError."""
    limit = time.monotonic() + seconds
    for group in groups:
        while group.exists():
            for directory, _, _ in os.walk(group, topdown=False):
                with contextlib.suppress(OSError):
                    os.rmdir(directory)
            if group.exists():
                if time.monotonic() > limit:
                    raise LabError(f"cannot remove {group}")
                time.sleep(0.02)
