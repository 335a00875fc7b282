"""Our greeting goes out as soon as TCP is there, once, and before the SSH library is."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator

import pytest

from tests.fake.realservers import deaf_port, free_port
from vmproxy.errors import Unreachable
from vmproxy.transports._tcp import GREETING, Dial

LINE = f"{GREETING}\r\n".encode("ascii")


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Our end of a connection just dialled, and the server's."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        dial = Dial("127.0.0.1", listener.getsockname()[1], timeout_seconds=60)
        server, _ = listener.accept()
        stack.enter_context(server).settimeout(60.0)
        yield stack.enter_context(dial.result()), server


def heard(server: socket.socket, length: int) -> bytes:
    """That many bytes, or fewer at the end."""
    data = b""
    while len(data) < length and (piece := server.recv(length - len(data))):
        data += piece
    return data


def test_the_server_hears_it_before_anything_is_sent(ends: tuple[socket.socket, socket.socket]) -> None:
    """The line is there without a word of the library, so that the server answers meanwhile."""
    _ours, server = ends
    assert heard(server, len(LINE)) == LINE


def test_the_librarys_own_greeting_is_not_sent_twice(ends: tuple[socket.socket, socket.socket]) -> None:
    """What was sent ahead counts as sent; what follows goes out, the same line too."""
    ours, server = ends
    assert ours.send(LINE) == len(LINE)
    assert ours.send(b"next") == 4
    ours.sendall(LINE)
    ours.shutdown(socket.SHUT_WR)
    assert heard(server, 1000) == LINE + b"next" + LINE


def test_other_bytes_are_never_swallowed(ends: tuple[socket.socket, socket.socket]) -> None:
    """A library that begins with something else has all of it sent."""
    ours, server = ends
    assert ours.send(b"SSH-2.0-other\r\n") == 15
    ours.shutdown(socket.SHUT_WR)
    assert heard(server, 1000) == LINE + b"SSH-2.0-other\r\n"


def test_the_line_is_what_the_standard_wants() -> None:
    """RFC 4253 section 4.2: printable ASCII, no blanks, no minus sign in the name, at most 255 bytes."""
    name = GREETING.removeprefix("SSH-2.0-")
    assert name != GREETING and name.isascii() and name.isprintable()
    assert not set(name) & set("- ")
    assert len(LINE) <= 255


# ---- with a thread and without one ----------------------------------------------------------------------------------


@pytest.fixture
def dials(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the threads that were started to dial."""
    started: list[str] = []
    start = threading.Thread.start

    def note(thread: threading.Thread) -> None:
        if "dial" in thread.name:
            started.append(thread.name)
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", note)
    return started


def no_look_up(*_args: object, **_words: object) -> None:
    """Nobody is asked for an address."""
    pytest.fail("an address was looked up")


@pytest.mark.parametrize("busy", [False, True])
def test_an_address_needs_a_thread_only_where_there_is_something_to_do(
    busy: bool, dials: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not busy, the connection and the greeting are made at once, by whoever asks; no name server is asked for it."""
    monkeypatch.setattr(socket, "getaddrinfo", no_look_up)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(60.0)
        dial = Dial("127.0.0.1", listener.getsockname()[1], timeout_seconds=60.0, busy=busy)
        with dial.result() as ours, listener.accept()[0] as server:
            server.settimeout(60.0)
            assert ours.send(LINE) == len(LINE)
            ours.shutdown(socket.SHUT_WR)
            assert heard(server, 1000) == LINE
            assert ours.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    assert len(dials) == busy


def test_a_name_always_takes_a_thread(dials: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A look-up has no limit of its own: it is never made by whoever asks; addresses in old spellings are names."""
    seen: list[object] = []
    real = socket.getaddrinfo

    def look_up(name: bytes, port: int, **words: int) -> object:
        seen.append((name, threading.current_thread().name))
        return real("127.0.0.1", port, **words)

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    names = ["vm.test", "127.1", "0x7f000001", "fe80::1%lo"]
    with socket.create_server(("127.0.0.1", 0)) as listener:
        for name in names:
            Dial(name, listener.getsockname()[1], timeout_seconds=60.0, busy=False).result().close()
    assert seen == [(name.encode("ascii"), "vmproxy-dial") for name in names]
    assert dials == ["vmproxy-dial"] * len(names)


@pytest.mark.parametrize("host", ["::1", "fe80::1", "2001:db8::0:2", "::ffff:192.0.2.1"])
def test_an_ipv6_address_is_taken_as_it_is(host: str, dials: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own family, no look-up, no thread; the error has it in brackets."""
    tried: list[object] = []

    def connect(sock: socket.socket, address: object) -> None:
        tried.append((sock.family, address))
        raise ConnectionRefusedError(111, "Connection refused")

    monkeypatch.setattr(socket, "getaddrinfo", no_look_up)
    monkeypatch.setattr(socket.socket, "connect", connect)
    with pytest.raises(Unreachable, match="refused") as caught:
        Dial(host, 2022, timeout_seconds=60.0, busy=False).result()
    assert caught.value.where == f"[{host}]:2022"
    assert tried == [(socket.AF_INET6, (host, 2022, 0, 0))]
    assert not dials


@pytest.fixture(params=["refused", "deaf"])
def bad_port(request: pytest.FixtureRequest) -> Iterator[tuple[int, float]]:
    """A port on which nothing listens, and one whose queue is full, where SYNs are dropped; how long to try it."""
    if request.param == "deaf":
        with deaf_port() as port:
            yield port, 0.5
    else:
        yield free_port(), 60.0


def test_f01_f02_the_errors_are_the_same(bad_port: tuple[int, float], dials: list[str]) -> None:
    """Refused, or no answer in time: what, where and hint do not depend on who dials; nothing is raised before they
    are asked for."""
    port, seconds = bad_port
    errors = []
    for busy in (False, True):
        dial = Dial("127.0.0.1", port, timeout_seconds=seconds, busy=busy)
        with pytest.raises(Unreachable) as caught:
            dial.result()
        errors.append((caught.value.what, caught.value.where, caught.value.hint, caught.value.exit))
    assert errors[0] == errors[1]
    assert errors[0][0] in ("cannot connect: connection refused", "no answer within 0.5 s")
    assert errors[0][1:] == (f"127.0.0.1:{port}", errors[0][2], 4)
    assert dials == ["vmproxy-dial"]
