"""systemd: a drop-in of docker.service with the environment, and a unit that makes the rules. PURE.

The drop-in wants the unit, so that nothing has to be enabled: whenever docker.service is started or restarted, at boot
too, systemd starts the unit with it, and after it is ready (``Wants=``, ``After=``: systemd.unit(5)). The unit is done
when its script is, and leaves nothing behind that is active. The drop-in's name sorts behind docker-machine's
``10-machine.conf``.

``systemctl show docker`` tells ``Environment=`` to every user, whatever the mode of its file, so that systemd.exec(5)
calls it "not suitable for passing secrets". Variables with credentials stand in a file of their own instead, for root
alone, which the drop-in names by ``EnvironmentFile=``; what such a file says wins over any ``Environment=``.
"""

from __future__ import annotations

from collections.abc import Mapping

from vmproxy.guests import Order, _init
from vmproxy.model import BlockWish, Facts, Finding

NAME = "systemd"
PERSISTENT = "/etc/systemd/system"
DIRECTORY = f"{PERSISTENT}/docker.service.d"
DROP_IN = f"{DIRECTORY}/10-vmproxy.conf"
UNIT_NAME = "vmproxy-rules.service"
UNIT = f"{PERSISTENT}/{UNIT_NAME}"
SCRIPT = "/etc/vmproxy-rules.sh"
ENVIRONMENT = "/etc/vmproxy-docker.env"
FILES = (SCRIPT, UNIT, ENVIRONMENT, DROP_IN)
SHELL = (SCRIPT,)
DIRECTORIES = (DIRECTORY,)
DAEMON_CONFIG = "/etc/docker/daemon.json"
PATHS = (DIRECTORY, *_init.PATHS)
RELOAD = ("systemctl", "daemon-reload")
# One that still runs would make its rules again, and one that has failed stays in `systemctl --failed`, file or not.
GONE = ((UNIT, "systemctl", "stop", UNIT_NAME), (UNIT, "systemctl", "reset-failed", UNIT_NAME))
# The first forgets how often Docker was started lately: a put-back must not end at the unit's StartLimitBurst.
RESTART = (("systemctl", "reset-failed", "docker.service"), ("systemctl", "restart", "docker.service"))
LOG = ""
WISH_FILE = DROP_IN

_UNIT_PLACES = (PERSISTENT, "/run/systemd/system", "/usr/lib/systemd/system", "/lib/systemd/system")
_ENVIRONMENT_FILES = ("/etc/default/docker", "/etc/sysconfig/docker", "/etc/environment")
TEXTS = (
    DAEMON_CONFIG,
    *_ENVIRONMENT_FILES,
    *(f"{place}/docker.service" for place in _UNIT_PLACES),
    *(f"{place}/{name}.d/*.conf" for place in _UNIT_PLACES for name in ("docker.service", "service")),
)


def matches(facts: Facts) -> str:
    """See :func:`vmproxy.guests._init.init`."""
    kind, reason = _init.init(facts)
    return reason if kind == NAME else ""


def render(order: Order, facts: Facts) -> tuple[BlockWish, ...]:
    """Script, unit and environment file before the drop-in that wants them."""
    from vmproxy.guests import _boot, _payload
    from vmproxy.quoting import systemd, systemd_file

    lines = ["[Unit]", f"Wants={UNIT_NAME}"] if order.door is not None else []
    lines.append("[Service]")
    names = tuple(order.environment)
    kept: tuple[BlockWish, ...] = ()
    if order.secret:
        # With the "-" Docker starts without it, too: a run cut short must not keep it from that.
        lines.append(f"EnvironmentFile=-{ENVIRONMENT}")
        text = _text([systemd_file(name, value) for name, value in order.environment.items()])
        kept = (
            BlockWish(
                path=ENVIRONMENT,
                payload=_payload.FOR_SYSTEMD + text,
                where="last",
                record=order.record,
                names=names,
                mode=0o600,
                secret=True,
            ),
        )
    else:
        lines += [systemd(name, value) for name, value in order.environment.items()]
    drop_in = BlockWish(
        path=DROP_IN, payload=_text(lines), where="last", record=order.record, names=() if order.secret else names
    )
    if order.door is None:
        return (*kept, drop_in)
    unit = [
        "[Unit]",
        "Description=vmproxy: rules that open the host's proxy to containers",
        "After=docker.service",
        "[Service]",
        "Type=oneshot",
        f"ExecStart=/bin/sh {SCRIPT}",
    ]
    return (
        BlockWish(
            path=SCRIPT,
            payload=_boot.alone(order.door, order.variant),
            where="after-shebang",
            record=order.record,
            mode=0o755,
        ),
        BlockWish(path=UNIT, payload=_text(unit), where="last", record=order.record),
        *kept,
        drop_in,
    )


def overrides(facts: Facts, wanted: Mapping[str, str]) -> tuple[Finding, ...]:
    """daemon.json, drop-ins behind ours, and environment files (systemd.exec(5) says what wins)."""
    from vmproxy import blocks
    from vmproxy.guests import _wins

    found = list(_wins.daemon_json(facts.texts, DAEMON_CONFIG, wanted))
    by_file = _with_credentials(wanted)
    late = False
    readers: list[bytes] = []
    for path, content in _in_order(facts):
        late = late or (path.endswith(".conf") and path.rpartition("/")[2] > DROP_IN.rpartition("/")[2])
        behind = content
        if path == DROP_IN:  # what stands in our file behind our block
            block = blocks.find(content, path=DROP_IN)
            behind = b"[Service]\n" + (content[block.end :] if block else b"")
        theirs = late or path == DROP_IN
        names = _differing(behind, wanted, late=theirs, by_file=by_file)
        if names:
            found.append(_wins.finding(path, names, "sets or unsets"))
        if theirs or not by_file:
            readers.append(behind)
    for path in _ENVIRONMENT_FILES:
        if any(_reads(content, path) for content in readers):
            names = tuple(
                name for name, value in _file_pairs(facts.texts.get(path)) if wanted.get(name, value) != value
            )
            if names:
                found.append(_wins.finding(path, names, "is read by docker.service and sets"))
    return tuple(found)


def refuses(facts: Facts) -> str:
    """Docker's firewall backend nftables, in one line; "" where it has iptables."""
    from vmproxy.guests import _wins

    if _wins.nftables(facts.texts, DAEMON_CONFIG):
        return DAEMON_CONFIG
    for path, content in _in_order(facts):
        if b"--firewall-backend=nftables" in content or b"--firewall-backend nftables" in content:
            return path
    return ""


def _text(lines: list[str]) -> bytes:
    return "".join(f"{line}\n" for line in lines).encode("utf-8")


def _in_order(facts: Facts) -> list[tuple[str, bytes]]:
    """docker.service and its drop-ins as systemd reads them: by name, one of each, /etc before /run before /usr."""
    unit = next(
        ((path, facts.texts[path]) for place in _UNIT_PLACES if (path := f"{place}/docker.service") in facts.texts),
        None,
    )
    chosen: dict[str, tuple[str, bytes]] = {}
    for kind in ("docker.service.d", "service.d"):
        for place in _UNIT_PLACES:
            for path, content in facts.texts.items():
                directory, _, name = path.rpartition("/")
                if directory == f"{place}/{kind}" and name.endswith(".conf"):
                    chosen.setdefault(name, (path, content))
    return ([unit] if unit else []) + [chosen[name] for name in sorted(chosen)]


def _with_credentials(wanted: Mapping[str, str]) -> bool:
    """Whether :func:`render` writes these into the file of their own: an @ stands nowhere else in a proxy's URL."""
    return any("@" in value for name, value in wanted.items() if name.lower() in ("http_proxy", "https_proxy"))


def _differing(content: bytes, wanted: Mapping[str, str], *, late: bool, by_file: bool) -> tuple[str, ...]:
    """Those of our names that a unit file gives another value, behind ours, or takes away. ``by_file``: ours stand in
    an environment file, over which no ``Environment=`` wins, but whoever empties the list of these files."""
    from vmproxy.guests import _units

    names: list[str] = []
    for key, value in _units.settings(content, "Service"):
        if key == "EnvironmentFile" and late and by_file:
            names += wanted if not value else ()
        elif key == "Environment" and late and not by_file:
            pairs = _units.assigned(value)
            names += [name for name, text in pairs if wanted.get(name, text) != text]
            names += wanted if not value else ()
        elif key == "UnsetEnvironment":
            names += [word for word in (_units.words(value) or ()) if word.partition("=")[0] in wanted]
    return tuple(dict.fromkeys(names))


def _reads(content: bytes, path: str) -> bool:
    from vmproxy.guests import _units

    return any(k == "EnvironmentFile" and v.lstrip("-") == path for k, v in _units.settings(content, "Service"))


def _file_pairs(content: bytes | None) -> tuple[tuple[str, str], ...]:
    """``NAME=value`` lines of an environment file, quotes taken off; ``export`` is no part of that format."""
    pairs = []
    for line in (content or b"").decode("utf-8", "replace").splitlines():
        name, equals, value = line.strip().partition("=")
        if equals and not name.startswith(("#", ";")):
            pairs.append((name, value.strip("\"'")))
    return tuple(pairs)
