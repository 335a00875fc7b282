"""Upstart (Ubuntu 9.10 to 14.10): exports in ``/etc/default/docker``, rules by a job of their own. PURE.

Docker's job (upstream's contrib/init/upstart) sources the former and then becomes the daemon. A job file needs no
enabling: ``start on started docker`` runs it at boot and after each restart (init(5)).
"""

from __future__ import annotations

from collections.abc import Mapping

from vmproxy.guests import Order, _init, sysv
from vmproxy.model import BlockWish, Facts, Finding

NAME = "upstart"
PERSISTENT = "/etc"
DEFAULTS = sysv.DEFAULTS
JOB = "/etc/init/vmproxy-rules.conf"
FILES = (JOB, DEFAULTS)
SHELL = (DEFAULTS,)
DIRECTORIES = ()
DAEMON_CONFIG = "/etc/docker/daemon.json"
PATHS = _init.PATHS
RELOAD = ()
GONE = ()
RESTART = (("service", "docker", "restart"),)
LOG = "/var/log/upstart/docker.log"
WISH_FILE = DEFAULTS
TEXTS = (DAEMON_CONFIG,)


def matches(facts: Facts) -> str:
    """See :func:`vmproxy.guests._init.init`."""
    kind, reason = _init.init(facts)
    return reason if kind == NAME else ""


def render(order: Order, facts: Facts) -> tuple[BlockWish, ...]:
    """The job before the defaults."""
    from vmproxy.guests import _boot

    if order.door is None:
        return (sysv.defaults(order),)
    head = b"start on started docker\ntask\nscript\nset +e\n"  # Upstart runs it with sh -e
    payload = head + _boot.alone(order.door, order.variant) + b"end script\n"
    return (BlockWish(path=JOB, payload=payload, where="last", record=order.record), sysv.defaults(order))


def overrides(facts: Facts, wanted: Mapping[str, str]) -> tuple[Finding, ...]:
    """daemon.json's proxies."""
    return sysv.overrides(facts, wanted)


def refuses(facts: Facts) -> str:
    """Docker of Upstart's days knows only iptables."""
    return ""
