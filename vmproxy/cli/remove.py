"""``vmproxy remove``."""

from __future__ import annotations

from vmproxy.cli.changing import change
from vmproxy.cli.common import CHANGE, SSH, WISH, Run, command


@command(
    "vm",
    *WISH,
    *CHANGE,
    "jobs",
    *SSH,
    examples=("vmproxy remove --vm default --dry-run", "vmproxy remove --vm default --restart always --yes"),
)
def main(run: Run) -> int:
    """Take everything back: files byte for byte as they were, rules gone, Docker without the proxy."""
    return change(run, "remove")
