"""This machine's own gateway, from real kernels: every recorded world is built again in a network namespace."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "fixtures" / "routes"
WORLDS = sorted(path.parent for path in FOLDER.glob("*/world"))


def execute(*argv: str, check: bool = True) -> subprocess.CompletedProcess[bytes]:
    """Run a program, its output kept."""
    return subprocess.run(argv, capture_output=True, timeout=60, check=check, cwd=ROOT)


@contextlib.contextmanager
def namespace(name: str) -> Iterator[str]:
    """A network namespace of this test process's own."""
    space = f"vmproxy-{os.getpid()}-{name}"
    execute("ip", "netns", "add", space)
    try:
        yield space
    finally:
        execute("ip", "netns", "del", space)


@contextlib.contextmanager
def built(world: Path) -> Iterator[str]:
    """A namespace with the links, addresses and routes of a world."""
    with namespace("world") as space:
        execute("ip", "-n", space, "-batch", str(world / "world"))
        yield space


def inside(space: str, *options: str) -> tuple[int, dict[str, Any]]:
    """Exit code and object of `vmproxy detect-gateway --json` inside a namespace."""
    argv = ("ip", "netns", "exec", space, sys.executable, "-m", "vmproxy", "detect-gateway", "--json", *options)
    done = execute(*argv, check=False)
    return done.returncode, json.loads(done.stdout)


def wanted(world: Path) -> dict[str, Any]:
    """What expected.json says of tables that lose nothing."""
    expected: dict[str, Any] = json.loads((world / "expected.json").read_text())
    return dict(expected.get("both", expected["ipv4"]))


@pytest.mark.parametrize("world", WORLDS, ids=lambda world: world.name)
def test_f08_f09_this_machine(world: Path) -> None:
    """pyroute2 on a live kernel gives what the recordings of the same world give."""
    with built(world) as space:
        code, found = inside(space)
    expected = wanted(world)
    if "error" in expected:
        assert (code, found["code"], found["reason"]) == (6, "E_GATEWAY", expected["error"])
        assert len(found["candidates"]) == len(expected["candidates"])
    else:
        assert code == 0
        assert {name: found[name] for name in ("gateway", "interface", "family", "reason")} == expected


@pytest.mark.parametrize("tool", [("ip", "route"), ("ip", "-o", "route"), ("ip", "route", "save"), ("route", "-n")])
def test_what_the_tools_print_today(tool: tuple[str, ...], tmp_path: Path) -> None:
    """The tools of this machine, run now, are still read: a new version with other words fails here first."""
    with built(FOLDER / "two-metrics") as space:
        table = tmp_path / "table"
        table.write_bytes(execute("ip", "netns", "exec", space, *tool).stdout)
        code, found = inside(space, "--table", str(table))
    assert (code, found["gateway"]) == (0, "10.0.2.254")


LISTENER = """
import socket, sys
server = socket.create_server((sys.argv[1], int(sys.argv[2])))
print("ready", flush=True)
sys.stdin.read()
"""


def test_probe_from_this_machine() -> None:
    """``--probe`` connects from here to every candidate, and the hint names the one that answers."""
    with namespace("guest") as guest, namespace("host") as host:
        execute("ip", "-n", guest, "link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns", host)
        for space, address in ((guest, "10.0.2.15/24"), (host, "10.0.2.2/24"), (host, "10.0.2.3/24")):
            execute("ip", "-n", space, "address", "add", address, "dev", "eth0")
            execute("ip", "-n", space, "link", "set", "eth0", "up")
        for gateway in ("10.0.2.2", "10.0.2.3"):
            execute("ip", "-n", guest, "route", "append", "default", "via", gateway, "dev", "eth0", "metric", "100")
        argv = ("ip", "netns", "exec", host, sys.executable, "-c", LISTENER, "10.0.2.3", "8123")
        with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as listener:
            assert listener.stdout is not None
            assert listener.stdout.readline() == b"ready\n"
            code, found = inside(guest, "--probe", "8123")
            listener.communicate(timeout=30)
    assert code == 6
    assert [(one["gateway"], one["answers"]) for one in found["candidates"]] == [
        ("10.0.2.2", False),
        ("10.0.2.3", True),
    ]
    assert found["hint"].startswith("vmproxy apply --gateway 10.0.2.3, ")
