"""A slow link: two tun devices and a process between them that holds every packet. (The kernel at hand has no netem.)

Packets are real, so everything of TCP's own is there as on a long wire: the handshake, acknowledgements, what Nagle's
algorithm makes a client wait for. It also counts what passes.
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import os
import queue
import socket
import struct
import threading
import time

from tests.lab.hostside import inside

HERE, THERE = "198.18.77.1", "198.18.77.2"
"""The two ends; RFC 2544 gives this network to benchmarks."""

_TUNSETIFF, _SIOCSIFADDR, _SIOCSIFNETMASK, _SIOCGIFFLAGS, _SIOCSIFFLAGS = 0x400454CA, 0x8916, 0x891C, 0x8913, 0x8914
_IFF_TUN_WITHOUT_INFO, _IFF_UP = 0x1001, 0x1
_PACKET = 65536
_SYN, _ACK = 0x02, 0x10


class Link:
    """Between the namespaces ``here`` and ``there`` (descriptors); a round trip takes ``rtt_seconds``."""

    def __init__(self, here: int, there: int, *, rtt_seconds: float) -> None:
        self.connections = 0
        self._talk: dict[bytes, list[str]] = {}
        self._half = rtt_seconds / 2
        self._ends = [inside(here, lambda: _tun(HERE)), inside(there, lambda: _tun(THERE))]
        self._threads = []
        for source, sink, side in ((self._ends[0], self._ends[1], "c"), (self._ends[1], self._ends[0], "s")):
            pieces: queue.SimpleQueue[tuple[float, bytes]] = queue.SimpleQueue()
            for body in (self._take, self._give):
                thread = threading.Thread(target=body, args=(source, sink, side, pieces), daemon=True)
                thread.start()
                self._threads.append(thread)

    def __enter__(self) -> Link:
        return self

    def __exit__(self, *_: object) -> None:
        """The threads end with this process; the devices too, for they go with their descriptors."""

    def forget(self) -> None:
        """Start counting anew."""
        self.connections = 0
        self._talk.clear()

    @property
    def turns(self) -> int:
        """How often the client spoke and then waited for an answer: runs of its words that the server's follow.

        Seen at the client's end. What it says last, without waiting for an answer, is no turn, nor is TCP's handshake.
        """
        total = 0
        for talk in self._talk.values():
            runs = [side for side, _ in itertools.groupby(talk)]
            total += sum(1 for pair in itertools.pairwise(runs) if pair == ("c", "s"))
        return total

    def _take(self, source: int, _sink: int, side: str, pieces: queue.SimpleQueue[tuple[float, bytes]]) -> None:
        with contextlib.suppress(OSError):
            while packet := os.read(source, _PACKET):
                pieces.put((time.monotonic() + self._half, packet))
                if side == "c":
                    self._count(packet, side)

    def _give(self, _source: int, sink: int, side: str, pieces: queue.SimpleQueue[tuple[float, bytes]]) -> None:
        with contextlib.suppress(OSError):
            while True:
                due, packet = pieces.get()
                time.sleep(max(0.0, due - time.monotonic()))
                if side == "s":
                    self._count(packet, side)
                os.write(sink, packet)

    def _count(self, packet: bytes, side: str) -> None:
        """IPv4 with TCP in it: note who says something, and each connection's first packet."""
        if packet[0] >> 4 != 4 or packet[9] != socket.IPPROTO_TCP:
            return
        start = (packet[0] & 15) * 4
        flags = packet[start + 13]
        client_port = packet[start : start + 2] if side == "c" else packet[start + 2 : start + 4]
        if side == "c" and flags & (_SYN | _ACK) == _SYN:
            self.connections += 1
        if len(packet) > start + (packet[start + 12] >> 4) * 4:
            self._talk.setdefault(client_port, []).append(side)


def _tun(address: str) -> int:
    """A tun device with that address in the network of this thread; it is there as long as its descriptor."""
    device = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
    name = fcntl.ioctl(device, _TUNSETIFF, struct.pack("16sH22x", b"slow%d", _IFF_TUN_WITHOUT_INFO))[:16]
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as knob:
        for request, value in ((_SIOCSIFADDR, address), (_SIOCSIFNETMASK, "255.255.255.0")):
            packed = struct.pack("16sHH4s16x", name, socket.AF_INET, 0, socket.inet_aton(value))
            fcntl.ioctl(knob, request, packed)
        flags = struct.unpack("16xH", fcntl.ioctl(knob, _SIOCGIFFLAGS, struct.pack("16sH22x", name, 0))[:18])[0]
        fcntl.ioctl(knob, _SIOCSIFFLAGS, struct.pack("16sH22x", name, flags | _IFF_UP))
    return device
