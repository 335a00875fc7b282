"""One member of somebody else's JSON file: put in, found, and taken out again to the byte. PURE.

JSON has no comments to mark a block with, and the file is somebody else's: so the edit is textual. Every byte that is
not ours stays: white space, order, escapes, numbers of any size, the same name twice elsewhere. What was put in is
known again by how it is written, so that it can be taken out without a record anywhere:

* It is the first member of its object, and white space stands before it. Objects that were made for it hold nothing
  else, and no white space stands after their brace: ``"proxies": {"default": {…}}``. A document that was made for it
  begins so.
* A ``/`` in its strings is written ``\\/``, which every reader takes (RFC 8259 section 7) and nobody types. A value
  written so is ours whatever it says, also after an editor moved it.
* Where there was no document, a newline ends the new one, and one more for each directory that was made for it.

:func:`take` proposes what the document may have been and keeps the proposal from which :func:`put` makes the very bytes
that are there; at most one does. Where none does, because another program wrote the file anew (the docker client does,
at every login), the member goes with one comma and its white space, and an object that is left empty goes with it.

What Go's encoding/json does not read is refused here with its line and column: a byte order mark, a comment, a comma
too many. Bytes inside strings that are not UTF-8 are kept, as Go takes them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence

from vmproxy.errors import ForeignFile
from vmproxy.jsontext import Node, is_blank, parse
from vmproxy.model import printable
from vmproxy.values import dataclass

Value = str | Mapping[str, "Value"]
"""What can be put in: a text, or an object of such values."""

Path = Sequence[str]
"""The names from the outermost object to the member; never empty."""


@dataclass(frozen=True, kw_only=True)
class Found:
    """A member that is there. ``value`` is None where it is anything that :func:`put` never writes (a number, a list).

    ``ours`` says that it is written as :func:`put` writes.
    """

    value: Value | None
    ours: bool


@dataclass(frozen=True, kw_only=True)
class Taken:
    """What is left: ``document`` None where there was none, and ``made`` directories that were made for it.

    ``exact`` says that this is to the byte what was there before.
    """

    document: bytes | None
    made: int = 0
    exact: bool = False


def find(document: bytes | None, path: Path) -> Found | None:
    """The member at ``path``, None where there is none. Raises ForeignFile for a document that is no JSON object, and
    where a name of the path stands twice in one object."""
    if document is None or is_blank(document):
        return None
    chain = _chain(_root(document), path)
    if len(chain) < len(path):
        return None
    node = chain[-1][1]
    value = _value(document, node)
    return Found(value=value, ours=value is not None and _written_by_us(document, node))


def names(document: bytes | None, path: Path = ()) -> tuple[str, ...]:
    """The names in the object at ``path`` (the document's own without one), in order; none where no object is there.

    Raises ForeignFile as :func:`find` does.
    """
    if document is None or is_blank(document):
        return ()
    node = _root(document)
    if path:
        chain = _chain(node, path)
        if len(chain) < len(path):
            return ()
        node = chain[-1][1]
    return tuple(each.name for each in node.members)


def is_object(document: bytes, path: Path) -> bool:
    """Whether an object is at ``path``. Raises ForeignFile as :func:`find` does."""
    chain = _chain(_root(document), path)
    return len(chain) == len(path) and chain[-1][1].kind == "{"


def put(document: bytes | None, path: Path, value: Value, *, made: int = 0) -> bytes:
    """The document with ``value`` at ``path``; ``document`` None where there is no file yet.

    ``take(put(document, path, value), path).document == document`` for every document that is taken. Objects on the way
    that are not there are made. ``made`` is how many directories are made for a document that is not there yet.

    Raises ForeignFile for what is no JSON object, where something that is no object is in the way, and where a member
    is already there.
    """
    if document is None:
        return _member(b"", path, value, _PRETTY, braces=1) + b"\n" * (1 + made)
    if is_blank(document):
        return document + _member(b"", path, value, _PRETTY, braces=1)
    root = _root(document)
    chain = _chain(root, path)
    if len(chain) == len(path):
        raise ForeignFile(f"{_dotted(path)} is already there")
    node = chain[-1][1] if chain else root
    if node.kind != "{":
        raise ForeignFile(f"{_dotted(path[: len(chain)])} is no object")
    start = node.start + 1
    first = node.members[0].start if node.members else start
    style = _style_of(document[start:first], depth=len(chain))
    text = _member(style.before, path[len(chain) :], value, style)
    return document[:start] + text + (b"," if node.members else b"") + document[start:]


def take(document: bytes, path: Path) -> Taken:
    """The document without the member at ``path``, which is there: to the byte as before :func:`put` where it stands as
    ``put`` left it, else without it and the objects that are empty then. Raises ForeignFile as :func:`find` does."""
    root = _root(document)
    chain = _chain(root, path)
    if len(chain) < len(path):
        return Taken(document=document)
    value = _value(document, chain[-1][1])
    if value is not None:
        for guess in _guesses(document, root, chain):
            if put(guess.document, path, value, made=guess.made) == document:
                return guess
    return Taken(document=cut(document, path))


def cut(document: bytes, path: Path) -> bytes:
    """The document without whatever is at ``path``, and without the objects on the way that are empty then."""
    root = _root(document)
    chain = _chain(root, path)
    if len(chain) < len(path):
        return document
    while len(chain) > 1 and len(chain[-1][0].members) == 1:
        chain = chain[:-1]
    parent, node = chain[-1]
    place = next(number for number, each in enumerate(parent.members) if each.value is node)
    if place:
        return document[: parent.members[place - 1].value.end] + document[node.end :]
    return document[: parent.start + 1] + document[_past_comma(document, parent, node) :]


# the pieces


@dataclass(frozen=True, kw_only=True)
class _Style:
    """How a member is laid out: what stands before it, and the line breaks inside, "" for one line."""

    before: bytes
    newline: bytes = b""
    indent: bytes = b""
    unit: bytes = b""


_PRETTY = _Style(before=b"", newline=b"\n", unit=b"\t")  # tabs: as the docker client writes the file


def _style_of(space: bytes, *, depth: int) -> _Style:
    """The layout that the white space before an object's first member shows. ``before`` is never empty: that is how
    :func:`take` tells an object that was there from one that we made."""
    if b"\n" not in space:
        return _Style(before=b" ")
    newline = b"\r\n" if b"\r\n" in space else b"\n"
    indent = space[space.rindex(b"\n") + 1 :].replace(b"\r", b"")
    return _Style(before=newline + indent, newline=newline, indent=indent, unit=indent[: len(indent) // (depth + 1)])


def _member(before: bytes, path: Path, value: Value, style: _Style, *, braces: int = 0) -> bytes:
    """``before``, then ``"a": {"b": VALUE}``, with ``braces`` more around it."""
    keys = b"{".join(_literal(name) + b": " for name in path)
    return b"{" * braces + before + keys + _render(value, style, style.indent) + b"}" * (len(path) - 1 + braces)


def _render(value: Value, style: _Style, indent: bytes) -> bytes:
    if isinstance(value, str):
        return _literal(value).replace(b"/", b"\\/")
    inner = indent + style.unit
    items = [_literal(name) + b": " + _render(item, style, inner) for name, item in value.items()]
    if not items or not style.newline:
        return b"{" + b", ".join(items) + b"}"
    lines = (b"," + style.newline).join(inner + item for item in items)
    return b"{" + style.newline + lines + style.newline + indent + b"}"


def _literal(text: str) -> bytes:
    return json.dumps(text, ensure_ascii=True).encode("ascii")


def _root(document: bytes) -> Node:
    root = parse(document)
    if root.kind != "{":
        raise ForeignFile("this is no JSON object", where="1:1", hint="it has to begin with {")
    return root


def _chain(root: Node, path: Path) -> list[tuple[Node, Node]]:
    """(object, value of its member) for each name of the path that is there, from the outside in."""
    chain: list[tuple[Node, Node]] = []
    node = root
    for depth, name in enumerate(path):
        if node.kind != "{":
            break
        same = [each.value for each in node.members if each.name == name]
        if len(same) > 1:
            raise ForeignFile(f"{_dotted(path[: depth + 1])} is there more than once", hint="keep one of them")
        if not same:
            break
        chain.append((node, same[0]))
        node = same[0]
    return chain


def _value(document: bytes, node: Node) -> Value | None:
    """The value of a text or of an object of such; None for all else, and for a name that stands twice."""
    if node.kind == '"':
        text = json.loads(document[node.start : node.end].decode("utf-8", "replace"))
        return text if isinstance(text, str) else None
    if node.kind != "{" or node.depth > _DEEPEST:
        return None
    out: dict[str, Value] = {}
    for each in node.members:
        item = _value(document, each.value)
        if item is None or each.name in out:
            return None
        out[each.name] = item
    return out


_DEEPEST = 50


def _written_by_us(document: bytes, node: Node) -> bool:
    texts = list(_texts(document, node))
    ours = all(raw == _literal(json.loads(raw)).replace(b"/", b"\\/") for raw in texts if raw.isascii())
    return ours and all(raw.isascii() for raw in texts) and any(b"\\/" in raw for raw in texts)


def _texts(document: bytes, node: Node) -> Iterator[bytes]:
    if node.kind == '"':
        yield document[node.start : node.end]
    for each in node.members:
        yield from _texts(document, each.value)


def _guesses(document: bytes, root: Node, chain: list[tuple[Node, Node]]) -> Iterator[Taken]:
    """What the document may have been: none, white space only, or less one first member at each depth."""
    after = document[root.end :]
    if not after:
        yield Taken(document=document[: root.start], exact=True)
    elif not root.start:
        yield Taken(document=None, made=len(after) - 1, exact=True)
    for parent, node in chain:
        if parent.members[0].value is node:
            rest = document[_past_comma(document, parent, node) :]
            yield Taken(document=document[: parent.start + 1] + rest, exact=True)


def _past_comma(document: bytes, parent: Node, node: Node) -> int:
    """Where the first member ``node`` ends, with the comma behind it if there is one."""
    return document.index(b",", node.end) + 1 if len(parent.members) > 1 else node.end


def _dotted(path: Path) -> str:
    return printable(".".join(path), limit=120)


__all__ = ["Found", "Path", "Taken", "Value", "cut", "find", "is_object", "names", "put", "take"]
