"""Side by side: the same rounds, every way once in each, so that whatever else the machine does meets all alike.

A way is timed from the start of its process to its end. What is told is the median over rounds of the ratio within one
round; an absolute time would be about the machine.
"""

from __future__ import annotations

import contextlib
import os
import signal
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path


class BenchmarkError(Exception):
    """Something that was to be timed went wrong; its time would mean nothing."""


@dataclass(frozen=True, kw_only=True)
class Way:
    """One way to do the job: words to run, where stdin comes from, what to do before (not timed).

    ``codes`` are the exit codes of a run that did its job; ``limit_seconds`` is the longest that one may take.
    """

    name: str
    argv: Sequence[str]
    environ: Mapping[str, str]
    stdin: Path = Path(os.devnull)
    before: Callable[[], None] | None = None
    codes: tuple[int, ...] = (0,)
    limit_seconds: float = 60.0


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What one run took: wall time, processor time of the process itself, its peak resident memory in KiB."""

    seconds: float
    cpu_seconds: float
    peak_kib: int


@dataclass(frozen=True, kw_only=True)
class Ratio:
    """Ours against one other way: the median ratio, the middle half of the ratios, of how many rounds."""

    median: float
    low: float
    high: float
    rounds: int

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.low:.2f} to {self.high:.2f})"


def once(way: Way) -> Cost:
    """Run a way to its end. Raises BenchmarkError where it fails or hangs."""
    if way.before:
        way.before()
    with way.stdin.open("rb") as stdin:
        started = time.perf_counter()
        process = subprocess.Popen(
            way.argv,
            env=dict(way.environ),
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd="/",
            start_new_session=True,
        )
        assert process.stdout is not None
        try:
            said = process.stdout.read()  # until all that hold it have let go
            _pid, status, used = os.wait4(process.pid, 0)
        except BaseException:  # a signal: what it has started is not to go on alone
            with contextlib.suppress(OSError):
                os.killpg(process.pid, signal.SIGKILL)
            raise
        seconds = time.perf_counter() - started
    process.returncode = os.waitstatus_to_exitcode(status)
    process.stdout.close()
    if process.returncode not in way.codes or seconds > way.limit_seconds:
        raise BenchmarkError(f"{way.name} ended with {process.returncode} after {seconds:.1f} s: {said[-2000:]!r}")
    return Cost(seconds=seconds, cpu_seconds=used.ru_utime + used.ru_stime, peak_kib=used.ru_maxrss)


def rounds(ways: Sequence[Way], *, count: int, seconds: float, fewest: int = 3) -> list[list[Cost]]:
    """``count`` rounds, or as many as fit in ``seconds`` (``fewest`` at least); the order turns round by round.

    One round before them is not counted: files are read and keys are known after it. The answer has one list for each
    way, in the order of ``ways``.
    """
    for way in ways:
        once(way)
    costs: list[list[Cost]] = [[] for _ in ways]
    limit = time.monotonic() + seconds
    for number in range(count):
        if number >= fewest and time.monotonic() > limit:
            break
        order = range(len(ways)) if number % 2 else range(len(ways) - 1, -1, -1)
        for index in order:
            costs[index].append(once(ways[index]))
    return costs


def ratio(ours: Sequence[Cost], theirs: Sequence[Cost], *, cpu: bool = False) -> Ratio:
    """Ours against theirs, round by round; of wall time, or of processor time."""

    def cost(one: Cost) -> float:
        return one.cpu_seconds if cpu else one.seconds

    values = [cost(a) / cost(b) for a, b in zip(ours, theirs, strict=True)]
    low, _middle, high = statistics.quantiles(values, n=4, method="inclusive") if values[1:] else values * 3
    return Ratio(median=statistics.median(values), low=low, high=high, rounds=len(values))
