"""The boot script of a boot2docker VM, run by real shells with programs that only write down what they are given."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

from vmproxy.guests import ADDRESS_AT_BOOT, Order, boot2docker, systemd
from vmproxy.model import Door, Facts

_PROGRAMS = {
    "iptables-restore": 'cat >>"$OUT/restored"',
    "iptables": 'case $* in *" -D "*) exit 1 ;; *" -S "*) exit 0 ;; esac; echo "$*" >>"$OUT/rules"',
    "docker": "exit 0",
}
_SLEEP = b"sleep() { :; }\n"
_IP = b"""sleep() { :; }
ip() {
  asked=$(cat "$OUT/asked" 2>/dev/null)
  echo "$asked again" >"$OUT/asked"
  case $asked in
    '') echo 'Device "docker0" does not exist.' >&2; return 1 ;;
    ' again') return 0 ;;
  esac
  echo '4: docker0    inet 172.30.0.1/16 brd 172.30.255.255 scope global docker0'
}
"""
"""Functions, since busybox sh takes its own ip before one of the PATH. The bridge comes later, and its address then."""


_SHELLS = pytest.mark.parametrize(
    "shell", [["dash"], ["busybox", "sh"], ["bash", "--posix"]], ids=lambda words: words[0]
)


@_SHELLS
@pytest.mark.parametrize("address", ["172.17.0.1", ADDRESS_AT_BOOT], ids=["known", "at-boot"])
def test_f62_the_boot_script_makes_the_rules_alone(shell: list[str], address: str, tmp_path: Path) -> None:
    """Run by itself it restores our chains and adds each jump, with docker0's address of then where it is not known:
    a Docker that starts for the first time makes its chains before its bridge."""
    ran = _run(shell, address, tmp_path, _PROGRAMS, _IP)
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, b"", b"")
    restored = (tmp_path / "restored").read_text()
    assert f"-d {'172.30.0.1' if address == ADDRESS_AT_BOOT else address}/32 -p tcp" in restored
    assert ADDRESS_AT_BOOT not in restored
    assert restored.count("COMMIT\n") == 2
    assert (tmp_path / "rules").read_text().count("-j VMPROXY-") >= 4
    log = (tmp_path / "log").read_text().splitlines()
    assert log[-1] == "vmproxy: rules are in place"


_RESTORE = """case $* in *--test*) exit 0 ;; esac
text=$(cat)
case $text in *"$BAD"*) echo "cannot restore" >&2; exit 1 ;; esac
echo "$text" >>"$OUT/restored"
"""
_TOOL = """case $* in
  *" -D "*) exit 1 ;;
  *" -S "*) exit 0 ;;
  *" $BAD "*) echo "no room" >&2; exit 4 ;;
esac
echo "$*" >>"$OUT/rules"
"""
_FAILURES = {
    "*filter": ["cannot restore", "vmproxy: failed: iptables-restore, our chains of table filter"],
    "*nat": ["cannot restore", "vmproxy: failed: iptables-restore, our chains of table nat"],
    "-A POSTROUTING": ["no room", "vmproxy: failed: iptables, a jump in POSTROUTING of table nat"],
}


@_SHELLS
@pytest.mark.parametrize("address", ["172.17.0.1", ADDRESS_AT_BOOT], ids=["known", "at-boot"])
@pytest.mark.parametrize("bad", _FAILURES)
def test_f62_the_boot_script_says_what_failed_and_goes_on(
    shell: list[str], address: str, bad: str, tmp_path: Path
) -> None:
    """Where a restore or a jump fails, its log has the program's own words and which it was, never that the rules are
    in place; the others are made all the same."""
    programs = {**_PROGRAMS, "iptables-restore": _RESTORE, "iptables": _TOOL}
    ran = _run(shell, address, tmp_path, programs, b"BAD='%s'; export BAD\n%s" % (bad.encode(), _IP))
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, b"", b"")
    log = (tmp_path / "log").read_text().splitlines()
    assert log[-2:] == _FAILURES[bad]
    assert log[0].startswith("vmproxy: ") and len(log) == 3
    assert (tmp_path / "restored").read_text().count("COMMIT\n") == (1 if bad.startswith("*") else 2)
    jumps = (tmp_path / "rules").read_text()
    chains = {"-A FORWARD", "-A PREROUTING", "-A POSTROUTING"}
    assert {chain for chain in chains if f" {chain} " in jumps} == chains - {bad}


def test_f62_a_bridge_without_an_address_is_told(tmp_path: Path) -> None:
    """Where docker0 never gets an address, the log says so and what that leaves out; then it ends."""
    programs = {**_PROGRAMS, "iptables-restore": 'case $(cat) in *"-d /32"*) exit 2 ;; esac'}
    ran = _run(["dash"], ADDRESS_AT_BOOT, tmp_path, programs, _SLEEP + b"ip() { :; }\n")
    assert ran.returncode == 0, ran
    assert (tmp_path / "log").read_text().splitlines()[1:] == [
        "vmproxy: docker0 has no address yet",
        "vmproxy: failed: iptables-restore, our chains of table nat",
    ]


@_SHELLS
def test_f62_a_unit_s_script_ends_as_the_rules_do(shell: list[str], tmp_path: Path) -> None:
    """As a systemd unit's own script it ends with 0 where every rule was made, else with another status, so that the
    unit failed."""
    programs = {**_PROGRAMS, "iptables-restore": _RESTORE, "iptables": _TOOL}
    _lay(tmp_path, programs)
    blocks = {wish.path: wish for wish in systemd.render(_order("172.17.0.1"), Facts())}
    script = _SLEEP + blocks[systemd.SCRIPT].payload
    ends, said = [], []
    for bad in ("nothing", "*nat", "-A FORWARD"):
        path = {"PATH": f"{tmp_path}:/usr/bin:/bin", "OUT": str(tmp_path), "BAD": bad}
        ran = subprocess.run([*shell, "-c", script], env=path, capture_output=True, timeout=60, check=False)
        ends.append(ran.returncode)
        said.append(b"rules are in place" in ran.stdout)
    assert (ends, said) == ([0, 1, 1], [True, False, False])


_LOCKED = """case $* in
  *" -D "*) exit 1 ;;
  *"-S FORWARD") cat "$OUT/forward" 2>/dev/null; exit 0 ;;
  *" -S "*) exit 0 ;;
  *"-A FORWARD "*)
    echo again >>"$OUT/tries"
    [ "$(grep -c again "$OUT/tries")" -gt "$FAILING" ] || { echo "xtables lock" >&2; exit 4; }
    echo "-A FORWARD -j VMPROXY-FORWARD" >>"$OUT/forward" ;;
  *" $BAD "*) exit 4 ;;
esac"""


@_SHELLS
@pytest.mark.parametrize(
    ("failing", "bad", "end", "tries"),
    [(0, "nothing", 0, 1), (1, "nothing", 0, 2), (2, "nothing", 1, 2), (1, "-A POSTROUTING", 1, 2)],
    ids=["never", "once", "twice", "once-and-another"],
)
def test_f62_what_the_last_pass_makes_is_in_place(
    shell: list[str], failing: int, bad: str, end: int, tries: int, tmp_path: Path
) -> None:
    """A jump in FORWARD that fails while Docker holds the lock, and is made behind Docker's own rules, is made: status
    0, and the log ends with "rules are in place", said once. Not where the second try fails, or another jump did."""
    _lay(tmp_path, {**_PROGRAMS, "iptables": _LOCKED})
    blocks = {wish.path: wish for wish in systemd.render(_order("172.17.0.1"), Facts())}
    path = {"PATH": f"{tmp_path}:/usr/bin:/bin", "OUT": str(tmp_path), "FAILING": str(failing), "BAD": bad}
    script = _SLEEP + blocks[systemd.SCRIPT].payload
    ran = subprocess.run([*shell, "-c", script], env=path, capture_output=True, timeout=60, check=False)
    said = ran.stdout.decode().splitlines()
    assert (ran.returncode, (tmp_path / "tries").read_text().count("again")) == (end, tries)
    assert said.count("vmproxy: rules are in place") == (0 if end else 1)
    assert end or said[-1] == "vmproxy: rules are in place"
    failed = "vmproxy: failed: iptables, a jump in FORWARD of table filter"
    assert said.count(failed) == failing


def _order(address: str) -> Order:
    door = Door(gateway="10.0.2.2", port=8123, listen_port=8123, bridge_address=address, bridges=("docker0", "br-+"))
    return Order(environment={}, door=door, variant="default", record={})


def _lay(place: Path, programs: Mapping[str, str]) -> None:
    for name, text in programs.items():
        (place / name).write_text(f"#!/bin/sh\n{text}\n")
        (place / name).chmod(0o755)


def _run(
    shell: list[str], address: str, place: Path, programs: Mapping[str, str], functions: bytes
) -> subprocess.CompletedProcess[bytes]:
    """boot2docker's boot script, waited for, with its log in ``place``."""
    _lay(place, programs)
    blocks = boot2docker.render(_order(address), Facts())
    script = functions + blocks[0].payload.replace(b"/var/log/vmproxy.log", bytes(place / "log")).removesuffix(b" &\n")
    path = {"PATH": f"{place}:/usr/bin:/bin", "OUT": str(place)}
    return subprocess.run([*shell, "-c", script], env=path, capture_output=True, timeout=60, check=False)
