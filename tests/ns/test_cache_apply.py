"""``apply --cache`` on a VM with real Docker: the proxy started on its host, the first hit, and what is left behind.

vmproxy runs on the VM's host, in that network; the proxy listens there.
"""

from __future__ import annotations

import contextlib
import http.server
import json
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

from tests.lab import default_cache
from tests.lab.hostside import ask, inside, listen
from tests.lab.index import PACKAGE, LabIndex
from tests.lab.nsvm import NamespaceVM
from tests.lab.pyimage import build_python_image
from tests.ns.story import Vmproxy, daemon_environment, files

GET = b"GET http://10.0.2.3:8000/package HTTP/1.1\r\nHost: 10.0.2.3:8000\r\n\r\n"


class OnHost(Vmproxy):
    """vmproxy in the network of the VM's host, as on a laptop; the cache is asked to fetch from 10.0.2.3, too."""

    def __init__(self, machine: NamespaceVM, directory: Path) -> None:
        index = {"PROXPI_INDEX_URL": "http://127.0.0.1:3141/simple/", "PROXPI_DOWNLOAD_TIMEOUT": "60"}
        super().__init__(machine, directory, environ={"VMPROXY_ALLOW_TARGET": "10.0.2.3/32", **index})
        self.target = "ssh://docker@10.0.2.15"
        self.vm_words = ("--vm", self.target, "--identity", str(machine.key))

    def argv(self, *words: str) -> list[str]:
        """Inside that network."""
        return [*self.machine.surroundings.argv(self.machine.surroundings.host), *super().argv(*words)]

    def cache(self) -> dict[str, Any]:
        """``cache status``."""
        ran = self.run("cache", "status", "--json")
        assert ran.code == 0, ran
        return dict(json.loads(ran.out)["cache"])


class Origin(http.server.BaseHTTPRequestHandler):
    """A mirror with one package that may be kept."""

    asked = 0

    def do_GET(self) -> None:
        """The package."""
        type(self).asked += 1
        self.send_response(200)
        self.send_header("Cache-Control", "max-age=600")
        self.send_header("Content-Length", "50000")
        self.end_headers()
        self.wfile.write(b"p" * 50_000)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@contextlib.contextmanager
def mirror(machine: NamespaceVM) -> Iterator[type[Origin]]:
    """An origin at 10.0.2.3:8000 of the VM's host."""
    server = inside(machine.surroundings.host, lambda: http.server.ThreadingHTTPServer(("10.0.2.3", 8000), Origin))
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield Origin
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture(scope="module")
def host(vm: NamespaceVM, tmp_path_factory: pytest.TempPathFactory) -> Iterator[OnHost]:
    """One VM and one home for all tests of this file; nothing of the cache runs on after them."""
    vmproxy = OnHost(vm, tmp_path_factory.mktemp("home"))
    yield vmproxy
    ran = vmproxy.run("cache", "stop")
    assert ran.code == 0, ran


@pytest.fixture(scope="module")
def index(vm: NamespaceVM) -> Iterator[LabIndex]:
    """A package index on the host's loopback, at PyPI's path and at devpi's."""
    with LabIndex(listen(vm.surroundings.host, "127.0.0.1", 3141)) as running:
        yield running


@pytest.mark.root
def test_what_cannot_be_leaves_nothing_running(host: OnHost) -> None:
    """A dry run starts nothing and says what it would; another proxy beside --cache is exit 2; an apply that fails
    after the start ends the cache again; where the cache cannot listen it is exit 6 with its own words. The VM is as
    it was."""
    before = files(host.machine)
    ran = host.apply("--cache", "--dry-run")
    assert ran.code == 0 and "10.0.2.2:8123" in ran.out and "it would be started" in ran.err, ran
    ran = host.apply("--cache", "--proxy", "http://10.9.9.9:3128")
    assert ran.code == 2 and "exclude each other" in ran.err, ran
    assert not (host.home / "cache").exists()
    ran = host.apply("--cache", "--guest", "openrc")
    assert ran.code == 7 and "everything was put back" in ran.err, ran
    assert (host.cache()["running"], files(host.machine)) == (False, before)
    with listen(host.machine.surroundings.host, "0.0.0.0", 8123):
        ran = host.apply("--cache")
    assert ran.code == 6 and "listens there already" in ran.err, ran
    assert (host.cache()["running"], files(host.machine)) == (False, before)


@pytest.mark.root
def test_the_first_hit_and_the_second_run(host: OnHost) -> None:
    """``apply --cache``: the cache runs on the host's loopback, to which this hypervisor maps the gateway; Docker and
    containers have its port; the object that is fetched twice from each place is a miss and then hits. A container
    fetches a package twice: the mirror is asked once. A second run finds everything in sync."""
    ran = host.apply("--cache", "--yes")
    assert ran.code == 0, ran
    assert "started in the background" in ran.out and "from its origin, then from the cache" in ran.out, ran
    assert "the default bridge: from its origin, then from the cache" in ran.out and "ok network" in ran.out
    found = host.cache()
    assert found["listen"] == "127.0.0.1:8123"
    assert (found["misses"], found["hits"], found["entries"], found["tunnels"]) == (1, 5, 0, 0)
    assert [row["host"] for row in found["hosts"]] == ["cache.vmproxy.invalid"]
    assert daemon_environment(host.machine)["http_proxy"] == "http://10.0.2.2:8123"
    with mirror(host.machine) as origin:
        for _ in range(2):
            got = host.machine.docker(
                *("run", "--rm", "-e", "http_proxy=http://172.17.0.1:8123", "busybox"),
                *("sh", "-c", "wget -q -O - http://10.0.2.3:8000/package | wc -c"),
            )
            assert got.strip() == "50000"
        assert origin.asked == 1
    after = host.cache()
    assert (after["misses"], after["hits"], after["entries"]) == (2, 6, 1)
    ran = host.json("apply", "--cache")
    assert (ran.code, ran.json["changed"]) == (0, False), ran
    assert "in sync" in ran.vm["message"] and host.cache()["pid"] == after["pid"]


@pytest.mark.root
def test_after_the_end_of_the_cache(host: OnHost) -> None:
    """``cache stop`` ends it; then an apply brings it up again and proves it, though in the VM nothing is to do."""
    assert "ended" in host.run("cache", "stop").out
    assert host.cache()["running"] is False
    ran = host.json("apply", "--cache")
    assert ran.code == 0 and ran.json["changed"] is False, ran
    assert "from its origin, then from the cache" in ran.out
    assert host.cache()["misses"] == 3


def install(host: OnHost, *words: str) -> None:
    """A real pip in a container installs the parcel with what ``env`` says, and does not ask the proxy."""
    before = host.cache()["requests"]
    arguments = host.env("--format", "docker-run", *words)
    assert arguments.code == 0, arguments
    pip = "python3 -m pip install --root-user-action=ignore --disable-pip-version-check"
    got = host.machine.run(
        f"docker run --rm {' '.join(arguments.out.split())} python {pip} {PACKAGE} 2>&1", seconds=240
    )
    assert "Successfully installed lab-parcel-1.0" in got.stdout.decode()
    assert host.cache()["requests"] == before


@pytest.mark.root
def test_pip_installs_through_the_cache_of_the_host(host: OnHost, index: LabIndex) -> None:
    """``apply --cache --pip``: containers of the VM install by the variables of ``env --vm`` alone; the second one
    costs the index nothing. An existing devpi, named by its address, goes before it."""
    host.run("cache", "stop")
    ran = host.apply("--cache", "--pip")
    assert ran.code == 0, ran
    told = host.json("env").json
    assert told["PIP_INDEX_URL"] == "http://10.0.2.2:5001/index/" and told["PIP_TRUSTED_HOST"] == "10.0.2.2"
    assert "10.0.2.2" in told["no_proxy"].split(",")
    with build_python_image(default_cache()).open("rb") as tar:
        host.machine.run(["docker", "import", "-", "python"], stdin=tar.read())
    index.asked.clear()
    install(host)
    asked = [one.path for one in index.asked]
    assert len([path for path in asked if path.endswith(".whl")]) == 1
    install(host)
    assert [one.path for one in index.asked] == asked
    index.asked.clear()
    install(host, "--pip-index", "http://127.0.0.1:3141/root/pypi/+simple/")
    wheel = f"{PACKAGE.replace('-', '_')}-1.0-py3-none-any.whl"
    root = "/root/pypi/+simple/"
    assert [unquote(one.path) for one in index.asked] == [f"{root}{PACKAGE}/", f"{root}{wheel}"]


@pytest.mark.root
@pytest.mark.usefixtures("index")
def test_a_gateway_of_the_hosts_own_is_listened_on(host: OnHost) -> None:
    """Where the gateway is the host's own address and nothing maps it, the cache listens there, and that for pip, for
    the VM's network alone: a machine of another network is cut off."""
    network = host.machine.surroundings.host
    nat = [*host.machine.surroundings.argv(network), "iptables-nft", "-t", "nat"]
    subprocess.run([*nat, "-F", "PREROUTING"], check=True)
    host.run("cache", "stop")
    try:
        ran = host.apply("--cache", "--pip")
        assert ran.code == 0 and "from its origin, then from the cache" in ran.out, ran
        assert host.cache()["listen"] == "10.0.2.2:8123"
        install(host)
        with mirror(host.machine):
            around = host.machine.surroundings
            assert ask(around.vm, "10.0.2.2", 8123, send=GET, seconds=20.0).startswith("HTTP/1.1 200")
            for port in (8123, 5001):
                assert ask(around.lan, "10.0.2.2", port, send=GET, seconds=3.0) in ("silence", "unreachable")
        ran = host.remove()
        assert ran.code == 0, ran
    finally:
        subprocess.run([*nat, "-A", "PREROUTING", "-d", "10.0.2.2/32", "-j", "DNAT", "--to", "127.0.0.1"], check=True)
