"""What a cache must do and refuse, asked of squid by the same client; and what the engine ``squid`` adds."""

from __future__ import annotations

import json
import os
import pwd
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.ns.squids import free_port, in_path, put_squid, settings, squid
from tests.unit.cacheworld import Origin, Running, fetch, origin
from tests.unit.schema import problems

# The cases themselves; the fixtures of those names are here.
from tests.unit.test_cache_behaviour import *  # noqa: F403
from tests.unit.test_cache_refusals import *  # noqa: F403
from tests.unit.test_cache_upstream import *  # noqa: F403
from tests.unit.test_cache_upstream import CREDENTIALS, SECRETS, Chain, upstream, wishes
from vmproxy import hostproc, nearby

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """PATH has a squid while this file runs."""
    directory = put_squid(tmp_path_factory.mktemp("squid") / "bin")
    with in_path(directory):
        yield directory


@pytest.fixture(scope="module")
def ajar(program: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A squid that may ask loopback."""
    assert program.is_dir()
    with squid(settings(tmp_path_factory.mktemp("ajar") / "c")) as running:
        yield running


@pytest.fixture(scope="module")
def world(ajar: Running) -> Iterator[tuple[Origin, Running]]:
    """One origin and one squid for all of this file."""
    with origin() as server:
        yield server, ajar


@pytest.fixture(scope="module")
def shut(program: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A squid with the usual rules: nothing of this machine is a target."""
    assert program.is_dir()
    with squid(settings(tmp_path_factory.mktemp("shut") / "c", targets=())) as running:
        yield running


@pytest.fixture(scope="module")
def chain(program: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chain]:
    """A squid behind an upstream that the environment names, too."""
    assert program.is_dir()
    with pytest.MonkeyPatch.context() as patch, upstream() as (parent, server, echo):
        patch.setenv("VMPROXY_UPSTREAM", f"http://{CREDENTIALS}@127.0.0.1")
        wanted = settings(tmp_path_factory.mktemp("chain") / "c", **wishes(parent.port, echo))
        with squid(wanted) as running:
            yield Chain(running, parent, server, echo)


def squids_of(directory: Path) -> list[int]:
    """The processes that run in the directory of a cache's squid."""
    found = []
    for process in Path("/proc").iterdir():
        try:
            if process.name.isdigit() and (process / "cwd").readlink() == directory / "squid":
                found.append(int(process.name))
        except OSError:
            continue
    return found


def test_the_squid_has_no_secret_that_others_see(chain: Chain) -> None:
    """The upstream's password stands in a file of mode 0600 alone; it works as another user than root."""
    directory = Path(chain.running.proxy.settings.directory)
    conf = directory / "squid" / "squid.conf"
    assert (directory.stat().st_mode & 0o777, conf.stat().st_mode & 0o777, conf.stat().st_uid) == (0o700, 0o600, 0)
    assert conf.parent.stat().st_uid == 0  # what squid itself cannot rename, it cannot replace
    processes = squids_of(directory)
    assert processes
    for process in processes:
        seen = b"".join(Path(f"/proc/{process}/{name}").read_bytes() for name in ("cmdline", "environ"))
        assert not [secret for secret in (*SECRETS, "VMPROXY_") if secret.encode() in seen]
        assert Path(f"/proc/{process}").stat().st_uid == pwd.getpwnam("proxy").pw_uid


def test_it_is_recognised_by_what_it_answers(shut: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """The question of ``nearby`` names it, and its process does; one of ours is ours by its Via."""
    monkeypatch.setattr(nearby, "_SECONDS", 60.0)
    answer = hostproc.exchange(*shut.address, nearby._QUESTION, timeout_seconds=60.0)
    assert nearby.recognise(answer) == "vmproxy cache"
    assert nearby.recognise(answer.replace(b"vmproxy-", b"laptop-")) == "squid"
    assert nearby.who(shut.port) == nearby.Found(name="squid", port=shut.port)


def vmproxy(*words: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    """Run the program to its end."""
    done = subprocess.run(
        [sys.executable, "-m", "vmproxy", *words], capture_output=True, text=True, check=False, cwd=ROOT, timeout=120
    )
    assert done.returncode == code, done.stderr
    return done


@contextmanager
def serving(directory: Path, port: int) -> Iterator[subprocess.Popen[str]]:
    """The command in the foreground."""
    words = ["--engine", "squid", "--dir", str(directory), "--port", str(port), "--allow-target", "127.0.0.0/8", "-v"]
    command = [sys.executable, "-m", "vmproxy", "cache", "serve", *words, "--size", "200M"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout
        line = process.stdout.readline()
        try:
            assert f"127.0.0.1:{port}" in line, process.stderr and process.stderr.read()
            yield process
        finally:
            process.kill()


def test_it_is_served_watched_purged_and_ended_by_the_same_commands(program: Path, tmp_path: Path) -> None:
    """status, purge, exit codes as of the other engine; what it keeps survives it, and kill -9 of either is seen."""
    assert program.is_dir()
    directory = tmp_path / "c"
    port = free_port()
    address = ("127.0.0.1", port)
    with origin() as server:
        one = server.serve("/a", b"a" * 1000, cache_control="max-age=600")
        two = server.serve("/b", b"b" * 300_000, cache_control="max-age=600")
        with serving(directory, port) as process:
            for url in (one, one + "?token=geheim", two, two):
                assert fetch(address, url).status == 200
            found = {}
            for _turn in range(200):  # its log comes a moment after the answer, and its files after that
                document = json.loads(vmproxy("cache", "status", "--dir", str(directory), "--json").stdout)
                found = document["cache"]
                if found["requests"] == 4 and found["entries"] == 3:
                    break
            assert not problems(document, "result")
            assert (found["running"], found["engine"], found["pid"]) == (True, "squid", process.pid)
            assert (found["hits"], found["misses"], found["bytes_saved"]) == (1, 3, 300_000)
            assert (found["entries"], found["limit"]) == (3, 200 << 20)
            assert found["size"] > 300_000
            assert found["hosts"][0]["host"] == f"127.0.0.1:{server.server_port}"
            assert "(squid)" in vmproxy("cache", "status", "--dir", str(directory)).stdout
            busy = vmproxy("cache", "serve", "--engine", "squid", "--dir", str(directory), "--port", "1", code=8)
            assert busy.stderr.count("\n") == 2
            other = str(tmp_path / "other")
            for _turn in range(20):  # it is given a second to say who it is
                taken = vmproxy("cache", "serve", "--engine", "squid", "--dir", other, "--port", str(port), code=6)
                if "squid listens there already" in taken.stderr:
                    break
            assert f"squid listens there already (127.0.0.1:{port})" in taken.stderr.splitlines()[0]
            assert f"--proxy http://127.0.0.1:{port}" in taken.stderr.splitlines()[1]
            purged = json.loads(vmproxy("cache", "purge", "*/b", "--dir", str(directory), "--json").stdout)
            assert (purged["changed"], purged["purged"]["entries"]) == (True, 1)
            assert fetch(address, two).status == 200
            assert server.hits["/b"] == 2
            process.kill()  # not even then is it left alone
            process.wait(60)
        with serving(directory, port) as process:
            assert not any("geheim" in line for line in os.listdir(directory / "squid"))
            assert fetch(address, one).body == b"a" * 1000
            assert server.hits["/a"] == 2  # with the token and without it, before
            process.send_signal(signal.SIGTERM)
            _out, log = process.communicate(timeout=60)
            assert process.returncode == 0, log
            assert "geheim" not in log
        assert squids_of(directory) == []
        assert sorted(os.listdir(directory)) == ["lock", "squid", "stats.json"]
        assert os.listdir(directory / "squid") == ["store"]
        found = json.loads(vmproxy("cache", "status", "--dir", str(directory), "--json").stdout)["cache"]
        assert (found["running"], found["entries"]) == (False, 3)
        assert vmproxy("cache", "purge", "*/a*", "--dir", str(directory)).stdout.startswith("2 entries removed")
        with serving(directory, port) as process:
            assert fetch(address, one).status == 200
            assert server.hits["/a"] == 3
            for squid_process in squids_of(directory):
                os.kill(squid_process, signal.SIGKILL)
            _out, log = process.communicate(timeout=60)
            assert process.returncode == 9, log
            assert "squid ended by signal 9" in log
        for _turn in range(600):
            if not squids_of(directory):
                break
            time.sleep(0.1)
        assert squids_of(directory) == []
