"""no_proxy lists: merging them, and the rule by which the Docker daemon reads them. PURE."""

from __future__ import annotations

import ipaddress
import re
import unicodedata
from collections.abc import Iterable

from vmproxy.errors import UsageError
from vmproxy.values import dataclass

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_SEPARATORS = re.compile(r"[,\s]+")
_CIDR = re.compile(r"[0-9a-f.:]+/[0-9]{1,3}", re.ASCII)


def merge(value: str | Iterable[str], extra: str | Iterable[str] = ()) -> tuple[str, ...]:
    """The entries of ``value``, then those of ``extra``, each once and in that order.

    Commas and white space separate (curl takes both, Go only commas). Entries are compared without regard to case
    and nothing else, so that nobody's set of matches ever shrinks. Raises UsageError for control characters.
    """
    entries: dict[str, str] = {}
    for text in (*_texts(value), *_texts(extra)):
        for entry in _SEPARATORS.split(text):
            if any(unicodedata.category(char) in ("Cc", "Cf", "Cs") for char in entry):
                raise UsageError("a no_proxy entry contains a control character", hint="host, .domain, IP, CIDR or *")
            if entry:
                entries.setdefault(entry.lower(), entry)
    return tuple(entries.values())


def bypasses(no_proxy: str | Iterable[str], address: str) -> bool:
    """Whether a client with this no_proxy goes directly to ``address`` ("host:port", "[v6]:port").

    The rule is Go's x/net/http/httpproxy, which the Docker daemon uses: ``localhost`` and loopback addresses always;
    ``*`` everything; ``a.b`` that name and all below it; ``.a.b`` and ``*.a.b`` only below it; IP addresses and CIDR
    for literal addresses only, no name is resolved; ``entry:port`` for that port only. Raises UsageError where
    ``address`` is no host with a port.
    """
    split = _split_host_port(address)
    if split is None:
        raise UsageError("an address to look up in no_proxy must be host:port", hint="for example example.com:443")
    host, port = split
    if host == "localhost":
        return True
    ip = _ip(host.partition("%")[0]) if ":" in host else _ip(host)
    if ip is not None and ip.is_loopback:
        return True
    host = _to_ascii(host.strip().lower())
    return any(
        matcher.matches(host, port, ip) for text in _texts(no_proxy) for matcher in map(_matcher, text.split(","))
    )


def matchers(no_proxy: str | Iterable[str]) -> tuple[Matcher, ...]:
    """What each entry means, by the rule of :func:`bypasses`."""
    return tuple(_matcher(text) for part in _texts(no_proxy) for text in part.split(",") if text.strip())


def _texts(value: str | Iterable[str]) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else tuple(value)


@dataclass(frozen=True, kw_only=True)
class Matcher:
    """One entry as it is read; the fields that are None do not take part."""

    everything: bool = False
    network: Network | None = None
    ip: Address | None = None
    domain: str | None = None  # with its leading dot
    itself: bool = False  # whether the domain's own name matches too
    port: str = ""

    def matches(self, host: str, port: str, ip: Address | None) -> bool:
        """Whether the entry means this host (in lower case) at this port."""
        if self.everything:
            return True
        if self.network is not None:
            return ip is not None and ip.version == self.network.version and ip in self.network
        if self.port and self.port != port:
            return False
        if self.ip is not None:
            return ip == self.ip
        if self.domain is None or ip is not None:
            return False
        return host.endswith(self.domain) or (self.itself and host == self.domain[1:])


def _matcher(entry: str) -> Matcher:
    text = entry.strip().lower()
    if text == "*":
        return Matcher(everything=True)
    if _CIDR.fullmatch(text):
        network = _network(text)
        if network is not None:
            return Matcher(network=network)
    split = _split_host_port(text)
    host, port = split if split is not None else (text, "")
    if not host:
        return Matcher()
    ip = _ip(host)
    if ip is not None:
        return Matcher(ip=ip, port=port)
    if host.startswith("*."):
        host = host[1:]
    itself = not host.startswith(".")
    return Matcher(domain=_to_ascii("." + host if itself else host), itself=itself, port=port)


def _split_host_port(text: str) -> tuple[str, str] | None:
    """Go's net.SplitHostPort; None where it reports an error."""
    head, colon, port = text.rpartition(":")
    if not colon or "[" in port or "]" in port:
        return None
    if head.startswith("["):
        inside = head[1:-1]
        return None if not head.endswith("]") or "[" in inside or "]" in inside else (inside, port)
    return None if ":" in head or "[" in head or "]" in head else (head, port)


def _ip(text: str) -> Address | None:
    """The address written ``text``, without zone; ``::ffff:a.b.c.d`` is the IPv4 address, as for Go's net.IP."""
    if "%" in text or not text.isascii():
        return None
    try:
        ip = ipaddress.ip_address(text)
    except ValueError:
        return None
    mapped = ip.ipv4_mapped if isinstance(ip, ipaddress.IPv6Address) else None
    return mapped or ip


def _network(text: str) -> Network | None:
    try:
        network = ipaddress.ip_network(text, strict=False)
    except ValueError:
        return None
    mapped = network.network_address.ipv4_mapped if isinstance(network, ipaddress.IPv6Network) else None
    if mapped is None or network.prefixlen < 96:
        return network
    return ipaddress.ip_network((mapped, network.prefixlen - 96))


def _to_ascii(name: str) -> str:
    if name.isascii():
        return name
    try:
        dot = "." if name.startswith(".") else ""
        return dot + name.removeprefix(".").encode("idna").decode("ascii")
    except UnicodeError:
        return name
