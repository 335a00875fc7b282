"""``vmproxy env``: formats, the host's own variables, what is said beside them, refusals."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

import vmproxy
from vmproxy.cli import main
from vmproxy.containers import FORMATS, render
from vmproxy.model import Report, Settings
from vmproxy.options import OPTIONS

SECRET = "pass-word"
AUTH = f"http://me:{SECRET}@127.0.0.1:3128"
PLAIN = ["env", "--proxy", "http://proxy.corp:3128", "--no-proxy", "localhost"]
DOOR = "http://172.17.0.1:8123"


def run(argv: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    """Exit code, stdout, stderr."""
    code = 0
    try:
        main(argv)
    except SystemExit as end:
        code = int(end.code or 0)
    shown = capsys.readouterr()
    return code, shown.out, shown.err


@pytest.fixture
def a_vm(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """The story of a VM replaced: its variables and its warnings are handed in."""

    def tell(variables: dict[str, str], *warnings: str) -> None:
        def env(target: str, settings: Settings, **_words: object) -> Report:
            return Report(target=target, variables=variables, warnings=warnings)

        module = SimpleNamespace(env=env)
        monkeypatch.setitem(sys.modules, "vmproxy.converge", module)
        monkeypatch.setattr(vmproxy, "converge", module, raising=False)

    return tell


def test_the_option_names_every_format() -> None:
    """``--format`` and the renderers agree."""
    assert OPTIONS["format"].choices == FORMATS


@pytest.mark.parametrize("fmt", FORMATS)
def test_every_format_with_and_without_a_vm(
    fmt: str, a_vm: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    """Exactly the text of the format on stdout, nothing on stderr, exit 0."""
    code, out, err = run([*PLAIN, "--format", "json"], capsys)
    wanted = json.loads(out)
    assert run([*PLAIN, "--format", fmt], capsys) == (0, render(wanted, fmt), "")
    a_vm({"HTTP_PROXY": DOOR, "http_proxy": DOOR})
    told = render({"HTTP_PROXY": DOOR, "http_proxy": DOOR}, fmt)
    assert run(["env", "--vm", "a", "--format", fmt], capsys) == (0, told, "")
    assert (code, err) == (0, "")


@pytest.mark.parametrize("fmt", ["docker-run", "docker-build"])
def test_p6_credentials_go_by_name_and_that_is_said(fmt: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The lists have no password; stderr says which variables Docker has to find in its environment."""
    code, out, err = run(["env", "--proxy", AUTH, "--gateway", "10.0.2.2", "--format", fmt], capsys)
    assert code == 0
    assert {line.split(" ")[1] for line in out.splitlines() if "=" not in line} == {
        *("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy"),
    }
    assert "warning: HTTP_PROXY, http_proxy, HTTPS_PROXY, https_proxy: by name, because the values hold cred" in err
    assert SECRET not in out + err


@pytest.mark.parametrize("fmt", ["sh", "fish", "powershell", "dotenv", "json", "compose", "systemd"])
def test_p6_asked_for_values_stderr_has_none(fmt: str, capsys: pytest.CaptureFixture[str]) -> None:
    """These formats print the password, as asked; stderr never does."""
    code, out, err = run(["env", "--proxy", AUTH, "--gateway", "10.0.2.2", "--format", fmt], capsys)
    assert (code, SECRET in out, SECRET in err) == (0, True, False)


@pytest.mark.parametrize(
    ("argv", "word"),
    [
        (["--format", "docker-run", "--proxy", "http://[fd00::2]:3128"], "docker run --env-file FILE"),
        (["--format", "docker-build", "--proxy", "http://p:1", "--no-proxy", "*"], "--build-arg NAME"),
        (["--format", "dockerfile", "--proxy", f"http://me:{SECRET}@p:1"], "--format docker-build"),
        (["--format", "yaml"], ""),
    ],
)
def test_a_refusal_is_exit_2_with_nothing_on_stdout(
    argv: list[str], word: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line, one hint, no half output, no secret."""
    code, out, err = run(["env", *argv], capsys)
    assert (code, out) == (2, "")
    assert err.splitlines()[-2].startswith("vmproxy: error: ")
    assert word in err.splitlines()[-1]
    assert SECRET not in err


@pytest.mark.parametrize("form", [["--json"], ["--format", "json"], ["--format", "sh"]])
def test_f_a_conflict_of_the_hosts_variables_is_said(
    form: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two cases that differ: the lower is used, stderr says so, stdout stays what it is; -q is quiet."""
    monkeypatch.setenv("http_proxy", "http://lower:1")
    monkeypatch.setenv("HTTP_PROXY", f"http://me:{SECRET}@upper:2")
    code, out, err = run(["env", *form], capsys)
    assert code == 0
    assert "http://lower:1" in out
    assert "upper" not in out
    assert err == ("vmproxy: warning: this host's environment: http_proxy and HTTP_PROXY differ; http_proxy is used\n")
    assert run(["env", *form, "-q"], capsys) == (0, out, "")
    assert "warning" not in run([*PLAIN, *form], capsys)[2]


@pytest.mark.parametrize("platform", ["linux", "darwin", "win32"])
def test_a_loopback_proxy_of_the_hosts_variables_is_rewritten_on_every_platform(
    platform: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each member, on Linux too, where the container has to be told the name; --gateway makes that needless."""
    monkeypatch.setattr(sys, "platform", platform)
    for name, value in {
        **{"http_proxy": "localhost:1", "HTTPS_PROXY": "http://[::1]:2", "ftp_proxy": "http://127.0.0.2:3"},
        **{"ALL_PROXY": "socks5h://u:p@127.0.0.1:4", "NO_PROXY": "corp"},
    }.items():
        monkeypatch.setenv(name, value)
    code, out, err = run(["env", "--format", "json"], capsys)
    found = json.loads(out)
    assert code == 0
    assert [found[name] for name in ("http_proxy", "https_proxy", "ftp_proxy", "all_proxy")] == [
        *(f"http://host.docker.internal:{port}" for port in (1, 2, 3)),
        "socks5h://u:p@host.docker.internal:4",
    ]
    assert all(found[name] == found[name.upper()] for name in found if name.islower())
    assert "corp" in found["no_proxy"].split(",")
    assert ("--add-host=host.docker.internal:host-gateway" in err) == (platform == "linux")
    code, out, err = run(["env", "--format", "json", "--gateway", "172.17.0.1"], capsys)
    assert json.loads(out)["all_proxy"] == "socks5h://u:p@172.17.0.1:4"
    assert err == ""


@pytest.mark.parametrize(
    ("environ", "wanted"),
    [
        ({"all_proxy": "socks5://p:1"}, {"all_proxy": "socks5://p:1"}),
        ({"ftp_proxy": "p:1"}, {"ftp_proxy": "http://p:1"}),
        (
            {"http_proxy": "http://p:1", "ftp_proxy": "http://q:2"},
            {"http_proxy": "http://p:1", "https_proxy": "http://p:1", "ftp_proxy": "http://q:2"},
        ),
    ],
)
def test_ftp_and_all_of_the_hosts_variables_are_kept(
    environ: dict[str, str], wanted: dict[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As they are; no http_proxy is made up beside them. --proxy leaves all of them out."""
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    found = json.loads(run(["env", "--json"], capsys)[1])
    assert {name: value for name, value in found.items() if name.islower() and name != "no_proxy"} == wanted
    assert not {"ftp_proxy", "all_proxy"} & set(json.loads(run([*PLAIN, "--json"], capsys)[1]))


def test_a_wrong_variable_of_the_hosts_is_exit_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Named, not shown."""
    monkeypatch.setenv("all_proxy", f"http://me:{SECRET}@h:x")
    code, out, err = run(["env"], capsys)
    assert (code, out) == (2, "")
    assert "all_proxy in the environment" in err
    assert SECRET not in err


def test_the_hosts_ftp_and_all_go_through_the_vms_door_or_are_left_out(
    a_vm: Callable[..., None], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With --vm: the proxy that has a door is found there; a loopback port without one is a warning."""
    a_vm({"HTTP_PROXY": DOOR, "http_proxy": DOOR}, "something of the VM's")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:8123")
    monkeypatch.setenv("all_proxy", "socks5://localhost:8123")
    monkeypatch.setenv("ftp_proxy", f"http://me:{SECRET}@localhost:2121")
    code, out, err = run(["env", "--vm", "a", "--json"], capsys)
    assert code == 0
    assert json.loads(out) == {
        **dict.fromkeys(("HTTP_PROXY", "http_proxy"), DOOR),
        **dict.fromkeys(("ALL_PROXY", "all_proxy"), "socks5://172.17.0.1:8123"),
    }
    assert err.splitlines() == [
        "vmproxy: warning: something of the VM's",
        "vmproxy: warning: this host's ftp_proxy is left out: the VM's containers have no way to its port",
    ]
    assert "all_proxy" not in json.loads(run(["env", "--vm", "a", "--proxy", "http://p:1", "--json"], capsys)[1])


@pytest.mark.parametrize("encoding", ["latin-1", "cp1252", "utf-16"])
def test_a_program_gets_the_exact_text_whatever_the_terminals_encoding_is(encoding: str) -> None:
    """Piped, the text is UTF-8: Docker refuses an env file of another encoding, and no character is replaced."""
    argv = ["env", "--proxy", "http://p:1", "--no-proxy", "b\u00fccher.example,\u2603.example", "--format", "dotenv"]
    done = subprocess.run(
        [sys.executable, "-m", "vmproxy", *argv],
        cwd=Path(__file__).resolve().parents[2],
        env={**os.environ, "PYTHONIOENCODING": encoding, "LC_ALL": "C.UTF-8"},
        capture_output=True,
        check=True,
        timeout=60,
    )
    assert b"\nno_proxy=b\xc3\xbccher.example,\xe2\x98\x83.example," in done.stdout


def test_the_two_ways_into_a_shell(tmp_path: Path) -> None:
    """``eval "$(vmproxy env)"`` exports the values; ``$(…)`` unquoted gives option and word by turns."""
    words = "env --proxy 'http://me:p%24%27x@10.0.2.2:3128' --https-proxy http://q:1 --no-proxy 'a.b, c.d'"
    program = f'"{sys.executable}" -m vmproxy {words}'
    script = f'set -- $({program} -q --format docker-run)\neval "$({program})"\nprintf "%s\\n" "$@"\nenv -0'
    done = subprocess.run(
        ["dash", "-ec", script],
        cwd=tmp_path,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(Path(__file__).resolve().parents[2]), "HOME": str(tmp_path)},
        capture_output=True,
        check=True,
        timeout=60,
    )
    *listed, rest = done.stdout.decode().split("\n")
    found = dict(item.split("=", 1) for item in rest.split("\0") if item)
    assert found["HTTP_PROXY"] == found["http_proxy"] == "http://me:p%24%27x@10.0.2.2:3128"
    assert set(listed[::2]) == {"-e"}
    assert listed[1::2][:4] == ["HTTP_PROXY", "http_proxy", "HTTPS_PROXY=http://q:1", "https_proxy=http://q:1"]
    assert listed[1::2][4:] == [f"{name}={found['no_proxy']}" for name in ("NO_PROXY", "no_proxy")]
    assert not done.stderr
