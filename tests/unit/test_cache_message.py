"""HTTP/1.1 read strictly: agrees with h11 on what is good, refuses the smuggling set, and cuts do not matter."""

from __future__ import annotations

from contextlib import suppress

import h11
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vmproxy.cache.message import (
    CHUNKED,
    HEAD_LIMIT,
    UNTIL_CLOSE,
    BadMessage,
    Chunks,
    Head,
    chunk,
    find_head,
    forwarded,
    parse_request,
    parse_response,
    request_body,
    response_body,
)

GOOD = b"GET http://a.example/ HTTP/1.1\r\nHost: a.example\r\n"

SMUGGLING = {
    "both lengths": b"POST http://a/ HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n",
    "two lengths": b"POST http://a/ HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\n",
    "two equal lengths": b"POST http://a/ HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nContent-Length: 3\r\n\r\n",
    "a list of lengths": b"POST http://a/ HTTP/1.1\r\nHost: a\r\nContent-Length: 3, 3\r\n\r\n",
    "a signed length": b"POST http://a/ HTTP/1.1\r\nHost: a\r\nContent-Length: +3\r\n\r\n",
    "a negative length": b"POST http://a/ HTTP/1.1\r\nHost: a\r\nContent-Length: -3\r\n\r\n",
    "a length with an underscore": b"POST http://a/ HTTP/1.1\r\nHost: a\r\nContent-Length: 1_0\r\n\r\n",
    "a length of other digits": "POST http://a/ HTTP/1.1\r\nHost: a\r\nContent-Length: ²\r\n\r\n".encode("latin-1"),
    "an empty length": b"POST http://a/ HTTP/1.1\r\nHost: a\r\nContent-Length:\r\n\r\n",
    "another coding": b"POST http://a/ HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: xchunked\r\n\r\n",
    "two codings": b"POST http://a/ HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
    "coding twice": b"POST http://a/ HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: x\r\n\r\n",
    "chunked by HTTP/1.0": b"POST http://a/ HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n",
    "a coding with a tab": b"POST http://a/ HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: \x0bchunked\r\n\r\n",
    "a folded line": b"GET http://a/ HTTP/1.1\r\nHost: a\r\nX: b\r\n c\r\n\r\n",
    "a folded first line": b"GET http://a/ HTTP/1.1\r\n Host: a\r\n\r\n",
    "a bare LF": b"GET http://a/ HTTP/1.1\r\nHost: a\nX: b\r\n\r\n",
    "bare LFs only": b"GET http://a/ HTTP/1.1\nHost: a\n\n",
    "a bare CR": b"GET http://a/ HTTP/1.1\r\nHost: a\rX: b\r\n\r\n",
    "a space before the colon": b"GET http://a/ HTTP/1.1\r\nHost: a\r\nContent-Length : 3\r\n\r\n",
    "a NUL": b"GET http://a/ HTTP/1.1\r\nHost: a\r\nX: b\0c\r\n\r\n",
    "a line without a colon": b"GET http://a/ HTTP/1.1\r\nHost: a\r\nX\r\n\r\n",
    "an empty name": b"GET http://a/ HTTP/1.1\r\nHost: a\r\n: b\r\n\r\n",
    "two hosts": b"GET http://a/ HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
    "no host": b"GET http://a/ HTTP/1.1\r\nX: a\r\n\r\n",
    "two spaces": b"GET  http://a/ HTTP/1.1\r\nHost: a\r\n\r\n",
    "a space in the address": b"GET http://a/ b HTTP/1.1\r\nHost: a\r\n\r\n",
    "no version": b"GET http://a/\r\nHost: a\r\n\r\n",
    "a control character": b"GET http://a/ HTTP/1.1\r\nHost: a\r\nX: a\x01b\r\n\r\n",
}

tokens = st.text("abcXYZ019-_!#$%&'*+.^`|~", min_size=1, max_size=12)
values = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), max_size=20)
headers = st.lists(st.tuples(tokens.map(lambda name: "x-" + name), values), max_size=6)


def read(data: bytes) -> Head:
    """A whole request, as the server reads it."""
    end = find_head(data)
    assert end == len(data)
    head = parse_request(data)
    request_body(head)
    return head


@pytest.mark.parametrize("data", SMUGGLING.values(), ids=SMUGGLING.keys())
def test_p15_the_smuggling_set_is_refused(data: bytes) -> None:
    """A head that two readers could read differently is refused."""
    with pytest.raises(BadMessage):
        read(data)


@given(headers)
def test_p15_a_good_head_reads_as_h11_reads_it(fields: list[tuple[str, str]]) -> None:
    """Method, target and fields are those that h11 finds."""
    data = GOOD + b"".join(f"{name}: {value}\r\n".encode() for name, value in fields) + b"\r\n"
    other = h11.Connection(h11.SERVER)
    other.receive_data(data)
    event = other.next_event()
    assert isinstance(event, h11.Request)
    head = read(data)
    assert (head.method.encode(), head.target.encode()) == (event.method, event.target)
    assert [(name.lower().encode(), value.encode()) for name, value in head.fields] == list(event.headers)


@given(
    st.lists(st.sampled_from([b"\r", b"\n", b"\r\n", b" ", b":", b"a", b"\0", b"\t", b"Host: a", b"GET / HTTP/1.1"]))
)
def test_p15_what_is_taken_h11_takes_too(parts: list[bytes]) -> None:
    """No soup of line ends and colons is a request to us and none to h11."""
    data = b"".join(parts) + b"\r\n\r\n"
    try:
        if find_head(data) != len(data):
            return
        head = parse_request(data)
    except BadMessage:
        return
    other = h11.Connection(h11.SERVER)
    other.receive_data(data)
    event = other.next_event()
    assert isinstance(event, h11.Request)
    assert len(event.headers) == len(head.fields)


@given(st.sampled_from([*SMUGGLING.values(), GOOD + b"\r\n", GOOD + b"X: y\r\n\r\nrest"]), st.integers(1, 200))
def test_p15_cuts_do_not_matter(data: bytes, cut: int) -> None:
    """However the bytes come, the head is found in the same place or refused."""

    def outcome(pieces: list[bytes]) -> object:
        seen = b""
        try:
            for piece in pieces:
                seen += piece
                if end := find_head(seen):
                    request_body(parse_request(seen[:end]))
                    return end
        except BadMessage:
            return "refused"
        return None

    assert outcome([data[:cut], data[cut:]]) == outcome([data]) == outcome([data[i : i + 1] for i in range(len(data))])


def test_a_head_that_never_ends_is_refused() -> None:
    """More than 64 KiB without an end, or too many lines, are 431."""
    with pytest.raises(BadMessage) as found:
        find_head(GOOD + b"X: " + b"y" * HEAD_LIMIT)
    assert found.value.status == 431
    with pytest.raises(BadMessage) as found:
        read(GOOD + b"X: y\r\n" * 300 + b"\r\n")
    assert found.value.status == 431


@given(st.lists(st.binary(min_size=1, max_size=40), max_size=6), st.lists(st.integers(1, 9), max_size=30))
def test_p15_chunks_come_back_however_they_are_cut(pieces: list[bytes], cuts: list[int]) -> None:
    """What was chunked is decoded to the same bytes, and what follows stays."""
    data = b"".join(chunk(piece) for piece in pieces) + chunk(b"") + b"GET next"
    chunks, buffer, found = Chunks(), bytearray(), b""
    at = 0
    for size in [*cuts, len(data)]:
        buffer += data[at : at + size]
        at += size
        found += chunks.feed(buffer)
    assert chunks.done
    assert found == b"".join(pieces)
    assert bytes(buffer) == b"GET next"


@pytest.mark.parametrize(
    "data",
    [
        *(b"3\nabc\r\n", b"-3\r\nabc\r\n", b"0x3\r\nabc\r\n", b"3 \r\nabc\r\n", b" 3\r\nabc\r\n", b"\r\n", b"g\r\n"),
        *(
            b"3\r\nabcd\r\n",
            b"3\r\nabc\n",
            b"3\r\nabc\rX",
            b"3;a\x00\r\n",
            b"3;a\nb\r\n",
            b"f" * 17 + b"\r\n",
            b";x\r\n",
        ),
        *(b"3" * 5000, b"0\r\nX : y\r\n\r\n", b"0\r\n X: y\r\n\r\n", b"0\r\nX: y\n\r\n", b"0\r\nContent\r\n\r\n"),
        b"0\r\n" + b"X: y\r\n" * 20000,
    ],
)
def test_p15_a_bad_chunk_is_refused(data: bytes) -> None:
    """Sizes, ends and trailers that are not as the grammar has them are refused, at once or byte by byte."""
    with pytest.raises(BadMessage):
        Chunks().feed(bytearray(data))
    if len(data) < 100:
        with pytest.raises(BadMessage):
            feed_each(data)


def feed_each(data: bytes) -> None:
    """Byte by byte."""
    chunks, buffer = Chunks(), bytearray()
    for byte in data:
        buffer.append(byte)
        chunks.feed(buffer)


@settings(max_examples=300)
@given(st.binary(max_size=200))
def test_p15_any_bytes_are_read_or_refused(data: bytes) -> None:
    """No bytes raise anything but BadMessage."""
    for read_it in (find_head, parse_request, parse_response, lambda data: Chunks().feed(bytearray(data))):
        with suppress(BadMessage):
            read_it(data + b"\r\n\r\n")


def response(text: str) -> Head:
    """A response's head."""
    return parse_response(text.replace("\n", "\r\n").encode("latin-1") + b"\r\n\r\n")


def test_where_a_response_ends() -> None:
    """Content-Length, chunks or the end of the connection; nothing behind HEAD, 204, 304; a doubt is a 502."""
    assert response_body(response("HTTP/1.1 200 OK\nContent-Length: 5"), "GET") == 5
    assert response_body(response("HTTP/1.1 200\nTransfer-Encoding: Chunked"), "GET") == CHUNKED
    assert response_body(response("HTTP/1.0 200 OK"), "GET") == UNTIL_CLOSE
    assert response_body(response("HTTP/1.1 200 OK\nContent-Length: 5"), "HEAD") == 0
    assert response_body(response("HTTP/1.1 304 x\nContent-Length: 5"), "GET") == 0
    for wrong in ("Content-Length: 5\nContent-Length: 5", "Content-Length: 5\nTransfer-Encoding: chunked"):
        with pytest.raises(BadMessage) as found:
            response_body(response(f"HTTP/1.1 200 OK\n{wrong}"), "GET")
        assert found.value.status == 502
    with pytest.raises(BadMessage):
        response("HTTP/2 200 OK")
    with pytest.raises(BadMessage):
        response("HTTP/1.1 200 OK\nX: a\n b")


def test_what_belongs_to_one_hop_does_not_go_on() -> None:
    """Hop-by-hop fields, those that Connection names and the client's own credentials for a proxy are left out."""
    head = read(
        GOOD + b"Connection: close, X-Mine\r\nX-Mine: 1\r\nKeep-Alive: 5\r\nProxy-Authorization: Basic eDp5\r\n"
        b"TE: trailers\r\nUpgrade: h2c\r\nProxy-Connection: keep-alive\r\nAccept: */*\r\n\r\n"
    )
    assert [name for name, _value in forwarded(head)] == ["Host", "Accept"]


def test_who_keeps_a_connection_open() -> None:
    """HTTP/1.1 unless it says close; HTTP/1.0 only if it says keep-alive."""
    assert read(GOOD + b"\r\n").keep_alive
    assert not read(GOOD + b"Connection: Close\r\n\r\n").keep_alive
    old = GOOD.replace(b"1.1", b"1.0")
    assert not read(old + b"\r\n").keep_alive
    assert read(old + b"Connection: Keep-Alive\r\n\r\n").keep_alive
