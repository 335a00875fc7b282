"""Nine machines in network namespaces: containers, their VM, its host, a LAN neighbour, somebody outside.

::

    ct      docker0   172.17.0.2 ─┐        ┌─ eth0 ─ host  10.0.2.2      its proxy on 8123, something else on 9000
    app     br-1f0c…  172.18.0.2 ─┤        │
    plain   kitchen0  172.20.0.2 ─┼── VM ──┼─ eth1 ─ lan   192.168.99.1
    inside  br-7c55…  172.19.0.2 ─┤        └─ eth2 ─ other 203.0.113.9   an unrelated service on 8123
    office  br-lan   192.168.7.2 ─┘

Everything is made by ``ip``; sockets are opened by threads of this process that have entered the namespace.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import os
import socket
import subprocess
import threading
from collections.abc import Callable
from types import TracebackType
from typing import TypeVar

T = TypeVar("T")

_SERIAL = itertools.count()
_CLONE_NEWNET = 0x40000000
_CONNECT_SECONDS = 0.7
_WAIT_SECONDS = 60.0

LINKS = {
    "host": ("eth0", "10.0.2.15", "10.0.2.2"),
    "lan": ("eth1", "192.168.99.100", "192.168.99.1"),
    "other": ("eth2", "203.0.113.1", "203.0.113.9"),
}
"""Uplink in the VM, the VM's address on it, the machine's own."""
BRIDGES = {
    "ct": ("docker0", "172.17.0.1"),
    "app": ("br-1f0c9d2a7b31", "172.18.0.1"),
    "plain": ("kitchen0", "172.20.0.1"),
    "inside": ("br-7c55e0d1a2f4", "172.19.0.1"),
    "office": ("br-lan", "192.168.7.1"),
}
"""As in the recorded dumps docker20-…-networks: kitchen0 has no masquerade, ``inside`` is --internal.
br-lan is no bridge of Docker's: a LAN of the site's, whose name looks like one."""


def run(*argv: str, data: bytes | None = None) -> bytes:
    """One program of this machine; its stdout. Raises with what it said."""
    done = subprocess.run(argv, input=data, capture_output=True, check=False, timeout=120)
    if done.returncode:
        raise AssertionError(f"{argv}: {done.returncode}: {done.stderr.decode(errors='replace')}")
    return done.stdout


class Nets:
    """The machines, one variant of iptables in the VM; a context manager that leaves nothing behind."""

    def __init__(self, variant: str) -> None:
        self.variant = variant
        self._prefix = f"vmpr{os.getpid()}x{next(_SERIAL)}-"
        self._names: list[str] = []
        self._servers: list[socket.socket] = []
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> Nets:
        try:
            self._build()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the servers and delete the namespaces."""
        for server in self._servers:
            with contextlib.suppress(OSError):
                server.shutdown(socket.SHUT_RDWR)
            server.close()
        for thread in self._threads:
            thread.join(5)
        for name in self._names:
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True, timeout=120)

    def inside(self, machine: str, *argv: str, data: bytes | None = None) -> bytes:
        """A program in one machine's network."""
        return run("ip", "netns", "exec", self._prefix + machine, *argv, data=data)

    def save(self) -> bytes:
        """The VM's rules."""
        return self.inside("vm", f"iptables-{self.variant}-save")

    def restore(self, text: bytes) -> None:
        """Carry out restore text as commit.sh does."""
        self.inside("vm", f"iptables-{self.variant}-restore", "-w", "60", "--noflush", data=text)

    def iptables(self, words: str) -> None:
        """One iptables command in the VM."""
        self.inside("vm", f"iptables-{self.variant}", "-w", "60", *words.split())

    def ask(self, machine: str, address: str, port: int) -> str:
        """What a client on a machine gets from address:port; "" where there is no connection."""

        def client() -> str:
            try:
                with socket.create_connection((address, port), _CONNECT_SECONDS) as connection:
                    connection.settimeout(_WAIT_SECONDS)  # the rules have let it in: who answers may be slow
                    return connection.recv(200).decode()
            except OSError:
                return ""

        return self._within(machine, client)

    def _serve(self, machine: str, address: str, port: int, name: str) -> None:
        """A server that tells each client its own name and the address it sees, as long as the machines last."""

        def listen() -> socket.socket:
            server = socket.socket()
            server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            server.bind((address, port))
            server.listen(16)
            return server

        server = self._within(machine, listen)

        def answer() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection, client = server.accept()
                    with connection, contextlib.suppress(OSError):  # one that has gone already is no reason to end
                        connection.sendall(f"{name} saw {client[0]}".encode())

        self._servers.append(server)
        self._threads.append(threading.Thread(target=answer, daemon=True))
        self._threads[-1].start()

    def _within(self, machine: str, task: Callable[[], T]) -> T:
        """Run ``task`` in a thread that has entered the machine's network namespace."""
        done: list[T] = []
        failed: list[BaseException] = []

        def body() -> None:
            try:
                libc = ctypes.CDLL(None, use_errno=True)
                with open(f"/run/netns/{self._prefix}{machine}", "rb") as handle:
                    if libc.setns(handle.fileno(), _CLONE_NEWNET):
                        raise OSError(ctypes.get_errno(), "setns")
                done.append(task())
            except BaseException as error:
                failed.append(error)

        thread = threading.Thread(target=body)
        thread.start()
        thread.join()
        if failed:
            raise failed[0]
        return done[0]

    def _build(self) -> None:
        for machine in ("vm", *LINKS, *BRIDGES):
            name = self._prefix + machine
            run("ip", "netns", "add", name)
            self._names.append(name)
        inner = ["link set lo up"]
        outer: dict[str, list[str]] = {}
        for machine, (uplink, ours, theirs) in LINKS.items():
            inner.append(f"link add {uplink} type veth peer name far netns {self._prefix}{machine}")
            inner += [f"addr add {ours}/24 dev {uplink}", f"link set {uplink} up"]
            outer[machine] = [f"addr add {theirs}/24 dev far", "link set far up", f"route add default via {ours}"]
        # The host knows no way to the containers: what comes back to them has been masqueraded. It knows the LAN, so
        # that a LAN client without an answer was stopped by the rules and by nothing else.
        outer["host"][-1] = "route add 192.168.99.0/24 via 10.0.2.15"
        for machine, (bridge, gateway) in BRIDGES.items():
            inner += [f"link add {bridge} type bridge", f"addr add {gateway}/16 dev {bridge}", f"link set {bridge} up"]
            inner.append(f"link add v{machine} type veth peer name far netns {self._prefix}{machine}")
            inner += [f"link set v{machine} master {bridge}", f"link set v{machine} up"]
            outer[machine] = [
                f"addr add {gateway[:-1]}2/16 dev far",
                "link set far up",
                f"route add default via {gateway}",
            ]
        self._batch("vm", [*inner, "route add default via 10.0.2.2"])
        for machine, steps in outer.items():
            self._batch(machine, ["link set lo up", *steps])
        self.inside("vm", "sysctl", "-qw", "net.ipv4.ip_forward=1")
        self._serve("host", "10.0.2.2", 8123, "PROXY")
        self._serve("host", "10.0.2.2", 9000, "HOST-OTHER")
        self._serve("other", "203.0.113.9", 8123, "UNRELATED")
        self._serve("ct", "172.17.0.2", 80, "PUBLISHED")
        self._serve("vm", "10.0.2.15", 8123, "VM-OWN")

    def _batch(self, machine: str, steps: list[str]) -> None:
        run("ip", "-n", self._prefix + machine, "-batch", "-", data="\n".join(steps).encode())
