"""``vmproxy compose``."""

from __future__ import annotations

import os
import re
import shlex
import sys
from collections.abc import Mapping

from vmproxy import composefile, composeoverride, hostproc, pip
from vmproxy.cli.common import SSH, Run, command
from vmproxy.cli.env import variables
from vmproxy.composeyaml import LIMIT_BYTES
from vmproxy.errors import UsageError

_NAMES = ("compose.yaml", "compose.yml", "docker-compose.yml", "docker-compose.yaml")
_OVERRIDES = (
    *("compose.override.yml", "compose.override.yaml"),
    *("docker-compose.override.yml", "docker-compose.override.yaml"),
)
"""What Compose looks for, in its order (compose-go, cli/options.go)."""


@command(
    "file",
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
        "vmproxy compose --vm default > compose.proxy.yaml",
        "docker compose -f compose.yaml -f compose.proxy.yaml up",
        "vmproxy compose --vm default -f base.yaml -f more.yaml > compose.proxy.yaml",
    ),
)
def main(run: Run) -> int:
    """Print a Compose file that gives every service the proxy variables, and the build arguments where it is built.

    Lay it over your own files as the last -f, for docker-compose 1.27 and later or docker compose 2. What a service
    sets itself is left to it. The names of all services are in no_proxy. Where the proxy is host.docker.internal,
    they get to know that name. Without -f the files are those that Compose would take: COMPOSE_FILE, else compose.yaml
    with compose.override.yaml, here or in a directory above.

    A value that holds credentials is not printed: Compose takes it from its own environment, as in
    vmproxy run --vm default -- docker compose up.
    """
    files = run.value("file") or default_files(run)
    project = composefile.load(files, read)
    found = variables(run, knows_host=True)
    given = composeoverride.values(project, found)
    services = composeoverride.parts(project, given, host=composeoverride.calls_host(found))
    index = run.settings.pip_index if any(service.build for service in project.services) else ""
    for warning in filter(None, (*composeoverride.warnings(project, given), pip.history_warning(index))):
        run.output.warn(warning, beside_json=True)
    if kept := composeoverride.kept(project, given):
        run.output.note(kept)
    if run.output.json:
        run.output.document(composeoverride.document(services))
    else:
        words = " ".join(f"-f {shlex.quote(file)}" for file in files)
        usage = f"Lay it over the project's own files: docker compose {words} -f THIS up"
        run.output.result(composeoverride.render(services, (usage,)).rstrip("\n"))
    return 0


def read(path: str) -> bytes | None:
    """The bytes of a file, of stdin for ``-``; None where there is none. Raises UsageError."""
    if path == "-":
        return sys.stdin.buffer.read(LIMIT_BYTES + 1)
    return hostproc.read_file(path, limit_bytes=LIMIT_BYTES)


def default_files(run: Run) -> tuple[str, ...]:
    """The files that Compose takes without ``-f``. Raises UsageError where there are none."""
    environ = {**_dot_env(), **run.environ}
    if said := environ.get("COMPOSE_FILE", ""):
        separator = environ.get("COMPOSE_PATH_SEPARATOR", "") or os.pathsep
        return tuple(filter(None, said.split(separator)))
    directory = os.curdir
    for _ in range(os.getcwd().count(os.sep) + 1):
        found = [path for path in (_in(directory, name) for name in _NAMES) if hostproc.is_file(path)]
        if found:
            if len(found) > 1:
                run.output.warn(f"{found[0]} is taken, not {', '.join(found[1:])}", beside_json=True)
            more = [path for path in (_in(directory, name) for name in _OVERRIDES) if hostproc.is_file(path)]
            return (found[0], *more[:1])
        directory = _in(directory, os.pardir)
    raise UsageError("there is no Compose file here or above", hint="vmproxy compose -f FILE")


def _in(directory: str, name: str) -> str:
    return os.path.normpath(os.path.join(directory, name))


def _dot_env() -> Mapping[str, str]:
    """What ``.env`` says of which files Compose takes."""
    data = hostproc.read_file(".env", limit_bytes=LIMIT_BYTES) or b""
    line = re.compile(r"^\s*(COMPOSE_FILE|COMPOSE_PATH_SEPARATOR)=(.*?)\s*$", re.MULTILINE)
    found = line.findall(data.decode(errors="replace"))
    return {name: value.strip("\"'") for name, value in found}
