"""Legacy rules by python-iptables: the text is read strictly, and a rule is exactly what was said, or refused."""

from __future__ import annotations

import fcntl
import re
from pathlib import Path

import iptc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmproxy import rules
from vmproxy.errors import Busy, Refused, VmproxyError
from vmproxy.iptsave import join_words, split_words
from vmproxy.machines import legacytables
from vmproxy.model import Door

DOOR = Door(gateway="10.0.2.2", port=8123, listen_port=8123, bridge_address="172.17.0.1", bridges=("docker0", "br-+"))


def lines_of(text: bytes) -> list[str]:
    """The lines between ``*table`` and ``COMMIT``."""
    return text.decode().splitlines()[1:-1]


@pytest.fixture(autouse=True)
def no_table_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test here reads this machine's tables: that would make them."""
    monkeypatch.setattr(iptc.Table, "ALL", [])


@pytest.mark.parametrize(
    "line",
    [
        line
        for text in rules.changes(rules.Ruleset(), DOOR).texts.values()
        for line in lines_of(text)
        if line.startswith("-A") and not re.search("-j VMPROXY", line)
    ],
)
def test_every_rule_of_ours_is_encoded_exactly(line: str) -> None:
    """Each rule of the door that is no jump, encoded and decoded by the library, is the same rule."""
    words = split_words(line)
    assert words
    assert legacytables.encoded(words[2:]) is not None


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        ("-p tcp --dport 8123 -j ACCEPT", {"protocol": "tcp", "tcp": {"dport": "8123"}, "target": "ACCEPT"}),
        ("-p tcp -m tcp --dport 8123 -j X", {"protocol": "tcp", "tcp": {"dport": "8123"}, "target": "X"}),
        ("! -i docker0 -j X", {"in-interface": "!docker0", "target": "X"}),
        ("-m addrtype ! --dst-type LOCAL --limit-iface-in -j R",
         {"addrtype": {"dst-type": "!LOCAL", "limit-iface-in": ""}, "target": "R"}),
        ("-m comment --comment \"two words\" -j R", {"comment": {"comment": "two words"}, "target": "R"}),
        ("-s 10.0.0.0/8 -j DNAT --to-destination 1.2.3.4:5",
         {"src": "10.0.0.0/8", "target": {"DNAT": {"to-destination": "1.2.3.4:5"}}}),
    ],
)  # fmt: skip
def test_words_become_a_dictionary_of_strings(words: str, wanted: dict[str, object]) -> None:
    """Options belong to the match before them, a protocol's to the protocol; flags are empty, negations carry a !."""
    assert legacytables.rule_words(split_words(words) or []) == wanted


@pytest.mark.parametrize(
    "words",
    [
        "-p tcp --dport 99999999 -j ACCEPT",
        "-p tcp -m tcp --nosuch 1 -j ACCEPT",
        "-m nosuch --option 1 -j ACCEPT",
        "-j DNAT --to-destination 1.2.3.4.5:1",
        "-m addrtype --dst-type NOSUCH -j ACCEPT",
        "-m conntrack --ctstate NOSUCH -j ACCEPT",
        "-s 1.2.3.4.5 -j ACCEPT",
    ],
)
def test_a_rule_that_would_get_wider_is_refused(words: str) -> None:
    """What the library would drop or change without a word never becomes a rule (LIBRARIES section 2)."""
    with pytest.raises(Refused):
        legacytables.encoded(split_words(words) or [])


@pytest.mark.parametrize("words", ["--dport 1", "loose", "-m", "-p", "-j", "!", "-x y", "! -m tcp"])
def test_words_that_fit_nowhere_are_refused(words: str) -> None:
    """No word is passed over."""
    with pytest.raises(Refused):
        legacytables.rule_words(words.split())


@given(st.lists(st.text("-!amtpjsd tcp.:/0123456789", max_size=8), max_size=12))
def test_any_words_are_a_rule_or_refused(words: list[str]) -> None:
    """Nothing else is raised, and every value is a string: a number is dropped, None ends the process."""
    try:
        rule = legacytables.rule_words(words)
    except Refused:
        return
    for value in rule.values():
        inner = value.values() if isinstance(value, dict) else [value]
        assert all(isinstance(item, str | dict) for item in inner)


def test_texts_are_read_table_by_table() -> None:
    """Comments and blank lines are passed over; a text without an end or outside of a table is refused."""
    text = "# one\n*nat\n:A - [0:0]\n\n-A A -j RETURN\nCOMMIT\n*filter\nCOMMIT\n"
    assert list(legacytables.blocks(text)) == [("nat", [":A - [0:0]", "-A A -j RETURN"]), ("filter", [])]
    for bad in ("*nat\n-A A", "-A A -j RETURN\n", "*nosuch\nCOMMIT\n"):
        with pytest.raises(Refused):
            list(legacytables.blocks(bad))


@given(st.text(max_size=200))
def test_any_text_is_read_or_refused(text: str) -> None:
    """Arbitrary text never crashes the reader."""
    try:
        list(legacytables.blocks(text))
    except VmproxyError:
        return


def test_arguments_are_those_of_iptables_restore() -> None:
    """``-w SECONDS``, ``--noflush`` and ``--test``; everything else is refused."""
    assert legacytables.arguments(["-w", "5", "--noflush", "--test"]) == (5.0, True)
    assert legacytables.arguments(["--noflush"]) == (0.0, False)
    for bad in (["-w"], ["-w", "x"], ["-w", "-1"], ["--counters"], ["-T", "nat"]):
        with pytest.raises(Refused):
            legacytables.arguments(bad)


def test_f14_a_lock_that_others_hold_is_busy(tmp_path: Path) -> None:
    """The lock of the iptables programs is waited for, then it is exit 4 of iptables; a free one is held."""
    path = tmp_path / "lock"
    with path.open("wb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(Busy):
            legacytables.locked(str(path), 0.1)
    with legacytables.locked(str(path), 0.1), path.open("wb") as other, pytest.raises(BlockingIOError):
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_the_program_ends_as_iptables_restore_does() -> None:
    """One line of why on stderr, and its exit code: 1 for what cannot be."""
    said: list[str] = []
    assert legacytables.main(["--nosuch"], read=lambda _n: "", say=said.append) == 1
    assert said == ["there is no option --nosuch\n"]
    assert join_words(("a b",)) == '"a b"'
