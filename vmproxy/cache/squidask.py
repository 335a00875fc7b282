"""Questions to our own squid: its cache manager's pages, and PURGE. Short connections to the address it listens on."""

from __future__ import annotations

import asyncio
import base64
from contextlib import suppress
from fnmatch import fnmatchcase
from ipaddress import ip_address

from vmproxy.cache import squidlog
from vmproxy.cache.limits import CacheSettings
from vmproxy.cache.squidconf import Run

_SECONDS = 30.0
_PAGE_LIMIT = 64 << 20


class Asker:
    """Who may ask: it knows the secret of this run."""

    def __init__(self, settings: CacheSettings, run: Run) -> None:
        address = ip_address(settings.address)
        any_address = "127.0.0.1" if address.version == 4 else "::1"
        self._host = any_address if address.is_unspecified else settings.address
        self._port = settings.port
        self._name = f"{run.name}:{settings.port}"
        self._secret = run.secret
        word = base64.b64encode(f"vmproxy:{run.secret}".encode()).decode()
        self._fields = f"Host: {self._name}\r\nAuthorization: Basic {word}\r\nConnection: close\r\n"

    async def _page(self, name: str) -> str | None:
        """A page of the cache manager; None where it does not answer, or somebody else does."""
        with suppress(OSError, TimeoutError, EOFError, ValueError, IndexError, asyncio.LimitOverrunError):
            async with asyncio.timeout(_SECONDS):
                reader, writer = await asyncio.open_connection(self._host, self._port)
                try:
                    writer.write(f"GET /squid-internal-mgr/{name} HTTP/1.0\r\n{self._fields}\r\n".encode())
                    head = await reader.readuntil(b"\r\n\r\n")
                    if head.split(b" ", 2)[1] != b"200":
                        return None
                    page = bytearray()
                    while piece := await reader.read(1 << 18):
                        page += piece
                        if len(page) > _PAGE_LIMIT:
                            break
                    return page.decode("latin-1")
                finally:
                    writer.close()
        return None

    async def info(self) -> str | None:
        """The page ``info``; None where it does not answer."""
        return await self._page("info")

    async def in_memory(self, pattern: str) -> set[str]:
        """The addresses held in memory that fit a glob."""
        found = squidlog.addresses(await self._page("vm_objects") or "")
        return {url for url in found if fnmatchcase(url, pattern)}

    async def purge(self, urls: list[str]) -> set[str]:
        """Forget these addresses; those that it held."""
        gone: set[str] = set()
        for url in urls:
            if any(ord(char) < 33 or ord(char) > 126 for char in url):
                continue
            with suppress(OSError, TimeoutError, EOFError, ValueError, IndexError):
                async with asyncio.timeout(_SECONDS):
                    reader, writer = await asyncio.open_connection(self._host, self._port)
                    try:
                        fields = f"{self._fields}X-Vmproxy-Secret: {self._secret}\r\n"
                        writer.write(f"PURGE {url} HTTP/1.0\r\n{fields}\r\n".encode("latin-1"))
                        if (await reader.readline()).split(b" ", 2)[1] == b"200":
                            gone.add(url)
                    finally:
                        writer.close()
        return gone
