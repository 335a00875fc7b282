"""IPv6 (DESIGN section 4): a door where Docker has it and the proxy answers there; otherwise it is said, and left."""

from __future__ import annotations

import json
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.lab.hostside import ask, connect, inside
from tests.lab.nsvm import NamespaceVM
from tests.lab.proxy import LabProxy
from tests.ns.story import BOOTLOCAL, DATA, GET, PROFILE, Vmproxy, dump, host_proxy, ours, settled, shim

HOST, VM, BRIDGE, PORT = "fd00:2::2", "fd00:2::15", "fd00:17::1", 8123
DAEMON = {"ipv6": True, "fixed-cidr-v6": "fd00:17::/64", "experimental": True, "ip6tables": True}
REACHED = "HTTP/1.1 200 OK"
SHUT = ("refused", "silence", "unreachable")


@dataclass(frozen=True, kw_only=True)
class World:
    """A VM whose dockerd may have IPv6, and its host."""

    machine: NamespaceVM
    vmproxy: Vmproxy

    def boot(self, gateway: str = HOST, **daemon: object) -> None:
        """Boot anew with this daemon.json and a default route by IPv6, without anything of ours."""
        for path in (PROFILE, BOOTLOCAL):
            self.machine.path(path).unlink(missing_ok=True)
        config = self.machine.path(f"{DATA}/etc/docker/daemon.json")
        config.parent.mkdir(parents=True, exist_ok=True)
        config.write_text(json.dumps(daemon))
        route = f"ip -6 route replace default via {gateway} dev eth0 metric 7"
        self.machine.path(f"{DATA}/bootsync.sh").write_text(
            f"mkdir -p /etc/docker; cp {DATA}/etc/docker/daemon.json /etc/docker/\n"
            f"ip -6 addr add {VM}/64 dev eth0 nodad\n{route}\n"
        )
        self.machine.restart_boot()
        self.machine.wait_for_docker()

    def proxy(self) -> LabProxy:
        """A proxy at the host's IPv6 address."""
        network = self.machine.surroundings.host

        def server() -> socket.socket:
            return socket.create_server((HOST, PORT), family=socket.AF_INET6)

        def dial(to: str, at: int) -> socket.socket:
            return connect(network, to, at, seconds=5.0)

        return LabProxy(inside(network, server), mode="proxy", credentials="", dial=dial)

    def rules(self) -> list[str]:
        """What of ip6tables is ours."""
        return ours(self.dump())

    def dump(self) -> list[str]:
        """ip6tables-save without counters, comments, and tables that were made and hold nothing."""
        lines = self.machine.run(["ip6tables-save"]).stdout.decode().splitlines()
        return [line.partition(" [")[0] for line in lines if line.startswith("-A") or " - [" in line or " DROP" in line]

    def from_container(self, address: str, port: int = PORT) -> str:
        """What a container on the default bridge gets there."""
        self.machine.docker("run", "-d", "--name", "six", "busybox", "sleep", "1000")
        with self.machine.container_network("six") as network:
            answer = ask(network, address, port, send=GET, seconds=4.0)
        self.machine.docker("rm", "-f", "six")
        return answer.partition("\r\n")[0]


VARIANTS = ["nft", "legacy"]


@pytest.fixture(scope="module", params=VARIANTS)
def world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """One VM a variant."""
    with NamespaceVM(iptables=str(request.param)) as machine, host_proxy(machine):
        machine.import_image()
        yield World(machine=machine, vmproxy=Vmproxy(machine, tmp_path_factory.mktemp("home")))


@pytest.fixture(params=VARIANTS)
def quick(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[World]:
    """The same with a stub for Docker, whose bridge has got an IPv6 address."""
    with NamespaceVM(iptables=str(request.param), docker="stub") as machine, host_proxy(machine):
        machine.run(
            f"ip -6 addr add {VM}/64 dev eth0 nodad; ip -6 addr add {BRIDGE}/64 dev docker0 nodad; "
            f"ip -6 route add default via {HOST} dev eth0 metric 7"
        )
        found = World(machine=machine, vmproxy=Vmproxy(machine, tmp_path))
        cable(found)
        yield found


def cable(world: World) -> None:
    """The host's end of the cable is new at every boot: its address too."""
    network = world.machine.surroundings.argv(world.machine.surroundings.host)
    subprocess.run([*network, "ip", "-6", "addr", "replace", f"{HOST}/64", "dev", "eth0", "nodad"], check=True)


def test_containers_reach_the_proxy_by_ipv6(world: World) -> None:
    """Docker has IPv6 and the proxy answers there: the bridge's own IPv6 address leads to it, at boot too, and back."""
    world.boot(**DAEMON)
    cable(world)
    before, before4 = world.dump(), dump(world.machine)
    assert world.from_container(BRIDGE) in SHUT
    with world.proxy():
        shown = world.vmproxy.apply("--dry-run")
        assert "ip6tables -t nat -A" in shown.out, shown
        ran = world.vmproxy.apply()
        assert ran.code == 0, ran
        assert world.from_container(BRIDGE) == REACHED
        assert world.from_container("172.17.0.1") == REACHED
        assert world.from_container(BRIDGE, 9000) in SHUT
        proof = world.vmproxy.json("verify")
        legs = {found["subject"]: found for found in proof.vm["findings"]}
        assert (proof.code, list(legs)) == (0, ["vm", "bridge", "network", "bridge6"]), proof
        assert f"[{BRIDGE}]:{PORT} answers as a proxy from a container" in legs["bridge6"]["detail"]
        world.machine.run("ip6tables -I FORWARD -j DROP")
        shut = world.vmproxy.verify()
        world.machine.run("ip6tables -D FORWARD -j DROP")
        assert (shut.code, f"nothing answers at [{BRIDGE}]:{PORT} from a container" in shut.all) == (1, True), shut
        again = world.vmproxy.apply()
        assert "nothing to do" in again.all, again
        assert world.vmproxy.status().code == 0
        rules = world.rules()
        world.machine.run("/etc/init.d/docker restart")
        world.machine.wait_for_docker()
        assert world.vmproxy.status().code == 0
        world.machine.restart_boot()
        cable(world)
        settled(world.machine)
        ran = world.vmproxy.status()
        assert ran.code == 0, ran
        assert sorted(world.rules()) == sorted(rules)
        assert world.from_container(BRIDGE) == REACHED
        world.machine.run("ip6tables -t nat -F VMPROXY-PREROUTING")
        drifted = world.vmproxy.status()
        assert (drifted.code, "VMPROXY-PREROUTING" in drifted.out) == (1, True), drifted
        assert world.vmproxy.apply().code == 0
    assert world.vmproxy.remove().code == 0
    assert sorted(world.dump()) == sorted(before)
    assert sorted(dump(world.machine)) == sorted(before4)


def test_what_stands_in_the_way_is_said(quick: World) -> None:
    """Nothing answers there, a gateway of the user's, a link-local one (a VM's usual): IPv4 is done, IPv6 is left as it
    was, and one warning says why."""
    before = quick.dump()
    ran = quick.vmproxy.apply("--no-verify")
    assert ran.code == 0, ran
    assert "Docker has IPv6 in the VM, and containers get no door by it: nothing answers" in ran.err, ran
    assert quick.dump() == before
    with quick.proxy():
        later = quick.vmproxy.apply("--no-verify")
        assert (later.code, bool(quick.rules())) == (0, True), later
        ran = quick.vmproxy.apply("--no-verify", "--gateway", "10.0.2.2")
        assert (ran.code, "--gateway names the host's address" in ran.err) == (0, True), ran
        assert quick.dump() == before
    assert quick.vmproxy.remove().code == 0
    quick.machine.run("ip -6 route replace default via fe80::2 dev eth0 metric 3")
    ran = quick.vmproxy.apply("--no-verify")
    assert (ran.code, "the IPv6 gateway is a link-local address" in ran.err) == (0, True), ran
    assert quick.dump() == before


def test_a_failure_at_ipv6_puts_ipv4_back(quick: World) -> None:
    """ip6tables-restore fails after IPv4 was written: both families are as before, exit 7."""
    before, before4 = quick.dump(), dump(quick.machine)
    variant = "legacy" if b"legacy" in quick.machine.run(["iptables", "-V"]).stdout else "nft"
    name = f"ip6tables-{variant}-restore"
    shim(quick.machine, name, f'case "$*" in *--test*) exec /usr/sbin/{name} "$@" ;; esac; echo sorry >&2; exit 1')
    with quick.proxy():
        ran = quick.vmproxy.apply("--no-verify")
    assert (ran.code, "sorry" in ran.err) == (7, True), ran
    assert (quick.dump(), dump(quick.machine)) == (before, before4)


def test_docker_without_ipv6_is_left_alone(quick: World) -> None:
    """No IPv6 in Docker: ip6tables is not run, nothing is said or written."""
    quick.machine.run(f"ip -6 addr del {BRIDGE}/64 dev docker0")
    for name in ("ip6tables-nft-save", "ip6tables-legacy-save", "ip6tables-nft-restore", "ip6tables-legacy-restore"):
        shim(quick.machine, name, "touch /run/asked; exit 1")
    ran = quick.vmproxy.apply("--no-verify")
    assert (ran.code, "IPv6" in ran.all) == (0, False), ran
    assert not quick.machine.path("/run/asked").exists()
