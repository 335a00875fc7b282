"""The engines that can be the caching proxy: one in this process, or a squid that it starts and watches.

A new one is a file with a class of :class:`Engine` and a line in :func:`load`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from vmproxy.cache.limits import CacheSettings
from vmproxy.cache.stats import Stats
from vmproxy.errors import UsageError

NAMES = ("embedded", "squid")


class Engine(Protocol):
    """A caching proxy. It is made inside a running loop; then :meth:`start`, and in the end :meth:`stop`."""

    name: str
    settings: CacheSettings
    stats: Stats
    ready: bool
    """Whether all that belongs to it has started."""
    beside: Callable[[], dict[str, Any]] | None
    """The status of the cache for pip, where there is one."""

    async def start(self) -> int:
        """Listen; the port, once clients can come. Raises VmproxyError, and has stopped then."""

    async def ended(self) -> None:
        """Wait for its end without :meth:`stop`, which raises LostContact; for ever where there is no such end."""

    async def stop(self) -> None:
        """Let what is under way end within the grace, then close everything."""

    async def held(self) -> dict[str, Any]:
        """``entries`` and ``size`` and ``limit`` (bytes) of what is kept."""

    async def purge(self, pattern: str) -> tuple[int, int]:
        """Remove the entries whose address fits a glob; (how many, bytes)."""


def check(name: str) -> None:
    """Raises UsageError where what an engine needs is not installed, or there is no such engine."""
    if name == "squid":
        from vmproxy.cache.squid import find_squid

        find_squid()
        return
    if name != "embedded":
        raise UsageError(f"there is no engine of that name: {' or '.join(NAMES)}", hint="--engine NAME")
    from vmproxy.cache.run import need_hishel

    need_hishel()


def load(settings: CacheSettings, *, log: Callable[[str], None] | None, warn: Callable[[str], None]) -> Engine:
    """The engine that the settings name. ``log`` is told each request, ``warn`` what a person should look at."""
    if settings.engine == "squid":
        from vmproxy.cache.squid import Squid

        return Squid(settings, log=log, warn=warn)
    from vmproxy.cache.server import Proxy

    return Proxy(settings, log=log, warn=warn)
