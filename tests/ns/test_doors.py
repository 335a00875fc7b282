"""Other doors than the usual one, on real dockerd: another port, a proxy beyond the host, none needed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.lab.hostside import ask, connect, listen
from tests.lab.nsvm import NamespaceVM
from tests.lab.proxy import LabProxy
from tests.ns.story import GET, Vmproxy, daemon_environment, dump, host_proxy, ours, reset, settled

REACHED = "HTTP/1.1 200 OK"
LAN = "192.168.99.1"


@dataclass(frozen=True, kw_only=True)
class World:
    """A VM with real dockerd; the proxy of its host, and one on the LAN at port 3128."""

    machine: NamespaceVM
    host: LabProxy
    lan: LabProxy
    vmproxy: Vmproxy

    def get(self, network: str, address: str, port: int) -> str:
        """What a container on that network gets for the proxy's own name at this address: status line or word."""
        self.machine.docker("run", "-d", "--name", "probe", "--network", network, "busybox", "sleep", "1000")
        with self.machine.container_network("probe") as inside:
            answer = ask(inside, address, port, send=GET, seconds=4.0)
        self.machine.docker("rm", "-f", "probe")
        return answer.partition("\r\n")[0]


@pytest.fixture(scope="module")
def booted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """One VM for all tests of this file."""
    with NamespaceVM() as machine, host_proxy(machine) as host:
        network = machine.surroundings.lan
        with LabProxy(listen(network, LAN, 3128), dial=lambda to, at: connect(network, to, at, seconds=5.0)) as lan:
            machine.import_image()
            machine.docker("network", "create", "--subnet", "172.30.1.0/24", "own")
            vmproxy = Vmproxy(machine, tmp_path_factory.mktemp("home"))
            yield World(machine=machine, host=host, lan=lan, vmproxy=vmproxy)


@pytest.fixture
def world(booted: World) -> World:
    """The same, booted anew without anything of ours."""
    reset(booted.machine)
    booted.host.forget()
    booted.lan.forget()
    return booted


def test_listen_port_is_where_containers_knock(world: World) -> None:
    """--listen-port 18123: that port of the bridges is the door, the proxy's own is none; at boot too."""
    ran = world.vmproxy.apply("--listen-port", "18123")
    assert ran.code == 0, ran
    assert daemon_environment(world.machine)["http_proxy"] == "http://10.0.2.2:8123"
    world.machine.restart_boot()
    settled(world.machine)
    assert world.vmproxy.status().code == 0
    assert world.get("bridge", "172.17.0.1", 18123) == REACHED
    assert world.get("own", "172.30.1.1", 18123) == REACHED
    assert world.get("bridge", "172.17.0.1", 8123) == "refused"
    assert world.vmproxy.verify().code == 0


def test_forward_opens_a_door_to_a_proxy_beyond_the_host(world: World) -> None:
    """--forward: the bridge address leads to a proxy on the VM's LAN, and only there; dockerd asks it itself."""
    before = dump(world.machine)
    ran = world.vmproxy.apply("--forward", "--proxy", f"http://{LAN}:3128")
    assert ran.code == 0, ran
    assert world.get("bridge", "172.17.0.1", 3128) == REACHED
    assert world.get("own", "172.30.1.1", 3128) == REACHED
    assert world.lan.lines
    assert not world.host.lines
    assert "http://172.17.0.1:3128" in world.vmproxy.env().out
    assert daemon_environment(world.machine)["http_proxy"] == f"http://{LAN}:3128"
    assert not [line for line in ours(dump(world.machine)) if "10.0.2.2" in line]
    assert world.vmproxy.status().code == 0
    assert world.vmproxy.remove().code == 0
    assert sorted(dump(world.machine)) == sorted(before)


def test_proxy_elsewhere_needs_no_door(world: World) -> None:
    """A proxy that containers reach by themselves: no rule is made, and containers are told its own address."""
    before = dump(world.machine)
    ran = world.vmproxy.apply("--proxy", f"http://{LAN}:3128")
    assert ran.code == 0, ran
    assert sorted(dump(world.machine)) == sorted(before)
    assert f"http://{LAN}:3128" in world.vmproxy.env().out
    assert world.get("bridge", LAN, 3128) == REACHED
    assert world.vmproxy.verify().code == 0
    assert world.vmproxy.remove().code == 0


def test_from_one_door_to_another(world: World) -> None:
    """Another port, then another proxy: each apply leaves exactly its own door, and remove leaves none."""
    before = dump(world.machine)
    assert world.vmproxy.apply("--no-verify").code == 0
    assert world.vmproxy.apply("--no-verify", "--listen-port", "18123").code == 0
    assert world.get("bridge", "172.17.0.1", 8123) == "refused"
    assert world.get("bridge", "172.17.0.1", 18123) == REACHED
    ran = world.vmproxy.apply("--no-verify", "--proxy", f"http://{LAN}:3128")
    assert ran.code == 0, ran
    assert not ours(dump(world.machine))
    assert world.get("bridge", "172.17.0.1", 18123) == "refused"
    assert world.vmproxy.status().code == 0
    assert world.vmproxy.remove().code == 0
    assert sorted(dump(world.machine)) == sorted(before)


def test_a_listener_that_comes_later_is_told_by_status(world: World) -> None:
    """Something starts to listen on the door's port in the VM: status says so; before apply it is refused, exit 6."""
    assert world.vmproxy.apply("--no-verify").code == 0
    with listen(world.machine.surroundings.vm, "0.0.0.0", 8123):
        status = world.vmproxy.status()
        assert status.code == 1, status
        assert "0.0.0.0:8123" in status.out
        assert world.vmproxy.remove().code == 0
        before = dump(world.machine)
        refused = world.vmproxy.apply("--no-verify")
        assert refused.code == 6, refused
        assert "--listen-port" in refused.err
        assert dump(world.machine) == before
        other = world.vmproxy.apply("--no-verify", "--listen-port", "18123")
        assert other.code == 0, other
