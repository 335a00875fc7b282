"""``--jobs`` on real VMs (Docker is the stub): side by side as one after the other, and a signal ends all of them."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.lab.hostside import listen
from tests.lab.nsvm import NamespaceVM
from tests.ns import story
from tests.ns.story import PROFILE, Vmproxy, daemon_pid, dump, files, host_proxy, until

_PROFILE = b"# mine\nEXTRA_ARGS='--debug'\n"


class World:
    """Four VMs, each with its host's proxy, and a vmproxy that knows them all."""

    def __init__(self, machines: list[NamespaceVM], home: Path) -> None:
        self.machines = machines
        self.vmproxy = Vmproxy(machines[0], home)
        self.targets = [Vmproxy(machine, home).target for machine in machines]
        keys = [word for machine in machines for word in ("-i", str(machine.key))]
        self.words = ("--vm", ",".join(self.targets), *keys)
        for machine in machines:
            machine.path(PROFILE).write_bytes(_PROFILE)
        self.before = [self.state(machine) for machine in machines]

    def state(self, machine: NamespaceVM) -> tuple[object, ...]:
        """What must come back."""
        return files(machine), dump(machine)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """Four VMs of this module."""
    with ExitStack() as stack:
        machines = [stack.enter_context(NamespaceVM(docker="stub")) for _ in range(4)]
        for machine in machines:
            stack.enter_context(host_proxy(machine))
        yield World(machines, tmp_path_factory.mktemp("home"))


def test_one_failing_vm_does_not_stop_the_others(world: World) -> None:
    """Where Docker does not start all is put back, the others are done; then in sync, and removed byte for byte."""
    broken = world.machines[1]
    broken.run("mkdir -p /run/lab/stub; echo 1 > /run/lab/stub/fail-start")
    ran = world.vmproxy.run("apply", "--jobs", "4", "--no-verify", "--json", *world.words)
    broken.run("rm -f /run/lab/stub/fail-start")
    assert ran.code == 7, ran
    told = json.loads(ran.out)["vms"]
    assert [vm["vm"] for vm in told] == world.targets
    assert [vm["exit"] for vm in told] == [0, 7, 0, 0]
    assert [vm["changed"] for vm in told] == [True, False, True, True]
    story.settled(broken)
    assert world.state(broken) == world.before[1]

    ran = world.vmproxy.run("apply", "--jobs", "3", "--no-verify", *world.words)
    assert ran.code == 0, ran
    assert sorted(ran.out.splitlines()) == sorted(
        f"{target}: {'done' if target == world.targets[1] else 'in sync, nothing to do'}" for target in world.targets
    )
    assert ran.err.splitlines()[-1] == "4 of 4 VMs well; 1 changed"

    ran = world.vmproxy.run("remove", "--jobs", "4", *world.words)
    assert ran.code == 0, ran
    assert [world.state(machine) for machine in world.machines] == world.before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_f28_a_signal_puts_every_vm_back_and_leaves_the_others_alone(world: World, number: signal.Signals) -> None:
    """While Docker restarts in three VMs: all three are as before, said for each, the fourth is not begun; 128+n."""
    for machine in world.machines:
        machine.run("mkdir -p /run/lab/stub; touch /run/lab/stub/hold")
    try:
        process = subprocess.Popen(
            world.vmproxy.argv("apply", "--jobs", "3", "--no-verify", *world.words),
            env=world.vmproxy.environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        log = "/run/vmproxy/work/restart.log"
        until(lambda: all(machine.path(log).exists() for machine in world.machines[:3]), "Docker is restarted", 60)
        process.send_signal(number)
        time.sleep(1)  # so that it comes in the middle of the restart; who hears of it later puts back as well
        for machine in world.machines:
            machine.run("rm /run/lab/stub/hold")
        out, err = process.communicate(timeout=120)
    finally:
        for machine in world.machines:
            machine.run("rm -f /run/lab/stub/hold")
    assert process.returncode == 128 + number, (out, err)
    said = err.splitlines()
    assert sorted(line for line in said if line.startswith("vmproxy: error: ")) == sorted(
        f"vmproxy: error: {target}: interrupted" for target in world.targets[:3]
    )
    assert said[-1].startswith("0 of 4 VMs well; ")
    assert said[-1].endswith("; 1 not begun")
    for machine, before in zip(world.machines, world.before, strict=True):
        story.settled(machine)
        until(lambda machine=machine: daemon_pid(machine) > 0, "Docker runs", 60)  # type: ignore[misc]
        assert world.state(machine) == before


def test_what_listens_at_the_door_is_refused_beside_others_as_alone(world: World) -> None:
    """Exit 6 in the same words and that VM as before; the other one is done. In sync, a listener that comes later is
    no matter of apply's, and status tells of it."""
    one, other = world.machines[:2]
    keys = [word for machine in (one, other) for word in ("-i", str(machine.key))]
    both = ("--jobs", "2", "--no-verify", "--vm", ",".join(world.targets[:2]), *keys)
    with listen(one.surroundings.vm, "172.17.0.1", 8123):
        alone = world.vmproxy.apply("--no-verify", "--json")
        ran = world.vmproxy.run("apply", "--json", *both)
        assert (alone.code, ran.code) == (6, 6), (alone, ran)
        assert alone.vm == ran.json["vms"][0]
        assert "172.17.0.1:8123" in str(alone.vm) and "--listen-port" in str(alone.vm)
        assert world.state(one) == world.before[0]
        assert [(vm["exit"], vm["changed"]) for vm in ran.json["vms"]] == [(6, False), (0, True)]
    ran = world.vmproxy.run("apply", *both)
    assert ran.code == 0, ran
    with listen(one.surroundings.vm, "172.17.0.1", 8123):
        ran = world.vmproxy.run("apply", *both)
        assert ran.code == 0, ran
        assert sorted(ran.out.splitlines()) == sorted(f"{vm}: in sync, nothing to do" for vm in world.targets[:2])
        ran = world.vmproxy.run("status", "--jobs", "2", "--vm", ",".join(world.targets[:2]), *keys)
        assert ran.code == 1 and "172.17.0.1:8123" in ran.out, ran
    ran = world.vmproxy.run("remove", "--jobs", "2", "--vm", ",".join(world.targets[:2]), *keys)
    assert ran.code == 0, ran
    assert [world.state(machine) for machine in world.machines] == world.before
