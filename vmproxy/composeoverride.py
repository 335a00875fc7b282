"""The Compose file that gives every service the proxy variables, to be laid over the project's own. PURE."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from vmproxy import quoting
from vmproxy.composefile import OWN_HEAD, Project
from vmproxy.dialects import warnings as dialects
from vmproxy.direct import HOST
from vmproxy.errors import UsageError
from vmproxy.noproxy import merge
from vmproxy.proxyenv import holds_credentials
from vmproxy.values import dataclass

_LONGEST_BYTES = 100_000
"""One variable of a process cannot be longer than 128 KiB (execve(2), MAX_ARG_STRLEN)."""

Variables = Mapping[str, str | None]
"""Values as a Compose file means them, ``$`` doubled; None for one taken from the environment of the compose call."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """What one service gets; ``arguments`` is empty where it is not built.

    ``hosts`` and ``build_hosts`` are ``extra_hosts`` for the two.
    """

    name: str
    environment: Variables
    arguments: Variables
    hosts: tuple[str, ...] = ()
    build_hosts: tuple[str, ...] = ()


def values(project: Project, variables: Mapping[str, str]) -> dict[str, str | None]:
    """``variables`` with every service's names in NO_PROXY and no_proxy, which are added where they are not.

    A value that holds credentials is None. Raises UsageError for a control character, and for a list too long.
    """
    entries = merge(variables.get("no_proxy", ""))
    # A lone * means everything, and for curl and Python only while it stands alone.
    every = entries if entries == ("*",) else merge(entries, project.names)
    dollars = {name for name in project.names if "$" in name}
    no_proxy = ",".join(entry if entry in dollars else quoting.compose(entry) for entry in every)
    if len(no_proxy.encode()) > _LONGEST_BYTES:
        raise UsageError("the services' names are too many for one variable", where="no_proxy")
    found: dict[str, str | None] = {
        name: None if holds_credentials(name, value) else quoting.compose(value)
        for name, value in variables.items()
        if name.lower() != "no_proxy"
    }
    return {**found, "NO_PROXY": no_proxy, "no_proxy": no_proxy}


def calls_host(variables: Mapping[str, str]) -> bool:
    """Whether a container needs the name ``host.docker.internal`` to make use of these values."""
    return any(HOST in value for name, value in variables.items() if name.lower() != "no_proxy")


def parts(project: Project, given: Variables, *, host: bool = False) -> tuple[Part, ...]:
    """What each service gets: all but what it sets itself, in either case of the name.

    With ``host`` the name ``host.docker.internal`` too, which Docker Engine on Linux gives nobody who does not ask.
    """
    hosts = (f"{HOST}:host-gateway",) if host else ()
    return tuple(
        Part(
            name=service.name,
            environment={name: value for name, value in given.items() if name.lower() not in service.environment},
            arguments={
                name: value for name, value in given.items() if service.build and name.lower() not in service.args
            },
            hosts=hosts if service.takes_hosts else (),
            build_hosts=hosts if service.build_takes_hosts else (),
        )
        for service in project.services
    )


def warnings(project: Project, given: Variables) -> tuple[str, ...]:
    """What a reader of the override should know of the services, one line each."""
    lists = [service.name for service in project.services if "no_proxy" in service.environment]
    secret = [name for name, value in given.items() if value is None]
    network = [service.name for service in project.services if service.host_network]
    build = [service.name for service in project.services if service.host_build]
    found = [
        (lists, "sets no_proxy itself: the services' names are not in it"),
        (network, "uses the network of Docker's host, where a bridge's address does not lead to the proxy"),
        (build, "is built in the network of Docker's host, where a bridge's address does not lead to the proxy"),
    ]
    lines = [f"service {', '.join(names)} {text}" for names, text in found if names]
    if secret:
        lines.append(f"{', '.join(secret)}: by name, because the values hold credentials; vmproxy run -- gives them")
    return (*project.warnings, *lines, *dialects((), project.names))


def kept(project: Project, given: Variables) -> str:
    """Which services keep variables of their own, with or without a value: one line, "" where none does."""
    family = {name.lower(): None for name in given}
    found = []
    for service in project.services:
        names = [name for name in family if name in service.environment | service.args]
        if names:
            found.append(f"{service.name} ({', '.join(names)})")
    return f"left as the files say: {', '.join(found)}" if found else ""


def document(services: Sequence[Part]) -> dict[str, Any]:
    """The override as plain values, for JSON."""
    found: dict[str, Any] = {}
    for part in services:
        build = _without_empty(args=dict(part.arguments), extra_hosts=[*part.build_hosts])
        found[part.name] = _without_empty(environment=dict(part.environment), extra_hosts=[*part.hosts], build=build)
    return {"services": found}


def _without_empty(**parts: Any) -> dict[str, Any]:
    return {key: value for key, value in parts.items() if value}


def render(services: Sequence[Part], comments: Iterable[str] = ()) -> str:
    """The override as YAML in ASCII, which every version of Compose reads; ``comments`` stand on top, a line each.

    There is no ``version``: docker-compose 1.27 and later take the first file's, and 2 has none. What several services
    share stands once, behind an anchor.
    """
    lines = [OWN_HEAD.decode(), *(f"# {_commented(text)}".rstrip() for text in comments), "services:"]
    anchors: dict[tuple[tuple[str, str | None], ...], str] = {}

    def block(key: str, variables: Variables, indent: str) -> None:
        pairs = tuple(variables.items())
        if pairs in anchors:
            lines.append(f"{indent}{key}: *{anchors[pairs]}")
            return
        anchors[pairs] = f"proxy-{len(anchors) + 1}"
        lines.append(f"{indent}{key}: &{anchors[pairs]}")
        for name, value in pairs:
            scalar = "" if value is None else f" {quoting.yaml(value)}"
            lines.append(f"{indent}  {quoting.yaml_key(name)}:{scalar}")

    def hosts(names: Sequence[str], indent: str) -> None:
        if names:
            lines.append(f"{indent}extra_hosts: [{', '.join(map(quoting.yaml, names))}]")

    for part in services:
        build = bool(part.arguments or part.build_hosts)
        lines.append(f"  {quoting.yaml(part.name)}:{'' if part.environment or part.hosts or build else ' {}'}")
        if part.environment:
            block("environment", part.environment, "    ")
        hosts(part.hosts, "    ")
        if build:
            lines.append("    build:")
        if part.arguments:
            block("args", part.arguments, "      ")
        hosts(part.build_hosts, "      ")
    return "\n".join(lines) + "\n"


def _commented(text: str) -> str:
    """One line in ASCII, whatever a file's name is."""
    return json.dumps(text)[1:-1].replace('\\"', '"')
