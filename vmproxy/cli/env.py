"""``vmproxy env``."""

from __future__ import annotations

import json
from collections.abc import Mapping

from vmproxy import quoting
from vmproxy.cli.common import SSH, Run, command
from vmproxy.errors import UsageError
from vmproxy.model import ProxyURL

_DEFAULT_PROXY = "http://127.0.0.1:8123"


@command(
    "vm",
    "proxy",
    "https-proxy",
    "no-proxy",
    "gateway",
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
    run.output.result(render(variables(run), form))
    return 0


def variables(run: Run) -> Mapping[str, str]:
    """The variables of the one VM named, or of this host's own settings."""
    if len(run.targets) > 1:
        raise UsageError("env is about one VM", hint="name one --vm")
    settings = run.settings
    if run.targets:
        from vmproxy import converge

        return converge.env(run.targets[0], settings, progress=run.output.progress).variables
    from vmproxy.proxyenv import from_environ, parse_proxy

    first = settings.proxy
    https = settings.https_proxy
    no_proxy = settings.no_proxy
    if first is None:
        if settings.host_environment_problem:
            raise UsageError(settings.host_environment_problem, hint="--proxy URL")
        first = settings.host_environment_proxy or settings.host_environment_https_proxy or parse_proxy(_DEFAULT_PROXY)
        https = https or settings.host_environment_https_proxy
        no_proxy = no_proxy if "no_proxy" in settings.given else settings.host_environment_no_proxy
    pairs = {"http_proxy": url(first), "https_proxy": url(https or first), "no_proxy": ",".join(no_proxy)}
    return from_environ(
        {key: value for key, value in pairs.items() if value}, host=settings.gateway or "host.docker.internal"
    )


def url(proxy: ProxyURL) -> str:
    """The proxy as a URL with its credentials: this is the one place where they are the result asked for."""
    from vmproxy.proxyenv import full_url

    return full_url(proxy)


def render(pairs: Mapping[str, str], form: str) -> str:
    """The pairs as text in one of the formats. Raises UsageError where a value cannot stand in it."""
    if form == "json":
        return json.dumps(dict(pairs), indent=2)
    if form == "dotenv":
        return "\n".join(quoting.dotenv(name, value) for name, value in pairs.items())
    return "\n".join(quoting.sh_export(name, value) for name, value in pairs.items())
