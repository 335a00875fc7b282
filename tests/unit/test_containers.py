"""Variables for containers reach the programs that read them."""

from __future__ import annotations

import json
import shutil
import subprocess

import pytest

from vmproxy import containers
from vmproxy.errors import UsageError
from vmproxy.proxyenv import parse_proxy, variables

PROXY = parse_proxy("http://us%20er:p%27%22%24%25%23%5C%60@172.17.0.1:8123")
VARIABLES = variables(PROXY, parse_proxy("http://[fd00::2]:3128"), ["localhost", "*.corp.example", "10.0.0.0/8"])


@pytest.mark.parametrize("shell", [("dash",), ("busybox", "sh"), ("bash", "--posix"), ("bash",)], ids=" ".join)
def test_sh_is_read_back_by_shells(shell: tuple[str, ...]) -> None:
    """``eval "$(vmproxy env)"`` exports exactly these variables."""
    script = 'eval "$TEXT"; unset TEXT; exec /usr/bin/env -0'
    done = subprocess.run(
        [shutil.which(shell[0]) or shell[0], *shell[1:], "-c", script],
        capture_output=True,
        check=True,
        env={"PATH": "/nonexistent", "TEXT": containers.render(VARIABLES, "sh")},
        timeout=60,
    )
    pairs = dict(item.decode().split("=", 1) for item in done.stdout.split(b"\0") if item)
    assert {
        name: value for name, value in pairs.items() if name not in ("PATH", "PWD", "OLDPWD", "SHLVL", "_")
    } == VARIABLES


def test_json_is_one_object_in_order() -> None:
    """The object has these variables and no others, in the same order, in ASCII."""
    text = containers.render(VARIABLES, "json")
    assert list(json.loads(text).items()) == list(VARIABLES.items())
    assert text.isascii()
    assert text.endswith("}\n")


def test_dotenv_is_read_back_by_dockers_grammar() -> None:
    """One NAME=value a line; Docker takes the value as it stands."""
    text = containers.render(VARIABLES, "dotenv")
    assert text.endswith("\n")
    assert dict(line.split("=", 1) for line in text.splitlines()) == VARIABLES


@pytest.mark.parametrize("fmt", containers.FORMATS)
def test_a_value_or_name_that_cannot_survive_is_refused(fmt: str) -> None:
    """Line breaks in values and odd names are usage errors in every format."""
    for pairs in ({"http_proxy": "a\nb"}, {"a-b": "x"}, {"": "x"}):
        with pytest.raises(UsageError):
            containers.render(pairs, fmt)


@pytest.mark.parametrize("fmt", containers.FORMATS)
def test_no_variables_are_no_lines(fmt: str) -> None:
    """Nothing set is an empty text, or an empty object."""
    assert containers.render({}, fmt) == ("{}\n" if fmt == "json" else "")


def test_an_unknown_format_is_a_usage_error() -> None:
    """The formats there are get named."""
    with pytest.raises(UsageError) as caught:
        containers.render({}, "yaml")
    assert caught.value.hint == f"one of: {', '.join(containers.FORMATS)}"
