"""Properties of the rule model over a fake kernel: I1 to I7 and P11 of RELIABILITY."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.unit.rulekernel import Kernel, foreign, form, ours
from vmproxy.dockerrules import is_dockers, stays_inside
from vmproxy.model import Door
from vmproxy.rules import Changes, changes, docker_bridges, drift, inverse

FIXTURES = Path(__file__).resolve().parents[2] / "fixtures" / "iptables"
DUMPS = [path.read_bytes() for path in sorted(FIXTURES.glob("docker*.save"))]

Words = tuple[str, ...]
COMMENT: Words = ("-m", "comment", "--comment", "vmproxy")

DOORS = st.builds(
    Door,
    gateway=st.sampled_from(["10.0.2.2", "192.168.56.1", "172.31.255.254"]),
    port=st.sampled_from([8123, 3128, 65535]),
    listen_port=st.sampled_from([8123, 1]),
    bridge_address=st.sampled_from(["172.17.0.1", "192.168.200.1"]),
    bridges=st.sampled_from([("docker0", "br-+"), ("docker0",), ("kitchen0", "br-+"), ("br-1f0c9d2a7b31", "docker0")]),
)
SITE: dict[tuple[str, str], list[Words]] = {
    ("filter", "FORWARD"): [
        ("-i", "eth1", "-j", "DROP"),
        ("-j", "REJECT", "--reject-with", "icmp-port-unreachable"),
        ("-i", "docker0", "-d", "10.9.9.9/32", "-j", "DROP"),
        ("-j", "DOCKER-USER"),
        ("-m", "comment", "--comment", 'a "site\'s" rule', "-j", "ACCEPT"),
    ],
    ("nat", "PREROUTING"): [
        ("-p", "tcp", "-m", "tcp", "--dport", "8123", "-j", "REDIRECT", "--to-ports", "3129"),
        ("-m", "comment", "--comment", "vmproxy", "-j", "ACCEPT"),
    ],
    ("nat", "POSTROUTING"): [("-o", "docker0", "-j", "MASQUERADE")],
}
LEFT: dict[tuple[str, str], list[Words]] = {
    ("filter", "FORWARD"): [(*COMMENT, "-j", "VMPROXY-FORWARD"), ("-j", "VMPROXY-FORWARD")],
    ("filter", "DOCKER-USER"): [("-j", "VMPROXY-FORWARD")],
    ("nat", "PREROUTING"): [
        ("-i", "docker0", "-p", "tcp", "--dport", "8123", *COMMENT, "-j", "VMPROXY-PREROUTING"),
        ("-i", "eth1", "-j", "VMPROXY-OLD"),
    ],
    ("nat", "POSTROUTING"): [("-j", "VMPROXY-POSTROUTING")],
}  # fmt: skip
CHAINS: list[tuple[str, str, list[Words]]] = [
    ("filter", "VMPROXY-FORWARD", [("-j", "ACCEPT")]),
    ("nat", "VMPROXY-PREROUTING", []),
    ("nat", "VMPROXY-POSTROUTING", [("-m", "comment", "--comment", "vmproxy", "-j", "MASQUERADE")]),
    ("nat", "VMPROXY-OLD", [("-j", "VMPROXY-PREROUTING")]),
]
PLACED = st.tuples(st.integers(0, 30), st.integers(0, 10))


@st.composite
def kernels(draw: st.DrawFn, *, leftovers: bool = True) -> Kernel:
    """A recorded Docker with a site's rules here and there and, if wanted, any wreck of ours."""
    kernel = Kernel(draw(st.sampled_from(DUMPS)))
    pools = [SITE]
    if leftovers and draw(st.booleans()):
        for table, name, rules in CHAINS:
            kernel.chains[table, name] = ("", list(rules))
        pools.append(LEFT)
    for pool in pools:
        for key, rules in pool.items():
            for place, which in draw(st.lists(PLACED, max_size=2)):
                put(kernel, key, rules[which % len(rules)], place)
    return kernel


def put(kernel: Kernel, key: tuple[str, str], words: Words, place: int) -> None:
    """One rule into a chain if the kernel has that chain and the target."""
    if key in kernel.chains and (words[-1] != "DOCKER-USER" or ("filter", "DOCKER-USER") in kernel.chains):
        rules = kernel.chains[key][1]
        rules.insert(min(place, len(rules)), words)


def carry_out(kernel: Kernel, todo: Changes) -> None:
    """One restore per table (I7)."""
    for text in todo.texts.values():
        kernel.restore(text)


def holds(kernel: Kernel, door: Door) -> None:
    """I1, I2 and the place of the FORWARD jump, on the save text's chains."""
    ruleset = kernel.ruleset()
    for chain in ruleset.chains:
        for each in chain.rules:
            if chain.name.startswith("VMPROXY-") or ours(each.words):
                assert "vmproxy" in each.words
            if not ours(each.words):
                continue
            words = " ".join(each.words)
            if chain.name == "PREROUTING":
                assert any(f"-i {bridge} -p tcp" in words for bridge in door.bridges)
                assert f"--dport {door.listen_port} " in words
            elif chain.name == "POSTROUTING":
                assert f"-d {door.gateway}/32 -p tcp -m tcp --dport {door.port} -m conntrack --ctstate DNAT" in words
            else:
                assert (chain.table, chain.name) == ("filter", "FORWARD")
    own = ruleset.chain("filter", "VMPROXY-FORWARD")
    assert own is not None
    assert all("--ctstate DNAT" in " ".join(r.words) and f"{door.gateway}/32" in r.words for r in own.rules)
    forward = ruleset.chain("filter", "FORWARD")
    assert forward is not None
    bridges = docker_bridges(ruleset)
    (place,) = [i for i, r in enumerate(forward.rules) if ours(r.words)]
    assert not any(is_dockers(r, bridges) and not stays_inside(r) for r in forward.rules[place + 1 :])


@given(kernel=kernels(), door=DOORS)
@settings(max_examples=120, deadline=None)
def test_i1_i2_i4_i5_whatever_was_there(kernel: Kernel, door: Door) -> None:
    """From any wreck one run gives the exact rules, a second nothing; foreign rules keep words, order, policy."""
    before = foreign(kernel.ruleset())
    carry_out(kernel, changes(kernel.ruleset(), door))
    holds(kernel, door)
    assert foreign(kernel.ruleset()) == before
    assert not changes(kernel.ruleset(), door)
    assert drift(kernel.ruleset(), door, named=("-",)) == ()


@given(kernel=kernels(leftovers=False), door=DOORS, other=DOORS)
@settings(max_examples=80, deadline=None)
def test_i3_remove_gives_back_every_byte(kernel: Kernel, door: Door, other: Door) -> None:
    """Apply, apply another door over it, remove: the save text is what it was."""
    before = kernel.save()
    for wish in (door, other, None):
        carry_out(kernel, changes(kernel.ruleset(), wish))
    assert kernel.save() == before
    assert not changes(kernel.ruleset(), None)


@given(kernel=kernels(), door=st.one_of(st.none(), DOORS))
@settings(max_examples=120, deadline=None)
def test_inverse_gives_back_what_was_seen(kernel: Kernel, door: Door | None) -> None:
    """Rollback made from the look before brings every chain back, wrecks and places included."""
    before = kernel.ruleset()
    undo = inverse(before, door)
    carry_out(kernel, changes(before, door))
    carry_out(kernel, undo)
    assert form(kernel.ruleset()) == form(before)


@given(kernel=kernels(), door=st.one_of(st.none(), DOORS))
@settings(max_examples=80, deadline=None)
def test_i6_text_touches_only_ours(kernel: Kernel, door: Door | None) -> None:
    """No policy, no flush and no rule of anybody else's in any text; drift is empty exactly when there is no text."""
    todo = changes(kernel.ruleset(), door)
    for text in (*todo.texts.values(), *inverse(kernel.ruleset(), door).texts.values()):
        head, *lines, commit, end = text.decode().split("\n")
        assert (head in ("*nat", "*filter"), commit, end) == (True, "COMMIT", "")
        for line in lines:
            flag, _, rest = line.partition(" ")
            if line.startswith(":"):
                assert line.startswith(":VMPROXY-")
                assert line.endswith(" - [0:0]")
            elif flag in ("-F", "-X"):
                assert rest.startswith("VMPROXY-")
            else:
                assert flag in ("-A", "-I", "-D")
                assert rest.startswith("VMPROXY-") or " -j VMPROXY-" in rest
                assert flag != "-D" or not rest.startswith("VMPROXY-")
    assert bool(todo) == bool(drift(kernel.ruleset(), door, named=("-",)))
    assert bool(todo) == bool(todo.lines)


class Life(RuleBasedStateMachine):
    """P11: a VM's life. We apply, remove and fail at either table; others add, flush and restart; then it converges."""

    @initialize(dump=st.sampled_from(DUMPS), door=DOORS)
    def begin(self, dump: bytes, door: Door) -> None:
        self.kernel = Kernel(dump)
        self.door = door
        self.applied = False

    @rule(door=DOORS)
    def apply(self, door: Door) -> None:
        before = foreign(self.kernel.ruleset())
        carry_out(self.kernel, changes(self.kernel.ruleset(), door))
        assert not changes(self.kernel.ruleset(), door)
        assert [f for f in foreign(self.kernel.ruleset()) if f[3]] == [f for f in before if f[3]]
        self.door, self.applied = door, True

    @rule()
    def remove(self) -> None:
        carry_out(self.kernel, changes(self.kernel.ruleset(), None))
        assert b"VMPROXY" not in self.kernel.save()
        self.applied = False

    @rule(door=DOORS, table=st.sampled_from(["filter", "nat"]))
    def die_after_one_table(self, door: Door, table: str) -> None:
        text = changes(self.kernel.ruleset(), door).texts.get(table)
        if text:
            self.kernel.restore(text)
        self.applied = False

    @rule(door=DOORS, table=st.sampled_from(["filter", "nat"]))
    def roll_back_one_table(self, door: Door, table: str) -> None:
        before = self.kernel.ruleset()
        do, undo = changes(before, door), inverse(before, door)
        if table in do.texts:
            self.kernel.restore(do.texts[table])
            self.kernel.restore(undo.texts[table])
        names = {(c.table, c.name) for c in before.chains}
        after = [f for f in form(self.kernel.ruleset()) if (f[0], f[1]) in names]
        assert after == form(before)

    @rule(key=st.sampled_from(sorted(SITE)), which=st.integers(0, 10), place=st.integers(0, 30))
    def somebody_adds(self, key: tuple[str, str], which: int, place: int) -> None:
        put(self.kernel, key, SITE[key][which % len(SITE[key])], place)
        self.applied = False

    @rule(key=st.sampled_from([("nat", "PREROUTING"), ("filter", "FORWARD"), ("nat", "VMPROXY-PREROUTING")]))
    def somebody_flushes(self, key: tuple[str, str]) -> None:
        if key in self.kernel.chains:
            self.kernel.chains[key][1].clear()
            self.applied = False

    @precondition(lambda self: ("filter", "DOCKER-USER") in self.kernel.chains)
    @rule()
    def docker_restarts(self) -> None:
        rules = self.kernel.chains["filter", "FORWARD"][1]
        for words in (("-j", "DOCKER-USER"),):
            while words in rules:
                rules.remove(words)
            rules.insert(0, words)

    @invariant()
    def in_sync_while_nobody_meddled(self) -> None:
        if getattr(self, "applied", False):
            holds(self.kernel, self.door)
            assert drift(self.kernel.ruleset(), self.door, named=("-",)) == ()


TestLife = Life.TestCase
TestLife.settings = settings(max_examples=40, stateful_step_count=12, deadline=None)
TestLife.__doc__ = "P11: after every step of a VM's life the invariants hold, and any wreck converges."
