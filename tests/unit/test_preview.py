"""A plan shown to people: what is in it, and that no credentials are."""

from __future__ import annotations

import pytest

from vmproxy import preview
from vmproxy.model import File, FileChange, Plan, ProxyURL
from vmproxy.proxyenv import url

LONG = "eyJ" + "aB3-_.~" * 150


def shown(old: bytes | None, new: bytes, *known: ProxyURL) -> str:
    """The plan of one changed file, with the credentials of ``known`` hidden."""
    change = FileChange(before=File(path="/p", content=old), after=File(path="/p", content=new))
    return preview.plan_text(Plan(files=(change,)), preview.secrets(*known))


@pytest.mark.parametrize(
    ("username", "password"),
    [("joe", "s3cr-et"), ("joe", LONG), (LONG, ""), ("t0ken-alone", ""), ("joe", "p@ss/w:rd'%"), ("", "only-this")],
)
def test_p6_no_credentials_in_a_diff(username: str, password: str) -> None:
    """Neither whole nor cut in half, neither known nor unknown; a change of nothing but a password is still one."""
    proxy = ProxyURL(scheme="http", host="10.0.2.2", port=3128, username=username, password=password)
    line = f"export http_proxy='{url(proxy)}'\n".encode()
    for known in ((proxy,), ()):
        text = shown(None, line, *known)
        for secret in (username, password):
            assert len(secret) < 4 or secret[:20] not in text, text[:500]
        assert "http://***@10.0.2.2:3128" in text
    other = line.replace(b"@10.", b"X@10.")
    changed = shown(other, line, proxy).splitlines()
    assert [text[:1] for text in changed[-2:]] == ["-", "+"]


def test_p17_a_diff_is_printable_and_bounded() -> None:
    """Controls and bytes that are no text are escaped, a long line is cut."""
    text = shown(None, b"a\x1b[2Jb\xff\n" + b"x" * 5000 + b"\n")
    assert "a\\x1b[2Jb\\xff" in text
    assert max(map(len, text.splitlines())) <= 400
