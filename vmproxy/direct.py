"""What containers reach without the proxy: their no_proxy. PURE.

The user's list comes first and keeps its order; what is added stands behind it. Nothing of a VM gets in as text: its
addresses are parsed and written anew.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Collection, Iterable

from vmproxy.dialects import plain, spellings
from vmproxy.errors import UsageError
from vmproxy.model import Address, printable
from vmproxy.noproxy import merge

LOCAL = ("localhost", "127.0.0.1", "::1", "127.0.0.0/8")
"""The container itself."""

HOST = "host.docker.internal"
"""The machine around the containers, by the name that Docker gives it (``--add-host=…:host-gateway``)."""

MOST_ADDRESSES = 256
"""So many addresses of one VM are taken: Docker's own pools make 31 networks."""

_NAME = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,251}[A-Za-z0-9_])?", re.ASCII)
_BRIDGE = re.compile(r"docker0|docker_gwbridge|br-[0-9a-f]{12}", re.ASCII)


def entries(
    said: Iterable[str], *, vm: Iterable[str] = (), names: Iterable[str] = (), hosts: Iterable[str] = ()
) -> tuple[str, ...]:
    """The whole list: ``said``, other spellings of it, local names, the VM's, container ``names``, other ``hosts``.

    What was said keeps its order and its words, but for ``*.a.b``, which becomes ``.a.b``. ``vm`` are entries of
    :func:`of_vm`. A list that is only ``*`` stays so: it means everything, and for curl and Python only while it
    stands alone. Raises UsageError for a control character.
    """
    first = merge(map(plain, merge(said)))
    if first == ("*",):
        return first
    again = [word for entry in first for word in spellings(entry)]
    added = [word for entry in (*LOCAL, HOST, *vm, *names, *hosts) for word in (entry, *spellings(entry))]
    return merge(first, (*again, *added))


def of_vm(addresses: Iterable[Address], docker: Collection[str] = ()) -> tuple[str, ...]:
    """A VM's own addresses, and the networks behind its Docker bridges; at most :data:`MOST_ADDRESSES` are looked at.

    The addresses are those that a container can reach it at, of bridges too; no loopback and no link-local one.
    ``docker`` are interfaces known to be Docker's beside those that have the names which Docker gives.
    """
    usable = []
    for address in addresses:
        try:
            interface = ipaddress.ip_interface(address.cidr)
        except ValueError:
            continue
        ip = interface.ip
        if not (ip.is_loopback or ip.is_link_local or ip.is_multicast or ip.is_unspecified):
            usable.append((address.interface, interface))
    usable = usable[:MOST_ADDRESSES]
    own = [str(interface.ip) for _name, interface in usable]
    bridged = [
        str(interface.network)
        for name, interface in usable
        if (name in docker or _BRIDGE.fullmatch(name)) and 0 < interface.network.prefixlen < interface.max_prefixlen
    ]
    return tuple(dict.fromkeys((*own, *bridged)))


def container_name(text: str) -> str:
    """``text`` itself if it can be the name of a container, a Compose service or a host. Raises UsageError.

    RFC 1123 labels, and the underscores that Docker and Compose allow: letters, digits, ``_``, ``-`` and dots, at most
    63 characters between dots.
    """
    if not _NAME.fullmatch(text) or not all(0 < len(label) <= 63 for label in text.split(".")):
        raise UsageError(
            f"{printable(text, limit=60)!r} is no name of a container or service",
            hint="letters, digits, _ - and dots; for networks and domains there is --no-proxy",
        )
    return text
