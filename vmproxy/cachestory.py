"""``apply --cache``: this host's caching proxy started where it does not run, the VM put behind it, and a first hit.

Where the proxy has to listen hangs on the kind of VM. A gateway that is one of this host's own addresses is listened
on, with the VM's network allowed; else, and where that turns out not to be reached, this host's loopback, to which NAT
hypervisors map their gateway. Whether the VM reaches it is asked from the VM before anything in it is changed.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any

from vmproxy import cacherun, converge, hostproc
from vmproxy.cache import control
from vmproxy.cacherun import Started
from vmproxy.converge import Ask, Confirm, Progress, silent
from vmproxy.errors import NoProxy, Refused, UsageError, VmproxyError
from vmproxy.model import Event, Finding, ProxyURL, Report, Settings
from vmproxy.stopping import Stop

Start = Callable[[Sequence[str]], Started]

_LOOPBACK = "127.0.0.1"
_UNSURE = "the first hit is not shown: {}"


class CacheStory:
    """``apply`` with this host's cache, for one VM or several of them, side by side too.

    ``start`` starts the proxy on ``directory`` with more words than the user's; ``bound`` says that the user's own
    say where it listens. ``port`` is that of a proxy that has yet to be started. What was started for a first VM is
    ended again where no VM could be put behind it.
    """

    def __init__(self, directory: str, start: Start, *, port: int, bound: bool) -> None:
        self._directory, self._start, self._port, self._bound = directory, start, port, bound
        self._lock = threading.Lock()
        self._started: Started | None = None
        self._used = False
        self._users = 0

    def apply(
        self,
        target: str,
        settings: Settings,
        *,
        progress: Progress = silent,
        confirm: Confirm | None = None,
        ask: Ask | None = None,
        dry_run: bool = False,
        stop: Stop | None = None,
    ) -> Report:
        """As :func:`vmproxy.converge.apply`. Raises what that raises, and Refused where the cache does not start or the
        VM cannot reach it: nothing was changed then."""

        def tell(text: str) -> None:
            progress(Event(target=target, text=text))

        more: dict[str, Any] = {"progress": progress, "ask": ask}
        if stop is not None:
            more["stop"] = stop
        if dry_run:
            found = cacherun.running(self._directory)
            report = converge.apply(
                target, self._with_port(settings, _port(found, self._port)), confirm=None, dry_run=True, **more
            )
            if found is not None:
                return report
            note = f"the cache does not run: it would be started (port {self._port})"
            return replace(report, warnings=(*report.warnings, note))
        with self._lock:
            if stop is not None:  # it may have come while another VM's cache was started
                stop.check()
            status = cacherun.running(self._directory) or self._bring_up(target, settings, tell, more)
            self._users += 1  # from here on nobody else's failure ends it
        try:
            with self._lent(settings) as url:
                wanted = replace(self._with_port(settings, _port(status, self._port)), cache_object=url)
                report = converge.apply(target, wanted, confirm=confirm, **more)
                if self._started is not None and not report.changed and not report.exit and url:
                    proved = converge.verify(target, wanted, **more)
                    report = replace(proved, message=f"{report.message}; {proved.message}")
            # A restart that is pending and a proof that fails with --keep leave the VM behind the cache, too.
            self._used = self._used or report.exit in (0, 1, 3)
        finally:
            self._leave()
        return self._told(report, status, settings, url)

    def _with_port(self, settings: Settings, port: int) -> Settings:
        """The settings with the cache as the proxy. Raises UsageError where they name another one."""
        proxy = ProxyURL(scheme="http", host=_LOOPBACK, port=port)
        if settings.proxy not in (None, proxy):
            raise UsageError("--cache and another --proxy exclude each other", hint=f"--proxy {proxy}, or none")
        return replace(settings, proxy=proxy, given=settings.given | {"proxy"})

    def _bring_up(
        self, target: str, settings: Settings, tell: Callable[[str], None], more: Mapping[str, Any]
    ) -> Mapping[str, Any]:
        """Start the proxy where the VM reaches it. Raises Refused, with nothing left running."""
        self._with_port(settings, self._port)
        sight = converge.detect_gateway(target, settings, **_of_detect(more))
        chosen = sight.choice.gateway if sight.choice else ""
        gateway = settings.gateway or chosen
        if not gateway:
            raise sight.error or Refused("the host's address is not known", hint="--gateway IP")
        tried: list[str] = []
        for words in self._places(gateway, sight.networks):
            tell("starting the cache")
            begun = self._start(words)
            if not begun.how:
                return begun.status  # another run was quicker: it is not ours to end, and apply asks for it as ever
            port = _port(begun.status, self._port)
            try:
                # Another address than the VM's own gateway is asked by apply, as any proxy is.
                if gateway != chosen or gateway in self._answering(target, settings, port, more):
                    self._started = begun
                    return begun.status
            except BaseException:
                self._stop()
                raise
            tried.append(str(begun.status["listen"]))
            self._stop()
        raise NoProxy(
            f"the VM does not reach the cache at {gateway}:{self._port} (it listened on {', then '.join(tried)})",
            hint="a firewall on this host? else vmproxy cache start --bind ADDR --allow CIDR, then again",
        )

    def _answering(self, target: str, settings: Settings, port: int, more: Mapping[str, Any]) -> tuple[str, ...]:
        """The gateways at which the VM reaches that port."""
        return converge.detect_gateway(target, settings, probe_port=port, **_of_detect(more)).answering or ()

    def _places(self, gateway: str, networks: Sequence[str]) -> Iterator[tuple[str, ...]]:
        """Where to listen, in the order to be tried, as words for ``cache serve``."""
        if self._bound:
            yield ()
            return
        # With loopback, too: a firewall of this host that maps the gateway keeps the VM's address.
        allowed = tuple(f"--allow={network}" for network in networks)
        if allowed and hostproc.own_address(gateway):
            yield (f"--bind={gateway}", *allowed)
        yield allowed

    @contextmanager
    def _lent(self, settings: Settings) -> Iterator[str]:
        """The URL of the object that the proof fetches, "" where there is no proof, or the proxy has no such object."""
        if not settings.verify:
            yield ""
            return
        url = str((control.ask(self._directory, {"do": "sample"}) or {}).get("url", ""))
        try:
            yield url
        finally:
            if url:
                with suppress(VmproxyError):
                    control.ask(self._directory, {"do": "sample-end", "url": url})

    def _told(self, report: Report, status: Mapping[str, Any], settings: Settings, url: str) -> Report:
        """The report with a word about the cache."""
        how = f"started {self._started.how}" if self._started else "running"
        line = f"{status.get('listen')}, {how}, process {status.get('pid')}"
        notes = report.warnings
        if settings.verify and not url:
            notes = (*notes, _UNSURE.format("this cache has no object of its own for that"))
        about = Finding(subject="cache", ok=True, detail=line)
        return replace(report, findings=(about, *report.findings), warnings=notes)

    def _leave(self) -> None:
        """One VM less; with the last one what we started ends, if none is behind it."""
        with self._lock:
            self._users -= 1
            if self._started is not None and not self._used and not self._users:
                self._stop()

    def _stop(self) -> None:
        """End what we started; a failure to is no more than that."""
        self._started = None
        with suppress(VmproxyError):
            cacherun.stop(self._directory)


def _of_detect(more: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in more.items() if name in ("progress", "ask", "stop")}


def _port(status: Mapping[str, Any] | None, usual: int) -> int:
    """The port of a proxy's status."""
    text = str((status or {}).get("listen", "")).rpartition(":")[2]
    return int(text) if text.isdigit() else usual
