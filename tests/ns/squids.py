"""Debian's squid for the tests, installed nowhere, and the engine ``squid`` on a thread of its own.

The staged tree is laid over /usr and /etc in a mount namespace of squid's own; everything else of the machine is as it
is, and so are the process and its parent.
"""

from __future__ import annotations

import asyncio
import functools
import os
import random
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from tests.lab import default_cache, tree
from tests.unit.cacheworld import LOOPBACK, WAIT_SECONDS, Running, quick
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


def free_port() -> int:
    """A port below those that the kernel gives to connections: squid is told one, and takes it a moment later."""
    while True:
        port = random.randrange(15000, 30000)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        return port


def settings(directory: Path, **changes: Any) -> CacheSettings:
    """Settings for a test: loopback allowed as a target."""
    usual = CacheSettings(directory=str(directory), engine="squid", size=100 << 20, targets=(LOOPBACK,), limits=quick())
    return replace(usual, **changes)


@contextmanager
def squid(wanted: CacheSettings) -> Iterator[Running]:
    """A squid that runs, on a free port; PATH must have one."""
    began: list[Any] = []
    ready = threading.Event()
    log: list[str] = []

    async def main() -> None:
        try:
            for attempt in range(_ATTEMPTS):
                made = Squid(replace(wanted, port=free_port()), log=log.append, warn=log.append)
                try:
                    port = await made.start()
                    break
                except Refused as error:  # somebody took the port meanwhile
                    if attempt + 1 == _ATTEMPTS or "listens" not in error.what:
                        raise
        except BaseException as error:
            began.append(error)
            ready.set()
            return
        end = asyncio.Event()
        began.extend([made, port, asyncio.get_running_loop(), end])
        ready.set()
        await end.wait()
        await made.stop()

    thread = threading.Thread(target=lambda: asyncio.run(main()), daemon=True)
    thread.start()
    assert ready.wait(6 * WAIT_SECONDS)
    if isinstance(began[0], BaseException):
        thread.join()
        raise began[0]
    made, port, loop, end = began
    try:
        yield Running(port=port, proxy=made, loop=loop, log=log, engine="squid")
    finally:
        loop.call_soon_threadsafe(end.set)
        thread.join(6 * WAIT_SECONDS)
        assert not thread.is_alive()
