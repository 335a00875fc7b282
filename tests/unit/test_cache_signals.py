"""A proxy that is asked to end while it starts, and starts that fail: one line each, and nothing is left running."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.unit.cacheworld import free_port, proxy, settings
from vmproxy.cache import place, squid, squidask
from vmproxy.cache.control import Control
from vmproxy.errors import LostContact, NotPermitted

ROOT = Path(__file__).resolve().parents[2]
WAIT_SECONDS = 60.0


def put_sleeper(directory: Path) -> tuple[Path, Path]:
    """A ``squid`` that does nothing for ten minutes, and where it writes its process id."""
    directory.mkdir()
    pid = directory / "pid"
    program = directory / "squid"
    program.write_text(f"#!/bin/sh\necho $$ >{pid}.new && mv {pid}.new {pid} && exec sleep 600\n")
    program.chmod(0o755)
    return directory, pid


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_squid_that_is_still_starting_is_ended(tmp_path: Path, number: int) -> None:
    """Ctrl-C and SIGTERM are heard before squid answers: it ends at once, and squid with it."""
    path, pid_file = put_sleeper(tmp_path / "bin")
    words = ("--engine", "squid", "--dir", str(tmp_path / "d"), "--port", str(free_port()))
    environ = {**os.environ, "PATH": f"{path}:{os.environ['PATH']}"}
    with subprocess.Popen(
        [sys.executable, "-m", "vmproxy", "cache", "serve", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=environ,
    ) as process:
        try:
            until = time.monotonic() + WAIT_SECONDS
            while not pid_file.exists() and process.poll() is None and time.monotonic() < until:
                time.sleep(0.05)
            pid = int(pid_file.read_text())
            process.send_signal(number)
            said = process.communicate(timeout=WAIT_SECONDS)
        finally:
            process.kill()
    assert (process.returncode, said) == (0, ("", ""))
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    handle = place.lock(str(tmp_path / "d"))
    assert handle is not None
    os.close(handle)


_STORY = """
import asyncio, signal, sys
from types import SimpleNamespace
from vmproxy.cache import engines, pipcache, run

def part(name, hangs):
    async def start():
        print(name, "starts")
        if hangs:
            signal.raise_signal(signal.SIGTERM)
        if hangs == "for long":
            try:
                await asyncio.sleep(600)
            except asyncio.CancelledError:
                print(name, "gives up")
                raise
        return 1
    async def stop():
        print(name, "stops")
    async def ended():
        await asyncio.sleep(600)
    return SimpleNamespace(start=start, stop=stop, ended=ended, status=dict, settings=settings)

settings = run.make_settings("/nowhere", port=1, pip_port=2)
engines.check = pipcache.need_proxpi = lambda *_: None
engines.load = lambda *_, **__: part("engine", sys.argv[1])
pipcache.PipCache = lambda *_, **__: part("pip", sys.argv[2])
run.serve(settings, ready=lambda address: print("ready"))
"""


@pytest.mark.parametrize(
    ("engine", "pip", "said"),
    [
        ("for long", "", ["engine starts", "engine gives up"]),
        ("a moment", "", ["engine starts", "engine stops"]),
        ("", "for long", ["engine starts", "pip starts", "pip gives up", "pip stops", "engine stops"]),
    ],
)
def test_what_was_started_is_stopped(engine: str, pip: str, said: list[str]) -> None:
    """Asked to end while one part starts: that one gives up, the parts before it are stopped, nobody is told ready."""
    done = subprocess.run(
        [sys.executable, "-c", _STORY, engine, pip],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        timeout=WAIT_SECONDS,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    if not pip:  # it may have come to the second part or not
        lines = [line for line in lines if not line.startswith("pip ")]
    assert lines == said


def test_a_socket_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    """Something lies in its place: exit 5, and the directory is free again."""
    wanted = settings(tmp_path / "c")
    place.prepare(wanted.directory)
    (tmp_path / "c" / place.CONTROL).mkdir()
    with pytest.raises(NotPermitted) as found, proxy(wanted):
        pass
    assert found.value.exit == 5 and place.CONTROL in found.value.where
    handle = place.lock(wanted.directory)
    assert handle is not None
    os.close(handle)


def test_a_start_that_fails_keeps_the_counters(tmp_path: Path) -> None:
    """Who never read the counters of the run before does not write their end over them."""
    (tmp_path / place.STATS).write_text("as it was")
    control = Control(SimpleNamespace(settings=settings(tmp_path)))  # type: ignore[arg-type]
    asyncio.run(control.stop())
    assert (tmp_path / place.STATS).read_text() == "as it was"


def test_a_squid_whose_directories_take_too_long_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exit 9 with a hint, and that squid is ended."""
    path, _pid = put_sleeper(tmp_path / "bin")
    monkeypatch.setenv("PATH", f"{path}:{os.environ['PATH']}")
    monkeypatch.setattr(squid, "_READY_SECONDS", 0.1)
    made: list[Any] = []

    async def start() -> None:
        made.append(squid.Squid(settings(tmp_path / "c", engine="squid", port=free_port()), log=None, warn=print))
        await made[0].start()

    with pytest.raises(LostContact, match="does not make its directories") as found:
        asyncio.run(start())
    assert found.value.exit == 9 and made[0]._child.returncode is not None


@pytest.mark.parametrize("said", [b"\r\n\r\n", b"x" * 200_000, b"SSH-2.0-x\r\n", b"HTTP/1.1 200 OK\r\n"])
def test_a_stranger_on_squids_port_is_no_answer(tmp_path: Path, said: bytes) -> None:
    """Whoever listens there meanwhile and speaks something else: nobody answers."""

    async def serve(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(said)
        writer.close()

    async def ask() -> tuple[str | None, set[str], set[str]]:
        stranger = await asyncio.start_server(serve, "127.0.0.1", 0)
        wanted = replace(settings(tmp_path), port=stranger.sockets[0].getsockname()[1])
        asker = squidask.Asker(wanted, SimpleNamespace(name="x", secret="y"))  # type: ignore[arg-type]
        found = await asker.info(), await asker.in_memory("*"), await asker.purge(["http://a/"])
        stranger.close()
        return found

    info, held, _gone = asyncio.run(ask())
    assert (info, held) == (None, set())
