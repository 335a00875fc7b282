"""What may be kept, what may be given from the store, what the origin is asked again. PURE; the decisions are hishel's.

hishel's sans-I/O states (RFC 9111) are asked with copies of the stored heads. What it does not do is done here: the
age that a response already had when it came (its ``Age``), a missing ``Date``, ``max-age`` and ``only-if-cached`` of a
request, variants (an entry that does not match by Vary is not shown to it, so a 304 without a validator cannot freshen
the wrong one), conditions of the client against a stored response, ranges, stale-if-error (RFC 5861). It is stricter in
three things: only GET with 200 is kept, and never what came for a request with Authorization or with Set-Cookie.
"""

from __future__ import annotations

import functools
import re
import uuid
from calendar import timegm
from collections.abc import Sequence
from dataclasses import dataclass
from email.utils import formatdate, parsedate_tz
from typing import TYPE_CHECKING, Any, Literal

from vmproxy.cache.message import Fields, Head, index, words

if TYPE_CHECKING:
    from hishel import CacheOptions

_OPTIONS: CacheOptions = {"shared": True, "supported_methods": ["GET"], "allow_stale": False}
_DIRECTIVE = re.compile(r'\s*([!#$%&\'*+\-.^_`|~0-9A-Za-z]+)(?:\s*=\s*("(?:[^"\\]|\\.)*"|[^\s,"]*))?\s*(?:,|$)')
_HEURISTIC_LIMIT_SECONDS = 7 * 24 * 3600
_MAX_SECONDS = 1 << 31
_RANGE = re.compile(r"bytes=([0-9]{0,18})-([0-9]{0,18})", re.IGNORECASE)
_CONDITIONS = ("if-none-match", "if-modified-since", "if-match", "if-unmodified-since")
_NOT_KEPT = frozenset(("age", "content-length", "connection", "proxy-authenticate"))
_NOT_RENEWED = frozenset(("content-encoding", "content-type", "content-range", "content-length", "transfer-encoding"))


@dataclass(frozen=True, kw_only=True, slots=True)
class Stored:
    """What the policy needs to know of a stored response.

    ``received`` is when it was last got or confirmed, in seconds since the epoch, ``age`` what it was old by then.
    ``asked`` are the fields of the request that Vary names, by name in lower case.
    """

    fields: Fields
    received: float
    age: float
    asked: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """``fresh``: give it; ``ask``: ask the origin with ``conditions``; ``miss``: get it; ``pass``: not for a cache;
    ``absent``: the client wants it from the cache or not at all (504)."""

    kind: Literal["fresh", "ask", "miss", "pass", "absent"]
    conditions: Fields = ()  # type: ignore[assignment]


@functools.lru_cache(maxsize=512)
def directives(value: str) -> dict[str, str]:
    """Cache-Control as name → argument ("" for none). Of a name that comes twice the first counts."""
    found: dict[str, str] = {}
    at = 0
    while at < len(value):
        match = _DIRECTIVE.match(value, at)
        if not match:  # not a directive: on behind the next comma
            at = value.find(",", at) + 1 or len(value)
            continue
        found.setdefault(match[1].lower(), (match[2] or "").strip('"'))
        at = max(match.end(), at + 1)
    return found


def seconds(text: str | None) -> int | None:
    """delta-seconds; None where there is none, 0 where it is not one (stale is the safe reading: RFC 9111 4.2.1)."""
    if text is None:
        return None
    return min(int(text), _MAX_SECONDS) if text.isascii() and text.isdigit() and len(text) < 19 else 0


def date(text: str) -> float | None:
    """An HTTP date as seconds since the epoch; None where it is none."""
    try:
        parts = parsedate_tz(text) if text else None
        return float(timegm(parts[:6])) if parts else None
    except (ValueError, OverflowError, IndexError, TypeError):
        return None


def one(values: dict[str, list[str]], name: str) -> str:
    """The values of a field, joined."""
    return ", ".join(values.get(name, ()))


def initial_age(values: dict[str, list[str]], *, now: float, delay: float) -> float:
    """How old a response is that has just come (RFC 9111 4.2.3); ``delay`` is what the exchange took."""
    said = date(one(values, "date"))
    apparent = max(0.0, now - said) if said is not None else 0.0
    return max(apparent, (seconds(one(values, "age") or None) or 0) + delay)


def lifetime(values: dict[str, list[str]], *, now: float) -> float:
    """How long a response is fresh from its birth on (RFC 9111 4.2.1); 0 where nothing says so."""
    control = directives(one(values, "cache-control"))
    if "no-cache" in control:
        return 0.0
    for name in ("s-maxage", "max-age"):
        if (said := seconds(control.get(name))) is not None:
            return float(said)
    born = date(one(values, "date")) or now
    if "expires" in values:
        until = date(one(values, "expires"))
        return max(0.0, until - born) if until is not None else 0.0
    changed = date(one(values, "last-modified"))
    return min(max(0.0, (born - changed) * 0.1), _HEURISTIC_LIMIT_SECONDS) if changed is not None else 0.0


def fresh_until(stored: Stored) -> float:
    """The moment until which a stored response may be given without asking."""
    return stored.received - stored.age + lifetime(index(stored.fields), now=stored.received)


def variant(fields: Fields, request: Head) -> tuple[tuple[str, str], ...] | None:
    """What of the request Vary names, in a fixed order; None for ``*``."""
    names = words(one(index(fields), "vary"))
    return None if "*" in names else tuple((name, request.get(name)) for name in sorted(names))


def matches(stored: Stored, request: Head) -> bool:
    """Whether the request selects this variant."""
    return all(request.get(name) == value for name, value in stored.asked)


def cacheable_request(request: Head) -> bool:
    """Whether the store has anything to do with the request."""
    own = {"authorization", "if-match", "if-unmodified-since"}
    return request.method in ("GET", "HEAD") and not request.values.keys() & own


def plain_request(request: Head) -> bool:
    """Whether a fresh entry may be given without looking further."""
    return request.method == "GET" and not request.values.keys() & {
        *("authorization", "cache-control", "pragma", "range", "if-range"),
        *_CONDITIONS,
    }


def _hishel_fields(fields: Fields) -> Any:
    from hishel import Headers

    return Headers(dict(index(fields)))


def _entry(url: str, stored: Stored, *, now: float) -> Any:
    """A stored response as hishel wants it: its Date set so that the age it computes is the true one."""
    from hishel import Entry, Request, Response

    values = index(stored.fields)
    life = lifetime(values, now=stored.received)
    birth = stored.received - stored.age
    fields = [pair for pair in stored.fields if pair[0].lower() not in ("age", "date", "expires")]
    if not {"s-maxage", "max-age"} & directives(one(values, "cache-control")).keys():
        fields.append(("Expires", formatdate(birth + life, usegmt=True)))
    fields.append(("Date", formatdate(birth, usegmt=True)))
    request = Request(method="GET", url=url, headers=_hishel_fields(list(stored.asked)))
    return Entry(id=uuid.uuid4(), request=request, response=Response(status_code=200, headers=_hishel_fields(fields)))


def look(request: Head, url: str, stored: Stored | None, *, now: float) -> Verdict:
    """What to do with a request for which ``stored`` is the matching variant, if there is one."""
    control = directives(request.get("cache-control"))
    if not cacheable_request(request):
        return Verdict(kind="pass")
    only_cached = "only-if-cached" in control
    if stored is None:
        return Verdict(kind="absent" if only_cached else "pass" if "no-store" in control else "miss")
    from hishel import FromCache, IdleClient, NeedRevalidation, Request

    fields = [pair for pair in request.fields if pair[0].lower() not in (*_CONDITIONS, "range", "if-range")]
    if "cache-control" not in request.values and "no-cache" in words(request.get("pragma")):
        fields.append(("Cache-Control", "no-cache"))
    asked = Request(method="GET", url=url, headers=_hishel_fields(fields))
    state = IdleClient(options=_OPTIONS).next(asked, [_entry(url, stored, now=now)])
    if isinstance(state, FromCache):
        age = now - stored.received + stored.age
        oldest, spare = seconds(control.get("max-age")), seconds(control.get("min-fresh"))
        late = fresh_until(stored) <= now + (spare or 0)
        if not late and (oldest is None or age <= oldest):
            return Verdict(kind="fresh")
    if only_cached:
        return Verdict(kind="absent")
    if not isinstance(state, FromCache | NeedRevalidation):
        return Verdict(kind="miss")
    return Verdict(kind="ask", conditions=validators(stored))


def validators(stored: Stored) -> Fields:
    """The fields that ask whether a stored response still holds."""
    values = index(stored.fields)
    found = [("If-None-Match", tag) for tag in values.get("etag", ())[:1]]
    return found + [("If-Modified-Since", when) for when in values.get("last-modified", ())[:1]]


def keep(request: Head, url: str, response: Head, *, now: float, delay: float) -> Stored | None:
    """The response as it is to be kept; None where it must not be, or where keeping would be of no use."""
    if request.method != "GET" or response.status != 200 or "set-cookie" in response.values:
        return None
    if request.values.keys() & {"authorization", "range"} or "content-range" in response.values:
        return None
    control = directives(response.get("cache-control"))
    if control.keys() & {"no-store", "private"} or "no-store" in directives(request.get("cache-control")):
        return None
    from hishel import CacheMiss, Request, Response, StoreAndUse

    asked = Request(method="GET", url=url, headers=_hishel_fields(request.fields))
    answer = Response(status_code=200, headers=_hishel_fields(response.fields))
    if not isinstance(CacheMiss(request=asked, options=_OPTIONS).next(answer), StoreAndUse):
        return None
    fields = _kept(response, now=now)
    which = variant(fields, request)
    if which is None:
        return None
    age = initial_age(response.values, now=now, delay=delay)
    stored = Stored(fields=fields, received=now, age=age, asked=which)
    useful = fresh_until(stored) > now or validators(stored)
    return stored if useful else None


def _kept(response: Head, *, now: float) -> Fields:
    """The end-to-end fields of a response, a Date among them."""
    from vmproxy.cache.message import forwarded

    listed = words(directives(response.get("cache-control")).get("no-cache", ""))
    fields = [pair for pair in forwarded(response) if pair[0].lower() not in _NOT_KEPT | listed]
    if date(response.get("date")) is None:
        fields = [pair for pair in fields if pair[0].lower() != "date"]
        fields.append(("Date", formatdate(now, usegmt=True)))
    return fields


def renew(stored: Stored, response: Head, *, now: float, delay: float) -> Stored | None:
    """The stored response after a 304 (RFC 9111 4.3.4); None where the 304 speaks of another one."""
    values = index(stored.fields)
    for name in ("etag", "last-modified"):
        new, old = response.get(name), one(values, name)
        if new and old:
            if new.removeprefix("W/") != old.removeprefix("W/"):
                return None
            break
    fresh = [pair for pair in _kept(response, now=now) if pair[0].lower() not in _NOT_RENEWED]
    replaced = {name.lower() for name, _value in fresh}
    fields = [pair for pair in stored.fields if pair[0].lower() not in replaced] + fresh
    age = initial_age(response.values, now=now, delay=delay)
    return Stored(fields=fields, received=now, age=age, asked=stored.asked)


def stale_allowed(stored: Stored, request: Head, *, now: float) -> bool:
    """Whether a stale response may be given because the origin fails (stale-if-error, RFC 5861)."""
    control = directives(one(index(stored.fields), "cache-control"))
    if control.keys() & {"must-revalidate", "proxy-revalidate", "no-cache", "s-maxage"}:
        return False
    asked = directives(request.get("cache-control"))
    if "no-cache" in asked or seconds(asked.get("max-age")) == 0:
        return False
    allowed = max(seconds(control.get("stale-if-error")) or 0, seconds(asked.get("stale-if-error")) or 0)
    return now < fresh_until(stored) + allowed


def not_modified(request: Head, fields: Fields) -> bool:
    """Whether the client's own condition makes it a 304 (RFC 9110 13.2.2)."""
    values = index(fields)
    wanted = request.get("if-none-match")
    if wanted:
        tags = re.findall(r'"[^"]*"', wanted)
        own = one(values, "etag").removeprefix("W/")
        return wanted.strip() == "*" or bool(own and own in tags)
    since, changed = date(request.get("if-modified-since")), date(one(values, "last-modified"))
    return since is not None and changed is not None and changed <= since


def wanted_range(request: Head, fields: Fields, length: int) -> tuple[int, int] | Literal["whole"] | None:
    """(first, behind the last) of the one range asked for; None where it cannot be met (416); else the whole."""
    value = request.get("range")
    match = _RANGE.fullmatch(value.replace(" ", "")) if value else None
    if not match or not (match[1] or match[2]):
        return "whole"
    values = index(fields)
    if only_if := request.get("if-range").strip():
        tag = one(values, "etag")
        strong = only_if == tag and not tag.startswith("W/")
        if not (strong if '"' in only_if else only_if == one(values, "last-modified")):
            return "whole"
    if not match[1]:
        count = min(int(match[2]), length)
        return (length - count, length) if count else None
    first = int(match[1])
    behind = min(int(match[2]) + 1, length) if match[2] else length
    if match[2] and int(match[2]) < first:
        return "whole"
    return (first, behind) if first < length else None


def also_invalid(url: str, response: Head) -> Sequence[str]:
    """The other addresses that an unsafe method made invalid, of the same host only (RFC 9111 4.4)."""
    from urllib.parse import urljoin, urlsplit

    found = []
    for name in ("location", "content-location"):
        if value := response.get(name):
            try:
                other = urljoin(url, value)
                if urlsplit(other).netloc == urlsplit(url).netloc:
                    found.append(other.partition("#")[0])
            except ValueError:
                continue
    return found
