"""Proxy URLs are parsed strictly, written back exactly, and never show a password (P5, P6, P9)."""

from __future__ import annotations

import base64
import copy
import ipaddress
import re
import traceback
from urllib.parse import quote, urlsplit

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from vmproxy import quoting
from vmproxy.errors import UsageError, VmproxyError
from vmproxy.model import ProxyURL
from vmproxy.proxyenv import (
    NAMES,
    conflicts,
    from_environ,
    full_url,
    is_loopback,
    parse_proxy,
    redact,
    url,
    variables,
    with_host,
)

LABELS = st.from_regex(r"[a-z]([a-z0-9-]{0,10}[a-z0-9])?", fullmatch=True)
ONE_MACHINE = st.ip_addresses().map(str).filter(lambda text: not re.fullmatch(r"0\.0\.0\.0|::|255(\.255){3}", text))
HOSTS = st.lists(LABELS, min_size=1, max_size=4).map(".".join) | ONE_MACHINE.filter(
    lambda text: "%" not in text and not ipaddress.ip_address(text).is_multicast
)
SECRETS = st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs")), max_size=12)
PROXIES = st.builds(
    ProxyURL,
    scheme=st.sampled_from(["http", "https"]),
    host=HOSTS,
    port=st.integers(1, 65535),
    username=SECRETS.filter(lambda name: ":" not in name),
    password=SECRETS,
)
PIECES = [
    "http",
    "https",
    "socks5",
    "://",
    ":",
    "//",
    "/",
    "@",
    "[",
    "]",
    "::1",
    "127.0.0.1",
    "127.1",
    "0x7f.1",
    "%",
    "%25",
    "%00",
    "%zz",
    "\\",
    "é",
    "１",
    "。",
    "xn--",
    "-",
    ".",
    "..",
    "_",
    "?",
    "#",
    "8123",
    "0",
    "99999",
    "proxy",
    "PROXY",
    "localhost",
    "fe80::1%25eth0",
]
HOSTILE = st.lists(
    st.sampled_from([*PIECES, "\t", "\n", "\0", "\u202e", "\ud800", "a" * 64, "a." * 130]), max_size=10
).map("".join)


@given(PROXIES)
@example(ProxyURL(scheme="http", host="::1", port=1, username="", password=":@/?#%'\" $`\\"))
def test_p5_parse_is_the_inverse_of_url(proxy: ProxyURL) -> None:
    """Credentials, IPv6 and ports survive; the URL is printable ASCII that every shell and reader carries."""
    text = url(proxy)
    assert parse_proxy(text) == proxy
    assert re.fullmatch(r"[!-~]+", text)
    assert quoting.sh(text) == f"'{text}'"
    assert quoting.dotenv("http_proxy", text) == f"http_proxy={text}"


@given(HOSTILE | st.text() | PROXIES.map(url))
def test_p5_any_text_is_a_proxy_or_a_usage_error(text: str) -> None:
    """No other exception ever; what is accepted is an address or an RFC 1123 name, and normal form is stable."""
    try:
        proxy = parse_proxy(text)
    except UsageError:
        return
    assert proxy.scheme in ("http", "https")
    assert 0 < proxy.port < 65536
    try:
        ipaddress.ip_address(proxy.host)
    except ValueError:
        assert len(proxy.host) <= 253
        assert re.fullmatch(r"([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\.)*[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", proxy.host)
        assert not proxy.host.rpartition(".")[2].isdigit()
    assert "%" not in proxy.host
    assert parse_proxy(url(proxy)) == proxy


@given(PROXIES)
def test_p5_others_read_the_same_host_and_port(proxy: ProxyURL) -> None:
    """The standard library's parser finds the very same parts in what we write."""
    parts = urlsplit(url(proxy))
    assert (parts.scheme, parts.hostname, parts.port) == (proxy.scheme, proxy.host, proxy.port)
    assert parts.path == parts.query == parts.fragment == ""


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("http://proxy.example:3128", ("http", "proxy.example", 3128, "", "")),
        ("HTTP://Proxy.Example:3128/", ("http", "proxy.example", 3128, "", "")),
        ("http://proxy", ("http", "proxy", 80, "", "")),
        ("https://proxy", ("https", "proxy", 443, "", "")),
        ("http://10.0.2.2:8123", ("http", "10.0.2.2", 8123, "", "")),
        ("http://[FD00:0::2]:8123", ("http", "fd00::2", 8123, "", "")),
        ("http://[::1]", ("http", "::1", 80, "", "")),
        ("http://u:p%40ss@h:1", ("http", "h", 1, "u", "p@ss")),
        ("http://u:p@ss@h:1", ("http", "h", 1, "u", "p@ss")),
        ("http://u@h:1", ("http", "h", 1, "u", "")),
        ("http://u:@h:1", ("http", "h", 1, "u", "")),
        ("http://:p@h:1", ("http", "h", 1, "", "p")),
        ("http://@h:1", ("http", "h", 1, "", "")),
        ("http://u:a:b@h:1", ("http", "h", 1, "u", "a:b")),
        ("http://DOM%5Cuser:%C3%A9@h:1", ("http", "h", 1, "DOM\\user", "é")),
        ("http://bücher.example:1", ("http", "xn--bcher-kva.example", 1, "", "")),
        ("http://4proxies.example:1", ("http", "4proxies.example", 1, "", "")),
    ],
)
def test_proxy_urls_are_read(text: str, wanted: tuple[str, str, int, str, str]) -> None:
    """Scheme, host in normal form, port or the scheme's own, decoded credentials."""
    proxy = parse_proxy(text)
    assert (proxy.scheme, proxy.host, proxy.port, proxy.username, proxy.password) == wanted


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("", "no scheme"),
        ("proxy:3128", "no scheme"),
        ("localhost", "no scheme"),
        ("//proxy:3128", "no scheme"),
        ("user:pass@proxy:3128", "no scheme"),
        ("socks5://proxy:1080", "SOCKS"),
        ("ftp://proxy:21", "scheme"),
        ("http//proxy:1://", "scheme"),
        ("http://", "host"),
        ("http://:8123", "host"),
        ("http://proxy:", "port"),
        ("http://proxy:0", "port"),
        ("http://proxy:65536", "port"),
        ("http://proxy:99999999999999999999", "port"),
        ("http://proxy:-1", "port"),
        ("http://proxy:+1", "port"),
        ("http://proxy:80a", "port"),
        ("http://proxy:１２", "port"),
        ("http://proxy:1_0", "port"),
        ("http://proxy:1/path", "path"),
        ("http://proxy:1?", "query"),
        ("http://proxy:1#x", "fragment"),
        ("http://u:pa/ss@proxy:1", "path"),
        ("http://u:1234#x@proxy:1", "fragment"),
        ("http://pr\toxy:3128", "space"),
        ("http://proxy:3128\r\n", "space"),
        (" http://proxy:3128", "space"),
        ("http://pro xy:3128", "space"),
        ("http://pro\0xy:3128", "control"),
        ("http://good\\@evil:80", "backslash"),
        ("http://pro\u200bxy:1", "invisible"),
        ("http://\u202eproxy:1", "invisible"),
        ("http://u:%zz@proxy:1", "%"),
        ("http://u:%@proxy:1", "%"),
        ("http://u:%ff@proxy:1", "UTF-8"),
        ("http://u:%0d%0aX@proxy:1", "control"),
        ("http://u%00:p@proxy:1", "control"),
        ("http://a%3Ab:p@proxy:1", "colon"),
        ("http://::1:8123", "colons"),
        ("http://[::1:8123", "closed"),
        ("http://[::1]8123", "closed"),
        ("http://[127.0.0.1]:1", "IPv6"),
        ("http://[proxy]:1", "IPv6"),
        ("http://[fe80::1%25eth0]:1", "zone"),
        ("http://[fe80::1%eth0]:1", "zone"),
        ("http://127.1:1", "IP address"),
        ("http://2130706433:1", "IP address"),
        ("http://0177.0.0.1:1", "IP address"),
        ("http://0x7f.0.0.0x1:1", "IP address"),
        ("http://1.2.3.4.5:1", "IP address"),
        ("http://１２７.0.0.1:1", "characters"),
        ("http://ｐroxy:1", "characters"),
        ("http://pro。xy:1", "characters"),
        ("http://0.0.0.0:1", "one machine"),
        ("http://[::]:1", "one machine"),
        ("http://224.0.0.1:1", "one machine"),
        ("http://255.255.255.255:1", "one machine"),
        ("http://pro_xy:1", "host"),
        ("http://-proxy:1", "host"),
        ("http://proxy-:1", "host"),
        ("http://pro..xy:1", "host"),
        ("http://proxy.:1", "host"),
        ("http://pro%78y:1", "host"),
        ("http://pro'xy:1", "host"),
        (f"http://{'a' * 64}:1", "host"),
        (f"http://{'é' * 64}:1", "characters"),
        (f"http://{'a.' * 127}aa:1", "host"),
        ("http://" + "a" * 5000, "longer"),
    ],
    ids=lambda value: ascii(value)[:40],
)
def test_hostile_and_wrong_urls_are_refused_with_a_reason(text: str, word: str) -> None:
    """Each kind of wrong URL is a usage error that says what is wrong with it."""
    with pytest.raises(UsageError, match=word):
        parse_proxy(text)


def test_a_url_without_scheme_is_told_the_right_form() -> None:
    """host:port alone gets the hint that names the form."""
    with pytest.raises(UsageError) as caught:
        parse_proxy("proxy:3128")
    assert caught.value.hint == "write it as http://host:port"


def spellings(secret: str, user: str = "") -> set[str]:
    """The ways in which a secret could leak."""
    return {
        secret,
        quote(secret, safe=""),
        base64.b64encode(f"{user}:{secret}".encode()).decode(),
        "'" + secret.replace("'", "'\\''") + "'",
        repr(secret)[1:-1],
    }


LONG_SECRETS = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), min_size=4, max_size=12).map(
    lambda text: f"Zq{text}9Z"
)


@given(proxy=PROXIES, secret=LONG_SECRETS, user=SECRETS)
def test_p6_no_rendering_of_a_proxy_shows_the_password(proxy: ProxyURL, secret: str, user: str) -> None:
    """str, repr, format and f-strings mask it, as do containers of it; only url() has it."""
    secret = re.sub(r"[\x00-\x1f\x7f-\x9f]", "", secret)
    whole = ProxyURL(scheme=proxy.scheme, host=proxy.host, port=proxy.port, username=user, password=secret)
    shown = f"{whole} {whole!r} {[whole]} { {'a': whole} } {copy.copy(whole)!r} {redact(url(whole))}"
    assert not any(text in shown for text in spellings(secret, user))
    assert quote(secret, safe="") in url(whole)


@given(
    secret=LONG_SECRETS,
    form=st.sampled_from(
        [
            "http://user:{}@proxy:1",
            "http://user:{}@pro_xy:1",
            "http://user:{}@proxy",
            "user:{}@proxy:1",
            "http://user:{}",
            "http://{}:1",
            "http://[{}]:1",
            "http://proxy:{}",
            "http://proxy:1/?{}",
            "http://proxy:1#{}",
            "{}://proxy:1",
            "{}",
            "http://user:{}@[::1",
            "http://user:%zz{}@proxy:1",
            "http://us{}er%3A:x@proxy:1",
            "http:/user:{}@proxy:1",
        ]
    ),
)
def test_p6_no_error_shows_what_was_given(secret: str, form: str) -> None:
    """However a URL is malformed, neither the error, its hint, its chain nor its traceback holds the secret."""
    text = form.format(secret)
    try:
        parse_proxy(text)
        assume(False)
    except UsageError as error:
        caught = error
    chain: list[BaseException] = []
    at: BaseException | None = caught
    while at is not None:
        chain.append(at)
        at = at.__cause__ or at.__context__
    shown = "".join(f"{one} {one!r} {one.args} {vars(one)}" for one in chain)
    shown += "".join(traceback.format_exception(caught))
    assert not any(spelling in shown for spelling in spellings(secret, "user"))
    assert redact(text) == "***"
    with pytest.raises(UsageError) as again:
        from_environ({"http_proxy": f"http://a b{text}"})
    assert again.value.__context__ is None
    assert not any(spelling in f"{again.value!r}{again.value}" for spelling in spellings(secret, "user"))


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("http://u:secret@h:1", "http://***@h:1"),
        ("http://h:1", "http://h:1"),
        ("socks5://u:secret@h", "socks5://***@h:1080"),
        ("http://u:sec/ret@h:1", "***"),
        ("u:secret@h:1", "***"),
    ],
)
def test_redact_masks_or_shows_nothing(text: str, wanted: str) -> None:
    """A good URL is shown masked; of a bad one nobody knows where the password is."""
    assert redact(text) == wanted


@pytest.mark.parametrize(
    ("host", "wanted"),
    [
        *((host, True) for host in ("localhost", "LOCALHOST", "localhost.", "a.localhost", "127.0.0.1", "127.0.0.2")),
        *((host, True) for host in ("127.255.255.254", "::1", "[::1]", "0:0:0:0:0:0:0:1", "::ffff:127.0.0.1")),
        *((host, False) for host in ("10.0.2.2", "128.0.0.1", "127.1", "notlocalhost", "localhost.example", "::2", "")),
        ("1２7.0.0.1", False),
    ],
)
def test_loopback_hosts_are_known(host: str, wanted: bool) -> None:
    """Every spelling of "this machine", and nothing else."""
    assert is_loopback(host) is wanted


def test_with_host_changes_host_and_port_only() -> None:
    """Credentials and scheme stay; a host that is none is refused."""
    proxy = parse_proxy("https://u:p@localhost:3128")
    assert url(with_host(proxy, "10.0.2.2")) == "https://u:p@10.0.2.2:3128"
    assert url(with_host(proxy, "[FD00::2]", 8123)) == "https://u:p@[fd00::2]:8123"
    assert url(with_host(proxy, "Host.Docker.Internal")) == "https://u:p@host.docker.internal:3128"
    for host in ("", "a b", "fe80::1%eth0", "127.1", "$(reboot)", "-x"):
        with pytest.raises(UsageError):
            with_host(proxy, host)
    for port in (0, -1, 65536):
        with pytest.raises(UsageError):
            with_host(proxy, "h", port)


def test_variables_come_in_both_cases_and_in_order() -> None:
    """The six names; https falls back to the http proxy; no entries, no NO_PROXY."""
    http, https = parse_proxy("http://u:p%40@10.0.2.2:8123/"), parse_proxy("http://h:1")
    full = variables(http, https, ["a", "b", "A"])
    assert tuple(full) == NAMES
    assert full["HTTP_PROXY"] == full["http_proxy"] == "http://u:p%40@10.0.2.2:8123"
    assert full["HTTPS_PROXY"] == full["https_proxy"] == "http://h:1"
    assert full["NO_PROXY"] == full["no_proxy"] == "a,b"
    assert tuple(variables(http, None)) == NAMES[:4]
    assert variables(http, None)["https_proxy"] == url(http) == full_url(http)


ENVIRONS = st.dictionaries(
    st.sampled_from([*NAMES, "all_proxy", "FTP_PROXY", "PATH", "HOME", "REQUEST_METHOD", "Http_Proxy"]),
    st.sampled_from(["", "http://127.0.0.2:3128", "http://u:p@proxy:1/", "localhost:8080", "https://[::1]", "a.b,.c"]),
).map(
    lambda environ: {name: value for name, value in environ.items() if value != "a.b,.c" or name.lower() == "no_proxy"}
)


@given(environ=ENVIRONS, host=st.sampled_from([None, "10.0.2.2", "fd00::2", "host.docker.internal"]))
def test_p9_pairing_is_idempotent_and_touches_nothing_else(environ: dict[str, str], host: str | None) -> None:
    """Both cases and equal; a second time changes nothing; only proxy variables; only loopback hosts change."""
    before = dict(environ)
    found = from_environ(environ, host=host, extra_no_proxy=["x.y"])
    assert environ == before
    assert from_environ(found, host=host, extra_no_proxy=["x.y"]) == found
    lower = {name for name in found if name.islower()}
    assert {name.upper() for name in lower} == set(found) - lower
    assert all(found[name] == found[name.upper()] for name in lower)
    assert lower <= {"http_proxy", "https_proxy", "ftp_proxy", "all_proxy", "no_proxy"}
    for name in lower - {"no_proxy"}:
        given_text = environ.get(name) or environ[name.upper()]
        old = parse_proxy(given_text if "://" in given_text else f"http://{given_text}")
        new = parse_proxy(found[name])
        assert new == (with_host(old, host) if host and is_loopback(old.host) else old)


@pytest.mark.parametrize("text", ["127.0.0.1", "127.0.0.2", "[::1]", "localhost", "x.localhost"])
def test_loopback_becomes_the_host_that_is_given(text: str) -> None:
    """A proxy on my machine is reached at the gateway from elsewhere."""
    found = from_environ({"https_proxy": f"http://u:p@{text}:3128"}, host="10.0.2.2")
    assert found == dict.fromkeys(("HTTPS_PROXY", "https_proxy"), "http://u:p@10.0.2.2:3128")


def test_cve_2016_5386_a_request_header_is_no_proxy() -> None:
    """With REQUEST_METHOD set, HTTP_PROXY is what a client sent; http_proxy cannot be, and other names cannot."""
    header = {"REQUEST_METHOD": "GET", "HTTP_PROXY": "http://evil:1"}
    assert from_environ(header) == {}
    assert conflicts(header)[0].subject == "http_proxy"
    assert from_environ({**header, "http_proxy": "http://good:1"})["HTTP_PROXY"] == "http://good:1"
    assert from_environ({"REQUEST_METHOD": "", "HTTP_PROXY": "http://evil:1"}) == {}
    assert from_environ({"REQUEST_METHOD": "GET", "HTTPS_PROXY": "http://h:1"})["https_proxy"] == "http://h:1"


def test_the_lower_case_wins_and_the_conflict_is_told_without_values() -> None:
    """Two values for one thing: lower case is used, and said."""
    environ = {"http_proxy": "http://u:hunter2@a:1", "HTTP_PROXY": "http://b:1", "no_proxy": "x", "NO_PROXY": "y"}
    assert from_environ(environ)["HTTP_PROXY"] == "http://u:hunter2@a:1"
    told = conflicts(environ)
    assert [finding.subject for finding in told] == ["http_proxy", "no_proxy"]
    assert "hunter2" not in repr(told)
    assert conflicts({"http_proxy": "a", "HTTP_PROXY": "a", "https_proxy": "", "HTTPS_PROXY": "b"}) == ()


def test_an_empty_environment_gives_nothing() -> None:
    """No variables in, none out, whatever is to be appended."""
    assert from_environ({}, host="10.0.2.2", extra_no_proxy=["a"]) == {}
    assert from_environ({"http_proxy": "", "HTTP_PROXY": ""}, extra_no_proxy="a") == {}


def test_no_proxy_gains_the_names_given() -> None:
    """Names are appended once, behind the user's own entries; a lone no_proxy is kept too."""
    found = from_environ({"NO_PROXY": "a, B", "http_proxy": "http://h:1"}, extra_no_proxy="b,c")
    assert found["no_proxy"] == "a,B,c"
    assert from_environ({"no_proxy": "a"}) == {"NO_PROXY": "a", "no_proxy": "a"}


def test_what_other_clients_accept_in_the_environment_is_kept() -> None:
    """A value without scheme is http, and SOCKS URLs pass through, rewritten all the same."""
    found = from_environ({"http_proxy": "localhost:3128", "ALL_PROXY": "socks5h://127.0.0.1"}, host="10.0.2.2")
    assert found["http_proxy"] == "http://10.0.2.2:3128"
    assert found["all_proxy"] == "socks5h://10.0.2.2:1080"


def test_a_broken_variable_is_named_and_not_shown() -> None:
    """The error says which variable, not what is in it."""
    with pytest.raises(VmproxyError) as caught:
        from_environ({"HTTPS_PROXY": "http://u:hunter2/@h"})
    assert "https_proxy" in str(caught.value)
    assert "hunter2" not in f"{caught.value!r}{caught.value}{caught.value.hint}"
