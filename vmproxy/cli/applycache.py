"""``vmproxy apply --cache``: the options of the cache as they stand for ``apply``."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import click

from vmproxy import config
from vmproxy.cli import cachestart
from vmproxy.cli.common import Run, read_file, said
from vmproxy.errors import UsageError
from vmproxy.model import Report

SHOWN = ("cache", "dir", "port", "size", "pip")
"""Those that ``apply`` takes on its command line; the others come from the environment and from vmproxy.toml."""

# What this says to apply is for containers; the cache has it of VMPROXY_NO_PROXY and vmproxy.toml by itself.
_NOT_ITS = "no-proxy"


def needless() -> None:
    """Raises UsageError for an option of the cache on the command line of an apply without it."""
    given = said(click.get_current_context())
    for name in SHOWN:
        if name in given and name != "cache":
            raise UsageError(f"--{name} is for --cache")


def story(run: Run) -> Callable[..., Report]:
    """What takes the place of ``converge.apply``."""
    from vmproxy.cache.limits import DEFAULT_PORT
    from vmproxy.cacherun import Started
    from vmproxy.cachestory import CacheStory
    from vmproxy.cli.cache import SERVE

    names = tuple(name for name in SERVE if name != _NOT_ITS)
    rest = [name for name in names if name not in SHOWN]
    path, file = read_file(run.value("config"), run.environ)
    more = config.resolve(rest, given={}, environ=run.environ, file=file, path=path)
    whole = Run(values={**run.values, **more}, environ=run.environ, output=run.output, given=run.given)

    def start(words: Sequence[str]) -> Started:
        return cachestart.started(whole, names, tuple(words))

    port = int(whole.value("port", DEFAULT_PORT))
    return CacheStory(cachestart.directory(whole), start, port=port, bound=whole.value("bind") is not None).apply
