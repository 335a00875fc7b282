"""The story: connect, look, plan, preview, change, look again, prove; and back.

Each function tells it for one VM and gives a :class:`~vmproxy.model.Report`; it raises what is in
:mod:`vmproxy.errors`. Nothing here prints; ``progress`` hears each step. Several may run side by side, each in a thread
of its own: then one ``stop`` for all of them ends them as a signal ends a single one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from vmproxy.model import Event, Report, Settings
from vmproxy.session import Session
from vmproxy.stopping import Stop

if TYPE_CHECKING:
    from vmproxy.routes import Sighting

Progress = Callable[[Event], None]
Confirm = Callable[[str], bool]
Ask = Callable[[str], "str | None"]


def silent(_event: Event) -> None:
    """The progress of somebody who does not want to know."""


def apply(
    target: str,
    settings: Settings,
    *,
    progress: Progress = silent,
    confirm: Confirm | None = None,
    ask: Ask | None = None,
    dry_run: bool = False,
    stop: Stop | None = None,
) -> Report:
    """Put one VM behind the proxy; look first, change only what differs, look again, prove it.

    Doing it twice changes nothing. Raises VmproxyError; after RolledBack everything is as it was.
    """
    with _open(target, settings, progress, ask, change=not dry_run, preview=dry_run, stop=stop) as session:
        from vmproxy.story import Story

        return Story(session).apply(confirm, dry_run=dry_run)


def remove(
    target: str,
    settings: Settings,
    *,
    progress: Progress = silent,
    confirm: Confirm | None = None,
    ask: Ask | None = None,
    dry_run: bool = False,
    stop: Stop | None = None,
) -> Report:
    """Take everything of ours out of one VM, byte for byte. Raises VmproxyError."""
    from vmproxy import tools

    # All of them: a record that another program took away tells of none.
    every = tools.NAMES
    with _open(
        target, settings, progress, ask, change=not dry_run, preview=dry_run, look_at_tools=every, stop=stop
    ) as session:
        from vmproxy.story import Story

        return Story(session).remove(confirm, dry_run=dry_run)


def status(
    target: str,
    settings: Settings,
    *,
    progress: Progress = silent,
    ask: Ask | None = None,
    stop: Stop | None = None,
) -> Report:
    """The difference between the wish and the VM, point by point; exit 1 where there is any. Raises VmproxyError."""
    with _open(target, settings, progress, ask, only_look=True, stop=stop) as session:
        from vmproxy import answers

        return answers.status(session)


def verify(
    target: str,
    settings: Settings,
    *,
    progress: Progress = silent,
    ask: Ask | None = None,
    stop: Stop | None = None,
) -> Report:
    """The proof, leg by leg; exit 1 where one fails. Raises VmproxyError."""
    with _open(target, settings, progress, ask, stop=stop) as session:
        from vmproxy import answers

        return answers.verify(session)


def env(target: str, settings: Settings, *, progress: Progress = silent, ask: Ask | None = None) -> Report:
    """The proxy variables for containers of one VM, in ``Report.variables``. Uses no root. Raises VmproxyError."""
    with _open(target, settings, progress, ask, root=False) as session:
        from vmproxy import answers

        return answers.env(session)


def detect_gateway(
    target: str,
    settings: Settings,
    *,
    probe_port: int | None = None,
    progress: Progress = silent,
    ask: Ask | None = None,
    stop: Stop | None = None,
) -> Sighting:
    """The host's address as one VM sees it. Uses no root. Raises VmproxyError for a VM that cannot be asked."""
    with _open(target, settings, progress, ask, root=False, stop=stop) as session:
        from vmproxy import answers

        return answers.detect_gateway(session, probe_port)


def _open(
    target: str,
    settings: Settings,
    progress: Progress,
    ask: Ask | None,
    *,
    root: bool = True,
    change: bool = False,
    preview: bool = False,
    only_look: bool = False,
    look_at_tools: tuple[str, ...] = (),
    stop: Stop | None = None,
) -> Session:
    """The VM, with the first look on its way where that needs root: what tells the story is imported meanwhile."""
    session = Session(
        target,
        settings,
        tell=lambda text: progress(Event(target=target, text=text)),
        news=lambda text: progress(Event(target=target, text=text, news=True)),
        ask=ask,
        root=root,
        only_look=only_look or preview or (change and stop is not None),
        syntax=preview,
        look_at_tools=look_at_tools,
        stop=stop,
    )
    try:
        if root:
            session.begin(change=change)
    except BaseException:
        session.close()
        raise
    return session


__all__ = ["apply", "detect_gateway", "env", "remove", "status", "verify"]
