"""The host's proxy for tests: small, bounded, and it writes down who asked for what.

By hand or beside QEMU: ``python3 tests/lab/proxy.py --port 8123 --log FILE``; in a test: :class:`LabProxy`. Only the
standard library, and nothing of the lab is imported, so that it also runs where only Python is.

It knows one name that nothing else in the world knows: ``http://only-the-proxy-knows.test/`` is answered by itself
(through CONNECT on port 80 too). Names that cannot exist (.test, .invalid) get 502 without a look-up; all else is
really fetched. ``mode`` says what it is:

============== =============================================================================
proxy          a proxy
auth           407 without the right ``user:password``, else a proxy
no-connect     405 for CONNECT, else a proxy
webserver      a plain web server: its own page for every GET, 405 for CONNECT
tls            speaks only TLS: a plain request gets an alert record, and the end
closes         closes every connection at once
silent         takes every connection and says nothing
status:NNN     that status for everything
============== =============================================================================
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import json
import socket
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import TextIO

KNOWN = "only-the-proxy-knows.test"
ANSWER = b"the proxy knows\n"
MODES = ("proxy", "auth", "no-connect", "webserver", "tls", "closes", "silent")
_HEAD_BYTES = 65536
_CONNECTIONS = 128
_WAIT_SECONDS = 30.0
_DIAL_SECONDS = 5.0
# A fatal protocol_version alert (RFC 8446 section 6): what a TLS server says to a client that speaks plain HTTP.
_ALERT = bytes((21, 3, 1, 0, 2, 2, 70))
Dial = Callable[[str, int], socket.socket]


@dataclass(frozen=True, kw_only=True)
class Request:
    """One request as it came: its first line, who sent it, its header lines."""

    line: str
    client: str
    headers: tuple[str, ...] = ()


class LabProxy:
    """A proxy on a listening socket (from any network namespace); ``requests`` is what was asked, in order.

    ``dial`` opens the connections to the outside; ``mode`` may be changed at any time. A context manager.
    """

    def __init__(
        self,
        server: socket.socket,
        *,
        mode: str = "proxy",
        credentials: str = "",
        dial: Dial | None = None,
        log: TextIO | None = None,
    ) -> None:
        self.mode, self.credentials = mode, credentials
        self.requests: list[Request] = []
        self._server, self._dial, self._log = server, dial or _dial, log
        self._lock = threading.Lock()
        self._room = threading.BoundedSemaphore(_CONNECTIONS)
        self._open: set[socket.socket] = set()
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def __enter__(self) -> LabProxy:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def port(self) -> int:
        """The port it listens on."""
        port: int = self._server.getsockname()[1]
        return port

    @property
    def lines(self) -> list[str]:
        """The first line of every request so far."""
        return [request.line for request in self.requests]

    def forget(self) -> None:
        """Forget the requests so far."""
        with self._lock:
            self.requests.clear()

    def wait(self) -> None:
        """Until the listening socket is closed."""
        self._thread.join()

    def close(self) -> None:
        """Stop, and end every connection; safe to call twice."""
        with contextlib.suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        self._thread.join(timeout=5)
        with self._lock:
            for connection in self._open:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        while True:
            try:
                connection, address = self._server.accept()
            except OSError:
                return
            if not self._room.acquire(blocking=False):
                connection.close()
                continue
            with self._lock:
                self._open.add(connection)
            threading.Thread(target=self._serve, args=(connection, address[0]), daemon=True).start()

    def _serve(self, connection: socket.socket, client: str) -> None:
        try:
            with connection, contextlib.suppress(OSError):
                connection.settimeout(_WAIT_SECONDS)
                self._answer(connection, client)
        finally:
            with self._lock:
                self._open.discard(connection)
            self._room.release()

    def _answer(self, connection: socket.socket, client: str) -> None:
        mode = self.mode
        if mode == "closes":
            self._note(Request(line="", client=client))
            return
        head, rest = _read_head(connection)
        first, *headers = head.decode("latin-1").split("\r\n")
        self._note(Request(line=first, client=client, headers=tuple(headers)))
        method, _, url = first.partition(" ")
        url = url.partition(" ")[0]
        if mode == "silent":
            while connection.recv(4096):
                pass
        elif mode == "tls":
            connection.sendall(_ALERT)
        elif mode.startswith("status:"):
            _reply(connection, f"{mode[7:]} As Told")
        elif not url:
            _reply(connection, "400 Bad Request")
        elif mode == "webserver":
            if method == "CONNECT":
                _reply(connection, "405 Method Not Allowed")
            else:
                _reply(connection, "200 OK", b"<html>a web server's page</html>\n")
        elif mode == "auth" and not self._authorized(headers):
            _reply(connection, "407 Proxy Authentication Required", extra='Proxy-Authenticate: Basic realm="lab"\r\n')
        elif method == "CONNECT" and mode == "no-connect":
            _reply(connection, "405 Method Not Allowed")
        elif method == "CONNECT":
            self._tunnel(connection, url, rest)
        elif url.startswith("http://"):
            self._fetch(connection, method, url, headers, rest)
        else:
            _reply(connection, "400 Bad Request", b"this is a proxy: it wants a whole URL\n")

    def _note(self, request: Request) -> None:
        with self._lock:
            self.requests.append(request)
            if self._log:
                self._log.write(json.dumps({"client": request.client, "line": request.line}) + "\n")
                self._log.flush()

    def _authorized(self, headers: list[str]) -> bool:
        wanted = "basic " + base64.b64encode(self.credentials.encode()).decode()
        given = [header.partition(":")[2].strip() for header in headers if header.lower().startswith("proxy-auth")]
        return any(value[:6].lower() + value[6:] == wanted for value in given)

    def _tunnel(self, connection: socket.socket, where: str, rest: bytes) -> None:
        host, port = _host_port(where, 443)
        if host == KNOWN:
            connection.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
            if port == 80:
                _read_head(connection, rest)
                _reply(connection, "200 OK", ANSWER)
            return
        far = self._far(host, port)
        if far is None:
            _reply(connection, "502 Bad Gateway")
            return
        with far:
            connection.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
            far.sendall(rest)
            _splice(connection, far)

    def _fetch(self, connection: socket.socket, method: str, url: str, headers: list[str], rest: bytes) -> None:
        where, _, path = url[len("http://") :].partition("/")
        host, port = _host_port(where, 80)
        if host == KNOWN:
            _reply(connection, "200 OK", ANSWER)
            return
        far = self._far(host, port)
        if far is None:
            _reply(connection, "502 Bad Gateway")
            return
        with far:
            kept = [line for line in headers if not line.lower().startswith(("proxy-", "connection:"))]
            lines = [f"{method} /{path} HTTP/1.1", *kept, "Connection: close", "", ""]
            far.sendall("\r\n".join(lines).encode("latin-1") + rest)
            _splice(connection, far)

    def _far(self, host: str, port: int) -> socket.socket | None:
        # These names are reserved (RFC 6761): a look-up could only be slow.
        if host.endswith((".test", ".invalid")):
            return None
        try:
            return self._dial(host, port)
        except OSError:
            return None


def _read_head(connection: socket.socket, data: bytes = b"") -> tuple[bytes, bytes]:
    """The request up to its empty line, and what came after it. Raises OSError where none comes."""
    while b"\r\n\r\n" not in data:
        more = connection.recv(4096)
        if not more or len(data) > _HEAD_BYTES:
            break
        data += more
    head, _, rest = data.partition(b"\r\n\r\n")
    return head, rest


def _reply(connection: socket.socket, status: str, body: bytes = b"", *, extra: str = "") -> None:
    lines = f"HTTP/1.1 {status}\r\n{extra}Content-Type: text/plain\r\nContent-Length: {len(body)}\r\nConnection: close"
    connection.sendall(lines.encode("latin-1") + b"\r\n\r\n" + body)
    connection.shutdown(socket.SHUT_WR)


def _host_port(text: str, default: int) -> tuple[str, int]:
    host, colon, port = text.rpartition(":")
    if colon and port.isdecimal():
        return host.strip("[]"), int(port)
    return text.strip("[]"), default


def _dial(host: str, port: int) -> socket.socket:
    return socket.create_connection((host, port), timeout=_DIAL_SECONDS)


def _splice(one: socket.socket, other: socket.socket) -> None:
    """Copy both ways until both have ended or nothing has come for a while."""

    def pump(source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)
        with contextlib.suppress(OSError):
            sink.shutdown(socket.SHUT_WR)

    other.settimeout(_WAIT_SECONDS)
    back = threading.Thread(target=pump, args=(other, one), daemon=True)
    back.start()
    pump(one, other)
    back.join()


def main(argv: list[str] | None = None) -> int:
    """Serve until interrupted; prints the port on stdout once it listens (``--port 0`` takes a free one)."""
    parser = argparse.ArgumentParser(description="the lab's proxy")
    parser.add_argument("--bind", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8123)
    parser.add_argument("--log", type=argparse.FileType("a"), help="one JSON object a line: client, line")
    parser.add_argument("--mode", default="proxy", help=f"{', '.join(MODES)}, status:NNN")
    parser.add_argument("--credentials", default="", help="user:password for --mode auth")
    options = parser.parse_args(argv)
    server = socket.create_server((options.bind, options.port), backlog=64)
    with LabProxy(server, mode=options.mode, credentials=options.credentials, log=options.log) as proxy:
        print(proxy.port, flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            proxy.wait()
    return 0


if __name__ == "__main__":
    sys.exit(main())
