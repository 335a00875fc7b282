"""What stands around a namespace VM: its host, a LAN neighbour, an unrelated outside host, and a way in for ssh.

Every network namespace is one open descriptor of this process and nothing else: no name, no mount, no holder process.
When the process ends, however it ends, they are gone. ::

    host 10.0.2.2 ─ eth0 ─┐                      10.0.2.2 leads to the host's 127.0.0.1, as with a NAT hypervisor
    lan  192.168.99.1 ────┼─ VM   10.0.2.15, 192.168.99.100, 203.0.113.1
    outside 203.0.113.9 ──┘
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import socket
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from tests.lab.tree import LabError

T = TypeVar("T")

CLONE_NEWNET = 0x40000000
SECONDS = 60.0
_SLICE_SECONDS = 0.05
_ANSWER_SECONDS = 10.0
_CHUNK = 65536
_libc = ctypes.CDLL(None, use_errno=True)

_VM_SCRIPT = """
ip -batch - <<END
link set lo up
link add eth0 type veth peer name eth0 netns $HOST
link add eth1 type veth peer name eth0 netns $LAN
link add eth2 type veth peer name eth0 netns $OUTSIDE
addr add 10.0.2.15/24 dev eth0
addr add 192.168.99.100/24 dev eth1
addr add 203.0.113.1/24 dev eth2
link set eth0 up
link set eth1 up
link set eth2 up
route add default via 10.0.2.2
END
"""
# Forwarding and rp_filter are copied from this machine into a new namespace: both are put where a fresh VM has them.
_PLAIN = "for f in /proc/sys/net/ipv4/conf/*/rp_filter /proc/sys/net/ipv4/ip_forward; do echo 0 >$f; done\n"
# The way back to the LAN goes through the VM, so that a LAN host without a connection is the firewall's doing.
_HOST_SCRIPT = """
ip -batch - <<END
addr add 10.0.2.2/24 dev eth0
addr add 10.0.2.3/24 dev eth0
link set eth0 up
route add 192.168.99.0/24 via 10.0.2.15
END
"""
_HOST_ONCE = """
ip link set lo up
echo 1 >/proc/sys/net/ipv4/conf/all/route_localnet
iptables-nft -t nat -A PREROUTING -d 10.0.2.2/32 -j DNAT --to-destination 127.0.0.1
"""
_LAN_SCRIPT = """
ip -batch - <<END
link set lo up
addr add 192.168.99.1/24 dev eth0
link set eth0 up
route add default via 192.168.99.100
END
"""
_OUTSIDE_SCRIPT = """
ip -batch - <<END
link set lo up
addr add 203.0.113.9/24 dev eth0
link set eth0 up
route add default via 203.0.113.1
END
"""


def inside(network: int, work: Callable[[], T]) -> T:
    """Run ``work`` in a thread of its own that stands in that network namespace; sockets it makes stay there.

    ``network`` is a descriptor of the namespace, or -1 for a new one. Raises what ``work`` raises, or OSError.
    """
    answer: list[T] = []
    trouble: list[BaseException] = []

    def body() -> None:
        try:
            status = _libc.unshare(CLONE_NEWNET) if network < 0 else _libc.setns(network, CLONE_NEWNET)
            if status:
                raise OSError(ctypes.get_errno(), "cannot enter the network namespace")
            answer.append(work())
        except BaseException as error:
            trouble.append(error)

    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    if trouble:
        raise trouble[0]
    return answer[0]


def connect(network: int, address: str, port: int, *, seconds: float = SECONDS) -> socket.socket:
    """A TCP connection made from inside that network. Raises OSError."""
    return inside(network, lambda: socket.create_connection((address, port), timeout=seconds))


def listen(network: int, address: str, port: int) -> socket.socket:
    """A listening TCP socket inside that network. Raises OSError."""
    return inside(network, lambda: socket.create_server((address, port), backlog=64))


def ask(network: int, address: str, port: int, *, send: bytes = b"", seconds: float = 1.5) -> str:
    """What answers there, as one word or line: the first text it sends, ``refused``, ``silence`` or ``unreachable``.

    ``seconds`` are for the connection, and of a machine that runs: see :func:`_comes`.
    """
    try:
        with inside(network, lambda: _dialled(address, port)) as connection:
            if not _comes(connection, select.POLLOUT, seconds):
                return "silence"
            if error := connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                raise OSError(error, os.strerror(error))
            connection.sendall(send)
            # Nothing is in its way any more: who is to answer may be slow.
            if not _comes(connection, select.POLLIN, max(seconds, _ANSWER_SECONDS)):
                return "silence"
            return connection.recv(4096).decode("utf-8", "replace") or "silence"
    except ConnectionRefusedError:
        return "refused"
    except TimeoutError:
        return "silence"
    except OSError:
        return "unreachable"


def _dialled(address: str, port: int) -> socket.socket:
    """A TCP socket on its way there. Raises OSError."""
    family, kind, protocol, _, to = socket.getaddrinfo(address, port, type=socket.SOCK_STREAM)[0]
    connection = socket.socket(family, kind, protocol)
    try:
        connection.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            connection.connect(to)
    except BaseException:
        connection.close()
        raise
    return connection


def _comes(connection: socket.socket, event: int, seconds: float) -> bool:
    """Whether the socket is ready in time. Time is counted in short slices, each for itself however long it took: when
    the machine stands still for a while, whoever is to answer has stood still, too."""
    poll = select.poll()
    poll.register(connection, event)
    return any(poll.poll(_SLICE_SECONDS * 1000) for _ in range(round(seconds / _SLICE_SECONDS)))


class Greeter:
    """A server inside a network that tells each client ``NAME sees ADDRESS`` and hangs up. A context manager."""

    def __init__(self, network: int, address: str, port: int, name: str) -> None:
        self._server, self._name = listen(network, address, port), name
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def __enter__(self) -> Greeter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop listening; safe to call twice."""
        with contextlib.suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        self._thread.join(timeout=5)

    def _accept(self) -> None:
        while True:
            try:
                client, address = self._server.accept()
            except OSError:
                return
            with client, contextlib.suppress(OSError):
                client.sendall(f"{self._name} sees {address[0]}".encode())


class Surroundings:
    """The namespaces around one VM, and the VM's own. ``tree`` is the staged tree whose ``ip`` is used."""

    def __init__(self, tree: Path) -> None:
        self._tree = tree
        self.vm = -1
        self.host, self.lan, self.outside = (_new_network() for _ in range(3))
        self._script(self.host, _PLAIN + _HOST_ONCE)

    def plug(self) -> None:
        """A new, empty network namespace for the VM, cabled to the others; as after a reset the rules are gone."""
        self.unplug()
        self.vm = _new_network()
        self._script(self.vm, _VM_SCRIPT + _PLAIN, HOST=self.host, LAN=self.lan, OUTSIDE=self.outside)
        self._script(self.host, _HOST_SCRIPT)
        self._script(self.lan, _LAN_SCRIPT + _PLAIN)
        self._script(self.outside, _OUTSIDE_SCRIPT + _PLAIN)

    def unplug(self) -> None:
        """Take the VM's cables out at once; the kernel would do it some time after the namespace's end."""
        if self.vm >= 0:
            self._script(self.vm, "for n in eth0 eth1 eth2; do ip link del $n; done\n", check=False)
            os.close(self.vm)
            self.vm = -1

    def close(self) -> None:
        """End all namespaces that nobody else stands in; safe to call twice."""
        self.unplug()
        for name in ("host", "lan", "outside"):
            if getattr(self, name) >= 0:
                os.close(getattr(self, name))
                setattr(self, name, -1)

    def argv(self, network: int) -> list[str]:
        """The words that run a command of this machine inside that network."""
        return ["nsenter", f"--net={_path(network)}", "--"]

    def _script(self, network: int, script: str, *, check: bool = True, **networks: int) -> None:
        """Run a constant script with the staged tree's own tools inside that network; this machine may have none."""
        wrapper = 'mount --bind /proc "$0/proc" && exec chroot "$0" /bin/sh -e -c "$1"'
        argv = [*self.argv(network), "unshare", "--mount", "sh", "-c", wrapper, str(self._tree), script]
        environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", **{name: _path(fd) for name, fd in networks.items()}}
        done = subprocess.run(
            argv,
            env=environment,
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
            stdin=subprocess.DEVNULL,
        )
        if check and done.returncode:
            raise LabError(f"cannot set up the network: {done.stderr.strip()[-1000:]}")


def _new_network() -> int:
    return inside(-1, lambda: os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC))


def _path(network: int) -> str:
    return f"/proc/{os.getpid()}/fd/{network}"


class Relay:
    """A port on this machine's 127.0.0.1 that leads to an address as seen from inside a network.

    It is the NAT port forward of a hypervisor: the VM sees the connection come from its host. ``cut()`` drops
    every connection of the moment, as a laptop's lid does, and new ones still get through.
    """

    def __init__(self, network: int, address: str, port: int) -> None:
        self._network, self._address, self._to_port = network, address, port
        self._server = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port: int = self._server.getsockname()[1]
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        """Drop every connection there is now."""
        with self._lock:
            for end in self._open:
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Stop listening and drop every connection; safe to call twice."""
        with contextlib.suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        self.cut()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._server.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client:
            try:
                server = connect(self._network, self._address, self._to_port, seconds=10.0)
            except OSError:
                return
            with server:
                for end in (client, server):
                    end.settimeout(None)
                    end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                with self._lock:
                    self._open |= {client, server}
                back = threading.Thread(target=_pump, args=(server, client), daemon=True)
                back.start()
                _pump(client, server)
                back.join()
                with self._lock:
                    self._open -= {client, server}


def _pump(source: socket.socket, sink: socket.socket) -> None:
    """Copy until the end of ``source``, then pass that end on."""
    with contextlib.suppress(OSError):
        while data := source.recv(_CHUNK):
            sink.sendall(data)
    with contextlib.suppress(OSError):
        sink.shutdown(socket.SHUT_WR)
