"""How the containers of one VM reach the proxy, and what they reach without it. PURE: a look without root is enough."""

from __future__ import annotations

from collections.abc import Sequence

from vmproxy import dialects, direct, pip
from vmproxy.errors import Refused
from vmproxy.model import Door, Facts, Wish
from vmproxy.plan import View, bridge_address, gateway_of, host_gateway
from vmproxy.proxyenv import is_loopback, variables, with_host


def container_variables(
    seen: View, wish: Wish, facts: Facts, *, names: Sequence[str] = (), pip_index: str = ""
) -> dict[str, str]:
    """The variables for containers: the bridge's address where there is a door, else the proxy's own.

    no_proxy has the user's list, then what is local, the VM's addresses and Docker networks, ``names`` of containers,
    the host that the proxy runs on, and the host of ``pip_index``. An index on the host's loopback is asked at the
    host's address as the VM sees it: the way there is Docker's own, not the door. Raises NoGateway where that is not
    known.
    """
    proxy, https = seen.proxy, seen.https_proxy
    if seen.door is not None:
        door = seen.door
        proxy = with_host(proxy, door.bridge_address, door.listen_port)
        if https is not None and https.host == door.gateway and https.port == door.port:
            https = with_host(https, door.bridge_address, door.listen_port)
    # What else listens on the host is reached at this address as before; a proxy there knows no such host.
    hosts = (seen.gateway,) if is_loopback(wish.proxy.host) else ()
    more: dict[str, str] = {}
    if pip_index:
        host = ""
        if pip.loopback_host(pip_index):
            host = seen.gateway or gateway_of(facts)
        more = pip.variables(pip_index, host=host)
        hosts = (*hosts, pip.direct_host(pip_index, host=host))
    vm = direct.of_vm(facts.addresses, wish.bridges)
    return {**variables(proxy, https, direct.entries(wish.no_proxy, vm=vm, names=names, hosts=hosts)), **more}


def container_view(facts: Facts, wish: Wish, *, names: Sequence[str] = (), pip_index: str = "") -> dict[str, str]:
    """The same, from a look without root, which sees no rules: only the address matters. Raises NoGateway, Refused."""
    if not facts.live and (is_loopback(wish.proxy.host) or wish.forward) and not bridge_address(facts, wish, ""):
        raise _no_bridge(facts)
    gateway = host_gateway(facts, wish) or wish.gateway
    here = bool(host_gateway(facts, wish)) or wish.forward
    if not gateway and wish.https_proxy is not None and is_loopback(wish.https_proxy.host):
        gateway = gateway_of(facts)
    proxy, https = wish.proxy, wish.https_proxy
    door = None
    address = bridge_address(facts, wish, "")
    if is_loopback(proxy.host):
        proxy = with_host(proxy, gateway)
    if https is not None and is_loopback(https.host):
        https = with_host(https, gateway)
    if here:
        if not address:
            raise _no_bridge(facts)
        port = wish.proxy.port
        door = Door(
            gateway=gateway, port=port, listen_port=wish.listen_port or port, bridge_address=address, bridges=()
        )
    seen = View(proxy=proxy, https_proxy=https, door=door, gateway=gateway, bridge_address=address)
    return container_variables(seen, wish, facts, names=names, pip_index=pip_index)


def _no_bridge(facts: Facts) -> Refused:
    if facts.live:
        what, hint = "Docker has no bridge with an IPv4 address in the VM", "start Docker in the VM, or --bridge NAME"
    else:
        what, hint = "the address of Docker's bridge is not in these files", "name the VM that runs with --vm"
    return Refused(what, hint=hint)


def notes(wish: Wish, *, names: Sequence[str] = ()) -> tuple[str, ...]:
    """What to warn of: entries of the user's no_proxy, and names, that tools read differently."""
    return dialects.warnings(wish.no_proxy, names)
