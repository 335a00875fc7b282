"""The transport's promises on the fake server and on OpenSSH's sshd."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.fake.conftest import By, Keys, read_all
from tests.fake.contract import BurstContract, ChannelContract, Contract
from tests.fake.realservers import sshd
from vmproxy.model import Target
from vmproxy.transports import SshOptions
from vmproxy.transports.ssh import connect


class TestFake(BurstContract):
    """The fake server keeps the same promises as the real ones, so what is tested on it alone means something."""

    @pytest.fixture
    def place(self, serve: Callable[..., Any]) -> tuple[int, str]:
        """A fake server."""
        return serve().port, "docker"


class TestOpenSsh(BurstContract):
    """sshd, with the key kinds and the ssh_config that only a real server shows."""

    quick_commands = 15

    @pytest.fixture(scope="class")
    @classmethod
    def place(cls, keys: Keys, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[int, str]]:
        """One server for all."""
        directory = tmp_path_factory.mktemp("sshd")
        authorized = directory / "authorized"
        lines = [Path(keys.path(name) + ".pub").read_text() for name in ("ed25519", "rsa", "ecdsa", "encrypted")]
        lines.append("cert-authority " + Path(keys.path("other") + ".pub").read_text())
        authorized.write_text("".join(lines))
        with sshd(directory, authorized=authorized, host_key=Path(keys.path("host_ed25519"))) as place:
            yield place

    @pytest.mark.parametrize("name", ["ed25519", "rsa", "ecdsa", "encrypted"])
    def test_key_kinds(self, log_in: Callable[..., Any], vm: dict[str, Any], name: str) -> None:
        """Every kind of key file logs in on a real server."""
        connection = log_in(vm["port"], identities=(name,), target=vm, passphrase="sesame")
        assert read_all(connection.start("echo in")) == b"in\n"

    def test_certificate(self, log_in: Callable[..., Any], vm: dict[str, Any], keys: Keys, tmp_path: Path) -> None:
        """A key that the server knows only by its certificate logs in with the file beside it."""
        key = tmp_path / "certified"
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True, timeout=60)
        sign = ["ssh-keygen", "-q", "-s", keys.path("other"), "-I", "me", "-n", vm["user"], f"{key}.pub"]
        subprocess.run(sign, check=True, timeout=60)
        log_in(vm["port"], target={**vm, "identities": (str(key),)})

    def test_alias_of_ssh_config(
        self, vm: dict[str, Any], keys: Keys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, known_hosts: Path
    ) -> None:
        """ssh:ALIAS with everything in an included file of ~/.ssh, key name with tokens."""
        home = tmp_path / "home"
        (home / ".ssh" / "conf.d").mkdir(parents=True)
        monkeypatch.setenv("HOME", str(home))
        shutil.copy(keys.path("ed25519"), home / ".ssh" / f"{vm['user']}-dev")
        (home / ".ssh" / "config").write_text("Include conf.d/*\n")
        (home / ".ssh" / "conf.d" / "dev").write_text(
            f"Host dev\n  HostName 127.0.0.1\n  Port {vm['port']}\n  User {vm['user']}\n  IdentityFile ~/.ssh/%r-%n\n"
        )
        connection = connect(
            Target(name="ssh:dev", provider="ssh", host="dev", port=0),
            options=SshOptions(known_hosts=str(known_hosts)),
        )
        assert read_all(connection.start("echo in")) == b"in\n"
        connection.close()

    def test_strongest_key_exchange(self, log_in: Callable[..., Any], vm: dict[str, Any]) -> None:
        """No weaker key exchange than the server offers is forced, and no SHA-1 or CBC is left."""
        transport = log_in(vm["port"], target=vm)._transport
        assert "sha1" not in transport.local_mac + transport.remote_mac
        assert "cbc" not in transport.local_cipher + transport.remote_cipher
        assert transport.preferred_kex == type(transport)._preferred_kex


class ByJump:
    """The way leads through another sshd, which has a key and an ssh_config of its own."""

    transport = "ssh"
    quick_commands = 5

    @pytest.fixture(scope="class")
    @classmethod
    def jump_host(cls, keys: Keys, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
        """An ssh_config that knows the jump host ``door``."""
        directory = tmp_path_factory.mktemp("jump")
        host_key, authorized = Path(keys.path("host_rsa")), Path(keys.path("ecdsa") + ".pub")
        with sshd(directory, authorized=authorized, host_key=host_key, more=("PermitOpen any",)) as (port, user):
            config = directory / "config"
            config.write_text(
                f"Host door\n HostName 127.0.0.1\n Port {port}\n User {user}\n"
                f" IdentityFile {keys.path('ecdsa')}\n IdentitiesOnly yes\n"
            )
            yield config

    @pytest.fixture
    def by(self, jump_host: Path) -> By:
        """Through ``door``."""
        return By(self.transport, {"jump": "door", "ssh_config": str(jump_host)})


class TestJump(ByJump, BurstContract):
    """paramiko through a jump host: the same promises, the burst too."""

    place = TestOpenSsh.place


class TestProgram(Contract):
    """The host's ssh program, on sshd: the same promises."""

    quick_commands = 10
    place = TestOpenSsh.place

    @pytest.fixture
    def by(self) -> By:
        """ssh."""
        return By("openssh")


class TestProgramJump(ByJump, Contract):
    """ssh with a jump host."""

    transport = "openssh"
    place = TestOpenSsh.place


class TestLocal(ChannelContract):
    """This machine: a channel is a channel."""

    quick_commands = 20

    @pytest.fixture
    def by(self) -> By:
        """Without a network."""
        return By("local")

    @pytest.fixture
    def place(self) -> tuple[int, str]:
        """Nowhere else."""
        return 0, "nobody"
