"""One download that several clients read: collapsed forwarding, at the origin's pace, with flat memory.

The body goes into a draft of the store, and each reader takes it from there at its own pace. Where there is no room (a
full disk, an object too large to keep) the download goes on without being kept, at the pace of the slowest reader: one
piece is held in memory until everybody has it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress

from vmproxy.cache.entry import Entry
from vmproxy.cache.message import BadMessage, Head
from vmproxy.cache.origin import Answer, NoAnswer
from vmproxy.cache.policy import Stored, matches
from vmproxy.cache.store import Draft, Store
from vmproxy.cache.wire import Lost

_PIECE = 256 << 10
_FINISH_ALONE = 1 << 20


class Spool:
    """The body of one answer on its way into the store, and to its readers."""

    def __init__(self, store: Store, url: str, stored: Stored, answer: Answer) -> None:
        self.url = url
        self.stored = stored
        self.answer = answer
        self.length = answer.body.length
        self.total = 0
        self.entry: Entry | None = None
        self.failed = False
        self.done = False
        self._store = store
        self._draft: Draft | None = None
        self._kept = True
        self._window = b""
        self._readers: dict[object, int] = {}
        self._moved = asyncio.Event()
        self._taken = asyncio.Event()
        self._busy = 0
        with suppress(OSError):
            self._draft = store.draft()
        self._kept = self._draft is not None

    @property
    def open(self) -> bool:
        """Whether another reader can still begin: everything so far is in the draft."""
        return self._kept and not self.done

    def join(self) -> object:
        """A new reader, at the beginning."""
        token = object()
        self._readers[token] = 0
        return token

    def leave(self, token: object) -> None:
        """A reader goes; the draft goes with the last one, if the download is over."""
        self._readers.pop(token, None)
        self._taken.set()
        self._tidy()

    def _tidy(self) -> None:
        if self.done and not self._readers and not self._busy and self._draft:
            self._draft.discard()
            self._draft = None

    async def read(self, token: object) -> bytes:
        """The next bytes for a reader; b"" at the end. Raises Lost where the download broke off.

        The last byte comes when the entry is published: who has it all and asks again finds it in the store.
        """
        while True:
            at = self._readers[token]
            kept = self._draft.length if self._draft else 0
            publishing = self._kept and kept == self.length and not self.done
            if at < kept and self._draft and not publishing:
                self._busy += 1
                try:
                    # No more than there was now: while it is read the end may be written, which is not published yet.
                    data = await asyncio.to_thread(self._draft.read, at, min(_PIECE, kept - at))
                except OSError:
                    raise Lost("the draft cannot be read") from None
                finally:
                    self._busy -= 1
                    self._tidy()
                if not data:
                    raise Lost("the draft cannot be read")
            elif at < self.total and not publishing:
                data = self._window[at - self.total :]
            elif self.failed:
                raise Lost("the body broke off")
            elif self.done:
                return b""
            else:
                self._moved.clear()
                await self._moved.wait()
                continue
            self._readers[token] = at + len(data)
            self._taken.set()
            return data

    async def pump(self, finished: Callable[[bool], None]) -> None:
        """Get the body; publish it if it came whole. ``finished`` is told whether the origin's wire can be kept."""
        whole = False
        try:
            while data := await self.answer.body.read():
                if not self._readers and not self._worth_finishing():
                    return
                await self._add(data)
            whole = True
            if self._kept and self._draft and self._store.open_for_use:
                await self._publish(self._draft)
        except (Lost, BadMessage):
            self.failed = True
        finally:
            self.failed = self.failed or not whole
            self.done = True
            self._moved.set()
            self._tidy()
            finished(whole)

    def _worth_finishing(self) -> bool:
        left = self.length - self.total
        return self._kept and self.length >= 0 and (left <= _FINISH_ALONE or left <= self.total)

    async def _add(self, data: bytes) -> None:
        if self._kept and self._draft:
            if self.total + len(data) <= self._store.object_limit:
                try:
                    await asyncio.to_thread(self._draft.write, data)
                except OSError:
                    self._kept = False
                else:
                    self.total += len(data)
                    self._moved.set()
                    return
            self._kept = False
        while any(at < self.total for at in self._readers.values()):
            self._taken.clear()
            await self._taken.wait()
        self._window = data
        self.total += len(data)
        self._moved.set()

    async def _publish(self, draft: Draft) -> None:
        with suppress(OSError):
            size = await asyncio.to_thread(draft.finish, self.url, self.stored)
            self.entry = self._store.publish(draft, self.url, self.stored, size)


class Flight:
    """What several clients wait for that asked the same. Settled once, with one of the four."""

    def __init__(self) -> None:
        self.entry: Entry | None = None
        self.spool: Spool | None = None
        self.failure: NoAnswer | None = None
        self.alone = False
        """The answer is not for others: everybody asks for himself."""
        self._settled = asyncio.Event()

    def settle(
        self, *, entry: Entry | None = None, spool: Spool | None = None, failure: NoAnswer | None = None
    ) -> None:
        """Tell those who wait."""
        self.entry, self.spool, self.failure = entry, spool, failure
        self.alone = not (entry or spool or failure)
        self._settled.set()

    @property
    def settled(self) -> bool:
        """Whether those who wait were told."""
        return self._settled.is_set()

    async def outcome(self, request: Head) -> Flight:
        """Wait for it; ``alone`` where what came is another variant than the request wants."""
        await self._settled.wait()
        stored = self.entry.stored if self.entry else self.spool.stored if self.spool else None
        if stored and not matches(stored, request):
            other = Flight()
            other.settle()
            return other
        return self
