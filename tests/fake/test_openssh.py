"""The host's ssh program as a transport: what it asks for, whom it trusts, what its failures become, what is left."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.fake.conftest import Keys, comes, read_all
from tests.fake.realservers import free_port, open_directory
from vmproxy.errors import LostContact, NotPermitted, Unreachable, Untrusted, UsageError
from vmproxy.model import Target
from vmproxy.transports import SshOptions, openssh
from vmproxy.transports._known_hosts import fingerprint
from vmproxy.transports._sshprogram import Place, Way, way

Start = Callable[..., Any]
TRANSPORT = "openssh"


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A temporary directory of the test's own, of a short name: sockets' names are limited. No agent."""
    with open_directory(0o700) as directory:
        (directory / "t").mkdir()
        monkeypatch.setenv("TMPDIR", str(directory / "t"))
        monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
        yield directory


@pytest.fixture
def alias(tmp_path: Path, keys: Keys) -> Callable[..., dict[str, Any]]:
    """Words for ``log_in`` that name the server as ``ssh:vm`` of an ssh_config with more lines for it."""

    def make(port: int, more: str = "", before: str = "") -> dict[str, Any]:
        path = tmp_path / "ssh_config"
        path.write_text(
            f"{before}Host vm\n HostName 127.0.0.1\n Port {port}\n User docker\n IdentitiesOnly yes\n"
            f" IdentityFile {keys.path('ed25519')}\n UserKnownHostsFile {tmp_path}/theirs\n{more}"
        )
        vm = {"provider": "ssh", "host": "vm", "port": 0, "user": "", "identities": (), "only_identities": False}
        return {"target": vm, "ssh_config": str(path)}

    return make


def children() -> set[str]:
    """The command lines of this process's ssh children, ended ones that nobody has waited for too."""
    found = set()
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            name, rest = (path / "stat").read_text().partition("(")[2].rsplit(")", 1)
            if name == "ssh" and int(rest.split()[1]) == os.getpid():
                found.add(f"{path.name}: {(path / 'cmdline').read_bytes().decode()}")
    return found


def test_t02_nothing_is_asked_of_the_vm_that_ssh_config_asks_for(
    log_in: Start, serve: Start, alias: Callable[..., dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No agent, display, terminal, port, command or environment of the user's goes to the VM; the passwords of ours
    are not in ssh's environment."""
    monkeypatch.setenv("VMPROXY_SSH_PASSWORD", "hunter2")
    monkeypatch.setenv("DISPLAY", ":9")
    more = (
        " ForwardAgent yes\n ForwardX11 yes\n RequestTTY force\n RemoteCommand id\n SessionType none\n StdinNull yes\n"
        f" ForkAfterAuthentication yes\n LocalForward {free_port()} 127.0.0.1:1\n RemoteForward 7777 127.0.0.1:1\n"
        f" PermitLocalCommand yes\n LocalCommand touch {tmp_path}/local\n Tunnel yes\n SendEnv VMPROXY_SSH_*\n"
        " DynamicForward 7778\n"
    )
    server = serve()
    connection = log_in(0, **alias(server.port, more))
    assert read_all(connection.start("echo in")) == b"in\n"
    assert set(server.seen) <= {"auth none", "auth publickey good", "open session", "exec"}
    assert server.connections == 1
    assert server.commands[-1] == b"echo in"
    assert not (tmp_path / "local").exists()


def test_nothing_is_left_when_it_is_closed(log_in: Start, serve: Start, short: Path) -> None:
    """No process, no file; closing twice is closing once."""
    connection = log_in(serve().port)
    channel = connection.start("cat")
    assert len(children()) == 2
    assert [stat.S_IMODE(path.stat().st_mode) for path in (short / "t").iterdir()] == [0o700]
    connection.close()
    connection.close()
    channel.close()
    assert children() == set()
    assert list((short / "t").iterdir()) == []
    with pytest.raises(LostContact):
        connection.start("true")


def test_nothing_is_left_when_it_fails(log_in: Start, serve: Start, short: Path) -> None:
    """A log-in that fails leaves no process and no file."""
    with pytest.raises(NotPermitted):
        log_in(serve().port, identities=("other",))
    assert children() == set()
    assert list((short / "t").iterdir()) == []


def test_a_command_that_does_not_end_is_left_behind(log_in: Start, serve: Start) -> None:
    """Closing does not wait longer than seconds for it."""
    connection = log_in(serve().port)
    channel = connection.start("echo on; exec sleep 50")
    assert channel.receive(timeout_seconds=60) == b"on\n"
    connection.close()
    assert children() == set()


def test_f04_changed_host_key(log_in: Start, serve: Start, keys: Keys, known_hosts: Path) -> None:
    """Exit 4 before any log-in: both fingerprints, file and line, and the command to forget; it works."""
    server = serve()
    log_in(server.port).close()
    before = known_hosts.read_bytes()
    server.host_keys[:] = [keys.load("host_new")]
    server.packets.clear()
    with pytest.raises(Untrusted, match="has changed") as caught:
        log_in(server.port)
    assert server.auth_packets() == 0
    assert caught.value.exit == 4
    for name in ("host_ed25519", "host_new"):
        assert fingerprint(keys.blob(name)) in str(caught.value)
    assert caught.value.where == f"{known_hosts}:1"
    assert known_hosts.read_bytes() == before
    command = caught.value.hint.partition(": ")[2]
    assert command == f'ssh-keygen -f "{known_hosts}" -R "[127.0.0.1]:{server.port}"'
    subprocess.run(["sh", "-c", command], check=True, capture_output=True, timeout=60)
    log_in(server.port)


def test_t01_another_key_type_is_a_change_too(log_in: Start, serve: Start, keys: Keys) -> None:
    """ssh would add a key of another type as new; here an impostor does not get in by it."""
    server = serve()
    log_in(server.port).close()
    server.host_keys[:] = [keys.load("host_rsa")]
    server.packets.clear()
    with pytest.raises(Untrusted):
        log_in(server.port)
    assert server.auth_packets() == 0


def test_t01_new_key_is_kept_and_announced_once(
    log_in: Start, serve: Start, known_hosts: Path, keys: Keys, alias: Callable[..., dict[str, Any]]
) -> None:
    """In vmproxy's own file, closed to others, not in the user's; said with its fingerprint, also where no log-in
    follows."""
    server = serve()
    said: list[str] = []
    with pytest.raises(NotPermitted):
        log_in(server.port, identities=("other",), notify=said.append)
    log_in(0, notify=said.append, **alias(server.port)).close()
    assert len(said) == 1
    assert fingerprint(keys.blob("host_ed25519")) in said[0] and str(known_hosts) in said[0]
    assert known_hosts.read_text().startswith(f"[127.0.0.1]:{server.port} ssh-ed25519 ")
    assert stat.S_IMODE(known_hosts.stat().st_mode) == 0o600
    assert stat.S_IMODE(known_hosts.parent.stat().st_mode) == 0o700


def test_t01_the_users_known_hosts_count_for_an_alias(
    log_in: Start, serve: Start, keys: Keys, tmp_path: Path, known_hosts: Path, alias: Callable[..., dict[str, Any]]
) -> None:
    """A key known there is known, a changed one changed; StrictHostKeyChecking yes refuses a new one."""
    server = serve()
    words = alias(server.port, " StrictHostKeyChecking yes\n")
    with pytest.raises(Untrusted):
        log_in(0, **words)
    key = keys.load("host_ed25519")
    (tmp_path / "theirs").write_text(f"[127.0.0.1]:{server.port} {key.get_name()} {key.get_base64()}\n")
    log_in(0, **words).close()
    assert not known_hosts.exists()
    server.host_keys[:] = [keys.load("host_new")]
    with pytest.raises(Untrusted, match="has changed") as caught:
        log_in(0, **alias(server.port, " StrictHostKeyChecking no\n"))
    assert caught.value.where == f"{tmp_path}/theirs:1"


def test_t01_pin(log_in: Start, serve: Start, known_hosts: Path, keys: Keys) -> None:
    """--host-key lets the one key in, needs and writes no file, and keeps every other out before the log-in."""
    server = serve()
    log_in(server.port, host_key=fingerprint(keys.blob("host_ed25519"))).close()
    assert not known_hosts.exists()
    server.packets.clear()
    with pytest.raises(Untrusted) as caught:
        log_in(server.port, host_key=fingerprint(keys.blob("other")))
    assert server.auth_packets() == 0
    assert len(re.findall("SHA256:", str(caught.value))) == 2
    key = keys.load("host_ed25519")
    known_hosts.parent.mkdir(parents=True)
    known_hosts.write_text(f"[127.0.0.1]:{server.port} {key.get_name()} {key.get_base64()}\n")
    with pytest.raises(Untrusted):  # known, and still not the one that was asked for
        log_in(server.port, host_key=fingerprint(keys.blob("other")))


def test_t01_revoked(log_in: Start, serve: Start, known_hosts: Path, keys: Keys) -> None:
    """A @revoked line keeps a key out."""
    key = keys.load("host_ed25519")
    known_hosts.parent.mkdir(parents=True)
    known_hosts.write_text(f"@revoked * {key.get_name()} {key.get_base64()}\n")
    with pytest.raises(Untrusted, match="revoked"):
        log_in(serve().port)


def test_f01_refused_and_unknown(log_in: Start, alias: Callable[..., dict[str, Any]]) -> None:
    """Nothing listens, no such name: exit 4, with host and port."""
    port = free_port()
    with pytest.raises(Unreachable, match="cannot connect: connection refused") as caught:
        log_in(port)
    assert caught.value.where == f"127.0.0.1:{port}"
    with pytest.raises(Unreachable, match="cannot connect: connection refused"):
        log_in(port, identities=("a key that is not there",))
    with pytest.raises(Unreachable, match="name is not known"):
        log_in(22, target={"host": "nowhere.invalid"})


@pytest.mark.parametrize(
    ("first_bytes", "silent"),
    [(b"", True), (b"", False), (b"HTTP/1.1 400 Bad Request\r\n\r\n", False), (b"\xff\x1b[2J\n" * 200, False)],
)
def test_f02_no_ssh_behind_the_port(log_in: Start, serve: Start, first_bytes: bytes, silent: bool) -> None:
    """A banner that never comes or is none: exit 4, printable, with the place."""
    server = serve(first_bytes=first_bytes, then_silent=silent)
    with pytest.raises(Unreachable) as caught:
        log_in(server.port, connect_timeout_seconds=1.0)
    assert str(caught.value).isprintable()
    assert str(server.port) in caught.value.where


def test_f02_silence_after_the_log_in(log_in: Start, serve: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that takes the command and never runs it does not hold us."""
    from vmproxy.transports import openssh

    monkeypatch.setattr(openssh, "_LOG_IN_SECONDS", 2.0 - 60.0)  # ssh's own limit is never the first
    server = serve(act=lambda channel, _command: channel.recv(1))
    with pytest.raises(Unreachable, match="no log-in within 2 s"):
        log_in(server.port, connect_timeout_seconds=60.0)
    assert children() == set()


def test_f02_silence_with_a_person(short: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The time that a person had is the time that is told."""
    program = short / "ssh"
    program.write_text("#!/bin/sh\nexec sleep 600\n")
    program.chmod(0o700)
    monkeypatch.setattr(openssh, "_PERSON_SECONDS", 0.5)
    place = Place(user="u", host="vm", port=22, name="vm", files=(), strict=True)
    found = Way(program=str(program), where=(), words=(), host="vm", place=place, known_hosts=short / "known")
    with pytest.raises(Unreachable, match=r"no log-in within 0\.5 s"):
        openssh._Opening(found, SshOptions(), "", openssh.RunDirectory())._try(batch=False)


@pytest.mark.parametrize(("name", "taken"), [("plain+1_a.b-c", True), ("a b", False), ("a'b", False), ("$x", False)])
def test_t05_the_directory_for_ssh_has_a_plain_name(
    short: Path, monkeypatch: pytest.MonkeyPatch, name: str, taken: bool
) -> None:
    """ssh puts it into a shell's text: a TMPDIR that the shell would not take as it stands is not used."""
    (short / name).mkdir()
    monkeypatch.setenv("TMPDIR", str(short / name))
    directory = openssh.RunDirectory()
    try:
        assert (Path(directory.path("s")).parent.parent == short / name) is taken
    finally:
        directory.remove()


def test_t01_a_known_hosts_file_that_is_too_big_for_us(
    log_in: Start,
    serve: Start,
    keys: Keys,
    known_hosts: Path,
    tmp_path: Path,
    alias: Callable[..., dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One of the user's: ssh looks into it, lets in what is known there, and takes no key for a new one."""
    server = serve()
    words = alias(server.port)
    monkeypatch.setattr("vmproxy.transports._known_hosts._MAX_BYTES", 10)
    key = keys.load("host_ed25519")
    entry = f"{key.get_name()} {key.get_base64()}\n"
    (tmp_path / "theirs").write_text(f"[127.0.0.1]:{server.port} {entry}")
    assert read_all(log_in(0, **words).start("echo in")) == b"in\n"
    (tmp_path / "theirs").write_text(f"another {entry}")
    with pytest.raises(Untrusted, match="not one that is known"):
        log_in(0, **words)
    assert not known_hosts.exists()


def test_no_commands_for_us(log_in: Start, serve: Start) -> None:
    """A forced command, or a server that runs none: exit 5 with the likely reason."""

    def say_no(channel: Any, _command: bytes) -> None:
        channel.sendall(b"go away\n")
        channel.send_exit_status(0)
        channel.close()

    for rules in ({"refuse_exec": True}, {"act": say_no}):
        with pytest.raises(NotPermitted, match="does not run commands") as caught:
            log_in(serve(**rules).port)
        assert caught.value.exit == 5


def test_f03_cut_in_the_middle_of_a_command(log_in: Start, serve: Start, relay: Start) -> None:
    """P12: the connection goes: exit 9, not the end of the output."""
    between = relay(serve().port)
    connection = log_in(between.port)
    channel = connection.start("echo on; cat")
    assert channel.receive(timeout_seconds=60) == b"on\n"
    between.cut()
    with pytest.raises(LostContact, match="connection ended"):
        channel.receive(timeout_seconds=60)
    with pytest.raises(LostContact):
        connection.start("true")


def test_f03_a_loss_is_told_by_an_ssh_that_takes_its_time_to_end(
    log_in: Start, serve: Start, relay: Start, short: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A machine may stall between the end of ssh's output and its own: that is a loss, too, not the output's end."""
    slow = short / "ssh"
    real = shutil.which("ssh")
    slow.write_text(
        f'#!/bin/sh\ncase " $* " in *" ProxyCommand=false "*) ;; *) exec {real} "$@" ;; esac\n'
        f'{real} "$@"\ncode=$?\nexec >&- 2>&-\nsleep 3\nexit "$code"\n'
    )
    slow.chmod(0o755)
    monkeypatch.setenv("PATH", f"{short}:{os.environ['PATH']}")
    between = relay(serve().port)
    channel = log_in(between.port).start("echo on; cat")
    assert channel.receive(timeout_seconds=60) == b"on\n"
    between.cut()
    with pytest.raises(LostContact, match="connection ended"):
        channel.receive(timeout_seconds=60)


@pytest.mark.parametrize(
    "faults", [{"piece_bytes": 1}, {"delay_seconds": 0.02}, {"cut_after": 900}, {"cut_after": 2500}]
)
def test_p12_faults_on_the_way(log_in: Start, serve: Start, relay: Start, faults: dict[str, Any]) -> None:
    """Split, delayed or cut at a byte: it works, or it is one of our errors in time."""
    between = relay(serve().port, **faults)
    try:
        assert read_all(log_in(between.port, connect_timeout_seconds=60.0).start("echo in")) == b"in\n"
    except (Unreachable, LostContact, NotPermitted):
        assert "cut_after" in faults


@pytest.mark.parametrize("host", ["-oProxyCommand=x", "a b", "a\nb", "*", "a,b", "", "a;b", "$(x)", "a'b"])
def test_t05_odd_host_names_are_refused(log_in: Start, host: str) -> None:
    """A host name that is an option, a pattern or shell code is exit 2, and ssh is not started."""
    with pytest.raises(UsageError):
        log_in(22, target={"host": host})
    if host:
        with pytest.raises(UsageError):
            log_in(22, target={"user": host})


def test_no_ssh_program(log_in: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exit 2 with a hint."""
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UsageError, match="no ssh program") as caught:
        log_in(22)
    assert caught.value.hint


def test_ssh_config_that_ssh_does_not_take(log_in: Start, alias: Callable[..., dict[str, Any]]) -> None:
    """Its own words about file and line, exit 2; a file that is not there, too."""
    with pytest.raises(UsageError, match=r"ssh_config.*line 8.*nosuchword"):
        log_in(0, **alias(9, " NoSuchWord yes\n"))
    with pytest.raises(UsageError, match="nowhere"):
        log_in(0, **{**alias(9), "ssh_config": "/nowhere"})


def test_other_kinds_of_vms_do_without_ssh_config(
    log_in: Start, serve: Start, tmp_path: Path, keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A ``Host *`` of the user's does not bend the way to a VM that its provider knows."""
    config = tmp_path / "config"
    config.write_text("Host *\n HostName nowhere.invalid\n Port 9\n User x\n ProxyCommand false\n")
    assert read_all(log_in(serve().port, ssh_config=str(config)).start("echo in")) == b"in\n"


def test_t02_without_its_key_a_vm_is_offered_no_other(log_in: Start, serve: Start, keys: Keys) -> None:
    """Of a VM with a key of its own, whose file is gone: the user's usual keys stay at home, and the hint names the
    password that such VMs have."""
    with pytest.raises(NotPermitted) as caught:
        log_in(serve().port, identities=("gone",), target={"passwords": ("tcuser",)})
    assert "without --ssh openssh" in caught.value.hint
    for name, files in (("gone", ["none"]), ("ed25519", [keys.path("ed25519")])):
        vm = Target(
            name="vm", provider="x", host="127.0.0.1", port=1, identities=(keys.path(name),), only_identities=True
        )
        found = way(vm, SshOptions(), "", environ=os.environ)
        argv = (found.program, "-G", *found.where, *found.words, found.host)
        said = subprocess.run(argv, check=True, timeout=60, capture_output=True, text=True).stdout
        assert re.findall("^identityfile (.*)", said, re.MULTILINE) == files


def test_the_users_live_socket_is_used_and_stays(
    log_in: Start, serve: Start, keys: Keys, short: Path, known_hosts: Path, alias: Callable[..., dict[str, Any]]
) -> None:
    """With a master on ssh_config's ControlPath there is no second connection; it lives on. Not with --host-key: who
    opened it may have trusted another key."""
    server = serve()
    words = alias(server.port, f" ControlPath {short}/%C.sock\n ControlMaster auto\n ControlPersist 60\n")
    argv = ["ssh", "-F", words["ssh_config"], "-o", "StrictHostKeyChecking=accept-new", "-o", "BatchMode=yes"]
    subprocess.run([*argv, "-o", "ControlMaster=yes", "-fN", "--", "vm"], check=True, timeout=60, stderr=-3)
    try:
        for number in range(2):
            connection = log_in(0, **words)
            assert read_all(connection.start(f"echo {number}")) == f"{number}\n".encode()
            connection.close()
        assert server.connections == 1
        assert not known_hosts.exists()
        log_in(0, **words, host_key=fingerprint(keys.blob("host_ed25519"))).close()
        assert server.connections == 2
    finally:
        subprocess.run([*argv, "-O", "exit", "--", "vm"], check=True, timeout=60, stderr=-3)
    assert comes(lambda: not list(short.glob("*.sock*")))  # it says that it will, and goes a moment later
    # No master of ours has taken its place, although ssh_config asks for one: it would lack the user's forwardings.
    log_in(0, **words).close()
    assert not list(short.glob("*.sock*"))


def test_a_dead_socket_is_no_obstacle(
    log_in: Start, serve: Start, short: Path, alias: Callable[..., dict[str, Any]]
) -> None:
    """A socket file that nobody listens on is passed over."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(short / "dead"))
    connection = log_in(0, **alias(serve().port, f" ControlPath {short}/dead\n"))
    assert read_all(connection.start("echo in")) == b"in\n"


def test_jump_hosts_are_held_to_the_same(
    log_in: Start, serve: Start, keys: Keys, known_hosts: Path, tmp_path: Path, alias: Callable[..., dict[str, Any]]
) -> None:
    """Through a jump host by ProxyJump: its key is kept and said, a changed one is exit 4; its failures name it."""
    door = serve(host=("host_rsa",), keys=frozenset({keys.blob("ecdsa")}), forward=True)
    vm = serve()
    before = (
        f"Host door\n HostName 127.0.0.1\n Port {door.port}\n User guard\n IdentityFile {keys.path('ecdsa')}\n"
        f" IdentitiesOnly yes\n ForwardAgent yes\n UserKnownHostsFile {tmp_path}/theirs\n"
    )
    words = alias(vm.port, " ProxyJump door\n", before)
    said: list[str] = []
    connection = log_in(0, **words, notify=said.append)
    assert read_all(connection.start("echo in")) == b"in\n"
    connection.close()
    assert [line for line in door.seen if not line.startswith("auth")] == [f"direct-tcpip 127.0.0.1:{vm.port}"]
    assert sorted(line.split()[0] for line in known_hosts.read_text().splitlines()) == sorted(
        f"[127.0.0.1]:{port}" for port in (door.port, vm.port)
    )
    assert len(said) == 2
    assert comes(lambda: not any(one.is_active() for one in door._transports))
    door.rules.forward = False
    with pytest.raises(Unreachable, match="does not pass connections on"):
        log_in(0, **words)
    door.rules.keys = frozenset({keys.blob("other")})
    with pytest.raises(NotPermitted, match=r"^jump host: not let in: key .*ecdsa \(refused\); it takes publickey"):
        log_in(0, **words)
    door.host_keys[:] = [keys.load("host_new")]
    door.packets.clear()
    with pytest.raises(Untrusted, match="has changed"):
        log_in(0, **words)
    assert door.auth_packets() == 0
    assert read_all(log_in(0, **words, jump="none").start("echo in")) == b"in\n"


@pytest.mark.parametrize(
    ("jump", "more"),
    [
        ("door,door", ""),
        ("door", "Host door\n ProxyJump other\nHost other\n ProxyJump door\n"),
        ("-oProxyCommand=x", ""),
        ("vm", ""),
        ("a b", ""),
    ],
)
def test_jumps_that_are_none(log_in: Start, alias: Callable[..., dict[str, Any]], jump: str, more: str) -> None:
    """Circles, a VM behind itself, bad names: exit 2, nobody is connected to."""
    with pytest.raises(UsageError):
        log_in(0, **alias(9, "", more), jump=jump)


def test_f31_side_by_side_ssh_asks_nothing(log_in: Start, serve: Start) -> None:
    """Several at a time would ask on one terminal, and would not hear the signal: exit 5, and what to do instead."""
    said: list[str] = []
    with pytest.raises(NotPermitted, match="not let in") as caught:
        log_in(serve().port, identities=("other",), ask=pytest.fail, side_by_side=True, notify=said.append)
    assert "without --jobs" in caught.value.hint
    assert not [line for line in said if line.startswith("ssh asks")]


def test_f28_closing_from_another_thread_wakes_whoever_waits(log_in: Start, serve: Start) -> None:
    """Long before the limit, and contact is lost then; no command is started any more."""
    connection = log_in(serve().port)
    channel = connection.start("echo on; cat")
    assert channel.receive(timeout_seconds=60) == b"on\n"
    waits, came = threading.Event(), []
    select = channel._selector.select

    def told(timeout: float | None = None) -> object:
        waits.set()
        return select(timeout)

    def wait() -> None:
        try:
            came.append(channel.receive(timeout_seconds=600))
        except BaseException as error:
            came.append(type(error))

    channel._selector.select = told
    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    assert waits.wait(60)
    connection.close()
    thread.join(60)
    assert came == [LostContact]
    with pytest.raises(LostContact):
        connection.start("true")


ON_A_TERMINAL = """
import sys
from vmproxy.model import Target
from vmproxy.transports import SshOptions, openssh
key, port, known, seen = sys.argv[1:]
target = Target(name="vm", provider="x", host="127.0.0.1", port=int(port), user="docker", identities=(key,),
                only_identities=True)
options = SshOptions(known_hosts=known, ask=lambda _text: None, notify=lambda line: print(line, flush=True))
connection = openssh.connect(target, options=options)
channel = connection.start(f"echo on; cat; sleep 0.5; echo put back | tee {seen}")
assert channel.receive(timeout_seconds=60) == b"on\\n"
try:
    print("READY", flush=True)
    channel.receive(timeout_seconds=60)
except KeyboardInterrupt:
    channel.end_input()
    print("SAID", channel.receive(timeout_seconds=60), channel.wait(timeout_seconds=60), flush=True)
connection.close()
"""


def until(descriptor: int, text: bytes) -> bytes:
    """What comes from a terminal until that text."""
    import select

    heard, deadline = b"", time.monotonic() + 60
    while text not in heard:
        assert time.monotonic() < deadline, heard
        if select.select([descriptor], [], [], 1.0)[0]:
            heard += os.read(descriptor, 4096)
    return heard


def test_f31_ssh_asks_on_the_terminal_and_a_ctrl_c_is_not_for_it(serve: Start, keys: Keys, tmp_path: Path) -> None:
    """A passphrase is asked for where a person is; Ctrl-C at that terminal then lets the command put things back."""
    import pty

    server = serve(keys=frozenset({keys.blob("encrypted")}))
    argv = [sys.executable, "-c", ON_A_TERMINAL, keys.path("encrypted"), str(server.port), str(tmp_path / "known")]
    pid, terminal = pty.fork()
    if pid == 0:
        os.execv(sys.executable, [*argv, str(tmp_path / "seen")])
    try:
        until(terminal, b"passphrase for key")
        os.write(terminal, b"sesame\n")
        until(terminal, b"READY")
        os.write(terminal, b"\x03")
        until(terminal, b"SAID b'put back\\n' 0")
        assert os.waitpid(pid, 0)[1] == 0
        pid = 0
    finally:
        if pid:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        os.close(terminal)
    assert (tmp_path / "seen").read_text() == "put back\n"


def test_f03_no_ssh_outlives_a_vmproxy_that_is_killed(serve: Start, keys: Keys, tmp_path: Path) -> None:
    """SIGKILL: the VM's command sees the end of its input, and every ssh process ends by itself."""
    server = serve()
    argv = [sys.executable, "-c", ON_A_TERMINAL, keys.path("ed25519"), str(server.port), str(tmp_path / "known")]
    with subprocess.Popen([*argv, str(tmp_path / "seen")], stdout=subprocess.PIPE) as process:
        assert process.stdout
        while b"READY" not in process.stdout.readline():
            assert process.poll() is None
        process.kill()
    assert comes((tmp_path / "seen").exists)
    assert comes(lambda: not any(transport.is_active() for transport in server._transports))
