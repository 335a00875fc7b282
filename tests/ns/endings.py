"""How a run may end: its one error line, a VM that was left alone, and a VM put back to where a file of tests began.

::

    said = refused(vmproxy.apply("--proxy", "http://127.0.0.1:1"), 6, "nothing answers")
    with unchanged(vm):
        ...
"""

from __future__ import annotations

import contextlib
import re
import shlex
import unicodedata
from collections.abc import Iterator

from tests.lab.nsvm import NamespaceVM
from tests.ns.story import DATA, Ran, daemon_environment, daemon_pid, dump, files, until

_BIDI = "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
_OF_THE_LAB = ("etc", "log", "ssh")


def clean_text(text: str) -> bool:
    """No control characters but newline and tab, no escape sequences, no bidi marks (P17)."""
    return not any((unicodedata.category(c) == "Cc" and c not in "\n\t") or c in _BIDI for c in text)


def refused(ran: Ran, code: int, *words: str, secrets: tuple[str, ...] = ()) -> str:
    """Assert RELIABILITY's A3: that exit code, one error line of at most 200 characters with ``words`` in it, one hint
    line, no traceback, no secret, no control bytes. The error line."""
    assert ran.code == code, ran
    lines = ran.err.splitlines()
    errors = [line for line in lines if "error:" in line]
    assert len(errors) == 1, ran
    assert re.match(r"vmproxy: error: \S", errors[0]), ran
    assert len(errors[0]) <= 200, ran
    after = lines[lines.index(errors[0]) + 1 :]
    assert len(after) == 1, ran
    assert re.match(r"hint: \S", after[0]), ran
    for word in words:
        assert word in errors[0], (word, str(ran))
    assert "Traceback" not in ran.all, ran
    assert clean_text(ran.all), repr(ran.all)
    for secret in secrets:
        assert secret not in ran.all, ran
    return errors[0]


@contextlib.contextmanager
def unchanged(machine: NamespaceVM) -> Iterator[None]:
    """Nothing of the VM is another after the block: files with mode, owner and time, rules, the daemon, leftovers."""
    before = _picture(machine)
    yield
    after = _picture(machine)
    assert after == before


def _picture(machine: NamespaceVM) -> tuple[object, ...]:
    seen = files(machine)
    times = {path: held.mtime for path, held in seen.items() if held}
    work = machine.run("ls -A /run/vmproxy/ /run/ | grep -v '^lock$\\|^held$'; ls /tmp", check=False).stdout
    left = [line for line in work.decode().splitlines() if "work" in line or "proof" in line or "stale" in line]
    return seen, times, dump(machine), daemon_pid(machine), left


class Base:
    """One VM as it is now; ``reset`` brings it back here after whatever a test did to it, without a boot."""

    def __init__(self, machine: NamespaceVM) -> None:
        self.machine = machine
        self._saved = machine.run("iptables-save").stdout

    def reset(self) -> None:
        """Mounts over the disk, shims, files, our rules, switches of the stub, the daemon's environment."""
        machine = self.machine
        keep = " ".join(f"! -name {name}" for name in _OF_THE_LAB)
        machine.run(
            f"""
            while [ "$(grep -c ' {DATA} ' /proc/mounts)" -gt 1 ]; do umount -l {DATA} || exit 1; done
            chattr -i {DATA} 2>/dev/null
            rm -rf /usr/local/sbin/* /run/lab/stub/* /run/vmproxy
            find {DATA} -mindepth 1 -maxdepth 1 {keep} -exec rm -rf {{}} +
            chown docker:docker {DATA}; chmod 755 {DATA}
            """
        )
        machine.run(["iptables-restore", "-w"], stdin=self._saved)
        if not daemon_pid(machine) or any(name.lower().endswith("_proxy") for name in daemon_environment(machine)):
            machine.run('env -i PATH="$PATH" setsid /etc/init.d/docker restart </dev/null >/dev/null 2>&1')
            until(lambda: machine.run(["docker", "version"], check=False).returncode == 0, "Docker")

    def write(self, path: str, content: bytes, *, mode: str = "644", owner: str = "0:0") -> None:
        """A file of somebody else's in the VM."""
        quoted = shlex.quote(path)
        script = f"cat >{quoted} && chown {owner} {quoted} && chmod {mode} {quoted}"
        self.machine.run(script, stdin=content)
