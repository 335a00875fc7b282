"""Power cuts at every step of one run: what a cut would leave is a copy of the disk while the guest stands still.

Shims in the guest stand before each command that changes something; each asks this machine before it does its work,
and while it waits QEMU is stopped and its disk copied. That is what ``kill -9`` would leave: all that the guest has
written to its disk, nothing of what it only holds in memory.
"""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from tests.lab.qemu import GATEWAY, QemuVM
from tests.lab.qmp import Qmp

CHANGING = ("mv", "rm", "cp", "dd", "mkdir", "mktemp", "chmod", "chown", "sync", "iptables-legacy-restore", "setsid")
"""What commit.sh changes the VM with, and the restart of Docker."""

_DATA = "/var/lib/boot2docker"
_SHIM = """#!/bin/sh
name=${0##*/}
# dd also reads; only one that writes a file counts.
case "$name $*" in 'dd '*of=*) ;; 'dd '*) exec /bin/dd "$@" ;; esac
curl -s -m 300 --noproxy '*' "http://GATEWAY:PORT/$name" >/dev/null
for dir in /usr/sbin /usr/bin; do [ ! -x "$dir/$name" ] || exec "$dir/$name" "$@"; done
exit 127
"""


@dataclass(frozen=True, kw_only=True)
class Left:
    """A file as a disk has it: its bytes, permission bits and owner."""

    content: bytes
    mode: int
    uid: int
    gid: int


class Cuts:
    """Where shims report. ``copies`` are (command, disk) in order.

    With ``kill_at`` nothing is copied, and QEMU is killed at that step.
    """

    def __init__(self, vm: QemuVM, directory: Path, *, kill_at: int = 0) -> None:
        self.copies: list[tuple[str, Path]] = []
        cuts, self._one = self, threading.Lock()

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                with cuts._one:
                    step = len(cuts.copies) + 1
                    copy = directory / f"{step}.qcow2"
                    cuts.copies.append((self.path.strip("/"), copy))
                    if step == kill_at:
                        vm.power_cut()
                        return
                    if not kill_at:
                        copy_disk(vm, copy)
                with contextlib.suppress(OSError):
                    self.send_response(204)
                    self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.port: int = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.1}, daemon=True).start()

    def close(self) -> None:
        """Hear no more. What a shim was waiting for, a power cut among it, is over then."""
        self._server.shutdown()
        with self._one:
            pass
        self._server.server_close()


def copy_disk(vm: QemuVM, copy: Path) -> None:
    """The disk of a running VM as a power cut would leave it now."""
    with Qmp(vm.state / "qmp") as qmp:
        qmp.ask("stop")
        try:
            shutil.copyfile(vm.disk, copy)
        finally:
            qmp.ask("cont")


@contextlib.contextmanager
def cuts(vm: QemuVM, directory: Path, *, kill_at: int = 0) -> Iterator[Cuts]:
    """Shims in the guest for as long as this lasts; they are in its memory, so a power cut takes them too."""
    heard = Cuts(vm, directory, kill_at=kill_at)
    text = _SHIM.replace("GATEWAY", GATEWAY).replace("PORT", str(heard.port)).encode()
    names = " ".join(CHANGING)
    try:
        vm.root(
            f"cat >/run/shim; chmod 755 /run/shim; for n in {names}; do /bin/ln -s /run/shim /usr/local/sbin/$n; done",
            stdin=text,
        )
        yield heard
        if not kill_at:
            vm.root(f"cd /usr/local/sbin && /bin/rm -f {names}")
    finally:
        heard.close()


def left(disk: Path) -> dict[str, Left]:
    """The plain files in ``/var/lib/boot2docker`` itself, as the next boot finds them: after the journal's replay.

    The copy itself is removed: a run makes more than fifty.
    """
    raw = disk.with_suffix(".raw")
    try:
        _run("qemu-img", "convert", "-q", "-O", "raw", str(disk), str(raw))
        # 1: errors corrected, which is what the boot's own check does.
        _run("e2fsck", "-p", "-E", "journal_only", str(raw), ok=(0, 1))
        found = {}
        for line in _debugfs(raw, f"ls -p {_DATA}").decode("utf-8", "surrogateescape").splitlines():
            # /INODE/MODE/UID/GID/NAME/SIZE/ (debugfs(8)); a directory has no size.
            fields = line.split("/")
            if len(fields) > 6 and fields[2].startswith("100"):
                content = _debugfs(raw, f"cat <{fields[1]}>")
                assert len(content) == int(fields[6])
                found[fields[5]] = Left(
                    content=content, mode=int(fields[2], 8) & 0o7777, uid=int(fields[3]), gid=int(fields[4])
                )
        return found
    finally:
        for file in (raw, disk):
            file.unlink(missing_ok=True)


def _debugfs(raw: Path, request: str) -> bytes:
    return _run("debugfs", "-R", request, str(raw))


def _run(*argv: str, ok: tuple[int, ...] = (0,)) -> bytes:
    path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    done = subprocess.run(argv, capture_output=True, check=False, timeout=120, env={"PATH": path, "LC_ALL": "C"})
    assert done.returncode in ok, (argv, done.returncode, done.stderr[-500:])
    return done.stdout
