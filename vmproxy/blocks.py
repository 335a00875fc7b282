"""The marked block that we own inside somebody else's file: put it in, find it, take it out. PURE.

::

    # >>> vmproxy 1 {"proxy":"http://10.0.2.2:8123","undo":["no-newline"]}
    export http_proxy='http://10.0.2.2:8123'
    # <<< vmproxy

The first line carries a record: what the caller wants to remember, and under ``undo`` what exact undo needs. Our lines
end in LF always; every byte outside of the block stays as it is. Whether a block can live in a shell's file is
:func:`objections` here and, with a real shell, :func:`tail_probe` and ``sh -n`` in the VM.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from dataclasses import replace
from functools import lru_cache
from typing import Any, Literal

from vmproxy.errors import ForeignFile, UsageError
from vmproxy.values import dataclass

Where = Literal["end", "after-shebang", "last", "section"]

VERSION = 1
SHEBANG = b"#!/bin/sh\n"

_LIKE = re.compile(rb"^[ \t]*#[ \t]*(?:>>>|<<<)[ \t]*vmproxy\b[^\n]*", re.MULTILINE)
_BEGIN = re.compile(rb"# >>> vmproxy ([0-9]{1,9})(?: (\{[ -~]*\})| .*)?", re.DOTALL)
_END = b"# <<< vmproxy"
_EXPORTED = re.compile(rb"^[ \t]*export ([A-Za-z_][A-Za-z0-9_]*)=", re.MULTILINE)
_COMMENTS = re.compile(rb"(?:[ \t]*(?:#[^\n]*)?\n)*")
_HEADER = re.compile(rb"^\[([^\]\n]+)\]", re.MULTILINE)
_CONTINUED = re.compile(rb"(?<!\\)(?:\\\\)*\\\n?\Z")
_REMEMBERED_BYTES = 16 << 10
_DEEPEST = 20
_UNDO = frozenset({"absent", "empty", "no-newline", "shebang"})
_KEPT = frozenset({"absent", "empty", "shebang"})


@dataclass(frozen=True, kw_only=True)
class Found:
    """One block: ``content[start:end]``, its payload, its record without ``undo``, its lines counted from 1."""

    start: int
    end: int
    payload: bytes
    record: dict[str, Any]
    undo: frozenset[str]
    first_line: int
    last_line: int


def find(content: bytes, *, path: str = "") -> Found | None:
    """The one block in ``content``, or None.

    Raises ForeignFile, with ``path:line``, for markers that are damaged, doubled, out of order or nested, for a
    record that is not ours, and for a newer format.
    """
    found = _remembered(content, path) if len(content) <= _REMEMBERED_BYTES else _found(content, path)
    return found and replace(found, record=dict(found.record))


@lru_cache(maxsize=64)  # each file is searched several times in one run, and VMs of one kind have the same
def _remembered(content: bytes, path: str) -> Found | None:
    return _found(content, path)


def _found(content: bytes, path: str) -> Found | None:
    marks = list(_LIKE.finditer(content))
    if not marks:
        return None
    begin = marks[0]
    match = _BEGIN.fullmatch(begin[0])
    if match and int(match[1]) > VERSION:
        raise _foreign_at(
            content, begin.start(), f"the block is of a newer vmproxy (format {int(match[1])})", path, hint="upgrade"
        )
    if begin[0] == _END:
        raise _foreign_at(content, begin.start(), "the marker has no beginning above it", path)
    if not match or int(match[1]) != VERSION or match[2] is None:
        raise _foreign_at(content, begin.start(), "the marker is damaged", path)
    record, undo = _read_record(content, begin.start(), match[2], path)
    if len(marks) == 1:
        raise _foreign_at(content, begin.start(), "the marker has no end below it", path)
    last = marks[1]
    if last[0] != _END:
        doubled = _BEGIN.fullmatch(last[0])
        raise _foreign_at(
            content, last.start(), "the marker is doubled or nested" if doubled else "the marker is damaged", path
        )
    if len(marks) > 2:
        raise _foreign_at(content, marks[2].start(), "there is a second marker", path)
    body = begin.end() + 1
    return Found(
        start=begin.start(),
        end=min(last.end() + 1, len(content)),
        payload=content[body : last.start()],
        record=record,
        undo=undo,
        first_line=_line(content, begin.start()),
        last_line=_line(content, last.start()),
    )


def put(
    content: bytes | None,
    payload: bytes,
    *,
    where: Where,
    record: Mapping[str, Any],
    path: str = "",
    names: Collection[str] = (),
    section: str = "",
) -> bytes:
    """``content`` with our block in it; None is an absent file.

    ``end`` puts it behind everything; ``after-shebang`` behind the first line where that is a shebang, else on top,
    and a new or empty file gets ``#!/bin/sh`` first. A block that stands where it may is replaced in place, keeping
    what it knew for undo: for ``end`` that is while nothing behind it touches its variables, for ``after-shebang``
    while only comments stand before it. Otherwise it is moved.

    In files that no shell reads: ``last`` puts it behind everything, and there it stays while no line behind it has the
    form ``NAME =`` of one of ``names``; ``section`` puts it behind the first line ``[section]`` of an ini file, and it
    stays anywhere in that section.

    ``record`` is JSON data without the key ``undo``. Raises ForeignFile as :func:`find`, UsageError for a payload
    or a record that cannot stand in a block (CR, NUL, markers, no final newline: mistakes of the caller).
    """
    _check_payload(payload)
    found = None if content is None else find(content, path=path)
    ours = frozenset(names) if where == "last" else _names(payload) | (_names(found.payload) if found else frozenset())
    if content is not None and found and _stays(content, found, where, ours, section):
        return content[: found.start] + _block(payload, record, found.undo) + content[found.end :]
    undo = {"absent"} if content is None else set() if content else {"empty"}
    base = content or b""
    if found:
        undo |= found.undo & _KEPT
        base = _without(base, found)
    head, tail = base, b""
    if where == "after-shebang":
        head, tail = _split_shebang(base)
        if not base:
            undo.add("shebang")
            head = SHEBANG
    if where == "section":
        head, tail = _split_section(base, section, path)
    if head and not head.endswith(b"\n"):
        undo.add("no-newline")
        head += b"\n"
    return head + _block(payload, record, undo) + tail


def take(content: bytes, *, path: str = "") -> bytes | None:
    """The exact inverse of :func:`put`: the bytes that were there, None where there was no file.

    What was changed around the block since then stays; a file that has gained bytes of its own stays a file.
    Without a block ``content`` itself. Raises ForeignFile as :func:`find`.
    """
    found = find(content, path=path)
    if not found:
        return content
    rest = _without(content, found)
    ours = (b"", SHEBANG) if "shebang" in found.undo else (b"",)
    if rest in ours and "absent" in found.undo:
        return None
    if rest in ours and "empty" in found.undo:
        return b""
    return rest


def objections(
    content: bytes | None, *, where: Where, names: Collection[str], path: str = ""
) -> tuple[ForeignFile, ...]:
    """Why a block that exports ``names`` cannot live in this file; empty where nothing speaks against it.

    ``content`` is the file as it is, with or without our block. Looked for: damaged markers, NUL; for ``end`` whatever
    would keep the shell from reaching the block, or the block from having effect (exit, return, exec with a command,
    a loop without end, a call of a function that exits, ``set -n``, readonly variables, an open here-document, a
    continued last line); for ``after-shebang`` another language. Quotes, here-documents, functions and subshells are
    followed; where they cannot be, every line that looks harmful is one. Each objection names line and word, never
    more of the content.
    """
    if not content:
        return ()
    try:
        found = find(content, path=path)
    except ForeignFile as error:
        return (error,)
    nul = content.find(b"\0")
    if nul >= 0:
        return (_foreign_at(content, nul, "the file contains NUL bytes", path),)
    if where == "after-shebang":
        return _shebang_objections(content, path)
    before = content
    if found and _stays(content, found, where, frozenset(names)):
        before = content[: found.start]
    elif found:  # the block is going to move: blank lines in its place keep the numbers right
        before = content[: found.start] + b"\n" * content[found.start : found.end].count(b"\n") + content[found.end :]
    from vmproxy import shellharm

    objects = [
        ForeignFile(what, where=_place(path, line), hint="move it, or remove it, then run vmproxy again")
        for line, what in shellharm.harm(before, frozenset(names))
    ]
    if _CONTINUED.search(before) and not before[before.rstrip(b"\n").rfind(b"\n") + 1 :].lstrip().startswith(b"#"):
        objects.append(_foreign_at(before, len(before.rstrip(b"\n")), "the last line ends in a backslash", path))
    return tuple(objects)


def overridden(content: bytes | None, *, names: Collection[str]) -> tuple[tuple[int, str], ...]:
    """(line, name) wherever the file's own lines set one of ``names`` before our block, which then wins."""
    if not content:
        return ()
    found = find(content)
    before = content[: found.start] if found else content
    if _COMMENTS.fullmatch(before):
        return ()
    from vmproxy import shellharm, shellscan

    try:
        commands = shellscan.scan(before).commands
    except shellscan.Lost:
        return ()
    wanted = frozenset(names)
    return tuple((command.line, name) for command in commands for name in sorted(shellharm.touched(command) & wanted))


def tail_probe(content: bytes) -> bytes:
    r"""The text that ``sh -n`` must REFUSE if whatever is appended to ``content`` is to be read as commands.

    An unterminated here-document passes ``sh -n`` and swallows all that follows; then it swallows the stray ``)`` as
    well, and this text passes (measured in dash, busybox ash, bash). In the VM::

        { cat "$file"; printf '\n)\n'; } | sh -n 2>/dev/null && swallowed=1
    """
    return content + b"\n)\n"


# the pieces


def _line(content: bytes, offset: int) -> int:
    return content.count(b"\n", 0, offset) + 1


def _place(path: str, line: int) -> str:
    return f"{path}:{line}" if path else f"line {line}"


def _foreign_at(content: bytes, offset: int, what: str, path: str, *, hint: str = "") -> ForeignFile:
    return ForeignFile(what, where=_place(path, _line(content, offset)), hint=hint or "repair or remove that line")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) != len(pairs):
        raise ValueError
    return record


def _is_flat(value: object, depth: int = 0) -> bool:
    """Whether values lie in one another no deeper than anybody writes: whoever compares or shows them recurses."""
    if not isinstance(value, dict | list):
        return True
    items = value.values() if isinstance(value, dict) else value
    return depth < _DEEPEST and all(_is_flat(item, depth + 1) for item in items)


def _not_json(_: str) -> None:
    raise ValueError


def _read_record(content: bytes, offset: int, text: bytes, path: str) -> tuple[dict[str, Any], frozenset[str]]:
    try:
        record = json.loads(text, object_pairs_hook=_unique, parse_constant=_not_json)
        undo = record.pop("undo", [])
        known = isinstance(undo, list) and all(isinstance(item, str) and item in _UNDO for item in undo)
        known = known and _is_flat(record)
    except (ValueError, RecursionError):
        known = False
    if not known:
        raise _foreign_at(content, offset, "the marker's record is damaged", path)
    return record, frozenset(undo)


def _block(payload: bytes, record: Mapping[str, Any], undo: Collection[str]) -> bytes:
    if "undo" in record:
        raise UsageError("a block's record has no key of its own named undo")
    whole = {**record, "undo": sorted(undo)} if undo else dict(record)
    try:
        text = json.dumps(whole, ensure_ascii=True, separators=(",", ":"), sort_keys=True, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise UsageError("a block's record must be JSON data") from error
    return f"# >>> vmproxy {VERSION} {text}\n".replace("\x7f", "\\u007f").encode("ascii") + payload + _END + b"\n"


@lru_cache(maxsize=16)  # VMs of one kind get the same
def _check_payload(payload: bytes) -> None:
    if b"\0" in payload or b"\r" in payload:
        raise UsageError("a block's payload has no NUL and no CR")
    if payload and not payload.endswith(b"\n"):
        raise UsageError("a block's payload ends in a newline")
    if _LIKE.search(payload):
        raise UsageError("a block's payload contains a marker")
    if _CONTINUED.search(payload):
        raise UsageError("a block's payload ends in a continued line")


@lru_cache(maxsize=16)
def _names(payload: bytes) -> frozenset[str]:
    return frozenset(name.decode("ascii") for name in _EXPORTED.findall(payload))


def _without(content: bytes, found: Found) -> bytes:
    head, tail = content[: found.start], content[found.end :]
    if "no-newline" in found.undo and not tail and head.endswith(b"\n"):
        head = head[:-1]
    return head + tail


def _split_shebang(base: bytes) -> tuple[bytes, bytes]:
    if not base.startswith(b"#!"):
        return b"", base
    end = base.find(b"\n") + 1
    return (base[:end], base[end:]) if end else (base, b"")


def _split_section(base: bytes, section: str, path: str) -> tuple[bytes, bytes]:
    for header in _HEADER.finditer(base):
        if header[1] == section.encode():
            end = base.find(b"\n", header.end()) + 1
            return (base[:end], base[end:]) if end else (base, b"")
    raise ForeignFile(f"the file has no section [{section}]", where=path)


def _stays(content: bytes, found: Found, where: Where, names: frozenset[str], section: str = "") -> bool:
    if where == "after-shebang":
        return _COMMENTS.fullmatch(content[: found.start]) is not None
    tail = content[found.end :]
    if where == "section":
        return [header[1] for header in _HEADER.finditer(content[: found.start])][-1:] == [section.encode()]
    if where == "last":
        said = {line.partition(b"=")[0].strip().lower() for line in tail.split(b"\n") if b"=" in line}
        return not said & {name.lower().encode() for name in names}
    if _COMMENTS.fullmatch(tail):
        return True
    from vmproxy import shellharm, shellscan

    try:
        commands = shellscan.scan(tail).commands
    except shellscan.Lost:
        return False
    return not any(shellharm.touched(command) & names for command in commands)


def _shebang_objections(content: bytes, path: str) -> tuple[ForeignFile, ...]:
    if not content.startswith(b"#!"):
        return ()
    line = content[2:].split(b"\n", 1)[0]
    words = {word.rpartition(b"/")[2] for word in line.split()}
    if words & {b"sh", b"ash", b"dash", b"bash", b"ksh", b"mksh"}:
        return ()
    return (
        ForeignFile("the file is no shell script by its first line", where=_place(path, 1), hint="make it #!/bin/sh"),
    )
