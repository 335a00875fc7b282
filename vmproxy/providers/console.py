"""``console:PATH``: a VM's serial line, a terminal or a unix socket on the host.

Without a path it is the terminal of Docker for Mac's VM of 2016.
"""

from __future__ import annotations

import os.path
from collections.abc import Mapping

from vmproxy.errors import UsageError
from vmproxy.model import Target
from vmproxy.providers import Answers, Queries, home

USUAL = "~/Library/Containers/com.docker.docker/Data/com.docker.driver.amd64-linux/tty"
"""Where Docker for Mac links the terminal to (``screen`` is pointed at it by every guide of the time)."""


def queries(name: str, environ: Mapping[str, str], answers: Answers) -> Queries:
    """Nothing: the transport says what is wrong with the line."""
    return Queries()


def parse(name: str, environ: Mapping[str, str], answers: Answers) -> Target:
    """The line as a target; a relative path is one of the current directory. Raises UsageError."""
    if "\0" in name:
        raise UsageError("console: names no line", hint="console:PATH, a terminal or a unix socket")
    path = name or USUAL
    line = os.path.join(home(environ), path[2:]) if path.startswith("~/") else path
    return Target(name=f"console:{name}", provider="console", transport="console", host="", port=0, line=line)


def listing(environ: Mapping[str, str]) -> Queries:
    """Nothing."""
    return Queries()


def names(environ: Mapping[str, str], answers: Answers) -> tuple[str, ...]:
    """None of its own."""
    return ()
