"""Proxies that run on this host: recognised by what they say, and named where that helps."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.cacheworld import proxy, settings
from vmproxy import hostproc, nearby
from vmproxy.cache.limits import CacheSettings
from vmproxy.cache.listening import try_listening
from vmproxy.cli import cache
from vmproxy.cli.common import failed
from vmproxy.errors import NoProxy, Refused

RECORDED = {
    "squid": b"HTTP/1.1 400 Bad Request\r\nServer: squid\r\nX-Squid-Error: ERR_INVALID_URL 0\r\n\r\n<!DOCTYPE html>",
    "tinyproxy": b"HTTP/1.0 400 Bad Request\r\nServer: tinyproxy/1.11.1\r\nContent-Type: text/html\r\n\r\n<?xml",
    "privoxy": b"HTTP/1.1 400 Invalid header received from client\r\nContent-Type: text/plain\r\n\r\n"
    b"Invalid header received from client.\n",
    "polipo": b"HTTP/1.1 400 Couldn't parse request\r\nConnection: close\r\nServer: Polipo\r\n\r\n",
    "px": b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/html;charset=utf-8\r\nContent-Length: 221\r\n\r\n<html>"
    b"<p>Message: URL using bad/illegal format or missing URL</p></body></html>",
    "vmproxy cache": b"HTTP/1.1 400 Bad Request\r\nVia: 1.1 vmproxy-0123abcd\r\n\r\nvmproxy cache: this is a proxy",
    "": b"HTTP/1.1 200 OK\r\nServer: nginx\r\nContent-Length: 0\r\n\r\n",
}
"""What squid 5.7, tinyproxy 1.11, privoxy 3.0.34 and px 0.13 answered to the question, and polipo's form."""


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """However busy this machine is: who answers is heard."""
    monkeypatch.setattr(nearby, "_SECONDS", 60.0)


@pytest.mark.parametrize("name", RECORDED)
def test_answers_are_recognised(name: str) -> None:
    """By the answers of the programs themselves; a web server is nobody."""
    assert nearby.recognise(RECORDED[name]) == name


@given(st.binary(max_size=200))
def test_any_answer_is_read(data: bytes) -> None:
    """Whatever listens there may say what it likes."""
    assert nearby.recognise(data) in {name for name, _pattern in nearby._ANSWERS} | {""}
    assert nearby.recognise(b"\n" + RECORDED["squid"]) == ""


@contextmanager
def answering(answer: bytes) -> Iterator[int]:
    """Something that gives everybody the same answer, on a free port; a process of another name than a proxy's."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            while True:
                try:
                    taken, _peer = listening.accept()
                except OSError:
                    return
                with taken, suppress(OSError):  # who asks goes as soon as there is enough
                    if taken.recv(4096):
                        taken.sendall(answer)

        threading.Thread(target=serve, daemon=True).start()
        yield listening.getsockname()[1]
        listening.shutdown(socket.SHUT_RDWR)


def test_f76_who_listens_on_the_port_is_named(tmp_path: Path) -> None:
    """A port in use: which proxy it is, and how it is used as it is; another cache of ours too."""
    with answering(RECORDED["squid"]) as port:
        with pytest.raises(Refused) as error:
            try_listening(CacheSettings(directory="x", port=port))
        assert str(error.value) == f"squid listens there already (127.0.0.1:{port})"
        assert f"vmproxy apply --proxy http://127.0.0.1:{port}" in error.value.hint
    with answering(RECORDED[""]) as port, pytest.raises(Refused, match="something listens there already"):
        try_listening(CacheSettings(directory="x", port=port))
    with proxy(settings(tmp_path / "c")) as running, pytest.raises(Refused, match="vmproxy cache listens there"):
        try_listening(CacheSettings(directory="x", port=running.port))


def test_those_that_run_are_named_with_what_uses_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """In ``cache status`` when ours does not run, and in the hint when no proxy answers."""
    with (
        answering(RECORDED["squid"]) as one,
        answering(RECORDED["tinyproxy"]) as two,
        answering(b"SSH-2.0-x\r\n") as no,
    ):
        with socket.create_server(("127.0.0.1", 0)) as closed:
            nobody = closed.getsockname()[1]
        monkeypatch.setattr(nearby, "USUAL_PORTS", (one, two, no, nobody))
        names = [(found.name, found.port) for found in nearby.look()]
        assert names == [("squid", one), ("tinyproxy", two)]
        assert nearby.look(but=(one,)) == (nearby.Found(name="tinyproxy", port=two),)
        report = failed("vm", NoProxy("no proxy answers at 10.0.2.2:8123", hint="--no-check"))
        assert f"squid listens on 127.0.0.1:{one}: --proxy http://127.0.0.1:{one}" in report.hint
        assert report.hint.endswith("; or --no-check")
        assert failed("vm", Refused("other", hint="h")).hint == "h"
        others = [{"name": "squid", "port": one, "proxy": f"http://127.0.0.1:{one}"}]
        found = {
            **dict.fromkeys(("hits", "revalidated", "stale", "misses", "passed", "refused", "errors"), 0),
            **dict.fromkeys(("entries", "size", "bytes_saved", "bytes_fetched", "tunnels", "bytes_tunnelled"), 0),
            **{"running": False, "ratio": 0.0, "hosts": [], "others": others},
        }
        last = cache._lines(found)[-1]
        assert last.startswith(f"squid listens on 127.0.0.1:{one} and can be used as it is: vmproxy apply --proxy http")


LISTEN = (
    "import socket,sys; s=socket.create_server(('127.0.0.1',0)); print(s.getsockname()[1],flush=True); sys.stdin.read()"
)


def test_a_process_that_is_seen_is_believed_first(tmp_path: Path) -> None:
    """cntlm hands the question on: its name is had from the process, a script's from its file."""
    script = tmp_path / "cntlm"
    script.write_text(LISTEN)
    with subprocess.Popen(
        [sys.executable, str(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout
        port = int(process.stdout.readline())
        assert hostproc.listeners(port) == ("cntlm",)
        assert nearby.who(port) == nearby.Found(name="cntlm", port=port)
        process.kill()
    assert hostproc.listeners(port) == ()
    assert nearby.who(port) is None


def test_an_exchange_is_bounded() -> None:
    """In bytes, and where nothing comes in time."""
    with answering(b"x" * 100_000) as port:
        assert len(hostproc.exchange("127.0.0.1", port, b"q", timeout_seconds=60.0, limit_bytes=5000)) == 5000
    with socket.create_server(("127.0.0.1", 0)) as silent:
        assert hostproc.exchange("127.0.0.1", silent.getsockname()[1], b"q", timeout_seconds=0.1) == b""
