"""What to ask a proxy, and what its answers mean. PURE: bytes in, findings out.

Two questions are put: a CONNECT (RFC 9110 §9.3.6) to a name that no resolver answers (``.invalid``, RFC 2606), and a
GET of an absolute URI (RFC 9112 §3.2.2). A proxy shows itself by how it fails. Before a change the VM leaves the GET
out where the CONNECT has said all (``SURE_CODES``).
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Mapping
from dataclasses import field

from vmproxy.model import Finding, ProxyURL, printable
from vmproxy.values import dataclass

NAME = "vmproxy.invalid"
_STATUS = re.compile(rb"^HTTP/1\.[01] (\d{3})(?:[ \r\n]|$)")
# A CONNECT answered so comes from a proxy: it let us through, forbade it, or could not reach the name (DESIGN §2).
_PROXY_CODES = frozenset({200, 403, 502, 503, 504})
SURE_CODES = _PROXY_CODES - {403}
"""Those of a proxy that has tried, and so wants no other credentials; it may forbid before it asks for any."""
# A GET of a foreign absolute URI answered so comes from a proxy without CONNECT; a web server says 200, 3xx, 400,
# 404 of its own.
_GET_PROXY_CODES = frozenset({403, 500, 502, 503, 504})

LEGS = {
    "vm": "from the VM",
    "bridge": "from a container on the default bridge",
    "network": "from a container on a user-defined network",
    "bridge6": "from a container on the default bridge by IPv6",
}
USUAL = ("vm", "bridge", "network")
"""Those asked of every VM; ``bridge6`` only where the door is one by IPv6, too."""


@dataclass(frozen=True, kw_only=True)
class Question:
    """Where the VM and its containers shall ask, and the bytes to send. The bytes may hold credentials: they travel
    on stdin."""

    vm_host: str
    vm_port: int
    container_host: str
    container_port: int
    connect: bytes = field(repr=False)
    get: bytes = field(repr=False)
    legs: tuple[str, ...] = USUAL
    container_host6: str = ""
    """Where the leg ``bridge6`` asks."""
    fetch: bytes = field(default=b"", repr=False)
    """Sent by the proof in place of each, where it is there: see :mod:`vmproxy.cachehit`."""


def question(
    proxy: ProxyURL,
    *,
    vm_host: str,
    vm_port: int,
    container_host: str,
    container_port: int,
    container_host6: str = "",
    fetch: bytes = b"",
    legs: Iterable[str] = USUAL,
) -> Question:
    """The two requests for one proxy, with its credentials as RFC 7617 has them."""
    extra = ""
    if proxy.has_credentials:
        pair = f"{proxy.username}:{proxy.password}".encode()
        extra = f"Proxy-Authorization: Basic {base64.b64encode(pair).decode('ascii')}\r\n"
    connect = f"CONNECT {NAME}:443 HTTP/1.1\r\nHost: {NAME}:443\r\n{extra}\r\n"
    get = f"GET http://{NAME}/ HTTP/1.1\r\nHost: {NAME}\r\n{extra}Connection: close\r\n\r\n"
    return Question(
        vm_host=vm_host,
        vm_port=vm_port,
        container_host=container_host,
        container_port=container_port,
        connect=connect.encode("ascii"),
        get=get.encode("ascii"),
        container_host6=container_host6,
        fetch=fetch,
        legs=tuple(legs),
    )


def judge(leg: str, answers: Mapping[str, bytes], *, where: str, problem: str = "") -> Finding:
    """One leg: the raw answers by question (``connect``, ``get``), each with ask.sh's ``@tool NAME`` line in front.

    ``code`` is "" where a proxy answered; ``tool``, ``silent``, ``credentials``, ``tls``, ``web``, ``other``,
    ``container``
    where not. ``where`` is host:port as asked; ``problem`` is why the question could not be put at all.
    """

    def bad(code: str, detail: str, hint: str = "") -> Finding:
        return Finding(subject=leg, ok=False, code=code, detail=f"{detail} {LEGS.get(leg, leg)}", hint=hint)

    if problem:
        return bad("container", f"the question could not be put ({printable(problem, limit=120)})", "docker info")
    tool, connect = _split(answers.get("connect", b""))
    _, get = _split(answers.get("get", b""))
    if tool == "none":
        return bad("tool", "the VM has none of bash, nc, curl, wget to ask the proxy with", "--no-check --no-verify")
    first, second = _code(connect), _code(get)
    if 407 in (first, second):
        return bad(
            "credentials",
            f"the proxy at {where} wants credentials, seen",
            "--proxy http://USER:PASSWORD@HOST:PORT, best as VMPROXY_PROXY",
        )
    if tool == "wget":
        # busybox's wget shows only failures it understands; any proxy-like failure or success through the proxy
        # variable counts.
        first = None
    if first in _PROXY_CODES:
        return Finding(subject=leg, ok=True, detail=f"{where} answers as a proxy {LEGS.get(leg, leg)}")
    if second in _GET_PROXY_CODES:
        return Finding(subject=leg, ok=True, detail=f"{where} answers as a proxy without CONNECT {LEGS.get(leg, leg)}")
    if not connect.strip() and not get.strip():
        return bad(
            "silent",
            f"nothing answers at {where}",
            "is the proxy running, and does it listen where the VM can reach it?",
        )
    seen = connect.strip() or get.strip()
    if seen[:1] == b"\x15" or b"\x15\x03" in seen[:8] or b"HTTPS port" in connect + get:
        return bad("tls", f"{where} speaks TLS, not plain HTTP,", "give the proxy's plain http port")
    if first or second:
        return bad(
            "web", f"{where} is a web server, not a proxy (status {second or first}),", "is that the proxy's port?"
        )
    return bad("other", f"{where} is no proxy (it said {printable(seen, limit=80)!r}),", "is that the proxy's port?")


def _split(answer: bytes) -> tuple[str, bytes]:
    line, _, rest = answer.partition(b"\n")
    if line.startswith(b"@tool "):
        return line[6:].decode("ascii", "replace").strip(), rest
    return "", answer


def _code(answer: bytes) -> int | None:
    found = _STATUS.match(answer)
    return int(found[1]) if found else None
