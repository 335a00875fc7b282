"""The ``proxies`` entry of the docker client's config.json. PURE: the file's bytes in, its new bytes out.

The client gives these values to ``docker run``, ``create`` and ``build`` as variables in both cases; a variable that
the user names there wins (docker/cli: cli/config/configfile/file.go, ParseProxyConfig). An entry is for one daemon's
address, or ``default`` for all daemons that have none; the two are not mixed.
"""

from __future__ import annotations

import ntpath
import posixpath
import re
from collections.abc import Callable, Mapping
from dataclasses import replace

from vmproxy import jsonedit
from vmproxy.errors import ForeignFile, Refused, UsageError
from vmproxy.jsonedit import Taken, Value
from vmproxy.model import Finding, Settings, printable
from vmproxy.proxyenv import merge_no_proxy, parse_proxy, redact
from vmproxy.values import dataclass

DEFAULT = "default"

NAMES = {
    "http_proxy": "httpProxy",
    "https_proxy": "httpsProxy",
    "no_proxy": "noProxy",
    "ftp_proxy": "ftpProxy",
    "all_proxy": "allProxy",
}
"""Variable and name in the file, in the order in which the client writes them."""

_PROXIES = "proxies"
_SSH = "http://docker.example.com"  # docker/cli: cli/connhelper/connhelper.go
_ADDRESS = re.compile(r"tcp://(\[[0-9A-Fa-f:.]+\]|[^\s/:\[\]]+):[0-9]{1,5}(/\S*)?|unix:///\S+|npipe:////\S+", re.ASCII)
_USERINFO = re.compile(r"(?<=://)[^\s/]*@")
_DRIFT = "E_DRIFT"


@dataclass(frozen=True, kw_only=True)
class Change:
    """What the file should be: ``document`` None for gone, then also ``made`` directories that were made for it.

    ``diff`` shows the entry alone, without credentials; "" where nothing differs. ``secret``: credentials are written.
    """

    document: bytes | None
    made: int = 0
    diff: str = ""
    secret: bool = False
    warnings: tuple[str, ...] = ()


def entry(variables: Mapping[str, str]) -> dict[str, str]:
    """The entry for these variables (lower case counts), in the client's order. Credentials are in the values."""
    return {key: variables[name] for name, key in NAMES.items() if variables.get(name)}


def daemon(host: str) -> str:
    """The name of the entry for one daemon, "" for all: the address as the client writes it, ``tcp://10.0.0.5:2376``.

    Raises UsageError for what the client would never look up.
    """
    if not host:
        return DEFAULT
    if host.startswith("ssh://"):
        raise UsageError(
            "the docker client does not look up ssh:// addresses", where="--daemon", hint=f"it knows them all as {_SSH}"
        )
    if host != _SSH and not _ADDRESS.fullmatch(host):
        shown = "***" if "@" in host else f"'{printable(host, limit=80)}'"  # before an @ may stand a password
        raise UsageError(
            f"{shown} is no address of a daemon",
            where="--daemon",
            hint="as DOCKER_HOST has it, with the port: tcp://HOST:2376, unix:///PATH or npipe:////PATH",
        )
    return host


def place(environ: Mapping[str, str], *, windows: bool = False) -> str:
    """Where the docker client's config.json is: below DOCKER_CONFIG, else below ``.docker`` at home.

    Raises Refused where neither is known.
    """
    join = ntpath.join if windows else posixpath.join
    directory = environ.get("DOCKER_CONFIG", "")
    if not directory:
        home = environ.get("USERPROFILE" if windows else "HOME", "")
        if not home:
            raise Refused("there is no home directory to look for config.json in", hint="set HOME or DOCKER_CONFIG")
        directory = join(home, ".docker")
    return join(directory, "config.json")


def subject(name: str) -> str:
    """The entry as a reader finds it, ``proxies.default``."""
    return f"{_PROXIES}.{printable(name, limit=100)}"


def applied(
    document: bytes | None, name: str, wish: Mapping[str, str], *, force: bool = False, missing: int = 0
) -> Change:
    """The document with the entry ``name`` as wished; the very bytes where it says so already, in whatever form.

    ``missing`` is how many directories have to be made for the file. An entry that we wrote is replaced. Raises
    ForeignFile where another value is there and ``force`` is not said, and for a file that is no JSON object.
    """
    found = jsonedit.find(document, (_PROXIES, name))
    if found and found.value == wish:
        return Change(document=document)
    _look_alike(document)
    warnings: tuple[str, ...] = ()
    made = missing
    old = document
    if document is not None and found and (found.ours or _says(found.value, wish)):
        taken = _taken(document, name)
        old, made = taken.document, taken.made
    elif document is not None and (blocked := (_PROXIES, name) if found else _in_the_way(document)):
        if not force:
            raise ForeignFile(
                f"{'.'.join(blocked)} has another value", hint="--force replaces it; it cannot be given back then"
            )
        old = jsonedit.cut(document, blocked)
        warnings = (f"{printable('.'.join(blocked))} had another value, which cannot be given back",)
    return Change(
        document=jsonedit.put(old, (_PROXIES, name), wish, made=made),
        diff=_diff(name, found.value if found else {}, wish),
        secret=any("@" in text for text in wish.values()),
        warnings=warnings,
    )


def removed(document: bytes | None, name: str, wish: Callable[[], Mapping[str, str]], *, force: bool = False) -> Change:
    """The document without our entry ``name``: to the byte as before, where nobody wrote the file anew since.

    An entry that is not written as we write (the docker client wrote the file anew) is ours where it says what is
    wished; ``wish`` is called only then. Raises ForeignFile for any other without ``force``.
    """
    found = jsonedit.find(document, (_PROXIES, name))
    if document is None or found is None:
        return Change(document=document)
    warnings: tuple[str, ...] = ()
    if not found.ours:
        if force:
            warnings = (f"{subject(name)} was not written by vmproxy; it cannot be given back",)
        elif not _says(found.value, wish()):
            raise ForeignFile(
                f"{subject(name)} does not say what vmproxy would write",
                hint="say the options that it was applied with, or --force",
            )
    taken = _taken(document, name)
    return Change(document=taken.document, made=taken.made, diff=_diff(name, found.value, {}), warnings=warnings)


def recorded(document: bytes | None, name: str) -> dict[str, str]:
    """The entry that an earlier apply wrote, empty where there is none or it is not written as we write."""
    found = jsonedit.find(document, (_PROXIES, name))
    if not (found and found.ours and isinstance(found.value, Mapping)):
        return {}
    return {key: text for key, text in found.value.items() if isinstance(text, str)}


def filled(settings: Settings, record: Mapping[str, str]) -> Settings:
    """``settings`` with proxies and no_proxy of :func:`recorded` where nobody said them; as they are where the record
    has no proxy that can be read (somebody edited it)."""
    try:
        first, second = (parse_proxy(record.get(key, "")) for key in ("httpProxy", "httpsProxy"))
    except UsageError:
        return settings
    return replace(
        settings,
        proxy=first,
        https_proxy=settings.https_proxy or second,
        no_proxy=settings.no_proxy if "no_proxy" in settings.given else merge_no_proxy(record.get("noProxy", "")),
    )


def drift(document: bytes | None, name: str, wish: Mapping[str, str]) -> tuple[Finding, ...]:
    """Each point in which the entry differs from the wish; none where it is as wished."""
    found = jsonedit.find(document, (_PROXIES, name))
    if found and found.value == wish:
        return ()
    here = subject(name)
    if found is None:
        return (Finding(subject=here, ok=False, detail="missing", code=_DRIFT),)
    if not isinstance(found.value, Mapping):
        return (Finding(subject=here, ok=False, detail="has another value", code=_DRIFT),)
    keys = [key for key in {**wish, **found.value} if wish.get(key) != found.value.get(key)]
    return tuple(
        Finding(
            subject=f"{here}.{printable(key, limit=60)}",
            ok=False,
            detail=_differs(key, found.value.get(key), wish.get(key)),
            code=_DRIFT,
        )
        for key in keys
    )


# the pieces


def _says(value: Value | None, wish: Mapping[str, str]) -> bool:
    """Whether a value says what is wished, also where an older docker client wrote the file anew: those before 23 do
    not know ``allProxy`` and drop it."""
    return bool(value) and value in (wish, {key: text for key, text in wish.items() if key != NAMES["all_proxy"]})


def _look_alike(document: bytes | None) -> None:
    """Go takes a member in other letters for the same one, and the later of the two would win."""
    for other in jsonedit.names(document):
        if other != _PROXIES and other.casefold() == _PROXIES:
            raise ForeignFile(
                f"it has {printable(other)}, which Docker reads as {_PROXIES} too", hint=f"name it {_PROXIES}"
            )


def _in_the_way(document: bytes) -> tuple[str, ...]:
    """The path to a ``proxies`` that is no object; empty where there is none."""
    found = jsonedit.find(document, (_PROXIES,))
    return (_PROXIES,) if found and not jsonedit.is_object(document, (_PROXIES,)) else ()


def _taken(document: bytes, name: str) -> Taken:
    """The document without our entry, also where entries of ours were put before it later: they go, and come back."""
    above: list[tuple[str, Value]] = []
    rest = document
    while (first := jsonedit.names(rest, (_PROXIES,))[0]) != name:
        found = jsonedit.find(rest, (_PROXIES, first))
        taken = jsonedit.take(rest, (_PROXIES, first))
        if not (found and found.ours and found.value is not None and taken.exact and taken.document is not None):
            return jsonedit.take(document, (_PROXIES, name))
        above.append((first, found.value))
        rest = taken.document
    taken = jsonedit.take(rest, (_PROXIES, name))
    if not above:
        return taken
    left, made = taken.document, taken.made
    for other, value in reversed(above):
        left = jsonedit.put(left, (_PROXIES, other), value, made=made)
    return Taken(document=left, exact=taken.exact)


def _diff(name: str, old: Value | None, new: Mapping[str, str]) -> str:
    """The entry's lines that differ, as a unified diff has them. Nothing else of the file is shown: it has secrets."""
    before = old if isinstance(old, Mapping) else {}
    lines = [] if isinstance(old, Mapping) else ["-  a value that is no object of texts"]
    for sign, one, other in (("-", before, new), ("+", new, before)):
        lines += [
            f'{sign}  "{printable(key, limit=60)}": {_shown(key, item)}'
            for key, item in one.items()
            if other.get(key) != item
        ]
    return "\n".join([f"@@ {subject(name)} @@", *lines])


def _differs(key: str, old: Value | None, new: str | None) -> str:
    before, after = _shown(key, old), _shown(key, new)
    return f"{before} instead of {after}" if before != after else f"{before} with other credentials"


def _shown(key: str, value: Value | None) -> str:
    """One value as it may be seen: a URL without its credentials."""
    if value is None:
        return "nothing"
    if not isinstance(value, str):
        return "an object"
    if key == NAMES["no_proxy"]:
        return f'"{printable(_USERINFO.sub("***@", value), limit=400)}"'
    return f'"{redact(value)}"' if value else '""'
