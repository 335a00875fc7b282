"""The other ways in by SSH, live: the host's ssh program and jump hosts; apply, status, remove, and a Ctrl-C."""

from __future__ import annotations

import contextlib
import functools
import os
import pty
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fake.conftest import Keys, keys  # noqa: F401 - a fixture
from tests.fake.realservers import sshd
from tests.fake.relay import Faults, Relay
from tests.lab.proxy import LabProxy
from tests.ns.endings import Base
from tests.ns.story import Vmproxy, dump, files, host_proxy, shim, until


@pytest.fixture(scope="module")
def proxy(as_booted: Base) -> Iterator[LabProxy]:
    """A proxy on the VM's host."""
    with host_proxy(as_booted.machine) as running:
        yield running


@pytest.fixture(scope="module")
def door(keys: Keys, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, int, str]]:  # noqa: F811
    """A jump host: directory (its log is ``sshd.log``), port, user. It lets ``ecdsa`` in, for passing on only."""
    directory = tmp_path_factory.mktemp("door")
    more = (
        "LogLevel VERBOSE",
        "ForceCommand /bin/false",
        "PermitTTY no",
        "X11Forwarding no",
        "AllowAgentForwarding no",
    )
    authorized = Path(keys.path("ecdsa") + ".pub")
    with sshd(directory, authorized=authorized, host_key=Path(keys.path("host_rsa")), more=more) as (port, user):
        yield directory, port, user


@pytest.fixture
def config(door: tuple[Path, int, str], vmproxy: Vmproxy, keys: Keys) -> Path:  # noqa: F811
    """An ssh_config in two files: ``door``, and ``dev``, the VM behind it."""
    _directory, port, user = door
    more = vmproxy.home / "more.conf"
    more.write_text(
        f"Host door\n HostName 127.0.0.1\n Port {port}\n User {user}\n IdentityFile {keys.path('ecdsa')}\n"
        " IdentitiesOnly yes\n"
        f"Host dev direct\n HostName 127.0.0.1\n Port {vmproxy.machine.ssh_port}\n User docker\n"
        f" IdentityFile {vmproxy.machine.key}\n IdentitiesOnly yes\n UserKnownHostsFile {vmproxy.home}/theirs\n"
        f"Host direct\n ControlPath {vmproxy.home}/c\n"
        "Host dev\n ProxyJump door\n"
    )
    path = vmproxy.home / "ssh_config"
    path.write_text(f"Include {more}\n")
    return path


def log_ins(log: Path) -> int:
    """How many log-ins that sshd's log has."""
    return len(re.findall(r"^Accepted publickey", log.read_text(errors="replace"), re.MULTILINE))


UNPROVEN = ("--no-verify",)
"""The stub has no containers to prove anything with."""
WAYS = {
    "program": ("--ssh", "openssh"),
    "jump": ("-J", "door"),
    "program-jump": ("--ssh", "openssh", "-J", "door"),
}


@pytest.mark.parametrize("way", WAYS)
def test_f01_apply_status_remove(
    vmproxy: Vmproxy, proxy: LabProxy, config: Path, door: tuple[Path, int, str], way: str
) -> None:
    """Each way does what the usual one does: applied, in sync as that one sees it, and gone without a trace."""
    machine = vmproxy.machine
    before = files(machine), dump(machine)
    words = (*WAYS[way], "-F", str(config))
    passed = log_ins(door[0] / "sshd.log")
    applied = vmproxy.apply("--restart", "always", *UNPROVEN, *words)
    assert applied.code == 0, applied
    assert len(re.findall("new host key of", applied.err)) == 1 + ("jump" in way), applied
    again = vmproxy.apply(*UNPROVEN, *words)
    assert again.code == 0, again
    assert "new host key" not in again.err
    assert vmproxy.status().code == 0
    removed = vmproxy.remove("--restart", "always", *words)
    assert removed.code == 0, removed
    assert (files(machine), dump(machine)) == before
    assert log_ins(door[0] / "sshd.log") - passed == (3 if "jump" in way else 0)
    assert not list(vmproxy.home.glob("vmproxy-*"))


def test_aliases_with_proxyjump_and_a_live_socket(
    vmproxy: Vmproxy, proxy: LabProxy, config: Path, door: tuple[Path, int, str]
) -> None:
    """ssh:ALIAS behind a ProxyJump in an included file, by both; and by the user's own live connection: the sshd of the
    VM sees no other one."""
    passed = log_ins(door[0] / "sshd.log")
    for more in ((), ("--ssh", "openssh")):
        seen = vmproxy.run("detect-gateway", "--vm", "ssh:dev", "-F", str(config), *more)
        assert (seen.code, seen.out) == (0, "10.0.2.2\n"), seen
    assert log_ins(door[0] / "sshd.log") - passed == 2
    with contextlib.closing(Relay(vmproxy.machine.ssh_port, Faults())) as counted:
        config.write_text(f"Host direct\n Port {counted.port}\nHost *\n{config.read_text()}")
        argv = ["ssh", "-F", str(config), "-o", "StrictHostKeyChecking=accept-new", "-o", "BatchMode=yes"]
        quiet = functools.partial(subprocess.run, check=True, timeout=60, stdout=-3, stderr=-3)
        quiet([*argv, "-MNf", "--", "direct"])
        try:
            direct = ("--vm", "ssh:direct", "-F", str(config), "--ssh", "openssh")
            applied = vmproxy.run("apply", *direct, "--restart", "always", *UNPROVEN)
            assert applied.code == 0, applied
            assert "new host key" not in applied.err
            assert vmproxy.run("remove", *direct, "--restart", "always").code == 0
            assert len(counted._sockets) == 2  # the two ends of one connection
        finally:
            quiet([*argv, "-O", "exit", "--", "direct"])


def test_f31_ctrl_c_puts_everything_back(vmproxy: Vmproxy, proxy: LabProxy) -> None:
    """At a terminal, in the middle of the change: ssh does not die of it, the VM puts all back and that is heard."""
    machine = vmproxy.machine
    before = files(machine), dump(machine)
    there = machine.path("/run/there")
    shim(machine, "iptables-nft-restore", 'touch /run/there; sleep 3; exec /usr/sbin/iptables-nft-restore "$@"')
    argv = vmproxy.argv("apply", *vmproxy.vm_words, "--ssh", "openssh", "--restart", "always", *UNPROVEN)
    pid, terminal = pty.fork()
    if pid == 0:
        os.execve(sys.executable, argv, vmproxy.environ)
    said = b""
    try:
        until(there.exists, "the change", seconds=60)
        os.write(terminal, b"\x03")
        with contextlib.suppress(OSError):  # how a terminal ends
            while piece := os.read(terminal, 4096):
                said += piece
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        pid = 0
    finally:
        if pid:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        os.close(terminal)
    assert status == 130, said
    assert b"interrupted" in said
    assert (files(machine), dump(machine)) == before
    assert not list(vmproxy.home.glob("vmproxy-*"))
