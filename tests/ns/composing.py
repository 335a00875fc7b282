"""A project that both majors of Compose bring up: ``vmproxy compose`` on the host, the real client in the VM.

::

    with opened(home, ("docker", "compose"), release="trixie") as shop:
        shop.override("--names", "mail")
        shop.compose("up", "-d", "web")
"""

from __future__ import annotations

import contextlib
import json
import re
import shlex
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from tests.lab import default_cache
from tests.lab.nsvm import NamespaceVM
from tests.lab.proxy import ANSWER, KNOWN, LabProxy
from tests.lab.pyimage import build_python_image
from tests.ns.story import Vmproxy, host_proxy

KNOWS = ANSWER.decode().strip()
PLACE = "/tmp/shop"
STORE = "cd /tmp; echo from the store >index.html; exec python3 -m http.server 8000"
TELL = "import json, os; print('arg', json.dumps({**os.environ}))"
ASK = f"""
import json, os, socket, time, urllib.request
for _ in range(1200):
    try:
        socket.create_connection(("store", 8000)).close()
        break
    except OSError:
        time.sleep(0.05)
print("arg", json.dumps({{**os.environ}}))
for url in ("http://store:8000/", "http://shelf:8000/", "http://shop-store:8000/", "http://{KNOWN}/"):
    print(urllib.request.urlopen(url, timeout=60).read().decode().strip())
"""
PROJECT: Any = {
    "x-common": {"image": "python"},
    "services": {
        "store": {
            "image": "python",
            "container_name": "shop-store",
            "command": ["sh", "-c", STORE],
            "networks": {"inner": {"aliases": ["shelf"]}},
        },
        "web": {
            "build": {"context": ".", "args": {"COLOUR": "red", "ftp_proxy": "http://own.test:21"}},
            "image": "shop-web",
            "container_name": "shop-web",
            "networks": ["inner"],
            "command": ["python3", "-c", ASK],
        },
        "own": {
            "image": "python",
            "container_name": "shop-own",
            "networks": ["inner"],
            "environment": ["HTTPS_PROXY=http://own.test:1", "COLOUR=$$blue"],
            "env_file": "own.env",
            "command": ["python3", "-c", TELL],
        },
    },
    "networks": {"inner": {}},
}
SHAPES = {
    "shapes.yaml": """
x-env: &env {HTTP_PROXY: "http://own.test:1", LEVEL: "1"}
services:
  merged: {image: x, environment: {<<: *env, LEVEL: "2"}}
  listed: {image: x, environment: [no_proxy=own.test, "HTTPS_PROXY", A=b=c]}
  filed: {image: x, env_file: [one.env, sub/two.env]}
  both: {image: x, env_file: one.env, environment: {https_proxy: ""}}
  built: {build: sub}
  argued: {build: {context: sub, args: [http_proxy, X=1]}, environment: *env}
  mapped: {build: {context: sub, args: {NO_PROXY: , HTTP_PROXY: x}}}
  near: {extends: merged, environment: {no_proxy: own.test}}
  far: {extends: {file: sub/base.yaml, service: base}}
  later: {image: x}
  "no": {image: x, environment: {Http_Proxy: kept}}
""",
    "sub/base.yaml": "services: {base: {build: ., env_file: two.env, environment: [HTTP_PROXY=x]}}",
    "more.yaml": "services: {later: {environment: [http_proxy=x], build: {context: sub, args: {https_proxy: y}}}}",
    "one.env": "# https_proxy=none\nhttp_proxy=http://own.test:3\nOTHER=http_proxy\n",
    "sub/two.env": "no_proxy=own.test\n",
}
"""A service for each way in which one says variables and arguments itself."""
DOCKERFILE = f"""FROM python
ARG COLOUR
RUN python3 -c "{TELL}"
RUN python3 -c "import urllib.request as r; print('build:', r.urlopen('http://{KNOWN}/').read().decode())"
"""


class Shop:
    """The project's files on the host, where vmproxy runs, and the same ones in the VM, where Compose runs."""

    def __init__(self, machine: NamespaceVM, vmproxy: Vmproxy, client: tuple[str, ...], proxy: LabProxy) -> None:
        self.machine, self.vmproxy, self.client, self._proxy = machine, vmproxy, client, proxy
        # YAML 1.2 holds JSON; both clients and vmproxy read it so.
        self.write("compose.yaml", json.dumps(PROJECT, indent=1))
        self.write("own.env", "http_proxy=http://own.test:2\n")
        self.write("Dockerfile", DOCKERFILE)

    def write(self, name: str, text: str) -> None:
        """One file, in both places."""
        for place in (self.vmproxy.home, self.machine.path(PLACE)):
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            (place / name).write_text(text, encoding="utf-8")

    @property
    def build_words(self) -> tuple[str, ...]:
        """Options with which a build shows what its steps write."""
        return ("--progress", "plain") if len(self.client) > 1 else ()

    def asked(self) -> list[str]:
        """What containers asked of the proxy since the last call; a registry is asked for by dockerd itself."""
        lines = [request.line for request in self._proxy.requests if "registry" not in request.line]
        self._proxy.requests.clear()
        return lines

    def override(self, *words: str) -> str:
        """What ``vmproxy compose`` prints for this VM, kept as compose.proxy.yaml."""
        ran = self.vmproxy.command("compose", *words)
        assert ran.code == 0, ran
        self.write("compose.proxy.yaml", ran.out)
        return ran.out

    def compose(
        self, *words: str, files: tuple[str, ...] = ("compose.yaml",), environ: Mapping[str, str] | None = None
    ) -> str:
        """What the client says, on both streams, run by the VM's user; the override is the last of the files."""
        return self.plainly(*words, files=(*files, "compose.proxy.yaml"), environ=environ)

    def plainly(self, *words: str, files: tuple[str, ...], environ: Mapping[str, str] | None = None) -> str:
        """The same without the override."""
        options = [word for file in files for word in ("-f", file)]
        pairs = [f"{name}={value}" for name, value in (environ or {}).items()]
        line = shlex.join(["env", *pairs, *self.client, *options, *words])
        done = self.machine.run(f"cd {PLACE}; exec {line} 2>&1", user="docker", check=False, seconds=300)
        assert done.returncode == 0, done.stdout.decode()
        return done.stdout.decode()

    def config(self, **options: Any) -> Any:
        """The services as the client understands them; without the value of ``$`` in them."""
        return yaml.safe_load(self.compose("config", **options))["services"]

    def logs(self, name: str) -> str:
        """What a container wrote until it ended."""
        assert self.machine.docker("wait", name) == "0", self.machine.docker("logs", name)
        return self.machine.docker("logs", name)


@contextlib.contextmanager
def opened(home: Path, client: tuple[str, ...], **vm: Any) -> Iterator[Shop]:
    """A VM after ``apply``, with the image ``python`` and a proxy on its host, and the project in it."""
    with NamespaceVM(**vm) as machine, host_proxy(machine) as proxy:
        vmproxy = Vmproxy(machine, home)
        ran = vmproxy.apply("--yes", "--no-verify")
        assert ran.code == 0, ran
        with build_python_image(default_cache()).open("rb") as tar:
            machine.run(["docker", "import", "-", "python"], stdin=tar.read())
        yield Shop(machine, vmproxy, client, proxy)


def told(text: str) -> dict[str, str]:
    """The environment that a program of this file wrote down, the last one of a text."""
    found: dict[str, str] = json.loads(re.findall(r"arg ({.*})", text)[-1])
    return found


# The promises, the same for each client.


def reaches_proxy_and_services(shop: Shop) -> None:
    """See the tests."""
    shop.override("--names", "mail")
    wanted = shop.vmproxy.env("--names", "mail", "--json").json
    names = ",store,shop-store,shelf,web,shop-web,own,shop-own"
    wanted |= {name: wanted[name] + names for name in ("no_proxy", "NO_PROXY")}
    shop.asked()
    shop.compose("up", "-d", "web", "store")
    environment, *got = shop.logs("shop-web").splitlines()
    assert got == ["from the store"] * 3 + [KNOWS]
    asked = shop.asked()
    assert set(asked) == {f"GET http://{KNOWN}/ HTTP/1.1"}, asked
    found = {name: value for name, value in told(environment).items() if "proxy" in name.lower()}
    assert found == wanted, (found, wanted)


def own_variables_win(shop: Shop) -> None:
    """See the tests."""
    shop.override()
    shop.compose("up", "-d", "own")
    found = told(shop.logs("shop-own"))
    names = {name for name in found if "proxy" in name.lower()}
    assert names == {"http_proxy", "HTTPS_PROXY", "NO_PROXY", "no_proxy"}
    assert (found["http_proxy"], found["HTTPS_PROXY"]) == ("http://own.test:2", "http://own.test:1")
    assert found["COLOUR"] == "$blue"


def builds(shop: Shop) -> None:
    """See the tests."""
    shop.override()
    shop.asked()
    text = shop.compose("build", "--no-cache", *shop.build_words, "web")
    wanted = {**shop.config()["web"]["build"]["args"], "ftp_proxy": "http://own.test:21", "COLOUR": "red"}
    found = {name: value for name, value in told(text).items() if "proxy" in name.lower() or name == "COLOUR"}
    # BuildKit itself adds the other case of a predefined argument.
    assert found.pop("FTP_PROXY", wanted["ftp_proxy"]) == wanted["ftp_proxy"]
    assert found == wanted, (found, wanted)
    assert {"http_proxy", "HTTPS_PROXY", "no_proxy"} <= found.keys()
    assert f"build: {KNOWS}" in text
    assert shop.asked() == [f"GET http://{KNOWN}/ HTTP/1.1"]
    image = json.loads(shop.machine.docker("image", "inspect", "shop-web"))[0]
    assert not [pair for pair in image["Config"].get("Env") or [] if "proxy" in pair.lower()]
    assert "8123" not in json.dumps(image) + shop.machine.docker("history", "--no-trunc", "shop-web")


def host_by_name(shop: Shop) -> None:
    """See the tests."""
    ran = shop.vmproxy.run("compose", "--proxy", "http://localhost:8123")
    assert ran.code == 0, ran
    assert "host.docker.internal" not in ran.err
    shop.write("compose.proxy.yaml", ran.out)
    text = shop.compose("build", "--no-cache", *shop.build_words, "web")
    assert told(text)["http_proxy"] == "http://host.docker.internal:8123"
    assert f"build: {KNOWS}" in text
    shop.compose("up", "-d", "web", "store")
    assert shop.logs("shop-web").splitlines()[1:] == ["from the store"] * 3 + [KNOWS]


def credentials_by_name(shop: Shop) -> None:
    """See the tests."""
    proxy = ("--proxy", "http://user:s3cret@proxy.test:3128")
    assert "s3cret" not in shop.override(*proxy)
    ran = shop.vmproxy.command(
        "run", *proxy, "--", sys.executable, "-c", "import json, os; print(json.dumps({**os.environ}))"
    )
    assert ran.code == 0, ran
    environ = {name: value for name, value in ran.json.items() if "proxy" in name.lower()}
    services = shop.config(environ=environ)
    wanted = "http://user:s3cret@proxy.test:3128"
    assert services["web"]["environment"]["https_proxy"] == services["web"]["build"]["args"]["HTTP_PROXY"] == wanted
    assert services["own"]["environment"]["http_proxy"] == "http://own.test:2"


def changes_nothing_else(shop: Shop) -> None:
    """See the tests. What is a service's own is what the real client says without our file."""
    for name, text in SHAPES.items():
        shop.write(name, text)
    files = ("shapes.yaml", "more.yaml")
    shop.override(*(word for file in files for word in ("-f", file)))
    ours = set(shop.vmproxy.env("--json").json)
    # What names alone stand for; Compose 2 drops an argument that stands for nothing.
    environ = {"HTTPS_PROXY": "http://own.test:4", "http_proxy": "http://own.test:5", "NO_PROXY": "own.test"}
    before = yaml.safe_load(shop.plainly("config", files=files, environ=environ))["services"]
    after = shop.config(files=files, environ=environ)
    assert before.keys() == after.keys()
    for name, service in before.items():
        places = [(service, after[name], "environment")]
        if "build" in service:
            places.append((service["build"], after[name]["build"], "args"))
        for was, now, key in places:
            own, all_of_it = was.pop(key, None) or {}, now.pop(key, None) or {}
            lower = {variable.lower() for variable in own}
            assert {variable: all_of_it[variable] for variable in own} == own, (name, key)
            added = {variable for variable in ours if variable.lower() not in lower}
            assert all_of_it.keys() - own.keys() == added, (name, key)
        assert service == after[name]


def takes_odd_values(shop: Shop, version: str) -> None:
    """See the tests."""
    said: Any = {"services": {"no": {"image": "python"}, "web.1": {"image": "python", "hostname": "${NAME:-box}"}}}
    shop.write("odd.yaml", json.dumps({"version": version, **said} if version else said))
    shop.override("-f", "odd.yaml", "--no-proxy", "a$b.test,$HOME.test")
    for service in shop.config(files=("odd.yaml",), environ={"NAME": "filled"}).values():
        entries = service["environment"]["no_proxy"].replace("$$", "$").split(",")
        assert entries[:2] == ["a$b.test", "$HOME.test"]
        assert {"no", "web.1", "filled"} <= set(entries)
