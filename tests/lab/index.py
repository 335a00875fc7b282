"""A package index with one tiny package, for pip in containers: the simple repository API (PEP 503)."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import io
import socket
import threading
import urllib.parse
import zipfile
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler

PACKAGE = "lab-parcel"
MODULE = "lab_parcel"
ROOTS = ("/simple/", "/root/pypi/+simple/")
"""Where the index is: as PyPI has it, and as devpi does."""
_WHEEL = f"{MODULE}-1.0-py3-none-any.whl"


def wheel() -> bytes:
    """A wheel of :data:`PACKAGE`: a module that says ``delivered`` (PEP 427)."""
    info = f"{MODULE}-1.0.dist-info"
    files = {
        f"{MODULE}.py": "STATE = 'delivered'\n",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {PACKAGE}\nVersion: 1.0\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: lab\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = []
    for name, text in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
        record.append(f"{name},sha256={digest},{len(text)}\n")
    files[f"{info}/RECORD"] = "".join([*record, f"{info}/RECORD,,\n"])
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return packed.getvalue()


@dataclass(frozen=True, kw_only=True)
class Asked:
    """One request: its path, the Authorization header, and whether it came through a proxy (a whole URL)."""

    path: str
    authorization: str = ""
    by_proxy: bool = False


class LabIndex:
    """An index on a listening socket, from any network namespace; ``asked`` is what came, in order.

    ``credentials`` (``user:password``) are wanted where given. A context manager.
    """

    def __init__(self, server: socket.socket, *, credentials: str = "") -> None:
        self.asked: list[Asked] = []
        self.credentials = credentials
        self._server, self._wheel = server, wheel()
        self.port: int = server.getsockname()[1]
        self._thread = threading.Thread(target=self._accept, daemon=True)

    def __enter__(self) -> LabIndex:
        self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        with contextlib.suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        self._thread.join(timeout=5)

    def _accept(self) -> None:
        while True:
            try:
                connection, client = self._server.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(connection, client), daemon=True).start()

    def _serve(self, connection: socket.socket, client: object) -> None:
        index = self

        class Handler(BaseHTTPRequestHandler):
            """One connection: the list of files of the package, and the one file."""

            timeout = 20

            def do_GET(self) -> None:
                header = self.headers.get("Authorization", "")
                by_proxy = "://" in self.path or "Via" in self.headers
                index.asked.append(Asked(path=self.path, authorization=header, by_proxy=by_proxy))
                path = urllib.parse.unquote(self.path)  # pip writes the + of devpi's as %2B
                wanted = "Basic " + base64.b64encode(index.credentials.encode()).decode()
                if index.credentials and header != wanted:
                    self._say(HTTPStatus.UNAUTHORIZED, b"", "text/plain", ("WWW-Authenticate", 'Basic realm="lab"'))
                elif path in [f"{root}{PACKAGE}" for root in ROOTS]:  # as PyPI does
                    self._say(HTTPStatus.MOVED_PERMANENTLY, b"", "text/plain", ("Location", f"{self.path}/"))
                elif path in [f"{root}{PACKAGE}/" for root in ROOTS]:
                    self._say(HTTPStatus.OK, f'<!DOCTYPE html><a href="../{_WHEEL}">{_WHEEL}</a>'.encode(), "text/html")
                elif path in [f"{root}{_WHEEL}" for root in ROOTS]:
                    self._say(HTTPStatus.OK, index._wheel, "application/octet-stream")
                elif self.path == "/":
                    self._say(HTTPStatus.OK, b"a package index", "text/plain")
                else:
                    self._say(HTTPStatus.NOT_FOUND, b"", "text/plain")

            def _say(self, status: HTTPStatus, body: bytes, kind: str, *more: tuple[str, str]) -> None:
                self.send_response(status)
                for name, value in (("Content-Type", kind), ("Content-Length", str(len(body))), *more):
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:
                """The requests are in ``asked``."""

        with contextlib.suppress(OSError), connection:
            Handler(connection, client, None)  # type: ignore[arg-type]
