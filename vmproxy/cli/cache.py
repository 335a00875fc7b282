"""``vmproxy cache serve|start|stop|install|uninstall|status|purge``."""

from __future__ import annotations

import os
import sys
import time
from typing import TYPE_CHECKING, Any

import click

from vmproxy.cli import cachestart
from vmproxy.cli.cachestart import directory
from vmproxy.cli.cacheupstream import no_proxy, upstream
from vmproxy.cli.common import Run, command, group
from vmproxy.cli.output import is_terminal
from vmproxy.errors import UsageError
from vmproxy.model import printable

if TYPE_CHECKING:
    from vmproxy.cache.limits import CacheSettings

_HOSTS = 10
_USUAL_SECONDS, _SHORTEST_SECONDS = 2.0, 0.2
_ALL = "*"
_TUNNELS = "https: is tunnelled and never cached"
SERVE = (
    *("port", "bind", "dir", "size", "allow", "allow-target", "connect-port", "engine"),
    *("upstream", "upstream-file", "upstream-keyring", "no-proxy", "pip", "pip-port"),
)
"""The options of a proxy: of ``serve``, and of what has it started in another way."""


@command(
    *SERVE,
    examples=(
        "vmproxy cache serve",
        "vmproxy cache serve --bind 192.168.56.1 --allow 192.168.56.0/24",
        "vmproxy cache serve --size 50G --allow-target 10.20.0.0/16",
        "vmproxy cache serve --engine squid --upstream http://proxy.corp.example:3128",
    ),
)
def _serve(run: Run) -> int:
    """Run a caching proxy on this host, in the foreground.

    Answers to http: requests that may be kept are, on disk; https: is tunnelled and never cached. It is no open proxy:
    without --bind only this machine reaches it (and VMs whose gateway is this machine's loopback), and it connects to
    no loopback, link-local or private address. With --engine squid all of this is done by the squid of this host, which
    is configured in --dir, started, watched and ended. With --upstream it asks another proxy in place of the origins.
    SIGINT or SIGTERM ends it.
    """
    from vmproxy.cache import run as cache
    from vmproxy.cache.notify import tell

    settings = settings_of(run)

    def ready(address: str) -> None:
        if run.output.json:
            run.output.document(
                {"listen": address, "dir": settings.directory, "size": settings.size, "pid": os.getpid()}
            )
        elif not run.output.quiet:
            kept = f"{_bytes(settings.size)} in {settings.directory}"
            run.output.result(f"listening on {address}, keeping up to {kept}; {_TUNNELS}")
        sys.stdout.flush()
        tell("READY=1", run.environ)

    cache.serve(settings, ready=ready, log=run.output.note if run.output.verbosity > 0 else None, warn=run.output.warn)
    return 0


def settings_of(run: Run) -> CacheSettings:
    """What the options say, read as ``serve`` reads them. Raises UsageError."""
    from vmproxy.cache import run as cache
    from vmproxy.cache.limits import DEFAULT_PIP_PORT

    return cache.make_settings(
        directory(run),
        address=run.value("bind"),
        port=run.value("port"),
        size=run.value("size"),
        clients=run.value("allow", ()),
        targets=run.value("allow-target", ()),
        ports=run.value("connect-port", ()),
        engine=run.value("engine"),
        upstream=(proxy := upstream(run)),
        no_proxy=no_proxy(run) if proxy else (),
        pip_port=run.value("pip-port", DEFAULT_PIP_PORT) if run.value("pip") else 0,
    )


@command(*SERVE, examples=("vmproxy cache start", "vmproxy cache start --size 50G"))
def _start(run: Run) -> int:
    """Start the caching proxy in the background, and wait until it answers.

    With the options of serve. It goes on after log-out until cache stop or the next boot; cache install is for longer.
    Where it is installed as a service, the service is started, with the options of then.
    """
    return cachestart.start(run, SERVE)


@command("dir", examples=("vmproxy cache stop",))
def _stop(run: Run) -> int:
    """End the caching proxy that runs, however it was started, and wait for its end.

    One that is installed as a service comes back at the next log-in.
    """
    return cachestart.stop(run)


@command(
    *SERVE,
    *("service", "print"),
    examples=("vmproxy cache install", "vmproxy cache install --size 50G --print", "vmproxy cache uninstall"),
)
def _install(run: Run) -> int:
    """Install the caching proxy as a service of yours: it starts now, and at each log-in.

    A systemd user unit on Linux, a launchd agent on macOS, with the options of serve. Doing it again with other options
    changes them.
    """
    return cachestart.install(run, SERVE)


@command("service", examples=("vmproxy cache uninstall",))
def _uninstall(run: Run) -> int:
    """Stop the service and take away what install made. What the cache keeps stays."""
    return cachestart.uninstall(run)


@command(
    *("dir", "watch", "interval"),
    examples=("vmproxy cache status", "vmproxy cache status --watch", "vmproxy cache status --json"),
)
def _status(run: Run) -> int:
    """Say what the cache holds and what it saved.

    The counters go on over restarts. Hosts are named, never paths or queries. Where no proxy runs the directory's own
    records are shown. With --watch it is shown anew on the terminal, with what happens each second, until q or Ctrl-C.
    """
    from vmproxy.cache import control

    if run.value("watch"):
        return _watch(run)
    found = control.status(directory(run))
    if not found["running"]:
        from vmproxy import nearby

        others = [{"name": one.name, "port": one.port, "proxy": one.url} for one in nearby.look()]
        found = {**found, "others": others}
    if run.output.json:
        run.output.document(document(cache={**found, "tunnels_are_cached": False}))
        return 0
    for line in _lines(found):
        run.output.result(line)
    return 0


def _watch(run: Run) -> int:
    """The live view."""
    from vmproxy.cache import control
    from vmproxy.cli.watch import watch

    if run.output.json or not is_terminal(sys.stdout):
        raise UsageError("--watch is for a terminal", hint="vmproxy cache status, or --json")
    seen: list[tuple[float, dict[str, Any]]] = []

    def lines() -> list[str]:
        now = time.monotonic()
        found = control.status(directory(run))
        rates = _rates(now - seen[0][0], seen[0][1], found) if seen else "…"
        seen[:] = [(now, found)]
        first, *rest = _lines(found)
        return [first, f"now (q ends): {rates}", *rest]

    watch(lines, seconds=max(_SHORTEST_SECONDS, run.value("interval", _USUAL_SECONDS)))
    return 0


def _rates(seconds: float, before: dict[str, Any], found: dict[str, Any]) -> str:
    """What happened between two looks, each second."""

    def rate(name: str) -> float:
        happened: int = found[name] - before[name]
        return max(0, happened) / max(seconds, 0.001)

    kinds = (f"{_bytes(round(rate(f'bytes_{kind}')))}/s {kind}" for kind in ("saved", "fetched", "tunnelled"))
    return f"{rate('requests'):.1f} requests/s, {', '.join(kinds)}"


def _make_purge() -> click.Command:
    @command("dir", examples=("vmproxy cache purge", "vmproxy cache purge 'http://deb.debian.org/*'"))
    def purge(run: Run) -> int:
        """Remove what the cache holds: all, or the addresses that PATTERN (a glob) fits.

        While a proxy runs on the directory, too; what it keeps for pip goes with all of it, once no proxy runs.
        """
        from vmproxy.cache import control, pipstore

        pattern = click.get_current_context().params["pattern"]
        count, size = control.purge(directory(run), pattern)
        if pattern == _ALL:
            packages = pipstore.purge(directory(run))
            if packages is None:
                what = "what is kept for pip stays while the cache runs: vmproxy cache stop, then purge again"
                run.output.warn(what, beside_json=True)
            else:
                count, size = count + packages[0], size + packages[1]
        if run.output.json:
            run.output.document(document(changed=count > 0, purged={"entries": count, "bytes": size}))
        else:
            run.output.result(f"{count} {'entry' if count == 1 else 'entries'} removed, {_bytes(size)}")
        return 0

    purge.params.insert(0, click.Argument(["pattern"], required=False, default=_ALL, metavar="[PATTERN]"))
    return purge


def document(*, changed: bool = False, **more: Any) -> dict[str, Any]:
    """The object of ``--json``, as of every command, with the cache's own part."""
    usual = {"ok": True, "code": "OK", "exit": 0, "changed": changed, "message": "", "hint": "", "vms": []}
    return {**usual, **more}


def _lines(found: dict[str, Any]) -> list[str]:
    """The status for a reader."""
    if found["running"]:
        engine = "" if found.get("engine", "embedded") == "embedded" else f" ({found['engine']})"
        first = f"running: {found['listen']}{engine}, process {found['pid']}, for {found['seconds']} s"
        room = f" of {_bytes(found['limit'])}"
    else:
        first, room = "not running", ""
    given = found["hits"] + found["revalidated"] + found["stale"]
    rows = found["hosts"][:_HOSTS]
    width = max((len(row["host"]) for row in rows), default=0)
    pip = found.get("pip")
    return [
        first,
        *([f"upstream: {found['upstream']}"] if found.get("upstream") else []),
        *([f"pip: {pip['index']}{'' if pip['running'] else ', which has ended'}"] if pip else []),
        f"entries: {found['entries']}, {_bytes(found['size'])}{room}",
        f"hits: {given} of {given + found['misses']} ({found['ratio']:.0%}), {_bytes(found['bytes_saved'])} saved,"
        f" {_bytes(found['bytes_fetched'])} fetched",
        f"passed on: {found['passed']}, refused: {found['refused']}, failed: {found['errors']}",
        f"tunnels: {found['tunnels']}, {_bytes(found['bytes_tunnelled'])}; {_TUNNELS}",
        *(
            f"  {printable(row['host']):<{width}}  {row['requests']} requests, {row['hits']} hits,"
            f" {_bytes(row['bytes_saved'])} saved, {row['tunnels']} tunnels"
            for row in rows
        ),
        *(
            f"{one['name']} listens on 127.0.0.1:{one['port']} and can be used as it is:"
            f" vmproxy apply --proxy {one['proxy']}"
            for one in found.get("others", ())
        ),
    ]


def _bytes(count: int) -> str:
    """``1.5 GiB``."""
    size = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{count} B" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"


main = group(
    "A caching proxy on this host, for VMs and their containers.",
    {
        "serve": _serve,
        "start": _start,
        "stop": _stop,
        "install": _install,
        "uninstall": _uninstall,
        "status": _status,
        "purge": _make_purge(),
    },
)
