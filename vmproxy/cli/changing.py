"""What ``apply`` and ``remove`` have in common on the command line."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable
from typing import Literal

from vmproxy.cli.common import Hands, Run, each_vm
from vmproxy.errors import DecisionNeeded, UsageError
from vmproxy.model import Report


def change(run: Run, which: Literal["apply", "remove"], *, room: str = "converge") -> int:
    """Tell the story of that room for each VM; with ``--dry-run`` nothing is written and the diff is the result."""
    dry_run = bool(run.value("dry-run"))
    if run.value("exit-code") and not dry_run:
        raise UsageError("--exit-code is for --dry-run")
    run.need_targets()
    settings = run.settings
    story: Callable[..., Report] = getattr(importlib.import_module(f"vmproxy.{room}"), which)
    if which == "apply" and run.value("cache"):
        from vmproxy.cli import applycache

        story = applycache.story(run)

    def one(target: str, hands: Hands) -> Report:
        report = story(
            target,
            settings,
            progress=hands.progress,
            confirm=None if dry_run else hands.confirm,
            ask=hands.ask,
            dry_run=dry_run,
            **({"stop": hands.stop} if hands.stop is not None else {}),
        )
        if dry_run and run.value("exit-code") and report.ok and report.diff and not report.exit:
            return dataclasses.replace(report, exit=DecisionNeeded.exit, code=DecisionNeeded.code)
        return report

    return each_vm(run, one)
