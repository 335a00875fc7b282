"""The rows: what is measured, against what, and what must and should come out."""

from __future__ import annotations

import contextlib
import statistics
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from benchmarks.many import Many
from benchmarks.masters import live_socket
from benchmarks.paired import Cost, Way, once, ratio, rounds
from benchmarks.rivals import VERSIONS, ansible, installed, pyinfra
from benchmarks.world import PROXY, ROOT, Host, World

_TABLE = ROOT / "fixtures/routes/one-default/ip.txt"
_ENV = ("env", "--proxy", "http://127.0.0.1:3128", "--gateway", "10.0.2.2")
_DIFFERENT = "8124"
SECONDS = 50.0
"""The longest that one row's rounds may take."""
_RIVALS = (("pyinfra", pyinfra, 1 / 3, 1 / 5), ("ansible", ansible, 1 / 40, 1 / 50))


@dataclass(frozen=True, kw_only=True)
class Row:
    """One measured thing: a ratio, a count or a size, with what it must and should be at most (None: no target), or at
    least, where ``more`` of it is better."""

    name: str
    value: str
    number: float
    must: float | None = None
    aim: float | None = None
    note: str = ""
    more: bool = False

    @property
    def grade(self) -> str:
        """``aim``, ``must`` or ``MISSED``; "" without targets."""
        if self.must is None or self.aim is None:
            return ""
        sign = -1 if self.more else 1
        worth, must, aim = sign * self.number, sign * self.must, sign * self.aim
        return "MISSED" if worth > must else "must" if worth > aim else "aim"


@dataclass(frozen=True, kw_only=True)
class Bench:
    """How much to measure: ``pairs`` rounds of a row, never longer than ``SECONDS``; which vmproxy, by which Python;
    ``vms`` is for the rows about many."""

    pairs: int
    python: str
    package: Path
    vms: int


Rows = Iterator[Row]


def start_up(bench: Bench) -> Rows:
    """What needs no VM, against bare Python."""
    with tempfile.TemporaryDirectory(prefix="vmproxy-bench-") as directory:
        host = Host(Path(directory), python=bench.python, package=bench.package)
        ways = [
            ("--help", host.vmproxy("--help")),
            ("env", host.vmproxy(*_ENV)),
            ("detect-gateway --table of text", host.vmproxy("detect-gateway", "--table", str(_TABLE))),
        ]
        bare, *costs = rounds([host.bare(), *(way for _, way in ways)], count=3 * bench.pairs, seconds=SECONDS)
        for (name, _way), mine in zip(ways, costs, strict=True):
            found, cpu = ratio(mine, bare), ratio(mine, bare, cpu=True)
            note = f"{found.rounds} rounds; processor time {cpu.median:.1f} x"
            yield Row(name=name, value=f"{found} x python", number=found.median, must=5.0, aim=4.0, note=note)


def nothing_to_do(bench: Bench) -> Rows:
    """apply, status and a dry run of a VM that is as wished, against F and F', at no delay and at 50 ms."""
    for milliseconds, must, aim in ((0, 0.95, 0.65), (50, 0.65, 0.36)):
        with _world(bench, milliseconds) as world:
            world.converge()
            ours = {
                "no-op apply": world.vmproxy("apply"),
                "status": world.vmproxy("status"),
                "dry-run of a change": world.vmproxy("apply", "--dry-run", "--listen-port", _DIFFERENT),
            }
            named = [(f"{name}, RTT {milliseconds} ms", way) for name, way in ours.items()]
            yield from _against(named, world.stock(), world.quick(), bench, must, aim)


def over_a_socket(bench: Bench) -> Rows:
    """The no-op over a connection that the user's ssh keeps open, against F, which opens one, and F over the same."""
    for milliseconds in (0, 50):
        with _world(bench, milliseconds) as world:
            world.converge()
            with live_socket(world) as (ours, theirs):
                mine, f, f_there = rounds([ours, world.stock(), theirs], count=bench.pairs, seconds=SECONDS)
            found = ratio(mine, f)
            note = f"{found.rounds} rounds; {ratio(mine, f_there).median:.2f} of F over it"
            name = f"no-op over a ControlMaster, RTT {milliseconds} ms"
            yield Row(name=name, value=f"{found} F", number=found.median, note=note)


def first_apply(bench: Bench) -> Rows:
    """The first apply with --no-verify, the VM put back before each run; F and F' restart Docker too."""
    for milliseconds, must, aim in ((0, 1.4, 0.9), (50, 0.9, 0.5)):
        with _world(bench, milliseconds) as world:
            world.converge()
            way = replace(world.vmproxy("apply", "--proxy", PROXY, "--no-verify"), before=world.reset)
            stock = replace(world.first(), before=world.reset)
            quick = replace(world.first(*world.quick_options()), before=world.reset)
            named = [(f"first apply --no-verify, RTT {milliseconds} ms", way)]
            yield from _against(named, stock, quick, bench, must, aim)


def turns(bench: Bench) -> Rows:
    """What a no-op apply says over the wire, counted on the link at 50 ms; channels counted by the VM's sshd."""
    with _world(bench, 50) as world:
        world.converge()
        sessions = "/run/lab/sessions"
        # sshd runs this file once for each command it is asked to run (sshd(8), SSHRC).
        world.vm.path("/etc/ssh/sshrc").write_text(f"echo >>{sessions}\n", encoding="utf-8")
        world.vm.run(f"touch {sessions} && chmod 666 {sessions}")
        counted = []
        for _ in range(3):
            world.vm.run(f": >{sessions}")
            world.link.forget()
            once(world.vmproxy("apply"))
            channels = world.vm.path(sessions).read_text(encoding="utf-8").count("\n")
            counted.append((world.link.connections, channels, world.link.turns))
        connections, channels, waits = (max(column) for column in zip(*counted, strict=True))
        world.vm.path("/etc/ssh/sshrc").unlink()
        world.link.forget()
        once(world.stock())
        yield Row(name="connections of a no-op", value=str(connections), number=connections, must=1, aim=1)
        yield Row(name="channels of a no-op", value=str(channels), number=channels, must=1, aim=1)
        note = f"F has {world.link.turns}"
        yield Row(name="turns of a no-op", value=str(waits), number=waits, must=8, aim=3, note=note)


def memory(bench: Bench) -> Rows:
    """The most memory that a run holds at once."""
    with _world(bench) as world:
        world.converge()
        noop = [once(world.vmproxy("apply")) for _ in range(3)]
        world.reset()
        first = [once(world.vmproxy("apply", "--proxy", PROXY, "--no-verify"))]
        for name, costs in (("no-op apply", noop), ("first apply", first)):
            size = statistics.median(cost.peak_kib for cost in costs) * 1024 / 1e6
            yield Row(name=f"memory, {name}", value=f"{size:.0f} MB", number=size, must=60, aim=45)


def many(bench: Bench) -> Rows:
    """apply and status of many VMs that are as wished, and the first apply, against as many ssh at a time (as F')."""
    for milliseconds, must, aim in ((0, 1.0, 0.75), (50, 1.0, 0.7)):
        with _many(bench, milliseconds) as world:
            world.converge()
            ways = [world.quick(), world.vmproxy("apply"), world.vmproxy("status")]
            ssh, *costs = rounds(ways, count=bench.pairs, seconds=SECONDS)
            for name, mine in zip(("no-op apply", "status"), costs, strict=True):
                yield _beside(f"{name}, {bench.vms} VMs, RTT {milliseconds} ms", mine, ssh, "xargs ssh", must, aim)
            yield _most(f"no-op, {bench.vms} VMs", costs[0])
            ways = [world.first(*world.quick_options()), world.vmproxy("apply", "--proxy", PROXY, "--no-verify")]
            ssh, mine = rounds([replace(way, before=world.reset) for way in ways], count=bench.pairs, seconds=SECONDS)
            yield _beside(f"first apply, {bench.vms} VMs, RTT {milliseconds} ms", mine, ssh, "xargs ssh")
            yield _most(f"first apply, {bench.vms} VMs", mine)


def rivals(bench: Bench) -> Rows:
    """The same against pyinfra and ansible, each with the rules of its own; slow, and so with few rounds."""
    for name in VERSIONS:
        installed(name)  # before the network is another
    for milliseconds in (0, 50):
        with _many(bench, milliseconds) as world:
            world.converge()
            ours = world.rules()
            for name, make, must, aim in _RIVALS:
                once(make(world, world.reset))
                theirs = world.rules()
                ways = [
                    replace(world.vmproxy("apply"), before=partial(world.with_rules, ours)),
                    make(world, partial(world.with_rules, theirs)),
                ]
                mine, other = rounds(ways, count=bench.pairs, seconds=SECONDS, fewest=1)
                yield _beside(f"no-op, {bench.vms} VMs, RTT {milliseconds} ms", mine, other, name, must, aim)
                first = world.vmproxy("apply", "--proxy", PROXY, "--no-verify")
                ways = [replace(first, before=world.reset), make(world, world.reset)]
                mine, other = rounds(ways, count=bench.pairs, seconds=SECONDS, fewest=1)
                yield _beside(f"first apply, {bench.vms} VMs, RTT {milliseconds} ms", mine, other, name, must, aim)


def _beside(
    name: str,
    mine: Sequence[Cost],
    other: Sequence[Cost],
    whose: str,
    must: float | None = None,
    aim: float | None = None,
) -> Row:
    found = ratio(mine, other)
    times = f"{statistics.median(c.seconds for c in mine):.1f} and {statistics.median(c.seconds for c in other):.1f} s"
    note = f"{found.rounds} rounds; {times}"
    return Row(name=name, value=f"{found} {whose}", number=found.median, must=must, aim=aim, note=note)


def _most(name: str, costs: Sequence[Cost]) -> Row:
    size = max(cost.peak_kib for cost in costs) * 1024 / 1e6
    return Row(name=f"memory, {name}", value=f"{size:.0f} MB", number=size, must=90, aim=60)


@contextlib.contextmanager
def _many(bench: Bench, milliseconds: int) -> Iterator[Many]:
    with tempfile.TemporaryDirectory(prefix="vmproxy-bench-") as directory:
        host = Host(Path(directory), python=bench.python, package=bench.package)
        with Many(host, count=bench.vms, rtt_seconds=milliseconds / 1000) as world:
            yield world


def _world(bench: Bench, milliseconds: int = 0) -> _Opened:
    return _Opened(bench, milliseconds / 1000)


class _Opened:
    """A world with a host of its own, for the time of a ``with``."""

    def __init__(self, bench: Bench, rtt_seconds: float) -> None:
        self._directory = tempfile.TemporaryDirectory(prefix="vmproxy-bench-")
        host = Host(Path(self._directory.name), python=bench.python, package=bench.package)
        self._world = World(host, rtt_seconds=rtt_seconds)

    def __enter__(self) -> World:
        return self._world.__enter__()

    def __exit__(self, *_: object) -> None:
        self._world.__exit__()
        self._directory.cleanup()


def _against(named: Sequence[tuple[str, Way]], stock: Way, quick: Way, bench: Bench, must: float, aim: float) -> Rows:
    f, f_quick, *costs = rounds([stock, quick, *(way for _name, way in named)], count=bench.pairs, seconds=SECONDS)
    for (name, _way), mine in zip(named, costs, strict=True):
        found = ratio(mine, f)
        note = f"{found.rounds} rounds; {ratio(mine, f_quick).median:.2f} F'"
        yield Row(name=name, value=f"{found} F", number=found.median, must=must, aim=aim, note=note)


def caching(bench: Bench) -> Rows:
    """The caching proxy against squid on the same 10 KB objects, and both with a gigabyte."""
    from benchmarks.caching import CONNECTIONS, Proxies, side_by_side

    with Proxies(python=bench.python, package=bench.package) as proxies:
        for name, kind, must in (("hits", "hit", 0.5), ("misses", "miss", 0.8)):
            rounds = list(side_by_side(proxies, kind, rounds=max(3, bench.pairs // 2), seconds=3))
            rates = [ours.rate / squid.rate for ours, squid in rounds]
            waits = [ours.p99_seconds / squid.p99_seconds for ours, squid in rounds]
            for what, ratios, least in (
                (f"{name} per second", rates, must),
                (f"{name}, 99 of 100 within", waits, None),
            ):
                low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
                ours, squid = (statistics.median(load.rate for load in loads) for loads in zip(*rounds, strict=True))
                note = f"{ours:.0f} and {squid:.0f} per second, {CONNECTIONS} connections" if least else ""
                value = f"{middle:.2f} ({low:.2f} to {high:.2f}) x squid"
                aim = 1.0 if least else None
                yield Row(name=what, value=value, number=middle, must=least, aim=aim, note=note, more=True)
        for name in ("vmproxy", "squid"):
            proxies.stream(name)
        size, squids = (proxies.peak_bytes(name) / 1e6 for name in ("vmproxy", "squid"))
        note = f"squid {squids:.0f} MB; the most at any time, all of the above included"
        yield Row(name="cache, memory", value=f"{size:.0f} MB", number=size, must=64, aim=32, note=note)


ROWS: dict[str, Callable[[Bench], Rows]] = {
    "start-up": start_up,
    "no-op": nothing_to_do,
    "socket": over_a_socket,
    "first": first_apply,
    "turns": turns,
    "memory": memory,
    "caching": caching,
    "many": many,
    "rivals": rivals,
}
SLOW = ("rivals",)
"""Rows that are only measured where they are named."""
