"""The acceptance table of DESIGN §4: who reaches what, on real dockerd and real iptables, nft and legacy.

One walk through the states of a VM per variant asks every flow at once and writes down what answered; each test then
looks at one row in one state. The wanted rows say that containers reach the host's proxy; the others that nothing else
has changed.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.lab.hostside import Greeter, ask
from tests.lab.nsvm import NamespaceVM
from tests.ns.story import DATA, GET, Held, Ran, Vmproxy, dump, files, host_proxy, ours, settled, until

BRIDGE, HOST, UPLINK, OUTSIDE, SECOND = "172.17.0.1", "10.0.2.2", "10.0.2.15", "203.0.113.9", "203.0.113.1"
PORT, OTHER = 8123, 9000
PROXY = "the host's proxy"
CLOSED = "no connection"
STATES = ("before", "restart-pending", "applied", "docker-restarted", "rebooted", "removed")
APPLIED = STATES[1:5]
NETWORKS = {
    "docker0": (),
    "own": ("--subnet", "172.30.1.0/24"),
    "unmasked": ("--subnet", "172.30.2.0/24", "--opt", "com.docker.network.bridge.enable_ip_masquerade=false"),
    "internal": ("--subnet", "172.30.3.0/24", "--internal"),
}
"""A container of the same name stands on each; docker0 is Docker's default bridge."""
GATEWAYS = {"docker0": BRIDGE, "own": "172.30.1.1", "unmasked": "172.30.2.1", "internal": "172.30.3.1"}


@dataclass(frozen=True, kw_only=True)
class Flow:
    """One row: from a container, or ``lan``, ``outside``, ``vm``, to an address and port; what has to answer.

    ``wanted`` holds while vmproxy is applied and ``before`` otherwise; empty means the same as ``wanted``.
    """

    start: str
    to: str
    port: int = PORT
    wanted: str
    before: str = ""


FLOWS = {
    # The wanted ones.
    "docker0 to its bridge": Flow(start="docker0", to=BRIDGE, wanted=PROXY, before=CLOSED),
    "own network to its gateway": Flow(start="own", to="172.30.1.1", wanted=PROXY, before=CLOSED),
    "own network to docker0's address": Flow(start="own", to=BRIDGE, wanted=PROXY, before=CLOSED),
    "unmasked network to its gateway": Flow(start="unmasked", to="172.30.2.1", wanted=PROXY, before=CLOSED),
    "unmasked network to docker0's address": Flow(start="unmasked", to=BRIDGE, wanted=PROXY, before=CLOSED),
    # What must stay shut.
    "internal network to its gateway": Flow(start="internal", to="172.30.3.1", wanted=CLOSED),
    "internal network to docker0's address": Flow(start="internal", to=BRIDGE, wanted=CLOSED),
    "internal network to the host": Flow(start="internal", to=HOST, wanted=CLOSED),
    "lan to the vm": Flow(start="lan", to="192.168.99.100", wanted=CLOSED),
    "lan to docker0's address": Flow(start="lan", to=BRIDGE, wanted=CLOSED),
    "lan to an own network's gateway": Flow(start="lan", to="172.30.1.1", wanted=CLOSED),
    "lan to the host through the vm": Flow(start="lan", to=HOST, wanted=CLOSED),
    "docker0 to another port of its bridge": Flow(start="docker0", to=BRIDGE, port=OTHER, wanted=CLOSED),
    "own network to another port of its gateway": Flow(start="own", to="172.30.1.1", port=OTHER, wanted=CLOSED),
    "the vm to its own bridge": Flow(start="vm", to=BRIDGE, wanted=CLOSED),
    # What must go where it always went.
    "docker0 to an unrelated host": Flow(start="docker0", to=OUTSIDE, wanted=f"outside sees {SECOND}"),
    "own network to an unrelated host": Flow(start="own", to=OUTSIDE, wanted=f"outside sees {SECOND}"),
    "docker0 to the vm's uplink": Flow(start="docker0", to=UPLINK, wanted="uplink sees 172.17."),
    "own network to the vm's uplink": Flow(start="own", to=UPLINK, wanted="uplink sees 172.30.1."),
    "unmasked network to the vm's uplink": Flow(start="unmasked", to=UPLINK, wanted="uplink sees 172.30.2."),
    "docker0 to the vm's other uplink": Flow(start="docker0", to=SECOND, wanted="second uplink sees 172.17."),
    "docker0 to the host": Flow(start="docker0", to=HOST, wanted=PROXY),
    "docker0 to another port of the host": Flow(start="docker0", to=HOST, port=OTHER, wanted=f"host sees {UPLINK}"),
    "own network to another port of the host": Flow(start="own", to=HOST, port=OTHER, wanted=f"host sees {UPLINK}"),
    "docker0 to the vm's sshd": Flow(start="docker0", to=BRIDGE, port=22, wanted="SSH-"),
    "outside to a published port": Flow(start="outside", to=SECOND, port=8080, wanted=f"docker0 sees {OUTSIDE}"),
    "lan to a published port": Flow(start="lan", to="192.168.99.100", port=8080, wanted="docker0 sees 192.168.99.1"),
    "outside to an own network's published port": Flow(
        start="outside", to=SECOND, port=8081, wanted=f"own sees {OUTSIDE}"
    ),
    "docker0 to a published port of the vm": Flow(start="own", to=UPLINK, port=8080, wanted="docker0 sees 172."),
}


@dataclass
class Walk:
    """What one VM showed on its way: by state every flow's answer, the rules, the files; by name each run."""

    variant: str
    seen: dict[str, dict[str, str]] = field(default_factory=dict)
    rules: dict[str, list[str]] = field(default_factory=dict)
    files: dict[str, dict[str, Held | None]] = field(default_factory=dict)
    runs: dict[str, Ran] = field(default_factory=dict)
    late: str = ""
    log: str = ""


class Stage:
    """A VM with the containers and servers of the table, for as long as flows are asked."""

    def __init__(self, machine: NamespaceVM) -> None:
        self.machine = machine

    def build(self) -> None:
        """The networks and, not yet started, a container on each."""
        for name, words in NETWORKS.items():
            if name != "docker0":
                self.machine.docker("network", "create", *words, name)
            network = name if name != "docker0" else "bridge"
            publish = {"docker0": ("-p", "8080:80"), "own": ("-p", "8081:80")}.get(name, ())
            self.machine.docker("create", "--name", name, "--network", network, *publish, "busybox", "sleep", "1000")

    def stop(self) -> None:
        """End the containers; they and their networks stay."""
        self.machine.docker("stop", "-t", "0", *NETWORKS)

    def record(self) -> dict[str, str]:
        """Start the containers and the servers, ask every flow at the same time."""
        self.machine.docker("start", *NETWORKS)
        around = self.machine.surroundings
        with contextlib.ExitStack() as stack:
            where = {name: stack.enter_context(self.machine.container_network(name)) for name in NETWORKS}
            for network, address, port, name in (
                (around.outside, "0.0.0.0", PORT, "outside"),
                (around.vm, SECOND, PORT, "second uplink"),
                (around.host, "127.0.0.1", OTHER, "host"),
                (where["docker0"], "0.0.0.0", 80, "docker0"),
                (where["own"], "0.0.0.0", 80, "own"),
            ):
                stack.enter_context(Greeter(network, address, port, name))
            for name, inside in where.items():
                # A bridge's new port may lose the first packet: every container reaches its gateway's sshd first.
                warm(inside, GATEWAYS[name])
            where |= {"lan": around.lan, "outside": around.outside, "vm": around.vm}

            def one(flow: Flow) -> str:
                send = GET if flow.port == PORT else b""
                return told(ask(where[flow.start], flow.to, flow.port, send=send, seconds=2.0))

            with ThreadPoolExecutor(len(FLOWS)) as pool:
                return dict(zip(FLOWS, pool.map(one, FLOWS.values()), strict=True))


def warm(network: int, gateway: str) -> None:
    """Until a container reaches its gateway."""
    until(lambda: ask(network, gateway, 22).startswith("SSH-"), f"the way to {gateway}")


def told(answer: str) -> str:
    """An answer in the table's words."""
    if answer.startswith("HTTP/1.1 200") and "the proxy knows" in answer:
        return PROXY
    return CLOSED if answer in ("refused", "silence", "unreachable") else answer


@pytest.fixture(scope="module", params=["nft", "legacy"])
def walk(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Walk]:
    """One VM through all states. The legacy one has a site's rule that lets every reply through the VM."""
    variant = str(request.param)
    with contextlib.ExitStack() as stack:
        machine = stack.enter_context(NamespaceVM(iptables=variant))
        machine.import_image()
        if variant == "legacy":
            line = "iptables -A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\n"
            machine.path(f"{DATA}/bootsync.sh").write_text(line)
            machine.restart_boot()
        stack.enter_context(host_proxy(machine))
        yield go(machine, variant, Vmproxy(machine, tmp_path_factory.mktemp(variant)))


def go(machine: NamespaceVM, variant: str, vmproxy: Vmproxy) -> Walk:
    """The walk itself: nothing is asserted here."""
    walk, stage = Walk(variant=variant), Stage(machine)

    def state(name: str) -> None:
        walk.seen[name] = stage.record()
        stage.stop()
        walk.rules[name], walk.files[name] = dump(machine), files(machine)

    stage.build()
    # Somebody listens at the uplink's address before apply and all the time.
    with Greeter(machine.surroundings.vm, UPLINK, PORT, "uplink"):
        state("before")
        # dockerd puts its jumps on top when it starts or makes a network, as the proof does: here not since ours came.
        walk.runs["apply without restart"] = vmproxy.apply("--restart", "never", "--no-verify")
        state("restart-pending")
        walk.runs["apply"] = vmproxy.apply()
        walk.late = made_later(machine)
        state("applied")
        machine.run("/etc/init.d/docker restart")
        machine.wait_for_docker()
        state("docker-restarted")
        walk.runs["status after docker's restart"] = vmproxy.status()
    machine.restart_boot()
    settled(machine)
    with Greeter(machine.surroundings.vm, UPLINK, PORT, "uplink"):
        walk.runs["status after the reboot"] = vmproxy.status()
        state("rebooted")
        walk.log = machine.run("cat /var/log/vmproxy.log", check=False).stdout.decode()
        walk.runs["remove"] = vmproxy.remove()
        state("removed")
    return walk


def made_later(machine: NamespaceVM) -> str:
    """What a container reaches at the gateway of a network that is made after apply; nothing of it stays."""
    machine.docker("network", "create", "--subnet", "172.30.9.0/24", "late")
    machine.docker("run", "-d", "--name", "late", "--network", "late", "busybox", "sleep", "1000")
    with machine.container_network("late") as network:
        seen = told(ask(network, "172.30.9.1", PORT, send=GET, seconds=20.0))
    machine.docker("rm", "-f", "late")
    machine.docker("network", "rm", "late")
    return seen


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("row", FLOWS)
def test_flow(walk: Walk, row: str, state: str) -> None:
    """T09, I8: the row holds in this state: wanted ones lead to the host's proxy, others go where they went before."""
    flow, seen = FLOWS[row], walk.seen[state][row]
    wanted = flow.wanted if state in APPLIED else flow.before or flow.wanted
    assert seen == wanted if wanted in (PROXY, CLOSED) else seen.startswith(wanted), (seen, wanted)


@pytest.mark.parametrize("row", FLOWS)
def test_flow_after_remove_is_as_before_apply(walk: Walk, row: str) -> None:
    """What answers after remove is what answered before apply; a container may have another address."""
    before, after = (
        walk.seen[state][row].rpartition(".")[0] or walk.seen[state][row] for state in ("before", "removed")
    )
    assert after == before


def test_network_made_after_apply_is_covered_at_once(walk: Walk) -> None:
    """A user-defined network that is created later needs no second apply."""
    assert walk.late == PROXY


RUNS = {
    "apply without restart": 3,
    "apply": 0,
    "status after docker's restart": 0,
    "status after the reboot": 0,
    "remove": 0,
}


@pytest.mark.parametrize("run", RUNS)
def test_commands_of_the_walk_end_well(walk: Walk, run: str) -> None:
    """Apply and remove succeed on this VM; status finds no drift after Docker's restart nor after the reboot."""
    assert walk.runs[run].code == RUNS[run], walk.runs[run]


def test_rules_are_the_same_after_dockers_restart(walk: Walk) -> None:
    """Docker's restart neither loses nor doubles a rule of ours."""
    assert sorted(ours(walk.rules["docker-restarted"])) == sorted(ours(walk.rules["applied"]))


def test_f62_rules_come_back_at_boot_from_the_files_alone(walk: Walk) -> None:
    """After a reboot exactly our rules are there again, each once, made by bootlocal.sh; the files are as written."""
    assert sorted(ours(walk.rules["rebooted"])) == sorted(ours(walk.rules["applied"])), walk.log
    assert walk.files["rebooted"] == walk.files["applied"]


def test_f62_forward_jump_stands_behind_dockers_after_the_reboot(walk: Walk) -> None:
    """However the boot script and dockerd raced, no rule of Docker's stands behind our jump in FORWARD."""
    forward = [line for line in walk.rules["rebooted"] if line.startswith("-A FORWARD ")]
    (place,) = (i for i, line in enumerate(forward) if "VMPROXY-FORWARD" in line)
    assert not [line for line in forward[place:] if "DOCKER" in line or "docker0" in line or "br-" in line]


def test_i3_remove_gives_back_rules_and_files(walk: Walk) -> None:
    """Rules and files after remove are those before apply; a reboot in between has changed only Docker's own order."""
    assert not ours(walk.rules["removed"])
    assert sorted(walk.rules["removed"]) == sorted(walk.rules["before"])
    assert walk.files["removed"] == walk.files["before"]


def test_site_that_drops_the_host_in_docker_user_keeps_it_closed(tmp_path: Path) -> None:
    """A user's own DROP in DOCKER-USER wins: the proof says so, all is put back; with --keep the flow stays closed."""
    with NamespaceVM() as machine:
        machine.import_image()
        with host_proxy(machine):
            machine.run(f"iptables -I DOCKER-USER -i docker0 -d {HOST} -j DROP")
            before, vmproxy = dump(machine), Vmproxy(machine, tmp_path)
            ran = vmproxy.apply()
            assert ran.code == 7, ran
            assert dump(machine) == before
            assert files(machine)[f"{DATA}/profile"] is None
            kept = vmproxy.apply("--keep")
            assert kept.code == 1, kept
            machine.docker("run", "-d", "--name", "box", "busybox", "sleep", "1000")
            with machine.container_network("box") as box:
                assert told(ask(box, BRIDGE, PORT, send=GET)) == CLOSED
