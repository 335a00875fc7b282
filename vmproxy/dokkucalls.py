"""Calls of Dokku's own commands, as the words and stdin of each, and as the data of ``machines/dokku.sh``. PURE.

No value is in a word where Dokku can take it elsewhere: ``config:import`` (0.37.0) reads JSON from stdin. Before that
there is only ``config:set --encoded``, whose base64 every user of the host can read while it runs.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Mapping
from dataclasses import field

from vmproxy.values import dataclass

GLOBAL = "--global"
"""The scope of what every app has; any other scope is an app's name."""

Version = tuple[int, int, int]

OLDEST: Version = (0, 31, 0)
"""From here on a Dockerfile build has the app's config in its environment, so that ``--build-arg NAME`` has a value
(dokku#5978)."""

IMPORT: Version = (0, 37, 0)
"""From here on there is ``config:import`` (dokku#8085)."""

SEVERAL: Version = (0, 38, 0)
"""From here on one ``docker-options:add`` or ``:remove`` keeps several options as one each."""


@dataclass(frozen=True, kw_only=True)
class Call:
    """One run of ``dokku``; ``words`` are printable ASCII. ``filtered``: only lines of proxy variables are told."""

    words: tuple[str, ...]
    stdin: bytes = field(default=b"", repr=False)
    filtered: bool = False


@dataclass(frozen=True, kw_only=True)
class Write:
    """Our own record in the VM replaced; ``content`` None takes it away."""

    content: bytes | None = field(repr=False)


@dataclass(frozen=True, kw_only=True)
class ReadRecord:
    """Our own record in the VM read."""


Action = Call | Write | ReadRecord


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What one action of a question said; ``status`` is its exit status, ``complaint`` its stderr."""

    status: int
    stdout: bytes = field(default=b"", repr=False)
    complaint: bytes = field(default=b"", repr=False)


@dataclass(frozen=True, kw_only=True)
class Step:
    """What one step does, and what puts it back; the latter does no harm where the step did nothing."""

    do: tuple[Action, ...]
    undo: tuple[Action, ...]


# ---- the commands ---------------------------------------------------------------------------------------------------


def version() -> Call:
    """``dokku version``."""
    return Call(words=("version",))


def apps() -> Call:
    """The apps, one a line."""
    return Call(words=("--quiet", "apps:list"))


def export(scope: str) -> Call:
    """The proxy variables of a scope as ``NAME="value"``, one a line: a line break in a value is ``\\n`` there."""
    return Call(words=("config:export", "--format", "envfile", scope), filtered=True)


def builder(app: str) -> Call:
    """Which builder an app has: lines ``Builder computed selected:`` and ``Builder detected:``."""
    return Call(words=("builder:report", app))


def options(app: str) -> Call:
    """An app's container options by phase: lines ``Docker options build:`` and others."""
    return Call(words=("docker-options:report", app))


def put(scope: str, values: Mapping[str, str], since: Version) -> tuple[Call, ...]:
    """Variables of one scope set, without a restart of the app."""
    if not values:
        return ()
    if since >= IMPORT:
        data = json.dumps(dict(values), ensure_ascii=True).encode("ascii") + b"\n"
        # Without --quiet it says each value.
        return (Call(words=("--quiet", "config:import", "--no-restart", "--format", "json", scope, "-"), stdin=data),)
    coded = (f"{name}={base64.b64encode(value.encode()).decode('ascii')}" for name, value in values.items())
    return (Call(words=("--quiet", "config:set", "--no-restart", "--encoded", scope, *coded)),)


def take(scope: str, names: Iterable[str]) -> tuple[Call, ...]:
    """Variables of one scope taken away, without a restart of the app."""
    names = tuple(names)
    return (Call(words=("config:unset", "--no-restart", scope, *names)),) if names else ()


def add_options(app: str, options: Iterable[str], since: Version) -> tuple[Call, ...]:
    """Options added to an app's builds. Dokku keeps one twice where it was there."""
    return _on_options("docker-options:add", app, options, since)


def remove_options(app: str, options: Iterable[str], since: Version) -> tuple[Call, ...]:
    """Options of an app's builds taken away; no harm where one is not there."""
    return _on_options("docker-options:remove", app, options, since)


def _on_options(command: str, app: str, options: Iterable[str], since: Version) -> tuple[Call, ...]:
    options = tuple(options)
    if since >= SEVERAL and options:
        return (Call(words=(command, app, "build", *options)),)
    return tuple(Call(words=(command, app, "build", option)) for option in options)


# ---- as data --------------------------------------------------------------------------------------------------------


def ask(actions: Iterable[Action]) -> bytes:
    """The stdin of a question: every action is run, whatever the others say."""
    return b"ask\n" + _program(actions) + b".\n"


def tell(
    steps: Iterable[Step], *, expect: Iterable[tuple[Action, Answer]] = (), lock_timeout_seconds: float = 30.0
) -> bytes:
    """The stdin of a change: all of it or nothing, and only while ``expect`` still answers the same."""
    out = [f"tell {int(lock_timeout_seconds)}\n".encode("ascii")]
    before = tuple(expect)
    if before:
        program = _program(action for action, _answer in before)
        said = b"".join(f"{answer.status}\n".encode("ascii") + answer.stdout for _action, answer in before)
        out.append(f"expect {len(program)} {len(said)}\n".encode("ascii") + program + b"\n" + said + b"\n")
    for step in steps:
        for word, actions in (("do", step.do), ("undo", step.undo)):
            program = _program(actions)
            out.append(f"{word} {len(program)}\n".encode("ascii") + program + b"\n")
    return b"".join([*out, b".\n"])


def _program(actions: Iterable[Action]) -> bytes:
    return b"".join(map(_lines, actions))


def _lines(action: Action) -> bytes:
    if isinstance(action, ReadRecord):
        return b"read\n"
    if isinstance(action, Write):
        if action.content is None:
            return b"forget\n"
        return f"write {len(action.content)}\n".encode("ascii") + action.content + b"\n"
    assert all(word.isascii() and word.isprintable() and word for word in action.words)  # noqa: S101 - ours
    kind = "export" if action.filtered else "call"
    head = "".join(f"{line}\n" for line in (f"{kind} {len(action.words)} {len(action.stdin)}", *action.words))
    return head.encode("ascii") + action.stdin + b"\n"
