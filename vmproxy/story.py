"""What ``apply`` and ``remove`` do with an open VM, told as :mod:`vmproxy.converge` offers it.

Imported while the VM is answering the first look. What changes nothing is in :mod:`vmproxy.answers`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

from vmproxy import ipv6, managed, preview
from vmproxy import plan as planning
from vmproxy.errors import Busy, Refused, RolledBack
from vmproxy.machines import Outcome, Terms
from vmproxy.model import Desired, Finding, Plan, Report
from vmproxy.outcomes import failure, meanwhile, running, short
from vmproxy.proof import Question
from vmproxy.scene import Scene, judged, question, read, report
from vmproxy.session import DOKKU_RECORD, STILL_IN_DOKKU, Session

Confirm = Callable[[str], bool]

_STILL_RUNS = "Docker still runs with a proxy that no file names any more; --restart always restarts it"
_TRIES = 3
_PAUSE_SECONDS = 1.0


class Story:
    """One VM's story over an open session; each method tells one. ``session`` stays open."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._name, self._settings, self._tell = session.name, session.settings, session.tell

    def apply(self, confirm: Confirm | None, *, dry_run: bool) -> Report:
        """See :func:`vmproxy.converge.apply`."""
        scene = self._session.scene()
        for attempt in range(_TRIES):
            self._by_ipv6(scene)
            desired = planning.desire(scene.facts, scene.guest, scene.wish, scene.variant)
            made = self._plan(scene, desired)
            self._nothing_wins(scene, desired)
            if not made:
                if scene.facts.busy and not dry_run:
                    scene = self._after_the_other()
                    continue
                return report(self._name, scene, "in sync, nothing to do")
            self._preconditions(scene, made)
            if dry_run:
                self._session.machine.rehearse(made)
                return report(self._name, scene, "would change", diff=preview.plan_text(made, scene.hidden))
            ask = question(scene) if scene.facts.live else None
            terms = self._terms(
                scene, check=ask if self._settings.check else None, proof=ask if self._settings.verify else None
            )
            outcome, failed = self._commit(scene, made, desired, terms)
            if attempt + 1 < _TRIES and meanwhile(outcome, failed):
                self._session.rest(_PAUSE_SECONDS)
                scene = self._session.scene()
                continue
            return self._ended(scene, made, outcome, failed, confirm, desired)
        raise Refused("the VM keeps changing under our hands; nothing was changed", hint="try again")

    def remove(self, confirm: Confirm | None, *, dry_run: bool) -> Report:
        """See :func:`vmproxy.converge.remove`."""
        scene = self._session.scene(wait_for_docker=False)
        changed = False
        for attempt in range(_TRIES):
            scene.variant = scene.variant_with_ours
            made = self._plan(scene, Desired())
            scene.warnings += made.warnings
            if DOKKU_RECORD in scene.facts.paths:
                scene.warnings.append(STILL_IN_DOKKU)
            if not made:
                if scene.facts.busy and not dry_run:
                    scene = self._after_the_other(wait_for_docker=False)
                    continue
                if planning.unnamed_proxy(scene.facts, scene.guest):
                    scene.warnings.append(_STILL_RUNS)
                return report(self._name, scene, "removed" if changed else "nothing to do", changed=changed)
            self._writable(scene, made)
            if dry_run:
                self._session.machine.rehearse(made)
                return report(self._name, scene, "would change", diff=preview.plan_text(made, scene.hidden))
            outcome, failed = self._commit(scene, made, Desired(), self._terms(scene))
            if attempt + 1 < _TRIES and meanwhile(outcome, failed):
                self._session.rest(_PAUSE_SECONDS)
                scene = self._session.scene(wait_for_docker=False)
                continue
            ended = self._ended(scene, made, outcome, failed, confirm, Desired())
            if outcome.facts is None or ended.exit:
                return ended
            again = read(outcome.facts, self._settings)
            if again.variant_with_ours == scene.variant:
                return replace(ended, message="removed")
            scene, changed = again, True
        raise Refused("the VM keeps changing under our hands", hint="try again")

    def _after_the_other(self, *, wait_for_docker: bool = True) -> Scene:
        """Nothing differs, but another run is at work and may yet put it back: what is there after it. Raises Busy."""
        deadline = time.monotonic() + self._settings.lock_timeout_seconds
        self._tell("waiting for another run of vmproxy")
        while time.monotonic() < deadline:
            self._session.rest(_PAUSE_SECONDS)
            scene = self._session.scene(wait_for_docker=wait_for_docker)
            if not scene.facts.busy:
                return scene
        raise Busy("another vmproxy run is at work in the VM", hint="try again, or --lock-timeout S")

    def _plan(self, scene: Scene, desired: Desired) -> Plan:
        return self._session.plan(scene, desired)

    def _by_ipv6(self, scene: Scene) -> None:
        """Whether the door is wanted by IPv6 too: where Docker has IPv6 the proxy is asked there, once."""
        gateway, why = ipv6.candidate(scene.facts, scene.wish, scene.variant)
        if gateway and gateway != scene.wish.gateway6 and self._settings.check:
            put = replace(question(scene), vm_host=gateway, legs=("vm",))
            self._tell("asking the proxy by IPv6")
            finding = self._session.machine.prove(put)[0]
            if not judged(finding, scene):
                gateway, why = "", finding.detail
        if why:
            scene.warnings.append(f"Docker has IPv6 in the VM, and containers get no door by it: {why}")
        if gateway != scene.wish.gateway6:
            scene.wish = replace(scene.wish, gateway6=gateway)

    def _nothing_wins(self, scene: Scene, desired: Desired) -> None:
        """Variables that would not arrive are not written, unless told so."""
        for finding in planning.overridden(scene.facts, scene.guest, desired):
            if not self._settings.force:
                raise Refused(finding.detail, hint=f"{finding.hint}, or --force")
            scene.warnings.append(f"{finding.detail}; going on as told")

    def _preconditions(self, scene: Scene, made: Plan) -> None:
        scene.warnings += made.warnings
        if not scene.facts.live:
            return
        self._writable(scene, made)
        lost, _read_only = planning.disk(scene.facts, scene.guest)
        if lost:
            if self._settings.require_persistent:
                raise Refused(lost, hint="without --require-persistent it is done all the same")
            scene.warnings.append(lost)
        if self._settings.require_persistent:
            written = (change.after for change in made.files if change.after.content is not None)
            others = (file.path for file in written if file.path not in scene.guest.FILES)
            for path in managed.forgotten(scene.facts, others):
                raise Refused("a reboot forgets this file", where=path, hint="without --require-persistent, or --tools")

    def _writable(self, scene: Scene, made: Plan) -> None:
        for change in made.files:
            mount = managed.mount_of(scene.facts, change.before.path)
            if mount is not None and "ro" in mount.options and change.before.path not in scene.guest.FILES:
                raise Refused("the file system is read-only", where=mount.point, hint="leave the tool out of --tools")
        _lost, read_only = planning.disk(scene.facts, scene.guest)
        if read_only and made.files:
            raise Refused(
                "the file system is read-only", where=scene.guest.PERSISTENT, hint="mount -o remount,rw in the VM"
            )

    def _terms(self, scene: Scene, *, check: Question | None = None, proof: Question | None = None) -> Terms:
        settings = self._settings
        return Terms(
            look=self._session.look_after(resolve=scene.wish.proxy.host if scene.facts.resolved else ""),
            lock_timeout_seconds=settings.lock_timeout_seconds,
            # --yes has answered already: then the restart is part of this change, and is put back with it (F46).
            restart="always" if settings.yes and settings.restart == "auto" else settings.restart,
            restart_argv=scene.guest.RESTART,
            reload_argv=scene.guest.RELOAD,
            gone=scene.guest.GONE,
            log=scene.guest.LOG,
            daemon_pid=scene.facts.daemon.pid if scene.facts.daemon else 0,
            check=check,
            proof=proof,
        )

    def _commit(self, scene: Scene, made: Plan, desired: Desired, terms: Terms) -> tuple[Outcome, Finding | None]:
        """Carry the plan out. The second value is what made us say no: a leg, or a point of drift in the second
        look."""
        said_no: list[Finding] = []

        def judge(finding: Finding) -> bool:
            if not judged(finding, scene):
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
                if outcome.restart == "yes" and not self._settings.force:
                    said_no.extend(filter(None, [planning.not_taken(outcome.facts, desired)]))
                said_no.extend([finding for finding in outcome.findings if not judged(finding, scene)][:1])
            return not said_no

        outcome = self._session.commit(made, terms, judge=judge, verdict=verdict)
        return outcome, said_no[0] if said_no else None

    def _ended(
        self,
        scene: Scene,
        made: Plan,
        outcome: Outcome,
        failed: Finding | None,
        confirm: Confirm | None,
        desired: Desired,
    ) -> Report:
        if outcome.status != "kept":
            raise failure(outcome, failed, scene.hidden)
        scene.warnings += outcome.notes
        pending = outcome.restart.startswith("pending")
        count = outcome.restart.partition(" ")[2]
        if pending and outcome.facts is not None and self._settings.restart != "never" and self._agreed(confirm, count):
            again = read(outcome.facts, self._settings)
            left = self._plan(again, desired)
            terms = replace(self._terms(again), restart="always")
            second, failed = self._commit(again, replace(left, restart=True), desired, terms)
            if second.status == "kept":
                pending, outcome = second.restart.startswith("pending"), replace(second, findings=outcome.findings)
            elif second.status not in ("moved", "busy"):
                what = failed.detail if failed else preview.redact(second.text, scene.hidden)
                raise RolledBack(
                    f"ROLLBACK INCOMPLETE: the change is made, its restart failed: {short(what)}",
                    hint="vmproxy status, then vmproxy remove",
                    complete=False,
                )
        wrong = tuple(finding for finding in outcome.findings if not judged(finding, scene))
        legs = tuple(replace(finding, ok=judged(finding, scene)) for finding in outcome.findings)
        if pending:
            why = "Docker does not say what runs" if count in ("", "?") else running(count)
            if self._settings.restart == "never":
                why = "--restart never"
            return report(
                self._name,
                scene,
                f"done, but the Docker restart is pending ({why})",
                changed=True,
                exit=3,
                code="E_DECISION",
                hint="--restart always, or restart Docker when it suits",
                findings=legs,
            )
        still = outcome.facts is not None and outcome.facts.live and outcome.facts.daemon is None
        stopped = "; Docker is stopped and stays so" if still or outcome.restart == "stopped" else ""
        if wrong:
            return report(
                self._name,
                scene,
                "done and kept, although the proof fails",
                changed=True,
                exit=1,
                code="E_PROOF",
                findings=legs,
            )
        return report(self._name, scene, f"done{stopped}", changed=True, findings=legs)

    def _agreed(self, confirm: Confirm | None, count: str) -> bool:
        if self._settings.yes:
            return True
        what = f"{count} running container{'' if count == '1' else 's'}" if count.isdigit() else "whatever runs"
        return confirm is not None and confirm(f"Restart Docker in {self._name} now? It stops {what}.")
