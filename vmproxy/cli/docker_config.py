"""``vmproxy docker-config apply|status|remove``."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from vmproxy.cli.common import SSH, Run, command, group
from vmproxy.cli.env import variables
from vmproxy.cli.output import summary
from vmproxy.errors import DecisionNeeded, UsageError
from vmproxy.model import Report

if TYPE_CHECKING:
    from vmproxy.clientconfig import Change
    from vmproxy.hostfiles import Look

_WISH = ("proxy", "https-proxy", "no-proxy", "vm", "daemon", "gateway", "names", "pip-index", "wait")
_CHANGE = ("dry-run", "exit-code", "force", "lock-timeout")
_SAID = {"proxy", "https_proxy", "no_proxy", "gateway", "names", "pip_index"}
_OTHERS: tuple[str, ...] = ("ftpProxy", "allProxy")  # what no option says
_DRIFT = "E_DRIFT"
_NO_PIP = "config.json has no place for pip's variables: only the host of --pip-index is there, in no_proxy"


@command(
    *_WISH,
    *_CHANGE,
    *SSH,
    examples=(
        "vmproxy docker-config apply --vm default",
        "vmproxy docker-config apply --vm default --daemon tcp://192.168.99.100:2376 --dry-run",
        "vmproxy docker-config apply --proxy http://proxy.example:3128 --no-proxy .example",
    ),
)
def _apply(run: Run) -> int:
    """Have docker give containers and builds the proxy.

    Writes the entry "proxies" of the docker client's config.json (DOCKER_CONFIG, else ~/.docker): "default", or that of
    one --daemon. The values are those of vmproxy env: with --vm the VM's own bridge address; without, a proxy on this
    host is reached at --gateway, else at host.docker.internal. Every other byte of the file stays. Another value that
    is there already is refused without --force.
    """
    from vmproxy import clientconfig

    name = clientconfig.daemon(run.value("daemon", ""))
    force = bool(run.value("force"))
    wish = _wish(run, name)
    if run.settings.pip_index:
        run.output.warn(_NO_PIP, beside_json=True)

    def edit(seen: Look) -> Change:
        return clientconfig.applied(seen.content, name, wish(seen.content), force=force, missing=len(seen.missing))

    return _changed(run, edit, name=name, done="written", nothing="in sync, nothing to do")


@command(*_WISH, *SSH, examples=("vmproxy docker-config status --vm default",))
def _status(run: Run) -> int:
    """Say whether config.json is as wished.

    Else each point in which its entry differs, and exit 1. How the entry is laid out does not count.
    """
    from vmproxy import clientconfig, hostfiles

    name = clientconfig.daemon(run.value("daemon", ""))
    path = _path(run)
    wish = _wish(run, name)
    with hostfiles.placed(path):
        content = hostfiles.look(path).content
        points = clientconfig.drift(content, name, wish(content))
    report = Report(target=path, message="in sync")
    if points:
        hint = "vmproxy docker-config apply, with the same options"
        message = "differs from the wish"
        report = Report(target=path, ok=False, exit=1, code=_DRIFT, message=message, hint=hint, findings=points)
    return _said(run, report)


@command(
    *_WISH,
    *_CHANGE,
    *SSH,
    examples=("vmproxy docker-config remove", "vmproxy docker-config remove --daemon tcp://192.168.99.100:2376"),
)
def _remove(run: Run) -> int:
    """Take our entry out of config.json.

    The file is then as it was, to the byte; it is deleted if it was not there. Where the docker client has written it
    anew since (docker login does), the entry alone goes, if it says what the same options would write; no other is
    removed without --force.
    """
    from vmproxy import clientconfig

    name = clientconfig.daemon(run.value("daemon", ""))
    force = bool(run.value("force"))
    wish = _wish(run, name)

    def edit(seen: Look) -> Change:
        return clientconfig.removed(seen.content, name, lambda: wish(seen.content), force=force)

    return _changed(run, edit, name=name, done="removed", nothing="nothing to do")


def _path(run: Run) -> str:
    from vmproxy import clientconfig

    return clientconfig.place(run.environ, windows=os.name == "nt")


def _wish(run: Run, name: str) -> Callable[[bytes | None], Mapping[str, str]]:
    """The entry that is wished, given the file; looked up (in the VM, too) when it is first needed.

    What nobody says is what an earlier apply wrote into the file, as with a VM what it recorded there; then the host's
    own variables.
    """
    if len(run.targets) > 1:
        raise UsageError("the entry has the address of one VM", hint="name one --vm, and its --daemon")
    from vmproxy import clientconfig

    said = run.settings.given & _SAID

    @functools.cache
    def computed(kept: tuple[tuple[str, str], ...]) -> Mapping[str, str]:
        record = dict(kept)
        if record and not said:
            _compare(run, record)
            return record
        asked = run
        others: dict[str, str] = {}
        if record and (settings := clientconfig.filled(run.settings, record)) is not run.settings:
            asked = Run(values=run.values, environ=run.environ, output=run.output)
            asked.settings = settings
            others = {key: record[key] for key in _OTHERS if key in record}
        return {**clientconfig.entry(variables(asked, beside=False)), **others}

    def wish(document: bytes | None) -> Mapping[str, str]:
        kept = {} if run.targets or said & {"proxy", "gateway"} else clientconfig.recorded(document, name)
        return computed(tuple(kept.items()))

    return wish


def _compare(run: Run, record: Mapping[str, str]) -> None:
    """Say where the host's own variables name another proxy than the one that is kept."""
    from vmproxy.proxyenv import is_loopback, redact

    host = run.settings.host_environment_proxy
    kept = record.get("httpProxy", "")
    same = f":{host.port}" if host and is_loopback(host.host) else f"{host}".replace("***@", "")
    if host and not redact(kept).replace("***@", "").endswith(same):
        run.output.warn(f"the proxy in config.json, {redact(kept)}, is kept; this host's own http_proxy says {host}")


def _changed(run: Run, edit: Callable[[Look], Change], *, name: str, done: str, nothing: str) -> int:
    """Carry an edit out, or show it with ``--dry-run``."""
    from vmproxy import hostfiles
    from vmproxy.clientconfig import subject

    dry_run = bool(run.value("dry-run"))
    if run.value("exit-code") and not dry_run:
        raise UsageError("--exit-code is for --dry-run")
    path = _path(run)
    last: list[tuple[Look, Change]] = []

    def looked(seen: Look) -> hostfiles.Edit:
        made = edit(seen)
        last.append((seen, made))
        return hostfiles.Edit(content=made.document, directories=made.made, private=made.secret)

    if dry_run:
        seen = hostfiles.look(path)
        with hostfiles.placed(path):
            wanted = looked(seen)
        changed = wanted.content != seen.content
    else:
        limit = run.settings.lock_timeout_seconds
        changed = hostfiles.change(path, looked, lock_timeout_seconds=limit).changed
    seen, made = last[-1]
    if not changed:
        return _said(run, Report(target=path, message=nothing))
    diff, narrowed = _diff(path, seen, made)
    warnings = made.warnings
    if narrowed:
        warnings = (
            *warnings,
            f"others could read it; it holds credentials now, so its mode is {narrowed}, and stays so",
        )
    if dry_run:
        report = Report(target=path, message="would change", diff=diff, warnings=warnings)
        if run.value("exit-code"):
            report = replace(report, exit=DecisionNeeded.exit, code=DecisionNeeded.code)
    else:
        message = f"{subject(name)} {done}"
        report = Report(target=path, changed=True, message=message, diff=diff, warnings=warnings)
    return _said(run, report, diff=dry_run)


def _diff(path: str, seen: Look, made: Change) -> tuple[str, str]:
    """The diff with its head, and the new mode where it is narrowed."""
    head = [
        f"--- {'/dev/null' if seen.content is None else path}",
        f"+++ {'/dev/null' if made.document is None else path}",
    ]
    mode = seen.mode & ~0o077
    narrowed = made.secret and seen.content is not None and mode != seen.mode and os.name == "posix"
    if seen.content is None:
        head.append(f"new mode {seen.mode:04o}")
    elif narrowed:
        head.append(f"old mode {seen.mode:04o}, new mode {mode:04o}")
    return "\n".join([*head, made.diff]), f"{mode:04o}" if narrowed else ""


def _said(run: Run, report: Report, *, diff: bool = True) -> int:
    run.output.report(report, diff=diff)
    if run.output.json:
        run.output.document(summary([report]))
    return report.exit


main = group(
    "Have the docker client give the proxy to containers and builds: its config.json.",
    {"apply": _apply, "status": _status, "remove": _remove},
)
