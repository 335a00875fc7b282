"""``vmproxy env`` with --names and --pip-index, as typed: every format, warnings, refusals."""

from __future__ import annotations

import re
from typing import Any

import pytest

from tests.unit.test_cli_env import run
from vmproxy import converge
from vmproxy.containers import FORMATS
from vmproxy.model import Report, Settings

PROXY = ["env", "--proxy", "http://proxy.corp:3128"]


@pytest.mark.parametrize("fmt", FORMATS)
def test_the_index_is_whole_in_every_format(fmt: str, capsys: pytest.CaptureFixture[str]) -> None:
    """PIP_INDEX_URL, PIP_TRUSTED_HOST and the host in both no_proxy, together."""
    argv = [*PROXY, "--pip-index", "http://pypi.lan:3141/root/pypi/+simple/", "--format", fmt]
    code, out, err = run(argv, capsys)
    assert (code, err) == (0, "")
    out = out.replace("\\/", "/")
    assert re.search(r"PIP_INDEX_URL\W.*http://pypi\.lan:3141/root/pypi/\+simple/", out)
    assert re.search(r"PIP_TRUSTED_HOST\W.*pypi\.lan", out)
    for name in ("NO_PROXY", "no_proxy"):
        assert re.search(rf"{name}\W.*host\.docker\.internal,pypi\.lan\b", out)


@pytest.mark.parametrize("fmt", FORMATS)
def test_an_index_with_a_password_in_every_format(fmt: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Arguments have the name alone, a Dockerfile is refused; elsewhere the value is whole, and nowhere on stderr."""
    argv = [*PROXY, "--pip-index", "https://me:hunter22@pypi.lan/simple/", "--format", fmt]
    code, out, err = run(argv, capsys)
    assert code == (2 if fmt == "dockerfile" else 0)
    assert ("hunter22" in out) == (fmt not in ("docker-run", "docker-build", "dockerfile"))
    assert "hunter22" not in err and "PIP_TRUSTED_HOST" not in out
    assert ("history" in err) == (fmt in ("docker-build", "dockerfile"))


def test_names_come_from_all_places_and_stand_behind_the_list(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Repeated, with commas, from the environment; the command line wins."""
    monkeypatch.setenv("VMPROXY_NAMES", "never")
    code, out, _err = run([*PROXY, "--names", "db,my_cache", "--names", "web-1", "--format", "dotenv"], capsys)
    assert code == 0 and "no_proxy=localhost,127.0.0.1,::1,127.0.0.0/8,host.docker.internal,db,my_cache,web-1" in out
    monkeypatch.setenv("VMPROXY_NAMES", "db")
    assert run([*PROXY, "--format", "dotenv"], capsys)[1].endswith("host.docker.internal,db\n")


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("names", "db,*"),
        ("names", "10.0.0.0/8"),
        ("names", "a b"),
        ("pip-index", "pypi.lan"),
        ("pip-index", "http://h/?"),
    ],
)
def test_a_wrong_name_or_index_is_exit_2(option: str, value: str, capsys: pytest.CaptureFixture[str]) -> None:
    """One line that names the option, one hint, nothing on stdout."""
    code, out, err = run([*PROXY, f"--{option}", value], capsys)
    assert code == 2 and not out
    error, hint = err.splitlines()
    assert error.startswith("vmproxy: error: ") and f"--{option}" in error and hint.startswith("hint: ")


def test_dialects_are_said_on_stderr_and_kept_quiet_on_demand(capsys: pytest.CaptureFixture[str]) -> None:
    """One line for each kind of trouble, also beside JSON; none with -q; stdout is the same."""
    argv = [*PROXY, "--no-proxy", "10.0.0.0/8,.corp.test", "--format", "json"]
    code, out, err = run(argv, capsys)
    assert code == 0 and [line.split(":")[1].strip() for line in err.splitlines()] == ["warning", "warning"]
    assert "wget" in err and "Go programs" in err
    assert run([*argv, "-q"], capsys) == (0, out, "")


def test_apply_says_that_an_index_with_credentials_is_not_recorded(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """``apply`` takes names and index as part of the wish; credentials in the index are a warning, without them."""
    asked: list[Settings] = []

    def told(target: str, settings: Settings, **_words: Any) -> Report:
        asked.append(settings)
        return Report(target=target)

    monkeypatch.setattr(converge, "apply", told)
    for index, warned in (("http://pypi.lan/simple/", False), ("http://me:hunter22@pypi.lan/simple/", True)):
        code, _out, err = run(["apply", "--vm", "ssh://a", "--names", "db", "--pip-index", index], capsys)
        assert code == 0
        assert ("not recorded" in err) == warned
        assert "hunter22" not in err
        assert (asked[-1].names, asked[-1].pip_index) == (("db",), index)
