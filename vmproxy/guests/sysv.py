"""Debian's sysvinit: exports in ``/etc/default/docker``, rules by ``/etc/rc.local``. PURE.

Docker's init script (upstream's contrib/init/sysvinit-debian) sources the former at each action, and starts the daemon
as its child: what is exported arrives. The latter is run by the init script ``rc.local`` at the end of the boot, and
needs no link in any runlevel.
"""

from __future__ import annotations

from collections.abc import Mapping

from vmproxy.guests import Order, _init
from vmproxy.model import BlockWish, Facts, Finding

NAME = "sysv"
PERSISTENT = "/etc"
DEFAULTS = "/etc/default/docker"
RC_LOCAL = "/etc/rc.local"
FILES = (RC_LOCAL, DEFAULTS)
SHELL = FILES
DIRECTORIES = ()
DAEMON_CONFIG = "/etc/docker/daemon.json"
PATHS = _init.PATHS
RELOAD = ()
GONE = ()
RESTART = (("service", "docker", "restart"),)
LOG = "/var/log/docker.log"
WISH_FILE = DEFAULTS
TEXTS = (DAEMON_CONFIG,)


def matches(facts: Facts) -> str:
    """See :func:`vmproxy.guests._init.init`."""
    kind, reason = _init.init(facts)
    return reason if kind == NAME else ""


def render(order: Order, facts: Facts) -> tuple[BlockWish, ...]:
    """The boot script before the defaults. Raises Refused where the script would not be run."""
    from vmproxy.guests import _boot, must_run

    if order.door is None:
        return (defaults(order),)
    must_run(facts, RC_LOCAL)
    script = BlockWish(
        path=RC_LOCAL,
        payload=_boot.beside(order.door, order.variant),
        where="after-shebang",
        record=order.record,
        mode=0o755,
    )
    return (script, defaults(order))


def defaults(order: Order) -> BlockWish:
    """The block of ``/etc/default/docker``."""
    from vmproxy.quoting import sh_exports

    return BlockWish(
        path=DEFAULTS,
        payload=sh_exports(order.environment),
        where="end",
        record=order.record,
        names=tuple(order.environment),
        secret=order.secret,
    )


def overrides(facts: Facts, wanted: Mapping[str, str]) -> tuple[Finding, ...]:
    """daemon.json's proxies."""
    from vmproxy.guests import _wins

    return _wins.daemon_json(facts.texts, DAEMON_CONFIG, wanted)


def refuses(facts: Facts) -> str:
    """See :func:`vmproxy.guests.systemd.refuses`."""
    from vmproxy.guests import _wins

    return DAEMON_CONFIG if _wins.nftables(facts.texts, DAEMON_CONFIG) else ""
