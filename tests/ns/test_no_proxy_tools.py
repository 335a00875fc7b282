"""How the tools really read no_proxy: what ``vmproxy.dialects`` says, asked of each tool itself.

A tool is told to fetch ``http://HOST/NUMBER``; whether it came, the proxy knows. It runs in a network where nothing
else is, so that the direct way ends at once. Go is asked in the shape of Docker's client; apt and BusyBox are this
machine's; curl, wget, urllib and pip's requests come from the lab's packages. Not here: apk, of which Debian has no
package.
"""

from __future__ import annotations

import functools
import json
import os
import re
import socket
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.lab import default_cache
from tests.lab.hostside import inside, listen
from tests.lab.proxy import LabProxy
from tests.lab.pyimage import build_python_tree
from tests.lab.tree import build_tree
from vmproxy import dialects, direct
from vmproxy.noproxy import bypasses

TOOLS = ("curl", "wget", "apt", "urllib", "pip", "go")
# no_proxy, host, the tools that go there without the proxy.
TABLE = [
    ("a.test", "a.test", "curl wget apt urllib pip go"),
    ("a.test", "x.a.test", "curl wget apt urllib pip go"),
    ("a.test", "xa.test", "apt pip"),
    ("A.Test", "a.test", "curl wget apt urllib pip go"),
    ("b.test,a.test", "a.test", "curl wget apt urllib pip go"),
    ("my_db", "my_db", "curl wget apt urllib pip go"),
    (".a.test", "x.a.test", "curl wget apt urllib pip go"),
    (".a.test", "a.test", "curl urllib pip"),
    (".a.test,a.test", "a.test", "curl wget apt urllib pip go"),
    ("*.a.test", "x.a.test", "go"),
    ("*.a.test", "a.test", ""),
    ("a.test.", "a.test", "curl"),
    ("*", "a.test", "curl urllib pip go"),
    ("*,b.test", "a.test", "go"),
    ("a.test:80", "a.test", "go"),
    ("a.test:80", "a.test:80", "urllib pip go"),
    ("a.test:81", "a.test", ""),
    ("10.1.2.3", "10.1.2.3", "curl wget apt urllib pip go"),
    ("10.0.0.0/8", "10.1.2.3", "curl pip go"),
    ("10.1.2.3/32", "10.1.2.3", "curl pip go"),
    ("10.1.2.0/30", "10.1.2.3", "curl pip go"),
    ("127.0.0.0/8", "127.0.0.2", "curl pip go"),
    ("fd00::1", "[fd00::1]", "curl wget apt pip go"),
    ("[fd00::1]", "[fd00::1]", "urllib"),
    ("fd00::/8", "[fd00::1]", "go"),
    ("10.", "10.1.2.3", ""),
    ("10.*", "10.1.2.3", ""),
    ("x*.test", "xa.test", ""),
    ("http://a.test", "a.test", ""),
    ("10.0.0.0/255.0.0.0", "10.1.2.3", ""),
]
PYTHON = """
import json, os, sys, urllib.request
from pip._vendor import requests
for tool, no_proxy, url in json.load(sys.stdin):
    os.environ["no_proxy"] = no_proxy
    try:
        if tool == "pip":
            requests.get(url, timeout=30)
        else:
            urllib.request.build_opener().open(url, timeout=30)
    except OSError:
        pass
"""


@dataclass(frozen=True, kw_only=True)
class Bench:
    """A network with nothing but a proxy at 127.0.0.1:8000, and the tools that live in the lab's trees."""

    network: int
    proxy: LabProxy
    tree: Path
    python: Path
    waste: Path

    def direct(self, tool: str, questions: list[tuple[str, str]]) -> list[bool]:
        """For each no_proxy and host: whether the tool went there without asking the proxy."""
        start = {tool: index * 1000 for index, tool in enumerate((*TOOLS, "busybox"), 1)}[tool]
        jobs = [(no_proxy, host, start + i) for i, (no_proxy, host) in enumerate(questions)]
        inside(self.network, functools.partial(self._run, tool, jobs))
        lines = " ".join(request.line for request in self.proxy.requests)
        seen = {int(number) for number in re.findall(r"GET http://[^/ ]+/([0-9]+)", lines)}
        return [number not in seen for _no_proxy, _host, number in jobs]

    def _run(self, tool: str, jobs: list[tuple[str, str, int]]) -> None:
        environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8", "HOME": "/nonexistent"}
        environment["http_proxy"] = environment["HTTP_PROXY"] = "http://127.0.0.1:8000"
        if tool in ("urllib", "pip"):
            text = json.dumps([(tool, no_proxy, f"http://{host}/{number}") for no_proxy, host, number in jobs])
            argv = ["chroot", str(self.python), "python3", "-c", PYTHON]
            subprocess.run(argv, input=text.encode(), env=environment, check=True, timeout=300, capture_output=True)
            return
        for no_proxy, host, number in jobs:
            argv = self._argv(tool, host, number)
            more = {"no_proxy": no_proxy, "NO_PROXY": no_proxy}
            subprocess.run(argv, env=environment | more, check=False, timeout=300, capture_output=True)

    def _argv(self, tool: str, host: str, number: int) -> list[str]:
        url = f"http://{host}/{number}"
        if tool == "apt":
            words = ["-o", "Acquire::Retries=0", "download-file", url, str(self.waste / "out")]
            return ["/usr/lib/apt/apt-helper", *words]
        if tool == "busybox":
            return ["busybox", "wget", "-q", "-O", "-", url]
        if tool == "curl":
            words = ["curl", "-s", "-m", "30", url]
        elif tool == "wget":
            words = ["wget", "-q", "-t", "1", "-T", "30", "-O", "-", url]
        else:
            port = "" if host.endswith(":80") else ":80"
            words = ["docker", "-H", f"tcp://{host}{port}/{number}", "version"]
        return ["chroot", str(self.tree), *words]


def empty_network() -> int:
    """A new network namespace with nothing but loopback, as a descriptor."""

    def make() -> int:
        subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
        return os.open("/proc/thread-self/ns/net", os.O_RDONLY)

    return inside(-1, make)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    """The network and its proxy."""
    waste = tmp_path_factory.mktemp("apt")
    cache = default_cache()
    network = empty_network()

    def nowhere(_host: str, _port: int) -> socket.socket:
        raise OSError("there is nothing")

    with LabProxy(listen(network, "127.0.0.1", 8000), dial=nowhere) as proxy:
        yield Bench(network=network, proxy=proxy, tree=build_tree(cache), python=build_python_tree(cache), waste=waste)
    os.close(network)


@pytest.fixture(scope="module")
def answers(bench: Bench) -> dict[str, list[bool]]:
    """By tool: for each line of the table as it stands, then for the list that vmproxy makes of it."""
    questions = [(entry, host) for entry, host, _tools in TABLE]
    questions += [(",".join(direct.entries(entry.split(","))), host) for entry, host, _tools in TABLE]
    with ThreadPoolExecutor(len(TOOLS)) as pool:
        return dict(zip(TOOLS, pool.map(lambda tool: bench.direct(tool, questions), TOOLS), strict=True))


@pytest.mark.parametrize("row", range(len(TABLE)), ids=lambda row: f"{TABLE[row][0]} - {TABLE[row][1]}")
def test_each_tool_reads_an_entry_as_the_table_says(answers: dict[str, list[bool]], row: int) -> None:
    """The real tool, with that no_proxy and that host, goes direct or to the proxy as written here; and the model of
    the Docker daemon's rule says the same of the Go program."""
    entry, host, tools = TABLE[row]
    assert [tool for tool in TOOLS if answers[tool][row]] == tools.split()
    assert bypasses(entry, host if host.endswith(":80") else f"{host}:80") == answers["go"][row]


def test_busybox_wget_knows_no_no_proxy(bench: Bench) -> None:
    """The wget of Alpine's and BusyBox's images asks the proxy whatever the list says, for localhost too."""
    questions = [("*", "a.test"), ("localhost", "localhost"), ("127.0.0.1", "127.0.0.1"), ("a.test", "a.test")]
    assert bench.direct("busybox", questions) == [False] * len(questions)


@pytest.mark.parametrize("row", range(len(TABLE)), ids=lambda row: f"{TABLE[row][0]} - {TABLE[row][1]}")
def test_a_tool_that_misses_an_entry_is_named(answers: dict[str, list[bool]], row: int) -> None:
    """With the list that containers get: where some tool goes direct and another does not, a warning names that one;
    and nothing that went direct with the user's own list goes to the proxy now."""
    entry, host, _tools = TABLE[row]
    text = " ".join(dialects.warnings(entry.split(",")))
    after = {tool for tool in TOOLS if answers[tool][len(TABLE) + row]}
    assert after >= {tool for tool in TOOLS if answers[tool][row] and not entry.startswith("*,")}
    if bypasses(",".join(direct.entries(entry.split(","))), host if host.endswith(":80") else f"{host}:80"):
        missing = set(TOOLS) - after
        words = {"urllib": ("urllib", "Python"), "pip": ("pip", "Python")}
        named = {tool for tool in missing if any(word in text for word in ("only Go", *words.get(tool, (tool,))))}
        assert named == missing, text
