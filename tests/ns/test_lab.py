"""The lab itself: what the namespace VM promises to the tests that stand on it."""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import paramiko
import pytest

from tests.lab import tree
from tests.lab.hostside import Greeter, ask, connect
from tests.lab.leftovers import sweep
from tests.lab.nsvm import NamespaceVM
from tests.lab.proxy import LabProxy
from tests.ns.conftest import HostProxy

PROFILE = "/var/lib/boot2docker/profile"
GET = b"GET http://only-the-proxy-knows.test/ HTTP/1.1\r\nHost: only-the-proxy-knows.test\r\n\r\n"


def until(holds: Callable[[], bool], seconds: float = 60.0) -> bool:
    """Whether something comes true in time."""
    limit = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > limit:
            return False
        time.sleep(0.02)
    return True


def log_in(machine: NamespaceVM, *, key: Path | None = None, password: str | None = None) -> str:
    """One command over ssh with the VM's known host key; what it said."""
    with paramiko.SSHClient() as client:
        client.load_host_keys(str(machine.known_hosts))
        client.set_missing_host_key_policy(paramiko.RejectPolicy())
        client.connect(
            "127.0.0.1",
            machine.ssh_port,
            "docker",
            key_filename=str(key) if key else None,
            password=password,
            allow_agent=False,
            look_for_keys=False,
            timeout=60,
            banner_timeout=60,
            auth_timeout=60,
        )
        _, stdout, _ = client.exec_command("id -un; sudo -n id -un", timeout=60)
        return stdout.read().decode()


def daemon_environment(machine: NamespaceVM) -> dict[str, str]:
    """The environment that the running dockerd was started with."""
    pid = machine.path("/run/docker.pid").read_text()
    pairs = machine.path(f"/proc/{pid.strip()}/environ").read_bytes().decode().split("\0")
    return dict(pair.split("=", 1) for pair in pairs if pair)


def test_two_vms_at_once_have_the_same_addresses_and_share_nothing(bare_vm: NamespaceVM) -> None:
    """Two VMs run side by side under the same addresses; rules, files and host keys are each one's own."""
    with NamespaceVM(docker=False) as other:
        for machine in (bare_vm, other):
            assert b"10.0.2.15/24" in machine.run("ip -4 -o addr show dev eth0").stdout
            assert log_in(machine, key=machine.key) == "docker\nroot\n"
        bare_vm.run("iptables -N ONLY-HERE; touch /only-here /var/lib/boot2docker/only-here")
        assert b"ONLY-HERE" not in other.run("iptables-save").stdout
        assert not other.path("/only-here").exists()
        assert not other.path("/var/lib/boot2docker/only-here").exists()
        assert bare_vm.known_hosts.read_text().split()[2] != other.known_hosts.read_text().split()[2]


def test_close_leaves_nothing() -> None:
    """After a VM with a running container is closed there is no process, mount, interface, control group or file."""
    before = traces()
    with NamespaceVM() as machine:
        machine.import_image()
        machine.docker("run", "-d", "busybox", "sleep", "1000")
        assert traces() != before
        pid = machine.pid
    assert not Path(f"/proc/{pid}").exists()
    assert traces() <= before


def test_kill_minus_nine_of_the_test_process_leaves_nothing() -> None:
    """A test process that dies by SIGKILL takes its VM along, and the next start sweeps what files it left."""
    sweep()
    before = traces()
    script = (
        "import time; from tests.lab.nsvm import NamespaceVM; vm = NamespaceVM(); vm.start();"
        "print(vm.pid, flush=True); time.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, env=os.environ | path_here()) as test:
        assert test.stdout is not None
        pid = int(test.stdout.readline())
        assert Path(f"/proc/{pid}").exists()
        test.send_signal(signal.SIGKILL)
    assert until(lambda: not Path(f"/proc/{pid}").exists())

    def swept() -> bool:
        """Who held the VM may still be dying."""
        sweep()
        return traces() <= before

    assert until(swept)


def path_here() -> dict[str, str]:
    """The environment that lets a child import the lab."""
    return {"PYTHONPATH": str(Path(__file__).resolve().parents[2])}


def traces() -> set[str]:
    """Everything on this machine that a VM of this lab could leave behind, but for other processes' VMs alive now."""
    mine = f"vmproxy-ns-{os.getpid()}-"
    found = {line for line in Path("/proc/self/mounts").read_text().splitlines() if "vmproxy-ns" in line}
    found |= {f"interface {name}" for _, name in socket.if_nameindex()}
    for top in (Path(tempfile.gettempdir()), Path("/sys/fs/cgroup")):
        for pattern in ("vmproxy-ns-*", "*/vmproxy-ns-*"):
            found |= {str(path) for path in top.glob(pattern) if mine in path.name or not alive(path.name)}
    return found


def alive(name: str) -> bool:
    """Whether the process that a VM's directory is named after still runs."""
    return Path(f"/proc/{name.split('-')[2]}").exists()


def test_docker_runs_a_container_without_a_registry(vm: NamespaceVM) -> None:
    """The imported busybox image runs, with an address on the default bridge."""
    assert "172.17.0." in vm.docker("run", "--rm", "busybox", "ip", "-4", "addr", "show", "dev", "eth0")


def test_forwarding_was_off_so_dockerd_sets_the_policy_to_drop(vm: NamespaceVM) -> None:
    """The VM starts as a fresh machine does: dockerd itself turns forwarding on and closes FORWARD."""
    assert b":FORWARD DROP" in vm.run("iptables-save -t filter").stdout


def test_legacy_variant_holds_dockers_rules(legacy_vm: NamespaceVM) -> None:
    """With iptables-legacy the rules of Docker are in the legacy tables and nft has none."""
    assert b"DOCKER-USER" in legacy_vm.run("iptables-legacy-save").stdout
    assert b"DOCKER-USER" not in legacy_vm.run("iptables-nft-save 2>/dev/null").stdout


def test_dockerd_gets_exported_variables_of_the_profile_and_no_others(fresh_vm: NamespaceVM) -> None:
    """What the profile exports reaches dockerd at boot; what it only sets does not."""
    fresh_vm.path(PROFILE).write_text("export HTTP_PROXY=http://10.0.2.2:8123\nHTTPS_PROXY=http://10.0.2.2:8123\n")
    fresh_vm.restart_boot()
    assert set(daemon_environment(fresh_vm)) - {"PWD", "PATH"} == {"HTTP_PROXY"}
    assert fresh_vm.docker("info", "--format", "{{.HTTPProxy}}") == "http://10.0.2.2:8123"


def test_docker_remote_goes_off_when_a_profile_appears(fresh_vm: NamespaceVM) -> None:
    """With userdata.tar and no profile 2376 is open; with any profile it is not, unless that names TLS."""
    seen = []
    fresh_vm.path("/var/lib/boot2docker/userdata.tar").touch()
    for profile in (None, "# nothing\n", "DOCKER_TLS=yes\n"):
        if profile is not None:
            fresh_vm.path(PROFILE).write_text(profile)
        fresh_vm.restart_boot()
        seen.append(ask(fresh_vm.surroundings.host, "10.0.2.15", 2376) != "refused")
    assert seen == [True, False, True]


def test_flows_before_any_rule(vm: NamespaceVM, host_proxy: HostProxy) -> None:
    """Every path of the flow table exists, and is open or shut as on a VM that vmproxy never touched."""
    network = vm.surroundings
    host_proxy(vm)
    vm.docker("run", "-d", "--name", "box", "-p", "8080:80", "busybox", "sleep", "1000")
    with (
        vm.container_network("box") as box,
        Greeter(network.outside, "0.0.0.0", 8123, "outside"),
        Greeter(box, "0.0.0.0", 80, "box"),
    ):
        seen = {
            # A bridge's new port may lose the first packet.
            "box to host": ask(box, "10.0.2.2", 8123, send=GET, seconds=20.0)[:15],
            "box to bridge": ask(box, "172.17.0.1", 8123, seconds=20.0),
            "box to outside": ask(box, "203.0.113.9", 8123, seconds=20.0),
            "lan to vm": ask(network.lan, "192.168.99.100", 8123),
            "lan to vm's sshd": ask(network.lan, "192.168.99.100", 22)[:4],
            "lan to host": ask(network.lan, "10.0.2.2", 8123),
            "outside to box": ask(network.outside, "203.0.113.1", 8080, seconds=20.0),
            "host to lan": ask(network.host, "192.168.99.1", 1),
        }
    vm.docker("rm", "-f", "box")
    assert seen == {
        "box to host": "HTTP/1.1 200 OK",
        "box to bridge": "refused",
        "box to outside": "outside sees 203.0.113.1",
        "lan to vm": "refused",
        "lan to vm's sshd": "SSH-",
        "lan to host": "silence",
        "outside to box": "box sees 203.0.113.9",
        "host to lan": "silence",
    }


def test_lan_reaches_the_host_as_soon_as_the_firewall_lets_it(bare_vm: NamespaceVM, host_proxy: HostProxy) -> None:
    """That a LAN host gets nothing is the firewall's doing: with forwarding on and no rule it does get through."""
    host_proxy(bare_vm)
    assert ask(bare_vm.surroundings.lan, "10.0.2.2", 8123, send=GET) == "silence"
    bare_vm.run("echo 1 >/proc/sys/net/ipv4/ip_forward")
    assert ask(bare_vm.surroundings.lan, "10.0.2.2", 8123, send=GET, seconds=20.0).startswith("HTTP/1.1 200")


def test_programs_run_in_each_network(bare_vm: NamespaceVM) -> None:
    """``host``, ``lan`` and ``outside`` run this machine's programs where the names say."""
    script = "import socket,sys; s = socket.create_connection((sys.argv[1], 22), 60); print(s.getsockname()[0])"
    for run, at, own in (
        (bare_vm.host, "10.0.2.15", b"10.0.2.2"),
        (bare_vm.lan, "192.168.99.100", b"192.168.99.1"),
        (bare_vm.outside, "203.0.113.1", b"203.0.113.9"),
    ):
        assert run([sys.executable, "-c", script, at]).stdout.strip() == own


@pytest.mark.parametrize(("ssh", "shell"), [("openssh", "dash"), ("dropbear", "busybox"), ("openssh", "bash")])
def test_ssh_logs_in_by_key_and_by_password(ssh: str, shell: str) -> None:
    """Both servers and all shells let ``docker`` in, by key and by boot2docker's password, and sudo asks nothing."""
    with NamespaceVM(docker=False, ssh=ssh, shell=shell) as machine:
        assert os.readlink(machine.path("/usr/bin/sh")) == shell
        assert log_in(machine, key=machine.key) == "docker\nroot\n"
        assert log_in(machine, password="tcuser") == "docker\nroot\n"


def test_reset_keeps_the_disk_and_the_port_and_loses_memory(stub_vm: NamespaceVM) -> None:
    """A reset keeps host key, port and /var/lib/boot2docker; files in RAM and rules are gone; bootlocal.sh runs."""
    port, known = stub_vm.ssh_port, stub_vm.known_hosts.read_text()
    stub_vm.run("touch /in-ram; iptables -N LOST")
    stub_vm.path("/var/lib/boot2docker/bootlocal.sh").write_text("touch /run/bootlocal-ran\n")
    stub_vm.restart_boot()
    assert (stub_vm.ssh_port, stub_vm.known_hosts.read_text()) == (port, known)
    assert not stub_vm.path("/in-ram").exists()
    assert b"LOST" not in stub_vm.run("iptables-save").stdout
    assert until(stub_vm.path("/run/bootlocal-ran").exists)


def test_overlay_is_laid_over_the_root_at_every_boot(tmp_path: Path) -> None:
    """A file of the overlay directory replaces the guest's own, again after a reset."""
    (tmp_path / "etc/init.d").mkdir(parents=True)
    script = tmp_path / "etc/init.d/docker"
    script.write_text("#!/bin/sh\necho $1 >>/var/lib/boot2docker/mine\n")
    script.chmod(0o755)
    with NamespaceVM(docker=False, overlay=tmp_path) as machine:
        machine.restart_boot()
        machine.run("/etc/init.d/docker anything")
        assert machine.path("/var/lib/boot2docker/mine").read_text() == "anything\n"


def test_lost_client_is_a_cut_connection(bare_vm: NamespaceVM) -> None:
    """``relay.cut()`` ends the connections of the moment on both sides and lets new ones in."""
    with socket.create_connection(("127.0.0.1", bare_vm.ssh_port), timeout=60) as connection:
        assert connection.recv(4) == b"SSH-"
        bare_vm.relay.cut()
        while connection.recv(4096):
            pass
    assert log_in(bare_vm, key=bare_vm.key) == "docker\nroot\n"


def test_stub_follows_its_switches(stub_vm: NamespaceVM) -> None:
    """The stub's dockerd has the profile's environment, fails to start as often as told, and refuses to stop."""
    stub_vm.path(PROFILE).write_text("export http_proxy=http://10.0.2.2:8123\n")
    stub_vm.run("/etc/init.d/docker restart")
    assert until(lambda: up(stub_vm))
    assert daemon_environment(stub_vm)["http_proxy"] == "http://10.0.2.2:8123"
    stub_vm.path("/run/lab/stub/running").write_text("2\n")
    stub_vm.path("/run/lab/stub/fail-start").write_text("1\n")
    assert stub_vm.docker("info", "--format", "{{.ContainersRunning}} {{.LiveRestoreEnabled}}") == "2 false"
    stub_vm.run("/etc/init.d/docker restart")
    assert until(lambda: not stub_vm.path("/run/lab/stub/fail-start").exists())
    assert not up(stub_vm)
    stub_vm.path("/run/lab/stub/fail-stop").touch()
    stub_vm.run("/etc/init.d/docker restart")
    assert until(lambda: up(stub_vm))
    assert stub_vm.run("/etc/init.d/docker stop", check=False).returncode == 1
    assert up(stub_vm)


def up(machine: NamespaceVM) -> bool:
    """Whether the stub's daemon answers."""
    return machine.run(["docker", "version"], check=False).returncode == 0


def test_two_builders_at_once_make_one_tree(tmp_path: Path) -> None:
    """Two processes that need the same tree build it once, and both get the whole of it."""
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        built = pool.map(stage_busybox, [tmp_path, tmp_path])
    assert built[0] == built[1]
    assert (built[0] / "usr/bin/busybox").is_file()
    assert not list(tmp_path.glob("*-building-*"))


def stage_busybox(cache: Path) -> Path:
    """A tree of one package."""
    return tree.stage(cache, "small", ("busybox",))


def test_host_proxy_sees_who_asks(bare_vm: NamespaceVM, host_proxy: HostProxy) -> None:
    """The proxy on the host answers its own name for the VM and writes down the VM's address."""
    proxy = host_proxy(bare_vm)
    assert isinstance(proxy, LabProxy)
    with connect(bare_vm.surroundings.vm, "10.0.2.2", 8123) as connection:
        connection.sendall(GET)
        with connection.makefile("rb") as answer:
            assert answer.read().endswith(b"\r\n\r\nthe proxy knows\n")
    assert [(request.client, request.line) for request in proxy.requests] == [
        ("10.0.2.15", "GET http://only-the-proxy-knows.test/ HTTP/1.1")
    ]
