"""apt: Debian's and Ubuntu's package manager. PURE.

A file of our own behind the others (apt.conf(5): the files of apt.conf.d in the order of their names, then
/etc/apt/apt.conf; what is said last wins). ``#`` begins a comment where it stands first in a line. Inside quotes
everything is as it stands, but for the quote itself, for which there is no way to write it. ``Proxy::HOST`` is looked
up by the host's whole name: there are no domains, networks or ports.

Credentials stand in a file that only root reads (apt_auth.conf(5)): apt's methods get it open from root. For a proxy
that speaks http the machine must be written with ``http://``, or apt would not send them unencrypted.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace

from vmproxy.errors import Refused
from vmproxy.model import BlockWish, Facts, ProxyURL
from vmproxy.proxyenv import parse_proxy
from vmproxy.proxyenv import url as full_url
from vmproxy.tools import Order, missing, plain

NAME = "apt"
_DIRECTORY = "/etc/apt/apt.conf.d"
_SECRETS = "/etc/apt/auth.conf.d"
FILE = f"{_DIRECTORY}/zz-vmproxy"
AUTH = f"{_SECRETS}/zz-vmproxy.conf"
FILES = (AUTH, FILE)
SHELL = ()
PATHS = (_DIRECTORY, _SECRETS)
TEXTS = ("/etc/apt/apt.conf",)
_PROXY = re.compile(rb"^[ \t]*(?!//|#)[^\n]*\bproxy\b", re.MULTILINE | re.IGNORECASE)
_TOKEN = re.compile(r"[!-~]+", re.ASCII)


def render(order: Order, facts: Facts) -> tuple[BlockWish, ...]:
    """Both proxies, each whole host name that goes without, and the credentials in a file of their own."""
    if _DIRECTORY not in facts.paths:
        raise missing(NAME, _DIRECTORY)
    http, https = parse_proxy(order.http), parse_proxy(order.https)
    lines = [f"Acquire::http::Proxy {_quoted(_bare(http))};", f"Acquire::https::Proxy {_quoted(_bare(https))};"]
    for entry in order.no_proxy:
        if entry.kind == "host" and not entry.port and ":" not in entry.host:
            lines += [f'Acquire::{scheme}::Proxy::{entry.host} "DIRECT";' for scheme in ("http", "https")]
    settings = BlockWish(path=FILE, payload=_text(lines), where="last", record={})
    known: dict[str, ProxyURL] = {}
    for proxy in (http, https):
        if known.setdefault(_bare(proxy), proxy) != proxy:
            raise Refused("apt cannot tell two users of one proxy apart", where="--https-proxy", hint="leave out apt")
    machines = [_machine(proxy) for proxy in known.values() if proxy.has_credentials]
    if not machines:
        return (settings,)
    if _SECRETS not in facts.paths:
        raise missing(NAME, _SECRETS)
    secret = BlockWish(path=AUTH, payload=_text(machines), where="last", record={}, mode=0o600, secret=True)
    return (secret, settings)


def unsaid(order: Order) -> tuple[str, ...]:
    """Domains, networks, ports, and IPv6 addresses, whose colons are apt's own separator."""
    return tuple(e.text for e in order.no_proxy if (e.kind != "host" or e.port or ":" in e.host) and e.text != "::1")


def overrides(facts: Facts) -> str:
    """The old single file, which is read last of all."""
    text = facts.texts.get(TEXTS[0], b"")
    return f"{TEXTS[0]} is read after our file, and names a proxy as well" if _PROXY.search(text) else ""


def objection(content: bytes, *, leaving: bool) -> str:
    """None: the files are ours."""
    return ""


def _bare(proxy: ProxyURL) -> str:
    return full_url(replace(proxy, username="", password=""))


def _machine(proxy: ProxyURL) -> str:
    """One line of netrc(5), which has no quotes: what is no plain word cannot be said."""
    if not _TOKEN.fullmatch(proxy.username) or not _TOKEN.fullmatch(proxy.password) or ":" in proxy.host:
        raise Refused(
            "apt's file cannot carry these credentials", where=AUTH, hint="leave out apt, or choose plain ASCII words"
        )
    scheme = "http://" if proxy.scheme == "http" else ""
    return f"machine {scheme}{proxy.host}:{proxy.port} login {proxy.username} password {proxy.password}"


def _quoted(value: str) -> str:
    return f'"{plain(value, name=NAME, barred=chr(34))}"'


def _text(lines: Iterable[str]) -> bytes:
    return "".join(f"{line}\n" for line in lines).encode()
