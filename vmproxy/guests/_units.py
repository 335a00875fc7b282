"""Unit files of systemd, read as far as the daemon's environment is concerned. PURE; untrusted text.

The grammar is systemd.syntax(7)'s: sections, ``Key=value`` lines, a backslash at a line's end joins the next one,
``#`` and ``;`` begin comment lines. Words are split and unescaped as for ``Environment=`` in systemd.exec(5).
"""

from __future__ import annotations

import re

_KEY = re.compile(r"([A-Za-z][A-Za-z0-9-]*)[ \t]*=[ \t]*(.*)", re.DOTALL)
_ESCAPES = {
    "a": "\a", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v", "s": " ", "\\": "\\", '"': '"',
    "'": "'",
}  # fmt: skip
_NUMBERED = {"x": (2, 16), "u": (4, 16), "U": (8, 16)}
_BLANK = " \t\n\r"


def settings(content: bytes, section: str) -> tuple[tuple[str, str], ...]:
    """(key, value) of each line of a section, in order; lines that are no settings are left out."""
    found, here = [], ""
    parts: list[str] = []
    for line in content.decode("utf-8", "replace").split("\n"):
        text = line.strip(_BLANK)
        if text[:1] in ("#", ";") or (not text and not parts):
            continue  # also between the parts of a continued line
        if text.endswith("\\"):
            parts.append(f"{text[:-1]} ")
            continue
        whole = "".join([*parts, text]).strip(_BLANK)
        parts = []
        if whole.startswith("[") and whole.endswith("]"):
            here = whole[1:-1]
        elif here == section and (match := _KEY.fullmatch(whole)):
            found.append((match[1], match[2]))
    return tuple(found)


def words(value: str) -> tuple[str, ...] | None:
    """The words of a value, quotes and escapes undone; None where systemd would refuse the line."""
    out: list[str] = []
    word: list[str] = []
    quote, begun = "", False
    at = 0
    while at < len(value):
        char = value[at]
        at += 1
        if char == "\\":
            taken = _escape(value, at)
            if taken is None:
                return None
            text, at = taken
            word.append(text)
            begun = True
        elif char == quote:
            quote = ""
        elif quote:
            word.append(char)
        elif char in "\"'":
            quote, begun = char, True
        elif char in _BLANK:
            if begun:
                out.append("".join(word))
            word, begun = [], False
        else:
            word.append(char)
            begun = True
    if quote:
        return None
    return (*out, "".join(word)) if begun else tuple(out)


def _escape(value: str, at: int) -> tuple[str, int] | None:
    """What stands behind a backslash at ``at`` - 1, and where it goes on."""
    char = value[at : at + 1]
    if char in _ESCAPES and char:
        return _ESCAPES[char], at + 1
    length, base = _NUMBERED.get(char, (0, 0))
    start = at + 1
    if char and char in "01234567":
        length, base, start = 3, 8, at
    digits = value[start : start + length]
    if not length or len(digits) != length or not re.fullmatch(r"[0-9A-Fa-f]+", digits):
        return None
    try:
        number = int(digits, base)
        return (chr(number), start + length) if number else None
    except ValueError:
        return None


def assigned(value: str) -> tuple[tuple[str, str], ...]:
    """(name, value) of each assignment of one ``Environment=``; ``%%`` is undone, other specifiers stay as they are."""
    found = []
    for word in words(value) or ():
        name, equals, text = word.partition("=")
        if equals and re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            found.append((name, text.replace("%%", "%")))
    return tuple(found)
