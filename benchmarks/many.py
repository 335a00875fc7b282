"""Fifty VMs at once: what one vmproxy, and fifty ssh, pyinfra and ansible need for the same job in all of them.

::

    clients 198.18.0.1 ──┬── 198.18.1.1  VM 1, its own host and proxy at 10.0.2.2
                         ├── 198.18.1.2  VM 2 …

At no delay the clients and the VMs are joined by a kernel bridge; with one, packets go through :class:`SlowHub`.
"""

from __future__ import annotations

import contextlib
import fcntl
import heapq
import os
import selectors
import socket
import struct
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchmarks.paired import Way
from benchmarks.world import FILES, PORT, RESTART, Host, World, standing_in
from tests.lab.hostside import inside, listen
from tests.lab.nsvm import NamespaceVM
from tests.lab.proxy import LabProxy

CLIENTS = "198.18.0.1"
_TUNSETIFF, _IFF_TUN_WITHOUT_INFO = 0x400454CA, 0x1001
_PACKET = 65536
_HANDS = 4
_HUB = "ip link add hub type bridge; ip addr add 198.18.0.1/16 dev hub; ip link set lo up; ip link set hub up\n"
_CABLE = """
ip link add work0 type veth peer name $PORT netns $CLIENTS
ip addr add $ADDRESS/16 dev work0
ip link set work0 up
"""
_ALL_SSH = 'exec ssh -F none "$@" "sudo -n sh -s" <"$script"'


def address(number: int) -> str:
    """The address of VM ``number``, from 0."""
    return f"198.18.1.{number + 1}"


class Many(World):
    """``count`` VMs, each with a stub of Docker and a proxy on its host; one network in which all clients run."""

    def __init__(self, host: Host, *, count: int, rtt_seconds: float = 0.0) -> None:
        super().__init__(host, rtt_seconds=rtt_seconds)
        self.count = count
        self.vms: list[NamespaceVM] = []

    def __enter__(self) -> Many:
        with self._stack as stack:
            self.network = inside(-1, lambda: os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC))
            stack.callback(os.close, self.network)
            kept = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="vmproxy-bench-")))
            self.key, self.known, self.kept = kept / "key", kept / "known_hosts", kept
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", str(self.key)], check=True)
            for number in range(self.count):
                self._add(stack, number)
            self.vm = self.vms[0]
            stack.enter_context(standing_in(self.network))
            if self._rtt_seconds:
                stack.enter_context(SlowHub(self.network, [vm.surroundings.vm for vm in self.vms], self._rtt_seconds))
            self._rules = self.vm.run("iptables-save").stdout
            self._stack = stack.pop_all()
        return self

    def _add(self, stack: contextlib.ExitStack, number: int) -> None:
        vm = stack.enter_context(NamespaceVM(docker="stub", more=("python3",)))  # Python is for ansible
        self.vms.append(vm)
        around = vm.surroundings
        stack.enter_context(LabProxy(listen(around.host, "127.0.0.1", PORT)))
        if not self._rtt_seconds:
            script = around._script
            if not number:
                script(self.network, _HUB)
            port = f"port{number}"
            words = _CABLE.replace("$PORT", port).replace("$ADDRESS", address(number))
            script(around.vm, words, CLIENTS=self.network)
            script(self.network, f"ip link set {port} master hub; ip link set {port} up\n")
        with vm.path("/home/docker/.ssh/authorized_keys").open("a", encoding="ascii") as keys:
            keys.write(self.key.with_suffix(".pub").read_text(encoding="ascii"))
        with self.known.open("a", encoding="utf-8") as known:
            known.write(f"{address(number)} {vm.known_hosts.read_text(encoding='utf-8').split(' ', 1)[1]}")
        vm.path("/etc/init.d/docker").write_text(RESTART, encoding="utf-8")

    @property
    def addresses(self) -> list[str]:
        """All VMs, in order."""
        return [address(number) for number in range(self.count)]

    def vmproxy(self, command: str, *words: str, codes: tuple[int, ...] = (0,)) -> Way:
        """``vmproxy COMMAND --jobs N`` on all of them."""
        known = self.kept / "vmproxy_known_hosts"
        targets = ",".join(f"ssh://docker@{where}" for where in self.addresses)
        return self.host.vmproxy(
            *(command, "-q", "--vm", targets, "--jobs", str(self.count), "-i", str(self.key)),
            *("--known-hosts", str(known), *words),
            codes=codes,
        )

    def ssh(self, script: Path, *options: str) -> Way:
        """``xargs -P N ssh``, each with the script as its stdin."""
        options = (
            *("-o", f"UserKnownHostsFile={self.known}", "-o", "BatchMode=yes", "-o", "User=docker", *options),
            *("-o", "IdentitiesOnly=yes", "-i", str(self.key)),
        )
        hosts = self.write("hosts", "".join(f"{where}\n" for where in self.addresses))
        argv = ("xargs", "-P", str(self.count), "-n", "1", "sh", "-c", _ALL_SSH, "ssh", *options)
        return Way(name="xargs ssh", argv=argv, environ={**self.host.environ, "script": str(script)}, stdin=hosts)

    def reset(self) -> None:
        """All of them into the state that nobody has touched."""
        restart = "env -i PATH=$PATH /etc/init.d/docker restart </dev/null >/dev/null 2>&1"
        self.each(lambda vm: vm.run(f"rm -f {' '.join(FILES)}; iptables-restore && {restart}", stdin=self._rules))

    def rules(self) -> bytes:
        """The rules of now, as the first VM has them."""
        return self.vm.run("iptables-save").stdout

    def with_rules(self, rules: bytes) -> None:
        """Give all of them these rules."""
        self.each(lambda vm: vm.run("iptables-restore", stdin=rules))

    def each(self, work: Callable[[NamespaceVM], object]) -> None:
        """Do something in all of them, a few at a time."""
        with ThreadPoolExecutor(_HANDS) as hands:
            for _ in hands.map(work, self.vms):
                pass


class SlowHub:
    """Joins the namespace ``here`` with each of ``there`` (descriptors); a round trip takes ``rtt_seconds``.

    One thread takes packets from all devices, holds each for half of that, and gives it to the device whose address it
    goes to. A context manager.
    """

    def __init__(self, here: int, there: list[int], rtt_seconds: float) -> None:
        self._half = rtt_seconds / 2
        self._devices = {socket.inet_aton(CLIENTS): inside(here, lambda: _tun(CLIENTS))}
        for number, network in enumerate(there):
            where = address(number)
            self._devices[socket.inet_aton(where)] = inside(network, lambda where=where: _tun(where))
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._carry, daemon=True)

    def __enter__(self) -> SlowHub:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join(10)
        for device in self._devices.values():
            os.close(device)

    def _carry(self) -> None:
        waiting: list[tuple[float, int, int, bytes]] = []  # in the order in which they are due, and came
        count = 0
        with selectors.DefaultSelector() as selector:
            for device in self._devices.values():
                os.set_blocking(device, False)
                selector.register(device, selectors.EVENT_READ)
            while not self._over.is_set():
                pause = max(0.0, waiting[0][0] - time.monotonic()) if waiting else 0.5
                for key, _events in selector.select(pause):
                    for packet in _packets(key.fd):
                        sink = self._devices.get(packet[16:20], -1)  # IPv4: the destination (RFC 791)
                        if packet[0] >> 4 == 4 and sink >= 0:
                            count += 1
                            heapq.heappush(waiting, (time.monotonic() + self._half, count, sink, packet))
                while waiting and waiting[0][0] <= time.monotonic():
                    with contextlib.suppress(OSError):
                        os.write(waiting[0][2], waiting[0][3])
                    heapq.heappop(waiting)


def _packets(device: int) -> Iterator[bytes]:
    """What there is to read now."""
    with contextlib.suppress(BlockingIOError):
        while packet := os.read(device, _PACKET):
            yield packet


def _tun(where: str) -> int:
    """A tun device with that address, of the network 198.18.0.0/16, in the network of this thread."""
    device = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
    name = fcntl.ioctl(device, _TUNSETIFF, struct.pack("16sH22x", b"slow%d", _IFF_TUN_WITHOUT_INFO))[:16]
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as knob:
        # SIOCSIFADDR, SIOCSIFNETMASK; then up, with SIOCGIFFLAGS and SIOCSIFFLAGS (netdevice(7)).
        for request, value in ((0x8916, where), (0x891C, "255.255.0.0")):
            packed = struct.pack("16sHH4s16x", name, socket.AF_INET, 0, socket.inet_aton(value))
            fcntl.ioctl(knob, request, packed)
        flags = struct.unpack("16xH", fcntl.ioctl(knob, 0x8913, struct.pack("16sH22x", name, 0))[:18])[0]
        fcntl.ioctl(knob, 0x8914, struct.pack("16sH22x", name, flags | 1))
    return device


__all__ = ["Many", "SlowHub", "address"]
