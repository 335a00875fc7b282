"""``vmproxy detect-gateway``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import click

from vmproxy.cli.common import SSH, Run, command, said
from vmproxy.cli.hints import without_password
from vmproxy.errors import NoGateway, UsageError, VmproxyError
from vmproxy.model import Route
from vmproxy.routes import HINT, LIMIT, Sighting, choose_gateway, default_routes, describe, parse


@command(
    "vm",
    "table",
    "all",
    "probe",
    "wait",
    *SSH,
    examples=(
        "vmproxy detect-gateway --vm default",
        "vmproxy detect-gateway --all --probe 8123",
        "docker-machine ssh default netstat -rn | vmproxy detect-gateway --table -",
    ),
)
def main(run: Run) -> int:
    """Print the host's address as the VM sees it: one line, the address alone.

    Without --vm: of this machine (Linux). With several --vm: one line each, the VM's name after the address.
    """
    table = run.value("table")
    if table is not None and "vm" in said(click.get_current_context()):
        raise UsageError("--table and --vm exclude each other")
    targets = run.targets if table is None else ()  # a `vm` in vmproxy.toml gives way to --table
    sightings = [look(run, target) for target in targets] or [here(run)]
    for sighting in sightings:
        say(run, sighting, named=len(sightings) > 1)
    worst = max((sighting.error.exit if sighting.error else 0) for sighting in sightings)
    if run.output.json:
        objects = [as_json(sighting) for sighting in sightings]
        run.output.document(objects[0] if len(objects) == 1 else several(objects))
    return worst


def look(run: Run, target: str) -> Sighting:
    """What one VM's own table says; an error of that VM stands in its sighting, so that the others are still asked."""
    from vmproxy import converge

    try:
        sighting = converge.detect_gateway(
            target, run.settings, probe_port=run.value("probe"), progress=run.output.progress, ask=run.ask
        )
    except VmproxyError as error:
        return Sighting(vm=without_password(target), error=error)
    return replace(sighting, vm=target)


def here(run: Run) -> Sighting:
    """What this machine's table says, or the one handed in; ``--probe`` asks from this machine."""
    table = run.value("table")
    try:
        if table is None:
            from vmproxy.machines import native

            routes = native.routes()
        else:
            routes = parse(read_table(table))
    except VmproxyError as error:
        return Sighting(error=error)
    return sighting_of(routes, probe_port=run.value("probe"))


def read_table(path: str) -> bytes:
    """The bytes of a file, or of stdin for ``-``; one more than the limit at most. Raises UsageError."""
    try:
        if path == "-":
            return sys.stdin.buffer.read(LIMIT + 1)
        with open(path, "rb") as stream:
            return stream.read(LIMIT + 1)
    except OSError as error:
        hint = "--table FILE, or - for stdin"
        raise UsageError(f"cannot read the route table: {error.strerror}", where=path, hint=hint) from None


def sighting_of(routes: Sequence[Route], *, probe_port: int | None) -> Sighting:
    """The choice from a table, or why there is none, and which candidates answer from here."""
    candidates = default_routes(routes)
    answering = None
    if probe_port is not None:
        from vmproxy.machines.native import reach

        answering = reach(candidates, probe_port)
    try:
        return Sighting(choice=choose_gateway(routes), candidates=candidates, answering=answering)
    except NoGateway as error:
        return Sighting(error=error, candidates=candidates, answering=answering)


def say(run: Run, sighting: Sighting, *, named: bool) -> None:
    """One sighting for a reader: the address, or with ``--all`` every candidate; the rest on stderr."""
    # A name that ends with a colon itself (docker:) has it once, as in every other command.
    prefix = f"{sighting.vm.removesuffix(':')}: " if sighting.vm else ""
    if not run.output.json:
        name = (sighting.vm,) if named else ()
        if run.value("all"):
            for route in sighting.candidates:
                run.output.result(" ".join([*columns(route, sighting.answering), *name]))
        elif sighting.choice:
            run.output.result(" ".join([sighting.choice.gateway, *name]))
    if sighting.error:
        run.output.error(prefix + str(sighting.error), hint=hint_of(sighting), error=sighting.error)
        return
    if sighting.choice and run.output.verbosity > 0:
        run.output.note(f"{prefix}{sighting.choice.reason} ({sighting.choice.interface or 'interface not known'})")
    if sighting.answering is not None and not run.value("all") and not run.output.json:
        for route in sighting.candidates:
            verdict = "answers" if route.gateway in sighting.answering else "does not answer"
            run.output.note(f"{prefix}{describe(route)} {verdict} at port {run.value('probe')}")


def columns(route: Route, answering: Sequence[str] | None) -> list[str]:
    """One candidate as words: address, interface, metric, and whether it answered; ``-`` for what is not known."""
    words = [route.gateway or "-", route.interface or "-", str(route.metric)]
    if answering is not None:
        words.append("answers" if route.gateway in answering else "silent")
    return words


def hint_of(sighting: Sighting) -> str:
    """The error's hint; where exactly one of several candidates answered, that one by name.

    This command has no ``--gateway``; those that use the address have.
    """
    hint = sighting.error.hint if sighting.error else ""
    if sighting.answering and len(sighting.answering) == 1 and isinstance(sighting.error, NoGateway):
        return f"vmproxy apply --gateway {sighting.answering[0]}, the only one that answers"
    if hint == HINT:
        return "say which where it is used: vmproxy apply --gateway IP"
    return "vmproxy detect-gateway --help" if hint == UsageError.usual_hint else hint


def as_json(sighting: Sighting) -> dict[str, Any]:
    """The object of ``--json`` for one machine; ``vm`` only where it is one."""
    choice, error = sighting.choice, sighting.error
    candidates = []
    for route in sighting.candidates:
        candidate: dict[str, Any] = {
            "gateway": route.gateway or None,
            "interface": route.interface,
            "family": route.family,
            "metric": route.metric,
        }
        if sighting.answering is not None:
            candidate["answers"] = route.gateway in sighting.answering
        candidates.append(candidate)
    value: dict[str, Any] = {"vm": sighting.vm} if sighting.vm else {}
    return value | {
        "gateway": choice.gateway if choice else None,
        "interface": choice.interface if choice else None,
        "family": choice.family if choice else None,
        "reason": choice.reason if choice else str(error),
        "candidates": candidates,
        "ok": error is None,
        "exit": error.exit if error else 0,
        "code": error.code if error else "OK",
        "hint": hint_of(sighting),
    }


def several(objects: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The object of ``--json`` for several VMs: the worst exit code, then each."""
    worst = max(objects, key=lambda value: int(value["exit"]))
    return {"ok": worst["exit"] == 0, "exit": worst["exit"], "code": worst["code"], "vms": list(objects)}
