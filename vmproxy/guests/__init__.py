"""What each kind of VM wants: which files carry the daemon's environment and the rules, and how Docker is restarted.

A guest is one PURE module with the names of :class:`Guest`; the tuple below is the whole list. Exactly one guest
matches a VM.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import field
from functools import cache
from typing import Any, Protocol, cast

from vmproxy.errors import Refused, UsageError
from vmproxy.model import BlockWish, Door, Facts, Finding, printable
from vmproxy.values import dataclass

NAMES = ("boot2docker", "systemd", "openrc", "sysv", "upstart", "moby")

ADDRESS_AT_BOOT = "192.0.2.1"
"""Stands for docker0's address where it is not known before the VM boots (files only): an address of RFC 5737 that no
network has. The boot script puts the true one in its place."""


@dataclass(frozen=True, kw_only=True)
class Order:
    """What a guest is asked to write down: the daemon's variables, the door, the variant of iptables, the wish's
    record.

    ``secret`` says that ``environment`` holds credentials.
    """

    environment: Mapping[str, str] = field(repr=False)
    door: Door | None
    variant: str
    record: Mapping[str, Any]
    secret: bool = False


class Guest(Protocol):
    """A module of this package."""

    NAME: str
    FILES: tuple[str, ...]
    """Every file that may carry a block of ours, in the order of writing."""
    DIRECTORIES: tuple[str, ...]
    """Those of their directories that are made where they are missing; ``PATHS`` has them too."""
    SHELL: tuple[str, ...]
    """Those of them that a shell reads."""
    PATHS: tuple[str, ...]
    """What else has to be looked for; ``*`` stands for any part of one name."""
    TEXTS: tuple[str, ...]
    """Files of others that are only read, ``*`` as above: for what wins over ours, and what Docker is."""
    PERSISTENT: str
    """The directory that must outlive a reboot."""
    RELOAD: tuple[str, ...]
    """The command that makes the init see changed files, empty where it needs none."""
    GONE: tuple[tuple[str, ...], ...]
    """One of ``FILES`` and the words of a command, run behind ``RELOAD`` where that file is gone; it may fail."""
    RESTART: tuple[tuple[str, ...], ...]
    """Commands in order, of constant words without blanks or quotes; the next is run where the one before succeeded."""
    LOG: str
    DAEMON_CONFIG: str
    """Where dockerd's daemon.json is kept."""
    WISH_FILE: str
    """The file whose block carries the record of the wish."""

    def matches(self, facts: Facts) -> str:
        """One line of why this VM is of this kind, "" where it is not."""

    def render(self, order: Order, facts: Facts) -> tuple[BlockWish, ...]:
        """The blocks to write, in the order of writing. Raises Refused where one would not do its work."""

    def overrides(self, facts: Facts, wanted: Mapping[str, str]) -> tuple[Finding, ...]:
        """What in the VM wins over the ``wanted`` variables of the daemon, each with the file that says so."""

    def refuses(self, facts: Facts) -> str:
        """The file that gives Docker another firewall than iptables, "" where none does."""


def load(name: str) -> Guest:
    """The guest of that name. Raises UsageError."""
    if name not in NAMES:
        raise UsageError(f"there is no guest named {printable(name, limit=40)}", hint=f"--guest {' | '.join(NAMES)}")
    return _loaded(name)


@cache
def _loaded(name: str) -> Guest:
    return cast(Guest, importlib.import_module(f"vmproxy.guests.{name}"))


@cache
def files() -> tuple[str, ...]:
    """The files of every guest: what a look reads before the guest is known."""
    return tuple(dict.fromkeys(path for name in NAMES for path in load(name).FILES))


@cache
def paths() -> tuple[str, ...]:
    """The paths that every guest wants looked for."""
    return tuple(dict.fromkeys(path for name in NAMES for path in load(name).PATHS))


@cache
def texts() -> tuple[str, ...]:
    """The files that every guest wants read."""
    return tuple(dict.fromkeys(path for name in NAMES for path in load(name).TEXTS))


def read_payload(payload: bytes) -> dict[str, str]:
    """The variables in a block of any guest's; lines that are not ours are passed over."""
    from vmproxy.guests._payload import variables

    return variables(payload)


def must_run(facts: Facts, path: str) -> None:
    """Raises Refused where a script is there that the VM's init would not run for want of its x."""
    file = facts.files.get(path)
    if file is not None and file.content is not None and not file.mode & 0o100:
        raise Refused("the file is not executable, so nothing runs it at boot", where=path, hint=f"chmod +x {path}")


@cache
def daemon_configs() -> tuple[str, ...]:
    """The places of daemon.json of every guest."""
    return tuple(dict.fromkeys(load(name).DAEMON_CONFIG for name in NAMES))


def detect(facts: Facts, wanted: str = "") -> tuple[Guest, str]:
    """The guest of a VM and one line of why. ``wanted`` is the user's word. Raises Refused, UsageError."""
    from vmproxy.guests import _init

    if problem := _init.refusal(facts):
        raise problem
    if wanted:
        return _served(load(wanted), facts), "as --guest says"
    found = [(guest, reason) for guest in map(load, NAMES) if (reason := guest.matches(facts))]
    if len(found) > 1:
        # A VM that says itself what it is can have the files of a general init beside: an LSB library, its script.
        general, _ = _init.init(facts)
        found = [(guest, reason) for guest, reason in found if general != guest.NAME]
    if len(found) == 1:
        return _served(found[0][0], facts), found[0][1]
    if found:
        names = ", ".join(guest.NAME for guest, _ in found)
        raise Refused(f"the VM looks like more than one kind: {names}", hint="--guest KIND")
    system = facts.os_release.get("PRETTY_NAME") or facts.os_release.get("ID") or "no /etc/os-release"
    raise Refused(f"this kind of VM is not known ({system})", where=f"known: {', '.join(NAMES)}", hint="--guest KIND")


def _served(guest: Guest, facts: Facts) -> Guest:
    """The guest itself. Raises Refused where Docker makes no iptables rules for ours to stand beside."""
    if path := guest.refuses(facts):
        raise Refused(
            "Docker uses its firewall backend nftables, and vmproxy's rules are iptables'",
            where=path,
            hint="take firewall-backend out and restart Docker",
        )
    return guest
