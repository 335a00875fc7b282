"""The boot script of a boot2docker VM, run by real shells with programs that only write down what they are given."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from vmproxy.guests import ADDRESS_AT_BOOT, Order, boot2docker
from vmproxy.model import Door, Facts

_PROGRAMS = {
    "iptables-restore": 'cat >>"$OUT/restored"',
    "iptables": 'case $* in *" -D "*) exit 1 ;; *" -S "*) exit 0 ;; esac; echo "$*" >>"$OUT/rules"',
    "docker": "exit 0",
}
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


@pytest.mark.parametrize("shell", [["dash"], ["busybox", "sh"], ["bash", "--posix"]], ids=lambda words: words[0])
@pytest.mark.parametrize("address", ["172.17.0.1", ADDRESS_AT_BOOT], ids=["known", "at-boot"])
def test_f62_the_boot_script_makes_the_rules_alone(shell: list[str], address: str, tmp_path: Path) -> None:
    """Run by itself it restores our chains and adds each jump, with docker0's address of then where it is not known:
    a Docker that starts for the first time makes its chains before its bridge."""
    for name, text in _PROGRAMS.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    door = Door(gateway="10.0.2.2", port=8123, listen_port=8123, bridge_address=address, bridges=("docker0", "br-+"))
    blocks = boot2docker.render(Order(environment={}, door=door, variant="default", record={}), Facts())
    script = _IP + blocks[0].payload.replace(b"/var/log/vmproxy.log", bytes(tmp_path / "log")).removesuffix(b" &\n")
    path = {"PATH": f"{tmp_path}:/usr/bin:/bin", "OUT": str(tmp_path)}
    ran = subprocess.run([*shell, "-c", script], env=path, capture_output=True, timeout=30, check=False)
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, b"", b"")
    restored = (tmp_path / "restored").read_text()
    assert f"-d {'172.30.0.1' if address == ADDRESS_AT_BOOT else address}/32 -p tcp" in restored
    assert ADDRESS_AT_BOOT not in restored
    assert restored.count("COMMIT\n") == 2
    assert (tmp_path / "rules").read_text().count("-j VMPROXY-") >= 4
