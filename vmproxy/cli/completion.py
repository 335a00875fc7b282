"""``vmproxy completion``: the scripts are click's; the VM names come from the providers."""

from __future__ import annotations

import click

from vmproxy.cli.common import Run, command
from vmproxy.errors import UsageError

_SHELLS = ("bash", "zsh", "fish")


def _make() -> click.Command:
    @command(
        examples=(
            "vmproxy completion bash > ~/.local/share/bash-completion/completions/vmproxy",
            "vmproxy completion zsh > ~/.zfunc/_vmproxy",
            "vmproxy completion fish > ~/.config/fish/completions/vmproxy.fish",
        )
    )
    def completion(run: Run) -> int:
        """Print the completion script for SHELL: bash, zsh or fish."""
        run.output.result(script(click.get_current_context().params["shell"]))
        return 0

    completion.params.insert(0, click.Argument(["shell"], type=click.Choice(_SHELLS), metavar="SHELL"))
    return completion


def script(shell: str) -> str:
    """The script for one shell. Raises UsageError."""
    from click.shell_completion import ShellComplete, get_completion_class

    from vmproxy.cli.edge import make_group

    found = get_completion_class(shell)
    if found is None:
        raise UsageError(f"there is no completion for {shell}", hint=f"one of: {', '.join(_SHELLS)}")
    # Not found.source(): for bash that starts a bash to look at its version and warns on the terminal.
    return ShellComplete.source(found(make_group(), {}, "vmproxy", "_VMPROXY_COMPLETE"))


def vm_names(incomplete: str) -> list[str]:
    """The names of VMs that start like ``incomplete``; none rather than an error: a Tab press must not complain."""
    import os

    from vmproxy import targets

    try:
        return [name for name in targets.names(environ=os.environ) if name.startswith(incomplete)]
    except Exception:
        return []


main = _make()
