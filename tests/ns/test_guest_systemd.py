"""systemd's guest where systemd does not do its part: a stand-in for systemctl in a VM with the stub for Docker."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.nsvm import NamespaceVM
from tests.ns import story
from tests.ns.story import Vmproxy
from tests.unit import guestworlds
from vmproxy.guests import systemd

_BOOT = """#!/bin/sh
. /run/lab/options
mkdir -p /run/systemd/system /var/lib/boot2docker/ssh /var/lib/boot2docker/log
/usr/local/etc/init.d/openssh start
/etc/init.d/docker start
"""
# It writes down how it was called, and fails where a file of that name says so. What it restarts reads no drop-in.
_SYSTEMCTL = """#!/bin/sh
echo "$*" >>/run/systemctl.log
[ ! -e "/run/fails-$1" ] || { echo "Failed to $1: Access denied" >&2; exit 1; }
case $1 in restart) exec /etc/init.d/docker restart ;; esac
"""
# What systemd is told of a unit whose file was taken away.
_FORGETS = [f"stop {systemd.UNIT_NAME}", f"reset-failed {systemd.UNIT_NAME}"]


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NamespaceVM]:
    """A VM that looks like Debian with systemd."""
    overlay = tmp_path_factory.mktemp("overlay")
    overlay.chmod(0o755)
    release = "".join(f'{name}="{value}"\n' for name, value in guestworlds.world("debian-12").os_release.items())
    for path, text in {
        "etc/os-release": release,
        "opt/bootsync.sh": _BOOT,
        "usr/local/bin/systemctl": _SYSTEMCTL,
        "etc/systemd/system/other.service": "[Unit]\n",
    }.items():
        (overlay / path).parent.mkdir(parents=True, exist_ok=True)
        (overlay / path).write_text(text)
        (overlay / path).chmod(0o755)
    with NamespaceVM(docker="stub", overlay=overlay) as vm:
        yield vm


@pytest.fixture
def vmproxy(machine: NamespaceVM, tmp_path: Path) -> Iterator[Vmproxy]:
    """vmproxy for it; what it has left is taken away afterwards."""
    with story.host_proxy(machine):
        yield Vmproxy(machine, tmp_path)
    machine.run("rm -rf /run/systemctl.log /run/fails-* /etc/systemd/system/docker.service.d")


def _left(machine: NamespaceVM) -> list[str]:
    """What of ours is there: files, the directory, rules."""
    found = [path for path in (*systemd.FILES, systemd.DIRECTORY) if machine.path(path).exists()]
    return found + story.ours(story.dump(machine))


def _calls(machine: NamespaceVM) -> list[str]:
    log = machine.path("/run/systemctl.log")
    return log.read_text().splitlines() if log.exists() else []


def test_f77_a_daemon_reload_that_fails_puts_all_back(machine: NamespaceVM, vmproxy: Vmproxy) -> None:
    """F77: exit 7 with systemctl's words; the drop-in, its directory and the rules are gone; Docker was left alone."""
    machine.path("/run/fails-daemon-reload").touch()
    pid = story.daemon_pid(machine)
    ran = vmproxy.apply("--no-verify")
    assert ran.code == 7, ran
    assert "systemctl daemon-reload fails: Failed to daemon-reload: Access denied" in ran.err
    assert _left(machine) == []
    assert _calls(machine) == ["daemon-reload"]
    assert story.daemon_pid(machine) == pid


def test_variables_that_do_not_arrive_are_no_success(machine: NamespaceVM, vmproxy: Vmproxy) -> None:
    """Docker came back without them: something wins that nobody found. Exit 7, put back, systemd told of it again."""
    ran = vmproxy.apply("--no-verify")
    assert ran.code == 7, ran
    assert "something in the VM wins over vmproxy's" in ran.err
    assert _left(machine) == []
    again = ["reset-failed docker.service", "restart docker.service"]
    assert _calls(machine) == ["daemon-reload", *again, "daemon-reload", *_FORGETS, *again]


def test_systemd_is_told_of_the_files_though_docker_is_not_restarted(machine: NamespaceVM, vmproxy: Vmproxy) -> None:
    """--restart never: exit 3, and whoever restarts Docker later gets the new environment; remove has the unit ended
    and forgotten, and takes the directory, but not one in which somebody has a file by then."""
    assert vmproxy.apply("--no-verify", "--restart", "never").code == 3
    assert _calls(machine) == ["daemon-reload"]
    assert machine.run(["stat", "-c", "%a", systemd.DIRECTORY]).stdout == b"755\n"
    # That the unit is neither running nor failed is no failure.
    for name in ("stop", "reset-failed"):
        machine.path(f"/run/fails-{name}").touch()
    assert vmproxy.remove().code == 0
    assert _calls(machine) == ["daemon-reload", "daemon-reload", *_FORGETS]
    assert _left(machine) == []
    assert vmproxy.apply("--no-verify", "--restart", "never").code == 3
    machine.path(f"{systemd.DIRECTORY}/mine.conf").write_text("[Service]\n")
    assert vmproxy.remove().code == 0
    assert _left(machine) == [systemd.DIRECTORY]


def test_a_drop_in_that_wins_is_refused_by_name(machine: NamespaceVM, vmproxy: Vmproxy) -> None:
    """http-proxy.conf of Docker's own documentation stands behind ours: exit 6 names it; nothing was changed."""
    machine.path(systemd.DIRECTORY).mkdir()
    theirs = machine.path(f"{systemd.DIRECTORY}/http-proxy.conf")
    theirs.write_text('[Service]\nEnvironment="HTTP_PROXY=http://me:hunter22@corp.test:3128"\n')
    ran = vmproxy.apply()
    assert ran.code == 6, ran
    assert str(Path(systemd.DIRECTORY) / "http-proxy.conf") in ran.err
    assert "hunter22" not in ran.all
    assert _left(machine) == [systemd.DIRECTORY]
    assert _calls(machine) == []
    status = vmproxy.status()
    assert status.code == 1
    assert "http-proxy.conf" in status.all


def test_a_directory_of_ours_that_a_kill_left_empty_goes(machine: NamespaceVM, vmproxy: Vmproxy) -> None:
    """Killed between making the directory and writing into it: its sign says that it is ours, and remove takes it; a
    directory without the sign is somebody's, and stays."""
    machine.run(f"mkdir -p {systemd.DIRECTORY}/.vmproxy-made {systemd.DIRECTORY}/.vmproxy-Ab3dE6")
    assert vmproxy.status().code == 1
    assert vmproxy.apply("--no-verify", "--restart", "never").code == 3
    assert not machine.path(f"{systemd.DIRECTORY}/.vmproxy-made").exists()
    assert vmproxy.remove().code == 0
    assert _left(machine) == []
    machine.run(f"mkdir -p {systemd.DIRECTORY}/.vmproxy-made")
    assert vmproxy.remove().code == 0
    assert _left(machine) == []
    machine.run(f"mkdir -p {systemd.DIRECTORY}")
    assert vmproxy.apply("--no-verify", "--restart", "never").code == 3
    assert vmproxy.remove().code == 0
    assert _left(machine) == [systemd.DIRECTORY]
