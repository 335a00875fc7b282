"""no_proxy is merged without loss and read as the Docker daemon reads it (P8)."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from vmproxy.errors import UsageError
from vmproxy.proxyenv import bypasses, merge_no_proxy

# Go's documented rule (golang.org/x/net/http/httpproxy), one line a case: no_proxy, address, goes direct.
RULE = [
    # loopback and localhost never go through a proxy, whatever the list
    ("", "localhost:80", True),
    ("", "127.0.0.1:80", True),
    ("", "127.0.0.2:443", True),
    ("", "[::1]:80", True),
    ("", "[::ffff:127.0.0.1]:80", True),
    ("", "[::2]:80", False),
    ("", "LOCALHOST:80", False),
    ("", "a.localhost:80", False),
    ("", "example.com:80", False),
    # a name matches itself and what is below it
    ("example.com", "example.com:80", True),
    ("example.com", "www.example.com:80", True),
    ("example.com", "a.b.example.com:443", True),
    ("example.com", "notexample.com:80", False),
    ("example.com", "example.com.org:80", False),
    ("EXAMPLE.com", "Www.Example.COM:80", True),
    # a leading dot, or *., matches only below
    (".example.com", "www.example.com:80", True),
    (".example.com", "example.com:80", False),
    ("*.example.com", "www.example.com:80", True),
    ("*.example.com", "example.com:80", False),
    ("www.*.com", "www.example.com:80", False),
    ("*example.com", "www.example.com:80", False),
    # a star by itself is everything; elsewhere it is nothing
    ("*", "example.com:80", True),
    ("*", "10.1.2.3:80", True),
    ("a, *", "example.com:80", True),
    ("*:80", "example.com:80", False),
    # ports
    ("example.com:80", "example.com:80", True),
    ("example.com:80", "www.example.com:80", True),
    ("example.com:80", "example.com:443", False),
    (".example.com:80", "www.example.com:80", True),
    ("example.com:", "example.com:443", True),
    (":80", "example.com:80", False),
    # addresses match literally, with port where there is one
    ("10.1.2.3", "10.1.2.3:80", True),
    ("10.1.2.3", "10.1.2.4:80", False),
    ("10.1.2.3:80", "10.1.2.3:80", True),
    ("10.1.2.3:80", "10.1.2.3:443", False),
    ("fd00::1", "[fd00::1]:80", True),
    ("FD00:0::1", "[fd00::1]:80", True),
    ("[fd00::1]:80", "[fd00::1]:80", True),
    ("[fd00::1]:80", "[fd00::1]:443", False),
    ("[fd00::1]", "[fd00::1]:80", False),
    ("10.1.2.3", "[::ffff:10.1.2.3]:80", True),
    ("::ffff:10.1.2.3", "10.1.2.3:80", True),
    ("010.1.2.3", "10.1.2.3:80", False),
    ("10.1", "10.1.0.0:80", False),
    # networks, for literal addresses only
    ("10.0.0.0/8", "10.1.2.3:80", True),
    ("10.9.9.9/8", "10.1.2.3:80", True),
    ("10.0.0.0/8", "11.1.2.3:80", False),
    ("0.0.0.0/0", "8.8.8.8:53", True),
    ("0.0.0.0/0", "[fd00::1]:53", False),
    ("fd00::/8", "[fd12::1]:80", True),
    ("::/0", "10.1.2.3:80", False),
    ("::ffff:10.0.0.0/104", "10.1.2.3:80", True),
    ("::ffff:0.0.0.0/96", "10.1.2.3:80", True),
    ("::ffff:0.0.0.0/95", "10.1.2.3:80", False),
    ("10.0.0.0/255.0.0.0", "10.1.2.3:80", False),
    ("10.0.0.0/33", "10.1.2.3:80", False),
    ("10.0.0.0/8", "ten.example.com:80", False),
    ("10.0.0.0/8:80", "10.1.2.3:80", False),
    # a name never matches an address, nor its zone (CVE-2025-22870)
    (".3", "10.1.2.3:80", False),
    ("example.com", "[fe80::1%25.example.com]:80", False),
    ("fe80::1", "[fe80::1%eth0]:80", True),
    ("fe80::1%eth0", "[fe80::1]:80", False),
    # several entries, blanks, empty ones, names in other scripts
    ("a.b, example.com ,,10.0.0.0/8", "example.com:80", True),
    ("a.b, example.com ,,10.0.0.0/8", "10.1.1.1:80", True),
    (" ,, ", "example.com:80", False),
    ("bücher.example", "www.xn--bcher-kva.example:80", True),
    ("xn--bcher-kva.example", "bücher.example:80", True),
]


@pytest.mark.parametrize(("no_proxy", "address", "direct"), RULE)
def test_the_rule_is_gos(no_proxy: str, address: str, direct: bool) -> None:
    """Each documented case of Go's rule, the list as one text and as entries."""
    assert bypasses(no_proxy, address) is direct
    assert bypasses(no_proxy.split(","), address) is direct


@pytest.mark.parametrize(
    "address", ["", "example.com", "fd00::1", "[fd00::1]", "[fd00::1", "a:b:c", "[a]b:1", "a]:1", "[[a]:1"]
)
def test_an_address_without_port_is_a_usage_error(address: str) -> None:
    """The rule is about host and port; a bare host has no answer."""
    with pytest.raises(UsageError):
        bypasses("*", address)


ENTRIES = st.sampled_from(
    [
        "*",
        "a",
        "A",
        "a.b",
        ".a.b",
        "*.a.b",
        "a.b:80",
        "10.0.0.0/8",
        "10.1.1.1",
        "::1/128",
        "fd00::1",
        "[fd00::1]:80",
        "é.b",
        "10.0.0.0/99",
        ":",
        "[",
        "]:1",
        "a/b",
        "-",
    ]
) | st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cf", "Cs")), max_size=5)
LISTS = st.lists(ENTRIES, max_size=6).map(",".join)
ADDRESSES = st.builds(
    "{}:{}".format,
    st.sampled_from(["a", "a.b", "c.a.b", "x", "10.1.1.1", "11.1.1.1", "[::1]", "[fd00::1]", "localhost", "é.b"]),
    st.sampled_from(["80", "443"]),
)


@given(value=LISTS, extra=st.lists(LISTS, max_size=3))
def test_p8_merging_is_idempotent_without_empty_or_double_entries(value: str, extra: list[str]) -> None:
    """Merging again changes nothing; order is the user's, then ours."""
    merged = merge_no_proxy(value, extra)
    assert merge_no_proxy(merged, extra) == merged == merge_no_proxy(",".join(merged), ())
    assert len({entry.lower() for entry in merged}) == len(merged)
    assert all(entry and entry == entry.strip() and "," not in entry for entry in merged)
    alone = merge_no_proxy(value, ())
    assert merged[: len(alone)] == alone


@given(value=LISTS, extra=st.lists(LISTS, max_size=3), address=ADDRESSES)
@example(value="a.b,*", extra=["10.0.0.0/8"], address="x:80")
def test_p8_the_users_matches_never_shrink(value: str, extra: list[str], address: str) -> None:
    """Whatever went direct before goes direct with the merged list."""
    assert bypasses(merge_no_proxy(value, extra), address) >= bypasses(value, address)


@pytest.mark.parametrize("value", ["a\0b", "a\x1bb", "a\u200bb", "a\u202eb", "a\ud800"], ids=ascii)
def test_control_characters_are_refused(value: str) -> None:
    """Nothing that a terminal or a header could act on gets into a list."""
    with pytest.raises(UsageError):
        merge_no_proxy("x", [value])


def test_commas_and_white_space_separate() -> None:
    """Lists written for curl, and lists over several lines, become one list."""
    assert merge_no_proxy(" a,b  c,,\n d\t", ("E", "e,a")) == ("a", "b", "c", "d", "E")


def test_p8_the_order_does_not_hang_on_hashes(root: Path) -> None:
    """The same list under every PYTHONHASHSEED."""
    code = "from vmproxy.proxyenv import merge_no_proxy as m; print(m('c,b,a', map(str, range(50))))"
    seen = {
        subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            check=True,
            cwd=root,
            env={**os.environ, "PYTHONHASHSEED": seed},
        ).stdout
        for seed in ("0", "1", "2")
    }
    assert len(seen) == 1
