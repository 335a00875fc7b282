"""``docker-config`` with the real docker client: what it reads, what it writes anew, and what is left after remove."""

from __future__ import annotations

import base64
import contextlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.lab.hostside import listen
from tests.lab.nsvm import NamespaceVM
from tests.ns.story import Ran, Vmproxy
from vmproxy import clientconfig, hostfiles
from vmproxy.hostfiles import Edit, Look

REGISTRY = "127.0.0.1:5000"
OTHER_DAEMON = "unix:///run/other.sock"
PROXY = ("--proxy", "http://proxy.example:3128", "--no-proxy", "registry.example")
FAMILY = ("http_proxy", "https_proxy", "no_proxy", "ftp_proxy", "all_proxy")


class _Registry(BaseHTTPRequestHandler):
    """As much of a registry as ``docker login`` asks: 401 without credentials, 200 with them."""

    def do_GET(self) -> None:
        known = "Authorization" in self.headers
        self.send_response(200 if known else 401)
        if not known:
            self.send_header("WWW-Authenticate", 'Basic realm="lab"')
        self.send_header("Docker-Distribution-Api-Version", "registry/2.0")
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, *_words: Any) -> None:
        """Says nothing."""


@contextlib.contextmanager
def with_registry(**options: Any) -> Iterator[NamespaceVM]:
    """A VM with a real Docker, the image ``busybox``, a registry to log in to, and its socket under a second name."""
    with NamespaceVM(**options) as vm:
        vm.import_image()
        vm.run("ln -s /var/run/docker.sock /run/other.sock")
        server = ThreadingHTTPServer(("127.0.0.1", 5000), _Registry, bind_and_activate=False)
        server.socket.close()
        server.socket = listen(vm.surroundings.vm, "127.0.0.1", 5000)
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield vm
        finally:
            server.shutdown()
            server.server_close()
            thread.join(10)


@pytest.fixture(scope="module")
def machine() -> Iterator[NamespaceVM]:
    """Docker 20.10."""
    with with_registry() as vm:
        yield vm


class Client:
    """The docker client in the VM with a config.json of its own, and vmproxy on that file."""

    def __init__(self, machine: NamespaceVM, home: Path) -> None:
        self.machine = machine
        self.vmproxy = Vmproxy(machine, home)
        self.directory = machine.path("/root/.docker")
        self.file = self.directory / "config.json"
        self.environ = {"DOCKER_CONFIG": str(self.directory)}

    def vmproxy_on_file(self, which: str, *words: str) -> Ran:
        """``vmproxy docker-config``, for the client's file."""
        return self.vmproxy.run("docker-config", which, *words, environ=self.environ)

    def variables(self, *words: str, before: tuple[str, ...] = ()) -> dict[str, str]:
        """The proxy variables in a container that ``docker run`` starts with these words."""
        out = self.machine.docker(*before, "run", "--rm", *words, "busybox", "env")
        pairs = dict(line.split("=", 1) for line in out.splitlines() if "=" in line)
        return {name: value for name, value in pairs.items() if name.lower() in FAMILY}

    def login(self) -> None:
        """``docker login``, which writes config.json anew."""
        self.machine.run(["docker", "login", "-u", "me", "--password-stdin", REGISTRY], stdin=b"secret")

    def written(self) -> Any:
        """The file as JSON."""
        return json.loads(self.file.read_bytes())


@pytest.fixture
def client(machine: NamespaceVM, tmp_path: Path) -> Iterator[Client]:
    """A client without config.json, before and after."""
    made = Client(machine, tmp_path)
    machine.run("rm -rf /root/.docker")
    yield made
    machine.run("rm -rf /root/.docker")


def test_a_plain_docker_run_has_the_variables(client: Client) -> None:
    """apply --vm: every variable of ``vmproxy env --vm``, in both cases and no other, is in a container started by a
    plain ``docker run``; one that is named with -e or --build-arg wins; a build sees them and keeps none; remove leaves
    no trace."""
    ran = client.vmproxy_on_file("apply", *client.vmproxy.vm_words)
    assert ran.code == 0, ran
    assert client.file.stat().st_mode & 0o777 == 0o600
    wanted = json.loads(client.vmproxy.env("--json").out)
    assert wanted["http_proxy"] == "http://172.17.0.1:8123"
    assert client.variables() == wanted
    own = client.variables("-e", "http_proxy=http://own:1", "-e", "NO_PROXY=own")
    assert own == {**wanted, "http_proxy": "http://own:1", "NO_PROXY": "own"}
    dockerfile = b"FROM busybox\nRUN env\n"
    build = "DOCKER_BUILDKIT=0 docker build --no-cache --build-arg no_proxy=own -t built -"
    built = client.machine.run(build, stdin=dockerfile).stdout.decode()
    seen = {**wanted, "no_proxy": "own"}
    assert all(f"{name}={value}" in built.splitlines() for name, value in seen.items())
    kept = client.machine.docker("history", "--no-trunc", "built") + client.machine.docker("inspect", "built")
    assert "172.17.0.1" not in kept
    # What was applied with --vm is known again without it.
    ran = client.vmproxy_on_file("remove")
    assert ran.code == 0, ran
    assert not client.directory.exists()
    assert client.variables() == {}


def test_an_entry_for_one_daemon_is_for_that_address_only(client: Client) -> None:
    """--daemon: the client uses it when it speaks to that address and no other; ``default`` beside it for the rest."""
    assert client.vmproxy_on_file("apply", *PROXY, "--daemon", OTHER_DAEMON).code == 0
    assert client.variables() == {}
    found = client.variables(before=("-H", OTHER_DAEMON))
    assert found["http_proxy"] == found["HTTPS_PROXY"] == "http://proxy.example:3128"
    assert client.vmproxy_on_file("apply", "--proxy", "http://second.example:3128").code == 0
    assert client.variables()["http_proxy"] == "http://second.example:3128"
    assert client.variables(before=("-H", OTHER_DAEMON)) == found
    assert client.vmproxy_on_file("remove", "--daemon", OTHER_DAEMON).code == 0
    assert client.variables(before=("-H", OTHER_DAEMON))["http_proxy"] == "http://second.example:3128"
    assert client.vmproxy_on_file("remove").code == 0
    assert not client.directory.exists()


def test_a_login_keeps_the_entry_and_remove_keeps_the_login(client: Client) -> None:
    """docker login writes the whole file anew: the entry is still in sync and nothing is written; remove takes it
    alone, and the client finds its credentials. What the client itself wrote is given back byte for byte."""
    assert client.vmproxy_on_file("apply", *PROXY).code == 0
    client.login()
    auth = base64.b64encode(b"me:secret").decode()
    assert client.written()["auths"] == {REGISTRY: {"auth": auth}}
    assert client.variables()["http_proxy"] == "http://proxy.example:3128"
    assert client.vmproxy_on_file("status", *PROXY).code == 0
    before = client.file.stat().st_mtime_ns
    assert "nothing to do" in client.vmproxy_on_file("apply", *PROXY).out
    assert client.file.stat().st_mtime_ns == before
    shown = client.vmproxy_on_file("remove", *PROXY, "--dry-run", "-v")
    assert auth not in shown.all
    refused = client.vmproxy_on_file("remove")
    assert refused.code == 6, refused
    assert client.vmproxy_on_file("remove", *PROXY).code == 0
    assert client.written() == {"auths": {REGISTRY: {"auth": auth}}}
    client.login()
    by_client = client.file.read_bytes()
    assert client.vmproxy_on_file("apply", *PROXY).code == 0
    assert client.variables()["http_proxy"] == "http://proxy.example:3128"
    assert client.vmproxy_on_file("remove").code == 0
    assert client.file.read_bytes() == by_client
    assert client.machine.run(["docker", "logout", REGISTRY]).returncode == 0
    assert client.written().get("auths", {}) == {}


def test_f70_a_login_at_the_same_moment_loses_nothing(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """A real docker login between our look and our rename, where there was a file and where there was none: its
    credentials and our entry are both there, and remove leaves the login."""
    real = hostfiles._written
    wish = {"httpProxy": "http://proxy.example:3128"}

    def edit(seen: Look) -> Edit:
        made = clientconfig.applied(seen.content, "default", wish, missing=len(seen.missing))
        return Edit(content=made.document, directories=made.made)

    for there in (False, True):
        seen: list[str] = []

        def written(*words: Any, seen: list[str] = seen) -> str:
            name = real(*words)
            if not seen:
                client.login()
            seen.append(name)
            return name

        client.machine.run("rm -rf /root/.docker")
        if there:
            client.machine.run(
                'mkdir /root/.docker && echo \'{"currentContext": "default"}\' >/root/.docker/config.json'
            )
        monkeypatch.setattr(hostfiles, "_written", written)
        assert hostfiles.change(str(client.file), edit).changed
        monkeypatch.setattr(hostfiles, "_written", real)
        assert len(seen) == 2
        assert client.written()["auths"].keys() == {REGISTRY}
        assert client.written()["proxies"] == {"default": wish}
        assert client.vmproxy_on_file("remove").code == 0
        assert client.written()["auths"].keys() == {REGISTRY}
        assert "proxies" not in client.written()
        assert [path.name for path in client.directory.iterdir()] == ["config.json"]


def test_what_the_client_does_not_read_is_refused(client: Client) -> None:
    """The client calls these files broken, and so do we, exit 6 with the place; it reads an empty one, and so do we."""
    client.machine.run("mkdir -p /root/.docker")
    for text in (b'{"auths": {},}', b"\xef\xbb\xbf{}", b"// note\n{}", b'{"auths": {} "x": 1}', b"[]"):
        client.file.write_bytes(text)
        said = client.machine.run(["docker", "version"], check=False)
        assert b"rror" in said.stderr, text
        ran = client.vmproxy_on_file("apply", *PROXY)
        assert ran.code == 6, ran
        assert "config.json:1:" in ran.err
        assert client.file.read_bytes() == text
    client.file.write_bytes(b"")
    assert b"rror" not in client.machine.run(["docker", "version"]).stderr
    assert client.vmproxy_on_file("apply", *PROXY).code == 0
    assert client.variables()["http_proxy"] == "http://proxy.example:3128"
    assert client.vmproxy_on_file("remove").code == 0
    assert client.file.read_bytes() == b""


def test_the_same_with_a_client_of_today(tmp_path: Path) -> None:
    """Docker 26: run has every variable, ALL_PROXY too, also after a login; BuildKit has all but that one, and the
    history has none; remove leaves the login alone."""
    every = {"http_proxy": "http://h.example:1", "all_proxy": "socks5://s.example:2", "no_proxy": "n.example"}
    with with_registry(release="trixie") as vm:
        client = Client(vm, tmp_path)
        assert client.vmproxy.run("docker-config", "apply", environ={**client.environ, **every}).code == 0
        wanted = json.loads(client.vmproxy.run("env", "--json", environ=every).out)
        assert {"all_proxy", "ALL_PROXY", "https_proxy"} <= set(wanted)
        assert client.variables() == wanted
        client.login()
        assert client.variables() == wanted
        dockerfile = b"FROM busybox\nRUN env | sort >/seen\n"
        vm.run("docker build -q -t built -", stdin=dockerfile)
        seen = vm.docker("run", "--rm", "built", "cat", "/seen").splitlines()
        built = {name: value for name, value in wanted.items() if name.lower() != "all_proxy"}
        assert {f"{name}={value}" for name, value in built.items()} <= set(seen)
        kept = vm.docker("history", "--no-trunc", "built") + vm.docker("inspect", "built")
        assert ".example" not in kept
        ran = client.vmproxy.run("docker-config", "remove", environ={**client.environ, **every})
        assert ran.code == 0, ran
        assert client.written().keys() == {"auths"}
        assert client.variables() == {}
