"""One value into the text of one format, so that its reader gets exactly that value, or a refusal. PURE."""

from __future__ import annotations

import json as _json
import re
import unicodedata
from collections.abc import Mapping

from vmproxy.errors import UsageError

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}", re.ASCII)
_EXPORT = re.compile(r"export ([A-Za-z_][A-Za-z0-9_]*)='((?:[^']|'\\'')*)'", re.ASCII)
_PLAIN_VALUE = re.compile(r"[^\s\"'`$#\\]*")

ENV_FILE_LINE_BYTES = 60_000
"""Docker reads env files with a scanner that gives up at 64 KiB a line."""


def value_text(value: str, *, what: str = "the value") -> str:
    """``value`` itself if it is one line of text that every format here can carry.

    Refused with UsageError, without showing it (it may hold a password): NUL, CR, LF and every other control
    character, Unicode line separators, lone surrogates.
    """
    for char in value:
        if unicodedata.category(char) in ("Cc", "Cs", "Zl", "Zp"):
            name = {"\0": "NUL", "\r": "CR", "\n": "a line break"}.get(char, f"U+{ord(char):04X}")
            raise UsageError(f"{what} contains a control character ({name})", hint="remove it")
    return value


def variable_name(name: str) -> str:
    """``name`` itself if it can name a variable in every shell. Raises UsageError."""
    if not _NAME.fullmatch(name):
        raise UsageError("a variable's name must be letters, digits and _", hint="for example http_proxy")
    return name


def sh(value: str) -> str:
    """``value`` as one single-quoted word: nothing is special in it for dash, busybox ash and bash --posix.

    The only character that cannot stand between single quotes is the quote; it is written as ``'\\''``
    (POSIX.1 XCU 2.2.2). Raises UsageError for control characters.
    """
    return "'" + value_text(value).replace("'", "'\\''") + "'"


def sh_export(name: str, value: str) -> str:
    """``export NAME='…'`` without a line end. Raises UsageError."""
    return f"export {variable_name(name)}={sh(value_text(value, what=f'the value of {name}'))}"


def sh_exports(variables: Mapping[str, str]) -> bytes:
    """One ``export`` line for each variable, in the order given, UTF-8, LF. Raises UsageError."""
    return "".join(f"{sh_export(name, value)}\n" for name, value in variables.items()).encode()


def read_sh_exports(payload: bytes) -> dict[str, str]:
    """The variables that :func:`sh_exports` wrote, read without a shell.

    Other lines, and export lines in any other spelling, are not ours and are passed over; a later line wins.
    """
    found: dict[str, str] = {}
    for line in payload.split(b"\n"):
        try:
            match = _EXPORT.fullmatch(line.decode("utf-8"))
        except UnicodeDecodeError:
            continue
        if match:
            found[match[1]] = match[2].replace("'\\''", "'")
    return found


def json(value: str) -> str:
    """``value`` as a JSON string in ASCII. Raises UsageError for control characters."""
    return _json.dumps(value_text(value), ensure_ascii=True)


def dotenv(name: str, value: str) -> str:
    """``NAME=value``, one line of an env file.

    ``docker run --env-file`` takes everything after ``=`` as it stands; Compose reads the same file with quotes,
    ``$`` and comments. A value on which the two would differ is refused (UsageError), as is one beyond
    :data:`ENV_FILE_LINE_BYTES`.
    """
    line = f"{variable_name(name)}={value_text(value, what=f'the value of {name}')}"
    if not _PLAIN_VALUE.fullmatch(value):
        raise UsageError(
            f"the value of {name} cannot stand in an env file: readers differ on spaces, quotes, $, # and \\",
            hint="percent-encode it, or use --format sh or json",
        )
    if len(line.encode()) > ENV_FILE_LINE_BYTES:
        raise UsageError(f"the value of {name} is too long for an env file", hint="use --format sh or json")
    return line


def systemd(name: str, value: str) -> str:
    """``Environment="NAME=value"`` without a line end, for a unit or a drop-in.

    Inside the quotes a backslash and a quote are escaped, and ``%`` is doubled because systemd expands
    specifiers there; ``$`` is not expanded in ``Environment=`` (systemd.exec, systemd.syntax). Raises UsageError.
    """
    text = value_text(value, what=f"the value of {name}")
    text = text.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")
    return f'Environment="{variable_name(name)}={text}"'
