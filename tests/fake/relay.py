"""A TCP relay with faults, to stand between a client and any SSH server, ours or a real one."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from dataclasses import dataclass

_SECONDS = 60.0


@dataclass(frozen=True)
class Faults:
    """What happens to the bytes from the server. Offsets count from the connection's start.

    ``cut_after``: the connection ends after that many bytes. ``hold_after``: nothing more passes, either way, but the
    connection stays. ``piece_bytes``: never more than that at once. ``delay_seconds`` before the first 20 pieces.
    """

    cut_after: int | None = None
    hold_after: int | None = None
    piece_bytes: int = 65536
    delay_seconds: float = 0.0


class Relay:
    """Listens on 127.0.0.1 and passes to ``port``; ``from_server`` and ``from_client`` count the bytes passed."""

    def __init__(self, port: int, faults: Faults) -> None:
        self._target = port
        self._faults = faults
        self.from_server = 0
        self.from_client = 0
        self._delays = 20
        self._held = threading.Event()
        self._sockets: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._spawn(self._accept)

    def hold(self) -> None:
        """From now on nothing passes, as when the VM's network goes."""
        self._held.set()

    def cut(self) -> None:
        """End every connection now."""
        for sock in self._sockets:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """End everything; threads are waited for."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._threads[0].join(_SECONDS)  # from here on nobody comes any more
        self._listener.close()
        self.cut()
        for thread in self._threads:
            thread.join(_SECONDS)
            assert not thread.is_alive(), f"{thread} of the relay did not end"
        for sock in self._sockets:
            sock.close()

    def _spawn(self, target: object, *args: object) -> None:
        thread = threading.Thread(target=target, args=args, daemon=True)  # type: ignore[arg-type]
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            try:
                server = socket.create_connection(("127.0.0.1", self._target), timeout=_SECONDS)
            except OSError:
                client.close()
                return
            server.settimeout(None)
            for sock in (client, server):
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._sockets += [client, server]
            self._spawn(self._up, client, server)
            self._spawn(self._down, server, client)

    def _up(self, client: socket.socket, server: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := client.recv(65536):
                if self._held.is_set():
                    continue
                server.sendall(data)
                self.from_client += len(data)
        with contextlib.suppress(OSError):
            server.shutdown(socket.SHUT_WR)

    def _down(self, server: socket.socket, client: socket.socket) -> None:
        faults = self._faults
        with contextlib.suppress(OSError):
            while data := server.recv(65536):
                while data and not self._held.is_set():
                    stops = [
                        stop - self.from_server for stop in (faults.cut_after, faults.hold_after) if stop is not None
                    ]
                    piece = data[: max(0, min([faults.piece_bytes, *stops]))]
                    if piece:
                        if faults.delay_seconds and self._delays:
                            self._delays -= 1
                            time.sleep(faults.delay_seconds)
                        client.sendall(piece)
                        self.from_server += len(piece)
                        data = data[len(piece) :]
                    if faults.cut_after is not None and self.from_server >= faults.cut_after:
                        self.cut()
                        return
                    if faults.hold_after is not None and self.from_server >= faults.hold_after:
                        self._held.set()
        with contextlib.suppress(OSError):
            client.shutdown(socket.SHUT_WR)
