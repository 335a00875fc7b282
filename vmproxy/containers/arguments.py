"""Variables as arguments of ``docker run`` and ``docker build``, to stand in an unquoted ``$(…)``. PURE."""

from __future__ import annotations

import re
from collections.abc import Mapping

from vmproxy.errors import UsageError
from vmproxy.proxyenv import holds_credentials

_TAKEN_APART = re.compile(r"[ *?\[\\{]|[@+!]\(")
"""What an unquoted word does not survive: a blank ends it; ``* ? [`` and, in a bash with extglob, ``@( +( !(`` become
names of files where some match, and with nullglob or failglob nothing at all (a URL with an IPv6 address, too); to
bash 5.0 a backslash is a pattern; ksh and mksh expand braces. All else, quotes and ``$`` too, is not looked at again
after a substitution (POSIX.1 XCU 2.6; tried in seven shells)."""


def by_name(variables: Mapping[str, str]) -> tuple[str, ...]:
    """The variables that an argument gives by name alone, because their values hold credentials.

    An argument can be seen by every user of the machine. Docker takes the value from its own environment, and leaves
    the variable out where that has none.
    """
    return tuple(name for name, value in variables.items() if holds_credentials(name, value))


def run_arguments(variables: Mapping[str, str]) -> str:
    """``-e NAME=value``, one a line, for ``docker run $(…)``."""
    return _arguments("-e", variables, "--format dotenv > FILE, then docker run --env-file FILE")


def build_arguments(variables: Mapping[str, str]) -> str:
    """``--build-arg NAME=value``, one a line, for ``docker build $(…)``."""
    return _arguments("--build-arg", variables, 'eval "$(vmproxy env)", then docker build --build-arg NAME')


def _arguments(option: str, variables: Mapping[str, str], way_out: str) -> str:
    secret = by_name(variables)
    lines = []
    for name, value in variables.items():
        if name in secret:
            lines.append(f"{option} {name}\n")
        elif found := _TAKEN_APART.search(value):
            shown = "a blank" if found[0] == " " else found[0]
            raise UsageError(f"the value of {name} has {shown}, which an unquoted $(…) does not keep", hint=way_out)
        else:
            lines.append(f"{option} {name}={value}\n")
    return "".join(lines)
