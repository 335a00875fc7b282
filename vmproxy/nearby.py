"""Proxies of other makers that run on this host, named by their process or by what they answer to a harmless question.

The question (``OPTIONS *``, RFC 9110 9.3.7) asks for nothing but the one who is asked. Nothing that was answered is
ever shown: only names known here are.
"""

from __future__ import annotations

import re

from vmproxy import hostproc
from vmproxy.values import dataclass

USUAL_PORTS = (3128, 8888, 8118, 8123, 5865, 8080, 8000)
"""squid's, px's and cntlm's; tinyproxy's; privoxy's; polipo's and ours; cntlm's older one; and what is often chosen."""

_ADDRESS = "127.0.0.1"
_QUESTION = b"OPTIONS * HTTP/1.0\r\nConnection: close\r\n\r\n"
_SECONDS = 1.0
_ANSWER_LIMIT = 8192
_PROCESSES = ("squid", "tinyproxy", "polipo", "privoxy", "cntlm", "px")
_ANSWERS = (
    ("vmproxy cache", rb"vmproxy cache: |\nVia: [0-9.]+ vmproxy-"),
    ("squid", rb"\n(?:Server|Via|X-Squid-Error|X-Cache): [^\r\n]*squid|\nX-Squid-Error: "),
    ("tinyproxy", rb"\n(?:Server|Via): [^\r\n]*tinyproxy"),
    ("polipo", rb"\n(?:Server|Via): [^\r\n]*polipo"),
    ("privoxy", rb"Invalid header received from client|\nServer: [^\r\n]*privoxy"),
    ("cntlm", rb"\n(?:Server|Via): [^\r\n]*cntlm"),
    ("px", rb"URL using bad/illegal format or missing URL"),
)


@dataclass(frozen=True, kw_only=True)
class Found:
    """A proxy that runs: its usual name, and where it listens on loopback."""

    name: str
    port: int

    @property
    def url(self) -> str:
        """What ``--proxy`` takes."""
        return f"http://{_ADDRESS}:{self.port}"


def who(port: int) -> Found | None:
    """The proxy that listens on a port of loopback; None where nothing does, or nothing that is known here.

    Where the process can be seen (on Linux, one's own, or all for root) its name counts: cntlm hands even this question
    on, and its upstream answers.
    """
    if not hostproc.port_open(_ADDRESS, port, timeout_seconds=_SECONDS):
        return None
    for program in hostproc.listeners(port):
        name = program.strip("()").partition("-")[0]  # squid calls its worker (squid-1)
        if name in _PROCESSES:
            return Found(name=name, port=port)
    answer = hostproc.exchange(_ADDRESS, port, _QUESTION, timeout_seconds=_SECONDS, limit_bytes=_ANSWER_LIMIT)
    name = recognise(answer)
    return Found(name=name, port=port) if name else None


def recognise(answer: bytes) -> str:
    """Whose answer to the question that is; "" where nobody knows. PURE."""
    if not answer.startswith(b"HTTP/1."):
        return ""
    return next((name for name, pattern in _ANSWERS if re.search(pattern, answer, re.IGNORECASE)), "")


def look(*, but: tuple[int, ...] = ()) -> tuple[Found, ...]:
    """The proxies on the usual ports, without those ``but``."""
    return tuple(found for port in USUAL_PORTS if port not in but and (found := who(port)) is not None)


def hint(*, but: tuple[int, ...] = ()) -> str:
    """One line that names what runs and how it is used as it is; "" where nothing does."""
    found = look(but=but)
    if not found:
        return ""
    return "; ".join(f"{one.name} listens on {_ADDRESS}:{one.port}: --proxy {one.url}" for one in found)
