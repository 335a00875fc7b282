"""Compose files → what each service says of the proxy variables itself, and the names it answers to. PURE.

Files that the files name (``include``, ``extends``, ``env_file``) are asked for through the function handed in. What
the override document then says is in ``vmproxy.composeoverride``.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from vmproxy.composeyaml import Reset, documents, forgets, inner, items, mapping, text
from vmproxy.direct import HOST
from vmproxy.errors import UsageError
from vmproxy.values import dataclass

Read = Callable[[str], bytes | None]
"""The bytes of a file, None where there is none; raises UsageError for one that cannot be read."""

OWN_HEAD = b"# Made by vmproxy compose"
"""How a file begins that ``vmproxy compose`` printed: what it sets is not a service's own."""

_MOST_SERVICES = 1000
_MOST_WORK = 1_000_000
_A_SERVICE = 50
_DEEPEST = 50
_MOST_WARNINGS = 20
_ENV_LINE = re.compile(rb"^[ \t]*(?:export[ \t]+)?([A-Za-z_][A-Za-z0-9_.-]*)[ \t]*(?:=|$)", re.MULTILINE)
_NAME = re.compile(
    r"(?:[A-Za-z0-9._-]|\$[A-Za-z_][A-Za-z0-9_]*|\$\{[A-Za-z_][A-Za-z0-9_]*(?::?[-?][A-Za-z0-9._-]*)?\})+"
)


@dataclass(frozen=True, kw_only=True)
class Service:
    """One service, all files together.

    ``environment`` and ``args`` are the lower-case names of the variables and build arguments it sets itself, with any
    value or none; ``names`` what other containers may call it, Compose's own ``${…}`` in them as written; ``build``
    whether it is built; ``host_network`` and ``host_build`` whether it runs, or is built, in Docker's host's network;
    ``takes_hosts`` and ``build_takes_hosts`` whether ``host.docker.internal`` can be added to the names it knows: not
    where it has that name already, nor where it shares another network's names.
    """

    name: str
    environment: frozenset[str] = frozenset()
    args: frozenset[str] = frozenset()
    names: tuple[str, ...] = ()
    build: bool = False
    host_network: bool = False
    host_build: bool = False
    takes_hosts: bool = True
    build_takes_hosts: bool = False


@dataclass(frozen=True, kw_only=True)
class Project:
    """The services in the files' order, and what could not be followed: one line each, not yet made printable."""

    services: tuple[Service, ...]
    warnings: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """Every name of every service, each once."""
        return tuple(dict.fromkeys(name for service in self.services for name in service.names))


def load(files: Sequence[str], read: Read) -> Project:
    """The services of Compose files, merged in this order as Compose merges them.

    A file that ``vmproxy compose`` made is passed over. Raises UsageError, with ``file:line`` where there is one, for
    what is no Compose file, for no service at all, and for more than a thousand.
    """
    loading = _Loading(read)
    base = os.path.dirname(files[0]) if files else ""
    for file in files:
        loading.file(file, base, ())
    if not loading.drafts:
        raise UsageError("there are no services", where=", ".join(files))
    warnings = tuple(loading.warnings)
    if len(warnings) > _MOST_WARNINGS:
        warnings = (*warnings[:_MOST_WARNINGS], f"{len(warnings) - _MOST_WARNINGS} more like these")
    return Project(services=tuple(draft.service() for draft in loading.drafts.values()), warnings=warnings)


class _Draft:
    """A service under way."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.environment: set[str] = set()
        self.args: set[str] = set()
        self.hosts: set[str] = set()
        self.build_hosts: set[str] = set()
        self.names: dict[str, None] = {name: None}
        self.build = False
        self.hostname = self.domain = self.network = self.build_network = ""

    def service(self) -> Service:
        """The finished thing."""
        full = (f"{self.hostname}.{self.domain}",) if self.hostname and self.domain else ()
        return Service(
            name=self.name,
            environment=frozenset(self.environment),
            args=frozenset(self.args),
            names=(*self.names, *full),
            build=self.build,
            host_network=self.network == "host",
            host_build=self.build and self.build_network == "host",
            takes_hosts=not self.network and HOST not in self.hosts,
            build_takes_hosts=self.build and not self.build_network and HOST not in self.build_hosts,
        )


class _Loading:
    """Files read so far, services so far, and how much work is left to spend on hostile ones."""

    def __init__(self, read: Read) -> None:
        self.drafts: dict[str, _Draft] = {}
        self.warnings: dict[str, None] = {}
        self._read = read
        self._known: dict[str, tuple[Any, ...] | None] = {}
        self._set: dict[str, frozenset[str]] = {}
        self._work = 0

    def file(self, path: str, base: str, above: tuple[str, ...]) -> None:
        """All documents of one file; ``base`` is the project's directory, ``above`` the files that include this one."""
        found = self._documents(path)
        if found is None:
            raise UsageError("there is no such file", where=path, hint="vmproxy compose -f FILE")
        for document in found:
            content = mapping(document, path, "the file")
            for entry in items(content.get("include")):
                self._include(entry, path, base, (*above, path))
            services = content.get("services")
            if services is None and any(isinstance(v, dict) and {"image", "build"} & {*v} for v in content.values()):
                raise UsageError(
                    "this is a Compose file of version 1", where=path, hint="put its services below a line 'services:'"
                )
            for name, value in mapping(services, path, "services").items():
                self._service(name, value, path, base)

    def _service(self, name: str, value: Any, path: str, base: str) -> None:
        """One service of one file, into its draft."""
        if forgets(value):
            self.drafts.pop(name, None)
        if not isinstance(value, Reset):
            draft = self.drafts.setdefault(name, _Draft(name))
            if len(self.drafts) > _MOST_SERVICES:
                raise UsageError(f"there are more than {_MOST_SERVICES} services", where=path)
            self._absorb(draft, mapping(value, path, f"service {name}"), path, base, ())

    def _documents(self, path: str) -> tuple[Any, ...] | None:
        key = os.path.normpath(path)
        if key not in self._known:
            data = self._read(path)
            own = data is not None and data.startswith(OWN_HEAD)
            self._known[key] = None if data is None else () if own else documents(data, path)
        return self._known[key]

    def _include(self, entry: Any, path: str, base: str, above: tuple[str, ...]) -> None:
        """``include`` (Compose 2.20): its services can be overridden like the file's own (measured with 2.26)."""
        parts = entry if isinstance(entry, dict) else {"path": entry}
        files = [os.path.join(base, file) for file in map(text, items(parts.get("path"))) if file]
        directory = text(parts.get("project_directory"))
        for file in files:
            self._spend(path, _A_SERVICE, len(above))
            if "$" in file or self._documents(file) is None:
                self._warn(f"{path}: the services that {file} includes are not known")
            elif file in above:
                raise UsageError("the file includes itself", where=file)
            else:
                self.file(file, os.path.join(base, directory) if directory else os.path.dirname(files[0]), above)

    def _absorb(self, draft: _Draft, said: Mapping[str, Any], path: str, base: str, above: tuple[Any, ...]) -> None:
        """What one file says of one service, on top of what is known of it."""
        self._spend(path, _A_SERVICE + sum(map(_size, said.values())), len(above))
        self._extend(draft, said.get("extends"), path, base, above)
        for item in items(said.get("env_file")):
            self._env_file(draft, text(item.get("path") if isinstance(item, dict) else item), path, base)
        _gather(draft.environment, said.get("environment"), path, f"environment of service {draft.name}")
        if forgets(said.get("build")):
            draft.args.clear()
            draft.build = False
        build = inner(said.get("build"))
        if build is not None:
            draft.build = True
            parts = build if isinstance(build, dict) else {}
            self._spend(path, sum(map(_size, parts.values())))
            _gather(draft.args, parts.get("args"), path, f"build.args of service {draft.name}")
            draft.build_hosts |= _hosts(parts.get("extra_hosts"))
            draft.build_network = text(parts.get("network")) or draft.build_network
        draft.hosts |= _hosts(said.get("extra_hosts"))
        draft.network = text(said.get("network_mode")) or draft.network
        draft.hostname = text(said.get("hostname")) or draft.hostname
        draft.domain = text(said.get("domainname")) or draft.domain
        for name in _names(said):
            self._spend(path, 1)
            if _NAME.fullmatch(name):
                draft.names[name] = None
            else:
                self._warn(f"{path}: service {draft.name}: the name {name} cannot stand in no_proxy")

    def _extend(self, draft: _Draft, extends: Any, path: str, base: str, above: tuple[Any, ...]) -> None:
        """``extends``: the other service's words come first. Its ``env_file`` is sought beside its own file."""
        parts = inner(extends)
        parts = parts if isinstance(parts, dict) else {"service": parts}
        name, file = text(parts.get("service")), text(parts.get("file"))
        other = os.path.join(os.path.dirname(path), file) if file else path
        if not name or (other, name) in above:
            return
        found = None if "$" in file else self._documents(other)
        parts = [mapping(mapping(part, other, "the file").get("services"), other, "services") for part in found or ()]
        said = [part[name] for part in parts if name in part]
        if not said:
            self._warn(f"{path}: service {draft.name}: what it extends, {name} in {other}, is not known")
        for part in said:
            within = os.path.dirname(other) if file else base
            self._absorb(draft, mapping(part, other, f"service {name}"), other, within, (*above, (other, name)))

    def _env_file(self, draft: _Draft, file: str, path: str, base: str) -> None:
        """The variables of one ``env_file``; one that does not exist is for Compose to complain of."""
        if "$" in file:
            self._warn(f"{path}: service {draft.name}: what the env_file {file} sets is not known")
        elif file:
            place = os.path.join(base, file)
            if place not in self._set:
                found = _ENV_LINE.findall(self._read(place) or b"")
                self._set[place] = frozenset(name.decode().lower() for name in found)
            self._spend(path, _A_SERVICE + len(self._set[place]))
            draft.environment |= self._set[place]

    def _spend(self, path: str, work: int, depth: int = 0) -> None:
        """Refuse what would take for ever: aliases, ``include`` and ``extends`` make much of a short file."""
        self._work += work
        if self._work > _MOST_WORK or depth > _DEEPEST:
            raise UsageError("the files include and extend too much", where=path)

    def _warn(self, text: str) -> None:
        self.warnings[text] = None


def _size(value: Any) -> int:
    found = inner(value)
    return len(found) if isinstance(found, dict | list) else 1


def _gather(names: set[str], value: Any, path: str, what: str) -> None:
    """The names that a mapping, or a list of NAME=VALUE, sets."""
    if forgets(value):
        names.clear()
    found = inner(value)
    if isinstance(found, list):
        found = {text(item).partition("=")[0]: None for item in found}
    for name, item in mapping(found, path, what).items():
        (names.discard if isinstance(item, Reset) else names.add)(name.lower())


def _hosts(value: Any) -> set[str]:
    """The names in ``extra_hosts``: a mapping, or a list of ``name:address`` or ``name=address``."""
    found = inner(value)
    return (
        {*found} if isinstance(found, dict) else {re.split("[:=]", text(item), maxsplit=1)[0] for item in items(found)}
    )


def _names(said: Mapping[str, Any]) -> Iterator[str]:
    """What other containers may call it by, and what it calls others by, besides services' own names."""
    yield from filter(None, (text(said.get("container_name")), text(said.get("hostname"))))
    networks = inner(said.get("networks"))
    for network in networks.values() if isinstance(networks, dict) else ():
        if isinstance(network, dict):
            yield from filter(None, map(text, items(network.get("aliases"))))
    for key in ("links", "external_links"):
        for link in items(said.get(key)):
            yield from filter(None, text(link).split(":"))
