"""What a cache must do and refuse, asked of squid by the same client; and what the engine ``squid`` adds."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.ns.squids import in_path, put_squid, settings, squid
from tests.unit.cacheworld import Origin, Running, origin

# The cases themselves; the fixtures of those names are here.
from tests.unit.test_cache_behaviour import *  # noqa: F403
from tests.unit.test_cache_refusals import *  # noqa: F403
from tests.unit.test_cache_upstream import *  # noqa: F403
from tests.unit.test_cache_upstream import Chain, upstream, wishes


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """PATH has a squid while this file runs."""
    directory = put_squid(tmp_path_factory.mktemp("squid") / "bin")
    with in_path(directory):
        yield directory


@pytest.fixture(scope="module")
def ajar(program: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A squid that may ask loopback."""
    assert program.is_dir()
    with squid(settings(tmp_path_factory.mktemp("ajar") / "c")) as running:
        yield running


@pytest.fixture(scope="module")
def world(ajar: Running) -> Iterator[tuple[Origin, Running]]:
    """One origin and one squid for all of this file."""
    with origin() as server:
        yield server, ajar


@pytest.fixture(scope="module")
def shut(program: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A squid with the usual rules: nothing of this machine is a target."""
    assert program.is_dir()
    with squid(settings(tmp_path_factory.mktemp("shut") / "c", targets=())) as running:
        yield running


@pytest.fixture(scope="module")
def chain(program: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chain]:
    """A squid behind an upstream."""
    assert program.is_dir()
    with upstream() as (parent, server, echo):
        wanted = settings(tmp_path_factory.mktemp("chain") / "c", **wishes(parent.port, echo))
        with squid(wanted) as running:
            yield Chain(running, parent, server, echo)
