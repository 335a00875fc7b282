"""Answers to a client: heads, errors, bodies from the store or from an origin, each framed for that client."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from http import HTTPStatus

from vmproxy.cache.entry import BLOCK, Entry
from vmproxy.cache.limits import Limits
from vmproxy.cache.message import Fields, Head, chunk, encode, forwarded
from vmproxy.cache.policy import not_modified, wanted_range
from vmproxy.cache.store import Corrupt, Store
from vmproxy.cache.wire import Wire

_LINGER_BYTES = 1 << 20
_LINGER_SECONDS = 1.0
UNKNOWN = -1
NO_BODY = -3
_ONLY_VALIDATORS = frozenset(("cache-control", "content-location", "date", "etag", "expires", "vary", "last-modified"))


def line(status: int, reason: str = "") -> str:
    """The status line; always HTTP/1.1, our own version."""
    if not reason:
        with suppress(ValueError):
            reason = HTTPStatus(status).phrase
    return f"HTTP/1.1 {status} {reason}"


class Reply:
    """One answer to one client. ``keep`` is whether the connection goes on behind it."""

    __slots__ = ("_chunked", "_held", "_via", "_wire", "begun", "keep", "limits", "minor", "sent")

    def __init__(self, wire: Wire, limits: Limits, via: str, *, minor: int, keep: bool) -> None:
        self._wire = wire
        self.limits = limits
        self._via = via
        self._chunked = False
        self._held = b""
        self.minor = minor
        self.keep = keep
        self.begun = False
        self.sent = 0

    def head(self, first: str, fields: Fields, length: int, *, status: str = "") -> None:
        """Send the head; ``length`` of the body, UNKNOWN, or NO_BODY where the fields say it all.

        Before a body it waits for the first piece, until whoever answers waits for something: most go out as one.
        """
        fields = [*fields, ("Via", self._via)]
        if status:
            fields.append(("Cache-Status", status))
        if length >= 0:
            fields.append(("Content-Length", str(length)))
        elif length == UNKNOWN:
            if self.minor:
                self._chunked = True
                fields.append(("Transfer-Encoding", "chunked"))
            else:
                self.keep = False
        if not self.keep:
            fields.append(("Connection", "close"))
        elif not self.minor:
            fields.append(("Connection", "keep-alive"))
        self.begun = True
        data = encode(first, fields)
        if length == NO_BODY:
            self._wire.write(data)
        else:
            self._held = data
            asyncio.get_running_loop().call_soon(self._write, b"")

    def _write(self, data: bytes) -> None:
        """Send what is held, and this behind it."""
        if self._held:
            data, self._held = self._held + data, b""
        if data:
            self._wire.write(data)

    async def piece(self, data: bytes) -> None:
        """Send some of the body. Raises Lost."""
        self._write(chunk(data) if self._chunked else data)
        self.sent += len(data)
        await self._wire.drain(self.limits.stall_seconds)

    def last(self) -> None:
        """The body is whole."""
        self._write(chunk(b"") if self._chunked else b"")

    def error(self, status: int, what: str, *, fields: Fields = []) -> None:  # noqa: B006
        """An answer of the proxy's own."""
        body = f"vmproxy cache: {what}\n".encode()
        self.head(line(status), [("Content-Type", "text/plain; charset=utf-8"), *fields], len(body))
        self._write(body)

    async def linger(self) -> None:
        """Close so that the answer arrives: what the client still sends is thrown away for a moment, not reset."""
        wire = self._wire
        wire.end()
        with suppress(TimeoutError, Exception):
            async with asyncio.timeout(_LINGER_SECONDS):
                left = _LINGER_BYTES
                while left > 0 and (data := await wire.some()):
                    left -= len(data)
        wire.close()


def own_fields(entry: Entry, *, now: float) -> Fields:
    """A stored response's fields with its age."""
    return [*entry.stored.fields, ("Age", str(max(0, int(now - entry.stored.received + entry.stored.age))))]


def origin_fields(head: Head, *, no_body: bool) -> Fields:
    """An origin's fields as they go on; where there is no body the length it speaks of is kept (HEAD, 304)."""
    fields = forwarded(head)
    if no_body and head.status != 204 and (length := head.values.get("content-length")):
        fields.append(("Content-Length", length[0]))
    return fields


async def give(reply: Reply, store: Store, entry: Entry, request: Head, *, now: float, status: str) -> bool:
    """Answer from the store: whole, a range, a 304, a head. False where the entry is broken, or gone since it was
    found, and nothing was sent.

    Raises Lost; Corrupt where a later block is broken: the connection has to be cut then.
    """
    if not store.holds(entry):
        return False
    fields = own_fields(entry, now=now)
    if not_modified(request, fields):
        few = [pair for pair in fields if pair[0].lower() in _ONLY_VALIDATORS]
        reply.head(line(304), few, NO_BODY, status=status)
        return True
    first, behind = 0, entry.length
    code = 200
    if request.method == "GET" and "range" in request.values:
        wanted = wanted_range(request, fields, entry.length)
        if wanted is None:
            reply.error(416, "no such range", fields=[("Content-Range", f"bytes */{entry.length}")])
            return True
        if wanted != "whole":
            first, behind = wanted
            code = 206
            fields.append(("Content-Range", f"bytes {first}-{behind - 1}/{entry.length}"))
    if request.method == "HEAD":
        fields.append(("Content-Length", str(entry.length)))
        reply.head(line(code), fields, NO_BODY, status=status)
        return True
    store.use(entry)
    return await _body(reply, store, entry, line(code), fields, first, behind, status)


async def _body(
    reply: Reply, store: Store, entry: Entry, top: str, fields: Fields, first: int, behind: int, status: str
) -> bool:
    if entry.body is not None or entry.length <= reply.limits.memory_body:
        try:
            data = store.whole(entry)
        except (Corrupt, OSError):
            return False
        reply.head(top, fields, behind - first, status=status)
        await reply.piece(data[first:behind])
        return True
    try:
        body = store.open(entry)
    except (Corrupt, OSError):
        return False
    try:
        for number in range(first // BLOCK, -(-behind // BLOCK)):
            try:
                data = await asyncio.to_thread(body.block, number)
            except (Corrupt, OSError):
                store.drop(entry)
                if not reply.begun:
                    return False
                raise Corrupt from None
            if not reply.begun:
                reply.head(top, fields, behind - first, status=status)
            start = number * BLOCK
            await reply.piece(data[max(0, first - start) : behind - start])
        return True
    finally:
        body.close()
