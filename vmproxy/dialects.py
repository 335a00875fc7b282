"""How tools differ in reading no_proxy: spellings that more of them understand, and what to warn of. PURE.

Measured with the tools themselves (tests/ns/test_no_proxy_tools.py); apk's rule is read from its source
(libfetch/common.c, ``fetch_no_proxy_match``). In short, for an entry and a host:

============== =========================== =====================================================================
entry          read by                     as
============== =========================== =====================================================================
``a.b``        all                         a.b and all below it; apt, apk and pip take ``xa.b`` too
``.a.b``       all                         all below a.b; curl and Python take a.b itself too
``*.a.b``      Go                          all below a.b
``*``          Go; curl, Python alone      everything; curl and Python only where it is the whole list
``a.b:80``     Go                          that port only; Python where the URL states the port
``10.0.0.0/8`` Go, pip, curl from 7.86     not wget, apt, Python's urllib
``fd00::/8``   Go, apk                     not curl 7.88, wget, apt, Python
``fd00::1``    all but Python's urllib     urllib wants ``[fd00::1]``, which pip, curl, wget and Go do not know
============== =========================== =====================================================================
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterable, Sequence

from vmproxy.model import printable
from vmproxy.noproxy import Network

FEW_ADDRESSES = 16
"""A network of at most so many addresses is also written address by address, for tools that know no networks."""

_SHOWN = 3
_LABEL = re.compile(r"[a-z0-9_](?:[a-z0-9_-]*[a-z0-9_])?", re.ASCII)
_WITH_PORT = re.compile(r"(\[[0-9a-f:.]+\]|[^:\[\]]+):[0-9]{1,5}", re.ASCII)
# Top-level domains under which much of the world is: an entry that ends one of them lets it all go direct.
_TOP = (
    *("com", "net", "org", "edu", "gov", "info", "biz", "io", "dev", "app", "ai", "co", "me", "tv", "sh", "eu", "de"),
    *("uk", "us", "fr", "nl", "cloud", "page", "run", "site", "online", "tech", "build", "docs", "search", "store"),
    *("host", "link", "live", "media", "news", "services", "shop", "stream", "studio", "systems", "zone"),
)


def plain(entry: str) -> str:
    """``*.a.b`` as ``.a.b``, which means the same to Go and is understood by all; all else as it is."""
    return entry[1:] if entry.startswith("*.") and _is_name(entry[2:].lower().removesuffix(".")) else entry


def spellings(entry: str) -> tuple[str, ...]:
    """Other ways to write ``entry`` that mean the same and that more tools understand; none for most entries.

    ``a.b.`` is ``a.b`` too; a name that is not ASCII its IDNA form; a network of at most :data:`FEW_ADDRESSES`
    addresses each of them; an IPv6 address in brackets the same without. (Never one with brackets: those do not
    survive an unquoted ``$(…)``, as arguments of ``docker run`` have to.)
    """
    text = entry.strip().lower()
    bare = text[1:-1] if text.startswith("[") and text.endswith("]") else text
    if "%" in text:
        return ()
    try:
        ip = ipaddress.ip_address(bare)
    except ValueError:
        pass
    else:
        return (str(ip),) if bare != text else ()
    network = _network(text)
    if network is not None:
        if network.num_addresses > FEW_ADDRESSES:
            return ()
        return tuple(map(str, network))
    if text.endswith(".") and _is_name(text[:-1].removeprefix(".")):
        return (text[:-1],)
    if not text.isascii():
        dot = "." if text.startswith(".") else ""
        try:
            ascii_name = dot + text.removeprefix(".").encode("idna").decode("ascii")
        except UnicodeError:
            return ()
        return (ascii_name,) if _is_name(ascii_name.removeprefix(".")) else ()
    return ()


def warnings(said: Iterable[str], names: Iterable[str] = ()) -> tuple[str, ...]:
    """One line for each way in which tools disagree about entries of ``said``, naming the tools. Printable text.

    ``names`` are names of containers; of those only what reaches too far is worth a word.
    """
    entries = tuple(said)
    lower = {entry.lower() for entry in entries}
    found: dict[str, list[str]] = {}
    for entry in entries:
        kind = _kind(entry.lower(), lower)
        if kind:
            found.setdefault(kind, []).append(entry)
    wide = [name for name in dict.fromkeys((*entries, *names)) if _is_wide(name.lower())]
    if wide:
        found["wide"] = wide
    return tuple(f"no_proxy: {_some(found[kind])}: {text}" for kind, text in _TEXTS.items() if kind in found)


_TEXTS = {
    "nothing": "no tool understands this; write a host, .domain, address or network (10.0.0.0/8)",
    "star": "only Go programs (Docker) see everything in it among other entries; alone, curl and Python do too",
    "star-alone": "wget and apt do not know *, and go to the proxy",
    "port": "only Go programs (Docker) read a port; curl, wget, apt and apk go to the proxy, pip too unless the URL "
    "states the port",
    "network": "wget, apt, Python's urllib and curl before 7.86 know no networks, and go to the proxy; add addresses "
    "or names",
    "network6": "only Go programs (Docker) and apk know IPv6 networks; curl, wget, apt and pip go to the proxy; add "
    "addresses or names",
    "address6": "Python's urllib knows IPv6 addresses only in brackets; pip, curl, wget and Go programs only without",
    "dot": "Go programs (Docker), wget and apt go to the proxy for the domain itself, curl and pip do not; add it "
    "without the dot",
    "wide": "this is the end of many public names, which then go without the proxy too (in pip, apt and apk even "
    "without a dot before it)",
}


def _kind(text: str, others: set[str]) -> str:
    """The key of :data:`_TEXTS` for one entry in lower case, "" where tools agree well enough."""
    kind = next((kind for holds, kind in _KINDS if holds(text)), "nothing")
    if kind == "star" and others == {"*"}:
        return "star-alone"
    if kind == "address6" and {text.strip("[]"), f"[{text.strip('[]')}]"} <= others:
        return ""
    if kind == "dot" and text.rstrip(".")[1:] in others:
        return ""
    return kind


def _is_address(text: str) -> bool:
    return _network(text) is not None and "/" not in text


def _is_address6(text: str) -> bool:
    network = _network(text)
    return _is_address(text) and network is not None and network.version == 6 and not network.is_loopback


def _is_large(version: int) -> Callable[[str], bool]:
    def holds(text: str) -> bool:
        network = _network(text)
        return network is not None and network.version == version and network.num_addresses > FEW_ADDRESSES

    return holds


def _is_dotted(text: str) -> bool:
    return text.startswith(".") and _is_name(text[1:].rstrip("."))


def _is_plain(text: str) -> bool:
    return _network(text) is not None or _is_name(text.removeprefix("*.").removesuffix("."))


def _has_port(text: str) -> bool:
    match = _WITH_PORT.fullmatch(text)
    return match is not None and (_is_plain(match[1].removeprefix(".")) or _is_address(match[1]))


_KINDS: Sequence[tuple[Callable[[str], bool], str]] = (
    (lambda text: text == "*", "star"),
    (_is_address6, "address6"),
    (_is_address, ""),
    (_is_large(4), "network"),
    (_is_large(6), "network6"),
    (_is_dotted, "dot"),
    (_is_plain, ""),
    (_has_port, "port"),
)


def _network(text: str) -> Network | None:
    """The network or the one address that ``text`` is, in brackets or not; None for all else, netmasks too."""
    if text.startswith("[") and text.endswith("]") and ":" in text:
        text = text[1:-1]
    if "%" in text or not text.isascii() or "." in text.partition("/")[2]:
        return None
    try:
        return ipaddress.ip_network(text, strict=False)
    except ValueError:
        return None


def _is_name(text: str) -> bool:
    """Whether ``text`` can be a host's name: labels, the last of which is no number (that would be half an address)."""
    if not text.isascii():
        try:
            text = text.encode("idna").decode("ascii")
        except UnicodeError:
            return False
    labels = text.split(".")
    return len(text) <= 253 and all(map(_LABEL.fullmatch, labels)) and not labels[-1].isdigit()


def _is_wide(text: str) -> bool:
    bare = text.removeprefix("*").removeprefix(".").removesuffix(".")
    return bool(bare) and any(top.endswith(bare) for top in _TOP)


def _some(entries: list[str]) -> str:
    shown = ", ".join(printable(entry, limit=30) for entry in entries[:_SHOWN])
    return shown if len(entries) <= _SHOWN else f"{shown} and {len(entries) - _SHOWN} more"
