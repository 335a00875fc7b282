"""The caching proxy: clients in, origins out, the store in between."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any

from vmproxy.cache.control import Control
from vmproxy.cache.entry import Entry
from vmproxy.cache.exchange import Exchange
from vmproxy.cache.flight import Flight
from vmproxy.cache.guard import check_settings, may_use, port_refused
from vmproxy.cache.limits import CacheSettings
from vmproxy.cache.listening import refused
from vmproxy.cache.message import BadMessage, Head, encode, parse_request, words
from vmproxy.cache.origin import NoAnswer, Origins
from vmproxy.cache.place import begin_log
from vmproxy.cache.policy import plain_request
from vmproxy.cache.reply import Reply
from vmproxy.cache.request import Asked, parse, redact, tunnel_target
from vmproxy.cache.stats import Stats
from vmproxy.cache.store import Store
from vmproxy.cache.tunnel import Tunnel
from vmproxy.cache.wire import Lost, Wire, Wires

_QUICK_LIMIT = 1024
_QUICK_HEAD_LIMIT = 4096


class Proxy:
    """A caching proxy on one address. ``log`` is told one line for each request, without secrets.

    Construct it inside a running loop; then :meth:`start`, and in the end :meth:`stop`.
    """

    name = "embedded"
    ready = True
    beside: Callable[[], dict[str, Any]] | None = None

    def __init__(
        self,
        settings: CacheSettings,
        *,
        log: Callable[[str], None] | None = None,
        warn: Callable[[str], None] | None = None,
    ) -> None:
        check_settings(settings)
        self.settings = settings
        self.limits = settings.limits
        self.log = log
        self.warn = warn or log
        self.stats = Stats()
        self.pseudonym = f"vmproxy-{secrets.token_hex(4)}"
        self.via = f"1.1 {self.pseudonym}"
        self.wires = Wires()
        self.flights: dict[str, Flight] = {}
        self.spools: set[asyncio.Task[None]] = set()
        self.store = Store(settings.directory, limit=settings.size, memory=settings.limits.memory_total)
        begin_log(settings.directory)
        self.origins = Origins(settings, self.wires, warn=self.warn)
        self._clients: dict[asyncio.Task[None], Wire] = {}
        self._idle: set[Wire] = set()
        self._quick: OrderedDict[bytes, tuple[Entry, bytes, str]] = OrderedDict()
        self._server: asyncio.Server | None = None
        self._chores: list[asyncio.Task[None]] = []
        self._control = Control(self)
        self._ending = False

    async def start(self) -> int:
        """Listen; the port. Raises Refused where that address cannot be listened on, NotPermitted; has stopped then."""
        try:
            return await self._begin()
        except BaseException:
            await self.stop()
            raise

    async def _begin(self) -> int:
        loop = asyncio.get_running_loop()
        self._control.load()
        try:
            self._server = await loop.create_server(
                lambda: Wire(self.wires, self._accept), self.settings.address, self.settings.port, backlog=512
            )
        except OSError as error:
            raise refused(self.settings, error) from None
        port = int(self._server.sockets[0].getsockname()[1])
        self.settings = self.origins.settings = replace(self.settings, port=port)
        limits = self.limits
        shortest = min(limits.head_seconds, limits.stall_seconds, limits.origin_seconds, limits.idle_seconds)
        await self._control.start()
        self._chores = [
            asyncio.create_task(self.wires.sweep(min(1.0, shortest / 4))),
            asyncio.create_task(self._tidy()),
        ]
        return port

    async def _tidy(self) -> None:
        last = 0.0
        while True:
            await asyncio.sleep(min(5.0, self.limits.origin_idle_seconds))
            self.origins.tidy()
            if (now := time.monotonic()) - last > 60:
                last = now
                self._control.save()

    async def stop(self) -> None:
        """Take no more clients, let what is under way end within the grace, then close everything."""
        self._ending = True
        if self._server:
            self._server.close()
        for wire in list(self._idle):
            wire.close()
        if self._clients:
            await asyncio.wait(list(self._clients), timeout=self.limits.grace_seconds)
        tasks = [*self._clients, *self.spools, *self._chores]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self.origins.close()
        await self._control.stop()
        for wire in list(self.wires.all):
            wire.stream.abort()
        await asyncio.sleep(0)
        self.store.close()

    async def ended(self) -> None:
        """It does not end by itself."""
        await asyncio.get_running_loop().create_future()

    async def held(self) -> dict[str, Any]:
        """What the store keeps."""
        return {"entries": len(self.store), "size": self.store.total, "limit": self.store.limit}

    def lend(self, port: int) -> None:
        """Where the object of :mod:`vmproxy.cache.sample` has its origin; 0 for nowhere."""
        self.origins.sample = port

    async def purge(self, pattern: str) -> tuple[int, int]:
        """Remove the entries whose address fits a glob; (how many, bytes)."""
        return self.store.purge(pattern)

    # clients

    def _accept(self, wire: Wire) -> None:
        if not may_use(self.settings, wire.peer):
            self.stats.total["refused"] += 1
            self._say(f"{wire.peer} refused: not within --allow")
            wire.cut()
            return
        if len(self._clients) >= self.limits.clients or self._ending:
            self.stats.total["refused"] += 1
            wire.write(encode("HTTP/1.1 503 Service Unavailable", [("Content-Length", "0"), ("Connection", "close")]))
            wire.close()
            return
        task = asyncio.get_running_loop().create_task(self._serve(wire))
        self._clients[task] = wire
        task.add_done_callback(lambda done: self._clients.pop(done, None))

    async def _serve(self, wire: Wire) -> None:
        try:
            while not self._ending and await self._one(wire):
                pass
            wire.close()
        except Lost:
            wire.cut()
        except asyncio.CancelledError:
            wire.cut()
            raise
        except Exception as error:
            self.stats.total["errors"] += 1
            self._say(f"bug: {type(error).__name__} at {_place(error)}")
            wire.cut()
        finally:
            self._idle.discard(wire)

    async def _next(self, wire: Wire) -> bytes | None:
        """The next request's head; None where the client has gone. Raises BadMessage, Lost."""
        if not wire.buffer:
            self._idle.add(wire)
            wire.quick = self._answer_quickly
            wire.idle_seconds = self.limits.idle_seconds
            wire.until(wire.idle_seconds)
            try:
                more = await wire.more()
            except Lost:
                more = False
            finally:
                wire.quick = None
                self._idle.discard(wire)
            if not more:
                return None
        wire.until(self.limits.head_seconds)
        if wire.buffer == b"\r":
            await wire.more()
        if wire.buffer.startswith(b"\r\n"):  # some old clients end a body with it (RFC 9112 2.2)
            del wire.buffer[:2]
        return await wire.head()

    async def _one(self, wire: Wire) -> bool:
        """One request; whether the connection goes on. Raises Lost."""
        reply = Reply(wire, self.limits, self.via, minor=1, keep=False)
        try:
            data = await self._next(wire)
            if data is None:
                return False
            head = parse_request(data)
            reply.minor = head.minor
            if head.method == "CONNECT":
                await self._tunnel(wire, reply, head)
                return False
            asked = self._checked(parse(head), head)
        except BadMessage as error:
            return await self._refused(reply, error.status, str(error))
        except Lost as error:
            if error.late:
                return await self._refused(reply, 408, "the request did not come in time")
            raise
        reply.keep = head.keep_alive and not self._ending
        exchange = Exchange(self, wire, reply, asked, expects=bool(head.get("expect")))
        went_on = await exchange.run()
        self._say(f"{asked.method} {redact(asked.url)} {exchange.outcome}")
        if exchange.hit and head.minor and reply.keep and not wire.buffer and len(data) <= _QUICK_HEAD_LIMIT:
            self._remember(data, exchange.hit, asked)
        if not went_on and not wire.lost:
            await reply.linger()
        return went_on

    def _checked(self, asked: Asked, head: Head) -> Asked:
        if self.pseudonym in head.get("via"):
            raise BadMessage("the request has been here before", 508)
        if asked.method == "TRACE":
            raise BadMessage("TRACE is not served", 405)
        if words(head.get("expect")) - {"100-continue"}:
            raise BadMessage("that expectation cannot be met", 417)
        if why := port_refused(self.settings, asked.port, tunnel=False):
            raise BadMessage(why, 403)
        return asked

    async def _refused(self, reply: Reply, status: int, what: str) -> bool:
        self.stats.total["refused"] += 1
        self._say(f"refused, {status}: {what}")
        reply.error(status, what)
        await reply.linger()
        return False

    def _say(self, text: str) -> None:
        if self.log:
            self.log(text)

    # hits that were given before, without parsing the same bytes again

    def _remember(self, data: bytes, entry: Entry, asked: Asked) -> None:
        if entry.body is None or not plain_request(asked.head):
            return
        fields = [*entry.stored.fields, ("Via", self.via), ("Cache-Status", "vmproxy; hit")]
        top = encode("HTTP/1.1 200 OK", [*fields, ("Content-Length", str(entry.length))])[:-2]
        self._quick[data] = (entry, top, asked.place)
        if len(self._quick) > _QUICK_LIMIT:
            self._quick.popitem(last=False)

    def _answer_quickly(self, data: bytes) -> bytes | None:
        """The answer to a head that is, byte for byte, one that a fresh entry answered before; else None."""
        known = self._quick.get(data)
        if known is None:
            return None
        entry, top, host = known
        now = time.time()
        body = entry.body
        if body is None or now >= entry.fresh_until or self._ending or not self.store.holds(entry):
            del self._quick[data]
            return None
        self.store.use(entry)
        self.stats.count(host, "requests", "hits", saved=len(body))
        age = max(0, int(now - entry.stored.received + entry.stored.age))
        return b"%bAge: %d\r\n\r\n%b" % (top, age, body)

    # tunnels

    async def _tunnel(self, wire: Wire, reply: Reply, head: Head) -> None:
        host, port = tunnel_target(head)
        if self.pseudonym in head.get("via"):
            raise BadMessage("the request has been here before", 508)
        if why := port_refused(self.settings, port, tunnel=True):
            raise BadMessage(why, 403)
        try:
            other = await self.origins.tunnel(host, port, self.via)
        except NoAnswer as error:
            raise BadMessage(str(error), error.status) from None
        shown = f"{host}:{port}"
        self.stats.count(shown, "requests", "tunnels")
        self._say(f"CONNECT {shown} tunnelled, never cached")
        wire.write(b"HTTP/1.1 200 Connection established\r\n\r\n")

        def count(size: int) -> None:
            self.stats.total["bytes_tunnelled"] += size

        await Tunnel(wire, other, seconds=self.limits.tunnel_seconds, count=count).run()


def _place(error: BaseException) -> str:
    """Where in our code an error was raised: file and line, nothing of its text."""
    import traceback

    with suppress(IndexError):
        last = traceback.extract_tb(error.__traceback__)[-1]
        return f"{last.filename.rpartition('/')[2]}:{last.lineno}"
    return "?"
