"""The programs people use, through the caching proxy: curl, wget, apt and pip get everything whole, and the second time
from the cache."""

from __future__ import annotations

import gzip
import hashlib
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from email.utils import formatdate
from pathlib import Path

import pytest

from tests.lab import index
from tests.unit.cacheworld import Origin, Running, origin, proxy, settings

BODY = bytes(range(256)) * 3000
OLD = formatdate(1_600_000_000, usegmt=True)
"""A Last-Modified of years ago: what has nothing else is fresh for a tenth of that (RFC 9111 section 4.2.2)."""


@pytest.fixture
def server() -> Iterator[Origin]:
    """An origin."""
    with origin() as made:
        yield made


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[Running]:
    """The proxy."""
    with proxy(settings(tmp_path / "cache")) as running:
        yield running


def run(argv: Sequence[str], home: Path, **environ: str) -> bytes:
    """What a program says on stdout; it has to end well, and knows nothing of this machine's settings."""
    clean = {"PATH": os.environ["PATH"], "HOME": str(home), "LC_ALL": "C.UTF-8", **environ}
    done = subprocess.run(argv, env=clean, cwd=home, capture_output=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def url(running: Running) -> str:
    """The proxy's address as programs want it."""
    return f"http://127.0.0.1:{running.port}"


@pytest.mark.parametrize("more", [[], ["--http1.0"], ["--compressed"], ["-r", "1000-2999"]], ids=str)
def test_curl(server: Origin, cache: Running, tmp_path: Path, more: list[str]) -> None:
    """Twice on one connection: by HTTP/1.1 and 1.0, compressed, and a part."""
    address = server.serve("/file", BODY, cache_control="max-age=60", accept_ranges="bytes")
    wanted = BODY[1000:3000] if "-r" in more else BODY
    argv = ["curl", "-sS", "--fail", "-x", url(cache), *more]
    if "-r" in more:  # a part is taken from the whole, which has to be there
        run([*argv[:5], address], tmp_path)
    assert run([*argv, address, address], tmp_path) == wanted * 2
    assert server.hits["/file"] == 1


def test_curl_by_a_tunnel(server: Origin, tmp_path: Path) -> None:
    """Refused to any port, let through to one that was named; what goes through it is not kept."""
    address = server.serve("/file", BODY, cache_control="max-age=60")
    argv = ["curl", "-sS", "--fail", "--proxytunnel", address, "-x"]
    with proxy(settings(tmp_path / "cache")) as running:
        done = subprocess.run([*argv, url(running)], capture_output=True, timeout=60, check=False)
        assert done.returncode != 0
        assert b"403" in done.stderr
    with proxy(settings(tmp_path / "cache", ports=frozenset({server.server_port}))) as running:
        for _ in range(2):
            assert run([*argv, url(running)], tmp_path) == BODY
    assert server.hits["/file"] == 2


def test_wget(server: Origin, cache: Running, tmp_path: Path) -> None:
    """Two runs of wget and one that goes on with a file that is there in part: one request to the origin."""
    address = server.serve("/file", BODY, last_modified=OLD)
    for _ in range(2):
        assert run(["wget", "-q", "-O", "-", address], tmp_path, http_proxy=url(cache)) == BODY
    (tmp_path / "file").write_bytes(BODY[:5000])
    run(["wget", "-q", "-c", address], tmp_path, http_proxy=url(cache))
    assert (tmp_path / "file").read_bytes() == BODY
    assert server.hits["/file"] == 1


def test_apt(server: Origin, cache: Running, tmp_path: Path) -> None:
    """apt-get update and download, twice with empty lists: the package comes from the cache."""
    tree = tmp_path / "tree"
    (tree / "DEBIAN").mkdir(parents=True)
    (tree / "DEBIAN").chmod(0o755)
    control = "Package: lab-parcel\nVersion: 1.0\nArchitecture: all\nMaintainer: lab <lab@lab.test>\nDescription: lab\n"
    (tree / "DEBIAN/control").write_text(control)
    run(["dpkg-deb", "--root-owner-group", "-b", str(tree), str(tmp_path / "made.deb")], tmp_path)
    package = (tmp_path / "made.deb").read_bytes()
    digest = hashlib.sha256(package).hexdigest()
    entry = f"{control}Filename: ./lab-parcel_1.0_all.deb\nSize: {len(package)}\nSHA256: {digest}\n".encode()
    listing = f"{entry.decode()}\n".encode()
    sums = f" {hashlib.sha256(listing).hexdigest()} {len(listing)} Packages\n"
    packed = gzip.compress(listing, mtime=0)
    sums += f" {hashlib.sha256(packed).hexdigest()} {len(packed)} Packages.gz\n"
    release = f"Date: {formatdate(usegmt=True)}\nSHA256:\n{sums}".encode()
    base = server.url("/debian")
    server.serve("/debian/./lab-parcel_1.0_all.deb", package, last_modified=OLD)
    server.serve("/debian/lab-parcel_1.0_all.deb", package, last_modified=OLD)
    server.serve("/debian/./Release", release, last_modified=OLD)
    server.serve("/debian/./Packages.gz", packed, last_modified=OLD)
    for turn in ("first", "second"):
        home = tmp_path / turn
        for name in ("lists/partial", "archives/partial", "etc"):
            (home / name).mkdir(parents=True)
        (home / "sources.list").write_text(f"deb [trusted=yes] {base} ./\n")
        (home / "status").touch()
        options = {
            "Acquire::http::Proxy": url(cache),
            "APT::Sandbox::User": "",
            "Acquire::Languages": "none",
            "Dir::Etc": home / "etc",
            "Dir::Etc::SourceList": home / "sources.list",
            "Dir::Etc::SourceParts": "-",
            "Dir::State": home,
            "Dir::State::Lists": home / "lists",
            "Dir::State::Status": home / "status",
            "Dir::Cache": home,
            "Dir::Cache::Archives": home / "archives",
        }
        words = ["apt-get", "-q", *(word for name, value in options.items() for word in ("-o", f"{name}={value}"))]
        run([*words, "update"], home, APT_CONFIG=os.devnull)
        run([*words, "download", "lab-parcel"], home, APT_CONFIG=os.devnull)
        assert (home / "lab-parcel_1.0_all.deb").read_bytes() == package
    hits = {path: count for path, count in server.hits.items() if path.endswith(".deb")}
    assert sum(hits.values()) == 1, hits


def test_pip(server: Origin, cache: Running, tmp_path: Path) -> None:
    """pip without a cache of its own, twice: the wheel comes from the cache."""
    name = f"{index.MODULE}-1.0-py3-none-any.whl"
    page = f'<!DOCTYPE html><html><body><a href="/files/{name}">{name}</a></body></html>'.encode()
    server.serve(f"/simple/{index.PACKAGE}/", page, content_type="text/html")
    wheel = index.wheel()
    server.serve(f"/files/{name}", wheel, last_modified=OLD)
    for turn in ("first", "second"):
        run(
            [
                *(sys.executable, "-m", "pip", "--isolated", "--disable-pip-version-check", "-q", "download"),
                *("--no-cache-dir", "--no-deps", "--proxy", url(cache), "-d", turn),
                *("--index-url", server.url("/simple/"), index.PACKAGE),
            ],
            tmp_path,
        )
        assert (tmp_path / turn / name).read_bytes() == wheel
    assert server.hits[f"/files/{name}"] == 1
    assert server.hits[f"/simple/{index.PACKAGE}/"] == 2
