"""A proxy from its start to its end: the wishes read, the process made ready, signals heard."""

from __future__ import annotations

import asyncio
import re
import signal
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from ipaddress import ip_address
from typing import Any

from vmproxy.cache import engines
from vmproxy.cache.guard import check_settings, parse_network
from vmproxy.cache.limits import DEFAULT_ADDRESS, DEFAULT_PORT, DEFAULT_SIZE_BYTES, CacheSettings
from vmproxy.errors import UsageError
from vmproxy.model import ProxyURL, printable

_SIZE = re.compile(r"([0-9]{1,12})(?:\.([0-9]))?\s*(?:([KMGT])i?)?B?", re.IGNORECASE)
_UNITS = {"": 0, "K": 10, "M": 20, "G": 30, "T": 40}
_SMALLEST_BYTES = 1 << 20
_FILES = 8192


def parse_size(text: str) -> int:
    """Bytes of ``500M``, ``10G``, ``1.5T`` (powers of 1024). Raises UsageError."""
    match = _SIZE.fullmatch(text.strip())
    if match:
        size = (int(match[1]) * 10 + int(match[2] or 0) << _UNITS[(match[3] or "").upper()]) // 10
        if size >= _SMALLEST_BYTES:
            return size
    raise UsageError(f"size: '{printable(text, limit=40)}' is not a size of at least 1M", hint="--size 10G")


def make_settings(
    directory: str,
    *,
    address: str | None = None,
    port: int | None = None,
    size: str | None = None,
    clients: Sequence[str] = (),
    targets: Sequence[str] = (),
    ports: Sequence[str] = (),
    engine: str | None = None,
    upstream: ProxyURL | None = None,
    no_proxy: Sequence[str] = (),
    pip_port: int = 0,
) -> CacheSettings:
    """The settings from texts. Raises UsageError."""
    try:
        listen = str(ip_address(address or DEFAULT_ADDRESS))
    except ValueError:
        raise UsageError(f"bind: '{printable(address or '', limit=60)}' is not an address") from None
    for text in ports:
        if not (text.isascii() and text.isdigit() and 0 < int(text) < 65536):
            raise UsageError(f"connect-port: '{printable(text, limit=40)}' is not a port")
    settings = CacheSettings(
        directory=directory,
        address=listen,
        port=DEFAULT_PORT if port is None else port,
        size=DEFAULT_SIZE_BYTES if size is None else parse_size(size),
        clients=tuple(parse_network(text) for text in clients),
        targets=tuple(parse_network(text) for text in targets),
        ports=frozenset(int(text) for text in ports),
        engine=engine or engines.NAMES[0],
        upstream=upstream,
        no_proxy=tuple(no_proxy),
        pip_port=pip_port,
    )
    if pip_port and pip_port == settings.port:
        raise UsageError(f"--port and --pip-port are both {pip_port}", hint="--pip-port N")
    check_settings(settings)
    return settings


def need_hishel() -> None:
    """Raises UsageError where hishel, or one that is new enough, is not installed."""
    hint = "pip install 'vmproxy[cache]'"
    try:
        import hishel
    except ImportError:
        raise UsageError("the caching proxy needs the package hishel", hint=hint) from None
    if not hasattr(hishel, "IdleClient"):
        raise UsageError("the caching proxy needs hishel 2, an older one is installed", hint=hint)


def _more_files() -> None:
    """As many open files as thousands of connections need, where the system lets us."""
    with suppress(ImportError, ValueError, OSError):
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        wanted = _FILES if hard == resource.RLIM_INFINITY else min(_FILES, hard)
        if soft < wanted:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


async def _first(*waits: Awaitable[Any]) -> None:
    """Wait until one of several has ended; what it raised is raised, the others are given up."""
    tasks = [asyncio.ensure_future(wait) for wait in waits]
    try:
        done, _others = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def serve(
    settings: CacheSettings,
    *,
    ready: Callable[[str], None],
    log: Callable[[str], None] | None = None,
    warn: Callable[[str], None] | None = None,
) -> None:
    """Serve until SIGINT or SIGTERM, heard during the start, too; ``ready`` is told the address once clients can come.

    ``log`` is told each request, ``warn`` what somebody should look at. Raises Busy (the directory is in use), Refused
    (the port is), NotPermitted, UsageError; LostContact where the engine ends by itself.
    """
    engines.check(settings.engine)
    if settings.pip_port:
        from vmproxy.cache.pipcache import PipCache, need_proxpi

        need_proxpi()
    _more_files()

    async def main() -> None:
        end = asyncio.Event()
        loop = asyncio.get_running_loop()
        for name in ("SIGINT", "SIGTERM"):
            with suppress(RuntimeError):  # Windows has no such handlers: there Ctrl-C interrupts
                loop.add_signal_handler(getattr(signal, name), end.set)
        engine = engines.load(settings, log=log, warn=warn or log or (lambda _text: None))
        engine.ready = False
        # squid and proxpi may take a minute to come up: they are asked to end then, too.
        starting = asyncio.ensure_future(engine.start())
        await _first(end.wait(), starting)
        if starting.cancelled() or starting.exception():
            return  # who ends it has come first, and it has stopped by itself
        port = starting.result()
        beside = PipCache(engine.settings, warn=warn or log or (lambda _text: None)) if settings.pip_port else None
        try:
            if beside:
                await _first(end.wait(), beside.start())
                engine.beside = beside.status
            if end.is_set():
                return
            host = f"[{settings.address}]" if ":" in settings.address else settings.address
            engine.ready = True
            ready(f"http://{host}:{port}")
            await _first(end.wait(), engine.ended())
        finally:
            if beside:
                await beside.stop()
            await engine.stop()

    asyncio.run(main())
