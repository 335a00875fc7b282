"""sysvinit, OpenRC and Docker for Mac's OpenRC, live: real init scripts and tools of Debian's around a real dockerd.

The VM's own files lie over the lab's tree at each boot. What vmproxy has written is carried over by hand, since the
lab's root is in memory: a boot then finds it as it would on a disk.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.lab import default_cache
from tests.lab.nsvm import NamespaceVM
from tests.lab.tree import build_tree
from tests.ns import story
from tests.ns.story import Ran, Vmproxy
from tests.unit import guestworlds
from vmproxy import guests

_BOOT = """#!/bin/sh
exec >>/var/log/boot.log 2>&1
. /run/lab/options
mkdir -p /var/lib/boot2docker/ssh
/usr/local/etc/init.d/openssh start
{start}
"""
# What OpenRC's own first step makes.
_SOFTLEVEL = """mkdir -p /run/openrc/exclusive /run/openrc/started /run/openrc/starting /run/openrc/stopping
mkdir -p /run/openrc/daemons /run/openrc/failed /run/openrc/inactive /run/openrc/options /run/openrc/tmp
echo default >/run/openrc/softlevel
"""
_MOBY = """#!/sbin/openrc-run

depend()
{
	after transfused
}

start()
{
	ebegin "Starting Docker"
	start-stop-daemon --start --quiet --background --exec /usr/sbin/dockerd --pidfile /run/docker.pid \\
		-- --pidfile=/run/docker.pid ${DOCKER_OPTS}
	eend $? "Failed to start docker"
}

stop()
{
	einfo "Stopping docker"
	start-stop-daemon --stop --quiet --pidfile /run/docker.pid --retry 15
}
"""
_OPENRC = """#!/sbin/openrc-run
command=/usr/sbin/dockerd
command_args="${DOCKER_OPTS}"
command_background=yes
pidfile=/run/docker-rc.pid
retry="TERM/30/KILL/10"
"""
_RC_LOCAL = "#!/bin/sh -e\n# by hand\ntouch /run/rc-local-ran\nexit 0"


@dataclass(frozen=True, kw_only=True)
class Kind:
    """One kind of VM: its files, the packages it has, how it starts Docker and boots."""

    world: str
    files: dict[str, str]
    more: tuple[str, ...]
    restart: str
    boot: str


KINDS = {
    "sysv": Kind(
        world="debian-12-sysvinit",
        files={"etc/rc.local": _RC_LOCAL, "etc/default/docker": "# Docker's options\nDOCKER_OPTS=\n"},
        more=("dpkg", "init-system-helpers", "lsb-base"),
        restart="service docker restart",
        boot="/etc/init.d/docker start\n[ ! -x /etc/rc.local ] || /etc/rc.local",
    ),
    "openrc": Kind(
        world="alpine-3.19",
        files={"etc/init.d/docker": _OPENRC, "etc/conf.d/docker": 'DOCKER_OPTS="--debug=false"\n'},
        more=("dpkg", "openrc"),
        restart="rc-service docker restart",
        boot=_SOFTLEVEL + "rc-service docker start",
    ),
    "moby": Kind(
        world="docker-for-mac-2016",
        files={"etc/init.d/docker": _MOBY, "usr/bin/mobyconfig": "#!/bin/sh\nexit 1\n"},
        more=("dpkg", "openrc"),
        restart="/etc/init.d/docker restart",
        boot=_SOFTLEVEL + "/etc/init.d/docker start",
    ),
}


@dataclass(kw_only=True)
class Walk:
    """What was seen at each stop of the way."""

    runs: dict[str, Ran] = field(default_factory=dict)
    rules: dict[str, list[str]] = field(default_factory=dict)
    files: dict[str, dict[str, object]] = field(default_factory=dict)
    environment: dict[str, dict[str, str]] = field(default_factory=dict)


@pytest.fixture(scope="module", params=KINDS)
def walk(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Walk]]:
    """apply, again, Docker's own restart, a boot with what was written, status, remove."""
    kind = KINDS[request.param]
    overlay = tmp_path_factory.mktemp("overlay")
    _lay(overlay, kind)
    seen = Walk()
    with NamespaceVM(overlay=overlay, more=kind.more) as vm, story.host_proxy(vm):
        vmproxy = Vmproxy(vm, tmp_path_factory.mktemp("home"))
        paths = guests.load(request.param).FILES

        def stop(name: str) -> None:
            seen.rules[name] = story.dump(vm)
            seen.files[name] = {path: story.held(vm, path) for path in paths}
            seen.environment[name] = story.daemon_environment(vm)

        stop("before")
        seen.runs["apply"] = vmproxy.apply()
        assert seen.runs["apply"].code == 0, seen.runs["apply"]
        stop("applied")
        seen.runs["again"] = vmproxy.apply()
        seen.runs["lasting"] = vmproxy.apply("--require-persistent", "--listen-port", "9999", "--dry-run")
        vm.run(kind.restart, check=False)
        vm.wait_for_docker()
        stop("restarted")
        for path in paths:
            shutil.copy2(vm.path(path), overlay / path.lstrip("/"))
        vm.restart_boot()
        story.until(lambda: _in_place(vm), "the boot script has ended", 180)
        seen.runs["verify"] = vmproxy.verify()
        seen.runs["status"] = vmproxy.status()
        stop("booted")
        seen.runs["remove"] = vmproxy.remove()
        stop("removed")
        yield request.param, seen


def _lay(overlay: Path, kind: Kind) -> None:
    """The kind's own files, Debian's init script among them."""
    overlay.chmod(0o755)  # it becomes the root's
    release = "".join(f'{name}="{value}"\n' for name, value in guestworlds.world(kind.world).os_release.items())
    # A container that the tests run in may not raise its limits.
    docker = re.sub(r"ulimit -\w \w+", ":", (build_tree(default_cache()) / "etc/init.d/docker").read_text())
    boot = {
        "etc/fstab": "# cgroups are mounted\ncgroup /sys/fs/cgroup\n",
        "opt/bootsync.sh": _BOOT.replace("{start}", kind.boot),
        "etc/os-release": release,
    }
    for path, text in {"etc/init.d/docker": docker, **boot, **kind.files}.items():
        place = overlay / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text)
        place.chmod(0o755 if path.startswith(("etc/init.d/", "opt/", "usr/bin/")) or "rc.local" in path else 0o644)
    if "openrc" in kind.more:
        (overlay / "etc/local.d").mkdir()


def _in_place(vm: NamespaceVM) -> bool:
    log = vm.path("/var/log/vmproxy.log")
    running = vm.run("ps -ef | grep -q '[v]mproxy.start\\|[r]c.local'", check=False).returncode == 0
    return log.exists() and b"rules are in place" in log.read_bytes() and not running


_RUNS = ["apply", "again", "verify", "status", "remove"]


@pytest.mark.parametrize("name", _RUNS)
def test_every_command_of_the_way_succeeds(walk: tuple[str, Walk], name: str) -> None:
    """Exit 0 throughout, the proofs of apply and verify from every vantage point among them."""
    ran = walk[1].runs[name]
    assert ran.code == 0, ran


def test_a_root_in_memory_is_said(walk: tuple[str, Walk]) -> None:
    """A live edit that the next start forgets is warned of; --require-persistent refuses it with exit 6."""
    assert "a reboot forgets the change" in walk[1].runs["apply"].err
    assert walk[1].runs["lasting"].code == 6, walk[1].runs["lasting"]


def test_the_daemon_has_the_variables_until_remove(walk: tuple[str, Walk]) -> None:
    """After apply, Docker's own restart and a boot, dockerd runs with all of them; before and after with none."""
    names = ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY")
    for stop, wanted in {"before": None, "applied": 1, "restarted": 1, "booted": 1, "removed": None}.items():
        found = [walk[1].environment[stop].get(name) for name in names]
        assert found == [wanted and "http://10.0.2.2:8123"] * 4, stop
    assert walk[1].environment["booted"]["no_proxy"] == "localhost,127.0.0.1,::1"


def test_the_rules_are_there_after_a_restart_and_a_boot(walk: tuple[str, Walk]) -> None:
    """The same rules, each once: after apply, after Docker's restart, after a boot that began without any."""
    ours = sorted(story.ours(walk[1].rules["applied"]))
    assert ours
    for stop in ("restarted", "booted"):
        assert sorted(story.ours(walk[1].rules[stop])) == ours, stop


def test_remove_gives_back_every_byte(walk: tuple[str, Walk]) -> None:
    """Files as before apply, byte for byte, mode and owner; no rule of ours."""
    assert walk[1].files["applied"] != walk[1].files["before"]
    assert walk[1].files["removed"] == walk[1].files["before"]
    assert story.ours(walk[1].rules["removed"]) == []
