"""A tunnel: bytes both ways as they are, until both ends have ended."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from vmproxy.cache.wire import Lost, Wire

_ONE_SIDED_SECONDS = 60.0


class Tunnel:
    """Two connections joined. ``count`` is told the bytes of each piece; ``seconds`` is how long nothing may move.

    A direction that rests is no reason to end the tunnel while the other moves.
    """

    def __init__(self, client: Wire, other: Wire, *, seconds: float, count: Callable[[int], None]) -> None:
        self._client = client
        self._other = other
        self._seconds = seconds
        self._count = count
        self._loop = asyncio.get_running_loop()
        self._moved = self._loop.time()

    async def run(self) -> None:
        """Carry bytes until both ends have ended, or one is lost."""
        try:
            async with asyncio.TaskGroup() as both:
                both.create_task(self._relay(self._client, self._other))
                both.create_task(self._relay(self._other, self._client))
            self._other.close()
        except* Lost:
            self._client.cut()
        finally:
            if not self._other.stream.is_closing():
                self._other.cut()

    async def _relay(self, source: Wire, sink: Wire) -> None:
        while True:
            source.until(self._seconds)
            try:
                data = await source.some()
            except Lost as error:
                if error.late and self._loop.time() - self._moved < self._seconds:
                    continue
                raise
            self._moved = self._loop.time()
            if not data:
                if not sink.end():
                    # TLS cannot end one direction alone: what still comes the other way has this long.
                    self._seconds = min(self._seconds, _ONE_SIDED_SECONDS)
                    sink.until(self._seconds)
                return
            sink.write(data)
            self._count(len(data))
            await sink.drain(self._seconds)
