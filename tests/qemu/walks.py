"""What the walks through a VM's life share: a VM that is up, and Debian's command over ssh and look at a stop."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeVar

from tests.lab.qemu import QemuVM
from tests.lab.systemdvm import SystemdVM
from tests.qemu.conftest import Command, Ran
from tests.qemu.test_qemu_apply import _RULES
from vmproxy.guests import systemd

ENVIRON = "tr '\\0' '\\n' </proc/$(cat /run/docker.pid)/environ | grep -i proxy | sort"
"""The proxy's variables that dockerd runs with, sorted."""

_FILES = (
    "cd /etc && find . \\( -path ./systemd/\\* -o -path ./docker/\\* -o -name '*vmproxy*' \\) -print | sort | "
    "while read -r f; do ls -ldn $f | awk '{print $1, $3, $4, $NF}'; [ ! -f $f ] || sha256sum $f; done"
)
# Until the unit that docker.service wants has done its work.
_SETTLE = f"while case $(systemctl is-active {systemd.UNIT_NAME}) in activ*) ;; *) false ;; esac; do sleep 0.5; done"

_VM = TypeVar("_VM", bound=QemuVM)


@contextmanager
def booted(vm: _VM) -> Iterator[_VM]:
    """The VM, booted, with the image ``busybox``; ended afterwards."""
    with vm:
        vm.start()
        vm.import_image()
        yield vm


class OverSsh(Command):
    """The command for a VM that only ssh knows."""

    def _words(self, command: str, words: tuple[str, ...]) -> list[str]:
        target = f"ssh://docker@127.0.0.1:{self.vm.port}"
        return [command, "--vm", target, "--identity", str(self.vm.key), *words]


@dataclass(kw_only=True)
class DebianWalk:
    """What was seen at each stop of the way: by command its run, by stop the lines of the rules and the files."""

    runs: dict[str, Ran] = field(default_factory=dict)
    rules: dict[str, list[str]] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)

    def look(self, machine: SystemdVM, name: str) -> None:
        """Write down what is there at that stop, once the unit has done its work."""
        machine.root(_SETTLE, timeout_seconds=300)
        self.rules[name] = machine.root(_RULES).text.splitlines()
        self.files[name] = machine.root(_FILES).text

    def ours(self, name: str) -> list[str]:
        """vmproxy's rules at that stop, sorted."""
        return sorted(line for line in self.rules[name] if "VMPROXY" in line)

    def last_forward(self, name: str) -> str:
        """The last rule of FORWARD at that stop."""
        return [line for line in self.rules[name] if line.startswith("-A FORWARD")][-1]
