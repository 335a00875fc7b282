"""``cache purge`` of a running proxy: one that takes long is waited for; squid is not searched for its own object."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from vmproxy.cache import control, place, squidstore
from vmproxy.cache.limits import CacheSettings
from vmproxy.cache.sample import HOST
from vmproxy.cache.squid import Squid

LIMIT_SECONDS, WORK_SECONDS = 0.05, 0.4


class Slow:
    """An engine whose purge takes longer than any other answer may."""

    name = "slow"

    def __init__(self, directory: Path) -> None:
        self.settings = SimpleNamespace(directory=str(directory))

    async def purge(self, _pattern: str) -> tuple[int, int]:
        """Three of seven bytes, in the end."""
        await asyncio.sleep(WORK_SECONDS)
        return 3, 7


class Writer:
    """As much of a StreamWriter as an answer takes."""

    def __init__(self) -> None:
        self.written = b""

    def write(self, data: bytes) -> None:
        """Keep it."""
        self.written += data

    async def drain(self) -> None:
        """All has gone."""

    def close(self) -> None:
        """Nothing to close."""


def test_a_long_purge_is_answered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit of the other answers is none for it."""
    monkeypatch.setattr(control, "_ANSWER_SECONDS", LIMIT_SECONDS)

    async def asked() -> bytes:
        reader, writer = asyncio.StreamReader(), Writer()
        reader.feed_data(b'{"do": "purge", "pattern": "*"}\n')
        await control.Control(cast(Any, Slow(tmp_path)))._serve(reader, cast(Any, writer))
        return writer.written

    assert json.loads(asyncio.run(asked())) == {"entries": 3, "bytes": 7}


def test_a_long_purge_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By who asks, too: it is no lost contact."""
    monkeypatch.setattr(control, "_ANSWER_SECONDS", LIMIT_SECONDS)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / place.CONTROL))
        listening.listen()

        def answer() -> None:
            taken, _peer = listening.accept()
            with taken:
                taken.recv(4096)
                time.sleep(WORK_SECONDS)  # the work
                taken.sendall(b'{"entries": 3, "bytes": 7}\n')

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        assert control.purge(str(tmp_path), "*") == (3, 7)
        thread.join(60)


def test_squids_own_object_is_forgotten_without_a_search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its one address is known; the store may hold a hundred thousand files. Others are looked for, for their sizes."""
    searched: list[str] = []
    purged: list[str] = []

    def fitting(_store: str, pattern: str) -> list[tuple[str, str, int]]:
        searched.append(pattern)
        return [("file", "http://h/a", 5)]

    async def in_memory(_pattern: str) -> set[str]:
        return set()

    async def purge(urls: Sequence[str]) -> set[str]:
        purged.extend(urls)
        return set(urls)

    async def both() -> tuple[tuple[int, int], tuple[int, int]]:
        squid = Squid(CacheSettings(directory=str(tmp_path), engine="squid"), log=None, warn=print)
        squid._asker = cast(Any, SimpleNamespace(in_memory=in_memory, purge=purge))
        return await squid.purge(f"http://{HOST}/abc"), await squid.purge("http://h/*")

    monkeypatch.setattr(squidstore, "fitting", fitting)
    own, others = asyncio.run(both())
    assert (own[0], others) == (1, (1, 5))
    assert (searched, purged) == (["http://h/*"], [f"http://{HOST}/abc", "http://h/a"])
