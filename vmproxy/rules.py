"""The rules in a VM, as a model: what is there, what is wanted, the restore text between the two. PURE.

The face of the family; the parts are :mod:`vmproxy.iptsave` (text), :mod:`vmproxy.dockerrules` (what Docker's rules
tell), :mod:`vmproxy.door` (what is ours) and :mod:`vmproxy.ruleflow` (other people's rules in our way). Undo and
rollback are the same function as apply, with another wish.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from vmproxy.dockerrules import (
    DEFAULT_BRIDGE,
    NETWORK_BRIDGES,
    Patterns,
    choose_variant,
    cover,
    docker_bridges,
    holds_docker,
)
from vmproxy.door import (
    FORWARD,
    POSTROUTING,
    PREROUTING,
    TABLES,
    Jump,
    Wanted,
    boot_text,
    check,
    is_own_chain,
    is_own_jump,
    jumps,
    placed,
    restore_chain,
    same_rules,
    wanted,
)
from vmproxy.iptsave import Canonical, Ruleset, canonical, cas_text, join_words, parse_save, settled
from vmproxy.model import Chain, Door, Finding, Rule, printable
from vmproxy.ruleflow import conflicts
from vmproxy.values import dataclass

DRIFT = "E_DRIFT"


@dataclass(frozen=True, kw_only=True)
class Changes:
    """One ``iptables-restore -w --noflush`` text per table, empty where there is nothing to do; false when both are.

    ``lines`` are for people: ``- …`` and ``+ …``, printable, one per rule or chain.
    """

    filter: bytes = b""
    nat: bytes = b""
    lines: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.filter or self.nat)

    @property
    def texts(self) -> dict[str, bytes]:
        """The texts that are not empty by table, in the order in which they are to be carried out."""
        return {table: text for table, text in (("filter", self.filter), ("nat", self.nat)) if text}


def changes(observed: Ruleset, door: Door | None) -> Changes:
    """What makes our part of ``observed`` right for ``door``; None takes away all of ours, stale ``VMPROXY-…`` too.

    Foreign rules keep their order, policies are never named (I5, I6). Raises UsageError for a bad door.
    """
    return between(observed, placed(observed, door))


def inverse(observed: Ruleset, door: Door | None) -> Changes:
    """What brings our part back to what was observed, places included, after ``changes(observed, door)``.

    Each table's text stands alone: where only one was written, only that one is to be put back.
    """
    return between(placed(observed, door), observed)


def between(now: Ruleset, goal: Ruleset) -> Changes:
    """What makes our part of ``now`` word for word that of ``goal``. Their foreign parts are taken to be the same.

    Rules are deleted by their words, never by number: a rule that somebody put in meanwhile cannot be hit.
    """
    texts: dict[str, bytes] = {}
    lines: list[str] = []
    for table in TABLES:
        steps, said = _table_steps(table, now, goal)
        lines += said
        if steps:
            texts[table] = "\n".join([f"*{table}", *steps, "COMMIT", ""]).encode("utf-8", "surrogateescape")
    return Changes(filter=texts.get("filter", b""), nat=texts.get("nat", b""), lines=tuple(lines))


def _table_steps(table: str, now: Ruleset, goal: Ruleset) -> tuple[list[str], list[str]]:
    """Restore lines and human lines for one table: chains first, then jumps out, jumps in, dead chains last."""
    chains: list[str] = []
    out: list[str] = []
    into: list[str] = []
    said: list[str] = []
    for chain in goal.table(table):
        if is_own_chain(chain.name):
            old = now.chain(table, chain.name)
            if old is None or not same_rules(old.rules, chain.rules):
                chains += restore_chain(chain)
                said += _said(table, old.rules if old else (), chain.rules, new_chain="" if old else chain.name)
    for name in dict.fromkeys(c.name for c in (*now.table(table), *goal.table(table)) if not is_own_chain(c.name)):
        old, new = now.chain(table, name), goal.chain(table, name)
        left, right = old.rules if old else (), new.rules if new else ()
        if _layout(left) != _layout(right):
            gone = [rule for rule in left if is_own_jump(rule)]
            out += [join_words(("-D", name, *rule.words)) for rule in gone]
            into += _insertions(name, right)
            said += _said(table, gone, [rule for rule in right if is_own_jump(rule)])
    stale = [c for c in now.table(table) if is_own_chain(c.name) and goal.chain(table, c.name) is None]
    for chain in stale:
        said += [*_said(table, chain.rules, ()), f"- -t {table} -N {printable(chain.name)}"]
    dead = [join_words((flag, chain.name)) for flag in ("-F", "-X") for chain in stale]
    return [*chains, *out, *into, *dead], said


def _layout(rules: Sequence[Rule]) -> list[object]:
    """Where ours stand among the foreign ones; two chains with the same layout need no change."""
    return [canonical(rule.words) if is_own_jump(rule) else None for rule in rules]


def _insertions(chain: str, rules: Sequence[Rule]) -> list[str]:
    """Lines that put our jumps at their places into a chain that has only the foreign ones."""
    lines = []
    for index, rule in enumerate(rules):
        if is_own_jump(rule):
            last = all(map(is_own_jump, rules[index:]))
            where = ("-A", chain) if last else ("-I", chain, str(index + 1))
            lines.append(join_words((*where, *rule.words)))
    return lines


def _said(table: str, old: Sequence[Rule], new: Sequence[Rule], *, new_chain: str = "") -> list[str]:
    """Two rule lists as a diff; where only the order or the place differs, all of both."""
    before, after = [canonical(rule.words) for rule in old], [canonical(rule.words) for rule in new]
    moved = sorted(before) == sorted(after)
    gone, come = Counter(before) - Counter(after), Counter(after) - Counter(before)
    said = [f"- -t {table} {_line(r)}" for r, form in zip(old, before, strict=True) if moved or _take(gone, form)]
    said += [f"+ -t {table} -N {new_chain}"] if new_chain else []
    return said + [f"+ -t {table} {_line(r)}" for r, form in zip(new, after, strict=True) if moved or _take(come, form)]


def _take(counter: Counter[Canonical], form: Canonical) -> bool:
    """Whether the counter still had one of these; it has one less then."""
    counter[form] -= 1
    return counter[form] >= 0


def _line(rule: Rule) -> str:
    return printable(f"-A {rule.chain} {' '.join(rule.words)}")


def drift(
    observed: Ruleset, door: Door | None, interfaces: Iterable[str] = (), named: Sequence[str] = ()
) -> tuple[Finding, ...]:
    """Each thing of ours that is missing, too many or misplaced; each bridge uncovered, or covered and not Docker's.

    ``interfaces``: every interface of the VM, if known; ``named``: the bridges that the user asked for, which leaves
    the others uncovered on purpose. Empty means in sync; then :func:`changes` is empty too.
    """
    goal = placed(observed, door)
    want = wanted(door)
    found: list[Finding] = []
    for wish in want.chains:
        chain = observed.chain(wish.table, wish.name)
        if chain is None:
            found.append(_finding(wish.table, wish.name, "the chain is missing"))
        elif not same_rules(chain.rules, wish.rules):
            found += _differences(wish.table, wish.name, chain.rules, wish.rules)
    for chain in (chain for table in TABLES for chain in observed.table(table)):
        if is_own_chain(chain.name):
            if goal.chain(chain.table, chain.name) is None:
                found.append(_finding(chain.table, chain.name, "the chain is left over"))
            continue
        ours = tuple(filter(is_own_jump, chain.rules))
        wishes = want.into(chain.table, chain.name)
        if goal.chain(chain.table, chain.name) != chain:
            found += _differences(chain.table, chain.name, ours, wishes)
    for jump in want.jumps:
        if observed.chain(jump.table, jump.rule.chain) is None:
            found.append(_finding(jump.table, jump.rule.chain, f"missing: {_line(jump.rule)}"))
    return (*found, *(_uncovered(observed, door, tuple(interfaces), named) if door else ()))


def _differences(table: str, name: str, there: Sequence[Rule], wish: Sequence[Rule]) -> list[Finding]:
    have, want = [canonical(r.words) for r in there], [canonical(r.words) for r in wish]
    missing, extra = Counter(want) - Counter(have), Counter(have) - Counter(want)
    found = []
    for rule, form in zip(wish, want, strict=True):
        if _take(missing, form):
            found.append(_finding(table, name, f"missing: {_line(rule)}"))
    for rule, form in zip(there, have, strict=True):
        if _take(extra, form):
            found.append(_finding(table, name, f"too many: {_line(rule)}"))
    return found or [_finding(table, name, f"in the wrong place: {_line(rule)}") for rule in there]


def _uncovered(observed: Ruleset, door: Door, interfaces: tuple[str, ...], named: Sequence[str]) -> list[Finding]:
    docker = docker_bridges(observed)
    there, dockers, covered = frozenset(interfaces), frozenset(docker), Patterns(door.bridges)
    found = []
    for bridge in docker if not named else ():
        if (not there or bridge in there) and not covered.match(bridge):
            found.append(_finding("nat", "PREROUTING", f"Docker's bridge {printable(bridge)} is not covered"))
    if docker and not named:
        # The jumps in place count too: the wish of now may already be to name each bridge, because of this very one.
        words = Patterns((*door.bridges, *_jump_interfaces(observed)))
        for name in interfaces:
            if name not in dockers and words.match_widely(name):
                found.append(_finding("nat", "PREROUTING", f"{printable(name)} is covered and is not Docker's"))
    return found


def _jump_interfaces(observed: Ruleset) -> list[str]:
    """What stands after ``-i`` in our jumps of nat PREROUTING."""
    chain = observed.chain("nat", "PREROUTING")
    jumps = (rule.words for rule in (chain.rules if chain else ()) if is_own_jump(rule))
    return [words[words.index("-i") + 1] for words in jumps if "-i" in words[:-1]]


def _finding(table: str, chain: str, detail: str) -> Finding:
    return Finding(subject=f"rules {table} {printable(chain, limit=40)}", ok=False, detail=detail, code=DRIFT)


__all__ = [
    "DEFAULT_BRIDGE",
    "DRIFT",
    "FORWARD",
    "NETWORK_BRIDGES",
    "POSTROUTING",
    "PREROUTING",
    "TABLES",
    "Chain",
    "Changes",
    "Jump",
    "Ruleset",
    "Wanted",
    "between",
    "boot_text",
    "canonical",
    "cas_text",
    "changes",
    "check",
    "choose_variant",
    "conflicts",
    "cover",
    "docker_bridges",
    "drift",
    "holds_docker",
    "inverse",
    "jumps",
    "parse_save",
    "settled",
    "wanted",
]
