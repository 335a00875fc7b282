"""Log-in, channel and command in one burst: what must hold when the guess is wrong or paramiko has changed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.fake.conftest import Keys, read_all
from vmproxy.errors import NotPermitted, Untrusted


def test_one_connection_one_channel_four_turns(log_in: Callable[..., Any], serve: Callable[..., Any]) -> None:
    """The four requests go out in one go, on the only connection, and the command runs once."""
    server = serve()
    connection = log_in(server.port, first="cat")
    assert server.seen == ["auth publickey good", "open session", "exec"]
    channel = connection.start("cat")
    channel.send(b"in", timeout_seconds=60)
    channel.end_input()
    assert read_all(channel) == b"in"
    assert server.commands == [b"cat"]
    assert server.connections == 1
    assert server.packets.count("userauth-request") == 1


def test_another_command_than_the_first(log_in: Callable[..., Any], serve: Callable[..., Any]) -> None:
    """A caller that starts something else gets that, and the first one's input ends."""
    server = serve()
    connection = log_in(server.port, first="cat")
    assert read_all(connection.start("echo other")) == b"other\n"
    assert read_all(connection.start("echo cat")) == b"cat\n"


def test_f04_no_burst_before_the_host_key_is_good(
    log_in: Callable[..., Any], serve: Callable[..., Any], keys: Keys
) -> None:
    """With a changed host key no authentication, no channel and no command is sent."""
    server = serve()
    log_in(server.port, first="true").close()
    server.host_keys[:] = [keys.load("host_new")]
    server.packets.clear()
    server.seen.clear()
    with pytest.raises(Untrusted):
        log_in(server.port, first="true")
    server.close()
    assert server.auth_packets() == 0
    assert server.seen == []


@pytest.mark.parametrize(
    ("identities", "passphrase"),
    [(("other", "ed25519"), ""), ((), ""), (("encrypted",), ""), (("encrypted",), "wrong")],
)
def test_no_burst_without_one_known_key(
    log_in: Callable[..., Any], serve: Callable[..., Any], identities: tuple[str, ...], passphrase: str
) -> None:
    """Two keys, none, or one that cannot be opened: the plain way, on the first connection."""
    server = serve(passwords={"docker": "right"})
    connection = log_in(server.port, identities=identities, passphrase=passphrase, password="right", first="echo in")
    assert server.connections == 1
    assert read_all(connection.start("echo in")) == b"in\n"


def test_encrypted_key_with_its_passphrase(log_in: Callable[..., Any], serve: Callable[..., Any], keys: Keys) -> None:
    """A passphrase from the environment is enough for the burst."""
    server = serve(keys=frozenset({keys.blob("encrypted")}))
    connection = log_in(server.port, identities=("encrypted",), passphrase="sesame", first="echo in")
    assert server.commands == [b"echo in"]
    assert read_all(connection.start("echo in")) == b"in\n"


def test_refused_key_then_the_usual_password(log_in: Callable[..., Any], serve: Callable[..., Any]) -> None:
    """Where the key is refused, the plain way on a second connection goes on to the password."""
    server = serve(passwords={"docker": "tcuser"})
    connection = log_in(server.port, identities=("other",), target={"passwords": ("tcuser",)}, first="echo in")
    assert server.connections == 2
    assert server.commands == []
    assert read_all(connection.start("echo in")) == b"in\n"


def test_server_that_numbers_channels_otherwise(log_in: Callable[..., Any], serve: Callable[..., Any]) -> None:
    """A wrong guess of the channel's number costs a second connection and nothing else."""
    server = serve(first_channel=7)
    connection = log_in(server.port, first="echo in")
    assert server.connections == 2
    assert server.commands == []
    assert read_all(connection.start("echo in")) == b"in\n"


def test_paramiko_whose_insides_have_changed(
    log_in: Callable[..., Any], serve: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the private methods the plain way is taken."""
    from vmproxy.transports import _burst

    def gone(*_args: object, **_kwargs: object) -> None:
        raise AttributeError("_next_channel")

    monkeypatch.setattr(_burst, "_open", gone)
    server = serve()
    assert read_all(log_in(server.port, first="echo in").start("echo in")) == b"in\n"


@pytest.mark.parametrize("rules", [{"refuse_exec": True}, {"refuse_session": True}])
def test_server_that_runs_nothing(
    log_in: Callable[..., Any], serve: Callable[..., Any], rules: dict[str, bool]
) -> None:
    """The refusal comes where it always does: at the start, as exit 5."""
    connection = log_in(serve(**rules).port, first="true")
    with pytest.raises(NotPermitted):
        connection.start("true")


def test_second_factor_is_no_burst(log_in: Callable[..., Any], serve: Callable[..., Any], known_hosts: Path) -> None:
    """A server that wants a password behind the key gets both, the plain way."""
    server = serve(passwords={"docker": "right"}, both=True)
    connection = log_in(server.port, password="right", first="echo in")
    assert read_all(connection.start("echo in")) == b"in\n"
    assert known_hosts.read_text().count("\n") == 1
