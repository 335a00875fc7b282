"""The proxies entry of the docker client's config.json: what goes in, what is ours, what is refused."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tests.unit.hostilejson import documents
from vmproxy import clientconfig
from vmproxy.clientconfig import Change
from vmproxy.errors import ForeignFile, Refused, UsageError
from vmproxy.model import Finding

WISH = {"httpProxy": "http://172.17.0.1:8123", "httpsProxy": "http://172.17.0.1:8123", "noProxy": "localhost"}
OTHER = {"httpProxy": "http://10.0.0.9:3128", "httpsProxy": "http://10.0.0.9:3128"}
SECRET = {"httpProxy": "http://user:s3cr3t@h:1", "noProxy": "https://me:s3cr3t@x"}
DAEMON = "tcp://192.168.99.100:2376"
LOGIN = {"auths": {"registry.example": {"auth": "dXNlcjpwYXNz"}}, "credsStore": "pass"}


def go(document: bytes) -> bytes:
    """As the docker client writes the same file anew: tabs, names of a map in order, no final newline, no slash
    escaped, and what it does not know dropped (docker/cli: cli/config/configfile/file.go, SaveToWriter)."""
    value = json.loads(document)
    known = {key: value[key] for key in ("auths", "credsStore", "proxies", "currentContext") if key in value}
    known.setdefault("auths", {})
    if "proxies" in known:
        known["proxies"] = dict(sorted(known["proxies"].items()))
    return json.dumps(known, indent="\t").encode()


def never() -> Mapping[str, str]:
    """A wish that nobody may ask for: it could cost a look into a VM."""
    raise AssertionError("the wish was asked for")


def apply(document: bytes | None, name: str = "default", wish: Mapping[str, str] = WISH, **more: Any) -> bytes:
    """The applied document."""
    after = clientconfig.applied(document, name, wish, **more).document
    assert after is not None
    return after


@settings(max_examples=60)
@given(document=st.one_of(st.none(), documents(), st.sampled_from([b"", b"\n"])), missing=st.integers(0, 2))
def test_p10_apply_twice_is_once_and_remove_is_the_inverse(document: bytes | None, missing: int) -> None:
    """The second apply gives the very bytes; remove needs no wish, and gives the very bytes of before."""
    try:
        first = clientconfig.applied(document, "default", WISH, missing=missing if document is None else 0)
    except ForeignFile:
        assume(False)
        return
    again = clientconfig.applied(first.document, "default", WISH)
    assert again == Change(document=first.document)
    gone = clientconfig.removed(first.document, "default", never)
    assert gone.document == document
    assert gone.made == (missing if document is None else 0)


@pytest.mark.parametrize("document", [None, b"", b"{}\n", json.dumps(LOGIN, indent=2).encode(), b'{"proxies": {}}'])
def test_another_wish_replaces_ours_and_remove_still_gives_the_file_of_before(document: bytes | None) -> None:
    """apply A, apply B is apply B; then remove without any wish is the first file, none where there was none."""
    both = clientconfig.applied(apply(document, wish=OTHER), "default", WISH, missing=0)
    assert both.document == apply(document)
    assert not both.warnings
    assert clientconfig.removed(both.document, "default", never).document == document


@pytest.mark.parametrize("document", [None, b"", b"{}\n", json.dumps(LOGIN, indent=2).encode(), b'{"proxies": {}}'])
@pytest.mark.parametrize("first_out", ["default", DAEMON])
def test_two_entries_come_out_in_either_order(document: bytes | None, first_out: str) -> None:
    """default and one daemon's entry: after either order of remove the file is as before both, to the byte."""
    made = 2 if document is None else 0
    one = clientconfig.applied(document, "default", WISH, missing=made).document
    both = apply(one, DAEMON, OTHER)
    assert json.loads(both)["proxies"] == {"default": WISH, DAEMON: OTHER}
    other = ({"default", DAEMON} - {first_out}).pop()
    half = clientconfig.removed(both, first_out, never)
    assert (
        half.document
        == clientconfig.applied(document, other, WISH if other == "default" else OTHER, missing=made).document
    )
    assert half.made == 0
    gone = clientconfig.removed(half.document, other, never)
    assert (gone.document, gone.made) == (document, made)


@pytest.mark.parametrize("document", [None, json.dumps({**LOGIN, "proxies": {DAEMON: OTHER}}, indent=1).encode()])
def test_after_a_login_the_value_is_in_sync_and_goes_alone(document: bytes | None) -> None:
    """The docker client wrote the file anew: status finds no drift, apply writes nothing, and remove takes our value,
    which is known by the wish, and leaves what the client wrote."""
    rewritten = go(apply(document))
    assert clientconfig.drift(rewritten, "default", WISH) == ()
    assert clientconfig.applied(rewritten, "default", WISH) == Change(document=rewritten)
    left = clientconfig.removed(rewritten, "default", lambda: WISH).document
    assert left == go(document or b"{}")


def test_after_a_login_another_value_is_not_taken_for_ours() -> None:
    """The client's own layout and a value that is not the wish: it may be the user's, so remove and apply refuse."""
    rewritten = go(apply(None, wish=OTHER))
    with pytest.raises(ForeignFile, match=r"proxies\.default does not say what vmproxy would write") as caught:
        clientconfig.removed(rewritten, "default", lambda: WISH)
    assert "--force" in caught.value.hint
    with pytest.raises(ForeignFile, match=r"proxies\.default has another value") as caught:
        clientconfig.applied(rewritten, "default", WISH)
    assert "cannot be given back" in caught.value.hint
    forced = clientconfig.removed(rewritten, "default", never, force=True)
    assert forced.document == go(b"{}")
    assert forced.warnings


def test_an_older_client_that_drops_all_proxy_leaves_it_ours() -> None:
    """Docker before 23 writes the entry anew without allProxy: that is drift, which apply mends and remove takes."""
    wish = {**WISH, "allProxy": "socks5://h:1080"}
    rewritten = go(apply(None))
    assert [point.subject for point in clientconfig.drift(rewritten, "default", wish)] == ["proxies.default.allProxy"]
    mended = clientconfig.applied(rewritten, "default", wish)
    assert mended.document is not None
    assert json.loads(mended.document)["proxies"] == {"default": wish}
    assert not mended.warnings
    assert clientconfig.removed(rewritten, "default", lambda: wish).document == go(b"{}")


@pytest.mark.parametrize(
    "foreign",
    [
        b'{"auths": {}, "proxies": {"default": {"httpProxy": "http://mine:1"}, "x": {}}}',
        b'{"auths": {}, "proxies": {"default": {"httpProxy": 5}}}',
        b'{"auths": {}, "proxies": {"default": null}}',
        b'{"auths": {}, "proxies": {"default": {}}}',
        b'{"auths": {}, "proxies": null}',
        b'{"auths": {}, "proxies": "http:\\/\\/x"}',
        b'{"auths": {}, "proxies": []}',
    ],
)
def test_another_value_needs_force_and_force_says_what_is_lost(foreign: bytes) -> None:
    """Exit 6 without --force; with it the entry is ours, remove leaves neither, everything else stays."""
    with pytest.raises(ForeignFile, match="has another value"):
        clientconfig.applied(foreign, "default", WISH)
    forced = clientconfig.applied(foreign, "default", WISH, force=True)
    assert forced.document is not None
    assert json.loads(forced.document)["proxies"]["default"] == WISH
    assert "cannot be given back" in forced.warnings[0]
    left = json.loads(clientconfig.removed(forced.document, "default", never).document or b"")
    assert left == {"auths": {}} | ({"proxies": {"x": {}}} if b'"x"' in foreign else {})


def test_a_users_own_entry_that_says_the_same_is_left_alone() -> None:
    """What is right already is not written, however it is laid out; another entry of the map is nobody's business."""
    document = b'{"proxies":{"default":' + json.dumps(WISH).encode() + b',"tcp://x:1":{}}}'
    assert clientconfig.applied(document, "default", WISH) == Change(document=document)


@pytest.mark.parametrize("name", ["Proxies", "PROXIES", "proxie\u017f"])
def test_a_name_that_go_takes_for_the_same_is_refused(name: str) -> None:
    """Go's reader does not mind the case of a name (nor a long s): two of them, and nobody can tell which counts."""
    document = json.dumps({name: {"default": OTHER}}).encode()
    with pytest.raises(ForeignFile, match="Docker reads as proxies"):
        clientconfig.applied(document, "default", WISH)


def test_removing_what_was_never_applied_changes_nothing() -> None:
    """F64: no file, an empty one, one without proxies, one with another entry."""
    for document in (None, b"", b" \n", b"{}", b'{"proxies": {}}', b'{"proxies": {"x": {}}}', b'{"proxies": null}'):
        assert clientconfig.removed(document, "default", never) == Change(document=document)


def test_p6_the_diff_shows_the_entry_alone_and_no_credentials() -> None:
    """T17: neither another line of the file nor a password stands in the diff; what is secret is marked so."""
    document = json.dumps(LOGIN).encode()
    change = clientconfig.applied(document, "default", SECRET)
    assert change.secret
    assert change.diff.splitlines() == [
        "@@ proxies.default @@",
        '+  "httpProxy": "http://***@h:1"',
        '+  "noProxy": "https://***@x"',
    ]
    foreign = (
        b'{"auths": {"r": {"auth": "dXNlcjpwYXNz"}}, "proxies": {"default": {"httpProxy": "u:s3cr3t@h", "k": [1]}}}'
    )
    shown = repr(clientconfig.applied(foreign, "default", WISH, force=True).diff)
    shown += repr(clientconfig.removed(change.document, "default", never).diff)
    shown += repr(clientconfig.drift(change.document, "default", WISH))
    assert "s3cr3t" not in shown
    assert "dXNl" not in shown


def test_drift_names_each_key() -> None:
    """Missing, another shape, or each key that differs, without credentials."""
    assert clientconfig.drift(None, "default", WISH)[0].detail == "missing"
    assert clientconfig.drift(b'{"proxies": {"default": 5}}', "default", WISH)[0].detail == "has another value"
    document = apply(None, wish={"httpProxy": WISH["httpProxy"], "httpsProxy": "http://u:p@x:1", "ftpProxy": "ftp"})
    assert clientconfig.drift(document, "default", WISH) == (
        Finding(
            subject="proxies.default.httpsProxy",
            ok=False,
            detail='"http://***@x:1" instead of "http://172.17.0.1:8123"',
            code="E_DRIFT",
        ),
        Finding(subject="proxies.default.noProxy", ok=False, detail='nothing instead of "localhost"', code="E_DRIFT"),
        Finding(subject="proxies.default.ftpProxy", ok=False, detail='"***" instead of nothing', code="E_DRIFT"),
    )


def test_the_entry_has_the_names_of_the_docker_client() -> None:
    """Lower-case variables under the client's names and in its order; empty ones and others are left out."""
    variables = {
        "all_proxy": "socks5://h:1",
        "HTTP_PROXY": "x",
        "http_proxy": "http://h:1",
        "https_proxy": "http://h:2",
        "ftp_proxy": "http://h:3",
        "no_proxy": "",
        "PIP_INDEX_URL": "http://i",
    }
    assert list(clientconfig.entry(variables).items()) == [
        ("httpProxy", "http://h:1"),
        ("httpsProxy", "http://h:2"),
        ("ftpProxy", "http://h:3"),
        ("allProxy", "socks5://h:1"),
    ]


@pytest.mark.parametrize(
    "host",
    [
        "tcp://192.168.99.100:2376",
        "tcp://[fd00::1]:2375",
        "tcp://docker.example:2376/path",
        "unix:///var/run/docker.sock",
        "npipe:////./pipe/docker_engine",
        "http://docker.example.com",
    ],
)
def test_the_address_of_a_daemon_is_its_name(host: str) -> None:
    """As the client looks it up, DaemonHost()."""
    assert clientconfig.daemon(host) == host
    assert clientconfig.daemon("") == "default"


@pytest.mark.parametrize(
    "host",
    [
        *("default", "192.168.99.100", "192.168.99.100:2376", "tcp://192.168.99.100", "tcp://:2376", "tcp://a b:1"),
        *("ssh://user@host", "unix://docker.sock", "fd://", "http://x:2375", "tcp://h:1\n", "tcp://user@h:1 "),
    ],
)
def test_what_the_client_would_never_look_up_is_refused(host: str) -> None:
    """Exit 2 with a hint, so that no entry is written that has no effect."""
    with pytest.raises(UsageError) as caught:
        clientconfig.daemon(host)
    assert caught.value.hint


def test_where_the_file_is() -> None:
    """DOCKER_CONFIG, else .docker at home; an empty one counts as not set; without a home it is one clean error."""
    assert clientconfig.place({"DOCKER_CONFIG": "/etc/d", "HOME": "/h"}) == "/etc/d/config.json"
    assert clientconfig.place({"DOCKER_CONFIG": "", "HOME": "/h"}) == "/h/.docker/config.json"
    assert clientconfig.place({"USERPROFILE": "C:\\u"}, windows=True) == "C:\\u\\.docker\\config.json"
    for environ, windows in (({}, False), ({"HOME": ""}, False), ({"HOME": "/h"}, True)):
        with pytest.raises(Refused, match="home") as caught:
            clientconfig.place(environ, windows=windows)
        assert "DOCKER_CONFIG" in caught.value.hint
