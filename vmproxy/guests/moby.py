"""Docker for Mac and Windows of 2016: Alpine with OpenRC, all of it in the initrd. PURE.

There is no ``conf.d`` for Docker: everything stands in its openrc-run script ``/etc/init.d/docker``, which upstream's
alpine/packages/docker has. The root is in memory, so that a live edit is lost when the VM starts anew; in the initrd's
own file it stays. Where the application's settings name a proxy, the script exports that in ``start``, and it wins.
"""

from __future__ import annotations

from collections.abc import Mapping

from vmproxy.guests import Order, _init
from vmproxy.model import BlockWish, Facts, Finding

NAME = "moby"
PERSISTENT = "/etc/init.d"
SCRIPT = _init.INIT_SCRIPT
FILES = (SCRIPT,)
SHELL = FILES
DIRECTORIES = ()
DAEMON_CONFIG = "/etc/docker/daemon.json"
PATHS = _init.PATHS
RELOAD = ()
GONE = ()
RESTART = ((SCRIPT, "restart"),)
LOG = "/var/log/docker.log"
WISH_FILE = SCRIPT
TEXTS = (DAEMON_CONFIG,)


def matches(facts: Facts) -> str:
    """By the program that reads the application's settings, which only its VM has."""
    return f"{_init.MOBYCONFIG} is there, as in Docker for Mac of 2016" if _init.MOBYCONFIG in facts.paths else ""


def render(order: Order, facts: Facts) -> tuple[BlockWish, ...]:
    """One block at the end of the script, where its functions are defined and none has run yet. Raises Refused."""
    from vmproxy.guests import _boot, openrc
    from vmproxy.quoting import sh_exports

    payload = sh_exports(order.environment)
    if order.door is not None:
        openrc.must_be_free(facts, SCRIPT, hint="take it out")
        payload += b"start_post() {\n" + _boot.beside(order.door, order.variant) + b"}\n"
    return (
        BlockWish(
            path=SCRIPT,
            payload=payload,
            where="end",
            record=order.record,
            names=tuple(order.environment),
            mode=0o755,
            secret=order.secret,
        ),
    )


def overrides(facts: Facts, wanted: Mapping[str, str]) -> tuple[Finding, ...]:
    """daemon.json's proxies."""
    from vmproxy.guests import _wins

    return _wins.daemon_json(facts.texts, DAEMON_CONFIG, wanted)


def refuses(facts: Facts) -> str:
    """Docker of 2016 knows only iptables."""
    return ""
