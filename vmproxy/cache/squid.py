"""The engine ``squid``: configured in the cache's directory, started as our child, watched, and ended with us.

Its log comes through a pipe and becomes our counters; no address is ever written to a file but in its store. It is
told to end by a watcher, too, which sees our end even where that was SIGKILL.
"""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
import secrets
import shutil
import signal
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from vmproxy.cache import squidconf, squidlog, squidstore
from vmproxy.cache.control import Control, ask
from vmproxy.cache.guard import check_settings
from vmproxy.cache.limits import CacheSettings
from vmproxy.cache.listening import own_addresses, refused, try_listening
from vmproxy.cache.place import SQUID, begin_log, lock, prepare
from vmproxy.cache.sample import HOST as SAMPLE_HOST
from vmproxy.cache.sample import Sample
from vmproxy.cache.squidask import Asker
from vmproxy.cache.stats import Stats
from vmproxy.errors import Busy, LostContact, NotPermitted, Refused, UsageError
from vmproxy.hostproc import clean_environment

_PLACES = ("/usr/sbin", "/usr/local/sbin", "/opt/homebrew/sbin", "/opt/local/sbin")
_USERS = ("proxy", "squid", "_squid", "nobody")
_READY_SECONDS = 60.0
_POLL_SECONDS = 0.05
_SAVE_SECONDS = 60.0
_ORPHAN_SECONDS = 30.0
_KILL_SECONDS = 10.0
_SAID_LINES = 50
_LINE_LIMIT = 64 << 10
_NOT_FOR_IT = ("VMPROXY_", "NOTIFY_SOCKET")
_WATCH = 'cat >/dev/null; kill -TERM "-$1"; sleep 5; kill -KILL "-$1"'


def find_squid() -> str:
    """The path of squid. Raises UsageError."""
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), *_PLACES])
    found = shutil.which("squid", path=path)
    if os.name != "posix" or not found:
        hint = "apt install squid, or brew install squid; --engine embedded needs none"
        raise UsageError("there is no squid on this machine", hint=hint)
    return found


class Squid:
    """A squid of ours. See :class:`vmproxy.cache.engines.Engine`."""

    name = "squid"
    ready = True
    beside: Callable[[], dict[str, Any]] | None = None

    def __init__(
        self, settings: CacheSettings, *, log: Callable[[str], None] | None, warn: Callable[[str], None]
    ) -> None:
        check_settings(settings)
        self.settings = settings
        self.stats = Stats()
        self._log = log
        self._warn = warn
        self._directory = os.path.join(settings.directory, SQUID)
        self._control = Control(self)
        self._said: deque[bytes] = deque(maxlen=_SAID_LINES)
        self._lock: int | None = None
        self._child: asyncio.subprocess.Process | None = None
        self._watcher: asyncio.subprocess.Process | None = None
        self._asker: Asker | None = None
        self._pipe: _Log | None = None
        self._chores: list[asyncio.Task[None]] = []
        self._hearing: asyncio.Task[None] | None = None
        self._stopping = False
        self.sample = Sample()

    def lend(self, port: int) -> None:
        """squid knows the object's name from its start."""

    async def start(self) -> int:
        """Configure and start it, and wait until it answers; the port."""
        program = find_squid()
        prepare(self.settings.directory)
        self._lock = await self._take()
        begin_log(self.settings.directory)
        try:
            try_listening(self.settings)
            await self._begin(program)
        except BaseException:
            await self.stop()
            raise
        return self.settings.port

    async def _take(self) -> int | None:
        """The directory's lock; that of a run that was killed is waited for, its squid is about to end."""
        until = asyncio.get_running_loop().time() + _ORPHAN_SECONDS
        while True:
            try:
                return lock(self.settings.directory)
            except Busy:
                question = {"do": "status"}
                owner = await asyncio.to_thread(ask, self.settings.directory, question)
                if owner or asyncio.get_running_loop().time() > until:
                    raise
                await asyncio.sleep(0.2)

    async def _begin(self, program: str) -> None:
        settings = self.settings
        # The same name for every run on this directory: what squid leaves in /dev/shm when it is killed is used again.
        service = "vmproxy" + hashlib.sha256(os.fsencode(settings.directory)).hexdigest()[:12]
        user, group, owner = _to_become()
        await self.sample.start()  # squid is told its port once, and asks there at its start
        run = squidconf.Run(
            name=f"vmproxy-{secrets.token_hex(4)}",
            secret=secrets.token_hex(16),
            own=await own_addresses(),
            user=user,
            group=group,
            verbose=self._log is not None,
            sample_port=self.sample.port,
        )
        text = squidconf.render(settings, run)
        try:
            self._furnish(text, owner)
            self._pipe = await _Log.open(os.path.join(self._directory, squidconf.LOG), self._line)
        except OSError as error:
            raise NotPermitted(f"the store cannot be used: {error.strerror}", where=self._directory) from None
        words = ("-N", "-n", service, "-f", squidconf.CONF)
        if not os.path.exists(os.path.join(self._directory, squidconf.STORE, "0F", "FF")):
            await self._run(program, "-z", *words)
            await self._child_ended()
        await self._run(program, *words)
        await self._watch()
        self._asker = Asker(settings, run)
        await self._ready()
        self._control.load()
        await self._control.start()
        self._chores.append(asyncio.create_task(self._keep()))

    def _furnish(self, text: str, owner: tuple[int, int] | None) -> None:
        """The directory's parts; the configuration for us alone. Raises OSError.

        ``owner`` is the user that squid becomes: it owns its store and the pipe, and nothing that names them, so that
        it cannot have us write elsewhere; it stands in the directory already when it changes.
        """
        os.makedirs(self._directory, mode=0o700, exist_ok=True)
        store, log = (os.path.join(self._directory, name) for name in (squidconf.STORE, squidconf.LOG))
        os.makedirs(store, mode=0o700, exist_ok=True)
        with suppress(FileNotFoundError):
            os.unlink(log)
        os.mkfifo(log, 0o600)
        new = os.path.join(self._directory, squidconf.CONF + ".new")
        with suppress(FileNotFoundError):
            os.unlink(new)
        handle = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(handle, "w", encoding="ascii") as file:
            file.write(text)
        os.replace(new, os.path.join(self._directory, squidconf.CONF))
        os.chmod(self._directory, 0o711 if owner else 0o700)
        if owner:
            for path in (store, log):
                os.chown(path, *owner, follow_symlinks=False)

    async def _run(self, program: str, *words: str) -> None:
        try:
            self._child = await asyncio.create_subprocess_exec(
                program,
                *words,
                cwd=self._directory,
                env=_environment(),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.PIPE,
                # It holds the lock as long as it lives, also after our end.
                pass_fds=() if self._lock is None else (self._lock,),
                start_new_session=True,
                limit=_LINE_LIMIT,
            )
        except OSError as error:
            raise UsageError(f"squid cannot be started: {error.strerror}", where=program) from None
        assert self._child.stderr  # noqa: S101
        self._hearing = asyncio.create_task(self._hear(self._child.stderr))
        self._chores.append(self._hearing)

    async def _hear(self, stream: asyncio.StreamReader) -> None:
        while piece := await stream.read(_LINE_LIMIT):
            self._said.extend(piece.splitlines())

    async def _child_ended(self) -> None:
        """Wait for the one that only makes directories. Raises Refused, LostContact."""
        assert self._child  # noqa: S101
        try:
            async with asyncio.timeout(_READY_SECONDS):
                status = await self._child.wait()
        except TimeoutError:
            what = f"squid does not make its directories within {_READY_SECONDS:g} s"
            raise LostContact(what, where=self._directory, hint="--dir DIR on a faster disk, or again") from None
        if status:
            raise await self._failed()
        self._child = None

    async def _last_words(self) -> str:
        """What it said before its end, all of which may not have come yet."""
        if self._hearing:
            await asyncio.wait([self._hearing], timeout=_KILL_SECONDS)
        return squidlog.reason(b"\n".join(self._said))

    async def _failed(self) -> Refused:
        why = await self._last_words()
        if "HTTP Socket" in why:
            return refused(self.settings, OSError(errno.EADDRINUSE, why))
        return Refused(f"squid does not start: {why or 'it says nothing'}", where=self._directory, hint="--dir DIR")

    async def _watch(self) -> None:
        assert self._child  # noqa: S101
        self._watcher = await asyncio.create_subprocess_exec(
            *("/bin/sh", "-c", _WATCH, "sh", str(self._child.pid)),
            env=_environment(),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
            start_new_session=True,
        )

    async def _ready(self) -> None:
        """Wait until it answers. Raises Refused, LostContact."""
        assert self._child and self._asker  # noqa: S101
        until = asyncio.get_running_loop().time() + _READY_SECONDS
        while await self._asker.info() is None:
            if self._child.returncode is not None:
                raise await self._failed()
            if asyncio.get_running_loop().time() > until:
                raise LostContact("squid does not answer in time", where=self._directory, hint="--engine embedded")
            await asyncio.sleep(_POLL_SECONDS)

    async def _keep(self) -> None:
        while True:
            await asyncio.sleep(_SAVE_SECONDS)
            self._control.save()

    def _line(self, line: str) -> None:
        said = squidlog.count(self.stats, line)
        if said and self._log:
            self._log(said)

    async def ended(self) -> None:
        """Wait for an end that nobody asked for. Raises LostContact."""
        assert self._child  # noqa: S101
        status = await self._child.wait()
        if self._stopping:
            return
        how = f"by signal {-status}" if status < 0 else f"with exit code {status}"
        why = await self._last_words()
        hint = "vmproxy cache serve --engine squid starts it again"
        raise LostContact(f"squid ended {how}{': ' if why else ''}{why}", where=self._directory, hint=hint)

    async def stop(self) -> None:
        """End it and what belongs to it."""
        self._stopping = True
        if self._watcher and self._watcher.returncode is None:
            with suppress(ProcessLookupError):
                os.killpg(self._watcher.pid, signal.SIGKILL)
            await self._watcher.wait()
        if self._child and self._child.returncode is None:
            for number, seconds in (
                (signal.SIGTERM, self.settings.limits.grace_seconds + _KILL_SECONDS),
                (signal.SIGKILL, _KILL_SECONDS),
            ):
                with suppress(ProcessLookupError):
                    self._child.send_signal(number)
                with suppress(TimeoutError):
                    async with asyncio.timeout(seconds):
                        await self._child.wait()
                        break
        if self._pipe:
            self._pipe.close()
        self.sample.stop()
        for task in self._chores:
            task.cancel()
        await asyncio.gather(*self._chores, return_exceptions=True)
        await self._control.stop()
        for name in (squidconf.LOG, squidconf.CONF):
            with suppress(OSError):
                os.unlink(os.path.join(self._directory, name))
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    async def held(self) -> dict[str, Any]:
        """What it says that it keeps."""
        info = await self._asker.info() if self._asker else None
        return {**squidlog.held(info or ""), "limit": self.settings.size}

    async def purge(self, pattern: str) -> tuple[int, int]:
        """Ask it to forget what fits a glob, on disk and in memory; (how many, bytes on disk)."""
        if not self._asker:
            return 0, 0
        if pattern.startswith(f"http://{SAMPLE_HOST}/") and not set(pattern) & set("*?["):
            # The object of a proof: nobody wants its size, for which the whole store would be searched.
            return len(await self._asker.purge([pattern])), 0
        store = os.path.join(self._directory, squidconf.STORE)
        files = await asyncio.to_thread(squidstore.fitting, store, pattern)
        held = {url: size for _path, url, size in files}
        in_memory = await self._asker.in_memory(pattern)
        gone = await self._asker.purge([*held, *sorted(in_memory - held.keys())])
        return len(gone), sum(size for url, size in held.items() if url in gone)


def _environment() -> dict[str, str]:
    """For squid and its watcher: without our own variables, one of which may hold the upstream's password.

    Nor has squid anything to tell the manager whose service we are.
    """
    return clean_environment({name: value for name, value in os.environ.items() if not name.startswith(_NOT_FOR_IT)})


def _to_become() -> tuple[str, str, tuple[int, int] | None]:
    """(user, group, their numbers) for squid, which refuses to work as root; ("", "", None) where we are not root."""
    if os.geteuid() != 0:
        return "", "", None
    import grp
    import pwd

    for name in _USERS:
        with suppress(KeyError):
            user = pwd.getpwnam(name)
            return name, grp.getgrgid(user.pw_gid).gr_name, (user.pw_uid, user.pw_gid)
    raise UsageError("there is no user for squid to become", hint="run it as another user than root")


class _Log(asyncio.Protocol):
    """The pipe that squid writes its log to. A writer of ours is kept open: squid's reopening is no end of it."""

    def __init__(self, take: Callable[[str], None]) -> None:
        self._take = take
        self._rest = b""
        self._transport: asyncio.BaseTransport | None = None
        self._writer = -1

    @classmethod
    async def open(cls, path: str, take: Callable[[str], None]) -> _Log:
        """Read lines from a named pipe. Raises OSError."""
        reader = os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb", buffering=0)
        made = cls(take)
        made._writer = os.open(path, os.O_WRONLY | os.O_NONBLOCK)
        made._transport, _protocol = await asyncio.get_running_loop().connect_read_pipe(lambda: made, reader)
        return made

    def data_received(self, data: bytes) -> None:
        """Some of the log came."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        self._rest = self._rest[-_LINE_LIMIT:]
        for line in lines:
            self._take(line.decode("latin-1"))

    def close(self) -> None:
        """Read no more."""
        if self._transport:
            self._transport.close()
        if self._writer >= 0:
            os.close(self._writer)
            self._writer = -1


__all__ = ["Squid", "find_squid"]
