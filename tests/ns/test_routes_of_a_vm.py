"""``vmproxy detect-gateway --vm``: a VM's own table, over real sshd, with and without its tools."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.lab.hostside import listen
from tests.lab.nsvm import NamespaceVM
from tests.ns.story import Vmproxy

# Every place where a tool that prints routes may be; the shell's own look-up order is the guest's business.
HIDE = 'for name in {}; do while path=$(command -v "$name"); do mv "$path" "$path.hidden" || exit 1; done; done'


@pytest.fixture
def guest(bare_vm: NamespaceVM, tmp_path: Path) -> tuple[NamespaceVM, Vmproxy]:
    """A VM of the test's own, and vmproxy for it."""
    return bare_vm, Vmproxy(bare_vm, tmp_path)


def test_the_address_alone(guest: tuple[NamespaceVM, Vmproxy]) -> None:
    """The VM's default gateway on one line; with --json the reason and the interface's name."""
    _vm, vmproxy = guest
    ran = vmproxy.detect()
    assert (ran.code, ran.out) == (0, "10.0.2.2\n"), ran
    found = vmproxy.json("detect-gateway").json
    assert (found["gateway"], found["interface"], found["ok"], found["exit"]) == ("10.0.2.2", "eth0", True, 0)


@pytest.mark.parametrize("missing", ["netstat", "netstat route", "ip", "ip netstat", "ip route netstat"])
def test_f07_tools_missing(missing: str, guest: tuple[NamespaceVM, Vmproxy]) -> None:
    """Whatever is missing of netstat, ip and route, what is left tells; without all of them /proc does."""
    vm, vmproxy = guest
    vm.run("ip route add default via 10.0.2.9 dev eth0 metric 900")
    vm.run(HIDE.format(missing))
    ran = vmproxy.detect()
    assert (ran.code, ran.out) == (0, "10.0.2.2\n"), ran


def test_f08_two_default_routes(guest: tuple[NamespaceVM, Vmproxy]) -> None:
    """The lowest metric wins; equal ones are exit 6 naming both; --all lists both."""
    vm, vmproxy = guest
    vm.run("ip route replace default via 10.0.2.2 dev eth0 metric 50; ip route del default metric 0; true")
    vm.run("ip route add default via 10.0.2.9 dev eth0 metric 40")
    assert vmproxy.detect().out == "10.0.2.9\n"
    vm.run("ip route append default via 10.0.2.8 dev eth0 metric 40")
    ran = vmproxy.detect("--all")
    assert ran.code == 6, ran
    assert ran.out == "10.0.2.8 eth0 40\n10.0.2.9 eth0 40\n10.0.2.2 eth0 50\n"
    assert "share the metric 40" in ran.err
    assert "--gateway" in ran.err


def test_f08_multipath(guest: tuple[NamespaceVM, Vmproxy]) -> None:
    """The hops of one multipath route are candidates of equal metric."""
    vm, vmproxy = guest
    vm.run("ip route flush default; ip route add default nexthop via 10.0.2.2 dev eth0 nexthop via 10.0.2.9 dev eth0")
    ran = vmproxy.detect()
    assert (ran.code, ran.out) == (6, ""), ran


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("ip route flush default", "no default route"),
        ("ip route flush default; ip route add default dev eth0 scope link", "no gateway"),
        ("ip route flush default; ip -6 route add default via fe80::2 dev eth0", "IPv6 only"),
    ],
)
def test_f09_no_gateway(change: str, said: str, guest: tuple[NamespaceVM, Vmproxy]) -> None:
    """No default route, one without a gateway, IPv6 by a link-local gateway only: exit 6 and the --gateway hint."""
    vm, vmproxy = guest
    vm.run(change)
    ran = vmproxy.detect()
    assert (ran.code, ran.out) == (6, ""), ran
    assert said in ran.err
    assert "--gateway" in ran.err


def test_probe_asks_from_the_vm(guest: tuple[NamespaceVM, Vmproxy]) -> None:
    """``--probe`` connects from inside the VM: what listens at its host answers, what is closed there does not."""
    vm, vmproxy = guest
    with listen(vm.surroundings.host, "127.0.0.1", 8123):
        found = vmproxy.json("detect-gateway", "--probe", "8123").json
        closed = vmproxy.json("detect-gateway", "--probe", "8124").json
    assert [one["answers"] for one in found["candidates"]] == [True]
    assert [one["answers"] for one in closed["candidates"]] == [False]
