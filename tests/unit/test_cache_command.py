"""``vmproxy cache``: the command as a process, its status and its purge, while it runs and when it does not."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.unit.cacheworld import Origin, fetch, free_port, origin
from tests.unit.schema import problems
from vmproxy.cache.run import make_settings, parse_size
from vmproxy.cache.stats import Stats
from vmproxy.errors import UsageError

ROOT = Path(__file__).resolve().parents[2]
LONG = "d" * 60


def vmproxy(*words: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    """Run the program to its end."""
    done = subprocess.run(
        [sys.executable, "-m", "vmproxy", *words], capture_output=True, text=True, check=False, cwd=ROOT, timeout=60
    )
    assert done.returncode == code, done.stderr
    return done


@contextmanager
def serving(directory: Path, *words: str) -> Iterator[tuple[subprocess.Popen[str], tuple[str, int]]]:
    """The command in the foreground, and where it listens."""
    port = free_port()
    command = [sys.executable, "-m", "vmproxy", "cache", "serve", "--dir", str(directory), "--port", str(port), *words]
    with subprocess.Popen(
        [*command, "--allow-target", "127.0.0.0/8"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT
    ) as process:
        assert process.stdout
        line = process.stdout.readline()
        assert f"127.0.0.1:{port}" in line, process.stderr and process.stderr.read()
        try:
            yield process, ("127.0.0.1", port)
        finally:
            process.kill()


@pytest.fixture(scope="module")
def server() -> Iterator[Origin]:
    """An origin."""
    with origin() as running:
        running.serve("/a", b"a" * 1000, cache_control="max-age=60")
        running.serve("/b", b"b" * 300_000, cache_control="max-age=60")
        yield running


def test_a_directory_that_one_may_not_look_into_is_not_an_empty_cache(tmp_path: Path) -> None:
    """status and purge as another user: exit 5, whether the directory or one above it is closed; in a process of its
    own."""
    closed = tmp_path / "closed"
    (closed / "cache").mkdir(parents=True)
    closed.chmod(0)
    for above in closed.parents:
        if "pytest-of-" in str(above):
            above.chmod(0o755)
    code = (
        "import os, sys\n"
        "from vmproxy import errors\n"
        "from vmproxy.cache import control\n"
        "if os.geteuid() == 0: os.setgid(12345); os.setuid(12345)\n"
        "for name in sys.argv[1:]:\n"
        "    for look in (control.status, lambda name: control.purge(name, '*')):\n"
        "        try:\n"
        "            look(name)\n"
        "        except errors.NotPermitted as error:\n"
        "            print(error.exit, error, error.hint, sep='|')\n"
    )
    names = [str(closed), str(closed / "cache"), str(tmp_path / "none")]
    try:
        done = subprocess.run(
            [sys.executable, "-c", code, *names], check=True, capture_output=True, text=True, cwd=ROOT, timeout=60
        )
    finally:
        closed.chmod(0o700)
    said = [f"5|the directory cannot be used: Permission denied ({name})|--dir DIR" for name in names[:2]]
    assert done.stdout.splitlines() == [said[0], said[0], said[1], said[1]]


def test_with_json_the_line_of_who_listens_is_an_object(tmp_path: Path) -> None:
    """``serve --json``: one object as docs/schema.json has it, when clients can come."""
    port = free_port()
    argv = [sys.executable, "-m", "vmproxy", "cache", "serve", "--json", f"--dir={tmp_path / 'd'}", f"--port={port}"]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        try:
            assert process.stdout
            found = json.loads(process.stdout.readline())
            assert problems(found, "listening") == []
            assert (found["listen"], found["pid"]) == (f"http://127.0.0.1:{port}", process.pid)
        finally:
            process.kill()


def test_it_serves_says_what_it_saved_and_ends_on_a_signal(tmp_path: Path, server: Origin) -> None:
    """One line when it listens; status and purge while it runs; SIGTERM is exit 0; the counters and entries stay."""
    directory = tmp_path / LONG / LONG  # longer than a unix socket's path may be
    with serving(directory, "-v") as (process, address):
        for path in ("/a?token=geheim", "/a?token=geheim", "/b", "/b"):
            assert fetch(address, server.url(path)).status == 200
        text = vmproxy("cache", "status", "--dir", str(directory)).stdout
        assert "2 of 4 (50%), 293.9 KiB saved" in text
        assert "https: is tunnelled and never cached" in text
        assert f"127.0.0.1:{server.server_port}" in text
        document = json.loads(vmproxy("cache", "status", "--dir", str(directory), "--json").stdout)
        assert not problems(document, "result")
        found = document["cache"]
        assert (found["running"], found["pid"], found["entries"]) == (True, process.pid, 2)
        assert (found["hits"], found["misses"], found["bytes_saved"]) == (2, 2, 301_000)
        assert found["hosts"][0]["hits"] == 2
        busy = vmproxy("cache", "serve", "--dir", str(directory), "--port", str(address[1] - 1), code=8)
        assert busy.stderr.count("\n") == 2
        other = vmproxy("cache", "serve", "--dir", str(tmp_path / "other"), "--port", str(address[1]), code=6)
        assert f"127.0.0.1:{address[1]}" in other.stderr.splitlines()[0]
        assert other.stderr.splitlines()[1].startswith("hint: --port N")
        document = json.loads(vmproxy("cache", "purge", "*/b", "--dir", str(directory), "--json").stdout)
        assert not problems(document, "result")
        assert (document["changed"], document["purged"]["entries"]) == (True, 1)
        process.send_signal(signal.SIGTERM)
        _out, log = process.communicate(timeout=60)
        assert process.returncode == 0
    assert "geheim" not in log + text
    assert "/a?… hits" in log
    document = json.loads(vmproxy("cache", "status", "--dir", str(directory), "--json").stdout)
    found = document["cache"]
    assert (found["running"], found["hits"], found["entries"]) == (False, 2, 1)
    assert vmproxy("cache", "purge", "--dir", str(directory)).stdout.startswith("1 entry removed")
    assert sorted(os.listdir(directory)) == ["entries", "lock", "stats.json"]


def test_it_goes_on_after_kill_9_and_curl_is_served(tmp_path: Path, server: Origin) -> None:
    """What was kept before a SIGKILL is given after the restart, to curl too; SIGINT is exit 0."""
    url = server.serve("/killed", b"k" * 70_000, cache_control="max-age=600")
    with serving(tmp_path / "c") as (process, address):
        fetch(address, url)
        process.kill()
        process.wait(60)
    with serving(tmp_path / "c", "--json") as (process, address):
        got = subprocess.run(
            ["curl", "-sS", "-x", f"http://{address[0]}:{address[1]}", url], capture_output=True, check=True, timeout=60
        )
        assert got.stdout == b"k" * 70_000
        assert server.hits["/killed"] == 1
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--bind", "0.0.0.0"), "--allow"),
        (("--bind", "::"), "--allow"),
        (("--bind", "nowhere"), "not an address"),
        (("--allow", "10.0.0.1/8"), "not a network"),
        (("--allow-target", "x"), "not a network"),
        (("--connect-port", "0"), "not a port"),
        (("--size", "12"), "not a size"),
    ],
)
def test_a_wrong_wish_is_exit_2_and_touches_nothing(tmp_path: Path, words: tuple[str, ...], said: str) -> None:
    """One line, one hint, no directory made."""
    kinds = {"--bind": "address", "--size": "size", "--allow": "clients", "--allow-target": "targets"}
    name, value = kinds.get(words[0], "ports"), words[1]
    given = {name: value if name in ("address", "size") else (value,)}
    with pytest.raises(UsageError, match=said) as found:
        make_settings(str(tmp_path / "c"), **given)  # type: ignore[arg-type]
    assert found.value.exit == 2
    assert not (tmp_path / "c").exists()


def test_sizes() -> None:
    """Powers of 1024, with and without letters behind."""
    assert parse_size("10G") == parse_size("10GiB") == parse_size("10240m") == 10 << 30
    assert parse_size("1.5G") == 3 << 29
    assert parse_size("2000000") == 2_000_000
    for wrong in ("", "G", "-1G", "1.55G", "1P", "1000", "1e9"):
        with pytest.raises(UsageError):
            parse_size(wrong)


def test_counters_survive_any_file() -> None:
    """What is not ours in stats.json counts as zero, and hosts are bounded."""
    stats = Stats()
    for wrong in (None, [], "x", {"hits": -1, "hosts": 5}, {"hits": True, "hosts": [{"host": 1}, None]}):
        stats.load(wrong)
        assert stats.total["hits"] == 0
        assert not stats.hosts
    for number in range(2000):
        stats.count(f"host{number}", "requests", "hits", saved=1)
    assert len(stats.hosts) <= 1001
    again = Stats()
    again.load(json.loads(json.dumps(stats.document())))
    assert again.total == stats.total
    assert again.total["bytes_saved"] == 2000
