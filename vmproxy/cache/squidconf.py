"""squid.conf of the engine ``squid``: the same rules as the embedded proxy's, in squid's words. PURE.

Values come from our own types only: numbers, addresses, networks, names of a fixed alphabet, percent-encoded bytes;
what is none of these is refused, so that no value can end a line or begin a directive. Paths are relative: squid is
started in its directory, whose parents need not be open to the user that it changes to. Facts: squid's own
squid.conf.documented.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Address, IPv6Network, collapse_addresses, ip_address, ip_network

from vmproxy.cache.guard import Address
from vmproxy.cache.limits import CacheSettings, Network
from vmproxy.cache.sample import HOST as SAMPLE_HOST
from vmproxy.errors import UsageError
from vmproxy.noproxy import Matcher, matchers

STORE = "store"
LOG = "log"
CONF = "squid.conf"

_WORD = re.compile(r"[0-9A-Za-z_.:/%+@-]+")
_HOST = re.compile(r"[0-9A-Za-z.-]+|\[[0-9A-Fa-f:.]+\]")
_READ_SECONDS = 600
_MEMORY = 64
_FILES = 8192
_DOWNLOADS = r"\.([ui]?deb|rpm|apk|tar|tgz|gz|bz2|xz|zst|lz4|zip|whl|jar|gem|iso|img|bin)(\?|$)"

_SPECIAL_4 = (
    *("0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.0.0.0/24"),
    *("192.0.2.0/24", "192.168.0.0/16", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/3"),
)
_SPECIAL_6 = ("::/3", "4000::/2", "8000::/1", "2001::/23", "2001:db8::/32", "3fff::/20")
"""IANA's registries of special-purpose addresses; of IPv6 all that is not 2000::/3."""

_FOUR_IN_SIX = ("::ffff:0:0/96", "64:ff9b::/96")
"""Not special by themselves: squid takes the first for IPv4, the second goes by the IPv4 address inside (NAT64)."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """What one run of squid is told beside the settings. ``user`` and ``group`` are "" where it is not to change."""

    name: str
    secret: str
    own: tuple[Address, ...] = ()
    user: str = ""
    group: str = ""
    verbose: bool = False
    sample_port: int = 0
    """Where :mod:`vmproxy.cache.sample`'s origin is, while there is one; 0 for nowhere."""


@functools.lru_cache(8)
def forbidden(targets: tuple[Network, ...], own: tuple[Address, ...]) -> tuple[Network, ...]:
    """The networks that may not be asked for: special ones and this machine's own, without those that are allowed.

    Addresses of IPv6 that hold one of IPv4 (6to4, NAT64) go by that one.
    """
    four = [ip_network(text) for text in _SPECIAL_4]
    six: list[Network] = [ip_network(text) for text in _SPECIAL_6]
    for text in _FOUR_IN_SIX:
        six = [piece for network in six for piece in _without(network, ip_network(text))]
    every: list[Network] = [*four, *six, *(ip_network(one) for one in own)]
    allowed: list[Network] = list(targets)
    every += [inner for network in every[:] for inner in _in_six(network)]
    allowed += [inner for network in targets for inner in _in_six(network)]
    for hole in allowed:
        every = [piece for network in every for piece in _without(network, hole)]
    fours = [network for network in every if isinstance(network, IPv4Network)]
    sixes = [network for network in every if isinstance(network, IPv6Network)]
    return (*collapse_addresses(fours), *collapse_addresses(sixes))


def _in_six(network: Network) -> tuple[IPv6Network, ...]:
    if not isinstance(network, IPv4Network):
        return ()
    number, prefix = int(network.network_address), network.prefixlen
    nat64 = int(IPv6Address("64:ff9b::")) | number
    return (
        IPv6Network(((0x2002 << 112) | (number << 80), 16 + prefix)),
        IPv6Network((nat64, 96 + prefix)),
    )


def _without(network: Network, hole: Network) -> list[Network]:
    if isinstance(network, IPv4Network) and isinstance(hole, IPv4Network):
        if network.subnet_of(hole):
            return []
        return list(network.address_exclude(hole)) if hole.subnet_of(network) else [network]
    if isinstance(network, IPv6Network) and isinstance(hole, IPv6Network):
        if network.subnet_of(hole):
            return []
        return list(network.address_exclude(hole)) if hole.subnet_of(network) else [network]
    return [network]


def render(settings: CacheSettings, run: Run) -> str:
    """The whole file, for mode 0600: it holds the upstream's password and the secret of this run. Raises UsageError."""
    lines = [
        *_place(settings, run),
        *_limits(settings),
        *_acls(settings, run),
        *_sample(settings, run),
        *_upstream(settings),
        *(["cache_peer_access upstream deny sample"] if settings.upstream and run.sample_port else []),
        *_access(settings, run),
    ]
    text = "\n".join(lines) + "\n"
    if not text.isascii() or any(ord(char) < 32 and char != "\n" for char in text):
        raise UsageError("a value cannot be written into squid.conf")
    return text


def word(text: str) -> str:
    """A value that squid reads as one word and as nothing else. Raises UsageError."""
    if not _WORD.fullmatch(text):
        raise UsageError("a value cannot be written into squid.conf")
    return text


def _place(settings: CacheSettings, run: Run) -> list[str]:
    address = f"[{settings.address}]" if ":" in settings.address else settings.address
    shown = "%ru" if run.verbose else "-"
    megabytes = max(1, settings.size >> 20)
    lines = [
        f"http_port {address}:{settings.port}",
        f"visible_hostname {word(run.name)}",
        f"logformat vmproxy %Ss %03>Hs %<st %<sh %>st %rm %>rd %>rP %err_code {shown}",
        rf"acl internal url_regex ^http://{re.escape(word(run.name))}:{settings.port}/squid-internal-mgr/(info|vm_objects)$",
        "acl any_internal urlpath_regex ^/squid-internal-",
        "acl purging method PURGE",
        f"access_log stdio:{LOG} logformat=vmproxy !any_internal !purging",
        "cache_log /dev/null",
        "cache_store_log none",
        "pid_filename none",
        "netdb_filename none",
        "logfile_rotate 0",
        "digest_generation off",
        "icp_port 0",
        "pinger_enable off",
        f"cache_dir aufs {STORE} {megabytes} 16 256",
        f"maximum_object_size {max(1, settings.size // 4 >> 10)} KB",
        f"cache_mem {min(_MEMORY, megabytes)} MB",
        "cache deny any_internal",
        "acl authorized req_header Authorization .",
        "cache deny authorized",
        "send_hit deny any_internal",
        "acl whole http_status 200",
        "acl cookie rep_header Set-Cookie .",
        "store_miss deny !whole",
        "store_miss deny cookie",
        # Squid 5 and 6 never find again what they collapsed if it comes with Vary: files of packages seldom do.
        "collapsed_forwarding on",
        f"acl download urlpath_regex -i {_DOWNLOADS}",
        "collapsed_forwarding_access allow download",
        "collapsed_forwarding_access deny all",
        "refresh_pattern . 0 10% 10080",
        "max_stale 0 seconds",
        "quick_abort_min 0 KB",
        "quick_abort_max 0 KB",
        "via on",
        "forwarded_for delete",
        "httpd_suppress_version_string on",
        "email_err_data off",
        "relaxed_header_parser off",
        "uri_whitespace deny",
        "global_internal_static off",
        f"cachemgr_passwd {word(run.secret)} info vm_objects",
        "cachemgr_passwd disable all",
    ]
    if run.user:
        lines += [f"cache_effective_user {word(run.user)}", f"cache_effective_group {word(run.group)}"]
    return lines


def _limits(settings: CacheSettings) -> list[str]:
    limits = settings.limits

    def seconds(value: float) -> str:
        return f"{max(1, math.ceil(value))} seconds"

    return [
        "request_header_max_size 64 KB",
        "reply_header_max_size 64 KB",
        f"max_filedescriptors {_FILES}",
        f"client_ip_max_connections {limits.clients}",
        f"request_start_timeout {seconds(limits.idle_seconds)}",
        f"request_timeout {seconds(limits.head_seconds)}",
        f"client_idle_pconn_timeout {seconds(limits.idle_seconds)}",
        f"server_idle_pconn_timeout {seconds(limits.origin_idle_seconds)}",
        f"dns_timeout {seconds(limits.connect_seconds)}",
        f"connect_timeout {seconds(limits.connect_seconds)}",
        f"peer_connect_timeout {seconds(limits.connect_seconds)}",
        f"write_timeout {seconds(limits.stall_seconds)}",
        f"read_timeout {_READ_SECONDS} seconds",
        f"shutdown_lifetime {seconds(limits.grace_seconds)}",
    ]


def _acls(settings: CacheSettings, run: Run) -> list[str]:
    listening = ip_address(settings.address)
    itself = [*run.own, *map(ip_address, ("127.0.0.1", "::1"))] if listening.is_unspecified else [listening]
    ports = sorted(settings.ports)
    here = [listening] if not (listening.is_unspecified or listening.is_loopback) else []
    # Squid warns of an address that a network beside it holds.
    alone = [str(one) for one in here if not any(one in network for network in settings.clients)]
    networks = [str(one) for one in forbidden(settings.targets, run.own)]
    lines = [
        _acl("loopback", "src", ("127.0.0.0/8", "::1")),
        _acl("here", "src", ("127.0.0.0/8", "::1", *map(str, here))),
        _acl("clients", "src", ("127.0.0.0/8", "::1", *alone, *map(str, settings.clients))),
        _acl("web_port", "port", ("80", "1024-65535", *map(str, ports))),
        _acl("tunnel_port", "port", ("443", *map(str, ports))),
        _acl("itself_port", "port", (str(settings.port),)),
        _acl("itself_address", "dst", map(str, itself)),
        "acl tunnel method CONNECT",
        "acl tracing method TRACE",
        "acl web proto HTTP",
        # Resolvers read 127.1 and 0x7f.1 as addresses, each in its own way.
        r"acl numeric dstdom_regex -n -i (^|\.)(0x[0-9a-f]*|[0-9]+)\.?$",
        r"acl four_numbers dstdom_regex -n ^[0-9]+(\.[0-9]+){3}$",
        f"acl secret req_header X-Vmproxy-Secret ^{word(run.secret)}$",
        f"acl here_before req_header Via -i {re.escape(word(run.name))}",
        # Those of proxyenv.is_loopback, which no upstream is asked for.
        r"acl this_machine dstdom_regex -n -i (^|\.)localhost\.?$ ^localhost\.localdomain\.?$",
        r"acl this_machine dstdom_regex -n -i ^ip6-(localhost|loopback)\.?$",
        # What begins like no HTTP at all it takes for a body of HTTP/0.9.
        "acl no_http rep_header X-Transformed-From .",
        "http_reply_access deny no_http",
    ]
    return (
        lines
        + [_acl("forbidden", "dst", (one,)) for one in networks]
        + [_acl("forbidden_literal", "dst", ("-n", one)) for one in networks]
    )


def _acl(name: str, kind: str, values: Iterable[str]) -> str:
    return " ".join(["acl", name, kind, *map(word, values)])


def _sample(settings: CacheSettings, run: Run) -> list[str]:
    """One name has its origin on loopback, and is neither resolved nor asked of an upstream."""
    if not run.sample_port:
        return []
    peer = f"cache_peer 127.0.0.1 parent {run.sample_port} 0"
    return [
        _acl("sample", "dstdomain", ("-n", SAMPLE_HOST)),
        f"{peer} no-query no-digest no-netdb-exchange originserver name=sample",
        "cache_peer_access sample allow sample !tunnel",
        "cache_peer_access sample deny all",
        *(["always_direct deny sample"] if settings.upstream else []),
        "never_direct allow sample",
    ]


def _access(settings: CacheSettings, run: Run) -> list[str]:
    lines = [
        "http_access allow purging here secret",
        "http_access deny purging",
        "http_access allow internal here",
        "http_access deny any_internal",
        "http_access deny !clients",
        "http_access deny tracing",
        "http_access deny here_before",
        "http_access deny !tunnel !web",
        "http_access deny tunnel !tunnel_port",
        *(["http_access allow clients sample !tunnel"] if run.sample_port else []),
        "http_access deny !tunnel !web_port",
        "http_access deny numeric !four_numbers",
        "http_access deny forbidden_literal",
    ]
    if settings.upstream:
        # What a name resolves to is the upstream's own business; it may well not resolve here at all.
        lines += ["http_access deny this_machine !direct", "http_access allow clients !direct"]
    return [
        *lines,
        "http_access deny itself_address itself_port",
        "http_access deny forbidden",
        "http_access allow clients",
        "http_access deny all",
    ]


def _upstream(settings: CacheSettings) -> list[str]:
    proxy = settings.upstream
    if proxy is None:
        return []
    if proxy.scheme != "http":
        raise UsageError("squid is chained to http: proxies only", hint="--engine embedded, or http://host:port")
    host = proxy.host
    if not _HOST.fullmatch(host) and not (":" in host and _HOST.fullmatch(f"[{host}]")):
        raise UsageError("a value cannot be written into squid.conf")
    options = "no-query no-digest no-netdb-exchange default name=upstream"
    if proxy.has_credentials:
        if proxy.username.startswith(("*", "NEGOTIATE")):
            raise UsageError("squid takes that user name for something else", hint="--engine embedded")
        options += f" login={_encoded(proxy.username)}:{_encoded(proxy.password)}"
    lines = [f"cache_peer {host} parent {proxy.port} 0 {options}"]
    lines += [r"acl direct_always dstdom_regex -n -i ^localhost$", "acl direct_always_ip dst -n 127.0.0.0/8 ::1"]
    groups = ["direct_always", "direct_always_ip"]
    for number, matcher in enumerate(matchers(settings.no_proxy)):
        found = _matcher(f"no_proxy_{number}", matcher)
        lines += found
        groups += [f"no_proxy_{number}"] if found else []
    return [
        *lines,
        f"acl direct any-of {' '.join(groups)}",
        "always_direct allow direct",
        "never_direct deny direct",
        "never_direct allow all",
    ]


def _encoded(text: str) -> str:
    """Every byte percent-encoded; squid decodes that when it reads the file."""
    return "".join(f"%{byte:02X}" for byte in text.encode())


def _matcher(name: str, matcher: Matcher) -> list[str]:
    """An entry of no_proxy as ACLs, the last of which is ``name``; none where it can match nothing."""
    if matcher.everything:
        return [f"acl {name} port 0-65535"]
    if matcher.network is not None:
        return [_acl(name, "dst", ("-n", str(matcher.network)))]
    if matcher.ip is not None:
        kind = _acl(f"{name}_host", "dst", ("-n", str(matcher.ip)))
    elif matcher.domain is not None and _HOST.fullmatch(matcher.domain):
        escaped = matcher.domain.replace(".", r"\.")
        before = rf"(^|\.){escaped[2:]}" if matcher.itself else escaped
        kind = f"acl {name}_host dstdom_regex -n -i {before}$"
    else:
        return []
    if not matcher.port:
        return [kind, f"acl {name} any-of {name}_host"]
    if not matcher.port.isdigit() or not matcher.port.isascii() or int(matcher.port) > 65535:
        return []
    return [kind, f"acl {name}_port port {int(matcher.port)}", f"acl {name} all-of {name}_host {name}_port"]
