"""One value into the text of one format, so that its reader gets exactly that value, or a refusal. PURE."""

from __future__ import annotations

import json as _json
import re
import unicodedata
from collections.abc import Mapping, Sequence

from vmproxy.errors import UsageError

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}", re.ASCII)
_IN_FILE = re.compile(r'([A-Za-z_][A-Za-z0-9_]*)="((?:[^"\\$`]|\\["\\$`])*)"', re.ASCII)
_EXPORT = re.compile(r"export ([A-Za-z_][A-Za-z0-9_]*)='((?:[^']|'\\'')*)'", re.ASCII)
_POWERSHELL_QUOTE = re.compile("['\u2018\u2019\u201a\u201b]")
_YAML_WORDS = frozenset(("y", "n", "yes", "no", "on", "off", "true", "false", "null"))

LINE_BYTES = 60_000
"""Docker reads env files and Dockerfiles with a scanner that gives up at 64 KiB a line."""


def value_text(value: str, *, what: str = "the value") -> str:
    """``value`` itself if it is one line of text that every format here can carry.

    Refused with UsageError, without showing it (it may hold a password): NUL, CR, LF and every other control
    character, Unicode line separators, lone surrogates, code points that are no characters (U+FDD0, U+FFFE…: systemd
    and fish take them for garbage).
    """
    for char in value:
        code = ord(char)
        no_character = 0xFDD0 <= code <= 0xFDEF or code & 0xFFFE == 0xFFFE
        if no_character or unicodedata.category(char) in ("Cc", "Cs", "Zl", "Zp"):
            name = {"\0": "NUL", "\r": "CR", "\n": "a line break"}.get(char, f"U+{code:04X}")
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
    """``NAME=value``, one line of a file for ``docker run --env-file``.

    Docker takes everything after the first ``=`` as it stands: blanks, quotes, ``$`` and ``#`` too; nothing is trimmed
    and nothing quoted (docker/cli, the reader of env files). Raises UsageError for control characters and for a line
    beyond :data:`LINE_BYTES`.
    """
    line = f"{variable_name(name)}={value_text(value, what=f'the value of {name}')}"
    return _short(line, name, "an env file")


def _short(line: str, name: str, place: str) -> str:
    if len(line.encode()) > LINE_BYTES:
        raise UsageError(f"the value of {name} is too long for {place}", hint="use --format sh or json")
    return line


def fish(value: str) -> str:
    """``value`` as one single-quoted word of fish, where a backslash escapes itself and the quote."""
    return "'" + value_text(value).replace("\\", "\\\\").replace("'", "\\'") + "'"


def powershell(value: str) -> str:
    """``value`` as a verbatim string of PowerShell: nothing is special but the quote, which is doubled.

    The curly quotes U+2018 to U+201B are single quotes, too (PowerShell's language specification, 2.3.5.2).
    """
    return "'" + _POWERSHELL_QUOTE.sub(r"\g<0>\g<0>", value_text(value)) + "'"


def yaml(value: str) -> str:
    """``value`` as a double-quoted scalar in ASCII, for YAML 1.1 and 1.2.

    Characters beyond the BMP are one escape, ``\\U0001F433``, where JSON has two that YAML would not put together.
    """
    out = []
    for char in value_text(value):
        code = ord(char)
        if char in '"\\':
            out.append(f"\\{char}")
        elif code < 127:
            out.append(char)
        else:
            out.append(f"\\u{code:04X}" if code < 0x10000 else f"\\U{code:08X}")
    return '"' + "".join(out) + '"'


def yaml_key(name: str) -> str:
    """A variable's name as a key: quoted only where YAML 1.1 would take it for a truth value or null."""
    return f'"{name}"' if variable_name(name).lower() in _YAML_WORDS else name


def compose(value: str) -> str:
    """``value`` with every ``$`` doubled, so that Compose puts nothing in its place. Not yet quoted for YAML."""
    return value_text(value).replace("$", "$$")


def dockerfile(name: str, value: str) -> str:
    """``NAME='value'`` for ``ARG``.

    Between single quotes nothing is special, whatever the file's escape character is; a single quote itself stands
    between double ones (the Dockerfile reference, ``escape`` and "Environment replacement"). Raises UsageError for
    control characters and for a line beyond :data:`LINE_BYTES`.
    """
    text = value_text(value, what=f"the value of {name}").replace("'", "'\"'\"'")
    return _short(f"{variable_name(name)}='{text}'", name, "a Dockerfile")


def systemd(name: str, value: str) -> str:
    """``Environment="NAME=value"`` without a line end, for a unit or a drop-in.

    Inside the quotes a backslash and a quote are escaped, and ``%`` is doubled because systemd expands
    specifiers there; ``$`` is not expanded in ``Environment=`` (systemd.exec, systemd.syntax). Raises UsageError.
    """
    text = value_text(value, what=f"the value of {name}")
    text = text.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")
    return f'Environment="{variable_name(name)}={text}"'


def systemd_command(argv: Sequence[str]) -> str:
    """The value of ``ExecStart=`` that runs exactly these words, each in double quotes.

    As for ``Environment=``, and ``$`` is doubled, since variables are expanded there (systemd.service(5), "Command
    lines"). In the program's path they are not, while in argv[0] they are: one with ``$`` is refused, and so is one
    that is not absolute. Raises UsageError.
    """
    words = [value_text(word) for word in argv]
    if not words or not words[0].startswith("/") or "$" in words[0]:
        raise UsageError("systemd needs an absolute path without $", where="".join(words[:1]))
    quoted = [word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%") for word in words]
    return " ".join(f'"{word}"' for word in (quoted[0], *(word.replace("$", "$$") for word in quoted[1:])))


def systemd_file(name: str, value: str) -> str:
    """``NAME="value"`` without a line end, for a file that ``EnvironmentFile=`` names.

    Between double quotes a backslash takes its meaning from the quote, itself, ``$`` and the backquote, as in a shell,
    and stays before any other character; nothing is expanded, specifiers neither (systemd.exec(5)). Raises UsageError.
    """
    text = re.sub(r'["\\$`]', r"\\\g<0>", value_text(value, what=f"the value of {name}"))
    return f'{variable_name(name)}="{text}"'


def read_systemd_file(payload: bytes) -> dict[str, str]:
    """The variables that :func:`systemd_file` wrote; lines in any other spelling are not ours and are passed over."""
    found: dict[str, str] = {}
    for line in payload.decode("utf-8", "replace").split("\n"):
        if match := _IN_FILE.fullmatch(line):
            found[match[1]] = re.sub(r"\\(.)", r"\1", match[2])
    return found
