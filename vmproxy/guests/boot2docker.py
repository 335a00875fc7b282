"""boot2docker: Tiny Core in RAM, its own files on one disk. PURE.

Behaviour from upstream's files/init.d/docker and files/bootsync.sh: the profile is sourced as root before sshd is up
and
again by the daemon's script, which is started with an otherwise empty environment (so nothing arrives without
``export``);
bootlocal.sh is run as ``sh bootlocal.sh &`` beside the daemon's start, at each boot.
"""

from __future__ import annotations

from collections.abc import Mapping

from vmproxy.guests import Order, _init
from vmproxy.model import BlockWish, Facts, Finding

# Its constants say what the first look is about; what its functions need is imported while the VM answers that.
NAME = "boot2docker"
PERSISTENT = "/var/lib/boot2docker"
PROFILE = f"{PERSISTENT}/profile"
BOOTLOCAL = f"{PERSISTENT}/bootlocal.sh"
USERDATA = f"{PERSISTENT}/userdata.tar"
FILES = (BOOTLOCAL, PROFILE)
SHELL = FILES
DIRECTORIES = ()
PATHS = (USERDATA, PERSISTENT, *_init.PATHS)
RELOAD = ()
GONE = ()
RESTART = (("/etc/init.d/docker", "restart"),)
LOG = f"{PERSISTENT}/log/docker.log"
WISH_FILE = PROFILE
DAEMON_CONFIG = f"{PERSISTENT}/etc/docker/daemon.json"  # /etc/docker is a link to its directory
TEXTS = ()


def matches(facts: Facts) -> str:
    """By os-release's ID, as docker-machine's provisioner decides; by the directory where the root is only files."""
    if facts.os_release.get("ID") == NAME:
        return f"ID={NAME} in /etc/os-release"
    if "ID" not in facts.os_release and PERSISTENT in facts.paths:
        return f"{PERSISTENT} is there"
    return ""


def render(order: Order, facts: Facts) -> tuple[BlockWish, ...]:
    """The boot script first: a profile without it would name a door that the next boot does not make."""
    from vmproxy.guests import _boot
    from vmproxy.quoting import sh_exports

    environment = dict(order.environment)
    if _remote_by_default(facts):
        # A docker-machine style VM listens on 2376 only while there is no profile; with ours it must be said.
        environment["DOCKER_REMOTE"] = "yes"
    profile = BlockWish(
        path=PROFILE,
        payload=sh_exports(environment),
        where="end",
        record=order.record,
        names=tuple(environment),
        secret=order.secret,
    )
    if order.door is None:
        return (profile,)
    script = BlockWish(
        path=BOOTLOCAL,
        payload=_boot.beside(order.door, order.variant),
        where="after-shebang",
        record=order.record,
        mode=0o755,
    )
    return (script, profile)


def overrides(facts: Facts, wanted: Mapping[str, str]) -> tuple[Finding, ...]:
    """Nothing: the last Docker of boot2docker is 19.03, whose daemon.json has no proxies."""
    return ()


def refuses(facts: Facts) -> str:
    """It knows only iptables."""
    return ""


def _remote_by_default(facts: Facts) -> bool:
    if USERDATA not in facts.paths:
        return False
    from vmproxy import blocks

    content = facts.files[PROFILE].content if PROFILE in facts.files else None
    return content is None or blocks.take(content, path=PROFILE) is None
