"""Through jump hosts with the library: whom is told what, who is trusted, and what is closed."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.fake.conftest import Keys, read_all
from tests.fake.realservers import free_port
from vmproxy.errors import LostContact, NotPermitted, Unreachable, Untrusted, UsageError
from vmproxy.transports._known_hosts import fingerprint

Start = Callable[..., Any]


@pytest.fixture
def written(tmp_path: Path, keys: Keys) -> Callable[..., str]:
    """Write an ssh_config: ``written(door=port, second=port, more="…")``; each host has the key ``ecdsa``."""

    def write(more: str = "", **ports: int) -> str:
        path = tmp_path / "ssh_config"
        hosts = (
            f"Host {name}\n HostName 127.0.0.1\n Port {port}\n User guard\n IdentityFile {keys.path('ecdsa')}\n"
            " IdentitiesOnly yes\n"
            for name, port in ports.items()
        )
        path.write_text("".join(hosts) + more)
        return str(path)

    return write


@pytest.fixture
def door(serve: Start, keys: Keys) -> Any:
    """A jump host that lets ``ecdsa`` in."""
    return serve(host=("host_rsa",), keys=frozenset({keys.blob("ecdsa")}), forward=True)


def gone(condition: Callable[[], bool]) -> bool:
    """Whether it comes true within a minute."""
    deadline = time.monotonic() + 60
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)
    return condition()


def test_t02_the_jump_host_gets_nothing_but_the_next_address(
    log_in: Start, serve: Start, door: Any, written: Callable[..., str], keys: Keys, known_hosts: Path
) -> None:
    """It is asked for one connection and no more; both host keys are kept, each under its own name."""
    vm = serve()
    connection = log_in(vm.port, jump="door", ssh_config=written(door=door.port))
    assert read_all(connection.start("echo in")) == b"in\n"
    assert [line for line in door.seen if not line.startswith("auth")] == [f"direct-tcpip 127.0.0.1:{vm.port}"]
    assert door.commands == []
    lines = known_hosts.read_text().splitlines()
    assert [line.split()[0] for line in lines] == [f"[127.0.0.1]:{door.port}", f"[127.0.0.1]:{vm.port}"]
    assert "auth publickey bad" not in door.seen + vm.seen


def test_t02_passwords_and_keys_for_the_vm_stay_away_from_the_jump_host(
    log_in: Start, serve: Start, written: Callable[..., str]
) -> None:
    """A jump host that takes passwords gets none of VMPROXY_SSH_PASSWORD, of the VM's usual ones, and no key of -i."""
    door = serve(passwords={"guard": "hunter2"}, forward=True, keys=frozenset())
    vm = serve(passwords={"docker": "hunter2"}, keys=frozenset())
    with pytest.raises(NotPermitted, match=r"^jump host: not let in") as caught:
        log_in(
            vm.port,
            identities=("other",),
            options_identities=("ed25519",),
            target={"passwords": ("hunter2",)},
            password="hunter2",
            jump="door",
            ssh_config=written(door=door.port),
        )
    assert caught.value.exit == 5
    assert caught.value.where == f"guard@127.0.0.1:{door.port}"
    assert "ssh_config names" in caught.value.hint  # what was named for the VM would not help
    assert "-i FILE" not in caught.value.hint and "PASSWORD" not in caught.value.hint
    assert "auth password bad" not in door.seen and "auth password good" not in door.seen
    assert [line for line in door.seen if "publickey" in line] == ["auth publickey bad"]  # ecdsa, its own
    assert vm.connections == 0


def test_t02_the_password_is_still_the_vms(log_in: Start, serve: Start, door: Any, written: Callable[..., str]) -> None:
    """Behind the jump host the VM gets the password that is for it."""
    vm = serve(passwords={"docker": "hunter2"}, keys=frozenset())
    connection = log_in(vm.port, identities=(), password="hunter2", jump="door", ssh_config=written(door=door.port))
    assert read_all(connection.start("echo in")) == b"in\n"


def test_f04_changed_key_of_a_jump_host(
    log_in: Start, serve: Start, door: Any, written: Callable[..., str], keys: Keys
) -> None:
    """Exit 4 before any log-in, and the VM is not reached some other way."""
    vm = serve()
    config = written(door=door.port)
    log_in(vm.port, jump="door", ssh_config=config).close()
    door.host_keys[:] = [keys.load("host_new")]
    door.packets.clear()
    before = vm.connections
    with pytest.raises(Untrusted) as caught:
        log_in(vm.port, jump="door", ssh_config=config)
    assert fingerprint(keys.blob("host_new")) in str(caught.value)
    assert fingerprint(keys.blob("host_rsa")) in str(caught.value)
    assert door.auth_packets() == 0
    assert vm.connections == before


def test_f04_changed_key_behind_a_jump_host(
    log_in: Start, serve: Start, door: Any, written: Callable[..., str], keys: Keys
) -> None:
    """A jump host that leads elsewhere is noticed before the VM's log-in; --host-key is for the VM alone."""
    vm = serve()
    config = written(door=door.port)
    with pytest.raises(Untrusted):
        log_in(vm.port, jump="door", ssh_config=config, host_key=fingerprint(keys.blob("other")))
    log_in(vm.port, jump="door", ssh_config=config, host_key=fingerprint(keys.blob("host_ed25519")))
    log_in(vm.port, jump="door", ssh_config=config)
    vm.host_keys[:] = [keys.load("host_new")]
    vm.packets.clear()
    with pytest.raises(Untrusted, match="has changed"):
        log_in(vm.port, jump="door", ssh_config=config)
    assert vm.auth_packets() == 0


def test_several_jump_hosts_in_order_and_their_end(
    log_in: Start, serve: Start, door: Any, written: Callable[..., str], keys: Keys
) -> None:
    """-J a,b goes to a, from there to b, from there to the VM; closing closes all three, no thread is left."""
    second = serve(keys=frozenset({keys.blob("ecdsa")}), forward=True)
    vm = serve()
    threads = set(threading.enumerate())
    config = written(door=door.port, second=second.port)
    connection = log_in(vm.port, jump="door,guard@second", ssh_config=config)
    assert read_all(connection.start("echo in")) == b"in\n"
    assert f"direct-tcpip 127.0.0.1:{second.port}" in door.seen
    assert f"direct-tcpip 127.0.0.1:{vm.port}" in second.seen
    ours = connection._transport, connection.below._transport, connection.below.below._transport
    connection.close()
    assert gone(lambda: not any(transport.is_alive() for transport in ours))
    assert gone(lambda: not any(one.is_active() for server in (door, second, vm) for one in server._transports))
    assert not {thread for thread in set(threading.enumerate()) - threads if thread in ours}


def test_a_log_in_that_fails_behind_jump_hosts_closes_them(
    log_in: Start, serve: Start, door: Any, written: Callable[..., str]
) -> None:
    """No connection to a jump host is left over."""
    vm = serve()
    with pytest.raises(NotPermitted, match=r"^not let in"):
        log_in(vm.port, identities=("other",), jump="door", ssh_config=written(door=door.port))
    assert gone(lambda: not any(transport.is_active() for transport in door._transports))


def test_burst_that_is_refused_behind_a_jump_host(
    log_in: Start, serve: Start, door: Any, written: Callable[..., str]
) -> None:
    """Where the first command cannot go along with the log-in, the plain way is taken over the same jump host."""
    vm = serve(first_channel=7)
    connection = log_in(vm.port, first="echo in", jump="door", ssh_config=written(door=door.port))
    assert read_all(connection.start("echo in")) == b"in\n"
    assert door.connections == 1


def test_proxyjump_of_ssh_config(log_in: Start, serve: Start, door: Any, written: Callable[..., str]) -> None:
    """An alias with ProxyJump goes through it, and through the jump host's own; -J none goes directly."""
    second = serve(forward=True, none=True, keys=frozenset())
    vm = serve()
    more = f"Host dev\n HostName 127.0.0.1\n Port {vm.port}\n User docker\n ProxyJump second\n"
    config = written("Host second\n ProxyJump door\n" + more, door=door.port, second=second.port)
    target = {"provider": "ssh", "host": "dev", "port": 0, "user": ""}
    assert read_all(log_in(0, target=target, ssh_config=config).start("echo in")) == b"in\n"
    assert f"direct-tcpip 127.0.0.1:{vm.port}" in second.seen
    assert f"direct-tcpip 127.0.0.1:{second.port}" in door.seen
    door.seen.clear()
    assert read_all(log_in(0, target=target, ssh_config=config, jump="none").start("echo in")) == b"in\n"
    assert door.seen == []


def test_a_jump_host_that_passes_nothing_on(log_in: Start, serve: Start, written: Callable[..., str]) -> None:
    """AllowTcpForwarding no: exit 4, with both addresses and what to look at."""
    door = serve(none=True, keys=frozenset())
    with pytest.raises(Unreachable, match="does not pass connections on") as caught:
        log_in(serve().port, jump="door", ssh_config=written(door=door.port))
    assert "AllowTcpForwarding" in caught.value.hint
    assert f"127.0.0.1:{door.port}" in caught.value.where


def test_f01_nothing_listens_behind_the_jump_host(
    log_in: Start, serve: Start, door: Any, written: Callable[..., str]
) -> None:
    """Exit 4 with the VM's address."""
    port = free_port()
    with pytest.raises(Unreachable, match="jump host cannot connect") as caught:
        log_in(port, jump="door", ssh_config=written(door=door.port))
    assert caught.value.where.startswith(f"127.0.0.1:{port} from ")


def test_f01_no_jump_host(log_in: Start, written: Callable[..., str]) -> None:
    """A jump host that is down is named, not the VM."""
    port = free_port()
    with pytest.raises(Unreachable, match=r"^jump host: cannot connect") as caught:
        log_in(22, jump="door", ssh_config=written(door=port))
    assert caught.value.where == f"127.0.0.1:{port}"
    with pytest.raises(Unreachable, match=r"^jump host: the host name is not known") as caught:
        log_in(22, jump="nohost.invalid", ssh_config=written())
    assert "jump host" in caught.value.hint and "ssh:ALIAS" not in caught.value.hint


def test_f02_silence_behind_the_jump_host(log_in: Start, serve: Start, door: Any, written: Callable[..., str]) -> None:
    """A VM that never greets ends at the connect timeout."""
    silent = serve(first_bytes=b"", then_silent=True)
    with pytest.raises(Unreachable, match="no SSH handshake in time"):
        log_in(silent.port, jump="door", ssh_config=written(door=door.port), connect_timeout_seconds=4.0)


def test_f02_a_jump_host_that_does_not_speak_ssh(log_in: Start, serve: Start, written: Callable[..., str]) -> None:
    """It is its port that is asked for, not the VM's."""
    door = serve(first_bytes=b"HTTP/1.1 400 Bad Request\r\n\r\n")
    with pytest.raises(Unreachable, match=r"^jump host: no SSH handshake") as caught:
        log_in(22, jump="door", ssh_config=written(door=door.port))
    assert caught.value.hint == "is this its ssh port?"


def test_f03_the_jump_host_goes(
    log_in: Start, serve: Start, relay: Start, door: Any, written: Callable[..., str]
) -> None:
    """P12: cut between us and the jump host, in the middle of a command: exit 9, no hang."""
    between = relay(door.port)
    connection = log_in(serve().port, jump="door", ssh_config=written(door=between.port))
    channel = connection.start("echo on; cat")
    assert channel.receive(timeout_seconds=60) == b"on\n"
    between.cut()
    with pytest.raises(LostContact):
        channel.receive(timeout_seconds=60)


@pytest.mark.parametrize(
    ("jump", "more"),
    [
        ("door,door", ""),
        ("door", "Host door\n ProxyJump door\n"),
        ("door", "Host door\n ProxyJump other\nHost other\n ProxyJump door\n"),
        ("127.0.0.1,door", "Host 127.0.0.1\n Port 9\n User guard\n"),
        ("door", "Host door\n ProxyCommand nc %h %p\n"),
    ],
)
def test_ways_that_are_none(log_in: Start, written: Callable[..., str], jump: str, more: str) -> None:
    """A circle, a host twice under two names, a way that takes a program: exit 2, and nobody is connected to."""
    config = written(more, door=9)
    with pytest.raises(UsageError) as caught:
        log_in(9, jump=jump, ssh_config=config)
    assert caught.value.exit == 2
