"""docker-machine: one ``config.json`` per machine (libmachine's host.go and drivers/base.go)."""

from __future__ import annotations

import json
import ntpath
import posixpath
import re
from collections.abc import Mapping
from typing import Any

from vmproxy.errors import Unreachable, UsageError
from vmproxy.model import Target, printable
from vmproxy.providers import Answers, Queries, home

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,254}")  # libmachine's ValidateHostName, and the underscore of old ones
_HOST = re.compile(r"[A-Za-z0-9][A-Za-z0-9.:_-]{0,254}")
_USER = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,63}")


def queries(name: str, environ: Mapping[str, str], answers: Answers) -> Queries:
    """The machine's file."""
    return Queries(read=frozenset({_config(name, environ)})) if _NAME.fullmatch(name) else Queries()


def parse(name: str, environ: Mapping[str, str], answers: Answers) -> Target | None:
    """The machine of that name. VirtualBox's is at 127.0.0.1 and a forwarded port, others at their own address."""
    if not _NAME.fullmatch(name):
        return None
    path = _config(name, environ)
    data = answers.read.get(path)
    if data is None:
        return None
    try:
        config = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"docker-machine's file is not JSON: {printable(str(error))}", where=path) from error
    driver = config.get("Driver") if isinstance(config, dict) else None
    if not isinstance(driver, dict):
        raise UsageError("docker-machine's file has no Driver", where=path)
    kind = config.get("DriverName")
    host = "127.0.0.1" if kind == "virtualbox" else _text(driver, "IPAddress", path)
    if not host:
        raise Unreachable(
            f"docker-machine's {name} has no address",
            where=path,
            hint=f"docker-machine start {name}" if kind != "none" else "a machine of the driver none has no SSH",
        )
    user = _text(driver, "SSHUser", path) or "root"
    if not _HOST.fullmatch(host) or not _USER.fullmatch(user):
        raise UsageError("docker-machine's file has no usable IPAddress or SSHUser", where=path)
    port = driver.get("SSHPort") or 22
    if type(port) is not int or not 0 < port < 65536:
        raise UsageError("SSHPort in docker-machine's file is no port", where=path)
    return Target(
        name=name,
        provider="docker-machine",
        host=host,
        port=port,
        user=user,
        identities=(_key(name, driver, environ, path),),
        only_identities=True,
    )


def listing(environ: Mapping[str, str]) -> Queries:
    """The directory of machines."""
    return Queries(listing=frozenset({_machines(environ)}))


def names(environ: Mapping[str, str], answers: Answers) -> tuple[str, ...]:
    """One per directory; one without a file is found out when it is used."""
    return tuple(name for name in answers.listing.get(_machines(environ), ()) if _NAME.fullmatch(name))


def _key(name: str, driver: Mapping[str, Any], environ: Mapping[str, str], path: str) -> str:
    if key := _text(driver, "SSHKeyPath", path):
        return key
    store = _text(driver, "StorePath", path) or _store(environ)
    machine = _text(driver, "MachineName", path) or name
    if store.replace("\\", "/").endswith(f"/machines/{machine}"):  # ConfigVersion 0 named the machine's own directory
        return _join(store, "id_rsa")
    return _join(store, "machines", machine, "id_rsa")


def _text(driver: Mapping[str, Any], key: str, path: str) -> str:
    value = driver.get(key) or ""
    if not isinstance(value, str) or not value.isprintable():
        raise UsageError(f"{key} in docker-machine's file is no text", where=path)
    return value


def _store(environ: Mapping[str, str]) -> str:
    return environ.get("MACHINE_STORAGE_PATH") or _join(home(environ), ".docker", "machine")


def _machines(environ: Mapping[str, str]) -> str:
    return _join(_store(environ), "machines")


def _config(name: str, environ: Mapping[str, str]) -> str:
    return _join(_machines(environ), name, "config.json")


def _join(base: str, *parts: str) -> str:
    if "\\" in base or base[1:2] == ":":
        return ntpath.join(base, *parts)
    return posixpath.join(base, *parts)
