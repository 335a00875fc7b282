"""``vmproxy verify``."""

from __future__ import annotations

from vmproxy.cli.common import SSH, WISH, Hands, Run, command, each_vm
from vmproxy.model import Report


@command(
    "vm", *WISH, "wait", "jobs", *SSH, examples=("vmproxy verify --vm default", "vmproxy verify --vm default --json")
)
def main(run: Run) -> int:
    """Prove it end to end: from the VM, from a container on the default bridge, and from one on a user-defined network.

    No image is pulled; what is made for the proof is removed again. A failed leg is exit 1."""
    run.need_targets()
    settings = run.settings
    from vmproxy import converge

    def one(target: str, hands: Hands) -> Report:
        return converge.verify(target, settings, progress=hands.progress, ask=hands.ask, stop=hands.stop)

    return each_vm(run, one)
