"""``vmproxy status``."""

from __future__ import annotations

from vmproxy.cli.common import SSH, WISH, Run, command, each_vm


@command("vm", *WISH, "wait", *SSH, examples=("vmproxy status --vm default", "vmproxy status --vm default --json"))
def main(run: Run) -> int:
    """Say whether the VM is as wished; else each point in which it differs, and exit 1.

    With -v also the diff that apply would make.
    """
    run.need_targets()
    settings = run.settings
    from vmproxy import converge

    return each_vm(
        run, lambda target: converge.status(target, settings, progress=run.output.progress, ask=run.ask), diff=False
    )
