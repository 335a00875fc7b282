"""What is wanted in a VM, and what differs from what is there. PURE: facts in, plan out.

``desire`` makes one value of all that is wanted; its zero value means "gone". ``diff`` compares it with a look.
``apply``,
``status``, ``--dry-run``, ``remove`` and rollback are ends of this one pipeline.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace

from vmproxy import blocks, daemonjson, ipv6, managed, ruleplan, rules
from vmproxy.errors import NoGateway, Refused
from vmproxy.guests import ADDRESS_AT_BOOT, Guest, Order, read_payload
from vmproxy.managed import DRIFT
from vmproxy.model import (
    Desired,
    Door,
    Facts,
    FileChange,
    Finding,
    Plan,
    ProxyURL,
    Wish,
    printable,
)
from vmproxy.proxyenv import is_loopback, merge_no_proxy, variables, with_host
from vmproxy.routes import choose_gateway
from vmproxy.ruleplan import listener
from vmproxy.values import dataclass
from vmproxy.wish import record, recorded

_SAY = "--gateway IP, this host as the VM sees it"
_LOCAL_NAMES = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True, kw_only=True)
class View:
    """What the wish means in one VM: how the VM and how containers reach the proxy.

    ``door`` None: the proxy is elsewhere and needs none. ``gateway`` is the host's address, "" where it does not
    matter.
    """

    proxy: ProxyURL
    https_proxy: ProxyURL | None
    door: Door | None
    gateway: str
    bridge_address: str


def seen_wish(facts: Facts, guest: Guest) -> Wish | None:
    """The wish that an earlier apply recorded in this VM, with its credentials. Raises Refused, ForeignFile.

    Each block carries it: another tool may have rewritten one of the files whole (docker-machine does).
    """
    held: dict[str, str] = {}
    records = []
    for path in (guest.WISH_FILE, *guest.FILES):
        file = facts.files.get(path)
        found = blocks.find(file.content, path=path) if file and file.content else None
        if found:
            held = held or read_payload(found.payload)
            records += [found.record] if found.record not in records else []
    if any(data.get("via") == daemonjson.VIA for data in records):
        held = {**held, **daemonjson.held(facts, guest)}
    wishes = [wish for data in records if (wish := recorded(data, held))]
    return wishes[0] if wishes else None


def view(facts: Facts, wish: Wish, variant: str) -> View:
    """How the proxy is reached in this VM. Raises NoGateway, Refused."""
    here = bool(gateway := host_gateway(facts, wish))
    if not here:
        gateway = wish.gateway
        if wish.forward:
            gateway = gateway or _resolve(wish.proxy.host, facts)
    address = bridge_address(facts, wish, variant) or ("" if facts.live else ADDRESS_AT_BOOT)
    proxy, https = wish.proxy, wish.https_proxy
    if here:
        proxy = with_host(proxy, gateway)
    if https is not None and is_loopback(https.host):
        https = with_host(https, gateway or gateway_of(facts))
    door = None
    if here or wish.forward:
        if not address:
            raise Refused(
                "Docker has no bridge with an IPv4 address in the VM",
                where=f"bridges: {', '.join(sorted(facts.bridges)) or 'none'}",
                hint="start Docker in the VM, or --bridge NAME",
            )
        if ipaddress.ip_address(gateway).version != 4:
            raise NoGateway("the door is IPv4 only, and the gateway is not", where=gateway, hint="--gateway IP")
        door = Door(
            gateway=gateway,
            port=proxy.port,
            listen_port=wish.listen_port or proxy.port,
            bridge_address=address,
            bridges=rules.cover(facts.interfaces, docker_bridges(facts, variant), wish.bridges),
        )
        door = replace(door, six=ipv6.door(facts, wish, variant, door))
    return View(proxy=proxy, https_proxy=https, door=door, gateway=gateway, bridge_address=address)


def host_gateway(facts: Facts, wish: Wish) -> str:
    """The host's address as the VM sees it where the proxy is on the host, also where that very address was named; ""
    where the proxy is elsewhere. Raises NoGateway."""
    if is_loopback(wish.proxy.host):
        return wish.gateway or gateway_of(facts)
    here = wish.gateway
    if not here:
        with suppress(NoGateway):
            here = gateway_of(facts)
    return here if here == wish.proxy.host else ""


def gateway_of(facts: Facts) -> str:
    """The gateway of the VM's routes. Raises NoGateway, for files too, which have none."""
    if not facts.live:
        raise NoGateway(
            "files have no route table to tell the host's address", hint=f"{_SAY}, or --proxy URL of one elsewhere"
        )
    return choose_gateway(facts.routes).gateway


def _resolve(host: str, facts: Facts) -> str:
    try:
        return str(ipaddress.IPv4Address(host))
    except ValueError:
        pass
    if not facts.resolved:
        raise NoGateway("the VM cannot resolve the proxy's name", where=printable(host), hint="--gateway IP")
    return facts.resolved[0]


def docker_bridges(facts: Facts, variant: str) -> tuple[str, ...]:
    """The bridges that Docker's own rules name, of those there are."""
    if variant not in facts.dumps:
        return ()
    return rules.docker_bridges(rules.parse_save(facts.dumps[variant]))


def bridge_address(facts: Facts, wish: Wish, variant: str) -> str:
    """The IPv4 address of Docker's default bridge (or of the first one named), "" where there is none."""
    order = (*wish.bridges, "docker0", *docker_bridges(facts, variant))
    for name in order:
        for address in facts.addresses:
            if address.interface == name and address.family == "inet":
                return address.cidr.partition("/")[0]
    return ""


def daemon_variables(seen: View, wish: Wish) -> dict[str, str]:
    """The proxy variables for the VM's daemon."""
    return variables(seen.proxy, seen.https_proxy, merge_no_proxy(",".join(wish.no_proxy), _LOCAL_NAMES))


def desire(facts: Facts, guest: Guest, wish: Wish, variant: str) -> Desired:
    """All that is wanted in this VM for a wish. Raises NoGateway, Refused."""
    seen = view(facts, wish, variant)
    environment = daemon_variables(seen, wish)
    secret = seen.proxy.has_credentials or (seen.https_proxy is not None and seen.https_proxy.has_credentials)
    door, program = _as_written(facts, guest, wish, seen.door, variant)
    order = Order(environment=environment, door=door, variant=program, record=record(wish), secret=secret)
    given, warnings = managed.for_tools(facts, wish.tools, environment, secret=secret, said=wish.tools_said)
    if wish.via == daemonjson.VIA:
        daemonjson.must_know(facts, guest)
        proxies = daemonjson.proxies(environment)
        told = {**order.record, daemonjson.RECORD: daemonjson.record(facts, guest, proxies)}
        made = guest.render(replace(order, environment={}, record=told, secret=False), facts)
        return Desired(
            blocks=(*made, *given),
            door=seen.door,
            bridges_named=bool(wish.bridges),
            proxies=proxies,
            warnings=warnings,
        )
    made = guest.render(order, facts)
    names = {name for block in made for name in block.names}
    exported = {k: v for block in made for k, v in read_payload(block.payload).items() if k in names}
    return Desired(
        blocks=(*made, *given),
        door=seen.door,
        bridges_named=bool(wish.bridges),
        environment=exported or environment,
        warnings=warnings,
    )


def _as_written(facts: Facts, guest: Guest, wish: Wish, door: Door | None, variant: str) -> tuple[Door | None, str]:
    """The door and the variant for the boot script. One that was written before the VM had booted finds docker0's
    address by itself, and calls iptables by its plain name: that stays so, as long as docker0's is the address that is
    wanted. (Rules that are missing where they are to be are drift of their own.)"""
    if door is None or wish.bridges or not facts.live:
        return door, variant
    own = {a.cidr.partition("/")[0] for a in facts.addresses if a.interface == rules.DEFAULT_BRIDGE}
    files = (facts.files.get(path) for path in guest.FILES)
    found = (blocks.find(file.content, path=file.path) for file in files if file and file.content)
    held = b"".join(block.payload for block in found if block)
    if door.bridge_address not in own or ADDRESS_AT_BOOT.encode() not in held:
        return door, variant
    plain = f"iptables-{variant}".encode() not in held
    return replace(door, bridge_address=ADDRESS_AT_BOOT), "default" if plain else variant


def diff(
    facts: Facts, guest: Guest, desired: Desired, variant: str, *, force: bool = False, restart_always: bool = False
) -> Plan:
    """What has to change, and each point of drift in words. Raises ForeignFile, Refused where it cannot be made to
    work."""
    files, drift = managed.changes(facts, guest, desired)
    config, found, lost = daemonjson.change(facts, guest, desired, force=force)
    drift += found
    change, more, warnings = ruleplan.change(facts, desired, variant, force=force)
    warnings = (*desired.warnings, *lost, *warnings)
    drift += more
    restart, stale = _restart(facts, guest, desired, files, config, restart_always=restart_always)
    if config is not None:
        # The record knows how to undo it: it comes before, and goes after.
        files = (*files, config) if desired.proxies is not None else (config, *files)
    if restart:
        managed.must_start_again(facts, guest)
    drift += stale
    drift += [
        Finding(
            subject=f"file {path}",
            ok=False,
            code=DRIFT,
            detail="vmproxy's backup of an earlier image"
            if path in facts.superseded
            else "left behind by a run that was cut short",
        )
        for path in facts.leftovers
    ]
    return Plan(
        files=files, rules=change, restart=restart, leftovers=facts.leftovers, drift=tuple(drift), warnings=warnings
    )


# ---- rules ----------------------------------------------------------------------------------------------------------


def moved_gateway(facts: Facts, variant: str, door: Door) -> str:
    """Where the rules in place lead to another address than the gateway of now (a DHCP change, F57), in one line,
    else ""."""
    if variant not in facts.dumps:
        return ""
    chain = rules.parse_save(facts.dumps[variant]).chain("nat", rules.PREROUTING)
    for rule in chain.rules if chain else ():
        if "--to-destination" in rule.words[:-1]:
            there = rule.words[rule.words.index("--to-destination") + 1].rpartition(":")[0]
            if there and there != door.gateway:
                return f"the gateway is now {door.gateway}; the rules lead to {printable(there, limit=40)}"
    return ""


# ---- the daemon -----------------------------------------------------------------------------------------------------


def _restart(
    facts: Facts,
    guest: Guest,
    desired: Desired,
    files: tuple[FileChange, ...],
    config: FileChange | None,
    *,
    restart_always: bool,
) -> tuple[bool, list[Finding]]:
    if facts.daemon is None:
        return False, []
    running = facts.daemon.environment
    if desired.proxies is not None:
        why = daemonjson.pending(facts, guest, desired.proxies, config)
        if not why:
            return False, []
        detail = f"the running Docker daemon has {why} (restart pending)"
        hint = "vmproxy apply" if files or config else "vmproxy apply --restart always"
        return True, [Finding(subject="daemon", ok=False, code=DRIFT, detail=detail, hint=hint)]
    if desired.environment is not None:
        differing = sorted(name for name, value in desired.environment.items() if running.get(name) != value)
        if not differing:
            return False, []
        detail = f"the running Docker daemon has other values of {', '.join(differing)} (restart pending)"
        hint = "vmproxy apply" if files else "vmproxy apply --restart always"
        return True, [Finding(subject="daemon", ok=False, code=DRIFT, detail=detail, hint=hint)]
    stale = _stale(running, files, guest, facts, restart_always=restart_always)
    if not stale and not daemonjson.still(facts, guest, config):
        return False, []
    detail = "the running Docker daemon still has our variables (restart pending)"
    return True, [
        Finding(subject="daemon", ok=False, code=DRIFT, detail=detail, hint="vmproxy remove --restart always")
    ]


def overridden(facts: Facts, guest: Guest, desired: Desired) -> tuple[Finding, ...]:
    """What in the VM wins over the daemon's variables as wanted, or stops Docker from starting with them."""
    if desired.proxies is not None:
        return daemonjson.overrides(facts, guest, desired.proxies, ours=True)
    if desired.environment is None:
        return ()
    flags = daemonjson.overrides(facts, guest, daemonjson.proxies(desired.environment), ours=False)
    return (*guest.overrides(facts, desired.environment), *flags)


def not_taken(facts: Facts, desired: Desired) -> Finding | None:
    """A daemon that has been restarted and still has other variables than those wanted; None where all is well."""
    if facts.daemon is None:
        return None
    running = facts.daemon.environment
    names = sorted(name for name, value in (desired.environment or {}).items() if running.get(name) != value)
    hint = "look for http_proxy in the VM's Docker service"
    if desired.proxies is not None:
        names = sorted(daemonjson.differing(facts, desired.proxies))
        hint = "--via drop-in, or look for another daemon.json that this Docker reads"
    if not names:
        return None
    detail = f"Docker was restarted and has other values of {', '.join(names)}: something in the VM wins over vmproxy's"
    return Finding(subject="daemon", ok=False, detail=detail, hint=hint)


def _stale(
    running: Mapping[str, str], files: tuple[FileChange, ...], guest: Guest, facts: Facts, *, restart_always: bool
) -> bool:
    """Whether the daemon still has what a removed block gave it.

    Without a block nothing says which values were ours; then only ``--restart always`` makes up for a restart that
    was put off,
    where the daemon has a proxy that the guest's file does not name.
    """
    before = [change.before for change in files if change.before.path in guest.FILES and change.before.content]
    gone = [blocks.find(file.content or b"", path=file.path) for file in before]
    ours = {name: value for block in gone if block for name, value in read_payload(block.payload).items()}
    if ours or any(file.path == guest.WISH_FILE for file in before):
        return any(running.get(name) == value for name, value in ours.items())
    return restart_always and unnamed_proxy(facts, guest)


def unnamed_proxy(facts: Facts, guest: Guest) -> bool:
    """Whether Docker runs with a proxy that no file names any more: after a ``remove`` whose restart was put off."""
    if facts.daemon is None:
        return False
    if daemonjson.unnamed(facts, guest):
        return True
    ours = [(file.content or b"") for path in guest.FILES if (file := facts.files.get(path)) is not None]
    texts = (*ours, *facts.texts.values())
    environment = facts.daemon.environment
    values = {value for name, value in environment.items() if value and name.lower() in ("http_proxy", "https_proxy")}
    return any(not any(value.encode("utf-8", "surrogateescape") in text for text in texts) for value in values)


# ---- what the VM's disk says ----------------------------------------------------------------------------------------


def disk(facts: Facts, guest: Guest) -> tuple[str, bool]:
    """The mount that holds the guest's lasting files: a warning where it does not outlive a reboot, and whether it
    is read-only."""
    best = managed.mount_of(facts, facts.real.get(guest.PERSISTENT, guest.PERSISTENT))
    if best is None:
        return "", False
    lost = (
        f"{guest.PERSISTENT} is not on a lasting disk ({printable(best.fstype, limit=20)}): a reboot forgets the change"
    )
    return (lost if best.fstype in managed.IN_RAM else ""), "ro" in best.options


__all__ = [
    "DRIFT",
    "View",
    "bridge_address",
    "daemon_variables",
    "desire",
    "diff",
    "disk",
    "gateway_of",
    "listener",
    "moved_gateway",
    "not_taken",
    "overridden",
    "seen_wish",
    "unnamed_proxy",
    "view",
]
