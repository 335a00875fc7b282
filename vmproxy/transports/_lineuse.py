"""Who else has a line open. No two programs can share one: each would get half of what the VM says."""

from __future__ import annotations

import contextlib
import os

from vmproxy import hostproc
from vmproxy.errors import LostContact, Refused

_PROC = "/proc"
_CONNECTED = "03"  # SS_CONNECTED: a server has taken the connection (net/unix/af_unix.c, unix_seq_show)


def users_of_terminal(path: str) -> list[int]:
    """Other processes that have the terminal open, as far as one may see; the one behind it (a VM's) is none."""
    if os.path.isdir(f"{_PROC}/self/fd"):
        return [pid for pid in _pids() if pid != os.getpid() and _has_open(pid, path) and not _is_behind(pid, path)]
    with contextlib.suppress(LostContact, Refused):  # macOS
        found = hostproc.run(("lsof", "-t", "--", path), environ=os.environ)
        if found is not None:
            words = found.stdout.decode("ascii", "replace").split()
            return [int(word) for word in words if word.isdigit() and int(word) != os.getpid()]
    return []


def socket_is_taken(path: str) -> bool:
    """Whether a server on this unix socket already talks to somebody, where the system tells (Linux)."""
    try:
        with open(f"{_PROC}/net/unix", "rb") as table:
            lines = table.read(4 << 20).splitlines()
    except OSError:
        return False
    names = {os.fsencode(path), os.fsencode(os.path.abspath(path)), os.fsencode(os.path.realpath(path))}
    rows = [line.split(None, 7) for line in lines[1:]]
    return any(len(row) == 8 and row[7] in names and row[5] == _CONNECTED.encode("ascii") for row in rows)


def name_of(pid: int) -> str:
    """A process's name and number, for a message."""
    with contextlib.suppress(OSError), open(f"{_PROC}/{pid}/comm", "rb") as stream:
        return f"{stream.read(64).strip().decode('utf-8', 'backslashreplace')}, process {pid}"
    return f"process {pid}"


def _pids() -> list[int]:
    return [int(name) for name in os.listdir(_PROC) if name.isdigit()]


def _has_open(pid: int, path: str) -> bool:
    with contextlib.suppress(OSError):
        for name in os.listdir(f"{_PROC}/{pid}/fd"):
            with contextlib.suppress(OSError):
                if os.readlink(f"{_PROC}/{pid}/fd/{name}") == path:
                    return True
    return False


def _is_behind(pid: int, path: str) -> bool:
    """Whether it holds the other end of this pseudo terminal (proc(5): the fdinfo of a master names it)."""
    number = path.rpartition("/")[2]
    with contextlib.suppress(OSError):
        for name in os.listdir(f"{_PROC}/{pid}/fd"):
            with contextlib.suppress(OSError):
                if not os.readlink(f"{_PROC}/{pid}/fd/{name}").endswith("ptmx"):
                    continue
                with open(f"{_PROC}/{pid}/fdinfo/{name}", encoding="ascii") as stream:
                    if f"tty-index:\t{number}\n" in stream.read(4096):
                        return True
    return False
