"""A VM reached by its serial line alone: the whole story, and what is put back when its client goes."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Iterator

import pytest

from tests.fake.serialvm import SerialVM
from tests.lab.nsvm import NamespaceVM
from tests.ns.conftest import HostProxy
from tests.ns.endings import Base
from tests.ns.story import BOOTLOCAL, PROFILE, Vmproxy, daemon_environment, daemon_pid, dump, files, until
from vmproxy import converge
from vmproxy.errors import LostContact
from vmproxy.model import Event, Report, Settings
from vmproxy.transports import console

pytestmark = pytest.mark.root


def state(machine: NamespaceVM) -> tuple[object, ...]:
    """What a change touches: files, rules, the daemon's environment; and that it runs."""
    return files(machine), dump(machine), daemon_environment(machine), daemon_pid(machine) > 0


def is_back(machine: NamespaceVM, before: tuple[object, ...]) -> bool:
    """Whether it is so again; a daemon may end while it is looked at."""
    try:
        return state(machine) == before
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.fixture(scope="module")
def line(as_booted: Base) -> Iterator[SerialVM]:
    """The VM's serial line: a root shell on a pty in all its namespaces, and a socket of QEMU's manners on the host."""
    pid = str(as_booted.machine.pid)
    enter = ("nsenter", "-t", pid, "-m", "-n", "-p", "-u", "-i", "-C", "--", "sh", "-i")
    vm = SerialVM(program=enter)
    yield vm
    vm.close()


@pytest.fixture
def by_line(line: SerialVM, vmproxy: Vmproxy) -> Vmproxy:
    """vmproxy that knows nothing but the line."""
    vmproxy.target = f"console:{line.path}"
    vmproxy.vm_words = ("--vm", vmproxy.target)
    return vmproxy


def begin(vmproxy: Vmproxy) -> subprocess.Popen[bytes]:
    """An apply that a test will end while Docker is being restarted, which lasts until :func:`let_go`."""
    vmproxy.machine.run("mkdir -p /run/lab/stub; touch /run/lab/stub/hold")
    return subprocess.Popen(
        vmproxy.argv("apply", *vmproxy.vm_words, "--no-verify", "--no-check"),
        env=vmproxy.environ,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def let_go(machine: NamespaceVM) -> None:
    """Docker's restart goes on."""
    machine.path("/run/lab/stub/hold").unlink(missing_ok=True)


def written(machine: NamespaceVM) -> bool:
    """Whether the change has begun."""
    return machine.path(PROFILE).exists() and machine.path(BOOTLOCAL).exists()


def restarts(machine: NamespaceVM) -> bool:
    """Whether the change is as far as Docker's restart."""
    return written(machine) and machine.path("/run/vmproxy/work/restart.log").exists()


def left(machine: NamespaceVM) -> bytes:
    """What the far end of the line leaves behind."""
    return machine.run("ls -A /run /dev/shm /tmp | grep vmproxy-line", check=False).stdout


def test_the_whole_story(by_line: Vmproxy, base: Base, host_proxy: HostProxy) -> None:
    """Found, previewed, applied, in sync, applied again for nothing, removed: all over one serial line, and the line is
    as it was."""
    machine = base.machine
    host_proxy(machine)
    before = state(machine)
    ran = by_line.command("detect-gateway")
    assert (ran.code, ran.out) == (0, "10.0.2.2\n"), ran
    dry = by_line.apply("--dry-run", "--exit-code")
    assert (dry.code, "http_proxy" in dry.out) == (3, True), dry
    assert state(machine) == before
    ran = by_line.apply("--no-verify")
    assert ran.code == 0, ran
    assert daemon_environment(machine)["http_proxy"] == "http://10.0.2.2:8123"
    status = by_line.status("--json")
    assert (status.code, status.vm["ok"]) == (0, True), status
    again = by_line.apply("--no-verify", "--json")
    assert (again.code, again.vm["changed"]) == (0, False), again
    ran = by_line.remove()
    assert ran.code == 0, ran
    assert state(machine) == before
    assert left(machine) == b""


def test_ctrl_c_puts_everything_back(by_line: Vmproxy, base: Base) -> None:
    """In the middle of the restart: 130 when the VM has put everything back, and the next run finds the line usable."""
    machine = base.machine
    before = state(machine)
    with begin(by_line) as process:
        until(lambda: restarts(machine), "the change has begun", 60)
        process.send_signal(signal.SIGINT)
        time.sleep(0.5)
        let_go(machine)
        out, err = process.communicate(timeout=120)
    assert process.returncode == 130, (out, err)
    assert err.decode().count("vmproxy: error: ") == 1, err
    assert b"Traceback" not in err
    until(lambda: is_back(machine, before), "everything is put back", 60)
    ran = by_line.status()
    assert ran.code == 1, ran
    assert left(machine) == b""


def test_a_client_that_is_killed(by_line: Vmproxy, base: Base) -> None:
    """A serial line has no hang-up: the VM notices the silence, and puts everything back."""
    machine = base.machine
    before = state(machine)
    with begin(by_line) as process:
        until(lambda: restarts(machine), "the change has begun", 60)
        process.kill()
    let_go(machine)
    until(lambda: is_back(machine, before), "everything is put back", 120)
    until(lambda: left(machine) == b"", "the far end is gone", 60)
    ran = by_line.status()
    assert ran.code == 1, ran


@pytest.mark.parametrize("how", ["silence", "hang-up"])
def test_a_line_that_dies_in_the_middle(
    by_line: Vmproxy, base: Base, line: SerialVM, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """Where no word comes any more, or the line's end: lost, long before the step's own limit, in a line that says what
    state is left; and the VM puts everything back."""
    machine = base.machine
    before = state(machine)
    machine.run("mkdir -p /run/lab/stub; touch /run/lab/stub/hold")

    def die(_event: Event) -> None:
        if not written(machine):
            return
        let_go(machine)
        if how == "hang-up":
            line.hang_up()
        else:
            line.down = lambda _data: b""
            monkeypatch.setattr(console, "GONE_SECONDS", 6)  # not before: until then it has to hold, whatever stalls

    def apply(target: str, settings: Settings) -> Report:
        return converge.apply(target, settings, progress=die)

    try:
        with pytest.raises(LostContact, match=r"no answer|the VM's end") as caught:
            by_line.tell(apply, verify=False, check=False)
    finally:
        line.down = lambda data: data
    assert caught.value.what.endswith("; the VM puts everything back by itself"), caught.value
    assert "last seen" not in caught.value.what
    until(lambda: is_back(machine, before), "everything is put back", 120)
    until(lambda: left(machine) == b"", "the far end is gone", 60)
