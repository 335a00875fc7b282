"""One look at one VM with all that follows from it: which guest, which variant, which wish, what to ask. PURE."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field

from vmproxy import blocks, cachehit, guests, preview, rules
from vmproxy import plan as planning
from vmproxy.errors import ForeignFile, VmproxyError
from vmproxy.guests import Guest
from vmproxy.model import Facts, Finding, Report, Settings, Wish, printable
from vmproxy.proof import Question
from vmproxy.proof import question as ask_proxy
from vmproxy.wish import choose, host_notes


@dataclass(kw_only=True)
class Scene:
    """``variant`` is that of iptables to write to; ``seen`` the wish recorded in the VM, ``wish`` the one of now.

    ``cache_object`` is what a proof fetches twice, "" for one that any proxy can pass.
    """

    facts: Facts
    guest: Guest
    variant: str
    seen: Wish | None
    wish: Wish
    cache_object: str = ""
    warnings: list[str] = field(default_factory=list)

    @property
    def gateway(self) -> str:
        """The host's address, "" where it cannot be told."""
        try:
            return self.wish.gateway or planning.gateway_of(self.facts)
        except VmproxyError:
            return ""

    @property
    def hidden(self) -> tuple[str, ...]:
        """What must not be shown: every spelling of the credentials of the wish and of the one recorded."""
        both = (self.wish, self.seen) if self.seen else (self.wish,)
        return preview.secrets(*(proxy for wish in both for proxy in (wish.proxy, wish.https_proxy)))

    @property
    def variant_with_ours(self) -> str:
        """The variant that has chains of ours, else the one chosen: Docker may have changed its variant since."""
        for variant, dump in self.facts.dumps.items():
            if b"VMPROXY-" in dump:
                return variant
        return self.variant


def read(facts: Facts, settings: Settings) -> Scene:
    """What a look means. Raises Refused, UsageError."""
    guest, _reason = guests.detect(facts, settings.guest)
    variant, warning = rules.choose_variant(facts.dumps) if facts.dumps else ("default", "")
    seen = planning.seen_wish(facts, guest)
    wish = choose(settings, seen)
    ours = (*_unknown_bridges(facts, settings.bridges), *_of_other_guests(facts, guest))
    warnings = [text for text in (warning, *host_notes(settings, wish, seen), *ours, *facts.notes) if text]
    return Scene(
        facts=facts,
        guest=guest,
        variant=variant,
        seen=seen,
        wish=wish,
        cache_object=settings.cache_object,
        warnings=warnings,
    )


def _unknown_bridges(facts: Facts, named: tuple[str, ...]) -> tuple[str, ...]:
    """One line for each bridge said now that a VM with a running Docker does not have; it may come to be later."""
    if facts.daemon is None:
        return ()
    missing = [name for name in named if not name.endswith("+") and name not in facts.interfaces]
    there = ", ".join(sorted(facts.bridges)) or "none"
    return tuple(f"there is no bridge {printable(name, limit=40)} in the VM (bridges: {there})" for name in missing)


def _of_other_guests(facts: Facts, guest: Guest) -> tuple[str, ...]:
    """One line for each file that has a block of ours and that a VM of this kind does not read: written when the VM had
    another init, or was said to be of another kind. Nobody else tells of it, and nothing takes it away."""
    found = []
    for path in guests.files():
        file = facts.files.get(path)
        if path in guest.FILES or file is None or not file.content:
            continue
        with contextlib.suppress(ForeignFile):
            if blocks.find(file.content, path=path):
                kinds = " or ".join(name for name in guests.NAMES if path in guests.load(name).FILES)
                found.append(f"{path} has a block of ours for another kind of VM: vmproxy remove --guest {kinds}")
    return tuple(found)


def docker_ready(facts: Facts) -> bool:
    """Whether dockerd runs and has made its bridge and its rules."""
    if facts.daemon is None or not facts.bridges:
        return False
    return any(rules.holds_docker(rules.parse_save(dump)) for dump in facts.dumps.values())


def coming(scene: Scene) -> bool:
    """Whether rules are missing that the VM makes by itself when it boots: its boot script is as wished, and may still
    be at work."""
    if not scene.facts.live or scene.seen is None:
        return False
    try:
        desired = planning.desire(scene.facts, scene.guest, scene.wish, scene.variant)
        made = planning.diff(scene.facts, scene.guest, desired, scene.variant, force=True)
    except VmproxyError:
        return False  # who asks further is told that
    own = any(change.before.path in scene.guest.FILES for change in made.files)
    return desired.door is not None and made.rules is not None and not own


def question(scene: Scene) -> Question:
    """Where to ask in this VM; only the legs that can be asked. Raises NoGateway, Refused."""
    seen = planning.view(scene.facts, scene.wish, scene.variant)
    legs = ["vm"]
    if scene.facts.daemon is not None:
        if not _default_left_out(scene):
            legs.append("bridge")
        if seen.door is None or rules.NETWORK_BRIDGES in seen.door.bridges:
            legs.append("network")
        # A container on docker0 has an IPv6 address only where docker0 itself has one.
        six = seen.door.six.bridge_address if seen.door and seen.door.six and "bridge" in legs else ""
        at = [one.cidr.partition("/")[0] for one in scene.facts.addresses if one.interface == rules.DEFAULT_BRIDGE]
        if six in at:
            legs.append("bridge6")
    inside = (seen.door.bridge_address, seen.door.listen_port) if seen.door else (seen.proxy.host, seen.proxy.port)
    return ask_proxy(
        seen.proxy,
        vm_host=seen.proxy.host,
        vm_port=seen.proxy.port,
        container_host=inside[0],
        container_port=inside[1],
        container_host6=seen.door.six.bridge_address if seen.door and seen.door.six else "",
        fetch=cachehit.request(scene.cache_object) if scene.cache_object else b"",
        legs=[*legs[1:], legs[0]] if scene.cache_object else legs,  # so that a container has the first of all hits
    )


def _default_left_out(scene: Scene) -> bool:
    """Whether the user named bridges and Docker's default one is there, but not among them: it has no door."""
    named, usual = scene.wish.bridges, rules.DEFAULT_BRIDGE
    covered = any(usual.startswith(name[:-1]) if name.endswith("+") else name == usual for name in named)
    return bool(named) and usual in scene.facts.bridges and not covered


def why_not_asked(scene: Scene, leg: str) -> str:
    """Why :func:`question` leaves out ``leg``."""
    if scene.facts.daemon is None:
        return "Docker does not run in the VM"
    if leg == "bridge":
        return f"{rules.DEFAULT_BRIDGE} is not among the bridges covered by name"
    return "a new network would not be among the bridges covered by name"


def judged(finding: Finding, scene: Scene) -> bool:
    """A leg is good where a proxy answered; a proxy whose URL says https speaks TLS rightly."""
    return finding.ok or (finding.code == "tls" and scene.wish.proxy.scheme == "https")


def report(
    target: str,
    scene: Scene,
    message: str,
    *,
    changed: bool = False,
    exit: int = 0,
    code: str = "OK",
    hint: str = "",
    findings: tuple[Finding, ...] = (),
    diff: str = "",
) -> Report:
    """How a command ended in this VM, with the gateway and the warnings of its scene."""
    return Report(
        target=target,
        ok=exit == 0,
        exit=exit,
        code=code,
        changed=changed,
        message=message,
        hint=hint,
        findings=findings,
        diff=diff,
        warnings=tuple(dict.fromkeys(scene.warnings)),
        gateway=scene.gateway,
    )
