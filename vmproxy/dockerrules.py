"""What Docker's own rules tell: the variant they are in, which bridges are Docker's, what of FORWARD is."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from vmproxy.errors import Refused, UsageError
from vmproxy.iptsave import Option, Ruleset, canonical, options, parse_save, target
from vmproxy.model import Chain, Rule, printable

DEFAULT_BRIDGE = "docker0"
NETWORK_BRIDGES = "br-+"
"""Docker names the bridge of a user-defined network ``br-`` and twelve hex digits, unless told otherwise."""

# A name that means the same to the kernel and to iptables ("+" at the end is iptables' wildcard, "!" its negation).
_INTERFACE = re.compile(r"[A-Za-z0-9_.:@][A-Za-z0-9_.:@-]{0,14}\Z")
_FOREIGN_CHAINS = ("DOCKER-USER",)  # Docker makes it, the user fills it.
_PAIR = 2
_NAME_LIMIT = 15  # IFNAMSIZ less its NUL
_MAX_NESTING = 50


def interface_word(name: str) -> str:
    """``name`` if it may stand after ``-i`` in a rule: up to 15 characters, a ``+`` only at its end.

    Raises :class:`~vmproxy.errors.UsageError`.
    """
    stem = name[:-1] if name.endswith("+") else name
    if len(name) > _NAME_LIMIT or not _INTERFACE.match(stem):
        raise UsageError(f"{printable(name, limit=40)!r} is no interface name", hint="for instance --bridge docker0")
    return name


def matches(pattern: str, interface: str) -> bool:
    """Whether iptables' ``-i pattern`` matches the interface."""
    return interface.startswith(pattern[:-1]) if pattern.endswith("+") else interface == pattern


class Patterns:
    """Many of iptables' patterns for interfaces; to ask them all takes no longer than to ask one."""

    def __init__(self, patterns: Iterable[str]) -> None:
        words = frozenset(patterns)
        self._names = words
        self._stems = frozenset(word[:-1] for word in words if word.endswith("+"))

    def match(self, interface: str) -> bool:
        """Whether one of them matches."""
        return interface in self._names or self.match_widely(interface)

    def match_widely(self, interface: str) -> bool:
        """Whether one of those that end in ``+`` matches."""
        return any(interface[:end] in self._stems for end in range(len(interface) + 1))


def docker_bridges(ruleset: Ruleset) -> tuple[str, ...]:
    """Names of the bridges that Docker's own rules name, ``--internal`` networks' too; sorted, docker0 first.

    Shapes after dockerd 1.4 to 28: ``-o X -j DOCKER``, nat ``-i X -j RETURN``, everything in the isolation chains,
    DOCKER-CT's and DOCKER-FORWARD's accepts, ``! -i X -o X`` in DOCKER. A rule that mentions an interface in passing
    (DOCKER-USER, WSL's ``-i loopback0 -d 127.0.0.0/8 -j RETURN``) names no bridge.
    """
    memo = vars(ruleset)  # asked for ten times in a run, and no field: so it is no part of the value
    if "_bridges" not in memo:
        found = {name for chain in ruleset.chains for rule in chain.rules for name in _named(chain, rule)}
        bridges = (name for name in found if not name.endswith("+"))
        memo["_bridges"] = tuple(sorted(bridges, key=lambda name: (name != DEFAULT_BRIDGE, name)))
    known: tuple[str, ...] = memo["_bridges"]
    return known


def _named(chain: Chain, rule: Rule) -> Iterable[str]:
    """The bridges that one rule names."""
    parsed = options(rule.words)
    ways = [o for o in parsed if o.name in ("-i", "-o") and len(o.values) == 1]
    if not ways:
        return ()
    bare = frozenset(o.name for o in parsed) <= {"-i", "-o", "-j"}
    only = ways[0] if len(ways) == 1 and not ways[0].negated else None
    to = target(rule.words)
    if chain.table == "nat":
        hit = chain.name == "DOCKER" and bare and to == "RETURN" and only is not None and only.name == "-i"
    elif chain.table != "filter":
        hit = False
    elif chain.name.startswith(("DOCKER-ISOLATION", "DOCKER-INTERNAL")):
        hit = True
    elif chain.name == "DOCKER":
        return {o.values[0] for o in ways if o.name == "-o"} if _leads_in(ways) else ()
    elif chain.name == "DOCKER-CT":
        hit = only is not None and only.name == "-o" and to == "ACCEPT"
    elif chain.name in ("FORWARD", "DOCKER-FORWARD", "DOCKER-BRIDGE"):
        into_docker = to == "DOCKER" and bare and only is not None and only.name == "-o"
        out_of_bridge = chain.name == "DOCKER-FORWARD" and to == "ACCEPT" and bare and ways[0].name == "-i"
        hit = into_docker or (out_of_bridge and not ways[0].negated)
    else:
        hit = False
    return {o.values[0] for o in ways} if hit else ()


def _leads_in(ways: Sequence[Option]) -> bool:
    """``! -i X -o X``: into bridge X from elsewhere."""
    if len(ways) != _PAIR:
        return False
    into, out = sorted(ways, key=lambda o: o.name)
    return into.name == "-i" and out.name == "-o" and into.negated and not out.negated and into.values == out.values


def holds_docker(ruleset: Ruleset) -> bool:
    """Whether dockerd has put its chains in here (``DOCKER`` in nat or filter)."""
    return any(chain.name == "DOCKER" and chain.table in ("nat", "filter") for chain in ruleset.chains)


def choose_variant(dumps: Mapping[str, bytes | Ruleset]) -> tuple[str, str]:
    """The variant to write to, and one line of warning or "".

    ``dumps``: what ``iptables-nft-save`` (``nft``), ``iptables-legacy-save`` (``legacy``), ``iptables-save``
    (``default``) gave. The one that holds Docker's rules wins; rules in another one are a mix, because a DROP in either
    is final. Tables without rules are no mix. Raises :class:`~vmproxy.errors.Refused` where there is no iptables.
    """
    order = {"nft": 0, "legacy": 1, "default": 2}
    parsed = {name: d if isinstance(d, Ruleset) else parse_save(d) for name, d in dumps.items()}
    names = sorted(parsed, key=lambda name: (order.get(name, 3), name))
    if not names:
        raise Refused("the VM has no iptables", hint="install iptables in the VM")
    if len(names) > 1 and "default" in names and any(parsed["default"] == parsed[n] for n in names if n != "default"):
        names.remove("default")  # it is one of the other two under its plain name
    holders = [name for name in names if holds_docker(parsed[name])]
    if not holders:
        filled = [name for name in names if _filled(parsed[name])]
        chosen = "default" if "default" in parsed else (filled or names)[0]  # dockerd calls plain iptables
        return chosen, "no iptables variant holds Docker's rules"
    chosen = max(holders, key=lambda name: (len(docker_bridges(parsed[name])), -names.index(name)))
    if len(holders) > 1:
        return chosen, f"Docker's rules stand in both {' and '.join(holders)} iptables; vmproxy writes to {chosen} only"
    stale = [name for name in names if name != chosen and _ours(parsed[name])]
    if stale:
        # Two DNATs, one in each, break the connection (LIBRARIES section 2).
        return chosen, f"Docker's rules are in {chosen} iptables, rules of vmproxy's own still in {stale[0]} iptables"
    others = [name for name in names if name != chosen and _filled(parsed[name])]
    if others:
        return chosen, f"Docker's rules are in {chosen} iptables, and {' and '.join(others)} iptables has rules too"
    return chosen, ""


def _ours(ruleset: Ruleset) -> bool:
    return any(chain.name.startswith("VMPROXY-") for chain in ruleset.chains)


def _filled(ruleset: Ruleset) -> bool:
    return any(chain.rules or chain.policy not in ("", "ACCEPT") for chain in ruleset.chains)


def cover(interfaces: Iterable[str], docker: Iterable[str], named: Sequence[str] = ()) -> tuple[str, ...]:
    """The interface words for the jumps: as few as cover every Docker bridge and nothing else.

    ``interfaces``: every interface of the VM; ``docker``: Docker's bridges (:func:`docker_bridges`); ``named``: what
    the user said, taken as it is. ``br-+`` stands for all of Docker's ``br-…`` only while no other ``br-…`` exists.
    Raises :class:`~vmproxy.errors.Refused` where there is no bridge of Docker's, UsageError for a bad name.
    """
    if named:
        return tuple(dict.fromkeys(interface_word(name) for name in named))
    present = set(interfaces)
    known = set(docker)
    bridges = (known & present) or known or ({DEFAULT_BRIDGE} & present)
    if not bridges:
        there = ", ".join(printable(name, limit=20) for name in sorted(present)[:20])
        raise Refused("Docker has no bridge in the VM", where=f"interfaces: {there or 'none'}", hint="--bridge NAME")
    foreign = any(matches(NETWORK_BRIDGES, name) and name not in known for name in present)
    single = sorted(b for b in bridges if foreign or not matches(NETWORK_BRIDGES, b))
    words = sorted(single, key=lambda name: name != DEFAULT_BRIDGE) + ([] if foreign else [NETWORK_BRIDGES])
    for name in single:
        if name.endswith("+"):
            raise Refused("a rule cannot name this bridge", where=printable(name, limit=40), hint="--bridge NAME")
    return tuple(interface_word(name) for name in words)


def is_dockers(rule: Rule, bridges: Iterable[str]) -> bool:
    """Whether a rule of FORWARD is dockerd's (exact shapes; a user's own rule for docker0 is not)."""
    to = target(rule.words)
    if to == "DOCKER" or to.startswith("DOCKER-"):
        return True
    if to not in ("ACCEPT", "DROP"):
        return False
    parsed = options(rule.words)
    ways = [o for o in parsed if o.name in ("-i", "-o")]
    names = {value for o in ways for value in o.values}
    if len(names) != 1 or not names <= {DEFAULT_BRIDGE, *bridges}:
        return False
    (name,) = names
    if to == "ACCEPT" and _leads_in(ways):
        return True  # a published port, before Docker 1.4 had a chain for them
    shapes: tuple[tuple[str, ...], ...] = (
        ("-o", name, "-m", "conntrack", "--ctstate", "RELATED,ESTABLISHED", "-j", "ACCEPT"),
        ("-i", name, "!", "-o", name, "-j", "ACCEPT"),
        ("-i", name, "-o", name, "-j", to),
    )
    return canonical(rule.words) in [canonical(shape) for shape in shapes]


def stays_inside(rule: Rule) -> bool:
    """Whether a rule is only for packets that come from a bridge and go to the very same (``-i X -o X``)."""
    ways = sorted((o for o in options(rule.words) if o.name in ("-i", "-o")), key=lambda o: o.name)
    return len(ways) == _PAIR and ways[0].values == ways[1].values and not any(o.negated for o in ways)


def ends_chain(ruleset: Ruleset, table: str, rule: Rule) -> bool:
    """Whether no packet comes past this rule alive: an unconditional DROP or REJECT, or a jump to a chain with one."""
    return _ends(ruleset, table, rule, 0)


def _ends(ruleset: Ruleset, table: str, rule: Rule, depth: int) -> bool:
    if not _unconditional(rule):
        return False
    to = target(rule.words)
    if to in ("DROP", "REJECT"):
        return True
    known: dict[tuple[str, str], bool] = vars(ruleset).setdefault("_ending", {})  # many rules may lead to one chain
    if (table, to) not in known:
        known[table, to] = False  # a chain that leads to itself ends nothing
        known[table, to] = depth < _MAX_NESTING and _none_passes(ruleset, table, to, depth + 1)
    return known[table, to]


def _none_passes(ruleset: Ruleset, table: str, name: str, depth: int) -> bool:
    chain = ruleset.chain(table, name)
    for rule in chain.rules if chain else ():
        if _ends(ruleset, table, rule, depth):
            return True
        to = target(rule.words)
        if to == "RETURN" or (to == "ACCEPT" and _unconditional(rule)):
            return False
    return False


def _unconditional(rule: Rule) -> bool:
    return all(
        o.name in ("-j", "-g", "--comment", "--reject-with") or (o.name == "-m" and o.values == ("comment",))
        for o in options(rule.words)
    )


__all__ = [
    "DEFAULT_BRIDGE",
    "NETWORK_BRIDGES",
    "Patterns",
    "choose_variant",
    "cover",
    "docker_bridges",
    "ends_chain",
    "holds_docker",
    "interface_word",
    "is_dockers",
    "matches",
    "stays_inside",
]
