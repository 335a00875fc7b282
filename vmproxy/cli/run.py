"""``vmproxy run``."""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import urlsplit

import click

from vmproxy import hostproc, proxyenv
from vmproxy.cli.common import SSH, Run, command
from vmproxy.cli.env import variables


def _make() -> click.Command:
    @command(
        "vm",
        "proxy",
        "https-proxy",
        "no-proxy",
        "gateway",
        "names",
        "pip-index",
        "wait",
        *SSH,
        examples=(
            "vmproxy run --vm default -- docker compose -f compose.yaml -f compose.proxy.yaml up",
            "vmproxy run --vm default --names db,cache -- docker run -e http_proxy -e no_proxy app",
            "vmproxy run --vm default -- pack build app",
        ),
    )
    def run_command(run: Run) -> int:
        """Run COMMAND on this host with the proxy variables that containers need, in place of the host's own.

        It is for programs that hand their own variables on to containers and builds: docker run -e http_proxy,
        docker build --build-arg http_proxy, Compose files that name variables without a value, pack, skaffold.
        The words behind COMMAND are its own. Signals and exit code are its own too; a command that is not found, or
        cannot be executed, is exit 2.
        """
        words = tuple(click.get_current_context().params["words"])
        return hostproc.become(words, environment(variables(run), run.environ))

    run_command.params.append(
        click.Argument(["words"], nargs=-1, required=True, type=click.UNPROCESSED, metavar="[--] COMMAND [ARGUMENT]...")
    )
    run_command.context_settings["allow_interspersed_args"] = False
    return run_command


def environment(given: Mapping[str, str], environ: Mapping[str, str]) -> dict[str, str]:
    """``environ`` with all its proxy variables replaced by ``given``.

    What ``given`` does not have is left out: a loopback address of the host's is somebody else in a container. The
    address in DOCKER_HOST goes into no_proxy: the Docker client itself runs here, and obeys these variables.
    """
    kept = {name: value for name, value in environ.items() if name.lower() not in proxyenv.FAMILY}
    found = {**kept, **given}
    docker = _host_of(environ.get("DOCKER_HOST", ""))
    if docker:
        no_proxy = ",".join(proxyenv.merge_no_proxy(given.get("no_proxy", ""), docker))
        found |= {"NO_PROXY": no_proxy, "no_proxy": no_proxy}
    return found


def _host_of(address: str) -> str:
    """The host in ``tcp://host:port``; "" where there is none."""
    try:
        parts = urlsplit(address)
        return parts.hostname or "" if parts.scheme in ("tcp", "http", "https") else ""
    except ValueError:
        return ""


main = _make()
