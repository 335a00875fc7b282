"""What the real Docker daemon makes of it: its environment, a pull, credentials, containers that run, a new gateway."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.lab.hostside import ask, listen
from tests.lab.nsvm import NamespaceVM
from tests.lab.proxy import LabProxy
from tests.ns.story import (
    BOOTLOCAL,
    DATA,
    GET,
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
    settled,
    shim,
)
from vmproxy import converge

URL = "http://10.0.2.2:8123"
NO_PROXY = "localhost,127.0.0.1,::1"
REGISTRY = "192.0.2.7:5000"


@dataclass(frozen=True, kw_only=True)
class World:
    """A VM with real dockerd, the proxy on its host, vmproxy."""

    machine: NamespaceVM
    proxy: LabProxy
    vmproxy: Vmproxy


@pytest.fixture(scope="module")
def booted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """One VM for all tests of this file."""
    with NamespaceVM() as machine, host_proxy(machine) as proxy:
        machine.import_image()
        yield World(machine=machine, proxy=proxy, vmproxy=Vmproxy(machine, tmp_path_factory.mktemp("home")))


@pytest.fixture
def world(booted: World) -> World:
    """The same, booted anew without anything of ours."""
    for name in ("bootsync.sh", "userdata.tar"):
        booted.machine.path(f"{DATA}/{name}").unlink(missing_ok=True)
    reset(booted.machine)
    booted.proxy.forget()
    return booted


def live_restore(machine: NamespaceVM) -> None:
    """Boot with live-restore on."""
    text = json.dumps({"live-restore": True})
    machine.path(f"{DATA}/bootsync.sh").write_text(f"mkdir -p /etc/docker\necho '{text}' >/etc/docker/daemon.json\n")
    machine.restart_boot()


@contextlib.contextmanager
def running(machine: NamespaceVM) -> Iterator[str]:
    """A container that runs; its id."""
    yield machine.docker("run", "-d", "--stop-timeout", "1", "--name", "box", "busybox", "sleep", "1000")
    machine.docker("rm", "-f", "box", check=False)


def pull(machine: NamespaceVM, *, seconds: int = 4) -> None:
    """Try to pull an image from a registry that nobody can reach. An address: dockerd looks a name up even so. A proxy
    says no at once; without one nobody says anything, for as long as one waits."""
    machine.run(["timeout", str(seconds), "docker", "pull", f"{REGISTRY}/app"], check=False)


def test_docker_info_shows_the_proxy(world: World) -> None:
    """After apply ``docker info`` names the proxy and the exceptions, after remove it names none."""
    ran = world.vmproxy.apply()
    assert ran.code == 0, ran
    wanted = f"{URL} {URL} {NO_PROXY}"
    assert world.machine.docker("info", "--format", "{{.HTTPProxy}} {{.HTTPSProxy}} {{.NoProxy}}") == wanted
    assert f"HTTP Proxy: {URL}" in world.machine.docker("info")
    environment = daemon_environment(world.machine)
    for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY"):
        assert environment[name] == URL
    for name in ("no_proxy", "NO_PROXY"):
        assert environment[name] == NO_PROXY
    assert world.vmproxy.remove().code == 0
    assert world.machine.docker("info", "--format", "{{.HTTPProxy}}{{.HTTPSProxy}}{{.NoProxy}}") == ""
    assert set(daemon_environment(world.machine)) <= {"PATH", "PWD"}


def test_pull_makes_a_connect_reach_the_hosts_proxy(world: World) -> None:
    """``docker pull`` asks the host's proxy for the registry by CONNECT; before apply and after remove it does not."""
    asked = f"CONNECT {REGISTRY} HTTP/1.1"
    pull(world.machine)
    assert asked not in world.proxy.lines
    assert world.vmproxy.apply("--no-verify").code == 0
    pull(world.machine, seconds=60)
    assert asked in world.proxy.lines
    assert world.vmproxy.remove().code == 0
    world.proxy.forget()
    pull(world.machine)
    assert world.proxy.lines == []


# ---- containers that run --------------------------------------------------------------------------------------------


def test_f49_running_containers_make_the_restart_pending(world: World) -> None:
    """Containers run, no live-restore: all but the restart is done, exit 3, their number said; always restarts."""
    with running(world.machine) as box:
        pid = daemon_pid(world.machine)
        ran = world.vmproxy.apply()
        assert ran.code == 3, ran
        assert "restart is pending (1 " in ran.all
        assert "--restart always" in ran.err
        assert daemon_pid(world.machine) == pid
        assert box.startswith(world.machine.docker("ps", "-q"))
        assert ours(dump(world.machine))
        assert held(world.machine, PROFILE) is not None
        # The door is open all the same: containers need no restart of Docker's.
        with world.machine.container_network("box") as inside:
            assert ask(inside, "172.17.0.1", 8123, send=GET).startswith("HTTP/1.1 200")
        for command in ("apply", "status"):
            again = world.vmproxy.command(command)
            assert again.code == {"apply": 3, "status": 1}[command], again
            assert "restart" in again.all
        done = world.vmproxy.apply("--restart", "always")
        assert done.code == 0, done
        assert daemon_pid(world.machine) not in (0, pid)
        assert daemon_environment(world.machine)["http_proxy"] == URL
        assert world.vmproxy.status().code == 0


def test_f49_yes_answers_the_question(world: World) -> None:
    """``--yes`` restarts Docker although containers run."""
    with running(world.machine):
        pid = daemon_pid(world.machine)
        ran = world.vmproxy.apply("--yes", "--no-verify")
        assert ran.code == 0, ran
        assert daemon_pid(world.machine) not in (0, pid)


def test_f50_live_restore_keeps_the_containers(world: World) -> None:
    """With live-restore on Docker is restarted by itself, and the same containers run before and after."""
    live_restore(world.machine)
    with running(world.machine):
        pid, before = daemon_pid(world.machine), world.machine.docker("ps", "-q")
        ran = world.vmproxy.apply()
        assert ran.code == 0, ran
        assert daemon_pid(world.machine) not in (0, pid)
        assert daemon_environment(world.machine)["http_proxy"] == URL
        assert world.machine.docker("ps", "-q") == before
        assert world.vmproxy.remove().code == 0
        assert world.machine.docker("ps", "-q") == before
        assert "http_proxy" not in daemon_environment(world.machine)


# ---- what goes wrong, what changes ----------------------------------------------------------------------------------


def test_f46_real_dockerd_that_does_not_start_is_given_its_old_environment(world: World) -> None:
    """dockerd refuses the new environment: exit 7, its log's last words shown, all as before, Docker runs."""
    shim(
        world.machine,
        "dockerd",
        '[ -z "$http_proxy" ] || { echo no such $http_proxy; exit 1; }\nexec /usr/sbin/dockerd "$@"',
    )
    before, kept = dump(world.machine), files(world.machine)
    secret = {"VMPROXY_PROXY": "http://me:w0rd@127.0.0.1:8123"}
    ran = world.vmproxy.apply("--no-check", "--no-verify", environ=secret)
    assert ran.code == 7, ran
    assert "no such http" in ran.err
    assert "w0rd" not in ran.all
    assert "Traceback" not in ran.err
    world.machine.wait_for_docker()
    assert "http_proxy" not in daemon_environment(world.machine)
    assert files(world.machine) == kept
    assert sorted(dump(world.machine)) == sorted(before)


def test_apply_twice_in_one_process(world: World) -> None:
    """The stories can be told from Python too: apply, apply, status and remove with their reports."""
    first, second = world.vmproxy.converged(), world.vmproxy.converged()
    assert (first.changed, second.changed, second.gateway) == (True, False, "10.0.2.2")
    assert world.vmproxy.tell(converge.status).ok
    assert world.vmproxy.tell(converge.remove).changed
    assert not ours(dump(world.machine))


def test_f57_a_new_gateway_is_drift_and_apply_converges(world: World) -> None:
    """The VM's default route moves: status names the old and the new gateway, apply leads rules and dockerd there."""
    assert world.vmproxy.apply().code == 0
    world.machine.run("ip route replace default via 10.0.2.3")
    with LabProxy(listen(world.machine.surroundings.host, "10.0.2.3", 8123)) as second:
        status = world.vmproxy.status()
        assert status.code == 1, status
        assert "10.0.2.2" in status.out
        assert "10.0.2.3" in status.out
        ran = world.vmproxy.apply()
        assert ran.code == 0, ran
        assert second.lines
    assert world.vmproxy.status().code == 0
    assert not [line for line in dump(world.machine) if "10.0.2.2" in line]
    assert daemon_environment(world.machine)["http_proxy"] == "http://10.0.2.3:8123"
    for path in (PROFILE, BOOTLOCAL):
        assert b"10.0.2.2" not in world.machine.path(path).read_bytes()


def test_docker_machine_style_vm_still_answers_on_2376(world: World) -> None:
    """userdata.tar and no profile: dockerd answers on 2376 over TLS before apply, after it, a reboot, and remove."""
    seen = []

    def remote() -> None:
        keys = "/home/docker/.docker"
        tls = [f"--tlscacert={keys}/ca.pem", f"--tlscert={keys}/cert.pem", f"--tlskey={keys}/key.pem", "--tlsverify"]
        client = ["docker", *tls, "-H", "tcp://10.0.2.15:2376", "version", "--format", "{{.Server.Os}}"]
        seen.append(world.machine.run(client, check=False).stdout.decode().strip())

    world.machine.path(f"{DATA}/userdata.tar").touch()
    world.machine.restart_boot()
    remote()
    ran = world.vmproxy.apply("--no-verify")
    assert ran.code == 0, ran
    remote()
    world.machine.restart_boot()
    settled(world.machine)
    remote()
    assert world.vmproxy.status().code == 0
    assert world.vmproxy.remove().code == 0
    remote()
    assert seen == ["linux"] * 4
    assert held(world.machine, PROFILE) is None
