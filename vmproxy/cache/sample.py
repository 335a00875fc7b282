"""An object to be fetched through the proxy, twice: by it a new cache shows that it keeps what it fetches.

It has an origin of its own in this process, on loopback, which counts how often it is asked; the proxy goes there for
one name that nobody can own (``.invalid``, RFC 2606) and treats it as any other origin. So the proof needs no network,
burdens no mirror, and hangs on nobody's Cache-Control.
"""

from __future__ import annotations

import asyncio
import secrets
from contextlib import suppress
from dataclasses import dataclass
from email.utils import formatdate

HOST = "cache.vmproxy.invalid"
"""Only the proxy that lends the object knows this name."""

_FRESH_SECONDS = 300
_LENT_SECONDS = 86_400.0  # for who does not give it back; a VM may be asked about its restart for hours
_LENT = 256
_STALL_SECONDS = 20.0
_HEAD_BYTES = 64 << 10
_BODY_BYTES = 16 << 10


@dataclass
class _Object:
    """What is given under one path until ``end``; ``asked`` counts answers given."""

    body: bytes
    end: asyncio.TimerHandle
    asked: int = 0


class Sample:
    """One origin, and an object for each who borrows one; its path has a part that nobody can guess."""

    def __init__(self) -> None:
        self.port = 0
        self._lent: dict[str, _Object] = {}
        self._server: asyncio.Server | None = None

    @property
    def lent(self) -> bool:
        """Whether anybody has an object."""
        return bool(self._lent)

    async def start(self) -> None:
        """Listen. Raises OSError."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, limit=_HEAD_BYTES)
        self.port = int(self._server.sockets[0].getsockname()[1])

    def lend(self) -> str:
        """The URL of a new object, there for a day at most; of very many the first goes."""
        if len(self._lent) >= _LENT:
            self._forget(next(iter(self._lent)))
        path = f"/{secrets.token_hex(8)}"
        end = asyncio.get_running_loop().call_later(_LENT_SECONDS, self._forget, path)
        self._lent[path] = _Object(body=secrets.token_bytes(_BODY_BYTES), end=end)
        return f"http://{HOST}{path}"

    def take_back(self, url: str) -> int | None:
        """Forget an object; how often its origin was asked, None where it is not lent."""
        return self._forget(url.removeprefix(f"http://{HOST}"))

    def _forget(self, path: str) -> int | None:
        found = self._lent.pop(path, None)
        if found is None:
            return None
        found.end.cancel()
        return found.asked

    def stop(self) -> None:
        """Listen no more; safe to call twice."""
        for path in list(self._lent):
            self._forget(path)
        if self._server:
            self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            async with asyncio.timeout(_STALL_SECONDS):
                head = await reader.readuntil(b"\r\n\r\n")
                words = head.partition(b"\r\n")[0].split(b" ")
                known = self._lent.get(words[1].decode("latin-1")) if len(words) == 3 and words[0] == b"GET" else None
                if known:
                    known.asked += 1
                status, life = (b"200 OK", b"max-age=%d" % _FRESH_SECONDS) if known else (b"404 Not Found", b"no-store")
                body = known.body if known else b""
                writer.write(
                    b"HTTP/1.1 %b\r\nContent-Type: application/octet-stream\r\nCache-Control: %b\r\nDate: %b\r\n"
                    b"Content-Length: %d\r\nConnection: close\r\n\r\n"
                    % (status, life, formatdate(usegmt=True).encode(), len(body))
                )
                writer.write(body)
                await writer.drain()
        writer.close()
