"""The one door to the host's processes, files and ports for discovery. Everything is bounded in time and bytes."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, ClassVar

from vmproxy.errors import LostContact, NotPermitted, Refused, UsageError

if TYPE_CHECKING:
    import subprocess

_FOREIGN = ("LD_", "DYLD_", "PYTHON", "VMPROXY_SSH_")
_FOREIGN_NAMES = frozenset({"BASH_ENV", "ENV", "IFS", "GCONV_PATH", "PERL5LIB", "PERL5OPT", "RUBYOPT", "NODE_OPTIONS"})


@dataclass(frozen=True, kw_only=True)
class Output:
    """What a process gave: bounded bytes and its exit status (negative: the signal that ended it)."""

    stdout: bytes
    stderr: bytes
    status: int


def clean_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """The environment for a child: without what changes how programs load or parse, without our secrets, LC_ALL=C."""
    kept = {
        name: value
        for name, value in environ.items()
        if not name.upper().startswith(_FOREIGN) and name.upper() not in _FOREIGN_NAMES
    }
    return {**kept, "LC_ALL": "C"}


def read_file(path: str, *, limit_bytes: int = 1 << 20) -> bytes | None:
    """The bytes of a plain file; None where there is none. Raises UsageError for one that is odd, big or unreadable."""
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot read the file: {getattr(error, 'strerror', None) or error}", where=path) from error
    if not os.path.isfile(descriptor):
        os.close(descriptor)
        raise UsageError("not a plain file", where=path)
    with os.fdopen(descriptor, "rb") as stream:
        try:
            data = stream.read(limit_bytes + 1)
        except OSError as error:
            raise UsageError(f"cannot read the file: {error.strerror}", where=path) from error
    if len(data) > limit_bytes:
        raise UsageError(f"the file is bigger than {limit_bytes} bytes", where=path)
    return data


def is_file(path: str) -> bool:
    """Whether there is a plain file (or a link to one) of that name."""
    return os.path.isfile(path)


def is_directory(path: str) -> bool:
    """Whether there is a directory (or a link to one) of that name."""
    return os.path.isdir(path)


def list_directory(path: str, *, limit: int = 1000) -> tuple[str, ...]:
    """The names in a directory, sorted; () where it is none or cannot be read."""
    with contextlib.suppress(OSError, ValueError), os.scandir(path) as found:
        return tuple(sorted(entry.name for _, entry in zip(range(limit), found, strict=False)))
    return ()


def own_address(address: str) -> bool:
    """Whether an address is one of this machine's: only those can be bound to."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.bind((address, 0))
    except OSError:
        return False
    return True


def port_open(host: str, port: int, *, timeout_seconds: float = 1.0) -> bool:
    """Whether something takes TCP connections there. Nothing is sent; ``*_proxy`` variables are not used."""
    try:
        with socket.create_connection((host, port), timeout=timeout_seconds):
            return True
    except (OSError, UnicodeError, OverflowError):
        return False


def exchange(host: str, port: int, question: bytes, *, timeout_seconds: float = 1.0, limit_bytes: int = 65536) -> bytes:
    """What comes back for some bytes, until the other side ends, the time is over or there is enough."""
    answer = b""
    deadline = time.monotonic() + timeout_seconds
    with (
        contextlib.suppress(OSError, UnicodeError, OverflowError),
        socket.create_connection((host, port), timeout=timeout_seconds) as talk,
    ):
        talk.sendall(question)
        while len(answer) < limit_bytes and (left := deadline - time.monotonic()) > 0:
            talk.settimeout(left)
            piece = talk.recv(limit_bytes - len(answer))
            if not piece:
                break
            answer += piece
    return answer


def listeners(port: int) -> tuple[str, ...]:
    """The names of the programs that listen on a TCP port of this machine, as far as we may see them; Linux only.

    Of a script it is the script's name.
    """
    sockets = set()
    for path in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in _lines_of(path):
            words = line.split()
            if len(words) > 9 and words[3] == "0A" and words[1].endswith(f":{port:04X}"):
                sockets.add(f"socket:[{words[9]}]")
    names = []
    for process in list_directory("/proc", limit=100_000) if sockets else ():
        if process.isdigit() and any(
            _link(f"/proc/{process}/fd/{number}") in sockets
            for number in list_directory(f"/proc/{process}/fd", limit=10_000)
        ):
            names.append(_program(f"/proc/{process}"))
    return tuple(dict.fromkeys(filter(None, names)))


def _lines_of(path: str) -> list[str]:
    with contextlib.suppress(OSError), open(path, encoding="latin-1") as file:
        return file.read(16 << 20).splitlines()
    return []


def _link(path: str) -> str:
    with contextlib.suppress(OSError):
        return os.readlink(path)
    return ""


def _program(process: str) -> str:
    with contextlib.suppress(OSError), open(f"{process}/cmdline", "rb") as file:
        words = file.read(4096).decode("utf-8", "replace").split("\0")
        names = [word.rpartition("/")[2] for word in words]
        if names[0].startswith("python"):
            return next((name for name in names[1:] if not name.startswith("-")), names[0])
        return names[0]
    return ""


def run(
    argv: tuple[str, ...],
    *,
    timeout_seconds: float = 10.0,
    limit_bytes: int = 1 << 20,
    environ: Mapping[str, str],
    data: bytes | None = None,
    stoppable: Callable[[Callable[[], None]], AbstractContextManager[None]] | None = None,
) -> Output | None:
    """Run a program with ``data`` on its stdin, None for a closed one, and a clean environment; None where it is not
    installed.

    Raises LostContact at the time limit and Refused at the byte limit; the program and its children are ended then.
    ``stoppable(call)`` is a context in which another thread may make that call, which ends them.
    """
    import subprocess

    try:
        child = subprocess.Popen(  # noqa: S603 - argv, never a shell
            argv,
            stdin=subprocess.DEVNULL if data is None else subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=clean_environment(environ),
            start_new_session=os.name != "nt",
        )
    except (FileNotFoundError, PermissionError, NotADirectoryError):
        return None
    pipes = [_Pipe(child.stdout, child, limit_bytes), _Pipe(child.stderr, child, limit_bytes)]
    if child.stdin is not None:
        threading.Thread(target=_feed, args=(child.stdin, data), daemon=True).start()
    deadline = time.monotonic() + timeout_seconds
    try:
        with stoppable(lambda: _end(child)) if stoppable else contextlib.nullcontext():
            child.wait(timeout_seconds)
            for pipe in pipes:
                pipe.join(max(0.0, deadline - time.monotonic()) + 0.2)
            if any(pipe.is_alive() for pipe in pipes):
                raise subprocess.TimeoutExpired(argv, timeout_seconds)
    except subprocess.TimeoutExpired as error:
        raise LostContact(f"no end within {timeout_seconds:g} s", where=argv[0]) from error
    finally:
        _end(child)
        for pipe in pipes:
            pipe.join(1.0)
    if any(pipe.overflow for pipe in pipes):
        raise Refused(f"more than {limit_bytes} bytes of output", where=argv[0])
    return Output(stdout=bytes(pipes[0].data), stderr=bytes(pipes[1].data), status=child.returncode)


def become(argv: tuple[str, ...], environ: Mapping[str, str]) -> int:
    """Give this process to a program: the terminal, signals and exit code are its own. ``environ`` is used as it is.

    Returns only on Windows, which has no exec: the program's exit code. Raises UsageError where it cannot be started.
    """
    name = argv[0]
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    # Python ignores these from its start; a program expects to end by them.
    ignored = [getattr(signal, key) for key in ("SIGPIPE", "SIGXFSZ") if hasattr(signal, key)]
    try:
        if os.name == "nt":
            return attend(argv, {key.upper(): value for key, value in environ.items()})  # there they are the same
        before = {number: signal.signal(number, signal.SIG_DFL) for number in ignored}
        try:
            os.execvpe(name, argv, environ)  # noqa: S606 - argv, never a shell
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
    except (FileNotFoundError, NotADirectoryError):
        raise UsageError("there is no such command", where=name, hint="is it in PATH?") from None
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise UsageError(f"the command cannot be started: {why}", where=name) from None


class Detached:
    """A program that goes on when we end. Only while we live we can tell that it has ended."""

    _all: ClassVar[list[Detached]] = []

    def __init__(self, child: subprocess.Popen[bytes]) -> None:
        self._child = child
        self._all.append(self)  # a forgotten Popen warns of a child that still runs, which is what is wanted here

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._child.pid

    def ended(self) -> bool:
        """Whether it has ended."""
        return self._child.poll() is not None

    def end(self) -> None:
        """Ask it to end, and make it after 5 seconds; with all that it started."""
        import subprocess

        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            self._child.terminate()
            self._child.wait(5.0)
        _end(self._child)


def detach(argv: tuple[str, ...], *, log: str, directory: str, environ: Mapping[str, str]) -> Detached:
    """Start a program in a session of its own, in ``directory``, with nothing of our terminal; it writes into ``log``.

    The log is readable by its owner only. What it holds stays: another program may write into it at that moment, and
    who knows better empties it. Raises NotPermitted, UsageError.
    """
    import subprocess

    try:
        handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | getattr(os, "O_NOFOLLOW", 0), 0o600)
    except OSError as error:
        raise NotPermitted(f"the log cannot be written: {error.strerror}", where=log) from None
    flags = getattr(subprocess, "DETACHED_PROCESS", 0) | getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0)
    try:
        child = subprocess.Popen(  # noqa: S603 - argv, never a shell
            argv,
            stdin=subprocess.DEVNULL,
            stdout=handle,
            stderr=handle,
            cwd=directory,
            env=dict(environ),
            start_new_session=os.name != "nt",
            creationflags=flags,
        )
    except OSError as error:
        raise UsageError(f"the program cannot be started: {error.strerror}", where=argv[0]) from None
    finally:
        os.close(handle)
    return Detached(child)


def attend(argv: tuple[str, ...], environ: Mapping[str, str]) -> int:
    """Start a program and wait for its end, past every Ctrl-C, which it gets too; its exit code, 128+n by signal."""
    import shutil
    import subprocess

    found = shutil.which(argv[0], path=environ.get("PATH", os.defpath)) or argv[0]
    with subprocess.Popen((found, *argv[1:]), env=dict(environ)) as child:  # noqa: S603 - argv, never a shell
        while child.poll() is None:
            with contextlib.suppress(KeyboardInterrupt):
                child.wait()
        return child.returncode if child.returncode >= 0 else 128 - child.returncode


def _feed(stream: IO[bytes], data: bytes) -> None:
    """Write all that a program takes; it may end before, or be ended."""
    with contextlib.suppress(OSError, ValueError), stream:
        stream.write(data)


class _Pipe(threading.Thread):
    """Drains one pipe up to the limit; both are drained at once, so that the child never waits for us."""

    def __init__(self, stream: IO[bytes] | None, child: subprocess.Popen[bytes], limit_bytes: int) -> None:
        super().__init__(daemon=True)
        self.data = bytearray()
        self.overflow = False
        self._stream = stream
        self._child = child
        self._limit_bytes = limit_bytes
        self.start()

    def run(self) -> None:
        if self._stream is None:
            return
        with contextlib.suppress(OSError, ValueError), self._stream as stream:
            while piece := os.read(stream.fileno(), 65536):
                self.data += piece
                if len(self.data) > self._limit_bytes:
                    self.overflow = True
                    _end(self._child)
                    return


def _end(child: subprocess.Popen[bytes]) -> None:
    """End the child and what it started; it leads its own session."""
    with contextlib.suppress(OSError):
        if os.name == "nt":
            child.kill()
        else:
            os.killpg(child.pid, signal.SIGKILL)
    import subprocess

    with contextlib.suppress(subprocess.TimeoutExpired):
        child.wait(2.0)
