"""OpenRC (Alpine, Gentoo): exports in the service's configuration, rules by a script of the service ``local``. PURE.

``/etc/conf.d/docker`` is sourced by openrc-run before the service's own script; OpenRC filters the environment that it
was started with, so only what is exported there arrives. ``local`` runs ``/etc/local.d/*.start`` at boot, where it is
in a runlevel (Gentoo: always; Alpine: only if somebody has put it there). Elsewhere the service's ``start_post``, which
may stand in its configuration, runs the same script.
"""

from __future__ import annotations

from collections.abc import Mapping

from vmproxy.errors import Refused
from vmproxy.guests import Order, _init
from vmproxy.model import BlockWish, Facts, Finding

NAME = "openrc"
PERSISTENT = "/etc"
CONFIG = "/etc/conf.d/docker"
DIRECTORY = "/etc/local.d"
SCRIPT = f"{DIRECTORY}/vmproxy.start"
FILES = (SCRIPT, CONFIG)
SHELL = FILES
DIRECTORIES = (DIRECTORY,)
DAEMON_CONFIG = "/etc/docker/daemon.json"
_LOCAL = ("/etc/runlevels/default/local", "/etc/runlevels/boot/local")
PATHS = (DIRECTORY, *_LOCAL, *_init.PATHS)
RELOAD = ()
GONE = ()
RESTART = (("rc-service", "docker", "restart"),)
LOG = "/var/log/docker.log"
WISH_FILE = CONFIG
TEXTS = (DAEMON_CONFIG,)


def matches(facts: Facts) -> str:
    """See :func:`vmproxy.guests._init.init`; Docker for Mac has OpenRC in its own way."""
    kind, reason = _init.init(facts)
    return reason if kind == NAME and _init.MOBYCONFIG not in facts.paths else ""


def render(order: Order, facts: Facts) -> tuple[BlockWish, ...]:
    """The script before the configuration. Raises Refused where the script would not be run."""
    from vmproxy.guests import _boot, must_run
    from vmproxy.quoting import sh_exports

    payload = sh_exports(order.environment)
    if order.door is not None and not any(path in facts.paths for path in _LOCAL):
        must_be_free(facts, CONFIG, hint="rc-update add local default")
        payload += f"start_post() {{ {SCRIPT} || :; }}\n".encode("ascii")
    config = BlockWish(
        path=CONFIG,
        payload=payload,
        where="end",
        record=order.record,
        names=tuple(order.environment),
        secret=order.secret,
    )
    if order.door is None:
        return (config,)
    must_run(facts, SCRIPT)
    script = BlockWish(
        path=SCRIPT,
        payload=_boot.beside(order.door, order.variant),
        where="after-shebang",
        record=order.record,
        mode=0o755,
    )
    return (script, config)


def must_be_free(facts: Facts, path: str, *, hint: str) -> None:
    """Raises Refused where somebody has a ``start_post`` of his own in a file: ours would take its place."""
    from vmproxy import blocks

    file = facts.files.get(path)
    theirs = blocks.take(file.content, path=path) if file and file.content is not None else None
    if theirs and b"start_post" in theirs:
        raise Refused("the file has a start_post of its own, and OpenRC runs only one", where=path, hint=hint)


def overrides(facts: Facts, wanted: Mapping[str, str]) -> tuple[Finding, ...]:
    """daemon.json's proxies."""
    from vmproxy.guests import _wins

    return _wins.daemon_json(facts.texts, DAEMON_CONFIG, wanted)


def refuses(facts: Facts) -> str:
    """See :func:`vmproxy.guests.systemd.refuses`."""
    from vmproxy.guests import _wins

    return DAEMON_CONFIG if _wins.nftables(facts.texts, DAEMON_CONFIG) else ""
