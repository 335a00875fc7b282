"""Other people's rules in the way of the door: what would catch a container's connection before it (F20), and what the
classic guide left behind (F21). Reported, never touched.
"""

from __future__ import annotations

import ipaddress
import re

from vmproxy.dockerrules import DEFAULT_BRIDGE, Patterns, docker_bridges, matches
from vmproxy.door import check, is_own_chain, is_own_jump
from vmproxy.iptsave import Option, Ruleset, canonical, options, target
from vmproxy.model import Door, Finding, Rule, printable
from vmproxy.values import dataclass

CONFLICT = "E_CONFLICT"
GUIDE = "W_GUIDE"
_MAX_STEPS = 200_000
_MAX_DEPTH = 16
_DIGITS = re.compile(r"[0-9]{1,5}\Z")
_MODULES = frozenset(("tcp", "comment", "addrtype", "multiport"))


@dataclass(frozen=True, kw_only=True)
class _Flow:
    """A container's first packet to the door: in on ``interface``, TCP to the VM's own ``address``:``port``."""

    interface: str
    address: str
    port: int


def conflicts(observed: Ruleset, door: Door) -> tuple[Finding, ...]:
    """Foreign rules that concern the door.

    ``ok`` False (code ``E_CONFLICT``): a DNAT or REDIRECT that would take the same connection, quoted. ``ok`` True
    (code ``W_GUIDE``): the classic guide's own rules for this gateway and port, which do harm but do not hinder.
    """
    check(door)
    guide = _guide_rules(observed, door)
    known, covered, budget = frozenset(guide), Patterns(door.bridges), _Budget()
    bridges = {bridge for bridge in (*docker_bridges(observed), DEFAULT_BRIDGE) if covered.match(bridge)}
    bridges |= {word for word in door.bridges if not word.endswith("+")}
    found: dict[tuple[str, Rule], Finding] = {}
    for bridge in sorted(bridges, key=lambda name: (name != DEFAULT_BRIDGE, name)):
        flow = _Flow(interface=bridge, address=door.bridge_address, port=door.listen_port)
        for rule in _catchers(observed, "PREROUTING", flow, budget):
            if ("nat", rule) not in known:
                found["nat", rule] = Finding(
                    subject=f"rules nat {printable(rule.chain, limit=40)}",
                    ok=False,
                    detail=f"another rule takes port {door.listen_port}: {_quote('nat', rule)}",
                    hint="--listen-port N, or --force",
                    code=CONFLICT,
                )
    for table, rule in guide:
        found[table, rule] = Finding(
            subject=f"rules {table} {rule.chain}",
            ok=True,
            detail=f"a rule of the classic guide is there, and stays: {_quote(table, rule)}",
            hint=_HARM[table, rule.chain],
            code=GUIDE,
        )
    return tuple(found.values())


_HARM = {
    ("nat", "PREROUTING"): "delete it by hand: it takes containers' connections to that port of every host",
    ("nat", "POSTROUTING"): "delete it by hand: it hides client addresses of published ports",
    ("filter", "FORWARD"): "delete it by hand: it can open the host's proxy to the VM's other networks",
}


def _guide_rules(observed: Ruleset, door: Door) -> tuple[tuple[str, Rule], ...]:
    """The three rules of the guide, for any of Docker's bridges, as they are in FORWARD, POSTROUTING, PREROUTING.

    It was written for IPv4.
    """
    if ":" in door.gateway:
        return ()
    bridges = {DEFAULT_BRIDGE, *docker_bridges(observed)}
    ports = {str(door.port), str(door.listen_port)}
    to = f"{door.gateway}:{door.port}"
    shapes: dict[tuple[str, str], list[tuple[str, ...]]] = {
        ("filter", "FORWARD"): [("-d", f"{door.gateway}/32", "-p", "tcp", "--dport", p, "-j", "ACCEPT") for p in ports],
        ("nat", "POSTROUTING"): [("-o", b, "-j", "MASQUERADE") for b in bridges],
        ("nat", "PREROUTING"): [
            ("-i", b, "-p", "tcp", "--dport", p, "-j", "DNAT", "--to-destination", to) for b in bridges for p in ports
        ],
    }
    found: list[tuple[str, Rule]] = []
    for (table, name), words in shapes.items():
        forms = {canonical(one) for one in words}
        chain = observed.chain(table, name)
        found += [(table, rule) for rule in (chain.rules if chain else ()) if canonical(rule.words) in forms]
    return tuple(dict.fromkeys(found))


class _Budget:
    """How many rules may still be looked at, for all bridges together: a hostile dump has many of both, and its jumps
    could double at every level."""

    left = _MAX_STEPS


def _catchers(ruleset: Ruleset, name: str, flow: _Flow, budget: _Budget, depth: int = 0) -> list[Rule]:
    """DNAT and REDIRECT rules that the flow may come to, from one nat chain on; a sure verdict ends the walk."""
    chain = ruleset.chain("nat", name)
    found: list[Rule] = []
    for rule in chain.rules if chain and depth < _MAX_DEPTH else ():
        budget.left -= 1
        if budget.left < 0:
            break
        sure = _match(rule, flow)
        to = target(rule.words)
        if sure is False or is_own_jump(rule) or is_own_chain(to):
            continue
        if to in ("DNAT", "REDIRECT"):
            found.append(rule)
        elif to not in ("RETURN", "ACCEPT", "DROP"):
            found += _catchers(ruleset, to, flow, budget, depth + 1)
            continue
        if sure:
            break
    return found


def _match(rule: Rule, flow: _Flow) -> bool | None:
    """Whether the flow matches: None where that cannot be told (its source, a set, a mark…)."""
    answers = [_match_option(option, flow) for option in options(rule.words)]
    if False in answers:
        return False
    return None if None in answers else True


def _match_option(option: Option, flow: _Flow) -> bool | None:
    value = option.values[0] if option.values else ""
    if option.name in ("-j", "-g", "--comment", "--to-destination", "--to-ports", "--random", "--persistent"):
        return True
    if option.name == "-m":
        return True if value in _MODULES else None
    if option.name == "-i":
        return matches(value, flow.interface) is not option.negated
    if option.name == "-o":
        return False
    if option.name == "-p":
        return (value in ("tcp", "6", "all", "0")) is not option.negated
    if option.name == "-d":
        return _inside(flow.address, value) is not option.negated
    if option.name in ("--dport", "--dports"):
        return _port_in(flow.port, value) is not option.negated
    if option.name == "--dst-type":
        return ("LOCAL" in value.split(",")) is not option.negated
    return None


def _inside(address: str, network: str) -> bool:
    try:
        return ipaddress.ip_address(address) in ipaddress.ip_network(network, strict=False)
    except ValueError:
        return False


def _port_in(port: int, text: str) -> bool:
    for part in text.split(","):
        low, colon, high = part.partition(":")
        ends = (low or "0", (high or "65535") if colon else low)
        if all(map(_DIGITS.match, ends)) and int(ends[0]) <= port <= int(ends[1]):
            return True
    return False


def _quote(table: str, rule: Rule) -> str:
    return printable(f"-t {table} -A {rule.chain} {' '.join(rule.words)}")
