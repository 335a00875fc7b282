"""boot2docker: Tiny Core in RAM, its own files on one disk. PURE.

Behaviour from upstream's files/init.d/docker and files/bootsync.sh: the profile is sourced as root before sshd is up
and
again by the daemon's script, which is started with an otherwise empty environment (so nothing arrives without
``export``);
bootlocal.sh is run as ``sh bootlocal.sh &`` beside the daemon's start, at each boot.
"""

from __future__ import annotations

from vmproxy.guests import ADDRESS_AT_BOOT, Order
from vmproxy.model import BlockWish, Door, Facts

# Its constants say what the first look is about; what its functions need is imported while the VM answers that.
NAME = "boot2docker"
PERSISTENT = "/var/lib/boot2docker"
PROFILE = f"{PERSISTENT}/profile"
BOOTLOCAL = f"{PERSISTENT}/bootlocal.sh"
USERDATA = f"{PERSISTENT}/userdata.tar"
FILES = (BOOTLOCAL, PROFILE)
SHELL = FILES
PATHS = (USERDATA, PERSISTENT, "/etc/init.d/docker")
RESTART = (("/etc/init.d/docker", "restart"),)
LOG = f"{PERSISTENT}/log/docker.log"
WISH_FILE = PROFILE
DAEMON_CONFIG = f"{PERSISTENT}/etc/docker/daemon.json"  # /etc/docker is a link to its directory

_PROGRAMS = {
    "nft": ("iptables-nft", "iptables-nft-restore"),
    "legacy": ("iptables-legacy", "iptables-legacy-restore"),
    "default": ("iptables", "iptables-restore"),
}
_DOCKER_WAIT_SECONDS = 300


def matches(facts: Facts) -> str:
    """By os-release's ID, as docker-machine's provisioner decides; by the directory where the root is only files."""
    if facts.os_release.get("ID") == NAME:
        return f"ID={NAME} in /etc/os-release"
    if "ID" not in facts.os_release and PERSISTENT in facts.paths:
        return f"{PERSISTENT} is there"
    return ""


def render(order: Order, facts: Facts) -> tuple[BlockWish, ...]:
    """The boot script first: a profile without it would name a door that the next boot does not make."""
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
        payload=_boot_script(order.door, order.variant),
        where="after-shebang",
        record=order.record,
        mode=0o755,
    )
    return (script, profile)


def _remote_by_default(facts: Facts) -> bool:
    if USERDATA not in facts.paths:
        return False
    from vmproxy import blocks

    content = facts.files[PROFILE].content if PROFILE in facts.files else None
    return content is None or blocks.take(content, path=PROFILE) is None


def _boot_script(door: Door, variant: str) -> bytes:
    """Literal rules of the last apply, set beside Docker's start and again at every run without doubling."""
    from vmproxy.rules import boot_text, jumps

    tool, restore = _PROGRAMS[variant]
    own = f"{restore} -w 5 --noflush <<'VMPROXY-END'"
    if door.bridge_address == ADDRESS_AT_BOOT:  # the here-document is sed's: a shell gives it to the command it follows
        own = f"sed \"s/{ADDRESS_AT_BOOT}/$vmproxy_address/\" <<'VMPROXY-END' | {restore} -w 5 --noflush"
    lines = [
        "# Runs beside the rest of this file, which need not wait for Docker.",
        "(",
        "exec </dev/null >>/var/log/vmproxy.log 2>&1",
        'echo "vmproxy: $(date)"',
        "vmproxy_n=0",
        f"until {tool} -w 5 -t nat -S DOCKER >/dev/null 2>&1; do",
        f'  [ "$vmproxy_n" -ge {_DOCKER_WAIT_SECONDS} ] && echo "vmproxy: Docker has made no rules yet" && break',
        "  vmproxy_n=$((vmproxy_n + 1)); sleep 1",
        "done",
    ]
    if door.bridge_address == ADDRESS_AT_BOOT:
        lines += ['vmproxy_address=$(ip -4 -o addr show docker0 | awk \'{ sub("/.*", "", $4); print $4; exit }\')']
    for text in boot_text(door).values():
        lines += [own, *text.decode("ascii").splitlines(), "VMPROXY-END"]
    lines += [
        "# Once, whatever there was; in FORWARD behind Docker's rules, before the first that stops everything.",
        "vmproxy_jump() { # table chain words",
        "  vmproxy_table=$1 vmproxy_chain=$2; shift 2",
        f'  while {tool} -w 5 -t "$vmproxy_table" -D "$vmproxy_chain" "$@" 2>/dev/null; do :; done',
        "  vmproxy_end=''",
        '  [ "$vmproxy_chain" != FORWARD ] ||',
        f"    vmproxy_end=$({tool} -w 5 -S FORWARD | grep '^-A' | grep -nE '^-A FORWARD -j (DROP|REJECT)' | head -n 1)",
        f'  if [ -n "$vmproxy_end" ]; then {tool} -w 5 -I FORWARD "${{vmproxy_end%%:*}}" "$@"',
        f'  else {tool} -w 5 -t "$vmproxy_table" -A "$vmproxy_chain" "$@"; fi',
        "}",
    ]
    made = jumps(door)
    lines += [f"vmproxy_jump {table} {chain} {' '.join(words)}" for table, chain, words in made]
    lines += [
        'echo "vmproxy: rules are in place"',
        "# Docker answers when it has written all its rules, some of them behind ours: then once more behind them.",
        f'while [ "$vmproxy_n" -lt {_DOCKER_WAIT_SECONDS} ] && ! docker version >/dev/null 2>&1; do',
        "  vmproxy_n=$((vmproxy_n + 1)); sleep 1",
        "done",
    ]
    for table, chain, words in made:
        if chain == "FORWARD":
            again = f"vmproxy_jump {table} {chain} {' '.join(words)}"
            lines.append(f"case $({tool} -w 5 -S FORWARD | tail -n 1) in *VMPROXY-FORWARD) ;; *) {again} ;; esac")
    lines += [") &"]
    return "".join(f"{line}\n" for line in lines).encode("utf-8")
