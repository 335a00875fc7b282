"""The caching proxy as a systemd user unit and as a launchd agent: the texts, read back and run; install and undo."""

from __future__ import annotations

import os
import plistlib
import shlex
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.unit.cacheworld import free_port
from tests.unit.test_cache_start import vmproxy
from vmproxy import cacherun, cacheservice
from vmproxy.cache import units
from vmproxy.errors import ForeignFile, Refused, RolledBack, UsageError
from vmproxy.guests import _units
from vmproxy.quoting import systemd_command

HARD = ("a b", "100%h", "$HOME", "${PATH}", '"', "\\", "\\x41", "'", ";", "@x", "ä", "-", "%%", "$$", "\\$")
ROOT = Path(__file__).resolve().parents[2]


def command_of(unit: bytes) -> tuple[str, ...]:
    """The words of ExecStart, undone as systemd undoes them: words, then ``%%`` and ``$$``."""
    (line,) = [value for key, value in _units.settings(unit, "Service") if key == "ExecStart"]
    words = _units.words(line)
    assert words is not None
    return (words[0].replace("%%", "%"), *(word.replace("%%", "%").replace("$$", "$") for word in words[1:]))


def test_the_units_words_come_back() -> None:
    """Whatever stands in an option, the unit's own grammar gives it back; one line each."""
    argv = ("/opt/a b/100%/python", *HARD)
    text = units.unit(argv, environment={"PYTHONPATH": '/a b/%n/"x"'})
    assert command_of(text) == argv
    assert ("PYTHONPATH", '/a b/%n/"x"') in _units.assigned(dict(_units.settings(text, "Service"))["Environment"])
    assert units.ours(text)


@pytest.mark.parametrize("argv", [("python", "x"), ("/a$b", "x"), ("/a", "x\ny"), ("/a", "x\0"), ()])
def test_a_word_that_no_unit_can_carry_is_refused(argv: tuple[str, ...]) -> None:
    """A relative program, one with ``$``, a line break, NUL: UsageError, for both kinds of file."""
    with pytest.raises(UsageError):
        systemd_command(argv)
    if argv and "$" not in argv[0]:
        with pytest.raises(UsageError):
            units.job(argv, environment={}, log="/tmp/log")


def test_the_jobs_words_come_back() -> None:
    """plistlib reads the agent; its keys are launchd.plist(5)'s, its words exactly ours."""
    argv = ("/opt/a b/<&>/python", *HARD)
    text = units.job(argv, environment={"PYTHONPATH": "/a&b"}, log="/Users/x/Library/Logs/a.log")
    found = plistlib.loads(text)
    assert found["ProgramArguments"] == list(argv)
    assert found["EnvironmentVariables"] == {"PYTHONPATH": "/a&b"}
    assert found["KeepAlive"] == {"SuccessfulExit": False} and found["RunAtLoad"] is True
    assert found["Label"] == "vmproxy.cache" and found["Umask"] == 0o077
    assert units.ours(text) and not units.ours(plistlib.dumps({"Label": "other"})) and not units.ours(b"[Unit]\n")


def test_the_printed_command_runs(tmp_path: Path) -> None:
    """The ExecStart line that ``cache install --print`` gives, read back and run as it is, is the proxy's command."""
    environ = {**os.environ, "PYTHONPATH": str(ROOT), "HOME": str(tmp_path)}
    for kind in ("systemd", "launchd"):
        words = ["cache", "install", "--service", kind, "--print", "--dir", str(tmp_path / "a b%h$HOME"), "--port", "1"]
        done = subprocess.run(
            [sys.executable, "-m", "vmproxy", *words], capture_output=True, check=True, env=environ, timeout=60
        )
        read = command_of if kind == "systemd" else lambda text: tuple(plistlib.loads(text)["ProgramArguments"])
        argv = read(done.stdout)
        assert f"--dir={tmp_path}/a b%h$HOME" in argv and "--port=1" in argv
        helped = subprocess.run([*argv, "--help"], capture_output=True, text=True, check=True, env=environ, timeout=60)
        assert "cache serve" in helped.stdout
    assert os.listdir(tmp_path) == []


CONTROL = """#!/bin/sh
printf '%s\\n' "$0 $*" >>"$LOG"
case "$*" in *"$FAIL"*) echo "it fails" >&2; exit 3;; esac
"""


class Manager:
    """A stand-in for systemctl or launchctl that writes down how it was called, and fails where it is told to."""

    def __init__(self, directory: Path, name: str) -> None:
        self.directory, self.log = directory, directory / "calls"
        bin_ = directory / "bin"
        bin_.mkdir(exist_ok=True)
        (bin_ / name).write_text(CONTROL, encoding="utf-8")
        (bin_ / name).chmod(0o755)
        self.path = f"{bin_}:{os.environ['PATH']}"

    def environ(self, fail: str = "nothing") -> Mapping[str, str]:
        """For a run in which the call with these words fails."""
        return {"PATH": self.path, "LOG": str(self.log), "FAIL": fail, "XDG_CONFIG_HOME": str(self.directory / "c")}

    def calls(self) -> list[str]:
        """The calls since the last time."""
        lines = self.log.read_text(encoding="utf-8").splitlines() if self.log.exists() else []
        self.log.unlink(missing_ok=True)
        return [line.partition("/bin/")[2] for line in lines]


@pytest.fixture
def up(monkeypatch: pytest.MonkeyPatch) -> None:
    """The proxy is taken to answer."""
    monkeypatch.setattr(cacherun, "until_up", lambda *_args, **_more: {"pid": 1, "listen": "x"})


@pytest.mark.usefixtures("up")
@pytest.mark.parametrize("name", ["systemd", "launchd"])
def test_install_and_uninstall_leave_nothing(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file comes with its directories and goes with them; the manager is told in order; twice changes nothing;
    other options change the file and start it again."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    program = "systemctl" if name == "systemd" else "launchctl"
    manager = Manager(tmp_path, program)
    monkeypatch.setenv("PATH", manager.path)
    environ = manager.environ("")  # FAIL empty: everything fails
    kind = cacheservice.service(name, environ=environ)
    directory = str(tmp_path / "cache dir")
    with pytest.raises(Refused, match="does not answer"):
        cacheservice.install(kind, directory, [f"--dir={directory}"], environ=environ)
    assert not os.path.exists(kind.path)
    manager.calls()
    environ = manager.environ()
    assert cacheservice.install(kind, directory, [f"--dir={directory}"], environ=environ)
    first = manager.calls()
    assert cacheservice.installed(kind, directory) and not cacheservice.installed(kind, directory + "x")
    assert os.stat(kind.path).st_mode & 0o777 == 0o600
    if name == "systemd":
        assert first == [
            *("systemctl --user show-environment", "systemctl --user daemon-reload"),
            "systemctl --user enable --now vmproxy-cache.service",
        ]
    else:
        assert first[1:] == [f"launchctl bootstrap gui/{os.getuid()} {kind.path}"]
    assert not cacheservice.install(kind, directory, [f"--dir={directory}"], environ=environ)
    manager.calls()
    assert cacheservice.install(kind, directory, [f"--dir={directory}", "--size=1G"], environ=environ)
    assert ("restart" if name == "systemd" else "bootout") in " ".join(manager.calls())
    other = directory + "x"
    assert cacheservice.install(kind, other, [f"--dir={other}"], environ=environ)
    assert ("restart" if name == "systemd" else "bootout") in " ".join(manager.calls())
    assert cacheservice.installed(kind, other)
    assert cacheservice.uninstall(kind, environ=environ)
    assert ("disable --now" if name == "systemd" else "bootout") in " ".join(manager.calls())
    assert not (tmp_path / "c").exists() and os.listdir(tmp_path / "home") == []
    assert not cacheservice.uninstall(kind, environ=environ)


@pytest.mark.parametrize("name", ["systemd", "launchd"])
def test_a_service_that_does_not_come_up_is_put_back(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The manager fails, or the proxy does not answer: exit 7, the file and its directories are gone again."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    manager = Manager(tmp_path, "systemctl" if name == "systemd" else "launchctl")
    monkeypatch.setenv("PATH", manager.path)
    for fail in ("enable" if name == "systemd" else "bootstrap", "nothing"):
        environ = manager.environ(fail)
        kind = cacheservice.service(name, environ=environ)
        monkeypatch.setattr(cacherun, "START_SECONDS", 0.2)
        with pytest.raises(RolledBack, match="everything was put back"):
            cacheservice.install(kind, str(tmp_path / "d"), ["--dir=x"], environ=environ)
        assert not (tmp_path / "c").exists() and os.listdir(tmp_path / "home") == []


def test_what_runs_there_is_named_with_its_options(tmp_path: Path) -> None:
    """A proxy in the background, with options that ``apply --cache`` or somebody chose: exit 6, it goes on, and the
    hint's two commands end in a service with the same ones, but for those that were said now."""
    manager = Manager(tmp_path, "systemctl")
    environ = dict(manager.environ())
    port, where = free_port(), str(tmp_path / "the cache")
    words = ("--dir", where, "--port", str(port), "--bind", "127.0.0.2", "--allow", "10.9.0.0/16", "--size", "2G")
    install = ("cache", "install", "--dir", where, "--service", "systemd", "--size", "3G")
    begun = vmproxy("cache", "start", *words)
    assert begun.returncode == 0, begun.stderr
    try:
        done = vmproxy(*install, **environ)
        error, hint = done.stderr.splitlines()
        assert done.returncode == 6 and not os.path.exists(tmp_path / "c"), done
        more = f"--bind=127.0.0.2 --port={port} --allow=10.9.0.0/16"
        assert error == f"vmproxy: error: a cache runs on that directory already, with {more} ({where})"
        first, _and, second = hint.removeprefix("hint: ").partition(" && ")
        assert shlex.split(first) == ["vmproxy", "cache", "stop", f"--dir={where}"]
        assert vmproxy("cache", "status", "--dir", where).stdout.startswith(f"running: 127.0.0.2:{port}")
        ended = vmproxy(*shlex.split(first)[1:])
    finally:
        vmproxy("cache", "stop", "--dir", where)
    assert ended.stdout == "ended\n"
    printed = vmproxy(*shlex.split(second)[1:], "--service", "systemd", "--print").stdout
    argv = command_of(printed.encode())
    assert sorted(argv[argv.index("serve") + 1 :]) == sorted([f"--dir={where}", "--size=3G", *more.split()])


@pytest.mark.parametrize("said", ["--upstream=http://h:1", "--upstream-file=/f", "--upstream-keyring"])
@pytest.mark.parametrize("told", ["--upstream=http://g:2", "--upstream-file=FILE"])
def test_of_two_upstreams_the_one_said_now_is_named(
    tmp_path: Path, said: str, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However each is said; of a proxy of an older version, which does not tell its options, none is named."""
    manager = Manager(tmp_path, "systemctl")
    kind = cacheservice.service("systemd", environ=manager.environ())
    for more in ({"options": [told, "--pip"]}, {}):
        monkeypatch.setattr(cacherun, "running", lambda _directory, more=more: {"running": True, **more})
        with pytest.raises(Refused, match="runs on that directory already") as caught:
            cacheservice.install(kind, "/d", ["--dir=/d", said], environ=manager.environ())
        pip = " --pip" if more else ""
        assert caught.value.hint == f"vmproxy cache stop --dir=/d && vmproxy cache install --dir=/d {said}{pip}"


def test_secrets_that_others_can_read_are_refused(tmp_path: Path) -> None:
    """The unit's file of variables, as --upstream-file: exit 2 before anything is done, with what mends it."""
    manager = Manager(tmp_path, "systemctl")
    kind = cacheservice.service("systemd", environ=manager.environ())
    secrets = tmp_path / "c" / units.SECRETS
    secrets.parent.mkdir(parents=True)
    secrets.write_text("VMPROXY_UPSTREAM=http://me:geheim@h\n", encoding="utf-8")
    secrets.chmod(0o644)
    with pytest.raises(UsageError, match="others than you") as caught:
        cacheservice.install(kind, str(tmp_path / "d"), ["--dir=x"], environ=manager.environ())
    assert f"chmod 600 {secrets}" in caught.value.hint and "geheim" not in str(caught.value)
    assert manager.calls() == [] and not os.path.exists(kind.path)


def test_somebody_elses_file_stays(tmp_path: Path) -> None:
    """A unit of that name that vmproxy did not write is neither replaced nor removed."""
    environ = {"XDG_CONFIG_HOME": str(tmp_path)}
    kind = cacheservice.service("systemd", environ=environ)
    Path(kind.path).parent.mkdir(parents=True)
    Path(kind.path).write_bytes(b"[Service]\nExecStart=/bin/true\n")
    for attempt in (
        lambda: cacheservice.install(kind, "/x", [], environ=environ),
        lambda: cacheservice.uninstall(kind, environ=environ),
    ):
        with pytest.raises(ForeignFile):
            attempt()
    assert Path(kind.path).read_bytes() == b"[Service]\nExecStart=/bin/true\n"


def test_without_a_manager_it_is_said_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No systemctl: exit 2, and where to go from there; a platform without either, too."""
    monkeypatch.setenv("PATH", str(tmp_path))
    environ = {"XDG_CONFIG_HOME": str(tmp_path), "PATH": str(tmp_path)}
    kind = cacheservice.service("systemd", environ=environ)
    with pytest.raises(UsageError) as found:
        cacheservice.install(kind, str(tmp_path / "d"), [], environ=environ)
    assert "cache start" in found.value.hint
    with pytest.raises(UsageError):
        cacheservice.service(None, environ=environ, platform="win32")
