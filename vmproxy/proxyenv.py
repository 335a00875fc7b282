"""Proxy URLs and the family of proxy variables. PURE. Part of the library's stable face.

No text that was given ever comes back in an error: in a malformed URL nobody can tell where the password is.
"""

from __future__ import annotations

import ipaddress
import re
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import replace
from urllib.parse import quote, unquote_to_bytes

from vmproxy.errors import UsageError
from vmproxy.model import Finding, ProxyURL
from vmproxy.noproxy import bypasses
from vmproxy.noproxy import merge as merge_no_proxy

__all__ = (
    "FAMILY",
    "NAMES",
    "bypasses",
    "conflicts",
    "from_environ",
    "full_url",
    "holds_credentials",
    "is_loopback",
    "merge_no_proxy",
    "others",
    "parse_proxy",
    "redact",
    "through_door",
    "url",
    "variables",
    "with_host",
)

NAMES = ("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "NO_PROXY", "no_proxy")
"""The variables that vmproxy writes, in the order it writes them."""

FAMILY = ("http_proxy", "https_proxy", "ftp_proxy", "no_proxy", "all_proxy")
"""Every variable there is about proxies, in lower case; each has its twin in upper case."""

_FAMILIES = ("http_proxy", "https_proxy", "ftp_proxy", "all_proxy")
_OTHERS = ("ftp_proxy", "FTP_PROXY", "all_proxy", "ALL_PROXY")
_PORTS = {"http": 80, "https": 443}
_SOCKS = {"socks4": 1080, "socks4a": 1080, "socks5": 1080, "socks5h": 1080}
_LABEL = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?", re.ASCII)
_NUMERIC = re.compile(r"[0-9]+|0x[0-9a-f]*", re.ASCII)
_BAD_PERCENT = re.compile(r"%(?![0-9A-Fa-f]{2})", re.ASCII)
_FORM = "write it as http://host:port"
_LONGEST = 4096


def parse_proxy(text: str) -> ProxyURL:
    """The proxy that ``text`` names: ``http://[user[:password]@]host[:port][/]``, or https.

    Without a port it is the scheme's own, 80 or 443 (as Go's clients take it; curl's 1080 is not used). User name and
    password are percent-decoded; the host is an IP address, or a name turned into ASCII (IDNA) and lower case.

    Raises UsageError for all else, and never shows what was given: no scheme, another scheme, a path, a query, a
    fragment, white space, control and invisible characters, a backslash, zone ids, half-numeric hosts, port 0.
    """
    return _parse(text, _PORTS)


def url(proxy: ProxyURL) -> str:
    """The full URL, credentials included and percent-encoded, always with a port, never with a path. ASCII.

    ``parse_proxy(url(p)) == p``. Not for logs: ``str(p)`` is.
    """
    userinfo = quote(proxy.username, safe="")
    if proxy.password:
        userinfo += ":" + quote(proxy.password, safe="")
    host = f"[{proxy.host}]" if ":" in proxy.host else proxy.host
    return f"{proxy.scheme}://{userinfo + '@' if userinfo else ''}{host}:{proxy.port}"


full_url = url


def redact(text: str) -> str:
    """What may be shown of a text that should be a proxy URL: the masked URL, or, where it is none, only ``***``."""
    try:
        return str(_parse(text, _PORTS | _SOCKS))
    except UsageError:
        return "***"


def is_loopback(host: str) -> bool:
    """Whether ``host`` means the machine itself: localhost, names below it (RFC 6761), 127.0.0.0/8, ::1."""
    name = host.lower().removeprefix("[").removesuffix("]").removesuffix(".")
    if name in ("localhost", "localhost.localdomain", "ip6-localhost", "ip6-loopback") or name.endswith(".localhost"):
        return True
    ip = _ip(name)
    if isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped:
        return ip.ipv4_mapped.is_loopback
    return ip is not None and ip.is_loopback


def with_host(proxy: ProxyURL, host: str, port: int | None = None) -> ProxyURL:
    """The same proxy at another host, and port where one is given. Raises UsageError for a host that is none."""
    if port is not None and not 0 < port < 65536:
        raise UsageError("a port is a number from 1 to 65535")
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    return replace(proxy, host=_ipv6(bare) if ":" in bare else _host(bare), port=port or proxy.port)


def variables(
    http: ProxyURL | None, https: ProxyURL | None, no_proxy: Iterable[str] = (), others: Mapping[str, str] | None = None
) -> dict[str, str]:
    """The family in both cases, in the order of :data:`FAMILY`.

    ``https`` is the proxy for https URLs, None for the same as ``http``; ``others`` are ftp_proxy and all_proxy, as
    :func:`others` gives them; without ``http`` there are only these. Without entries there is no NO_PROXY.
    Credentials are in the values.
    """
    found = dict(others or {})
    if http is not None:
        found |= {"http_proxy": url(http), "https_proxy": url(https or http)}
    found["no_proxy"] = ",".join(merge_no_proxy(no_proxy))
    return _both_cases({name: found[name] for name in FAMILY if found.get(name)})


def others(environ: Mapping[str, str], *, host: str | None = None) -> dict[str, str]:
    """ftp_proxy and all_proxy of ``environ``, read as :func:`from_environ` does; only these, which no option names."""
    return from_environ({name: environ[name] for name in _OTHERS if name in environ}, host=host)


def through_door(
    others: Mapping[str, str], main: ProxyURL | None, door: ProxyURL
) -> tuple[dict[str, str], tuple[str, ...]]:
    """``others`` as the containers of a VM reach them, and the names of those that they cannot reach.

    ``main`` is the host's own proxy, ``door`` where containers find it. What is on the host's loopback at the same port
    is found there too; at another port nothing leads to it.
    """
    found: dict[str, str] = {}
    for name, text in others.items():
        proxy = _parse(text, _PORTS | _SOCKS)
        if not is_loopback(proxy.host):
            found[name] = text
        elif main is not None and is_loopback(main.host) and main.port == proxy.port:
            found[name] = url(with_host(proxy, door.host, door.port))
    return found, tuple(name for name in others if name not in found)


def from_environ(
    environ: Mapping[str, str], *, host: str | None = None, extra_no_proxy: str | Iterable[str] = ()
) -> dict[str, str]:
    """The proxy variables of ``environ``, in both cases, as full URLs; nothing where none is set.

    http, https, ftp and all, and no_proxy with ``extra_no_proxy`` appended. Where the two cases differ, the lower one
    wins (:func:`conflicts` tells); an empty one counts as not set. A loopback host becomes ``host`` where that is
    given. ``HTTP_PROXY`` is left out where ``REQUEST_METHOD`` is set: there it is a request header, put in by whoever
    made the request (CVE-2016-5386). A value without a scheme is http, as curl and Go read it; SOCKS URLs are kept.
    Raises UsageError, naming the variable and not its value.
    """
    found: dict[str, str] = {}
    for name in _FAMILIES:
        text = _value(environ, name)
        if text:
            proxy = _environ_proxy(name, text)
            found[name] = url(with_host(proxy, host) if host is not None and is_loopback(proxy.host) else proxy)
    given = _value(environ, "no_proxy")
    entries = merge_no_proxy(given, extra_no_proxy) if found or given else ()
    if entries:
        found["no_proxy"] = ",".join(entries)
    return _both_cases(found)


def holds_credentials(name: str, value: str) -> bool:
    """Whether a variable's value may hold a user name or a password: an ``@`` in a URL.

    Anywhere behind ``://``, because in a malformed URL nobody can tell where the password ends; and anywhere in a proxy
    variable, which may lack the scheme.
    """
    url_part = value if name.lower() in _FAMILIES else value.partition("://")[2]
    return "@" in url_part


def conflicts(environ: Mapping[str, str]) -> tuple[Finding, ...]:
    """Where ``environ`` says two things at once, or is not believed: one Finding for each, without values."""
    found = []
    for name in (*_FAMILIES, "no_proxy"):
        lower, upper = environ.get(name, ""), environ.get(name.upper(), "")
        if name == "http_proxy" and upper and "REQUEST_METHOD" in environ:
            detail = "HTTP_PROXY is ignored because REQUEST_METHOD is set"
            found.append(Finding(subject=name, ok=False, detail=detail, hint="set http_proxy"))
        elif lower and upper and lower != upper:
            detail = f"{name} and {name.upper()} differ; {name} is used"
            found.append(Finding(subject=name, ok=False, detail=detail, hint="set both to the same value"))
    return tuple(found)


# the pieces


def _both_cases(lower: Mapping[str, str]) -> dict[str, str]:
    return {case: value for name, value in lower.items() for case in (name.upper(), name)}


def _value(environ: Mapping[str, str], name: str) -> str:
    upper = "" if name == "http_proxy" and "REQUEST_METHOD" in environ else environ.get(name.upper(), "")
    return environ.get(name, "") or upper


def _environ_proxy(name: str, text: str) -> ProxyURL:
    problem = ""
    try:
        return _parse(text if "://" in text else f"http://{text}", _PORTS | _SOCKS)
    except UsageError as error:
        problem = error.what
    raise UsageError(problem, where=f"{name} in the environment", hint=_FORM)


def _parse(text: str, ports: Mapping[str, int]) -> ProxyURL:
    if len(text) > _LONGEST:
        raise UsageError(f"the proxy URL is longer than {_LONGEST} characters")
    for char in text:
        if char == "\\" or unicodedata.category(char) in ("Cc", "Cf", "Cs", "Cn", "Co", "Zs", "Zl", "Zp"):
            raise UsageError(
                "the proxy URL contains a space, a backslash, or a control or invisible character",
                hint="percent-encode it in a user name or password",
            )
    scheme, separator, rest = text.partition("://")
    scheme = scheme.lower()
    if not separator:
        raise UsageError("the proxy URL has no scheme", hint=_FORM)
    if scheme not in ports:
        kind = "SOCKS proxies are not supported" if scheme in _SOCKS else "the proxy URL's scheme must be http or https"
        raise UsageError(kind, hint=_FORM)
    authority = re.split(r"[/?#]", rest, maxsplit=1)[0]
    if rest[len(authority) :] not in ("", "/"):
        raise UsageError(
            "the proxy URL has a path, a query or a fragment",
            hint=f"{_FORM}, with /, ? and # percent-encoded in a user name or password",
        )
    userinfo, _, hostport = authority.rpartition("@")
    user, _, password = userinfo.partition(":")
    username = _decoded(user)
    if ":" in username:
        raise UsageError("the user name contains a colon", hint="HTTP authentication cannot carry it")
    host, port = _host_and_port(hostport, ports[scheme])
    return ProxyURL(scheme=scheme, host=host, port=port, username=username, password=_decoded(password))


def _decoded(text: str) -> str:
    if _BAD_PERCENT.search(text):
        raise UsageError("the user name or password has a % that encodes nothing", hint="write % as %25")
    raw = unquote_to_bytes(text)
    decoded = raw.decode("utf-8", "replace")
    if decoded.encode() != raw:
        raise UsageError("the user name or password is not UTF-8")
    if any(unicodedata.category(char) == "Cc" for char in decoded):
        raise UsageError("the user name or password contains a control character")
    return decoded


def _host_and_port(text: str, default: int) -> tuple[str, int]:
    if text.startswith("["):
        inside, closed, after = text[1:].partition("]")
        if not closed or (after and not after.startswith(":")):
            raise UsageError("the proxy's IPv6 address is not closed by ]", hint="write it as http://[address]:port")
        return _ipv6(inside), _port(after[1:]) if after else default
    host, colon, port = text.partition(":")
    if ":" in port:
        raise UsageError("the proxy's host contains colons", hint="write an IPv6 address as http://[address]:port")
    return _host(host), _port(port) if colon else default


def _port(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,5}", text, re.ASCII) or not 0 < int(text) < 65536:
        raise UsageError(
            "the proxy's port is not a number from 1 to 65535",
            hint=f"{_FORM}, with : / @ percent-encoded in a user name or password",
        )
    return int(text)


def _ip(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(text) if text.isascii() else None
    except ValueError:
        return None


def _ipv6(text: str) -> str:
    if "%" in text:
        raise UsageError("the proxy's address has a zone id", hint="use an address that is not link-local")
    ip = _ip(text)
    if not isinstance(ip, ipaddress.IPv6Address):
        raise UsageError("the proxy's address in [] is no IPv6 address", hint="write it as http://[address]:port")
    return _usable(ip)


def _usable(ip: ipaddress.IPv4Address | ipaddress.IPv6Address) -> str:
    if ip.is_unspecified or ip.is_multicast or str(ip) == "255.255.255.255":
        raise UsageError("the proxy's address is no address of one machine", hint="name the proxy's own address")
    return str(ip)


def _host(text: str) -> str:
    """An IPv4 address, or an RFC 1123 name in ASCII and lower case."""
    labels = [_label(label) for label in text.split(".")]
    name = ".".join(labels)
    if not name or len(name) > 253 or not all(_LABEL.fullmatch(label) for label in labels):
        raise UsageError("the proxy's host is no name and no IP address", hint="letters, digits, - and dots")
    if _NUMERIC.fullmatch(labels[-1]):  # resolvers read 127.1, 0177.0.0.1 and 0x7f000001 as addresses, each its own way
        ip = _ip(name)
        if ip is None:
            raise UsageError("the proxy's host is no name and no IP address", hint="write IPv4 as four numbers")
        return _usable(ip)
    return name


def _label(label: str) -> str:
    if label.isascii():
        return label.lower()
    encoded = b""
    if len(label) < 64:  # longer ones are refused anyway, and cost the codec quadratic time
        try:
            encoded = label.encode("idna")
        except UnicodeError:
            encoded = b""
    if not encoded.startswith(b"xn--") or b"." in encoded:  # full-width digits and dots would become plain ones
        raise UsageError("the proxy's host has characters that no host name has", hint="write the name in ASCII")
    return encoded.decode("ascii")
