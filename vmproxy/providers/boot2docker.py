"""The classic boot2docker VM: docker@127.0.0.1:2022 with ~/.ssh/id_boot2docker (boot2docker-cli's config.go).

Its profile is TOML, read from ``$BOOT2DOCKER_PROFILE``, else ``profile`` in ``$BOOT2DOCKER_DIR`` or ``~/.boot2docker``;
keys are matched without regard to case, as its TOML library does.
"""

from __future__ import annotations

import ipaddress
import ntpath
import posixpath
import tomllib
from collections.abc import Mapping

from vmproxy.errors import UsageError
from vmproxy.model import Target, printable
from vmproxy.providers import Answers, Queries, home
from vmproxy.values import dataclass

_HOST = "127.0.0.1"
_PORT = 2022
_USER = "docker"
_PASSWORD = "tcuser"  # noqa: S105 - every boot2docker VM's, published in its README
_NAMES = ("", "boot2docker")


@dataclass(frozen=True, kw_only=True)
class _Profile:
    port: int
    key: str
    vm: str
    named: bool


def queries(name: str, environ: Mapping[str, str], answers: Answers) -> Queries:
    """The profile first; then the key and the port that it, or the default, names."""
    if name not in _NAMES and not name.startswith("boot2docker"):
        return Queries()
    path = _path(environ)
    if path not in answers.read:
        return Queries(read=frozenset({path}))
    profile = _profile(environ, answers)
    if name not in _NAMES and name != profile.vm:
        return Queries()
    return Queries(exist=frozenset({profile.key}), ports=frozenset({(_HOST, profile.port)}))


def parse(name: str, environ: Mapping[str, str], answers: Answers) -> Target | None:
    """The VM, where its profile was named by the environment, or its key or its port is there."""
    if name not in _NAMES and not name.startswith("boot2docker"):
        return None
    profile = _profile(environ, answers)
    if name not in _NAMES and name != profile.vm:
        return None
    if not (profile.named or answers.exist.get(profile.key) or answers.ports.get((_HOST, profile.port))):
        return None
    return Target(
        name=name or "boot2docker",
        provider="boot2docker",
        host=_HOST,
        port=profile.port,
        user=_USER,
        identities=(profile.key,),
        only_identities=True,
        passwords=(_PASSWORD,) if ipaddress.ip_address(_HOST).is_loopback else (),
    )


def listing(environ: Mapping[str, str]) -> Queries:
    """As for the name itself, without trying the port: completion must be quick."""
    return Queries(read=frozenset({_path(environ)}), exist=frozenset({_default_key(environ)}))


def names(environ: Mapping[str, str], answers: Answers) -> tuple[str, ...]:
    """``boot2docker`` where its profile or its key is there."""
    there = answers.read.get(_path(environ)) is not None or answers.exist.get(_default_key(environ))
    return ("boot2docker",) if there else ()


def _named(environ: Mapping[str, str]) -> bool:
    return bool(environ.get("BOOT2DOCKER_PROFILE") or environ.get("BOOT2DOCKER_DIR"))


def _path(environ: Mapping[str, str]) -> str:
    if named := environ.get("BOOT2DOCKER_PROFILE"):
        return named
    return _join(environ.get("BOOT2DOCKER_DIR") or _join(home(environ), ".boot2docker"), "profile")


def _default_key(environ: Mapping[str, str]) -> str:
    return _join(home(environ), ".ssh", "id_boot2docker")


def _profile(environ: Mapping[str, str], answers: Answers) -> _Profile:
    """What the profile says over the defaults. Raises UsageError where the environment names one that is not there."""
    path = _path(environ)
    data = answers.read.get(path)
    if data is None:
        if _named(environ):
            raise UsageError("the environment names a boot2docker profile that is not there", where=path)
        return _Profile(port=_PORT, key=_default_key(environ), vm="boot2docker-vm", named=False)
    try:
        values = {key.lower(): value for key, value in tomllib.loads(data.decode("utf-8-sig")).items()}
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UsageError(f"boot2docker's profile is not TOML: {printable(str(error))}", where=path) from error
    port = values.get("sshport", _PORT)
    if type(port) is not int or not 0 < port < 65536:
        raise UsageError("SSHPort in boot2docker's profile is no port", where=path)
    key, vm = values.get("sshkey", ""), values.get("vm", "boot2docker-vm")
    if not isinstance(key, str) or "\0" in key:
        raise UsageError("SSHKey in boot2docker's profile is no path", where=path)
    directory = values.get("dir")
    base = (
        directory if isinstance(directory, str) and directory else (ntpath if "\\" in path else posixpath).dirname(path)
    )
    return _Profile(
        port=port, key=_join(base, key) if key else _default_key(environ), vm=str(vm), named=_named(environ)
    )


def _join(base: str, *parts: str) -> str:
    """Join as the host the path comes from does it; an absolute part stands alone."""
    if "\\" in base or base[1:2] == ":":
        return ntpath.join(base, *parts)
    return posixpath.join(base, *parts)
