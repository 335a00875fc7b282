"""Options, environment and file become Settings; what is wrong is named with its place."""

from __future__ import annotations

import string
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmproxy import config
from vmproxy.errors import UsageError
from vmproxy.model import ProxyURL, Settings, Wish
from vmproxy.options import CHANGE, OPTIONS, SSH, WISH
from vmproxy.wish import choose

FIELDS = [option for option in OPTIONS.values() if option.field]
EVERY = (*WISH, *CHANGE, *SSH, "vm")


def resolved(
    given: dict[str, object] | None = None, environ: dict[str, str] | None = None, file: dict[str, object] | None = None
) -> dict[str, object]:
    """Every option resolved from the three sources."""
    return config.resolve(EVERY, given=given or {}, environ=environ or {}, file=file or {}, path="/x/vmproxy.toml")


def settings(
    given: dict[str, object] | None = None, environ: dict[str, str] | None = None, file: dict[str, object] | None = None
) -> Settings:
    """The Settings of the three sources."""
    return config.settings(resolved(given, environ, file), environ=environ or {})


def test_nothing_said_gives_the_defaults() -> None:
    """Without a word from anybody no wish is made up: nothing counts as given."""
    assert settings() == Settings()


@pytest.mark.parametrize(
    ("given_value", "environment", "file", "port"),
    [("1", "2", 3, 1), (None, "2", 3, 2), (None, None, 3, 3), (None, "", 3, 3), (None, None, None, None)],
)
def test_command_line_beats_environment_beats_file(
    given_value: str | None, environment: str | None, file: int | None, port: int | None
) -> None:
    """The order of the three sources; an empty variable counts as not set."""
    found = settings(
        {"listen-port": given_value} if given_value else {},
        {"VMPROXY_LISTEN_PORT": environment} if environment is not None else {},
        {"listen-port": file} if file else {},
    )
    assert found.listen_port == port
    assert ("listen_port" in found.given) == (port is not None)


@pytest.mark.parametrize("option", FIELDS, ids=lambda option: option.name)
def test_every_field_is_reached_from_all_three_sources(option: config.Option) -> None:
    """An option of the story reaches its field of Settings from the command line, the environment and the file."""
    samples: dict[str, tuple[str, object]] = {
        "flag": ("true", True),
        "int": ("77", 77),
        "seconds": ("1.5", 1.5),
        "choice": (option.choices[-1] if option.choices else "", option.choices[-1] if option.choices else ""),
        "list": ("a,b", ("a", "b")),
        "path": ("/a", "/a"),
        "paths": ("/a", ("/a",)),
        "text": ("boot2docker", "boot2docker"),
        "way": ("me@bastion:22", "me@bastion:22"),
        "address": ("10.0.2.2", "10.0.2.2"),
        "fingerprint": ("SHA256:" + "a" * 43, "SHA256:" + "a" * 43),
        "proxy": ("http://p:1", ProxyURL(scheme="http", host="p", port=1)),
        "no-proxy": ("a.b,.c", ("a.b", ".c")),
        "names": ("db,my_cache", ("db", "my_cache")),
        "index": ("http://localhost:3141/root/pypi/+simple/", "http://localhost:3141/root/pypi/+simple/"),
    }
    text, wanted = samples[option.kind]
    raw: object = True if option.kind == "flag" else text
    sources: list[tuple[dict[str, object], dict[str, str], dict[str, object]]] = [
        ({option.name: raw}, {}, {}),
        ({}, {option.variable: text}, {}),
        ({}, {}, {option.name: raw}),
    ]
    for given_values, environ, file in sources:
        found = settings(given_values, environ, file)
        assert getattr(found, option.field) == wanted
        assert option.field in found.given


@pytest.mark.parametrize(("name", "field"), [("no-verify", "verify"), ("no-check", "check")])
def test_a_flag_can_be_denied_by_its_other_name(name: str, field: str) -> None:
    """``--no-verify`` is VMPROXY_NO_VERIFY=1 and ``no-verify = true`` too."""
    variable = "VMPROXY_" + name.upper().replace("-", "_")
    assert getattr(settings({}, {variable: "1"}), field) is False
    assert getattr(settings({}, {variable: "0"}), field) is True
    assert getattr(settings({}, {}, config.parse_file(f"{name} = true", path="f")), field) is False


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("listen-port", "0"),
        ("listen-port", "65536"),
        ("listen-port", "８１２３"),
        ("listen-port", "-1"),
        ("listen-port", "8 1"),
        ("listen-port", ""),
        ("wait", "-1"),
        ("wait", "nan"),
        ("wait", "inf"),
        ("wait", "soon"),
        ("wait", "１"),
        ("restart", "sometimes"),
        ("gateway", "10.0.2"),
        ("gateway", "0.0.0.0"),
        ("gateway", "127.0.0.1"),
        ("gateway", "224.0.0.1"),
        ("gateway", "fe80::1"),
        ("gateway", "fe80::1%eth0"),
        ("gateway", "host"),
        ("host-key", "MD5:aa:bb"),
        ("jump", ""),
        ("jump", " "),
        ("host-key", "SHA256:short"),
        ("proxy", "127.0.0.1:3128"),
        ("proxy", "http://pr\toxy:3128"),
        ("no-proxy", "a\x1bb"),
        ("guest", "a\nb"),
        ("force", "maybe"),
    ],
)
def test_a_wrong_value_is_a_usage_error_that_names_its_place(name: str, value: str) -> None:
    """Exit 2 and the flag, or the variable, that holds the wrong value."""
    with pytest.raises(UsageError) as flag:
        resolved({name: value})
    assert f"--{name}" in str(flag.value)
    if value:
        with pytest.raises(UsageError) as variable:
            resolved({}, {OPTIONS[name].variable: value})
        assert OPTIONS[name].variable in str(variable.value)


@given(st.text(alphabet=string.ascii_letters + string.digits + "\t\\ %@#?[]", min_size=6, max_size=20))
def test_p6_a_wrong_proxy_url_never_shows_its_password(password: str) -> None:
    """However the URL is broken, its password is in no message."""
    with pytest.raises(UsageError) as caught:
        resolved({"proxy": f"ftp://user:{password}@host:99999/"})
    assert password not in f"{caught.value} {caught.value.hint} {caught.value!r}"


def test_file_keys_are_checked() -> None:
    """A wrong key is exit 2 and names the file, the key, and what was probably meant."""
    with pytest.raises(UsageError) as caught:
        config.parse_file("listen_port = 1", path="/x/vmproxy.toml")
    assert "/x/vmproxy.toml" in str(caught.value)
    assert "listen_port" in str(caught.value)
    assert "listen-port" in caught.value.hint


@pytest.mark.parametrize(
    "text",
    [
        "listen-port = ",
        "listen-port = 'x'",
        "vm = 3",
        "[vm]",
        "force = 'yes'",
        "wait = true",
        "proxy = 1",
        "config = 'x'",
    ],
)
def test_file_values_are_checked_even_where_the_command_does_not_use_them(text: str) -> None:
    """A file that cannot be right is refused whole, with its path."""
    with pytest.raises(UsageError) as caught:
        config.parse_file(text, path="/x/vmproxy.toml")
    assert "/x/vmproxy.toml" in str(caught.value)


def test_file_values_arrive() -> None:
    """Numbers, booleans, lists and texts of the file are taken as what they are."""
    file = config.parse_file(
        'vm = ["a", "b,c"]\nproxy = "http://p:3128"\nlisten-port = 8124\nforward = true\nbridge = "docker0"\nwait = 2',
        path="f",
    )
    values = resolved({}, {}, file)
    assert values["vm"] == ("a", "b", "c")
    found = config.settings(values, environ={})
    assert (found.listen_port, found.forward, found.bridges, found.wait_seconds) == (8124, True, ("docker0",), 2.0)
    assert found.given == {"proxy", "listen_port", "forward", "bridges", "wait_seconds"}


def test_repeated_and_comma_separated_lists_are_one() -> None:
    """``--vm a --vm b,c --vm a`` are three VMs in that order."""
    assert resolved({"vm": ("a", "b, c", "a")})["vm"] == ("a", "b", "c")


def test_no_jump_host_is_said_by_a_word() -> None:
    """``-J ""``, of a variable that is not set, does not mean: directly; ``none`` does, and in the environment a
    variable without a value is not set."""
    with pytest.raises(UsageError) as caught:
        resolved({"jump": ""})
    assert caught.value.exit == 2 and "--jump none" in caught.value.hint
    with pytest.raises(UsageError):
        config.parse_file('jump = ""', path="f")
    assert settings({"jump": "none"}).jump == "none"
    assert settings({}, {"VMPROXY_JUMP": ""}).jump == ""


def test_an_empty_no_proxy_counts_as_said() -> None:
    """``--no-proxy ''`` takes entries away that an earlier apply recorded."""
    found = settings({"no-proxy": ("",)})
    assert found.no_proxy == ()
    assert "no_proxy" in found.given


def test_the_hosts_own_variables_are_kept_apart() -> None:
    """http_proxy of the host is no wish: it only stands in where nothing is recorded in the VM."""
    found = settings({}, {"http_proxy": "http://u:secret@p:1", "HTTPS_PROXY": "q:2", "no_proxy": "a.b"})
    assert found.proxy is None
    assert found.given == frozenset()
    assert found.host_environment_proxy == ProxyURL(scheme="http", host="p", port=1, username="u", password="secret")
    assert found.host_environment_https_proxy == ProxyURL(scheme="http", host="q", port=2)
    assert found.host_environment_no_proxy == ("a.b",)
    assert "secret" not in repr(found)


def test_a_broken_variable_of_the_host_is_no_error_until_needed() -> None:
    """A host whose http_proxy is nonsense can still use --proxy; the problem is one line without the value."""
    found = settings({"proxy": "http://p:1"}, {"http_proxy": "http://u:secret word@p:1"})
    assert found.proxy is not None
    assert "http_proxy" in found.host_environment_problem
    assert "secret" not in found.host_environment_problem


def test_cgi_request_header_is_not_believed() -> None:
    """In a CGI program HTTP_PROXY is what a client sent, so it is not read."""
    assert settings({}, {"HTTP_PROXY": "http://evil:1", "REQUEST_METHOD": "GET"}).host_environment_proxy is None


def test_home_is_expanded_in_paths(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A shell expands ~ on the command line but not in a file or in VMPROXY_….."""
    monkeypatch.setenv("HOME", str(tmp_path))
    assert settings({}, {"VMPROXY_IDENTITY": "~/key"}).identities == (f"{tmp_path}/key",)


def test_settings_made_by_hand_count_by_their_values() -> None:
    """A library's caller need not fill ``given``: a value that is not the default goes before the VM's record."""
    proxy = ProxyURL(scheme="http", host="p", port=1)
    recorded = Wish(proxy=proxy, gateway="10.0.2.2", no_proxy=("a.b",), forward=True)
    found = choose(Settings(listen_port=8124, gateway="10.0.3.2"), recorded)
    assert (found.listen_port, found.gateway, found.no_proxy, found.forward) == (8124, "10.0.3.2", ("a.b",), True)
    found = choose(Settings(given=frozenset({"no_proxy", "forward"})), recorded)
    assert (found.no_proxy, found.forward) == ((), False)


@pytest.mark.parametrize("entry", ["http://x", "10.0.0.0/99", "a;b", "a/b"])
def test_a_no_proxy_entry_that_nothing_can_be_is_refused(entry: str) -> None:
    """A URL, a network that is none, a list of another kind: exit 2 before anything is written, the option named."""
    with pytest.raises(UsageError, match="no-proxy"):
        config.resolve(("no-proxy",), given={"no-proxy": entry}, environ={}, file={})


def test_no_proxy_entries_of_every_kind_are_taken() -> None:
    """Names, domains, addresses, networks, ports, stars."""
    text = "a.corp,.b.corp,*.c.corp,*,10.0.0.0/8,10.1.2.3:80,fd00::/8,[fd00::1]:80,my_db,xn--bcher-kva.test"
    found = config.resolve(("no-proxy",), given={"no-proxy": text}, environ={}, file={})
    assert found["no-proxy"] == tuple(text.split(","))
