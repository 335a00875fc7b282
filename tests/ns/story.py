"""What every test that tells a whole story needs: vmproxy as a user runs it, and what the VM looks like from outside.

::

    vmproxy = Vmproxy(vm, tmp_path)
    assert vmproxy.apply("--yes").code == 0
    assert vmproxy.json("status").json["exit"] == 0
    assert vmproxy.tell(converge.status).ok          # the same story in this process, without start-up

The process has a clean environment: HOME, XDG and temporary directories of its own, no agent, no proxy variables.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tests.lab.hostside import connect, listen
from tests.lab.nsvm import NamespaceVM
from tests.lab.proxy import LabProxy
from vmproxy import converge
from vmproxy.model import Report, Settings

ROOT = Path(__file__).resolve().parents[2]
DATA = "/var/lib/boot2docker"
PROFILE = f"{DATA}/profile"
BOOTLOCAL = f"{DATA}/bootlocal.sh"
SECONDS = 240.0
CONNECT_SECONDS = 60.0
"""What a run may take to connect: a machine that stalls for the product's 10 s is none of a test's business."""
GET = b"GET http://only-the-proxy-knows.test/ HTTP/1.1\r\nHost: only-the-proxy-knows.test\r\n\r\n"
"""A question that only the lab's proxy can answer (with 200)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ran:
    """How one run of vmproxy ended: exit ``code``, what it wrote on stdout and stderr, how long it took."""

    argv: tuple[str, ...]
    code: int
    out: str
    err: str
    seconds: float

    @functools.cached_property
    def json(self) -> Any:
        """The one JSON value on stdout."""
        return json.loads(self.out)

    @property
    def vm(self) -> Any:
        """With ``--json`` and one VM: its element of ``vms``."""
        (only,) = self.json["vms"]
        return only

    @property
    def all(self) -> str:
        """Both streams, for searching."""
        return self.out + self.err

    def __str__(self) -> str:
        return f"$ vmproxy {' '.join(self.argv)}\nexit {self.code} after {self.seconds:.1f} s\n{self.out}{self.err}"


class Vmproxy:
    """``python -m vmproxy`` for one VM, as its user runs it: ``directory`` is HOME and holds every XDG directory.

    Each command takes more words of the command line; ``environ`` adds variables. A run that ends otherwise than a
    test expects is best shown by ``assert ran.code == 0, ran``.
    """

    def __init__(self, machine: NamespaceVM, directory: Path, *, environ: Mapping[str, str] | None = None) -> None:
        self.machine, self.home = machine, directory
        self.target = f"ssh://docker@127.0.0.1:{machine.ssh_port}"
        self.vm_words = ("--vm", self.target, "--identity", str(machine.key))
        self._more = dict(environ or {})

    @property
    def environ(self) -> dict[str, str]:
        """The whole environment of each run."""
        return {
            "PATH": os.environ["PATH"],
            "HOME": str(self.home),
            "XDG_CONFIG_HOME": str(self.home / "config"),
            "XDG_STATE_HOME": str(self.home / "state"),
            "XDG_DATA_HOME": str(self.home / "data"),
            "XDG_CACHE_HOME": str(self.home / "cache"),
            "TMPDIR": str(self.home),
            "LC_ALL": "C.UTF-8",
            "PYTHONPATH": str(ROOT),
            "PYTHONDONTWRITEBYTECODE": "1",
            "VMPROXY_CONNECT_TIMEOUT": f"{CONNECT_SECONDS:g}",
            **self._more,
        }

    def run(self, *words: str, environ: Mapping[str, str] | None = None, seconds: float = SECONDS) -> Ran:
        """Any words, without ``--vm`` of their own accord."""
        started = time.monotonic()
        done = subprocess.run(
            self.argv(*words),
            env={**self.environ, **(environ or {})},
            cwd=self.home,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=seconds,
            check=False,
        )
        out, err = done.stdout.decode("utf-8"), done.stderr.decode("utf-8")
        return Ran(argv=words, code=done.returncode, out=out, err=err, seconds=time.monotonic() - started)

    def argv(self, *words: str) -> list[str]:
        """The words of a process of its own, for a test that starts it itself (``env=vmproxy.environ``)."""
        return [sys.executable, "-m", "vmproxy", *words]

    def command(self, name: str, *words: str, **options: Any) -> Ran:
        """A command on this VM."""
        return self.run(name, *self.vm_words, *words, **options)

    def apply(self, *words: str, **options: Any) -> Ran:
        """``vmproxy apply``."""
        return self.command("apply", *words, **options)

    def status(self, *words: str, **options: Any) -> Ran:
        """``vmproxy status``."""
        return self.command("status", *words, **options)

    def verify(self, *words: str, **options: Any) -> Ran:
        """``vmproxy verify``."""
        return self.command("verify", *words, **options)

    def remove(self, *words: str, **options: Any) -> Ran:
        """``vmproxy remove``."""
        return self.command("remove", *words, **options)

    def env(self, *words: str, **options: Any) -> Ran:
        """``vmproxy env``."""
        return self.command("env", *words, **options)

    def detect(self, *words: str, **options: Any) -> Ran:
        """``vmproxy detect-gateway``."""
        return self.command("detect-gateway", *words, **options)

    def json(self, name: str, *words: str, **options: Any) -> Ran:
        """A command on this VM with ``--json``; ``.json`` is the object, ``.vm`` the VM's part of it."""
        return self.command(name, "--json", *words, **options)

    # In this process: no start-up, and the Report itself.

    def settings(self, **more: Any) -> Settings:
        """What the stories of :mod:`vmproxy.converge` take, with this VM's key and a known_hosts file of this test."""
        base = Settings(
            identities=(str(self.machine.key),),
            known_hosts=str(self.home / "known_hosts"),
            connect_timeout_seconds=CONNECT_SECONDS,
        )
        given = frozenset(more) | base.given
        return dataclasses.replace(base, **more, given=more.get("given", given))

    def tell(self, story: Callable[..., Report], **settings: Any) -> Report:
        """``tell(converge.apply, yes=True)``: a story in this process. Raises VmproxyError as it does."""
        return story(self.target, self.settings(**settings))

    def converged(self) -> Report:
        """An apply in this process, which has to end well."""
        report = self.tell(converge.apply)
        assert report.ok, report
        return report


def host_proxy(machine: NamespaceVM, *, port: int = 8123, mode: str = "proxy", credentials: str = "") -> LabProxy:
    """A proxy on that VM's host, at its 127.0.0.1; a context manager. It stays there over the VM's resets."""
    network = machine.surroundings.host

    def dial(to: str, at: int) -> socket.socket:
        return connect(network, to, at, seconds=5.0)

    return LabProxy(listen(network, "127.0.0.1", port), mode=mode, credentials=credentials, dial=dial)


def reset(machine: NamespaceVM) -> None:
    """Boot the VM anew without our two files, without shims, rules and whatever else was in its memory."""
    for path in (PROFILE, BOOTLOCAL):
        machine.path(path).unlink(missing_ok=True)
    machine.restart_boot()


# ---- what the VM looks like -----------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, kw_only=True)
class Held:
    """One file of the VM: bytes, mode (octal), owner, time of the last change in nanoseconds."""

    content: bytes
    mode: str
    owner: tuple[int, int]
    mtime: int = dataclasses.field(compare=False)


def held(machine: NamespaceVM, path: str) -> Held | None:
    """A file as it is now, None where there is none."""
    file = machine.path(path)
    try:
        seen = file.lstat()
        content = file.read_bytes()
    except FileNotFoundError:
        if file.is_symlink():
            raise
        return None
    owner = (seen.st_uid, seen.st_gid)
    return Held(content=content, mode=f"{seen.st_mode & 0o7777:04o}", owner=owner, mtime=seen.st_mtime_ns)


def files(machine: NamespaceVM) -> dict[str, Held | None]:
    """The two files that vmproxy may write on boot2docker, and whatever stands beside them by name only."""
    found: dict[str, Held | None] = {path: held(machine, path) for path in (PROFILE, BOOTLOCAL)}
    found.update({f"{DATA}/{name}": None for name in sorted(os.listdir(machine.path(DATA)))} | found)
    return found


def dump(machine: NamespaceVM, variant: str = "") -> list[str]:
    """``iptables-save`` (or that variant's) without comments and counters: what may be compared byte for byte."""
    program = f"iptables-{variant}-save" if variant else "iptables-save"
    text = machine.run([program], check=False).stdout.decode()
    return [re.sub(r" \[\d+:\d+\]$", "", line) for line in text.splitlines() if not line.startswith("#")]


def ours(lines: list[str]) -> list[str]:
    """The lines of a dump that are vmproxy's."""
    return [line for line in lines if "VMPROXY" in line or '"vmproxy' in line or "--comment vmproxy" in line]


def foreign(lines: list[str]) -> list[str]:
    """The lines of a dump that are not vmproxy's, in order."""
    mine = set(ours(lines))
    return [line for line in lines if line not in mine]


def daemon_pid(machine: NamespaceVM) -> int:
    """The running dockerd's process id inside the VM, 0 where none runs."""
    try:
        pid = int(machine.path("/run/docker.pid").read_text())
        comm = machine.path(f"/proc/{pid}/comm").read_text().strip()
    except (FileNotFoundError, ProcessLookupError, ValueError):
        return 0
    return pid if comm == "dockerd" else 0


def daemon_environment(machine: NamespaceVM) -> dict[str, str]:
    """The environment that the running dockerd was started with."""
    text = machine.path(f"/proc/{daemon_pid(machine)}/environ").read_bytes().decode("utf-8", "surrogateescape")
    return dict(pair.split("=", 1) for pair in text.split("\0") if pair)


def shim(machine: NamespaceVM, name: str, script: str) -> str:
    """Put a program before the real ones: ``script`` is the body of a sh script; its path, to be unlinked again."""
    path = f"/usr/local/sbin/{name}"
    machine.path(path).parent.mkdir(parents=True, exist_ok=True)
    machine.path(path).write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
    machine.path(path).chmod(0o755)
    return path


def until(holds: Callable[[], bool], what: str, seconds: float = 60.0) -> None:
    """Wait until something holds. Raises AssertionError where it does not come in time."""
    limit = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < limit, f"{what}: not within {seconds:.0f} s"
        time.sleep(0.05)


def settled(machine: NamespaceVM) -> None:
    """After a boot: until ``bootlocal.sh``, which runs beside Docker's start, has ended, and who starts it."""
    running = "ps -ef | grep -q '[b]ootlocal.sh\\|[b]ootsync.sh'"
    until(lambda: machine.run(running, check=False).returncode != 0, "bootlocal.sh ends")


def stop(process: subprocess.Popen[bytes]) -> None:
    """End a process that a test started."""
    if process.poll() is None:
        process.send_signal(signal.SIGKILL)
    process.wait(timeout=60)
