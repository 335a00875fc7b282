"""Route tables as text, line by line, and the lines of ``ip route`` themselves.

Each line is recognised by its own shape or by the heading above it; what is not recognised is skipped.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import lru_cache

from vmproxy.errors import Refused
from vmproxy.model import Route
from vmproxy.routecolumns import column_row, heading_of, kind_of, proc_row, title_of
from vmproxy.routeparts import DEFAULTS, MAIN_TABLE, Family, Row, destination_of, number_of, route_of

_LINE_LIMIT = 16384  # characters; `ip -o route` puts all hops of a route on one line
_TABLES = {"main": MAIN_TABLE, "default": 253, "local": 255}  # iproute2's rt_tables

_NOT_UNICAST = frozenset(
    ("anycast", "blackhole", "broadcast", "local", "multicast", "nat", "prohibit", "throw", "unreachable", "xresolve")
)
# Words of ip-route(8) that take a value. A value is skipped unread, so that a device may be called "via".
# fmt: off
_VALUED = frozenset((
    "advmss", "congctl", "cwnd", "dev", "dsfield", "expires", "features", "from", "hoplimit", "initcwnd", "initrwnd",
    "metric", "mtu", "nhid", "pref", "preference", "proto", "quickack", "realm", "realms", "reordering", "rto_min",
    "rtt", "rttvar", "scope", "src", "ssthresh", "table", "tos", "via", "weight", "window",
))
# fmt: on


def parse_text(data: bytes) -> tuple[Route, ...]:
    """The unicast routes of a table in text. Raises Refused where there is no route table, or where two are mixed.

    CRLF, the colours of ``ip -c`` and the byte order marks of Windows shells are taken; any other control character
    makes its line unusable.
    """
    lines = _decode(data).split("\n")
    rows = list(_rows(lines))
    kinds = sorted({row.kind for row in rows})
    if not kinds:
        raise Refused(
            "there is no route table in this input",
            hint="give the output of `ip route`, `netstat -rn` or `route -n`, or the address itself with --gateway IP",
        )
    if len(kinds) > 1:
        raise Refused(f"the input mixes route tables of {' and '.join(kinds)}", hint="give one of them")
    if lines[-1].strip():
        _check_torn(rows)
    return tuple(route for row in rows for route in row.routes)


def _decode(data: bytes) -> str:
    """Bytes to text without ever failing; what is not ASCII becomes something that no usable line holds."""
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        text = data.decode("utf-16", "replace")  # PowerShell's `>`
    else:
        text = data.removeprefix(b"\xef\xbb\xbf").decode("latin-1")
    return re.sub(r"\x1b\[[0-9;]{0,20}m", "", text) if "\x1b" in text else text


def _rows(lines: Sequence[str]) -> Iterator[Row]:
    """Recognise each line; a route of `ip route` takes the `nexthop` lines below it along."""
    columns: dict[str, int] | None = None
    family: Family = "inet"
    last = len(lines) - 1
    index = 0
    while index <= last:
        at, words = index, _words(lines[index])
        index += 1
        if not words:
            continue
        if (title := title_of(words)) is not None:
            family, columns = title, None
        elif (heading := heading_of(words)) is not None:
            columns = heading
            yield Row(kind=kind_of(heading))
        elif row := proc_row(words) or column_row(words, columns, family):
            yield row
        else:
            while index <= last and (more := _words(lines[index]))[:1] == ["nexthop"]:
                words += more
                at, index = index, index + 1
            if row := _ip_row(tuple(words), ended=at < last):
                yield row


def _words(line: str) -> list[str]:
    """The words of a line; none where it holds anything but printable ASCII, or is beyond all measure."""
    line = line.rstrip("\r").replace("\t", " ")
    return line.split() if len(line) <= _LINE_LIMIT and line.isascii() and line.isprintable() else []


@lru_cache(maxsize=512)  # most lines of a table are much the same in all VMs: many are looked at in one run
def _ip_row(line: tuple[str, ...], *, ended: bool) -> Row | None:
    """A route of `ip route`, with its hops (`-o` puts them behind backslashes). ``ended``: a newline followed."""
    words = [word for word in line if word != "\\"]
    if words[:1] == ["unicast"]:
        words = words[1:]
    if len(words) > 1 and words[0] in _NOT_UNICAST:
        return Row(kind="ip route") if destination_of(words[1], None, "inet") else None
    if not words:
        return None
    head, *hops = [_options(part) for part in _split(words[1:], "nexthop")]
    options, marks = head
    family = _family(words[0], [head, *hops])
    destination = destination_of(words[0], None, family)
    if destination is None or not (hops or options.keys() & {"via", "dev"} or words[0] == "default"):
        return None
    if "from" in options or options.get("tos", "0") not in ("0", "0x0", "0x00"):
        return Row(kind="ip route")  # holds for some packets only
    # A line torn before its device may have lost part of its address; and the kernel never prints one hop alone.
    torn = (not ended and not hops and "dev" not in options) or "via" in marks or len(hops) == 1
    routes = []
    for own, state in hops or [head]:
        if "dead" in state:
            continue
        route = route_of(
            destination=destination,
            gateway="" if torn or "via" in state else own.get("via"),
            interface=own.get("dev", ""),
            metric=number_of(options.get("metric", "0")),
            table=_table(options.get("table", "main")),
        )
        if route:
            routes.append(route)
    return Row(kind="ip route", routes=tuple(routes), whole=ended)


def _family(destination: str, parts: Sequence[tuple[dict[str, str], set[str]]]) -> Family:
    """The family of a line: by its destination; for "default" by the gateways, and by ``pref``, which IPv6 alone has.

    ``via inet6 ADDRESS`` (RFC 8950) stays IPv4, and has no IPv4 gateway.
    """
    if destination != "default":
        return "inet6" if ":" in destination else "inet"
    return "inet6" if any("pref" in values or ":" in values.get("via", "") for values, _ in parts) else "inet"


def _table(text: str) -> int:
    """A table's number; 0, which no table has, for a name that only that machine's rt_tables knows."""
    return _TABLES[text] if text in _TABLES else number_of(text) or 0


def _split(words: Sequence[str], mark: str) -> list[list[str]]:
    """The words between the marks, the ones before the first mark first."""
    parts: list[list[str]] = [[]]
    for word in words:
        if word == mark:
            parts.append([])
        else:
            parts[-1].append(word)
    return parts


def _options(words: Sequence[str]) -> tuple[dict[str, str], set[str]]:
    """``(values by word, words that stand alone)``; a valued word at the very end, torn off, stands alone."""
    values: dict[str, str] = {}
    marks: set[str] = set()
    index = 0
    while index < len(words):
        word = words[index]
        if word in _VALUED and index + 1 < len(words):
            values.setdefault(word, words[index + 1])
            index += 2
        else:
            marks.add(word)
            index += 1
    return values, marks


def _check_torn(rows: Sequence[Row]) -> None:
    """Where the last line has no newline, its metric may be torn off (``metric 6`` of ``metric 600``).

    The true one is that or more. Raises Refused where this could change the choice between default routes.
    """
    if rows[-1].whole or not rows[-1].routes:
        return
    last = rows[-1].routes[-1]
    if last.destination not in DEFAULTS.values():
        return
    for route in (route for row in rows[:-1] for route in row.routes):
        same = replace(route, gateway="", interface="", metric=0) == replace(last, gateway="", interface="", metric=0)
        if same and route.gateway != last.gateway and route.metric >= last.metric:
            raise Refused(
                "the route table ends inside its last line, one default route of several",
                hint="end the last line with a newline if it is complete",
            )
