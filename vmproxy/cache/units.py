"""The caching proxy as a systemd user unit and as a launchd job: the texts of the two files. PURE.

systemd.service(5), systemd.exec(5), systemd.syntax(7); launchd.plist(5).
"""

from __future__ import annotations

import plistlib
from collections.abc import Mapping, Sequence
from typing import Any

from vmproxy.errors import UsageError
from vmproxy.quoting import systemd, systemd_command, value_text

UNIT = "vmproxy-cache.service"
LABEL = "vmproxy.cache"
SECRETS = "vmproxy/cache.env"
"""Below the user's config directory: VMPROXY_… lines that must not stand in a unit, which everybody may read."""

_MARK = "# Written by vmproxy cache install; vmproxy cache uninstall takes it away."
# What would not get better by being started again: a wrong option, a right that lacks, a directory in use.
_FINAL = "2 5 8"
_RESTART_SECONDS = 5
# Those that a user's own manager can give without a namespace of its own. Netlink is getaddrinfo's.
_HARDENING = (
    "NoNewPrivileges=yes",
    "LockPersonality=yes",
    "RestrictRealtime=yes",
    "RestrictSUIDSGID=yes",
    "SystemCallArchitectures=native",
    "RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK",
)


def unit(argv: Sequence[str], *, environment: Mapping[str, str]) -> bytes:
    """The user unit that runs ``argv``, whose first word is an absolute path. Raises UsageError.

    The program says itself when clients can come (sd_notify(3)). No value of a unit is a secret: these come from
    :data:`SECRETS`.
    """
    lines = [
        _MARK,
        "[Unit]",
        "Description=vmproxy: the caching proxy for VMs and their containers",
        "[Service]",
        "Type=notify",
        f"ExecStart={systemd_command(argv)}",
        *(systemd(name, value) for name, value in environment.items()),
        f"EnvironmentFile=-%E/{SECRETS}",
        "UMask=0077",
        "Restart=on-failure",
        f"RestartSec={_RESTART_SECONDS}",
        f"RestartPreventExitStatus={_FINAL}",
        *_HARDENING,
        "[Install]",
        "WantedBy=default.target",
    ]
    return "".join(f"{line}\n" for line in lines).encode()


def job(argv: Sequence[str], *, environment: Mapping[str, str], log: str) -> bytes:
    """The launchd agent that runs ``argv`` from log-in on; both its streams go to ``log``. Raises UsageError."""
    for word in (*argv, *environment.values(), log):
        value_text(word)
    if not argv[0].startswith("/"):
        raise UsageError("the program's path is not absolute", where=argv[0])
    document: dict[str, Any] = {
        "Label": LABEL,
        "ProgramArguments": list(argv),
        "RunAtLoad": True,
        "KeepAlive": {"SuccessfulExit": False},
        "ThrottleInterval": _RESTART_SECONDS * 2,
        "ProcessType": "Background",
        "Umask": 0o077,
        "StandardOutPath": log,
        "StandardErrorPath": log,
    }
    if environment:
        document["EnvironmentVariables"] = dict(environment)
    return plistlib.dumps(document, sort_keys=False)


def ours(content: bytes) -> bool:
    """Whether a file's text is one that :func:`unit` or :func:`job` made."""
    if content.startswith(_MARK.encode()):
        return True
    try:
        found = plistlib.loads(content)
    except Exception:  # not a property list: expat, binary or otherwise
        return False
    return isinstance(found, dict) and found.get("Label") == LABEL
