"""Two at once: the lock in the VM, waiting for it, taking over one whose holder is gone."""

from __future__ import annotations

import re
import signal
import subprocess
import threading
from collections.abc import Iterator

import pytest

from tests.ns.endings import Base, refused, unchanged
from tests.ns.story import DATA, PROFILE, Ran, Vmproxy, daemon_environment, dump, files, ours, shim, stop, until
from vmproxy import converge

QUIET = ("--no-check", "--no-verify")
LOCK = "/run/vmproxy/lock"
HELD = "/run/vmproxy/held"


@pytest.fixture(params=["flock", "mkdir"])
def kind(request: pytest.FixtureRequest, base: Base) -> Iterator[str]:
    """Each of the two kinds of lock: flock(1), and a directory where the VM has no flock."""
    kind: str = request.param
    if kind == "mkdir":
        base.machine.run("mv /usr/bin/flock /usr/bin/flock.hidden; ! command -v flock")
    yield kind
    if kind == "mkdir":
        base.machine.run("mv /usr/bin/flock.hidden /usr/bin/flock")


@pytest.fixture
def holder(kind: str, base: Base) -> Iterator[str]:
    """Somebody else who holds the lock, as another vmproxy would; the words that end them."""
    take = f"exec 9>>{LOCK}; flock -n 9" if kind == "flock" else _owner("$$", "$(cat /proc/sys/kernel/random/boot_id)")
    script = f"mkdir -p -m 700 /run/vmproxy; {take}; echo $$ >/run/holder; exec sleep 300"
    base.machine.run(["sh", "-c", f"PATH=$PATH:/usr/bin; setsid sh -c '{script}' >/dev/null 2>&1 </dev/null &"])
    until(base.machine.path("/run/holder").exists, "the holder")
    end = "kill -9 $(cat /run/holder); rm -f /run/holder"
    yield end
    base.machine.run(f"[ ! -e /run/holder ] || {{ {end}; }}", check=False)


def _owner(pid: str, boot: str) -> str:
    return f'mkdir {HELD}; echo "{pid} {boot}" >{HELD}/owner'


def both(vmproxy: Vmproxy, *commands: tuple[str, ...]) -> list[Ran]:
    """Commands started at the same time."""
    processes = [
        subprocess.Popen(
            vmproxy.argv(words[0], *vmproxy.vm_words, *words[1:]),
            env=vmproxy.environ, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        for words in commands
    ]  # fmt: skip
    ended = []
    try:
        for words, process in zip(commands, processes, strict=True):
            out, err = process.communicate(timeout=100)
            ended.append(Ran(argv=words, code=process.returncode, out=out.decode(), err=err.decode(), seconds=0.0))
    finally:
        for process in processes:
            stop(process)
    return ended


def test_f59_two_applies_at_once(base: Base, vmproxy: Vmproxy, kind: str) -> None:
    """The same apply thrice at once: all end well, and what stands there is what one apply makes."""
    assert vmproxy.tell(converge.apply, check=False, verify=False).ok
    alone = files(base.machine), dump(base.machine)
    vmproxy.tell(converge.remove)
    for ran in both(vmproxy, *[("apply", *QUIET)] * 3):
        assert ran.code == 0, ran
    assert (files(base.machine), dump(base.machine)) == alone
    assert vmproxy.tell(converge.status).ok


def test_f60_apply_and_remove_at_once(base: Base, vmproxy: Vmproxy, kind: str) -> None:
    """They come one after the other, whichever is first: the VM is applied or as before, never in between."""
    before = files(base.machine), dump(base.machine)
    for ran in both(vmproxy, ("apply", *QUIET), ("remove",), ("apply", *QUIET), ("remove",)):
        assert ran.code in (0, 6, 8), ran
    if ours(dump(base.machine)):
        assert vmproxy.tell(converge.status).ok
        assert vmproxy.tell(converge.remove).ok
    assert (files(base.machine), dump(base.machine)) == before
    assert "work" not in base.machine.run("ls /run/vmproxy").stdout.decode()


def test_a_held_lock_is_exit_8(base: Base, vmproxy: Vmproxy, holder: str) -> None:
    """--lock-timeout 0 while another run holds the lock: exit 8, the lock named, nothing changed."""
    with unchanged(base.machine):
        refused(vmproxy.apply("--lock-timeout", "0", *QUIET), 8, "another vmproxy run")
        refused(vmproxy.apply("--lock-timeout", "1", *QUIET), 8)


def test_a_held_lock_is_waited_for(base: Base, vmproxy: Vmproxy, holder: str) -> None:
    """Within --lock-timeout the run waits, and goes on once the other has ended, however it did."""
    timer = threading.Timer(1.5, base.machine.run, (holder,))
    timer.start()
    try:
        ran = vmproxy.apply("--lock-timeout", "60", *QUIET)
    finally:
        timer.join()
    assert ran.code == 0, ran
    assert vmproxy.tell(converge.status).ok


def test_a_run_that_only_looks_takes_no_lock(base: Base, vmproxy: Vmproxy, holder: str) -> None:
    """status and dry runs are not held up."""
    assert vmproxy.status().code == 1
    assert vmproxy.apply("--dry-run", "--lock-timeout", "0").code == 0
    assert vmproxy.remove("--dry-run", "--lock-timeout", "0").code == 0


STALE = {
    "a dead process": ("999999", "$(cat /proc/sys/kernel/random/boot_id)"),
    "another boot": ("1", "00000000-0000-4000-8000-000000000000"),
    "no owner written": ("", ""),
    "nonsense": ("x'y", "$(reboot)"),
}


@pytest.mark.parametrize("kind", ["mkdir"], indirect=True)
@pytest.mark.parametrize("what", STALE)
def test_f61_a_stale_lock_is_taken_over(base: Base, vmproxy: Vmproxy, kind: str, what: str) -> None:
    """A lock of a run that was killed, or of another boot, or cut short: taken over with a note."""
    pid, boot = STALE[what]
    base.machine.run(f"mkdir -p -m 700 /run/vmproxy; mkdir {HELD}")
    if what == "nonsense":
        base.machine.path(f"{HELD}/owner").write_text(f"{pid} {boot}\n")
    elif pid:
        base.machine.run(f'echo "{pid} {boot}" >{HELD}/owner')
    ran = vmproxy.apply(*QUIET)
    assert ran.code == 0, ran
    assert re.search(r"(?m)^vmproxy: warning: .*the lock of a run that is gone was taken over$", ran.err), ran
    assert not base.machine.path(HELD).exists()
    assert vmproxy.tell(converge.status).ok


@pytest.mark.parametrize("year", [2016, 2036])
def test_f58_what_a_clock_that_is_years_off_leaves(
    base: Base, vmproxy: Vmproxy, kind: str, holder: str, year: int
) -> None:
    """Lock, files and Docker's pid file dated long ago, or in years to come: a holder that lives is one, one that is
    gone is none, and what is in sync stays in sync."""
    places = f"/run/vmproxy {DATA} /var/run/docker.pid $(ls -d /etc/docker)"
    dated = f"find {places} -exec touch -h -d {year}-01-01 '{{}}' +"
    base.machine.run(dated)
    with unchanged(base.machine):
        refused(vmproxy.apply(*QUIET, "--lock-timeout", "0"), 8)
    base.machine.run(holder)
    assert vmproxy.apply(*QUIET).code == 0
    base.machine.run(dated)
    assert vmproxy.tell(converge.status).message == "in sync"
    assert vmproxy.tell(converge.apply, check=False, verify=False).message == "in sync, nothing to do"
    assert vmproxy.tell(converge.remove).message == "removed"


@pytest.mark.parametrize("kind", ["mkdir"], indirect=True)
def test_f61_many_find_the_same_stale_lock(base: Base, vmproxy: Vmproxy, kind: str) -> None:
    """Several runs at once at a stale lock: all end well, one after the other."""
    base.machine.run(f"mkdir -p -m 700 /run/vmproxy; {_owner('999999', 'x')}")
    for ran in both(vmproxy, *[("apply", *QUIET)] * 3):
        assert ran.code == 0, ran
    assert vmproxy.tell(converge.status).ok
    assert not base.machine.path(HELD).exists()


@pytest.mark.parametrize("kind", ["mkdir"], indirect=True)
def test_f61_one_that_stalls_while_it_takes_the_lock(base: Base, vmproxy: Vmproxy, kind: str) -> None:
    """Stopped between making the directory and writing its name there, it is taken for gone; when it goes on, the lock
    is the other run's, and it waits."""
    stall = "[ -e /run/stalls ] || { : >/run/stalls; until [ -e /run/go ]; do sleep 0.1; done; }"
    once = f"case $* in {HELD}) {stall} ;; esac"
    shim(base.machine, "mkdir", f'echo "$*" >>/run/made; /bin/mkdir "$@" || exit; {once}')
    switch = base.machine.path("/run/lab/stub/hold")
    switch.parent.mkdir(parents=True, exist_ok=True)
    switch.touch()
    words = vmproxy.argv("apply", *vmproxy.vm_words, *QUIET, "--lock-timeout", "100")
    processes = []
    try:
        for ready in ("/run/stalls", PROFILE):
            processes.append(
                subprocess.Popen(
                    words, env=vmproxy.environ, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
                )
            )
            until(base.machine.path(ready).exists, ready)
        owner, made = base.machine.path(f"{HELD}/owner"), base.machine.path("/run/made")
        second, so_far = owner.read_text(), len(made.read_text())
        base.machine.path("/run/go").touch()
        until(lambda: len(made.read_text()) > so_far, "the first one goes on")
        assert owner.read_text() == second
        switch.unlink()
        for process in processes:
            out, err = process.communicate(timeout=100)
            assert (process.returncode, b"left by an earlier run" in err) == (0, False), (out, err)
    finally:
        base.machine.path("/run/go").touch()
        switch.unlink(missing_ok=True)
        for process in processes:
            stop(process)
        base.machine.run("rm -f /run/go /run/stalls /run/made")
    assert vmproxy.tell(converge.status).ok


def test_f61_what_a_killed_run_left_is_cleared(base: Base, vmproxy: Vmproxy) -> None:
    """A work area and temporary files with our prefix, left by a run that was killed: gone afterwards, and said so."""
    data = "/var/lib/boot2docker"
    base.machine.run(f"mkdir -p -m 700 /run/vmproxy/work {data}/.vmproxy-abc123; : >{data}/.vmproxy-abc123/new")
    ran = vmproxy.apply(*QUIET)
    assert ran.code == 0, ran
    assert "left by an earlier run, and removed" in ran.err, ran
    assert not [path for path in files(base.machine) if ".vmproxy-" in path]
    assert "work" not in base.machine.run("ls /run/vmproxy").stdout.decode()


def test_f60_docker_restarted_between_the_look_and_the_lock(base: Base, vmproxy: Vmproxy) -> None:
    """Another run takes the profile away and restarts Docker while this one waits for the lock: it looks again, and
    Docker has its environment in the end."""
    assert vmproxy.tell(converge.apply, check=False, verify=False).ok
    base.machine.run(f"rm {PROFILE}")  # the daemon still has its environment: files differ, no restart is due
    restart = 'env -i PATH="$PATH" setsid /etc/init.d/docker restart </dev/null >/dev/null 2>&1 9>&-'
    restart += "; until docker version; do sleep 0.1; done >/dev/null 2>&1 9>&-"
    once = f"[ -e /run/restarted ] || {{ : >/run/restarted; {restart}; }}"
    shim(base.machine, "flock", f'{once}; exec /usr/bin/flock "$@"')
    assert vmproxy.tell(converge.apply, check=False, verify=False).ok
    base.machine.run("rm /run/restarted")
    assert daemon_environment(base.machine)["http_proxy"] == "http://10.0.2.2:8123"
    assert vmproxy.tell(converge.status).ok


def test_t14_the_lock_is_not_the_daemons(base: Base, vmproxy: Vmproxy, kind: str) -> None:
    """The restarted Docker does not keep the lock: the next run has it at once."""
    assert vmproxy.tell(converge.apply, check=False, verify=False).ok
    assert vmproxy.remove("--lock-timeout", "0").code == 0
    assert not base.machine.path(HELD).exists()


def test_a_run_at_work_has_left_nothing_behind(base: Base, vmproxy: Vmproxy, kind: str) -> None:
    """``status`` in the middle of another run's change: that run's work directory and files are not called left over;
    those of one that was killed are."""
    switch = base.machine.path("/run/lab/stub/hold")
    switch.parent.mkdir(parents=True, exist_ok=True)
    switch.touch()
    process = subprocess.Popen(
        vmproxy.argv("apply", *vmproxy.vm_words, *QUIET),
        env=vmproxy.environ, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    try:
        until(base.machine.path(PROFILE).exists, "the profile is written")
        ran = vmproxy.status()
        assert base.machine.path("/run/vmproxy/work").exists()
        assert "/run/vmproxy/work" not in ran.all and ".vmproxy-" not in ran.all, ran
        switch.unlink()
        out, err = process.communicate(timeout=100)
        assert process.returncode == 0, (out, err)
    finally:
        switch.unlink(missing_ok=True)
        stop(process)
    owner = {"flock": LOCK, "mkdir": f"{HELD}/owner"}[kind]
    place = owner.rpartition("/")[0]
    dead = "999999 $(cat /proc/sys/kernel/random/boot_id)"
    base.machine.run(f'mkdir -p {place} /run/vmproxy/work; echo "{dead}" >{owner}')
    ran = vmproxy.status()
    assert (ran.code, "/run/vmproxy/work" in ran.all) == (1, True), ran
    assert vmproxy.apply(*QUIET).code == 0
    assert vmproxy.tell(converge.status).ok


def test_nothing_to_do_is_not_said_of_another_runs_unfinished_work(base: Base, vmproxy: Vmproxy) -> None:
    """A second apply while the first is at work waits for its end: interrupted, the first puts all back, and the second
    does the job; one that may not wait is exit 8."""
    switch = base.machine.path("/run/lab/stub/hold")
    switch.parent.mkdir(parents=True, exist_ok=True)
    switch.touch()
    first = subprocess.Popen(
        vmproxy.argv("apply", *vmproxy.vm_words, *QUIET),
        env=vmproxy.environ, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    try:
        until(base.machine.path(PROFILE).exists, "the profile is written")
        refused(vmproxy.apply(*QUIET, "--lock-timeout", "0"), 8, "another vmproxy run")
        first.send_signal(signal.SIGINT)
        late = threading.Timer(1.5, switch.unlink)  # the second one is at the lock by then, or comes to it later
        late.start()
        second = vmproxy.apply(*QUIET)
        late.join()
        first.communicate(timeout=100)
        assert first.returncode == 130
        assert (second.code, "nothing to do" in second.all) == (0, False), second
    finally:
        switch.unlink(missing_ok=True)
        stop(first)
    assert vmproxy.status().code == 0
