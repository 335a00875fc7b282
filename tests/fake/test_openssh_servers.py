"""Servers that want what the library has not: SHA-1 alone, an ssh_config with a Match exec, a CA for host keys."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.fake.conftest import Keys, read_all
from tests.fake.realservers import sshd
from tests.fake.test_openssh import short  # noqa: F401 - a fixture
from vmproxy.errors import NotPermitted, Unreachable, Untrusted
from vmproxy.transports._known_hosts import fingerprint

Start = Callable[..., Any]
OLD = ("HostKeyAlgorithms ssh-rsa", "PubkeyAcceptedAlgorithms ssh-rsa")
TRANSPORT = "openssh"


@pytest.fixture(scope="module")
def old(keys: Keys, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[int, str]]:
    """An sshd that knows RSA with SHA-1 and nothing else, as one before OpenSSH 7.2 with an RSA key."""
    directory = tmp_path_factory.mktemp("old")
    authorized = Path(keys.path("rsa") + ".pub")
    with sshd(directory, authorized=authorized, host_key=Path(keys.path("host_rsa")), more=OLD) as place:
        yield place


@pytest.fixture(scope="module")
def signed(keys: Keys, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[int, str, Path]]:
    """An sshd that takes keys only by a certificate, and shows one of its own; the CA of both is ``other``."""
    directory = tmp_path_factory.mktemp("signed")
    host = directory / "host"
    shutil.copy(keys.path("host_ed25519"), host)
    shutil.copy(keys.path("host_ed25519") + ".pub", f"{host}.pub")
    sign = ["ssh-keygen", "-q", "-s", keys.path("other")]
    subprocess.run([*sign, "-I", "vm", "-h", "-n", "vm.test", f"{host}.pub"], check=True, timeout=60)
    nobody = directory / "nobody"
    nobody.touch()
    more = (f"TrustedUserCAKeys {keys.path('other')}.pub", f"HostCertificate {host}-cert.pub")
    with sshd(directory, authorized=nobody, host_key=host, more=more) as (port, user):
        key = directory / "mine"
        subprocess.run(["ssh-keygen", "-q", "-t", "ecdsa", "-N", "", "-f", str(key)], check=True, timeout=60)
        subprocess.run([*sign, "-I", "me", "-n", user, f"{key}.pub"], check=True, timeout=60)
        yield port, user, key


def test_sha1_only_with_the_library(log_in: Start, old: tuple[int, str]) -> None:
    """paramiko cannot talk to it, and says what can."""
    from vmproxy import transports
    from vmproxy.model import Target
    from vmproxy.transports import SshOptions

    target = Target(name="vm", provider="x", host="127.0.0.1", port=old[0], user=old[1])
    with pytest.raises(Unreachable, match="no common algorithm") as caught:
        transports.load("ssh").connect(target, options=SshOptions())
    assert "--ssh openssh" in caught.value.hint


def test_sha1_only(log_in: Start, old: tuple[int, str], keys: Keys) -> None:
    """ssh gets in after all, at a second try with SHA-1, which is said."""
    said: list[str] = []
    connection = log_in(old[0], identities=("rsa",), target={"user": old[1]}, notify=said.append)
    assert read_all(connection.start("echo in")) == b"in\n"
    assert [line for line in said if "SHA-1" in line]


def test_sha1_only_with_a_pin(log_in: Start, old: tuple[int, str], keys: Keys) -> None:
    """--host-key with that server's key gets in as well; with another it is exit 4."""
    words: dict[str, Any] = {"identities": ("rsa",), "target": {"user": old[1]}}
    connection = log_in(old[0], **words, host_key=fingerprint(keys.blob("host_rsa")))
    assert read_all(connection.start("echo in")) == b"in\n"
    with pytest.raises(Untrusted, match="wanted is SHA256:AAAA"):
        log_in(old[0], **words, host_key="SHA256:" + "A" * 43)


def test_sha1_only_against_the_users_word(log_in: Start, old: tuple[int, str], keys: Keys, tmp_path: Path) -> None:
    """Where ssh_config names the kinds of host keys, none is added: exit 4 with the word for ssh_config."""
    config = tmp_path / "config"
    config.write_text(
        f"Host vm\n HostName 127.0.0.1\n Port {old[0]}\n User {old[1]}\n HostKeyAlgorithms ssh-ed25519,rsa-sha2-512\n"
    )
    vm = {"provider": "ssh", "host": "vm", "port": 0, "user": ""}
    with pytest.raises(Unreachable, match=r"no matching host key type found.*ssh-rsa") as caught:
        log_in(0, identities=("rsa",), target=vm, ssh_config=str(config))
    assert "HostKeyAlgorithms" in caught.value.hint


def test_certificates_and_included_files(
    log_in: Start, signed: tuple[int, str, Path], tmp_path: Path, known_hosts: Path, keys: Keys
) -> None:
    """Everything in a file that ssh_config includes: the key's certificate, the CA of the host key, known_hosts files
    with a blank in their names. No host key is kept: the CA vouches for it."""
    port, user, key = signed
    theirs = tmp_path / "known hosts"
    theirs.write_text(f"@cert-authority vm.test {Path(keys.path('other') + '.pub').read_text()}")
    (tmp_path / "more.conf").write_text(
        f"Match originalhost dev exec true\n HostName 127.0.0.1\n Port {port}\n User {user}\n HostKeyAlias vm.test\n"
        f' IdentityFile {key}\n IdentitiesOnly yes\n UserKnownHostsFile "{theirs}"\n'
    )
    config = tmp_path / "config"
    config.write_text(f"Include {tmp_path}/more.conf\n")
    dev = {"provider": "ssh", "host": "dev", "port": 0, "user": "", "identities": (), "only_identities": False}
    said: list[str] = []
    connection = log_in(0, target=dev, ssh_config=str(config), notify=said.append)
    assert read_all(connection.start("echo in")) == b"in\n"
    assert not known_hosts.exists()
    assert said == []
    # Without its certificate the key is none: the server knows the CA alone.
    (key.parent / "mine-cert.pub").rename(key.parent / "away")
    with pytest.raises(NotPermitted, match=r"mine \(refused\)"):
        log_in(0, target=dev, ssh_config=str(config))
    (key.parent / "away").rename(key.parent / "mine-cert.pub")
