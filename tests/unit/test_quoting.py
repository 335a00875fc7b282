"""Values keep exactly their text through every format, or are refused (P4)."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vmproxy import quoting
from vmproxy.errors import UsageError

SHELLS = (("dash",), ("busybox", "sh"), ("bash", "--posix"))
shells = pytest.mark.parametrize("shell", SHELLS, ids=" ".join)

NASTY = (
    "",
    " ",
    "'",
    "''",
    "'\\''",
    "\\",
    "\\\\'",
    "$(: > canary)",
    "`: > canary`",
    "'; : > canary; '",
    "' : > canary #",
    "$HOME ${PATH} $'x' $((1+1))",
    "~ * ? [a] {b,c} !x",
    "# no comment",
    "a=b;c&d|e<f>g(h)",
    '"double" %s %% %n',
    "-n",
    "http://u:p%40%24%25@proxy.example:3128",
    "ünïcödé ÁÀ \u2603 \U0001f433",
    "x" * 10_000,
)
PRINTABLE = st.characters(codec="utf-8", exclude_categories=("Cc", "Cs", "Zl", "Zp")).filter(
    lambda char: not (0xFDD0 <= ord(char) <= 0xFDEF or ord(char) & 0xFFFE == 0xFFFE)
)
VALUES = st.lists(st.sampled_from(["'", "\\", "$", "`", '"', "#", " ", "=", "%"]) | PRINTABLE).map("".join)
CONTROLS = [chr(code) for code in (*range(32), *range(0x7F, 0xA0))] + [
    "\u2028",
    "\u2029",
    "\ud800",
    "\ufdd0",
    "\uffff",
    "\U0001fffe",
]


def evaluated(shell: tuple[str, ...], script: bytes, cwd: Path) -> dict[str, str]:
    """What the shell exports after ``script``, started with an empty environment."""
    done = subprocess.run(
        [shutil.which(shell[0]) or shell[0], *shell[1:], "-s"],
        input=script + b"exec /usr/bin/env -0\n",
        capture_output=True,
        cwd=cwd,
        env={"PATH": "/nonexistent", "LC_ALL": "C"},
        check=True,
        timeout=60,
    )
    assert not done.stderr
    pairs = (item.decode().partition("=")[::2] for item in done.stdout.split(b"\0") if item)
    return {name: value for name, value in pairs if name not in ("PATH", "LC_ALL", "PWD", "OLDPWD", "SHLVL", "_")}


@shells
@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(values=st.lists(VALUES, min_size=1, max_size=40))
def test_p4_shells_read_back_exactly_the_value(shell: tuple[str, ...], values: list[str], tmp_path: Path) -> None:
    """Every value that is accepted arrives as it is, no other variable is set and no command runs."""
    wanted = {f"v{number}": value for number, value in enumerate([*values, *NASTY])}
    assert evaluated(shell, quoting.sh_exports(wanted), tmp_path) == wanted
    assert not list(tmp_path.iterdir())


@shells
def test_p4_no_shell_variable_appears_beside_ours(shell: tuple[str, ...], tmp_path: Path) -> None:
    """Not even an unexported variable is set by the lines of the nastiest values."""
    lines = quoting.sh_exports({f"v{number}": value for number, value in enumerate(NASTY)})
    script = b"set > before\n" + lines + b"set > after\n"
    subprocess.run(
        [shutil.which(shell[0]) or shell[0], *shell[1:], "-s"],
        input=script,
        cwd=tmp_path,
        env={},
        check=True,
        timeout=60,
    )

    def names(file: str) -> set[str]:
        return set(re.findall(r"(?m)^(\w+)=", (tmp_path / file).read_text()))

    assert names("after") - names("before") - {"_", "PIPESTATUS"} == {f"v{number}" for number in range(len(NASTY))}
    assert {path.name for path in tmp_path.iterdir()} == {"before", "after"}


@given(values=st.dictionaries(st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,9}", fullmatch=True), VALUES))
def test_our_exports_are_read_back_without_a_shell(values: dict[str, str]) -> None:
    """read_sh_exports is the inverse of sh_exports, also between lines of somebody else's."""
    lines = quoting.sh_exports(values)
    assert quoting.read_sh_exports(b"# a\nexport other=1\n" + lines + b"\xff\nDOCKER_REMOTE=yes\n") == values


@pytest.mark.parametrize(
    "line",
    [
        b"http_proxy='x'",
        b"export http_proxy=x",
        b'export http_proxy="x"',
        b"export http_proxy='x'; export more='y'",
        b"export http_proxy='x'y",
        b"export http_proxy='x",
        b"export http_proxy='x'\r",
        b" export http_proxy='x'",
        b"export 1x='x'",
        b"export http_proxy='\xff'",
    ],
)
def test_lines_in_another_spelling_are_not_ours(line: bytes) -> None:
    """Whatever a user wrote by hand is passed over, not half understood."""
    assert quoting.read_sh_exports(line + b"\n") == {}


@pytest.mark.parametrize("char", CONTROLS, ids=ascii)
def test_control_characters_are_refused_everywhere(char: str) -> None:
    """NUL, CR, LF, every other control character and line separator: UsageError that does not show the value."""
    value = f"secret{char}secret"
    for render in (
        quoting.sh,
        quoting.json,
        lambda text: quoting.sh_export("x", text),
        lambda text: quoting.dotenv("x", text),
        lambda text: quoting.systemd("x", text),
    ):
        with pytest.raises(UsageError) as caught:
            render(value)
        assert "secret" not in f"{caught.value}{caught.value.hint}"


@pytest.mark.parametrize("name", ["", "1a", "a-b", "a b", "a=b", "a'b", "é", "a\n", "a" * 129, "\uff41"])
def test_names_that_are_no_variables_are_refused(name: str) -> None:
    """``export 'a-b=x'`` would end the shell that sources it."""
    for render in (quoting.sh_export, quoting.dotenv, quoting.systemd):
        with pytest.raises(UsageError):
            render(name, "x")


@given(VALUES)
def test_json_gives_the_value_back(value: str) -> None:
    """A JSON reader gets exactly the value, out of plain ASCII."""
    text = quoting.json(value)
    assert text.isascii()
    assert json.loads(text) == value


def docker_env_file(text: str) -> dict[str, str]:
    """Docker's documented grammar: a line a variable, ``#`` comments, the value as it stands behind the first =."""
    pairs = {}
    for raw in text.split("\n"):
        line = raw.removesuffix("\r").lstrip()
        if line and not line.startswith("#"):
            name, _, value = line.partition("=")
            assert name
            assert not re.search(r"\s", name)
            pairs[name] = value
    return pairs


@given(VALUES)
def test_p4_env_file_gives_the_value_back(value: str) -> None:
    """Docker's env-file grammar reads exactly the value, blanks, quotes, $ and # as they stand."""
    assert docker_env_file(quoting.dotenv("http_proxy", value) + "\n") == {"http_proxy": value}


def test_a_value_too_long_for_dockers_reader_is_refused() -> None:
    """Docker gives up on lines of 64 KiB, so ours stay below."""
    with pytest.raises(UsageError, match="too long"):
        quoting.dotenv("http_proxy", "x" * 60_000)


def systemd_environment(line: str) -> str:
    """systemd's reading of one ``Environment="…"``: unquoting with C escapes, then specifiers."""
    match = re.fullmatch(r'Environment="((?:[^"\\]|\\.)*)"', line)
    assert match
    unquoted = re.sub(r"\\(.)", r"\1", match[1])
    assert not re.search(r"(?<!%)(?:%%)*%(?!%)", unquoted)
    return unquoted.replace("%%", "%")


@given(VALUES)
def test_p4_systemd_gives_the_value_back(value: str) -> None:
    """Quotes, backslashes and percent signs survive systemd's unquoting and specifiers."""
    assert systemd_environment(quoting.systemd("http_proxy", value)) == f"http_proxy={value}"


def systemd_file_value(line: str) -> str:
    """systemd's reading of one ``NAME="…"`` of an environment file: its states, as far as double quotes go."""
    name, _, rest = line.partition("=")
    assert (name, rest[0], rest[-1]) == ("http_proxy", '"', '"')
    out, at = "", 1
    while at < len(rest) - 1:
        assert rest[at] != '"'
        if rest[at] == "\\" and rest[at + 1] in '"\\$`':
            at += 1
        out, at = out + rest[at], at + 1
    assert at == len(rest) - 1
    return out


@given(VALUES)
def test_p4_systemds_environment_file_gives_the_value_back(value: str) -> None:
    """Quotes, backslashes, dollars and backquotes survive, and our own reader says the same."""
    line = quoting.systemd_file("http_proxy", value)
    assert systemd_file_value(line) == value
    assert quoting.read_systemd_file(f"# x\n{line}\n".encode()) == {"http_proxy": value}


def test_f77_percent_is_doubled_for_systemd() -> None:
    """A percent-encoded password does not turn into systemd specifiers."""
    assert quoting.systemd("http_proxy", "http://u:p%40@h:1") == 'Environment="http_proxy=http://u:p%%40@h:1"'
