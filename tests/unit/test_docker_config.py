"""``vmproxy docker-config`` as its user runs it: exit codes, what is shown, what is written."""

from __future__ import annotations

import json
import os
import stat
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import vmproxy
from tests.unit import schema
from vmproxy import hostfiles
from vmproxy.cli.edge import run
from vmproxy.errors import Unreachable
from vmproxy.model import Report, Settings

PROXY = ("--proxy", "http://proxy.example:3128", "--no-proxy", "a.example")
SECRET = ("--proxy", "http://user:s3cr3t@proxy.example:3128")
LOGIN = b'{\n\t"auths": {\n\t\t"r.example": {\n\t\t\t"auth": "dXNlcjpwYXNz"\n\t\t}\n\t}\n}'
DAEMON = "tcp://192.168.99.100:2376"


class Home:
    """A home directory, and the command run in it."""

    def __init__(self, path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.path = path
        self.file = path / ".docker" / "config.json"
        self._capsys = capsys
        self.out = self.err = ""

    def run(self, *words: str) -> int:
        """``vmproxy docker-config …``; its exit code. ``out`` and ``err`` are what it said."""
        code = run(["docker-config", *words])
        captured = self._capsys.readouterr()
        self.out, self.err = captured.out, captured.err
        return code

    def json(self, *words: str) -> Any:
        """The object of ``--json``, checked against the schema."""
        code = self.run(*words, "--json")
        value = json.loads(self.out)
        assert schema.problems(value, "result") == []
        assert value["exit"] == code
        return value

    def write(self, content: bytes) -> tuple[Any, ...]:
        """Put a file there; its state."""
        self.file.parent.mkdir(exist_ok=True)
        self.file.write_bytes(content)
        self.file.chmod(0o600)
        return self.state()

    def state(self) -> tuple[Any, ...]:
        """Bytes, mode, inode and times."""
        seen = self.file.stat()
        return self.file.read_bytes(), seen.st_mode, seen.st_ino, seen.st_mtime_ns, seen.st_ctime_ns

    def entry(self, name: str = "default") -> Any:
        """What the file says."""
        return json.loads(self.file.read_bytes())["proxies"][name]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Home:
    """A home of the test's own, without proxy variables and settings file."""
    for name in list(os.environ):
        if name.lower().endswith("_proxy") or name.startswith(("VMPROXY_", "DOCKER_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    return Home(tmp_path, capsys)


class VM:
    """A stand-in for the story module: what env says of a VM, and how often it was asked."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, answer: dict[str, str] | Exception) -> None:
        self.asked: list[str] = []
        self._answer = answer
        module = SimpleNamespace(env=self.env)
        monkeypatch.setitem(sys.modules, "vmproxy.converge", module)
        monkeypatch.setattr(vmproxy, "converge", module, raising=False)

    def env(self, target: str, _settings: Settings, **_words: Any) -> Report:
        """The variables."""
        self.asked.append(target)
        if isinstance(self._answer, Exception):
            raise self._answer
        return Report(target=target, variables=self._answer)


def test_apply_status_remove(home: Home) -> None:
    """From no file to a file in sync and back to no file and no directory; each word of it on stdout."""
    assert home.run("status", *PROXY) == 1
    assert "-- proxies.default: missing" in home.out
    assert "docker-config apply" in home.err
    assert home.run("apply", *PROXY) == 0
    assert home.out == f"{home.file}: proxies.default written\n"
    assert home.err == ""
    assert stat.S_IMODE(home.file.stat().st_mode) == 0o600
    assert stat.S_IMODE(home.file.parent.stat().st_mode) == 0o700
    wanted = home.entry()
    assert wanted["httpProxy"] == wanted["httpsProxy"] == "http://proxy.example:3128"
    assert wanted["noProxy"].split(",")[0] == "a.example"
    assert home.run("status", *PROXY) == 0
    assert home.out == f"{home.file}: in sync\n"
    assert home.run("remove") == 0
    assert home.out == f"{home.file}: proxies.default removed\n"
    assert os.listdir(home.path) == []


def test_the_values_are_those_of_env(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    """With the same options the entry and ``vmproxy env`` agree in every value, for a loopback proxy too."""
    for words in (PROXY, ("--proxy", "http://127.0.0.1:8123"), ("--gateway", "10.0.2.2", "--names", "db,cache")):
        assert home.run("apply", *words) == 0
        assert run(["env", *words, "--json"]) == 0
        env = json.loads(capsys.readouterr().out)
        assert home.entry() == {
            key: env[name]
            for name, key in (("http_proxy", "httpProxy"), ("https_proxy", "httpsProxy"), ("no_proxy", "noProxy"))
        }


def test_an_index_for_pip_is_only_its_host(home: Home) -> None:
    """The docker client takes no other variables: the index is reached without the proxy, and the rest is a warning."""
    assert home.run("apply", *PROXY, "--pip-index", "http://me:s3cr3t@pypi.lan/simple/") == 0
    assert "no place for pip's variables" in home.err
    assert home.entry()["noProxy"].endswith(",pypi.lan")
    assert "s3cr3t" not in home.file.read_text() + home.out + home.err


def test_with_a_vm_the_values_are_the_vms(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    """--vm: the VM is asked once, its bridge address is written; remove asks no VM, though it is named and gone."""
    machine = VM(monkeypatch, {"http_proxy": "http://172.17.0.1:8123", "https_proxy": "http://172.17.0.1:8123"})
    assert home.run("apply", "--vm", "dev", "--daemon", DAEMON) == 0
    assert machine.asked == ["dev"]
    assert home.entry(DAEMON) == {"httpProxy": "http://172.17.0.1:8123", "httpsProxy": "http://172.17.0.1:8123"}
    gone = VM(monkeypatch, Unreachable("no answer"))
    assert home.run("status", "--vm", "dev", "--daemon", DAEMON) == 4
    assert home.run("remove", "--vm", "dev", "--daemon", DAEMON) == 0
    assert len(gone.asked) == 1
    assert not home.file.exists()
    assert home.run("remove", "--vm", "dev") == 0
    assert len(gone.asked) == 1


def test_what_nobody_says_is_what_was_applied(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without options status is in sync with what apply wrote and apply changes nothing; an option changes its own
    part; another proxy in the host's environment is only said. Where the entry is not as we write it, the usual order
    counts."""
    words = ("--proxy", "http://user:s3cr3t@proxy.example:3128", "--https-proxy", "http://tls.example:3129")
    monkeypatch.setenv("ftp_proxy", "http://ftp.example:21")
    assert home.run("apply", *words, "--no-proxy", "a.example") == 0
    first = home.entry()
    assert home.run("status") == 0
    assert home.run("apply") == 0
    assert "nothing to do" in home.out
    monkeypatch.setenv("http_proxy", "http://host.example:8080")
    assert home.run("status") == 0
    assert (
        "http://***@proxy.example:3128, is kept; this host's own http_proxy says http://host.example:8080" in home.err
    )
    monkeypatch.setenv("http_proxy", "http://proxy.example:3128")
    assert home.run("status") == 0
    assert home.err == ""
    assert home.run("apply", "--no-proxy", "b.example") == 0
    assert home.entry()["noProxy"] == first["noProxy"].replace("a.example", "b.example")
    assert {**home.entry(), "noProxy": ""} == {**first, "noProxy": ""}
    assert home.run("apply", "--names", "db") == 0
    assert set(home.entry()["noProxy"].split(",")) == {"db", *first["noProxy"].replace("a.ex", "b.ex").split(",")}
    assert home.run("apply", "--proxy", "http://new.example:1") == 0
    assert home.entry()["httpsProxy"] == "http://new.example:1"
    home.write(home.file.read_bytes().replace(b"\\/", b"/"))
    assert home.run("status") == 1
    assert home.run("apply") == 6
    home.write(b'{"proxies": {"default": {"httpProxy": "no\\/url"}}}')
    assert home.run("apply", "--no-proxy", "c.example") == 0
    assert home.entry()["httpProxy"] == "http://proxy.example:3128"


def test_other_credentials_are_drift_that_can_be_seen(home: Home) -> None:
    """Two URLs that differ in the password alone: status and the diff say so, and show neither."""
    assert home.run("apply", *SECRET) == 0
    other = ("--proxy", "http://user:0th3r@proxy.example:3128")
    assert home.run("status", *other) == 1
    assert '"http://***@proxy.example:3128" with other credentials' in home.out
    assert home.run("apply", *other, "--dry-run", "--exit-code") == 3
    line = '  "httpProxy": "http://***@proxy.example:3128"\n'
    assert f"-{line}" in home.out
    assert f"+{line}" in home.out


def test_an_unchanged_file_is_not_written(home: Home) -> None:
    """apply twice, remove of nothing, status, dry-runs and refusals: not even a time of the file changes."""
    home.write(LOGIN)
    assert home.run("remove") == 0
    assert "nothing to do" in home.out
    assert home.run("apply", *PROXY) == 0
    before = home.state()
    assert home.run("apply", *PROXY) == 0
    assert "in sync, nothing to do" in home.out
    assert home.run("apply", "--proxy", "http://other.example:1", "--dry-run") == 0
    assert home.run("remove", "--dry-run") == 0
    assert home.run("status", "--proxy", "http://other.example:1") == 1
    assert home.run("remove", "--daemon", DAEMON) == 0
    assert home.state() == before
    assert home.run("remove") == 0
    assert home.file.read_bytes() == LOGIN


def test_dry_run_shows_the_entry_and_nothing_else(home: Home) -> None:
    """T17: a unified diff of our entry, without password and without anybody's auth; with --exit-code 3, without 0;
    nothing is made, not even the directory."""
    assert home.run("apply", *SECRET, "--dry-run", "--exit-code") == 3
    assert home.out.splitlines()[:5] == [
        "--- /dev/null",
        f"+++ {home.file}",
        "new mode 0600",
        "@@ proxies.default @@",
        '+  "httpProxy": "http://***@proxy.example:3128"',
    ]
    assert home.out.endswith("would change\n")
    assert os.listdir(home.path) == []
    home.write(LOGIN)
    assert home.run("apply", *SECRET, "--dry-run") == 0
    shown = home.out
    assert home.run("apply", *SECRET, "-v") == 0
    shown += home.out
    assert home.run("remove", "--dry-run", "-v") == 0
    shown += home.out
    assert '-  "httpProxy": "http://***@proxy.example:3128"' in shown
    assert home.run("status", *PROXY, "-v", "--debug") == 1
    shown += home.out + home.err + json.dumps(home.json("remove"))
    assert "s3cr3t" not in shown
    assert "dXNl" not in shown
    assert home.run("apply", "--exit-code") == 2


def test_json_is_the_schemas_result(home: Home) -> None:
    """Every subcommand: ok, code, exit, changed, and one element of vms, whose vm is the file; errors too."""
    drift = home.json("status", *PROXY)
    assert (drift["ok"], drift["code"], drift["exit"], drift["changed"]) == (False, "E_DRIFT", 1, False)
    assert drift["vms"][0]["vm"] == str(home.file)
    assert drift["vms"][0]["findings"][0]["subject"] == "proxies.default"
    would = home.json("apply", *PROXY, "--dry-run", "--exit-code")
    assert (would["ok"], would["code"], would["exit"], would["changed"]) == (True, "E_DECISION", 3, False)
    assert "+++ " in would["vms"][0]["diff"]
    done = home.json("apply", *PROXY)
    assert (done["ok"], done["exit"], done["changed"]) == (True, 0, True)
    assert home.json("apply", *PROXY)["changed"] is False
    assert home.json("status", *PROXY)["ok"] is True
    assert home.json("remove")["changed"] is True
    home.write(b"{")
    assert home.json("apply", *PROXY)["code"] == "E_FILE"


@pytest.mark.parametrize("which", ["apply", "status", "remove"])
def test_f71_what_is_no_json_is_exit_6_with_its_place(which: str, home: Home) -> None:
    """One line with file, line and column; the file is untouched, dry-run or not."""
    before = home.write(b'{\n\t"auths": {},\n}')
    assert home.run(which, *PROXY) == 6
    assert home.err.splitlines()[0].startswith(
        "vmproxy: error: this is not JSON: a name in double quotes is expected ("
    )
    assert f"({home.file}:3:1)" in home.err
    if which != "status":
        assert home.run(which, *PROXY, "--dry-run") == 6
        assert home.run(which, *PROXY, "--force") == 6
    assert home.state() == before


def test_another_value_is_exit_6_and_force_says_what_is_lost(home: Home) -> None:
    """Without --force nothing is written and the hint names it; with it there is a warning."""
    before = home.write(b'{"proxies": {"default": {"httpProxy": "http://me:s3cr3t@mine.example:1"}}}')
    assert home.run("apply", *PROXY) == 6
    assert f"proxies.default has another value ({home.file})" in home.err
    assert "--force" in home.err
    assert home.run("remove", *PROXY) == 6
    assert home.state() == before
    assert home.run("status", *PROXY) == 1
    assert "s3cr3t" not in home.out + home.err
    assert home.run("apply", *PROXY, "--force") == 0
    assert "cannot be given back" in home.err
    assert home.entry()["httpProxy"] == "http://proxy.example:3128"
    assert home.run("remove") == 0
    assert json.loads(home.file.read_bytes()) == {}


def test_f70_a_login_at_the_same_moment_is_kept(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another program writes between our read and our rename: exit 0 and both are there; all the time: exit 8, its
    bytes stay and nothing of ours."""
    home.write(b"{}")
    real = hostfiles._written
    count: list[int] = []

    def written(*words: Any) -> str:
        name = real(*words)
        count.append(1)
        if len(count) <= limit:
            home.file.write_bytes(b'{"auths": {"r%d": {}}}' % len(count))
        return name

    monkeypatch.setattr(hostfiles, "_written", written)
    monkeypatch.setattr(hostfiles, "_PAUSE_SECONDS", 0.0)
    limit = 2
    assert home.run("apply", *PROXY) == 0
    assert json.loads(home.file.read_bytes())["auths"] == {"r2": {}}
    assert home.entry()["httpProxy"] == "http://proxy.example:3128"
    assert len(count) == 3
    count.clear()
    home.write(b"{}")
    limit = 1000
    assert home.run("apply", *PROXY) == 8
    assert "another program writes it all the time" in home.err
    assert json.loads(home.file.read_bytes()) == {"auths": {f"r{len(count)}": {}}}
    assert os.listdir(home.file.parent) == ["config.json"]


def test_credentials_close_a_file_that_others_could_read(home: Home) -> None:
    """0644 becomes 0600, with a warning; without credentials the mode stays."""
    home.write(LOGIN)
    home.file.chmod(0o644)
    assert home.run("apply", *PROXY) == 0
    assert stat.S_IMODE(home.file.stat().st_mode) == 0o644
    assert home.run("apply", *SECRET, "--dry-run") == 0
    assert "old mode 0644, new mode 0600" in home.out
    assert home.run("apply", *SECRET) == 0
    assert "its mode is 0600, and stays so" in home.err
    assert stat.S_IMODE(home.file.stat().st_mode) == 0o600
    assert home.entry()["httpProxy"] == "http://user:s3cr3t@proxy.example:3128"


def test_docker_config_says_where(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    """DOCKER_CONFIG comes before HOME; a directory that was there stays; without both it is one clean error."""
    elsewhere = home.path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.setenv("DOCKER_CONFIG", str(elsewhere))
    assert home.run("apply", *PROXY) == 0
    assert os.listdir(elsewhere) == ["config.json"]
    assert home.run("remove") == 0
    assert os.listdir(elsewhere) == []
    monkeypatch.delenv("DOCKER_CONFIG")
    monkeypatch.delenv("HOME")
    for which in ("apply", "status", "remove"):
        assert home.run(which, *PROXY) == 6
        assert home.err.splitlines()[0] == "vmproxy: error: there is no home directory to look for config.json in"
        assert "DOCKER_CONFIG" in home.err


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("apply", "--daemon", "ssh://user@host"), "docker.example.com"),
        (("status", "--daemon", "10.0.0.1"), "DOCKER_HOST"),
        (("remove", "--daemon", "tcp://10.0.0.1"), "with the port"),
        (("apply", "--vm", "a", "--vm", "b"), "one VM"),
        (("apply", "--proxy", "ftp://x"), "--proxy"),
        (("applied",), "applied"),
        (("apply", "stray"), "stray"),
        (("apply", "-q", "-v"), "exclude"),
    ],
)
def test_wrong_usage_is_exit_2(words: tuple[str, ...], says: str, home: Home) -> None:
    """One error line, one hint, nothing written."""
    assert home.run(*words) == 2
    assert says in home.err
    assert home.err.startswith("vmproxy: error: ")
    assert len(home.err.splitlines()) <= 2
    assert os.listdir(home.path) == []


def test_quiet_says_nothing_but_a_failure(home: Home) -> None:
    """-q before and after the subcommand: no word on success, one line on drift."""
    assert home.run("-q", "apply", *PROXY) == 0
    assert home.out + home.err == ""
    assert home.run("status", "-q", "--proxy", "http://other.example:1") == 1
    assert home.out == ""
    assert len(home.err.splitlines()) == 1


@pytest.mark.parametrize("which", ["apply", "status", "remove"])
def test_every_subcommand_has_help_with_examples(which: str, home: Home) -> None:
    """--help is exit 0, names every option of its own, and shows how it is used."""
    assert home.run(which, "--help") == 0
    assert f"Usage: vmproxy docker-config {which}" in home.out
    assert "Examples:" in home.out
    for option in ("--proxy", "--no-proxy", "--vm", "--daemon"):
        assert option in home.out
    assert ("--dry-run" in home.out) == (which != "status")
