"""What a Dokku host said, read: its version, apps, proxy variables, build arguments, and our own record. PURE.

Everything comes from the VM and is untrusted; a name that Dokku would not take is not asked about again.
"""

from __future__ import annotations

import hashlib
import json
import re
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import field
from itertools import pairwise

from vmproxy import dokkucalls as dokku
from vmproxy.dokkucalls import GLOBAL, Action, Answer, ReadRecord, Version
from vmproxy.errors import Refused
from vmproxy.model import printable
from vmproxy.values import dataclass

_APP = re.compile(r"[a-z0-9][a-z0-9._-]*", re.ASCII)  # plugins/common: IsValidAppName, and the older rule with _
_KEY = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]*", re.ASCII)
_HOST = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", re.ASCII)
_FAMILY = re.compile(r"(?:http|https|ftp|all|no)_proxy|pip_(?:index_url|trusted_host)", re.ASCII)

_VALUE = re.compile(r'"((?:[^"\\]|\\.)*)"|-?[0-9]+', re.ASCII)
_ESCAPE = re.compile(r"\\(.)")
_ESCAPES = {"n": "\n", "r": "\r"}

Asked = tuple[tuple[Action, Answer], ...]


@dataclass(frozen=True, kw_only=True)
class App:
    """One app. ``builder`` is "" while it is not known: never built, and none selected.

    ``args`` are the names of its build arguments that have no value of their own, ``valued`` of those that have one.
    """

    name: str
    builder: str = ""
    args: tuple[str, ...] = ()
    valued: frozenset[str] = frozenset()
    links: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Record:
    """What vmproxy wrote into Dokku: by scope and key the hashes of its values, by app the build arguments.

    ``names`` are those that the user said, so that a later run need not say them again.
    """

    config: Mapping[str, Mapping[str, frozenset[str]]] = field(default_factory=dict)
    options: Mapping[str, frozenset[str]] = field(default_factory=dict)
    names: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.config or self.options)

    def owns(self, scope: str, key: str, value: str) -> bool:
        """Whether that value is one that we wrote."""
        return digest(value) in self.config.get(scope, {}).get(key, frozenset())


@dataclass(frozen=True, kw_only=True)
class DokkuFacts:
    """One look at one Dokku host. ``config`` has the variables of our family, by scope; ``asked`` what was asked of
    each scope, to be compared under the lock."""

    version: Version
    apps: tuple[App, ...] = ()
    config: Mapping[str, Mapping[str, str]] = field(default_factory=dict, repr=False)
    record: Record = Record()
    record_bytes: bytes | None = field(default=None, repr=False)
    asked: Mapping[str, Asked] = field(default_factory=dict, repr=False)


def digest(value: str) -> str:
    """What the record keeps of a value, so that it holds no password."""
    return hashlib.sha256(value.encode("utf-8", "surrogateescape")).hexdigest()


# ---- two rounds of questions, the second made of the answers of the first ------------------------------------------


def first_questions() -> tuple[Action, ...]:
    """Version, apps, global proxy variables, our record."""
    return dokku.version(), dokku.apps(), dokku.export(GLOBAL), ReadRecord()


def second_questions(first: Asked) -> tuple[Action, ...]:
    """Builder, options and proxy variables of each app. Raises Refused."""
    _check(first[0], "dokku version")
    _check(first[1], "dokku apps:list")
    _check(first[2], "dokku config:export")
    version = read_version(first[0][1].stdout)
    if version < dokku.OLDEST:
        raise Refused(
            f"Dokku {'.'.join(map(str, version))} is too old", hint=f"{'.'.join(map(str, dokku.OLDEST))} or newer"
        )
    return tuple(
        call for app in app_names(first) for call in (dokku.builder(app), dokku.options(app), dokku.export(app))
    )


def read(first: Asked, second: Asked) -> DokkuFacts:
    """All answers as facts. Raises Refused for answers that are not Dokku's."""
    config = {GLOBAL: family(first[2][1].stdout, GLOBAL)}
    asked: dict[str, Asked] = {GLOBAL: (first[2],)}
    apps = []
    for number, name in enumerate(app_names(first)):
        builder, options, export = second[3 * number : 3 * number + 3]
        for pair, what in ((builder, "builder:report"), (options, "docker-options:report"), (export, "config:export")):
            _check(pair, f"dokku {what} {name}")
        asked[name] = (options, export)
        config[name] = family(export[1].stdout, name)
        apps.append(_app(name, builder[1].stdout, options[1].stdout))
    held = first[3][1]
    return DokkuFacts(
        version=read_version(first[0][1].stdout),
        apps=tuple(apps),
        config={scope: values for scope, values in config.items() if values},
        record=read_record(held.stdout) if held.status == 0 else Record(),
        record_bytes=held.stdout if held.status == 0 else None,
        asked=asked,
    )


def app_names(first: Asked) -> tuple[str, ...]:
    """The apps of ``apps:list``."""
    lines = first[1][1].stdout.decode("utf-8", "replace").split("\n")
    return tuple(dict.fromkeys(line.strip() for line in lines if _APP.fullmatch(line.strip())))


def family(stdout: bytes, scope: str) -> dict[str, str]:
    """The proxy variables of a ``config:export --format envfile`` (godotenv's Marshal: quotes and escapes, a whole
    number bare). Raises Refused for a line that is none, naming no value."""
    found = {}
    for line in stdout.decode("utf-8", "surrogateescape").split("\n"):
        name, _equals, text = line.partition("=")
        if not _FAMILY.fullmatch(name.lower()):
            continue
        value = _VALUE.fullmatch(text)
        if value is None:
            hint = f"dokku config:get {scope} {name}, in the VM"
            raise Refused(f"Dokku's {name} cannot be read", where=scope, hint=hint)
        found[name] = text if value[1] is None else _ESCAPE.sub(lambda m: _ESCAPES.get(m[1], m[1]), value[1])
    return found


def read_version(stdout: bytes) -> Version:
    """``dokku version 0.38.27`` as numbers; a version without numbers is one of its authors, and newer than all."""
    found = re.search(rb"([0-9]{1,6})\.([0-9]{1,6})(?:\.([0-9]{1,6}))?", stdout)
    if found is None:
        return (999999, 0, 0)
    return int(found[1]), int(found[2]), int(found[3] or 0)


def _check(pair: tuple[Action, Answer], what: str) -> None:
    answer = pair[1]
    if answer.status != 0:
        said = printable(answer.complaint.strip().lstrip(b"! "), limit=100)
        raise Refused(f"{what} fails in the VM: {said or f'exit {answer.status}'}", hint=f"{what}, in the VM")


def _app(name: str, builder: bytes, options: bytes) -> App:
    chosen = _lines(builder, "Builder computed selected") or _lines(builder, "Builder detected") or [""]
    build = _words(_lines(options, "Docker options build"))
    args = _values(build, "--build-arg")
    running = _words(_lines(options, r"Docker options (?:deploy|run)(?:[ .][^:]+)?"))
    links = (link.rpartition(":")[2] for link in (*_values(build, "--link"), *_values(running, "--link")))
    return App(
        name=name,
        builder=chosen[0],
        args=tuple(dict.fromkeys(arg for arg in args if _KEY.fullmatch(arg))),
        valued=frozenset(arg.partition("=")[0] for arg in args if "=" in arg),
        links=tuple(dict.fromkeys(link for link in links if _HOST.fullmatch(link))),
    )


def _lines(report: bytes, label: str) -> list[str]:
    """What stands behind a label in the lines of a report, without those that are empty."""
    text = report.decode("utf-8", "replace")
    found: list[str] = re.findall(rf"^\s+{label}:[ \t]*(\S.*?)?[ \t]*$", text, re.MULTILINE | re.IGNORECASE)
    return [value for value in found if value]


def _words(lines: Iterable[str]) -> list[str]:
    out: list[str] = []
    for line in lines:
        try:
            out += shlex.split(line)
        except ValueError:
            out += line.split()
    return out


def _values(words: list[str], flag: str) -> list[str]:
    """The values of a flag, written ``--flag value`` or ``--flag=value``."""
    out = [following for word, following in pairwise(words) if word == flag]
    return out + [word.removeprefix(f"{flag}=") for word in words if word.startswith(f"{flag}=")]


# ---- our record ----------------------------------------------------------------------------------------------------


def write_record(record: Record) -> bytes | None:
    """The record's bytes; None for an empty one, which is no file."""
    if not record:
        return None
    data = {
        "version": 1,
        "config": {
            scope: {key: sorted(hashes) for key, hashes in sorted(keys.items())}
            for scope, keys in sorted(record.config.items())
        },
        "options": {app: sorted(args) for app, args in sorted(record.options.items())},
        "names": list(record.names),
    }
    return json.dumps(data, indent=1).encode("ascii") + b"\n"


def read_record(content: bytes) -> Record:
    """The record of these bytes. Raises Refused for what :func:`write_record` does not write."""
    try:
        data = json.loads(content)
        if data["version"] != 1:
            raise ValueError
        return Record(
            config={
                _known(scope, _APP, GLOBAL): {
                    _known(key, _KEY): frozenset(map(_text, hashes)) for key, hashes in keys.items()
                }
                for scope, keys in data["config"].items()
            },
            options={
                _known(app, _APP): frozenset(_known(arg, _KEY) for arg in args)
                for app, args in data["options"].items()
            },
            names=tuple(_known(name, _HOST) for name in data["names"]),
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise Refused(
            "the record of what vmproxy wrote into Dokku is damaged",
            where="/var/lib/vmproxy/dokku.json",
            hint="remove that file in the VM; what it was about then stays in Dokku",
        ) from None


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value


def _known(value: object, shape: re.Pattern[str], *also: str) -> str:
    text = _text(value)
    if not shape.fullmatch(text) and text not in also:
        raise ValueError
    return text
