"""Who may ask, and for what. PURE: addresses in, reasons out.

Checked on the address a name resolved to, and it is that address that is connected to: a name whose answer changes
between two look-ups (DNS rebinding) gains nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address, ip_network

from vmproxy.cache.limits import CacheSettings, Network
from vmproxy.errors import UsageError
from vmproxy.model import printable

Address = IPv4Address | IPv6Address

_NAT64 = IPv6Network("64:ff9b::/96")
_LOOPBACK: tuple[Network, ...] = (ip_network("127.0.0.0/8"), ip_network("::1/128"))
_HTTP_PORT = 80
_TUNNEL_PORT = 443
_FIRST_USER_PORT = 1024


def parse_network(text: str) -> Network:
    """A network or an address in CIDR. Raises UsageError."""
    try:
        return ip_network(text)
    except ValueError:
        hint = "10.0.2.0/24, without bits behind the prefix"
        raise UsageError(f"'{printable(text, limit=60)}' is not a network in CIDR", hint=hint) from None


def plain(address: Address) -> Address:
    """The IPv4 address inside an IPv6 one (mapped, 6to4, NAT64), where there is one."""
    if isinstance(address, IPv6Address):
        if address.ipv4_mapped or address.sixtofour:
            return address.ipv4_mapped or address.sixtofour or address
        if address in _NAT64:
            return IPv4Address(int(address) & 0xFFFFFFFF)
    return address


def _inside(address: Address, networks: Sequence[Network]) -> bool:
    return any(address.version == network.version and address in network for network in networks)


def check_settings(settings: CacheSettings) -> None:
    """Raises UsageError where the proxy would be open to others without anybody having said to whom."""
    address = ip_address(settings.address)
    if not plain(address).is_loopback and not settings.clients:
        raise UsageError(
            f"--bind {address} needs --allow: it would be open to everybody who reaches that address",
            hint="--allow CIDR, the network of the VM",
        )


def may_use(settings: CacheSettings, peer: str) -> bool:
    """Whether a client at this address may use the proxy: this machine always, others by ``--allow``.

    What of this machine connects to the address that is listened on comes from that address.
    """
    address = plain(ip_address(peer.partition("%")[0]))
    listening = plain(ip_address(settings.address))
    here = address == listening and not listening.is_unspecified
    return here or _inside(address, _LOOPBACK) or _inside(address, settings.clients)


def port_refused(settings: CacheSettings, port: int, *, tunnel: bool) -> str:
    """Why a port is refused; "" where it is not."""
    if port in settings.ports:
        return ""
    if tunnel:
        return "" if port == _TUNNEL_PORT else f"CONNECT to port {port} is not allowed; --connect-port names others"
    if port == _HTTP_PORT or port >= _FIRST_USER_PORT:
        return ""
    return f"port {port} is not one for http; --connect-port names others"


def target_refused(settings: CacheSettings, address: Address, port: int, *, own: bool) -> str:
    """Why an address is refused as a target; "" where it is not. ``own`` says that it is one of this machine's."""
    here = plain(address)
    listening = ip_address(settings.address)
    if port == settings.port and (here == plain(listening) or (own and listening.is_unspecified)):
        return "that is this proxy itself"
    if _inside(here, settings.targets) or _inside(address, settings.targets):
        return ""
    if here.is_loopback or own:
        return "an address of this machine is not allowed; --allow-target names networks"
    if here.is_link_local or here.is_multicast or here.is_unspecified or here.is_reserved or not here.is_global:
        return "a private or special address is not allowed; --allow-target names networks"
    if isinstance(here, IPv6Address) and (here.is_site_local or here.teredo):
        return "a private or special address is not allowed; --allow-target names networks"
    return ""
