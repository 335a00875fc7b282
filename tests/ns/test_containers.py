"""What ``vmproxy env`` says, taken by real containers and builds: run, build, pip, host.docker.internal, names.

The image is Debian's Python; its programs stand for those of every container: urllib, and pip with its own requests.
pip installs in an image that debootstrap made.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.lab import default_cache
from tests.lab.hostside import listen
from tests.lab.index import PACKAGE, LabIndex
from tests.lab.nsvm import NamespaceVM
from tests.lab.proxy import ANSWER, KNOWN, LabProxy
from tests.lab.pyimage import build_debootstrap_image, build_python_image
from tests.ns.story import Vmproxy, host_proxy

INDEX = "a package index"
KNOWS = ANSWER.decode().strip()
FETCH = """
import sys, urllib.request
for url in sys.argv[1:]:
    print(urllib.request.urlopen(url, timeout=60).read().decode().strip())
"""
# pip asks by its own copy of requests, which reads no_proxy in its own way.
PIP_FETCH = """
import sys
from pip._vendor import requests
for url in sys.argv[1:]:
    print(requests.get(url, timeout=60).text.strip())
"""
WARM = """
import socket, time
for _ in range(1200):
    try:
        socket.create_connection(("my_web", 8000))
        break
    except OSError:
        time.sleep(0.05)
"""
BUILDKIT = "DOCKER_BUILDKIT=1 docker build --progress=plain"
SERVE = "mkdir /srv; cd /srv; echo from the container >index.html; exec python3 -m http.server 8000"


@dataclass(frozen=True, kw_only=True)
class World:
    """A VM after ``apply``, with the image ``python`` and a network ``shop``; proxy and index on its host."""

    machine: NamespaceVM
    proxy: LabProxy
    index: LabIndex
    vmproxy: Vmproxy

    def script(self, text: str, **files: str) -> str:
        """What a script gives in the VM, run by the VM's user from a new directory that has these files."""
        where = self.machine.path("/tmp/work")
        self.machine.run("rm -rf /tmp/work; mkdir /tmp/work; chown docker /tmp/work")
        for name, content in files.items():
            (where / name).write_text(content, encoding="utf-8")
        script = f"cd /tmp/work; exec 2>&1; set -e; {text}"
        done = self.machine.run(script, user="docker", seconds=300, check=False)
        assert done.returncode == 0, done.stdout.decode()
        return done.stdout.decode()

    def asked(self) -> list[str]:
        """What the proxy was asked since the last call."""
        lines = [request.line for request in self.proxy.requests]
        self.proxy.requests.clear()
        return lines

    def env(self, form: str, *words: str) -> str:
        """What ``vmproxy env`` says of this VM in a format."""
        ran = self.vmproxy.env("--format", form, *words)
        assert ran.code == 0, ran
        return ran.out


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """One VM for all tests of this file."""
    with NamespaceVM() as machine, host_proxy(machine) as proxy:
        index = LabIndex(listen(machine.surroundings.host, "127.0.0.1", 3141))
        vmproxy = Vmproxy(machine, tmp_path_factory.mktemp("home"))
        ran = vmproxy.apply("--yes", "--no-verify")
        assert ran.code == 0, ran
        with build_python_image(default_cache()).open("rb") as tar:
            machine.run(["docker", "import", "-", "python"], stdin=tar.read())
        machine.docker("network", "create", "shop")
        proxy.requests.clear()
        with index:
            yield World(machine=machine, proxy=proxy, index=index, vmproxy=vmproxy)


def in_image(world: World, name: str) -> str:
    """Everything that an image tells about itself: its configuration and its history, nothing cut short."""
    told = world.machine.docker("image", "inspect", name)
    assert not [pair for pair in json.loads(told)[0]["Config"]["Env"] or [] if "proxy" in pair.lower()]
    return told + world.machine.docker("history", "--no-trunc", name)


def test_run_reaches_the_proxy_from_every_network(world: World) -> None:
    """``docker run $(vmproxy env --format docker-run)``: a name that only the proxy knows is fetched from a container
    on the default network and from one on a user-defined network, by the same address; the image stays as it was."""
    arguments = world.env("docker-run")
    assert "172.17.0.1:8123" in arguments
    got = world.script(
        "for net in bridge shop; do docker run --rm --network $net $(cat arguments) "
        f'python python3 -c "$(cat fetch)" http://{KNOWN}/; done',
        arguments=arguments,
        fetch=FETCH,
    )
    assert got.split("\n")[:2] == [KNOWS, KNOWS]
    assert world.asked() == [f"GET http://{KNOWN}/ HTTP/1.1"] * 2
    assert "8123" not in in_image(world, "python")


def test_names_and_networks_go_without_the_proxy(world: World) -> None:
    """A container that --names lists is reached directly by name, and by its address where the program knows networks
    (pip); the VM's own addresses and the host's other ports are direct too, and what is elsewhere is not."""
    address = "{{.NetworkSettings.Networks.shop.IPAddress}}"
    got = world.script(
        f"docker run -d --name my_web --network shop -p 8000:8000 python sh -c '{SERVE}' >/dev/null\n"
        f"ip=$(docker inspect -f '{address}' my_web)\n"
        'run() { docker run --rm --network shop $(cat arguments) python python3 -c "$(cat "$1")" $2 $3 $4 $5 $6; }\n'
        "run warm http://my_web:8000/\n"
        f"run fetch http://my_web:8000/ http://10.0.2.15:8000/ http://172.18.0.1:8000/ http://{KNOWN}/ "
        "http://10.0.2.2:3141/\n"
        "run pip_fetch http://my_web:8000/ http://$ip:8000/\n"
        "docker rm -f my_web >/dev/null",
        arguments=world.env("docker-run", "--names", "my_web,db"),
        warm=WARM,
        fetch=FETCH,
        pip_fetch=PIP_FETCH,
    )
    assert got.split("\n")[:-1] == [*["from the container"] * 3, KNOWS, INDEX, *["from the container"] * 2]
    assert world.asked() == [f"GET http://{KNOWN}/ HTTP/1.1"]


BUILDERS = pytest.mark.parametrize("build", ["DOCKER_BUILDKIT=0 docker build", BUILDKIT], ids=["classic", "buildkit"])


@BUILDERS
def test_build_sees_the_variables_and_the_image_does_not(world: World, build: str) -> None:
    """``docker build $(vmproxy env --format docker-build)``: RUN has all six variables without a line in the
    Dockerfile and fetches through the proxy; neither Config.Env nor the whole history knows of it."""
    got = world.script(
        f"{build} --no-cache -t built $(cat arguments) . ",
        Dockerfile=f'FROM python\nCOPY fetch /fetch\nRUN export -p; python3 /fetch "http://{KNOWN}/"\n',
        arguments=world.env("docker-build", "--no-proxy", "a.test"),
        fetch=FETCH,
    )
    for name in ("http_proxy", "https_proxy"):
        assert f"export {name}='http://172.17.0.1:8123'" in got and f"export {name.upper()}=" in got
    assert "export no_proxy='a.test,localhost," in got and "export NO_PROXY='a.test," in got
    assert KNOWS in got and world.asked() == [f"GET http://{KNOWN}/ HTTP/1.1"]
    told = in_image(world, "built")
    assert "8123" not in told and "_proxy" not in told.lower()


@BUILDERS
def test_pip_installs_through_an_index_by_declared_arguments_alone(world: World, build: str) -> None:
    """A Dockerfile with nothing but ``ARG PIP_INDEX_URL`` and ``ARG PIP_TRUSTED_HOST`` installs a package from an index
    on the host's loopback, directly and not through the proxy, in an image made by debootstrap. Its history has no
    proxy."""
    if not world.machine.docker("images", "-q", "debian"):
        with build_debootstrap_image(default_cache()).open("rb") as tar:
            world.machine.run(["docker", "import", "-", "debian"], stdin=tar.read(), seconds=300)
    world.index.asked.clear()
    dockerfile = (
        "FROM debian\nARG PIP_INDEX_URL\nARG PIP_TRUSTED_HOST\n"
        f"RUN pip install --root-user-action=ignore {PACKAGE} && python3 -c 'import lab_parcel as p; "
        "print(p.STATE)'\n"
    )
    arguments = world.env("docker-build", "--pip-index", "http://localhost:3141/simple/")
    got = world.script(
        f"{build} --no-cache -t parcel $(cat arguments) .",
        Dockerfile=dockerfile,
        arguments=arguments,
    )
    assert "delivered" in got
    paths = [asked.path for asked in world.index.asked]
    assert paths == [f"/simple/{PACKAGE}/", f"/simple/{PACKAGE.replace('-', '_')}-1.0-py3-none-any.whl"]
    assert world.asked() == []
    told = in_image(world, "parcel")
    assert "8123" not in told and "http_proxy" not in told.lower()
    assert "PIP_INDEX_URL=http://10.0.2.2:3141/simple/" in told


def test_an_indexs_credentials_are_passed_by_name(world: World) -> None:
    """Credentials in the index's URL are in no argument; docker run takes them from its environment, pip logs in."""
    world.index.asked.clear()
    world.index.credentials = "me:pa@ss"
    words = ("--pip-index", "http://me:pa%40ss@127.0.0.1:3141/simple/")
    arguments = world.env("docker-run", *words)
    assert "-e PIP_INDEX_URL\n" in arguments and "pa%40ss" not in arguments
    install = f"python3 -m pip install --root-user-action=ignore {PACKAGE}"
    got = world.script(
        f". ./environment; docker run --rm --network shop $(cat arguments) python {install}",
        arguments=arguments,
        environment=world.env("sh", *words),
    )
    world.index.credentials = ""
    assert "Successfully installed lab-parcel-1.0" in got and "pa%40ss" not in got and "pa@ss" not in got
    assert any(asked.authorization for asked in world.index.asked)
    assert world.asked() == []


def test_host_docker_internal_is_the_door(world: World) -> None:
    """``http://host.docker.internal:P`` is the proxy in containers started with ``host-gateway``, on every network,
    with what ``vmproxy env`` says without --vm."""
    ran = world.vmproxy.run("env", "--proxy", "http://127.0.0.1:8123", "--format", "docker-run")
    assert ran.code == 0 and "http_proxy=http://host.docker.internal:8123" in ran.out
    got = world.script(
        "for net in bridge shop; do docker run --rm --network $net --add-host=host.docker.internal:host-gateway "
        f'$(cat arguments) python python3 -c "$(cat fetch)" http://{KNOWN}/; done',
        arguments=ran.out,
        fetch=FETCH,
    )
    assert got.split("\n")[:2] == [KNOWS, KNOWS]
    assert world.asked() == [f"GET http://{KNOWN}/ HTTP/1.1"] * 2
