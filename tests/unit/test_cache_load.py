"""The caching proxy as a process of its own under load: a gigabyte, a thousand clients, and what that costs it."""

from __future__ import annotations

import asyncio
import os
import resource
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

TOP = Path(__file__).resolve().parents[2]
GIGABYTE = 1 << 30
CLIENTS = 1000
SECONDS = 300.0
_SERVE = """
import sys
from vmproxy.cache.run import make_settings, serve
settings = make_settings(sys.argv[1], port=0, size="256M", targets=["127.0.0.0/8"])
serve(settings, ready=lambda url: print(url, flush=True))
"""


class Served:
    """The proxy's process: where it listens, what it holds."""

    def __init__(self, process: subprocess.Popen[str], port: int) -> None:
        self.process, self.port = process, port

    @property
    def descriptors(self) -> int:
        """Open files at this moment."""
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))

    @property
    def peak_bytes(self) -> int:
        """The most memory it had at one time (VmHWM, proc(5))."""
        status = Path(f"/proc/{self.process.pid}/status").read_text(encoding="ascii")
        (line,) = (line for line in status.splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) << 10


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    """A proxy that may ask this machine."""
    process = subprocess.Popen(
        [sys.executable, "-c", _SERVE, str(tmp_path / "cache")], cwd=TOP, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout
    try:
        yield Served(process, int(process.stdout.readline().rpartition(":")[2]))
        process.terminate()
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


@contextmanager
def _gigabyte(tmp_path: Path, fields: str) -> Iterator[int]:
    """An origin that answers each connection with a gigabyte and ends it; its port."""
    sparse = tmp_path / "gigabyte"
    with sparse.open("wb") as file:
        file.truncate(GIGABYTE)

    def act(server: socket.socket) -> None:
        while True:
            try:
                taken, _place = server.accept()
            except OSError:
                return
            with taken, sparse.open("rb") as file:
                while b"\r\n\r\n" not in taken.recv(65536):
                    pass
                taken.sendall(f"HTTP/1.1 200 OK\r\nContent-Length: {GIGABYTE}\r\n{fields}\r\n".encode())
                taken.sendfile(file)

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=act, args=(server,), daemon=True)
        thread.start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)
        thread.join(60)


@pytest.mark.parametrize("fields", ["Cache-Control: no-store\r\n", "Cache-Control: max-age=3600\r\n"])
def test_a_gigabyte_goes_through_in_flat_memory(served: Served, tmp_path: Path, fields: str) -> None:
    """1 GB that is not to be kept, and 1 GB that is larger than the cache: whole, with at most 64 MB of memory."""
    place = bytearray(1 << 20)
    with _gigabyte(tmp_path, fields) as port, socket.create_connection(("127.0.0.1", served.port)) as client:
        client.settimeout(SECONDS)
        client.sendall(f"GET http://127.0.0.1:{port}/ HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n".encode())
        head = b""
        while b"\r\n\r\n" not in head:
            head += client.recv(1)
        assert head.startswith(b"HTTP/1.1 200 ")
        left = GIGABYTE
        while left:
            count = client.recv_into(place)
            assert count, f"{left} bytes are missing"
            left -= count
    assert served.peak_bytes <= 64 << 20


@pytest.fixture
def _many_files() -> Iterator[None]:
    """As many open files as a thousand clients and their origin need in this process."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 4 * CLIENTS
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, max(wanted, before[1])))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.mark.usefixtures("_many_files")
def test_f75_a_thousand_clients_at_once(served: Served) -> None:
    """All are connected before the first asks: each gets its own answer whole, one object is had once for all who want
    it, and afterwards there are as many descriptors as before."""
    before = served.descriptors
    hits = asyncio.run(asyncio.wait_for(_thousand(served), SECONDS))
    assert hits["/shared"] == 1
    assert [hits[f"/{number}"] for number in range(1, CLIENTS, 2)] == [1] * (CLIENTS // 2)
    limit = time.monotonic() + 60
    while served.descriptors > before + 1:  # a connection to the origin may be kept for the next request
        assert time.monotonic() < limit
        time.sleep(0.1)


async def _thousand(served: Served) -> Counter[str]:
    """Every second client asks for the same object, the others each for one of their own; how often each was asked."""
    hits: Counter[str] = Counter()
    connected = asyncio.Barrier(CLIENTS)

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with_end = (await reader.readuntil(b"\r\n\r\n")).split(b" ", 2)
        path = with_end[1].decode()
        hits[path] += 1
        rule = "max-age=3600" if path == "/shared" else "no-store"
        body = path.encode() * 1000
        head = f"HTTP/1.1 200 OK\r\nCache-Control: {rule}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        writer.write(head.encode() + body)
        writer.close()
        await writer.wait_closed()

    async def client(number: int, port: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
        await connected.wait()
        path = f"/{number}" if number % 2 else "/shared"
        writer.write(f"GET http://127.0.0.1:{port}{path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n".encode())
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 "), head
        assert await reader.readexactly(1000 * len(path)) == path.encode() * 1000
        writer.close()
        await writer.wait_closed()

    async with await asyncio.start_server(answer, "127.0.0.1", 0, backlog=CLIENTS) as server:
        port = server.sockets[0].getsockname()[1]
        await asyncio.gather(*(client(number, port) for number in range(CLIENTS)))
    return hits
