"""``vmproxy verify``."""

from __future__ import annotations

from vmproxy.cli.common import SSH, WISH, Run, command, each_vm


@command("vm", *WISH, "wait", *SSH, examples=("vmproxy verify --vm default", "vmproxy verify --vm default --json"))
def main(run: Run) -> int:
    """Prove it end to end: from the VM, from a container on the default bridge, and from one on a user-defined network.

    No image is pulled; what is made for the proof is removed again. A failed leg is exit 1."""
    run.need_targets()
    settings = run.settings
    from vmproxy import converge

    return each_vm(run, lambda target: converge.verify(target, settings, progress=run.output.progress, ask=run.ask))
