"""A request to a proxy: its address, and its head as the origin gets it. PURE."""

from __future__ import annotations

import re
from dataclasses import dataclass

from vmproxy.cache.message import BadMessage, Fields, Head, encode, forwarded, request_body

_ABSOLUTE = re.compile(r"http://([^/?#]*)([/?][^#]*)?", re.IGNORECASE)
_PLACE = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._~-]+)(?::([0-9]{1,5}))?")
_HOST_LIMIT = 255
_NOT_SENT = frozenset(("host", "expect"))


@dataclass(frozen=True, slots=True)
class Asked:
    """What a client asks for. ``url`` is normalised: the key in the store; ``head`` without this hop's fields."""

    method: str
    url: str
    host: str
    port: int
    path: str
    head: Head
    body: int

    @property
    def place(self) -> str:
        """Host and port as they stand in a Host field."""
        return place(self.host, self.port)

    def encoded(self, via: str, conditions: Fields = [], *, through: Fields | None = None) -> bytes:  # noqa: B006
        """The request's head for the origin; ``conditions`` replace the client's own.

        ``through`` are the fields that a proxy on the way wants: the address is whole then.
        """
        fields = [("Host", self.place), *(through or ())]
        mine = (
            {name.lower() for name, _value in conditions} | {"if-none-match", "if-modified-since"} if conditions else ()
        )
        fields += [pair for pair in self.head.fields if pair[0].lower() not in mine]
        fields += conditions
        fields.append(("Via", via))
        if self.body > 0 or (self.body == 0 and self.method in ("POST", "PUT", "PATCH")):
            fields.append(("Content-Length", str(self.body)))
        elif self.body < 0:
            fields.append(("Transfer-Encoding", "chunked"))
        return encode(f"{self.method} {self.path if through is None else self.url} HTTP/1.1", fields)


def place(host: str, port: int) -> str:
    """``host`` or ``host:port``, brackets around an IPv6 address."""
    name = f"[{host}]" if ":" in host else host
    return name if port == 80 else f"{name}:{port}"


def _split(text: str, port: int | None) -> tuple[str, int]:
    match = _PLACE.fullmatch(text)
    number = int(match[2]) if match and match[2] else port
    if not match or len(match[1]) > _HOST_LIMIT or number is None or not 0 < number < 65536:
        raise BadMessage("the address has no host and port that can be used")
    return match[1].lower().strip("[]").rstrip("."), number


def tunnel_target(head: Head) -> tuple[str, int]:
    """(host, port) of a CONNECT. Raises BadMessage."""
    if request_body(head):
        raise BadMessage("a CONNECT has no body")
    return _split(head.target, None)


def parse(head: Head) -> Asked:
    """What a request to a proxy asks for. Raises BadMessage."""
    body = request_body(head)
    match = _ABSOLUTE.fullmatch(head.target)
    if not match:
        if head.target.lower().startswith("https:"):
            raise BadMessage("https is asked for with CONNECT", 501)
        raise BadMessage("this is a proxy: it wants the whole address, http://host/path")
    if "@" in match[1]:
        raise BadMessage("an address must not hold a user or a password")
    host, port = _split(match[1], 80)
    if not host:
        raise BadMessage("the address has no host")
    path = match[2] or "/"
    path = path if path.startswith("/") else "/" + path
    fields = [pair for pair in forwarded(head) if pair[0].lower() not in _NOT_SENT]
    clean = Head(fields, head.minor, method=head.method, target=head.target)
    url = f"http://{place(host, port)}{path}"
    return Asked(method=head.method, url=url, host=host, port=port, path=path, head=clean, body=body)


def redact(url: str) -> str:
    """An address for a log: the query, which may hold a token, left out."""
    return url.partition("?")[0] + ("?…" if "?" in url else "")
