"""One TCP connection: bytes in, bytes out, with bounded buffers and deadlines that cost no timer each.

A sweeper (:meth:`Wires.sweep`) looks at every connection's deadlines now and then; setting one is an assignment.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Callable
from contextlib import suppress

from vmproxy.cache.message import CHUNKED, UNTIL_CLOSE, BadMessage, Chunks, find_head

_BUFFER_LIMIT = 256 << 10
_CLOSE_SECONDS = 30.0
_NEVER = float("inf")


class Lost(Exception):
    """The other side is gone, or did not go on in time (``late``)."""

    def __init__(self, what: str = "the connection was lost", *, late: bool = False) -> None:
        super().__init__(what)
        self.late = late


class Wire(asyncio.Protocol):
    """One connection. One task reads, one writes; ``quick`` may answer a whole request without waking either."""

    def __init__(self, wires: Wires, begin: Callable[[Wire], None] | None = None) -> None:
        self.buffer = bytearray()
        self.quick: Callable[[bytes], bytes | None] | None = None
        self.peer = ""
        self.idle_seconds = _NEVER
        self.read_until = _NEVER
        self.write_until = _NEVER
        self._gone_by = _NEVER
        self.ended = False
        self.lost = False
        self.stream: asyncio.Transport
        self._begin = begin
        self._wires = wires
        self._loop = asyncio.get_running_loop()
        self._reader: asyncio.Future[None] | None = None
        self._writer: asyncio.Future[None] | None = None
        self._full = False
        self._paused = False

    # what asyncio calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The connection is there."""
        assert isinstance(transport, asyncio.Transport)  # noqa: S101
        self.stream = transport
        peer = transport.get_extra_info("peername")
        self.peer = str(peer[0]) if peer else ""
        self._wires.all.add(self)
        if self._begin:
            self._begin(self)

    def data_received(self, data: bytes) -> None:
        """Bytes came."""
        if self.quick is not None and not self.buffer and not self._full:
            answer = self.quick(data)
            if answer is not None:
                self.until(self.idle_seconds)
                self.stream.write(answer)
                return
        self.buffer += data
        if len(self.buffer) > _BUFFER_LIMIT and not self._paused:
            self._paused = True
            self.stream.pause_reading()
        self._wake()

    def eof_received(self) -> bool:
        """No more bytes will come; ours may still go, but over TLS, which ends both ways at once."""
        self.ended = True
        self._wake()
        return self.stream.can_write_eof()

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is gone."""
        self.lost = True
        self._wires.all.discard(self)
        self._wake()
        if self._writer and not self._writer.done():
            self._writer.set_result(None)

    def pause_writing(self) -> None:
        """The way out is full."""
        self._full = True

    def resume_writing(self) -> None:
        """The way out is free again."""
        self._full = False
        if self._writer and not self._writer.done():
            self._writer.set_result(None)

    def _wake(self) -> None:
        if self._reader and not self._reader.done():
            self._reader.set_result(None)

    def sweep(self, now: float) -> None:
        """Fail what waits longer than it may."""
        if now > self._gone_by:  # closed, but the other side does not take what was sent before
            self.stream.abort()
        for waiter, until in ((self._reader, self.read_until), (self._writer, self.write_until)):
            if now > until and waiter and not waiter.done():
                waiter.set_exception(Lost("nothing moved in time", late=True))

    # reading

    async def more(self) -> bool:
        """Wait for bytes beyond those in ``buffer``; False at the end. Raises Lost."""
        if self.ended:
            return False
        if self.lost:
            raise Lost
        if self._paused and len(self.buffer) <= _BUFFER_LIMIT:
            self._paused = False
            self.stream.resume_reading()
        before = len(self.buffer)
        self._reader = self._loop.create_future()
        try:
            await self._reader
        finally:
            self._reader = None
        if len(self.buffer) > before:
            return True
        return self._at_end()

    def _at_end(self) -> bool:
        if self.lost and not self.ended:
            raise Lost
        return False

    def until(self, seconds: float) -> None:
        """Reading may take this long from now on."""
        self.read_until = self._loop.time() + seconds

    async def head(self) -> bytes | None:
        """Take the next head off the buffer; None where the connection ended before its first byte.

        Raises BadMessage, Lost.
        """
        while True:
            if self.buffer and (end := find_head(self.buffer)):
                data = bytes(self.buffer[:end])
                del self.buffer[:end]
                return data
            if not await self.more():
                if not self.buffer:
                    return None
                raise Lost("the connection ended within a head")

    async def some(self, limit: int = _BUFFER_LIMIT) -> bytes:
        """Take what is there, at most ``limit`` bytes; b"" at the end. Raises Lost."""
        if not self.buffer and not await self.more():
            return b""
        data = bytes(self.buffer[:limit])
        del self.buffer[:limit]
        return data

    # writing

    def write(self, data: bytes) -> None:
        """Send, or keep until it can be sent: ask :meth:`drain` then."""
        if not self.lost:
            self.stream.write(data)

    async def drain(self, seconds: float) -> None:
        """Wait until there is room again. Raises Lost."""
        if self.lost:
            raise Lost
        if not self._full:
            return
        self.write_until = self._loop.time() + seconds
        self._writer = self._loop.create_future()
        try:
            await self._writer
        finally:
            self._writer = None
            self.write_until = _NEVER
        if self.lost:
            raise Lost

    def end(self) -> bool:
        """Say that no more will be sent; False where that cannot be said without closing (TLS)."""
        with suppress(OSError, RuntimeError):
            if not self.lost and not self.stream.can_write_eof():
                return False
            if not self.lost:
                self.stream.write_eof()
        return True

    def close(self) -> None:
        """Close when everything is sent; within a time, whether it was or not."""
        self._gone_by = self._loop.time() + _CLOSE_SECONDS
        self.stream.close()

    def cut(self) -> None:
        """Close with a reset: whoever reads a body without a length must not take it for whole."""
        with suppress(OSError):
            if (handle := self.stream.get_extra_info("socket")) is not None and not self.lost:
                handle.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.stream.abort()


class Wires:
    """Every connection that is open."""

    def __init__(self) -> None:
        self.all: set[Wire] = set()

    async def sweep(self, seconds: float) -> None:
        """Look at the deadlines every so many seconds, for ever."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(seconds)
            now = loop.time()
            for wire in list(self.all):
                wire.sweep(now)


class Incoming:
    """The body of a message that comes on a wire. ``done`` once it is whole."""

    __slots__ = ("_chunks", "_left", "_seconds", "_wire", "done", "length")

    def __init__(self, wire: Wire, length: int, seconds: float) -> None:
        self.length = length
        self.done = length == 0
        self._wire = wire
        self._left = length
        self._chunks = Chunks() if length == CHUNKED else None
        self._seconds = seconds

    async def read(self) -> bytes:
        """The next bytes; b"" once it is whole. Raises Lost where it breaks off, BadMessage."""
        wire = self._wire
        while not self.done:
            wire.until(self._seconds)
            if self._chunks:
                if data := self._chunks.feed(wire.buffer):
                    return data
                if self._chunks.done:
                    self.done = True
                elif not await wire.more():
                    raise Lost("the body broke off")
                continue
            data = await wire.some(self._left if self._left > 0 else _BUFFER_LIMIT)
            if self.length == UNTIL_CLOSE:
                self.done = not data
                return data
            if not data:
                raise Lost("the body broke off")
            self._left -= len(data)
            self.done = not self._left
            return data
        return b""


__all__ = ["BadMessage", "Incoming", "Lost", "Wire", "Wires"]
