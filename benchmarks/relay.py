"""A TCP relay that makes a round trip last: the kernel at hand may have no netem. It also counts what passes.

Every byte is held for half the round trip each way. The TCP handshake itself is not delayed: it is one round trip more
for whatever is compared. Pieces are passed on as they came, so that what Nagle's algorithm costs a client stays.
"""

from __future__ import annotations

import contextlib
import itertools
import queue
import socket
import threading
import time
from collections.abc import Callable

_CHUNK = 65536


class Relay:
    """Listens on 127.0.0.1 (``port``) and passes each connection to a socket made by ``dial``.

    ``rtt_seconds`` may be changed at any time and counts for new connections.
    """

    def __init__(self, dial: Callable[[], socket.socket]) -> None:
        self._dial = dial
        self.rtt_seconds = 0.0
        self._lock = threading.Lock()
        self._talk: list[list[str]] = []
        self._open: set[socket.socket] = set()
        self._server = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port: int = self._server.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> Relay:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        with self._lock:
            for end in self._open:
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)

    def forget(self) -> None:
        """Start counting anew."""
        with self._lock:
            self._talk = []

    @property
    def connections(self) -> int:
        """How many connections were made since :meth:`forget`."""
        return len(self._talk)

    @property
    def turns(self) -> int:
        """How often the client spoke and then waited for an answer: runs of its words that the server's follow.

        Seen at the client's end of the wire. What it says last, without waiting for an answer, is no turn.
        """
        total = 0
        for talk in self._talk:
            runs = [side for index, side in enumerate(talk) if not index or talk[index - 1] != side]
            total += sum(1 for side, after in itertools.pairwise(runs) if (side, after) == ("c", "s"))
        return total

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._server.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        talk: list[str] = []
        half = self.rtt_seconds / 2
        with self._lock:
            self._talk.append(talk)
        with client, contextlib.suppress(OSError), self._dial() as server:
            for end in (client, server):
                end.settimeout(None)
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self._lock:
                self._open |= {client, server}
            back = _Pump(server, client, half, lambda: None, lambda: talk.append("s"))
            there = _Pump(client, server, half, lambda: talk.append("c"), lambda: None)
            there.join()
            back.join()
            with self._lock:
                self._open -= {client, server}


class _Pump:
    """One direction: a reader that notes when a piece came, a writer that passes it on when its time has come."""

    def __init__(
        self,
        source: socket.socket,
        sink: socket.socket,
        delay_seconds: float,
        came: Callable[[], None],
        goes: Callable[[], None],
    ) -> None:
        self._source, self._sink, self._delay_seconds = source, sink, delay_seconds
        self._came, self._goes = came, goes
        self._pieces: queue.SimpleQueue[tuple[float, bytes]] = queue.SimpleQueue()
        work = (self._read, self._write) if delay_seconds else (self._pass,)
        self._threads = [threading.Thread(target=body, daemon=True) for body in work]
        for thread in self._threads:
            thread.start()

    def join(self) -> None:
        """Until this direction has ended."""
        for thread in self._threads:
            thread.join()

    def _pass(self) -> None:
        with contextlib.suppress(OSError):
            while data := self._source.recv(_CHUNK):
                self._came()
                self._goes()
                self._sink.sendall(data)
        self._end()

    def _read(self) -> None:
        data = b""
        with contextlib.suppress(OSError):
            while data := self._source.recv(_CHUNK):
                self._came()
                self._pieces.put((time.monotonic() + self._delay_seconds, data))
        self._pieces.put((time.monotonic() + self._delay_seconds, b""))

    def _write(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                due, data = self._pieces.get()
                time.sleep(max(0.0, due - time.monotonic()))
                if not data:
                    break
                self._goes()
                self._sink.sendall(data)
        self._end()

    def _end(self) -> None:
        with contextlib.suppress(OSError):
            self._sink.shutdown(socket.SHUT_WR)
