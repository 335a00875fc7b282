"""Where everything stands in a JSON text: offsets of values and names, nothing converted. Part of the room jsonedit.

RFC 8259 to the letter, on bytes. Not recursive, so that a hostile depth costs nothing but its own length; deeper than
Go's encoding/json goes (10,000) is refused, as there.
"""

from __future__ import annotations

import json
import re

from vmproxy.errors import ForeignFile

_DEEPEST = 10_000
_SPACE = re.compile(rb"[ \t\n\r]*")
_ESCAPE = rb"\\(?:[\"\\/bfnrt]|u[0-9a-fA-F]{4})"
_OPEN_TEXT = re.compile(rb"\"[^\"\\\x00-\x1f]*(?:" + _ESCAPE + rb"[^\"\\\x00-\x1f]*)*")
_PLAIN = re.compile(rb"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?|true|false|null")
_WORD = re.compile(rb"[0-9A-Za-z_.+-]")
_BOM = b"\xef\xbb\xbf"


class Member:
    """One member of an object: where its name begins, the name decoded, and the value."""

    __slots__ = ("name", "start", "value")

    def __init__(self, start: int, name: str) -> None:
        self.start = start
        self.name = name
        self.value: Node


class Node:
    """One value: ``kind`` is its first character ({ [ " or another), ``start`` and ``end`` are offsets of its bytes.

    ``members`` are those of an object, ``depth`` how many values it holds inside one another.
    """

    __slots__ = ("depth", "end", "kind", "members", "start")

    def __init__(self, kind: str, start: int, end: int = 0) -> None:
        self.kind = kind
        self.start = start
        self.end = end
        self.depth = 0
        self.members: list[Member] = []


def is_blank(document: bytes) -> bool:
    """Whether there is nothing but white space; the docker client takes such a file for an empty object."""
    return not document.strip(b" \t\n\r")


def parse(document: bytes) -> Node:
    """The outermost value. Raises ForeignFile, whose ``where`` is ``line:column`` (from 1, in characters)."""
    if document.startswith(_BOM):
        raise _wrong(document, 0, "it begins with a byte order mark", hint="save it without one: Docker refuses it too")
    position = _space(document, 0)
    open_nodes: list[Node] = []
    while True:
        node, position, inside = _begin(document, position)
        if inside:
            open_nodes.append(node)
            if len(open_nodes) > _DEEPEST:
                raise _wrong(document, node.start, f"it is deeper than {_DEEPEST} levels")
            continue
        # A value has ended. So do the containers that end right behind it.
        while open_nodes:
            parent = open_nodes[-1]
            parent.depth = max(parent.depth, node.depth + 1)
            if parent.kind == "{":
                parent.members[-1].value = node
            position = _space(document, node.end)
            char = document[position : position + 1]
            if char == b",":
                position = _space(document, position + 1)
                if parent.kind == "{":
                    position = _name(document, position, parent)
                break
            if char != _CLOSER[parent.kind]:
                raise _wrong(document, position, f"a comma or {_CLOSER[parent.kind].decode()} is expected")
            parent.end = position + 1
            node = open_nodes.pop()
        else:
            end = _space(document, node.end)
            if end < len(document):
                raise _wrong(document, end, "something follows the value")
            return node


_CLOSER = {"{": b"}", "[": b"]"}


def _begin(document: bytes, position: int) -> tuple[Node, int, bool]:
    """The value that begins here, where to go on, and whether that is inside of it (its first item's place)."""
    kind = document[position : position + 1].decode("latin-1")
    if kind in _CLOSER:
        node = Node(kind, position)
        position = _space(document, position + 1)
        if document[position : position + 1] == _CLOSER[kind]:
            node.end = position + 1
            return node, position, False
        return node, _name(document, position, node) if kind == "{" else position, True
    if kind == '"':
        return Node(kind, position, _text_end(document, position)), position, False
    found = _PLAIN.match(document, position)
    if not found or _WORD.match(document, found.end()):
        raise _wrong(document, position, "a value is expected")
    return Node(kind, position, found.end()), position, False


def _name(document: bytes, position: int, parent: Node) -> int:
    """Read ``"name":`` into ``parent``; the place of its value."""
    if document[position : position + 1] != b'"':
        raise _wrong(document, position, "a name in double quotes is expected")
    end = _text_end(document, position)
    parent.members.append(Member(position, json.loads(document[position:end].decode("utf-8", "replace"))))
    position = _space(document, end)
    if document[position : position + 1] != b":":
        raise _wrong(document, position, "a colon is expected")
    return _space(document, position + 1)


def _text_end(document: bytes, position: int) -> int:
    found = _OPEN_TEXT.match(document, position)
    assert found is not None  # noqa: S101  (a quote stands here)
    end = found.end()
    if document[end : end + 1] != b'"':
        here = document[end : end + 1]
        what = "an escape is wrong" if here == b"\\" else "a text is not closed"
        raise _wrong(document, end, "a control character stands in a text" if here and here != b"\\" else what)
    return end + 1


def _space(document: bytes, position: int) -> int:
    found = _SPACE.match(document, position)
    return found.end() if found else position


def _wrong(document: bytes, position: int, what: str, *, hint: str = "") -> ForeignFile:
    before = document[:position]
    line = before.count(b"\n") + 1
    column = len(before[before.rfind(b"\n") + 1 :].decode("utf-8", "replace")) + 1
    return ForeignFile(f"this is not JSON: {what}", where=f"{line}:{column}", hint=hint or "put it right first")
