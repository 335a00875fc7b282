"""Where a proxy listens: who is said to be there already, and this machine's addresses where /proc does not tell."""

from __future__ import annotations

import asyncio
import errno
from ipaddress import ip_address
from pathlib import Path
from types import SimpleNamespace

import pytest

from vmproxy import nearby
from vmproxy.cache import listening
from vmproxy.cache.limits import CacheSettings
from vmproxy.errors import Refused


def test_who_is_there_is_asked_only_where_it_can_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy on loopback is not what holds the port of another address."""
    monkeypatch.setattr(nearby, "who", lambda port: nearby.Found(name="squid", port=port))
    taken = OSError(errno.EADDRINUSE, "in use")

    def said(address: str) -> str:
        return listening.refused(CacheSettings(directory="/x", address=address), taken).what

    assert said("127.0.0.1") == said("0.0.0.0") == "squid listens there already"
    assert said("192.168.56.1") == said("::1") == "something listens there already"


def test_what_cannot_be_listened_on_is_said_in_the_systems_words() -> None:
    """The address stands once, behind the reason; asyncio's own sentence has it in the middle, as Python writes it."""
    asyncios = OSError(errno.EACCES, "error while attempting to bind on address ('127.0.0.1', 80): permission denied")
    error = listening.refused(CacheSettings(directory="/x", port=80), asyncios)
    assert str(error) == "cannot listen there: permission denied (127.0.0.1:80)"
    nameless = listening.refused(CacheSettings(directory="/x", port=80), OSError())
    assert str(nameless) == "cannot listen there: refused (127.0.0.1:80)"


def test_addresses_come_from_ifconfig_which_is_not_waited_for_without_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on macOS: what it prints; one that hangs is ended, and nothing starts without knowing them."""
    monkeypatch.setattr(listening, "sys", SimpleNamespace(platform="darwin"))
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    program = tmp_path / "ifconfig"
    program.write_text("#!/bin/sh\nprintf 'lo0: flags\\n\\tinet 127.0.0.1 netmask x\\n\\tinet6 fe80::1%%lo0 y\\n'\n")
    program.chmod(0o755)
    assert asyncio.run(listening.own_addresses()) == (ip_address("127.0.0.1"), ip_address("fe80::1"))
    program.write_text("#!/bin/sh\nexec sleep 1000\n")
    monkeypatch.setattr(listening, "_SECONDS", 0.1)
    with pytest.raises(Refused, match="ifconfig does not end"):
        asyncio.run(listening.own_addresses())
