"""``cache start`` and ``cache stop``, the object that a first hit is shown with, and what its answers mean."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.unit.cacheworld import WAIT_SECONDS, fetch, free_port, proxy, settings
from tests.unit.schema import problems
from tests.unit.test_cache_command import serving
from vmproxy import cacherun, hostproc
from vmproxy.cache import control, place, sample
from vmproxy.cachehit import judge_fetches, request
from vmproxy.errors import Busy, UsageError
from vmproxy.routes import link_networks, parse

ROOT = Path(__file__).resolve().parents[2]


def vmproxy(*words: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run the program to its end."""
    argv = [sys.executable, "-m", "vmproxy", *words]
    own = {**os.environ, "PYTHONPATH": str(ROOT), **environ}
    return subprocess.run(argv, capture_output=True, text=True, check=False, env=own, timeout=120)


def test_it_starts_once_goes_on_and_ends_when_asked(tmp_path: Path) -> None:
    """The process outlives us in a session of its own, with a log of its owner's; a second start finds it; a password
    is in nobody's argv; options that it does not have are a warning; stop waits for its end, and is no error where none
    runs."""
    words = ("--dir", str(tmp_path / "d"), "--port", str(free_port()))
    secret = {"VMPROXY_UPSTREAM": "http://me:geheim@127.0.0.1:9"}
    first = vmproxy("cache", "start", *words, "--json", **secret)
    assert first.returncode == 0, first.stderr
    document = json.loads(first.stdout)
    assert not problems(document, "result") and document["changed"] is True
    pid = document["cache"]["pid"]
    try:
        assert os.getsid(pid) == pid != os.getsid(0)
        assert b"geheim" not in Path(f"/proc/{pid}/cmdline").read_bytes()
        assert os.readlink(f"/proc/{pid}/cwd") == str(tmp_path / "d")
        log = tmp_path / "d" / place.LOG
        assert log.stat().st_mode & 0o777 == 0o600 and "listening on" in log.read_text()
        second = vmproxy("cache", "start", *words)
        assert second.returncode == 0 and f"runs already: 127.0.0.1:{words[-1]}, process {pid}" in second.stdout
        assert "warning" not in second.stderr
        other = vmproxy("cache", "start", *words[:2], "--port", "8123", "--size", "1G")
        assert "vmproxy: warning: it runs without --size=1G; vmproxy cache stop ends it\n" in other.stderr
        other = vmproxy("cache", "start", *words[:2], "--port", "8123", "--json")
        assert "vmproxy: warning: it runs without --port=8123; vmproxy cache stop ends it\n" in other.stderr
    finally:
        assert json.loads(vmproxy("cache", "stop", *words[:2], "--json").stdout)["changed"] is True
    handle = place.lock(str(tmp_path / "d"))  # nobody holds it any more
    assert handle is not None
    os.close(handle)
    done = vmproxy("cache", "stop", *words[:2])
    assert (done.returncode, done.stdout) == (0, "no cache runs there\n")


@pytest.mark.parametrize("engine", ["embedded", "squid"])
def test_the_log_is_that_of_who_holds_the_directory(tmp_path: Path, engine: str) -> None:
    """A start empties the log of the run before; one that finds another at work adds its own words to that one's."""
    where = str(tmp_path / "d")
    place.prepare(where)
    log = tmp_path / "d" / place.LOG
    log.write_text("of yesterday\n")
    # As the second of two starts at the same moment: it does not see the first yet.
    program, more = cacherun.program()
    words = (*program, "cache", "serve", "--dir", where, "--port", str(free_port()), "--engine", engine)
    environ = {**os.environ, **more, "PATH": str(tmp_path)}  # with a squid that fails
    squid = tmp_path / "squid"
    squid.write_text("#!/bin/sh\nexit 1\n")
    squid.chmod(0o755)
    children = [hostproc.detach(words, log=str(log), directory=where, environ=environ)]
    try:
        if engine == "squid":
            wait_for(children[0].ended)
            assert "does not start" in log.read_text()
        else:
            wait_for(lambda: "listening on" in log.read_text())
            children.append(hostproc.detach(words, log=str(log), directory=where, environ=environ))
            wait_for(children[1].ended)
            first, _, behind = log.read_text().partition("another cache runs on this directory")
            assert "listening on" in first and behind
        assert "of yesterday" not in log.read_text()
    finally:
        for child in children:
            child.end()


def wait_for(done: Callable[[], bool]) -> None:
    """Until it is so."""
    limit = time.monotonic() + WAIT_SECONDS
    while not done():
        assert time.monotonic() < limit
        time.sleep(0.05)


def test_one_that_does_not_come_up_is_exit_6_in_its_own_words(tmp_path: Path) -> None:
    """The port is taken; an upstream's file that others can read: one line, its hint, nothing runs."""
    with serving(tmp_path / "one") as (_process, (_host, port)):
        done = vmproxy("cache", "start", "--dir", str(tmp_path / "two"), "--port", str(port))
        assert done.returncode == 6, done.stderr
        assert (
            "the cache does not start: " in done.stderr
            and "listens there already" in done.stderr
            and "--port N" in done.stderr
        )
        assert done.stderr.count("\n") == 2
        stopped = vmproxy("cache", "stop", "--dir", str(tmp_path / "one"))
        assert stopped.stdout == "ended\n"  # one that runs in the foreground, too
    assert cacherun.running(str(tmp_path / "two")) is None


def test_one_that_cannot_be_asked_is_busy(tmp_path: Path) -> None:
    """The directory is in use, but nobody answers: exit 8, and no claim that nothing runs."""
    place.prepare(str(tmp_path / "d"))
    handle = place.lock(str(tmp_path / "d"))
    assert handle is not None
    with pytest.raises(Busy):
        cacherun.stop(str(tmp_path / "d"))
    os.close(handle)
    assert cacherun.stop(str(tmp_path / "d")) is False and cacherun.stop(str(tmp_path / "none")) is False


def test_the_object_is_a_miss_and_then_a_hit(tmp_path: Path) -> None:
    """The proxy lends an object of its own: fetched from its origin once, kept, given again; before and after, and
    under another path, the name is unknown. Nothing of it stays in the store."""
    with proxy(settings(tmp_path / "c", targets=())) as running:
        where = str(tmp_path / "c")
        assert fetch(running.address, "http://cache.vmproxy.invalid/x").status == 502
        url = (control.ask(where, {"do": "sample"}) or {})["url"]
        first, second = (fetch(running.address, url) for _ in range(2))
        assert (first.status, second.status) == (200, 200) and first.body == second.body and len(first.body) > 1000
        assert "fwd=" in first["Cache-Status"] and "hit" in second["Cache-Status"]
        assert fetch(running.address, url + "0").status == 404
        assert control.ask(where, {"do": "sample-end", "url": url}) == {"asked": 1}
        assert fetch(running.address, url).status == 502
        assert running.do(lambda: len(running.proxy.store)) == 0
        assert control.ask(where, {"do": "sample-end", "url": url}) == {"asked": 0}


def test_two_who_prove_at_once_have_an_object_each(tmp_path: Path) -> None:
    """The second loan leaves the first one's object as it is, and its end too; the last one's end ends it all."""
    with proxy(settings(tmp_path / "c", targets=())) as running:
        where = str(tmp_path / "c")
        one, two = ((control.ask(where, {"do": "sample"}) or {})["url"] for _ in range(2))
        first = fetch(running.address, one)
        assert first.status == 200 and fetch(running.address, two).body != first.body
        assert control.ask(where, {"do": "sample-end", "url": two}) == {"asked": 1}
        again = fetch(running.address, one)
        assert again.body == first.body and "hit" in again["Cache-Status"]
        assert fetch(running.address, two).status == 404
        assert control.ask(where, {"do": "sample-end"}) == {"asked": 0}
        assert fetch(running.address, one).status == 200
        assert control.ask(where, {"do": "sample-end", "url": one}) == {"asked": 1}
        assert fetch(running.address, one).status == 502
        assert running.do(lambda: len(running.proxy.store)) == 0


def test_an_object_outlives_a_long_wait_and_nobody_fills_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lent for hours, past any --wait and question about a restart, and fresh for less; of too many the first goes."""
    lives: list[float] = []

    async def lend() -> None:
        loop, lending = asyncio.get_running_loop(), sample.Sample()
        later = loop.call_later
        monkeypatch.setattr(loop, "call_later", lambda seconds, *work: lives.append(seconds) or later(seconds, *work))
        urls = [lending.lend() for _ in range(300)]
        assert lending.take_back(urls[0]) is None and lending.take_back(urls[-1]) == 0 and lending.lent
        lending.stop()
        assert lending.take_back(urls[-2]) is None and not lending.lent

    asyncio.run(lend())
    assert min(lives) >= 12 * 3600


@pytest.mark.parametrize("lent", [True, False])
def test_only_the_path_of_an_object_is_an_object(lent: bool) -> None:
    """An empty path, another method and what is no request line are 404, whether anything is lent or not."""

    async def ask() -> list[bytes]:
        lending = sample.Sample()
        await lending.start()
        path = lending.lend().removeprefix(f"http://{sample.HOST}") if lent else "/x"
        answers = []
        for line in ("GET  HTTP/1.1", "GET  ", f"HEAD {path} HTTP/1.1", f"GET {path}0 HTTP/1.1", path, ""):
            reader, writer = await asyncio.open_connection("127.0.0.1", lending.port)
            writer.write(f"{line}\r\nHost: x\r\n\r\n".encode())
            answers.append((await reader.read())[:13])
            writer.close()
        lending.stop()
        return answers

    assert set(asyncio.run(ask())) == {b"HTTP/1.1 404 "}


MISS = b"@tool bash\nHTTP/1.1 200 OK\r\nCache-Status: vmproxy; fwd=uri-miss; stored\r\n\r\n"
HIT = b"@tool bash\nHTTP/1.1 200 OK\r\nVia: 1.1 x\r\ncache-status: other; fwd=miss, vmproxy; hit; ttl=5\r\n\r\n"
WGET = b"@tool wget\nHTTP/1.1 502 Bad Gateway\n"
UNKNOWN = b"@tool nc\nHTTP/1.1 502 Bad Gateway\r\n\r\n"


@pytest.mark.parametrize(
    ("first", "second", "ok", "said"),
    [
        (MISS, HIT, True, "from its origin, then from the cache"),
        (HIT, HIT, True, "both from the cache"),
        (MISS, MISS, False, "asked the origin again"),
        (HIT, MISS, False, "asked the origin again"),
        (UNKNOWN, UNKNOWN, False, "not this host's cache"),
        (MISS, UNKNOWN, False, "not this host's cache"),
        (b"@tool bash\n", b"", False, "nothing answers"),
        (b"@tool none\n", b"", False, "none of bash"),
        (b"@tool bash\n\x15\x03\x01\x00\x02\x02F", b"", False, "speaks TLS"),
        (WGET, WGET, True, "answers as a proxy"),
    ],
)
def test_what_two_answers_mean(first: bytes, second: bytes, ok: bool, said: str) -> None:
    """The second has to be a hit of the cache nearest to us; a proxy that is not ours, silence and TLS are said."""
    found = judge_fetches("bridge", {"connect": first, "get": second}, where="172.17.0.1:8123")
    assert found.ok is ok and said in found.detail, found
    assert "from a container on the default bridge" in found.detail or not found.ok


def test_the_question_is_one_get() -> None:
    """On a connection of its own, for the whole address."""
    assert request("http://cache.vmproxy.invalid/ab") == (
        b"GET http://cache.vmproxy.invalid/ab HTTP/1.1\r\nHost: cache.vmproxy.invalid\r\nConnection: close\r\n\r\n"
    )


@pytest.mark.parametrize(
    ("gateway", "networks"),
    [("192.168.64.1", ("192.168.64.0/24",)), ("10.9.9.9", ()), ("172.17.0.1", ("172.17.0.0/16",))],
)
def test_the_networks_of_a_gateway(gateway: str, networks: tuple[str, ...]) -> None:
    """Those without a hop in between in which it lies, and never the default route."""
    table = (
        b"default via 192.168.64.1 dev eth0\n192.168.64.0/24 dev eth0 scope link\n"
        b"172.17.0.0/16 dev docker0 scope link\n10.9.0.0/16 via 192.168.64.7 dev eth0\n"
    )
    assert link_networks(parse(table), gateway) == networks


def test_the_last_words_of_a_proxy_are_printable(tmp_path: Path) -> None:
    """What a log holds reaches the terminal as text."""
    log = tmp_path / "log"
    log.write_bytes(b"x\nvmproxy: error: \x1b[31mred\xff (here)\nhint: do\x07 it\n")
    found: Any = cacherun._last_words(str(log))
    assert "\x1b" not in found[0] and "red" in found[0] and "\x07" not in found[1]
    assert cacherun._last_words(str(tmp_path / "none"))[0]


def test_without_unix_sockets_nothing_is_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on Windows: exit 2 at once, and what works there, in place of a wait and an end of what was started."""
    monkeypatch.delattr(socket, "AF_UNIX")
    with pytest.raises(UsageError, match="on this platform") as caught:
        cacherun.start(str(tmp_path / "d"), ("--port", "1"), environ={})
    assert "cache serve" in caught.value.hint and not (tmp_path / "d").exists()


def test_two_starts_at_once_have_one_proxy(tmp_path: Path) -> None:
    """Two hooks of VMs that start together: both end well, and there is one process."""
    argv = [sys.executable, "-m", "vmproxy", "cache", "start", "--dir", str(tmp_path / "d"), "--json"]
    argv += ["--port", str(free_port())]
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    runs = [subprocess.Popen(argv, stdout=subprocess.PIPE, env=environ) for _ in range(2)]
    try:
        documents = [json.loads(run.communicate(timeout=120)[0]) for run in runs]
        assert [run.returncode for run in runs] == [0, 0], documents
        assert documents[0]["cache"]["pid"] == documents[1]["cache"]["pid"]
        assert sorted(document["changed"] for document in documents) == [False, True]
    finally:
        vmproxy("cache", "stop", "--dir", str(tmp_path / "d"))


def test_options_of_the_cache_are_for_the_cache() -> None:
    """``apply --port`` without --cache is a mistake: exit 2."""
    done = vmproxy("apply", "--vm", "rootfs:/nonexistent", "--port", "8124")
    assert done.returncode == 2 and "--port is for --cache" in done.stderr
