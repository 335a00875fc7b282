"""``proxies`` of daemon.json, by which Docker 23 and later is told of the proxy (``--via daemon-json``). PURE.

dockerd(8): ``proxies`` has ``http-proxy``, ``https-proxy`` and ``no-proxy``, which go before the daemon's environment;
they are read when it starts and at no reload; with the same among its flags it does not start. Nothing else of the file
is touched (:mod:`vmproxy.jsonedit`). What exact undo needs beside the file itself stands in the record of the wish, as
:data:`RECORD`: the proxy written, without credentials; the mode of a file that was narrowed; and whether the value was
there already, in which case it is somebody else's and stays.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Any

from vmproxy import blocks, dockerversion, jsonedit, jsontext, preview
from vmproxy.errors import ForeignFile, Refused
from vmproxy.guests import Guest
from vmproxy.managed import DRIFT, before_narrowed, must_be_plain, must_have_one_name, narrowed
from vmproxy.model import Desired, Facts, File, FileChange, Finding, printable

VIA = "daemon-json"
RECORD = "daemon_json"
_PATH = ("proxies",)
_KEYS = {"http-proxy": "http_proxy", "https-proxy": "https_proxy", "no-proxy": "no_proxy"}
_SINCE = 23
_NEW_MODE = 0o644
_RUNNING = "the running Docker"
_USUAL = "/etc/docker/daemon.json"
_USERINFO = re.compile(r"(?<=://)[^/@]*@")
_FLAG = re.compile(
    r"(?<![\w-])--(http-proxy|https-proxy|no-proxy|config-file)(?:=|[ \t]+|(?=[\"']?$))[\"']?([^\s\"']*)"
)
# Where words for dockerd stand: a variable's value, also of several lines, and a unit's ExecStart. A script's own
# commands have flags of the same names: wget --no-proxy.
_OPTIONS = re.compile(r"[ \t]*(?:(?:export[ \t]+)?(?!Exec(?!Start=))[A-Za-z_]\w*\+?=|--)")


def proxies(variables: Mapping[str, str]) -> dict[str, str]:
    """The member's value for the daemon's variables. Credentials are in the values."""
    return {key: variables[name] for key, name in _KEYS.items() if variables.get(name)}


def held(facts: Facts, guest: Guest) -> dict[str, str]:
    """The variables that the member of ours holds, empty where there is none or it cannot be read."""
    try:
        found = jsonedit.find(_file(facts, guest).content, _PATH)
    except ForeignFile:
        return {}
    value = found.value if found and isinstance(found.value, Mapping) else {}
    return {name: text for key, name in _KEYS.items() if isinstance(text := value.get(key), str)}


def without(content: bytes) -> tuple[bool, bytes | None]:
    """Whether the member of ours is in there, and what was there before it, None for no file."""
    try:
        found = jsonedit.find(content, _PATH)
    except ForeignFile:
        return False, None
    return (True, jsonedit.take(content, _PATH).document) if found and found.ours else (False, None)


def must_know(facts: Facts, guest: Guest) -> None:
    """Raises Refused where this Docker takes no proxies from daemon.json, or where that cannot be told."""
    number = dockerversion.major(facts.docker_version)
    hint = "--via drop-in, or upgrade Docker in the VM to 23 or later"
    if 0 < number < _SINCE:
        version = printable(facts.docker_version, limit=40)
        raise Refused(f"Docker {version} takes no proxies from daemon.json", where=guest.DAEMON_CONFIG, hint=hint)
    # An earlier apply has known it.
    if not number and not _state(facts, guest):
        what = "it cannot be told whether this VM's Docker takes proxies from daemon.json (23 and later do)"
        raise Refused(what, where=guest.DAEMON_CONFIG, hint="--via drop-in")


def record(facts: Facts, guest: Guest, wanted: Mapping[str, str]) -> dict[str, Any]:
    """What is to stand in the record under :data:`RECORD`. Raises ForeignFile for a file that cannot be read."""
    before, state = _file(facts, guest), _state(facts, guest)
    found = _find(before)
    out: dict[str, Any] = {"proxy": _bare(wanted.get("http-proxy", ""))}
    if found and found.value == wanted and not found.ours and (not state or state.get("theirs") is True):
        out["theirs"] = True
    mode = _given_back(before, state) if before.content is not None else _NEW_MODE
    if _secret(wanted) and mode != narrowed(mode):
        out["mode"] = mode
    return out


def change(
    facts: Facts, guest: Guest, desired: Desired, *, force: bool
) -> tuple[FileChange | None, list[Finding], tuple[str, ...]]:
    """What daemon.json must become, None where it is right; each point of drift; warnings.

    Raises ForeignFile where it cannot be edited, and where another value is there without ``force``.
    """
    before = _file(facts, guest)
    try:
        after, made, warnings = _after(facts, guest, before, desired, force=force)
    except ForeignFile as error:
        if desired.proxies is None and not _state(facts, guest):
            return None, [], ()  # somebody else's, and nobody wants anything of it
        raise _at(error, before.path) from None
    if after == before:
        return None, [], warnings
    must_be_plain(before)
    must_have_one_name(before)
    found = _find(before)
    old = found.value if found else {}
    new = desired.proxies or {}
    shown = "\n".join(["@@ proxies @@", *_lines("-", old, new), *_lines("+", new, old)])
    drift = Finding(subject=f"file {before.path}", ok=False, code=DRIFT, detail=_words(before, after, old, desired))
    return FileChange(before=before, after=after, shell=False, directory=made > 0, shown=shown), [drift], warnings


def overrides(facts: Facts, guest: Guest, wanted: Mapping[str, str], *, ours: bool) -> tuple[Finding, ...]:
    """Flags of dockerd that go before what is ``wanted`` (by daemon.json's names), or stop it from starting with
    daemon.json's; ``ours`` says that they are to stand there."""
    found: dict[tuple[str, str], Finding] = {}
    for where, name, value in _flags(facts, guest):
        if name == "config-file":
            if not ours or value in ("", _USUAL, guest.DAEMON_CONFIG):
                continue
            what = f"{where} makes Docker read {value} in place of {guest.DAEMON_CONFIG}"
        elif ours:
            what = f"{where} has --{name} among Docker's flags, and Docker does not start with that in both"
        elif value in ("", wanted.get(name, value)):
            continue
        else:
            what = f"{where} has --{name} among Docker's flags, and that wins over what vmproxy sets"
        hint = "restart Docker without it" if where == _RUNNING else f"take that out of {where}"
        hint += ", or --via drop-in" if ours else ""
        detail = printable(preview.redact(what, ()), limit=300)
        found[where, name] = Finding(subject=f"file {where}", ok=False, code=DRIFT, detail=detail, hint=hint)
    return tuple(found.values())


def pending(facts: Facts, guest: Guest, wanted: Mapping[str, str], changed: FileChange | None) -> str:
    """Why the running Docker has to be restarted for what is ``wanted``, "" where it has it already.

    Docker masks credentials, and does not say whether a value is from the file or from its environment: in both cases,
    and where it says nothing, it counts whether the file is, or is going to be, younger than the running Docker.
    """
    daemon = facts.daemon
    if daemon is None:
        return ""
    if names := differing(facts, wanted):
        return f"other values of {', '.join(names)}"
    younger = guest.DAEMON_CONFIG in daemon.newer or bool(changed and changed.before.content != changed.after.content)
    if not younger:
        return ""
    if daemon.proxies is None:
        return "perhaps an older daemon.json"
    if _secret(wanted):
        return "perhaps other credentials"
    if any(daemon.environment.get(form) == wanted.get(key) for key, name in _KEYS.items() for form in _forms(name)):
        return "them from its environment yet"
    return ""


def differing(facts: Facts, wanted: Mapping[str, str]) -> tuple[str, ...]:
    """Those of the names of daemon.json that the running Docker has another value of, as far as it says."""
    daemon = facts.daemon
    if daemon is None or daemon.proxies is None:
        return ()
    return tuple(key for key in _KEYS if daemon.proxies.get(key, "") != _masked(wanted.get(key, "")))


def still(facts: Facts, guest: Guest, changed: FileChange | None) -> bool:
    """Whether the running Docker still works with the member that ``changed`` takes away."""
    if facts.daemon is None or changed is None or changed.before.content == changed.after.content:
        return False
    return facts.daemon.proxies is None or not differing(facts, proxies(held(facts, guest)))


def unnamed(facts: Facts, guest: Guest) -> bool:
    """Whether Docker works with a proxy that neither daemon.json nor its environment nor a flag names any more."""
    daemon = facts.daemon
    if daemon is None or not daemon.proxies:
        return False
    named = {_masked(text) for text in (*held(facts, guest).values(), *daemon.environment.values())}
    flags = " ".join(_masked(word) for word in daemon.words)
    values = (daemon.proxies.get(key, "") for key in ("http-proxy", "https-proxy"))
    return any(value and value not in named and value not in flags for value in values)


# the pieces


def _file(facts: Facts, guest: Guest) -> File:
    return facts.files.get(guest.DAEMON_CONFIG) or File(path=guest.DAEMON_CONFIG, kind="absent")


def _find(file: File) -> jsonedit.Found | None:
    try:
        return jsonedit.find(file.content, _PATH)
    except ForeignFile as error:
        raise _at(error, f"{file.path}:{_second(file.content or b'')}".rstrip(":")) from None


def _second(content: bytes) -> str:
    """Where the member stands for the second time, as line:column; "" where it does not."""
    try:
        places = [each.start for each in jsontext.parse(content).members if each.name == _PATH[0]]
    except ForeignFile:
        return ""
    if len(places) < 2:
        return ""
    before = content[: places[1]]
    return f"{before.count(10) + 1}:{places[1] - before.rfind(10)}"


def _at(error: ForeignFile, path: str) -> ForeignFile:
    """The same with the path before the place in it; a byte order mark is one that Docker would read."""
    where = error.where if error.where.startswith("/") else f"{path}:{error.where}" if error.where else path
    hint = "save it without one" if "byte order mark" in error.what else error.hint
    return ForeignFile(error.what, where=where, hint=hint)


def _state(facts: Facts, guest: Guest) -> Mapping[str, Any]:
    """What an earlier apply recorded of daemon.json, empty where none did."""
    for path in (guest.WISH_FILE, *guest.FILES):
        file = facts.files.get(path)
        found = blocks.find(file.content, path=path) if file and file.content else None
        state = found.record.get(RECORD) if found else None
        if isinstance(state, Mapping):
            return state
    return {}


def _after(
    facts: Facts, guest: Guest, before: File, desired: Desired, *, force: bool
) -> tuple[File, int, tuple[str, ...]]:
    """The file as it must be, how many directories are made for it, and warnings."""
    must_be_found = desired.proxies is not None
    if must_be_found:
        must_be_plain(before)
    found, state = _find(before), _state(facts, guest)
    mine = bool(found and (found.ours or _says(found.value, state)) and state.get("theirs") is not True)
    old, made = before.content, 0
    if old is None and before.path.rpartition("/")[0] not in facts.paths:
        made = 1
    if found and mine:
        assert before.content is not None  # noqa: S101 - it was found in there
        taken = jsonedit.take(before.content, _PATH)
        old, made = taken.document, taken.made
    if not must_be_found:
        if not mine:
            return replace(before, mode=_given_back(before, state)), 0, ()
        return replace(before, content=old, mode=_given_back(before, state)), made, ()
    wanted = dict(desired.proxies or {})
    mode = _given_back(before, state) if before.content is not None else _NEW_MODE
    mode = narrowed(mode) if _secret(wanted) else mode
    if found and found.value == wanted:
        return replace(before, mode=mode), made, ()
    _look_alike(before)
    warnings: tuple[str, ...] = ()
    if found and not mine:
        if not force:
            raise ForeignFile(
                "proxies has another value", hint="--force replaces it; it cannot be given back then; or --via drop-in"
            )
        assert before.content is not None  # noqa: S101 - it was found in there
        old = jsonedit.cut(before.content, _PATH)
        warnings = (f"proxies of {before.path} had another value, which cannot be given back",)
    content = jsonedit.put(old, _PATH, wanted, made=made)
    return replace(before, content=content, mode=mode, kind="file"), made, warnings


def _look_alike(before: File) -> None:
    """Go's JSON takes a member in other letters for the same one."""
    for name in jsonedit.names(before.content):
        if name != _PATH[0] and name.casefold() == _PATH[0]:
            raise ForeignFile(f"it has {printable(name)}, which is no option of Docker's", hint=f"name it {_PATH[0]}")


def _says(value: jsonedit.Value | None, state: Mapping[str, Any]) -> bool:
    """Whether a member is ours by its words, after another program wrote the file anew: our three names, our proxy."""
    if not isinstance(value, Mapping) or not state or not set(value) <= set(_KEYS):
        return False
    proxy = value.get("http-proxy")
    return isinstance(proxy, str) and bool(proxy) and _bare(proxy) == state.get("proxy")


def _given_back(before: File, state: Mapping[str, Any]) -> int:
    """The mode that the file had before it was narrowed for credentials."""
    return before_narrowed(before.mode, state.get("mode"))


def _words(before: File, after: File, old: object, desired: Desired) -> str:
    if desired.proxies is None:
        return "our proxies are still there"
    if before.content is None:
        return "the file is missing"
    if before.content == after.content:
        return "the file is not as safe as it has to be"
    if not isinstance(old, Mapping) or not old:
        return "proxies is missing" if old == {} else "proxies differs"
    names = [key for key in {**desired.proxies, **old} if old.get(key) != desired.proxies.get(key)]
    return f"proxies differs in {printable(', '.join(names), limit=100)}" if names else "proxies is written otherwise"


def _lines(sign: str, value: object, other: object) -> Iterator[str]:
    """One side of the diff: what that side has and the other has not, without credentials."""
    if not isinstance(value, Mapping):
        yield f"{sign}  a value that is no object of texts"
        return
    for key, text in value.items():
        if not isinstance(other, Mapping) or other.get(key) != text:
            shown = text if isinstance(text, str) else "an object"
            yield f'{sign}  "{printable(key, limit=60)}": "{printable(preview.redact(shown, ()), limit=400)}"'


def _flags(facts: Facts, guest: Guest) -> Iterator[tuple[str, str, str]]:
    """(where, name, value) of the flags of dockerd that concern us: in the guest's files, and of the running one.

    Beside the guest's own files and units, a file counts that one of them names.
    """
    own = {path: file.content for path, file in facts.files.items() if path in guest.FILES and file.content}
    read = {path: text for path, text in facts.texts.items() if any(fnmatchcase(path, each) for each in guest.TEXTS)}
    own |= {path: text for path, text in read.items() if path.endswith((".service", ".conf"))}
    names = {path: path.encode("utf-8", "surrogateescape") for path in read}  # one from a directory may be no UTF-8
    named = {path: text for path, text in read.items() if any(names[path] in other for other in own.values())}
    for path, content in {**named, **own}.items():
        if path == guest.DAEMON_CONFIG:
            continue
        for line in content.decode("utf-8", "replace").replace("\\\n", " ").splitlines():
            if _OPTIONS.match(line):
                for found in _FLAG.finditer(line):
                    yield path, found[1], found[2]
    words = facts.daemon.words if facts.daemon is not None else ()
    for number, word in enumerate(words):
        name, mark, value = word.removeprefix("--").partition("=")
        if word.startswith("--") and name in (*_KEYS, "config-file"):
            yield _RUNNING, name, value if mark else "".join(words[number + 1 : number + 2])


def _forms(name: str) -> tuple[str, str]:
    return name, name.upper()


def _secret(wanted: Mapping[str, str]) -> bool:
    return any(_masked(value) != value for value in wanted.values())


def _bare(url: str) -> str:
    return _USERINFO.sub("", url)


def _masked(url: str) -> str:
    """As ``docker info`` shows it (moby: daemon/config, MaskCredentials)."""
    return _USERINFO.sub("xxxxx:xxxxx@", url)


__all__ = [
    "RECORD",
    "VIA",
    "change",
    "differing",
    "held",
    "must_know",
    "overrides",
    "pending",
    "proxies",
    "record",
    "still",
    "unnamed",
    "without",
]
