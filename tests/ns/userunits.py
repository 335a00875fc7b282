"""``vmproxy cache install`` under a real user systemd: :mod:`tests.ns.test_cache_service` runs this in namespaces.

``python -m tests.ns.userunits DIR``: prints one JSON object of what was seen; DIR is empty and its path short.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

SECONDS = 60.0


def sh(*argv: str) -> subprocess.CompletedProcess[str]:
    """A program's end."""
    return subprocess.run(argv, capture_output=True, text=True, check=False, timeout=150)


def vmproxy(*words: str) -> subprocess.CompletedProcess[str]:
    """Run the program."""
    return sh(sys.executable, "-m", "vmproxy", *words)


def until(holds: Callable[[], Any]) -> Any:
    """Wait for something; what it gave, or its last word."""
    limit = time.monotonic() + SECONDS
    while not (found := holds()) and time.monotonic() < limit:
        time.sleep(0.1)
    return found


@contextlib.contextmanager
def manager(directory: Path) -> Iterator[None]:
    """A user manager that runs."""
    runtime = directory / "r"
    runtime.mkdir(mode=0o700)
    Path("/run/systemd/system").mkdir(parents=True)  # by which it knows that systemd is what runs here
    os.environ.update(XDG_RUNTIME_DIR=str(runtime), HOME=str(directory / "h"), XDG_CONFIG_HOME=str(directory / "c"))
    (directory / "h").mkdir()
    with subprocess.Popen(["/lib/systemd/systemd", "--user", "--log-target=console"], stderr=subprocess.DEVNULL) as run:
        words = ("systemctl", "--user", "is-system-running")
        assert until(lambda: sh(*words).stdout.strip() in ("running", "degraded")), sh(*words)
        try:
            yield
        finally:
            run.terminate()


def status(directory: Path, name: str = "d") -> dict[str, Any]:
    """``cache status --json``."""
    found: dict[str, Any] = json.loads(vmproxy("cache", "status", "--dir", str(directory / name), "--json").stdout)
    return dict(found["cache"])


def show(name: str) -> str:
    """A property of the unit."""
    return sh("systemctl", "--user", "show", "--value", "-p", name, "vmproxy-cache.service").stdout.strip()


def tell(directory: Path) -> dict[str, Any]:
    """The story, step by step."""
    where = ("--dir", str(directory / "d"))
    seen: dict[str, Any] = {}

    def step(name: str, done: subprocess.CompletedProcess[str], **more: Any) -> None:
        seen[name] = {"code": done.returncode, "out": done.stdout + done.stderr, **more}

    taken = socket.create_server(("127.0.0.1", 4001))
    done = vmproxy("cache", "install", *where, "--port", "4001")
    step("taken", done, files=sorted(str(p) for p in (directory / "c").rglob("*")), active=show("ActiveState"))
    taken.close()
    done = vmproxy("cache", "install", *where, "--port", "4002", "--size", "1G")
    unit = str(directory / "c/systemd/user/vmproxy-cache.service")
    checked = sh("systemd-analyze", "verify", "--user", unit)
    step("installed", done, active=show("ActiveState"), enabled=show("UnitFileState"), pid=int(show("MainPID")))
    seen["installed"] |= {"status": status(directory), "verify": checked.stdout + checked.stderr}
    again = vmproxy("cache", "install", *where, "--port", "4002", "--size", "1G", "--json")
    step("again", again)
    first = int(show("MainPID"))
    os.kill(first, 9)
    new = until(lambda: (pid := int(show("MainPID"))) not in (0, first) and status(directory).get("pid") == pid)
    seen["killed"] = {"restarted": bool(new)}
    done = vmproxy("cache", "stop", *where)
    step("stopped", done, active=until(lambda: (s := show("ActiveState")) == "inactive" and s), result=show("Result"))
    step("started", vmproxy("cache", "start", *where), active=show("ActiveState"))
    step("moved", vmproxy("cache", "install", *where, "--port", "4003"), listen=status(directory)["listen"])
    done = vmproxy("cache", "install", "--dir", str(directory / "e"), "--port", "4003")
    step("elsewhere", done, running=[status(directory, name)["running"] for name in "de"])
    begun = vmproxy("cache", "start", "--dir", str(directory / "f"), "--port", "4004", "--allow", "10.9.0.0/16")
    told = status(directory, "f")["options"]
    done = vmproxy("cache", "install", "--dir", str(directory / "f"))
    step("background", done, begun=begun.returncode, options=told, active=show("ActiveState"))
    hint = done.stderr.splitlines()[-1].removeprefix("hint: ")
    both = [vmproxy(*shlex.split(words)[1:]) for words in hint.split(" && ")]
    now = status(directory, "f")
    seen["kept"] = {"codes": [run.returncode for run in both], "options": now["options"]}
    seen["kept"]["unit"] = now["pid"] == int(show("MainPID"))
    done = vmproxy("cache", "uninstall")
    left = sorted(str(p) for p in (directory / "c").rglob("*"))
    step("gone", done, active=show("ActiveState"), left=left, running=status(directory, "f")["running"])
    return seen


def main() -> None:
    """Stand in a control group of our own, and begin."""
    directory = Path(sys.argv[1])
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    with manager(directory):
        json.dump(tell(directory), sys.stdout)


if __name__ == "__main__":
    main()
