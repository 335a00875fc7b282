"""Record looks at real VMs for the unit tests: ``python -m tests.ns.record_worlds`` (as root) writes fixtures/worlds.

A world is the raw output of observe.sh, nonce and all. Only what differs by the machine that records is taken out.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path

from tests.lab.nsvm import NamespaceVM
from tests.ns.endings import Base
from tests.ns.story import BOOTLOCAL, DATA, PROFILE, Vmproxy
from vmproxy import converge, guests
from vmproxy.machines import Look, sending, shell

NONCE = "00112233445566778899aabbccddeeff"
FOLDER = Path(__file__).resolve().parents[2] / "fixtures" / "worlds"
# What Tiny Core has of busybox only, put before the tree's own programs.
APPLETS = "cat dd grep hostname id ifconfig ip ls netstat nslookup printf route sed tail timeout tr wget"


def look(machine: NamespaceVM) -> bytes:
    """One look, as the product takes it."""
    wanted = Look(files=guests.files(), paths=guests.paths())
    body = shell.observe_script(wanted).encode()
    data = f"{len(body)}\n".encode() + body + f"{NONCE}\n".encode() + sending.look_lines(wanted)
    raw = machine.run(["sh", "-c", shell.AS_ROOT], stdin=data).stdout
    raw = re.sub(rb"(?m)^(\S+ / overlay )\S+", rb"\1rw", raw)
    raw = re.sub(rb"(?m)^/dev/\S+ (/var/lib/\S+ ext4 )\S+", rb"/dev/sda1 \1rw", raw)
    return re.sub(rb"(?m)^cgroup2? /sys\S* .*\n", b"", raw)


def applied(machine: NamespaceVM, home: Path) -> Vmproxy:
    """The machine with vmproxy applied."""
    vmproxy = Vmproxy(machine, home)
    assert vmproxy.tell(converge.apply, check=False, verify=False).ok
    return vmproxy


@contextlib.contextmanager
def busybox() -> Iterator[NamespaceVM]:
    """A VM whose small programs are busybox's."""
    with NamespaceVM(docker="stub", shell="busybox") as machine:
        for name in APPLETS.split():
            machine.path("/usr/local/sbin").mkdir(parents=True, exist_ok=True)
            machine.path(f"/usr/local/sbin/{name}").symlink_to("/bin/busybox")
        yield machine


def main() -> None:
    """Write every world."""
    import tempfile

    FOLDER.mkdir(parents=True, exist_ok=True)
    worlds: dict[str, bytes] = {}
    with tempfile.TemporaryDirectory() as home:
        for variant in ("nft", "legacy"):
            with NamespaceVM(iptables=variant) as machine:
                worlds[f"fresh-{variant}"] = look(machine)
                machine.docker("network", "create", "--subnet", "172.30.1.0/24", "mine")
                applied(machine, Path(home))
                worlds[f"applied-{variant}"] = look(machine)
        with NamespaceVM(docker=False) as machine:
            worlds["no-docker"] = look(machine)
        with busybox() as machine:
            worlds["busybox-fresh"] = look(machine)
            Base(machine).write(PROFILE, b"# mine\r\nexport TZ=UTC", mode="600", owner="1000:50")
            applied(machine, Path(home))
            worlds["busybox-applied"] = look(machine)
        with NamespaceVM(docker="stub") as machine:
            base = Base(machine)
            machine.run(f"ln -s /etc/hostname {PROFILE}; mkdir {BOOTLOCAL}; mkdir {DATA}/.vmproxy-abc123")
            worlds["odd-kinds"] = look(machine)
            machine.run(f"rm {PROFILE}; rmdir {BOOTLOCAL} {DATA}/.vmproxy-abc123")
            base.write(PROFILE, b"cat <<END\n@" + NONCE[:-1].encode() + b"0 end\nnever closed \xff\0\n", mode="4751")
            base.write(BOOTLOCAL, b"#!/bin/sh\nif\n", mode="1644")
            worlds["odd-content"] = look(machine)
    for name, raw in worlds.items():
        (FOLDER / f"{name}.txt").write_bytes(raw)


if __name__ == "__main__":
    main()
