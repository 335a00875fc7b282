"""HTTP/1.1 heads and chunked bodies, read strictly (RFC 9112). Bytes in, objects out; no I/O.

Strict, because a proxy that guesses is what request smuggling lives on: one space where the grammar has one, CRLF and
nothing else, no folding, no space before a colon, one way to say where a body ends. What does not fit is refused and
the connection closed. Written here and not taken from h11, which by design accepts folded lines and bare LF, and takes
twice as long.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

HEAD_LIMIT = 64 * 1024
_FIELDS_LIMIT = 256
_CHUNK_LINE_LIMIT = 4096

_FIELD_LINES = re.compile(r"(?:[!#$%&'*+\-.^_`|~0-9A-Za-z]++:[\t\x20-\x7e\x80-\xff]*+\r\n)*+")
"""Whole lines of ``name: value``; nothing in it can be read in two ways, so it never goes back (``++``, ``*+``)."""
_REQUEST_LINE = re.compile(r"([!#$%&'*+\-.^_`|~0-9A-Za-z]{1,32}) ([\x21-\x7e]+) HTTP/1\.([01])")
_STATUS_LINE = re.compile(r"HTTP/1\.([01]) ([1-5][0-9][0-9])(?: ([\t\x20-\x7e\x80-\xff]*))?")
_BARE = re.compile(rb"(?<!\r)\n|\r(?!\n)|\0")
_BARE_IN_PART = re.compile(rb"(?<!\r)\n|\r(?!\n|\Z)|\0")
_CHUNK_SIZE = re.compile(rb"([0-9A-Fa-f]{1,15})(?:[ \t]*;[\t\x20-\x7e\x80-\xff]*)?")

HOP_BY_HOP = frozenset(
    (
        *("connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "proxy-authentication-info"),
        *("proxy-connection", "te", "trailer", "transfer-encoding", "upgrade"),
    )
)

Fields = list[tuple[str, str]]


class BadMessage(Exception):
    """A message that is refused. ``status`` is what a client is told; the text holds none of the message's bytes."""

    def __init__(self, what: str, status: int = 400) -> None:
        super().__init__(what)
        self.status = status


class Head:
    """A request's or a response's head. ``values`` are the values of each field by its name in lower case."""

    __slots__ = ("fields", "method", "minor", "reason", "status", "target", "values")

    def __init__(
        self, fields: Fields, minor: int, *, method: str = "", target: str = "", status: int = 0, reason: str = ""
    ) -> None:
        self.fields = fields
        self.minor = minor
        self.method = method
        self.target = target
        self.status = status
        self.reason = reason
        self.values = index(fields)

    def get(self, name: str) -> str:
        """The values of a field (name in lower case), joined with commas; "" where there is none."""
        found = self.values.get(name)
        return ", ".join(found) if found else ""

    @property
    def keep_alive(self) -> bool:
        """Whether the sender keeps its connection open (RFC 9112 9.3; ``Proxy-Connection`` of old clients counts)."""
        if "connection" not in self.values and "proxy-connection" not in self.values:
            return self.minor == 1
        options = words(self.get("connection")) | words(self.get("proxy-connection"))
        if "close" in options:
            return False
        return self.minor == 1 or "keep-alive" in options


def index(fields: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    """Fields by name in lower case."""
    found: dict[str, list[str]] = {}
    for name, value in fields:
        found.setdefault(name.lower(), []).append(value)
    return found


def words(value: str) -> set[str]:
    """The members of a comma-separated list, in lower case."""
    return {word.strip().lower() for word in value.split(",")} - {""} if value else set()


def find_head(data: bytes | bytearray) -> int:
    """Where the head at the start of ``data`` ends; 0 where more bytes are needed. Raises BadMessage.

    The same for every way of cutting the bytes: a head that can no longer become good is refused at once.
    """
    end = data.find(b"\r\n\r\n")
    part = data if end < 0 else data[: end + 4]
    if len(part) > HEAD_LIMIT:
        raise BadMessage("the head is too long", 431)
    if (_BARE_IN_PART if end < 0 else _BARE).search(part):
        raise BadMessage("a line does not end with CRLF, or there is a NUL")
    return end + 4 if end >= 0 else 0


def _fields(lines: str) -> Fields:
    """The fields of header lines, each with its CRLF."""
    if not _FIELD_LINES.fullmatch(lines):
        raise BadMessage("a header line is malformed")
    found = []
    for line in lines.split("\r\n")[:-1]:
        name, _colon, value = line.partition(":")
        found.append((name, value.strip(" \t")))
    if len(found) > _FIELDS_LIMIT:
        raise BadMessage("too many header lines", 431)
    return found


def parse_request(data: bytes | bytearray) -> Head:
    """The request whose head is exactly ``data``, as :func:`find_head` cut it. Raises BadMessage."""
    first, _crlf, lines = data[:-2].decode("latin-1").partition("\r\n")
    line = _REQUEST_LINE.fullmatch(first)
    if not line:
        version = first.rpartition(" ")[2]
        other = re.fullmatch(r"HTTP/[0-9]\.[0-9]", version) and version[:7] != "HTTP/1."
        raise BadMessage("the request line is malformed", 505 if other else 400)
    head = Head(_fields(lines), int(line[3]), method=line[1], target=line[2])
    hosts = head.values.get("host", [])
    if len(hosts) > 1 or (head.minor == 1 and not hosts):
        raise BadMessage("exactly one Host is wanted")
    return head


def parse_response(data: bytes | bytearray) -> Head:
    """The response whose head is exactly ``data``. Raises BadMessage (502)."""
    try:
        first, _crlf, lines = data[:-2].decode("latin-1").partition("\r\n")
        line = _STATUS_LINE.fullmatch(first)
        if not line:
            raise BadMessage("the status line is malformed")
        return Head(_fields(lines), int(line[1]), status=int(line[2]), reason=line[3] or "")
    except BadMessage as error:
        raise BadMessage(f"the origin's answer: {error}", 502) from None


CHUNKED = -1
UNTIL_CLOSE = -2


def _length(head: Head) -> int | None:
    """Content-Length, CHUNKED, or None where neither is said. Raises BadMessage."""
    codings, lengths = head.values.get("transfer-encoding"), head.values.get("content-length")
    if codings:
        if lengths:
            raise BadMessage("both Content-Length and Transfer-Encoding")
        if head.minor == 0 or len(codings) != 1 or codings[0].lower() != "chunked":
            raise BadMessage("a Transfer-Encoding that is not chunked alone")
        return CHUNKED
    if lengths:
        text = lengths[0]
        if len(lengths) != 1 or not (text.isascii() and text.isdigit() and len(text) < 19):
            raise BadMessage("not one Content-Length")
        return int(text)
    return None


def request_body(head: Head) -> int:
    """How long a request's body is: bytes, or CHUNKED. Raises BadMessage."""
    return _length(head) or 0


def response_body(head: Head, method: str) -> int:
    """How long a response's body is: bytes, CHUNKED or UNTIL_CLOSE (RFC 9112 6.3). Raises BadMessage (502)."""
    try:
        length = _length(head)
    except BadMessage as error:
        raise BadMessage(f"the origin's answer has {error}", 502) from None
    if method == "HEAD" or head.status in (204, 304):
        return 0
    return UNTIL_CLOSE if length is None else length


class Chunks:
    """A chunked body, decoded as it comes. ``done`` once the last chunk and the trailers, which are dropped, are in."""

    __slots__ = ("_ending", "_left", "_trailers", "done")

    def __init__(self) -> None:
        self.done = False
        self._left = 0
        self._ending = False  # the CRLF behind a chunk's data is due
        self._trailers = -1  # bytes of trailers so far; -1 while chunks come

    def feed(self, data: bytearray) -> bytes:
        """Take what can be taken off the front of ``data``; the body's bytes in it. Raises BadMessage."""
        found = []
        while not self.done:
            if self._left:
                piece = bytes(data[: self._left])
                if not piece:
                    break
                del data[: len(piece)]
                found.append(piece)
                self._left -= len(piece)
                self._ending = not self._left
                continue
            if self._ending:
                if not b"\r\n".startswith(bytes(data[:2])):
                    raise BadMessage("a chunk does not end with CRLF")
                if len(data) < 2:
                    break
                del data[:2]
                self._ending = False
                continue
            line = self._line(data)
            if line is None:
                break
            self._take(line)
        return b"".join(found) if len(found) != 1 else found[0]

    @staticmethod
    def _line(data: bytearray) -> bytes | None:
        end = data.find(b"\r\n")
        part = bytes(data if end < 0 else data[:end])
        if len(part) > _CHUNK_LINE_LIMIT:
            raise BadMessage("a chunk's head is too long")
        if (_BARE_IN_PART if end < 0 else _BARE).search(part):
            raise BadMessage("a chunk's head does not end with CRLF")
        if end < 0:
            return None
        del data[: end + 2]
        return part

    def _take(self, line: bytes) -> None:
        if self._trailers >= 0:
            if not line:
                self.done = True
                return
            _fields(line.decode("latin-1") + "\r\n")
            self._trailers += len(line)
            if self._trailers > HEAD_LIMIT:
                raise BadMessage("the trailers are too long")
            return
        size = _CHUNK_SIZE.fullmatch(line)
        if not size:
            raise BadMessage("a chunk's size is malformed")
        self._left = int(size[1], 16)
        if not self._left:
            self._trailers = 0


def chunk(data: bytes) -> bytes:
    """``data`` as one chunk; the last one for no data."""
    return b"%x\r\n%b\r\n" % (len(data), data) if data else b"0\r\n\r\n"


def forwarded(head: Head) -> Fields:
    """The fields that go on: without those of this hop and those that ``Connection`` names (RFC 9110 7.6.1).

    Content-Length goes too: whoever sends the body on says its length anew.
    """
    dropped = HOP_BY_HOP | {"content-length"}
    if "connection" in head.values:
        dropped = dropped | words(head.get("connection"))
    return [(name, value) for name, value in head.fields if name.lower() not in dropped]


def encode(first: str, fields: Iterable[tuple[str, str]]) -> bytes:
    """A head as bytes, from its first line and its fields."""
    lines = [first, *(f"{name}: {value}" for name, value in fields), "", ""]
    return "\r\n".join(lines).encode("latin-1")
