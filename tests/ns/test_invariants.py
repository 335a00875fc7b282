"""Invariants I1 to I8 of the rules, on real dumps of a VM that is full of other people's rules.

I8, the flows, is tests/ns/test_flows.py.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

import pytest

from tests.lab.nsvm import NamespaceVM
from tests.ns.story import (
    PROFILE,
    Held,
    Ran,
    Vmproxy,
    dump,
    files,
    host_proxy,
    ours,
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
def walk(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Walk:
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
    return walk


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
