"""P6 and P17: no credentials in anything that is shown, no control bytes in anything that came from outside."""

from __future__ import annotations

import unicodedata
from urllib.parse import quote

from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from tests.unit import worlds
from tests.unit.test_plan import step
from vmproxy import preview
from vmproxy.model import ProxyURL, Wish, printable
from vmproxy.proxyenv import url

FRESH = worlds.world("fresh-nft")
BIDI = "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
TEXT = st.text(alphabet=st.characters(codec="utf-8", exclude_categories=("Cc", "Cs")), min_size=4, max_size=24)


@settings(max_examples=60)
@given(username=TEXT, password=TEXT)
@example(username="user", password="p'a\"s$s`w\\o%rd")
@example(username="user", password="a b/c:d@e#f?g")
@example(username="caf\u00e9", password="\u043f\u0430\u0440\u043e\u043b\u044c")
def test_p6_no_spelling_of_the_password_is_shown(username: str, password: str) -> None:
    """For any user and password: neither plan, nor repr, nor str of anything has it in any spelling."""
    assume("*" not in password)
    proxy = ProxyURL(scheme="http", host="127.0.0.1", port=8123, username=username, password=password)
    wish = Wish(proxy=proxy)
    plan, after, desired = step(FRESH, wish)
    hidden = preview.secrets(proxy)
    # A short word of the file itself may be the password by chance; then it is masked there as well.
    shown = preview.plan_text(plan, hidden)
    spellings = {password, quote(password, safe=""), quote(password), url(proxy).partition("//")[2].partition("@")[0]}
    for spelling in spellings:
        assert spelling not in shown
    for value in (proxy, wish, desired, str(proxy)):
        text = repr(value)
        assert not [one for one in spellings if len(one) > 9 and one in text], text
    assert "***@" in shown
    _, _, _ = step(after, wish)


def test_p6_the_password_is_in_the_file_and_only_there() -> None:
    """The test above would notice: unmasked, the plan's file does have it."""
    proxy = ProxyURL(scheme="http", host="127.0.0.1", port=8123, username="me", password="hunter22")
    plan, _, _ = step(FRESH, Wish(proxy=proxy))
    assert any(b"hunter22" in (change.after.content or b"") for change in plan.files)
    assert "export http_proxy='http://***@10.0.2.2:8123'" in preview.plan_text(plan, preview.secrets(proxy))


def clean(text: str) -> bool:
    """One line that a terminal shows as it is."""
    return not any(unicodedata.category(char) in ("Cc", "Cf", "Cs", "Zl", "Zp") or char in BIDI for char in text)


@given(text=st.text() | st.binary(), limit=st.integers(1, 300))
@example(text="\x1b]0;owned\x07\u202egnp.exe\x00\r\n\t\x9b2J\u2028", limit=200)
@example(text=b"\xff\xfe\x1b[2J\xe2\x80\xae", limit=200)
@example(text="a" * 100_000, limit=10)
def test_p17_printable_is_printable_and_bounded(text: str | bytes, limit: int) -> None:
    """For all text and bytes: no C0, C1, ESC, bidi or line separator; at most ``limit`` characters."""
    line = printable(text, limit=limit)
    assert clean(line)
    assert len(line) <= limit


@given(text=st.text(alphabet=st.characters(categories=("L", "N", "P", "S")), max_size=50))
def test_p17_plain_words_stay_as_they_are(text: str) -> None:
    """Letters, digits and signs of every script come through."""
    assert printable(text) == text


@given(text=st.text(max_size=60))
def test_p17_twice_is_once(text: str) -> None:
    """What is printable already stays."""
    assert printable(printable(text, limit=1000), limit=1000) == printable(text, limit=1000)
