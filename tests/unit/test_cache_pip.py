"""``cache serve --pip``: proxpi beside the proxy, with a real pip; what ``env`` says then; its end, its accidents."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.lab.index import PACKAGE, LabIndex
from tests.unit.cacheworld import free_port
from vmproxy.cache import pipcache, pipstore, place
from vmproxy.cache.pipcache import PipCache, need_proxpi
from vmproxy.cache.run import make_settings
from vmproxy.errors import UsageError
from vmproxy.model import ProxyURL, Settings, Wish
from vmproxy.wish import index_of

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 60.0


def until(holds: Callable[[], Any]) -> Any:
    """Wait for something. Raises AssertionError."""
    limit = time.monotonic() + SECONDS
    while not (found := holds()):
        assert time.monotonic() < limit
        time.sleep(0.1)
    return found


class Home:
    """A home with a cache in it."""

    def __init__(self, directory: Path, index: str) -> None:
        self.port, self.pip_port = free_port(), free_port()
        self.directory = directory
        names = ("http_proxy", "https_proxy", "no_proxy")
        kept = {name: value for name, value in os.environ.items() if name.lower() not in names}
        self.environ = {**kept, "HOME": str(directory), "XDG_CACHE_HOME": str(directory / "c"), "PYTHONPATH": str(ROOT)}
        self.environ |= {"PROXPI_INDEX_URL": index, "PROXPI_DOWNLOAD_TIMEOUT": "60"}

    def run(self, *words: str, code: int = 0) -> str:
        """The program to its end; what it says on stdout."""
        argv = [sys.executable, "-m", "vmproxy", *words]
        done = subprocess.run(argv, capture_output=True, text=True, env=self.environ, timeout=120, check=False)
        assert done.returncode == code, done.stderr
        return done.stdout

    def status(self) -> dict[str, Any]:
        """``cache status``."""
        return dict(json.loads(self.run("cache", "status", "--json"))["cache"])

    def pip(self, where: str) -> list[str]:
        """What a real pip downloads through it."""
        argv = [sys.executable, "-m", "pip", "--isolated", "download", "-q", "--no-cache-dir"]
        argv += ["--no-deps", "--disable-pip-version-check", "--index-url", f"http://127.0.0.1:{self.pip_port}/index/"]
        argv += ["-d", where, PACKAGE]
        subprocess.run(argv, check=True, capture_output=True, env=self.environ, cwd=self.directory, timeout=120)
        return os.listdir(self.directory / where)

    def child(self) -> int:
        """The process of proxpi, 0 for none."""
        parent = str(self.status().get("pid"))
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    stat = (entry / "stat").read_text().rpartition(")")[2].split()
                except OSError:
                    continue
                if stat[1] == parent and stat[0] != "Z":
                    return int(entry.name)
        return 0


@contextmanager
def served(directory: Path) -> Iterator[tuple[Home, LabIndex]]:
    """A cache with pip in the background, before the lab's index."""
    with LabIndex(socket.create_server(("127.0.0.1", 0))) as index:
        home = Home(directory, f"http://127.0.0.1:{index.port}/simple/")
        home.run("cache", "start", "--port", str(home.port), "--pip", "--pip-port", str(home.pip_port))
        try:
            yield home, index
        finally:
            home.run("cache", "stop")


def alive(pid: int) -> bool:
    """Whether a process lives."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_pip_downloads_once_and_env_knows(tmp_path: Path) -> None:
    """A package is fetched from the index once and given twice; ``status`` and ``env`` name the index; an index of the
    user's own, or none, goes before it; after its end ``env`` says nothing of it. proxpi killed is said and comes back;
    it ends with the cache, however that ends."""
    with served(tmp_path) as (home, index):
        assert home.pip("one") == ["lab_parcel-1.0-py3-none-any.whl"]
        asked = [one.path for one in index.asked]
        assert sum(path.endswith(".whl") for path in asked) == 1
        assert home.pip("two") == home.pip("one")
        assert [one.path for one in index.asked] == asked
        assert f"pip: http://127.0.0.1:{home.pip_port}/index/" in home.run("cache", "status")
        assert home.status()["pip"]["running"] is True
        words = ("env", "--proxy", f"http://127.0.0.1:{home.port}", "--gateway", "10.0.2.2", "--json")
        told = json.loads(home.run(*words))
        assert told["PIP_INDEX_URL"] == f"http://10.0.2.2:{home.pip_port}/index/"
        assert told["PIP_TRUSTED_HOST"] == "10.0.2.2" and "10.0.2.2" in told["no_proxy"].split(",")
        own = json.loads(home.run(*words, "--pip-index", "http://127.0.0.1:3141/root/pypi/+simple/"))
        assert own["PIP_INDEX_URL"] == "http://10.0.2.2:3141/root/pypi/+simple/"
        assert "PIP_INDEX_URL" not in json.loads(home.run(*words, "--pip-index", ""))
        other = json.loads(home.run("env", "--proxy", "http://127.0.0.1:1", "--gateway", "10.0.2.2", "--json"))
        assert "PIP_INDEX_URL" not in other
        first = home.child()
        os.kill(first, signal.SIGKILL)
        second = until(lambda: home.status()["pip"]["running"] and (pid := home.child()) not in (0, first) and pid)
        log = (tmp_path / "c/vmproxy/proxy/serve.log").read_text()
        assert "the cache for pip ended" in log
        assert home.pip("three")
        assert home.run("cache", "purge").startswith("0 entries")  # proxpi knows by heart what it has
    until(lambda: not alive(second))
    assert "PIP_INDEX_URL" not in json.loads(home.run(*words))
    kept = tmp_path / "c/vmproxy/proxy/pip"
    assert list(kept.rglob("*.whl"))
    assert not home.run("cache", "purge", "http*").startswith("1") and kept.exists()
    assert json.loads(home.run("cache", "purge", "--json"))["purged"]["entries"] > 0 and not kept.exists()


def test_an_installed_one_does_not_stand_before_pythons_own_library(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PYTHONPATH names a checkout, and no directory of packages, which is searched anyhow, and later."""
    cache = PipCache(make_settings(str(tmp_path), pip_port=5001), warn=print)
    assert cache._environment({"PYTHONPATH": "/own"})["PYTHONPATH"] == f"{ROOT}{os.pathsep}/own"
    monkeypatch.setattr(pipcache, "__file__", "/x/site-packages/vmproxy/cache/pipcache.py")
    assert cache._environment({"PYTHONPATH": "/own"})["PYTHONPATH"] == "/own"
    assert not cache._environment({})["PYTHONPATH"]


def test_what_is_kept_for_pip_goes_while_nothing_runs(tmp_path: Path) -> None:
    """All files, and no link is followed; where a cache holds the directory nothing is touched."""
    kept, other = tmp_path / "d/pip", tmp_path / "other"
    assert pipstore.purge(str(tmp_path / "d")) == (0, 0)
    place.prepare(str(tmp_path / "d"))
    (kept / "x").mkdir(parents=True)
    other.mkdir()
    for file in (kept / "a.whl", kept / "x/b.whl", other / "mine"):
        file.write_bytes(b"12345")
    handle = place.lock(str(tmp_path / "d"))
    assert handle is not None
    try:
        assert pipstore.purge(str(tmp_path / "d")) is None and (kept / "x/b.whl").exists()
    finally:
        os.close(handle)
    assert pipstore.purge(str(tmp_path / "d")) == (2, 10) and not kept.exists()
    kept.symlink_to(other)
    assert pipstore.purge(str(tmp_path / "d")) == (0, 0) and (other / "mine").exists()


def test_it_never_outlives_a_cache_that_is_killed(tmp_path: Path) -> None:
    """SIGKILL of the proxy ends proxpi too."""
    with served(tmp_path) as (home, _index):
        child = until(home.child)
        os.kill(home.status()["pid"], signal.SIGKILL)
        until(lambda: not alive(child))


def test_a_taken_port_is_refused_and_the_proxy_ends(tmp_path: Path) -> None:
    """--pip-port that somebody has: exit 6 names that option, nothing is left running; that of the proxy: exit 2."""
    home = Home(tmp_path, "http://127.0.0.1:1/simple/")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        home.pip_port = taken.getsockname()[1]
        argv = ["cache", "start", "--port", str(home.port), "--pip", "--pip-port", str(home.pip_port)]
        done = subprocess.run(
            [sys.executable, "-m", "vmproxy", *argv], capture_output=True, text=True, env=home.environ, check=False
        )
    assert done.returncode == 6 and "--pip-port" in done.stderr, done.stderr
    assert home.status()["running"] is False
    with pytest.raises(UsageError, match="both"):
        make_settings(str(tmp_path), port=5001, pip_port=5001)


def test_without_the_extra_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """No proxpi: exit 2, and the extra's name."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(UsageError) as found:
        need_proxpi()
    assert "vmproxy[pip-cache]" in found.value.hint


@pytest.mark.parametrize(
    ("address", "own"),
    [
        ("127.0.0.1", "http://127.0.0.1:8123"),
        ("0.0.0.0", "http://127.0.0.1:8123"),
        ("fd00::1", "http://[fd00::1]:8123"),
        ("::", "http://[::1]:8123"),
    ],
)
def test_proxpi_has_the_proxys_way_and_not_its_password(tmp_path: Path, address: str, own: str) -> None:
    """Behind an upstream proxpi asks the proxy, and knows no credentials; the user's own PROXPI_… count; without an
    upstream it goes as this host's environment says."""
    upstream = ProxyURL(scheme="http", host="10.1.1.1", port=3128, username="me", password="geheim")
    wanted = make_settings(str(tmp_path), address=address, clients=("10.0.0.0/8",), pip_port=5001, upstream=upstream)
    environ = {
        "VMPROXY_UPSTREAM": "http://me:geheim@10.1.1.1:3128",
        "PROXPI_CACHE_SIZE": "5",
        "HTTPS_PROXY": "http://x",
    }
    cache = PipCache(wanted, warn=print)
    assert cache.status()["index"] == own.replace("8123", "5001") + "/index/"
    found = cache._environment(environ)
    assert {found[name] for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY")} == {own}
    assert "geheim" not in str(found) and found["PROXPI_CACHE_SIZE"] == "5"
    alone = PipCache(dataclasses.replace(wanted, upstream=None), warn=print)._environment(environ)
    assert alone["HTTPS_PROXY"] == "http://x" and "http_proxy" not in alone


def test_whose_index_a_container_gets() -> None:
    """What was said or recorded; else the cache's, where the proxy is that cache; an empty one said is none."""
    here = Wish(proxy=ProxyURL(scheme="http", host="127.0.0.1", port=8123))
    other = Wish(proxy=ProxyURL(scheme="http", host="10.1.1.1", port=8123))
    recorded = Wish(proxy=here.proxy, pip_index="http://10.1.1.2/simple/")
    known = Settings(cache_index=(8123, "http://127.0.0.1:5001/index/"))
    assert index_of(known, here) == "http://127.0.0.1:5001/index/"
    assert index_of(known, other) == "" and index_of(known, recorded) == recorded.pip_index
    assert index_of(Settings(), here) == ""
    assert index_of(Settings(cache_index=known.cache_index, given=frozenset({"pip_index"})), here) == ""
