"""P10: one member of somebody else's JSON goes in and comes out to the byte; everything else stays as it is."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from tests.unit.hostilejson import ANY, BLANKS, documents
from vmproxy import jsonedit
from vmproxy.errors import ForeignFile
from vmproxy.jsontext import parse

DEFAULT = ("proxies", "default")
VALUE = {
    "httpProxy": "http://172.17.0.1:8123",
    "httpsProxy": "http://172.17.0.1:8123",
    "noProxy": "localhost,10.0.0.0/8",
}
TEXTS = st.text(max_size=12)
ENTRIES = st.dictionaries(TEXTS, TEXTS, max_size=3).map(lambda more: {"httpProxy": "http://u:p@h:1", **more})
PATHS = st.lists(
    st.one_of(st.sampled_from(["proxies", "default", "tcp://10.0.0.5:2376"]), TEXTS), min_size=1, max_size=3
)
PATHS_TUPLE = PATHS.map(tuple)
Pairs = list[tuple[str, Any]]


def pairs(document: bytes) -> Any:
    """The document with objects as lists of pairs (order and doubles kept) and numbers as their text."""
    return json.loads(document, object_pairs_hook=list, parse_int=lambda text: ("int", text), parse_float=str)


def without(value: Any, path: tuple[str, ...]) -> Any:
    """``pairs`` without the member at ``path``, and without objects that are empty then."""
    if not path:
        return None
    left = []
    for name, item in value:
        if name != path[0]:
            left.append((name, item))
        elif len(path) > 1 and (inner := without(item, path[1:])):
            left.append((name, inner))
    return left


def put_or_none(document: bytes | None, path: tuple[str, ...], value: Any, made: int = 0) -> bytes | None:
    """``put``, None where it refuses."""
    try:
        return jsonedit.put(document, path, value, made=made)
    except ForeignFile:
        return None


@settings(max_examples=250)
@given(document=documents(), path=PATHS_TUPLE, value=ENTRIES)
@example(document=b"{}", path=DEFAULT, value=VALUE)
@example(document=b'{"proxies":{}}', path=DEFAULT, value=VALUE)
@example(document=b'{"proxies": {"default": {}}}', path=DEFAULT, value=VALUE)
@example(document=b'{ "proxies":{"x":{}}}', path=DEFAULT, value=VALUE)
@example(document=b'{\r\n\t"a": 1,\r\n\t"proxies": {\r\n\t}\r\n}\r\n', path=DEFAULT, value=VALUE)
def test_p10_remove_is_the_inverse_and_everything_else_is_equal(
    document: bytes, path: tuple[str, ...], value: dict[str, str]
) -> None:
    """What is put in is found, the output parses, every other member has its very bytes, and take gives the document
    back to the byte and says that it does. A second put changes nothing or is refused."""
    after = put_or_none(document, path, value)
    assume(after is not None and document not in (after,))
    assert after is not None
    found = jsonedit.find(after, path)
    assert found is not None
    assert found.value == value
    assert found.ours
    taken = jsonedit.take(after, path)
    assert (taken.document, taken.made, taken.exact) == (document, 0, True)
    with pytest.raises(ForeignFile):
        jsonedit.put(after, path, value)
    # Our bytes are one piece: in front of it and behind it stands what was there.
    at = next(place for place in range(len(after)) if document[place : place + 1] != after[place : place + 1])
    assert after[len(after) - (len(document) - at) :] == document[at:]
    before_value, after_value = pairs(document), pairs(after)
    if not any(name == path[0] for name, _item in before_value):
        assert without(after_value, path) == before_value


@given(path=PATHS_TUPLE, value=ENTRIES, made=st.integers(0, 4))
def test_a_document_that_was_not_there_is_gone_again(path: tuple[str, ...], value: dict[str, str], made: int) -> None:
    """From nothing, put makes a document that parses; take says there was none, and how many directories were made."""
    after = jsonedit.put(None, path, value, made=made)
    assert after == after.rstrip() + b"\n" * (1 + made)
    taken = jsonedit.take(after, path)
    assert (taken.document, taken.made, taken.exact) == (None, made, True)
    inner = json.loads(after)
    for name in path:
        inner = inner[name]
    assert inner == value


@given(document=BLANKS, path=PATHS_TUPLE, value=ENTRIES)
def test_an_empty_file_is_empty_again(document: bytes, path: tuple[str, ...], value: dict[str, str]) -> None:
    """A file of nothing but white space counts as an empty object, and has just that white space again."""
    after = jsonedit.put(document, path, value)
    assert json.loads(after)
    assert jsonedit.take(after, path) == jsonedit.Taken(document=document, exact=True)


@settings(max_examples=100)
@given(
    data=st.data(), document=documents(), keys=st.lists(st.sampled_from("abcd"), unique=True, min_size=2), value=ENTRIES
)
def test_several_members_come_out_in_the_reverse_order(
    data: st.DataObject, document: bytes, keys: list[str], value: dict[str, str]
) -> None:
    """Entries put in one after the other come out again, last first, to the byte at every step."""
    steps: list[bytes | None] = [data.draw(st.sampled_from([document, None, b""]))]
    for key in keys:
        after = put_or_none(steps[-1], ("proxies", key), value)
        assume(after is not None)
        steps.append(after)
    for key in reversed(keys):
        last = steps.pop()
        assert last is not None
        assert jsonedit.take(last, ("proxies", key)).document == steps[-1]


@settings(max_examples=100)
@given(document=documents(), value=ENTRIES, indent=st.sampled_from(["\t", 1, 4, None]))
def test_after_somebody_wrote_it_anew_only_the_value_goes(
    document: bytes, value: dict[str, str], indent: str | int | None
) -> None:
    """A program that writes the whole file in its own form (the docker client) keeps the value; then take leaves every
    other member as that program wrote it, and no empty object of ours."""
    after = put_or_none(document, DEFAULT, value)
    assume(after is not None and b"9" * 5000 not in document)
    assert after is not None
    rewritten = json.dumps(json.loads(after, parse_float=str), indent=indent).encode()
    assert jsonedit.find(rewritten, DEFAULT) == jsonedit.Found(value=value, ours=False)
    left = jsonedit.take(rewritten, DEFAULT)
    assert left.document is not None
    assert pairs(left.document) == without(pairs(rewritten), DEFAULT)


@settings(max_examples=100)
@given(document=documents(), path=PATHS_TUPLE)
def test_cut_takes_one_member_whatever_it_is(document: bytes, path: tuple[str, ...]) -> None:
    """cut: the others stay, in order; without the member the very same bytes."""
    try:
        found = jsonedit.find(document, path)
    except ForeignFile:
        return
    left = jsonedit.cut(document, path)
    if found is None:
        assert left == document
    else:
        assert pairs(left) == without(pairs(document), path)


@settings(max_examples=300)
@given(document=ANY, junk=st.binary(max_size=3), place=st.integers(0, 60))
def test_what_is_json_is_what_python_takes_for_json(document: bytes, junk: bytes, place: int) -> None:
    """The reader takes and refuses as Python's does, for documents and for broken ones, and never crashes.

    Python takes NaN and Infinity too, which are no JSON."""
    for text in (document, document[:place], document[:place] + junk + document[place:]):
        try:
            decoded = text.decode("utf-8")
            json.loads(decoded, parse_int=str, parse_constant=lambda word: 1 / 0)
        except (ValueError, ZeroDivisionError):
            fine = False
        else:
            fine = True
        if b"\xff" in text or not valid_utf8(text):
            continue
        try:
            parse(text)
        except ForeignFile as error:
            assert not fine, error
            line, column = map(int, error.where.split(":"))
            assert 1 <= line <= text.count(b"\n") + 1
            assert column >= 1
        else:
            assert fine


def valid_utf8(text: bytes) -> bool:
    """Whether it can be decoded."""
    try:
        text.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


@pytest.mark.parametrize(
    ("document", "where", "says"),
    [
        (b'{"a": 1,}', "1:9", "name"),
        (b'{\n\t"a": 1\n\t"b": 2\n}', "3:2", "comma or }"),
        (b'{"a": 01}', "1:7", "value"),
        (b'{"a": tru}', "1:7", "value"),
        (b'{"a": nullx}', "1:7", "value"),
        (b'{"a"; 1}', "1:5", "colon"),
        (b'{"caf\xc3\xa9": "\x01"}', "1:11", "control"),
        (b'{"a": "\\x"}', "1:8", "escape"),
        (b'{"a": "\\u12g4"}', "1:8", "escape"),
        (b'{"a": "b', "1:9", "not closed"),
        (b'{"a": [1 2]}', "1:10", "comma or ]"),
        (b"{} {}", "1:4", "follows"),
        (b"{", "1:2", "name"),
        (b"// no comments\n{}", "1:1", "value"),
        (b"\xef\xbb\xbf{}", "1:1", "byte order mark"),
        (b"[]", "1:1", "no JSON object"),
        (b'"text"', "1:1", "no JSON object"),
        (b"{'a': 1}", "1:2", "double quotes"),
        (b"[" * 10_001, "1:10001", "deeper"),
    ],
)
def test_f71_what_is_no_json_is_refused_with_its_place(document: bytes, where: str, says: str) -> None:
    """Line and column of the first thing that is wrong, exit 6, and the words say what."""
    with pytest.raises(ForeignFile, match=says) as caught:
        jsonedit.put(document, DEFAULT, VALUE)
    assert caught.value.where == where
    assert caught.value.exit == 6


@pytest.mark.parametrize(
    ("document", "says"),
    [
        (b'{"proxies": {}, "proxies": {}}', "proxies is there more than once"),
        (b'{"proxies": {"default": 1, "def\\u0061ult": 2}}', "proxies.default is there more than once"),
        (b'{"proxies": null}', "proxies is no object"),
        (b'{"proxies": [1]}', "proxies is no object"),
        (b'{"proxies": {"default": 1}}', "proxies.default is already there"),
    ],
)
def test_what_is_in_the_way_is_refused(document: bytes, says: str) -> None:
    """A name that stands twice on the way, something else than an object there, a member that is there."""
    with pytest.raises(ForeignFile, match=says):
        jsonedit.put(document, DEFAULT, VALUE)


@pytest.mark.parametrize(
    ("document", "after"),
    [
        (None, '{"proxies": {"default": {\n\t"p": "http:\\/\\/h:1"\n}}}\n'),
        (b"{}\n", '{ "proxies": {"default": {"p": "http:\\/\\/h:1"}}}\n'),
        (b'{"a": 1}', '{ "proxies": {"default": {"p": "http:\\/\\/h:1"}},"a": 1}'),
        (
            b'{\n    "a": 1\n}\n',
            '{\n    "proxies": {"default": {\n        "p": "http:\\/\\/h:1"\n    }},\n    "a": 1\n}\n',
        ),
        (b'{\r\n\t"a": 1}', '{\r\n\t"proxies": {"default": {\r\n\t\t"p": "http:\\/\\/h:1"\r\n\t}},\r\n\t"a": 1}'),
        (
            b'{\n  "proxies": {\n    "b": {}\n  }\n}',
            '{\n  "proxies": {\n    "default": {\n      "p": "http:\\/\\/h:1"\n    },\n    "b": {}\n  }\n}',
        ),
    ],
)
def test_it_is_laid_out_as_the_file_is(document: bytes | None, after: str) -> None:
    """Tabs or spaces, CRLF, one line: as the file has them; a new file as the docker client writes one."""
    assert jsonedit.put(document, DEFAULT, {"p": "http://h:1"}).decode() == after


@pytest.mark.parametrize(
    ("document", "left"),
    [
        (b'{"auths": {}, "proxies": {"default": %b}, "x": 1}', b'{"auths": {}, "x": 1}'),
        (b'{\n\t"auths": {},\n\t"proxies": {\n\t\t"default": %b\n\t}\n}', b'{\n\t"auths": {}\n}'),
        (b'{"proxies": {"a": {}, "default": %b}}', b'{"proxies": {"a": {}}}'),
        (b'{"proxies": {"default": %b, "a": {}}}', b'{"proxies": { "a": {}}}'),
        (b'{\n  "proxies": {\n    "default": %b\n  }\n}\n', b"{\n}\n"),
    ],
)
def test_in_somebody_elses_layout_it_goes_with_its_comma(document: bytes, left: bytes) -> None:
    """Moved or laid out anew: the member, one comma and its white space go; what is empty then goes too; not exact."""
    taken = jsonedit.take(document.replace(b"%b", b'{"p":"http:\\/\\/h:1"}'), DEFAULT)
    assert taken == jsonedit.Taken(document=left)
    assert parse(left)


@pytest.mark.parametrize(
    ("text", "value", "ours"),
    [
        (b'{"p": "http:\\/\\/h:1"}', {"p": "http://h:1"}, True),
        (b'{"p" :"http:\\/\\/h:1" , "q":"" }', {"p": "http://h:1", "q": ""}, True),
        (b'{"p": "http://h:1"}', {"p": "http://h:1"}, False),
        (b'{"p": "http:\\/\\/h:1", "q": "a/b"}', {"p": "http://h:1", "q": "a/b"}, False),
        (b'{"p": "http:\\/\\/h:1", "q": "\\u0061"}', {"p": "http://h:1", "q": "a"}, False),
        (b'{"p": "http:\\/\\/h:1", "q": "caf\xc3\xa9"}', {"p": "http://h:1", "q": "caf\u00e9"}, False),
        (b'{"p": "x"}', {"p": "x"}, False),
        (b'{"p": "http:\\/\\/h:1", "p": "b"}', None, False),
        (b'{"p": 1}', None, False),
        (b'{"p": null}', None, False),
        (b"{}", {}, False),
        (b'"http:\\/\\/h:1"', "http://h:1", True),
        (b'{"p": ' * 60 + b'"http:\\/\\/h:1"' + b"}" * 60, None, False),
    ],
)
def test_what_is_ours_is_known_by_how_it_is_written(text: bytes, value: Any, ours: bool) -> None:
    """Ours is what has each of its slashes escaped and nothing else; anything that put never writes is no value."""
    found = jsonedit.find(b'{"proxies": {"default": ' + text + b"}}", DEFAULT)
    assert found == jsonedit.Found(value=value, ours=ours)


def test_a_member_that_is_not_there_is_not_taken() -> None:
    """take and cut of nothing give the very document."""
    document = b'{ "proxies": {"a": {}} }'
    assert jsonedit.take(document, DEFAULT) == jsonedit.Taken(document=document)
    assert jsonedit.cut(document, DEFAULT) == document
    assert jsonedit.find(None, DEFAULT) is None
    assert jsonedit.find(b" \n", DEFAULT) is None
    assert jsonedit.names(b"", ()) == jsonedit.names(b'{"a": 1}', ("b",)) == ()
    assert jsonedit.names(document) == ("proxies",)
    assert jsonedit.names(document, ("proxies",)) == ("a",)


def test_bytes_that_are_not_utf8_stay() -> None:
    """Latin-1 in somebody's text is kept as it is, as Go's reader takes it."""
    document = b'{"note": "caf\xe9", "n\xe9": 1}'
    after = jsonedit.put(document, DEFAULT, VALUE)
    assert after.endswith(b'"note": "caf\xe9", "n\xe9": 1}')
    assert jsonedit.take(after, DEFAULT).document == document


def test_a_large_document_is_edited_in_one_pass() -> None:
    """Twenty thousand members and an object nine thousand deep: no recursion, the same bytes back."""
    many = b",".join(b'"k%d": [%d]' % (number, number) for number in range(20_000))
    document = b'{"deep": ' + b'{"a":' * 9_000 + b"1" + b"}" * 9_000 + b"," + many + b"}"
    after = jsonedit.put(document, DEFAULT, VALUE)
    assert jsonedit.take(after, DEFAULT).document == document
