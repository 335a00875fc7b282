"""The settings of the caching proxy, and its limits."""

from __future__ import annotations

from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Network

from vmproxy.model import ProxyURL

Network = IPv4Network | IPv6Network

DEFAULT_PORT = 8123
DEFAULT_PIP_PORT = 5001
DEFAULT_ADDRESS = "127.0.0.1"
DEFAULT_ENGINE = "embedded"
DEFAULT_SIZE_BYTES = 10 << 30


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Times in seconds, sizes in bytes. The defaults are meant for a laptop and its VMs."""

    head_seconds: float = 20.0
    """From a head's first byte to its last, of a client."""
    idle_seconds: float = 120.0
    """A client's connection between two requests."""
    stall_seconds: float = 120.0
    """A body that does not move: of a client, or towards one."""
    origin_seconds: float = 60.0
    """An origin that says nothing: before its head, or within its body."""
    connect_seconds: float = 10.0
    """One address of an origin."""
    tunnel_seconds: float = 1800.0
    """A tunnel in which nothing moves."""
    origin_idle_seconds: float = 15.0
    """How long a connection to an origin is kept for the next request."""
    grace_seconds: float = 3.0
    """What is under way when the proxy is asked to end."""
    clients: int = 2000
    """Connections of clients at one time."""
    memory_body: int = 64 << 10
    """Bodies up to this size are handled in memory, others as files."""
    memory_total: int = 8 << 20
    """All bodies that are kept in memory beside the disk."""


@dataclass(frozen=True, kw_only=True)
class CacheSettings:
    """What ``vmproxy cache serve`` is told.

    ``clients`` are the networks that may use the proxy, beside this machine's loopback; ``targets`` networks that may
    be asked for although they are private or this machine's own; ``ports`` those for CONNECT beside 443. ``upstream``
    is a proxy that is asked in place of the origins, but for those that ``no_proxy`` names.
    """

    directory: str
    address: str = DEFAULT_ADDRESS
    port: int = DEFAULT_PORT
    size: int = DEFAULT_SIZE_BYTES
    clients: tuple[Network, ...] = ()
    targets: tuple[Network, ...] = ()
    ports: frozenset[int] = frozenset()
    limits: Limits = field(default_factory=Limits)
    engine: str = DEFAULT_ENGINE
    upstream: ProxyURL | None = None
    no_proxy: tuple[str, ...] = ()
    pip_port: int = 0
    """Where the cache for pip listens, at the same address; 0 for none."""

    def words(self) -> tuple[str, ...]:
        """The options of ``cache serve`` that make these settings, but for the directory: those that are not the usual
        ones. No secret: an upstream with credentials is named by the option that reads it from a file."""
        found = [f"--bind={self.address}"] if self.address != DEFAULT_ADDRESS else []
        found += [f"--port={self.port}"] if self.port != DEFAULT_PORT else []
        found += [f"--size={_size(self.size)}"] if self.size != DEFAULT_SIZE_BYTES else []
        found += [f"--allow={network}" for network in self.clients]
        found += [f"--allow-target={network}" for network in self.targets]
        found += [f"--connect-port={port}" for port in sorted(self.ports)]
        found += [f"--engine={self.engine}"] if self.engine != DEFAULT_ENGINE else []
        if self.upstream is not None:
            secret = self.upstream.has_credentials
            found.append("--upstream-file=FILE" if secret else f"--upstream={self.upstream}")
            found += [f"--no-proxy={entry}" for entry in self.no_proxy]
        found += ["--pip"] if self.pip_port else []
        found += [f"--pip-port={self.pip_port}"] if self.pip_port not in (0, DEFAULT_PIP_PORT) else []
        return tuple(found)


def _size(size: int) -> str:
    """A size as ``--size`` reads it, exactly."""
    for bits, unit in ((40, "T"), (30, "G"), (20, "M"), (10, "K")):
        if not size % (1 << bits):
            return f"{size >> bits}{unit}"
    return str(size)
