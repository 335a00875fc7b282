"""What a proxy must refuse, asked by a client that knows only its address; where squid differs, it is said."""

from __future__ import annotations

import re
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.unit.cacheworld import WAIT_SECONDS, Running, fetch, origin, proxy, settings, talk
from tests.unit.test_cache_faults import ask, raw_origin
from tests.unit.test_cache_message import SMUGGLING
from vmproxy.cache.message import BadMessage, Chunks, find_head, parse_request, request_body


@pytest.fixture(scope="module")
def shut(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A proxy with the usual rules: nothing of this machine is a target."""
    with proxy(settings(tmp_path_factory.mktemp("shut") / "c", targets=())) as running:
        yield running


@pytest.fixture(scope="module")
def ajar(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A proxy that may ask loopback."""
    with proxy(settings(tmp_path_factory.mktemp("ajar") / "c")) as running:
        yield running


SQUID_MENDS = frozenset(
    (
        *("both lengths", "chunked by HTTP/1.0", "a coding with a tab", "a folded line", "a folded first line"),
        *("a bare LF", "two hosts", "no host", "no version"),
    )
)
"""What squid passes on in a form that has one meaning only; the embedded proxy refuses it."""


SQUID_PASSES = "a control character"
"""What squid passes on as it is: it stands within a value, and moves the end of nothing."""


class Witness:
    """An origin that reads strictly. ``requests`` are what reached it; ``unclear`` what two could read differently."""

    def __init__(self, listening: socket.socket) -> None:
        self.place = f"127.0.0.1:{listening.getsockname()[1]}"
        self.requests: list[str] = []
        self.unclear: list[bytes] = []
        self._listening = listening
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                taken, _peer = self._listening.accept()
            except OSError:
                return
            threading.Thread(target=self._read, args=(taken,), daemon=True).start()

    def _read(self, taken: socket.socket) -> None:
        data = bytearray()
        with taken:
            taken.settimeout(WAIT_SECONDS)
            try:
                while self._one(taken, data):
                    taken.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
            except BadMessage:
                self.unclear.append(bytes(data))
            except OSError:
                return

    def _one(self, taken: socket.socket, data: bytearray) -> bool:
        def more() -> bool:
            got = taken.recv(65536)
            data.extend(got)
            return bool(got)

        while not (data and find_head(data)):
            if not more():
                return False
        end = find_head(data)
        head = parse_request(data[:end])
        length = request_body(head)
        self.requests.append(f"{head.method} {head.target}")
        del data[:end]
        if length >= 0:
            while len(data) < length:
                if not more():
                    return False
            del data[:length]
            return True
        chunks = Chunks()
        while not chunks.done:
            chunks.feed(data)
            if not chunks.done and not more():
                return False
        return True


@contextmanager
def witness() -> Iterator[Witness]:
    """A witness that runs."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield Witness(listening)


@pytest.mark.parametrize("name", SMUGGLING)
def test_p15_the_smuggling_set_reaches_no_origin(ajar: Running, name: str) -> None:
    """Refused and closed, and what stands behind it is no request; or mended, so that it has one meaning for all."""
    with witness() as seen:
        data = SMUGGLING[name].replace(b"http://a/", f"http://{seen.place}/".encode())
        behind = f"0\r\n\r\nGET http://{seen.place}/behind HTTP/1.1\r\nHost: {seen.place}\r\n\r\n".encode()
        answer = talk(ajar.address, data + behind + b"\0\r\n\r\n", end=False)
        assert answer.startswith(b"HTTP/1.1 ")
        if ajar.engine == "squid" and name == SQUID_PASSES:
            assert [b"X: a\x01b\r\n" in data and data.count(b"\r\n\r\n") for data in seen.unclear] == [1]
            return
        assert not seen.unclear
        if ajar.engine == "squid" and name in SQUID_MENDS:
            # It reads the chunks, or no body at all: either way the rest is what the client itself sent behind it.
            assert set(seen.requests) <= {"POST /", "GET /", "GET /behind"}
        else:
            assert answer.startswith((b"HTTP/1.1 400 ", b"HTTP/1.1 501 "))
            assert not seen.requests
            assert ajar.engine == "squid" or answer.count(b"HTTP/1.1 ") == 1


@pytest.mark.parametrize(
    ("request_line", "status", "of_squid"),
    [
        ("GET / HTTP/1.1", 400, 400),
        ("GET ftp://a.example/ HTTP/1.1", 400, 403),
        ("GET https://a.example/ HTTP/1.1", 501, 403),
        ("GET http://user:secret@127.0.0.1:8080/ HTTP/1.1", 400, 403),
        ("GET http://127.0.0.1:8080/#x HTTP/1.1", 400, 403),
        ("GET http:///x HTTP/1.1", 400, 400),
        ("GET http://a.example:99999/ HTTP/1.1", 400, 400),
        ("GET http://127.0.0.1:25/ HTTP/1.1", 403, 403),
        ("GET http://127.0.0.1:8080/ HTTP/1.1", 403, 403),
        ("GET http://localhost:8080/ HTTP/1.1", 403, 403),
        ("GET http://2130706433:8080/ HTTP/1.1", 403, 403),
        ("GET http://0x7f.1:8080/ HTTP/1.1", 403, 403),
        ("GET http://0177.0.0.1:8080/ HTTP/1.1", 403, 403),
        ("GET http://[::1]:8080/ HTTP/1.1", 403, 403),
        ("GET http://[::ffff:127.0.0.1]:8080/ HTTP/1.1", 403, 403),
        ("GET http://[64:ff9b::7f00:1]:8080/ HTTP/1.1", 403, 403),
        ("GET http://[2002:7f00:1::]:8080/ HTTP/1.1", 403, 403),
        ("GET http://169.254.169.254/latest/meta-data/ HTTP/1.1", 403, 403),
        ("GET http://10.0.0.1/ HTTP/1.1", 403, 403),
        ("CONNECT 127.0.0.1:443 HTTP/1.1", 403, 403),
        ("CONNECT 93.184.216.34:22 HTTP/1.1", 403, 403),
        ("CONNECT 127.0.0.1 HTTP/1.1", 400, 403),
        ("TRACE http://93.184.216.34/ HTTP/1.1", 405, 403),
        ("GET http://a.example/ HTTP/2.0", 505, 505),
        ("GET cache_object://127.0.0.1/info HTTP/1.1", 400, 403),
        ("GET /squid-internal-mgr/menu HTTP/1.1", 400, 403),
        ("GET http://10.0.0.1/squid-internal-mgr/info HTTP/1.1", 403, 403),
        ("PURGE http://93.184.216.34/ HTTP/1.1", 403, 403),
    ],
)
def test_t10_what_a_proxy_must_not_do_is_refused(shut: Running, request_line: str, status: int, of_squid: int) -> None:
    """Not this machine by any name, not private networks, no ports of other services; one line says why."""
    if request_line.startswith("PURGE") and shut.engine == "embedded":
        request_line = request_line.replace("93.184.216.34", "10.0.0.1")  # for it a method as any other
    answer = talk(shut.address, f"{request_line}\r\nHost: a.example\r\nConnection: close\r\n\r\n".encode(), end=False)
    wanted = of_squid if shut.engine == "squid" else status
    assert answer.startswith(b"HTTP/1.1 %d " % wanted), answer
    assert b"secret" not in answer
    if shut.engine == "embedded":
        assert answer.partition(b"\r\n\r\n")[2].startswith(b"vmproxy cache: ")


HEAD = b"HTTP/1.1 200 OK\r\nCache-Control: max-age=60\r\n"


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"HTTP/1.1 200",
        b"not http\r\n\r\n",
        HEAD + b"Content-Length: 9\r\n\r\n1234",
        HEAD + b"Content-Length: 900000\r\n\r\n1234",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n4\r\n1234\r\n",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n4\r\n1234\r\nXX\r\n",
        HEAD + b"Content-Length: 9\r\nTransfer-Encoding: chunked\r\n\r\n4\r\n1234\r\n",
    ],
)
def test_f75_what_breaks_off_is_never_whole_and_never_kept(ajar: Running, sent: bytes) -> None:
    """502 (of squid 403 for what is no HTTP), or an answer that any client sees break off; the next one asks again."""
    asked = []

    def act(taken: socket.socket) -> None:
        asked.append(1)
        taken.sendall(sent)

    with raw_origin(act) as place:
        for turn in range(2):
            answer = talk(ajar.address, ask(place), end=False)
            head, _, body = answer.partition(b"\r\n\r\n")
            length = re.search(rb"(?i)content-length: (\d+)", head)
            whole = len(body) == int(length[1]) if length else not re.search(rb"(?i)chunked", head) or ends(body)
            whole = whole and not answer.endswith(b"RESET")
            refused = (b"HTTP/1.1 502 ", b"HTTP/1.1 403 ") if ajar.engine == "squid" else b"HTTP/1.1 502 "
            assert head.startswith(refused) or (answer.startswith(b"HTTP/1.1 200 ") and not whole), answer
            assert len(asked) > turn


def ends(body: bytes) -> bool:
    """Whether a chunked body has its last chunk."""
    chunks = Chunks()
    try:
        chunks.feed(bytearray(body))
    except BadMessage:
        return False
    return chunks.done


def test_t10_a_request_that_was_here_before_is_refused(ajar: Running) -> None:
    """The proxy's own name in Via: 508, of squid 403; another's goes on."""
    with origin() as server:
        url = server.serve("/loop")
        via = fetch(ajar.address, url)["Via"]
        assert fetch(ajar.address, url, via="1.1 other").status == 200
        assert server.seen[-1][2]["Via"].startswith("1.1 other, 1.1 vmproxy-")
        assert fetch(ajar.address, url, via=via).status == (403 if ajar.engine == "squid" else 508)
        assert len(server.seen) == 2
