"""Status and purge of a running proxy: a unix socket in its directory, which only its user can enter.

One line of JSON asks, one answers. On Windows, which has no such socket, the counters of stats.json are what there is.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from vmproxy.cache import place, squidstore
from vmproxy.cache.place import CONTROL, ENTRIES, NEW, SQUID, STATS
from vmproxy.cache.sample import Sample
from vmproxy.cache.squidconf import STORE
from vmproxy.cache.stats import Stats
from vmproxy.cache.store import Store
from vmproxy.errors import Busy, LostContact, NotPermitted, UsageError

if TYPE_CHECKING:
    from vmproxy.cache.engines import Engine

_LINE_LIMIT = 1 << 20
_ANSWER_SECONDS = 30.0
_PURGE_SECONDS = 3600.0  # a store of a hundred thousand files is searched, and each is asked for
_PATH_LIMIT = 100  # sun_path ends at 104 to 108 bytes
_FILE_LIMIT = 4 << 20


@contextmanager
def _address(directory: str) -> Iterator[str]:
    """The socket's path, short enough to be used: through an open directory where it is too long."""
    path = os.path.join(directory, CONTROL)
    if len(os.fsencode(path)) <= _PATH_LIMIT:
        yield path
        return
    if not os.path.isdir("/proc/self/fd"):
        raise UsageError(
            "the directory's path is too long for a socket", where=directory, hint="--dir DIR, a shorter one"
        )
    try:
        handle = os.open(directory, os.O_RDONLY)
    except OSError as error:
        raise NotPermitted(f"the directory cannot be used: {error.strerror}", where=directory) from None
    try:
        yield f"/proc/self/fd/{handle}/{CONTROL}"
    finally:
        os.close(handle)


def read_stats(directory: str) -> Stats:
    """The counters of the last run; zeros where there was none, or where they cannot be read."""
    stats = Stats()
    with suppress(OSError, ValueError), open(os.path.join(directory, STATS), "rb") as file:
        stats.load(json.loads(file.read(_FILE_LIMIT)))
    return stats


class Control:
    """The running proxy's side."""

    def __init__(self, proxy: Engine) -> None:
        self._proxy = proxy
        self._directory = proxy.settings.directory
        self._server: asyncio.Server | None = None
        self._begun = time.time()
        self._sample: Sample | None = None
        self._lending = asyncio.Lock()
        self._loaded = False

    def load(self) -> None:
        """Go on with the counters of the run before."""
        self._loaded = True
        self._proxy.stats.load(read_stats(self._directory).document())

    def save(self) -> None:
        """Keep the counters; a full disk is no reason to end."""
        path = os.path.join(self._directory, STATS)
        with suppress(OSError):
            handle = os.open(path + NEW, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            with os.fdopen(handle, "w", encoding="ascii") as file:
                json.dump(self._proxy.stats.document(), file)
            os.replace(path + NEW, path)

    async def start(self) -> None:
        """Listen in the directory, which is ours alone: what lies there is of a run that was killed.

        Raises NotPermitted, UsageError.
        """
        if not hasattr(asyncio, "start_unix_server"):
            return
        with suppress(OSError):
            os.unlink(os.path.join(self._directory, CONTROL))
        try:
            with _address(self._directory) as path:
                self._server = await asyncio.start_unix_server(self._serve, path, limit=_LINE_LIMIT)
            os.chmod(os.path.join(self._directory, CONTROL), 0o600)
        except OSError as error:
            what = f"the socket for status and purge cannot be made: {error.strerror}"
            hint = "--dir DIR, on a file system of this machine's own"
            raise NotPermitted(what, where=os.path.join(self._directory, CONTROL), hint=hint) from None

    async def stop(self) -> None:
        """Keep the counters, of a run that came so far as to have any, and stop listening."""
        if self._sample is not None:
            self._sample.stop()
        if self._loaded:
            self.save()
        if self._server:
            self._server.close()
            with suppress(OSError):
                os.unlink(os.path.join(self._directory, CONTROL))

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, ValueError, TimeoutError, asyncio.LimitOverrunError):
            async with asyncio.timeout(_ANSWER_SECONDS) as limit:
                asked = json.loads(await reader.readline())
                limit.reschedule(asyncio.get_running_loop().time() + _seconds(asked))
                writer.write(json.dumps(await self._answer(asked)).encode() + b"\n")
                await writer.drain()
        writer.close()

    async def _answer(self, asked: Any) -> dict[str, Any]:
        if not isinstance(asked, dict):
            return {"error": "not an object"}
        if asked.get("do") == "purge":
            count, freed = await self._proxy.purge(str(asked.get("pattern", "*")))
            return {"entries": count, "bytes": freed}
        if asked.get("do") == "sample":
            return await self._lend()
        if asked.get("do") == "sample-end":
            return {"asked": await self._take_back(str(asked.get("url", "")))}
        if asked.get("do") == "stop":
            # As whoever runs it in the foreground would: after this answer.
            asyncio.get_running_loop().call_soon(signal.raise_signal, signal.SIGTERM)
            return {"stopping": True}
        if asked.get("do") == "status":
            proxy = self._proxy
            return {
                "running": True,
                "ready": proxy.ready,
                "engine": proxy.name,
                "upstream": str(proxy.settings.upstream or ""),
                "pid": os.getpid(),
                "listen": f"{proxy.settings.address}:{proxy.settings.port}",
                "options": proxy.settings.words(),
                "seconds": round(time.time() - self._begun),
                **({"pip": proxy.beside()} if proxy.beside else {}),
                **await proxy.held(),
                **proxy.stats.document(),
            }
        return {"error": "unknown question"}

    async def _lend(self) -> dict[str, Any]:
        """Have the proxy know one more of :mod:`vmproxy.cache.sample`'s objects, where the engine can."""
        lend = getattr(self._proxy, "lend", None)
        if lend is None:
            return {"error": "not with this engine"}
        async with self._lending:
            if self._sample is None:  # squid has one from its start
                sample = getattr(self._proxy, "sample", None) or Sample()
                if not sample.port:
                    await sample.start()
                self._sample = sample
        lend(self._sample.port)
        return {"url": self._sample.lend()}

    async def _take_back(self, url: str) -> int:
        """Forget one object again, and no other's; how often its origin was asked."""
        asked = None if self._sample is None else self._sample.take_back(url)
        if asked is None:
            return 0
        if self._sample is not None and not self._sample.lent:
            self._proxy.lend(0)  # type: ignore[attr-defined]
        await self._proxy.purge(url)
        return asked


def _seconds(question: Any) -> float:
    """How long an answer may take."""
    return _PURGE_SECONDS if isinstance(question, dict) and question.get("do") == "purge" else _ANSWER_SECONDS


def ask(directory: str, question: dict[str, Any]) -> dict[str, Any] | None:
    """Ask the proxy that runs on a directory; None where none does. Raises LostContact, and NotPermitted where nobody
    may look there: what runs in somebody else's directory cannot be told from nothing."""
    if not place.is_there(directory) or not hasattr(socket, "AF_UNIX"):
        return None
    with _address(directory) as path, socket.socket(socket.AF_UNIX) as talk:
        talk.settimeout(_seconds(question))
        try:
            talk.connect(path)
        except OSError:
            return None
        try:
            talk.sendall(json.dumps(question).encode() + b"\n")
            with talk.makefile("rb") as answers:
                found = json.loads(answers.readline())
        except (OSError, ValueError):
            raise LostContact("the running cache does not answer", where=directory) from None
    return found if isinstance(found, dict) else None


def status(directory: str) -> dict[str, Any]:
    """What the cache in a directory did and holds, whether it runs or not."""
    running = ask(directory, {"do": "status"})
    if running:
        return running
    entries = size = 0
    with suppress(OSError), os.scandir(os.path.join(directory, ENTRIES)) as files:
        for file in files:
            if len(file.name) == 64:
                entries += 1
                size += file.stat(follow_symlinks=False).st_size
    for _path, file_size in squidstore.files(os.path.join(directory, SQUID, STORE)):
        entries, size = entries + 1, size + file_size
    return {"running": False, "entries": entries, "size": size, **read_stats(directory).document()}


def purge(directory: str, pattern: str) -> tuple[int, int]:
    """Remove entries by a glob of their address, of a running proxy or of its store; (how many, bytes).

    Raises Busy where a proxy runs there that cannot be asked, LostContact.
    """
    answer = ask(directory, {"do": "purge", "pattern": pattern})
    if answer:
        return int(answer.get("entries", 0)), int(answer.get("bytes", 0))
    if not os.path.isdir(directory):
        return 0, 0
    try:
        store = Store(directory, limit=1 << 62)
    except Busy as error:
        raise Busy(error.what, where=error.where, hint="end it, then purge") from None
    try:
        count, freed = store.purge(pattern)
        more, bytes_too = squidstore.purge(os.path.join(directory, SQUID, STORE), pattern)
        return count + more, freed + bytes_too
    finally:
        store.close()


__all__ = ["Control", "ask", "purge", "read_stats", "status"]
