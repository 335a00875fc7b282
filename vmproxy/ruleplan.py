"""The rules in a plan, both families of addresses: what differs, what is in the way, texts there and back. PURE."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from functools import lru_cache

from vmproxy import rules
from vmproxy.errors import Refused
from vmproxy.model import Desired, Door, Facts, Finding, RuleChange
from vmproxy.values import dataclass

_REMEMBERED_BYTES = 64 << 10


@dataclass(frozen=True, kw_only=True)
class _Part:
    """One family's part. ``do`` and ``undo`` by table as :class:`~vmproxy.model.RuleChange` names them."""

    do: Mapping[str, bytes] = field(default_factory=dict)
    undo: Mapping[str, bytes] = field(default_factory=dict)
    lines: tuple[str, ...] = ()
    drift: tuple[Finding, ...] = ()
    warnings: tuple[str, ...] = ()


def change(
    facts: Facts, desired: Desired, variant: str, *, force: bool
) -> tuple[RuleChange | None, list[Finding], tuple[str, ...]]:
    """The change of rules, None where nothing differs; each point of drift; warnings. Raises Refused."""
    if variant not in facts.dumps:
        failure = next(iter(facts.dump_errors.values()), "")
        if desired.door is None or not facts.live:
            return None, [], (f"the VM's firewall rules cannot be read: {failure}",) if failure else ()
        raise Refused(failure or "the VM has no iptables-save", where="iptables", hint="install iptables in the VM")
    parts = [_part(facts, facts.dumps[variant], desired.door, desired, "", force=force)]
    dump6 = facts.dumps6.get(variant)
    if dump6 is not None:
        parts.append(_part(facts, dump6, desired.door.six if desired.door else None, desired, "6", force=force))
    drift = [finding for part in parts for finding in part.drift]
    warnings = tuple(line for part in parts for line in part.warnings)
    do = {table: text for part in parts for table, text in part.do.items()}
    if not any(do.values()):
        return None, drift, warnings
    made = RuleChange(
        variant=variant,
        do=do,
        undo={table: text for part in parts for table, text in part.undo.items()},
        seen=rules.cas_text(facts.dumps[variant]),
        seen6=rules.cas_text(dump6) if dump6 is not None else None,
        lines=tuple(line for part in parts for line in part.lines),
    )
    return made, drift, warnings


def _part(facts: Facts, dump: bytes, door: Door | None, desired: Desired, mark: str, *, force: bool) -> _Part:
    named = door.bridges if door is not None and desired.bridges_named else ()
    interfaces = tuple(sorted(facts.interfaces))
    compared = _compared if len(dump) <= _REMEMBERED_BYTES else _compared.__wrapped__
    found = compared(rules.settled(dump), door, interfaces, named, mark, force=force)
    if found.do and door is not None and (blocked := listener(facts, door)):
        raise Refused(blocked, hint="--listen-port N")
    return found


@lru_cache(maxsize=32)  # of many VMs of one kind most have the same rules, and are to have the same
def _compared(
    dump: bytes, door: Door | None, interfaces: tuple[str, ...], named: tuple[str, ...], mark: str, *, force: bool
) -> _Part:
    observed = rules.parse_save(dump)
    drift = rules.drift(observed, door, interfaces, named)
    warnings = _conflicts(observed, door, force=force)
    made = rules.changes(observed, door)
    if not made:
        return _Part(drift=drift, warnings=warnings)
    undo = rules.inverse(observed, door)
    return _Part(
        do={f"filter{mark}": made.filter, f"nat{mark}": made.nat},
        undo={f"filter{mark}": undo.filter, f"nat{mark}": undo.nat},
        lines=tuple(f"{line[0]} ip6tables{line[1:]}" for line in made.lines) if mark else made.lines,
        drift=drift,
        warnings=warnings,
    )


def _conflicts(observed: rules.Ruleset, door: Door | None, *, force: bool) -> tuple[str, ...]:
    """Other people's rules in the door's way: warnings, or Refused."""
    warnings: list[str] = []
    for conflict in rules.conflicts(observed, door) if door is not None else ():
        if conflict.ok:
            warnings.append(conflict.detail)
        elif force:
            warnings.append(f"{conflict.detail}; going on as told")
        else:
            raise Refused(conflict.detail, where=conflict.subject, hint=conflict.hint or "--force, or --listen-port N")
    return tuple(warnings)


def listener(facts: Facts, door: Door) -> str:
    """What already listens at the door's port on an address that containers use, in one line, else ""."""
    bridges = {address.cidr.partition("/")[0] for address in facts.addresses if address.interface in facts.bridges}
    for host, port in facts.listeners:
        if port == door.listen_port and (host in ("0.0.0.0", "::") or host in bridges):  # noqa: S104 - compared, not bound
            return f"something in the VM already listens at {host}:{port}"
    return ""
