"""Transport ``openssh``: the host's ssh program, with all that the user's ssh_config says.

One ssh process is the connection: it runs a command that only holds its input open, and listens on a control socket in
a directory of ours; each channel is one more ssh process at that socket. So there is one log-in, however many commands
there are, and the connection ends when we end, however we end: its input ends with us. Where a master of the user's
own listens on the ControlPath of ssh_config, the channels go there. No master of ours stays.

A Ctrl-C at the terminal is for us alone, who then let the VM put things back: the processes have a session of their
own. Only where a person has to be asked, ssh has to keep the terminal; it is started ignoring those signals then, which
ssh leaves so (as rsh did: clientloop.c).
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from vmproxy.errors import LostContact, NotPermitted, Unreachable, UsageError
from vmproxy.model import Target, printable
from vmproxy.transports import SshOptions, _known_hosts
from vmproxy.transports._jump import JUMP_HINT, check_name
from vmproxy.transports._rundir import RunDirectory
from vmproxy.transports._sshprocess import END_SECONDS, SshProcess, popen
from vmproxy.transports._sshprogram import Way, control_socket, options_of_run, usual_algorithms, way
from vmproxy.transports._sshsaid import Said, awaited_key
from vmproxy.transports._touch import Touch

_HOLD = "echo vmproxy-in; exec cat >/dev/null"  # the same in sh, csh and fish
_HELD = b"vmproxy-in\n"
_COMMAND_LIMIT_BYTES = 8 << 10  # dropbear drops a connection whose command passes about 9,000 bytes
_NOISE_LIMIT_BYTES = 64 << 10
_LOG_IN_SECONDS = 30.0
_PERSON_SECONDS = 300.0
_LOG_LIMIT_BYTES = 256 << 10
_SETTLE_SECONDS = 20.0
_FLUSH_SECONDS = 0.02  # for what ssh has not yet read of our pipe
_PASSING_BY = "trap '' INT QUIT HUP; exec \"$@\""
# For keys it goes first: such a server may promise better and not keep it.
_OLD = ("-o", "PubkeyAcceptedAlgorithms=^ssh-rsa")
_OLD_HOST_KEY = ("-o", "HostKeyAlgorithms=+ssh-rsa")
_OLD_PINNED = ("-o", "HostKeyAlgorithms=ssh-rsa")  # instead of those without certificates, which come with a pin
_asking = threading.Lock()


def connect(target: Target, *, options: SshOptions, first: str = "") -> OpensshConnection:
    """Connect and log in by the ssh program; ``first`` is started at once then.

    Raises Unreachable, Untrusted, NotPermitted, UsageError as the ``ssh`` transport does.
    """
    if os.name == "nt":
        raise UsageError("--ssh openssh needs a Linux or macOS host", hint="without --ssh openssh")
    check_name("host", target.host)
    if target.user:
        check_name("user", target.user)
    if re.search(r"[\s'\"`$\\;&<>|(){}]", target.host + target.user):
        raise UsageError("these characters cannot be told to ssh", where=printable(f"{target.user}@{target.host}"))
    for identity in options.identities:
        if not Path(identity).expanduser().is_file():
            raise UsageError("there is no such key file", where=printable(identity), hint="-i FILE: a private key")
    pin = _known_hosts.check_pin(options.host_key or target.host_key) if options.host_key or target.host_key else ""
    found = way(target, options, pin, environ=os.environ)
    if found.socket and _listens(found.socket):
        return _begun(OpensshConnection(found, options, RunDirectory(), found.socket, None), first, options.meanwhile)
    if not pin and not found.place.strict:
        _known_hosts.prepare(found.known_hosts)
    if not all(place.strict for _hop, place in found.hops):
        _known_hosts.prepare(_hop_file(options))
    directory = RunDirectory()
    try:
        with _new_keys(found, options, pin):
            master = _Opening(found, options, pin, directory).master()
    except BaseException:
        directory.remove()
        raise
    return _begun(OpensshConnection(found, options, directory, directory.path("s"), master), first)


def _begun(
    connection: OpensshConnection, first: str, meanwhile: Callable[[], object] = lambda: None
) -> OpensshConnection:
    """With its first command on its way."""
    try:
        connection.begin(first)
        meanwhile()
    except BaseException:
        connection.close()
        raise
    return connection


def _hop_file(options: SshOptions) -> Path:
    return Path(options.known_hosts or _known_hosts.default_path()).expanduser()


@contextlib.contextmanager
def _new_keys(found: Way, options: SshOptions, pin: str) -> Iterator[None]:
    """Say which host keys were kept meanwhile for the first time, also where the log-in fails after it."""
    places = [(_hop_file(options), place.name) for _hop, place in found.hops]
    if not pin:
        places.append((found.known_hosts, found.place.name))
    before = {place: _known_hosts.entries(_known_hosts.read(place[0]), place[1]) for place in places}
    try:
        yield
    finally:
        for (path, name), old in before.items():
            for entry in _known_hosts.entries(_known_hosts.read(path), name):
                if entry.blob not in [other.blob for other in old]:
                    kept = _known_hosts.fingerprint(entry.blob)
                    options.notify(f"new host key of {printable(name)} kept: {kept} ({path})")


class _Opening:
    """The tries to open one connection: without a person; with one, where that can help; with SHA-1, where the VM
    knows nothing better and nobody has forbidden it."""

    def __init__(self, found: Way, options: SshOptions, pin: str, directory: RunDirectory) -> None:
        self._way, self._options, self._pin, self._directory = found, options, pin, directory

    def master(self) -> SshProcess:
        """The process that is the connection. Raises Unreachable, Untrusted, NotPermitted."""
        opened = self._try(batch=True)
        old: tuple[str, ...] = ()
        if isinstance(opened, Said) and opened.needs_sha1 and usual_algorithms(self._way, self._options, os.environ):
            old = (*_OLD, *self._old_host_key(opened))
            self._options.notify(f"{self._way.place.text} knows RSA with SHA-1 only: tried again with ssh-rsa allowed")
            opened = self._try(batch=True, old=old)
        may_help = isinstance(opened, Said) and opened.person_may_help and self._options.ask is not None
        if may_help and not self._options.side_by_side:
            with _asking:
                self._options.notify(f"ssh asks for {self._way.place.text}")
                opened = self._try(batch=False, old=old)
        if isinstance(opened, Said):
            error = opened.error(_known_there(opened))
            if self._options.side_by_side and opened.device_failed:
                error.hint = "is the security key plugged in? without --jobs one VM after another asks it to sign"
            elif may_help and self._options.side_by_side:
                error.hint = "ssh-add, or without --jobs: several VMs at a time, ssh asks nothing"
            raise error
        return opened

    def _old_host_key(self, opened: Said) -> tuple[str, ...]:
        if self._pin:
            return _OLD_PINNED if opened.shows_sha1 else ()
        return _OLD_HOST_KEY

    def _try(self, *, batch: bool, old: tuple[str, ...] = ()) -> SshProcess | Said:
        """The process once the VM has answered its command, or what ssh said when it ended before."""
        log = self._directory.log()
        argv = [
            *([self._way.program] if batch else ["/bin/sh", "-c", _PASSING_BY, "sh", self._way.program]),
            *(self._config(batch) if self._way.config else self._way.where),
            *old,  # of two values the first counts
            *options_of_run(self._way, self._options, self._pin, batch=batch),
            *("-o", "LogLevel=DEBUG1", "-E", log, "-o", "ControlPersist=no", "-o", "ControlMaster=yes"),
            *("-o", f"ControlPath={control_socket(self._directory.path('s'))}"),
            *(*self._way.words, "-T", "--", self._way.host, _HOLD),
        ]
        # Without hops, what stands on stderr are words of the VM's.
        touch = Touch(
            lambda: awaited_key(_read(log)) or (awaited_key(_text(process)) if self._way.hops else ""),
            self._options.notify,
        )
        process = SshProcess(popen(argv, own_session=batch), _NOISE_LIMIT_BYTES, where=self._way.place.text, idle=touch)
        limit = _LOG_IN_SECONDS + (1 + len(self._way.hops)) * self._options.connect_timeout_seconds
        limit = limit if batch else _PERSON_SECONDS
        try:
            with self._options.stoppable(lambda: process.close(0.0)):
                self._options.meanwhile()
                if process.hears(_HELD, limit):
                    return process
        except LostContact:
            said = self._said(log, process)
            words = {"another": JUMP_HINT} if said.at_jump_host else {}
            missed = touch.missed(limit, said.stop, **words)
            process.close(0.0)
            raise missed or Unreachable(f"no log-in within {limit:g} s", where=said.stop) from None
        except BaseException:
            process.close(0.0)
            raise
        process.close(END_SECONDS)
        text = _read(log)
        if "Entering interactive session" in text or "exec request failed" in text:
            raise NotPermitted(
                "the VM's ssh server does not run commands for us",
                where=self._way.place.text,
                hint="a forced command?",
            )
        return self._said(log, process)

    def _said(self, log: str, process: SshProcess) -> Said:
        return Said(
            log=_read(log),
            more=_text(process),
            where=self._way.place.text,
            hops=tuple(place.text for _hop, place in self._way.hops),
            pin=self._pin,
            timeout_seconds=self._options.connect_timeout_seconds,
            direct=self._way.direct,
            password=self._way.password,
        )

    def _config(self, batch: bool) -> tuple[str, str]:
        path = Path(self._directory.path("config"))
        path.write_text(("BatchMode yes\n" if batch else "") + self._way.config, encoding="utf-8")
        return "-F", str(path)


class OpensshConnection:
    """Implements :class:`vmproxy.transports.Connection`: channels at one control socket.

    ``master`` is None where the socket is the user's own, which outlives us.
    """

    def __init__(
        self, found: Way, options: SshOptions, directory: RunDirectory, path: str, master: SshProcess | None
    ) -> None:
        self.place = found.place.text
        self._way, self._options, self._directory, self._socket = found, options, directory, path
        self._master = master
        self._channels: list[OpensshChannel] = []
        self._kept: tuple[str, OpensshChannel] | None = None
        self._closed = threading.Event()

    def begin(self, command: str) -> None:
        """Start a command, if any, for the first :meth:`start` of it. A loss is said then."""
        if command:
            with contextlib.suppress(LostContact):
                self._kept = command, self.start(command)

    def start(self, command: str) -> OpensshChannel:
        """Start a command without a pty. Raises LostContact."""
        if len(command.encode()) > _COMMAND_LIMIT_BYTES:
            raise ValueError("the command is too long for dropbear: it travels on stdin")
        kept, self._kept = self._kept, None
        if kept is not None:
            if kept[0] == command:
                return kept[1]
            kept[1].close()
        self._settle()
        if self._closed.is_set() or not self.lives(0.0):
            raise LostContact("the connection ended", where=self.place)
        log = self._directory.log()
        argv = [
            # Should the master go now, this process must not connect on its own.
            *(self._way.program, "-F", "none", "-o", "ProxyCommand=false", "-o", "BatchMode=yes"),
            *("-o", "ControlMaster=no", "-o", f"ControlPath={control_socket(self._socket)}"),
            *("-o", "LogLevel=INFO", "-E", log, "-T", "--", self._way.host, command),
        ]
        process = popen(argv, own_session=True)
        channel = OpensshChannel(process, self._options.output_limit_bytes, self, log)
        self._channels.append(channel)
        if self._closed.is_set():  # by another thread, which may not have seen this one
            channel.close(0.0)
            raise LostContact("the connection ended", where=self.place)
        return channel

    def lives(self, seconds: float) -> bool:
        """Whether the connection is still there after that time at most; it may be about to go."""
        deadline = time.monotonic() + seconds
        while True:
            if (self._master is not None and self._master.ended) or not _listens(self._socket):
                return False
            if time.monotonic() >= deadline:
                return True
            time.sleep(0.02)

    def close(self) -> None:
        """End every command's input, then the connection, as a library's socket is closed: what the VM makes of the
        end of its input does not need us. From whatever thread; safe to call twice."""
        self._closed.set()
        deadline = time.monotonic() + _FLUSH_SECONDS
        running: list[SshProcess] = [*self._channels, *([self._master] if self._master else [])]
        for process in running:
            process.let_go()
        for process in running:
            process.close(max(0.0, deadline - time.monotonic()))
        self._channels.clear()
        self._directory.remove()

    def _settle(self) -> None:
        """Let commands that are ending end: dropbear drops a connection whose next channel comes too early."""
        deadline = time.monotonic() + _SETTLE_SECONDS
        while any(channel.ending for channel in self._channels) and time.monotonic() < deadline:
            time.sleep(0.002)
        self._channels = [channel for channel in self._channels if not channel.over]


class OpensshChannel(SshProcess):
    """One command; implements :class:`vmproxy.transports.Channel`. A signal in the VM is a status of 255."""

    def __init__(self, process: subprocess.Popen[bytes], limit: int, connection: OpensshConnection, log: str) -> None:
        super().__init__(process, limit, where=connection.place)
        self._connection = connection
        self._log = log

    def wait(self, *, timeout_seconds: float) -> int | None:
        """The exit status after stdout has ended. Raises LostContact."""
        status = super().wait(timeout_seconds=timeout_seconds)
        if status == 255:
            self._explain()
        return status

    def _check_end(self, _seconds: float) -> None:
        # ssh holds its output until it ends, so its end is near; but a machine may stall right there.
        with contextlib.suppress(subprocess.TimeoutExpired):
            if self._process.wait(_SETTLE_SECONDS) == 255:
                self._explain()

    def _explain(self) -> None:
        """255 is ssh's own: the connection went, or the server gave no session; or else it is the command's."""
        if "session request failed" in _read(self._log) or "exec request failed" in bytes(self._said).decode("latin-1"):
            raise NotPermitted(
                "the VM's ssh server does not run commands for us", where=self._where, hint="a forced command?"
            )
        if not self._connection.lives(0.5):
            raise LostContact("the connection ended in the middle of a command", where=self._where)


def _listens(path: str) -> bool:
    """Whether somebody listens on that unix socket."""
    with contextlib.suppress(OSError, ValueError), socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(2.0)
        sock.connect(path)
        return True
    return False


def _read(path: str) -> str:
    """The last of what ssh wrote of itself."""
    try:
        with open(path, "rb") as stream:
            stream.seek(max(0, os.fstat(stream.fileno()).st_size - _LOG_LIMIT_BYTES))
            return stream.read(_LOG_LIMIT_BYTES).decode("utf-8", "replace")
    except OSError:
        return ""


def _text(process: SshProcess) -> str:
    """What the ssh processes of jump hosts say, and the servers' banners."""
    return process.stderr.decode("utf-8", "replace")


def _known_there(said: Said) -> str:
    """The fingerprint that stands where ssh found another key than the one it was shown, "" where it cannot be told."""
    if (offence := said.offence) is None:
        return ""
    with contextlib.suppress(UsageError):
        return _known_hosts.at_line(_known_hosts.read(Path(offence.path)), offence.line)
    return ""
