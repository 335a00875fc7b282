"""Connections to origins: resolved once, checked, and that very address connected to; kept for the next request."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from ipaddress import ip_address

from vmproxy.cache.guard import Address, target_refused
from vmproxy.cache.limits import CacheSettings
from vmproxy.cache.message import BadMessage, Head, parse_response, response_body
from vmproxy.cache.parent import Parent, literal, name_refused
from vmproxy.cache.sample import HOST as SAMPLE_HOST
from vmproxy.cache.wire import Incoming, Lost, Wire, Wires

_IDLE_PER_ORIGIN = 32
_IDLE_IN_ALL = 256
_INTERIM_LIMIT = 16
_OWN_SECONDS = 10.0
_RESOLVERS = 16
_WARN_SECONDS = 60.0
_PARENT = "the upstream proxy"
_IDEMPOTENT = frozenset(("GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE"))


Place = tuple[str, int]


class NoAnswer(Exception):
    """The origin cannot be asked or gives no answer; ``status`` is what the client is told."""

    def __init__(self, what: str, status: int) -> None:
        super().__init__(what)
        self.status = status


class Answer:
    """An origin's head, with its body still to come."""

    __slots__ = ("body", "delay", "head", "place", "wire")

    def __init__(self, wire: Wire, head: Head, body: Incoming, delay: float, place: Place) -> None:
        self.wire = wire
        self.head = head
        self.body = body
        self.delay = delay
        self.place = place


class Origins:
    """Connections to origins, new and kept; where there is an upstream, to it in their place.

    ``warn`` is told when the upstream wants other credentials.
    """

    def __init__(self, settings: CacheSettings, wires: Wires, *, warn: Callable[[str], None] | None = None) -> None:
        self.settings = settings
        self.parent = Parent(settings) if settings.upstream else None
        self._warn = warn
        self._warned = 0.0
        self._tls: ssl.SSLContext | None = None
        self._limits = settings.limits
        self._wires = wires
        self._loop = asyncio.get_running_loop()
        # Not the threads that read files: a name server that does not answer must not hold them up.
        self._resolver = ThreadPoolExecutor(_RESOLVERS, thread_name_prefix="resolver")
        self._idle: dict[Place, list[tuple[float, Wire]]] = {}
        self._own: dict[Address, tuple[float, bool]] = {}
        self.sample = 0
        """The port of :mod:`vmproxy.cache.sample`'s origin, while there is one."""

    async def addresses(self, host: str, port: int) -> list[str]:
        """The addresses of a name that may be connected to. Raises NoAnswer."""
        allowed, reason = [], "the host has no address"
        for text in await self._resolve(host, port, "the host"):
            address = ip_address(text.partition("%")[0])
            refused = target_refused(self.settings, address, port, own=self._is_own(address))
            if refused:
                reason = refused
            else:
                allowed.append(text)
        if not allowed:
            raise NoAnswer(reason, 403)
        return allowed

    async def _resolve(self, host: str, port: int, whose: str) -> list[str]:
        try:
            async with asyncio.timeout(self._limits.connect_seconds):
                found = await self._loop.run_in_executor(
                    self._resolver, lambda: socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
                )
        except (OSError, UnicodeError):
            raise NoAnswer(f"{whose}'s name does not resolve", 502) from None
        except TimeoutError:
            raise NoAnswer(f"{whose}'s name does not resolve in time", 504) from None
        return list(dict.fromkeys(str(entry[4][0]) for entry in found))

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
        """A new connection to an origin. Raises NoAnswer."""
        if host == SAMPLE_HOST and self.sample:
            with suppress(OSError):
                own = await self._loop.create_connection(lambda: Wire(self._wires), "127.0.0.1", self.sample)
                return own[1]
        return await self._connect(await self.addresses(host, port), port, "the host")

    async def _connect(self, addresses: list[str], port: int, whose: str, *, tls_name: str = "") -> Wire:
        late = untrusted = False
        for address in addresses:
            try:
                async with asyncio.timeout(self._limits.connect_seconds):
                    if tls_name:
                        _stream, wire = await self._loop.create_connection(
                            lambda: Wire(self._wires), address, port, ssl=self._tls, server_hostname=tls_name
                        )
                    else:
                        _stream, wire = await self._loop.create_connection(lambda: Wire(self._wires), address, port)
                return wire
            except TimeoutError:
                late = True
            except ssl.SSLError:
                untrusted = True
            except OSError:
                continue
        if untrusted:
            raise NoAnswer(f"{whose} does not speak TLS, or its certificate is not trusted", 502)
        what = "does not answer in time" if late else "refuses the connection"
        raise NoAnswer(f"{whose} {what}", 504 if late else 502)

    # the upstream

    def parent_of(self, host: str, port: int) -> Parent | None:
        """The upstream that is asked for a host; None where its origin is."""
        if self.parent is None or (host == SAMPLE_HOST and self.sample):
            return None
        return self.parent if self.parent.takes(host, port) else None

    async def _connect_parent(self, parent: Parent, host: str, port: int) -> Wire:
        """A new connection to the upstream, for a target that it may be asked for. Raises NoAnswer."""
        self._check(host, port)
        proxy = parent.proxy
        addresses = await self._resolve(proxy.host, proxy.port, _PARENT)
        if parent.tls and self._tls is None:
            self._tls = await asyncio.to_thread(ssl.create_default_context)
        return await self._connect(addresses, proxy.port, _PARENT, tls_name=proxy.host if parent.tls else "")

    def _check(self, host: str, port: int) -> None:
        """Raises NoAnswer for a target that is not sent to the upstream."""
        address = literal(host)
        if address is None:
            why = name_refused(host)
        else:
            why = target_refused(self.settings, address, port, own=self._is_own(address))
        if why:
            raise NoAnswer(why, 403)

    def _judge(self, parent: Parent, head: Head) -> None:
        """Raises NoAnswer where the upstream wants other credentials, and warns now and then."""
        if refused := parent.why_not(head):
            now = self._loop.time()
            if self._warn and (not self._warned or now - self._warned > _WARN_SECONDS):
                self._warned = now
                self._warn(f"{refused[0]}: {parent.proxy}")
            raise NoAnswer(*refused)

    async def tunnel(self, host: str, port: int, via: str) -> Wire:
        """A connection on which what is sent reaches a host: its own, or the upstream's tunnel. Raises NoAnswer."""
        parent = self.parent_of(host, port)
        if parent is None:
            return await self.connect(host, port)
        wire = await self._connect_parent(parent, host, port)
        try:
            wire.write(parent.connect_head(host, port, via))
            head = await self._head(wire)
            self._judge(parent, head)
            if head.status >= 300:
                status = head.status if head.status in (403, 504) else 502
                raise NoAnswer(f"{_PARENT} refuses the tunnel with {head.status}", status)
            wire.read_until = float("inf")
            return wire
        except Lost as error:
            wire.cut()
            what = "does not answer in time" if error.late else "closed without an answer"
            raise NoAnswer(f"{_PARENT} {what}", 504 if error.late else 502) from None
        except BadMessage as error:
            wire.cut()
            raise NoAnswer(str(error), 502) from None
        except BaseException:
            wire.cut()
            raise

    # connections that are kept

    def _kept(self, place: Place) -> Wire | None:
        waiting = self._idle.get(place)
        while waiting:
            until, wire = waiting.pop()
            if not waiting:
                self._idle.pop(place, None)
            if not (wire.lost or wire.ended or wire.buffer) and until > self._loop.time():
                return wire
            wire.close()
        return None

    def keep(self, answer: Answer) -> None:
        """Keep a connection whose answer was read to its end, if its origin wants that; else close it."""
        wire = answer.wire
        waiting = self._idle.get(answer.place, [])
        fit = answer.body.done and answer.body.length >= -1 and answer.head.keep_alive and not wire.buffer
        room = len(waiting) < _IDLE_PER_ORIGIN and sum(map(len, self._idle.values())) < _IDLE_IN_ALL
        if fit and room and not (wire.ended or wire.lost):
            wire.read_until = float("inf")
            waiting.append((self._loop.time() + self._limits.origin_idle_seconds, wire))
            self._idle[answer.place] = waiting
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

        A kept connection that turns out to be closed is replaced once, if nothing but the head was sent. The origin may
        have acted on that head all the same: a method that is not idempotent goes on a new one (RFC 9110 9.2.2).
        """
        began = self._loop.time()
        parent = self.parent_of(host, port)
        place, whose = (parent.place, _PARENT) if parent else ((host, port), "the origin")
        if parent:
            self._check(host, port)
        wire = None if upload or method not in _IDEMPOTENT else self._kept(place)
        reused = wire is not None
        while True:
            if wire is None:
                wire = await (self._connect_parent(parent, host, port) if parent else self.connect(host, port))
            try:
                wire.write(data)
                if upload:
                    upload(wire)
                head = await self._head(wire)
                if parent:
                    self._judge(parent, head)
                body = Incoming(wire, response_body(head, method), self._limits.origin_seconds)
                return Answer(wire, head, body, self._loop.time() - began, place)
            except Lost as error:
                wire.cut()
                if reused and not error.late:
                    wire, reused = None, False
                    continue
                what = "does not answer in time" if error.late else "closed without an answer"
                raise NoAnswer(f"{whose} {what}", 504 if error.late else 502) from None
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
