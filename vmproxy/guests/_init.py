"""Which general init a VM has, and what of Docker: one answer, so that exactly one guest matches. PURE.

Every rule names the file that decides; a live VM and a directory of files are told apart only where they must be.
"""

from __future__ import annotations

from fnmatch import fnmatchcase

from vmproxy.errors import Refused
from vmproxy.model import Facts

MOBYCONFIG = "/usr/bin/mobyconfig"
SD_BOOTED = "/run/systemd/system"
OPENRC_BOOTED = "/run/openrc"
INITTAB = "/etc/inittab"
INIT_SCRIPT = "/etc/init.d/docker"
LSB = "/lib/lsb/init-functions"
LINUXKIT = "/bin/rc.init"
_SYSTEMD = ("/usr/lib/systemd/systemd", "/lib/systemd/systemd")
_OPENRC = ("/sbin/openrc-run", "/usr/sbin/openrc-run", "/sbin/openrc")
_UPSTART = ("/etc/init/rc-sysinit.conf",)
_DOCKER = tuple(
    f"{place}/{name}" for name in ("dockerd", "docker") for place in ("/usr/bin", "/usr/sbin", "/usr/local/bin")
)
_OTHERS = tuple(f"{place}/{name}" for name in ("containerd", "podman") for place in ("/usr/bin", "/usr/local/bin"))
_ROOTLESS = "/run/user/*/docker.sock"
# Written by dockerd-rootless-setuptool.sh. Where the system's Docker is enabled, systemd has links of these names.
_ROOTLESS_UNIT = "/home/*/.config/systemd/user/docker.service"
_ENABLED = (
    "/etc/systemd/system/multi-user.target.wants/docker.service",
    "/etc/systemd/system/sockets.target.wants/docker.socket",
)
_SNAP_UNIT = "/etc/systemd/system/snap.docker.dockerd.service"
_SNAP_RUNS = "/run/snap.docker"

PATHS = (
    MOBYCONFIG, SD_BOOTED, OPENRC_BOOTED, INITTAB, INIT_SCRIPT, LSB, LINUXKIT, *_SYSTEMD, *_OPENRC, *_UPSTART,
    *_DOCKER, *_OTHERS, _ROOTLESS, _ROOTLESS_UNIT, *_ENABLED, _SNAP_UNIT, _SNAP_RUNS,
)  # fmt: skip


def init(facts: Facts) -> tuple[str, str]:
    """(its guest's name, one line of why); two empty strings where it is none of these."""
    there = facts.paths
    if SD_BOOTED in there:
        return "systemd", f"{SD_BOOTED} is there: systemd runs"
    if OPENRC_BOOTED in there:
        return "openrc", f"{OPENRC_BOOTED} is there: OpenRC runs"
    systemd = _first(facts, _SYSTEMD)
    # Debian's other inits need an inittab, and leave systemd's programs where they are.
    if systemd and INITTAB not in there and not facts.live:
        return "systemd", f"{systemd} is there, and no {INITTAB}"
    for name, places in (("upstart", _UPSTART), ("openrc", _OPENRC)):
        if found := _first(facts, places):
            return name, f"{found} is there"
    if INITTAB in there and INIT_SCRIPT in there and LSB in there:  # which that script needs
        return "sysv", f"{INIT_SCRIPT}, {LSB} and {INITTAB} are there, and no other init"
    return "", ""


def refusal(facts: Facts) -> Refused | None:
    """Why vmproxy cannot serve this VM whole, and what to do instead; None where nothing speaks against it."""
    there, running = facts.paths, facts.daemon is not None
    name = facts.os_release.get("PRETTY_NAME", "")
    if LINUXKIT in there or name.startswith("Docker Desktop"):
        return Refused(
            "this VM is made anew at each start, by LinuxKit",
            where=LINUXKIT if LINUXKIT in there else name,
            hint="set the proxy where the VM is made: Docker Desktop's Settings > Resources > Proxies; "
            "for containers: vmproxy docker-config apply",
        )
    if _SNAP_UNIT in there and not running and (_SNAP_RUNS in there or not _first(facts, _DOCKER)):
        return Refused(
            "Docker is a snap here, whose service is not docker.service",
            where=_SNAP_UNIT,
            hint="set HTTP_PROXY in /etc/systemd/system/snap.docker.dockerd.service.d/, or install Docker as a package",
        )
    sockets = sorted(path for path in there if fnmatchcase(path, _ROOTLESS if facts.live else _ROOTLESS_UNIT))
    if not facts.live and _first(facts, _ENABLED):
        sockets = []  # the system's Docker starts with the VM, whoever else has one of his own
    # Who is not root cannot see whether another dockerd runs: then its socket tells.
    if sockets and not running and (facts.uid == 0 or "/var/run/docker.sock" not in there):
        return Refused(
            "Docker runs rootless, with its bridges in a network namespace of its own",
            where=sockets[0],
            hint="set HTTP_PROXY in ~/.config/systemd/user/docker.service.d/, or run Docker as root",
        )
    others = _first(facts, _OTHERS)
    if others and not running and not _first(facts, _DOCKER) and not facts.commands & {"docker", "dockerd"}:
        return Refused(
            "there is no Docker here, only another container engine",
            where=others,
            hint="vmproxy serves Docker; for containerd set HTTP_PROXY in its service, or install Docker",
        )
    return None


def _first(facts: Facts, places: tuple[str, ...]) -> str:
    return next((path for path in places if path in facts.paths), "")
