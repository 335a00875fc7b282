"""The lab's proxy: each of its kinds answers as the thing it stands for."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.lab.proxy import LabProxy

KNOWS = b"GET http://only-the-proxy-knows.test/ HTTP/1.1\r\nHost: only-the-proxy-knows.test\r\n\r\n"
UNKNOWN = b"GET http://nobody.invalid/ HTTP/1.1\r\nHost: nobody.invalid\r\n\r\n"
CONNECT = b"CONNECT nobody.invalid:443 HTTP/1.1\r\nHost: nobody.invalid:443\r\n\r\n"


def serve(mode: str = "proxy", credentials: str = "") -> LabProxy:
    """A proxy on a free port of this machine."""
    return LabProxy(socket.create_server(("127.0.0.1", 0)), mode=mode, credentials=credentials)


def say(port: int, data: bytes) -> bytes:
    """Everything that comes back until the end."""
    answer = b""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(data)
        while more := connection.recv(4096):
            answer += more
    return answer


@pytest.mark.parametrize(
    ("mode", "knows", "unknown", "connect"),
    [
        ("proxy", b"HTTP/1.1 200", b"HTTP/1.1 502", b"HTTP/1.1 502"),
        ("auth", b"HTTP/1.1 407", b"HTTP/1.1 407", b"HTTP/1.1 407"),
        ("no-connect", b"HTTP/1.1 200", b"HTTP/1.1 502", b"HTTP/1.1 405"),
        ("webserver", b"HTTP/1.1 200", b"HTTP/1.1 200", b"HTTP/1.1 405"),
        ("tls", b"\x15\x03\x01", b"\x15\x03\x01", b"\x15\x03\x01"),
        ("status:503", b"HTTP/1.1 503", b"HTTP/1.1 503", b"HTTP/1.1 503"),
    ],
)
def test_each_kind_answers_as_what_it_is(mode: str, knows: bytes, unknown: bytes, connect: bytes) -> None:
    """A known name, an impossible name and a CONNECT get the answers of that kind of server."""
    with serve(mode) as proxy:
        for request, wanted in ((KNOWS, knows), (UNKNOWN, unknown), (CONNECT, connect)):
            assert say(proxy.port, request).startswith(wanted)
        assert len(proxy.lines) == 3


def test_closing_server_says_nothing() -> None:
    """A server that hangs up at once sends no byte, and the visit is counted."""
    with serve("closes") as proxy, socket.create_connection(("127.0.0.1", proxy.port), timeout=10) as connection:
        assert connection.recv(1) == b""
        assert len(proxy.requests) == 1


def test_silent_server_is_ended_by_close() -> None:
    """A server that never answers keeps the line open until it is closed."""
    with serve("silent") as proxy, socket.create_connection(("127.0.0.1", proxy.port), timeout=20) as connection:
        connection.sendall(CONNECT)
        connection.settimeout(0.2)
        with pytest.raises(TimeoutError):
            connection.recv(1)
        proxy.close()
        connection.settimeout(20)
        assert connection.recv(1) == b""


def test_right_credentials_pass() -> None:
    """With ``user:password`` of the proxy a request goes through, with another one it does not."""
    with serve("auth", "user:secret") as proxy:
        for header, wanted in ((b"dXNlcjpzZWNyZXQ=", b"HTTP/1.1 200"), (b"dXNlcjpvdGhlcg==", b"HTTP/1.1 407")):
            request = KNOWS[:-2] + b"Proxy-Authorization: Basic " + header + b"\r\n\r\n"
            assert say(proxy.port, request).startswith(wanted)


def test_tunnel_and_fetch_reach_a_real_server() -> None:
    """CONNECT and a GET of an absolute URI end at the server named, the request line made relative."""
    with serve("webserver") as far, serve() as proxy:
        inner = b"GET /here HTTP/1.1\r\nHost: x\r\n\r\n"
        tunnel = f"CONNECT 127.0.0.1:{far.port} HTTP/1.1\r\n\r\n".encode() + inner
        assert say(proxy.port, tunnel).endswith(b"a web server's page</html>\n")
        fetch = f"GET http://127.0.0.1:{far.port}/there HTTP/1.1\r\nHost: x\r\n\r\n".encode()
        assert say(proxy.port, fetch).endswith(b"a web server's page</html>\n")
        assert far.lines == ["GET /here HTTP/1.1", "GET /there HTTP/1.1"]


def test_program_logs_each_request(tmp_path: Path) -> None:
    """By hand it prints its port, and writes client and request line as one JSON object a line."""
    log = tmp_path / "log"
    program = Path(__file__).with_name("proxy.py")
    argv = [sys.executable, str(program), "--port", "0", "--log", str(log)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        say(int(process.stdout.readline()), KNOWS)
        process.terminate()
    assert json.loads(log.read_text()) == {
        "client": "127.0.0.1",
        "line": "GET http://only-the-proxy-knows.test/ HTTP/1.1",
    }
