"""``vmproxy dokku apply|status|remove``."""

from __future__ import annotations

from vmproxy.cli.changing import change
from vmproxy.cli.common import CHANGE, SSH, WISH, Run, command, each_vm, group


@command(
    "vm",
    *WISH,
    *CHANGE,
    *SSH,
    examples=(
        "vmproxy dokku apply --vm ssh://root@dokku.example --dry-run",
        "vmproxy dokku apply --vm ssh://root@dokku.example --proxy http://proxy.example:3128",
    ),
)
def _apply(run: Run) -> int:
    """Put Docker, apps and builds behind the proxy.

    Does what vmproxy apply does and then sets Dokku's global config and, for apps built from a Dockerfile, their
    config and build arguments, by Dokku's own commands. Another value that is there already is refused.
    """
    return change(run, "apply", room="dokku")


@command("vm", *WISH, "wait", *SSH, examples=("vmproxy dokku status --vm ssh://root@dokku.example",))
def _status(run: Run) -> int:
    """Say whether all is as wished.

    Else each point in which Docker or Dokku differs, and exit 1. With -v also the diff that apply would make.
    """
    run.need_targets()
    settings = run.settings
    from vmproxy import dokku

    return each_vm(
        run, lambda target, hands: dokku.status(target, settings, progress=hands.progress, ask=hands.ask), diff=False
    )


@command("vm", *WISH, *CHANGE, *SSH, examples=("vmproxy dokku remove --vm ssh://root@dokku.example",))
def _remove(run: Run) -> int:
    """Take everything of ours back.

    First out of Dokku, then out of the VM. What somebody else has changed in Dokku since stays as it is, and is named.
    """
    return change(run, "remove", room="dokku")


main = group(
    "Put a Dokku host behind the proxy: its Docker, its apps, and what builds them.",
    {"apply": _apply, "status": _status, "remove": _remove},
)
