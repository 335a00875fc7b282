"""The proxy that is asked in place of the origins: what goes to it, how it is reached, what its refusals mean.

A name that goes there is resolved there; here only addresses in numbers, and names of this machine, are judged.
"""

from __future__ import annotations

import base64
import functools
import re
from ipaddress import ip_address

from vmproxy.cache.guard import Address
from vmproxy.cache.limits import CacheSettings
from vmproxy.cache.message import Fields, Head, encode, words
from vmproxy.errors import UsageError
from vmproxy.noproxy import bypasses
from vmproxy.proxyenv import is_loopback

_NUMERIC = re.compile(r"(?:.*\.)?(?:[0-9]+|0x[0-9a-f]*)", re.IGNORECASE)
_KNOWN = 4096


class Parent:
    """An upstream and its rules. PURE: the connections are made by ``origin``."""

    def __init__(self, settings: CacheSettings) -> None:
        proxy = settings.upstream
        if proxy is None:
            raise UsageError("there is no upstream")
        self.proxy = proxy
        self.place = (f"upstream {proxy}", proxy.port)
        """What connections to it are kept by; no origin has such a name."""
        self.tls = proxy.scheme == "https"
        self._no_proxy = settings.no_proxy
        self.takes = functools.lru_cache(_KNOWN)(self._takes)
        self.fields: Fields = []
        if proxy.has_credentials:
            word = base64.b64encode(f"{proxy.username}:{proxy.password}".encode()).decode()
            self.fields = [("Proxy-Authorization", f"Basic {word}")]

    def _takes(self, host: str, port: int) -> bool:
        shown = f"[{host}]" if ":" in host else host
        return not bypasses(self._no_proxy, f"{shown}:{port}")

    def connect_head(self, host: str, port: int, via: str) -> bytes:
        """The head that asks it for a tunnel."""
        shown = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        return encode(f"CONNECT {shown} HTTP/1.1", [("Host", shown), *self.fields, ("Via", via)])

    def why_not(self, head: Head) -> tuple[str, int] | None:
        """What a 407 of it means for the client, and the status that says so; None for another answer."""
        if head.status != 407:
            return None
        wanted = {text.split()[0].lower() for text in head.values.get("proxy-authenticate", []) if text.split()}
        wanted |= {text.split()[0] for text in words(head.get("proxy-authenticate")) if text.split()}
        others = [name for name in ("Negotiate", "NTLM", "Digest") if name.lower() in wanted]
        if "basic" not in wanted and others:
            return f"the upstream proxy wants {' or '.join(others)}; px speaks NTLM and Kerberos for it", 502
        how = "refuses the credentials" if self.fields else "wants credentials"
        return f"the upstream proxy {how} (407)", 502


def literal(host: str) -> Address | None:
    """The address that a host in numbers is; None for a name."""
    try:
        return ip_address(host)
    except ValueError:
        return None


def name_refused(host: str) -> str:
    """Why a name is not sent to an upstream; "" where it is.

    ``127.1`` and ``0x7f000001`` are addresses for some resolvers: whose, nobody can say here.
    """
    if _NUMERIC.fullmatch(host):
        return "a name that ends in a number is not sent to the upstream proxy"
    if is_loopback(host):
        return "a name of this machine is not sent to the upstream proxy"
    return ""
