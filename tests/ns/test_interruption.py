"""A change that is cut short at every step: by an error, by a lost client, by SIGKILL. What is left, and what a
second run makes of it.

A shim stands before each command of the guest that changes something. The first run only counts; then the k-th call of
each is where it happens, for every k. (Power cuts need a disk of their own: tests/qemu.)
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.nsvm import NamespaceVM
from tests.ns.story import BOOTLOCAL, DATA, PROFILE, Vmproxy, daemon_environment, daemon_pid, dump, held, shim, until
from vmproxy import converge
from vmproxy.errors import Interrupted, LostContact, VmproxyError
from vmproxy.model import Event

# Every command that commit.sh runs to change the VM, and the restart of Docker.
CHANGING = (
    *("mv", "rm", "cp", "dd", "mkdir", "mktemp", "chmod", "chown", "sync"),
    *("iptables-nft-restore", "setsid"),
)
OLD_PROFILE = b"# mine\nexport EXTRA_ARGS='--debug'"  # no final newline
OLD_BOOTLOCAL = b"echo hello > /run/hello\r\n"

_SHIM = """
# Two may run side by side: each counts for itself, so that the n-th of a name is the same in every run.
n=0
[ ! -e /run/lab/shim/count.$name ] || read -r n < /run/lab/shim/count.$name
n=$((n + 1))
echo "$n" > /run/lab/shim/count.$name
read -r at < /run/lab/shim/at
if [ "$name $n" = "$at" ]; then
  top=$$ parent=$PPID
  # Up to the script itself: the last sh below sudo or sshd.
  while :; do
    comm=$(cat /proc/$parent/comm)
    case $comm in sudo|sshd|sshd-session|dropbear|systemd|init) break ;; esac
    top=$parent
    read -r _ _ _ next _ < /proc/$parent/stat
    [ "$next" -gt 1 ] || break
    parent=$next
  done
  case $(cat /run/lab/shim/how) in
    error) echo 'shim: told to fail' >&2; exit 1 ;;
    kill) kill -9 "$top"; exit 137 ;;
    hangup)
      while [ "$(cat /proc/$parent/comm)" = sudo ]; do read -r _ _ _ parent _ < /proc/$parent/stat; done
      kill -9 "$parent" ;;
  esac
fi
"""


class Shims:
    """The shims of one VM: where and how the next run is stopped."""

    def __init__(self, machine: NamespaceVM) -> None:
        self._machine = machine
        self._found: dict[str, str] = {}
        machine.run("mkdir -p /run/lab/shim && chmod 777 /run/lab/shim")
        self.off()

    def on(self, at: str, how: str) -> None:
        """From now on, stop at this changing command ("NAME N", its N-th call; "" to count only)."""
        place = "/run/lab/shim"
        self._machine.run(f"rm -f {place}/count.*; echo '{at}' > {place}/at; echo {how} > {place}/how")
        for name in CHANGING:
            if name not in self._found:
                found = self._machine.run(f"PATH=/usr/sbin:/usr/bin:/sbin:/bin command -v {name}").stdout
                self._found[name] = found.decode().strip()
            # dd also reads; only one that writes a file counts.
            reading = f'case "$*" in *of=*) ;; *) exec {self._found[name]} "$@" ;; esac' if name == "dd" else ""
            shim(self._machine, name, f'{reading}\nname={name}\n{_SHIM}\nexec {self._found[name]} "$@"')

    def off(self) -> list[str]:
        """The shims gone; the changing commands that were run, as :meth:`on` names them."""
        steps = []
        for name in CHANGING:
            self._machine.path(f"/usr/local/sbin/{name}").unlink(missing_ok=True)
            count = self._machine.path(f"/run/lab/shim/count.{name}")
            steps += [f"{name} {n + 1}" for n in range(int(count.read_text()) if count.exists() else 0)]
        return steps


class World:
    """One VM with foreign files, its state before and after a clean apply."""

    def __init__(self, machine: NamespaceVM, home: Path) -> None:
        self.machine = machine
        self.vmproxy = Vmproxy(machine, home)
        self.shims = Shims(machine)
        machine.path(PROFILE).write_bytes(OLD_PROFILE)
        machine.path(BOOTLOCAL).write_bytes(OLD_BOOTLOCAL)
        machine.path(BOOTLOCAL).chmod(0o600)
        machine.run("/etc/init.d/docker restart")
        until(lambda: daemon_pid(machine) > 0, "the daemon")
        self.before = self.state()
        self.shims.on("", "error")
        self.apply()
        self.steps = self.shims.off()
        self.after = self.state()
        assert self.before != self.after
        self.vmproxy.tell(converge.remove)
        assert self.state() == self.before

    def apply(self) -> None:
        """Apply without the proof's containers, which the stub cannot run."""
        self.vmproxy.tell(converge.apply, verify=False, check=False, wait_seconds=0.0)

    def state(self) -> dict[str, object]:
        """Files with bytes, mode and owner; rules; the names in the directory; what proxy the daemon has."""
        environment = daemon_environment(self.machine) if daemon_pid(self.machine) else {}
        return {
            "profile": held(self.machine, PROFILE),
            "bootlocal": held(self.machine, BOOTLOCAL),
            "names": sorted(os.listdir(self.machine.path(DATA))),
            "rules": sorted(dump(self.machine)),
            "daemon": environment.get("http_proxy", "") if environment else "gone",
        }

    def settle(self) -> None:
        """Until the script in the VM has ended, and the restart that it may have begun."""
        for words in ("[s]h -c LC_ALL=C PATH=", "[i]nit.d/docker restart"):
            gone = f"! ps -eo args | grep -q '{words}'"
            until(lambda gone=gone: self.machine.run(gone, check=False).returncode == 0, "the script ends", 60)

    def reset(self) -> None:
        """Back to before, whatever was left."""
        self.vmproxy.tell(converge.remove)
        if self.state() != self.before:
            self.machine.path(PROFILE).write_bytes(OLD_PROFILE)
            self.machine.path(BOOTLOCAL).write_bytes(OLD_BOOTLOCAL)
            self.machine.path(BOOTLOCAL).chmod(0o600)
            self.machine.run("/etc/init.d/docker restart")
            until(lambda: daemon_pid(self.machine) > 0, "the daemon")
        assert self.state() == self.before


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with NamespaceVM(docker="stub") as machine:
        yield World(machine, tmp_path_factory.mktemp("home"))


def _whole(world: World, state: dict[str, object]) -> None:
    """Each file is the old one or the new one, with its mode and owner; no policy, no foreign rule was touched."""
    for name in ("profile", "bootlocal"):
        assert state[name] in (world.before[name], world.after[name]), name


def _goes_on(world: World, state: dict[str, object]) -> None:
    """A second apply ends as a clean one, and clears what was left over; then back to the beginning.

    Where everything is as in the beginning, nothing left over, the clean apply has been seen already.
    """
    if state == world.before and not world.machine.path("/run/vmproxy/work").exists():
        return
    world.apply()
    assert world.state() == world.after
    assert not world.machine.path("/run/vmproxy/work").exists()
    world.reset()


def test_an_error_at_every_step_leaves_all_or_nothing(world: World) -> None:
    """F19: a changing command that fails, whichever it is: either the change is done all the same, or everything is as
    before."""
    assert len(world.steps) > 15, world.steps
    ended = {"done": 0, "put back": 0}
    for at in world.steps:
        world.shims.on(at, "error")
        try:
            world.apply()
            code = 0
        except VmproxyError as error:
            code = error.exit
        finally:
            world.shims.off()
        world.settle()
        state = world.state()
        assert code in (0, 6, 7), (at, code)
        wanted = world.before if code else world.after
        assert {k: v for k, v in state.items() if k != "names"} == {k: v for k, v in wanted.items() if k != "names"}, at
        ended["put back" if code else "done"] += 1
        _goes_on(world, state)
    assert ended["put back"] > 5, ended


def test_a_lost_client_at_every_step_leaves_all_or_nothing(world: World) -> None:
    """F24 to F27: the connection drops at a changing command: the VM puts everything back by itself, or had the last
    word already, and what is said of it is so."""
    before, after = ({**state, "names": 0} for state in (world.before, world.after))
    ended = {"nothing was changed": 0, "the VM puts everything back by itself": 0, "the change was made": 0, "": 0}
    for at in world.steps:
        world.shims.on(at, "hangup")
        said = ""
        try:
            world.apply()
        except LostContact as error:
            assert (error.exit, bool(error.hint)) == (9, True)
            (said,) = (words for words in ended if words and words in error.what)
        finally:
            world.settle()
            world.shims.off()
        ended[said] += 1
        until(lambda: daemon_pid(world.machine) > 0, f"Docker runs again after step {at}", 60)
        state = world.state()
        assert {**state, "names": 0} == (after if said in ("", "the change was made") else before), (at, said)
        _goes_on(world, state)
    assert ended["nothing was changed"] > 0, ended
    assert ended["the VM puts everything back by itself"] > 5, ended


def test_sigkill_at_every_step_leaves_whole_files_and_a_second_apply_converges(world: World) -> None:
    """F30: the script in the VM is killed at a changing command: every file old or new, and the next apply ends as a
    clean one."""
    for at in world.steps:
        world.shims.on(at, "kill")
        try:
            world.apply()
        except VmproxyError as error:
            assert error.exit in (5, 9), (at, error)
        finally:
            world.settle()
            world.shims.off()
        until(lambda: daemon_pid(world.machine) > 0, f"Docker runs after step {at}", 60)
        state = world.state()
        _whole(world, state)
        _goes_on(world, state)


def test_f28_ctrl_c_at_every_step_puts_everything_back(world: World) -> None:
    """Ctrl-C at each thing that the story tells: before the change nothing was changed, afterwards everything is put
    back."""
    told: list[str] = []
    target, settings = world.vmproxy.target, world.vmproxy.settings(verify=False, check=False)
    converge.apply(target, settings, progress=lambda event: told.append(event.text))
    world.reset()
    assert len(told) > 8, told
    for at in range(len(told)):
        seen: list[str] = []

        def interrupt(event: Event, at: int = at, seen: list[str] = seen) -> None:
            seen.append(event.text)
            if len(seen) == at + 1:
                raise Interrupted(signal.SIGINT)

        with pytest.raises(Interrupted) as caught:
            converge.apply(target, settings, progress=interrupt)
        if told[at] != "compare":  # the VM may be further by then
            assert caught.value.rolled_back is (at >= told.index("stage")), told[at]
        world.settle()
        assert world.state() == world.before, told[at]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_f28_f29_a_signal_in_the_middle_puts_everything_back(world: World, number: signal.Signals, code: int) -> None:
    """Ctrl-C (and TERM, HUP) at the restart, the longest step: put back, said in one line, 128+n."""
    world.machine.run("mkdir -p /run/lab/stub; touch /run/lab/stub/hold")
    try:
        process = subprocess.Popen(
            world.vmproxy.argv("apply", *world.vmproxy.vm_words, "--no-verify", "--no-check", "--json"),
            env=world.vmproxy.environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        until(world.machine.path("/run/vmproxy/work/restart.log").exists, "Docker is restarted", 60)
        assert world.machine.path(PROFILE).read_bytes() != OLD_PROFILE
        process.send_signal(number)
        # A second one while it puts back is held.
        time.sleep(0.5)
        process.send_signal(number)
        world.machine.run("rm -f /run/lab/stub/hold")
        out, err = process.communicate(timeout=120)
    finally:
        world.machine.run("rm -f /run/lab/stub/hold")
    world.settle()
    until(lambda: daemon_pid(world.machine) > 0, "Docker runs", 60)
    assert process.returncode == code, (out, err)
    assert err.decode().count("vmproxy: error: ") == 1, err
    assert b"Traceback" not in err
    (told,) = json.loads(out)["vms"]
    assert (told["rolled_back"], told["changed"]) == (True, False)
    assert world.state() == world.before
    # The daemon that was started while putting back must not have inherited a signal that we ignore. (INT and QUIT
    # every sh ignores in what it starts with &, as init.d/docker does.)
    ignored = world.machine.run("sed -n 's/^SigIgn:[[:space:]]*//p' /proc/$(cat /var/run/docker.pid)/status").stdout
    assert int(ignored, 16) & sum(1 << (n - 1) for n in (signal.SIGHUP, signal.SIGPIPE, signal.SIGTERM)) == 0
    world.reset()


_HUNG = r"""
for p in /proc/[0-9]*; do [ "$(tr '\0' ' ' < $p/cmdline)" != 'sleep 1000 ' ] || echo "${p#/proc/}"; done 2>/dev/null
"""


def test_a_signal_while_docker_is_asked_whether_it_is_up(world: World) -> None:
    """The question's output goes to /dev/null; that all was put back is heard all the same: 130, not 9."""
    machine = world.machine

    def hung() -> list[str]:
        return machine.run(_HUNG).stdout.decode().split()

    machine.run("mkdir -p /run/lab/stub; touch /run/lab/stub/hold")
    try:
        process = subprocess.Popen(
            world.vmproxy.argv("apply", *world.vmproxy.vm_words, "--no-verify", "--no-check"),
            env=world.vmproxy.environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        until(lambda: machine.path("/run/vmproxy/work/restart.log").exists(), "Docker is restarted", 60)
        machine.run("touch /run/lab/stub/hang; rm /run/lab/stub/hold")
        until(lambda: bool(hung()), "Docker is asked", 60)
        process.send_signal(signal.SIGINT)
        time.sleep(0.5)
        machine.run(f"rm -f /run/lab/stub/hang; for p in {' '.join(hung())}; do kill $p; done", check=False)
        out, err = process.communicate(timeout=120)
    finally:
        machine.run("rm -f /run/lab/stub/hang /run/lab/stub/hold")
    world.settle()
    until(lambda: daemon_pid(machine) > 0, "Docker runs", 60)
    assert process.returncode == 130, (out, err)
    assert world.state() == world.before
    world.reset()
