"""What an answer says of who gave it: the table of status codes, and everything that is no HTTP at all."""

from __future__ import annotations

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmproxy.model import ProxyURL
from vmproxy.proof import LEGS, judge, question

WHERE = "10.0.2.2:8123"


def answer(status: int | str = "", body: str = "", tool: str = "bash") -> bytes:
    """What ask.sh prints: the tool, then what came."""
    head = f"HTTP/1.1 {status} Whatever\r\nX: y\r\n\r\n" if status else ""
    return f"@tool {tool}\n{head}{body}".encode("latin-1")


def code(connect: bytes, get: bytes = answer()) -> str:
    """The finding's code, "ok" where a proxy answered."""
    found = judge("vm", {"connect": connect, "get": get}, where=WHERE)
    assert found.subject == "vm"
    assert WHERE in found.detail or found.code == "tool"
    assert found.ok or found.hint
    return "ok" if found.ok else found.code


@pytest.mark.parametrize("status", [200, 403, 502, 503, 504])
def test_a_proxy_answers_connect(status: int) -> None:
    """Let through, forbidden, not reached: whatever the GET says, that is a proxy."""
    assert code(answer(status)) == "ok"
    assert code(answer(status), answer(404)) == "ok"


@pytest.mark.parametrize(("connect", "get"), [(407, 407), (407, 200), (405, 407), (407, "")])
def test_credentials_are_wanted(connect: int, get: int | str) -> None:
    """407 at either question."""
    assert code(answer(connect), answer(get)) == "credentials"


@pytest.mark.parametrize("connect", [400, 404, 405, 501])
def test_then_the_get_decides(connect: int) -> None:
    """No CONNECT here: a proxy shows itself by how the GET fails; a web server has a page, or none, of its own."""
    for get in (403, 500, 502, 503, 504):
        assert code(answer(connect), answer(get)) == "ok"
    for get in (200, 301, 302, 400, 401, 404):
        assert code(answer(connect), answer(get)) == "web"


@pytest.mark.parametrize("status", [100, 201, 301, 401, 418, 500, 599])
def test_other_answers_to_connect_are_a_web_servers(status: int) -> None:
    """Nothing that a proxy says to a CONNECT."""
    assert code(answer(status), answer(status if status != 500 else 200)) == "web"


@pytest.mark.parametrize(
    ("said", "wanted"),
    [
        (b"", "silent"),
        (b"\r\n", "silent"),
        (bytes((21, 3, 1, 0, 2, 2, 70)), "tls"),
        (b"\x15\x03\x03", "tls"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "other"),
        (b"HTTP/2.0 200 OK\r\n", "other"),
        (b"HTTP/1.1 20", "other"),
        (b"HTTP/1.1 2000 OK\r\n", "other"),
        (b"\xff\xfe\x00", "other"),
        (b"ICY 200 OK\r\n", "other"),
    ],
)
def test_no_http_at_all(said: bytes, wanted: str) -> None:
    """Silence, TLS, another protocol, half a line."""
    assert code(b"@tool nc\n" + said, b"@tool nc\n" + said) == wanted


def test_a_web_server_that_speaks_tls_says_so() -> None:
    """nginx's page for plain HTTP at a TLS port is TLS, not a web server's 400."""
    page = "<center>The plain HTTP request was sent to HTTPS port</center>"
    assert code(answer(400, page), answer(400, page)) == "tls"


def test_wget_has_no_connect() -> None:
    """With wget alone only the second question counts."""
    for status, wanted in ((502, "ok"), (403, "ok"), (407, "credentials"), (404, "web"), ("", "silent")):
        both = answer(status, tool="wget")
        assert code(both, both) == wanted


def test_no_tool() -> None:
    """The VM has nothing to ask with: the hint names the way around it."""
    found = judge("vm", {"connect": b"@tool none\n", "get": b"@tool none\n"}, where=WHERE)
    assert (found.ok, found.code) == (False, "tool")
    assert "--no-check" in found.hint


def test_the_question_could_not_be_put() -> None:
    """docker itself failed: its words, cut and printable."""
    found = judge("bridge", {}, where=WHERE, problem="docker ends with 125: \x1b[31m" + "x" * 400)
    assert (found.ok, found.code) == (False, "container")
    assert "\\x1b[31m" in found.detail
    assert len(found.detail) < 250


@given(leg=st.sampled_from(list(LEGS)), connect=st.binary(max_size=200), get=st.binary(max_size=200))
def test_any_answer_is_one_printable_line(leg: str, connect: bytes, get: bytes) -> None:
    """Whatever comes: a finding of that leg, in one printable line of bounded length (T03, P17)."""
    found = judge(leg, {"connect": b"@tool bash\n" + connect, "get": b"@tool bash\n" + get}, where=WHERE)
    assert found.subject == leg
    assert found.detail.isprintable()
    assert len(found.detail) < 250
    assert found.ok == (found.code == "")


def test_the_question() -> None:
    """Both requests end in an empty line, name a host that cannot exist, and carry the credentials of the URL."""
    proxy = ProxyURL(scheme="http", host="10.0.2.2", port=8123, username="m\u00e9", password="a:b@c")
    put = question(proxy, vm_host="10.0.2.2", vm_port=8123, container_host="172.17.0.1", container_port=8123)
    pair = base64.b64encode("m\u00e9:a:b@c".encode())
    for request in (put.connect, put.get):
        assert request.endswith(b"\r\n\r\n")
        assert b"vmproxy.invalid" in request
        assert b"Proxy-Authorization: Basic " + pair + b"\r\n" in request
    assert put.connect.startswith(b"CONNECT vmproxy.invalid:443 HTTP/1.1\r\n")
    assert put.get.startswith(b"GET http://vmproxy.invalid/ HTTP/1.1\r\n")
    assert "a:b@c" not in repr(put)
    assert pair.decode() not in repr(put)
    plain = question(ProxyURL(scheme="http", host="h", port=1), vm_host="h", vm_port=1, container_host="h",
                     container_port=1)  # fmt: skip
    assert b"Authorization" not in plain.connect + plain.get
