"""YAML text → mappings, lists and texts, as Compose means it. PURE.

The library parses; here its events become values, so that no alias, merge key or depth of a hostile file costs more
than its own length, and so that ``on`` and ``2.1`` stay the texts they were written as.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from vmproxy.errors import UsageError
from vmproxy.values import dataclass

LIMIT_BYTES = 1 << 20
"""Longer files are refused; Compose files of thousands of services are shorter."""

_DEPTH = 100
_MERGED = 100_000
_NULLS = ("", "~", "null", "Null", "NULL")
_MERGE = object()


@dataclass(frozen=True, kw_only=True)
class Reset:
    """What stands behind ``!reset``: the value of the files before is gone (Compose 2.24)."""


@dataclass(frozen=True, kw_only=True)
class Override:
    """``value`` stood behind ``!override``: it replaces what the files before said (Compose 2.24)."""

    value: Any


def documents(data: bytes, name: str) -> tuple[Any, ...]:
    """The documents of one file: each a ``dict`` with texts as keys, a list, a ``str`` or None, nested.

    Merge keys (``<<``) are followed; ``!reset`` and ``!override`` are :class:`Reset` and :class:`Override`; any other
    tag counts for nothing. ``name`` stands in errors. Raises UsageError with ``name:line`` for what is no YAML, too
    big, too deep, or a merge that multiplies; and where PyYAML is not installed.
    """
    try:
        import yaml
    except ImportError:
        raise UsageError(
            "reading Compose files needs PyYAML, which is not installed", hint="pip install 'vmproxy[compose]'"
        ) from None
    if len(data) > LIMIT_BYTES:
        raise UsageError(f"the file is longer than {LIMIT_BYTES >> 20} MiB", where=name)
    loader = yaml.CSafeLoader if yaml.__with_libyaml__ else yaml.SafeLoader
    builder = _Builder(name)
    try:
        return tuple(builder.documents(yaml.parse(data, Loader=loader)))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{name}:{mark.line + 1}" if mark else name
        raise UsageError(f"this is not YAML: {error.problem or error.context}", where=where) from None
    except yaml.reader.ReaderError as error:
        line = data[: error.position].count(b"\n") + 1
        raise UsageError(f"this is not YAML: {error.reason}", where=f"{name}:{line}") from None


def inner(value: Any) -> Any:
    """What counts of a value: what stands behind ``!override``, None behind ``!reset``."""
    return value.value if isinstance(value, Override) else None if isinstance(value, Reset) else value


def forgets(value: Any) -> bool:
    """Whether the value takes away what the files before said."""
    return isinstance(value, Reset | Override)


def mapping(value: Any, where: str, what: str) -> dict[str, Any]:
    """A mapping, which may be left empty. Raises UsageError, naming ``what``, for anything else."""
    found = inner(value)
    if found is not None and not isinstance(found, dict):
        raise UsageError(f"{what} is not a mapping", where=where)
    return found or {}


def items(value: Any) -> list[Any]:
    """The items of a list; one of anything else, none of nothing."""
    found = inner(value)
    return found if isinstance(found, list) else [] if found is None else [found]


def text(value: Any) -> str:
    """A text; "" for anything else."""
    found = inner(value)
    return found if isinstance(found, str) else ""


class _Builder:
    """Values out of events, without recursion."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._merged = 0

    def documents(self, events: Iterator[Any]) -> Iterator[Any]:
        """One value for each document."""
        import yaml

        anchors: dict[str, Any] = {}
        stack: list[_Open] = []
        result: Any = None
        for event in events:
            value: Any = None
            if isinstance(event, yaml.DocumentStartEvent):
                anchors, result = {}, None
                continue
            if isinstance(event, yaml.DocumentEndEvent):
                yield result
                continue
            if isinstance(event, yaml.StreamStartEvent | yaml.StreamEndEvent):
                continue
            if isinstance(event, yaml.MappingStartEvent | yaml.SequenceStartEvent):
                container: dict[str, Any] | list[Any] = {} if isinstance(event, yaml.MappingStartEvent) else []
                if len(stack) >= _DEPTH:
                    raise self._error("the file is nested too deeply", event)
                if event.anchor:
                    # Known from its start on: an alias inside it is the thing itself.
                    anchors[event.anchor] = container
                stack.append(_Open(container, event.tag))
                continue
            if isinstance(event, yaml.MappingEndEvent | yaml.SequenceEndEvent):
                value = stack.pop().closed()
            elif isinstance(event, yaml.AliasEvent):
                if event.anchor not in anchors:
                    raise self._error("this is not YAML: an alias without its anchor", event)
                value = anchors[event.anchor]
            else:
                value = _scalar(event, key=bool(stack) and stack[-1].wants_key)
                if event.anchor:
                    anchors[event.anchor] = value
            if not stack:
                result = value
            else:
                self._put(stack[-1], value, event)

    def _put(self, inside: _Open, value: Any, event: Any) -> None:
        """One more child of the innermost open mapping or list."""
        container = inside.container
        if isinstance(container, list):
            container.append(value)
        elif inside.wants_key:
            if value is not _MERGE and not isinstance(value, str):
                raise self._error("a key is not a text", event)
            inside.key, inside.wants_key = value, False
        else:
            inside.wants_key = True
            if inside.key is _MERGE:
                self._merge(inside, value, event)
            else:
                container[inside.key] = value

    def _merge(self, inside: _Open, value: Any, event: Any) -> None:
        """``<<``: the keys of a mapping, or of several with the first ahead; the mapping's own keys win."""
        assert isinstance(inside.container, dict)  # noqa: S101
        for other in value if isinstance(value, list) else [value]:
            if not isinstance(other, dict):
                raise self._error("a merge key (<<) needs a mapping", event)
            self._merged += len(other)
            if self._merged > _MERGED:
                raise self._error("the merge keys (<<) make the file too big", event)
            for key, item in list(other.items()):
                if key not in inside.container:
                    inside.container[key] = item

    def _error(self, what: str, event: Any) -> UsageError:
        return UsageError(what, where=f"{self._name}:{event.start_mark.line + 1}")


class _Open:
    """A mapping or list whose end has not come."""

    def __init__(self, container: dict[str, Any] | list[Any], tag: str | None) -> None:
        self.container = container
        self.tag = tag
        self.wants_key = isinstance(container, dict)
        self.key: Any = None

    def closed(self) -> Any:
        """The value, with what its tag means."""
        return _tagged(self.container, self.tag)


def _scalar(event: Any, *, key: bool) -> Any:
    text = str(event.value)
    plain = event.implicit[0]
    if key:
        return _MERGE if plain and text == "<<" else text
    return _tagged(None if plain and text in _NULLS else text, event.tag)


def _tagged(value: Any, tag: str | None) -> Any:
    if tag == "!reset":
        return Reset()
    return Override(value=value) if tag == "!override" else value
