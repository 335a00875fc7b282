"""A proxy behind another one, asked by a client that knows only its address; squid's differences are said."""

from __future__ import annotations

import base64
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import pytest

from tests.lab.proxy import LabProxy
from tests.unit.cacheworld import LOOPBACK, Origin, Running, fetch, origin, proxy, serving, settings, talk
from vmproxy.proxyenv import parse_proxy

CREDENTIALS = "dom\\ü ser@x:p@s:s%/#ß'\"$ w"
ENCODED = "dom%5C%C3%BC%20ser%40x:p%40s%3As%25%2F%23%C3%9F'%22%24%20w"
SECRETS = ("p@s", "p%40s", "%C3%9F", base64.b64encode(CREDENTIALS.encode()).decode())


@dataclass
class Chain:
    """A proxy, its upstream, and the origin that only the upstream finds, as far.example."""

    running: Running
    parent: LabProxy
    origin: Origin
    echo: int
    """The port of a server that swaps the case of what it gets; CONNECT to it is allowed."""

    @property
    def far(self) -> str:
        """The origin as the upstream knows it."""
        return f"http://far.example:{self.origin.server_port}"


@contextmanager
def echoing() -> Iterator[int]:
    """A server that swaps the case of what it gets; its port."""

    def one(taken: socket.socket) -> None:
        with taken, suppress(ConnectionError):
            while data := taken.recv(65536):
                taken.sendall(data.swapcase())

    with serving(one) as port:
        yield port


def wishes(port: int, echo: int) -> dict[str, Any]:
    """The settings of a proxy behind the upstream at that port."""
    return {
        "upstream": parse_proxy(f"http://{ENCODED}@127.0.0.1:{port}"),
        "no_proxy": (".near.example", "other.example:1234", "127.0.0.1"),
        "targets": (LOOPBACK,),
        "ports": frozenset((echo,)),
    }


@contextmanager
def upstream() -> Iterator[tuple[LabProxy, Origin, int]]:
    """The upstream, its origin, and the port of its echo."""
    with origin() as server, echoing() as echo, socket.create_server(("127.0.0.1", 0)) as listening:

        def dial(host: str, port: int) -> socket.socket:
            assert host == "far.example"
            return socket.create_connection(("127.0.0.1", port), timeout=60)

        with LabProxy(listening, mode="auth", credentials=CREDENTIALS, dial=dial) as parent:
            yield parent, server, echo


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chain]:
    """One chain for all of this file."""
    with upstream() as (parent, server, echo):
        wanted = settings(tmp_path_factory.mktemp("chain") / "c", **wishes(parent.port, echo))
        with proxy(wanted) as running:
            yield Chain(running, parent, server, echo)


def test_http_goes_through_the_upstream_with_the_whole_address(chain: Chain) -> None:
    """The name is resolved there, the credentials arrive decoded, the origin sees none, and the second is a hit."""
    chain.origin.serve("/a", b"far", cache_control="max-age=60")
    chain.parent.forget()
    got = [fetch(chain.running.address, f"{chain.far}/a?b", proxy_authorization="Basic eDp5").body for _turn in "12"]
    assert got == [b"far", b"far"]
    assert chain.parent.lines == [f"GET {chain.far}/a?b HTTP/1.1"]
    assert "Proxy-Authorization" not in chain.origin.seen[-1][2]
    sent = [line for line in chain.parent.requests[0].headers if line.lower().startswith("proxy-authorization")]
    assert sent == [f"Proxy-Authorization: Basic {SECRETS[-1]}"]


def test_bodies_go_through_the_upstream(chain: Chain) -> None:
    """A POST and its answer, both longer than one packet."""
    chain.origin.routes["/post"] = lambda handler: handler.answer(200, handler.body)
    assert fetch(chain.running.address, f"{chain.far}/post", "POST", b"x" * 60_000).body == b"x" * 60_000


def test_connect_goes_through_the_upstream(chain: Chain) -> None:
    """The tunnel carries bytes as they are; a CONNECT that the upstream cannot make is a 502 or 503."""
    chain.parent.forget()
    ask = f"CONNECT far.example:{chain.echo} HTTP/1.1\r\nHost: far.example:{chain.echo}\r\n\r\n".encode()
    with socket.create_connection(chain.running.address, timeout=60) as client:
        client.sendall(ask)
        answer = b""
        while b"\r\n\r\n" not in answer:
            answer += client.recv(4096)
        client.sendall(b"Through" * 10_000)
        back = b""
        while len(back) < 70_000:
            back += client.recv(65536)
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert back == b"tHROUGH" * 10_000
    assert chain.parent.lines == [f"CONNECT far.example:{chain.echo} HTTP/1.1"]
    nowhere = ask.replace(b"far.example", b"nowhere.invalid")
    assert talk(chain.running.address, nowhere, end=False).startswith((b"HTTP/1.1 502 ", b"HTTP/1.1 503 "))


def test_no_proxy_goes_directly(chain: Chain) -> None:
    """What the list names, and loopback as ever, reaches its origin without the upstream."""
    url = chain.origin.serve("/direct", b"near")
    chain.parent.forget()
    assert fetch(chain.running.address, url).body == b"near"
    for host in ("a.near.example", "other.example:1234"):
        assert fetch(chain.running.address, f"http://{host}/", connection="close").status in (502, 503, 504)
    assert chain.parent.lines == []
    # Not below the name, and not at another port: to the upstream, which knows neither.
    for host in ("near.example.invalid", "other.example.invalid:1235"):
        assert fetch(chain.running.address, f"http://{host}/").status in (502, 503, 504)
    assert len(chain.parent.lines) == 2


@pytest.mark.parametrize(
    "target",
    [
        *("http://10.0.0.1/", "http://169.254.169.254/latest/", "http://[fe80::1]/", "http://[::ffff:10.0.0.1]/"),
        *("http://167772161/", "http://10.1.1/", "http://0xa.1/", "http://192.168.1.1:8080/"),
    ],
)
def test_t10_addresses_in_numbers_are_refused_before_the_upstream(chain: Chain, target: str) -> None:
    """The upstream is no way to what is refused here."""
    chain.parent.forget()
    assert fetch(chain.running.address, target).status == 403
    assert chain.parent.lines == []


@pytest.mark.parametrize(
    "host", ["a.localhost", "A.LocalHost.", "localhost.localdomain", "ip6-localhost", "ip6-loopback"]
)
def test_t10_names_of_this_machine_are_refused_before_the_upstream(chain: Chain, host: str) -> None:
    """Over there they would be the upstream's own loopback."""
    chain.parent.forget()
    assert fetch(chain.running.address, f"http://{host}:{chain.origin.server_port}/").status == 403
    ask = f"CONNECT {host}:{chain.echo} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode()
    assert talk(chain.running.address, ask, end=False).startswith(b"HTTP/1.1 403 ")
    assert chain.parent.lines == []


def test_an_upstream_that_wants_other_credentials_is_said(chain: Chain) -> None:
    """502 and the reason for the client, which has nothing to log in with; nobody sees a password."""
    chain.parent.credentials = "other:one"
    try:
        got = fetch(chain.running.address, f"{chain.far}/denied")
        ask = f"CONNECT far.example:{chain.echo} HTTP/1.1\r\nHost: x\r\n\r\n".encode()
        tunnel = talk(chain.running.address, ask, end=False)
    finally:
        chain.parent.credentials = CREDENTIALS
    if chain.running.engine == "embedded":
        assert (got.status, b"upstream proxy refuses the credentials (407)" in got.body) == (502, True)
        assert tunnel.startswith(b"HTTP/1.1 502 ")
        assert any("407" in line and "http://***@127.0.0.1" in line for line in chain.running.log)
    else:  # it gives the upstream's own answer on, and an error of its own for a tunnel
        assert got.status == 407
        assert tunnel.startswith((b"HTTP/1.1 407 ", b"HTTP/1.1 502 ", b"HTTP/1.1 503 "))
    shown = got.body.decode("latin-1") + tunnel.decode("latin-1") + "".join(chain.running.log) + repr(chain.running)
    assert not [secret for secret in SECRETS if secret in shown]
