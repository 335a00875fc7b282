"""A cache for pip beside the proxy: proxpi as a child on loopback, and a door before it with the proxy's own rules.

proxpi takes anybody who reaches it; so it is reached through us only, at the address of the proxy and by its clients.
https: indexes, which the proxy can only tunnel, are kept this way.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from ipaddress import ip_address
from typing import Any

from vmproxy.cache import place
from vmproxy.cache.guard import may_use
from vmproxy.cache.limits import CacheSettings
from vmproxy.cache.listening import refused
from vmproxy.errors import Refused, UsageError

_START_SECONDS = 60.0
_STALL_SECONDS = 300.0  # proxpi may fetch a list of many files before it answers
_END_SECONDS = 5.0
_AGAIN_SECONDS = 1.0
_LIVES = 5
_CLIENTS = 200
_PIECE_BYTES = 64 << 10
_PATH = "/index/"
_PACKAGES = ("site-packages", "dist-packages")
_NOT_FOR_IT = ("VMPROXY_", "NOTIFY_SOCKET", "PYTHONSAFEPATH")
"""Beginnings of variables: ours may hold the upstream's password."""


def need_proxpi() -> None:
    """Raises UsageError where proxpi is not installed."""
    from importlib.util import find_spec

    if find_spec("proxpi") is None:
        raise UsageError("--pip needs the package proxpi", hint="pip install 'vmproxy[pip-cache]'")


class PipCache:
    """proxpi and its door. ``warn`` is told when proxpi ends by itself: it is started again, five times in all."""

    def __init__(self, settings: CacheSettings, *, warn: Callable[[str], None]) -> None:
        self._settings, self._warn = settings, warn
        self._server: asyncio.Server | None = None
        self._child: asyncio.subprocess.Process | None = None
        self._port = 0
        self._watch: asyncio.Task[None] | None = None
        self._clients: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Begin; clients can come then. Raises Refused, UsageError."""
        settings = self._settings
        need_proxpi()
        try:
            self._server = await asyncio.start_server(self._accept, settings.address, settings.pip_port)
        except OSError as error:
            why = refused(replace(settings, port=settings.pip_port), error)
            raise Refused(why.what, where=why.where, hint=why.hint.replace("--port", "--pip-port")) from None
        try:
            await self._spawn()
        except BaseException:
            await self.stop()
            raise
        self._watch = asyncio.create_task(self._keep())

    def status(self) -> dict[str, Any]:
        """What ``cache status`` says of it. ``index`` is for pip on this host."""
        settings = self._settings
        alive = self._child is not None and self._child.returncode is None and self._port > 0
        return {
            "running": alive,
            "listen": f"{_shown(settings.address)}:{settings.pip_port}",
            "index": f"http://{self._near()}:{settings.pip_port}{_PATH}",
        }

    def _near(self) -> str:
        """How this machine reaches the address that is listened on: what means all addresses is none to go to."""
        address = ip_address(self._settings.address)
        if address.is_unspecified:
            return "127.0.0.1" if address.version == 4 else "[::1]"
        return _shown(str(address))

    async def stop(self) -> None:
        """End it and all that goes through it."""
        if self._server:
            self._server.close()
        tasks = [*self._clients, *([self._watch] if self._watch else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._end()

    async def _spawn(self) -> None:
        self._port = 0
        self._child = child = await asyncio.create_subprocess_exec(
            *(sys.executable, "-P", "-m", "vmproxy.cache.pipserver"),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env=self._environment(os.environ),
            start_new_session=os.name != "nt",
        )
        assert child.stdout is not None  # noqa: S101 - asked for above
        line = b""
        with suppress(TimeoutError):
            async with asyncio.timeout(_START_SECONDS):
                line = await child.stdout.readline()
        if not line.strip().isdigit() or not await self._healthy(int(line)):
            await self._end()
            raise Refused("proxpi does not start", hint="its own words stand before this")
        self._port = int(line)

    def _environment(self, environ: Mapping[str, str]) -> dict[str, str]:
        """proxpi's settings: what the user's own environment says goes before ours."""
        root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
        ours = {
            "PROXPI_CACHE_DIR": os.path.join(self._settings.directory, place.PIP),
            "PROXPI_CACHE_SIZE": str(self._settings.size),
            "PROXPI_LOGGING_LEVEL": "WARNING",
        }
        kept = {name: value for name, value in environ.items() if not name.startswith(_NOT_FOR_IT)}
        # As cacherun.program: what is installed is found without, and would stand before Python's own library.
        first = "" if os.path.basename(root) in _PACKAGES else root
        paths = [path for path in (first, environ.get("PYTHONPATH", "")) if path]
        if self._settings.upstream is not None:
            # It goes where the proxy goes, and needs no credentials: through the proxy.
            own = f"http://{self._near()}:{self._settings.port}"
            ours |= dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), own)
            kept = {name: value for name, value in kept.items() if name.lower() not in ("http_proxy", "https_proxy")}
        os.makedirs(ours["PROXPI_CACHE_DIR"], mode=0o700, exist_ok=True)
        return {**ours, **kept, "PYTHONPATH": os.pathsep.join(paths)}

    async def _healthy(self, port: int) -> bool:
        with suppress(OSError, TimeoutError):
            async with asyncio.timeout(_START_SECONDS):
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.write(b"GET /health HTTP/1.0\r\n\r\n")
                line = await reader.readline()
                writer.close()
                return b" 200 " in line
        return False

    async def _keep(self) -> None:
        """Say when the child ends, and start it again."""
        for life in range(1, _LIVES + 1):
            assert self._child is not None  # noqa: S101 - the one that was started last
            status = await self._child.wait()
            self._port = 0
            if life == _LIVES:
                break
            self._warn(f"the cache for pip ended (exit {status}); it is started again")
            await asyncio.sleep(_AGAIN_SECONDS)
            try:
                await self._spawn()
            except (Refused, OSError):
                break
        self._warn("the cache for pip has ended, and is not started any more")

    async def _end(self) -> None:
        child = self._child
        if child is None or child.returncode is not None:
            return
        with suppress(ProcessLookupError):
            child.terminate()
        try:
            async with asyncio.timeout(_END_SECONDS):
                await child.wait()
        except TimeoutError:
            with suppress(ProcessLookupError):
                child.kill()
            await child.wait()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer = writer.get_extra_info("peername") or ("0.0.0.0",)  # noqa: S104 - nobody
        if not may_use(self._settings, peer[0]) or len(self._clients) >= _CLIENTS or not self._port:
            writer.transport.abort()
            return
        task = asyncio.get_running_loop().create_task(self._serve(reader, writer))
        self._clients.add(task)
        task.add_done_callback(self._clients.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            with suppress(OSError):
                inner_reader, inner = await asyncio.open_connection("127.0.0.1", self._port)
                try:
                    await asyncio.gather(_pump(reader, inner), _pump(inner_reader, writer))
                finally:
                    inner.transport.abort()
        except TimeoutError:
            pass
        finally:
            writer.transport.abort() if writer.transport.get_write_buffer_size() else writer.close()


def _shown(address: str) -> str:
    return f"[{address}]" if ":" in address else address


async def _pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    """Copy to the end, then pass the end on. Raises TimeoutError where nothing moves."""
    while True:
        async with asyncio.timeout(_STALL_SECONDS):
            data = await source.read(_PIECE_BYTES)
        if not data:
            break
        sink.write(data)
        async with asyncio.timeout(_STALL_SECONDS):
            await sink.drain()
    with suppress(OSError):
        sink.write_eof()
