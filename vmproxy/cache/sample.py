"""An object to be fetched through the proxy, twice: by it a new cache shows that it keeps what it fetches.

It has an origin of its own in this process, on loopback, which counts how often it is asked; the proxy goes there for
one name that nobody can own (``.invalid``, RFC 2606) and treats it as any other origin. So the proof needs no network,
burdens no mirror, and hangs on nobody's Cache-Control.
"""

from __future__ import annotations

import asyncio
import secrets
from contextlib import suppress
from email.utils import formatdate

HOST = "cache.vmproxy.invalid"
"""Only the proxy that lends the object knows this name."""

_LIFE_SECONDS = 300.0
_STALL_SECONDS = 20.0
_HEAD_BYTES = 64 << 10
_BODY_BYTES = 16 << 10


class Sample:
    """One origin, and at times an object: ``url`` has a part that nobody can guess, "" while there is none; ``asked``
    counts answers given."""

    def __init__(self) -> None:
        self.asked = 0
        self.port = 0
        self.url = ""
        self._body = b""
        self._server: asyncio.Server | None = None
        self._end: asyncio.TimerHandle | None = None

    async def start(self) -> None:
        """Listen. Raises OSError."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, limit=_HEAD_BYTES)
        self.port = int(self._server.sockets[0].getsockname()[1])

    def renew(self) -> None:
        """A new object, for a few minutes at most."""
        self.forget()
        self.asked = 0
        self.url = f"http://{HOST}/{secrets.token_hex(8)}"
        self._body = secrets.token_bytes(_BODY_BYTES)
        self._end = asyncio.get_running_loop().call_later(_LIFE_SECONDS, self.forget)

    def forget(self) -> None:
        """No object any more."""
        self.url = ""
        if self._end:
            self._end.cancel()

    def stop(self) -> None:
        """Listen no more; safe to call twice."""
        self.forget()
        if self._server:
            self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            async with asyncio.timeout(_STALL_SECONDS):
                head = await reader.readuntil(b"\r\n\r\n")
                path = self.url.removeprefix(f"http://{HOST}").encode()
                right = head.startswith(b"GET " + path + b" ")
                if right:
                    self.asked += 1
                status, life = (b"200 OK", b"max-age=%d" % _LIFE_SECONDS) if right else (b"404 Not Found", b"no-store")
                body = self._body if right else b""
                writer.write(
                    b"HTTP/1.1 %b\r\nContent-Type: application/octet-stream\r\nCache-Control: %b\r\nDate: %b\r\n"
                    b"Content-Length: %d\r\nConnection: close\r\n\r\n"
                    % (status, life, formatdate(usegmt=True).encode(), len(body))
                )
                writer.write(body)
                await writer.drain()
        writer.close()
