"""The door by IPv6: only where Docker has IPv6, the gateway can stand in a rule, and the proxy answered there. PURE.

Everything else stays as it was, and :func:`candidate` says why (DESIGN section 4).
"""

from __future__ import annotations

import ipaddress

from vmproxy import rules
from vmproxy.model import Door, Facts, Wish
from vmproxy.proxyenv import is_loopback
from vmproxy.routes import default_routes


def candidate(facts: Facts, wish: Wish, variant: str) -> tuple[str, str]:
    """The host's IPv6 address as the VM sees it, and one line of why there is none.

    Both are empty where Docker has no IPv6, or where the proxy is not on the host and so needs no door.
    """
    if not is_loopback(wish.proxy.host) or not bridge_address(facts, wish, variant):
        return "", ""
    if wish.gateway:
        return "", "--gateway names the host's address"
    routes = [route for route in default_routes(facts.routes) if route.family == "inet6"]
    if not routes:
        return "", "the VM has no IPv6 default route"
    gateways = {route.gateway for route in routes if route.metric == routes[0].metric}
    if len(gateways) > 1:
        return "", "several IPv6 default routes share the lowest metric"
    gateway = routes[0].gateway
    if not gateway:
        return "", "the IPv6 default route has no gateway address"
    if ipaddress.ip_address(gateway).is_link_local:
        return "", "the IPv6 gateway is a link-local address"
    return gateway, ""


def bridge_address(facts: Facts, wish: Wish, variant: str) -> str:
    """The IPv6 address of docker0, else of another bridge of Docker's, that is not link-local; "" where none is."""
    dump = facts.dumps6.get(variant)
    if dump is None:
        return ""
    dockers = rules.docker_bridges(rules.parse_save(facts.dumps[variant])) if variant in facts.dumps else ()
    for name in (*wish.bridges, rules.DEFAULT_BRIDGE, *dockers):
        for address in facts.addresses:
            text = address.cidr.partition("/")[0]
            here = address.interface == name and address.family == "inet6"
            if here and not ipaddress.ip_address(text).is_link_local:
                return text
    return ""


def door(facts: Facts, wish: Wish, variant: str, four: Door) -> Door | None:
    """The door beside the IPv4 one, where the wish says that the proxy answered at the gateway of now; else None."""
    gateway, _why = candidate(facts, wish, variant)
    if not gateway or gateway != wish.gateway6:
        return None
    return Door(
        gateway=gateway,
        port=four.port,
        listen_port=four.listen_port,
        bridge_address=bridge_address(facts, wish, variant),
        bridges=four.bridges,
    )
