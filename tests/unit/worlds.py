"""The recorded looks of fixtures/worlds, parsed, and a VM that carries out plans in memory.

``python -m tests.ns.record_worlds`` records them anew, from real VMs.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from tests.unit.rulekernel import Kernel
from vmproxy.machines.frames import Splitter
from vmproxy.machines.reading import facts
from vmproxy.model import Daemon, Facts, File, Plan, Syntax

FOLDER = Path(__file__).parents[2] / "fixtures" / "worlds"
NONCE = "00112233445566778899aabbccddeeff"
NAMES = sorted(path.stem for path in FOLDER.glob("*.txt"))


def raw(name: str) -> bytes:
    """The bytes as they came over the channel."""
    return (FOLDER / f"{name}.txt").read_bytes()


def parse(stream: bytes) -> Facts:
    """A whole stream as facts."""
    splitter = Splitter(NONCE)
    return facts([*splitter.feed(stream), *splitter.finish()])


def world(name: str) -> Facts:
    """A recorded look, parsed."""
    return parse(raw(name))


def carry_out(plan: Plan, seen: Facts, environment: dict[str, str] | None = None) -> Facts:
    """What a look would see after that plan: files replaced, rules by a fake kernel, the daemon with ``environment``
    (None: as it was)."""
    files = {**seen.files, **{change.after.path: change.after for change in plan.files}}
    gone = {change.after.path for change in plan.files if change.after.content is None}
    files.update({path: File(path=path, kind="absent") for path in gone})
    syntax = {path: Syntax(parses=True, tail_lives=True) for path, file in files.items() if file.content is not None}
    dumps = dict(seen.dumps)
    if plan.rules is not None:
        kernel = Kernel(dumps[plan.rules.variant])
        for table in ("filter", "nat"):
            if plan.rules.do.get(table):
                kernel.restore(plan.rules.do[table])
        dumps[plan.rules.variant] = kernel.save()
    daemon = seen.daemon
    if plan.restart and daemon is not None and environment is not None:
        kept = {name: value for name, value in daemon.environment.items() if not name.lower().endswith("_proxy")}
        daemon = Daemon(pid=daemon.pid + 1, environment={**kept, **environment})
    return replace(seen, files=files, syntax=syntax, dumps=dumps, daemon=daemon, leftovers=())
