"""``vmproxy run``: the environment of the command, and that everything else is its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from vmproxy import hostproc
from vmproxy.cli.run import environment
from vmproxy.errors import UsageError

TOP = Path(__file__).resolve().parents[2]
PROXY = ("--proxy", "http://proxy.corp:3128")
TELL = "import json, os, sys; print(json.dumps([{**os.environ}, sys.argv[1:]]))"


def command(*words: str, more: Mapping[str, str] | None = None, **options: object) -> subprocess.CompletedProcess[str]:
    """A process ``vmproxy run``, from whose environment proxies are gone."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    return subprocess.run(
        [sys.executable, "-m", "vmproxy", "run", *PROXY, *words],
        env={**kept, "PYTHONPATH": str(TOP), "XDG_CONFIG_HOME": "/nonexistent", **(more or {})},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        **options,  # type: ignore[call-overload]
    )


def test_the_command_has_the_variables_and_its_own_words() -> None:
    """Both cases of every variable, named containers in no_proxy, in place of the host's own; words that look like ours
    are the command's, and so is everything else in its environment."""
    own = {
        "http_proxy": "http://127.0.0.1:1",
        "ALL_PROXY": "socks5://127.0.0.1:2",
        "KEPT": "yes",
        "PATH": os.environ["PATH"],
    }
    done = command("--names", "db", "--", sys.executable, "-c", TELL, "--names", "--json", "--", "-q", more=own)
    assert done.returncode == 0, done.stderr
    found, words = json.loads(done.stdout)
    assert words == ["--names", "--json", "--", "-q"]
    assert found["KEPT"] == "yes"
    for name in ("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy"):
        assert found[name] == "http://proxy.corp:3128"
    assert found["no_proxy"] == found["NO_PROXY"]
    assert "db" in found["no_proxy"].split(",")
    assert "127.0.0.1:2" not in json.dumps(found)


def test_without_dashes_options_end_at_the_command() -> None:
    """``vmproxy run COMMAND -x`` needs no ``--``: what stands behind the command is the command's."""
    done = command(sys.executable, "-c", TELL, "--gateway", "x")
    assert json.loads(done.stdout)[1] == ["--gateway", "x"]


def test_its_exit_code_and_signals_are_its_own() -> None:
    """The command is in our place: its exit code, its end by a signal, a closed pipe, its process number."""
    assert command("--", "sh", "-c", "exit 7").returncode == 7
    assert command("--", "sh", "-c", "kill -TERM $$").returncode == -signal.SIGTERM
    assert command("--", "sh", "-c", "kill -PIPE $$").returncode == -signal.SIGPIPE
    with subprocess.Popen(
        [sys.executable, "-m", "vmproxy", "run", *PROXY, "--", "sh", "-c", "echo $$"],
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(TOP)},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as child:
        assert int(child.communicate(timeout=60)[0]) == child.pid


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--", "no-such-command-here"), "there is no such command (no-such-command-here)"),
        (("--", "/etc/passwd"), "cannot be started: Permission denied (/etc/passwd)"),
        (("--",), "COMMAND"),
        (("--vm", "a", "--vm", "b", "--", "true"), "one VM"),
    ],
)
def test_what_cannot_be_started_is_exit_2(words: tuple[str, ...], says: str) -> None:
    """One error line and one hint, nothing on stdout."""
    done = command(*words)
    assert (done.returncode, done.stdout) == (2, "")
    error, hint = done.stderr.splitlines()
    assert says in error
    assert hint.startswith("hint: ")


def test_no_secret_is_in_a_command_line() -> None:
    """A proxy's password is in the environment of the command, and in no process's arguments."""
    look = "import os; print(open('/proc/self/cmdline').read()); print(os.environ['http_proxy'])"
    done = command("--", sys.executable, "-c", look, more={"VMPROXY_PROXY": "http://u:s3cret@proxy.corp:1"})
    assert "s3cret" not in done.stdout + done.stderr  # --proxy came first
    words = [sys.executable, "-m", "vmproxy", "run", "--", sys.executable, "-c", look]
    secret = {"VMPROXY_PROXY": "http://u:s3cret@proxy.corp:1", "PYTHONPATH": str(TOP), "PATH": os.environ["PATH"]}
    told = subprocess.run(words, env=secret, capture_output=True, text=True, check=True, timeout=60).stdout
    assert told.splitlines()[-1] == "http://u:s3cret@proxy.corp:1"
    assert "s3cret" not in told.splitlines()[0]


@pytest.mark.parametrize(
    ("address", "host"),
    [
        ("tcp://192.168.99.100:2376", "192.168.99.100"),
        ("tcp://[fd00::2]:2376", "fd00::2"),
        ("unix:///var/run/docker.sock", ""),
        ("ssh://docker@vm", ""),
        ("tcp://[bad", ""),
        ("", ""),
    ],
)
def test_the_docker_daemon_is_reached_directly(address: str, host: str) -> None:
    """The Docker client obeys the variables as well: the daemon's address in DOCKER_HOST goes into no_proxy."""
    given = {"http_proxy": "http://p:1", "HTTP_PROXY": "http://p:1", "no_proxy": "a", "NO_PROXY": "a"}
    found = environment(given, {"DOCKER_HOST": address})
    assert found["no_proxy"] == found["NO_PROXY"] == ("a," + host if host else "a")
    assert environment({}, {"DOCKER_HOST": address}).get("no_proxy", "") == host


def test_every_variable_of_the_family_is_ours_or_gone() -> None:
    """In any spelling of its case."""
    own = dict.fromkeys(("Http_Proxy", "FTP_PROXY", "all_proxy", "No_Proxy", "https_proxy", "OTHER"), "x")
    assert environment({"http_proxy": "y"}, own) == {"OTHER": "x", "http_proxy": "y"}


def test_where_there_is_no_exec_we_attend() -> None:
    """As on Windows: the command's exit code, 128 + n for a signal; found by the PATH that it gets."""
    environ = {"PATH": os.environ["PATH"], "WANTED": "5"}
    assert hostproc.attend(("sh", "-c", "exit $WANTED"), environ) == 5
    assert hostproc.attend(("sh", "-c", "kill -TERM $$"), environ) == 128 + signal.SIGTERM
    with pytest.raises(FileNotFoundError):
        hostproc.attend(("no-such-command-here",), environ)


def test_an_impossible_name_is_no_bug() -> None:
    """A word that no program can have, or one too long for the system, is refused; we go on as we were."""
    before = signal.getsignal(signal.SIGPIPE)
    for words in (("a\0b",), ("true", "x" * 3_000_000)):
        with pytest.raises(UsageError):
            hostproc.become(words, {"PATH": os.environ["PATH"]})
    assert signal.getsignal(signal.SIGPIPE) is before
