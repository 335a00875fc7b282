"""What a squid's log and its cache manager say, as our counters. PURE."""

from __future__ import annotations

import re

from vmproxy.cache.request import redact
from vmproxy.cache.stats import Stats
from vmproxy.model import printable

_LINE = re.compile(
    r"(?P<result>[A-Z_]+) (?P<status>[0-9-]+) (?P<sent>[0-9-]+) (?P<head>[0-9-]+) (?P<got>[0-9-]+) (?P<method>\S+)"
    r" (?P<host>\S+) (?P<port>[0-9-]+) (?P<error>\S+) (?P<url>\S+)"
)
_HOST = re.compile(r"[0-9A-Za-z._:\[\]-]{1,255}")
_HELD = {
    "entries": re.compile(r"^\s*([0-9]+) on-disk objects", re.MULTILINE),
    "size": re.compile(r"^\s*Storage Swap size:\s*([0-9]+) KB", re.MULTILINE),
}
_URL = re.compile(r"^\t(?:GET|HEAD) (\S+)$", re.MULTILINE)
_FATAL = re.compile(r"(?:FATAL|ERROR): (.*)")


def count(stats: Stats, line: str) -> str:
    """Count one line of the access log (the format of ``squidconf``); what ``-v`` says of it, "" for no request."""
    match = _LINE.fullmatch(line.strip())
    if not match:
        return ""
    result, host, port = match["result"], match["host"], match["port"]
    body = max(0, _number(match["sent"]) - _number(match["head"]))
    tunnel = match["method"] == "CONNECT"
    place = host if port == "80" and not tunnel else f"{host}:{port}"
    shown = f"{match['method']} {place if tunnel else printable(redact(match['url']), limit=300)}"
    status = _number(match["status"])
    known = _HOST.fullmatch(host) is not None and host != "-"
    if result.startswith("NONE") and not status:
        return ""  # a connection without a request
    if "DENIED" in result or not known or (result.startswith("NONE") and 400 <= status < 500):
        stats.total["refused"] += 1
        return f"refused, {status}: {shown}"
    if match["error"] != "-" and status >= 400:
        stats.fail(place)
        return f"{shown} {status}: {match['error']}"
    if tunnel:
        stats.count(place, "requests", "tunnels")
        stats.total["bytes_tunnelled"] += _number(match["sent"]) + _number(match["got"])
        return f"CONNECT {place} tunnelled, never cached"
    name = _name(result, match["method"])
    saved, fetched = (0, body) if name in ("misses", "passed") else (body, 0)
    stats.count(place, "requests", name, saved=saved, fetched=fetched)
    return f"{shown} {name}"


def _name(result: str, method: str) -> str:
    if "REFRESH_UNMODIFIED" in result:
        return "revalidated"
    if "STALE" in result or "REFRESH_FAIL_OLD" in result:
        return "stale"
    if "_HIT" in result and "MISS" not in result:
        return "hits"
    return "misses" if method == "GET" else "passed"


def _number(text: str) -> int:
    return int(text) if text.isdigit() and len(text) < 19 else 0


def held(info: str) -> dict[str, int]:
    """``entries`` and ``size`` (bytes) by the cache manager's page ``info``."""
    found = {name: re.search(pattern, info) for name, pattern in _HELD.items()}
    numbers = {name: int(match[1]) if match else 0 for name, match in found.items()}
    return {"entries": numbers["entries"], "size": numbers["size"] << 10}


def addresses(objects: str) -> set[str]:
    """The addresses on the cache manager's page ``vm_objects``."""
    found = (match[1] for match in _URL.finditer(objects))
    return {url for url in found if "/squid-internal-" not in url}


def reason(said: bytes) -> str:
    """Why a squid ended, by what it said last; "" where it said nothing of it."""
    found = [match[1] for match in map(_FATAL.search, said.decode("latin-1").splitlines()) if match]
    return printable(found[-1]) if found else ""
