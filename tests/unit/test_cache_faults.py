"""What goes wrong: origins that stall or break off, a full disk, broken entries, hostile and slow clients, loops."""

from __future__ import annotations

import errno
import os
import re
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from ipaddress import ip_network
from pathlib import Path

import pytest

from tests.unit.cacheworld import (
    WAIT_SECONDS,
    Client,
    fetch,
    open_files,
    origin,
    proxy,
    quick,
    serving,
    settings,
    talk,
)
from vmproxy.cache.policy import Stored
from vmproxy.cache.store import Draft
from vmproxy.errors import Busy, Refused

FRESH = "max-age=60"


@contextmanager
def raw_origin(act: Callable[[socket.socket], None]) -> Iterator[str]:
    """An origin that reads one request, then does as it likes with the connection; its host and port."""

    def one(taken: socket.socket) -> None:
        with taken, suppress(ConnectionError):  # the proxy may have gone before
            taken.settimeout(WAIT_SECONDS)
            taken.recv(65536)
            act(taken)

    with serving(one) as port:
        yield f"127.0.0.1:{port}"


def until(holds: Callable[[], bool]) -> None:
    """Wait for something. Raises AssertionError."""
    limit = time.monotonic() + WAIT_SECONDS
    while not holds():
        assert time.monotonic() < limit
        time.sleep(0.02)


def reset(taken: socket.socket) -> None:
    """Close with a reset."""
    taken.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


HEAD = b"HTTP/1.1 200 OK\r\nCache-Control: max-age=60\r\n"


def ask(place: str, minor: int = 1) -> bytes:
    """A request for that origin."""
    return f"GET http://{place}/x HTTP/1.{minor}\r\nHost: {place}\r\nConnection: close\r\n\r\n".encode()


@pytest.mark.parametrize(
    ("sent", "then", "status"),
    [
        (b"", "close", 502),
        (b"", "reset", 502),
        (b"", "stall", 504),
        (b"HTTP/1.1 200", "close", 502),
        (b"not http\r\n\r\n", "close", 502),
        (HEAD + b"Content-Length: 9\r\nContent-Length: 9\r\n\r\n123456789", "close", 502),
        (HEAD + b"Content-Length: 9\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", "close", 502),
        (HEAD + b"Content-Length: 9\n\r\n123456789", "close", 502),
        (HEAD + b"Content-Length: 9\r\n\r\n1234", "close", 502),
        (HEAD + b"Content-Length: 9\r\n\r\n1234", "stall", 504),
        (HEAD + b"Content-Length: 900000\r\n\r\n1234", "close", 0),
        (HEAD + b"Content-Length: 900000\r\n\r\n1234", "reset", 0),
        (HEAD + b"Content-Length: 900000\r\n\r\n1234", "stall", 0),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n4\r\n1234\r\n", "close", 0),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n4\r\n1234\r\nXX\r\n", "close", 0),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\n1234\r\n", "stall", 0),
        (b"HTTP/1.1 200 OK\r\n\r\n1234", "reset", 0),
    ],
)
def test_f75_a_broken_origin_is_never_a_short_200(tmp_path: Path, sent: bytes, then: str, status: int) -> None:
    """502 or 504 where nothing was given on yet, else a connection that breaks off; and nothing is kept."""
    done = threading.Event()
    seconds = 0.3 if status else 2.0  # what is cut has to have begun before
    limits = quick(origin_seconds=seconds if then == "stall" else WAIT_SECONDS)

    def act(taken: socket.socket) -> None:
        if sent:
            taken.sendall(sent)
        if then == "stall":
            done.wait(WAIT_SECONDS)
        elif then == "reset":
            time.sleep(0.05)
            reset(taken)

    with raw_origin(act) as place, proxy(settings(tmp_path / "c", limits=limits)) as running:
        for minor in (1, 0):
            answer = talk(running.address, ask(place, minor), end=False)
            if status:
                assert answer.startswith(b"HTTP/1.1 %d " % status), answer
            else:
                head, _, body = answer.partition(b"\r\n\r\n")
                length = re.search(rb"Content-Length: (\d+)", head)
                cut = answer.endswith(b"RESET") or (length and len(body) < int(length[1]))
                assert cut or (b"chunked" in head and not body.endswith(b"0\r\n\r\n")), answer
        assert len(running.proxy.store) == 0
        done.set()


def test_f75_a_full_disk_is_served_without_storing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Small and large bodies reach every client whole where nothing, or only a part, can be written."""
    real = Draft._put
    room = [0]

    def put(draft: Draft, data: bytes) -> None:
        if draft.length + len(data) > room[0]:
            raise OSError(errno.ENOSPC, "full")
        real(draft, data)

    monkeypatch.setattr(Draft, "_put", put)
    with origin() as server, proxy(settings(tmp_path / "c")) as running:
        small = server.serve("/small", b"s" * 1000, cache_control=FRESH)
        large = server.serve("/large", bytes(range(256)) * 8000, cache_control=FRESH)
        for room[0] in (0, 500_000):
            assert fetch(running.address, small, cache_control="no-cache").body == b"s" * 1000
            assert fetch(running.address, large).body == bytes(range(256)) * 8000
        assert server.hits["/large"] == 2
        limit = time.monotonic() + WAIT_SECONDS  # the client has its answer a moment before the draft is thrown away
        while any(name.endswith(".part") for name in os.listdir(tmp_path / "c/entries")):
            assert time.monotonic() < limit
            time.sleep(0.02)


def test_f75_a_broken_entry_is_dropped_and_had_anew(tmp_path: Path) -> None:
    """A flipped bit in the first block is a miss; in a later one the connection breaks off, and the next is whole."""
    with origin() as server, proxy(settings(tmp_path / "c", limits=quick(memory_total=0))) as running:
        urls = {size: server.serve(f"/{size}", b"q" * size, cache_control=FRESH) for size in (1000, 900_000)}
        for size, url in urls.items():
            for at in (10, size - 10):
                fetch(running.address, url)
                (entry,) = (
                    entry for entry in running.do(lambda: list(running.proxy.store.entries())) if entry.url == url
                )
                with open(tmp_path / "c/entries" / entry.name, "r+b") as file:
                    file.seek(at)
                    file.write(b"!")
                before = server.hits[f"/{size}"]
                got = talk(running.address, f"GET {url} HTTP/1.0\r\nHost: x\r\n\r\n".encode())
                body = got.partition(b"\r\n\r\n")[2]
                assert b"!" not in body
                if size == 1000 or at == 10:
                    assert body == b"q" * size
                else:
                    assert len(body) < size
                assert fetch(running.address, url).body == b"q" * size
                assert server.hits[f"/{size}"] == before + 1


def test_who_has_it_whole_and_asks_again_finds_it_in_the_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However long publication takes: the answer's last byte comes after it."""
    real = Draft.finish

    def finish(draft: Draft, url: str, stored: Stored) -> int:
        time.sleep(0.3)
        return real(draft, url, stored)

    monkeypatch.setattr(Draft, "finish", finish)
    with origin() as server, proxy(settings(tmp_path / "c")) as running:
        url = server.serve("/large", b"q" * 900_000, cache_control=FRESH)
        assert fetch(running.address, url).body == fetch(running.address, url).body == b"q" * 900_000
        assert server.hits["/large"] == 1


def test_the_last_byte_is_not_read_while_it_is_being_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader that began when there was less gets no more than that: not the end, which comes after publication."""
    size = 600_000
    reading = threading.Event()
    finish, read = Draft.finish, Draft.read

    def slow_finish(draft: Draft, url: str, stored: Stored) -> int:
        time.sleep(0.3)
        return finish(draft, url, stored)

    def slow_read(draft: Draft, start: int, count: int) -> bytes:
        if start >= size // 2 and draft.length < size:
            reading.set()
            until(lambda: draft.length == size)
        return read(draft, start, count)

    monkeypatch.setattr(Draft, "finish", slow_finish)
    monkeypatch.setattr(Draft, "read", slow_read)
    with origin() as server, proxy(settings(tmp_path / "c")) as running:

        def route(handler: object) -> None:
            handler.send_response(200)  # type: ignore[attr-defined]
            handler.send_header("Content-Length", str(size))  # type: ignore[attr-defined]
            handler.send_header("Cache-Control", FRESH)  # type: ignore[attr-defined]
            handler.end_headers()  # type: ignore[attr-defined]
            handler.wfile.write(b"q" * (size - 1000))  # type: ignore[attr-defined]
            reading.wait(WAIT_SECONDS)
            handler.wfile.write(b"q" * 1000)  # type: ignore[attr-defined]

        server.routes["/late"] = route
        assert fetch(running.address, server.url("/late")).body == b"q" * size
        assert fetch(running.address, server.url("/late"), range="bytes=0-0").status == 206
        assert server.hits["/late"] == 1


def test_f75_no_descriptor_is_left(tmp_path: Path) -> None:
    """After hits, misses, broken origins, tunnels and clients that left there are as many descriptors as before."""
    with (
        origin() as server,
        raw_origin(lambda taken: taken.sendall(HEAD + b"Content-Length: 900000\r\n\r\n1")) as broken,
    ):
        url = server.serve("/a", b"a" * 300_000, cache_control=FRESH)
        with proxy(settings(tmp_path / "c", limits=quick(origin_idle_seconds=0.1))) as running:
            fetch(running.address, url)
            time.sleep(0.5)
            before = open_files()
            for _turn in range(5):
                fetch(running.address, url)
                fetch(running.address, server.url("/none"))
                talk(running.address, ask(broken))
                with socket.create_connection(running.address) as leaves:
                    leaves.sendall(f"GET {url}?x HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            until(lambda: open_files() <= before)


def test_stale_if_error_is_given_where_the_origin_allows_it(tmp_path: Path) -> None:
    """An origin that fails with 5xx or not at all: the stale answer within stale-if-error, else the failure."""
    with origin() as server, proxy(settings(tmp_path / "c")) as running:
        fails: list[str] = []

        def route(handler: object, control: str) -> None:
            if not fails:
                handler.answer(200, b"old", etag='"1"', cache_control=control)  # type: ignore[attr-defined]
            elif fails == ["500"]:
                handler.answer(500, b"bad")  # type: ignore[attr-defined]
            else:
                handler.close_connection = True  # type: ignore[attr-defined]

        server.routes["/may"] = lambda handler: route(handler, "max-age=0, stale-if-error=60")
        server.routes["/must"] = lambda handler: route(handler, "max-age=0, must-revalidate, stale-if-error=60")
        server.routes["/plain"] = lambda handler: route(handler, "max-age=0")
        for how in ([], ["500"], ["close"]):
            fails[:] = how
            assert (fetch(running.address, server.url("/may"))).body == b"old"
            expected = {"": 200, "500": 500, "close": 502}["".join(how)]
            assert fetch(running.address, server.url("/must")).status == expected
            assert fetch(running.address, server.url("/plain")).status == expected


def test_an_entry_that_goes_while_its_origin_is_asked(tmp_path: Path) -> None:
    """Purged before the origin fails: no stale answer is there to be given, so it is asked anew, its failure told."""
    with origin() as server, proxy(settings(tmp_path / "c")) as running:

        def route(handler: object) -> None:
            if server.hits["/goes"] == 1:
                handler.answer(200, b"old", cache_control="max-age=0, stale-if-error=60", etag='"1"')  # type: ignore[attr-defined]
                return
            running.do(running.proxy.store.purge)
            handler.answer(503, b"bad")  # type: ignore[attr-defined]

        server.routes["/goes"] = route
        assert fetch(running.address, server.url("/goes")).body == b"old"
        got = fetch(running.address, server.url("/goes"))
        assert (got.status, got.body, server.hits["/goes"]) == (503, b"bad", 3)
        assert not [line for line in running.log if line.startswith("bug")]


@pytest.mark.parametrize(("method", "times"), [("GET", 2), ("PUT", 2), ("DELETE", 2), ("POST", 1), ("PATCH", 1)])
def test_what_is_not_idempotent_is_sent_once(tmp_path: Path, method: str, times: int) -> None:
    """An origin that reads a request on a kept connection and closes may have acted on it (RFC 9110 9.2.2)."""
    with origin() as server, proxy(settings(tmp_path / "c")) as running:
        url = server.serve("/before", cache_control=FRESH)  # its connection is kept before its answer goes out
        server.routes["/act"] = lambda handler: setattr(handler, "close_connection", True)
        assert fetch(running.address, url).status == 200
        assert fetch(running.address, server.url("/act"), method).status == 502
        assert server.hits["/act"] == times


def test_t10_slow_and_idle_clients_are_let_go(tmp_path: Path) -> None:
    """A head that trickles gets 408 however many bytes come; an idle connection is closed."""
    with proxy(settings(tmp_path / "c", limits=quick(head_seconds=0.4, idle_seconds=0.4))) as running:
        trickle(running.address)
        assert talk(running.address, end=False) == b""


def trickle(address: tuple[str, int]) -> None:
    """Send a head byte by byte until the proxy has had enough."""
    with socket.create_connection(address, timeout=WAIT_SECONDS) as client:
        began = time.monotonic()
        answer = b""
        client.settimeout(0.05)
        while not answer and time.monotonic() - began < WAIT_SECONDS:
            client.sendall(b"G")
            try:
                answer = client.recv(4096)
            except TimeoutError:
                continue
        assert answer.startswith(b"HTTP/1.1 408 ")


def test_t10_a_loop_is_seen_by_via(tmp_path: Path) -> None:
    """A request that passed this proxy before is refused with 508; others' Via goes on."""
    with origin() as server, proxy(settings(tmp_path / "c")) as running:
        url = server.serve("/via")
        assert fetch(running.address, url, via="1.1 other").status == 200
        assert server.seen[-1][2]["Via"] == f"1.1 other, {running.proxy.via}"
        assert fetch(running.address, url, via=f"1.1 other, {running.proxy.via}").status == 508
        itself = fetch(running.address, f"http://127.0.0.1:{running.port}/")
        assert (itself.status, b"itself" in itself.body) == (403, True)


def test_t10_the_address_that_was_checked_is_connected_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name is resolved once; of its addresses only those allowed are tried, whatever it resolves to next."""
    answers = [["127.0.0.2", "127.0.0.1"], ["127.0.0.2"]]
    asked = []

    real = socket.getaddrinfo

    def resolve(host: str, port: int, *more: int, **named: int) -> object:
        if host != "rebinding.example":
            return real(host, port, *more, **named)
        asked.append(host)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (text, port)) for text in answers[len(asked) - 1]]

    only = (ip_network("127.0.0.1/32"),)
    with origin() as server, proxy(settings(tmp_path / "c", targets=only)) as running:
        server.serve("/name", b"right", cache_control="no-store")
        monkeypatch.setattr("vmproxy.cache.origin.socket.getaddrinfo", resolve)
        url = f"http://rebinding.example:{server.server_port}/name"
        head = f"GET {url} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode()
        assert talk(running.address, head).endswith(b"right")
        assert asked == ["rebinding.example"]
        running.do(running.proxy.origins.close_kept)
        assert talk(running.address, head).startswith(b"HTTP/1.1 403 ")
        assert server.hits["/name"] == 1


def test_t10_a_client_that_is_not_allowed_hears_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its connection is reset, whatever it sends."""
    monkeypatch.setattr("vmproxy.cache.server.may_use", lambda _settings, peer: peer != "127.0.0.1")
    with proxy(settings(tmp_path / "c")) as running:
        assert talk(running.address, b"GET http://127.0.0.1:9/ HTTP/1.1\r\nHost: x\r\n\r\n", end=False) in (
            b"",
            b"RESET",
        )
        assert "not within --allow" in running.log[0]


def test_t10_clients_beyond_the_limit_are_turned_away(tmp_path: Path) -> None:
    """The connection cap holds, and is free again when somebody goes."""
    with origin() as server, proxy(settings(tmp_path / "c", limits=quick(clients=2))) as running:
        url = server.serve("/x")
        with Client(running.address) as one, Client(running.address) as two:
            assert one.get(url).status == two.get(url).status == 200
            assert talk(running.address, end=False).startswith(b"HTTP/1.1 503 ")
        whole = ask(url[7:].partition("/")[0])
        until(lambda: not talk(running.address, whole, end=False).startswith(b"HTTP/1.1 503 "))
        assert fetch(running.address, url).status == 200


def test_f76_a_port_in_use_is_one_line_with_a_hint(tmp_path: Path) -> None:
    """Refused, exit 6, the address named; and the directory is free again."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(Refused) as found, proxy(settings(tmp_path / "c", port=port)):
            pass
        assert found.value.exit == 6
        assert f"127.0.0.1:{port}" in str(found.value)
        assert "--port" in found.value.hint
    with proxy(settings(tmp_path / "c")):
        pass


def test_a_second_process_on_the_directory_is_refused(tmp_path: Path) -> None:
    """Busy, exit 8, while the first one runs."""
    with proxy(settings(tmp_path / "c")):
        with pytest.raises(Busy) as found, proxy(settings(tmp_path / "c")):
            pass
        assert found.value.exit == 8


def test_bodies_of_requests_go_on(tmp_path: Path) -> None:
    """With a length, in chunks, after 100-continue, and empty: the origin gets the very bytes."""
    with origin() as server, proxy(settings(tmp_path / "c")) as running:
        url = server.serve("/up", b"taken")
        with Client(running.address) as client:
            for body in (b"", b"short", b"l" * 2_000_000):
                assert client.get(url, "POST", body).body == b"taken"
                assert server.seen[-1][3] == body
            assert (
                client.get(url, "PUT", iter([b"in ", b"chunks " * 9000]), transfer_encoding="chunked").body == b"taken"
            )
            assert server.seen[-1][3] == b"in " + b"chunks " * 9000
        top = (
            f"POST {url} HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 2\r\nConnection: close\r\n\r\n"
        )
        answer = talk(running.address, top.encode(), b"ok", end=False)
        assert answer.startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 ")
        assert server.seen[-1][3] == b"ok"
        assert talk(running.address, top.replace("100-c", "200-c").encode()).startswith(b"HTTP/1.1 417 ")


@pytest.mark.parametrize(
    ("length", "body", "status"),
    [
        ("Content-Length: 100", b"half", b""),
        ("Transfer-Encoding: chunked", b"4\r\nhalf\r\n", b""),
        ("Transfer-Encoding: chunked", b"4\r\nhalf\r\n3 \r\nabc\r\n0\r\n\r\n", b"HTTP/1.1 400 "),
        ("Transfer-Encoding: chunked", b"4\r\nhalf!\r\n0\r\n\r\n", b"HTTP/1.1 400 "),
        ("Transfer-Encoding: chunked", b"4\nhalf\r\n0\r\n\r\n", b"HTTP/1.1 400 "),
    ],
)
def test_p15_a_request_body_that_breaks_off_is_no_request(
    tmp_path: Path, length: str, body: bytes, status: bytes
) -> None:
    """The origin sees a broken connection, not a shorter body; a bad chunk is a 400 and the end."""
    whole: list[bool] = []

    def act(taken: socket.socket) -> None:
        try:
            while taken.recv(65536):
                pass
            whole.append(True)
        except ConnectionResetError:
            whole.append(False)

    with raw_origin(act) as place, proxy(settings(tmp_path / "c")) as running:
        top = f"POST http://{place}/ HTTP/1.1\r\nHost: x\r\n{length}\r\n\r\n".encode()
        answer = talk(running.address, top, body)
        assert answer.startswith(status or b"HTTP/1.1 400 ")
        assert answer.count(b"HTTP/1.1 ") == 1
        until(lambda: bool(whole))
    assert whole == [False]


def test_http_1_0_clients(tmp_path: Path) -> None:
    """Closed at the end, or kept open where the client asks for it; never chunked."""

    def act(taken: socket.socket) -> None:
        taken.sendall(
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n3\r\nabc\r\n0\r\n\r\n"
        )

    with origin() as server, proxy(settings(tmp_path / "c")) as running, raw_origin(act) as place:
        url = server.serve("/old", b"123", cache_control=FRESH)
        one = f"GET {url} HTTP/1.0\r\nConnection: keep-alive\r\n\r\n".encode()
        answer = talk(running.address, one * 2 + one.replace(b"Connection: keep-alive\r\n", b""), end=False)
        assert answer.count(b"HTTP/1.1 200 ") == 3
        assert answer.count(b"Connection: keep-alive") == 2
        assert answer.count(b"Connection: close") == 1
        chunked = talk(running.address, f"GET http://{place}/ HTTP/1.0\r\n\r\n".encode(), end=False)
        assert chunked.endswith(b"\r\n\r\nabc")
        assert b"chunked" not in chunked


def test_ranges_and_conditions_are_answered_from_the_store(tmp_path: Path) -> None:
    """206, 416, If-Range, 304 and HEAD cost the origin nothing where a fresh whole is there."""
    body = bytes(range(256)) * 3000
    with origin() as server, proxy(settings(tmp_path / "c")) as running:
        url = server.serve("/r", body, cache_control=FRESH, etag='"e"')
        fetch(running.address, url)
        for wanted, first, behind in (("bytes=0-0", 0, 1), ("bytes=300000-", 300000, None), ("bytes=-5", -5, None)):
            got = fetch(running.address, url, range=wanted)
            assert (got.status, got.body) == (206, body[first:behind])
        assert fetch(running.address, url, range="bytes=768000-").status == 416
        assert fetch(running.address, url, range="bytes=0-1,4-5").body == body
        assert fetch(running.address, url, range="bytes=0-1", if_range='"other"').body == body
        assert fetch(running.address, url, range="bytes=0-1", if_range='"e"').body == body[:2]
        assert fetch(running.address, url, if_none_match='W/"x", "e"').status == 304
        assert fetch(running.address, url, if_none_match='"x"').body == body
        head = fetch(running.address, url, "HEAD")
        assert (head.status, head.body, head["Content-Length"]) == (200, b"", str(len(body)))
        assert server.hits["/r"] == 1


@pytest.mark.parametrize("kept", [True, False])
def test_a_long_stream_needs_little_memory(tmp_path: Path, kept: bool) -> None:
    """64 MB through the proxy, stored or too large for that, to a client that first waits: memory grows by far less."""
    size = 64 << 20
    with origin() as server, proxy(settings(tmp_path / "c", size=(1 << 30) if kept else (80 << 20))) as running:

        def route(handler: object) -> None:
            handler.send_response(200)  # type: ignore[attr-defined]
            handler.send_header("Content-Length", str(size))  # type: ignore[attr-defined]
            handler.send_header("Cache-Control", FRESH)  # type: ignore[attr-defined]
            handler.end_headers()  # type: ignore[attr-defined]
            for _turn in range(size >> 18):
                handler.wfile.write(b"m" * (1 << 18))  # type: ignore[attr-defined]

        server.routes["/long"] = route
        with socket.create_connection(running.address, timeout=WAIT_SECONDS) as client:
            client.sendall(f"GET {server.url('/long')} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
            time.sleep(0.3)
            before = resident()
            got, most = 0, 0
            while data := client.recv(1 << 18):
                got += len(data)
                most = max(most, resident())
        assert got > size
        assert most - before < 24 << 20
        assert len(running.proxy.store) == int(kept)


def test_readers_of_different_speed_share_what_is_too_large_to_keep(tmp_path: Path) -> None:
    """A body of unknown length that outgrows the store reaches each of its readers whole; nothing is kept."""
    body = os.urandom(1 << 20) * 3
    go_on = threading.Event()
    with origin() as server, proxy(settings(tmp_path / "c", size=4 << 20)) as running:

        def route(handler: object) -> None:
            handler.send_response(200)  # type: ignore[attr-defined]
            handler.send_header("Transfer-Encoding", "chunked")  # type: ignore[attr-defined]
            handler.send_header("Cache-Control", FRESH)  # type: ignore[attr-defined]
            handler.end_headers()  # type: ignore[attr-defined]
            go_on.wait(WAIT_SECONDS)
            for at in range(0, len(body), 100_000):
                piece = body[at : at + 100_000]
                handler.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece))  # type: ignore[attr-defined]
            handler.wfile.write(b"0\r\n\r\n")  # type: ignore[attr-defined]

        server.routes["/huge"] = route
        ask_once = f"GET {server.url('/huge')} HTTP/1.0\r\nHost: x\r\n\r\n".encode()
        clients = [socket.create_connection(running.address, timeout=WAIT_SECONDS) for _number in range(3)]
        for client in clients:
            client.sendall(ask_once)
            while b"\r\n\r\n" not in client.recv(65536):
                pass
        go_on.set()
        found = [b""] * len(clients)
        for index, client in reversed(list(enumerate(clients))[1:]):
            found[index] = client.recv(1000)
        time.sleep(0.2)

        def rest(index: int) -> None:
            with clients[index] as client:
                while data := client.recv(65536 if index else 16384):
                    found[index] += data

        readers = [threading.Thread(target=rest, args=(index,)) for index in range(len(clients))]
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.join(WAIT_SECONDS)
        assert [piece == body for piece in found] == [True] * len(clients)
        assert server.hits["/huge"] == 1
        assert len(running.proxy.store) == 0
        until(lambda: not os.listdir(tmp_path / "c/entries"))  # it is thrown away behind the last byte


def resident() -> int:
    """Bytes of memory this process has."""
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE")
