"""The look on VMs whose tools differ."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.lab.hostside import inside
from tests.lab.nsvm import NamespaceVM
from tests.ns.story import PROFILE, Vmproxy, shim, until
from vmproxy import converge
from vmproxy.machines import shell
from vmproxy.model import Facts
from vmproxy.session import Session, _filled_in
from vmproxy.stopping import Stop
from vmproxy.transports._tcp import Dial


def test_a_timeout_of_the_old_form_hides_no_rules(stub_vm: NamespaceVM, tmp_path: Path) -> None:
    """busybox before 1.30 takes ``timeout -t 20 …``: the words are then no limit, and everything is still seen."""
    shim(
        stub_vm, "timeout", """[ "$1" = -t ] || { echo "timeout: can't execute '$1'" >&2; exit 127; }; shift 2; "$@" """
    )
    vmproxy = Vmproxy(stub_vm, tmp_path)
    done = vmproxy.tell(converge.apply, check=False, verify=False)
    assert done.ok and done.changed, done
    assert vmproxy.tell(converge.status).message == "in sync"
    # What fails is told in its own words, not in those of a timeout that has run nothing.
    shim(stub_vm, "iptables-nft-restore", "echo 'a real reason' >&2; exit 2")
    ran = vmproxy.remove()
    assert (ran.code, "a real reason" in ran.err, "timeout:" in ran.err) == (6, True, False), str(ran)


def test_a_failing_dump_is_told_from_a_missing_limit(stub_vm: NamespaceVM, tmp_path: Path) -> None:
    """An iptables-save that fails is an error that is told, with timeout and without."""
    vmproxy = Vmproxy(stub_vm, tmp_path)
    shim(stub_vm, "iptables-nft-save", "echo '*nat'; exit 4")
    ran = vmproxy.status()
    assert ran.code not in (0, 1), ran
    assert "iptables-save" in ran.err and "4" in ran.err, ran


@pytest.mark.parametrize("shell_name", ["dash", "bash", "busybox"])
def test_the_loader_takes_its_script_and_not_a_byte_more(shell_name: str) -> None:
    """In one piece, in many, with newlines and bytes beyond ASCII at the seams; a script cut short is not run."""
    script = ("#" * 9000 + "\n\n\nprintf '%s|' ran …; IFS= read -r line; printf '%s|' \"$line\"\n\n").encode()
    data = f"{len(script)}\n".encode() + script + b"tail\nmore\n"
    at = len(data) - data[::-1].index("…".encode()[::-1]) - 1  # in the middle of a character
    with NamespaceVM(docker=False, shell=shell_name) as machine:
        for name, piece in (("1", data[:5000]), ("2", data[5000:9008]), ("3", data[9008:at]), ("4", data[at:])):
            machine.path(f"/tmp/{name}").write_bytes(piece)
        for feed in ("cat /tmp/[1234]", "for f in /tmp/[1234]; do cat $f; sleep 0.1; done"):
            done = machine.run(f"({feed}) | {shell.AS_USER}", user="docker")
            assert done.stdout.decode() == "ran|…|tail|"
        for feed in ("cat /tmp/1", "cat /tmp/[123]", "echo 5", "true"):
            done = machine.run(f"({feed}) | {shell.AS_USER}", user="docker", check=False)
            assert done.stdout == b""


@contextmanager
def listeners(machine: NamespaceVM) -> Iterator[set[tuple[str, int]]]:
    """One listening socket of each kind in the VM: their addresses and ports, as a look should have them."""
    machine.run("ip addr add fe80::77/64 dev eth1 nodad")

    def listen(family: socket.AddressFamily, host: str, *, only6: bool = False, device: str = "") -> socket.socket:
        sock = stack.enter_context(socket.socket(family))
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, only6)
        if device:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, device.encode())
        scope = socket.if_nametoindex("eth1") if host.startswith("fe80") else 0
        sock.bind((host, 0, 0, scope) if family == socket.AF_INET6 else (host, 0))
        sock.listen()
        return sock

    def all_of_them() -> set[tuple[str, int]]:
        four, six = socket.AF_INET, socket.AF_INET6
        made = [
            ("0.0.0.0", listen(four, "0.0.0.0")),
            ("127.0.0.1", listen(four, "127.0.0.1", device="lo")),
            ("192.168.99.100", listen(four, "192.168.99.100")),
            ("::", listen(six, "::")),
            ("::", listen(six, "::", only6=True)),
            ("::1", listen(six, "::1")),
            ("fe80::77", listen(six, "fe80::77")),
            ("127.0.0.1", listen(six, "::ffff:127.0.0.1")),
        ]
        return {(host, int(sock.getsockname()[1])) for host, sock in made}

    with ExitStack() as stack:
        yield inside(machine.surroundings.vm, all_of_them)


def looked(vmproxy: Vmproxy) -> Facts:
    """One look, with all that an apply asks for."""
    with Session(vmproxy.target, vmproxy.settings(), tell=str, news=str, ask=None) as session:
        return session.observe(session.look_for_all())


def test_what_one_of_many_has_left_out_is_filled_in(stub_vm: NamespaceVM, tmp_path: Path) -> None:
    """Beside others a VM is asked for less; what is missing comes by a look for it alone, and is as seen at once."""
    vmproxy = Vmproxy(stub_vm, tmp_path)
    stub_vm.path(PROFILE).write_bytes(b"# mine\r\n\0\xff no end")
    stub_vm.path(PROFILE).chmod(0o640)
    alone = looked(vmproxy)
    words: dict[str, Any] = {"tell": str, "news": str, "ask": None}
    with Session(vmproxy.target, vmproxy.settings(), stop=Stop(), only_look=True, **words) as session:
        session.begin(change=True)
        bare = session.observe(session.look_for_all())
        rest = session.observe(replace(session.look_for_all(), listeners=True, stats=True, rest=True))
    assert bare.bare and not bare.listeners and bare.files[PROFILE].mode == 0o644
    assert not rest.dumps and not rest.routes and not rest.texts
    filled = _filled_in(bare, rest)
    assert filled is not None
    assert vars(replace(filled, dumps={})) == vars(replace(alone, dumps={}))  # a dump has the time of day in it
    assert alone.listeners and alone.files[PROFILE].mode == 0o640


def test_a_vm_with_poorer_tools_is_seen_the_same(bare_vm: NamespaceVM, tmp_path: Path) -> None:
    """No ``ip -batch``, no ss, no ``head -v``: routes, addresses, listeners, mounts and files are as with them; so are
    the listeners of every kind, and an IPv6 address is dialled as it is."""
    vmproxy = Vmproxy(bare_vm, tmp_path)
    bare_vm.path(PROFILE).write_bytes(b"# mine\r\n\0\xff no end")
    bare_vm.run("ip route add 10.50.0.0/16 nexthop via 10.0.2.2 nexthop via 192.168.99.1")
    bare_vm.run("ip route add blackhole 10.6.0.0/16")
    # The kernel gives each interface its own address a little after it is up.
    count = ["grep", "-c", "^fe80.*eth", "/proc/net/if_inet6"]
    until(lambda: bare_vm.run(count, check=False).stdout.strip() == b"3", "IPv6 is up", 60)
    with listeners(bare_vm) as wanted:
        seen = looked(vmproxy)
        assert wanted < set(seen.listeners)
        assert seen.files[PROFILE].content == b"# mine\r\n\0\xff no end"
        assert seen.mounts and seen.addresses and len(seen.routes) > 3
        poorer = {
            "ip": '[ "$2" != -batch ] || { echo "10.9.0.0/16 dev eth9"; exit 1; }; exec /bin/ip "$@"',
            "ss": "echo 'Usage: ss [ OPTIONS ]'; exit 255",
            "head": "echo '==> /etc/profile <=='; exit 1",
        }
        shims = [shim(bare_vm, name, script) for name, script in poorer.items()]
        assert vars(looked(vmproxy)) == vars(seen)
        bare_vm.path(shims[0]).write_text('#!/bin/sh\nexec busybox ip "$@"\n')
        assert looked(vmproxy).addresses == seen.addresses
        for path in shims:
            bare_vm.path(path).unlink()
        (port,) = [port for host, port in wanted if host == "::1"]
        dialled = inside(bare_vm.surroundings.vm, lambda: Dial("::1", port, timeout_seconds=60.0, busy=False).result())
        dialled.close()
