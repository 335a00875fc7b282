"""The transport's promises on dropbear, and passwords on it. Root: its accounts need a mount namespace."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.fake.conftest import By, Keys, by, keys, known_hosts, log_in, read_all  # noqa: F401 - fixtures
from tests.fake.contract import BurstContract, Contract
from tests.fake.realservers import dropbear, open_directory
from vmproxy.errors import NotPermitted


class TestDropbear(BurstContract):
    """dropbear: the ssh server of boot2docker's early images and of small VMs."""

    @pytest.fixture(scope="class")
    @classmethod
    def place(cls, keys: Keys) -> Iterator[tuple[int, str]]:  # noqa: F811
        """One server for all."""
        assert os.geteuid() == 0, "this test needs root"
        done = subprocess.run(
            ["openssl", "passwd", "-6", "tcuser"], check=True, capture_output=True, text=True, timeout=60
        )
        authorized = Path(keys.path("ed25519") + ".pub")
        hashed = done.stdout.strip()
        with (
            open_directory(0o755) as directory,
            dropbear(directory, authorized=authorized, password_hash=hashed) as place,
        ):
            yield place

    def test_a_server_that_is_stopped_while_a_command_ends(
        self, log_in: Callable[..., Any], vm: dict[str, Any]  # noqa: F811
    ) -> None:
        """The next command waits for the end of the last one, also where the machine stalls just then: dropbear would
        close its channel, and the connection with it."""
        connection = log_in(vm["port"], target=vm)
        last = connection.start("echo $PPID; exec >&- 2>&-; read x")
        server = int(last.receive(timeout_seconds=60))
        assert read_all(last) == b""
        os.kill(server, signal.SIGSTOP)
        timer = threading.Timer(3.0, os.kill, (server, signal.SIGCONT))
        timer.start()
        try:
            last.end_input()
            assert read_all(connection.start("echo next")) == b"next\n"
        finally:
            timer.join()

    def test_password(self, log_in: Callable[..., Any], vm: dict[str, Any]) -> None:  # noqa: F811
        """The kind's usual password logs in after a key that is not let in."""
        connection = log_in(vm["port"], identities=("other",), target={**vm, "passwords": ("tcuser",)})
        assert read_all(connection.start("id -un")) == b"docker\n"

    def test_wrong_password(self, log_in: Callable[..., Any], vm: dict[str, Any]) -> None:  # noqa: F811
        """A wrong password is exit 5, its text nowhere."""
        with pytest.raises(NotPermitted, match=r"VMPROXY_SSH_PASSWORD \(refused\)") as caught:
            log_in(vm["port"], identities=(), target=vm, password="hunter2")
        assert "hunter2" not in str(caught.value)


class TestDropbearByProgram(Contract):
    """The ssh program of this host, on dropbear."""

    quick_commands = 30
    place = TestDropbear.place

    @pytest.fixture
    def by(self) -> By:
        """ssh."""
        return By("openssh")
