"""F31: the power goes while vmproxy writes. Each file is the old one or the new one, whole; a second run converges."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.lab.proxy import LabProxy
from tests.lab.qemu import QemuVM
from tests.qemu.conftest import Command
from tests.qemu.disks import Left, copy_disk, cuts, left

Way = dict[str, list[dict[str, Left]]]

_DATA = "/var/lib/boot2docker"
# How many containers run is nobody's question here, and a Docker that is busy with its start may not say.
_RESTART = ("--restart", "always")
_WORDS = ("--no-verify", *_RESTART)
_PROFILE = b"# mine\nexport MINE='yes'"


@pytest.fixture(scope="module")
def owned(vm: QemuVM) -> QemuVM:
    """The VM with a profile of somebody's own and no boot script: ext4 treats a replaced and a new file apart."""
    vm.root(f"cat >{_DATA}/profile; chown docker {_DATA}/profile; chmod 600 {_DATA}/profile; sync", stdin=_PROFILE)
    return vm


def _now(vm: QemuVM, directory: Path) -> dict[str, Left]:
    """The files as they are, all of them written to the disk."""
    vm.root("sync")
    copy_disk(vm, directory / "now.qcow2")
    return left(directory / "now.qcow2")


@pytest.fixture(scope="module")
def way(owned: QemuVM, host_proxy: LabProxy, tmp_path_factory: pytest.TempPathFactory) -> Way:
    """By command the disks of one run: first as before it, then one for each step, last as after it."""
    directory = tmp_path_factory.mktemp("disks")
    command = Command(owned, host_proxy, directory)
    seen = {}
    before = _now(owned, directory)
    for name in ("apply", "remove"):
        (directory / name).mkdir()
        with cuts(owned, directory / name) as heard:
            if name == "apply":
                command.apply(*_WORDS)
            else:
                command("remove", *_RESTART)
        after = _now(owned, directory)
        seen[name] = [before, *(left(disk) for _, disk in heard.copies), after]
        before = after
    return seen


@pytest.mark.parametrize("command", ["apply", "remove"])
def test_f31_a_power_cut_at_any_step_leaves_whole_files(way: Way, command: str) -> None:
    """F31: each file has the bytes, mode and owner of before or of after, and no other file is there."""
    before, *steps, after = way[command]
    assert len(steps) > 15
    assert before != after
    states = set()
    for number, disk in enumerate(steps, 1):
        for name in ("profile", "bootlocal.sh"):
            assert disk.get(name) in (before.get(name), after.get(name)), (number, name)
        assert disk.keys() <= before.keys() | after.keys(), number
        states.add((disk["profile"] == after["profile"], disk.get("bootlocal.sh") == after.get("bootlocal.sh")))
    assert (False, False) in states
    assert len(states) > 1


def test_remove_gives_every_byte_back(way: Way) -> None:
    """The disk after remove holds the files that it held before apply."""
    assert way["remove"][-1] == way["apply"][0]


def test_f31_after_a_real_power_cut_a_second_apply_converges(
    owned: QemuVM, host_proxy: LabProxy, way: Way, tmp_path: Path
) -> None:
    """QEMU is killed between the two renames: exit 9; booted again, apply ends as ever and clears the rest."""
    command = Command(owned, host_proxy, tmp_path)
    before, *steps, after = way["apply"]
    changed = next(number for number, disk in enumerate(steps, 1) if disk != before)
    with cuts(owned, tmp_path, kill_at=changed):
        ran = command.apply(*_WORDS, status=None)
    assert ran.status == 9, ran
    assert "Traceback" not in ran.stderr
    owned.start()
    found = owned.root(f"ls -A {_DATA}; cat {_DATA}/profile").text
    assert ".vmproxy-" in found
    command.apply(*_WORDS)
    assert ".vmproxy-" not in owned.root(f"ls -A {_DATA}").text
    command("status")
    assert _now(owned, tmp_path) == after
