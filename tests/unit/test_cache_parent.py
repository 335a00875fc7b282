"""An upstream that fails, of TLS, and where its password comes from."""

from __future__ import annotations

import datetime
import os
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from ipaddress import ip_address
from pathlib import Path

import pytest

from tests.lab.proxy import LabProxy
from tests.unit.cacheworld import WAIT_SECONDS, fetch, open_files, origin, proxy, quick, serving, settings, talk
from tests.unit.test_cache_faults import raw_origin, reset
from tests.unit.test_cache_upstream import CREDENTIALS, ENCODED, echoing
from vmproxy.cache import engines, run, squid
from vmproxy.cache.limits import CacheSettings
from vmproxy.cache.message import parse_response
from vmproxy.cache.parent import Parent, name_refused
from vmproxy.cli import cachestart, cacheupstream
from vmproxy.cli.common import make_run
from vmproxy.errors import Refused, UsageError
from vmproxy.proxyenv import parse_proxy


def behind(tmp_path: Path, place: str, **changes: object) -> CacheSettings:
    """Settings for a proxy behind that upstream."""
    return settings(tmp_path / "c", upstream=parse_proxy(f"http://{place}"), **changes)


@pytest.mark.parametrize(
    ("sent", "then", "http", "tunnel"),
    [
        (b"", "close", 502, 502),
        (b"", "reset", 502, 502),
        (b"", "stall", 504, 504),
        (b"not http\r\n\r\n", "close", 502, 502),
        (b"HTTP/1.1 407 No\r\nProxy-Authenticate: NTLM\r\nContent-Length: 0\r\n\r\n", "close", 502, 502),
        (b"HTTP/1.1 403 No\r\nContent-Length: 0\r\n\r\n", "close", 403, 403),
        (b"HTTP/1.1 503 No\r\nContent-Length: 0\r\n\r\n", "close", 503, 502),
        (b"HTTP/1.1 504 No\r\nContent-Length: 0\r\n\r\n", "close", 504, 504),
        (b"HTTP/1.1 200 OK\r\nCache-Control: max-age=60\r\nContent-Length: 9\r\n\r\n1234", "close", 502, 200),
    ],
)
def test_f75_an_upstream_that_fails(tmp_path: Path, sent: bytes, then: str, http: int, tunnel: int) -> None:
    """502 or 504 as for an origin, for requests and tunnels; nothing is kept, and no descriptor is left."""
    done = threading.Event()

    def act(taken: socket.socket) -> None:
        if sent:
            taken.sendall(sent)
        if then == "stall":
            done.wait(WAIT_SECONDS)
        elif then == "reset":
            reset(taken)

    limits = quick(origin_seconds=0.3 if then == "stall" else WAIT_SECONDS)
    with raw_origin(act) as place, proxy(behind(tmp_path, place, limits=limits)) as running:
        got = talk(running.address, b"GET http://far.example/ HTTP/1.0\r\n\r\n", end=False)
        assert got.startswith(b"HTTP/1.1 %d " % http), got
        got = talk(running.address, b"CONNECT far.example:443 HTTP/1.1\r\nHost: x\r\n\r\n", end=False)
        assert got.startswith(b"HTTP/1.1 %d " % tunnel), got
        assert len(running.proxy.store) == 0
        assert (b"NTLM" in got and b"px" in got) == (b"NTLM" in sent)
        done.set()


def test_f75_an_upstream_that_is_not_there_or_is_no_name(tmp_path: Path) -> None:
    """502 that says that it is the upstream, and connections do not add up."""
    with socket.create_server(("127.0.0.1", 0)) as gone:
        port = gone.getsockname()[1]
    for number, place in enumerate((f"127.0.0.1:{port}", f"nowhere.invalid:{port}")):
        with proxy(behind(tmp_path / str(number), place)) as running:
            before = open_files()
            for _turn in range(3):
                got = fetch(running.address, "http://far.example/", connection="close")
                assert (got.status, b"the upstream proxy" in got.body) == (502, True)
            assert open_files() <= before + 2


def test_a_loop_through_the_upstream_ends(tmp_path: Path) -> None:
    """An upstream that asks us again hears 508, for requests and tunnels."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        inner: list[tuple[str, int]] = []
        with (
            LabProxy(listening, dial=lambda _host, _port: socket.create_connection(inner[0])) as parent,
            proxy(behind(tmp_path, f"127.0.0.1:{parent.port}")) as running,
        ):
            inner.append(running.address)
            sent = running.proxy.via
            ask = f"CONNECT far.example:443 HTTP/1.1\r\nHost: x\r\nVia: {sent}\r\n\r\n".encode()
            assert talk(running.address, ask, end=False).startswith(b"HTTP/1.1 508 ")
            assert fetch(running.address, "http://far.example/", via=sent).status == 508
            talk(running.address, ask.replace(sent.encode(), b"1.1 x"), b"x\r\n\r\n")
            assert any(f"Via: {sent}" in request.headers for request in parent.requests)


@pytest.mark.parametrize("name", ["127.1", "a.0x7f", "2130706433", "LOCALHOST.", "a.localhost", "1.2.3.4.5"])
def test_t10_names_that_mean_addresses_are_not_sent_on(name: str) -> None:
    """Another resolver would read them, in its own way."""
    assert name_refused(name.lower().rstrip("."))


@pytest.mark.parametrize("name", ["deb.debian.org", "1.example", "0x.example", "x1", "a-1.b2"])
def test_names_are_sent_on(name: str) -> None:
    """A label with digits is no number."""
    assert not name_refused(name)


def test_what_a_407_says() -> None:
    """Other schemes than Basic are named, with px; credentials that were sent were refused."""
    bare, full = (Parent(CacheSettings(directory="x", upstream=parse_proxy(f"http://{x}h:1"))) for x in ("", "u:p@"))
    for fields, said in (
        ("Proxy-Authenticate: Negotiate\r\nProxy-Authenticate: NTLM\r\n", "Negotiate or NTLM; px"),
        ('Proxy-Authenticate: Digest realm="x", nonce="y"\r\n', "Digest; px"),
        ("Proxy-Authenticate: NTLM\r\nProxy-Authenticate: Basic realm=x\r\n", "wants credentials"),
        ("", "wants credentials"),
    ):
        found = bare.why_not(parse_response(f"HTTP/1.1 407 No\r\n{fields}\r\n".encode()))
        assert found
        assert said in found[0]
    found = full.why_not(parse_response(b"HTTP/1.1 407 No\r\n\r\n"))
    assert found == ("the upstream proxy refuses the credentials (407)", 502)
    assert bare.why_not(parse_response(b"HTTP/1.1 401 No\r\n\r\n")) is None
    assert "u:p" not in repr(full.proxy) + str(full.place)


# TLS


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with a key and a certificate for 127.0.0.1."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "lab")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    path = tmp_path_factory.mktemp("tls") / "both.pem"
    usual = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    pem = key.private_bytes(serialization.Encoding.PEM, *usual)
    path.write_bytes(pem + made.public_bytes(serialization.Encoding.PEM))
    return path


@contextmanager
def tls_front(certificate: Path, port: int) -> Iterator[int]:
    """TLS in front of a port; its own port."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)

    def pump(source: socket.socket, sink: socket.socket) -> None:
        try:
            while data := source.recv(65536):
                sink.sendall(data)
        except OSError:
            pass
        for end in (source, sink):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def one(taken: socket.socket) -> None:
        try:
            with (
                context.wrap_socket(taken, server_side=True) as near,
                socket.create_connection(("127.0.0.1", port)) as far,
            ):
                back = threading.Thread(target=pump, args=(far, near), daemon=True)
                back.start()
                pump(near, far)
                back.join(WAIT_SECONDS)
        except OSError:
            taken.close()

    with serving(one) as own:
        yield own


def test_an_upstream_of_tls(tmp_path: Path, certificate: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests and tunnels go through it; its certificate is checked."""
    with (
        origin() as server,
        echoing() as echo,
        socket.create_server(("127.0.0.1", 0)) as listening,
        LabProxy(
            listening,
            mode="auth",
            credentials=CREDENTIALS,
            dial=lambda _host, port: socket.create_connection(("127.0.0.1", port)),
        ) as parent,
        tls_front(certificate, parent.port) as port,
    ):
        where = parse_proxy(f"https://{ENCODED}@127.0.0.1:{port}")
        url = server.serve("/tls", b"t" * 100_000).replace("127.0.0.1", "far.example")
        with proxy(settings(tmp_path / "untrusted", upstream=where)) as running:
            got = fetch(running.address, url)
            assert (got.status, b"certificate is not trusted" in got.body) == (502, True)
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        with proxy(settings(tmp_path / "c", upstream=where, ports=frozenset((echo,)))) as running:
            assert fetch(running.address, url).body == b"t" * 100_000
            with socket.create_connection(running.address, timeout=WAIT_SECONDS) as client:
                client.sendall(f"CONNECT far.example:{echo} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
                answer = b""
                while b"\r\n\r\n" not in answer:
                    answer += client.recv(4096)
                assert answer.startswith(b"HTTP/1.1 200 ")
                client.sendall(b"Ab" * 50_000)
                back = b""
                while len(back) < 100_000:
                    back += client.recv(65536)
                assert back == b"aB" * 50_000


# where the password comes from


def given(environ: dict[str, str] | None = None, **said: object) -> object:
    """What the options make of it; ``upstream_file`` is --upstream-file."""
    names = ("upstream", "upstream-file", "upstream-keyring", "no-proxy")
    options = {name.replace("_", "-"): value for name, value in said.items()}
    made = make_run(names, before={}, after=options, environ={"XDG_CONFIG_HOME": "/nonexistent", **(environ or {})})
    found = cacheupstream.upstream(made)
    assert found is None or found in made.output.secrets
    return found


def test_the_password_comes_from_the_environment_or_a_file_of_ones_own(tmp_path: Path) -> None:
    """Percent-decoded; others' readable files, several lines and what is no URL are refused without a word of it."""
    url = f"http://{ENCODED}@proxy.example:3128"
    wanted = parse_proxy(url)
    assert given({"VMPROXY_UPSTREAM": url}) == wanted
    assert given() is None
    path = tmp_path / "upstream"
    path.write_text(f"\n{url}\n")
    path.chmod(0o600)
    assert given(upstream_file=str(path)) == wanted
    path.chmod(0o640)
    with pytest.raises(UsageError, match="others than you can read it") as error:
        given(upstream_file=str(path))
    assert error.value.hint == f"chmod 600 {path}"
    path.chmod(0o600)
    for text in (f"{url}\n{url}", "", "proxy:geheim", "\xff"):
        path.write_bytes(text.encode("latin-1"))
        with pytest.raises(UsageError) as error:
            given(upstream_file=str(path))
        assert "geheim" not in str(error.value) + error.value.hint
        assert str(path) in error.value.where
    with pytest.raises(UsageError, match="no such file"):
        given(upstream_file=str(tmp_path / "nowhere"))


def keyring_of(monkeypatch: pytest.MonkeyPatch, answer: Callable[[str, str], str | None]) -> None:
    """A keyring that answers as told."""
    import keyring

    monkeypatch.setattr(keyring, "get_password", answer)


def test_the_password_comes_from_the_keyring(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the proxy's address and the user; none there, no keyring at all and no package are one line with a hint."""
    from keyring.errors import NoKeyringError

    asked = []

    def known(service: str, user: str) -> str:
        asked.append((service, user))
        return "p@ss:ü"

    keyring_of(monkeypatch, known)
    found = given(upstream="http://dom%5Cme@proxy.example:3128", upstream_keyring=True)
    assert found == parse_proxy("http://dom%5Cme:p%40ss%3A%C3%BC@proxy.example:3128")
    assert asked == [("http://proxy.example:3128", "dom\\me")]
    keyring_of(monkeypatch, lambda _service, _user: None)
    with pytest.raises(UsageError, match="no password for that user") as error:
        given(upstream="http://me@proxy.example:3128", upstream_keyring=True)
    assert error.value.hint == "keyring set http://proxy.example:3128 USER"

    def nobody(_service: str, _user: str) -> str:
        raise NoKeyringError("No recommended backend was available.")

    keyring_of(monkeypatch, nobody)
    with pytest.raises(UsageError, match="NoKeyringError") as error:
        given(upstream="http://me@proxy.example:3128", upstream_keyring=True)
    assert "--upstream-file" in error.value.hint
    with pytest.raises(UsageError, match="needs the user"):
        given(upstream="http://proxy.example:3128", upstream_keyring=True)
    monkeypatch.setitem(sys.modules, "keyring", None)
    with pytest.raises(UsageError) as error:
        given(upstream="http://me@proxy.example:3128", upstream_keyring=True)
    assert error.value.hint == "pip install 'vmproxy[keyring]'"


def test_no_proxy_is_the_hosts_and_the_options() -> None:
    """Both lists, each entry once."""
    environ = {"no_proxy": "a.example,b.example", "XDG_CONFIG_HOME": "/nonexistent"}
    made = make_run(("no-proxy",), before={}, after={"no-proxy": ("b.example,c.example",)}, environ=environ)
    assert cacheupstream.no_proxy(made) == ("a.example", "b.example", "c.example")


def test_a_service_is_told_what_this_environment_says() -> None:
    """The upstream's password goes by a variable, no_proxy by words; without an upstream neither is of use."""
    environ = {"no_proxy": "a.example", "XDG_CONFIG_HOME": "/nonexistent"}
    environ |= {"VMPROXY_UPSTREAM": "http://u:geheim@proxy.example:3128", "VMPROXY_ENGINE": "squid"}
    names = ("upstream", "upstream-file", "upstream-keyring", "no-proxy", "engine")
    words, secrets = cachestart.words(make_run(names, before={}, after={}, environ=environ), names)
    assert words[1:] == ["--no-proxy=a.example", "--engine=squid"]
    assert secrets == {"VMPROXY_UPSTREAM": "http://u:geheim@proxy.example:3128"}
    del environ["VMPROXY_UPSTREAM"]
    words, secrets = cachestart.words(make_run(names, before={}, after={}, environ=environ), names)
    assert (words[1:], secrets) == (["--engine=squid"], {})


ROOT = Path(__file__).resolve().parents[2]


def serve(*words: str, tmp_path: Path, environ: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """``cache serve`` that is refused."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("VMPROXY_")}
    return subprocess.run(
        [sys.executable, "-m", "vmproxy", "cache", "serve", "--dir", str(tmp_path / "c"), *words],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env={**clean, "XDG_CONFIG_HOME": str(tmp_path), "PYTHONPATH": str(ROOT), **(environ or {})},
        timeout=60,
    )


def test_a_password_on_the_command_line_is_refused_without_a_word_of_it(tmp_path: Path) -> None:
    """Exit 2 with the ways that nobody sees; a malformed URL in the environment shows nothing either."""
    done = serve("--upstream", "http://me:geheim@proxy.example:3128", tmp_path=tmp_path)
    assert done.returncode == 2
    assert "geheim" not in done.stdout + done.stderr
    assert done.stderr.splitlines()[1] == "hint: VMPROXY_UPSTREAM=URL, --upstream-file FILE or --upstream-keyring"
    for url in ("http://me:geheim@h:99999", "me:geheim@h", "socks5://me:geheim@h:1"):
        done = serve(tmp_path=tmp_path, environ={"VMPROXY_UPSTREAM": url})
        assert (done.returncode, "geheim" in done.stdout + done.stderr) == (2, False)
    assert not (tmp_path / "c").exists()


def test_no_squid_is_exit_2_with_a_hint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither in PATH nor where Debian and Homebrew put it."""
    monkeypatch.setattr(squid, "_PLACES", (str(tmp_path),))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UsageError, match="no squid on this machine") as error:
        engines.check("squid")
    assert (error.value.exit, "brew install squid" in error.value.hint) == (2, True)
    with pytest.raises(UsageError, match="no engine of that name"):
        engines.check("apache")
    (tmp_path / "squid").write_text("#!/bin/sh\necho '2026/11/22 12:00:00| FATAL: Bungled \\033[1m' >&2; exit 1\n")
    (tmp_path / "squid").chmod(0o755)
    assert squid.find_squid() == str(tmp_path / "squid")


def test_a_squid_that_does_not_start_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exit 6 with what it said, made printable; nothing of it runs on, and the directory is free again."""
    program = tmp_path / "bin" / "squid"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\nprintf '2026/11/22 12:00:00| FATAL: Bungled \\033[1m line\\n' >&2; exit 1\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    wanted = CacheSettings(directory=str(tmp_path / "c"), engine="squid", port=port)
    for _turn in range(2):
        with pytest.raises(Refused) as error:
            run.serve(wanted, ready=lambda _address: None)
        assert str(error.value).startswith(r"squid does not start: Bungled \x1b[1m line")
    assert os.listdir(tmp_path / "c" / "squid") == ["store"]
