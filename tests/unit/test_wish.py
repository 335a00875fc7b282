"""Which proxy is wanted: what was said, what an earlier apply recorded, the host's own variables, the default."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmproxy.errors import Refused, UsageError
from vmproxy.model import ProxyURL, Settings, Wish
from vmproxy.proxyenv import parse_proxy, url
from vmproxy.wish import DEFAULT, choose, differs_from_host, record, recorded

SAID = parse_proxy("http://said.test:1")
RECORDED = parse_proxy("http://recorded.test:2")
HOST = parse_proxy("http://host.test:3")
HOST_HTTPS = parse_proxy("http://host-https.test:4")
SEEN = Wish(proxy=RECORDED, https_proxy=parse_proxy("http://recorded-https.test:2"), no_proxy=("recorded.test",),
            listen_port=9000, gateway="10.9.9.9", bridges=("docker0",))  # fmt: skip


def settings(*given_names: str, **more: Any) -> Settings:
    """Settings where those names were said."""
    return Settings(**more, given=frozenset(given_names))


NAMES = st.from_regex(r"\A[a-z0-9]([a-z0-9-]{0,10}[a-z0-9])?\.test\Z")
PROXIES = st.builds(
    ProxyURL,
    scheme=st.just("http"),
    host=NAMES,
    port=st.integers(1, 65535),
    username=st.text(alphabet="ab@/%$'\"\u00e9 ", max_size=5),  # RFC 7617: no colon
    password=st.text(alphabet="ab:@/%$'\"\u00e9 ", max_size=5),
)
WISHES = st.builds(
    Wish,
    proxy=PROXIES,
    https_proxy=st.none() | PROXIES,
    no_proxy=st.lists(NAMES, unique=True, max_size=3).map(tuple),
    listen_port=st.none() | st.integers(1, 65535),
    forward=st.booleans(),
    gateway=st.sampled_from(["", "10.0.2.2", "192.168.99.1"]),
    bridges=st.lists(st.sampled_from(["docker0", "br-0123456789ab"]), unique=True).map(tuple),
    names=st.lists(st.sampled_from(["db", "my_cache", "web.1"]), unique=True).map(tuple),
    pip_index=st.sampled_from(["", "http://localhost:3141/simple/", "https://pypi.test/"]),
)


@given(wish=WISHES)
def test_a_record_holds_the_wish_but_no_credentials(wish: Wish) -> None:
    """Through JSON and back it is the same wish where the block's variables can be read; without them it knows that
    there were credentials. The record itself has none (T06, P6)."""
    text = json.dumps(record(wish))
    variables = {"http_proxy": url(wish.proxy), "https_proxy": url(wish.https_proxy or wish.proxy)}
    for proxy in (wish.proxy, wish.https_proxy):
        if proxy and len(proxy.password) > 3:
            assert proxy.password not in json.loads(text).get("proxy", "")
    assert "@" not in text
    assert recorded(json.loads(text), variables) == wish
    bare = recorded(json.loads(text), {})
    assert bare is not None
    has = any(proxy.has_credentials for proxy in (wish.proxy, wish.https_proxy) if proxy)
    assert bare.hidden_credentials == has
    assert not bare.proxy.has_credentials


def test_a_record_of_the_least_wish_is_one_word() -> None:
    """Only what was said stands in the VM."""
    assert record(Wish(proxy=DEFAULT)) == {"proxy": "http://127.0.0.1:8123"}


def test_other_records_are_none() -> None:
    """A block of ours without a proxy in its record is no wish."""
    assert recorded({"mode": 420}, {}) is None


@pytest.mark.parametrize(
    "data",
    [
        {"proxy": "gopher://x"}, {"proxy": 7}, {"proxy": None}, {"proxy": "http://a.test:1\n"},
        {"proxy": "http://a.test:1", "listen_port": "80"}, {"proxy": "http://a.test:1", "listen_port": True},
        {"proxy": "http://a.test:1", "listen_port": 70000}, {"proxy": "http://a.test:1", "gateway": "10.0.2.2;x"},
        {"proxy": "http://a.test:1", "no_proxy": "a"}, {"proxy": "http://a.test:1", "no_proxy": [1]},
        {"proxy": "http://a.test:1", "bridges": {"a": 1}},
        {"proxy": "http://a.test:1", "https_proxy": "http://"},
    ],
)  # fmt: skip
def test_a_damaged_record_is_refused(data: dict[str, Any]) -> None:
    """What a VM's record says is parsed like any user's text: refused, with the way out (T04)."""
    with pytest.raises(Refused, match="damaged") as caught:
        recorded(data, {})
    assert "--proxy" in caught.value.hint


@given(data=st.dictionaries(
    st.sampled_from(
        ["proxy", "https_proxy", "no_proxy", "listen_port", "gateway", "bridges", "credentials", "names", "pip_index"]
    ),
    st.recursive(st.none() | st.booleans() | st.integers() | st.text(max_size=12),
                 lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=2)),
))  # fmt: skip
def test_any_json_is_a_wish_or_refused(data: dict[str, Any]) -> None:
    """Nothing else is raised, whatever a VM has there."""
    try:
        wish = recorded(data, {"http_proxy": "\x00", "https_proxy": "::"})
    except Refused:
        return
    assert wish is None or isinstance(wish.proxy, ProxyURL)


def test_hidden_credentials_are_remembered() -> None:
    """Credentials that could not be read stay known in the next record, until another proxy is said."""
    hidden = Wish(proxy=RECORDED, hidden_credentials=True)
    assert record(hidden)["credentials"] is True
    assert choose(Settings(), hidden).hidden_credentials
    assert not choose(settings("proxy", proxy=SAID), hidden).hidden_credentials


HOST_SETTINGS = {
    "host_environment_proxy": HOST,
    "host_environment_https_proxy": HOST_HTTPS,
    "host_environment_no_proxy": ("host.test",),
}


def test_what_was_said_comes_first() -> None:
    """--proxy over the record over the host's variables; a recorded https proxy does not go with another proxy."""
    wish = choose(settings("proxy", proxy=SAID, **HOST_SETTINGS), SEEN)
    assert (wish.proxy, wish.https_proxy) == (SAID, None)
    assert wish.no_proxy == ("recorded.test",)
    assert wish.listen_port == 9000


def test_then_the_record() -> None:
    """Without a word the record is the wish, whole, whatever the host's variables say; they are mentioned."""
    said_nothing = settings(**HOST_SETTINGS)
    assert choose(said_nothing, SEEN) == SEEN
    note = differs_from_host(said_nothing, SEEN, SEEN)
    assert "recorded.test" in note
    assert "host.test" in note


def test_then_the_hosts_own_variables() -> None:
    """Without a record: http_proxy, https_proxy and no_proxy of the host."""
    wish = choose(settings(**HOST_SETTINGS), None)
    assert wish == Wish(proxy=HOST, https_proxy=HOST_HTTPS, no_proxy=("host.test",))
    only_https = choose(settings(host_environment_https_proxy=HOST_HTTPS), None)
    assert only_https == Wish(proxy=HOST_HTTPS)
    same = choose(settings(host_environment_proxy=HOST, host_environment_https_proxy=HOST), None)
    assert same == Wish(proxy=HOST)


def test_then_the_default() -> None:
    """Nothing anywhere: the host's port 8123; the host's no_proxy still counts."""
    assert choose(Settings(), None) == Wish(proxy=DEFAULT)
    assert url(DEFAULT) == "http://127.0.0.1:8123"
    assert choose(settings(host_environment_no_proxy=("a.test",)), None).no_proxy == ("a.test",)


def test_broken_host_variables_matter_only_where_they_are_needed() -> None:
    """A bad http_proxy of the host is an error for who needs it, and nothing to a VM with a record or a said proxy."""
    broken = settings(host_environment_problem="http_proxy is no URL")
    with pytest.raises(UsageError, match="http_proxy is no URL"):
        choose(broken, None)
    assert choose(broken, SEEN) == SEEN
    assert choose(replace(broken, proxy=SAID, given=frozenset({"proxy"})), None).proxy == SAID


FIELDS: dict[str, Any] = {
    "no_proxy": ("other.test",),
    "listen_port": 9001,
    "forward": True,
    "gateway": "10.0.0.1",
    "bridges": ("br-0123456789ab",),
}


@pytest.mark.parametrize("name", FIELDS)
def test_each_field_is_replaced_alone(name: str) -> None:
    """A said field replaces that of the record and no other; said as its default it takes the recorded one away."""
    wish = choose(settings(name, **{name: FIELDS[name]}), SEEN)
    assert wish == replace(SEEN, **{name: FIELDS[name]})
    default = getattr(Settings(), name)
    assert choose(settings(name), SEEN) == replace(SEEN, **{name: default})


def test_an_https_proxy_said_alone() -> None:
    """--https-proxy goes beside the recorded proxy."""
    wish = choose(settings("https_proxy", https_proxy=SAID), SEEN)
    assert (wish.proxy, wish.https_proxy) == (RECORDED, SAID)


@pytest.mark.parametrize(
    ("seen", "said", "host", "differs"),
    [
        (SEEN, None, HOST, True),
        (SEEN, None, RECORDED, False),
        (SEEN, None, replace(RECORDED, username="me", password="hunter22"), False),
        (SEEN, SAID, HOST, False),
        (None, None, HOST, False),
        (SEEN, None, None, False),
    ],
)
def test_a_difference_is_said(seen: Wish | None, said: ProxyURL | None, host: ProxyURL | None, differs: bool) -> None:
    """Only where the record is used although the host names another proxy; never with credentials."""
    given_settings = Settings(proxy=said, host_environment_proxy=host)
    note = differs_from_host(given_settings, choose(given_settings, seen), seen)
    assert bool(note) == differs
    secret = replace(HOST, username="me", password="hunter22")
    assert "hunter22" not in differs_from_host(Settings(host_environment_proxy=secret), SEEN, SEEN)


def test_names_and_the_package_index_are_part_of_the_wish() -> None:
    """Recorded and found again, so that ``env --vm`` need not be told; what is said takes their place, none too."""
    said = settings("names", "pip_index", names=("db", "my_cache"), pip_index="http://localhost:3141/simple/")
    wish = choose(said, None)
    assert record(wish) == {
        **{"proxy": "http://127.0.0.1:8123", "names": ["db", "my_cache"]},
        "pip_index": "http://localhost:3141/simple/",
    }
    seen = recorded(json.loads(json.dumps(record(wish))), {})
    assert choose(Settings(), seen) == wish
    assert choose(Settings(names=("web",)), seen).names == ("web",)
    nothing = choose(settings("names", "pip_index"), seen)
    assert (nothing.names, nothing.pip_index) == ((), "")


def test_an_index_with_credentials_is_used_and_not_recorded() -> None:
    """A password in the index's URL is in no record and in no repr; the rest of the wish is recorded."""
    wish = choose(settings("pip_index", pip_index="http://me:hunter22@pypi.test/simple/"), None)
    assert wish.pip_index == "http://me:hunter22@pypi.test/simple/"
    assert "hunter22" not in repr(wish)
    assert record(wish) == {"proxy": "http://127.0.0.1:8123"}


@pytest.mark.parametrize(
    "more", [{"names": ["db,x"]}, {"names": "db"}, {"names": ["*"]}, {"pip_index": 7}, {"pip_index": "http://h/?"}]
)
def test_a_damaged_name_or_index_is_refused(more: dict[str, Any]) -> None:
    """Names and index in a VM's record are parsed like any user's text (T04)."""
    with pytest.raises(Refused, match="damaged"):
        recorded({"proxy": "http://a.test:1", **more}, {})
