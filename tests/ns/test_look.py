"""The look on VMs whose tools differ."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.lab.nsvm import NamespaceVM
from tests.ns.story import Vmproxy, shim
from vmproxy import converge
from vmproxy.machines import shell


def test_a_timeout_of_the_old_form_hides_no_rules(stub_vm: NamespaceVM, tmp_path: Path) -> None:
    """busybox before 1.30 takes ``timeout -t 20 …``: the words are then no limit, and everything is still seen."""
    shim(
        stub_vm, "timeout", """[ "$1" = -t ] || { echo "timeout: can't execute '$1'" >&2; exit 127; }; shift 2; "$@" """
    )
    vmproxy = Vmproxy(stub_vm, tmp_path)
    done = vmproxy.tell(converge.apply, check=False, verify=False)
    assert done.ok and done.changed, done
    assert vmproxy.tell(converge.status).message == "in sync"


def test_a_failing_dump_is_told_from_a_missing_limit(stub_vm: NamespaceVM, tmp_path: Path) -> None:
    """An iptables-save that fails is an error that is told, with timeout and without."""
    vmproxy = Vmproxy(stub_vm, tmp_path)
    shim(stub_vm, "iptables-nft-save", "echo '*nat'; exit 4")
    ran = vmproxy.status()
    assert ran.code not in (0, 1), ran
    assert "iptables-save" in ran.err and "4" in ran.err, ran


@pytest.mark.parametrize("shell_name", ["dash", "bash", "busybox"])
def test_the_loader_takes_its_script_and_not_a_byte_more(shell_name: str) -> None:
    """In one piece, in many, with newlines and bytes beyond ASCII at the seams; a script cut short is not run."""
    script = ("#" * 9000 + "\n\n\nprintf '%s|' ran …; IFS= read -r line; printf '%s|' \"$line\"\n\n").encode()
    data = f"{len(script)}\n".encode() + script + b"tail\nmore\n"
    at = len(data) - data[::-1].index("…".encode()[::-1]) - 1  # in the middle of a character
    with NamespaceVM(docker=False, shell=shell_name) as machine:
        for name, piece in (("1", data[:5000]), ("2", data[5000:9008]), ("3", data[9008:at]), ("4", data[at:])):
            machine.path(f"/tmp/{name}").write_bytes(piece)
        for feed in ("cat /tmp/[1234]", "for f in /tmp/[1234]; do cat $f; sleep 0.1; done"):
            done = machine.run(f"({feed}) | {shell.AS_USER}", user="docker")
            assert done.stdout.decode() == "ran|…|tail|"
        for feed in ("cat /tmp/1", "cat /tmp/[123]", "echo 5", "true"):
            done = machine.run(f"({feed}) | {shell.AS_USER}", user="docker", check=False)
            assert done.stdout == b""
