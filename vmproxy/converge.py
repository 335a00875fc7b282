"""The story: connect, look, plan, preview, change, look again, prove; and back.

Each function tells it for one VM and gives a :class:`~vmproxy.model.Report`; it raises what is in
:mod:`vmproxy.errors`. Nothing here prints; ``progress`` hears each step.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from vmproxy import guests, machines, preview, rules, targets, transports
from vmproxy import plan as planning
from vmproxy.errors import (
    Busy,
    LostContact,
    NoGateway,
    NoProxy,
    Refused,
    RolledBack,
    Unreachable,
    Untrusted,
    UsageError,
    VmproxyError,
)
from vmproxy.guests import Guest
from vmproxy.machines import Look, Machine, Outcome, Terms
from vmproxy.model import Desired, Event, Facts, Finding, Plan, Report, Settings, Target, Wish, printable
from vmproxy.proof import LEGS, Question, question
from vmproxy.proxyenv import is_loopback
from vmproxy.routes import Sighting, agree, choose_gateway, default_routes, parse
from vmproxy.wish import choose, differs_from_host

Progress = Callable[[Event], None]
Confirm = Callable[[str], bool]
Ask = Callable[[str], "str | None"]

_TRIES = 3
_PAUSE_SECONDS = 1.0


def _silent(_event: Event) -> None:
    """The progress of somebody who does not want to know."""


def apply(
    target: str,
    settings: Settings,
    *,
    progress: Progress = _silent,
    confirm: Confirm | None = None,
    ask: Ask | None = None,
    dry_run: bool = False,
) -> Report:
    """Put one VM behind the proxy; look first, change only what differs, look again, prove it.

    Doing it twice changes nothing. Raises VmproxyError; after RolledBack everything is as it was.
    """
    with _Story(target, settings, progress=progress, ask=ask) as story:
        return story.apply(confirm, dry_run=dry_run)


def remove(
    target: str,
    settings: Settings,
    *,
    progress: Progress = _silent,
    confirm: Confirm | None = None,
    ask: Ask | None = None,
    dry_run: bool = False,
) -> Report:
    """Take everything of ours out of one VM, byte for byte. Raises VmproxyError."""
    with _Story(target, settings, progress=progress, ask=ask) as story:
        return story.remove(confirm, dry_run=dry_run)


def status(target: str, settings: Settings, *, progress: Progress = _silent, ask: Ask | None = None) -> Report:
    """The difference between the wish and the VM, point by point; exit 1 where there is any. Raises VmproxyError."""
    with _Story(target, settings, progress=progress, ask=ask) as story:
        return story.status()


def verify(target: str, settings: Settings, *, progress: Progress = _silent, ask: Ask | None = None) -> Report:
    """The proof, leg by leg; exit 1 where one fails. Raises VmproxyError."""
    with _Story(target, settings, progress=progress, ask=ask) as story:
        return story.verify()


def env(target: str, settings: Settings, *, progress: Progress = _silent, ask: Ask | None = None) -> Report:
    """The proxy variables for containers of one VM, in ``Report.variables``. Uses no root. Raises VmproxyError."""
    with _Story(target, settings, progress=progress, ask=ask) as story:
        return story.env()


def detect_gateway(
    target: str,
    settings: Settings,
    *,
    probe_port: int | None = None,
    progress: Progress = _silent,
    ask: Ask | None = None,
) -> Sighting:
    """The host's address as one VM sees it. Uses no root. Raises VmproxyError for a VM that cannot be asked."""
    with _Story(target, settings, progress=progress, ask=ask) as story:
        return story.detect_gateway(probe_port)


@dataclass
class _Scene:
    """One look with all that follows from it."""

    facts: Facts
    guest: Guest
    variant: str
    seen: Wish | None
    wish: Wish
    warnings: list[str] = field(default_factory=list)


class _Story:
    def __init__(self, target: str, settings: Settings, *, progress: Progress, ask: Ask | None) -> None:
        self._name = target
        self._settings = settings
        self._tell: Callable[[str], None] = lambda text: progress(Event(target=target, text=text))
        self._ask = ask
        self._deadline = time.monotonic() + settings.wait_seconds
        self._machine: Machine

    def __enter__(self) -> _Story:
        self._machine = self._connect(targets.resolve(self._name, environ=os.environ))
        return self

    def __exit__(self, *_: object) -> None:
        self._machine.close()

    # ---- connect and look -------------------------------------------------------------------------------------------

    def _connect(self, target: Target) -> Machine:
        if target.directory:
            machine: Machine = machines.load("tree").open(target.directory)
            return machine
        settings = self._settings
        options = transports.SshOptions(
            connect_timeout_seconds=settings.connect_timeout_seconds,
            ssh_config=settings.ssh_config,
            identities=settings.identities,
            known_hosts=settings.known_hosts,
            host_key=settings.host_key,
            ask=self._ask,
            notify=self._tell,
            secrets=_secrets_of_this_process(),
        )
        self._tell(f"connecting to {target.name}")
        transport = transports.load(target.transport)
        shell = machines.load("shell")
        while True:
            try:
                opened: Machine = shell.open(transport.connect(target, options=options))
                return opened
            except Untrusted:
                raise
            except (Unreachable, LostContact):
                if not self._pause():
                    raise

    def _pause(self) -> bool:
        """Wait a little if ``--wait`` allows it."""
        left = self._deadline - time.monotonic()
        if left <= 0:
            return False
        time.sleep(min(_PAUSE_SECONDS, left))
        return True

    def _observe(self, look: Look) -> Facts:
        self._tell("looking")
        return self._machine.observe(look)

    def _full_look(self) -> Look:
        settings = self._settings
        name = settings.proxy.host if settings.proxy is not None and settings.forward else ""
        return Look(files=guests.files(), paths=guests.paths(), resolve=name)

    def _scene(self, *, wait_for_docker: bool = True) -> _Scene:
        look = self._full_look()
        facts = self._observe(look)
        while wait_for_docker and facts.live and not _docker_ready(facts) and self._pause():
            facts = self._observe(look)
        scene = self._read(facts)
        wish = scene.wish
        if wish.forward and not look.resolve and not is_loopback(wish.proxy.host) and not wish.gateway:
            scene = self._read(self._observe(replace(look, resolve=wish.proxy.host)))
        return scene

    def _read(self, facts: Facts) -> _Scene:
        guest, _reason = guests.detect(facts, self._settings.guest)
        variant, warning = rules.choose_variant(facts.dumps) if facts.dumps else ("default", "")
        seen = planning.seen_wish(facts, guest)
        wish = choose(self._settings, seen)
        warnings = [text for text in (warning, differs_from_host(self._settings, wish, seen)) if text]
        return _Scene(facts=facts, guest=guest, variant=variant, seen=seen, wish=wish, warnings=warnings)

    # ---- apply and remove -------------------------------------------------------------------------------------------

    def apply(self, confirm: Confirm | None, *, dry_run: bool) -> Report:
        scene = self._scene()
        for attempt in range(_TRIES):
            desired = planning.desire(scene.facts, scene.guest, scene.wish, scene.variant)
            made = self._plan(scene, desired)
            if not made:
                return self._report(scene, "in sync, nothing to do")
            hidden = _hidden(scene)
            if dry_run:
                return self._report(scene, "would change", diff=preview.plan_text(made, hidden), warnings=made.warnings)
            self._preconditions(scene, made)
            ask = _question(scene) if scene.facts.live else None
            terms = self._terms(
                scene, check=ask if self._settings.check else None, proof=ask if self._settings.verify else None
            )
            outcome, failed = self._commit(scene, made, desired, terms)
            if outcome.status == "moved" and attempt + 1 < _TRIES:
                time.sleep(_PAUSE_SECONDS)
                scene = self._scene()
                continue
            return self._ended(scene, made, outcome, failed, confirm, desired)
        raise Refused("the VM keeps changing under our hands; nothing was changed", hint="try again")

    def remove(self, confirm: Confirm | None, *, dry_run: bool) -> Report:
        scene = self._scene(wait_for_docker=False)
        changed = False
        for attempt in range(_TRIES):
            scene.variant = _variant_with_ours(scene)
            made = self._plan(scene, Desired())
            if not made:
                return self._report(scene, "removed" if changed else "nothing to do", changed=changed)
            if dry_run:
                return self._report(scene, "would change", diff=preview.plan_text(made, _hidden(scene)))
            outcome, failed = self._commit(scene, made, Desired(), self._terms(scene))
            if outcome.status == "moved" and attempt + 1 < _TRIES:
                time.sleep(_PAUSE_SECONDS)
                scene = self._scene(wait_for_docker=False)
                continue
            report = self._ended(scene, made, outcome, failed, confirm, Desired())
            if outcome.facts is None or report.exit:
                return report
            again = self._read(outcome.facts)
            if _variant_with_ours(again) == scene.variant:
                return replace(report, message="removed")
            scene, changed = again, True
        raise Refused("the VM keeps changing under our hands", hint="try again")

    def _plan(self, scene: _Scene, desired: Desired) -> Plan:
        self._tell("planning")
        return planning.diff(
            scene.facts,
            scene.guest,
            desired,
            scene.variant,
            force=self._settings.force,
            restart_always=self._settings.restart == "always",
        )

    def _preconditions(self, scene: _Scene, made: Plan) -> None:
        scene.warnings += made.warnings
        if not scene.facts.live:
            return
        lost, read_only = planning.disk(scene.facts, scene.guest)
        if read_only and made.files:
            raise Refused("the file system is read-only", where=scene.guest.PERSISTENT)
        if lost:
            if self._settings.require_persistent:
                raise Refused(lost, hint="without --require-persistent it is done all the same")
            scene.warnings.append(lost)

    def _terms(self, scene: _Scene, *, check: Question | None = None, proof: Question | None = None) -> Terms:
        settings = self._settings
        return Terms(
            look=replace(self._full_look(), resolve=scene.wish.proxy.host if scene.facts.resolved else ""),
            lock_timeout_seconds=settings.lock_timeout_seconds,
            restart=settings.restart,
            restart_argv=scene.guest.RESTART,
            log=scene.guest.LOG,
            check=check,
            proof=proof,
        )

    def _commit(self, scene: _Scene, made: Plan, desired: Desired, terms: Terms) -> tuple[Outcome, Finding | None]:
        """Carry the plan out. The second value is what made us say no: a leg, or a point of drift in the second
        look."""
        said_no: list[Finding] = []

        def judge(finding: Finding) -> bool:
            if not _good(finding, scene):
                said_no.append(finding)
            return not said_no

        def verdict(outcome: Outcome) -> bool:
            assert outcome.facts is not None  # noqa: S101 - the second look is always there when a verdict is asked
            left = planning.diff(outcome.facts, scene.guest, desired, scene.variant, force=True)
            if left.files or left.rules:
                said_no.append(
                    left.drift[0] if left.drift else Finding(subject="look", ok=False, detail="the second look differs")
                )
            elif not self._settings.keep:
                said_no.extend([finding for finding in outcome.findings if not _good(finding, scene)][:1])
            return not said_no

        outcome = self._machine.commit(made, terms, judge=judge, verdict=verdict, step=self._tell)
        return outcome, said_no[0] if said_no else None

    def _ended(
        self,
        scene: _Scene,
        made: Plan,
        outcome: Outcome,
        failed: Finding | None,
        confirm: Confirm | None,
        desired: Desired,
    ) -> Report:
        if outcome.status != "kept":
            raise _failure(outcome, failed, _hidden(scene))
        scene.warnings += [f"left by an earlier run: {note}" for note in outcome.notes]
        pending = outcome.restart.startswith("pending")
        count = outcome.restart.partition(" ")[2]
        if pending and outcome.facts is not None and self._settings.restart != "never" and self._agreed(confirm, count):
            again = self._read(outcome.facts)
            left = self._plan(again, desired)
            terms = replace(self._terms(again), restart="always")
            second, failed = self._commit(again, replace(left, restart=True), desired, terms)
            if second.status != "kept":
                raise _failure(second, failed, _hidden(scene))
            pending, outcome = second.restart.startswith("pending"), replace(second, findings=outcome.findings)
        wrong = tuple(finding for finding in outcome.findings if not _good(finding, scene))
        legs = tuple(replace(finding, ok=_good(finding, scene)) for finding in outcome.findings)
        if pending:
            why = "Docker does not say what runs" if count in ("", "?") else f"{count} containers run"
            return self._report(
                scene,
                f"done, but the Docker restart is pending ({why})",
                changed=True,
                exit=3,
                code="E_DECISION",
                hint="--restart always, or restart Docker when it suits",
                findings=legs,
            )
        stopped = "; Docker is stopped and stays so" if outcome.restart == "stopped" else ""
        if wrong:
            return self._report(
                scene, "done and kept, although the proof fails", changed=True, exit=1, code="E_PROOF", findings=legs
            )
        return self._report(scene, f"done{stopped}", changed=True, findings=legs)

    def _agreed(self, confirm: Confirm | None, count: str) -> bool:
        if self._settings.yes:
            return True
        what = f"{count} running containers" if count.isdigit() else "whatever runs"
        return confirm is not None and confirm(f"Restart Docker in {self._name} now? It stops {what}.")

    # ---- status, verify, env, detect-gateway ------------------------------------------------------------------------

    def status(self) -> Report:
        scene = self._scene(wait_for_docker=False)
        desired = planning.desire(scene.facts, scene.guest, scene.wish, scene.variant)
        made = self._plan(scene, desired)
        found = list(made.drift)
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
            return self._report(scene, "in sync")
        message = "not applied" if scene.seen is None else f"{len(found)} point{'s' if len(found) > 1 else ''} of drift"
        return self._report(
            scene,
            message,
            exit=1,
            code=planning.DRIFT,
            findings=tuple(found),
            diff=preview.plan_text(made, _hidden(scene)),
            hint=f"vmproxy apply --vm {self._name}",
        )

    def verify(self) -> Report:
        scene = self._scene(wait_for_docker=False)
        put = _question(scene)
        self._tell("asking the proxy from each vantage point")
        findings = tuple(replace(f, ok=_good(f, scene)) for f in self._machine.prove(put))
        for leg in LEGS:
            if leg not in put.legs:
                scene.warnings.append(f"not asked {LEGS[leg]}: {_why_not(scene)}")
        bad = [finding for finding in findings if not finding.ok]
        if bad:
            return self._report(scene, f"{bad[0].detail}", exit=1, code="E_PROOF", findings=findings, hint=bad[0].hint)
        return self._report(scene, "the proxy answers from everywhere", findings=findings)

    def env(self) -> Report:
        look = Look(root=False, files=guests.files(), paths=guests.paths())
        facts = self._observe(look)
        guest, _reason = guests.detect(facts, self._settings.guest)
        wish = choose(self._settings, planning.seen_wish(facts, guest))
        if wish.hidden_credentials:
            raise Refused(
                "the proxy's credentials are readable only for root in the VM",
                where=guest.WISH_FILE,
                hint="say them again in VMPROXY_PROXY",
            )
        return Report(target=self._name, variables=planning.container_view(facts, wish))

    def detect_gateway(self, probe_port: int | None) -> Sighting:
        facts = self._observe(Look(root=False, save=True))
        candidates = default_routes(facts.routes)
        answering = None
        if probe_port is not None:
            hosts = tuple(dict.fromkeys(route.gateway for route in candidates if route.gateway))
            answering = self._machine.reach(hosts, probe_port)
        try:
            choice = choose_gateway(facts.routes)
            if facts.route_save:
                choice = agree(choice, choose_gateway(parse(facts.route_save)))
        except NoGateway as error:
            return Sighting(vm=self._name, error=error, candidates=candidates, answering=answering)
        return Sighting(vm=self._name, choice=choice, candidates=candidates, answering=answering)

    # ---- reports ----------------------------------------------------------------------------------------------------

    def _report(
        self,
        scene: _Scene,
        message: str,
        *,
        changed: bool = False,
        exit: int = 0,
        code: str = "OK",
        hint: str = "",
        findings: tuple[Finding, ...] = (),
        diff: str = "",
        warnings: tuple[str, ...] = (),
    ) -> Report:
        return Report(
            target=self._name,
            ok=exit == 0,
            exit=exit,
            code=code,
            changed=changed,
            message=message,
            hint=hint,
            findings=findings,
            diff=diff,
            warnings=tuple(dict.fromkeys((*scene.warnings, *warnings))),
            gateway=_gateway(scene),
        )


# ---- small decisions ------------------------------------------------------------------------------------------------

_SECRETS: transports.Secrets | None = None


def _secrets_of_this_process() -> transports.Secrets:
    """One for the whole process: a password that one VM has had is not tried at another (RELIABILITY T02)."""
    global _SECRETS  # noqa: PLW0603
    if _SECRETS is None:
        _SECRETS = transports.Secrets(
            password=os.environ.get("VMPROXY_SSH_PASSWORD", ""), passphrase=os.environ.get("VMPROXY_SSH_PASSPHRASE", "")
        )
    return _SECRETS


def _docker_ready(facts: Facts) -> bool:
    if facts.daemon is None or not facts.dumps:
        return False
    return any(rules.holds_docker(rules.parse_save(dump)) for dump in facts.dumps.values()) and bool(facts.bridges)


def _variant_with_ours(scene: _Scene) -> str:
    """The variant that has chains of ours, else the one chosen: Docker may have changed its variant since."""
    for variant, dump in scene.facts.dumps.items():
        if b"VMPROXY-" in dump:
            return variant
    return scene.variant


def _gateway(scene: _Scene) -> str:
    try:
        return scene.wish.gateway or choose_gateway(scene.facts.routes).gateway
    except VmproxyError:
        return ""


def _hidden(scene: _Scene) -> tuple[str, ...]:
    seen = scene.seen
    return preview.secrets(
        scene.wish.proxy, scene.wish.https_proxy, seen.proxy if seen else None, seen.https_proxy if seen else None
    )


def _question(scene: _Scene) -> Question:
    """Where to ask in this VM; only the legs that can be asked."""
    seen = planning.view(scene.facts, scene.wish, scene.variant)
    legs = ["vm"]
    if scene.facts.daemon is not None:
        legs.append("bridge")
        if seen.door is None or rules.NETWORK_BRIDGES in seen.door.bridges:
            legs.append("network")
    inside = (seen.door.bridge_address, seen.door.listen_port) if seen.door else (seen.proxy.host, seen.proxy.port)
    return question(
        seen.proxy,
        vm_host=seen.proxy.host,
        vm_port=seen.proxy.port,
        container_host=inside[0],
        container_port=inside[1],
        legs=legs,
    )


def _why_not(scene: _Scene) -> str:
    return (
        "Docker does not run in the VM"
        if scene.facts.daemon is None
        else "a new network would not be among the bridges covered by name"
    )


def _good(finding: Finding, scene: _Scene) -> bool:
    """A leg is good where a proxy answered; a proxy whose URL says https speaks TLS rightly."""
    return finding.ok or (finding.code == "tls" and scene.wish.proxy.scheme == "https")


def _failure(outcome: Outcome, failed: Finding | None, hidden: tuple[str, ...]) -> VmproxyError:
    """What commit.sh's last word means as an error."""
    text = preview.redact(outcome.text, hidden)
    log = preview.redact(outcome.log, hidden)
    last = next((line for line in reversed(log.splitlines()) if line.strip()), "")
    if outcome.status == "incomplete":
        return RolledBack(f"ROLLBACK INCOMPLETE: {text}", hint="vmproxy status, then vmproxy remove")
    if outcome.status == "busy" or outcome.exit == Busy.exit:
        return Busy(text, hint="try again, or --lock-timeout S")
    if failed is not None and outcome.status == "refused":
        return NoProxy(failed.detail, hint=failed.hint or "--no-check")
    if failed is not None and outcome.status == "undone":
        return RolledBack(
            f"{failed.detail}; everything was put back", where=failed.subject, hint=failed.hint or "--keep"
        )
    if outcome.exit == Refused.exit:
        return Refused(f"{text}; nothing was changed")
    if outcome.exit == LostContact.exit:
        return LostContact(f"{text}; everything was put back")
    tail = f" (its log ends: {printable(last, limit=100)})" if last else ""
    return RolledBack(f"{text}{tail}; everything was put back")


__all__ = ["UsageError", "apply", "detect_gateway", "env", "remove", "status", "verify"]
