"""The look on VMs whose tools differ."""

from __future__ import annotations

from pathlib import Path

from tests.lab.nsvm import NamespaceVM
from tests.ns.story import Vmproxy, shim
from vmproxy import converge


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
