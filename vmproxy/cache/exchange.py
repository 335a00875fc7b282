"""One request and its answer: from the store, from a download under way, or from the origin."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from typing import TYPE_CHECKING

from vmproxy.cache.entry import Entry
from vmproxy.cache.flight import Flight, Spool
from vmproxy.cache.message import UNTIL_CLOSE, BadMessage, Fields, chunk
from vmproxy.cache.origin import Answer, NoAnswer
from vmproxy.cache.policy import Stored, also_invalid, keep, look, plain_request, renew, stale_allowed
from vmproxy.cache.reply import NO_BODY, UNKNOWN, Reply, give, line, origin_fields
from vmproxy.cache.request import Asked
from vmproxy.cache.store import Corrupt
from vmproxy.cache.wire import Incoming, Lost, Wire

if TYPE_CHECKING:
    from vmproxy.cache.server import Proxy

_SAFE = frozenset(("GET", "HEAD", "OPTIONS", "TRACE"))


class Exchange:
    """One request of one client. ``hit`` is the entry that answered it whole, ``outcome`` a word for the log."""

    def __init__(self, proxy: Proxy, wire: Wire, reply: Reply, asked: Asked, *, expects: bool) -> None:
        self._proxy = proxy
        self._store = proxy.store
        self._limits = proxy.limits
        self._wire = wire
        self._reply = reply
        self._asked = asked
        self._expects = expects
        self._bad = False
        self._upload: asyncio.Task[None] | None = None
        self._incoming = Incoming(wire, asked.body, proxy.limits.stall_seconds)
        self.hit: Entry | None = None
        self.outcome = "failed"

    async def run(self) -> bool:
        """Answer; whether the connection goes on. Raises Lost, where the connection is to be cut."""
        try:
            await self._answer()
        except NoAnswer as error:
            if self._reply.begun:
                raise Lost from None
            self._proxy.stats.fail(self._asked.place)
            status, what = (
                (400, "the request's body broke off or is malformed") if self._bad else (error.status, str(error))
            )
            self.outcome = f"{status}: {what}"
            self._reply.keep = self._reply.keep and self._incoming.done
            self._reply.error(status, what)
        except (Corrupt, BadMessage):
            if self._reply.begun:
                raise Lost from None
            self._reply.keep = False
            self._reply.error(400 if self._asked.body else 502, "the message is malformed")
        finally:
            if self._upload:
                self._upload.cancel()
                with suppress(asyncio.CancelledError, Exception):
                    await self._upload
        return self._reply.keep and self._incoming.done

    def _count(self, *names: str, saved: int = 0, fetched: int = 0) -> None:
        self._proxy.stats.count(self._asked.place, "requests", *names, saved=saved, fetched=fetched)
        self.outcome = names[0] if names else self.outcome

    async def _answer(self) -> None:
        asked = self._asked
        if asked.method not in ("GET", "HEAD") or asked.body:
            await self._pass()
            return
        for _attempt in range(3):  # again where an entry turns out to be broken: it is gone then
            entry = self._store.find(asked.url, asked.head)
            now = time.time()
            if entry and now < entry.fresh_until and plain_request(asked.head):
                kind, conditions = "fresh", []
            else:
                verdict = look(asked.head, asked.url, entry.stored if entry else None, now=now)
                kind, conditions = verdict.kind, list(verdict.conditions)
            if kind == "fresh" and entry:
                if await self._give(entry, "hits", "hit"):
                    return
                continue
            if kind == "absent":
                raise NoAnswer("not in the cache, and only that was wanted", 504)
            if kind == "pass" or asked.method == "HEAD" or "range" in asked.head.values:
                break
            if entry is None and asked.head.values.keys() & {"if-none-match", "if-modified-since"}:
                break
            if await self._shared(entry, conditions):
                return
        await self._pass()

    async def _give(self, entry: Entry, name: str, status: str) -> bool:
        """Answer from the store; False where the entry is broken."""
        reply = self._reply
        if not await give(reply, self._store, entry, self._asked.head, now=time.time(), status=f"vmproxy; {status}"):
            return False
        self._count(name, saved=reply.sent)
        if reply.sent == entry.length and name == "hits":
            self.hit = entry
        return True

    # downloads that several clients share

    async def _shared(self, entry: Entry | None, conditions: Fields) -> bool:
        """Ask the origin, or wait for the one who does; False to look again."""
        flights, key = self._proxy.flights, self._asked.url
        running = flights.get(key)
        if running and plain_request(self._asked.head):
            return await self._follow(await running.outcome(self._asked.head))
        flight = Flight()
        if not running:
            flights[key] = flight
        try:
            return await self._lead(flight, entry, conditions)
        except NoAnswer as error:
            flight.settle(failure=error)
            raise
        finally:
            if not flight.settled:
                flight.settle()
            if flights.get(key) is flight and not flight.spool:
                del flights[key]

    async def _follow(self, flight: Flight) -> bool:
        if flight.failure:
            raise flight.failure
        entry = flight.entry or (flight.spool.entry if flight.spool else None)
        if entry:
            return await self._give(entry, "hits", "hit; collapsed")
        if flight.spool and flight.spool.open:
            await self._read(flight.spool, "hits", "hit; collapsed")
            return True
        await self._pass()
        return True

    async def _lead(self, flight: Flight, entry: Entry | None, conditions: Fields) -> bool:
        asked = self._asked
        try:
            answer = await self._ask(conditions)
        except NoAnswer:
            if entry and self._stale(entry):
                return await self._give_stale(flight, entry)
            raise
        now = time.time()
        head = answer.head
        if entry and conditions and head.status == 304:
            fresh = renew(entry.stored, head, now=now, delay=answer.delay)
            self._done_with(answer)
            if fresh is None:
                self._store.drop(entry)
                return False
            try:
                entry = self._store.renew(entry, fresh)
            except (Corrupt, OSError):
                self._store.drop(entry)
                return False
            flight.settle(entry=entry)
            return await self._give(entry, "revalidated", "hit; detail=revalidated")
        if entry and head.status >= 500 and self._stale(entry):
            answer.wire.cut()
            return await self._give_stale(flight, entry)
        stored = keep(asked.head, asked.url, head, now=now, delay=answer.delay)
        length = answer.body.length
        if stored is None or length == UNTIL_CLOSE or length > self._store.object_limit:
            if entry and stored is None and head.status == 200:
                self._store.drop(entry)
            flight.settle()
            await self._stream(answer, "misses", "fwd=uri-miss")
        elif 0 <= length <= self._limits.memory_body:
            await self._small(flight, answer, stored)
        else:
            await self._large(flight, answer, stored)
        return True

    def _stale(self, entry: Entry) -> bool:
        return stale_allowed(entry.stored, self._asked.head, now=time.time())

    async def _give_stale(self, flight: Flight, entry: Entry) -> bool:
        flight.settle(entry=entry)
        return await self._give(entry, "stale", "hit; detail=stale-if-error")

    async def _small(self, flight: Flight, answer: Answer, stored: Stored) -> None:
        """A body that fits into memory is had whole before the answer begins: a broken one is a 502 or a 504."""
        pieces = []
        try:
            while data := await answer.body.read():
                pieces.append(data)
        except (Lost, BadMessage) as error:
            answer.wire.cut()
            late = isinstance(error, Lost) and error.late
            raise NoAnswer("the origin's answer broke off", 504 if late else 502) from None
        self._done_with(answer)
        body = b"".join(pieces)
        try:
            flight.settle(entry=self._store.put(self._asked.url, stored, body))
        except OSError:  # no room: served all the same
            flight.settle()
        fields = origin_fields(answer.head, no_body=False)
        self._reply.head(line(200, answer.head.reason), fields, len(body), status="vmproxy; fwd=uri-miss; stored")
        self._count("misses", fetched=len(body))
        await self._reply.piece(body)

    async def _large(self, flight: Flight, answer: Answer, stored: Stored) -> None:
        proxy, key = self._proxy, self._asked.url
        spool = Spool(self._store, key, stored, answer)
        flight.settle(spool=spool)

        def finished(whole: bool) -> None:
            if proxy.flights.get(key) is flight:
                del proxy.flights[key]
            if whole:
                self._done_with(answer)
            else:
                answer.wire.cut()

        token = spool.join()
        task = asyncio.create_task(spool.pump(finished))
        proxy.spools.add(task)
        task.add_done_callback(proxy.spools.discard)
        await self._read(spool, "misses", "fwd=uri-miss; stored", token=token)

    async def _read(self, spool: Spool, name: str, status: str, *, token: object = None) -> None:
        """Give a client what a download brings. Raises Lost where it broke off."""
        reply = self._reply
        token = token or spool.join()
        try:
            fields = origin_fields(spool.answer.head, no_body=False)
            length = spool.length if spool.length >= 0 else UNKNOWN
            reply.head(line(200, spool.answer.head.reason), fields, length, status=f"vmproxy; {status}")
            while data := await spool.read(token):
                await reply.piece(data)
            reply.last()
        finally:
            spool.leave(token)
            bytes_of = {"saved": reply.sent} if name == "hits" else {"fetched": reply.sent}
            self._count(name, **bytes_of)

    # answers that are for one client alone

    async def _ask(self, conditions: Fields = []) -> Answer:  # noqa: B006
        asked = self._asked
        parent = self._proxy.origins.parent_of(asked.host, asked.port)
        data = asked.encoded(self._proxy.via, conditions, through=parent.fields if parent else None)
        upload = self._send if asked.body else None
        return await self._proxy.origins.ask(asked.host, asked.port, asked.method, data, upload)

    def _done_with(self, answer: Answer) -> None:
        self._proxy.origins.keep(answer)

    def _send(self, origin: Wire) -> asyncio.Task[None]:
        if self._expects and self._reply.minor:
            self._wire.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        self._upload = asyncio.create_task(self._forward(origin))
        return self._upload

    async def _forward(self, origin: Wire) -> None:
        """The request's body, as it comes; where it breaks off the origin must not take it for whole."""
        while True:
            try:
                data = await self._incoming.read()
            except (Lost, BadMessage):
                self._bad = True
                origin.cut()
                return
            if not data:
                break
            origin.write(chunk(data) if self._asked.body < 0 else data)
            try:
                await origin.drain(self._limits.stall_seconds)
            except Lost:  # what it said before it went is still to be read
                return
        if self._asked.body < 0:
            origin.write(chunk(b""))

    async def _pass(self) -> None:
        asked = self._asked
        answer = await self._ask()
        if asked.method not in _SAFE and answer.head.status < 400:
            for url in (asked.url, *also_invalid(asked.url, answer.head)):
                self._store.invalidate(url)
        await self._stream(answer, "passed", "fwd=method" if asked.method != "GET" else "fwd=request")

    async def _stream(self, answer: Answer, name: str, status: str) -> None:
        """Give an answer on as it comes. Raises Lost where it breaks off."""
        reply, head, body = self._reply, answer.head, answer.body
        no_body = self._asked.method == "HEAD" or head.status in (204, 304)
        length = NO_BODY if no_body else body.length if body.length >= 0 else UNKNOWN
        if self._upload and not self._upload.done():
            reply.keep = False  # it answers before it has everything: nobody knows where the next request begins
        try:
            reply.head(
                line(head.status, head.reason),
                origin_fields(head, no_body=no_body),
                length,
                status=f"vmproxy; {status}",
            )
            while data := await body.read():
                await reply.piece(data)
            reply.last()
        except BadMessage:
            raise Lost from None
        finally:
            self._count(name, fetched=reply.sent)
            if body.done and not (self._upload and not self._upload.done()):
                self._done_with(answer)
            else:
                answer.wire.cut()
