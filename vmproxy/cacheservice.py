"""The caching proxy as a service of the user: systemd's user manager on Linux, launchd on macOS.

The file is written whole or not at all; where the service does not come up, what was there before comes back.
"""

from __future__ import annotations

import os
import re
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from vmproxy import cacherun, hostfiles, hostproc
from vmproxy.cache import units
from vmproxy.errors import ForeignFile, LostContact, Refused, RolledBack, UsageError, VmproxyError
from vmproxy.model import printable

_QUICK_SECONDS = 15.0
_SLOW_SECONDS = 90.0  # systemd's own limit for a start
_MADE = re.compile(rb"\n(?:# |<!-- )vmproxy made (\d) director(?:y|ies) for it(?: -->)?\n")
_LINGER = "it runs while you are logged in; loginctl enable-linger keeps it after that, and starts it at boot"


@dataclass(frozen=True, kw_only=True)
class Service:
    """One kind of service: where its file is, and what is run in which order. ``note`` is for the user."""

    name: str
    path: str
    program: str
    probe: tuple[str, ...]
    begin: tuple[tuple[str, ...], ...]
    again: tuple[tuple[str, ...], ...]
    end: tuple[tuple[str, ...], ...]
    gone: tuple[tuple[str, ...], ...]
    wake: tuple[str, ...]
    render: Callable[[Sequence[str], Mapping[str, str]], bytes]
    unreachable: str
    note: str = ""


def service(name: str | None, *, environ: Mapping[str, str], platform: str = sys.platform) -> Service:
    """The kind of that name, or this platform's own. Raises UsageError where it has none."""
    name = name or {"darwin": "launchd", "linux": "systemd"}.get(platform, "")
    if not name:
        raise UsageError("there is no service that vmproxy can install here", hint="vmproxy cache start")
    home = os.path.expanduser("~")
    return _launchd(home) if name == "launchd" else _systemd(environ.get("XDG_CONFIG_HOME") or f"{home}/.config")


def _systemd(config: str) -> Service:
    control = ("systemctl", "--user")
    return Service(
        name="systemd",
        path=os.path.join(config, "systemd", "user", units.UNIT),
        program="systemctl",
        probe=(*control, "show-environment"),
        begin=((*control, "daemon-reload"), (*control, "enable", "--now", units.UNIT)),
        again=((*control, "daemon-reload"), (*control, "enable", units.UNIT), (*control, "restart", units.UNIT)),
        end=((*control, "disable", "--now", units.UNIT),),
        gone=((*control, "daemon-reload"), (*control, "reset-failed")),
        wake=(*control, "start", units.UNIT),
        render=lambda argv, environment: units.unit(argv, environment=environment),
        unreachable="log in as this user, not by su or sudo; vmproxy cache start needs no manager",
        note=_LINGER,
    )


def _launchd(home: str) -> Service:
    path = os.path.join(home, "Library", "LaunchAgents", f"{units.LABEL}.plist")
    domain = f"gui/{os.getuid()}" if hasattr(os, "getuid") else "gui/0"
    job = f"{domain}/{units.LABEL}"
    log = os.path.join(home, "Library", "Logs", "vmproxy-cache.log")
    return Service(
        name="launchd",
        path=path,
        program="launchctl",
        probe=("launchctl", "print", domain),
        begin=(("launchctl", "bootstrap", domain, path),),
        again=(("launchctl", "bootout", job), ("launchctl", "bootstrap", domain, path)),
        end=(("launchctl", "bootout", job),),
        gone=(),
        wake=("launchctl", "kickstart", job),
        render=lambda argv, environment: units.job(argv, environment=environment, log=log),
        unreachable="log in at the screen of this Mac; vmproxy cache start needs no launchd",
    )


def text(kind: Service, words: Sequence[str]) -> bytes:
    """The file that runs ``vmproxy cache serve WORDS``. Raises UsageError."""
    argv, environment = cacherun.program()
    return kind.render((*argv, "cache", "serve", *words), environment)


def install(kind: Service, directory: str, words: Sequence[str], *, environ: Mapping[str, str]) -> bool:
    """Write the file, have the service start now and at each log-in, and wait until the proxy answers.

    Whether anything was changed. A proxy that somebody started there is his to end: its options that ``words`` do not
    have are named, since it may have been ``apply --cache`` that chose them. Raises UsageError where the manager is not
    installed, or others can read the file of its secrets, Refused where it cannot be reached or another proxy runs on
    the directory, ForeignFile, RolledBack with everything as it was.
    """
    content = text(kind, words)
    _check_secrets(kind)
    before = _seen(kind)
    active = before.content is not None and _active(kind, environ)
    mine = active and installed(kind, directory)
    if before.content is not None and _without_count(before.content) == content and mine:
        return False
    _need(kind, environ)
    if not mine and (other := cacherun.running(directory)) is not None:
        raise _runs_already(directory, words, other)
    made = _count(before.content) if before.content is not None else len(before.missing)
    counted = content + (b"# vmproxy made %d directories for it\n" % made if kind.name == "systemd" else b"")
    if kind.name == "launchd":
        counted = content + b"<!-- vmproxy made %d directories for it -->\n" % made
    try:
        hostfiles.change(kind.path, lambda _look: hostfiles.Edit(content=counted, private=True))
        # One that runs on another directory has to be started again, too.
        _all(kind.again if active else kind.begin, environ)
        cacherun.until_up(directory, ended=lambda: False, log=_log(kind))
    except BaseException as error:
        _put_back(kind, before, environ)
        if isinstance(error, VmproxyError):
            hint = f"vmproxy cache serve with the same options says why; so does {_log(kind)}"
            raise RolledBack(f"{error.what}; everything was put back", where=error.where, hint=hint) from None
        raise
    return True


def _runs_already(directory: str, words: Sequence[str], status: Mapping[str, Any]) -> Refused:
    """What to do where a proxy runs on the directory that is no service: two commands that end in one like it."""
    said = {word.partition("=")[0].partition("-file")[0].partition("-keyring")[0] for word in words}
    told = [printable(str(word)) for word in status.get("options", ())]  # one of an older version does not say
    more = [word for word in told if word.partition("=")[0].partition("-file")[0] not in said]
    with_them = f", with {shlex.join(more)}" if more else ""
    hint = f"{shlex.join(('vmproxy', 'cache', 'stop', f'--dir={directory}'))} && "
    hint += shlex.join(("vmproxy", "cache", "install", *words, *more))
    return Refused(f"a cache runs on that directory already{with_them}", where=directory, hint=hint)


def uninstall(kind: Service, *, environ: Mapping[str, str]) -> bool:
    """Stop the service and take away what :func:`install` made; False where there is nothing. Raises as that does."""
    before = _seen(kind)
    if before.content is None:
        return False
    _need(kind, environ)
    try:
        _all(kind.end, environ)
    except Refused:
        if _active(kind, environ):
            raise
    count = _count(before.content)
    hostfiles.change(kind.path, lambda _look: hostfiles.Edit(content=None, directories=count))
    with suppress(VmproxyError):
        _all(kind.gone, environ)
    return True


def installed(kind: Service, directory: str) -> bool:
    """Whether the service is installed for this directory."""
    try:
        content = _seen(kind).content
    except VmproxyError:
        return False
    return content is not None and _without_count(content).find(_dir_word(kind, directory)) >= 0


def wake(kind: Service, directory: str, *, environ: Mapping[str, str]) -> cacherun.Started:
    """Have the installed service start now, and wait until the proxy answers. Raises Refused."""
    _need(kind, environ)
    _all((kind.wake,), environ)
    found = cacherun.until_up(directory, ended=lambda: False, log=_log(kind))
    return cacherun.Started(status=found, how=f"by {kind.name}")


def _dir_word(kind: Service, directory: str) -> bytes:
    """How the option stands in the file."""
    word = f"--dir={directory}"
    lines = kind.render(("/x", word), {}).splitlines()
    (line,) = [line.strip() for line in lines if b"--dir=" in line]
    return line.removeprefix(b'ExecStart="/x" ')


def _count(content: bytes) -> int:
    found = _MADE.search(content)
    return int(found[1]) if found else 0


def _without_count(content: bytes) -> bytes:
    return _MADE.sub(b"\n", content)


def _check_secrets(kind: Service) -> None:
    """Raises UsageError where others can read the variables that the unit takes from a file of the user's."""
    if kind.name != "systemd":
        return
    config = os.path.dirname(os.path.dirname(os.path.dirname(kind.path)))
    path = os.path.join(config, units.SECRETS)
    with suppress(OSError):
        if os.stat(path).st_mode & 0o077:
            raise UsageError("others than you can read it", where=path, hint=f"chmod 600 {path}")


def _seen(kind: Service) -> hostfiles.Look:
    before = hostfiles.look(kind.path)
    if before.content is not None and not units.ours(_without_count(before.content)):
        raise ForeignFile("this file is not vmproxy's", where=kind.path, hint="move it away")
    return before


def _put_back(kind: Service, before: hostfiles.Look, environ: Mapping[str, str]) -> None:
    with suppress(VmproxyError):
        _all(kind.end, environ)
    made = len(before.missing)
    hostfiles.change(kind.path, lambda _look: hostfiles.Edit(content=before.content, directories=made))
    with suppress(VmproxyError):
        _all(kind.gone, environ)
        if before.content is not None:
            _all(kind.begin, environ)


def _log(kind: Service) -> str:
    return "~/Library/Logs/vmproxy-cache.log" if kind.name == "launchd" else f"journalctl --user -u {units.UNIT}"


def _need(kind: Service, environ: Mapping[str, str]) -> None:
    """Raises UsageError where the manager's program is not there, Refused where the manager does not answer."""
    done = hostproc.run(kind.probe, timeout_seconds=_QUICK_SECONDS, environ=environ)
    if done is None:
        hint = "vmproxy cache start, or --print for the file"
        raise UsageError(f"there is no {kind.program} on this machine", hint=hint)
    if done.status:
        raise Refused(f"{kind.name} does not answer: {_said(done)}", hint=kind.unreachable)


def _active(kind: Service, environ: Mapping[str, str]) -> bool:
    """Whether the manager says that the service runs."""
    words = ("systemctl", "--user", "is-active", units.UNIT) if kind.name == "systemd" else (*kind.probe,)
    if kind.name == "launchd":
        words = ("launchctl", "print", kind.wake[-1])
    with suppress(VmproxyError):
        done = hostproc.run(words, timeout_seconds=_QUICK_SECONDS, environ=environ)
        return done is not None and done.status == 0
    return False


def _all(steps: Sequence[tuple[str, ...]], environ: Mapping[str, str]) -> None:
    """Run each; the first that fails raises Refused."""
    for argv in steps:
        try:
            done = hostproc.run(argv, timeout_seconds=_SLOW_SECONDS, environ=environ)
        except LostContact as error:
            raise Refused(error.what, where=" ".join(argv)) from None
        if done is None or done.status:
            raise Refused(f"{' '.join(argv[:-1])} fails: {_said(done) if done else 'not found'}")


def _said(done: hostproc.Output) -> str:
    lines = (done.stderr.strip() or done.stdout.strip()).splitlines()
    return printable(lines[0] if lines else b"", limit=120) or f"exit {done.status}"
