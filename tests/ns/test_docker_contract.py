"""``docker:`` keeps the promises of every way in, on a real engine: P12, and the end of input that a VM watches for."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.fake.conftest import By, Keys, by, keys, known_hosts, log_in, read_all  # noqa: F401 - fixtures
from tests.fake.contract import ChannelContract
from tests.lab import default_cache
from tests.lab.nsvm import NamespaceVM
from tests.lab.tree import build_tree


class TestDocker(ChannelContract):
    """A container for each command; nsenter into the VM's namespaces."""

    quick_commands = 5

    @pytest.fixture
    def by(self) -> By:
        """The docker client."""
        return By("docker")

    @pytest.fixture(scope="class")
    @classmethod
    def machine(cls) -> Iterator[NamespaceVM]:
        """One VM for all, whose engine makes privileged containers here: Debian 13's."""
        with NamespaceVM(release="trixie") as machine:
            yield machine
            left = "docker ps -aq; docker images -aq; ls -d /run/vmproxy-way.* 2>/dev/null"
            assert machine.run(left, check=False).stdout == b""

    @pytest.fixture
    def vm(self, machine: NamespaceVM, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
        """Its engine, as the client on this host reaches it."""
        client = build_tree(default_cache()) / "usr/bin"
        monkeypatch.setenv("PATH", f"{client}:{os.environ['PATH']}")
        monkeypatch.setenv("DOCKER_HOST", f"unix://{machine.path('/run/docker.sock')}")
        return {"port": 0}

    def test_end_of_input_is_seen_when_we_go(
        self, log_in: Callable[..., Any], vm: dict[str, Any], machine: NamespaceVM  # noqa: F811
    ) -> None:
        """Closing the connection ends the command's stdin: what a script in the VM watches for."""
        connection = log_in(vm["port"], target=vm)
        channel = connection.start("trap '' HUP; echo on; cat; echo gone > /run/seen.tmp; mv /run/seen.tmp /run/seen")
        assert channel.receive(timeout_seconds=60) == b"on\n"
        connection.close()
        watch = log_in(vm["port"], target=vm).start("until [ -e /run/seen ]; do sleep 0.05; done; cat /run/seen")
        assert read_all(watch) == b"gone\n"
        machine.path("/run/seen").unlink()
