"""A package index for pip: its URL as a container has to say it, and the variables that pip reads. PURE."""

from __future__ import annotations

import re

from vmproxy.errors import UsageError
from vmproxy.model import ProxyURL
from vmproxy.proxyenv import is_loopback, parse_proxy, url, with_host

_DEFAULT_PORTS = {"http": 80, "https": 443}
# RFC 3986: path characters, without the quote, which not every file of variables can carry, and ? and #.
_PATH = re.compile(r"(?:/(?:[A-Za-z0-9._~!$&()*+,;=:@-]|%[0-9A-Fa-f]{2})*)*", re.ASCII)
_FORM = "write it as http://host:port/simple/"


def parse_index(text: str) -> str:
    """``text`` as the URL of an index: ``http://[user[:password]@]host[:port][/path]``, or https; normalised.

    Credentials come back percent-encoded, the host in lower case, a scheme's own port left out. Raises UsageError,
    which never shows what was given.
    """
    return _joined(*_split(text))


def server(index: str) -> ProxyURL:
    """Where the index is, and its credentials, which this value keeps out of its ``repr``."""
    return _split(index)[0]


def loopback_host(index: str) -> bool:
    """Whether the index is on the host itself, so that its name has to be another one in a container."""
    return is_loopback(server(index).host)


def variables(index: str, *, host: str = "") -> dict[str, str]:
    """``PIP_INDEX_URL``, and ``PIP_TRUSTED_HOST`` where pip would refuse the index without: plain http.

    A loopback host becomes ``host``. pip takes every loopback host as secure, so none is named there. Credentials are
    in the value. Raises UsageError.
    """
    where, path = _located(index, host)
    found = {"PIP_INDEX_URL": _joined(where, path)}
    if where.scheme == "http" and not is_loopback(where.host):
        found["PIP_TRUSTED_HOST"] = where.host
    return found


def direct_host(index: str, *, host: str = "") -> str:
    """The host that has to stand in no_proxy: an index is asked directly, as pip's users expect of one of their own."""
    return _located(index, host)[0].host


def history_warning(index: str) -> str:
    """One line where the index's credentials would stay in an image that is built with them, else ""."""
    if not index or not server(index).has_credentials:
        return ""
    return (
        "PIP_INDEX_URL holds credentials, and a declared build argument stays in the image's history: "
        "better a secret mount (RUN --mount=type=secret)"
    )


def _located(index: str, host: str) -> tuple[ProxyURL, str]:
    where, path = _split(index)
    return (with_host(where, host) if host and is_loopback(where.host) else where), path


def _split(text: str) -> tuple[ProxyURL, str]:
    """Server and path of an index's URL. A server is written as a proxy is, and read with the same care."""
    scheme, separator, rest = text.partition("://")
    authority, slash, path = rest.partition("/")
    problem = ""
    try:
        where = parse_proxy(f"{scheme}{separator}{authority}")
    except UsageError as error:
        problem = error.what
    if problem:
        raise UsageError(problem.replace("the proxy", "the package index"), hint=_FORM)
    if not _PATH.fullmatch(slash + path):
        raise UsageError(
            "the package index URL has a query, a fragment, a quote, or a character that no path has", hint=_FORM
        )
    return where, slash + path


def _joined(where: ProxyURL, path: str) -> str:
    return url(where).removesuffix(f":{_DEFAULT_PORTS[where.scheme]}") + path
