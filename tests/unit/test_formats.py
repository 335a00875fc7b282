"""Every format of ``env`` against a reader in this process, for any text (P4); the real readers are in tests/ns."""

from __future__ import annotations

import json
import re
import shlex
import string
from collections.abc import Callable, Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.values import HARD, every_character, is_text
from vmproxy import containers, quoting
from vmproxy.containers import FORMATS, by_name, render
from vmproxy.errors import UsageError
from vmproxy.proxyenv import holds_credentials

NAMES = st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,9}", fullmatch=True).filter(lambda name: "proxy" not in name.lower())
LOADED = [
    *"'\"\\$`#%={}[]()*?~!&;|<> ",
    "\u2018",
    "\u2019",
    "\u201a",
    "\u201b",
    "\u201c",
    "\U0001f433",
    "$$",
    "''",
    "'\"",
]
VALUES = st.sampled_from(HARD) | st.lists(
    st.sampled_from(LOADED) | st.characters(codec="utf-8").filter(is_text), max_size=30
).map("".join).filter(lambda value: not holds_credentials("x", value))
PAIRS = st.dictionaries(NAMES, VALUES, max_size=6)
TAKEN_APART = r"[ *?\[\\{]|[@+!]\("
QUOTES = "'\u2018\u2019\u201a\u201b"


def read_powershell(text: str) -> dict[str, str]:
    """Assignments to ``$env:NAME`` of verbatim strings, as PowerShell's tokenizer takes them.

    A string ends at a single quote of any of the five kinds that no other follows; of two the second is kept
    (language specification 2.3.5.2; ScanStringLiteral in the engine's tokenizer).
    """
    found: dict[str, str] = {}
    at = 0
    while at < len(text):
        match = re.compile(rf"\$env:(\w+) = [{QUOTES}]", re.ASCII).match(text, at)
        assert match, text[at : at + 40]
        at, value = match.end(), ""
        while text[at] not in QUOTES or text[at + 1] in QUOTES:
            at += text[at] in QUOTES
            value += text[at]
            at += 1
        assert text[at + 1] == "\n"
        at += 2
        if value:  # an empty string takes the variable away
            found[match[1]] = value
    return found


def read_fish(text: str) -> dict[str, str]:
    """``set -gx NAME '…'`` lines: between single quotes a backslash escapes itself and the quote, and nothing else."""
    found = {}
    for line in text.splitlines():
        match = re.fullmatch(r"set -gx (\w+) '((?:[^'\\]|\\.)*)'", line)
        assert match, line
        found[match[1]] = re.sub(r"\\([\\'])", r"\1", match[2])
    return found


def read_dotenv(text: str) -> dict[str, str]:
    """Docker's reader of env files: a line a variable, the value everything behind the first ``=``."""
    lines = [line.lstrip() for line in text.split("\n")]
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


def read_compose(text: str) -> dict[str, str]:
    """The fragment's two mappings, which must be the same: YAML's double-quoted scalars, then ``$$`` for ``$``."""
    assert text.isascii()
    environment, _, arguments = text.partition("build:\n  args:\n")
    comment, _, environment = environment.partition("environment:\n")
    assert comment.startswith("#")
    pairs = yaml_pairs(environment, 2)
    assert yaml_pairs(arguments, 4) == pairs
    return pairs


def yaml_pairs(text: str, indent: int) -> dict[str, str]:
    """``key: "value"`` lines of one depth."""
    found = {}
    for line in text.splitlines():
        key, value = line.removeprefix(" " * indent).split(": ", 1)
        pairs = re.sub(r"\\U([0-9A-F]{8})", lambda match: json.dumps(chr(int(match[1], 16)))[1:-1], value)
        templated = json.loads(pairs)
        assert not re.search(r"(?<!\$)(?:\$\$)*\$(?!\$)", templated)
        found[key.strip('"')] = templated.replace("$$", "$")
    return found


def read_dockerfile(text: str) -> dict[str, str]:
    """ARG lines: single quotes keep everything, double quotes hold single ones only."""
    found = {}
    for line in text.splitlines():
        if line.startswith("#"):
            assert "=" not in line  # such a comment could be a parser directive
            continue
        match = re.fullmatch(r"ARG (\w+)=((?:'[^']*'|\"'\")+)", line)
        assert match, line
        found[match[1]] = "".join(one or two for one, two in re.findall(r"'([^']*)'|\"(')\"", match[2]))
    return found


def read_systemd(text: str) -> dict[str, str]:
    """``Environment=`` of ``[Service]``: unquoted, then specifiers, of which there must be none but ``%%``."""
    found = {}
    head, *lines = text.splitlines()
    assert head == "[Service]"
    for line in lines:
        match = re.fullmatch(r'Environment="(\w+)=((?:[^"\\]|\\["\\])*)"', line)
        assert match, line
        assert not re.search(r"(?<!%)(?:%%)*%(?!%)", match[2])
        found[match[1]] = re.sub(r"\\(.)", r"\1", match[2]).replace("%%", "%")
    return found


def read_sh(text: str) -> dict[str, str]:
    """``export NAME='…'`` lines by the standard library's reader of shell words."""
    words = shlex.split(text, posix=True)
    assert words[::2] == ["export"] * (len(words) // 2)
    return dict(word.split("=", 1) for word in words[1::2])


READERS: dict[str, Callable[[str], dict[str, str]]] = {
    "sh": read_sh,
    "fish": read_fish,
    "powershell": read_powershell,
    "dotenv": read_dotenv,
    "json": lambda text: dict(json.loads(text)),
    "compose": read_compose,
    "dockerfile": read_dockerfile,
    "systemd": read_systemd,
}
WORDS = {"docker-run": "-e", "docker-build": "--build-arg"}


def test_every_format_has_a_reader_here() -> None:
    """A new format cannot be added without one."""
    assert set(FORMATS) == {*READERS, *WORDS}


@pytest.mark.parametrize("fmt", READERS)
@given(pairs=PAIRS)
def test_p4_the_reader_gets_exactly_the_values(fmt: str, pairs: dict[str, str]) -> None:
    """In the order given, whatever the text is."""
    pairs = {name: value or "x" for name, value in pairs.items()} if fmt == "powershell" else pairs
    text = render(pairs, fmt)
    if pairs:
        assert text.endswith("\n")
        assert list(READERS[fmt](text).items()) == list(pairs.items())


@pytest.mark.parametrize("fmt", READERS)
def test_p4_every_character_is_carried(fmt: str) -> None:
    """The whole Basic Multilingual Plane, some of every block beyond, and the values that readers trip over."""
    values = [value for value in (*HARD, *every_character()) if value]
    pairs = {f"v{number}": value for number, value in enumerate(values)}
    assert READERS[fmt](render(pairs, fmt)) == pairs


@pytest.mark.parametrize("fmt", WORDS)
@given(pairs=st.dictionaries(NAMES, VALUES, min_size=1, max_size=1))
def test_p4_arguments_are_whole_words_or_refused(fmt: str, pairs: dict[str, str]) -> None:
    """Either the blank-separated words are option and NAME=value, or the value has what an unquoted word loses."""
    (name, value), *_ = pairs.items()
    try:
        text = render(pairs, fmt)
    except UsageError as error:
        assert re.search(TAKEN_APART, value)
        assert error.hint
        return
    assert not re.search(TAKEN_APART, value)
    assert text.rstrip("\n").split(" ") == [WORDS[fmt], f"{name}={value}"]


@pytest.mark.parametrize("fmt", WORDS)
@pytest.mark.parametrize("char", [*" *?[\\{", "@(", "+(", "!("])
def test_what_a_shell_takes_apart_is_refused(fmt: str, char: str) -> None:
    """Blanks and globs: the error names variable and character, the hint another way, and neither shows the value."""
    with pytest.raises(UsageError) as caught:
        render({"http_proxy": "http://h:1", "no_proxy": f"hidden{char}hidden"}, fmt)
    assert "no_proxy" in caught.value.what
    assert ("a blank" if char == " " else char) in caught.value.what
    assert {"docker-run": "--env-file", "docker-build": "--build-arg NAME"}[fmt] in caught.value.hint
    assert "hidden" not in f"{caught.value}{caught.value.hint}"


SECRETS = st.text(st.sampled_from(string.ascii_letters + string.digits + "%/:@#?"), min_size=4, max_size=12).map(
    lambda text: f"Zq{text}9Z"
)


@given(
    secret=SECRETS,
    form=st.sampled_from(
        ["http://me:{}@h:1", "http://{}@h:1", "me:{}@h", "{}@h:1", "http://me:{}@[::1", "x://a:b@{}@h"]
    ),
    name=st.sampled_from(["http_proxy", "HTTPS_PROXY", "all_proxy", "FTP_PROXY"]),
)
def test_p6_credentials_are_never_in_an_argument_or_a_dockerfile(secret: str, form: str, name: str) -> None:
    """Arguments give the name alone, a Dockerfile refuses, whether the URL is well formed or not."""
    pairs = {"no_proxy": "a", name: form.format(secret)}
    for fmt, option in WORDS.items():
        assert render(pairs, fmt) == f"{option} no_proxy=a\n{option} {name}\n"
    assert by_name(pairs) == (name,)
    with pytest.raises(UsageError) as caught:
        render(pairs, "dockerfile")
    assert name in caught.value.what
    assert secret not in f"{caught.value}{caught.value.hint}{caught.value!r}"


def test_p6_an_index_with_credentials_goes_by_name_too() -> None:
    """PIP_INDEX_URL like a proxy; other variables may have an @ that belongs to no URL."""
    pairs = {"PIP_INDEX_URL": "https://me:word@h/simple", "PIP_TRUSTED_HOST": "h", "MAIL": "me@h"}
    assert render(pairs, "docker-run") == "-e PIP_INDEX_URL\n-e PIP_TRUSTED_HOST=h\n-e MAIL=me@h\n"
    with pytest.raises(UsageError, match="PIP_INDEX_URL holds credentials") as caught:
        render(pairs, "dockerfile")
    assert "--mount=type=secret" in caught.value.hint


@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize(
    "char", ["\0", "\n", "\r", "\t", "\x1b", "\x85", "\u2028", "\u2029", "\ud800", "\ufdd0", "\uffff"], ids=ascii
)
def test_p4_what_no_format_carries_is_refused_without_showing_it(fmt: str, char: str) -> None:
    """Controls, line separators, what is no character: a usage error that names the variable alone."""
    with pytest.raises(UsageError) as caught:
        render({"http_proxy": f"secret{char}secret"}, fmt)
    assert "http_proxy" in caught.value.what
    assert "secret" not in f"{caught.value}{caught.value.hint}"


@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize("name", ["", "1a", "a-b", "a b", "a=b", "$a", "a\n", "é"])
def test_a_name_that_is_none_is_refused(fmt: str, name: str) -> None:
    """A name never becomes part of a command."""
    with pytest.raises(UsageError):
        render({name: "x"}, fmt)


def test_powershell_cannot_set_an_empty_variable() -> None:
    """``$env:X = ''`` takes X away: refused, not written."""
    with pytest.raises(UsageError, match="NO_PROXY is empty"):
        render({"NO_PROXY": ""}, "powershell")


@pytest.mark.parametrize("fmt", ["dotenv", "dockerfile"])
def test_a_line_too_long_for_dockers_readers_is_refused(fmt: str) -> None:
    """Docker gives up on lines of 64 KiB."""
    assert render({"x": "y" * 59_000}, fmt)
    with pytest.raises(UsageError, match="too long"):
        render({"x": "y" * 60_000}, fmt)


@pytest.mark.parametrize("name", ["y", "No", "on", "null", "TRUE"])
def test_a_name_that_yaml_takes_for_a_truth_value_is_quoted(name: str) -> None:
    """Compose would find a key that is no text."""
    assert f'  "{name}": "x"\n' in render({name: "x"}, "compose")


@given(VALUES)
def test_compose_values_have_every_dollar_doubled(value: str) -> None:
    """For whoever writes a whole Compose file: nothing is left for Compose to put in."""
    assert quoting.compose(value).replace("$$", "$") == value
    assert quoting.compose(value).count("$") == 2 * value.count("$")


def test_the_dockerfile_says_why_not_env() -> None:
    """Its comment warns of ENV, and says which variables need an ARG line at all."""
    lines = render({"http_proxy": "http://h:1"}, "dockerfile").splitlines()
    comment = " ".join(line.removeprefix("# ") for line in lines[:-1])
    assert "Not ENV: that stays in the image" in comment
    assert "predefined" in comment
    assert "PIP_... and, to Docker 20.10, ALL_PROXY are not" in comment
    assert lines[-1] == "ARG http_proxy='http://h:1'"


def test_rendering_does_not_depend_on_the_kind_of_mapping() -> None:
    """Any mapping will do, and none is changed."""
    pairs: Mapping[str, str] = {"b": "1", "a": "2"}
    assert containers.render(pairs, "sh") == "export b='1'\nexport a='2'\n"
    assert list(pairs) == ["b", "a"]
