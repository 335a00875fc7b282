"""The post-start hook: ``vmproxy apply --vm NAME --wait 60 -q``, run as the VM starts, with no terminal."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.nsvm import NamespaceVM
from tests.ns.conftest import HostProxy
from tests.ns.endings import Base, unchanged
from tests.ns.story import (
    BOOTLOCAL,
    PROFILE,
    ROOT,
    Ran,
    Vmproxy,
    daemon_environment,
    dump,
    files,
    ours,
    settled,
    shim,
    stop,
)
from vmproxy import converge
from vmproxy.model import Event


class Hook:
    """The hook's own process: an environment of HOME and PATH alone, no terminal, no stdin, its own session."""

    def __init__(self, vmproxy: Vmproxy, *words: str) -> None:
        self._argv = vmproxy.argv("apply", *vmproxy.vm_words, *(words or ("--wait", "60")), "-q")
        self._started = time.monotonic()
        self._process = subprocess.Popen(
            self._argv,
            cwd=ROOT,
            env={"HOME": str(vmproxy.home), "PATH": os.environ["PATH"]},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )

    @property
    def waits(self) -> bool:
        """Whether it still runs."""
        return self._process.poll() is None

    def ended(self) -> Ran:
        """How it ended."""
        try:
            out, err = self._process.communicate(timeout=100)
        finally:
            stop(self._process)
        seconds = time.monotonic() - self._started
        return Ran(
            argv=tuple(self._argv), code=self._process.returncode, out=out.decode(), err=err.decode(), seconds=seconds
        )


def silent(ran: Ran) -> None:
    """It did its job and said nothing."""
    assert (ran.code, ran.out, ran.err) == (0, "", ""), ran


def one_line(ran: Ran, code: int, word: str) -> None:
    """It failed: that exit code, and exactly one line."""
    assert ran.code == code, ran
    assert ran.out == ""
    (line,) = ran.err.splitlines()
    assert line.startswith("vmproxy: error: ")
    assert word in line, ran


@pytest.fixture
def slow(tmp_path: Path) -> Iterator[NamespaceVM]:
    """A VM that is off, and whose Docker takes two seconds to come up."""
    switches = tmp_path / "overlay/run/lab/stub"
    switches.mkdir(parents=True)
    (switches / "slow-start").write_text("2")
    with NamespaceVM(docker="stub", overlay=tmp_path / "overlay") as machine:
        machine.kill()
        yield machine


def test_cold_with_a_real_docker(fresh_vm: NamespaceVM, tmp_path: Path, host_proxy: HostProxy) -> None:
    """Started while the VM is off: it waits for ssh, for Docker's bridge and rules, and does the whole job."""
    host_proxy(fresh_vm)
    vmproxy = Vmproxy(fresh_vm, tmp_path)
    fresh_vm.kill()
    hook = Hook(vmproxy)
    time.sleep(0.5)
    assert hook.waits
    fresh_vm.boot()
    silent(hook.ended())
    assert daemon_environment(fresh_vm)["http_proxy"] == "http://10.0.2.2:8123"
    assert vmproxy.tell(converge.status).ok


def test_it_waits_for_docker(slow: NamespaceVM, tmp_path: Path, host_proxy: HostProxy) -> None:
    """ssh is up long before Docker is: it waits for Docker, then does the job."""
    host_proxy(slow)
    vmproxy = Vmproxy(slow, tmp_path)
    hook = Hook(vmproxy, "--wait", "60", "--no-verify")  # the stub has no containers to ask from
    slow.boot()
    silent(hook.ended())
    assert len(ours(dump(slow))) > 5
    assert vmproxy.tell(converge.status).ok


def test_at_each_later_start_it_is_a_no_op(slow: NamespaceVM, tmp_path: Path, host_proxy: HostProxy) -> None:
    """After a reboot the VM is in order by itself: the hook looks, writes nothing, says nothing."""
    host_proxy(slow)
    vmproxy = Vmproxy(slow, tmp_path)
    slow.boot()
    silent(Hook(vmproxy, "--wait", "60", "--no-verify").ended())
    slow.restart_boot()
    ran = vmproxy.status("--wait", "60")  # until Docker is up, and the boot script has made the rules
    assert ran.code == 0 and "in sync" in ran.all, ran
    settled(slow)
    with unchanged(slow):
        silent(Hook(vmproxy).ended())


def test_status_waits_for_the_boot_script_and_for_nothing_else(base: Base, vmproxy: Vmproxy) -> None:
    """Rules that the VM makes by itself are waited for as long as --wait allows; a file that differs, and rules whose
    boot script does, come by nothing: that is said at once, whatever --wait allows."""
    wait = {"wait_seconds": 3600.0}
    report = vmproxy.tell(converge.status, **wait)
    assert report.message == "not applied"
    assert vmproxy.tell(converge.apply, check=False, verify=False).ok
    base.machine.run("iptables -w -F VMPROXY-FORWARD && iptables -w -t nat -F VMPROXY-PREROUTING")
    assert vmproxy.tell(converge.status).exit == 1
    looks = 0

    def boot(event: Event) -> None:
        nonlocal looks
        looks += event.text == "looking"
        if event.text == "looking" and looks == 2:
            base.machine.run(["sh", BOOTLOCAL])

    report = converge.status(vmproxy.target, vmproxy.settings(**wait), progress=boot)
    assert report.message == "in sync" and looks >= 2
    settled(base.machine)
    for path, words in ((BOOTLOCAL, b"rules are in place"), (PROFILE, b"export HTTPS_PROXY=")):
        content = base.machine.path(path).read_bytes()
        base.machine.run("iptables -w -F VMPROXY-FORWARD")
        base.machine.path(path).write_bytes(content.replace(words, b"#"))
        report = vmproxy.tell(converge.status, **wait)
        assert report.exit == 1 and any(path in found.subject for found in report.findings), report
        base.machine.path(path).write_bytes(content)


def test_the_no_op_is_one_look(base: Base, vmproxy: Vmproxy) -> None:
    """Nothing differs: one exec by one sudo, no lock taken, no question asked at any proxy (there is none)."""
    assert vmproxy.tell(converge.apply, check=False, verify=False).ok
    for name, real in (("sudo", "/usr/bin/sudo"), ("flock", "/usr/bin/flock")):
        shim(base.machine, name, f'echo {name} >>/run/calls; chmod 666 /run/calls; exec {real} "$@"')
    base.machine.run(": >/run/calls; chmod 666 /run/calls")
    silent(Hook(vmproxy).ended())
    assert base.machine.path("/run/calls").read_text() == "sudo\n"
    base.machine.run("rm /run/calls")


def test_the_wish_is_the_recorded_one(base: Base, vmproxy: Vmproxy, host_proxy: HostProxy) -> None:
    """With nothing in its environment the hook wants what was applied by hand, also where docker-machine has
    rewritten profile."""
    host_proxy(base.machine, port=3128)
    words = ("--proxy", "http://127.0.0.1:3128", "--no-proxy", "registry.test", "--listen-port", "9000")
    assert vmproxy.apply(*words, "--no-verify").code == 0
    with unchanged(base.machine):
        silent(Hook(vmproxy).ended())
    before, rules = files(base.machine)[PROFILE], dump(base.machine)
    base.write(PROFILE, b"export DOCKER_HOST='-H tcp://0.0.0.0:2376'\n")
    silent(Hook(vmproxy, "--wait", "20", "--no-verify").ended())
    after = files(base.machine)[PROFILE]
    assert before is not None
    assert after is not None
    assert after.content == b"export DOCKER_HOST='-H tcp://0.0.0.0:2376'\n" + before.content.replace(
        b',"undo":["absent"]', b""
    )
    assert dump(base.machine) == rules
    assert daemon_environment(base.machine)["http_proxy"] == "http://10.0.2.2:3128"
    assert "registry.test" in daemon_environment(base.machine)["no_proxy"]


def test_failures_are_one_line(base: Base, vmproxy: Vmproxy) -> None:
    """The host's proxy is down: exit 6 and exactly one line; nothing changed."""
    with unchanged(base.machine):
        one_line(Hook(vmproxy, "--wait", "1").ended(), 6, "nothing answers at 10.0.2.2:8123")


def test_a_vm_that_never_comes_up(slow: NamespaceVM, tmp_path: Path) -> None:
    """No ssh within the wait: exit 4, one line."""
    one_line(Hook(Vmproxy(slow, tmp_path), "--wait", "2").ended(), 4, f"127.0.0.1:{slow.ssh_port}")


def test_docker_never_comes_up(tmp_path: Path) -> None:
    """ssh but no Docker within the wait: exit 6, one line, nothing changed."""
    switches = tmp_path / "overlay/run/lab/stub"
    switches.mkdir(parents=True)
    (switches / "slow-start").write_text("1000")
    with NamespaceVM(docker=False, overlay=tmp_path / "overlay") as machine:
        before = files(machine)
        one_line(Hook(Vmproxy(machine, tmp_path), "--wait", "2").ended(), 6, "bridge")
        assert files(machine) == before


def test_the_wait_is_not_for_ever(base: Base, vmproxy: Vmproxy) -> None:
    """A host key that is not the known one is no reason to wait: exit 4 at once."""
    known = vmproxy.home / "known"
    known.write_text(
        f"[127.0.0.1]:{base.machine.ssh_port} ssh-ed25519 "
        "AAAAC3NzaC1lZDI1NTE5AAAAIJ8dMR5pYdXvVGoz0yV3sTkRyGMNNpSHgcKS3m4pTvVd\n"
    )
    one_line(Hook(vmproxy, "--wait", "3600", "--known-hosts", str(known)).ended(), 4, "host key")
