"""``vmproxy env``."""

from __future__ import annotations

from collections.abc import Mapping

from vmproxy.cli.common import SSH, Run, command
from vmproxy.containers import render
from vmproxy.errors import UsageError
from vmproxy.model import ProxyURL

_DEFAULT_PROXY = "http://127.0.0.1:8123"


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
        "vmproxy env --proxy http://127.0.0.1:3128 --gateway 10.0.2.2 --json",
    ),
)
def main(run: Run) -> int:
    """Print the proxy variables for containers, lower and upper case.

    With --vm they lead to the VM's own bridge address, as the last apply made it. Without, a proxy on this host is
    reached at --gateway, else at host.docker.internal.
    """
    form = "json" if run.output.json else run.value("format", "sh")
    if run.output.json and run.value("format", "json") != "json":
        raise UsageError("--json and another --format exclude each other")
    found = render(variables(run), form)
    if form == "docker-build" and run.settings.pip_index:
        from vmproxy import pip

        if text := pip.history_warning(run.settings.pip_index):
            run.output.warn(text)
    run.output.result(found.rstrip("\n"))
    return 0


def variables(run: Run) -> Mapping[str, str]:
    """The variables of the one VM named, or of this host's own settings."""
    if len(run.targets) > 1:
        raise UsageError("env is about one VM", hint="name one --vm")
    settings = run.settings
    if run.targets:
        from vmproxy import converge

        report = converge.env(run.targets[0], settings, progress=run.output.progress, ask=run.ask)
        for warning in report.warnings:
            run.output.warn(warning)
        return report.variables
    from vmproxy import dialects, direct, pip, proxyenv

    first = settings.proxy
    https = settings.https_proxy
    no_proxy = settings.no_proxy
    if first is None:
        if settings.host_environment_problem:
            raise UsageError(settings.host_environment_problem, hint="--proxy URL")
        first = settings.host_environment_proxy or settings.host_environment_https_proxy
        first = first or proxyenv.parse_proxy(_DEFAULT_PROXY)
        https = https or settings.host_environment_https_proxy
        no_proxy = no_proxy if "no_proxy" in settings.given else settings.host_environment_no_proxy
    host = settings.gateway or direct.HOST

    def from_container(proxy: ProxyURL) -> ProxyURL:
        return proxyenv.with_host(proxy, host) if proxyenv.is_loopback(proxy.host) else proxy

    index = settings.pip_index
    hosts = (pip.direct_host(index, host=host),) if index else ()
    entries = direct.entries(no_proxy, names=settings.names, hosts=hosts)
    for warning in dialects.warnings(no_proxy, settings.names):
        run.output.warn(warning)
    found = proxyenv.variables(from_container(first), from_container(https) if https else None, entries)
    return {**found, **(pip.variables(index, host=host) if index else {})}
