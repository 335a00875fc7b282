"""What a cache must do, asked by a client that knows only the proxy's address (any proxy's)."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from tests.unit.cacheworld import WAIT_SECONDS, Origin, Running, fetch, http_date, origin, proxy, settings, talk

FRESH = "max-age=60"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Origin, Running]]:
    """One origin and one proxy for all of this file; every test has paths of its own."""
    with origin() as server, proxy(settings(tmp_path_factory.mktemp("cache") / "dir")) as running:
        yield server, running


World = tuple[Origin, Running]


def test_a_fresh_hit_comes_from_the_store_with_its_age(world: World) -> None:
    """The second GET asks the origin nothing and says how old the answer is."""
    server, running = world
    url = server.serve("/fresh", b"one", cache_control=FRESH)
    first, second, third = (fetch(running.address, url) for _turn in range(3))
    assert (first.body, second.body, third.body) == (b"one", b"one", b"one")
    assert server.hits["/fresh"] == 1
    assert not first["Age"]
    assert 0 <= int(second["Age"]) < 60
    assert "hit" in (third["Cache-Status"] or third["X-Cache"].lower())  # squid says it by X-Cache before version 6


def test_the_age_that_an_answer_already_had_counts(world: World) -> None:
    """Age of a cache before us is added; what has no life left is not given again."""
    server, running = world
    url = server.serve("/aged", cache_control="max-age=100", age="40")
    fetch(running.address, url)
    assert 40 <= int(fetch(running.address, url)["Age"]) < 60
    url = server.serve("/too-aged", cache_control="max-age=100", age="100")
    for _turn in range(2):
        fetch(running.address, url)
    assert server.hits["/too-aged"] == 2


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        ("/no-store", {"cache_control": "no-store, max-age=60"}),
        ("/private", {"cache_control": "private, max-age=60"}),
        ("/private-of", {"cache_control": 'max-age=60, private="x"'}),
        ("/cookie", {"cache_control": FRESH, "set_cookie": "a=b"}),
        ("/vary-all", {"cache_control": FRESH, "vary": "*"}),
        ("/nothing-said", {}),
        ("/zero", {"cache_control": "max-age=0"}),
        ("/expired", {"expires": http_date(-60)}),
        ("/bad-expires", {"expires": "0"}),
        ("/s-maxage", {"cache_control": "max-age=60, s-maxage=0"}),
    ],
)
def test_t11_what_must_not_be_kept_is_asked_for_each_time(world: World, path: str, fields: dict[str, str]) -> None:
    """no-store, private, cookies, Vary: * and what has no life are never given from the store."""
    server, running = world
    url = server.serve(path, **fields)
    for _turn in range(2):
        assert fetch(running.address, url).body == b"hello"
    assert server.hits[path] == 2


@pytest.mark.parametrize("status", [206, 301, 404, 410, 500])
def test_t11_only_200_is_kept(world: World, status: int) -> None:
    """Another status goes through as it is, each time."""
    server, running = world
    url = server.serve(f"/status-{status}", b"body", status, cache_control=FRESH)
    for _turn in range(2):
        got = fetch(running.address, url)
        assert (got.status, got.body) == (status, b"body")
    assert server.hits[f"/status-{status}"] == 2


def test_t11_authorization_is_neither_kept_nor_answered(world: World) -> None:
    """A request with Authorization goes to the origin, and nothing of it is kept, even where it says public."""
    server, running = world
    url = server.serve("/auth", b"for you", cache_control="public, max-age=60")
    for _turn in range(2):
        fetch(running.address, url, authorization="Basic dTpw")
    assert server.hits["/auth"] == 2
    fetch(running.address, url)
    assert server.hits["/auth"] == 3


def test_expiry_is_respected(world: World) -> None:
    """After its life an answer is asked for again."""
    server, running = world
    url = server.serve("/short", cache_control="max-age=1")
    fetch(running.address, url)
    time.sleep(1.1)
    fetch(running.address, url)
    assert server.hits["/short"] == 2


def test_expires_gives_a_life(world: World) -> None:
    """Without Cache-Control, Expires counts."""
    server, running = world
    url = server.serve("/expires", expires=http_date(60))
    for _turn in range(2):
        fetch(running.address, url)
    assert server.hits["/expires"] == 1


def test_a_stale_entry_is_confirmed_by_its_etag(world: World) -> None:
    """The origin is asked with If-None-Match; a 304 gives the stored body, and new life."""
    server, running = world
    asked = []

    def route(handler: object) -> None:
        tag = handler.headers.get("If-None-Match")  # type: ignore[attr-defined]
        asked.append(tag)
        life = "max-age=0" if len(asked) == 1 else FRESH
        if tag == '"v1"':
            handler.answer(304, b"", etag='"v1"', cache_control=life, x_new="yes")  # type: ignore[attr-defined]
        else:
            handler.answer(200, b"tagged", etag='"v1"', cache_control=life)  # type: ignore[attr-defined]

    server.routes["/etag"] = route
    first, second, third = (fetch(running.address, server.url("/etag")) for _turn in range(3))
    assert (first.body, second.body, third.body) == (b"tagged",) * 3
    assert asked == [None, '"v1"']
    assert third["X-New"] == "yes"
    assert second.status == 200


def test_a_changed_object_replaces_the_stale_one(world: World) -> None:
    """Where the origin answers 200 to the question, the new body is given and kept."""
    server, running = world
    bodies = iter([b"old", b"new"])
    server.routes["/changed"] = lambda handler: handler.answer(
        200, body := next(bodies), etag=f'"{body.decode()}"', cache_control="max-age=0" if body == b"old" else FRESH
    )
    got = [fetch(running.address, server.url("/changed")).body for _turn in range(3)]
    assert got == [b"old", b"new", b"new"]


def test_variants_are_kept_apart_by_vary(world: World) -> None:
    """Each value of the field that Vary names has its own entry."""
    server, running = world
    server.routes["/vary"] = lambda handler: handler.answer(
        200, handler.headers.get("Accept-Language", "none").encode(), cache_control=FRESH, vary="Accept-Language"
    )
    url = server.url("/vary")
    for _turn in range(2):
        assert fetch(running.address, url, accept_language="de").body == b"de"
        assert fetch(running.address, url, accept_language="fr").body == b"fr"
        assert fetch(running.address, url).body == b"none"
    assert server.hits["/vary"] == 3


def test_a_request_may_want_the_origin(world: World) -> None:
    """no-cache, Pragma and max-age=0 of a client ask the origin; only-if-cached never does."""
    server, running = world
    url = server.serve("/reload", cache_control=FRESH)
    fetch(running.address, url)
    fetch(running.address, url, cache_control="no-cache")
    fetch(running.address, url, cache_control="max-age=0")
    fetch(running.address, url, pragma="no-cache")
    assert server.hits["/reload"] == 4
    fetch(running.address, url, cache_control="no-store")
    assert fetch(running.address, url, cache_control="only-if-cached").status == 200
    assert fetch(running.address, server.url("/never"), cache_control="only-if-cached").status == 504
    assert server.hits["/never"] == 0


def test_last_modified_gives_a_life_of_a_tenth(world: World) -> None:
    """Without a life of its own, an answer is fresh for a tenth of what it was old, and not longer."""
    server, running = world
    url = server.serve("/heuristic", last_modified=http_date(-1000))
    for _turn in range(2):
        fetch(running.address, url)
    assert server.hits["/heuristic"] == 1
    url = server.serve("/young", last_modified=http_date(10))
    for _turn in range(2):
        fetch(running.address, url)
    assert server.hits["/young"] == 2


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE"])
def test_an_unsafe_method_makes_entries_invalid(world: World, method: str) -> None:
    """After a POST that worked the stored answer is not given any more; after one that failed it is."""
    server, running = world
    path = f"/unsafe-{method}"
    url = server.url(path)
    answers = {"GET": 200, method: 500}
    server.routes[path] = lambda handler: handler.answer(answers[handler.command], b"x", cache_control=FRESH)
    fetch(running.address, url)
    fetch(running.address, url, method)
    fetch(running.address, url)
    assert server.hits[path] == 2
    answers[method] = 200
    fetch(running.address, url, method)
    fetch(running.address, url)
    assert server.hits[path] == 4


@pytest.mark.parametrize("size", [100, 300_000])
def test_ten_who_ask_the_same_are_one_to_the_origin(world: World, size: int) -> None:
    """Collapsed forwarding: the origin is asked once, and everybody gets the whole (of squid: what is a download)."""
    server, running = world
    path = f"/collapsed-{size}.deb"

    def route(handler: object) -> None:
        time.sleep(0.3)  # the others come meanwhile; who comes later still gets it from the store
        handler.answer(200, b"z" * size, cache_control=FRESH)  # type: ignore[attr-defined]

    server.routes[path] = route

    def ask(_number: int) -> bytes:
        return fetch(running.address, server.url(path)).body

    with ThreadPoolExecutor(10) as pool:
        assert set(pool.map(ask, range(10))) == {b"z" * size}
    assert server.hits[path] == 1


def test_connect_makes_a_tunnel_to_a_named_port(tmp_path: Path) -> None:
    """CONNECT carries bytes both ways as they are, and both ends' ends; other ports are refused."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]

        def echo() -> None:
            taken, _peer = listening.accept()
            with taken, suppress(ConnectionError):
                while data := taken.recv(65536):
                    taken.sendall(data.swapcase())

        threading.Thread(target=echo, daemon=True).start()
        with proxy(settings(tmp_path / "c", ports=frozenset((port,)))) as running:
            ask = f"CONNECT 127.0.0.1:{port} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n".encode()
            answer = talk(running.address, ask + b"Early", b" bytes \0\r\n" + b"x" * 500_000)
            head, _, body = answer.partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200 ")
            assert body == b"eARLY BYTES \0\r\n" + b"X" * 500_000
            other = talk(running.address, ask.replace(b"127.0.0.1:%d" % port, b"127.0.0.1:22"))
            assert other.startswith(b"HTTP/1.1 403 ")
            assert "tunnelled, never cached" in running.log[0]


def test_a_long_body_streams_before_it_is_whole(world: World) -> None:
    """The first bytes reach the client while the origin still holds back the last ones."""
    server, running = world
    go_on = threading.Event()

    def route(handler: object) -> None:
        handler.send_response(200)  # type: ignore[attr-defined]
        handler.send_header("Content-Length", "200000")  # type: ignore[attr-defined]
        handler.send_header("Cache-Control", FRESH)  # type: ignore[attr-defined]
        handler.end_headers()  # type: ignore[attr-defined]
        handler.wfile.write(b"a" * 100_000)  # type: ignore[attr-defined]
        go_on.wait(WAIT_SECONDS)
        handler.wfile.write(b"b" * 100_000)  # type: ignore[attr-defined]

    server.routes["/stream"] = route
    with socket.create_connection(running.address, timeout=WAIT_SECONDS) as client:
        client.sendall(f"GET {server.url('/stream')} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
        seen = b""
        while seen.count(b"a") < 100_000:
            seen += client.recv(65536)
        assert b"b" * 100 not in seen
        go_on.set()
        while data := client.recv(65536):
            seen += data
    assert seen.endswith(b"a" * 100_000 + b"b" * 100_000)
    assert fetch(running.address, server.url("/stream")).body == b"a" * 100_000 + b"b" * 100_000
    assert server.hits["/stream"] == 1
