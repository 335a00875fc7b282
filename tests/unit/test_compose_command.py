"""``vmproxy compose``: which files it takes, what it prints and where, without a VM."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.unit import schema
from vmproxy.cli.edge import run

PROXY = ("--proxy", "http://proxy.corp:3128")
Say = Callable[..., Any]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current directory, and an environment without proxies and settings."""
    for name in [name for name in os.environ if name.lower().endswith("_proxy") or name.startswith(("COMPOSE", "VMP"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    place = tmp_path / "shop" / "sub"
    place.mkdir(parents=True)
    monkeypatch.chdir(place)
    return place


@pytest.fixture
def names(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[str, ...]]:
    """``names(*words)``: the services that a run printed."""

    def told(*words: str) -> tuple[str, ...]:
        assert run(["compose", *PROXY, *words]) == 0
        return tuple(yaml.safe_load(capsys.readouterr().out)["services"])

    return told


def write(path: Path, service: str) -> None:
    """A Compose file with one service."""
    path.write_text(f"services: {{{service}: {{image: x}}}}\n", encoding="utf-8")


def test_the_files_are_those_that_compose_takes(here: Path, names: Say, capsys: pytest.CaptureFixture[str]) -> None:
    """compose.yaml before its older names, with its override, here before above; two at once are told."""
    write(here.parent / "docker-compose.yml", "above")
    assert names() == ("above",)
    write(here / "docker-compose.yaml", "old")
    assert names() == ("old",)
    write(here / "compose.yml", "new")
    assert run(["compose", *PROXY]) == 0
    assert "compose.yml is taken, not docker-compose.yaml" in capsys.readouterr().err
    write(here / "docker-compose.override.yml", "more")
    assert names() == ("new", "more")
    assert names("-f", "docker-compose.yaml") == ("old",)
    assert names("-f", "docker-compose.yaml", "--file", "../docker-compose.yml") == ("old", "above")


def test_compose_file_names_them(here: Path, names: Say, monkeypatch: pytest.MonkeyPatch) -> None:
    """COMPOSE_FILE comes before what lies here, from the environment or from .env; -f comes before both."""
    for name in ("a", "b", "compose"):
        write(here / f"{name}.yaml", name)
    (here / ".env").write_text("COMPOSE_PATH_SEPARATOR='|'\nCOMPOSE_FILE=a.yaml|b.yaml\n", encoding="utf-8")
    assert names() == ("a", "b")
    monkeypatch.setenv("COMPOSE_FILE", "b.yaml")
    assert names() == ("b",)
    assert names("-f", "compose.yaml") == ("compose",)


def test_stdin_is_a_file(here: Path, names: Say, monkeypatch: pytest.MonkeyPatch) -> None:
    """``-f -`` reads the project from stdin."""
    stdin = io.TextIOWrapper(io.BytesIO(b"services: {piped: {image: x}}"))
    monkeypatch.setattr("sys.stdin", stdin)
    assert names("-f", "-") == ("piped",)
    assert list(here.iterdir()) == []


def test_the_output_can_be_the_projects_own_override(here: Path, names: Say) -> None:
    """``> compose.override.yaml``: the shell empties the file before we look, and the next run finds what we wrote."""
    write(here / "compose.yaml", "web")
    (here / "compose.override.yaml").write_text("", encoding="utf-8")
    assert names() == ("web",)
    (here / "compose.override.yaml").write_text(
        "# Made by vmproxy compose\nservices: {web: {environment: {http_proxy: old}}}\n", encoding="utf-8"
    )
    assert names() == ("web",)


def test_json_is_the_same_document(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """``--json`` prints one line that Compose reads as well; its values are those of the YAML, and its form is in
    docs/schema.json, with credentials by name too."""
    write(here / "compose.yaml", "web")
    assert run(["compose", *PROXY, "--names", "db"]) == 0
    document = yaml.safe_load(capsys.readouterr().out)
    assert run(["compose", *PROXY, "--names", "db", "--json"]) == 0
    out = capsys.readouterr().out
    assert json.loads(out) == document
    assert out.count("\n") == 1
    assert schema.problems(document, "compose") == []
    (here / "compose.yaml").write_text("services: {web: {build: .}}", encoding="utf-8")
    assert run(["compose", "--proxy", "http://me:geheim@127.0.0.1:1", "--json"]) == 0
    by_name = json.loads(capsys.readouterr().out)
    assert by_name["services"]["web"]["build"]["args"]["http_proxy"] is None
    assert schema.problems(by_name, "compose") == []
    assert document["services"]["web"]["environment"]["https_proxy"] == "http://proxy.corp:3128"
    assert document["services"]["web"]["environment"]["NO_PROXY"].endswith("db,web")


def test_the_index_is_in_environment_and_build_arguments(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """``--pip-index``: pip's variables for the service and its build, the host in no_proxy; a password by name."""
    (here / "compose.yaml").write_text("services: {web: {build: .}}", encoding="utf-8")
    assert run(["compose", *PROXY, "--pip-index", "http://pypi.lan:3141/simple/"]) == 0
    web = yaml.safe_load(capsys.readouterr().out)["services"]["web"]
    for given in (web["environment"], web["build"]["args"]):
        assert given["PIP_INDEX_URL"] == "http://pypi.lan:3141/simple/"
        assert given["PIP_TRUSTED_HOST"] == "pypi.lan"
        assert given["no_proxy"] == given["NO_PROXY"]
        assert "pypi.lan" in given["no_proxy"].split(",")
    assert run(["compose", *PROXY, "--pip-index", "http://me:s3cret@pypi.lan/simple/"]) == 0
    captured = capsys.readouterr()
    assert "s3cret" not in captured.out + captured.err
    assert "stays in the image's history" in captured.err
    assert yaml.safe_load(captured.out)["services"]["web"]["build"]["args"]["PIP_INDEX_URL"] is None


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a: 1\n b: 2\n", "compose.yaml:2"),
        ("services: {web: {image: x}, web2: [}", "compose.yaml:1"),
        ("web: {image: x}\n", "version 1"),
        (None, "no Compose file here or above"),
    ],
)
def test_a_bad_file_is_one_line(text: str | None, says: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What cannot be read is exit 2 with one error line, and nothing on stdout."""
    if text is not None:
        (here / "compose.yaml").write_text(text, encoding="utf-8")
    assert run(["compose", *PROXY]) == 2
    out, err = capsys.readouterr()
    first, *rest = err.splitlines()
    assert (out, len(rest) <= 1) == ("", True)
    assert first.startswith("vmproxy: error: ")
    assert says in first


def test_a_file_that_is_no_file(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A directory, a device and a file that is missing or too long are exit 2, at once."""
    (here / "big.yaml").write_bytes(b"#" * (2 << 20))
    for name in (str(here), "/dev/zero", "nothing.yaml", "big.yaml"):
        assert run(["compose", *PROXY, "-f", name]) == 2
        assert name.rsplit("/", maxsplit=1)[-1] in capsys.readouterr().err


def test_hints_for_a_reader_are_on_stderr(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A password is not printed; that and other things to know are warnings, of which ``-q`` says none."""
    (here / "compose.yaml").write_text("services: {web: {build: ., environment: [no_proxy=x]}}", encoding="utf-8")
    words = ["compose", "--proxy", "http://user:s3cret@proxy.corp:3128"]
    assert run(words) == 0
    out, err = capsys.readouterr()
    assert "s3cret" not in out + err
    assert "http_proxy:\n" in out
    assert "by name, because the values hold credentials" in err
    assert "sets no_proxy itself" in err
    assert "left as the files say: web (no_proxy)" in err
    assert run([*words, "-q"]) == 0
    assert capsys.readouterr().err == ""
