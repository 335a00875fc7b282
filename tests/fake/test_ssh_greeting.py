"""Our greeting goes out as soon as TCP is there, once, and before the SSH library is."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator

import pytest

from vmproxy.transports._tcp import GREETING, Dial

LINE = f"{GREETING}\r\n".encode("ascii")


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Our end of a connection just dialled, and the server's."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        dial = Dial("127.0.0.1", listener.getsockname()[1], timeout_seconds=10.0)
        server, _ = listener.accept()
        stack.enter_context(server).settimeout(10.0)
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
