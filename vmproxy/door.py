"""Our own chains and jumps for one door (DESIGN §4): what must stand in nat and filter, and where.

Every word comes from a checked field of :class:`~vmproxy.model.Door`; every rule carries the comment ``vmproxy``.
"""

from __future__ import annotations

import ipaddress
from functools import cached_property, lru_cache

from vmproxy.dockerrules import docker_bridges, ends_chain, interface_word, is_dockers, stays_inside
from vmproxy.errors import UsageError
from vmproxy.iptsave import Ruleset, canonical, join_words, target
from vmproxy.model import Chain, Door, Rule, printable
from vmproxy.values import dataclass

PREFIX = "VMPROXY-"
PREROUTING = "VMPROXY-PREROUTING"
POSTROUTING = "VMPROXY-POSTROUTING"
FORWARD = "VMPROXY-FORWARD"
TABLES = ("filter", "nat")
"""The tables that a door needs, in the order in which they are to be written (RELIABILITY §0b)."""

_FIRST_MULTICAST = ipaddress.IPv4Address("224.0.0.0")  # above: multicast, reserved, broadcast
_COMMENT = ("-m", "comment", "--comment", "vmproxy")


@dataclass(frozen=True, kw_only=True)
class Jump:
    """One rule of a built-in chain that leads into an own chain."""

    table: str
    rule: Rule


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """All that is ours for one door. The zero value is "nothing of ours"."""

    chains: tuple[Chain, ...] = ()
    jumps: tuple[Jump, ...] = ()

    def into(self, table: str, chain: str) -> tuple[Rule, ...]:
        """The jumps of one chain, in order."""
        return self._by_chain.get((table, chain), ())

    @cached_property  # asked for each chain there is; no field, so no part of the value
    def _by_chain(self) -> dict[tuple[str, str], tuple[Rule, ...]]:
        found: dict[tuple[str, str], list[Rule]] = {}
        for jump in self.jumps:
            found.setdefault((jump.table, jump.rule.chain), []).append(jump.rule)
        return {key: tuple(rules) for key, rules in found.items()}


def wanted(door: Door | None) -> Wanted:
    """The own chains and the jumps to them. Raises UsageError for a field that no rule may hold."""
    if door is None:
        return Wanted()
    check(door)
    return _wanted(door)


@lru_cache(maxsize=32)
def _wanted(door: Door) -> Wanted:
    six = ":" in door.gateway
    gateway, bridge = (f"{address}/{128 if six else 32}" for address in (door.gateway, door.bridge_address))
    dnat = ("-j", "DNAT", "--to-destination", f"[{door.gateway}]:{door.port}" if six else f"{door.gateway}:{door.port}")
    in_port = ("-p", "tcp", "--dport", str(door.listen_port))
    pre = (
        # --limit-iface-in: only the bridge's own address; the VM's uplink address is LOCAL too and stays the VM's.
        ("-p", "tcp", "-m", "addrtype", "--dst-type", "LOCAL", "--limit-iface-in", *_COMMENT, *dnat),
        ("-d", bridge, "-p", "tcp", *_COMMENT, *dnat),
    )
    # ctstate DNAT: without it every container could reach the gateway's port by its own address, and the LAN too.
    there = ("-d", gateway, "-p", "tcp", "--dport", str(door.port), "-m", "conntrack", "--ctstate", "DNAT")
    back = ("-s", gateway, "-p", "tcp", "--sport", str(door.port), "-m", "conntrack", "--ctstate", "DNAT")
    forward = (
        (*there, "--ctdir", "ORIGINAL", *_COMMENT, "-j", "ACCEPT"),
        (*back, "--ctdir", "REPLY", *_COMMENT, "-j", "ACCEPT"),
    )
    return Wanted(
        chains=(
            _chain("filter", FORWARD, *forward),
            _chain("nat", PREROUTING, *pre),
            _chain("nat", POSTROUTING, (*_COMMENT, "-j", "MASQUERADE")),
        ),
        jumps=(
            _jump("filter", "FORWARD", *_COMMENT, "-j", FORWARD),
            *(_jump("nat", "PREROUTING", "-i", name, *in_port, *_COMMENT, "-j", PREROUTING) for name in door.bridges),
            _jump("nat", "POSTROUTING", *there, *_COMMENT, "-j", POSTROUTING),
        ),
    )


def _chain(table: str, name: str, *rules: tuple[str, ...]) -> Chain:
    return Chain(table=table, name=name, rules=tuple(Rule(chain=name, words=words) for words in rules))


def _jump(table: str, chain: str, *words: str) -> Jump:
    return Jump(table=table, rule=Rule(chain=chain, words=words))


def check(door: Door) -> None:
    """Raise :class:`~vmproxy.errors.UsageError` unless every field is one that may stand in a rule.

    Both addresses are of one family: that of the rules.
    """
    if _address(door.gateway, "gateway") != _address(door.bridge_address, "bridge address"):
        raise UsageError("the gateway and the bridge's address are of different families")
    for port in (door.port, door.listen_port):
        if type(port) is not int or not 0 < port < 1 << 16:
            raise UsageError(f"{printable(str(port), limit=40)} is no port", hint="a port is a number from 1 to 65535")
    if not door.bridges or len(set(door.bridges)) != len(door.bridges):
        raise UsageError("the door needs bridges, each once", hint="--bridge NAME")
    for bridge in door.bridges:
        interface_word(bridge)


def _address(text: str, what: str) -> int:
    """The version of an address that a rule may hold. Raises UsageError."""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        address = ipaddress.IPv4Address(0)
    if isinstance(address, ipaddress.IPv4Address):
        bad = address.is_unspecified or address.is_loopback or address >= _FIRST_MULTICAST
    else:
        # A link-local address means nothing without an interface, and DNAT knows none.
        bad = (
            address.is_unspecified or address.is_loopback or address.is_multicast or address.is_link_local
            or address.ipv4_mapped is not None or address.scope_id is not None
        )  # fmt: skip
    if bad:
        raise UsageError(f"the {what} {printable(str(text), limit=40)!r} is no usable address")
    return address.version


def jumps(door: Door) -> tuple[tuple[str, str, tuple[str, ...]], ...]:
    """The jumps as (table, chain, words), for a boot script that deletes each while it is there, then adds it once.

    In filter FORWARD add with ``-A`` once Docker's chains are there; the place of the nat ones is free.
    """
    return tuple((jump.table, jump.rule.chain, jump.rule.words) for jump in wanted(door).jumps)


def boot_text(door: Door) -> dict[str, bytes]:
    """Per table the ``iptables-restore -w --noflush`` text that makes the own chains, whole, whatever was in them."""
    texts = {}
    chains = wanted(door).chains
    for table in TABLES:
        lines = [f"*{table}"]
        for chain in chains:
            if chain.table == table:
                lines += restore_chain(chain)
        texts[table] = ("\n".join([*lines, "COMMIT"]) + "\n").encode()
    return texts


def restore_chain(chain: Chain) -> list[str]:
    """Lines that make an own chain, or empty it, and fill it (with ``--noflush`` a declared chain is flushed)."""
    return [f":{chain.name} - [0:0]", *(join_words(("-A", chain.name, *rule.words)) for rule in chain.rules)]


def is_own_chain(name: str) -> bool:
    """Whether a chain is ours by name."""
    return name.startswith(PREFIX)


def is_own_jump(rule: Rule) -> bool:
    """Whether a rule outside our chains leads into one of them."""
    return not is_own_chain(rule.chain) and is_own_chain(target(rule.words))


def placed(observed: Ruleset, door: Door | None) -> Ruleset:
    """What the rule set has to become: observed's foreign part in its own order, and ours as wanted.

    A chain that is right already stays word for word as observed. nat's jumps may stand anywhere (new ones go on top,
    so that nobody's catch-all comes first). FORWARD's stands behind all that is Docker's: earlier, ``--internal``
    networks lose their isolation; and before what ends the chain.
    """
    want = wanted(door)
    own = {(chain.table, chain.name): chain for chain in want.chains}
    heads = {(jump.table, jump.rule.chain) for jump in want.jumps}
    out: list[Chain] = []
    for chain in observed.chains:
        if chain.table not in TABLES:
            out.append(chain)
            continue
        if is_own_chain(chain.name):
            wish = own.pop((chain.table, chain.name), None)
            if wish is not None:
                out.append(chain if same_rules(chain.rules, wish.rules) else wish)
            continue
        heads.discard((chain.table, chain.name))
        out.append(_with_jumps(observed, chain, want.into(chain.table, chain.name)))
    for table, name in sorted(heads):  # a table that the kernel has not made yet
        out.append(Chain(table=table, name=name, policy="ACCEPT", rules=want.into(table, name)))
    return Ruleset(chains=(*out, *own.values()))


def _with_jumps(observed: Ruleset, chain: Chain, ours: tuple[Rule, ...]) -> Chain:
    """One foreign chain with exactly ``ours`` of our jumps in it."""
    there = tuple(rule for rule in chain.rules if is_own_jump(rule))
    complete = sorted(canonical(rule.words) for rule in there) == sorted(canonical(rule.words) for rule in ours)
    place = 0
    if chain.table == "filter" and chain.name == "FORWARD" and ours:
        place = forward_place(observed)
        first, last = _bounds(observed)
        complete = complete and all(first <= i <= last for i, rule in enumerate(chain.rules) if is_own_jump(rule))
    if complete:
        return chain
    foreign = [rule for rule in chain.rules if not is_own_jump(rule)]
    return Chain(
        table=chain.table, name=chain.name, policy=chain.policy, rules=(*foreign[:place], *ours, *foreign[place:])
    )


def _bounds(observed: Ruleset) -> tuple[int, int]:
    """First and last index in FORWARD (our own jumps counted) at which our jump is right.

    Docker's rules for what stays inside one bridge do not count: our flows leave it, and with ``icc`` off dockerd
    appends one per bridge at each start, behind everything that is there.
    """
    chain = observed.chain("filter", "FORWARD")
    rules = chain.rules if chain else ()
    bridges = docker_bridges(observed)
    dockers = (i + 1 for i, rule in enumerate(rules) if is_dockers(rule, bridges) and not stays_inside(rule))
    first = max(dockers, default=0)
    ends = (i for i, r in enumerate(rules) if i >= first and not is_own_jump(r) and ends_chain(observed, "filter", r))
    return first, next(ends, len(rules))


def forward_place(observed: Ruleset) -> int:
    """Index among FORWARD's foreign rules at which our jump is to be put."""
    chain = observed.chain("filter", "FORWARD")
    end = _bounds(observed)[1]
    return sum(1 for rule in (chain.rules if chain else ())[:end] if not is_own_jump(rule))


def same_rules(left: tuple[Rule, ...], right: tuple[Rule, ...]) -> bool:
    """Whether two rule lists say the same in the same order, whatever words iptables-save printed."""
    return [canonical(rule.words) for rule in left] == [canonical(rule.words) for rule in right]
