"""``initrd:FILE``: a VM's root file system as an initramfs image on the host; only files are reached."""

from __future__ import annotations

import os.path
from collections.abc import Mapping

from vmproxy.errors import UsageError
from vmproxy.model import Target
from vmproxy.providers import Answers, Queries, home


def queries(name: str, environ: Mapping[str, str], answers: Answers) -> Queries:
    """Nothing: the machine that opens the image says what is wrong with it."""
    return Queries()


def parse(name: str, environ: Mapping[str, str], answers: Answers) -> Target:
    """The file as a target without a transport. Raises UsageError."""
    if not name or "\0" in name:
        raise UsageError("initrd: names no file", hint="initrd:FILE")
    path = os.path.join(home(environ), name[2:]) if name.startswith("~/") else name
    return Target(name=f"initrd:{name}", provider="initrd", transport="", machine="image", directory=path)


def listing(environ: Mapping[str, str]) -> Queries:
    """Nothing."""
    return Queries()


def names(environ: Mapping[str, str], answers: Answers) -> tuple[str, ...]:
    """None of its own."""
    return ()
