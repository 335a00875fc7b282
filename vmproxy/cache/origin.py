"""Connections to origins: resolved once, checked, and that very address connected to; kept for the next request."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from ipaddress import ip_address

from vmproxy.cache.guard import Address, target_refused
from vmproxy.cache.limits import CacheSettings
from vmproxy.cache.message import BadMessage, Head, parse_response, response_body
from vmproxy.cache.sample import HOST as SAMPLE_HOST
from vmproxy.cache.wire import Incoming, Lost, Wire, Wires

_IDLE_PER_ORIGIN = 32
_IDLE_IN_ALL = 256
_INTERIM_LIMIT = 16
_OWN_SECONDS = 10.0
_RESOLVERS = 16


class NoAnswer(Exception):
    """The origin cannot be asked or gives no answer; ``status`` is what the client is told."""

    def __init__(self, what: str, status: int) -> None:
        super().__init__(what)
        self.status = status


class Answer:
    """An origin's head, with its body still to come."""

    __slots__ = ("body", "delay", "head", "wire")

    def __init__(self, wire: Wire, head: Head, body: Incoming, delay: float) -> None:
        self.wire = wire
        self.head = head
        self.body = body
        self.delay = delay


class Origins:
    """Connections to origins, new and kept."""

    def __init__(self, settings: CacheSettings, wires: Wires) -> None:
        self.settings = settings
        self._limits = settings.limits
        self._wires = wires
        self._loop = asyncio.get_running_loop()
        # Not the threads that read files: a name server that does not answer must not hold them up.
        self._resolver = ThreadPoolExecutor(_RESOLVERS, thread_name_prefix="resolver")
        self._idle: dict[tuple[str, int], list[tuple[float, Wire]]] = {}
        self._own: dict[Address, tuple[float, bool]] = {}
        self.sample = 0
        """The port of :mod:`vmproxy.cache.sample`'s origin, while there is one."""

    async def addresses(self, host: str, port: int) -> list[str]:
        """The addresses of a name that may be connected to. Raises NoAnswer."""
        try:
            async with asyncio.timeout(self._limits.connect_seconds):
                found = await self._loop.run_in_executor(
                    self._resolver, lambda: socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
                )
        except (OSError, UnicodeError):
            raise NoAnswer("the host's name does not resolve", 502) from None
        except TimeoutError:
            raise NoAnswer("the host's name does not resolve in time", 504) from None
        allowed, reason = [], "the host has no address"
        for text in dict.fromkeys(str(entry[4][0]) for entry in found):
            address = ip_address(text.partition("%")[0])
            refused = target_refused(self.settings, address, port, own=self._is_own(address))
            if refused:
                reason = refused
            else:
                allowed.append(text)
        if not allowed:
            raise NoAnswer(reason, 403)
        return allowed

    def _is_own(self, address: Address) -> bool:
        """Whether an address is one of this machine's: only those can be bound to."""
        known = self._own.get(address)
        if known and known[0] > self._loop.time():
            return known[1]
        family = socket.AF_INET if address.version == 4 else socket.AF_INET6
        try:
            with socket.socket(family, socket.SOCK_DGRAM) as probe:
                probe.bind((str(address), 0))
            own = not address.is_multicast
        except OSError:
            own = False
        if len(self._own) > 4096:
            self._own.clear()
        self._own[address] = (self._loop.time() + _OWN_SECONDS, own)
        return own

    async def connect(self, host: str, port: int) -> Wire:
        """A new connection. Raises NoAnswer."""
        if host == SAMPLE_HOST and self.sample:
            with suppress(OSError):
                own = await self._loop.create_connection(lambda: Wire(self._wires), "127.0.0.1", self.sample)
                return own[1]
        late = False
        for address in await self.addresses(host, port):
            try:
                async with asyncio.timeout(self._limits.connect_seconds):
                    _stream, wire = await self._loop.create_connection(lambda: Wire(self._wires), address, port)
                return wire
            except TimeoutError:
                late = True
            except OSError:
                continue
        raise NoAnswer(
            "the host does not answer in time" if late else "the host refuses the connection", 504 if late else 502
        )

    def _kept(self, place: tuple[str, int]) -> Wire | None:
        waiting = self._idle.get(place)
        while waiting:
            until, wire = waiting.pop()
            if not waiting:
                self._idle.pop(place, None)
            if not (wire.lost or wire.ended or wire.buffer) and until > self._loop.time():
                return wire
            wire.close()
        return None

    def keep(self, host: str, port: int, answer: Answer) -> None:
        """Keep a connection whose answer was read to its end, if its origin wants that; else close it."""
        wire = answer.wire
        waiting = self._idle.get((host, port), [])
        fit = answer.body.done and answer.body.length >= -1 and answer.head.keep_alive and not wire.buffer
        room = len(waiting) < _IDLE_PER_ORIGIN and sum(map(len, self._idle.values())) < _IDLE_IN_ALL
        if fit and room and not (wire.ended or wire.lost):
            wire.read_until = float("inf")
            waiting.append((self._loop.time() + self._limits.origin_idle_seconds, wire))
            self._idle[(host, port)] = waiting
            return
        wire.close()

    def tidy(self) -> None:
        """Close kept connections that are too old or gone."""
        now = self._loop.time()
        for place, waiting in list(self._idle.items()):
            for pair in waiting[:]:
                if pair[0] <= now or pair[1].lost or pair[1].ended or pair[1].buffer:
                    waiting.remove(pair)
                    pair[1].close()
            if not waiting:
                del self._idle[place]

    def close_kept(self) -> None:
        """Close every kept connection."""
        for waiting in self._idle.values():
            for _until, wire in waiting:
                wire.close()
        self._idle.clear()

    def close(self) -> None:
        """Close every kept connection, and resolve no more."""
        self.close_kept()
        self._resolver.shutdown(wait=False, cancel_futures=True)

    async def ask(
        self, host: str, port: int, method: str, data: bytes, upload: Callable[[Wire], asyncio.Task[None]] | None = None
    ) -> Answer:
        """Send a head, and what ``upload`` starts to send behind it; the answer's head. Raises NoAnswer.

        A kept connection that turns out to be closed is replaced once, if nothing but the head was sent.
        """
        began = self._loop.time()
        wire = None if upload else self._kept((host, port))
        reused = wire is not None
        while True:
            if wire is None:
                wire = await self.connect(host, port)
            try:
                wire.write(data)
                if upload:
                    upload(wire)
                head = await self._head(wire)
                body = Incoming(wire, response_body(head, method), self._limits.origin_seconds)
                return Answer(wire, head, body, self._loop.time() - began)
            except Lost as error:
                wire.cut()
                if reused and not error.late:
                    wire, reused = None, False
                    continue
                what = "the origin does not answer in time" if error.late else "the origin closed without an answer"
                raise NoAnswer(what, 504 if error.late else 502) from None
            except BadMessage as error:
                wire.cut()
                raise NoAnswer(str(error), 502) from None
            except BaseException:
                wire.cut()
                raise

    async def _head(self, wire: Wire) -> Head:
        for _interim in range(_INTERIM_LIMIT):
            wire.until(self._limits.origin_seconds)
            data = await wire.head()
            if data is None:
                raise Lost
            head = parse_response(data)
            if head.status >= 200:
                return head
            if head.status == 101:
                break
        raise BadMessage("the origin switches protocols, or never comes to its answer", 502)
