"""``--pip-index``: read with care, never shown, and said as pip wants it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmproxy import config, pip
from vmproxy.cli.common import secrets_of
from vmproxy.cli.crash import redact
from vmproxy.errors import UsageError

GOOD = {
    "http://localhost:3141/root/pypi/+simple/": "http://localhost:3141/root/pypi/+simple/",
    "HTTP://Pypi.Lan:80/simple": "http://pypi.lan/simple",
    "https://pypi.lan:443": "https://pypi.lan",
    "https://pypi.lan:80/": "https://pypi.lan:80/",
    "http://host:8080": "http://host:8080",
    "https://me:p@ss@pypi.lan/s": "https://me:p%40ss@pypi.lan/s",
    "https://__token__@pypi.lan/s": "https://__token__@pypi.lan/s",
    "http://[FD00::7]/": "http://[fd00::7]/",
}


@pytest.mark.parametrize("text", GOOD)
def test_an_index_is_read_and_normalised(text: str) -> None:
    """Host in lower case, the scheme's own port left out, credentials percent-encoded; again is the same."""
    assert pip.parse_index(text) == GOOD[text] == pip.parse_index(GOOD[text])


BAD = [
    *(
        "",
        "pypi.lan",
        "pypi.lan/simple",
        "ftp://pypi.lan/",
        "file:///srv/index",
        "http://",
        "http:///simple",
        "http://:80/",
    ),
    *("http://h:0/", "http://h:99999/", "http://h/a?b=c", "http://h/#a", "http://h/a b", "http://h/'a", 'http://h/"a'),
    *(
        "http://h/%zz",
        "http://h/ä",
        "http://h/\\a",
        "http://user:secret@h:x/",
        "http://a,b/",
        "http://h/<a>",
        "http://h/`a",
    ),
]


@pytest.mark.parametrize("text", BAD)
def test_what_is_no_index_is_refused_and_not_shown(text: str) -> None:
    """One line about the package index and a hint; nothing of what was given, which may hold a password."""
    with pytest.raises(UsageError) as caught:
        pip.parse_index(text)
    assert "package index" in caught.value.what and caught.value.hint
    assert "secret" not in str(caught.value) and "proxy" not in caught.value.what


def test_a_wrong_index_names_its_place() -> None:
    """The option, the variable or the file is named; an empty variable counts as not set."""
    with pytest.raises(UsageError, match="VMPROXY_PIP_INDEX"):
        config.resolve(("pip-index",), given={}, environ={"VMPROXY_PIP_INDEX": "pypi"}, file={})
    assert config.resolve(("pip-index",), given={}, environ={"VMPROXY_PIP_INDEX": ""}, file={}) == {}


def test_the_settings_do_not_show_credentials_of_an_index() -> None:
    """Neither repr nor str of the settings has the password."""
    values = config.resolve(("pip-index",), given={"pip-index": "https://me:hunter22@pypi.lan/"}, environ={}, file={})
    found = config.settings(values, environ={})
    assert found.pip_index == "https://me:hunter22@pypi.lan/"
    assert "hunter22" not in repr(found) + str(found)
    assert "hunter22" not in redact("ValueError: hunter22", secrets_of(values, {}))


def test_a_trusted_host_is_named_only_where_pip_would_refuse() -> None:
    """https needs none, and loopback neither: pip takes those as secure."""
    assert pip.variables("https://pypi.lan/") == {"PIP_INDEX_URL": "https://pypi.lan/"}
    assert pip.variables("http://127.0.0.1:1/") == {"PIP_INDEX_URL": "http://127.0.0.1:1/"}
    assert pip.variables("http://127.0.0.1:1/", host="10.0.2.2")["PIP_TRUSTED_HOST"] == "10.0.2.2"


def test_credentials_in_the_history_are_warned_of() -> None:
    """Only where there are any; and the warning does not repeat them."""
    assert pip.history_warning("") == pip.history_warning("https://pypi.lan/") == ""
    warning = pip.history_warning("https://me:hunter22@pypi.lan/")
    assert "PIP_INDEX_URL" in warning and "hunter22" not in warning


@given(st.text(max_size=40))
def test_any_text_is_an_index_or_refused(text: str) -> None:
    """Nothing but UsageError comes out, and what is taken stays as it is when read again."""
    for whole in (text, f"http://{text}", f"https://pypi.lan/{text}"):
        try:
            once = pip.parse_index(whole)
        except UsageError:
            continue
        assert pip.parse_index(once) == once
        assert once.isascii() and once.isprintable() and " " not in once
