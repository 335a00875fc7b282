"""The wish of an ``apply`` and its record in the VM: which proxy, which door. PURE.

The record stands in the marker line of our block, without credentials, so that ``status``, ``verify``, ``env --vm``
and a
hook with an empty environment need no options. It comes from the VM and is parsed like any user's text.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

from vmproxy.errors import Refused, VmproxyError
from vmproxy.model import ProxyURL, Settings, Wish
from vmproxy.proxyenv import merge_no_proxy, parse_proxy

DEFAULT = ProxyURL(scheme="http", host="127.0.0.1", port=8123)


def record(wish: Wish) -> dict[str, Any]:
    """A wish as JSON data without credentials; only what was said. An index that has some is left out whole."""
    out: dict[str, Any] = {"proxy": _bare(wish.proxy)}
    if wish.https_proxy is not None:
        out["https_proxy"] = _bare(wish.https_proxy)
    if any(proxy.has_credentials for proxy in (wish.proxy, wish.https_proxy) if proxy) or wish.hidden_credentials:
        out["credentials"] = True
    if wish.no_proxy:
        out["no_proxy"] = list(wish.no_proxy)
    if wish.listen_port is not None:
        out["listen_port"] = wish.listen_port
    if wish.forward:
        out["forward"] = True
    if wish.gateway:
        out["gateway"] = wish.gateway
    if wish.gateway6:
        out["gateway6"] = wish.gateway6
    if wish.bridges:
        out["bridges"] = list(wish.bridges)
    if wish.tools:
        out["tools"] = list(wish.tools)
    if wish.via != Wish.via:
        out["via"] = wish.via
    if wish.names:
        out["names"] = list(wish.names)
    # An @ stands nowhere else in most of them; one in the path costs no more than saying it again.
    if wish.pip_index and "@" not in wish.pip_index:
        out["pip_index"] = wish.pip_index
    return out


def recorded(data: Mapping[str, Any], variables: Mapping[str, str]) -> Wish | None:
    """The wish in a record, None where there is none. Credentials come back from the block's own ``variables``.

    Raises Refused for a record that does not hold what :func:`record` writes.
    """
    if "proxy" not in data:
        return None
    try:
        port = data.get("listen_port")
        if port is not None and (type(port) is not int or not 0 < port < 65536):
            raise ValueError
        gateway = data.get("gateway", "")
        if gateway:
            import ipaddress

            gateway = str(ipaddress.ip_address(str(gateway)))
        gateway6 = data.get("gateway6", "")
        if gateway6:
            import ipaddress

            gateway6 = str(ipaddress.IPv6Address(str(gateway6)))
        https = data.get("https_proxy")
        proxy = _whole(str(data["proxy"]), variables.get("http_proxy", ""))
        https_proxy = _whole(str(https), variables.get("https_proxy", "")) if https else None
        return Wish(
            proxy=proxy,
            https_proxy=https_proxy,
            hidden_credentials=data.get("credentials") is True
            and not any(one.has_credentials for one in (proxy, https_proxy) if one),
            no_proxy=merge_no_proxy(",".join(_texts(data.get("no_proxy", []))), ()),
            listen_port=port,
            forward=data.get("forward") is True,
            gateway=gateway,
            gateway6=gateway6,
            bridges=_texts(data.get("bridges", [])),
            tools=_words(data.get("tools", [])),
            names=_container_names(data.get("names", [])),
            pip_index=_index(data.get("pip_index", "")),
            via=_via(data.get("via", Wish.via)),
        )
    except (VmproxyError, ValueError, TypeError):
        raise Refused("the wish recorded in the VM is damaged", hint="say it again with --proxy URL") from None


def choose(settings: Settings, seen: Wish | None) -> Wish:
    """What is wanted now: what was said; else the record; else the host's own variables; else the default."""
    base = seen or _from_host(settings)
    given = settings.given
    fields: dict[str, Any] = {}
    if settings.proxy is not None:
        fields["proxy"] = settings.proxy
        # Another proxy was said: a second one, recorded or the host's, does not go with it.
        fields["https_proxy"] = None
        fields["hidden_credentials"] = False
    if settings.https_proxy is not None:
        fields["https_proxy"] = settings.https_proxy
    for name in ("no_proxy", "listen_port", "forward", "gateway", "bridges", "tools", "names", "pip_index", "via"):
        # A library's caller says it by the value alone; only the default value needs the name in ``given``.
        if name in given or getattr(settings, name) != getattr(Settings, name):
            fields[name] = getattr(settings, name)
    if "tools" in fields:
        fields["tools"] = tuple(sorted(set(fields["tools"]) - {"none"}))
        fields["tools_said"] = frozenset(fields["tools"])
    return replace(base, **fields)


def index_of(settings: Settings, wish: Wish) -> str:
    """The package index for containers: that of the wish; else the one beside this host's cache, where the proxy of the
    wish is that cache. Nobody is given it who said ``--pip-index`` with no value."""
    port, index = settings.cache_index
    if wish.pip_index or "pip_index" in settings.given or not index:
        return wish.pip_index
    from vmproxy.proxyenv import is_loopback

    return index if is_loopback(wish.proxy.host) and wish.proxy.port == port else ""


def differs_from_host(settings: Settings, wish: Wish, seen: Wish | None) -> str:
    """One line where a recorded wish is used although the host's own variables name another proxy, else ""."""
    host = settings.host_environment_proxy
    if seen is None or settings.proxy is not None or host is None or _bare(host) == _bare(wish.proxy):
        return ""
    return f"the VM's recorded proxy {wish.proxy} is used; this host's own http_proxy says {host}"


def host_notes(settings: Settings, wish: Wish, seen: Wish | None) -> tuple[str, ...]:
    """What is to be said of the host's own variables: that they are not used, or where they say two things at once."""
    used = seen is None and settings.proxy is None
    notes = (differs_from_host(settings, wish, seen), *(settings.host_environment_conflicts if used else ()))
    return tuple(filter(None, notes))


def _from_host(settings: Settings) -> Wish:
    first = settings.host_environment_proxy or settings.host_environment_https_proxy
    if first is None:
        if settings.proxy is None and settings.host_environment_problem:
            from vmproxy.errors import UsageError

            raise UsageError(settings.host_environment_problem, hint="--proxy URL")
        return Wish(proxy=DEFAULT, no_proxy=settings.host_environment_no_proxy)
    second = settings.host_environment_https_proxy
    return Wish(
        proxy=first, https_proxy=second if second != first else None, no_proxy=settings.host_environment_no_proxy
    )


def _bare(proxy: ProxyURL) -> str:
    from vmproxy.proxyenv import url

    return url(replace(proxy, username="", password=""))


def _whole(text: str, value: str) -> ProxyURL:
    proxy = parse_proxy(text)
    if not value:
        return proxy
    try:
        held = parse_proxy(value)
    except VmproxyError:
        return proxy
    return replace(proxy, username=held.username, password=held.password)


def _via(word: object) -> Literal["drop-in", "daemon-json"]:
    if word == "drop-in" or word == "daemon-json":
        return word
    raise ValueError


def _words(items: object) -> tuple[str, ...]:
    words = _texts(items)
    if not all(re.fullmatch(r"[a-z][a-z0-9-]{0,31}", word, re.ASCII) for word in words):
        raise ValueError
    return tuple(sorted(set(words)))


def _container_names(items: object) -> tuple[str, ...]:
    words = _texts(items)
    if not words:
        return ()
    from vmproxy.direct import container_name

    return tuple(map(container_name, words))


def _index(text: object) -> str:
    if text == "":
        return ""
    if not isinstance(text, str):
        raise ValueError
    from vmproxy.pip import parse_index

    return parse_index(text)


def _texts(items: object) -> tuple[str, ...]:
    if not isinstance(items, list) or not all(isinstance(item, str) for item in items):
        raise ValueError
    return tuple(items)
