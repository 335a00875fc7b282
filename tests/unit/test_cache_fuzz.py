"""P15: whole messages as other readers read them, however they are cut; and broken ones sent to the proxy itself."""

from __future__ import annotations

import http.client
import io
import random
import socket
from pathlib import Path
from typing import Any, cast

import h11
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.cacheworld import WAIT_SECONDS, fetch, open_files, origin, proxy, settings, talk
from tests.unit.test_cache_faults import raw_origin, until
from tests.unit.test_cache_message import SMUGGLING
from vmproxy.cache.message import (
    CHUNKED,
    UNTIL_CLOSE,
    Chunks,
    chunk,
    find_head,
    parse_request,
    parse_response,
    request_body,
    response_body,
)

_SEED = 20260
_TURNS = 500
_PIECES = (
    b"\r",
    b"\n",
    b"\r\n",
    b"\0",
    b" ",
    b":",
    b";",
    b",",
    b"\xff",
    b"Content-Length: 1\r\n",
    b"0\r\n\r\n",
    b"chunked",
)

names = st.text("abcXYZ019-_!#$%&'*+.^`|~", min_size=1, max_size=12).map(lambda name: "x-" + name)
values = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), max_size=20)
fields = st.lists(st.tuples(names, values), max_size=5)
pieces = st.lists(st.binary(min_size=1, max_size=50), max_size=5)
framings = st.sampled_from(["length", "chunked", "close"])


def framed(framing: str, parts: list[bytes]) -> tuple[bytes, bytes]:
    """The field that says where a body ends, and the body as it is sent."""
    if framing == "chunked":
        return b"Transfer-Encoding: chunked\r\n", b"".join(map(chunk, parts)) + chunk(b"")
    body = b"".join(parts)
    return (b"Content-Length: %d\r\n" % len(body) if framing == "length" else b""), body


def pieces_of(data: bytes, cuts: list[int]) -> list[bytes]:
    """``data`` cut at these places."""
    places = sorted({cut % (len(data) + 1) for cut in cuts})
    return [data[start:end] for start, end in zip([0, *places], [*places, len(data)], strict=True)]


def read_whole(data: list[bytes], parse: Any, length_of: Any) -> tuple[Any, bytes, bytes]:
    """(head, body, rest) of a message that comes in pieces, as the proxy reads it."""
    buffer, body = bytearray(), b""
    head: Any = None
    chunks, length = Chunks(), 0
    for piece in data:
        buffer += piece
        if head is None and buffer and (end := find_head(buffer)):
            head = parse(bytes(buffer[:end]))
            del buffer[:end]
            length = length_of(head)
        if head is not None:
            if length == CHUNKED:
                body += chunks.feed(buffer)
                continue
            room = len(buffer) if length == UNTIL_CLOSE else length - len(body)
            body += bytes(buffer[:room])
            del buffer[:room]
    return head, body, bytes(buffer)


@given(fields, framings, pieces, st.lists(st.integers(0, 1000), max_size=8))
def test_p15_responses_read_as_http_client_reads_them(
    extra: list[tuple[str, str]], framing: str, parts: list[bytes], cuts: list[int]
) -> None:
    """Status, fields and body, for every way to say where it ends and every way of cutting it."""
    says, body = framed(framing, parts)
    lines = b"".join(f"{name}: {value}\r\n".encode() for name, value in extra)
    data = b"HTTP/1.1 200 Fine\r\n" + lines + says + b"\r\n" + body

    class Sock:
        def makefile(self, *_args: Any) -> io.BytesIO:
            return io.BytesIO(data)

    other = http.client.HTTPResponse(cast(Any, Sock()))
    other.begin()
    head, found, rest = read_whole(pieces_of(data, cuts), parse_response, lambda head: response_body(head, "GET"))
    assert (head.status, head.reason) == (other.status, other.reason) == (200, "Fine")
    wanted = [(name.lower(), value) for name, value in other.getheaders()]
    assert [(name.lower(), value) for name, value in head.fields] == wanted
    assert found == other.read() == b"".join(parts)
    assert rest == b""


@given(fields, framings.filter(lambda framing: framing != "close"), pieces, st.lists(st.integers(0, 1000), max_size=8))
def test_p15_requests_read_as_h11_reads_them(
    extra: list[tuple[str, str]], framing: str, parts: list[bytes], cuts: list[int]
) -> None:
    """Method, address, fields, body, and where the next request begins."""
    says, body = framed(framing, parts)
    lines = b"".join(f"{name}: {value}\r\n".encode() for name, value in extra)
    data = b"POST http://a.example/b?c HTTP/1.1\r\nHost: a.example\r\n" + lines + says + b"\r\n" + body + b"GET next"
    other = h11.Connection(h11.SERVER)
    other.receive_data(data)
    event = other.next_event()
    assert isinstance(event, h11.Request)
    read = b""
    while isinstance(more := other.next_event(), h11.Data):
        read += bytes(more.data)
    head, found, rest = read_whole(pieces_of(data, cuts), parse_request, request_body)
    assert (head.method.encode(), head.target.encode()) == (event.method, event.target)
    assert [(name.lower().encode(), value.encode()) for name, value in head.fields] == list(event.headers)
    assert found == read == b"".join(parts)
    assert rest == other.trailing_data[0] == b"GET next"


def broken(good: bytes, chance: random.Random) -> bytes:
    """A message with a few bytes removed, doubled, changed, cut off or put in."""
    data = bytearray(good)
    for _turn in range(chance.randint(1, 4)):
        at = chance.randrange(len(data) + 1)
        match chance.randrange(5):
            case 0:
                del data[at : at + chance.randint(1, 5)]
            case 1:
                data[at:at] = data[at : at + chance.randint(1, 20)]
            case 2 if at < len(data):
                data[at] = chance.randrange(256)
            case 3:
                del data[at + chance.randint(0, 200) :]
            case _:
                data[at:at] = chance.choice(_PIECES)
        data = data or bytearray(b"\r")
    return bytes(data)


def test_p15_broken_requests_sent_to_the_proxy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is answered or closed, none is a bug of ours, no descriptor is left, and it goes on working."""
    real = socket.getaddrinfo

    def only_here(host: str, *args: Any, **more: Any) -> Any:
        """A broken name or address is no reason to ask the world."""
        if host != "127.0.0.1":
            raise OSError("no such name")
        return real(host, *args, **more)

    monkeypatch.setattr(socket, "getaddrinfo", only_here)
    chance = random.Random(_SEED)
    with origin() as server, proxy(settings(tmp_path / "c")) as running:
        url = server.serve("/x", b"x" * 100, cache_control="max-age=60")
        place = f"127.0.0.1:{server.server_port}"
        fetch(running.address, url)
        running.do(running.proxy.origins.close_kept)
        before = open_files()
        good = [
            f"GET {url} HTTP/1.1\r\nHost: {place}\r\nAccept: */*\r\nRange: bytes=1-2\r\n\r\n".encode(),
            f'GET {url} HTTP/1.0\r\nConnection: keep-alive\r\nIf-None-Match: "a"\r\n\r\n'.encode() * 2,
            f"POST {url} HTTP/1.1\r\nHost: {place}\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n".encode(),
            f"POST {url} HTTP/1.1\r\nHost: {place}\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\nabc".encode(),
            f"CONNECT {place} HTTP/1.1\r\nHost: {place}\r\n\r\nGET / HTTP/1.1".encode(),
            *(data.replace(b"http://a/", url.encode()) for data in SMUGGLING.values()),
        ]
        for _turn in range(_TURNS):
            answer = talk(running.address, broken(chance.choice(good), chance))
            assert not answer or answer.startswith((b"HTTP/1.1 ", b"RESET")), answer
        assert not [line for line in running.log if line.startswith("bug")]
        assert fetch(running.address, url).body == b"x" * 100
        running.do(running.proxy.origins.close_kept)
        until(lambda: open_files() <= before)


def test_p15_broken_answers_of_an_origin(tmp_path: Path) -> None:
    """Each is given on, a 502 or a cut; none is a bug of ours, and none is kept that was not whole."""
    chance = random.Random(_SEED)
    body = bytes(range(256)) * 2
    good = [
        b"HTTP/1.1 200 OK\r\nCache-Control: max-age=60\r\nContent-Length: 512\r\n\r\n" + body,
        b'HTTP/1.1 200 OK\r\nETag: "a"\r\nVary: Accept\r\nTransfer-Encoding: chunked\r\n\r\n'
        + chunk(body)
        + chunk(b""),
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 206 Part\r\nContent-Range: bytes 0-1/5\r\nContent-Length: 2\r\n\r\nab",
        b"HTTP/1.0 200 OK\r\nExpires: Thu, 01 Jan 2037 00:00:00 GMT\r\nAge: 5\r\n\r\n" + body,
    ]
    sent: list[bytes] = []

    def act(taken: socket.socket) -> None:
        taken.sendall(sent[-1])

    with raw_origin(act) as place, proxy(settings(tmp_path / "c")) as running:
        for turn in range(_TURNS):
            sent.append(broken(chance.choice(good), chance))
            request = f"GET http://{place}/{turn} HTTP/1.1\r\nHost: {place}\r\nConnection: close\r\n\r\n"
            answer = talk(running.address, request.encode(), end=False)
            assert not answer or answer.startswith((b"HTTP/1.1 ", b"RESET")), answer
        assert not [line for line in running.log if line.startswith("bug")]
        assert fetch(running.address, f"http://{place}/only", cache_control="only-if-cached").status == 504


@pytest.mark.parametrize("cut", [0, 1, 7, 40])
def test_p15_the_proxy_reads_a_request_in_pieces(tmp_path: Path, cut: int) -> None:
    """Sent byte by byte or at once, it is the same request."""
    with origin() as server, proxy(settings(tmp_path / "c")) as running:
        server.routes["/echo"] = lambda handler: handler.answer(200, handler.body)
        place = f"127.0.0.1:{server.server_port}"
        data = (
            f"POST http://{place}/echo HTTP/1.1\r\nHost: {place}\r\nConnection: close\r\n"
            "Transfer-Encoding: chunked\r\n\r\n3;x=y\r\nabc\r\n2\r\nde\r\n0\r\nT: u\r\n\r\n"
        ).encode()
        with socket.create_connection(running.address, timeout=WAIT_SECONDS) as client:
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for piece in [data[at : at + cut] for at in range(0, len(data), cut)] if cut else [data]:
                client.sendall(piece)
            answer = b""
            while more := client.recv(4096):
                answer += more
        assert answer.endswith(b"\r\n\r\nabcde")
