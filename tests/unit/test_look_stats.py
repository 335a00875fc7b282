"""A file's owner, links and mode are looked at where they can matter: of many VMs, only before a change of files."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.unit.test_daemonjson import SECRET
from tests.unit.test_daemonjson import Vm as DaemonJson
from tests.unit.test_look_bodies import Opened, opened  # noqa: F401 - a fixture
from tests.unit.test_look_listeners import Machine as Recorded
from tests.unit.test_look_listeners import Told, applied, told  # noqa: F401 - a fixture
from tests.unit.test_plan import fresh
from vmproxy import converge, plan
from vmproxy.errors import ForeignFile
from vmproxy.machines import Look, reading
from vmproxy.machines.frames import Frame
from vmproxy.model import Facts, File, Settings
from vmproxy.session import Session
from vmproxy.stopping import Stop

PROFILE = "/var/lib/boot2docker/profile"


def test_what_the_shell_itself_knows(opened: Opened, tmp_path: Path) -> None:  # noqa: F811
    """Kinds, contents and whether it can be run are the same with stats and without; nothing else is asked for."""
    (tmp_path / "file").write_bytes(b"a\0b")
    (tmp_path / "program").write_bytes(b"#!/bin/sh\n")
    (tmp_path / "program").chmod(0o755)
    (tmp_path / "link").symlink_to("file")
    (tmp_path / "dangling").symlink_to("nowhere")
    (tmp_path / "dir").mkdir()
    os.mkfifo(tmp_path / "fifo")
    names = ("file", "program", "link", "dangling", "dir", "fifo", "absent")
    look = Look(root=False, files=tuple(str(tmp_path / name) for name in names))
    machine = opened()
    whole, bare = machine.observe(look).files, machine.observe(replace(look, stats=False)).files
    assert [bare[path].kind for path in look.files] == ["file", "file", "link", "link", "dir", "other", "absent"]
    for path in look.files:
        assert (bare[path].kind, bare[path].content) == (whole[path].kind, whole[path].content)
        if bare[path].content is not None:
            assert bare[path].mode & 0o100 == whole[path].mode & 0o100


@pytest.mark.parametrize("words", ["kind file /other", "kind odd /a", "kind", "kind file"])
def test_a_kind_that_was_not_asked_for_is_nothing(words: str) -> None:
    """Only files that were asked for, and only words that mean something (RELIABILITY T03)."""
    frames = [Frame(words=("stat", "/a")), Frame(words=tuple(words.split())), Frame(words=("end",))]
    assert reading.facts(frames).files == {"/a": File(path="/a", kind="absent")}


class Machine(Recorded):
    """Without stats its files have the mode that a look without them would give; ``looks`` tells which had them."""

    def observe(self, look: Look) -> Facts:
        self.looks.append(look.stats)
        if look.stats:
            return self.facts
        bare = {
            path: replace(file, mode=0o755 if file.mode & 0o111 else 0o644, uid=0, gid=0, links=1)
            for path, file in self.facts.files.items()
        }
        return replace(self.facts, files=bare, bare=True)


def owned(facts: Facts, **words: int) -> Facts:
    """The same with a profile of that mode, owner or number of links."""
    there = facts.files.get(PROFILE) or File(path=PROFILE)
    kept = replace(there, kind="file", content=there.content or b"# mine\n", **words)
    return replace(facts, files={**facts.files, PROFILE: kept})


def test_in_sync_it_is_one_look(told: Told) -> None:  # noqa: F811
    """Beside others without stats, whatever mode the file has; alone with them."""
    for beside in (True, False):
        machine = Machine(owned(applied("fresh-nft"), mode=0o640, uid=7))
        assert not told(machine, beside=beside).changed
        assert not told(machine, converge.status, beside=beside).findings
        assert machine.looks == [not beside] * 2


def test_a_change_of_a_file_knows_mode_and_owner(told: Told) -> None:  # noqa: F811
    """The plan beside others is the plan that is made alone, and keeps what the user's file has."""
    plans = []
    for beside in (True, False):
        machine = Machine(owned(fresh("fresh-nft"), mode=0o640, uid=7, gid=8))
        assert told(machine, beside=beside).changed
        assert machine.looks == [False, True] if beside else [True]
        plans += machine.plans
    assert plans[0] == plans[1]
    (change,) = (change for change in plans[0].files if change.before.path == PROFILE)
    assert (change.after.mode, change.after.uid, change.after.gid) == (0o640, 7, 8)


def test_a_second_name_is_refused_beside_others_too(told: Told) -> None:  # noqa: F811
    """Before a change, in the same words; in sync nothing is replaced, and it is in nobody's way."""
    for beside in (True, False):
        machine = Machine(owned(fresh("fresh-nft"), links=2))
        with pytest.raises(ForeignFile, match="more than one hard link"):
            told(machine, beside=beside)
        assert machine.plans == []
        assert not told(Machine(owned(applied("fresh-nft"), links=2)), beside=beside).changed


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o644])
@pytest.mark.parametrize("applied_before", [False, True])
def test_the_mode_of_daemon_json_is_known_before_it_is_written_down(
    mode: int, applied_before: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside others too the wish is made from the real mode, whether daemon.json was said or only the record tells: it
    is the mode that remove gives back."""
    vm = DaemonJson(content=b"{}", mode=mode)
    if applied_before:
        vm.carried_out(SECRET)
    machine = Machine(vm.facts)
    monkeypatch.setattr(Session, "_connect", lambda _self, _target: machine)
    settings = Settings() if applied_before else Settings(via="daemon-json", proxy=SECRET.proxy)
    words: dict[str, Any] = {"tell": str, "news": str, "ask": None}
    with Session("ssh://u@192.0.2.1", settings, stop=Stop(), **words) as one:
        one.begin(change=True)
        scene = one.scene(wait_for_docker=False)
        assert scene.facts.files[vm.path].mode == vm.file.mode
        assert machine.looks[-1]
        if applied_before:
            desired = plan.desire(scene.facts, scene.guest, scene.wish, scene.variant)
            assert not one.plan(scene, desired).files
