"""Variables as lines that a shell evaluates. PURE."""

from __future__ import annotations

from collections.abc import Mapping

from vmproxy import quoting
from vmproxy.errors import UsageError


def sh(variables: Mapping[str, str]) -> str:
    """Lines for ``eval`` in any POSIX shell."""
    return quoting.sh_exports(variables).decode()


def fish(variables: Mapping[str, str]) -> str:
    """Lines for ``source`` in fish: exported, and seen everywhere in that shell."""
    return "".join(f"set -gx {name} {quoting.fish(value)}\n" for name, value in variables.items())


def powershell(variables: Mapping[str, str]) -> str:
    """Lines for ``Invoke-Expression``, each a whole statement.

    An empty value is refused: to PowerShell it means that the variable goes.
    """
    for name, value in variables.items():
        if not value:
            raise UsageError(f"{name} is empty, and PowerShell cannot set an empty variable", hint="leave it out")
    return "".join(f"$env:{name} = {quoting.powershell(value)}\n" for name, value in variables.items())
