"""What may be kept and given: the quick judgement agrees with hishel's, and what hishel leaves to us is done."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmproxy.cache import policy
from vmproxy.cache.message import Fields, Head
from vmproxy.cache.policy import Stored, date, directives, fresh_until, keep, look, not_modified, renew, wanted_range
from vmproxy.cache.request import parse, redact

URL = "http://a.example/"
NOW = 1_800_000_000.0
PURE = ("message", "policy", "guard", "limits", "entry", "stats", "request")


def request(*fields: tuple[str, str]) -> Head:
    """A GET."""
    return Head(list(fields), 1, method="GET", target=URL)


def kept(*fields: tuple[str, str], delay: float = 0.0, asked: Head | None = None) -> Stored | None:
    """What is kept of a 200 with these fields."""
    return keep(asked or request(), URL, Head(list(fields), 1, status=200), now=NOW, delay=delay)


def when(seconds: float) -> str:
    """A date so long from NOW."""
    from email.utils import formatdate

    return formatdate(NOW + seconds, usegmt=True)


WORDS = (
    *("max-age=0", "max-age=50", "max-age=5000", "s-maxage=10", "s-maxage=900", "no-cache", "public", "max-age=x"),
    *("must-revalidate", "no-store", "private", "max-age=-1", "stale-if-error=9", "immutable", "MAX-AGE=70"),
    'private="x"',
)
control = st.lists(st.sampled_from(WORDS), max_size=3, unique_by=lambda word: word.lower().partition("=")[0]).map(
    ", ".join
)
optional = st.none() | st.integers(-5000, 5000)


@given(control, st.integers(0, 100), optional, optional, st.integers(0, 6000))
def test_what_is_given_quickly_hishel_gives_too(
    said: str, age: int, expires: int | None, modified: int | None, later: int
) -> None:
    """An entry that our own sum calls fresh is FromCache for hishel, and no other is given."""
    fields: Fields = [("Date", when(0)), ("Age", str(age)), ("ETag", '"x"')]
    fields += [("Cache-Control", said)] if said else []
    fields += [("Expires", when(expires))] if expires is not None else []
    fields += [("Last-Modified", when(modified))] if modified is not None else []
    stored = kept(*fields)
    if stored is None:
        assert {"no-store", "private"} & directives(said).keys()
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("time.time", lambda: NOW + later)
        verdict = look(request(), URL, stored, now=NOW + later)
    margin = abs(fresh_until(stored) - NOW - later)
    if margin > 2 and not (expires is None and modified is not None and not directives(said)):
        assert (verdict.kind == "fresh") == (NOW + later < fresh_until(stored))
    assert verdict.kind in ("fresh", "ask")
    if verdict.kind == "fresh":
        assert NOW + later < fresh_until(stored)


def test_ages_add_up() -> None:
    """Age, the way's delay and a Date in the past count against the life; a missing Date is supplied."""
    fresh = kept(("Cache-Control", "max-age=100"), ("Age", "30"), ("Date", when(0)), delay=5)
    assert fresh and fresh_until(fresh) == NOW + 65
    fresh = kept(("Cache-Control", "max-age=100"), ("Date", when(-40)))
    assert fresh and fresh_until(fresh) == NOW + 60
    fresh = kept(("Cache-Control", "max-age=100"))
    assert fresh and ("Date", when(0)) in fresh.fields
    assert kept(("Cache-Control", "max-age=100"), ("Age", "200")) is None


def test_t11_what_is_not_kept() -> None:
    """Secrets, parts, cookies, foreign Vary, requests that forbid it."""
    life = ("Cache-Control", "max-age=100")
    assert kept(life)
    assert kept(life, ("Set-Cookie", "a=b")) is None
    assert kept(life, ("Vary", "*")) is None
    assert kept(life, ("Vary", "accept, *")) is None
    assert kept(life, ("Content-Range", "bytes 0-1/5")) is None
    assert kept(("Cache-Control", "public, s-maxage=9"), asked=request(("Authorization", "x"))) is None
    assert kept(life, asked=request(("Cache-Control", "no-store"))) is None
    assert kept(life, ("Cache-Control", "private")) is None
    head = Head([life], 1, status=200)
    assert keep(Head([], 1, method="HEAD"), URL, head, now=NOW, delay=0) is None
    for status in (203, 204, 206, 301, 404):
        assert keep(request(), URL, Head([life], 1, status=status), now=NOW, delay=0) is None


def test_no_cache_of_fields_and_hop_fields_are_not_kept() -> None:
    """Fields that no-cache="…" or Connection names are left out of what is kept."""
    stored = kept(("Cache-Control", 'max-age=9, no-cache="x-secret"'), ("X-Secret", "1"), ("ETag", '"a"'))
    assert stored and "x-secret" not in {name.lower() for name, _value in stored.fields}
    stored = kept(("Cache-Control", "max-age=9"), ("Connection", "X-Hop"), ("X-Hop", "1"))
    assert stored and {name for name, _value in stored.fields} == {"Cache-Control", "Date"}


def test_a_304_renews_only_what_it_speaks_of() -> None:
    """Fields of the 304 replace the old ones, but not those of the body; another validator renews nothing."""
    stored = kept(("Cache-Control", "max-age=1"), ("ETag", '"a"'), ("Content-Type", "text/plain"), ("X", "old"))
    assert stored
    answer = [("ETag", 'W/"a"'), ("X", "new"), ("Content-Type", "no"), ("Cache-Control", "max-age=50")]
    fresh = renew(stored, Head(answer, 1, status=304), now=NOW + 10, delay=0)
    assert fresh and fresh_until(fresh) == NOW + 60
    assert ("X", "new") in fresh.fields
    assert ("X", "old") not in fresh.fields
    assert ("Content-Type", "text/plain") in fresh.fields
    assert renew(stored, Head([("ETag", '"b"')], 1, status=304), now=NOW, delay=0) is None


def test_conditions_of_a_client() -> None:
    """If-None-Match wins over If-Modified-Since; tags are compared weakly; * is any."""
    fields: Fields = [("ETag", 'W/"a"'), ("Last-Modified", when(-100))]
    assert not_modified(request(("If-None-Match", '"x", "a"')), fields)
    assert not_modified(request(("If-None-Match", "*")), fields)
    assert not not_modified(request(("If-None-Match", '"x"'), ("If-Modified-Since", when(0))), fields)
    assert not_modified(request(("If-Modified-Since", when(-100))), fields)
    assert not not_modified(request(("If-Modified-Since", when(-101))), fields)
    assert not not_modified(request(("If-Modified-Since", "yesterday")), fields)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("bytes=0-4", (0, 5)),
        ("bytes=5-", (5, 10)),
        ("bytes=-3", (7, 10)),
        ("bytes=-30", (0, 10)),
        ("bytes=0-99", (0, 10)),
        ("BYTES=2-2", (2, 3)),
        ("bytes=10-", None),
        ("bytes=-0", None),
        *((text, "whole") for text in ("bytes=4-2", "bytes=-", "bytes=a-b", "lines=0-1", "bytes=0-1,3-4", "")),
    ],
)
def test_ranges(text: str, expected: object) -> None:
    """One range as RFC 9110 has it; what is not one is the whole."""
    assert wanted_range(request(("Range", text)), [], 10) == expected


@given(st.text(max_size=60))
def test_any_text_is_read(text: str) -> None:
    """Cache-Control and dates of any bytes raise nothing."""
    directives(text)
    date(text)


def test_addresses_have_one_form() -> None:
    """Case, a default port, an empty path and a dot at the end make no second entry; logs show no query."""

    def url(target: str) -> str:
        return parse(Head([("Host", "x")], 1, method="GET", target=target)).url

    assert url("HTTP://A.Example:80") == url("http://a.example./") == "http://a.example/"
    assert url("http://a:8080?q") == "http://a:8080/?q"
    assert url("http://[2001:DB8::1]:80/") == "http://[2001:db8::1]/"
    assert url("http://a/X/../y") == "http://a/X/../y"
    assert redact("http://a/b?token=1") == "http://a/b?…"


@pytest.mark.parametrize("name", PURE)
def test_the_pure_files_touch_nothing(name: str) -> None:
    """No socket, loop, file or process in what decides."""
    tree = ast.parse(Path(policy.__file__).with_name(f"{name}.py").read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = {alias.name for alias in node.names} | {getattr(node, "module", "") or ""}
            assert not names & {"socket", "asyncio", "subprocess", "time", "threading", "pathlib"}
        if isinstance(node, ast.Call):
            assert ast.unparse(node.func) != "open"
