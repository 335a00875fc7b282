"""Docker's restart when Docker does not do as told: F47, F48, F51. The daemon is the lab's stub with its switches."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.nsvm import NamespaceVM
from tests.ns.story import (
    PROFILE,
    Vmproxy,
    daemon_environment,
    daemon_pid,
    dump,
    files,
    held,
    host_proxy,
    ours,
    reset,
    shim,
    until,
)
from vmproxy import converge
from vmproxy.errors import RolledBack
from vmproxy.guests import boot2docker

URL = "http://10.0.2.2:8123"


@pytest.fixture(scope="module")
def booted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Vmproxy]:
    """One VM whose dockerd is a stub, with a proxy on its host."""
    with NamespaceVM(docker="stub") as machine, host_proxy(machine):
        yield Vmproxy(machine, tmp_path_factory.mktemp("home"))


@pytest.fixture
def vmproxy(booted: Vmproxy) -> Vmproxy:
    """The same, booted anew without anything of ours."""
    reset(booted.machine)
    return booted


def switch(machine: NamespaceVM, name: str, text: str = "") -> Path:
    """Set one of the stub's switches; the file, to be unlinked again."""
    path = machine.path(f"/run/lab/stub/{name}")
    path.write_text(text)
    return path


def starts(machine: NamespaceVM) -> int:
    """How often dockerd was started since the boot."""
    return len(machine.path("/run/lab/stub/starts").read_text().splitlines())


def test_restart_only_when_the_environment_differs(vmproxy: Vmproxy) -> None:
    """Apply restarts Docker once; a second apply, and one that only changes the door's port, do not."""
    machine = vmproxy.machine
    assert vmproxy.apply("--no-verify").code == 0
    assert starts(machine) == 2
    assert vmproxy.apply("--no-verify").code == 0
    assert vmproxy.apply("--no-verify", "--listen-port", "18123").code == 0
    assert starts(machine) == 2
    assert vmproxy.remove().code == 0
    assert starts(machine) == 3


def test_f46_a_daemon_that_refuses_the_new_environment(vmproxy: Vmproxy) -> None:
    """dockerd ends at once with the proxy set: exit 7, put back, Docker runs with its old environment again."""
    machine = vmproxy.machine
    switch(machine, "fail-with-proxy")
    before, kept = dump(machine), files(machine)
    ran = vmproxy.json("apply", "--no-verify")
    assert ran.code == 7, ran
    assert (ran.vm["rolled_back"], ran.vm["ok"]) == (True, False)
    assert "told to fail with a proxy" in ran.all
    assert (dump(machine), files(machine)) == (before, kept)
    assert daemon_pid(machine)
    assert "http_proxy" not in daemon_environment(machine)
    assert not list(machine.path("/var/lib/boot2docker").glob(".vmproxy*"))
    switch(machine, "fail-with-proxy").unlink()
    assert vmproxy.apply("--no-verify").code == 0


def test_f47_a_daemon_that_does_not_stop_is_left_running(vmproxy: Vmproxy) -> None:
    """Docker does not stop: exit 7, no second daemon, the old one runs on as before, and that is said."""
    machine = vmproxy.machine
    switch(machine, "fail-stop")
    machine.run("kill -KILL $(cat /var/run/docker.pid)")
    until(lambda: daemon_pid(machine) == 0, "the stub has ended")
    machine.run("/etc/init.d/docker start")
    until(lambda: daemon_pid(machine) != 0, "the stub runs")
    # Nobody has to see the seconds pass, but the six that the question is given.
    shim(machine, "sleep", '[ "$1" = 6 ] || set -- 0.05; exec /bin/sleep "$1"')
    before, kept, pid, began = dump(machine), files(machine), daemon_pid(machine), starts(machine)
    ran = vmproxy.apply("--no-verify")
    assert ran.code == 7, ran
    assert "not restarted" in ran.err
    assert (daemon_pid(machine), starts(machine)) == (pid, began)
    assert machine.run("ps -e -o comm= | grep -c '^dockerd$'").stdout.strip() == b"1"
    assert (dump(machine), files(machine)) == (before, kept)
    assert "http_proxy" not in daemon_environment(machine)


@pytest.mark.parametrize("stale", [False, True], ids=["no pid file", "stale pid file"])
def test_f48_a_stopped_daemon_stays_stopped(vmproxy: Vmproxy, stale: bool) -> None:
    """Docker does not run, with or without another program's pid in its file: all is written, Docker stays stopped."""
    machine = vmproxy.machine
    machine.run("/etc/init.d/docker stop")
    began = starts(machine)
    machine.path("/run/docker.pid").unlink(missing_ok=True)
    if stale:
        machine.path("/run/docker.pid").write_text("1\n")
    ran = vmproxy.apply("--no-verify")
    assert ran.code == 0, ran
    assert "stopped" in ran.out
    assert (daemon_pid(machine), starts(machine)) == (0, began)
    assert ours(dump(machine))
    assert vmproxy.status().code == 0
    machine.run("/etc/init.d/docker start")
    until(lambda: daemon_pid(machine) != 0, "the stub runs")
    assert daemon_environment(machine)["http_proxy"] == URL
    assert vmproxy.status().code == 0


def test_f48_remove_leaves_a_stopped_daemon_stopped(vmproxy: Vmproxy) -> None:
    """Remove while Docker is stopped takes all of ours and starts nothing."""
    machine = vmproxy.machine
    before = dump(machine)
    assert vmproxy.apply("--no-verify").code == 0
    machine.run("/etc/init.d/docker stop")
    began = starts(machine)
    ran = vmproxy.remove()
    assert ran.code == 0, ran
    assert (daemon_pid(machine), starts(machine)) == (0, began)
    assert dump(machine) == before
    assert held(machine, PROFILE) is None


def test_f51_a_docker_that_hangs_counts_as_busy(vmproxy: Vmproxy) -> None:
    """``docker info`` never answers: all but the restart is done within its limit, exit 3, restart pending."""
    machine = vmproxy.machine
    hang = switch(machine, "hang")
    pid = daemon_pid(machine)
    ran = vmproxy.apply("--no-verify")
    assert ran.code == 3, ran
    assert "restart is pending" in ran.all
    assert daemon_pid(machine) == pid
    assert held(machine, PROFILE) is not None
    assert ours(dump(machine))
    hang.unlink()
    assert vmproxy.apply("--no-verify").code == 0
    assert daemon_environment(machine)["http_proxy"] == URL


def test_f49_count_is_said_and_never_means_never(vmproxy: Vmproxy) -> None:
    """Two containers run: exit 3 names both; --restart never is exit 3 too, even with none running."""
    machine = vmproxy.machine
    count = switch(machine, "running", "2\n")
    ran = vmproxy.apply("--no-verify")
    assert ran.code == 3, ran
    assert "2 containers run" in ran.all
    count.unlink()
    never = vmproxy.apply("--no-verify", "--restart", "never")
    assert never.code == 3, never
    assert starts(machine) == 1
    assert vmproxy.apply("--no-verify").code == 0
    assert starts(machine) == 2


def test_f50_live_restore_restarts_although_containers_run(vmproxy: Vmproxy) -> None:
    """With live-restore on a running container is no reason to wait."""
    switch(vmproxy.machine, "running", "2\n")
    switch(vmproxy.machine, "live-restore")
    assert vmproxy.apply("--no-verify").code == 0
    assert daemon_environment(vmproxy.machine)["http_proxy"] == URL


def test_remove_with_containers_is_pending_until_told(vmproxy: Vmproxy) -> None:
    """Remove while a container runs takes files and rules, exit 3; --restart always then clears the daemon too."""
    machine = vmproxy.machine
    before, kept = dump(machine), files(machine)
    assert vmproxy.apply("--no-verify").code == 0
    switch(machine, "running", "1\n")
    ran = vmproxy.remove()
    assert ran.code == 3, ran
    assert (dump(machine), files(machine)) == (before, kept)
    assert daemon_environment(machine)["http_proxy"] == URL
    again = vmproxy.remove()
    assert (again.code, "Docker still runs with a proxy that no file names" in again.err) == (0, True), again
    done = vmproxy.remove("--restart", "always")
    assert done.code == 0, done
    assert "http_proxy" not in daemon_environment(machine)


def test_several_commands_in_order(vmproxy: Vmproxy, monkeypatch: pytest.MonkeyPatch) -> None:
    """A guest may restart Docker by several commands: each runs behind the one before, with its own words; where one
    fails the next is not run, and everything is put back."""
    machine = vmproxy.machine
    said, fails = machine.path("/run/said"), machine.path("/run/fails")
    script = machine.path("/run/say")
    script.write_text('#!/bin/sh\necho "$#" "$@" >>/run/said\n[ "$1" != two ] || ! rm /run/fails 2>/dev/null\n')
    script.chmod(0o755)
    say, docker = "/run/say", ("/etc/init.d/docker", "restart")
    commands = ((say, "one", "a=b"), docker, (say, "two"), (say, "three"))
    monkeypatch.setattr(boot2docker, "RESTART", commands)
    assert vmproxy.tell(converge.apply, check=False, verify=False).ok
    assert said.read_text() == "2 one a=b\n1 two\n1 three\n"
    assert daemon_environment(machine)["http_proxy"] == URL
    count, before = starts(machine), held(machine, PROFILE)
    said.unlink()
    fails.touch()
    with pytest.raises(RolledBack) as caught:
        vmproxy.tell(converge.remove)
    assert caught.value.exit == 7
    assert said.read_text() == "2 one a=b\n1 two\n" + "2 one a=b\n1 two\n1 three\n"
    assert (starts(machine), held(machine, PROFILE)) == (count + 2, before)
    assert daemon_environment(machine)["http_proxy"] == URL
