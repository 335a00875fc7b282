"""``vmproxy status``."""

from __future__ import annotations

from vmproxy.cli.common import SSH, WISH, Hands, Run, command, each_vm
from vmproxy.model import Report


@command(
    "vm", *WISH, "wait", "jobs", *SSH, examples=("vmproxy status --vm default", "vmproxy status --vm default --json")
)
def main(run: Run) -> int:
    """Say whether the VM is as wished; else each point in which it differs, and exit 1.

    With -v also the diff that apply would make.
    """
    run.need_targets()
    settings = run.settings
    from vmproxy import converge

    def one(target: str, hands: Hands) -> Report:
        return converge.status(target, settings, progress=hands.progress, ask=hands.ask, stop=hands.stop)

    return each_vm(run, one, diff=False)
