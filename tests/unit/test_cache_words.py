"""The options of ``cache serve`` as they are handed to a process of its own: none is lost, and none is bent."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from vmproxy.cache import squid
from vmproxy.cache.run import make_settings
from vmproxy.cli.cache import SERVE
from vmproxy.cli.cachestart import words
from vmproxy.cli.common import Run
from vmproxy.cli.edge import run
from vmproxy.cli.output import Output
from vmproxy.proxyenv import parse_proxy

TYPED = parse_proxy("http://typed.example:3128")


def made(given: tuple[str, ...] = (), **values: Any) -> tuple[list[str], dict[str, str]]:
    """The words and variables for such values; ``given`` stood on the command line."""
    every = {name.replace("_", "-"): value for name, value in values.items()}
    output = Output(json=False, verbosity=0, color="never", debug=False, secrets=())
    return words(Run(values=every, environ={}, output=output, given=dict.fromkeys(given)), SERVE)


def test_any_value_is_handed_on() -> None:
    """One that ends in ``--`` too; a flag that is off, and has no word for that, is none."""
    assert made(dir="/tmp/x--", size="1G", pip=False, allow=("10.0.0.0/8", "fd00::/8")) == (
        ["--dir=/tmp/x--", "--size=1G", "--allow=10.0.0.0/8", "--allow=fd00::/8"],
        {},
    )
    assert made(dir="/d", pip=True)[0] == ["--dir=/d", "--pip"]


def test_the_file_of_settings_is_handed_on() -> None:
    """By its whole path: the other process stands elsewhere."""
    assert made(dir="/d", config="x.toml")[0] == ["--dir=/d", f"--config={os.path.abspath('x.toml')}"]


def test_of_two_upstreams_the_one_that_counts_is_handed_on(tmp_path: Path) -> None:
    """The URL where it was typed, else the file: both together would be refused there."""
    file = str(tmp_path / "file")
    typed, _secrets = made(("upstream",), dir="/d", upstream=TYPED, upstream_file=file)
    assert typed == ["--dir=/d", "--upstream=http://typed.example:3128"]
    secret = parse_proxy("http://me:geheim@env.example:3128")
    assert made(dir="/d", upstream=secret, upstream_file=file) == (["--dir=/d", f"--upstream-file={file}"], {})
    assert made(dir="/d", upstream=secret)[1] == {"VMPROXY_UPSTREAM": "http://me:geheim@env.example:3128"}


def test_a_typed_upstream_goes_before_the_one_of_the_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """In what ``install`` writes: the file of settings by its whole path, and no second upstream beside the first."""
    settings = tmp_path / "some.toml"
    settings.write_text('upstream-file = "/nonexistent/upstream"\n', encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    argv = ["cache", "install", "--print", "--service", "launchd", "--config", "some.toml", "--upstream", str(TYPED)]
    assert run([*argv, "--dir", str(tmp_path / "d")]) == 0
    said = capfd.readouterr().out
    assert f"--config={settings}" in said and "--upstream-file" not in said
    assert f"--upstream={TYPED}" in said


def test_squid_has_no_variable_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a password nor the way to the manager whose service the cache is; its other variables it has."""
    for name in ("VMPROXY_UPSTREAM", "NOTIFY_SOCKET", "LAB_OTHER"):
        monkeypatch.setenv(name, "x")
    found = squid._environment()
    assert found["LAB_OTHER"] == "x" and not {"VMPROXY_UPSTREAM", "NOTIFY_SOCKET"} & set(found)


@pytest.mark.parametrize(
    ("given", "count"),
    [
        ({}, 0),
        ({"address": "192.168.56.1", "clients": ["192.168.56.0/24", "fd00::/8"], "port": 4000}, 4),
        ({"size": "1.5T", "targets": ["10.20.0.0/16"], "ports": ["8443", "22"], "engine": "squid"}, 5),
        ({"size": "1234567", "upstream": TYPED, "no_proxy": ["localhost", ".corp"], "pip_port": 5001}, 5),
        ({"size": "3M", "pip_port": 5002}, 3),
    ],
)
def test_the_options_of_a_running_proxy_make_its_like(
    given: dict[str, Any], count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What ``cache status --json`` calls its options are those that are not the usual ones; said to ``serve`` they are
    the very same settings."""
    for name in os.environ:
        if name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    settings, seen = make_settings("/d", **given), []
    monkeypatch.setattr("vmproxy.cache.run.serve", lambda settings, **_more: seen.append(settings))
    assert run(["cache", "serve", "--dir=/d", *settings.words()]) == 0
    assert seen == [settings] and len(settings.words()) == count


def test_no_credentials_are_among_the_options_of_a_running_proxy() -> None:
    """An upstream that has any is named by the option that reads it from a file."""
    secret = parse_proxy("http://me:geheim@env.example:3128")
    assert make_settings("/d", upstream=secret).words() == ("--upstream-file=FILE",)
