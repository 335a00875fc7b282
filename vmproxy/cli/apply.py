"""``vmproxy apply``."""

from __future__ import annotations

from vmproxy.cli.changing import change
from vmproxy.cli.common import CHANGE, SSH, WISH, Run, command

_NOT_KEPT = "the package index has credentials, so it is not recorded in the VM: say --pip-index to env, run or compose"


@command(
    "vm",
    *WISH,
    *CHANGE,
    "jobs",
    *("cache", "dir", "port", "size", "pip"),
    *SSH,
    examples=(
        "vmproxy apply --vm default --dry-run",
        "vmproxy apply --vm default --proxy http://127.0.0.1:3128",
        "vmproxy apply --vm default --wait 60 -q      # a hook run as the VM starts",
        "vmproxy apply --vm default --cache           # a caching proxy on this host, started if need be",
    ),
)
def main(run: Run) -> int:
    """Put the VM's Docker daemon and its containers behind the proxy.

    Looks first, changes only what differs, looks again and proves it. Doing it twice changes nothing. If the proof
    fails, everything is put back. With --cache the proxy is this host's own cache, which is started where it does not
    run, and the proof is that it gives what it has fetched a second time.
    """
    if not run.value("cache"):
        from vmproxy.cli.applycache import needless

        needless()
    if "@" in run.settings.pip_index:
        run.output.warn(_NOT_KEPT, beside_json=True)
    return change(run, "apply")
