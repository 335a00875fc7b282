"""What the cache did: counters, in all and per host. PURE. Hosts only: no path, query or user is ever noted."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_HOSTS = 1000
_NOBODY = "(others)"
_COUNTERS = ("requests", "hits", "misses", "revalidated", "stale", "passed", "tunnels", "refused", "errors")
_BYTES = ("bytes_saved", "bytes_fetched", "bytes_tunnelled")
_HOST = ("requests", "hits", "bytes_saved", "bytes_fetched", "tunnels")


class Stats:
    """Counters since they were first kept."""

    __slots__ = ("hosts", "total")

    def __init__(self) -> None:
        self.total: dict[str, int] = dict.fromkeys((*_COUNTERS, *_BYTES), 0)
        self.hosts: dict[str, dict[str, int]] = {}

    def count(self, host: str, *names: str, saved: int = 0, fetched: int = 0) -> None:
        """One more of each name, for a host and in all."""
        mine = self.hosts.get(host)
        if mine is None:
            if len(self.hosts) >= _HOSTS:
                host = _NOBODY
            mine = self.hosts.setdefault(host, dict.fromkeys(_HOST, 0))
        for name in names:
            self.total[name] += 1
            mine_too = "hits" if name in ("revalidated", "stale") else name
            if mine_too in mine:
                mine[mine_too] += 1
        if saved:
            self.total["bytes_saved"] += saved
            mine["bytes_saved"] += saved
        if fetched:
            self.total["bytes_fetched"] += fetched
            mine["bytes_fetched"] += fetched

    def fail(self, host: str) -> None:
        """One request that got no answer: of a host only if it is known, names that do not exist take no place."""
        self.count(host if host in self.hosts else _NOBODY, "requests", "errors")

    def load(self, document: object) -> None:
        """Take over what an earlier run kept; what does not fit is left out."""
        if not isinstance(document, Mapping):
            return
        for name in self.total:
            self.total[name] = _number(document.get(name))
        hosts = document.get("hosts")
        if isinstance(hosts, list):
            for row in hosts[:_HOSTS]:
                if isinstance(row, Mapping) and isinstance(row.get("host"), str):
                    self.hosts[str(row["host"])] = {name: _number(row.get(name)) for name in _HOST}

    def document(self, *, top: int | None = None) -> dict[str, Any]:
        """The counters for JSON; hosts with the most requests first."""
        order = sorted(self.hosts.items(), key=lambda item: (-item[1]["requests"] - item[1]["tunnels"], item[0]))
        asked = self.total["hits"] + self.total["revalidated"] + self.total["stale"] + self.total["misses"]
        given = asked - self.total["misses"]
        return {
            **self.total,
            "ratio": round(given / asked, 4) if asked else 0.0,
            "hosts": [{"host": host, **counters} for host, counters in order[:top]],
        }


def _number(value: object) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else 0
