"""P11 with files and for every guest: whatever befalls a VM, what is ours is whole or gone; the next run mends it."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from tests.unit.guestlife import DUMPS, VM, WORLDS, Key, Words
from tests.unit.rulekernel import form, ours
from tests.unit.test_rules_properties import holds
from vmproxy import guests
from vmproxy import plan as planning
from vmproxy.managed import MADE
from vmproxy.model import File, Wish
from vmproxy.proxyenv import parse_proxy

WISHES = [
    Wish(proxy=parse_proxy("http://127.0.0.1:8123")),
    Wish(proxy=parse_proxy("http://u:p%23%25x%27@127.0.0.1:8123"), no_proxy=("registry.test",)),
    Wish(proxy=parse_proxy("http://127.0.0.1:3128"), listen_port=8123),
    Wish(proxy=parse_proxy("http://proxy.corp.test:3128")),
]
SITE: dict[Key, list[Words]] = {
    ("filter", "FORWARD"): [
        ("-i", "eth1", "-j", "DROP"),
        ("-i", "docker0", "-d", "10.9.9.9/32", "-j", "DROP"),
        ("-j", "REJECT", "--reject-with", "icmp-port-unreachable"),
    ],
    ("nat", "PREROUTING"): [("-i", "eth1", "-p", "tcp", "-m", "tcp", "--dport", "81", "-j", "REDIRECT")],
    ("nat", "POSTROUTING"): [("-o", "eth1", "-j", "MASQUERADE")],
}
LINES = [b"# a remark\n", b'OPTS="$OPTS -D"\n', b"export http_proxy=http://elsewhere.test:1\n"]
CONTENTS = [None, b"", b'OPTS="-D"\n', b"# no line end"]


class Life(RuleBasedStateMachine):
    """One VM. ``wish`` is what is in force untouched: None after a removal, and ``known`` False after meddling."""

    kind: ClassVar[str]

    @initialize(
        dump=st.sampled_from(sorted(DUMPS)), contents=st.lists(st.sampled_from(CONTENTS), min_size=3, max_size=3)
    )
    def begin(self, dump: str, contents: list[bytes | None]) -> None:
        guest = guests.load(self.kind)
        files = {
            path: File(path=path, content=content, mode=0o755 if path in guest.SHELL[:1] else 0o644)
            for path, content in zip(guest.FILES, contents, strict=False)
            if content is not None and path in guest.SHELL and "vmproxy" not in path
        }
        self.vm = VM(self.kind, dump, files)
        self.wish: Wish | None = None
        self.known = True

    # ---- what we do -------------------------------------------------------------------------------------------------

    @rule(wish=st.sampled_from(WISHES), restart=st.booleans())
    def apply(self, wish: Wish, restart: bool) -> None:
        self._run(wish, restart=restart)

    @rule()
    def remove(self) -> None:
        self._run(None, restart=True)
        assert self.vm.files == self.vm.their_files
        assert self.vm.kernel.save() == self.vm.their_kernel.save()
        assert not self.vm.directories

    def _run(self, wish: Wish | None, *, restart: bool) -> None:
        for step in self.vm.steps(self.vm.plan(wish), restart=restart):
            step()
        self.wish, self.known = wish, True

    @rule(wish=st.sampled_from([None, *WISHES]), after=st.integers(0, 8), powerless=st.booleans())
    def die(self, wish: Wish | None, after: int, powerless: bool) -> None:
        """Killed, or without power, between two steps: nothing is put back."""
        steps = self.vm.steps(self.vm.plan(wish), restart=True)[:-1]
        for step in steps[: min(after, len(steps))]:
            step()
        self.vm.leftovers.add(f"{self.vm.guest.WISH_FILE.rpartition('/')[0]}/.vmproxy-Ab3dE6")
        if powerless:
            self.vm.reboot()
        self.known = False

    @rule(wish=st.sampled_from([None, *WISHES]), after=st.integers(1, 8))
    def fail(self, wish: Wish | None, after: int) -> None:
        """A step that fails: what was done is put back, to the byte and to the rule's place."""
        stay = {place for place in self.vm.directories if f"{place}/{MADE}" not in self.vm.leftovers}
        seen = (dict(self.vm.files), form(self.vm.kernel.ruleset()), dict(self.vm.daemon))
        plan = self.vm.plan(wish)
        steps = self.vm.steps(replace(plan, restart=False), restart=False)[:-1]
        done = min(after, len(steps))
        for step in steps[:done]:
            step()
        self.vm.put_back(plan, done, restart=False)
        names = {chain[:2] for chain in seen[1]}
        rules = [chain for chain in form(self.vm.kernel.ruleset()) if chain[:2] in names]
        assert (self.vm.files, rules, self.vm.daemon) == seen
        assert stay <= self.vm.directories
        assert not self.vm.leftovers

    # ---- what others do ---------------------------------------------------------------------------------------------

    @rule(key=st.sampled_from(sorted(SITE)), which=st.integers(0, 2), place=st.integers(0, 12))
    def somebody_adds(self, key: Key, which: int, place: int) -> None:
        words = SITE[key][which % len(SITE[key])]
        self.vm.somebody_adds(key, words, 99 if "REJECT" in words else place)  # what stops everything stands last
        self.known = False

    @rule(key=st.sampled_from([("nat", "PREROUTING"), ("filter", "FORWARD")]))
    def somebody_flushes(self, key: Key) -> None:
        self.vm.somebody_flushes(key)
        self.known = False

    @rule(which=st.integers(0, 2), line=st.sampled_from(LINES))
    def somebody_appends(self, which: int, line: bytes) -> None:
        paths = self.vm.guest.SHELL
        if self.kind != "moby" and self.vm.somebody_appends(paths[which % len(paths)], line):
            self.known = False

    @precondition(lambda self: self.kind not in ("systemd", "moby"))
    @rule(content=st.sampled_from([b'OPTS="--tls"\n', b""]))
    def somebody_rewrites(self, content: bytes) -> None:
        self.vm.somebody_rewrites(self.vm.guest.WISH_FILE, content)
        self.known = False

    @rule()
    def docker_restarts(self) -> None:
        self.vm.docker_restarts()

    @rule()
    def reboot(self) -> None:
        """What was whole before is whole after; only a VM whose root is in memory starts anew."""
        self.vm.reboot()
        if self.vm.in_memory is not None:
            self.wish, self.known = None, True

    # ---- what always holds ------------------------------------------------------------------------------------------

    @invariant()
    def in_sync_where_nobody_meddled(self) -> None:
        """I1 to I4 and the files: the next run has nothing to do but what a restart is owed."""
        vm = getattr(self, "vm", None)
        if vm is None or not self.known:
            return
        plan = vm.plan(self.wish)
        assert not plan.files
        assert not plan.rules
        assert not plan.leftovers
        seen = planning.seen_wish(vm.facts(), vm.guest)
        if self.wish is None:
            assert seen is None
            assert b"VMPROXY" not in vm.kernel.save()
        else:
            door = vm.desired(self.wish).door
            assert seen is not None
            assert (seen.proxy, seen.no_proxy, seen.listen_port) == (
                self.wish.proxy, self.wish.no_proxy, self.wish.listen_port,
            )  # fmt: skip
            if door is not None:
                holds(vm.kernel, door)

    @invariant()
    def what_is_theirs_is_theirs(self) -> None:
        """I5 and I6: rules of others keep words, order and policy; their bytes stand in each file that has a block."""
        vm = getattr(self, "vm", None)
        if vm is None:
            return
        for key, (policy, rules) in vm.their_kernel.chains.items():
            mine = vm.kernel.chains[key]
            assert (mine[0], [words for words in mine[1] if not ours(words)]) == (policy, rules)
        for path, file in vm.their_files.items():
            content = vm.files[path].content or b""
            lines = (file.content or b"").splitlines(keepends=True)
            assert all(line in content for line in lines if line.endswith(b"\n"))

    def teardown(self) -> None:
        """Whatever is left over converges, and goes without a trace."""
        if hasattr(self, "vm"):
            self._run(WISHES[0], restart=True)
            self.in_sync_where_nobody_meddled()
            assert not self.vm.plan(WISHES[0])
            self.remove()
            assert not self.vm.plan(None)


@pytest.mark.parametrize("kind", sorted(WORLDS))
def test_p11_any_life_of_a_vm_converges(kind: str) -> None:
    """P11: apply, remove, die, fail, others' rules and lines, flushes, reboots: one run mends it, no trace."""
    machine = type(f"Life_{kind}", (Life,), {"kind": kind})
    few = settings(max_examples=15, stateful_step_count=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    run_state_machine_as_test(machine, settings=few)
