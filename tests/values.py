"""Values that formats find hard to carry, and every character that there is."""

from __future__ import annotations

import unicodedata

ASCII = "".join(map(chr, range(0x20, 0x7F)))

HARD = (
    "",
    ASCII,
    ASCII[::-1],
    " leading and trailing ",
    " ",
    "#",
    "=",
    "'",
    "''",
    '"',
    '""',
    "'\"'\"'",
    "`",
    "\\",
    "\\\\",
    "\\'",
    "ends with a backslash\\",
    '\\"',
    "\\x41\\u0041\\n\\t\\101\\s",
    "$HOME ${HOME} $$HOME $${HOME} $ $$ $$$ ${HOME:-x} ${HOME+x} $1",
    "$(: > /tmp/canary) `: > /tmp/canary` (: > /tmp/canary)",
    "'; : > /tmp/canary; '",
    '"; : > /tmp/canary; "',
    "%h %H %% %%% %n %i %",
    "http://[fd00::2]:3128",
    "*?[a-z]{a,b}~ !x !! @(a) +(b)",
    "<<EOF >x <y |z &w ;v",
    "-n",
    "~",
    "yes",
    "null",
    "1.0",
    "a: b",
    "a #b",
    "- a",
    "{a: b}",
    "&a *b !c |d >e %f @g",
    "ünïcödé ☃ \U0001f433",
    "\u2018a\u2019\u2018\u2019\u201ab\u201b'\u2019\u201cc\u201d\u201e",
    "\u00a0no-break and ideographic blanks\u3000",
    "\ufeffbyte order mark\ufeff",
    "\u00ad\u200b\u200d\u202egnitirw fo noitcerid",
    "\ue000\uf600\uf8ff",
    "e\u0301 \u00e9 \u1e9b\u0323",
    "x" * 20_000,
)
"""Each is one line of text; most mean something to some reader."""


def is_text(char: str) -> bool:
    """Whether a character can be in a value at all: no control, no line separator, no surrogate, and a character."""
    code = ord(char)
    no_character = 0xFDD0 <= code <= 0xFDEF or code & 0xFFFE == 0xFFFE
    return not no_character and unicodedata.category(char) not in ("Cc", "Cs", "Zl", "Zp")


def every_character(*, without: str = "", length: int = 4000) -> tuple[str, ...]:
    """All characters of the Basic Multilingual Plane and some of every block beyond, in values of ``length``."""
    codes = [*range(0x10000), *range(0x10000, 0x110000, 0x100)]
    text = "".join(char for char in map(chr, codes) if is_text(char) and char not in without)
    return tuple(text[at : at + length] for at in range(0, len(text), length))


def variables(prefix: str, values: tuple[str, ...]) -> dict[str, str]:
    """The values under names of one prefix, and the family's own names in both cases."""
    return {f"{prefix}{number}": value for number, value in enumerate(values)}
