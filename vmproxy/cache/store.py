"""Entries on disk: one directory of ours (0700), one file an entry, published by rename, the least used removed first.

The index lives in memory and is rebuilt at the start: what is partial, foreign or broken is removed. Nothing is synced:
after a power cut a file may be short or hold other bytes; its footer or a block's digest says so and it is dropped.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import suppress
from fnmatch import fnmatchcase

from vmproxy.cache.draft import PART, Draft
from vmproxy.cache.entry import BLOCK, Body, Corrupt, Entry, name_of, read_tail, tail
from vmproxy.cache.message import Head
from vmproxy.cache.place import ENTRIES, lock, prepare
from vmproxy.cache.policy import Stored, matches
from vmproxy.errors import NotPermitted

_NAME = re.compile(r"[0-9a-f]{64}")
_TOUCH_SECONDS = 60.0
_VARIANTS = 32
_ENTRIES_LIMIT = 100_000  # each takes about a kilobyte of memory
_APPENDED_LIMIT = 256 << 10


class Store:
    """The entries of one directory. One thread at a time, but for a Draft's and a Body's own reading and writing.

    ``limit`` and ``memory`` are bytes on disk and of bodies kept in memory. Raises Busy where another process has the
    directory, NotPermitted where it cannot be used, Refused where it is somebody else's.
    """

    def __init__(self, directory: str, *, limit: int, memory: int = 0, now: Callable[[], float] = time.time) -> None:
        self.directory = directory
        self.limit = limit
        self.total = 0
        self.removed_at_start = 0
        self._memory_limit = memory
        self._memory: OrderedDict[str, int] = OrderedDict()
        self._in_memory = 0
        self._now = now
        self._entries: OrderedDict[str, Entry] = OrderedDict()
        self._by_url: dict[str, list[Entry]] = {}
        self._path = os.path.join(directory, ENTRIES)
        prepare(directory)
        self._lock = lock(directory)
        try:
            os.makedirs(self._path, mode=0o700, exist_ok=True)
            self._load()
        except OSError as error:
            self.close()
            raise NotPermitted(f"the store cannot be used: {error.strerror}", where=directory) from None

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def open_for_use(self) -> bool:
        """Whether the directory is still held."""
        return self._lock is not None

    @property
    def object_limit(self) -> int:
        """The largest body that is kept."""
        return self.limit // 4

    def close(self) -> None:
        """Give the directory back."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _load(self) -> None:
        found = []
        with os.scandir(self._path) as files:
            for file in files:
                entry = None
                try:
                    if _NAME.fullmatch(file.name) and file.is_file(follow_symlinks=False):
                        entry = self._read(file.name)
                        found.append((file.stat(follow_symlinks=False).st_mtime, entry))
                except (Corrupt, OSError):
                    entry = None
                if entry is None and not file.is_dir(follow_symlinks=False):
                    os.unlink(file.path)
                    self.removed_at_start += 1
        for _used, entry in sorted(found, key=lambda pair: pair[0]):
            self._add(entry)
        self._make_room(0)

    def _read(self, name: str) -> Entry:
        with open(os.path.join(self._path, name), "rb") as file:
            url, stored, length, _digests = read_tail(file)
            size = os.fstat(file.fileno()).st_size
        if name_of(url, stored.asked) != name:
            raise Corrupt
        return Entry(name=name, url=url, stored=stored, length=length, size=size)

    def _add(self, entry: Entry) -> None:
        self._entries[entry.name] = entry
        self._by_url.setdefault(entry.url, []).append(entry)
        self.total += entry.size

    def _make_room(self, size: int, keep: str = "") -> None:
        if keep in self._entries:
            self._entries.move_to_end(keep)
        while self._entries and (self.total + size > self.limit or len(self._entries) >= _ENTRIES_LIMIT):
            name = next(iter(self._entries))
            if name == keep:
                return
            self.drop(self._entries[name])

    def find(self, url: str, request: Head) -> Entry | None:
        """The variant of an address that the request selects, the newest where there are several."""
        found = self._by_url.get(url)
        if not found:
            return None
        fitting = [entry for entry in found if matches(entry.stored, request)]
        return max(fitting, key=lambda entry: entry.stored.received, default=None)

    def holds(self, entry: Entry) -> bool:
        """Whether an entry is still the one that is given."""
        return self._entries.get(entry.name) is entry

    def use(self, entry: Entry) -> None:
        """Note that an entry was used just now, unless it is gone."""
        if not self.holds(entry):
            return
        self._entries.move_to_end(entry.name)
        now = self._now()
        if now - entry.touched > _TOUCH_SECONDS:
            entry.touched = now
            with suppress(OSError):
                os.utime(os.path.join(self._path, entry.name), (now, now))

    def open(self, entry: Entry) -> Body:
        """The body for reading. Raises Corrupt, OSError; the entry is dropped then."""
        try:
            file = open(os.path.join(self._path, entry.name), "rb", buffering=0)  # noqa: SIM115
        except OSError:
            self.drop(entry)
            raise
        try:
            url, _stored, length, digests = read_tail(file)
            if url != entry.url or length != entry.length:
                raise Corrupt
            return Body(file, length, digests)
        except (Corrupt, OSError):
            file.close()
            self.drop(entry)
            raise

    def whole(self, entry: Entry) -> bytes:
        """The whole body of a small entry, checked once, then kept in memory. Raises Corrupt, OSError."""
        if entry.body is not None:
            self._memory.move_to_end(entry.name)
            return entry.body
        body = self.open(entry)
        try:
            data = b"".join(body.block(number) for number in range(-(-body.length // BLOCK)))
        except (Corrupt, OSError):
            self.drop(entry)
            raise
        finally:
            body.close()
        self._remember(entry, data)
        return data

    def _remember(self, entry: Entry, data: bytes) -> None:
        if len(data) > self._memory_limit:
            return
        entry.body = data
        self._memory[entry.name] = len(data)
        self._in_memory += len(data)
        while self._in_memory > self._memory_limit:
            self._forget(next(iter(self._memory)))

    def _forget(self, name: str) -> None:
        self._in_memory -= self._memory.pop(name, 0)
        if entry := self._entries.get(name):
            entry.body = None

    def draft(self) -> Draft:
        """A new file to write a body into. Raises OSError."""
        return Draft(os.path.join(self._path, secrets.token_hex(16) + PART))

    def put(self, url: str, stored: Stored, body: bytes) -> Entry:
        """Keep a small response. Raises OSError (a full disk); nothing is kept then."""
        draft = self.draft()
        try:
            draft.write(body)
            size = draft.finish(url, stored)
            draft.file.close()
            entry = self.publish(draft, url, stored, size)
        finally:
            draft.discard()
        self._remember(entry, body)
        return entry

    def publish(self, draft: Draft, url: str, stored: Stored, size: int) -> Entry:
        """Make a finished draft an entry, in the place of the one that was there. Raises OSError."""
        name = name_of(url, stored.asked)
        self._make_room(size, keep=name)
        os.replace(draft.path, os.path.join(self._path, name))
        draft.path = ""
        if name in self._entries:
            self._take_out(self._entries[name])
        # What Vary names may have changed: entries that were kept by other fields are not found rightly any more.
        asked = {field for field, _value in stored.asked}
        for other in self._by_url.get(url, [])[:]:
            if {field for field, _value in other.stored.asked} != asked:
                self.drop(other)
        variants = self._by_url.get(url, [])
        while len(variants) >= _VARIANTS:
            self.drop(variants[0])
        entry = Entry(name=name, url=url, stored=stored, length=draft.length, size=size)
        entry.touched = self._now()
        self._add(entry)
        self._make_room(0, keep=name)
        return entry

    def renew(self, entry: Entry, stored: Stored) -> Entry:
        """The entry with the head that a 304 confirmed; its file is appended to. Raises Corrupt, OSError.

        Corrupt, too, where it is gone meanwhile: what lies under its name then has a head of its own.
        """
        if not self.holds(entry):
            raise Corrupt
        path = os.path.join(self._path, entry.name)
        with open(path, "r+b", buffering=0) as file:
            url, _old, length, digests = read_tail(file)
            if url != entry.url:
                raise Corrupt
            size = file.seek(0, os.SEEK_END)
            rest = tail(url, stored, length, digests)
            if size + len(rest) > length + 4 * len(digests) + _APPENDED_LIMIT:
                rest = b""  # confirmed so often that the file would only grow: after a restart it is asked for once
            try:
                if file.write(rest) != len(rest):
                    raise OSError(errno.ENOSPC, "no room")
            except OSError:
                file.truncate(size)
                raise
        body = entry.body
        self._take_out(entry)
        fresh = Entry(name=entry.name, url=url, stored=stored, length=length, size=size + len(rest))
        self._add(fresh)
        if body is not None:
            self._remember(fresh, body)
        return fresh

    def _take_out(self, entry: Entry) -> None:
        self._forget(entry.name)
        del self._entries[entry.name]
        self.total -= entry.size
        siblings = self._by_url[entry.url]
        siblings.remove(entry)
        if not siblings:
            del self._by_url[entry.url]

    def drop(self, entry: Entry) -> None:
        """Remove an entry; whoever is reading it goes on reading."""
        if not self.holds(entry):
            return
        self._take_out(entry)
        with suppress(OSError):
            os.unlink(os.path.join(self._path, entry.name))

    def invalidate(self, url: str) -> None:
        """Remove every variant of an address."""
        for entry in self._by_url.get(url, [])[:]:
            self.drop(entry)

    def purge(self, pattern: str = "*") -> tuple[int, int]:
        """Remove the entries whose address fits a glob; (how many, bytes)."""
        fitting = [entry for entry in self._entries.values() if fnmatchcase(entry.url, pattern)]
        for entry in fitting:
            self.drop(entry)
        return len(fitting), sum(entry.size for entry in fitting)

    def entries(self) -> Iterator[Entry]:
        """The entries, the least used first."""
        return iter(list(self._entries.values()))


__all__ = ["Corrupt", "Draft", "Store"]
