"""What listens in the VM is looked at where it can matter: at once for one VM, only before a change for many."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from tests.unit.test_plan import WISHES, fresh, step
from vmproxy import converge, session
from vmproxy.errors import Refused
from vmproxy.machines import Look, Outcome, Terms
from vmproxy.model import Facts, Plan, Report, Settings, Syntax
from vmproxy.stopping import Stop

PROFILE = "/var/lib/boot2docker/profile"
LISTENING = (("172.17.0.1", 8123),)
Told = Callable[..., Report]


class Machine:
    """A recorded VM that says what it is asked for and no more; it notes looks, changes and what was sent ahead."""

    def __init__(self, facts: Facts) -> None:
        self.facts = facts
        self.begun: list[tuple[bool, bool]] = []
        self.looks: list[bool] = []
        self.plans: list[Plan] = []
        self.after: list[Look] = []
        self.rests: list[bool] = []
        self.kind = ""

    def begin(self, look: Look, *, change: bool = False) -> None:
        self.begun.append((look.listeners, change))

    def observe(self, look: Look) -> Facts:
        self.looks.append(look.listeners)
        return self.facts if look.listeners else replace(self.facts, listeners=(), bare=True)

    def check(self, files: tuple[str, ...]) -> dict[str, Syntax]:
        return {path: Syntax(parses=True, tail_lives=True) for path in files}

    def commit(self, plan: Plan, terms: Terms, **_words: object) -> Outcome:
        self.plans.append(plan)
        self.after.append(terms.look)
        return Outcome(status="kept")

    def interrupt(self) -> bool:
        return False

    def close(self) -> None:
        """Nothing to close."""


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Told:
    """``told(machine, story, beside=True)``: a story of a VM that is one of many, or alone."""

    def tell(machine: Machine, story: Callable[..., Report] = converge.apply, *, beside: bool, **words: bool) -> Report:
        monkeypatch.setattr(session.Session, "_connect", lambda _self, _target: machine)
        stop = Stop() if beside else None
        return story("ssh://u@192.0.2.1", Settings(), stop=stop, **words)

    return tell


def applied(name: str) -> Facts:
    """A recorded VM as a first apply leaves it."""
    return step(fresh(name), WISHES["the default"])[1]


@pytest.mark.parametrize("name", ["fresh-nft", "applied-legacy"])
def test_of_many_in_sync_nobody_is_asked(name: str, told: Told) -> None:
    """One look, without what listens, and nothing sent ahead for a change; alone both are asked for at once."""
    many, alone = Machine(applied(name)), Machine(applied(name))
    for machine, beside in ((many, True), (alone, False)):
        report = told(machine, beside=beside)
        assert (report.ok, report.changed, report.message) == (True, False, "in sync, nothing to do")
    assert (many.begun, many.looks) == ([(False, False)], [False])
    assert (alone.begun, alone.looks) == ([(True, True)], [True])


@pytest.mark.parametrize("dry_run", [False, True])
def test_before_a_change_of_rules_all_are_asked(dry_run: bool, told: Told) -> None:
    """What listens at the door's port is refused in the same words, beside others as alone; nothing is changed."""
    said = []
    for beside in (True, False):
        machine = Machine(replace(fresh("fresh-nft"), listeners=LISTENING))
        with pytest.raises(Refused) as caught:
            told(machine, beside=beside, dry_run=dry_run)
        said.append((caught.value.what, caught.value.where, caught.value.hint, caught.value.exit))
        assert machine.plans == []
        assert machine.looks[-1]
        assert len(machine.looks) == (2 if beside and not dry_run else 1)
    assert said[0] == said[1]
    assert said[0][0] == "something in the VM already listens at 172.17.0.1:8123"
    assert said[0][3] == 6


def test_where_nothing_is_in_the_way_the_change_is_the_same(told: Told) -> None:
    """Beside others one more look, and then the very plan that a VM alone gets."""
    machines = {beside: Machine(fresh("fresh-nft")) for beside in (True, False)}
    for beside, machine in machines.items():
        assert told(machine, beside=beside).changed
    assert machines[True].looks == [False, True]
    assert machines[False].looks == [True]
    assert machines[True].plans == machines[False].plans
    assert len(machines[True].plans) == 1


def test_status_sees_a_listener_beside_others_too(told: Told) -> None:
    """It changes nothing, and tells of a listener that came later: so it is told of them at once."""
    machine = Machine(replace(applied("fresh-nft"), listeners=LISTENING))
    report = told(machine, converge.status, beside=True)
    assert [finding.detail for finding in report.findings] == [
        "something in the VM already listens at 172.17.0.1:8123",
    ]
    assert machine.looks == [True]


def test_the_second_look_is_only_for_what_the_first_has_left_out(told: Told) -> None:
    """What was seen is not looked at again: contents come from the first look; where files have come, all is."""

    class Sparing(Machine):
        def observe(self, look: Look) -> Facts:
            self.rests.append(look.rest)
            if not look.rest:
                return super().observe(look)
            files = {path: replace(file, content=b"") for path, file in self.facts.files.items()}
            files[PROFILE] = replace(files[PROFILE], kind=self.kind)
            return Facts(files=files, listeners=self.facts.listeners)

    for kind, looks in (("absent", [False, True]), ("file", [False, True, False])):
        sparing, whole = Sparing(fresh("fresh-nft")), Machine(fresh("fresh-nft"))
        sparing.kind = kind
        assert told(sparing, beside=True).changed and told(whole, beside=False).changed
        assert sparing.rests == looks
        assert sparing.plans == whole.plans


def test_behind_a_change_nobody_asks_what_listens(told: Told) -> None:
    """It was known before; owner, links and mode of the files are looked at again."""
    for beside in (True, False):
        machine = Machine(fresh("fresh-nft"))
        assert told(machine, beside=beside).changed
        (after,) = machine.after
        assert (after.listeners, after.rest, after.stats) == (False, False, True)
