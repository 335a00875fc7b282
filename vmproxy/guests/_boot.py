"""The shell text that makes a door's rules when a VM boots, for every guest. PURE.

Literal rules of the last apply, set beside Docker's start, and again at every run without doubling. What is right
already is left alone: a restart of Docker closes the door for no moment.
"""

from __future__ import annotations

from functools import lru_cache

from vmproxy.guests import ADDRESS_AT_BOOT
from vmproxy.model import Door

_PROGRAMS = {
    "nft": ("iptables-nft", "iptables-nft-restore"),
    "legacy": ("iptables-legacy", "iptables-legacy-restore"),
    "default": ("iptables", "iptables-restore"),
}
_DOCKER_WAIT_SECONDS = 300


@lru_cache(maxsize=32)  # many VMs of one kind get the same
def beside(door: Door, variant: str) -> bytes:
    """For a script that something waits for: the rules in a subshell in the background, told to /var/log."""
    lines = [
        "# Runs beside the rest of this file, which need not wait for Docker.",
        "(",
        # Also where the file is run by sh -e.
        "set +e; exec </dev/null >>/var/log/vmproxy.log 2>&1",
        *_lines(door, variant),
        ") &",
    ]
    return _text(lines)


@lru_cache(maxsize=32)
def alone(door: Door, variant: str) -> bytes:
    """For a script of its own whose output somebody keeps (a unit, a job): it ends when the rules are there, and with
    another status than 0 where one of them could not be made."""
    return _text([*_lines(door, variant), '[ -z "$vmproxy_bad$vmproxy_shut" ]'])


def _text(lines: list[str]) -> bytes:
    return "".join(f"{line}\n" for line in lines).encode("utf-8")


def _lines(door: Door, variant: str) -> list[str]:
    tool, restore = _PROGRAMS[variant]
    lines = [
        'echo "vmproxy: $(date)"',
        "# iptables before 1.6.0 knows -w without seconds, before 1.4.20 none; iptables-restore none before 1.6.2.",
        "vmproxy_w=''; vmproxy_r=''; vmproxy_bad=''; vmproxy_shut=''",
        "for vmproxy_n in '-w 5' -w; do",
        f"  {tool} $vmproxy_n -S FORWARD >/dev/null 2>&1 && vmproxy_w=$vmproxy_n && break",
        "done",
        f"{restore} -w 5 --noflush --test </dev/null 2>/dev/null && vmproxy_r='-w 5'",
        "vmproxy_n=0",
        f"until {tool} $vmproxy_w -t nat -S DOCKER >/dev/null 2>&1; do",
        f'  [ "$vmproxy_n" -ge {_DOCKER_WAIT_SECONDS} ] && echo "vmproxy: Docker has made no rules yet" && break',
        "  vmproxy_n=$((vmproxy_n + 1)); sleep 1",
        "done",
        'vmproxy_no() { vmproxy_bad=1; echo "vmproxy: failed: $1"; } # and on with the rest',
        'vmproxy_yes() { [ -n "$vmproxy_bad$vmproxy_shut" ] || echo "vmproxy: rules are in place"; }',
        "# Once, whatever there was; in FORWARD behind Docker's rules, before the first that stops everything.",
        "vmproxy_jump() { # program table chain words",
        "  vmproxy_tool=$1 vmproxy_table=$2 vmproxy_chain=$3; shift 3",
        '  while $vmproxy_tool $vmproxy_w -t "$vmproxy_table" -D "$vmproxy_chain" "$@" 2>/dev/null; do :; done',
        "  vmproxy_end=''",
        "  [ \"$vmproxy_chain\" != FORWARD ] || vmproxy_end=$($vmproxy_tool $vmproxy_w -S FORWARD | grep '^-A' |",
        "    grep -nE '^-A FORWARD -j (DROP|REJECT)' | head -n 1)",
        '  if [ -n "$vmproxy_end" ]; then $vmproxy_tool $vmproxy_w -I FORWARD "${vmproxy_end%%:*}" "$@"',
        '  else $vmproxy_tool $vmproxy_w -t "$vmproxy_table" -A "$vmproxy_chain" "$@"; fi && return',
        '  echo "vmproxy: failed: $vmproxy_tool, a jump in $vmproxy_chain of table $vmproxy_table"',
        "  # In FORWARD it is tried again at the end, and what counts is that.",
        '  if [ "$vmproxy_chain" = FORWARD ]; then vmproxy_shut=1; else vmproxy_bad=1; fi',
        "}",
    ]
    if door.bridge_address == ADDRESS_AT_BOOT:
        # A fresh Docker makes its chains before its bridge.
        lines += [
            "until vmproxy_address=$(ip -4 -o addr show docker0 2>/dev/null |",
            '  awk \'{ sub("/.*", "", $4); print $4; exit }\') && [ -n "$vmproxy_address" ]; do',
            f'  [ "$vmproxy_n" -ge {_DOCKER_WAIT_SECONDS} ] && echo "vmproxy: docker0 has no address yet" && break',
            "  vmproxy_n=$((vmproxy_n + 1)); sleep 1",
            "done",
        ]
    both = [(door, tool, restore)]
    if door.six is not None:
        both.append((door.six, tool.replace("ip", "ip6", 1), restore.replace("ip", "ip6", 1)))
    for one, program, restorer in both:
        lines += _rules(one, program, restorer)
    lines += [
        "vmproxy_yes",
        "# Docker answers when it has written all its rules, some of them behind ours: then once more behind them.",
        f'while [ "$vmproxy_n" -lt {_DOCKER_WAIT_SECONDS} ] && ! docker version >/dev/null 2>&1; do',
        "  vmproxy_n=$((vmproxy_n + 1)); sleep 1",
        "done",
        "vmproxy_was=$vmproxy_shut; vmproxy_shut=''",
    ]
    for one, program, _restorer in both:
        lines += [f"{_last(program)} || {jump}" for jump in _jumps(one, program) if " filter FORWARD " in jump]
    return [*lines, '[ -z "$vmproxy_was" ] || vmproxy_yes']


def _rules(door: Door, tool: str, restore: str) -> list[str]:
    """Our chains whole, then each jump that is not there once and alone."""
    from vmproxy.rules import boot_text, jumps

    own = f"{restore} $vmproxy_r --noflush <<'VMPROXY-END'"
    if door.bridge_address == ADDRESS_AT_BOOT:  # the here-document is sed's: a shell gives it to the command it follows
        own = f"sed \"s/{ADDRESS_AT_BOOT}/$vmproxy_address/\" <<'VMPROXY-END' | {restore} $vmproxy_r --noflush"
    lines = []
    for table, text in boot_text(door).items():
        lines.append(f'{own} || vmproxy_no "{restore}, our chains of table {table}"')
        lines += [*text.decode("ascii").splitlines(), "VMPROXY-END"]
    made = jumps(door)
    for table, chain in dict.fromkeys((table, chain) for table, chain, _words in made):
        here = [words for one, name, words in made if (one, name) == (table, chain)]
        # The number says that nothing stale leads into our chains; -C (iptables 1.4.11) that each of ours is there.
        right = [f"[ \"$({tool} $vmproxy_w -t {table} -S {chain} | grep -c -e '-j VMPROXY-')\" = {len(here)} ]"]
        right += [f"{tool} $vmproxy_w -t {table} -C {chain} {' '.join(words)} 2>/dev/null" for words in here]
        if chain == "FORWARD":
            right.append(_last(tool))
        lines += [f"if ! {{ {' && '.join(right)}; }}; then"]
        lines += [f"  {jump}" for jump in _jumps(door, tool) if f" {table} {chain} " in jump]
        lines += ["fi"]
    return lines


def _jumps(door: Door, tool: str) -> list[str]:
    from vmproxy.rules import jumps

    return [f"vmproxy_jump {tool} {table} {chain} {' '.join(words)}" for table, chain, words in jumps(door)]


def _last(tool: str) -> str:
    """Whether our jump ends FORWARD: then it stands behind all that Docker has written."""
    return f"{tool} $vmproxy_w -S FORWARD | tail -n 1 | grep -q -e '-j VMPROXY-FORWARD$'"
