"""Keys, servers and a way to connect, for every test of this directory."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import paramiko
import pytest

from tests.fake.relay import Faults, Relay
from tests.fake.server import FakeServer, Rules
from vmproxy import transports
from vmproxy.model import Target
from vmproxy.transports import Secrets, SshOptions


@dataclass(frozen=True)
class Keys:
    """Private key files; ``encrypted`` has the passphrase ``sesame``, ``certified`` a certificate beside it."""

    directory: Path

    def path(self, name: str) -> str:
        """``ed25519``, ``rsa``, ``ecdsa``, ``encrypted``, ``pem`` (encrypted, old format), ``other``, ``host…``."""
        return str(self.directory / name)

    def blob(self, name: str) -> bytes:
        """The public half as it travels."""
        return self.load(name).asbytes()

    def load(self, name: str) -> paramiko.PKey:
        """The private key."""
        return paramiko.PKey.from_path(self.path(name), b"sesame" if name in ("encrypted", "pem") else None)


@pytest.fixture(scope="session")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Keys:
    """Made by ssh-keygen, once."""
    directory = tmp_path_factory.mktemp("keys")
    kinds = {
        "ed25519": ("ed25519", ()),
        "rsa": ("rsa", ("-b", "2048")),
        "ecdsa": ("ecdsa", ("-b", "256")),
        "encrypted": ("ed25519", ()),
        "pem": ("rsa", ("-b", "2048", "-m", "PEM")),
        "other": ("ed25519", ()),
        "host_ed25519": ("ed25519", ()),
        "host_rsa": ("rsa", ("-b", "2048")),
        "host_new": ("ed25519", ()),
    }
    for name, (kind, more) in kinds.items():
        phrase = "sesame" if name in ("encrypted", "pem") else ""
        argv = ["ssh-keygen", "-q", "-t", kind, *more, "-N", phrase, "-C", name, "-f", str(directory / name)]
        subprocess.run(argv, check=True, timeout=60)
    return Keys(directory)


@pytest.fixture
def serve(keys: Keys) -> Iterator[Callable[..., FakeServer]]:
    """Start a fake server: ``serve(host=("host_ed25519",), **rules)``; the key ``ed25519`` is let in unless said."""
    running: list[FakeServer] = []

    def start(host: tuple[str, ...] = ("host_ed25519",), **rules: object) -> FakeServer:
        rules.setdefault("keys", frozenset({keys.blob("ed25519")}))
        server = FakeServer([keys.load(name) for name in host], Rules(**rules))  # type: ignore[arg-type]
        running.append(server)
        return server

    yield start
    for server in running:
        server.close()


@pytest.fixture
def relay() -> Iterator[Callable[..., Relay]]:
    """Put a relay with faults before a port: ``relay(port, cut_after=…)``."""
    running: list[Relay] = []

    def start(port: int, **faults: object) -> Relay:
        running.append(Relay(port, Faults(**faults)))  # type: ignore[arg-type]
        return running[-1]

    yield start
    for one in running:
        one.close()


class Silent:
    """A port whose clients are let connect, and hear nothing."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.settimeout(60.0)
        self.port: int = self._listener.getsockname()[1]

    def client(self) -> socket.socket:
        """The next one, once it has said who it is."""
        sock, _ = self._listener.accept()
        sock.settimeout(60.0)
        assert sock.recv(4).startswith(b"S")
        return sock

    def close(self) -> None:
        """End it."""
        self._listener.close()


@pytest.fixture
def silent() -> Iterator[Silent]:
    """A port that does not greet."""
    with contextlib.closing(Silent()) as port:
        yield port


@pytest.fixture
def known_hosts(tmp_path: Path) -> Path:
    """Where the test's known hosts are kept; not there yet."""
    return tmp_path / "state" / "known_hosts"


@dataclass(frozen=True)
class By:
    """The transport that a test goes by, and what it needs to be told to get there: a jump host, an ssh_config."""

    transport: str = "ssh"
    options: Mapping[str, object] = field(default_factory=dict)


@pytest.fixture
def by(request: pytest.FixtureRequest) -> By:
    """paramiko, directly, or the module's ``TRANSPORT``; a class of tests may say otherwise."""
    return By(getattr(request.module, "TRANSPORT", By.transport))


@pytest.fixture
def log_in(keys: Keys, known_hosts: Path, by: By) -> Iterator[Callable[..., Any]]:
    """Connect: ``log_in(port, identities=("ed25519",), target={…}, password="", passphrase="", **options)``."""
    running: list[Any] = []

    def start(
        port: int,
        *,
        identities: tuple[str, ...] = ("ed25519",),
        target: dict[str, object] | None = None,
        password: str = "",
        passphrase: str = "",
        options_identities: tuple[str, ...] = (),
        first: str = "",
        **options: object,
    ) -> Any:
        wanted: dict[str, object] = {
            "name": "vm",
            "provider": "test",
            "host": "127.0.0.1",
            "port": port,
            "user": "docker",
            "identities": tuple(keys.path(name) for name in identities),
            "only_identities": True,
            **(target or {}),
        }
        options.setdefault("identities", tuple(keys.path(name) for name in options_identities))
        options.setdefault("known_hosts", str(known_hosts))
        options.setdefault("connect_timeout_seconds", 60.0)
        options.setdefault("secrets", Secrets(password=password, passphrase=passphrase))
        options = {**by.options, **options}
        transport = transports.load(by.transport)
        connection = transport.connect(Target(**wanted), options=SshOptions(**options), first=first)  # type: ignore[arg-type]
        running.append(connection)
        return connection

    yield start
    for connection in running:
        connection.close()


def read_all(channel: object, *, timeout_seconds: float = 60.0) -> bytes:
    """Everything a command says on stdout."""
    data = b""
    while piece := channel.receive(timeout_seconds=timeout_seconds):  # type: ignore[attr-defined]
        data += piece
    return data


def comes(condition: Callable[[], bool]) -> bool:
    """Whether it comes true within a minute."""
    deadline = time.monotonic() + 60
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)
    return condition()
