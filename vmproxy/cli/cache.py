"""``vmproxy cache serve|status|purge``."""

from __future__ import annotations

import os
import sys
from typing import Any

import click

from vmproxy.cli.common import Run, command, group
from vmproxy.model import printable

_HOSTS = 10
_TUNNELS = "https: is tunnelled and never cached"
SERVE = ("port", "bind", "dir", "size", "allow", "allow-target", "connect-port")
"""The options of a proxy: of ``serve``, and of what has it started in another way."""


@command(
    *SERVE,
    examples=(
        "vmproxy cache serve",
        "vmproxy cache serve --bind 192.168.56.1 --allow 192.168.56.0/24",
        "vmproxy cache serve --size 50G --allow-target 10.20.0.0/16",
    ),
)
def _serve(run: Run) -> int:
    """Run a caching proxy on this host, in the foreground.

    Answers to http: requests that may be kept are, on disk; https: is tunnelled and never cached. It is no open proxy:
    without --bind only this machine reaches it (and VMs whose gateway is this machine's loopback), and it connects to
    no loopback, link-local or private address. SIGINT or SIGTERM ends it.
    """
    from vmproxy.cache import run as cache

    settings = cache.make_settings(
        _directory(run),
        address=run.value("bind"),
        port=run.value("port"),
        size=run.value("size"),
        clients=run.value("allow", ()),
        targets=run.value("allow-target", ()),
        ports=run.value("connect-port", ()),
    )

    def ready(address: str) -> None:
        if run.output.json:
            run.output.document(
                {"listen": address, "dir": settings.directory, "size": settings.size, "pid": os.getpid()}
            )
        elif not run.output.quiet:
            kept = f"{_bytes(settings.size)} in {settings.directory}"
            run.output.result(f"listening on {address}, keeping up to {kept}; {_TUNNELS}")
        sys.stdout.flush()

    cache.serve(settings, ready=ready, log=run.output.note if run.output.verbosity > 0 else None)
    return 0


@command("dir", examples=("vmproxy cache status", "vmproxy cache status --json"))
def _status(run: Run) -> int:
    """Say what the cache holds and what it saved.

    The counters go on over restarts. Hosts are named, never paths or queries. Where no proxy runs the directory's own
    records are shown.
    """
    from vmproxy.cache import control

    found = control.status(_directory(run))
    if run.output.json:
        run.output.document(_object(cache={**found, "tunnels_are_cached": False}))
        return 0
    for line in _lines(found):
        run.output.result(line)
    return 0


def _make_purge() -> click.Command:
    @command("dir", examples=("vmproxy cache purge", "vmproxy cache purge 'http://deb.debian.org/*'"))
    def purge(run: Run) -> int:
        """Remove what the cache holds: all, or the addresses that PATTERN (a glob) fits.

        While a proxy runs on the directory, too.
        """
        from vmproxy.cache import control

        pattern = click.get_current_context().params["pattern"]
        count, size = control.purge(_directory(run), pattern)
        if run.output.json:
            run.output.document(_object(changed=count > 0, purged={"entries": count, "bytes": size}))
        else:
            run.output.result(f"{count} {'entry' if count == 1 else 'entries'} removed, {_bytes(size)}")
        return 0

    purge.params.insert(0, click.Argument(["pattern"], required=False, default="*", metavar="[PATTERN]"))
    return purge


def _directory(run: Run) -> str:
    """The directory of the cache; the platform's place for caches if nobody says another."""
    said = run.value("dir")
    if said:
        return os.path.abspath(os.path.expanduser(str(said)))
    import platformdirs

    return os.path.join(platformdirs.user_cache_dir("vmproxy", appauthor=False), "proxy")


def _object(*, changed: bool = False, **more: Any) -> dict[str, Any]:
    """The object of ``--json``, as of every command, with the cache's own part."""
    usual = {"ok": True, "code": "OK", "exit": 0, "changed": changed, "message": "", "hint": "", "vms": []}
    return {**usual, **more}


def _lines(found: dict[str, Any]) -> list[str]:
    """The status for a reader."""
    if found["running"]:
        first = f"running: {found['listen']}, process {found['pid']}, for {found['seconds']} s"
        room = f" of {_bytes(found['limit'])}"
    else:
        first, room = "not running", ""
    given = found["hits"] + found["revalidated"] + found["stale"]
    rows = found["hosts"][:_HOSTS]
    width = max((len(row["host"]) for row in rows), default=0)
    return [
        first,
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
    {"serve": _serve, "status": _status, "purge": _make_purge()},
)
