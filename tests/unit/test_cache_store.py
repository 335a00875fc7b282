"""The store: what was published is found and whole, or is not found at all; nothing passes the limit."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from vmproxy.cache.entry import BLOCK, Digests, digest
from vmproxy.cache.message import Head
from vmproxy.cache.policy import Stored
from vmproxy.cache.store import Corrupt, Store
from vmproxy.errors import Busy, Refused

REQUEST = Head([], 1, method="GET", target="http://a/")


def stored(asked: tuple[tuple[str, str], ...] = (), etag: str = '"1"') -> Stored:
    """A head to keep."""
    fields = [("Cache-Control", "max-age=60"), ("ETag", etag), *((("Vary", "accept"),) if asked else ())]
    return Stored(fields=fields, received=time.time(), age=0.0, asked=asked)


def body_of(store: Store, url: str) -> bytes | None:
    """What the store gives for an address, read from the disk."""
    entry = store.find(url, REQUEST)
    if entry is None:
        return None
    try:
        body = store.open(entry)
    except (Corrupt, OSError):
        return None
    try:
        return b"".join(body.block(number) for number in range(-(-entry.length // BLOCK)))
    except Corrupt:
        return None
    finally:
        body.close()


def files(directory: Path) -> list[Path]:
    """The files of the entries."""
    return sorted((directory / "entries").iterdir())


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A place for a store."""
    return tmp_path / "store"


def test_what_was_kept_is_there_after_a_restart(directory: Path) -> None:
    """Heads and bodies, small, empty and of several blocks, byte for byte; directory and files are the user's alone."""
    bodies = {"http://a/": b"x", "http://b/?q": b"", "http://c/": os.urandom(BLOCK * 2 + 5), "http://d/": b"z" * BLOCK}
    store = Store(str(directory), limit=1 << 30)
    for url, body in bodies.items():
        store.put(url, stored(), body)
    store.close()
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    assert all(stat.S_IMODE(file.stat().st_mode) == 0o600 for file in files(directory))
    again = Store(str(directory), limit=1 << 30)
    assert {url: body_of(again, url) for url in bodies} == bodies
    entry = again.find("http://a/", REQUEST)
    assert entry and entry.stored.fields == stored().fields
    again.close()


def test_what_a_killed_process_left_is_removed_at_the_start(directory: Path) -> None:
    """kill -9 in the midst of writing: whole entries stay, halves go, the lock is free."""
    code = f"""
import os, signal, sys
sys.path.insert(0, {str(Path(__file__).resolve().parents[2])!r})
from tests.unit.test_cache_store import Store, stored
store = Store({str(directory)!r}, limit=1 << 30)
store.put("http://whole/", stored(), b"whole")
draft = store.draft()
draft.write(b"half" * 1000)
other = store.draft()
other.write(b"unpublished")
other.finish("http://unpublished/", stored())
os.kill(os.getpid(), signal.SIGKILL)
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -9
    assert len(files(directory)) == 3
    store = Store(str(directory), limit=1 << 30)
    assert store.removed_at_start == 2
    assert body_of(store, "http://whole/") == b"whole"
    assert len(files(directory)) == len(store) == 1
    store.close()


@settings(max_examples=60, deadline=None)
@given(data=st.data(), size=st.sampled_from([0, 3, 700, BLOCK + 100]))
def test_f75_a_changed_file_is_never_given(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, size: int
) -> None:
    """Any flipped bit, any cut, anything appended: the right bytes or nothing."""
    directory = tmp_path_factory.mktemp("bits")
    body = bytes(index % 251 for index in range(size))
    store = Store(str(directory), limit=1 << 30)
    store.put("http://a/", stored(), body)
    store.close()
    (file,) = files(directory)
    content = bytearray(file.read_bytes())
    how = data.draw(st.sampled_from(["flip", "cut", "append"]))
    at = data.draw(st.integers(0, 1 << 30)) % len(content)  # the length is not the same each time
    if how == "flip":
        content[at] ^= 1 << data.draw(st.integers(0, 7))
    elif how == "cut":
        del content[at:]
    else:
        content += data.draw(st.binary(min_size=1, max_size=300))
    file.write_bytes(content)
    again = Store(str(directory), limit=1 << 30)
    assert body_of(again, "http://a/") in (None, body)
    if how != "flip":
        assert body_of(again, "http://a/") is None
        assert not files(directory)
    again.close()


def test_foreign_files_are_removed_and_renamed_ones_are_not_believed(directory: Path) -> None:
    """An entry under another entry's name is none."""
    store = Store(str(directory), limit=1 << 30)
    store.put("http://a/", stored(), b"a")
    store.close()
    (file,) = files(directory)
    file.rename(file.with_name("0" * 64))
    (directory / "entries" / "note.txt").write_text("mine")
    again = Store(str(directory), limit=1 << 30)
    assert len(again) == 0
    assert again.removed_at_start == 2
    again.close()


class Lru(RuleBasedStateMachine):
    """The store against a model: a dict in the order of use, within the limit."""

    LIMIT = 20_000

    def __init__(self) -> None:
        super().__init__()
        import tempfile

        self.directory = tempfile.TemporaryDirectory()
        self.store = Store(self.directory.name, limit=self.LIMIT, memory=3000)
        self.model: dict[str, bytes] = {}

    urls = st.sampled_from([f"http://host/{index}" for index in range(12)])

    @rule(url=urls, size=st.integers(0, 6000))
    def put(self, url: str, size: int) -> None:
        """Keep one; the least used make room."""
        body = os.urandom(size)
        entry = self.store.put(url, stored(), body)
        self.model.pop(url, None)
        self.model[url] = body
        sizes = {found.url: found.size for found in self.store.entries()}
        gone = [name for name in self.model if name not in sizes]
        assert gone == list(self.model)[: len(gone)]
        for name in gone:
            del self.model[name]
        assert entry.size == sizes[url]

    @rule(url=urls)
    def get(self, url: str) -> None:
        """Use one."""
        entry = self.store.find(url, REQUEST)
        assert (entry is None) == (url not in self.model)
        if entry:
            self.store.use(entry)
            assert self.store.whole(entry) == self.model[url]
            self.model[url] = self.model.pop(url)

    @rule(url=urls)
    def renew(self, url: str) -> None:
        """Confirm one."""
        entry = self.store.find(url, REQUEST)
        if entry:
            fresh = self.store.renew(entry, stored(etag='"2"'))
            assert self.store.find(url, REQUEST) is fresh
            assert self.store.whole(fresh) == self.model[url]
            self.model[url] = self.model.pop(url)

    @rule(url=urls)
    def drop(self, url: str) -> None:
        """Invalidate one."""
        self.store.invalidate(url)
        self.model.pop(url, None)

    @rule()
    def restart(self) -> None:
        """Begin again; what was used less than a minute after the last note keeps its place only roughly."""
        for index, entry in enumerate(self.store.entries()):
            os.utime(os.path.join(self.directory.name, "entries", entry.name), (index, index))
        self.store.close()
        self.store = Store(self.directory.name, limit=self.LIMIT, memory=3000)
        assert self.store.removed_at_start == 0

    @invariant()
    def holds(self) -> None:
        """The same entries in the same order, within the limit, and the files are exactly those."""
        entries = list(self.store.entries())
        assert [entry.url for entry in entries] == list(self.model)
        on_disk = {file.name: file.stat().st_size for file in os.scandir(os.path.join(self.directory.name, "entries"))}
        assert on_disk == {entry.name: entry.size for entry in entries}
        assert self.store.total == sum(on_disk.values())
        kept = [entry for entry in entries if entry.body is not None]
        assert sum(len(entry.body or b"") for entry in kept) == self.store._in_memory <= 3000

    def teardown(self) -> None:
        """Clean up."""
        self.store.close()
        self.directory.cleanup()


Lru.TestCase.settings = settings(max_examples=25, stateful_step_count=30, deadline=None)
TestLru = Lru.TestCase
TestLru.__doc__ = "The least used go first, never one more than needed, and files and index are the same."


def test_variants_live_side_by_side_until_vary_changes(directory: Path) -> None:
    """One entry a value; when the origin begins to vary by something else, the old ones go."""
    store = Store(str(directory), limit=1 << 30)
    for value in ("de", "fr"):
        store.put("http://a/", stored((("accept", value),)), value.encode())
    german = Head([("Accept", "de")], 1)
    found = store.find("http://a/", german)
    assert found and store.whole(found) == b"de"
    assert store.find("http://a/", REQUEST) is None
    store.put("http://a/", stored(), b"all")
    assert len(store) == 1
    for number in range(40):
        store.put("http://b/", stored((("accept", str(number)),)), b"")
    assert len(store) == 1 + 32
    store.close()


def test_purge_takes_what_a_glob_fits(directory: Path) -> None:
    """Addresses are compared whole; the rest stays."""
    store = Store(str(directory), limit=1 << 30)
    for url in ("http://a/x.deb", "http://a/y.deb", "http://b/x.deb"):
        store.put(url, stored(), b"12345")
    assert store.purge("http://a/*.deb")[0] == 2
    assert store.purge("nothing") == (0, 0)
    assert [entry.url for entry in store.entries()] == ["http://b/x.deb"]
    assert store.purge()[0] == 1
    assert store.total == 0
    store.close()


def test_the_same_directory_twice_is_busy(directory: Path) -> None:
    """A second store is refused while the first holds the lock, and nothing of it is touched."""
    store = Store(str(directory), limit=1 << 30)
    store.put("http://a/", stored(), b"a")
    with pytest.raises(Busy):
        Store(str(directory), limit=1 << 30)
    assert body_of(store, "http://a/") == b"a"
    store.close()


def test_a_directory_that_others_share_is_refused(tmp_path: Path) -> None:
    """A link, or a directory with other files that others can enter, is not taken over."""
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    with pytest.raises(Refused):
        Store(str(tmp_path / "link"), limit=1 << 30)
    os.chmod(tmp_path, 0o755)
    with pytest.raises(Refused):
        Store(str(tmp_path), limit=1 << 30)
    assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o755


def test_confirmations_do_not_make_a_file_grow_for_ever(directory: Path) -> None:
    """After very many 304s the file stays below a bound, and the newest head counts while the process runs."""
    store = Store(str(directory), limit=1 << 30)
    store.put("http://a/", stored(), b"a")
    for number in range(1500):
        entry = store.find("http://a/", REQUEST)
        assert entry
        store.renew(entry, stored(etag=f'"{number}"'))
    entry = store.find("http://a/", REQUEST)
    assert entry and ("ETag", '"1499"') in entry.stored.fields
    assert store.total == files(directory)[0].stat().st_size < 300_000
    assert body_of(store, "http://a/") == b"a"
    store.close()


def test_an_entry_that_is_gone_is_neither_used_nor_confirmed(directory: Path) -> None:
    """Purged or replaced while its origin was asked: no word of it, and the new one's file keeps its own head."""
    store = Store(str(directory), limit=1 << 30)
    old = store.put("http://a/", stored(), b"old")
    store.put("http://a/", stored(etag='"2"'), b"new")
    store.use(old)
    with pytest.raises(Corrupt):
        store.renew(old, stored(etag='"1"'))
    store.close()
    store = Store(str(directory), limit=1 << 30)
    found = store.find("http://a/", REQUEST)
    assert found and ("ETag", '"2"') in found.stored.fields and store.whole(found) == b"new"
    store.purge()
    store.use(found)
    with pytest.raises(Corrupt):
        store.renew(found, stored())
    store.close()


@given(st.binary(max_size=1000), st.lists(st.integers(0, 400), max_size=5))
def test_digests_do_not_depend_on_the_pieces(data: bytes, cuts: list[int]) -> None:
    """Written in any pieces, across block ends too, the digests are those of the blocks."""
    whole = data * 600
    digests, at = Digests(), 0
    for cut in [*(cut * 1000 for cut in cuts), len(whole)]:
        digests.update(whole[at : at + cut])
        at += cut
    assert digests.all() == b"".join(digest(whole[start : start + BLOCK]) for start in range(0, len(whole), BLOCK))
