"""The QEMU VM for the tests: one at a time on a machine, so every file of tests has one and ends it."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.lab import default_cache, qemu
from tests.lab.proxy import LabProxy
from tests.lab.qemu import QemuVM

_COMMAND_SECONDS = 600
_TAIL_BYTES = 2000
# What a kernel says when one of its processors does nothing any more.
_HUNG = re.compile(rb".*(?:soft lockup|rcu: INFO: .* stall).*")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Whatever fails shows what the VM of that time has said of itself: scripts/test looks there for one that hung."""
    report = yield
    if report.failed and qemu.boots:
        path, start = qemu.boots[-1]
        said = path.read_bytes()[start:] if path.exists() else b""
        lines = [*_HUNG.findall(said)[-5:], b"...", said[-_TAIL_BYTES:]]
        report.sections.append(("the guest's console", b"\n".join(lines).decode("utf-8", "backslashreplace")))
    return report


@pytest.fixture(scope="module")
def vm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[QemuVM]:
    """A VM with Docker and the image ``busybox``, restored from a snapshot, its disk its own."""
    with QemuVM(tmp_path_factory.mktemp("vm"), cache=default_cache()) as machine:
        machine.start(snapshot=True)
        machine.import_image()
        yield machine


@pytest.fixture(scope="module")
def host_proxy() -> Iterator[LabProxy]:
    """A proxy on this machine's 127.0.0.1, which the VM reaches at 10.0.2.2."""
    with LabProxy(socket.create_server(("127.0.0.1", 0), backlog=64)) as proxy:
        yield proxy


@dataclass(frozen=True, kw_only=True)
class Ran:
    """How one run of the command ended."""

    status: int
    stdout: str
    stderr: str


class Command:
    """``vmproxy`` as a user runs it, for ``boot2docker`` (found by its profile) or a VM of docker-machine's."""

    def __init__(self, vm: QemuVM, proxy: LabProxy, home: Path, name: str = "boot2docker") -> None:
        self.vm, self.proxy, self.home, self.name = vm, proxy, home, name

    def __call__(self, command: str, *words: str, status: int | None = 0) -> Ran:
        """Run ``vmproxy COMMAND --vm NAME WORDS``; it must end with ``status``, unless that is None."""
        process = self.start(command, *words)
        try:
            stdout, stderr = process.communicate(timeout=_COMMAND_SECONDS)
        except BaseException:
            process.kill()
            process.communicate()
            raise
        ran = Ran(status=process.returncode, stdout=stdout, stderr=stderr)
        assert status is None or ran.status == status, ran
        return ran

    def start(self, command: str, *words: str) -> subprocess.Popen[str]:
        """Start it and do not wait."""
        found = self._profile() if self.name == "boot2docker" else self._machine()
        environment = {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(Path(__file__).resolve().parents[2]),
            **found,
            **{name: str(self.home) for name in ("HOME", "XDG_CONFIG_HOME", "XDG_CACHE_HOME", "XDG_DATA_HOME")},
        }
        return subprocess.Popen(
            [sys.executable, "-m", "vmproxy", *self._words(command, words)],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def _words(self, command: str, words: tuple[str, ...]) -> list[str]:
        """A command on this VM."""
        return [command, "--vm", self.name, *words]

    def _profile(self) -> dict[str, str]:
        """The environment with which boot2docker's own profile is found."""
        profile = self.home / "profile"
        profile.write_text(f'SSHPort = {self.vm.port}\nSSHKey = "{self.vm.key}"\n', encoding="utf-8")
        return {"BOOT2DOCKER_PROFILE": str(profile)}

    def _machine(self) -> dict[str, str]:
        """The environment with which docker-machine's record of the VM is found, as of a VirtualBox VM."""
        record = self.home / "machines" / self.name / "config.json"
        record.parent.mkdir(parents=True, exist_ok=True)
        driver = {
            "IPAddress": "192.168.99.100", "MachineName": self.name, "SSHUser": "docker", "SSHPort": self.vm.port,
            "SSHKeyPath": str(self.vm.key), "StorePath": str(self.home),
        }  # fmt: skip
        config = {"ConfigVersion": 3, "Driver": driver, "DriverName": "virtualbox", "Name": self.name}
        record.write_text(json.dumps(config), encoding="utf-8")
        return {"MACHINE_STORAGE_PATH": str(self.home)}

    def apply(self, *words: str, status: int | None = 0) -> Ran:
        """``vmproxy apply`` with the host's proxy."""
        return self("apply", "--proxy", f"http://127.0.0.1:{self.proxy.port}", *words, status=status)


@pytest.fixture
def vmproxy(vm: QemuVM, host_proxy: LabProxy, tmp_path: Path) -> Command:
    """The command, for this file's VM and proxy."""
    host_proxy.forget()
    return Command(vm, host_proxy, tmp_path)
