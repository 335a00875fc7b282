"""``local``: the VM that vmproxy itself runs in."""

from __future__ import annotations

from collections.abc import Mapping

from vmproxy.errors import UsageError
from vmproxy.model import Target
from vmproxy.providers import Answers, Queries


def queries(name: str, environ: Mapping[str, str], answers: Answers) -> Queries:
    """Nothing."""
    return Queries()


def parse(name: str, environ: Mapping[str, str], answers: Answers) -> Target:
    """The one target there is. Raises UsageError for ``local:NAME``."""
    if name:
        raise UsageError("local has no names: it is the machine that vmproxy runs on", hint="--vm local")
    return Target(name="local", provider="local", transport="local", machine="native", host="", port=0)


def listing(environ: Mapping[str, str]) -> Queries:
    """Nothing."""
    return Queries()


def names(environ: Mapping[str, str], answers: Answers) -> tuple[str, ...]:
    """None: ``local`` is a word of its own."""
    return ()
