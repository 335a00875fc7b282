"""Reaching and trusting a VM over SSH: what goes wrong before anything is asked of it."""

from __future__ import annotations

import errno
import logging
import re
import socket
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.fake.conftest import Keys, comes, read_all
from tests.fake.realservers import deaf_port, free_port
from vmproxy.errors import Unreachable, Untrusted, UsageError
from vmproxy.transports._known_hosts import fingerprint


@pytest.fixture
def closed_port() -> int:
    """A port on which nothing listens."""
    return free_port()


def test_f01_refused_names_host_and_port(log_in: Callable[..., Any], closed_port: int) -> None:
    """Nothing listens: exit 4, with host and port."""
    with pytest.raises(Unreachable, match="refused") as caught:
        log_in(closed_port)
    assert caught.value.where == f"127.0.0.1:{closed_port}"
    assert caught.value.exit == 4


def test_f01_unknown_name(log_in: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that DNS does not know is exit 4, not a crash."""

    def fail(*_args: object, **_kwargs: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    with pytest.raises(Unreachable, match="name is not known") as caught:
        log_in(22, target={"host": "nowhere.invalid"})
    assert caught.value.where == "nowhere.invalid:22"


def test_f01_no_route(log_in: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """No route to the VM is exit 4 with the kernel's reason."""

    def fail(_self: socket.socket, _address: object) -> None:
        raise OSError(errno.EHOSTUNREACH, "No route to host")

    monkeypatch.setattr(socket.socket, "connect", fail)
    with pytest.raises(Unreachable, match="no route to host"):
        log_in(22)


def test_f01_second_address_is_tried(
    log_in: Callable[..., Any], serve: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name with a dead IPv6 address first is still reached by the next one."""
    server = serve()
    real = socket.getaddrinfo

    def both(_host: str, port: int, **kwargs: Any) -> list[Any]:
        return [*real("::1", port, **kwargs), *real("127.0.0.1", port, **kwargs)]

    monkeypatch.setattr(socket, "getaddrinfo", both)
    assert read_all(log_in(server.port, target={"host": "both"}).start("echo in")) == b"in\n"


def test_f02_black_hole_ends_in_time(log_in: Callable[..., Any]) -> None:
    """Where SYNs vanish the connect timeout is the end of it."""
    with deaf_port() as port, pytest.raises(Unreachable, match=r"no answer within 0\.4 s") as caught:
        log_in(port, connect_timeout_seconds=0.4)
    assert str(port) in caught.value.where


def test_f02_name_lookup_that_hangs(log_in: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """A resolver that does not answer does not hold us longer than the connect timeout."""
    import threading

    release = threading.Event()

    def hang(*_args: object, **_kwargs: object) -> list[Any]:
        release.wait(30)
        raise socket.gaierror(socket.EAI_AGAIN, "late")

    monkeypatch.setattr(socket, "getaddrinfo", hang)
    with pytest.raises(Unreachable, match="no answer within"):
        log_in(22, target={"host": "slow.invalid"}, connect_timeout_seconds=0.3)
    release.set()


@pytest.mark.parametrize(
    ("first_bytes", "silent"),
    [
        (b"", True),
        (b"SSH-2.0-OpenSSH_9.2\r\n", True),
        (b"x" * 70000, True),
        (b"", False),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", False),
        (b"SSH-1.5-ancient\r\n", False),
        (b"\xff\x1b[2J\n" * 200, False),
    ],
)
def test_f02_no_ssh_behind_the_port(
    log_in: Callable[..., Any], serve: Callable[..., Any], first_bytes: bytes, silent: bool
) -> None:
    """A banner that never comes, never ends, or is no banner: exit 4 within the connect timeout, printable."""
    server = serve(first_bytes=first_bytes, then_silent=silent)
    with pytest.raises(Unreachable) as caught:
        log_in(server.port, connect_timeout_seconds=1.0)
    assert str(caught.value).isprintable()
    assert str(server.port) in caught.value.where
    assert comes(lambda: server.connections > 0)  # it may have been heard of after we were gone
    assert server.connections == 1


def test_f04_changed_host_key_stops_before_authentication(
    log_in: Callable[..., Any], serve: Callable[..., Any], known_hosts: Path, keys: Keys
) -> None:
    """Another host key: exit 4, both fingerprints, file and line, the way to forget; no userauth packet was sent."""
    server = serve()
    log_in(server.port).close()
    before = known_hosts.read_bytes()
    server.host_keys[:] = [keys.load("host_new")]
    server.packets.clear()
    with pytest.raises(Untrusted) as caught:
        log_in(server.port, password="secret-one")
    server.close()
    assert server.auth_packets() == 0
    error = caught.value
    assert error.exit == 4
    for name in ("host_ed25519", "host_new"):
        assert fingerprint(keys.blob(name)) in str(error)
    assert error.where == f"{known_hosts}:1"
    assert error.hint.endswith(f"ssh-keygen -R '[127.0.0.1]:{server.port}' -f {known_hosts}")
    assert known_hosts.read_bytes() == before


def test_f04_the_command_to_forget_works(log_in: Callable[..., Any], serve: Callable[..., Any], keys: Keys) -> None:
    """The hint's command, run as it stands, lets the new key in."""
    import shlex
    import subprocess

    server = serve()
    log_in(server.port).close()
    server.host_keys[:] = [keys.load("host_new")]
    with pytest.raises(Untrusted) as caught:
        log_in(server.port)
    command = caught.value.hint.partition(": ")[2]
    subprocess.run(shlex.split(command), check=True, capture_output=True, timeout=60)
    log_in(server.port)


def test_t01_another_key_type_is_a_change_too(
    log_in: Callable[..., Any], serve: Callable[..., Any], keys: Keys
) -> None:
    """An impostor does not get in by showing a key of a type that was not known."""
    server = serve()
    log_in(server.port).close()
    server.host_keys[:] = [keys.load("host_rsa")]
    with pytest.raises(Untrusted):
        log_in(server.port)


def test_t01_the_known_type_is_asked_for(log_in: Callable[..., Any], serve: Callable[..., Any], keys: Keys) -> None:
    """A VM known by its RSA key that gets an ed25519 key too is still the same VM."""
    server = serve(host=("host_rsa",))
    log_in(server.port).close()
    server.host_keys[:] = [keys.load("host_ed25519"), keys.load("host_rsa")]
    log_in(server.port)


def test_t01_new_key_is_kept_and_announced_once(
    log_in: Callable[..., Any], serve: Callable[..., Any], known_hosts: Path, keys: Keys
) -> None:
    """Trust on first use: one line in the file, said once; directory 0700, file 0600 (T06)."""
    server = serve()
    said: list[str] = []
    for _ in range(2):
        log_in(server.port, notify=said.append).close()
    assert len(said) == 1
    assert fingerprint(keys.blob("host_ed25519")) in said[0]
    assert known_hosts.read_text().count("\n") == 1
    assert known_hosts.read_text().startswith(f"[127.0.0.1]:{server.port} ssh-ed25519 ")
    assert stat.S_IMODE(known_hosts.stat().st_mode) == 0o600
    assert stat.S_IMODE(known_hosts.parent.stat().st_mode) == 0o700


def test_t01_default_file_is_in_the_state_directory(
    log_in: Callable[..., Any], serve: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without an option the keys are kept in vmproxy's own state directory, not in the user's ~/.ssh."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    log_in(serve().port, known_hosts="")
    found = [path for path in tmp_path.rglob("known_hosts") if path.is_file()]
    assert len(found) == 1
    assert found[0].parent.name == "vmproxy"
    assert ".ssh" not in found[0].parts


def test_t01_revoked_key_is_refused(
    log_in: Callable[..., Any], serve: Callable[..., Any], known_hosts: Path, keys: Keys
) -> None:
    """A key on a @revoked line is never trusted, for no host."""
    key = keys.load("host_ed25519")
    known_hosts.parent.mkdir(parents=True)
    known_hosts.write_text(f"@revoked * {key.get_name()} {key.get_base64()}\n")
    server = serve()
    with pytest.raises(Untrusted, match="revoked"):
        log_in(server.port)
    server.close()
    assert server.auth_packets() == 0


def test_t01_pin_lets_the_right_key_in_and_writes_nothing(
    log_in: Callable[..., Any], serve: Callable[..., Any], known_hosts: Path, keys: Keys
) -> None:
    """--host-key with the VM's fingerprint needs no file."""
    log_in(serve().port, host_key=fingerprint(keys.blob("host_ed25519")))
    assert not known_hosts.exists()


def test_t01_pin_keeps_every_other_key_out(log_in: Callable[..., Any], serve: Callable[..., Any], keys: Keys) -> None:
    """--host-key with another fingerprint: exit 4 before authentication, both shown."""
    server = serve()
    with pytest.raises(Untrusted) as caught:
        log_in(server.port, host_key=fingerprint(keys.blob("other")))
    server.close()
    assert server.auth_packets() == 0
    assert len(re.findall("SHA256:", str(caught.value))) == 2


@pytest.mark.parametrize("pin", ["", "SHA256:short", "MD5:" + "a" * 43, "SHA256:" + "!" * 43])
def test_t01_a_pin_that_is_none_is_a_usage_error(
    log_in: Callable[..., Any], serve: Callable[..., Any], pin: str
) -> None:
    """A mistyped --host-key is exit 2 before anything is connected; an empty one is none."""
    server = serve()
    if not pin:
        log_in(server.port, host_key=pin)
        return
    with pytest.raises(UsageError):
        log_in(server.port, host_key=pin)
    assert server.connections == 0


def test_t12_proxy_variables_do_not_matter(
    log_in: Callable[..., Any], serve: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, closed_port: int
) -> None:
    """vmproxy's own SSH never goes through a proxy of the environment."""
    for name in ("http_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{closed_port}")
    log_in(serve().port)


def test_old_server_is_named_as_such(log_in: Callable[..., Any], serve: Callable[..., Any]) -> None:
    """Without a common key exchange the message names the server and says why; exit 4."""
    server = serve(server_algorithms={"digests": ["hmac-sha1"]}, version="SSH-2.0-OpenSSH_5.3")
    with pytest.raises(Unreachable, match=r"no common algorithm with the ssh server SSH-2\.0-OpenSSH_5\.3") as caught:
        log_in(server.port)
    assert "--ssh openssh" in caught.value.hint


def test_a_jump_host_that_is_none_is_refused_not_ignored(log_in: Callable[..., Any], serve: Callable[..., Any]) -> None:
    """-J with nonsense is exit 2; the VM is not reached directly instead."""
    server = serve()
    with pytest.raises(UsageError):
        log_in(server.port, jump="-oProxyCommand=x")
    assert server.connections == 0


@pytest.mark.parametrize("host", ["-oProxyCommand=x", "a b", "a\nb", "*", "a,b", ""])
def test_t05_odd_host_names_are_refused(log_in: Callable[..., Any], host: str) -> None:
    """A host name that is an option, a pattern or two words goes no further."""
    with pytest.raises(UsageError):
        log_in(22, target={"host": host})


def test_t06_paramiko_is_quiet(
    log_in: Callable[..., Any],
    serve: Callable[..., Any],
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """The library's log lines and tracebacks reach nobody, on success and on failure."""
    caplog.set_level(logging.DEBUG)
    log_in(serve().port).start("true").close()
    with pytest.raises(Unreachable):
        log_in(serve(first_bytes=b"nonsense\r\n" * 200).port, connect_timeout_seconds=1.0)
    assert not caplog.records
    assert capfd.readouterr() == ("", "")
