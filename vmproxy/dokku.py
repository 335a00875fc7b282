"""The story on a Dokku host: Docker and its door as everywhere, and Dokku's config and build options with them.

One command makes all agree: ``apply`` does what :func:`vmproxy.converge.apply` does and then tells Dokku, ``status``
looks at both, ``remove`` takes both away. Apps that run keep the environment they were started with until Dokku
starts them anew; only ``--restart always`` asks Dokku to.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from vmproxy import converge, dokkuplan, preview
from vmproxy.converge import Ask, Confirm, Progress, silent
from vmproxy.dokkuhost import DokkuHost, Moved, restart_apps
from vmproxy.dokkuplan import DokkuDesired, DokkuPlan
from vmproxy.errors import Busy, Interrupted, Refused, RolledBack, VmproxyError
from vmproxy.model import Event, Finding, Report, Settings
from vmproxy.session import STILL_IN_DOKKU, Session

if TYPE_CHECKING:
    from vmproxy.scene import Scene

_TRIES = 3
_LATER = "apps that run are told by dokku ps:restart --all, or by their next deploy"


def apply(
    target: str,
    settings: Settings,
    *,
    progress: Progress = silent,
    confirm: Confirm | None = None,
    ask: Ask | None = None,
    dry_run: bool = False,
) -> Report:
    """Put a Dokku host behind the proxy: its Docker, its containers, its apps and their builds.

    Dokku is looked at first, so that what stands in the way there is refused before anything is changed; Docker's
    part is done first. Raises VmproxyError; after a complete RolledBack everything is as it was.
    """
    with _open(target, settings, progress, ask) as session:
        story = _Story(session)
        made = story.wanted(session.scene())
        main = converge.apply(target, settings, progress=progress, confirm=confirm, ask=ask, dry_run=dry_run)
        if dry_run:
            return story.preview(main, made)
        try:
            done = story.carry_out(lambda: story.wanted(story.scene), made)
        except (RolledBack, Refused, Busy, KeyboardInterrupt) as error:
            if not main.changed or (isinstance(error, RolledBack) and not error.complete):
                raise
            if story.fresh:  # nothing of ours was there before this run: all of it goes
                converge.remove(target, settings, progress=progress, ask=ask)
                if isinstance(error, VmproxyError | Interrupted):
                    error.rolled_back = True
                raise
            if not isinstance(error, VmproxyError):
                if isinstance(error, Interrupted):
                    error.stays("Docker's part is done and stays")
                raise
            text = f"{error.what}; Docker's part is done and stays"
            raise RolledBack(text, where=error.where, hint="vmproxy dokku status", complete=False) from error
        return story.finish(main, done, "done")


def remove(
    target: str,
    settings: Settings,
    *,
    progress: Progress = silent,
    confirm: Confirm | None = None,
    ask: Ask | None = None,
    dry_run: bool = False,
) -> Report:
    """Take everything of ours out of Dokku, and then out of the VM. Raises VmproxyError."""
    with _open(target, settings, progress, ask) as session:
        story = _Story(session)
        story.scene = session.scene(wait_for_docker=False)
        made = story.gone()
        if dry_run:
            main = converge.remove(target, settings, progress=progress, ask=ask, dry_run=True)
            main = replace(main, warnings=tuple(text for text in main.warnings if text != STILL_IN_DOKKU))
            return story.preview(main, made)
        done = story.carry_out(story.gone, made)
        try:
            main = converge.remove(target, settings, progress=progress, confirm=confirm, ask=ask)
        except BaseException:
            if done:
                story.host.change(dokkuplan.inverse(done))
            raise
        return story.finish(main, done, "removed")


def status(target: str, settings: Settings, *, progress: Progress = silent, ask: Ask | None = None) -> Report:
    """The difference between the wish and the VM, Dokku's config and options included. Raises VmproxyError."""
    with _open(target, settings, progress, ask) as session:
        story = _Story(session)
        made = story.wanted(session.scene(wait_for_docker=False), force=True)
        main = converge.status(target, settings, progress=progress, ask=ask)
    return story.drift(main, replace(made, overwritten=()))


def _open(target: str, settings: Settings, progress: Progress, ask: Ask | None) -> Session:
    return Session(
        target,
        settings,
        tell=lambda text: progress(Event(target=target, text=text)),
        news=lambda text: progress(Event(target=target, text=text, news=True)),
        ask=ask,
    )


class _Story:
    """Dokku's part over an open session."""

    scene: Scene

    def __init__(self, session: Session) -> None:
        self._session, self._settings = session, session.settings
        self.host = DokkuHost(session)
        self.fresh = False

    def wanted(self, scene: Scene, *, force: bool = False) -> DokkuPlan:
        """A look at Dokku, and the plan to what is wanted there. Raises Refused."""
        from vmproxy import containerview

        self.scene = scene
        self.fresh = scene.seen is None
        facts = self.host.look()
        names = self._settings.names if "names" in self._settings.given else scene.wish.names or facts.record.names
        variables = containerview.container_view(
            scene.facts,
            scene.wish,
            names=(*names, *dokkuplan.names_of(facts)),
            pip_index=scene.wish.pip_index or dokkuplan.pip_index(facts),
        )
        self._desired = dokkuplan.desire(facts, variables, names=tuple(names))
        return dokkuplan.diff(facts, self._desired, force=force or self._settings.force)

    def gone(self) -> DokkuPlan:
        """A look at Dokku, and the plan that takes all of ours away."""
        self._desired = DokkuDesired()
        return dokkuplan.diff(self.host.look(), self._desired)

    def carry_out(self, again: Callable[[], DokkuPlan], made: DokkuPlan) -> DokkuPlan:
        """Do it, and look again. What was done; an empty plan where there was nothing to do. Raises RolledBack."""
        for attempt in range(_TRIES):
            if attempt:
                made = again()
            if not made:
                return made
            try:
                self.host.change(made.steps, made.expect, hidden=self.hidden)
            except Moved:
                continue
            left = dokkuplan.diff(self.host.look(), self._desired, force=True)
            if left.drift:
                self.host.change(dokkuplan.inverse(made), hidden=self.hidden)
                found = left.drift[0]
                raise RolledBack(f"{found.detail} all the same; everything was put back", where=found.subject)
            return made
        raise Refused("Dokku's config keeps changing under our hands; nothing was changed", hint="try again")

    def finish(self, main: Report, done: DokkuPlan, word: str) -> Report:
        """The report of a change, and with ``--restart always`` the apps started anew."""
        message = word if done and not main.changed else main.message
        report = replace(self._merged(main, done), changed=main.changed or bool(done), message=message)
        if not (done.values or done.options):
            return report
        if self._settings.restart == "always":
            self._session.tell("restarting the apps")
            complaint = restart_apps(self.host)
            if complaint:
                finding = Finding(subject="dokku apps", ok=False, detail=complaint, hint="dokku ps:restart --all")
                findings = (*report.findings, finding)
                return replace(report, ok=False, exit=max(report.exit, 1), code="E_RESTART", findings=findings)
            return report
        return replace(report, warnings=(*report.warnings, _LATER))

    def preview(self, main: Report, made: DokkuPlan) -> Report:
        """The report of a dry run."""
        diff = "\n".join(filter(None, (main.diff, self._lines(made))))
        return replace(self._merged(main, made), diff=diff, message="would change" if diff else main.message)

    def drift(self, main: Report, made: DokkuPlan) -> Report:
        """The report of a status."""
        report = self._merged(main, made)
        if not made.drift:
            return report
        findings = (*main.findings, *made.drift)
        count = f"{len(findings)} point{'s' if len(findings) > 1 else ''} of drift"
        return replace(
            report,
            ok=False,
            exit=max(main.exit, 1),
            code=main.code if main.exit else dokkuplan.DRIFT,
            message=count if self.host.known else "not applied",
            hint=f"vmproxy dokku apply --vm {main.target}",
            findings=findings,
            diff="\n".join(filter(None, (main.diff, self._lines(made)))),
        )

    def _merged(self, main: Report, made: DokkuPlan) -> Report:
        return replace(main, warnings=tuple(dict.fromkeys((*main.warnings, *made.warnings, *made.overwritten))))

    def _lines(self, made: DokkuPlan) -> str:
        return preview.redact("\n".join(made.lines), self.hidden)

    @property
    def hidden(self) -> tuple[str, ...]:
        """What must not be shown."""
        return self.scene.hidden


__all__ = ["apply", "remove", "status"]
