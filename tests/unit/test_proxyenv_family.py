"""The family of proxy variables: both cases, and what of the host's own goes beside http and https (P9)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmproxy.errors import UsageError
from vmproxy.proxyenv import (
    FAMILY,
    from_environ,
    holds_credentials,
    others,
    parse_proxy,
    through_door,
    variables,
)

PROXY = parse_proxy("http://172.17.0.1:8123")
BOTH = tuple(case for name in FAMILY for case in (name.upper(), name))
PROXY_URL = "http://172.17.0.1:8123"


def test_the_whole_family_in_both_cases_and_order() -> None:
    """http, https, ftp, no, all: upper case, then lower."""
    found = variables(
        PROXY, None, ["a"], {"all_proxy": "socks5://h:1", "FTP_PROXY": "ignored", "ftp_proxy": "http://f:2"}
    )
    assert tuple(found) == BOTH
    assert [found[name] for name in FAMILY] == [PROXY_URL, PROXY_URL, "http://f:2", "a", "socks5://h:1"]
    assert all(found[name] == found[name.upper()] for name in FAMILY)


def test_only_all_proxy_is_only_all_proxy() -> None:
    """No http_proxy is made up where the host says all_proxy alone."""
    assert set(variables(None, None, (), others({"ALL_PROXY": "socks5://h:1"}))) == {"ALL_PROXY", "all_proxy"}


@given(st.dictionaries(st.sampled_from([*BOTH, "PATH"]), st.sampled_from(["", "http://127.0.0.1:1", "http://p:2"])))
def test_p9_others_are_what_from_environ_says_of_two_families(environ: dict[str, str]) -> None:
    """ftp_proxy and all_proxy, and nothing else."""
    environ = {name: value for name, value in environ.items() if not name.upper().startswith("NO_")}
    whole = from_environ(environ, host="10.0.2.2")
    assert others(environ, host="10.0.2.2") == {
        name: value for name, value in whole.items() if name.lower() in ("ftp_proxy", "all_proxy")
    }


def test_a_wrong_one_is_named_and_not_shown() -> None:
    """ftp_proxy and all_proxy are parsed like the others."""
    with pytest.raises(UsageError) as caught:
        others({"all_proxy": "http://me:secret@h:x"})
    assert "all_proxy" in str(caught.value)
    assert "secret" not in f"{caught.value}{caught.value.hint}"


def test_what_is_at_the_hosts_one_proxy_goes_through_its_door() -> None:
    """The same loopback port: the door, with scheme and credentials; another port: no way; elsewhere: as it is."""
    door = parse_proxy("http://172.17.0.1:18123")
    host = {"ftp_proxy": "socks5://u:p@[::1]:8123", "all_proxy": "http://localhost:1080", "x": "http://far:1"}
    kept, lost = through_door(host, parse_proxy("http://127.0.0.1:8123"), door)
    assert kept == {"ftp_proxy": "socks5://u:p@172.17.0.1:18123", "x": "http://far:1"}
    assert lost == ("all_proxy",)
    assert through_door(host, None, door)[1] == ("ftp_proxy", "all_proxy")
    assert through_door(host, parse_proxy("http://proxy.corp:8123"), door)[1] == ("ftp_proxy", "all_proxy")


@pytest.mark.parametrize(
    ("name", "value", "wanted"),
    [
        ("http_proxy", "http://u:p@h:1", True),
        ("http_proxy", "http://u@h:1", True),
        ("HTTPS_PROXY", "u:p@h:1", True),
        ("all_proxy", "socks5://u:pa/ss@h:1", True),
        ("PIP_INDEX_URL", "https://u:p@h/simple", True),
        ("PIP_INDEX_URL", "https://h/simple", False),
        ("http_proxy", "http://h:1", False),
        ("no_proxy", "a@b", False),
        ("MAIL", "me@h", False),
    ],
)
def test_what_counts_as_credentials(name: str, value: str, wanted: bool) -> None:
    """An @ in a URL, or anywhere in a proxy variable; rather too often than too seldom."""
    assert holds_credentials(name, value) is wanted
