"""The proof that a cache keeps what it fetches: one object asked for twice from each place. PURE.

The object is the cache's own (:mod:`vmproxy.cache.sample`): no other proxy can give it, so that it also shows whose
cache is at the other end. What was a hit Cache-Status says (RFC 9211), and squid's X-Cache.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from urllib.parse import urlsplit

from vmproxy.model import Finding
from vmproxy.proof import LEGS, judge

_STATUS = re.compile(rb"HTTP/1\.[01] 200(?:[ \r\n]|$)")
_ANY_STATUS = re.compile(rb"HTTP/1\.[01] \d{3}")
_SQUID = re.compile(rb"^X-Cache: HIT from vmproxy-", re.MULTILINE)
_CACHE = re.compile(rb"^Cache-Status:(.*)$", re.IGNORECASE | re.MULTILINE)
_TOOL = b"@tool "


def request(url: str) -> bytes:
    """The question: a GET of the object through the proxy, on a connection of its own."""
    return f"GET {url} HTTP/1.1\r\nHost: {urlsplit(url).netloc}\r\nConnection: close\r\n\r\n".encode("ascii")


def judge_fetches(leg: str, answers: Mapping[str, bytes], *, where: str, problem: str = "") -> Finding:
    """One leg: the two answers to the same question, as :func:`vmproxy.proof.judge` takes them.

    ``code`` is ``cache`` where the second did not come from the cache, ``stranger`` where a proxy answers that does not
    know the object; else that function's.
    """
    heads = [_head(answers.get(name, b"")) for name in ("connect", "get")]
    if problem or heads[0] is None or not all(_ANY_STATUS.match(head or b"") for head in heads):
        # A wget asks its own question, and nobody at all may have answered.
        return judge(leg, answers, where=where, problem=problem)
    place = LEGS.get(leg, leg)
    if not all(_STATUS.match(head or b"") for head in heads):
        what = f"{where} is a proxy, but not this host's cache, asked {place}"
        return Finding(subject=leg, ok=False, code="stranger", detail=what, hint="vmproxy cache status")
    first, second = (_hit(head or b"") for head in heads)
    if not second:
        what = f"{where} asked the origin again for what it had fetched, {place}"
        return Finding(subject=leg, ok=False, code="cache", detail=what, hint="vmproxy cache status")
    story = "both from the cache" if first else "from its origin, then from the cache"
    return Finding(subject=leg, ok=True, detail=f"{where} gave one object twice {place}: {story}")


def _head(answer: bytes) -> bytes | None:
    """An answer's head without the line that names the tool; None where that is a wget."""
    if answer.startswith(_TOOL):
        line, _, answer = answer.partition(b"\n")
        if line == _TOOL + b"wget":
            return None
    return answer


def _hit(head: bytes) -> bool:
    """Whether the cache nearest to us had it."""
    if _SQUID.search(head):
        return True
    found = _CACHE.findall(head)
    return bool(found) and b"hit" in [part.strip() for part in found[-1].split(b",")[-1].split(b";")]
