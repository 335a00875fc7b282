"""Debian's squid for the tests, installed nowhere, and the engine ``squid`` on a thread of its own.

The staged tree is laid over /usr and /etc in a mount namespace of squid's own; everything else of the machine is as it
is, and so are the process and its parent.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from tests.lab import default_cache, tree
from tests.unit.cacheworld import LOOPBACK, WAIT_SECONDS, Running, free_port, on_a_thread, quick
from vmproxy.cache.limits import CacheSettings
from vmproxy.cache.squid import Squid
from vmproxy.errors import Refused

_WRAPPER = """#!/bin/sh
exec unshare -m sh -c '
mount -t overlay overlay -o lowerdir=%(tree)s/usr:/usr /usr &&
mount -t overlay overlay -o lowerdir=%(tree)s/etc:/etc /etc &&
exec /usr/sbin/squid "$@"' squid "$@"
"""
_ATTEMPTS = 10


@functools.cache
def _staged() -> Path:
    return tree.stage(default_cache(), "squid", ("squid",))


def put_squid(directory: Path) -> Path:
    """A directory for PATH in which there is a squid."""
    staged = _staged()
    directory.mkdir(parents=True)
    program = directory / "squid"
    program.write_text(_WRAPPER % {"tree": staged})
    program.chmod(0o755)
    return directory


@contextmanager
def in_path(directory: Path) -> Iterator[None]:
    """PATH with a directory before the others."""
    before = os.environ["PATH"]
    os.environ["PATH"] = f"{directory}:{before}"
    try:
        yield
    finally:
        os.environ["PATH"] = before


def settings(directory: Path, **changes: Any) -> CacheSettings:
    """Settings for a test: loopback allowed as a target."""
    usual = CacheSettings(directory=str(directory), engine="squid", size=100 << 20, targets=(LOOPBACK,), limits=quick())
    return replace(usual, **changes)


@contextmanager
def squid(wanted: CacheSettings) -> Iterator[Running]:
    """A squid that runs, on a free port; PATH must have one."""

    async def begin(log: list[str]) -> tuple[Squid, int]:
        left = _ATTEMPTS
        while True:
            left -= 1
            made = Squid(replace(wanted, port=free_port()), log=log.append, warn=log.append)
            try:
                return made, await made.start()
            except Refused as error:  # somebody took the port meanwhile
                if not left or "listens" not in error.what:
                    raise

    with on_a_thread(begin, engine="squid", seconds=6 * WAIT_SECONDS) as running:
        yield running
