"""``docker:`` against the engine of a real VM: in by a container, out without a trace, and over Docker's own restart.

Debian 13's Docker: on a machine that lacks one capability the older one makes no privileged container at all.
"""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab import default_cache
from tests.lab.nsvm import NamespaceVM
from tests.lab.tree import build_tree
from tests.ns.story import (
    DATA,
    PROFILE,
    Vmproxy,
    daemon_environment,
    daemon_pid,
    dump,
    files,
    host_proxy,
    ours,
    shim,
    stop,
    until,
)
from vmproxy.transports import docker

DAEMON_JSON = "/etc/docker/daemon.json"
WAY = "/run/[v]mproxy-way.*"  # a pattern that does not match itself among the words of processes


class ByEngine(Vmproxy):
    """vmproxy on a host that has a docker client, Docker 20.10's, and no login in the VM."""

    def __init__(self, machine: NamespaceVM, directory: Path) -> None:
        super().__init__(machine, directory)
        self.target, self.vm_words = "docker:", ("--vm", "docker:")
        programs = directory / "bin"
        programs.mkdir()
        (programs / "docker").symlink_to(build_tree(default_cache()) / "usr/bin/docker")
        self.client = str(programs / "docker")
        self.engine = f"unix://{machine.path('/run/docker.sock')}"

    @property
    def environ(self) -> dict[str, str]:
        """The whole environment of each run."""
        usual = super().environ
        return {**usual, "PATH": f"{self.home / 'bin'}:{usual['PATH']}", "DOCKER_HOST": self.engine}

    def left(self) -> list[str]:
        """What of ours is in the engine and in the VM's memory."""
        run = self.machine.run
        marked = "docker ps -aq --filter label=vmproxy; docker images -aq --filter label=vmproxy"
        found = run(f"{marked}; ls -d {WAY} 2>/dev/null; ps -e -o args | grep '[v]mproxy-way'", check=False)
        return found.stdout.decode().split()

    def nothing_left(self) -> None:
        """Containers, images, files and processes of ours are gone, or go now."""
        until(lambda: not self.left(), "nothing of ours is left")


@pytest.fixture(scope="module")
def vmproxy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ByEngine]:
    """One VM for all tests of this file; every test leaves it as it was. There is no image in its engine."""
    with NamespaceVM(release="trixie") as machine, host_proxy(machine):
        yield ByEngine(machine, tmp_path_factory.mktemp("home"))


def state(machine: NamespaceVM) -> list[object]:
    """What apply changes."""
    proxy = daemon_environment(machine).get("http_proxy", "") if daemon_pid(machine) else "no Docker"
    return [dump(machine), files(machine), proxy]


def test_the_whole_story(vmproxy: ByEngine) -> None:
    """detect-gateway, apply over a Docker restart, status, a second apply, verify, remove: as before, byte for byte."""
    machine = vmproxy.machine
    machine.path(PROFILE).write_bytes(b"# theirs, no newline at the end")
    before, pid = state(machine), daemon_pid(machine)
    found = vmproxy.detect()
    assert (found.code, found.out) == (0, "10.0.2.2\n"), found
    ran = vmproxy.json("apply")
    assert ran.code == 0, ran
    assert ran.vm["changed"]
    assert daemon_pid(machine) != pid
    assert daemon_environment(machine)["http_proxy"] == "http://10.0.2.2:8123"
    assert ours(dump(machine))
    assert vmproxy.status().code == 0
    pid = daemon_pid(machine)
    again = vmproxy.json("apply")
    assert (again.code, again.vm["changed"], daemon_pid(machine)) == (0, False, pid), again
    proved = vmproxy.json("verify")
    assert proved.code == 0, proved
    assert [leg["subject"] for leg in proved.vm["findings"]] == ["vm", "bridge", "network"]
    removed = vmproxy.remove()
    assert removed.code == 0, removed
    machine_now = state(machine)
    assert machine_now == before
    vmproxy.nothing_left()
    assert machine.docker("images", "-aq") == ""


def test_contexts(vmproxy: ByEngine) -> None:
    """A context of the client by its name, before DOCKER_HOST; one that is not there is exit 2."""
    environ = {**vmproxy.environ, "DOCKER_HOST": "unix:///nowhere/docker.sock"}
    create = [vmproxy.client, "context", "create", "lab", "--docker", f"host={vmproxy.engine}"]
    subprocess.run(create, env=environ, capture_output=True, check=True, timeout=60)
    ran = vmproxy.run("detect-gateway", "--vm", "docker:lab", environ=environ)
    assert (ran.code, ran.out) == (0, "10.0.2.2\n"), ran
    gone = vmproxy.run("status", "--vm", "docker:other")
    assert (gone.code, "docker context ls" in gone.err) == (2, True), gone
    unreachable = vmproxy.run("status", "--vm", "docker:", environ=environ)
    assert unreachable.code == 4, unreachable
    vmproxy.nothing_left()


def test_docker_desktop(vmproxy: ByEngine) -> None:
    """A VM that says it is Docker Desktop's is refused with the place of its proxy settings; its gateway is told."""
    machine = vmproxy.machine
    before, release = state(machine), machine.path("/etc/os-release").read_bytes()
    machine.path("/etc/os-release").write_text('PRETTY_NAME="Docker Desktop"\n')
    ran = vmproxy.apply()
    assert (ran.code, "Settings > Resources > Proxies" in ran.err) == (6, True), ran
    found = vmproxy.detect()
    assert (found.code, found.out) == (0, "10.0.2.2\n"), found
    machine.path("/etc/os-release").write_bytes(release)
    assert state(machine) == before
    vmproxy.nothing_left()


def test_what_a_reboot_forgets_is_said(vmproxy: ByEngine) -> None:
    """A change that would not outlive the next boot is warned of before it is made; --require-persistent is exit 6."""
    machine = vmproxy.machine
    before = state(machine)
    machine.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", DATA])
    try:
        ran = vmproxy.apply("--dry-run")
        assert ran.code == 0, ran
        assert "warning: docker: " in ran.err and "not on a lasting disk" in ran.err, ran
        ran = vmproxy.apply("--require-persistent")
        assert (ran.code, "not on a lasting disk" in ran.err) == (6, True), ran
    finally:
        machine.run(["umount", DATA])
    assert state(machine) == before
    vmproxy.nothing_left()


def test_a_helper_image(vmproxy: ByEngine) -> None:
    """One that has nsenter is the way in and stays; one without is exit 6, one that is not there is exit 2."""
    machine = vmproxy.machine
    parts = "/usr/bin/nsenter $(ldd /usr/bin/nsenter | grep -o '/[^ ]*')"
    machine.run(f"tar -C / -chf - {parts} | docker import - tools:1")
    machine.run("tar -C / -cf - etc/hostname | docker import - empty:1")
    ran = vmproxy.detect("--helper-image", "tools:1")
    assert (ran.code, ran.out) == (0, "10.0.2.2\n"), ran
    without = vmproxy.status("--helper-image", "empty:1")
    assert (without.code, "nsenter" in without.err) == (6, True), without
    absent = vmproxy.status("--helper-image", "absent")
    assert (absent.code, "docker pull absent" in absent.err) == (2, True), absent
    vmproxy.nothing_left()
    assert sorted(machine.docker("images", "--format", "{{.Repository}}").split()) == ["empty", "tools"]
    machine.docker("rmi", "tools:1", "empty:1")


def test_running_containers(vmproxy: ByEngine) -> None:
    """Our own container is not counted: another one makes the restart pending; with live-restore it runs through it."""
    machine = vmproxy.machine
    machine.import_image()
    before = state(machine)
    machine.docker("run", "-d", "--name", "box", "busybox", "sleep", "1000")
    ran = vmproxy.json("apply", "--no-verify")
    assert (ran.code, "1 container runs" in ran.vm["message"]) == (3, True), ran
    machine.run(f"mkdir -p {DAEMON_JSON.rpartition('/')[0]}; cat > {DAEMON_JSON}", stdin=b'{"live-restore": true}')
    machine.run("/etc/init.d/docker restart")
    machine.wait_for_docker()
    machine.docker("start", "box")
    pid = daemon_pid(machine)
    removed = vmproxy.remove()
    assert removed.code == 0, removed
    assert daemon_pid(machine) != pid
    assert machine.docker("ps", "--format", "{{.Names}}") == "box"
    machine.docker("rm", "-f", "box")
    vmproxy.nothing_left()
    machine.docker("rmi", "busybox")
    machine.run(["rm", DAEMON_JSON])
    machine.run("/etc/init.d/docker restart")
    machine.wait_for_docker()
    assert state(machine) == before


def begin(vmproxy: ByEngine) -> subprocess.Popen[bytes]:
    """An apply that a test will end."""
    return subprocess.Popen(
        vmproxy.argv("apply", *vmproxy.vm_words, "--no-verify"),
        env=vmproxy.environ,
        cwd=vmproxy.home,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def test_ctrl_c_while_there_is_no_engine(vmproxy: ByEngine) -> None:
    """Docker is down in its restart: exit 130 comes when the VM has put everything back, Docker's environment too."""
    machine = vmproxy.machine
    before = state(machine)
    late = shim(machine, "dockerd", 'while [ -e /run/late ]; do sleep 0.1; done; exec /usr/sbin/dockerd "$@"')
    machine.path("/run/late").touch()
    with begin(vmproxy) as process:
        try:
            until(lambda: not daemon_pid(machine), "Docker goes down", 60)
            process.send_signal(signal.SIGINT)
            machine.path("/run/late").unlink()
            said, _ = process.communicate(timeout=120)
        finally:
            stop(process)
    assert process.returncode == 130, said
    assert state(machine) == before
    machine.path(late).unlink()
    vmproxy.nothing_left()


def test_a_client_that_is_killed(vmproxy: ByEngine) -> None:
    """It is killed when the rules are made and the first file is about to be: the VM puts all back by itself."""
    machine = vmproxy.machine
    before = state(machine)
    hold = 'case "$*" in *profile) touch /run/there; while [ -e /run/late ]; do sleep 0.1; done ;; esac'
    late = shim(machine, "mv", f'{hold}; exec /bin/mv "$@"')
    machine.path("/run/late").touch()
    with begin(vmproxy) as process:
        try:
            until(machine.path("/run/there").exists, "a file is about to be replaced", 60)
            assert ours(dump(machine))
        finally:
            stop(process)
    machine.path("/run/late").unlink()
    until(lambda: state(machine) == before, "everything is put back", 60)
    machine.path(late).unlink()
    until(lambda: len(vmproxy.left()) == 1, "only the image is left", 90)
    machine.docker("rmi", *vmproxy.left())


def test_nobody_comes_back(vmproxy: ByEngine) -> None:
    """The container was ended by the engine and no other one comes: after a while the command's input ends, so that it
    puts back what it has changed; then the directory goes."""
    machine = vmproxy.machine
    text = docker._text("keep.sh")
    for name, seconds in (("patience", 180), ("farewell", 15)):
        assert f"{name}={seconds}" in text
        text = text.replace(f"{name}={seconds}", f"{name}=1")
    place = "/run/vmproxy-way.0123"
    machine.run(f"mkdir -m 700 {place}; cd {place}; mkfifo pipe; echo given >in; : >out; : >err; echo 4194305 >relay")
    machine.run(["sh", "-c", text, "vmproxy", place, "{ cat; echo ended; } >/run/heard"])
    assert machine.path("/run/heard").read_text() == "given\nended\n"
    vmproxy.nothing_left()
