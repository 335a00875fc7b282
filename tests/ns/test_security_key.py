"""Security keys (FIDO), live: an sshd that takes such a key and no other, and a device in software (tests/lab)."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fake.realservers import sshd
from tests.lab.proxy import LabProxy
from tests.lab.securitykey import PIN, SecurityKey
from tests.ns.endings import Base, clean_text, refused
from tests.ns.story import Ran, Vmproxy, dump, files, host_proxy, stop, until

ASKED = "touch your security key"
UNPROVEN = ("--no-verify",)
"""The stub has no containers to prove anything with."""


@pytest.fixture(scope="module")
def proxy(as_booted: Base) -> Iterator[LabProxy]:
    """A proxy on the VM's host."""
    with host_proxy(as_booted.machine) as running:
        yield running


@pytest.fixture(scope="module")
def plugged(as_booted: Base, tmp_path_factory: pytest.TempPathFactory) -> SecurityKey:
    """A device with the keys ``touch``, ``quiet`` (no touch) and ``pin``, which the VM takes, beside its library."""
    device = SecurityKey(tmp_path_factory.mktemp("device"))
    directory = device.library.parent
    lines = []
    for name, options, prefix in (
        ("touch", (), ""),
        ("quiet", ("-O", "no-touch-required"), "no-touch-required "),
        ("pin", ("-O", "verify-required"), "verify-required "),
    ):
        device.make(directory / name, *options)
        lines.append(prefix + (directory / f"{name}.pub").read_text())
    with as_booted.machine.path("/home/docker/.ssh/authorized_keys").open("a") as stream:
        stream.writelines(lines)
    return device


@pytest.fixture
def config(vmproxy: Vmproxy, device: SecurityKey) -> Path:
    """An ssh_config: where the device's library is, and ``vm``, which is logged in to by its key."""
    path = vmproxy.home / "ssh_config"
    path.write_text(
        f"SecurityKeyProvider {device.library}\n"
        f"Host vm\n HostName 127.0.0.1\n Port {vmproxy.machine.ssh_port}\n User docker\n"
        f" IdentityFile {device.library.parent}/touch\n IdentitiesOnly yes\n ControlPath {vmproxy.home}/c\n"
    )
    return path


def touched(vmproxy: Vmproxy, device: SecurityKey, *words: str, count: int = 1) -> Ran:
    """A run beside which somebody sits who touches the device once that was asked for by so many lines."""
    device.put("waits")
    out, err = vmproxy.home / "out", vmproxy.home / "err"
    started = time.monotonic()
    with out.open("wb") as stdout, err.open("wb") as stderr:
        process = subprocess.Popen(
            vmproxy.argv(*words), env=vmproxy.environ, stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr
        )
    try:
        until(lambda: process.poll() is not None or err.read_text().count(ASKED) >= count, "the line", seconds=60)
        for _ in range(count):
            device.touch()
            until(lambda: process.poll() is not None or device.felt, "the touch", seconds=60)
        process.wait(60)
    finally:
        stop(process)
    seconds = time.monotonic() - started
    return Ran(argv=words, code=process.returncode, out=out.read_text(), err=err.read_text(), seconds=seconds)


def news(ran: Ran) -> list[str]:
    """The lines that ask for a touch."""
    return [line for line in ran.err.splitlines() if ASKED in line]


def without_new_key(ran: Ran) -> Ran:
    """Without what is said of a host key that was kept."""
    err = "".join(f"{line}\n" for line in ran.err.splitlines() if "new host key" not in line)
    return dataclasses.replace(ran, err=err)


def test_f01_apply_status_remove(vmproxy: Vmproxy, proxy: LabProxy, device: SecurityKey, config: Path) -> None:
    """By ssh_config alone, without another key: each run is one signature, for which a touch was asked; the VM is left
    as it was."""
    machine = vmproxy.machine
    before, signed = (files(machine), dump(machine)), len(device.signatures)
    words = ("--vm", "ssh:vm", "-F", str(config), "--ssh", "openssh")
    applied = vmproxy.run("apply", *words, "--restart", "always", *UNPROVEN)
    assert applied.code == 0, applied
    status = vmproxy.run("status", *words)
    assert status.code == 0, status
    removed = vmproxy.run("remove", *words, "--restart", "always")
    assert removed.code == 0, removed
    assert (files(machine), dump(machine)) == before
    assert device.signatures[signed:] == [1, 1, 1]


def test_the_person_hears_that_a_touch_is_waited_for(vmproxy: Vmproxy, device: SecurityKey, config: Path) -> None:
    """ssh itself says nothing where it asks nobody; vmproxy says it once, with the key, and goes on after the touch.
    A key that wants no touch lets in without one."""
    target = ("--vm", vmproxy.target, "-F", str(config), "--ssh", "openssh")
    ran = touched(vmproxy, device, "detect-gateway", *target, "-i", str(device.library.parent / "touch"))
    assert (ran.code, ran.out) == (0, "10.0.2.2\n"), ran
    (line,) = news(ran)
    assert device.fingerprint("touch") in line
    assert clean_text(ran.all)
    quiet = vmproxy.run("detect-gateway", *target, "-i", str(device.library.parent / "quiet"))
    assert quiet.code == 0, quiet
    assert device.signatures[-2:] == [1, 0]


def test_f31_ctrl_c_while_a_touch_is_waited_for(vmproxy: Vmproxy, device: SecurityKey, config: Path) -> None:
    """It ends with 130, and so does whatever waits for the device: no later touch is taken by somebody who is gone."""
    device.put("waits")
    words = ("detect-gateway", "--vm", "ssh:vm", "-F", str(config), "--ssh", "openssh")
    err = vmproxy.home / "err"
    with err.open("wb") as stderr:
        process = subprocess.Popen(vmproxy.argv(*words), env=vmproxy.environ, stdin=-3, stdout=-3, stderr=stderr)
    try:
        until(lambda: process.poll() is not None or ASKED in err.read_text(), "the line", seconds=60)
        until(lambda: process.poll() is not None or users(device), "the helper", seconds=60)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130, err.read_text()
    finally:
        stop(process)
    until(lambda: not users(device), "the end of the helper", seconds=60)


def users(device: SecurityKey) -> list[str]:
    """The processes that have the device's library loaded."""
    found = []
    for maps in Path("/proc").glob("[0-9]*/maps"):
        with contextlib.suppress(OSError):
            if str(device.library) in maps.read_text():
                found.append(maps.parent.name)
    return found


def test_a_touch_for_the_jump_host(vmproxy: Vmproxy, device: SecurityKey, config: Path, tmp_path: Path) -> None:
    """The key of a host on the way: its touch is asked for as well."""
    authorized = device.library.parent / "touch.pub"
    with sshd(tmp_path, authorized=authorized, host_key=vmproxy.machine.key) as (port, user):
        config.write_text(
            f"{config.read_text()}Host door\n HostName 127.0.0.1\n Port {port}\n User {user}\n"
            f" IdentityFile {device.library.parent}/touch\n IdentitiesOnly yes\n"
        )
        words = (*vmproxy.vm_words, "-F", str(config), "--ssh", "openssh", "-J", "door")
        ran = touched(vmproxy, device, "detect-gateway", *words)
    assert (ran.code, ran.out) == (0, "10.0.2.2\n"), ran
    assert len(news(ran)) == 1, ran


def test_several_vms_want_a_touch_each_and_an_open_connection_none(
    vmproxy: Vmproxy, device: SecurityKey, config: Path
) -> None:
    """With ``--jobs`` each VM asks, by its name; where ssh_config's ControlPath is open, nobody has to touch."""
    port = vmproxy.machine.ssh_port
    config.write_text(
        f"{config.read_text()}Host one two\n HostName 127.0.0.1\n Port {port}\n User docker\n"
        f" IdentityFile {device.library.parent}/touch\n IdentitiesOnly yes\n"
    )
    words = ("-F", str(config), "--ssh", "openssh")
    both = ("--vm", "ssh:one", "--vm", "ssh:two", "--jobs", "2")
    ran = touched(vmproxy, device, "status", *both, *words, count=2)
    assert sorted(line.partition(": ")[0] for line in news(ran)) == ["ssh:one", "ssh:two"], ran
    assert ran.code == 1, ran  # nothing is applied, and both say so
    device.put("unplugged")
    ran = vmproxy.run("status", *both, *words)
    assert (ran.code, ran.err.count("device not found"), "without --jobs" in ran.err) == (5, 2, True), ran
    argv = ["ssh", "-F", str(config), "-o", "StrictHostKeyChecking=no", "-o", f"UserKnownHostsFile={vmproxy.home}/k"]
    device.put()
    subprocess.run([*argv, "-MNf", "--", "vm"], check=True, timeout=60, stdout=-3, stderr=-3)
    try:
        signed = len(device.signatures)
        device.put("unplugged")
        seen = vmproxy.run("detect-gateway", "--vm", "ssh:vm", *words)
        assert (seen.code, seen.out) == (0, "10.0.2.2\n"), seen
        assert len(device.signatures) == signed
    finally:
        subprocess.run([*argv, "-O", "exit", "--", "vm"], check=True, timeout=60, stdout=-3, stderr=-3)


def test_f02_no_device_and_a_signature_without_a_touch(vmproxy: Vmproxy, device: SecurityKey, config: Path) -> None:
    """Exit 5: the device is not there, which is said; or the server does not believe that somebody touched it."""
    words = ("--vm", "ssh:vm", "-F", str(config), "--ssh", "openssh")
    device.put("unplugged")
    ran = vmproxy.run("detect-gateway", *words)
    refused(without_new_key(ran), 5, "touch (device not found)")
    assert "plugged in" in ran.err
    device.put("careless")
    refused(vmproxy.run("detect-gateway", *words), 5, "touch (refused)")


def test_the_library_names_the_way(vmproxy: Vmproxy, device: SecurityKey) -> None:
    """paramiko has no such keys: exit 5, the key named, the hint ``--ssh openssh``; also for ssh's usual files."""
    named = vmproxy.run("detect-gateway", "--vm", vmproxy.target, "-i", str(device.library.parent / "touch"))
    usual = vmproxy.home / ".ssh" / "id_ecdsa_sk"
    usual.parent.mkdir(mode=0o700)
    usual.write_bytes((device.library.parent / "touch").read_bytes())
    found = vmproxy.run("detect-gateway", "--vm", vmproxy.target)
    for ran in (named, found):
        refused(without_new_key(ran), 5, "a kind of key that is not supported")
        assert "--ssh openssh" in ran.err


def test_the_pin_is_asked_for_on_the_terminal(vmproxy: Vmproxy, device: SecurityKey, config: Path) -> None:
    """A key that wants to be verified: ssh asks for its PIN where a person is."""
    argv = vmproxy.argv("detect-gateway", "--vm", vmproxy.target, "-F", str(config), "--ssh", "openssh")
    pid, terminal = pty.fork()
    if pid == 0:
        os.execve(sys.executable, [*argv, "-i", str(device.library.parent / "pin")], vmproxy.environ)
    said, answered, deadline = b"", False, time.monotonic() + 120
    try:
        with contextlib.suppress(OSError):  # how a terminal ends
            while time.monotonic() < deadline:
                if select.select([terminal], [], [], 1.0)[0]:
                    said += os.read(terminal, 4096)
                if b"Enter PIN" in said and not answered:
                    os.write(terminal, PIN.encode() + b"\n")
                    answered = True
    finally:
        os.close(terminal)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert status == 0, said
    assert b"10.0.2.2" in said
    assert PIN.encode() not in said
    assert device.signatures[-1] == 5
