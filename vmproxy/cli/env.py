"""``vmproxy env``."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterable, Iterator, Mapping

from vmproxy.cli.common import SSH, Run, command
from vmproxy.containers import by_name, render
from vmproxy.errors import UsageError
from vmproxy.model import ProxyURL, Wish
from vmproxy.wish import index_of

_DEFAULT_PROXY = "http://127.0.0.1:8123"
_BY_OPTION = (
    "Docker Engine on Linux knows host.docker.internal only in containers that are started with "
    "--add-host=host.docker.internal:host-gateway"
)


@command(
    "vm",
    "proxy",
    "https-proxy",
    "no-proxy",
    "gateway",
    "names",
    "pip-index",
    "format",
    "wait",
    *SSH,
    examples=(
        'eval "$(vmproxy env --vm default)"',
        "vmproxy env --vm default --format dotenv > proxy.env",
        "docker run $(vmproxy env --vm default --format docker-run) IMAGE",
        "vmproxy env --proxy http://127.0.0.1:3128 --gateway 10.0.2.2 --json",
    ),
)
def main(run: Run) -> int:
    """Print the proxy variables for containers, lower and upper case.

    With --vm they lead to the VM's own bridge address, as the last apply made it. Without, a proxy on this host is
    reached at --gateway, else at host.docker.internal, which Docker Engine on Linux knows in containers started with
    --add-host=host.docker.internal:host-gateway.

    Values hold the proxy's credentials, where it has any; docker-run and docker-build then have the name alone, and
    Docker takes the value from its own environment.
    """
    as_json = run.output.json and not ("format" in run.given and "json" not in run.given)  # what is nearer counts
    form = "json" if as_json else run.value("format", "sh")
    if as_json and run.value("format", "json") != "json":
        raise UsageError("--json and another --format exclude each other")
    found = variables(run)
    text = render(found, form)
    _warn(run, _about(found, form, run.settings.pip_index))
    run.output.exact(text.removesuffix("\n"))
    return 0


def variables(run: Run, *, knows_host: bool = False, beside: bool = True) -> Mapping[str, str]:
    """The variables of the one VM named, or of this host's own settings; what is wrong with them is said.

    ``knows_host`` is for a caller whose containers know ``host.docker.internal``; ``beside`` for one that has a place
    for pip's variables: where no index was said, the one of this host's own cache is taken.
    """
    if len(run.targets) > 1:
        raise UsageError("the variables are those of one VM", hint="name one --vm")
    if beside and not run.settings.pip_index and "pip_index" not in run.settings.given:
        from vmproxy.cli import cachestart

        run.settings = dataclasses.replace(run.settings, cache_index=cachestart.index(run))
    return _of_vm(run) if run.targets else _of_host(run, knows_host)


def _of_host(run: Run, knows_host: bool) -> Mapping[str, str]:
    from vmproxy import dialects, direct, pip, proxyenv

    settings = run.settings
    host = settings.gateway or direct.HOST
    first, https, no_proxy = settings.proxy, settings.https_proxy, settings.no_proxy
    others: Mapping[str, str] = {}
    if first is None:
        if settings.host_environment_problem:
            raise UsageError(settings.host_environment_problem, hint="--proxy URL")
        others = proxyenv.others(run.environ, host=host)
        first = settings.host_environment_proxy or settings.host_environment_https_proxy
        https = https or settings.host_environment_https_proxy
        if first is None and (https or not others):
            first = proxyenv.parse_proxy(_DEFAULT_PROXY)
        no_proxy = no_proxy if "no_proxy" in settings.given else settings.host_environment_no_proxy
        _warn(run, (f"this host's environment: {one.detail}" for one in proxyenv.conflicts(run.environ)))

    def from_container(proxy: ProxyURL | None) -> ProxyURL | None:
        return proxyenv.with_host(proxy, host) if proxy and proxyenv.is_loopback(proxy.host) else proxy

    index = settings.pip_index
    if not index and first is not None:
        index = index_of(settings, Wish(proxy=first))
    hosts = (settings.gateway, *((pip.direct_host(index, host=host),) if index else ()))
    entries = direct.entries(no_proxy, names=settings.names, hosts=hosts)
    _warn(run, dialects.warnings(no_proxy, settings.names))
    found = proxyenv.variables(from_container(first), from_container(https), entries, others)
    if (
        not knows_host
        and sys.platform == "linux"
        and any(direct.HOST in value for name, value in found.items() if name.lower() != "no_proxy")
    ):
        run.output.warn(_BY_OPTION)
    return {**found, **(pip.variables(index, host=host) if index else {})}


def _of_vm(run: Run) -> Mapping[str, str]:
    """What leads through the VM's door, and the host's own ftp_proxy and all_proxy, of which no VM keeps a record."""
    from vmproxy import converge, proxyenv

    report = converge.env(run.targets[0], run.settings, progress=run.output.progress, ask=run.ask)
    _warn(run, report.warnings)
    others = proxyenv.others(run.environ) if run.settings.proxy is None else {}
    if not others:
        return report.variables
    door = proxyenv.parse_proxy(report.variables["http_proxy"])
    kept, lost = proxyenv.through_door(others, run.settings.host_environment_proxy, door)
    names = (name for name in lost if name.islower())
    _warn(run, (f"this host's {name} is left out: the VM's containers have no way to its port" for name in names))
    return {**report.variables, **kept}


def _warn(run: Run, warnings: Iterable[str]) -> None:
    for text in warnings:
        run.output.warn(text, beside_json=True)


def _about(found: Mapping[str, str], form: str, index: str) -> Iterator[str]:
    """What to know of the text that is printed."""
    if form in ("docker-run", "docker-build") and (names := by_name(found)):
        yield f"{', '.join(names)}: by name, because the values hold credentials; vmproxy run -- docker … gives them"
    if form == "docker-build" and index:
        from vmproxy import pip

        if text := pip.history_warning(index):
            yield text
