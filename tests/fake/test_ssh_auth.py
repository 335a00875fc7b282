"""Logging in over SSH: which keys and passwords go to whom, in which order, and what is said when none fits."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import paramiko
import pytest

from tests.fake.conftest import Keys, read_all
from tests.fake.realservers import agent_listens
from vmproxy.errors import NotPermitted, Unreachable, UsageError, VmproxyError
from vmproxy.transports import Secrets, SshOptions, _agent, _auth
from vmproxy.transports._keyfiles import BadKeyError, load_key
from vmproxy.transports._tcp import Line


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home of the test's own, with an empty ~/.ssh."""
    (tmp_path / "home" / ".ssh").mkdir(parents=True)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def agent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """A real ssh-agent of the test's own; call it with a key file to add one."""
    socket_path = tmp_path / "agent.sock"
    process = subprocess.Popen(["ssh-agent", "-D", "-a", str(socket_path)], stdout=subprocess.DEVNULL)
    monkeypatch.setenv("SSH_AUTH_SOCK", str(socket_path))

    def add(path: str) -> None:
        agent_listens(socket_path)
        subprocess.run(["ssh-add", "-q", path], check=True, stdin=subprocess.DEVNULL, capture_output=True, timeout=60)

    yield add
    process.terminate()
    process.wait(60)


@pytest.mark.parametrize("name", ["ed25519", "rsa", "ecdsa"])
def test_key_kinds(log_in: Callable[..., Any], serve: Callable[..., Any], keys: Keys, name: str) -> None:
    """ed25519, RSA and ECDSA key files log in, with one authentication request."""
    server = serve(keys=frozenset({keys.blob(name)}))
    log_in(server.port, identities=(name,))
    assert server.seen == ["auth publickey good"]
    assert server.packets.count("userauth-request") == 1


@pytest.mark.parametrize("name", ["encrypted", "pem"])
def test_encrypted_key_with_the_passphrase_of_the_environment(
    log_in: Callable[..., Any], serve: Callable[..., Any], keys: Keys, name: str
) -> None:
    """New and old encrypted files open with VMPROXY_SSH_PASSPHRASE."""
    server = serve(keys=frozenset({keys.blob(name)}))
    log_in(server.port, identities=(name,), passphrase="sesame")
    assert server.seen == ["auth publickey good"]


def test_encrypted_key_asks_on_a_terminal(log_in: Callable[..., Any], serve: Callable[..., Any], keys: Keys) -> None:
    """The passphrase is asked for by file name, again after a wrong answer, and the agent of another key is not."""
    server = serve(keys=frozenset({keys.blob("encrypted")}))
    answers = iter(["wrong", "sesame"])
    asked: list[str] = []

    def ask(question: str) -> str:
        asked.append(question)
        return next(answers)

    log_in(server.port, identities=("encrypted",), ask=ask)
    assert asked == [f"Passphrase for {keys.path('encrypted')}: "] * 2
    assert server.seen == ["auth publickey good"]


@pytest.mark.parametrize(
    ("name", "passphrase", "story"),
    [
        ("encrypted", "", "needs a passphrase"),
        ("encrypted", "wrong", "wrong passphrase"),
        ("pem", "", "needs a passphrase"),
    ],
)
def test_f05_passphrase_without_a_terminal(
    log_in: Callable[..., Any], serve: Callable[..., Any], keys: Keys, name: str, passphrase: str, story: str
) -> None:
    """No terminal: no prompt, no hang; exit 5 says which key needs a passphrase, never the passphrase."""
    server = serve(keys=frozenset({keys.blob(name)}))
    with pytest.raises(NotPermitted) as caught:
        log_in(server.port, identities=(name,), passphrase=passphrase)
    assert caught.value.exit == 5
    assert f"{keys.path(name)} ({story})" in str(caught.value)
    assert "wrong" not in str(caught.value).replace("wrong passphrase", "")
    assert "VMPROXY_SSH_PASSPHRASE" in caught.value.hint
    assert "auth publickey bad" not in server.seen


def test_f05_refused_key_lists_what_was_tried(
    log_in: Callable[..., Any], serve: Callable[..., Any], keys: Keys
) -> None:
    """Exit 5 names each key that was tried and what the VM would take."""
    server = serve(passwords={"docker": "x"})
    with pytest.raises(NotPermitted) as caught:
        log_in(server.port, identities=("other", "rsa"))
    text = str(caught.value)
    assert f"key {keys.path('other')} (refused)" in text
    assert f"key {keys.path('rsa')} (refused)" in text
    assert "the VM takes publickey, password" in text
    assert caught.value.where == f"docker@127.0.0.1:{server.port}"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"nonsense",
        b"-----BEGIN OPENSSH PRIVATE KEY-----\nAAAA\n-----END OPENSSH PRIVATE KEY-----\n",
        b"\xff" * 100,
    ],
)
def test_f05_a_file_that_is_no_key(
    log_in: Callable[..., Any], serve: Callable[..., Any], tmp_path: Path, content: bytes
) -> None:
    """A damaged or foreign file is named; it is no crash and nothing is sent."""
    path = tmp_path / "odd"
    path.write_bytes(content)
    server = serve()
    with pytest.raises(NotPermitted, match="odd \\(not a key file\\)"):
        log_in(server.port, target={"identities": (str(path),)})
    assert "auth publickey bad" not in server.seen


def test_f05_missing_and_odd_key_files(log_in: Callable[..., Any], serve: Callable[..., Any], tmp_path: Path) -> None:
    """A key file that is not there, or is a fifo, is named and not waited for."""
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(NotPermitted, match=r"gone \(no such key file\).*fifo \(no such key file\)"):
        log_in(serve().port, target={"identities": (str(tmp_path / "gone"), str(tmp_path / "fifo"))})


def test_user_identities_come_first(log_in: Callable[..., Any], serve: Callable[..., Any], keys: Keys) -> None:
    """-i goes before the VM's own keys, so a right one costs no wrong attempt."""
    server = serve()
    log_in(server.port, identities=("other",), options_identities=("ed25519",))
    assert server.seen == ["auth publickey good"]


def test_user_identity_that_is_not_there(log_in: Callable[..., Any], serve: Callable[..., Any], tmp_path: Path) -> None:
    """-i with a file that is not there is exit 2 before anything is connected."""
    server = serve()
    with pytest.raises(UsageError, match="no such key file"):
        log_in(server.port, options_identities=(str(tmp_path / "gone"),))
    assert server.connections == 0


def test_certificate_beside_the_key(
    log_in: Callable[..., Any], serve: Callable[..., Any], keys: Keys, tmp_path: Path
) -> None:
    """A key with NAME-cert.pub beside it shows the certificate (the key itself is what the fake server knows)."""
    key = tmp_path / "certified"
    shutil.copy(keys.path("ed25519"), key)
    shutil.copy(keys.path("ed25519") + ".pub", f"{key}.pub")
    argv = ["ssh-keygen", "-q", "-s", keys.path("other"), "-I", "me", "-n", "docker", f"{key}.pub"]
    subprocess.run(argv, check=True, timeout=60)
    from vmproxy.transports._keyfiles import load_key

    blob = load_key(key).public_blob
    assert blob is not None
    assert blob.key_type == "ssh-ed25519-cert-v01@openssh.com"


def test_agent_is_used_where_it_may(
    log_in: Callable[..., Any], serve: Callable[..., Any], keys: Keys, agent: Callable[[str], None]
) -> None:
    """A key that only the agent has logs in; the agent is never forwarded."""
    agent(keys.path("ed25519"))
    server = serve()
    connection = log_in(server.port, target={"only_identities": False, "identities": ()})
    assert read_all(connection.start("echo in")) == b"in\n"
    assert server.seen == ["auth publickey good", "open session", "exec"]


def test_t02_agent_is_kept_out_by_only_identities(
    log_in: Callable[..., Any], serve: Callable[..., Any], keys: Keys, agent: Callable[[str], None]
) -> None:
    """A target with a key of its own shows none of the agent's keys to the VM."""
    agent(keys.path("ed25519"))
    server = serve()
    with pytest.raises(NotPermitted):
        log_in(server.port, identities=("other",))
    assert server.seen == ["auth publickey bad", "auth none"]


def test_agent_has_the_encrypted_key(
    log_in: Callable[..., Any], serve: Callable[..., Any], keys: Keys, agent: Callable[[str], None], tmp_path: Path
) -> None:
    """An encrypted key file whose key the agent holds needs no passphrase."""
    plain = tmp_path / "plain"
    shutil.copy(keys.path("encrypted"), plain)
    argv = ["ssh-keygen", "-q", "-p", "-P", "sesame", "-N", "", "-f", str(plain)]
    subprocess.run(argv, check=True, timeout=60, stdout=subprocess.DEVNULL)
    agent(str(plain))
    server = serve(keys=frozenset({keys.blob("encrypted")}))
    log_in(server.port, identities=("encrypted",), target={"only_identities": False})
    assert server.seen == ["auth publickey good"]


def test_stuck_agent_does_not_stop_us(
    log_in: Callable[..., Any], serve: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An agent that takes the connection and says nothing is given up."""
    import socket

    from vmproxy.transports import _agent

    monkeypatch.setattr(_agent, "_SECONDS", 0.3)
    with socket.socket(socket.AF_UNIX) as deaf:
        deaf.bind(str(tmp_path / "deaf"))
        deaf.listen(1)
        monkeypatch.setenv("SSH_AUTH_SOCK", str(tmp_path / "deaf"))
        with pytest.raises(NotPermitted):
            log_in(serve().port, target={"only_identities": False, "identities": ()})


def test_default_keys_where_none_is_named(
    log_in: Callable[..., Any], serve: Callable[..., Any], keys: Keys, home: Path
) -> None:
    """Without a key of the target's, ~/.ssh/id_ed25519 is tried, and not for a target that has one."""
    shutil.copy(keys.path("ed25519"), home / ".ssh" / "id_ed25519")
    log_in(serve().port, target={"only_identities": False, "identities": ()})
    server = serve()
    with pytest.raises(NotPermitted):
        log_in(server.port, identities=("other",), target={"only_identities": False})
    assert server.seen == ["auth publickey bad", "auth none"]


def test_password_of_the_environment(log_in: Callable[..., Any], serve: Callable[..., Any]) -> None:
    """VMPROXY_SSH_PASSWORD logs in where no key does."""
    server = serve(passwords={"docker": "tcuser"})
    log_in(server.port, identities=(), password="tcuser")
    assert server.seen == ["auth none", "auth password good"]


def test_password_over_keyboard_interactive(log_in: Callable[..., Any], serve: Callable[..., Any]) -> None:
    """A server that asks by keyboard-interactive only (PAM) takes the password too."""
    server = serve(passwords={"docker": "tcuser"}, interactive=True)
    log_in(server.port, identities=(), password="tcuser")
    assert server.seen[-1] == "auth password good"


def test_password_is_asked_on_a_terminal(log_in: Callable[..., Any], serve: Callable[..., Any]) -> None:
    """The question names user, host and port; an empty answer ends it."""
    server = serve(passwords={"docker": "right"})
    asked: list[str] = []
    answers = iter(["wrong", "right"])

    def ask(question: str) -> str:
        asked.append(question)
        return next(answers)

    log_in(server.port, identities=(), ask=ask)
    assert asked == [f"Password for docker@127.0.0.1:{server.port}: "] * 2
    with pytest.raises(NotPermitted):
        log_in(server.port, identities=(), ask=lambda _question: None)


def test_password_is_not_asked_where_it_is_not_taken(log_in: Callable[..., Any], serve: Callable[..., Any]) -> None:
    """A server with keys alone is never shown a password, nor is the person asked for one."""
    server = serve()

    def ask(question: str) -> str:
        raise AssertionError(question)

    with pytest.raises(NotPermitted):
        log_in(server.port, identities=("other",), password="secret-one", ask=ask)
    assert not [line for line in server.seen if "password" in line]


def test_usual_password_of_the_kind(log_in: Callable[..., Any], serve: Callable[..., Any]) -> None:
    """The target's well-known password is tried after the key and before a question."""
    server = serve(passwords={"docker": "tcuser"})
    log_in(server.port, identities=("other",), target={"passwords": ("tcuser",)})
    assert server.seen == ["auth publickey bad", "auth none", "auth password good"]


def test_t02_password_goes_to_one_vm_only(log_in: Callable[..., Any], serve: Callable[..., Any]) -> None:
    """The environment's password that one VM saw is never shown to another, right or wrong."""
    secrets = Secrets(password="secret-one")
    first, second = serve(passwords={"docker": "a"}), serve(passwords={"docker": "secret-one"})
    for server in (first, second, first):
        with pytest.raises(NotPermitted):
            log_in(server.port, identities=(), secrets=secrets)
    assert first.seen.count("auth password bad") == 2
    assert second.seen == ["auth none"]


def test_key_and_password_both_wanted(log_in: Callable[..., Any], serve: Callable[..., Any]) -> None:
    """Where the VM wants a key and then a password, both are given."""
    server = serve(passwords={"docker": "right"}, both=True)
    log_in(server.port, password="right")
    assert server.seen[0] == "auth publickey good"
    assert server.seen[-1] == "auth password good"


def test_f05_connection_ended_by_the_vm(
    log_in: Callable[..., Any], serve: Callable[..., Any], relay: Callable[..., Any]
) -> None:
    """Too many refusals end the connection: exit 5 with the story, not a crash."""
    server = serve(passwords={"docker": "right"})
    with pytest.raises(NotPermitted, match="password"):
        log_in(server.port, identities=(), ask=lambda _question: "wrong")


def test_f05_vm_that_vanishes_during_log_in(
    log_in: Callable[..., Any], serve: Callable[..., Any], relay: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A connection that dies or hangs at the authentication is exit 4 or 5, within the limit."""
    from vmproxy.transports import _auth

    whole = relay(serve().port)
    log_in(whole.port).close()
    whole.close()  # all is counted then
    monkeypatch.setattr(_auth, "SECONDS", 0.5)
    shorter = whole.from_server - 40
    for faults in ({"cut_after": shorter}, {"hold_after": shorter}):
        with pytest.raises(VmproxyError) as caught:
            log_in(relay(serve().port, **faults).port, known_hosts=os.devnull)
        assert isinstance(caught.value, Unreachable | NotPermitted)


def test_f05_how_long_a_log_in_was_waited_for(
    log_in: Callable[..., Any], serve: Callable[..., Any], relay: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that goes silent is told with the limit that it had."""
    whole = relay(serve().port)
    log_in(whole.port).close()
    whole.close()  # all is counted then
    silent = relay(serve().port, hold_after=whole.from_server - 40)
    monkeypatch.setattr(_auth, "SECONDS", 1.5)
    with pytest.raises(Unreachable, match=r"^no answer to a log-in within 1\.5 s \("):
        log_in(silent.port, known_hosts=os.devnull)


@pytest.mark.parametrize(("kind", "seconds"), [("ssh-ed25519", 30), ("sk-ssh-ed25519@openssh.com", 70)])
def test_f05_an_agents_key_has_its_time(monkeypatch: pytest.MonkeyPatch, kind: str, seconds: int) -> None:
    """The person who touches a security key has a minute; what is told is how long was waited, and it was our limit
    that ended it, not the library's."""
    key = SimpleNamespace(get_name=lambda: kind, asbytes=kind.encode)
    held = SimpleNamespace(
        all=(key,), trouble="", close=lambda: None, allow_seconds=lambda key: 60.0 if _agent.wants_touch(key) else 20.0
    )
    transport = SimpleNamespace(is_active=lambda: not limits, auth_timeout=0.0)
    limits: list[float] = []

    def send(_user: str, sent: object) -> None:
        assert sent is key
        raise paramiko.SSHException("no answer")

    @contextlib.contextmanager
    def guard(limit: float) -> Iterator[object]:
        limits.append(limit)
        assert transport.auth_timeout > limit
        yield SimpleNamespace(fired=True)

    transport.auth_publickey = send
    monkeypatch.setattr(_agent, "Keys", lambda _line: held)
    endpoint = _auth.Endpoint(host="192.0.2.1", port=22, user="u")
    with pytest.raises(Unreachable, match=rf"^no answer to a log-in within {seconds} s \("):
        _auth.Login(transport, endpoint, SshOptions(), guard, Line()).run()  # type: ignore[arg-type]
    assert limits == [seconds]


def test_t06_no_secret_in_errors_or_repr(log_in: Callable[..., Any], serve: Callable[..., Any]) -> None:
    """A wrong password or passphrase is in no message, hint, cause or repr."""
    options = SshOptions(secrets=Secrets(password="hunter2pass", passphrase="hunter2phrase"))
    assert "hunter2" not in repr(options)
    assert "hunter2" not in repr(options.secrets)
    with pytest.raises(NotPermitted) as caught:
        log_in(
            serve(passwords={"docker": "x"}).port,
            identities=("encrypted",),
            password="hunter2pass",
            passphrase="hunter2phrase",
            target={"passwords": ("hunter2usual",)},
        )
    error: BaseException | None = caught.value
    while error is not None:
        assert "hunter2" not in f"{error!s}{error!r}{getattr(error, 'hint', '')}{error.__dict__}"
        error = error.__cause__ or error.__context__


def test_one_key_file_is_opened_once_for_many_vms(keys: Keys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The passphrase's slow hash is had once; a certificate belongs to its file alone, and a new key is seen."""
    from cryptography.hazmat.primitives import serialization

    opened: list[bytes] = []
    real = serialization.load_ssh_private_key

    def counting(data: bytes, password: bytes | None, **more: Any) -> Any:
        opened.extend([data] if data.endswith(b"\n\n") else [])
        return real(data, password, **more)

    monkeypatch.setattr(serialization, "load_ssh_private_key", counting)
    path = tmp_path / "key"
    shutil.copy(keys.path("encrypted"), path)
    path.write_bytes(path.read_bytes() + b"\n")  # as no other test has it
    first, second = (load_key(path, "sesame") for _ in range(2))
    assert first.asbytes() == second.asbytes() == keys.blob("encrypted")
    assert first is not second and len(opened) == 1
    with pytest.raises(BadKeyError, match="wrong passphrase"):
        load_key(path, "other")
    first.public_blob = object()
    assert second.public_blob is None and load_key(path, "sesame").public_blob is None
    shutil.copy(keys.path("ed25519"), path)
    assert load_key(path).asbytes() == keys.blob("ed25519")
