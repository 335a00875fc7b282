"""Invariants I1 to I8 of the rules, on real dumps of a VM that is full of other people's rules.

I8, the flows, is tests/ns/test_flows.py.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.lab.nsvm import NamespaceVM
from tests.ns.story import (
    BOOTLOCAL,
    DATA,
    PROFILE,
    Held,
    Ran,
    Vmproxy,
    dump,
    files,
    foreign,
    host_proxy,
    ours,
    reset,
    settled,
    shim,
)

# Chains with rules, with none, and never jumped to; DNATs on other ports; modules, negations, quotes, every table.
FOREIGN = r"""
set -e
iptables -t nat -N SITE-NAT
iptables -t nat -A SITE-NAT -p tcp --dport 9999 -j DNAT --to-destination 192.168.99.1:80
iptables -t nat -A PREROUTING -p tcp --dport 2222 -j DNAT --to-destination 172.17.0.9:22
iptables -t nat -A PREROUTING ! -i docker0 -p tcp -m multiport --dports 8124,9000:9100 -j REDIRECT --to-ports 80
iptables -t nat -A PREROUTING -j SITE-NAT
iptables -t nat -A POSTROUTING -s 10.8.0.0/24 -o eth0 -j MASQUERADE
iptables -t nat -A OUTPUT -d 198.51.100.1/32 -p tcp --dport 8123 -j DNAT --to-destination 192.168.99.1:3128
iptables -N SITE
iptables -N SITE-EMPTY
iptables -N SITE-UNUSED
iptables -A SITE -s 198.51.100.0/24 -m comment --comment "it's \"ours\" \\ too" -j DROP
iptables -A SITE -m mark --mark 0x1/0xff -m limit --limit 5/min -j RETURN
iptables -A INPUT -j SITE
iptables -A INPUT -j SITE-EMPTY
iptables -A INPUT -p tcp -m tcp --tcp-flags SYN,RST SYN -s 198.51.100.3 -j REJECT --reject-with tcp-reset
iptables -I FORWARD 1 -s 198.51.100.7 -m comment --comment vmproxy -j ACCEPT
iptables -I DOCKER-USER 1 -s 198.51.100.9 -j DROP
iptables -t mangle -A POSTROUTING -p tcp -m tcp --tcp-flags SYN,RST SYN -j TCPMSS --clamp-mss-to-pmtu
iptables -t raw -A PREROUTING -s 198.51.100.9 -j DROP
iptables -P OUTPUT ACCEPT
"""
REJECT = "iptables -A FORWARD -j REJECT --reject-with icmp-host-prohibited"


@dataclass
class Walk:
    """The dumps and files by state, and how each run ended."""

    variant: str
    rules: dict[str, list[str]] = field(default_factory=dict)
    files: dict[str, dict[str, Held | None]] = field(default_factory=dict)
    runs: dict[str, Ran] = field(default_factory=dict)


@pytest.fixture(scope="module", params=["nft", "legacy"])
def walk(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Walk]:
    """Foreign rules with a final REJECT in FORWARD; apply, apply, more foreign rules, apply, remove, remove."""
    walk = Walk(variant=str(request.param))
    with NamespaceVM(iptables=walk.variant) as machine, host_proxy(machine):
        vmproxy = Vmproxy(machine, tmp_path_factory.mktemp("home"))

        def state(name: str) -> None:
            walk.rules[name], walk.files[name] = dump(machine), files(machine)

        machine.docker("network", "create", "own")
        machine.run(FOREIGN + REJECT)
        # At each start dockerd takes its own jumps out and puts them in again: only then their places are lasting.
        machine.run("/etc/init.d/docker restart")
        machine.wait_for_docker()
        machine.path(PROFILE).write_bytes(b"# mine\n")
        machine.path(PROFILE).chmod(0o640)
        state("before")
        walk.runs["apply"] = vmproxy.apply()
        state("applied")
        walk.runs["again"] = vmproxy.json("apply")
        state("applied twice")
        machine.run("iptables -A FORWARD -s 198.51.100.8/32 -j ACCEPT; iptables -t nat -A PREROUTING -j RETURN")
        walk.runs["status"] = vmproxy.json("status")
        walk.runs["third"] = vmproxy.json("apply")
        state("rules behind ours")
        machine.run("iptables -D FORWARD -s 198.51.100.8/32 -j ACCEPT; iptables -t nat -D PREROUTING -j RETURN")
        walk.runs["remove"] = vmproxy.remove()
        state("removed")
        walk.runs["removed again"] = vmproxy.json("remove")
        state("removed twice")
    yield walk


def test_i1_every_rule_of_ours_is_in_our_chains_or_a_jump_to_one(walk: Walk) -> None:
    """Each rule that apply added lies in a VMPROXY- chain or leads to one, and carries the comment vmproxy."""
    added = [line for line in walk.rules["applied"] if line not in walk.rules["before"]]
    rules = [line for line in added if line.startswith("-A ")]
    assert len(rules) == 9
    for line in rules:
        assert line.startswith("-A VMPROXY-") or re.search(r" -j VMPROXY-\w+$", line), line
        assert "--comment vmproxy" in line, line
    assert sorted(line for line in added if not line.startswith("-A ")) == [
        ":VMPROXY-FORWARD -",
        ":VMPROXY-POSTROUTING -",
        ":VMPROXY-PREROUTING -",
    ]


def test_i2_every_jump_and_accept_is_scoped(walk: Walk) -> None:
    """nat jumps name a bridge, or gateway, port and ctstate DNAT; FORWARD accepts only such connections."""
    rules = [line for line in ours(walk.rules["applied"]) if line.startswith("-A ")]
    for line in rules:
        words = line.split()
        if words[1] == "PREROUTING":
            assert words[2:4] in (["-i", "docker0"], ["-i", "br-+"]), line
            assert "-p tcp -m tcp --dport 8123" in line
        elif words[1] == "POSTROUTING":
            assert "-d 10.0.2.2/32 -p tcp -m tcp --dport 8123 -m conntrack --ctstate DNAT" in line
        elif words[1] == "VMPROXY-FORWARD":
            assert re.search(r"-d 10.0.2.2/32 .*--dport 8123 |-s 10.0.2.2/32 .*--sport 8123 ", line), line
            assert "--ctstate DNAT --ctdir" in line
            assert line.endswith("-j ACCEPT")
        elif words[1] == "VMPROXY-PREROUTING":
            assert "--dst-type LOCAL --limit-iface-in" in line or "-d 172.17.0.1/32" in line


def test_i3_remove_gives_back_the_dump_and_the_files(walk: Walk) -> None:
    """After remove the dump equals the one before apply line for line, and so do the files, mode and owner too."""
    assert walk.runs["remove"].code == 0, walk.runs["remove"]
    assert walk.rules["removed"] == walk.rules["before"]
    assert walk.files["removed"] == walk.files["before"]


def test_i4_apply_twice_is_apply_once(walk: Walk) -> None:
    """The second apply says that there is nothing to do, and neither a rule nor a byte differs."""
    assert walk.runs["apply"].code == 0, walk.runs["apply"]
    again = walk.runs["again"]
    assert (again.code, again.json["changed"]) == (0, False), again
    assert walk.rules["applied twice"] == walk.rules["applied"]
    assert walk.files["applied twice"] == walk.files["applied"]


def test_remove_twice_is_remove_once(walk: Walk) -> None:
    """The second remove says that there is nothing to do, and changes nothing."""
    again = walk.runs["removed again"]
    assert (again.code, again.json["changed"]) == (0, False), again
    assert walk.rules["removed twice"] == walk.rules["removed"]


def test_i5_i6_foreign_rules_keep_words_order_and_policies(walk: Walk) -> None:
    """With ours taken out, the dump is as before: same rules in the same order, same chains, same policies."""
    mine = set(ours(walk.rules["applied"])) - set(walk.rules["before"])
    assert [line for line in walk.rules["applied"] if line not in mine] == walk.rules["before"]


def test_forward_jump_stands_behind_dockers_and_before_the_reject(walk: Walk) -> None:
    """The jump in FORWARD comes after all that is Docker's and just before the rule that ends the chain."""
    forward = [line for line in walk.rules["applied"] if line.startswith("-A FORWARD ")]
    assert forward[-2].endswith("-j VMPROXY-FORWARD")
    assert forward[-1].endswith("-j REJECT --reject-with icmp-host-prohibited")


def test_rules_appended_behind_ours_are_no_drift(walk: Walk) -> None:
    """Foreign rules that come later leave status in sync, and the next apply moves nothing."""
    assert walk.runs["status"].code == 0, walk.runs["status"]
    assert (walk.runs["third"].code, walk.runs["third"].json["changed"]) == (0, False), walk.runs["third"]
    assert ours(walk.rules["rules behind ours"]) == ours(walk.rules["applied"])


# ---- in the VM whose dockerd is a stub: quick, with Docker's own rules all the same ---------------------------------


@dataclass(frozen=True, kw_only=True)
class World:
    """A VM just booted, with a proxy on its host and nothing of ours in it."""

    machine: NamespaceVM
    vmproxy: Vmproxy
    variant: str


@pytest.fixture(scope="module", params=["nft", "legacy"])
def booted(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """One VM for all the tests below."""
    variant = str(request.param)
    with NamespaceVM(iptables=variant, docker="stub") as machine, host_proxy(machine):
        yield World(machine=machine, vmproxy=Vmproxy(machine, tmp_path_factory.mktemp("home")), variant=variant)


@pytest.fixture
def world(booted: World) -> World:
    """The same, reset."""
    booted.machine.path(f"{DATA}/bootsync.sh").unlink(missing_ok=True)
    reset(booted.machine)
    return booted


def test_i3_i5_without_a_last_rule(world: World) -> None:
    """Where FORWARD has no last REJECT the jump goes to its end, and remove gives back the very dump."""
    world.machine.run(FOREIGN)
    before = dump(world.machine)
    ran = world.vmproxy.apply("--no-verify")
    assert ran.code == 0, ran
    forward = [line for line in dump(world.machine) if line.startswith("-A FORWARD ")]
    assert forward[-1].endswith("-j VMPROXY-FORWARD")
    assert world.vmproxy.remove().code == 0
    assert dump(world.machine) == before


def test_i6_counters_of_foreign_rules_go_on(world: World) -> None:
    """No foreign rule is taken out and put in again: each keeps what it has counted."""
    counted = b"*filter\n[7:700] -A INPUT -s 198.51.100.1 -j DROP\nCOMMIT\n"
    world.machine.run("iptables-restore -w -c --noflush", stdin=counted)
    assert world.vmproxy.apply("--no-verify").code == 0
    assert world.vmproxy.remove().code == 0
    assert "[7:700] -A INPUT -s 198.51.100.1/32 -j DROP" in world.machine.run("iptables-save -c").stdout.decode()


@pytest.mark.parametrize("command", ["apply", "remove"])
def test_i7_one_restore_per_table_and_no_single_calls(world: World, command: str) -> None:
    """Rules are written by one iptables-restore -w N --noflush per table, tested first, and by nothing else."""
    if command == "remove":
        assert world.vmproxy.apply("--no-verify").code == 0
    for name in (f"iptables-{world.variant}", f"iptables-{world.variant}-restore", "iptables", "iptables-restore"):
        shim(world.machine, name, f'echo "{name} $*" >>/run/calls\nexec /usr/sbin/{name} "$@"')
    ran = world.vmproxy.command(command, *(["--no-verify"] if command == "apply" else []), "--restart", "never")
    assert ran.code in (0, 3), ran
    calls = world.machine.path("/run/calls").read_text().splitlines()
    tested = [call for call in calls if call.endswith(" --test")]
    assert len(tested) == 2
    assert calls[:2] == tested
    assert len(calls) == 4
    assert all(re.fullmatch(rf"iptables-{world.variant}-restore -w \d+ --noflush( --test)?", call) for call in calls)


def test_f17_only_the_variant_that_holds_dockers_rules_is_written(world: World) -> None:
    """With rules in both nft and legacy apply succeeds, warns of the mix, and touches only Docker's variant."""
    other = "legacy" if world.variant == "nft" else "nft"
    world.machine.run(f"iptables-{other} -A INPUT -s 198.51.100.1 -j DROP")
    before, mine = dump(world.machine, other), dump(world.machine, world.variant)
    ran = world.vmproxy.apply("--no-verify")
    assert ran.code == 0, ran
    assert "vmproxy: warning:" in ran.err
    assert re.search(rf"{other} iptables has rules", ran.err), ran
    assert dump(world.machine, other) == before
    assert ours(dump(world.machine, world.variant))
    assert world.vmproxy.remove().code == 0
    assert dump(world.machine, other) == before
    assert dump(world.machine, world.variant) == mine


def test_f20_a_dnat_on_the_same_port_is_refused_and_quoted(world: World) -> None:
    """Another tool's DNAT of the door's port: exit 6, that rule in the message, nothing changed; --force goes on."""
    rule = "-A PREROUTING -i docker0 -p tcp -m tcp --dport 8123 -j DNAT --to-destination 192.168.99.1:80"
    world.machine.run(f"iptables -t nat {rule}")
    before, held = dump(world.machine), files(world.machine)
    ran = world.vmproxy.apply("--no-verify")
    assert ran.code == 6, ran
    assert "--to-destination 192.168.99.1:80" in ran.err
    assert "--listen-port" in ran.err
    assert (dump(world.machine), files(world.machine)) == (before, held)
    forced = world.vmproxy.apply("--no-verify", "--force")
    assert forced.code == 0, forced
    assert rule in dump(world.machine)
    assert world.vmproxy.remove().code == 0
    assert dump(world.machine) == before


def test_f20_another_listen_port_gets_round_it(world: World) -> None:
    """With --listen-port the door stands beside the other tool's DNAT, and leads to the proxy's own port."""
    world.machine.run("iptables -t nat -A PREROUTING -p tcp --dport 8123 -j DNAT --to-destination 192.168.99.1:80")
    ran = world.vmproxy.apply("--no-verify", "--listen-port", "18123")
    assert ran.code == 0, ran
    jumps = [line for line in ours(dump(world.machine)) if line.startswith("-A PREROUTING")]
    assert jumps
    assert all("--dport 18123" in line for line in jumps)
    assert "172.17.0.1:18123" in world.vmproxy.env().out


GUIDE = """
iptables -I FORWARD -p tcp -d 10.0.2.2 --dport 8123 -j ACCEPT
iptables -t nat -A POSTROUTING -o docker0 -j MASQUERADE
iptables -t nat -A PREROUTING -i docker0 -p tcp --dport 8123 -j DNAT --to-destination 10.0.2.2:8123
"""


def test_f21_rules_of_the_classic_guide_are_reported_not_doubled_not_deleted(world: World) -> None:
    """The three rules of the guide: apply succeeds with a warning for each, and all three are there once, also later."""
    world.machine.run(GUIDE)
    before = dump(world.machine)
    ran = world.vmproxy.apply("--no-verify")
    assert ran.code == 0, ran
    for chain in ("FORWARD", "POSTROUTING", "PREROUTING"):
        assert re.search(rf"vmproxy: warning: .*-A {chain} ", ran.err), ran
    assert foreign(dump(world.machine)) == before
    again = world.vmproxy.json("apply", "--no-verify")
    assert (again.code, again.json["changed"]) == (0, False), again
    assert len(world.vmproxy.json("status").vm["warnings"]) >= 3
    assert world.vmproxy.remove().code == 0
    assert dump(world.machine) == before


def test_f62_a_last_reject_is_kept_behind_our_jump_at_boot(world: World) -> None:
    """Where the VM itself ends FORWARD with a REJECT at each boot, the boot script puts our jump before it."""
    world.machine.path(f"{DATA}/bootsync.sh").write_text(f"{REJECT}\n")
    world.machine.restart_boot()
    assert world.vmproxy.apply("--no-verify").code == 0
    applied = ours(dump(world.machine))
    world.machine.restart_boot()
    settled(world.machine)
    assert sorted(ours(dump(world.machine))) == sorted(applied)
    ran = world.vmproxy.status()
    assert ran.code == 0, ran


def test_f62_the_boot_script_run_again_changes_nothing(world: World) -> None:
    """The block in bootlocal.sh is idempotent: run by hand a second time it leaves the same dump."""
    assert world.vmproxy.apply("--no-verify").code == 0
    applied = dump(world.machine)
    for _ in range(2):
        world.machine.run(["sh", BOOTLOCAL])
        settled(world.machine)
    assert sorted(dump(world.machine)) == sorted(applied)
    assert world.vmproxy.status().code == 0
