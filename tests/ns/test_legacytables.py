"""python-iptables as iptables-legacy-restore, on a real kernel: the same rules, no wider, none lost, no table made."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from vmproxy import rules
from vmproxy.model import Door

ROOT = Path(__file__).resolve().parents[2]
RECORDED = (ROOT / "fixtures/iptables/docker20-legacy-networks.save").read_bytes()
LIBRARY = ("env", f"PYTHONPATH={ROOT}", sys.executable, "-B", "-m", "vmproxy.cli.legacytables")
PROGRAM = ("iptables-legacy-restore",)
FIRST = Door(gateway="10.0.2.2", port=8123, listen_port=8123, bridge_address="172.17.0.1", bridges=("docker0", "br-+"))
SECOND = Door(gateway="10.0.2.9", port=3128, listen_port=18123, bridge_address="172.17.0.1", bridges=("docker0",))


def execute(space: str, *argv: str, data: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    """A program of this machine in a network namespace."""
    words = ("ip", "netns", "exec", space, *argv)
    return subprocess.run(words, input=data, capture_output=True, timeout=180, check=False, cwd="/")


@contextlib.contextmanager
def kernel(name: str, dump: bytes = b"") -> Iterator[str]:
    """A network namespace of this test process's own, with the rules of a dump."""
    space = f"vmpxl{os.getpid()}-{name}"
    subprocess.run(("ip", "netns", "add", space), check=True)
    try:
        if dump:
            done = execute(space, "iptables-legacy-restore", data=dump)
            assert done.returncode == 0, done.stderr
        yield space
    finally:
        subprocess.run(("ip", "netns", "del", space), check=True)


def saved(space: str) -> bytes:
    """``iptables-legacy-save`` without comments and counters, of the tables there are."""
    tables = execute(space, "cat", "/proc/net/ip_tables_names").stdout.decode().split()
    text = b"".join(execute(space, "iptables-legacy-save", "-t", table).stdout for table in sorted(tables))
    return re.sub(rb" ?\[\d+:\d+\]|^#.*\n", b"", text, flags=re.MULTILINE)


def write(space: str, writer: tuple[str, ...], text: bytes, *words: str) -> subprocess.CompletedProcess[bytes]:
    """A restore text by one of the two writers."""
    return execute(space, *writer, "-w", "60", "--noflush", *words, data=text)


def converge(space: str, writer: tuple[str, ...], door: Door | None) -> bytes:
    """The rules of a door made, moved or taken away by a writer; what is saved then."""
    observed = rules.parse_save(execute(space, "iptables-legacy-save").stdout)
    for text in rules.changes(observed, door).texts.values():
        for words in (("--test",), ()):
            done = write(space, writer, text, *words)
            assert (done.returncode, done.stderr) == (0, b""), done
    return saved(space)


def test_both_writers_end_in_the_same_rules() -> None:
    """Over Docker's own rules: a door, another door over it, none; after each the two kernels save the same."""
    with kernel("library", RECORDED) as library, kernel("program", RECORDED) as program:
        before = saved(library)
        for door in (FIRST, SECOND, FIRST, None):
            assert converge(library, LIBRARY, door) == converge(program, PROGRAM, door)
        assert saved(library) == before


def test_a_test_run_and_a_failure_change_nothing() -> None:
    """--test, a rule or a chain that is not there, a wider rule: exit 0 or 1, and not a rule differs."""
    texts = rules.changes(rules.parse_save(RECORDED), FIRST).texts
    with kernel("careful", RECORDED) as space:
        before = saved(space)
        for text in texts.values():
            assert write(space, LIBRARY, text, "--test").returncode == 0
        for bad in (
            b"-A FORWARD -j ACCEPT\n-D FORWARD -s 9.9.9.9/32 -j DROP",
            b"-A FORWARD -j ACCEPT\n-A NOSUCH -j ACCEPT",
            b"-A FORWARD -j ACCEPT\n-A FORWARD -p tcp --dport 99999999 -j ACCEPT",
            b"-A FORWARD -j ACCEPT\n-A FORWARD -m nosuch --x 1 -j ACCEPT",
            b"-A FORWARD -j ACCEPT\n:FORWARD DROP [0:0]",
            b"-A FORWARD -j ACCEPT\n-A FORWARD -j NOSUCH",
        ):
            done = write(space, LIBRARY, b"*filter\n" + bad + b"\nCOMMIT\n")
            assert (done.returncode, done.stderr.count(b"\n")) == (1, 1), (bad, done)
        assert saved(space) == before


def test_no_table_is_made_but_the_one_that_is_written() -> None:
    """A kernel without tables has one after a write to one, jumps to chains of ours included."""
    with kernel("empty") as space:
        for text in rules.changes(rules.Ruleset(), FIRST).texts.values():
            if text.startswith(b"*filter"):
                assert write(space, LIBRARY, text).returncode == 0
        assert execute(space, "cat", "/proc/net/ip_tables_names").stdout == b"filter\n"


@pytest.mark.parametrize("held", [True, False])
def test_f13_f14_the_lock_of_the_programs_is_taken(held: bool) -> None:
    """While another program holds /run/xtables.lock: waited for, or exit 4 and nothing changed."""
    text = rules.changes(rules.Ruleset(), FIRST).texts["filter"]
    with kernel("lock") as space:
        with open("/run/xtables.lock", "ab") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            release = threading.Timer(30 if held else 0.5, fcntl.flock, (lock, fcntl.LOCK_UN))
            release.start()
            done = execute(space, *LIBRARY, "-w", "1" if held else "20", "--noflush", data=text)
            release.cancel()
            release.join()
        assert done.returncode == (4 if held else 0), done
        assert bool(b"VMPROXY" in saved(space)) is not held


def test_no_rule_is_lost_beside_other_writers() -> None:
    """The library and iptables-legacy write at the same time, many times: every rule of both is there at the end."""
    with kernel("busy", b"*filter\nCOMMIT\n") as space:
        rule = "iptables-legacy -w 60 -A INPUT -s 10.1.0.$i -j ACCEPT"
        loop = f"i=0; while [ $i -lt 200 ]; do {rule} || exit 1; i=$((i+1)); done"
        argv = ("ip", "netns", "exec", space, "sh", "-c", loop)
        with subprocess.Popen(argv, stderr=subprocess.PIPE) as other:
            number = 0
            while other.poll() is None or number < 3:
                line = f"*filter\n-A OUTPUT -d 10.2.0.{number}/32 -j ACCEPT\nCOMMIT\n"
                assert write(space, LIBRARY, line.encode()).returncode == 0
                number += 1
        assert other.returncode == 0
        text = saved(space)
        assert (text.count(b"-A INPUT -s 10.1."), text.count(b"-A OUTPUT -d 10.2.")) == (200, number)
