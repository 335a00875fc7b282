"""The rule model against recorded dumps: one .save and one .json a world, found by themselves."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.unit.rulekernel import Kernel, foreign, form, ours
from vmproxy.door import placed
from vmproxy.errors import Refused, UsageError, VmproxyError
from vmproxy.iptsave import options
from vmproxy.model import Door
from vmproxy.rules import (
    boot_text,
    canonical,
    cas_text,
    changes,
    choose_variant,
    conflicts,
    cover,
    docker_bridges,
    drift,
    holds_docker,
    inverse,
    jumps,
    parse_save,
    wanted,
)

WORLDS = Path(__file__).resolve().parents[2] / "fixtures" / "iptables"
NAMES = sorted(path.stem for path in WORLDS.glob("*.save"))
DOCKERS = [name for name in NAMES if name.startswith("docker")]


def door(**fields: Any) -> Door:
    """The classic VM's door, with other fields where a test needs them."""
    usual: dict[str, Any] = {
        "gateway": "10.0.2.2",
        "port": 8123,
        "listen_port": 8123,
        "bridge_address": "172.17.0.1",
        "bridges": ("docker0", "br-+"),
    }
    return Door(**(usual | fields))


def dump(name: str) -> bytes:
    """The recorded bytes of one world."""
    return (WORLDS / f"{name}.save").read_bytes()


def facts(name: str) -> Mapping[str, Any]:
    """What is true of one world."""
    found: Mapping[str, Any] = json.loads((WORLDS / f"{name}.json").read_text())
    return found


def its_door(name: str) -> Door:
    """The door that the world's own bridges want."""
    return door(bridges=tuple(facts(name)["cover"] or ("docker0",)))


def test_every_world_says_what_it_is() -> None:
    """A dump without its facts is found out here and not by a silent pass."""
    assert {path.stem for path in WORLDS.glob("*.json")} == set(NAMES)
    assert len(NAMES) >= 12


@pytest.mark.parametrize("name", NAMES)
def test_f12_bridges_that_docker_names(name: str) -> None:
    """Docker's bridges are read from its own rules, internal and hand-named ones too, and no other interface."""
    world = facts(name)
    ruleset = parse_save(dump(name))
    assert list(docker_bridges(ruleset)) == world["bridges"]
    assert holds_docker(ruleset) is world["holds_docker"]


@pytest.mark.parametrize("name", NAMES)
def test_cover_of_the_world(name: str) -> None:
    """The jumps cover every bridge of Docker's and nothing else; without one it is refused."""
    world = facts(name)
    bridges = docker_bridges(parse_save(dump(name)))
    if world["cover"] is None:
        with pytest.raises(Refused):
            cover(world["interfaces"], bridges)
    else:
        assert list(cover(world["interfaces"], bridges)) == world["cover"]


@pytest.mark.parametrize("name", NAMES)
def test_forward_jump_stands_behind_dockers(name: str) -> None:
    """The FORWARD jump comes behind all of Docker's rules and before what ends the chain."""
    chain = placed(parse_save(dump(name)), its_door(name)).chain("filter", "FORWARD")
    assert chain is not None
    assert [i for i, rule in enumerate(chain.rules) if ours(rule.words)] == [facts(name)["forward_index"]]
    names = [(each.table, each.name) for each in placed(parse_save(dump(name)), its_door(name)).chains]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("name", NAMES)
def test_f20_f21_conflicts_of_the_world(name: str) -> None:
    """Another tool's rule for the port is a conflict, the classic guide's rules are a warning, Docker's are neither."""
    found = conflicts(parse_save(dump(name)), its_door(name))
    assert [[finding.ok, finding.subject] for finding in found] == facts(name)["conflicts"]
    assert all(finding.detail.isprintable() and finding.hint for finding in found)


@pytest.mark.parametrize("name", NAMES)
def test_i3_i4_i5_apply_twice_and_remove(name: str) -> None:
    """On every recorded world: applied is in sync, again is nothing, removed is what was there, foreign rules stay."""
    kernel = Kernel(dump(name))
    before = kernel.save()
    todo = changes(kernel.ruleset(), its_door(name))
    assert list(todo.texts) == ["filter", "nat"]
    for text in todo.texts.values():
        kernel.restore(text)
    assert not changes(kernel.ruleset(), its_door(name))
    assert placed(kernel.ruleset(), its_door(name)) == kernel.ruleset()
    assert drift(kernel.ruleset(), its_door(name), facts(name)["interfaces"]) == ()
    assert [f for f in foreign(kernel.ruleset()) if f[3]] == [f for f in foreign(parse_save(before)) if f[3]]
    for text in changes(kernel.ruleset(), None).texts.values():
        kernel.restore(text)
    chains_now = [f for f in form(kernel.ruleset()) if f[3]]
    assert chains_now == [f for f in form(parse_save(before)) if f[3]]
    if name in DOCKERS:
        assert cas_text(kernel.save()) == cas_text(before)


@pytest.mark.parametrize("name", DOCKERS)
def test_rollback_of_one_table_alone(name: str) -> None:
    """F19b: each table's undo text stands alone, and brings that table back to what it was."""
    before = parse_save(dump(name))
    do, undo = changes(before, its_door(name)), inverse(before, its_door(name))
    for table in ("filter", "nat"):
        kernel = Kernel(dump(name))
        kernel.restore(do.texts[table])
        kernel.restore(undo.texts[table])
        assert form(kernel.ruleset()) == form(before)


def test_exact_rules_of_the_door() -> None:
    """The text is the measured rule set of DESIGN section 4, word for word."""
    todo = changes(parse_save(dump("docker20-nft-fresh")), door(port=3128, listen_port=8123))
    c, state = "-m comment --comment vmproxy", "-m conntrack --ctstate DNAT"
    assert todo.filter.decode().splitlines() == [
        "*filter",
        ":VMPROXY-FORWARD - [0:0]",
        f"-A VMPROXY-FORWARD -d 10.0.2.2/32 -p tcp --dport 3128 {state} --ctdir ORIGINAL {c} -j ACCEPT",
        f"-A VMPROXY-FORWARD -s 10.0.2.2/32 -p tcp --sport 3128 {state} --ctdir REPLY {c} -j ACCEPT",
        f"-A FORWARD {c} -j VMPROXY-FORWARD",
        "COMMIT",
    ]
    dnat = f"{c} -j DNAT --to-destination 10.0.2.2:3128"
    assert todo.nat.decode().splitlines() == [
        "*nat",
        ":VMPROXY-PREROUTING - [0:0]",
        f"-A VMPROXY-PREROUTING -p tcp -m addrtype --dst-type LOCAL --limit-iface-in {dnat}",
        f"-A VMPROXY-PREROUTING -d 172.17.0.1/32 -p tcp {dnat}",
        ":VMPROXY-POSTROUTING - [0:0]",
        f"-A VMPROXY-POSTROUTING {c} -j MASQUERADE",
        f"-I PREROUTING 1 -i docker0 -p tcp --dport 8123 {c} -j VMPROXY-PREROUTING",
        f"-I PREROUTING 2 -i br-+ -p tcp --dport 8123 {c} -j VMPROXY-PREROUTING",
        f"-I POSTROUTING 1 -d 10.0.2.2/32 -p tcp --dport 3128 {state} {c} -j VMPROXY-POSTROUTING",
        "COMMIT",
    ]
    assert todo.lines[0] == "+ -t filter -N VMPROXY-FORWARD"
    assert "+ -t nat -A VMPROXY-POSTROUTING -m comment --comment vmproxy -j MASQUERADE" in todo.lines


def test_boot_text_makes_the_same_chains() -> None:
    """The boot block's chains and jumps are those of apply: after a boot nothing differs."""
    kernel = Kernel(dump("docker20-legacy-fresh"))
    for text in boot_text(door()).values():
        kernel.restore(text)
        kernel.restore(text)
    for table, chain, words in jumps(door()):
        kernel.chains[table, chain][1].append(words)
    assert not changes(kernel.ruleset(), door())
    assert drift(kernel.ruleset(), door()) == ()


def applied(name: str = "docker20-nft-networks", **fields: Any) -> Kernel:
    """A world with the door in it."""
    kernel = Kernel(dump(name))
    for text in changes(kernel.ruleset(), door(**fields)).texts.values():
        kernel.restore(text)
    return kernel


def converge(kernel: Kernel, wish: Door | None) -> list[str]:
    """Carry out the changes; the lines for people."""
    todo = changes(kernel.ruleset(), wish)
    for text in todo.texts.values():
        kernel.restore(text)
    assert not changes(kernel.ruleset(), wish)
    return list(todo.lines)


def test_rules_appended_behind_are_no_drift() -> None:
    """A site's later rules behind our jump are its own business."""
    kernel = applied(bridges=("docker0", "kitchen0", "br-+"))
    kernel.chains["filter", "FORWARD"][1].append(("-i", "docker0", "-d", "10.9.9.9/32", "-j", "DROP"))
    assert drift(kernel.ruleset(), door(bridges=("docker0", "kitchen0", "br-+"))) == ()


def test_jump_before_dockers_rules_is_moved_behind() -> None:
    """Before Docker's isolation our accept would open --internal networks, so there it is drift and goes behind."""
    kernel = applied("docker20-nft-fresh")
    rules = kernel.chains["filter", "FORWARD"][1]
    rules.insert(0, rules.pop())
    (finding,) = drift(kernel.ruleset(), door())
    assert finding.detail.startswith("in the wrong place: -A FORWARD")
    assert (finding.subject, finding.ok) == ("rules filter FORWARD", False)
    lines = converge(kernel, door())
    assert [line[0] for line in lines] == ["-", "+"]
    assert ours(rules[-1]) or ours(kernel.chains["filter", "FORWARD"][1][-1])


@pytest.mark.parametrize("end", [[], [("-j", "REJECT")]], ids=["open", "rejected"])
def test_what_dockerd_appends_with_icc_off_is_no_drift(end: list[tuple[str, ...]]) -> None:
    """With icc off dockerd appends a DROP within each bridge at every start; that does not concern our flows."""
    kernel = applied("docker20-nft-networks", bridges=its_door("docker20-nft-networks").bridges)
    inside = ("-i", "br-00aa11bb22cc", "-o", "br-00aa11bb22cc", "-j", "DROP")
    kernel.chains["filter", "FORWARD"][1].extend([*end, inside])
    wish = door(bridges=its_door("docker20-nft-networks").bridges)
    assert drift(kernel.ruleset(), wish, named=wish.bridges) == ()
    assert not changes(kernel.ruleset(), wish)


@pytest.mark.parametrize(
    ("name", "dockers"),
    [
        ("docker28-nft-networks", "-j DOCKER-FORWARD"),
        ("docker1.5-iptables1.4", "-i docker0 ! -o docker0 -j ACCEPT"),
        ("docker20-nft-fresh", "! -i docker0 -o docker0 -d 172.17.0.2/32 -p tcp --dport 80 -j ACCEPT"),
        ("docker20-nft-fresh", "-o docker0 -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT"),
    ],
)
def test_each_of_dockers_shapes_goes_before_ours(name: str, dockers: str) -> None:
    """Every kind of rule that dockerd writes into FORWARD counts as its own: ours in front of it is misplaced."""
    kernel = applied(name, bridges=its_door(name).bridges)
    kernel.chains["filter", "FORWARD"][1].append(tuple(dockers.split()))
    wish = door(bridges=its_door(name).bridges)
    assert [f.detail[:18] for f in drift(kernel.ruleset(), wish, named=wish.bridges)] == ["in the wrong place"]
    converge(kernel, wish)
    assert ours(kernel.chains["filter", "FORWARD"][1][-1])


@pytest.mark.parametrize(
    ("site", "shut"),
    [
        (["-j DROP"], True),
        (["-s 10.9.0.0/16 -j ACCEPT", "-m comment --comment end -j REJECT"], True),
        (["-s 10.9.0.0/16 -j RETURN", "-j DROP"], False),
        (["-j ACCEPT", "-j DROP"], False),
        (["-i eth1 -j DROP"], False),
        (["-j SITE"], False),
    ],
)
def test_a_chain_that_ends_forward(site: list[str], shut: bool) -> None:
    """A jump to a chain that nothing leaves ends FORWARD as a REJECT does; one that lets some out does not."""
    kernel = Kernel(dump("docker20-nft-fresh"))
    kernel.chains["filter", "SITE"] = ("", [tuple(rule.split()) for rule in site])
    rules = kernel.chains["filter", "FORWARD"][1]
    rules.append(("-j", "SITE"))
    converge(kernel, door())
    assert ours(kernel.chains["filter", "FORWARD"][1][-2 if shut else -1])


def test_what_mentions_an_interface_in_passing_names_no_bridge() -> None:
    """Only Docker's own shapes name a bridge: not a user's rule, not a comment, not another interface's way in."""
    kernel = Kernel(dump("docker20-nft-fresh"))
    kernel.chains["filter", "FORWARD"][1].extend(
        (
            ("-i", "eth5", "-j", "ACCEPT"),
            ("!", "-o", "eth5", "-j", "DOCKER"),
            ("-o", "eth5", "-s", "10.0.0.0/8", "-j", "DOCKER"),
            ("-i", "lan5", "-o", "lan5", "-j", "ACCEPT"),
        )
    )
    kernel.chains["filter", "DOCKER"][1].extend(
        (
            ("-i", "eth5", "-o", "docker0", "-j", "ACCEPT"),
            ("!", "-i", "eth5", "-o", "eth6", "-j", "ACCEPT"),
            ("-i", "eth5", "!", "-o", "eth5", "-j", "ACCEPT"),
            ("!", "-i", "kitchen0", "-o", "kitchen0", "-j", "DROP"),
        )
    )
    kernel.chains["nat", "DOCKER"][1].extend(
        (
            ("-i", "loopback0", "-d", "127.0.0.0/8", "-j", "RETURN"),
            ("-m", "comment", "--comment", "-i", "-j", "RETURN"),
        )
    )
    kernel.chains["filter", "DOCKER-USER"][1].append(("-i", "eth5", "-j", "DROP"))
    assert docker_bridges(kernel.ruleset()) == ("docker0", "kitchen0")


def test_jump_behind_a_reject_is_moved_before_it() -> None:
    """Behind what ends the chain the jump would be dead."""
    kernel = applied("docker20-nft-fresh")
    kernel.chains["filter", "FORWARD"][1].insert(-1, ("-j", "REJECT", "--reject-with", "icmp-host-prohibited"))
    assert [f.detail[:18] for f in drift(kernel.ruleset(), door())] == ["in the wrong place"]
    converge(kernel, door())
    rules = kernel.chains["filter", "FORWARD"][1]
    assert ours(rules[-2])
    assert rules[-1][:2] == ("-j", "REJECT")


def test_drift_names_each_thing_once() -> None:
    """Missing, doubled, changed and left-over things are one line each, and apply mends them all."""
    kernel = applied("docker20-nft-fresh")
    nat = kernel.chains["nat", "PREROUTING"][1]
    nat[:2] = [nat[0], nat[0]]
    kernel.chains["nat", "VMPROXY-PREROUTING"][1].pop()
    kernel.chains["nat", "VMPROXY-OLD"] = ("", [("-j", "RETURN")])
    kernel.chains["nat", "OUTPUT"][1].append(("-j", "VMPROXY-OLD"))
    del kernel.chains["filter", "VMPROXY-FORWARD"]
    kernel.chains["filter", "FORWARD"][1].pop()
    found = [f"{f.subject}: {f.detail}" for f in drift(kernel.ruleset(), door())]
    assert len(found) == len(set(found)) == 7
    for start in (
        "rules filter VMPROXY-FORWARD: the chain is missing",
        "rules filter FORWARD: missing: -A FORWARD",
        "rules nat VMPROXY-PREROUTING: missing: -A VMPROXY-PREROUTING -d 172.17.0.1/32",
        "rules nat PREROUTING: missing: -A PREROUTING -i br-+",
        "rules nat PREROUTING: too many: -A PREROUTING -i docker0",
        "rules nat OUTPUT: too many: -A OUTPUT -j VMPROXY-OLD",
        "rules nat VMPROXY-OLD: the chain is left over",
    ):
        assert any(line.startswith(start) for line in found), start
    lines = converge(kernel, door())
    assert lines.index("- -t nat -A VMPROXY-OLD -j RETURN") < lines.index("- -t nat -N VMPROXY-OLD")
    assert drift(kernel.ruleset(), door()) == ()
    assert ("nat", "VMPROXY-OLD") not in kernel.chains


def test_f22_flushed_nat_is_drift_and_comes_back() -> None:
    """Another tool's flush of nat is named, and apply puts ours back without touching filter."""
    kernel = applied("docker20-nft-fresh")
    kernel.chains = {key: value for key, value in kernel.chains.items() if key[0] != "nat"}
    details = [f.detail for f in drift(kernel.ruleset(), door())]
    assert len(details) == 5
    assert list(changes(kernel.ruleset(), door()).texts) == ["nat"]
    converge(kernel, door())
    assert drift(kernel.ruleset(), door()) == ()


def test_f57_new_gateway_is_drift_naming_both() -> None:
    """After DHCP gave another gateway the old and the new address are both named, and apply converges."""
    kernel = applied("docker20-nft-fresh")
    text = " ".join(f.detail for f in drift(kernel.ruleset(), door(gateway="10.0.3.2")))
    assert "10.0.2.2" in text
    assert "10.0.3.2" in text
    converge(kernel, door(gateway="10.0.3.2"))
    assert b"10.0.2.2" not in kernel.save()


def test_f65_remove_after_ours_was_partly_deleted_by_hand() -> None:
    """Whatever is left of ours goes, and nothing is asked of what is gone."""
    clean = Kernel(dump("docker20-nft-fresh")).save()
    kernel = applied("docker20-nft-fresh")
    kernel.chains["nat", "PREROUTING"][1][:2] = []
    del kernel.chains["nat", "VMPROXY-PREROUTING"]
    converge(kernel, None)
    assert cas_text(kernel.save()) == cas_text(clean)
    assert not changes(kernel.ruleset(), None)


def test_a_users_jump_into_our_chain_goes_with_it() -> None:
    """A chain that something still leads to cannot be deleted: jumps by hand and gotos into ours go too."""
    kernel = applied("docker20-nft-fresh")
    kernel.chains["filter", "DOCKER-USER"][1].insert(0, ("-g", "VMPROXY-FORWARD"))
    converge(kernel, None)
    assert b"VMPROXY" not in kernel.save()


def test_a_foreign_rule_with_our_comment_stays() -> None:
    """We own by chain name; a rule of somebody's that says vmproxy is not ours."""
    kernel = Kernel(dump("docker20-nft-fresh"))
    kernel.chains["nat", "PREROUTING"][1].append(("-m", "comment", "--comment", "vmproxy", "-j", "ACCEPT"))
    before = kernel.save()
    assert not changes(kernel.ruleset(), None)
    converge(kernel, door())
    converge(kernel, None)
    assert cas_text(kernel.save()) == cas_text(before)


def test_jumps_are_deleted_by_words_never_by_number() -> None:
    """A rule that somebody puts in between look and change cannot be hit."""
    for text in changes(applied().ruleset(), None).texts.values():
        deletions = [line for line in text.decode().splitlines() if line.startswith("-D ")]
        assert deletions
        assert all("VMPROXY-" in line for line in deletions)


def test_rollback_gives_back_misplaced_and_doubled_rules() -> None:
    """Rollback goes to what was seen, however wrong: places, doubles, stale chains."""
    kernel = applied("docker20-nft-fresh", gateway="10.0.9.9")
    rules = kernel.chains["filter", "FORWARD"][1]
    rules.insert(0, rules[-1])
    kernel.chains["nat", "VMPROXY-OLD"] = ("", [("-m", "comment", "--comment", 'it\'s "old" \\', "-j", "RETURN")])
    kernel.chains["nat", "PREROUTING"][1].append(("-p", "udp", "-j", "VMPROXY-OLD"))
    before = kernel.ruleset()
    undo = inverse(before, door())
    converge(kernel, door())
    for text in undo.texts.values():
        kernel.restore(text)
    assert form(kernel.ruleset()) == form(before)


def test_uncovered_and_foreign_bridges_are_drift() -> None:
    """A new bridge of Docker's that no jump covers is named; so is one that br-+ covers and Docker does not know."""
    kernel = applied()
    found = [
        f.detail for f in drift(kernel.ruleset(), door(), ["lo", "docker0", "kitchen0", "br-lan", "br-1f0c9d2a7b31"])
    ]
    assert found == ["Docker's bridge kitchen0 is not covered", "br-lan is covered and is not Docker's"]
    assert drift(kernel.ruleset(), door(), ["lo", "br-lan"], named=["docker0", "br-+"]) == ()


def test_one_jump_per_bridge_where_br_is_not_dockers_alone() -> None:
    """T08: with a LAN behind br-lan no wildcard is used, and the LAN bridge gets no jump."""
    docker = ("docker0", "br-1f0c9d2a7b31", "br-7c55e0d1a2f4")
    assert cover(["lo", "br-lan", *docker], docker) == ("docker0", "br-1f0c9d2a7b31", "br-7c55e0d1a2f4")
    assert cover(["lo", *docker], docker) == ("docker0", "br-+")
    assert cover(["lo", "kbr0"], ["kbr0"]) == ("kbr0", "br-+")
    assert cover(["docker0"], []) == ("docker0", "br-+")
    assert cover(["lo", "br-lan"], [], named=["br-lan", "br-lan"]) == ("br-lan",)


def test_f12_no_bridge_lists_what_is_there() -> None:
    """Without any bridge of Docker's the interfaces are listed, printable, with the --bridge hint."""
    with pytest.raises(Refused) as caught:
        cover(["lo", "eth0", "\x1b[31m"], [])
    assert "eth0" in str(caught.value)
    assert "\x1b" not in str(caught.value)
    assert "--bridge" in caught.value.hint


@pytest.mark.parametrize(
    "name", ["", "+", "-i", "a" * 16, "br 0", "br-x\n", "!docker0", 'd"', "br+x", "bö", "docker0++"]
)
def test_t04_bridge_names_are_typed(name: str) -> None:
    """A name that iptables would read as something else is no bridge name."""
    with pytest.raises(UsageError):
        cover([], [], named=[name])
    with pytest.raises(UsageError):
        wanted(door(bridges=(name,)))


@pytest.mark.parametrize(
    "fields",
    [
        {"gateway": "10.0.2.2 -j ACCEPT"},
        {"gateway": ""},
        {"gateway": "127.0.0.1"},
        {"gateway": "0.0.0.0"},
        {"gateway": "224.0.0.1"},
        {"gateway": "255.255.255.255"},
        {"gateway": "fd00::2"},
        {"gateway": "１0.0.2.2"},
        {"gateway": "10.0.2.2\n"},
        {"bridge_address": "172.17.0.0/16"},
        {"port": 0},
        {"port": 65536},
        {"port": True},
        {"port": "8123"},
        {"listen_port": -1},
        {"bridges": ()},
        {"bridges": ("docker0", "docker0")},
    ],
)
def test_t05_no_other_value_reaches_a_rule(fields: dict[str, Any]) -> None:
    """Every field is checked before one word of text exists."""
    for make in (wanted, boot_text, jumps):
        with pytest.raises(UsageError):
            make(door(**fields))
    with pytest.raises(UsageError):
        conflicts(parse_save(b""), door(**fields))


def test_f17_variant_that_holds_dockers_rules() -> None:
    """The variant with Docker's chains is chosen, a mix is a warning, empty tables and the plain name are none."""
    nft, legacy = dump("docker20-nft-fresh"), dump("docker20-legacy-fresh")
    empty, site = dump("empty-legacy-tables"), dump("site-legacy-no-docker")
    assert choose_variant({"nft": nft, "legacy": empty}) == ("nft", "")
    assert choose_variant({"nft": b"", "legacy": legacy, "default": b""}) == ("legacy", "")
    assert choose_variant({"nft": nft, "legacy": b"", "default": nft}) == ("nft", "")
    assert choose_variant({"default": parse_save(legacy)}) == ("default", "")
    name, warning = choose_variant({"legacy": site, "nft": nft})
    assert name == "nft"
    assert "legacy" in warning
    name, warning = choose_variant({"legacy": legacy, "nft": dump("docker20-nft-networks")})
    assert name == "nft"
    assert "both" in warning
    name, warning = choose_variant({"legacy": site, "nft": b""})
    assert name == "legacy"
    assert "Docker" in warning


def test_f17_without_docker_the_plain_name_counts() -> None:
    """dockerd calls plain iptables: while nobody holds its rules, that is where they will be."""
    assert choose_variant({"nft": b"", "legacy": b"", "default": b""})[0] == "default"


def test_f17_own_rules_left_in_the_other_variant_are_named() -> None:
    """After Docker moved to the other variant our old rules there would break the door, so the warning names them."""
    name, warning = choose_variant(
        {"nft": applied("docker20-nft-fresh").save(), "legacy": dump("docker20-legacy-networks")}
    )
    assert name == "legacy"
    assert "both" in warning
    ours_alone = Kernel(b"")
    converge(ours_alone, door())
    name, warning = choose_variant({"nft": ours_alone.save(), "legacy": dump("docker20-legacy-fresh")})
    assert name == "legacy"
    assert "vmproxy's own" in warning
    assert "nft" in warning


def test_f15_no_iptables_is_refused() -> None:
    """Without any variant there is nothing to write to."""
    with pytest.raises(Refused):
        choose_variant({})


def catching(words: str, **fields: Any) -> list[bool]:
    """The conflicts that one more nat rule makes."""
    kernel = Kernel(dump("docker20-nft-networks"))
    kernel.chains["nat", "PREROUTING"][1].append(tuple(words.split()))
    return [finding.ok for finding in conflicts(kernel.ruleset(), door(**fields))]


@pytest.mark.parametrize(
    ("words", "caught"),
    [
        ("-i docker0 -p tcp -m tcp --dport 8123 -j DNAT --to-destination 10.1.1.1:80", True),
        ("-p tcp -m tcp --dport 8000:9000 -j REDIRECT --to-ports 3129", True),
        ("-d 172.17.0.0/16 -p tcp -m multiport --dports 80,8123 -j DNAT --to-destination 10.1.1.1", True),
        ("! -i eth1 -j DNAT --to-destination 10.1.1.1", True),
        ("-p tcp -m tcp --dport 8123 -m set --match-set users src -j REDIRECT --to-ports 3129", True),
        ("-i br-+ -p tcp -m tcp --dport 8123 -j REDIRECT", True),
        ("-i docker0 -p tcp -m tcp --dport 8124 -j DNAT --to-destination 10.1.1.1:80", False),
        ("-p tcp -m multiport --dports 80,443 -j REDIRECT --to-ports 3129", False),
        ("-p udp -m udp --dport 8123 -j DNAT --to-destination 10.1.1.1:80", False),
        ("-i eth1 -p tcp -m tcp --dport 8123 -j DNAT --to-destination 10.1.1.1:80", False),
        ("-d 192.168.99.100/32 -p tcp -m tcp --dport 8123 -j DNAT --to-destination 10.1.1.1:80", False),
        ("-m addrtype ! --dst-type LOCAL -p tcp -m tcp --dport 8123 -j REDIRECT", False),
        ("-p tcp -m tcp ! --dport 8123 -j REDIRECT", False),
        ("-i docker0 -p tcp -m tcp --dport 8123 -j ACCEPT", False),
    ],
)
def test_f20_what_catches_the_containers_connection(words: str, caught: bool) -> None:
    """A DNAT or REDIRECT on the way of a container's connection to the door is a conflict; one beside it is not."""
    assert catching(words) == ([False] if caught else [])


def test_f20_port_published_without_the_userland_proxy() -> None:
    """A container published on the door's port, where Docker has no RETURN, is a conflict and quoted."""
    kernel = Kernel(dump("docker20-nft-fresh"))
    kernel.chains["nat", "DOCKER"] = (
        "",
        [("-p", "tcp", "--dport", "8123", "-j", "DNAT", "--to-destination", "172.17.0.2:80")],
    )
    (finding,) = conflicts(kernel.ruleset(), door())
    assert "-t nat -A DOCKER -p tcp -m tcp --dport 8123 -j DNAT" in finding.detail
    assert "--listen-port" in finding.hint
    assert conflicts(kernel.ruleset(), door(listen_port=8124)) == ()


def test_f20_sure_return_comes_first() -> None:
    """Where Docker's RETURN for the bridge stands before a published port's DNAT, containers never come to the DNAT."""
    kernel = Kernel(dump("docker20-nft-fresh"))
    kernel.chains["nat", "DOCKER"][1].append(
        ("-p", "tcp", "--dport", "8123", "-j", "DNAT", "--to-destination", "172.17.0.2:80")
    )
    assert conflicts(kernel.ruleset(), door()) == ()


def test_values_that_look_like_options() -> None:
    """A comment or log prefix is one value, whatever it says."""
    words = ("-m", "comment", "--comment", "-j", "-j", "LOG", "--log-prefix", "!")
    assert [(o.name, o.values) for o in options(words)] == [
        ("-m", ("comment",)),
        ("--comment", ("-j",)),
        ("-j", ("LOG",)),
        ("--log-prefix", ("!",)),
    ]


def test_f20_quoted_rule_is_printable() -> None:
    """T03: a comment with escape codes reaches the report escaped."""
    rule = b'-A PREROUTING -p tcp -m comment --comment "\xe2\x80\xae\xc2\x9b31m" -j REDIRECT\n'
    data = b"*nat\n:PREROUTING ACCEPT [0:0]\n" + rule + b"COMMIT\n"
    (finding,) = conflicts(parse_save(data), door())
    assert "\\u202e\\x9b31m" in finding.detail


def test_f21_guide_with_an_old_gateway_takes_the_flow() -> None:
    """The guide's rule that leads somewhere else is in the way, so it is a conflict and no mere warning."""
    assert catching("-i docker0 -p tcp -m tcp --dport 8123 -j DNAT --to-destination 10.0.2.2:8123") == [True]
    assert catching("-i docker0 -p tcp -m tcp --dport 8123 -j DNAT --to-destination 10.0.9.2:8123") == [False]


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ("-p tcp --dport 80", "-p tcp -m tcp --dport 80"),
        ("-p 6 --destination-port 80 -j ACCEPT", "-j ACCEPT -p tcp -m tcp --dport 80"),
        ("-d 10.0.2.2 -j X", "--destination 10.0.2.2/255.255.255.255 --jump X"),
        ("-i ! docker0 -j X", "! -i docker0 -j X"),
        ("-p tcp --dport ! 80", "-p tcp ! --dport 80"),
        ("-m state --state NEW,ESTABLISHED", "-m conntrack --ctstate ESTABLISHED,NEW"),
        ("-m comment --comment vmproxy -j X", "-j X -m comment --comment vmproxy"),
        ("-s 0.0.0.0/0 -p all -j X", "-j X"),
        ("-c 12 34 -j X", "-j X"),
    ],
)
def test_canonical_same(left: str, right: str) -> None:
    """Words that mean the same compare equal, as versions and variants print them."""
    assert canonical(tuple(left.split())) == canonical(tuple(right.split()))


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ("-i docker0 -j X", "! -i docker0 -j X"),
        ("-p tcp --dport 80", "-p tcp --sport 80"),
        ("-d 10.0.2.2/32", "-s 10.0.2.2/32"),
        ("-d 10.0.2.2/32", "-d 10.0.2.2/31"),
        ("-j X", "-g X"),
        ("-m conntrack --ctstate DNAT", "-m conntrack --ctstate SNAT"),
        ("-m addrtype --dst-type LOCAL --limit-iface-in", "-m addrtype --dst-type LOCAL"),
        ("-m socket -j X", "-j X"),
        ("! -s 0.0.0.0/0 -j X", "-j X"),
        ("-p tcp -m comment --comment -j -j X", "-p tcp -m comment --comment -g -j X"),
    ],
)
def test_canonical_different(left: str, right: str) -> None:
    """Words that mean something else never compare equal."""
    assert canonical(tuple(left.split())) != canonical(tuple(right.split()))


def test_parse_takes_the_forms_of_old_and_new_versions() -> None:
    """CRLF, counters before rules, warnings, blank lines, quotes and escapes are all read."""
    data = (
        b"# Warning: iptables-legacy tables present, use iptables-legacy-save to see them\r\n"
        b"*nat\r\n:PREROUTING ACCEPT [1:60]\r\n:VMPROXY-X - [0:0]\r\n\r\n"
        b'[1:60] -A PREROUTING -m comment --comment "a \\"b\\" \\\\ \'c\'" -j VMPROXY-X\r\nCOMMIT\r\n# done'
    )
    ruleset = parse_save(data)
    chain = ruleset.chain("nat", "PREROUTING")
    assert chain is not None
    assert chain.policy == "ACCEPT"
    assert chain.rules[0].words == ("-m", "comment", "--comment", "a \"b\" \\ 'c'", "-j", "VMPROXY-X")
    assert ruleset.chain("nat", "VMPROXY-X") is not None
    assert parse_save(b"") == parse_save(b"# nothing\n")


@pytest.mark.parametrize(
    "data",
    [
        b"*nat\n:PREROUTING ACCEPT [0:0]\n",
        b"*nat\n-A PREROUTING -j X\nCOMMIT\n",
        b"-A PREROUTING -j X\n",
        b"*nat\n:P ACCEPT [0:0]\n:P ACCEPT [0:0]\nCOMMIT\n",
        b"*nat\nCOMMIT\n*nat\nCOMMIT\n",
        b'*nat\n:P ACCEPT [0:0]\n-A P --comment "open\nCOMMIT\n',
        b"*nat\n:P ACCEPT [0:0]\n-A P --comment a\x1b[31m\nCOMMIT\n",
        b"*nat\n:P ACCEPT [0:0]\n-I P -j X\nCOMMIT\n",
        b"*NAT\nCOMMIT\n",
        b"iptables-save: not found\n",
        b"*nat\n:P ACCEPT [0:0]\n-A P" + b" x" * 2000 + b"\nCOMMIT\n",
        b"#" * (9 << 20),
    ],
)
def test_t03_nonsense_is_refused(data: bytes) -> None:
    """What is no whole dump is refused with a printable line, never read as "no rules"."""
    with pytest.raises(VmproxyError) as caught:
        parse_save(data)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 250


def test_hostile_jumps_take_bounded_time() -> None:
    """Chains that lead to each other a thousand times over are walked within a bound."""
    lines = ["*nat", ":PREROUTING ACCEPT [0:0]", *(f":C{i} - [0:0]" for i in range(60))]
    lines += [f"-A PREROUTING -j C{i}" for i in range(60)]
    lines += [f"-A C{i} -j C{j}" for i in range(60) for j in range(60)]
    nat = "\n".join([*lines, "COMMIT", ""])
    filters = nat.replace("*nat", "*filter").replace("PREROUTING", "FORWARD")
    ruleset = parse_save((nat + filters).encode())
    assert conflicts(ruleset, door()) == ()
    assert changes(ruleset, door())
