"""JSON documents as people, editors and hostile programs write them: strategies that give bytes."""

from __future__ import annotations

import json

from hypothesis import strategies as st

SPACE = st.text(alphabet=" \t\n\r", max_size=3).map(str.encode)
INDENT = st.sampled_from([b"", b" ", b"\n", b"\n\t", b"\n  ", b"\r\n    ", b"\n\n ", b"\t", b"\r", b" \n\t\t"])
GAP = st.one_of(INDENT, SPACE)
NUMBERS = st.one_of(
    st.integers().map(lambda number: str(number).encode()),
    st.sampled_from([b"123456789012345678901234567890", b"-0", b"1e400", b"-1.50E-07", b"0.10", b"9" * 5000]),
)
WORDS = st.sampled_from([b"true", b"false", b"null"])
KEYS = ("proxies", "default", "tcp://10.0.0.5:2376", "auths", "a/b", "", "httpProxy", "Default", "caf\u00e9")


@st.composite
def _spelled(draw: st.DrawFn, text: str) -> bytes:
    """A string literal: some characters as escapes, in either case, some slashes as ``\\/``."""
    out = b""
    for char in text:
        way = draw(st.integers(0, 5))
        if way == 0 and ord(char) < 0x10000:
            out += f"\\u{ord(char):04x}".encode()
        elif way == 1 and ord(char) < 0x10000:
            out += f"\\u{ord(char):04X}".encode()
        elif char == "/" and way == 2:
            out += b"\\/"
        elif char >= " " and char not in '"\\' and not 0xD800 <= ord(char) < 0xE000:
            out += char.encode()
        else:
            out += json.dumps(char)[1:-1].encode()
    return b'"' + out + b'"'


TEXTS = st.text(max_size=8)
STRINGS = TEXTS.flatmap(_spelled)
NAMES = st.one_of(st.sampled_from(KEYS), TEXTS)


@st.composite
def _object(draw: st.DrawFn, values: st.SearchStrategy[bytes], names: st.SearchStrategy[str]) -> bytes:
    """Members in any order and any layout; a name may stand twice, but those of KEYS."""
    keys = draw(st.lists(names, max_size=4, unique_by=lambda key: key if key in KEYS else object()))
    items = []
    for key in keys:
        name = draw(_spelled(key))
        items.append(draw(GAP) + name + draw(GAP) + b":" + draw(GAP) + draw(values) + draw(GAP))
    return b"{" + (b",".join(items) if items else draw(GAP)) + b"}"


@st.composite
def _array(draw: st.DrawFn, values: st.SearchStrategy[bytes]) -> bytes:
    items = [draw(GAP) + value + draw(GAP) for value in draw(st.lists(values, max_size=3))]
    return b"[" + (b",".join(items) if items else draw(GAP)) + b"]"


ANY = st.recursive(
    st.one_of(STRINGS, NUMBERS, WORDS),
    lambda values: st.one_of(_array(values), _object(values, NAMES)),
    max_leaves=8,
)
VALUES = st.one_of(ANY, _object(_object(ANY, NAMES), NAMES))
"""Any value, and often an object in an object: what is in the way of an edit."""


@st.composite
def documents(draw: st.DrawFn) -> bytes:
    """An object with white space around it; often with ``proxies``, which often is an object."""
    objects = _object(VALUES, NAMES)
    plain = draw(st.one_of(objects, _object(VALUES, st.sampled_from(KEYS))))
    return draw(GAP) + plain + draw(GAP)


BLANKS = SPACE
"""A file with nothing but white space."""
