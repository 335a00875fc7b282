"""The marked block goes in, is found, is replaced and comes out again byte for byte (P1, P3, F41, F45, F63)."""

from __future__ import annotations

import json
from typing import Any, Literal

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from vmproxy import blocks
from vmproxy.errors import ForeignFile, UsageError

Where = Literal["end", "after-shebang"]
WHERES: tuple[Where, ...] = ("end", "after-shebang")
wheres = pytest.mark.parametrize("where", WHERES)

PAYLOAD = b"export http_proxy='http://10.0.2.2:8123'\n"
RECORD: dict[str, Any] = {"proxy": "http://10.0.2.2:8123"}

PIECES = [
    b"",
    b"\n",
    b"\r\n",
    b"\r",
    b"\0",
    b"\xff",
    b"\xef\xbb\xbf",
    b" ",
    b"\\",
    b"#!/bin/sh",
    b"#!/bin/sh\n",
    b"#!/bin/sh\r\n",
    b"exit 0",
    b"export http_proxy=x\n",
    b"readonly http_proxy\n",
    b"cat <<EOF\n",
    b"EOF\n",
    b"'",
    b"# >>> vmprox",
    b"# >>> vmproxy",
    b"# >>> vmproxy 1 {}",
    b"# >>> vmproxy 1 {}\n",
    b'# >>> vmproxy 1 {"undo":["absent"]}\n',
    b"# >>> vmproxy 2 {}\n",
    b"# <<< vmproxy",
    b"# <<< vmproxy\n",
    b"# <<< vmproxy\r\n",
    b"x" * 200_000,
]
CONTENTS = st.lists(st.sampled_from(PIECES) | st.binary(max_size=20), max_size=8).map(b"".join) | st.binary()
PLAIN_CONTENTS = CONTENTS.filter(lambda content: b"vmproxy" not in content)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
RECORDS = st.dictionaries(st.text().filter(lambda key: key != "undo"), JSON, max_size=3)
PAYLOADS = st.lists(st.text(st.characters(min_codepoint=32, exclude_characters="\\"))).map(
    lambda lines: (
        "".join(f"{line}\n" for line in lines).encode("utf-8", "surrogateescape")
        if not any("\ud800" <= char <= "\udfff" for line in lines for char in line)
        else b"x\n"
    )
)


def refused(content: bytes) -> bool:
    """Whether markers in ``content`` make every function refuse it alike."""
    try:
        blocks.find(content)
    except ForeignFile:
        for where in WHERES:
            with pytest.raises(ForeignFile):
                blocks.put(content, PAYLOAD, where=where, record=RECORD)
            assert blocks.objections(content, where=where, names=["http_proxy"])
        with pytest.raises(ForeignFile):
            blocks.take(content)
        return True
    return False


@wheres
@given(content=CONTENTS | st.none(), payload=PAYLOADS, record=RECORDS)
@example(content=None, payload=PAYLOAD, record=RECORD)
@example(content=b"", payload=PAYLOAD, record=RECORD)
@example(content=b"a", payload=PAYLOAD, record=RECORD)
@example(content=b"a\r\n", payload=PAYLOAD, record=RECORD)
@example(content=b"#!/bin/sh", payload=PAYLOAD, record=RECORD)
@example(content=b"#!/bin/sh\n", payload=PAYLOAD, record=RECORD)
@example(content=b"#!/bin/sh\r\nfoo", payload=PAYLOAD, record=RECORD)
@example(content=b"\xef\xbb\xbf#!/bin/sh\n\xff", payload=b"", record={})
def test_p1_take_is_the_exact_inverse_of_put(
    content: bytes | None, payload: bytes, record: dict[str, Any], where: Where
) -> None:
    """put then take gives every byte, or the absence; put twice is put once; exactly one block; or it is refused."""
    if content is not None and refused(content):
        return
    before = content if content is None else blocks.take(content)
    done = blocks.put(content, payload, where=where, record=record)
    assert blocks.put(done, payload, where=where, record=record) == done
    assert blocks.take(done) == before
    found = blocks.find(done)
    assert found is not None
    assert (found.payload, found.record) == (payload, record)
    ours = b"" if before or where == "end" else blocks.SHEBANG
    outside = done[: found.start] + done[found.end :]
    assert outside in ((before or b"") + ours, (before or b"") + b"\n")


@wheres
@given(content=PLAIN_CONTENTS | st.none(), first=PAYLOADS, second=PAYLOADS, old=RECORDS, new=RECORDS)
def test_p3_an_update_equals_a_first_put(
    content: bytes | None, first: bytes, second: bytes, old: dict[str, Any], new: dict[str, Any], where: Where
) -> None:
    """put(put(x, a), b) is put(x, b): nothing of the older block stays, and undo still knows the beginning."""
    once = blocks.put(content, second, where=where, record=new)
    twice = blocks.put(blocks.put(content, first, where=where, record=old), second, where=where, record=new)
    assert twice == once
    assert blocks.take(twice) == content


@wheres
@given(content=PLAIN_CONTENTS | st.none(), head=PLAIN_CONTENTS, tail=PLAIN_CONTENTS)
def test_p1_what_a_user_adds_around_the_block_stays(
    content: bytes | None, head: bytes, tail: bytes, where: Where
) -> None:
    """Bytes added before or behind our block survive the next put and the take, in their order."""
    head = head + b"\n" if head and not head.endswith(b"\n") else head
    first = blocks.put(content, PAYLOAD, where=where, record=RECORD)
    edited = head + first + tail
    again = blocks.put(edited, PAYLOAD, where=where, record=RECORD)
    assert blocks.put(again, PAYLOAD, where=where, record=RECORD) == again
    rest = blocks.take(again)
    if not head and not tail:
        assert rest == content
        return
    found = blocks.find(first)
    assert found is not None
    outside = head + first[: found.start] + first[found.end :] + tail
    assert (rest or b"") in (outside, outside.removesuffix(b"\n"), b"")
    assert rest == outside or not tail or outside == blocks.SHEBANG


def test_the_format_is_pinned() -> None:
    """The block's text, which later versions have to read."""
    assert blocks.put(b"a", PAYLOAD, where="end", record={"b": "ü\x7f", "a": 1}) == (
        b'a\n# >>> vmproxy 1 {"a":1,"b":"\\u00fc\\u007f","undo":["no-newline"]}\n' + PAYLOAD + b"# <<< vmproxy\n"
    )
    assert blocks.put(None, PAYLOAD, where="after-shebang", record={}) == (
        b'#!/bin/sh\n# >>> vmproxy 1 {"undo":["absent","shebang"]}\n' + PAYLOAD + b"# <<< vmproxy\n"
    )


def test_found_says_where_the_block_is() -> None:
    """Offsets, line numbers from 1, payload, record without undo."""
    content = blocks.put(b"one\ntwo", PAYLOAD, where="end", record=RECORD) + b"three\n"
    found = blocks.find(content)
    assert found is not None
    assert (found.first_line, found.last_line) == (3, 5)
    assert content[: found.start] == b"one\ntwo\n"
    assert content[found.end :] == b"three\n"
    assert (found.payload, found.record, found.undo) == (PAYLOAD, RECORD, frozenset({"no-newline"}))


def test_no_block_is_none_and_taking_it_changes_nothing() -> None:
    """A file that never had a block stays as it is (F64)."""
    for content in (b"", b"a", b"# vmproxy is great\n", b'echo "# >>> vmproxy 1 {}"\n', b"#>> vmproxy\n"):
        assert blocks.find(content) is None
        assert blocks.take(content) == content


GOOD = blocks.put(b"a\n", PAYLOAD, where="end", record=RECORD)
BEGIN, END = b'# >>> vmproxy 1 {"proxy":"x"}\n', b"# <<< vmproxy\n"


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (b"a\n" + BEGIN, 2),
        (b"a\n" + BEGIN + b"b\n", 2),
        (b"a\n" + END, 2),
        (b"a\n" + END + BEGIN, 2),
        (GOOD + GOOD, 6),
        (BEGIN + BEGIN + END + END, 2),
        (BEGIN + b"x\n" + BEGIN + END, 3),
        (BEGIN + END + END, 3),
        (b"# >>> vmproxy\n" + END, 1),
        (b"# >>> vmproxy 1\n" + END, 1),
        (b"# >>> vmproxy 1 {}x\n" + END, 1),
        (b"# >>> vmproxy 0 {}\n" + END, 1),
        (b"# >>> vmproxy 1 {}\r\n" + END, 1),
        (b" # >>> vmproxy 1 {}\n" + END, 1),
        (b"#>>> vmproxy 1 {}\n" + END, 1),
        (b"# >>> vmproxy 1 {}\n# <<< vmproxy\r\n", 2),
        (b"# >>> vmproxy 1 {}\n# <<< vmproxy end\n", 2),
        (b"# >>> vmproxy 1 {\n" + END, 1),
        (b'# >>> vmproxy 1 {"a":1,"a":2}\n' + END, 1),
        (b'# >>> vmproxy 1 {"a":NaN}\n' + END, 1),
        (b'# >>> vmproxy 1 {"a":' + b"[" * 100_000 + b"}\n" + END, 1),
        (b'# >>> vmproxy 1 {"undo":"absent"}\n' + END, 1),
        (b'# >>> vmproxy 1 {"undo":["everything"]}\n' + END, 1),
        (b'# >>> vmproxy 1 {"undo":[["absent"]]}\n' + END, 1),
        (b'# >>> vmproxy 1 {"a":"\xff"}\n' + END, 1),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_f45_damaged_markers_are_refused_with_their_line(content: bytes, line: int) -> None:
    """Damaged, doubled, reordered, nested markers: nobody touches the file, and the line is named."""
    with pytest.raises(ForeignFile) as caught:
        blocks.find(content, path="/var/lib/x/profile")
    assert caught.value.where == f"/var/lib/x/profile:{line}"
    assert caught.value.hint
    assert refused(content)


def test_f63_a_newer_format_is_said_to_be_newer() -> None:
    """A block of a later vmproxy is left to that one."""
    with pytest.raises(ForeignFile, match="newer vmproxy"):
        blocks.find(b"a\n# >>> vmproxy 2 whatever it says\n# <<< vmproxy\n")


def test_a_block_at_the_very_end_without_newline_is_still_ours() -> None:
    """An editor that strips the last newline of the file does not make our block foreign."""
    assert blocks.take(GOOD.removesuffix(b"\n")) == b"a\n"
    assert blocks.put(GOOD.removesuffix(b"\n"), PAYLOAD, where="end", record=RECORD) == GOOD


def test_a_changed_payload_is_put_right_in_place() -> None:
    """What somebody edited inside our block is ours to replace."""
    edited = GOOD.replace(b"10.0.2.2:8123'", b"1.2.3.4:1'\r")
    assert edited != GOOD
    assert blocks.put(edited, PAYLOAD, where="end", record=RECORD) == GOOD


@pytest.mark.parametrize(
    "tail",
    [
        b"export http_proxy=mine\n",
        b"http_proxy=mine\n",
        b"unset http_proxy\n",
        b"unset http_proxy=x\n",
        b"export -n http_proxy\n",
        b"if true; then\n  unset http_proxy\nfi\n",
        b"readonly http_proxy=mine\n",
        b"f() { http_proxy=mine; }\nf\n",
        b"echo 'open\n",
    ],
)
def test_f44_a_block_that_is_undone_behind_it_moves_to_the_end(tail: bytes) -> None:
    """Lines behind our block that set or unset its variables end up before it, so that ours has effect."""
    moved = blocks.put(GOOD + tail, PAYLOAD, where="end", record=RECORD)
    assert moved == b"a\n" + tail + GOOD.removeprefix(b"a\n")
    assert blocks.take(moved) == b"a\n" + tail


@pytest.mark.parametrize(
    "tail",
    [
        b"\n",
        b"# http_proxy=mine\n",
        b"export EXTRA_ARGS=--debug\n",
        b"export http_proxy\n",
        b"export none http_proxy\n",
        b"export -p http_proxy\n",
        b"http_proxy=mine wget x\n",
        b"(unset http_proxy)\n",
        b"cat <<E\nhttp_proxy=mine\nE\n",
        b"echo 'http_proxy=mine'\n",
        b"exit 0\n",
    ],
)
def test_harmless_lines_behind_a_block_leave_it_where_it_is(tail: bytes) -> None:
    """A user's unrelated line behind our block is no drift."""
    assert blocks.put(GOOD + tail, PAYLOAD, where="end", record=RECORD) == GOOD + tail


def test_a_block_behind_code_moves_up_to_the_shebang() -> None:
    """In a boot script our block stands before the user's first command, whatever was put above it since."""
    block = BEGIN.replace(b'"x"', json.dumps(RECORD["proxy"]).encode()) + PAYLOAD + END
    below = b"#!/bin/sh\n# a comment\n\n" + block + b"sleep 100\n"
    assert blocks.put(below, PAYLOAD, where="after-shebang", record=RECORD) == below
    moved = blocks.put(b"#!/bin/sh\nsleep 1\n" + block + b"b", PAYLOAD, where="after-shebang", record=RECORD)
    assert moved == b"#!/bin/sh\n" + block + b"sleep 1\nb"
    assert blocks.take(moved) == b"#!/bin/sh\nsleep 1\nb"


def test_a_file_that_was_absent_and_gained_lines_stays() -> None:
    """What the user has added to a file that we made is not deleted with our block."""
    ours = blocks.put(None, PAYLOAD, where="after-shebang", record=RECORD)
    assert blocks.take(ours + b"echo hi\n") == b"#!/bin/sh\necho hi\n"
    assert blocks.take(ours) is None
    profile = blocks.put(None, PAYLOAD, where="end", record=RECORD)
    moved = blocks.put(profile + b"http_proxy=x", PAYLOAD, where="end", record=RECORD)
    assert blocks.take(moved) == b"http_proxy=x"


@pytest.mark.parametrize(
    "payload", [b"x", b"x\r\n", b"\0\n", BEGIN, END, b"x\n # <<< vmproxy\n", b"x \\\n", b"x \\\\\\\n"]
)
def test_a_payload_that_would_break_the_block_is_refused(payload: bytes) -> None:
    """No CR, NUL, marker, open last line or continued last line ever gets into a block (RELIABILITY 0.4)."""
    with pytest.raises(UsageError):
        blocks.put(b"a\n", payload, where="end", record=RECORD)


@pytest.mark.parametrize("record", [{"undo": []}, {"a": object()}, {"a": float("nan")}, {"a": b"x"}])
def test_a_record_that_is_not_json_is_refused(record: dict[str, Any]) -> None:
    """The record is one line of JSON, and undo is not the caller's."""
    with pytest.raises(UsageError):
        blocks.put(b"a\n", PAYLOAD, where="end", record=record)


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (b"a\n" + END, "no beginning"),
        (b"a\n" + BEGIN, "no end"),
        (BEGIN + BEGIN + END, "doubled or nested"),
        (BEGIN + END + END, "second"),
        (b"# >>> vmproxy 1 {\n" + END, "damaged"),
        (b'# >>> vmproxy 1 {"a":1,"a":1}\n' + END, "record is damaged"),
        (b'# >>> vmproxy 1 {"a":' + b"[" * 900 + b"]" * 900 + b"}\n" + END, "record is damaged"),
    ],
)
def test_f45_the_error_says_what_is_wrong_with_the_marker(content: bytes, word: str) -> None:
    """Each kind of damage has its own words."""
    with pytest.raises(ForeignFile, match=word):
        blocks.find(content)
