"""Bridges that are not as usual, on real dockerd: other names and addresses (F12), and one that is not Docker's."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.lab.hostside import ask
from tests.lab.nsvm import NamespaceVM
from tests.lab.proxy import LabProxy
from tests.ns.story import BOOTLOCAL, DATA, GET, PROFILE, Vmproxy, dump, files, host_proxy, ours, settled
from tests.ns.test_invariants import REJECT

DAEMON_JSON = f"{DATA}/etc/docker/daemon.json"
REACHED = "HTTP/1.1 200 OK"
SHUT = ("refused", "silence", "unreachable")


@dataclass(frozen=True, kw_only=True)
class Docker:
    """A VM with real dockerd, a proxy on its host, and how to give dockerd other settings."""

    machine: NamespaceVM
    vmproxy: Vmproxy
    proxy: LabProxy

    def configure(self, before: str = "", **settings: object) -> None:
        """Boot anew with this daemon.json; ``before`` is what the VM runs before Docker at each boot."""
        machine = self.machine
        machine.docker("network", "prune", "--force")
        for path in (PROFILE, BOOTLOCAL):
            machine.path(path).unlink(missing_ok=True)
        machine.path(DAEMON_JSON).parent.mkdir(parents=True, exist_ok=True)
        machine.path(DAEMON_JSON).write_text(json.dumps(settings or {"bip": "172.17.0.1/16"}))
        copy = f"mkdir -p /etc/docker; cp {DAEMON_JSON} /etc/docker/"
        machine.path(f"{DATA}/bootsync.sh").write_text(f"{copy}\n{before}\n")
        machine.restart_boot()

    def from_container(self, network: str, address: str) -> str:
        """What a container on that network gets from the proxy at ``address``:8123: a status line, or a word."""
        name = f"probe-{network}"
        self.machine.docker("run", "-d", "--name", name, "--network", network, "busybox", "sleep", "1000")
        with self.machine.container_network(name) as inside:
            # A bridge's new port may lose the first packet.
            answer = ask(inside, address, 8123, send=GET, seconds=4.0)
        self.machine.docker("rm", "-f", name)
        return answer.partition("\r\n")[0]

    def jumps(self) -> list[str]:
        """The interfaces that our jumps in nat PREROUTING name."""
        lines = [line.split() for line in ours(dump(self.machine)) if line.startswith("-A PREROUTING ")]
        return [words[words.index("-i") + 1] for words in lines]


@pytest.fixture(scope="module")
def docker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Docker]:
    """One VM for all tests of this file; each configures it."""
    with NamespaceVM() as machine, host_proxy(machine) as proxy:
        machine.import_image()
        yield Docker(machine=machine, vmproxy=Vmproxy(machine, tmp_path_factory.mktemp("home")), proxy=proxy)


def test_f12_another_bip_is_the_door(docker: Docker) -> None:
    """With ``bip`` set the door is at that address, also after a reboot, and ``env`` says so."""
    docker.configure(bip="10.200.0.1/24")
    ran = docker.vmproxy.apply()
    assert ran.code == 0, ran
    assert "10.200.0.1:8123" in docker.vmproxy.env().out
    assert docker.from_container("bridge", "10.200.0.1") == REACHED
    docker.machine.restart_boot()
    settled(docker.machine)
    assert docker.vmproxy.status().code == 0
    assert docker.from_container("bridge", "10.200.0.1") == REACHED
    assert docker.vmproxy.remove().code == 0


def test_f12_a_network_whose_bridge_has_a_name_of_its_own_is_covered(docker: Docker) -> None:
    """A network with ``com.docker.network.bridge.name`` gets a jump of its own, beside those of the usual names."""
    docker.configure()
    name = "com.docker.network.bridge.name=web0"
    docker.machine.docker("network", "create", "--subnet", "172.31.0.0/24", "--opt", name, "web")
    before = dump(docker.machine)
    ran = docker.vmproxy.apply()
    assert ran.code == 0, ran
    assert docker.jumps() == ["docker0", "web0", "br-+"]
    assert docker.from_container("web", "172.31.0.1") == REACHED
    assert docker.from_container("web", "172.17.0.1") == REACHED
    assert docker.vmproxy.remove().code == 0
    # Docker's restart has changed the order of its own rules.
    assert sorted(dump(docker.machine)) == sorted(before)
    docker.machine.docker("network", "rm", "web")


def test_f12_a_bridge_made_after_apply_under_another_name_is_drift(docker: Docker) -> None:
    """A Docker network whose bridge no jump covers is reported by status; apply then covers it."""
    docker.configure()
    assert docker.vmproxy.apply("--no-verify").code == 0
    name = "com.docker.network.bridge.name=late0"
    docker.machine.docker("network", "create", "--subnet", "172.31.1.0/24", "--opt", name, "late")
    status = docker.vmproxy.status()
    assert status.code == 1, status
    assert "late0" in status.out
    assert docker.from_container("late", "172.31.1.1") in SHUT
    assert docker.vmproxy.apply("--no-verify").code == 0
    assert docker.from_container("late", "172.31.1.1") == REACHED
    assert docker.vmproxy.status().code == 0
    docker.machine.docker("network", "rm", "late")


def test_f12_docker_on_a_bridge_of_the_users_own(docker: Docker) -> None:
    """dockerd told to use another bridge than docker0: that bridge is the door, docker0 is not named."""
    make = "ip link add site0 type bridge; ip addr add 172.28.0.1/24 dev site0; ip link set site0 up"
    docker.configure(before=make, bridge="site0")
    docker.machine.restart_boot()  # dockerd has forgotten its old bridge only now
    assert not docker.machine.path("/sys/class/net/docker0").exists()
    ran = docker.vmproxy.apply()
    assert ran.code == 0, ran
    assert docker.jumps() == ["site0", "br-+"]
    assert docker.from_container("bridge", "172.28.0.1") == REACHED
    docker.machine.restart_boot()
    settled(docker.machine)
    assert docker.vmproxy.status().code == 0
    assert docker.from_container("bridge", "172.28.0.1") == REACHED


def test_f12_no_bridge_at_all_is_refused_with_a_list(docker: Docker) -> None:
    """dockerd without a bridge: exit 6, the bridges there are named, the hint is --bridge, nothing changed."""
    docker.configure(before="ip link add other0 type bridge", bridge="none")
    docker.machine.restart_boot()
    before, held = dump(docker.machine), files(docker.machine)
    ran = docker.vmproxy.apply()
    assert ran.code == 6, ran
    assert "other0" in ran.err
    assert "--bridge" in ran.err
    assert (dump(docker.machine), files(docker.machine)) == (before, held)


def test_bridge_option_names_the_only_door(docker: Docker) -> None:
    """--bridge docker0: only docker0 is covered; a user-defined network stays out, and that is no drift."""
    docker.configure()
    docker.machine.docker("network", "create", "--subnet", "172.31.2.0/24", "out")
    ran = docker.vmproxy.apply("--bridge", "docker0", "--no-verify")
    assert ran.code == 0, ran
    assert docker.jumps() == ["docker0"]
    assert docker.from_container("bridge", "172.17.0.1") == REACHED
    assert docker.from_container("out", "172.31.2.1") in SHUT
    status = docker.vmproxy.status()
    assert status.code == 0, status
    docker.machine.docker("network", "rm", "out")


def test_bridge_option_without_dockers_default_bridge(docker: Docker) -> None:
    """--bridge br-…: the proof does not ask where no door is wanted, and says so; a bridge not there is named."""
    docker.configure()
    docker.machine.docker("network", "create", "--subnet", "172.31.3.0/24", "only")
    bridge = "br-" + docker.machine.docker("network", "ls", "-q", "-f", "name=only").strip()[:12]
    ran = docker.vmproxy.apply("--bridge", bridge)
    assert ran.code == 0, ran
    assert docker.jumps() == [bridge]
    assert docker.from_container("only", "172.31.3.1") == REACHED
    assert docker.from_container("bridge", "172.17.0.1") in SHUT
    proof = docker.vmproxy.verify()
    assert proof.code == 0, proof
    assert "from a container on the default bridge: docker0 is not among" in proof.err
    assert "there is no bridge br-nowhere in the VM" in docker.vmproxy.apply("--dry-run", "--bridge", "br-nowhere").err
    assert docker.vmproxy.remove().code == 0
    docker.machine.docker("network", "rm", "only")


@pytest.mark.parametrize(
    ("icc", "end"), [(False, ""), (True, REJECT), (False, REJECT)], ids=["icc off", "reject", "icc off, reject"]
)
def test_f62_what_stands_at_the_end_of_forward(docker: Docker, icc: bool, end: str) -> None:
    """The VM's own last REJECT, and what dockerd appends at each start with icc off: no drift, and works at boot."""
    docker.configure(before=end, icc=icc, bip="172.17.0.1/16")
    isolated = "com.docker.network.bridge.enable_icc=false"
    docker.machine.docker("network", "create", "--subnet", "172.31.4.0/24", "--opt", isolated, "alone")
    before = dump(docker.machine)
    ran = docker.vmproxy.apply()
    assert ran.code == 0, ran
    docker.machine.restart_boot()
    settled(docker.machine)
    assert docker.vmproxy.status().code == 0
    assert docker.from_container("alone", "172.31.4.1") == REACHED
    assert docker.from_container("bridge", "172.17.0.1") == REACHED
    assert docker.vmproxy.remove().code == 0
    assert sorted(dump(docker.machine)) == sorted(before)
    docker.machine.docker("network", "rm", "alone")


LATE = """
mkdir -p /usr/local/sbin
printf '#!/bin/sh\\nsleep 3\\nexec /usr/sbin/dockerd "$@"\\n' >/usr/local/sbin/dockerd
chmod 755 /usr/local/sbin/dockerd
"""


def test_f62_docker_that_starts_late(docker: Docker) -> None:
    """dockerd makes its rules seconds after bootlocal.sh has begun: ours come behind them all the same, once each."""
    docker.configure(before=LATE, bip="172.17.0.1/16")
    docker.machine.docker("network", "create", "--subnet", "172.31.5.0/24", "own")
    assert docker.vmproxy.apply("--no-verify").code == 0
    applied = sorted(ours(dump(docker.machine)))
    docker.machine.restart_boot()
    settled(docker.machine)
    assert sorted(ours(dump(docker.machine))) == applied
    status = docker.vmproxy.status()
    assert status.code == 0, status
    assert docker.from_container("own", "172.31.5.1") == REACHED
    docker.machine.docker("network", "rm", "own")


# The VM's second interface moves into a bridge that is not Docker's; the LAN host stands behind it.
BR_LAN = """
ip link add br-lan type bridge
ip link set eth1 master br-lan
ip addr del 192.168.99.100/24 dev eth1
ip addr add 192.168.99.100/24 dev br-lan
ip link set br-lan up
"""


def lan_answers(docker: Docker) -> dict[str, str]:
    """What the LAN host behind br-lan gets at every address that could be the door."""
    lan = docker.machine.surroundings.lan
    return {
        to: ask(lan, to, 8123, send=GET)
        for to in ("192.168.99.100", "172.17.0.1", "172.31.3.1", "10.0.2.15", "10.0.2.2")
    }


def test_lan_behind_a_foreign_br_bridge_stays_out(docker: Docker) -> None:
    """With a br-lan that is not Docker's, each Docker bridge has its own jump, at boot too; the LAN gets nothing."""
    docker.configure(before=BR_LAN)
    docker.machine.docker("network", "create", "--subnet", "172.31.3.0/24", "own")
    assert lan_ssh(docker)
    ran = docker.vmproxy.apply()
    assert ran.code == 0, ran
    for _ in range(2):
        jumps = docker.jumps()
        assert jumps[0] == "docker0"
        assert "br-+" not in jumps
        assert "br-lan" not in jumps
        assert docker.from_container("own", "172.31.3.1") == REACHED
        assert docker.from_container("own", "172.17.0.1") == REACHED
        assert set(lan_answers(docker).values()) <= set(SHUT)
        docker.machine.restart_boot()
        settled(docker.machine)
        status = docker.vmproxy.status()
        assert status.code == 0, status
    docker.machine.docker("network", "rm", "own")


def test_foreign_br_bridge_that_comes_later_is_drift_and_apply_shuts_it_out(docker: Docker) -> None:
    """br-lan appears behind a br-+ jump: status names it, apply goes over to named jumps, the LAN gets nothing."""
    docker.configure()
    docker.machine.docker("network", "create", "--subnet", "172.31.3.0/24", "own")
    assert docker.vmproxy.apply("--no-verify").code == 0
    assert "br-+" in docker.jumps()
    docker.machine.run(BR_LAN)
    status = docker.vmproxy.status()
    assert status.code == 1, status
    assert "br-lan" in status.out
    assert docker.vmproxy.apply("--no-verify").code == 0
    assert "br-+" not in docker.jumps()
    assert set(lan_answers(docker).values()) <= set(SHUT)
    assert docker.from_container("own", "172.31.3.1") == REACHED
    assert docker.vmproxy.status().code == 0
    docker.machine.docker("network", "rm", "own")


def lan_ssh(docker: Docker) -> bool:
    """Whether the LAN host reaches the VM at all."""
    return ask(docker.machine.surroundings.lan, "192.168.99.100", 22).startswith("SSH-")
