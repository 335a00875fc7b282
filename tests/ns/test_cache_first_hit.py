"""The object that a first hit is shown with, given by a real squid: alone, and behind an upstream that is not asked."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.ns.squids import in_path, put_squid, settings, squid
from tests.unit.cacheworld import Running, fetch
from vmproxy.cache import control
from vmproxy.cachehit import judge_fetches
from vmproxy.model import ProxyURL


@pytest.fixture(params=["alone", "chained"])
def running(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Running]:
    """A squid that may ask nothing of this machine; the upstream's port is nobody's."""
    upstream = ProxyURL(scheme="http", host="127.0.0.1", port=9) if request.param == "chained" else None
    with (
        in_path(put_squid(tmp_path / "bin")),
        squid(settings(tmp_path / "c", targets=(), upstream=upstream, no_proxy=("*",) if upstream else ())) as found,
    ):
        yield found


def head(running: Running, url: str) -> bytes:
    """An answer's head as the VM's own tools would see it."""
    got = fetch(running.address, url)
    fields = "".join(f"{name}: {value}\r\n" for name, value in got.headers.items())
    return f"@tool bash\nHTTP/1.1 {got.status} X\r\n{fields}\r\n".encode()


def test_squid_gives_the_object_twice_and_asks_for_it_once(running: Running, tmp_path: Path) -> None:
    """A miss, then a hit, as ``apply --cache`` judges them; the origin was asked once; afterwards it is gone."""
    where = str(tmp_path / "c")
    url = (control.ask(where, {"do": "sample"}) or {})["url"]
    answers = {"connect": head(running, url), "get": head(running, url)}
    found = judge_fetches("bridge", answers, where="172.17.0.1:8123")
    assert found.ok and "from its origin, then from the cache" in found.detail, (found, answers)
    assert control.ask(where, {"do": "sample-end", "url": url}) == {"asked": 1}
    again = judge_fetches("bridge", {name: head(running, url) for name in answers}, where="172.17.0.1:8123")
    assert not again.ok, again
