"""Warnings about no_proxy: one line for each way in which tools disagree, only about what the user said."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmproxy.dialects import plain, spellings, warnings
from vmproxy.model import printable
from vmproxy.noproxy import bypasses

QUIET = [
    *("localhost", "127.0.0.1", "::1", "[::1]", "10.1.2.3", "a.test", "my_db", "*.a.test", "a.test.", "bücher.test"),
    *("db", "10.1.2.3/32", "10.1.2.0/28", "fd00::/124"),
]
TOLD = {
    "10.0.0.0/8": ("wget", "apt", "urllib", "curl before 7.86"),
    "fd00::/8": ("Go programs", "curl", "wget", "apt", "pip"),
    "fd00::1": ("urllib", "brackets"),
    "[fd00::1]": ("urllib", "brackets", "pip", "curl", "wget", "Go programs"),
    ".a.test": ("Go programs", "wget", "apt", "curl", "pip", "without the dot"),
    "a.test:80": ("Go programs", "curl", "wget", "apt", "apk", "pip"),
    "[fd00::1]:80": ("Go programs",),
    "*": ("wget", "apt"),
    "10.": ("no tool",),
    "10.*": ("no tool",),
    "w*.test": ("no tool",),
    "*a.test": ("no tool",),
    "192.168": ("no tool",),
    "http://a.test": ("no tool",),
    "10.0.0.0/255.0.0.0": ("no tool",),
    "a_b/c": ("no tool",),
    "app": ("many public names", "pip", "apt", "apk"),
    ".com": ("many public names",),
    "*.io": ("many public names",),
}


@pytest.mark.parametrize("entry", QUIET)
def test_what_every_tool_can_be_told_is_no_reason_to_warn(entry: str) -> None:
    """Plain names and addresses, and what gets another spelling."""
    assert warnings((entry,)) == ()


@pytest.mark.parametrize("entry", TOLD)
def test_a_warning_names_the_entry_and_the_tools(entry: str) -> None:
    """One line; the entry as it was said; each tool by its name."""
    lines = warnings((entry,))
    line = lines[-1]
    assert entry in line and all(word in line for word in TOLD[entry])
    assert all("\n" not in line and len(line) < 200 for line in lines)


def test_one_line_for_a_kind_of_trouble() -> None:
    """Many entries of one kind are one line, which names some of them and counts the others."""
    (line,) = warnings([f"10.{i}.0.0/16" for i in range(9)])
    assert "10.0.0.0/16, 10.1.0.0/16, 10.2.0.0/16 and 6 more" in line


def test_a_warning_can_be_done_away_with() -> None:
    """The domain beside its dotted form says all; a star beside others is another trouble than a star alone."""
    assert warnings((".a.test", "a.test")) == warnings(("fd00::1", "[FD00::1]")) == ()
    assert "among other entries" in warnings(("*", "b.test"))[0]


def test_names_of_containers_are_warned_of_only_where_they_reach_too_far() -> None:
    """A service named ``app`` lets all of .app go direct; ``db`` does not."""
    assert warnings((), ("db", "my_cache", "10")) == ()
    (line,) = warnings((), ("app", "db"))
    assert line.startswith("no_proxy: app: ")
    assert warnings((), ("pp",)) and warnings((), ("APP",))


@given(st.lists(st.text(max_size=12), max_size=6), st.lists(st.text(max_size=5), max_size=2))
def test_any_text_can_be_warned_of(said: list[str], names: list[str]) -> None:
    """Each warning is one printable line."""
    for line in warnings(said, names):
        assert line == printable(line, limit=400)


@given(st.text(max_size=20))
def test_any_text_has_spellings_that_are_entries(text: str) -> None:
    """No spelling has a separator in it, none is the text itself."""
    for other in spellings(text):
        assert other and not set(other) & set(", \t\n") and other != text


def test_a_spelling_goes_where_the_entry_goes() -> None:
    """``*.a.b`` and ``.a.b`` are the same to the Docker daemon, as are a network and its addresses."""
    assert plain("*.a.test") == ".a.test"
    assert [plain(entry) for entry in ("*", "*a.test", "*.", "*.*", "a.test", "*.10")] == [
        *("*", "*a.test", "*.", "*.*", "a.test", "*.10")
    ]
    assert spellings("10.1.2.2/31") == ("10.1.2.2", "10.1.2.3")
    assert all(bypasses("10.1.2.0/28", f"{ip}:80") for ip in spellings("10.1.2.0/28"))
    assert spellings("bücher.test") == ("xn--bcher-kva.test",)
    assert spellings("[FD00::1]") == ("fd00::1",)
    assert spellings("a.test.") == ("a.test",)
    assert spellings("10.0.0.0/8") == spellings("a.test") == spellings("[fe80::1%eth0]") == ()
