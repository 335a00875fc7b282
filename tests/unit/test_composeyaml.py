"""YAML as Compose means it, and what a hostile file costs."""

from __future__ import annotations

import json
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from vmproxy.composeyaml import LIMIT_BYTES, Override, Reset, documents
from vmproxy.errors import UsageError

TEXTS = st.text(st.characters(codec="utf-8", exclude_categories=("Cs", "Cc")), max_size=8)
VALUES = st.recursive(
    st.none() | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=20,
)


def error(data: bytes) -> UsageError:
    """The refusal of a file named f.yaml."""
    with pytest.raises(UsageError) as caught:
        documents(data, "f.yaml")
    assert "\n" not in str(caught.value)
    return caught.value


@given(VALUES, st.booleans())
def test_any_value_is_read_as_the_library_reads_it(value: Any, flow: bool) -> None:
    """What PyYAML writes of texts, lists and mappings, in block or flow style, comes back the same."""
    text = yaml.safe_dump({"top": value}, default_flow_style=flow, allow_unicode=True)
    assert documents(text.encode(), "f.yaml") == ({"top": value},)


@given(VALUES)
def test_json_is_read(value: Any) -> None:
    """A Compose file may be JSON."""
    assert documents(json.dumps({"top": value}, ensure_ascii=False).encode(), "f.yaml") == ({"top": value},)


def test_words_stay_texts() -> None:
    """Nothing becomes a number, a date or a truth value; only null is nothing, and only unquoted."""
    data = b"{on: yes, '2.1': 2.10, d: 2020-01-01, n: ~, m: , o: null, p: 'null', q: '', r: !!str null}"
    wanted = {"on": "yes", "2.1": "2.10", "d": "2020-01-01", "n": None, "m": None, "o": None, "p": "null", "q": ""}
    assert documents(data, "f.yaml") == (wanted | {"r": "null"},)


def test_merge_keys_give_way_to_own_keys() -> None:
    """``<<`` with one mapping or several: a mapping's own keys win wherever they stand, then the first of the list."""
    data = b"""
a: &a {x: 1, y: 1}
b: &b {y: 2, z: 2}
c: {x: own, <<: *a}
d: {<<: *a, x: own}
e: {<<: [*b, *a]}
f: {'<<': text}
"""
    (found,) = documents(data, "f.yaml")
    assert found["c"] == found["d"] == {"x": "own", "y": "1"}
    assert found["e"] == {"x": "1", "y": "2", "z": "2"}
    assert found["f"] == {"<<": "text"}


def test_tags_of_compose() -> None:
    """``!reset`` and ``!override`` are told; a tag that nobody knows, or that would run code, counts for nothing."""
    (found,) = documents(b"{a: !reset null, b: !override [x], c: !foo y, d: !!python/object:os.system z}", "f.yaml")
    assert found == {"a": Reset(), "b": Override(value=["x"]), "c": "y", "d": "z"}


def test_several_documents_and_none() -> None:
    """A file may hold several documents, each with anchors of its own, or nothing at all."""
    assert documents(b"a: &x 1\n---\nb: &x 2\nc: *x\n", "f.yaml") == ({"a": "1"}, {"b": "2", "c": "2"})
    assert documents(b"# nothing\n", "f.yaml") == ()


@pytest.mark.parametrize(
    ("data", "line"),
    [
        (b"a: 1\n b: 2\n", 2),
        (b"a:\n\t- b\n", 2),
        (b"a: 1\nb: *x\n", 2),
        (b"a: 1\n\nb: \x00\n", 3),
        (b"a: 1\nb: \xe9\n", 2),
        (b"a: 1\n? [x]\n: y\n", 2),
        (b"a: 1\nb: {<<: text}\n", 2),
    ],
)
def test_what_is_no_yaml_is_told_with_its_line(data: bytes, line: int) -> None:
    """One line with file and line; exit 2."""
    told = error(data)
    assert (told.where, told.exit) == (f"f.yaml:{line}", 2)


def bomb(form: str) -> bytes:
    """Twenty lines, each of which doubles nine times what the one before holds."""
    lines = ["a0: &a0 {" + ", ".join(f"k{i}: x" for i in range(9)) + "}"]
    for level in range(1, 20):
        lines.append(f"a{level}: &a{level} " + form % ", ".join([f"*a{level - 1}"] * 9))
    return "\n".join(lines).encode()


def test_laughs_cost_nothing() -> None:
    """Aliases of aliases are the same thing twice, not twice the memory; merged mappings stay as big as they are."""
    (lists,) = documents(bomb("[%s]"), "f.yaml")
    assert lists["a19"][0] is lists["a18"]
    (merged,) = documents(bomb("{<<: [%s]}"), "f.yaml")
    assert merged["a19"] == merged["a0"]


def test_itself_inside_itself() -> None:
    """A value that holds itself is read and does no harm."""
    (found,) = documents(b"a: &a [*a]\nb: &b {<<: *b, c: d}\n", "f.yaml")
    assert found["a"][0] is found["a"]
    assert found["b"] == {"c": "d"}


@pytest.mark.parametrize(
    "data",
    [
        b"[" * 500_000,
        b"{a: " * 200_000,
        b"- " * 400_000,
        b"? " * 400_000,
        b"x" * (LIMIT_BYTES + 1),
        b"a: &a {" + b",".join(b"k%d: 1" % i for i in range(20_000)) + b"}\n" + b"b: {<<: *a}\n" * 10,
    ],
    ids=["lists", "mappings", "items", "keys", "long", "merges"],
)
def test_hostile_files_are_refused(data: bytes) -> None:
    """Depth, length and merges have limits."""
    assert error(data).where.startswith("f.yaml")


def test_without_the_library_the_hint_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyYAML is an extra: where it is missing, one line says how to get it."""
    monkeypatch.setitem(__import__("sys").modules, "yaml", None)
    assert "vmproxy[compose]" in error(b"a: 1").hint
