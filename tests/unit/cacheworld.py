"""An origin that does as a test says, the proxy on a thread of its own, and a client that knows only an address.

The client part (:func:`fetch`, :class:`Client`, :func:`talk`) runs against any proxy: host and port are all it needs.
"""

from __future__ import annotations

import asyncio
import http.client
import http.server
import os
import random
import socket
import threading
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from email.utils import formatdate
from ipaddress import ip_network
from pathlib import Path
from typing import Any

from vmproxy.cache.limits import CacheSettings, Limits
from vmproxy.cache.server import Proxy

WAIT_SECONDS = 60.0
LOOPBACK = ip_network("127.0.0.0/8")


def http_date(seconds_from_now: float = 0.0) -> str:
    """A date of HTTP."""
    import time

    return formatdate(time.time() + seconds_from_now, usegmt=True)


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Origin
    disable_nagle_algorithm = True

    def _any(self) -> None:
        path = self.path.partition("?")[0]
        length = int(self.headers.get("Content-Length") or 0)
        self.body = self.rfile.read(length) if length else b""
        if self.headers.get("Transfer-Encoding") == "chunked":
            self.body = b""
            while size := int(self.rfile.readline(), 16):
                self.body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        with self.server.lock:
            self.server.hits[path] += 1
            fields = {name: ", ".join(self.headers.get_all(name, [])) for name in self.headers}
            self.server.seen.append((self.command, self.path, fields, self.body))
        route = self.server.routes.get(path)
        if route is None:
            self.answer(404, b"nothing here")
        else:
            route(self)

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = do_OPTIONS = _any

    def answer(self, status: int, body: bytes, **fields: str) -> None:
        """A whole answer; ``cache_control`` is Cache-Control."""
        self.send_response(status)
        for name, value in fields.items():
            self.send_header(name.replace("_", "-").title(), value)
        if status != 304:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD" and status != 304:
            self.wfile.write(body)

    def log_message(self, *_args: Any) -> None:
        """Say nothing."""


class Origin(http.server.ThreadingHTTPServer):
    """The origin: ``routes`` by path, ``hits`` by path, ``seen`` requests in order."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.routes: dict[str, Callable[[Any], None]] = {}
        self.hits: Counter[str] = Counter()
        self.seen: list[tuple[str, str, dict[str, str], bytes]] = []
        self.lock = threading.Lock()

    def url(self, path: str) -> str:
        """An absolute address."""
        return f"http://127.0.0.1:{self.server_port}{path}"

    def serve(self, path: str, body: bytes = b"hello", status: int = 200, **fields: str) -> str:
        """Answer a path always alike; its address."""
        self.routes[path] = lambda handler: handler.answer(status, body, **fields)
        return self.url(path)

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that goes away is part of the tests."""


@contextmanager
def origin() -> Iterator[Origin]:
    """An origin that runs."""
    server = Origin()
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def serving(one: Callable[[socket.socket], None]) -> Iterator[int]:
    """A server that gives each connection to ``one``, on a thread of its own; its port."""

    def serve() -> None:
        while True:
            try:
                taken, _peer = listening.accept()
            except OSError:
                return
            threading.Thread(target=one, args=(taken,), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listening:
        threading.Thread(target=serve, daemon=True).start()
        yield listening.getsockname()[1]
        listening.shutdown(socket.SHUT_RDWR)


def free_port() -> int:
    """A port that nobody listens on, below those that the kernel gives to connections: it is taken a moment later."""
    while True:
        port = random.randrange(10000, 30000)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        return port


@dataclass
class Running:
    """A proxy that runs on its own thread."""

    port: int
    proxy: Any
    loop: asyncio.AbstractEventLoop
    log: list[str] = field(default_factory=list)
    engine: str = "embedded"

    @property
    def address(self) -> tuple[str, int]:
        """Where it listens."""
        return "127.0.0.1", self.port

    def do(self, work: Callable[[], Any]) -> Any:
        """Run something on the proxy's loop."""

        async def inside() -> Any:
            return work()

        return asyncio.run_coroutine_threadsafe(inside(), self.loop).result(WAIT_SECONDS)


def settings(directory: Path, **changes: Any) -> CacheSettings:
    """Settings for a test: a free port, loopback allowed as a target."""
    usual = CacheSettings(directory=str(directory), port=0, targets=(LOOPBACK,))
    return replace(usual, **changes)


@contextmanager
def on_a_thread(
    begin: Callable[[list[str]], Awaitable[tuple[Any, int]]], *, engine: str = "embedded", seconds: float = WAIT_SECONDS
) -> Iterator[Running]:
    """A proxy that runs on a thread of its own.

    ``begin`` is given the log, and gives the proxy that it started and its port; what it raises is raised here. Its
    start and its end may take that many seconds each.
    """
    began: list[Any] = []
    ready = threading.Event()
    log: list[str] = []

    async def main() -> None:
        try:
            made, port = await begin(log)
        except BaseException as error:
            began.append(error)
            ready.set()
            return
        end = asyncio.Event()
        began.extend([made, port, asyncio.get_running_loop(), end])
        ready.set()
        await end.wait()
        await made.stop()

    thread = threading.Thread(target=lambda: asyncio.run(main()), daemon=True)
    thread.start()
    assert ready.wait(seconds)
    if isinstance(began[0], BaseException):
        thread.join()
        raise began[0]
    made, port, loop, end = began
    try:
        yield Running(port=port, proxy=made, loop=loop, log=log, engine=engine)
    finally:
        loop.call_soon_threadsafe(end.set)
        thread.join(seconds)
        assert not thread.is_alive()


@contextmanager
def proxy(wanted: CacheSettings) -> Iterator[Running]:
    """A proxy that runs."""

    async def begin(log: list[str]) -> tuple[Proxy, int]:
        made = Proxy(wanted, log=log.append)
        return made, await made.start()

    with on_a_thread(begin) as running:
        yield running


@dataclass(frozen=True)
class Got:
    """One answer."""

    status: int
    headers: http.client.HTTPMessage
    body: bytes

    def __getitem__(self, name: str) -> str:
        return self.headers.get(name, "")


class Client:
    """A client with one connection to a proxy."""

    def __init__(self, address: tuple[str, int]) -> None:
        self.http = http.client.HTTPConnection(*address, timeout=WAIT_SECONDS)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_why: object) -> None:
        self.http.close()

    def get(self, url: str, method: str = "GET", body: Any = None, **headers: str) -> Got:
        """One request; ``cache_control`` is Cache-Control."""
        named = {name.replace("_", "-").title(): value for name, value in headers.items()}
        self.http.request(method, url, body=body, headers=named, encode_chunked="transfer_encoding" in headers)
        answer = self.http.getresponse()
        return Got(answer.status, answer.headers, answer.read())


def fetch(address: tuple[str, int], url: str, method: str = "GET", body: Any = None, **headers: str) -> Got:
    """One request on a connection of its own."""
    with Client(address) as client:
        return client.get(url, method, body, **headers)


def talk(address: tuple[str, int], *parts: bytes, end: bool = True) -> bytes:
    """Send bytes as they are; everything that comes back until the other side closes. b"…RESET" for a reset."""
    found = b""
    try:
        with socket.create_connection(address, timeout=WAIT_SECONDS) as talk:
            for part in parts:
                talk.sendall(part)
            if end:
                talk.shutdown(socket.SHUT_WR)
            while data := talk.recv(65536):
                found += data
    except ConnectionResetError:
        found += b"RESET"
    except BrokenPipeError:
        pass
    return found


def open_files() -> int:
    """How many descriptors this process has."""
    return len(os.listdir("/proc/self/fd"))


def quick(**changes: Any) -> Limits:
    """Limits for tests that wait for one."""
    return replace(Limits(grace_seconds=1.0), **changes)
