"""What comes from a VM takes time by its length and not by its square: a hostile one, and one with the thousands of
chains of Kubernetes, keeps nobody waiting."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from vmproxy import preview, rules, shellharm
from vmproxy.guests import _units
from vmproxy.iptsave import parse_save
from vmproxy.model import Door, File

_LIMIT_SECONDS = 5.0
"""Of this thread's own work, several times what each takes; by the square each takes at least twice that."""
_DOOR = Door(
    gateway="10.0.2.2", port=8123, listen_port=8123, bridge_address="172.17.0.1", bridges=("docker0", "br-+")
)


def _dump(chains: bytes, nat: bytes = b"") -> rules.Ruleset:
    filters = b"*filter\n:FORWARD ACCEPT [0:0]\n" + chains + b"COMMIT\n"
    return parse_save(filters + b"*nat\n:PREROUTING ACCEPT [0:0]\n" + nat + b"COMMIT\n")


def _many_chains() -> None:
    dump = _dump(b"".join(b":KUBE-SVC-%d - [0:0]\n" % number for number in range(40_000)))
    made = rules.changes(dump, _DOOR)
    assert set(made.texts) == {"filter", "nat"}
    assert all("missing" in finding.detail for finding in rules.drift(dump, _DOOR))


def _many_jumps_to_one_chain() -> None:
    count = 8_000
    jumps = b"-A FORWARD -j A\n" * count + b"-A A -j B\n" * count
    made = rules.changes(_dump(b":A - [0:0]\n:B - [0:0]\n" + jumps), _DOOR)
    assert b"-A FORWARD " in made.filter


def _many_bridges() -> None:
    names = [b"br-%d" % number for number in range(5_000)]
    filters = b":DOCKER - [0:0]\n" + b"".join(b"-A FORWARD -o %b -j DOCKER\n" % name for name in names)
    catchers = b"".join(b"-A PREROUTING -i %b -p tcp -j DNAT --to-destination 1.2.3.4\n" % name for name in names)
    dump = _dump(filters, catchers)
    others = tuple(f"br-x{number}" for number in range(50_000))
    assert rules.conflicts(dump, _DOOR)
    assert len(rules.drift(dump, _DOOR, others)) > len(others)


def _functions_that_call_one_another() -> None:
    count = 6_000
    calls = b"".join(b"f%d() { f%d; }\n" % (number, number + 1) for number in range(count))
    harm = shellharm.harm(calls + b"f%d() { exit; }\nf0\n" % count, frozenset())
    assert [line for line, _what in harm] == [count + 2]


def _words_that_expand_to_nothing() -> None:
    assert shellharm.harm(b"$a " * 300_000 + b"exit\n", frozenset())


def _lines_of_a_unit_joined() -> None:
    (pair,) = _units.settings(b"[Service]\nEnvironment=a\\\n" + b"\\\n" * 2_000_000, "Service")
    assert pair[0] == "Environment"


def _a_long_word_of_a_unit() -> None:
    assert _units.words('"' + "a" * 3_000_000 + '"') == ("a" * 3_000_000,)


def _a_block_in_a_long_file() -> None:
    theirs = b"".join(b"line %d\n" % (number % 100) for number in range(150_000))
    change = File(path="/x", content=theirs), File(path="/x", content=b"ours\n" + theirs)
    assert preview._file_text(*change, (), "").splitlines()[2:] == ["@@ -0,0 +1 @@", "+ours"]


@pytest.mark.parametrize(
    "work",
    [
        _many_chains,
        _many_jumps_to_one_chain,
        _many_bridges,
        _functions_that_call_one_another,
        _words_that_expand_to_nothing,
        _lines_of_a_unit_joined,
        _a_long_word_of_a_unit,
        _a_block_in_a_long_file,
    ],
    ids=lambda work: work.__name__.strip("_"),
)
def test_time_is_no_square(work: Callable[[], None]) -> None:
    """Hostile or just large, it is done in seconds, and rightly."""
    begun = time.thread_time()
    work()
    assert time.thread_time() - begun < _LIMIT_SECONDS
