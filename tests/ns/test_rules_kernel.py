"""The rules on real kernels, nft and legacy: the flow table of DESIGN section 4 and the invariants on real dumps."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.ns.rulenets import BRIDGES, Nets
from vmproxy.model import Door
from vmproxy.rules import (
    boot_text,
    canonical,
    cas_text,
    changes,
    conflicts,
    cover,
    docker_bridges,
    drift,
    inverse,
    jumps,
    parse_save,
)

pytestmark = pytest.mark.root

FIXTURES = Path(__file__).resolve().parents[2] / "fixtures" / "iptables"
INTERFACES = ("lo", "eth0", "eth1", "eth2", *(name for name, _ in BRIDGES.values() if name != "br-lan"))
PORT = 8123

FLOWS = {
    "docker0 to its gateway": ("ct", "172.17.0.1", PORT),
    "user-defined to its own gateway": ("app", "172.18.0.1", PORT),
    "user-defined to docker0's address": ("app", "172.17.0.1", PORT),
    "without masquerade to its own gateway": ("plain", "172.20.0.1", PORT),
    "without masquerade to docker0's address": ("plain", "172.17.0.1", PORT),
    "internal to its own gateway": ("inside", "172.19.0.1", PORT),
    "internal to docker0's address": ("inside", "172.17.0.1", PORT),
    "container to an unrelated host": ("ct", "203.0.113.9", PORT),
    "container to the VM's uplink address": ("ct", "10.0.2.15", PORT),
    "user-defined to the VM's uplink address": ("app", "10.0.2.15", PORT),
    "container to another port of the host": ("ct", "10.0.2.2", 9000),
    "container to another port of its gateway": ("ct", "172.17.0.1", 9000),
    "LAN to the VM": ("lan", "192.168.99.100", PORT),
    "LAN to the host through the VM": ("lan", "10.0.2.2", PORT),
    "LAN to docker0's address": ("lan", "172.17.0.1", PORT),
    "outside to a published port": ("other", "203.0.113.1", 8080),
}
OPENED = {
    "docker0 to its gateway": "PROXY saw 10.0.2.15",
    "user-defined to its own gateway": "PROXY saw 10.0.2.15",
    "user-defined to docker0's address": "PROXY saw 10.0.2.15",
    "without masquerade to its own gateway": "PROXY saw 10.0.2.15",
    "without masquerade to docker0's address": "PROXY saw 10.0.2.15",
}
BEFORE = {
    "docker0 to its gateway": "",
    "user-defined to its own gateway": "",
    "user-defined to docker0's address": "",
    "without masquerade to its own gateway": "",
    "without masquerade to docker0's address": "",
    "internal to its own gateway": "",
    "internal to docker0's address": "",
    "container to an unrelated host": "UNRELATED saw 203.0.113.1",
    "container to the VM's uplink address": "VM-OWN saw 172.17.0.2",
    "user-defined to the VM's uplink address": "VM-OWN saw 172.18.0.2",
    "container to another port of the host": "HOST-OTHER saw 10.0.2.15",
    "container to another port of its gateway": "",
    "LAN to the VM": "",
    "LAN to the host through the VM": "",
    "LAN to docker0's address": "",
    "outside to a published port": "PUBLISHED saw 203.0.113.9",
}


@pytest.fixture(scope="module", params=["nft", "legacy"])
def machines(request: pytest.FixtureRequest) -> Iterator[Nets]:
    """The machines, once per variant."""
    with Nets(request.param) as nets:
        yield nets


@pytest.fixture
def nets(machines: Nets) -> Nets:
    """The machines with exactly the rules that dockerd 20.10 had made for these networks, as recorded."""
    dump = (FIXTURES / f"docker20-{machines.variant}-networks.save").read_bytes()
    machines.inside("vm", f"iptables-{machines.variant}-restore", "-w", "60", data=dump)
    # The site lets replies pass, as hosts with a firewall do: only so a LAN client could profit from a careless accept.
    machines.iptables("-A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT")
    return machines


def its_door(nets: Nets, gateway: str = "10.0.2.2") -> Door:
    """The door that the recorded networks want."""
    bridges = cover(INTERFACES, docker_bridges(parse_save(nets.save())))
    assert bridges == ("docker0", "kitchen0", "br-+")
    return Door(gateway=gateway, port=PORT, listen_port=PORT, bridge_address="172.17.0.1", bridges=bridges)


def carry_out(nets: Nets, door: Door | None) -> list[str]:
    """Look, change, look again; the lines for people."""
    todo = changes(parse_save(nets.save()), door)
    for text in todo.texts.values():
        nets.restore(text)
    assert not changes(parse_save(nets.save()), door)
    assert drift(parse_save(nets.save()), door, INTERFACES) == ()
    return list(todo.lines)


def flows(nets: Nets) -> dict[str, str]:
    """The flow table as it is now."""
    return {name: nets.ask(*flow) for name, flow in FLOWS.items()}


def test_i8_flow_table(nets: Nets) -> None:
    """Every flow of the table is as wanted after apply, and as before after remove."""
    assert flows(nets) == BEFORE
    carry_out(nets, its_door(nets))
    assert flows(nets) == BEFORE | OPENED
    carry_out(nets, None)
    assert flows(nets) == BEFORE


def test_i3_i4_save_after_remove_is_save_before(nets: Nets) -> None:
    """Applied twice is one dump; removed gives back the dump from before, byte for byte but comments and counters."""
    before = cas_text(nets.save())
    assert carry_out(nets, its_door(nets))
    applied = cas_text(nets.save())
    assert carry_out(nets, its_door(nets)) == []
    assert cas_text(nets.save()) == applied
    assert carry_out(nets, None)
    assert cas_text(nets.save()) == before


def test_f19b_undo_of_each_table_gives_back_the_dump(nets: Nets) -> None:
    """The undo text of one table undoes that table on the real kernel, from nothing of ours and from an older door."""
    for older in (None, its_door(nets, gateway="10.0.9.9")):
        carry_out(nets, older)
        seen = nets.save()
        do, undo = changes(parse_save(seen), its_door(nets)), inverse(parse_save(seen), its_door(nets))
        for table in do.texts:
            nets.restore(do.texts[table])
            nets.restore(undo.texts[table])
            assert cas_text(nets.save()) == cas_text(seen)
        assert "nat" in do.texts


def test_restore_is_accepted_by_the_test_run(nets: Nets) -> None:
    """F16: ``iptables-restore --test`` takes the texts, so the module check before the change is no false alarm."""
    before = cas_text(nets.save())
    for text in changes(parse_save(nets.save()), its_door(nets)).texts.values():
        nets.inside("vm", f"iptables-{nets.variant}-restore", "-w", "60", "--noflush", "--test", data=text)
    assert cas_text(nets.save()) == before


def test_wreck_converges(nets: Nets) -> None:
    """Doubled, misplaced, half-deleted and left-over pieces on a real kernel come right in one run."""
    carry_out(nets, its_door(nets))
    clean = cas_text(nets.save())
    for words in (
        "-I FORWARD -j VMPROXY-FORWARD",
        "-A FORWARD -j REJECT --reject-with icmp-host-prohibited",
        "-t nat -N VMPROXY-OLD",
        "-t nat -A VMPROXY-OLD -j VMPROXY-PREROUTING",
        "-t nat -A PREROUTING -i eth2 -p tcp -j VMPROXY-OLD",
        "-t nat -D VMPROXY-PREROUTING 1",
        "-t nat -D PREROUTING 1",
        "-t nat -A VMPROXY-POSTROUTING -j ACCEPT",
    ):
        nets.iptables(words)
    assert len(drift(parse_save(nets.save()), its_door(nets), INTERFACES)) >= 5
    carry_out(nets, its_door(nets))
    nets.iptables("-D FORWARD -j REJECT --reject-with icmp-host-prohibited")
    assert cas_text(nets.save()) == clean


def test_reject_at_the_end_does_not_shut_the_door(nets: Nets) -> None:
    """Where a REJECT ends FORWARD the jump stands before it, and lets through what Docker's accept does not."""
    nets.iptables("-A FORWARD -j REJECT --reject-with icmp-host-prohibited")
    nets.iptables("-D FORWARD -i kitchen0 ! -o kitchen0 -j ACCEPT")
    assert carry_out(nets, its_door(nets))
    assert nets.ask("plain", "172.20.0.1", PORT) == "PROXY saw 10.0.2.15"
    assert nets.ask("lan", "10.0.2.2", PORT) == ""


def test_rules_stay_right_when_docker_puts_its_own_in_again(nets: Nets) -> None:
    """dockerd puts its jumps on top at each start: ours is then still behind them, and nothing is to be done."""
    carry_out(nets, its_door(nets))
    for chain in ("DOCKER-ISOLATION-STAGE-1", "DOCKER-USER"):
        nets.iptables(f"-D FORWARD -j {chain}")
        nets.iptables(f"-I FORWARD -j {chain}")
    assert drift(parse_save(nets.save()), its_door(nets), INTERFACES) == ()
    assert flows(nets) == BEFORE | OPENED


def test_f62_boot_text_and_jumps_twice(nets: Nets) -> None:
    """What the boot block does, done twice, gives the rules that apply finds nothing to do about."""
    door = its_door(nets)
    for _ in range(2):
        for text in boot_text(door).values():
            nets.restore(text)
        for table, chain, words in jumps(door):
            while (table, chain, canonical(words)) in _all_rules(nets):
                nets.iptables(" ".join(["-t", table, "-D", chain, *words]))
            nets.iptables(" ".join(["-t", table, "-A", chain, *words]))
    assert not changes(parse_save(nets.save()), door)
    assert flows(nets) == BEFORE | OPENED


def _all_rules(nets: Nets) -> set[tuple[str, str, object]]:
    """Every rule of the VM, comparable."""
    return {(c.table, c.name, canonical(rule.words)) for c in parse_save(nets.save()).chains for rule in c.rules}


def test_t08_a_lan_behind_br_lan_stays_out(nets: Nets) -> None:
    """br-+ would let the LAN behind br-lan in, which is named; one jump per bridge of Docker's keeps it out."""
    there = (*INTERFACES, "br-lan")
    open_door = its_door(nets)
    carry_out(nets, open_door)
    assert nets.ask("office", "192.168.7.1", PORT) == "PROXY saw 10.0.2.15"
    found = [finding.detail for finding in drift(parse_save(nets.save()), open_door, there)]
    assert found == ["br-lan is covered and is not Docker's"]
    bridges = cover(there, docker_bridges(parse_save(nets.save())))
    assert "br-lan" not in bridges
    carry_out(nets, replace(open_door, bridges=bridges))
    assert drift(parse_save(nets.save()), replace(open_door, bridges=bridges), there) == ()
    assert nets.ask("office", "192.168.7.1", PORT) == ""
    assert nets.ask("office", "172.17.0.1", PORT) == ""
    assert flows(nets) == BEFORE | OPENED


def test_f21_guide_followed_before(nets: Nets) -> None:
    """With the classic guide's rules in place ours go in beside them, they are named, and remove leaves them."""
    nets.iptables("-I FORWARD -p tcp -d 10.0.2.2 --dport 8123 -j ACCEPT")
    nets.iptables("-t nat -A POSTROUTING -o docker0 -j MASQUERADE")
    nets.iptables("-t nat -A PREROUTING -i docker0 -p tcp --dport 8123 -j DNAT --to-destination 10.0.2.2:8123")
    before = cas_text(nets.save())
    found = conflicts(parse_save(nets.save()), its_door(nets))
    assert [(f.ok, f.code) for f in found] == [(True, "W_GUIDE")] * 3
    carry_out(nets, its_door(nets))
    assert nets.ask("ct", "172.17.0.1", PORT) == "PROXY saw 10.0.2.15"
    carry_out(nets, None)
    assert cas_text(nets.save()) == before


def test_f20_redirect_quoted_from_a_real_dump(nets: Nets) -> None:
    """Another tool's redirect is recognised in what the real iptables-save prints of it."""
    nets.iptables("-t nat -A PREROUTING -i docker0 -p tcp -m multiport --dports 80,8123 -j REDIRECT --to-ports 3129")
    (finding,) = conflicts(parse_save(nets.save()), its_door(nets))
    assert not finding.ok
    assert "-t nat -A PREROUTING -i docker0 -p tcp" in finding.detail
    assert "--to-ports 3129" in finding.detail


def test_a_kernel_without_any_rules(machines: Nets) -> None:
    """Tables that the kernel has not made yet are made, and hold nothing of ours after remove."""
    for table in ("nat", "filter"):
        machines.iptables(f"-t {table} -F")
        machines.iptables(f"-t {table} -X")
    if machines.variant == "nft":
        machines.inside("vm", "iptables-nft-restore", data=b"*filter\nCOMMIT\n*nat\nCOMMIT\n")
    door = Door(gateway="10.0.2.2", port=PORT, listen_port=PORT, bridge_address="172.17.0.1", bridges=("docker0",))
    carry_out(machines, door)
    carry_out(machines, None)
    assert b"-A" not in machines.save()
    assert b"VMPROXY" not in machines.save()
