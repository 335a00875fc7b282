"""vmproxy in the VM itself: the same end as over SSH, by pyroute2 and python-iptables."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.lab.hostside import Greeter
from tests.lab.nsvm import NamespaceVM
from tests.ns.inside import PYTHON, Inside
from tests.ns.story import Held, Vmproxy, daemon_environment, dump, files, host_proxy, ours, shim
from tests.ns.test_flows import FLOWS, PORT, UPLINK, Stage


@dataclass(frozen=True, kw_only=True)
class Picture:
    """What a VM looks like from outside."""

    rules: list[str]
    files: dict[str, Held | None]
    environment: dict[str, str]


def picture(machine: NamespaceVM) -> Picture:
    """The rules, the two files, and the proxy variables that dockerd runs with."""
    environment = {name: value for name, value in daemon_environment(machine).items() if "proxy" in name.lower()}
    return Picture(rules=dump(machine), files=files(machine), environment=environment)


VARIANTS = ["nft", "legacy"]


@pytest.fixture(scope="module", params=VARIANTS)
def machine(request: pytest.FixtureRequest) -> Iterator[NamespaceVM]:
    """A VM with Docker and Python, one for all tests of a variant, and a proxy on its host."""
    with NamespaceVM(iptables=str(request.param), more=PYTHON) as vm:
        vm.import_image()
        with host_proxy(vm):
            yield vm


@pytest.fixture(scope="module", params=VARIANTS)
def quick(request: pytest.FixtureRequest) -> Iterator[NamespaceVM]:
    """The same with a stub for Docker."""
    with NamespaceVM(iptables=str(request.param), more=PYTHON, docker="stub") as vm, host_proxy(vm):
        yield vm


def test_the_end_is_that_of_ssh(machine: NamespaceVM, tmp_path: Path) -> None:
    """apply, status and remove from inside and over SSH: the same rules, files and daemon; each knows the other's."""
    over_ssh, inside = Vmproxy(machine, tmp_path), Inside(machine, tmp_path)
    before = picture(machine)
    ran = over_ssh.apply("--no-verify", "--no-proxy", "registry.corp,10.0.0.0/8")
    assert ran.code == 0, ran
    by_ssh = picture(machine)
    assert inside.status().code == 0
    assert over_ssh.remove().code == 0
    assert picture(machine) == before
    ran = inside.apply("--no-proxy", "registry.corp,10.0.0.0/8")
    assert ran.code == 0, ran
    assert ran.out.count("  ok ") == 3, ran
    by_local = picture(machine)
    assert by_local.rules == by_ssh.rules
    assert by_local.environment == by_ssh.environment
    assert by_local.files == by_ssh.files
    again = inside.apply()
    assert (again.code, "nothing to do" in again.all) == (0, True), again
    assert over_ssh.status().code == 0
    assert inside.detect().out == "10.0.2.2\n"
    assert "http_proxy='http://172.17.0.1:8123'" in inside.env().out
    verified = inside.verify()
    assert verified.code == 0, verified
    ran = inside.remove()
    assert ran.code == 0, ran
    assert picture(machine) == before


def test_flows_from_inside(machine: NamespaceVM, tmp_path: Path) -> None:
    """The acceptance table after an apply from inside."""
    stage, inside = Stage(machine), Inside(machine, tmp_path)
    stage.build()
    ran = inside.apply("--no-verify")
    assert ran.code == 0, ran
    with Greeter(machine.surroundings.vm, UPLINK, PORT, "uplink"):
        seen = stage.record()
    wrong = {row: seen[row] for row, flow in FLOWS.items() if not seen[row].startswith(flow.wanted)}
    assert not wrong


def test_no_root_is_sudo(quick: NamespaceVM, tmp_path: Path) -> None:
    """As the docker user ``sudo -n`` is used; where that wants a password it is exit 5 and nothing is changed."""
    before = picture(quick)
    user = Inside(quick, tmp_path, user="docker")
    ran = user.apply("--no-verify")
    assert ran.code == 0, ran
    assert ours(dump(quick))
    assert user.remove().code == 0
    assert picture(quick) == before
    hidden = shim(quick, "sudo", "echo 'sudo: a password is required' >&2; exit 1")
    try:
        ran = user.apply()
        assert (ran.code, "sudoers" in ran.err) == (5, True), ran
    finally:
        quick.path(hidden).unlink()
    assert picture(quick) == before


def test_a_signal_puts_everything_back(quick: NamespaceVM, tmp_path: Path) -> None:
    """SIGTERM in the middle of the change: the script, in a session of its own, puts everything back; exit 143."""
    inside = Inside(quick, tmp_path)
    before = picture(quick)
    script = (
        "python3 -m vmproxy apply --vm local --no-verify & p=$!; "
        "until [ -e /run/reached ]; do sleep 0.05; done; kill $p; sleep 1; touch /run/told; wait $p; echo code $?"
    )
    # The temporary directories are made in the middle of the change.
    waits = "touch /run/reached; until [ -e /run/told ]; do sleep 0.05; done"
    place = shim(quick, "mktemp", f'{waits}; exec /usr/bin/mktemp "$@"')
    try:
        pairs = [f"{name}={value}" for name, value in inside.environ.items()]
        done = quick.run(["env", *pairs, "sh", "-c", script], check=False)
    finally:
        quick.path(place).unlink()
    assert done.stdout.decode().endswith("code 143\n"), done
    assert picture(quick) == before


def test_legacy_rules_are_written_by_python_iptables(quick: NamespaceVM, tmp_path: Path) -> None:
    """Without iptables-restore a legacy VM is still served, and cleared; nft rules are never the library's to write."""
    inside, before = Inside(quick, tmp_path), picture(quick)
    legacy = b"legacy" in quick.run(["iptables", "-V"]).stdout
    tools = [f"/usr/sbin/iptables{kind}-restore" for kind in ("-legacy", "-nft", "")]
    aside = "; ".join(f"mv {tool} {tool}.aside" for tool in tools)
    quick.run(aside)
    try:
        ran = inside.apply("--listen-port", "18123", "--no-verify")
        if legacy:
            assert ran.code == 0, ran
            assert any("--dport 18123" in line for line in ours(dump(quick)))
            again = inside.apply("--listen-port", "18124", "--no-verify")
            assert (again.code, any("18123" in line for line in ours(dump(quick)))) == (0, False), again
            assert inside.remove().code == 0
        else:
            assert ran.code == 6, ran
            assert not quick.run("cat /proc/net/ip_tables_names 2>/dev/null", check=False).stdout
    finally:
        quick.run("; ".join(f"mv {tool}.aside {tool}" for tool in tools))
    assert picture(quick) == before


def test_local_is_no_name(quick: NamespaceVM, tmp_path: Path) -> None:
    """``local:x`` is exit 2."""
    ran = Inside(quick, tmp_path).run("status", "--vm", "local:x")
    assert (ran.code, "local has no names" in ran.err) == (2, True), ran
