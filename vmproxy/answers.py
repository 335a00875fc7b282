"""What the commands that change nothing tell of an open VM, as :mod:`vmproxy.converge` offers it.

Imported while the VM is answering the first look.
"""

from __future__ import annotations

from dataclasses import replace

from vmproxy import guests, preview
from vmproxy import plan as planning
from vmproxy.errors import NoGateway, Refused
from vmproxy.machines import Look
from vmproxy.model import Desired, Facts, Finding, Report, Route
from vmproxy.proof import LEGS, USUAL
from vmproxy.routes import Sighting, agree, choose_gateway, default_routes, link_networks, parse
from vmproxy.scene import Scene, judged, question, report, why_not_asked
from vmproxy.session import Session
from vmproxy.wish import choose, host_notes, index_of


def status(session: Session) -> Report:
    """See :func:`vmproxy.converge.status`."""
    scene = session.booted()
    hint = " ".join(("vmproxy apply --vm", session.name, *scene.facts.needs))
    try:
        desired = planning.desire(scene.facts, scene.guest, scene.wish, scene.variant)
    except NoGateway:
        if scene.facts.live or scene.seen is not None:
            raise
        # Without a record nothing of ours is in these files, wherever the host may be.
        found = [*session.plan(scene, Desired()).drift]
        return _not_as_wished(session, scene, found, hint=f"{hint} --gateway IP")
    made = session.plan(scene, desired)
    found = [*made.drift, *planning.overridden(scene.facts, scene.guest, desired)]
    if desired.door is not None:
        moved = planning.moved_gateway(scene.facts, scene.variant, desired.door)
        if moved:
            found.insert(
                0, Finding(subject="gateway", ok=False, detail=moved, code=planning.DRIFT, hint="vmproxy apply")
            )
        blocked = planning.listener(scene.facts, desired.door)
        if blocked:
            found.append(
                Finding(subject="port", ok=False, detail=blocked, code=planning.DRIFT, hint="--listen-port N")
            )
    scene.warnings += made.warnings
    if not found:
        return report(session.name, scene, "in sync")
    return _not_as_wished(session, scene, found, diff=preview.plan_text(made, scene.hidden), hint=hint)


def _not_as_wished(session: Session, scene: Scene, found: list[Finding], *, hint: str, diff: str = "") -> Report:
    message = "not applied" if scene.seen is None else f"{len(found)} point{'s' if len(found) > 1 else ''} of drift"
    code = planning.DRIFT
    return report(session.name, scene, message, exit=1, code=code, findings=tuple(found), diff=diff, hint=hint)


def verify(session: Session) -> Report:
    """See :func:`vmproxy.converge.verify`."""
    scene = session.booted(with_tools=False)
    if not scene.facts.live:
        raise Refused("files cannot ask a proxy, only a VM that runs can", hint="vmproxy status tells of files")
    put = question(scene)
    session.tell("asking the proxy from each vantage point")
    findings = tuple(replace(f, ok=judged(f, scene)) for f in session.machine.prove(put))
    for leg in USUAL:
        if leg not in put.legs:
            scene.warnings.append(f"not asked {LEGS[leg]}: {why_not_asked(scene, leg)}")
    bad = next((finding for finding in findings if not finding.ok), None)
    if bad is not None:
        return report(session.name, scene, bad.detail, exit=1, code="E_PROOF", findings=findings, hint=bad.hint)
    return report(session.name, scene, "the proxy answers from everywhere", findings=findings)


def env(session: Session) -> Report:
    """See :func:`vmproxy.converge.env`."""
    from vmproxy import containerview

    configs = guests.daemon_configs()
    look = Look(root=False, files=(*guests.files(), *configs), paths=guests.paths(), configs=configs)
    facts = session.observe(look)
    guest, _reason = guests.detect(facts, session.settings.guest)
    seen = planning.seen_wish(facts, guest)
    wish = choose(session.settings, seen)
    if wish.hidden_credentials:
        raise Refused(
            "the proxy's credentials are readable only for root in the VM",
            where=guest.DAEMON_CONFIG if wish.via == "daemon-json" else guest.WISH_FILE,
            hint="say them again in VMPROXY_PROXY",
        )
    index = index_of(session.settings, wish)
    told = containerview.container_view(facts, wish, names=wish.names, pip_index=index)
    warnings = (*host_notes(session.settings, wish, seen), *containerview.notes(wish, names=wish.names))
    return Report(target=session.name, variables=told, warnings=warnings)


def detect_gateway(session: Session, probe_port: int | None) -> Sighting:
    """See :func:`vmproxy.converge.detect_gateway`."""
    facts = session.observe(Look(root=False, save=True))
    if not facts.live:
        hint = "vmproxy detect-gateway --vm NAME, with the VM that runs"
        return Sighting(vm=session.name, error=NoGateway("files have no route table", hint=hint))
    candidates = default_routes(facts.routes)
    answering = None
    if probe_port is not None:
        hosts = tuple(dict.fromkeys(route.gateway for route in candidates if route.gateway))
        answering = session.machine.reach(hosts, probe_port)
    try:
        choice = choose_gateway(facts.routes)
        if facts.route_save:
            choice = agree(choice, choose_gateway(_saved_routes(facts)))
    except NoGateway as error:
        return Sighting(vm=session.name, error=error, candidates=candidates, answering=answering)
    near = link_networks(facts.routes, choice.gateway)
    return Sighting(vm=session.name, choice=choice, candidates=candidates, answering=answering, networks=near)


def _saved_routes(facts: Facts) -> tuple[Route, ...]:
    """The routes of the VM's ``ip route save`` bytes; of its text where those cannot be read (a foreign byte order)."""
    try:
        return parse(facts.route_save)
    except NoGateway:
        raise
    except Refused:
        return facts.routes
