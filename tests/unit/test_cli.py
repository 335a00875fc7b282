"""The command line: options, errors as one line, exit codes, the loop over several VMs."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import signal
import stat
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import vmproxy
from tests.unit import schema
from vmproxy import errors
from vmproxy.cli import COMMANDS, common
from vmproxy.cli.edge import run
from vmproxy.model import Event, Finding, Report, Settings
from vmproxy.options import OPTIONS

Story = Callable[..., Report]


@dataclasses.dataclass
class Stories:
    """A stand-in for the story module: what it was asked, and what it answers or raises for each VM."""

    asked: list[tuple[str, str, Settings, dict[str, Any]]] = dataclasses.field(default_factory=list)
    answers: dict[str, Report | BaseException | Callable[[], Report]] = dataclasses.field(default_factory=dict)

    def story(self, name: str) -> Story:
        """The function of that name."""

        def tell(target: str, settings: Settings, **words: Any) -> Report:
            self.asked.append((name, target, settings, words))
            if progress := words.get("progress"):
                progress(Event(target=target, text="looking"))
            answer = self.answers.get(target, Report(target=target, message="nothing to do"))
            if isinstance(answer, BaseException):
                raise answer
            return answer if isinstance(answer, Report) else answer()

        return tell


@pytest.fixture
def stories(monkeypatch: pytest.MonkeyPatch) -> Stories:
    """The story module replaced."""
    made = Stories()
    names = ("apply", "remove", "status", "verify", "env", "detect_gateway")
    module = SimpleNamespace(**{name: made.story(name) for name in names})
    monkeypatch.setitem(sys.modules, "vmproxy.converge", module)
    monkeypatch.setattr(vmproxy, "converge", module, raising=False)
    return made


def lines(text: str) -> list[str]:
    """Its lines, checked for what must never be on a terminal (A3)."""
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", text)
    assert all(len(line) <= 200 for line in text.splitlines())
    return text.splitlines()


VM_COMMANDS = ("apply", "remove", "status", "verify")


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_with_examples(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """``--help`` of each command is exit 0 and shows how it is used."""
    assert run([name, "--help"]) == 0
    out = capsys.readouterr().out
    assert f"Usage: vmproxy {name}" in out
    assert "Examples:" in out


def test_help_has_every_kind_of_target(capsys: pytest.CaptureFixture[str]) -> None:
    """What ``--vm`` takes besides names stands in ``vmproxy --help``."""
    assert run(["--help"]) == 0
    text = capsys.readouterr().out
    for kind in ("ssh://", "ssh:ALIAS", "console:[PATH]", "docker:[CONTEXT]", "rootfs:DIR", "initrd:FILE", "  local "):
        assert kind in text


@pytest.mark.parametrize("words", [["-h"], ["--help"], []])
def test_help_lists_every_command(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """The top-level help names every command; without a word it is exit 2, as for any missing argument."""
    assert run(words) == (0 if words else 2)
    text = "".join(capsys.readouterr())
    assert all(f"\n  {name}" in text for name in COMMANDS)


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    """``--version`` is the package's."""
    assert run(["--version"]) == 0
    assert capsys.readouterr().out == f"vmproxy {vmproxy.__version__}\n"


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["aply"], "did you mean apply?"),
        (["apply"], "no VM is named"),
        (["apply", "--vm", "a", "--lisen-port", "1"], "--listen-port"),
        (["apply", "--vm", "a", "--listen-port", "x"], "--listen-port"),
        (["apply", "--vm", "a", "--exit-code"], "--dry-run"),
        (["apply", "--vm", "a", "stray"], "stray"),
        (["apply", "--vm"], "--vm"),
        (["--nosuch"], "--nosuch"),
        (["apply", "--vm", "a", "-q", "-v"], "exclude"),
        (["apply", "--vm", "a", "--proxy", "ftp://x"], "--proxy"),
        (["apply", "--vm", "a", "--config", "/nonexistent/vmproxy.toml"], "/nonexistent/vmproxy.toml"),
        (["env", "--vm", "a", "--vm", "b"], "one VM"),
        (["env", "--json", "--format", "sh"], "exclude"),
        (["completion", "tcsh"], "tcsh"),
        (["--color", "pink", "status", "--vm", "a"], "pink"),
    ],
)
def test_wrong_usage_is_exit_2_and_one_line(
    argv: list[str], says: str, stories: Stories, capsys: pytest.CaptureFixture[str]
) -> None:
    """A wrong word: exit 2, one error line, at most one hint line, and no VM is asked anything."""
    assert run(argv) == 2
    captured = capsys.readouterr()
    said = lines(captured.err)
    assert captured.out == "" or "--json" in argv
    assert said[0].startswith("vmproxy: error: ")
    assert len(said) == 1 or (len(said) == 2 and said[1].startswith("hint: "))
    assert says in captured.err
    assert stories.asked == []


@pytest.mark.parametrize("command", VM_COMMANDS)
@pytest.mark.parametrize("before", [True, False])
def test_global_options_stand_before_and_after_the_command(
    command: str, before: bool, stories: Stories, capsys: pytest.CaptureFixture[str]
) -> None:
    """``vmproxy --json apply`` and ``vmproxy apply --json`` are the same."""
    words = [command, "--vm", "a"]
    assert run(["--json", *words] if before else [*words, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["ok"] is True
    assert [(name, target) for name, target, *_ in stories.asked] == [(command, "a")]


def test_options_reach_the_story(stories: Stories) -> None:
    """What is said on the command line is in the Settings and words that the story gets."""
    argv = "apply --vm a,b --vm c --proxy http://127.0.0.1:3128 --dry-run --no-verify --restart never --wait 60 -i k"
    assert run(argv.split()) == 0
    assert [target for _, target, *_ in stories.asked] == ["a", "b", "c"]
    _, _, settings, words = stories.asked[0]
    assert settings.proxy is not None
    assert (settings.proxy.port, settings.verify, settings.restart, settings.wait_seconds) == (3128, False, "never", 60)
    assert settings.identities == ("k",)
    assert words["dry_run"] is True


def test_every_vm_is_tried_and_the_highest_code_counts(stories: Stories, capsys: pytest.CaptureFixture[str]) -> None:
    """A VM that fails does not keep the next one from its turn."""
    stories.answers = {
        "a": errors.Refused("no docker0 in the VM", where="a", hint="--bridge NAME"),
        "b": errors.LostContact("contact was lost", hint="run it again"),
    }
    assert run(["apply", "--vm", "a,b,c"]) == 9
    assert [target for _, target, *_ in stories.asked] == ["a", "b", "c"]
    captured = capsys.readouterr()
    assert captured.out == "c: nothing to do\n"
    assert lines(captured.err) == [
        "vmproxy: error: no docker0 in the VM (a)",
        "hint: --bridge NAME",
        "vmproxy: error: b: contact was lost",
        "hint: run it again",
        "1 of 3 VMs well; not well: a, b",
    ]


ERRORS = [
    (errors.UsageError, 2),
    (errors.DecisionNeeded, 3),
    (errors.Unreachable, 4),
    (errors.Untrusted, 4),
    (errors.NotPermitted, 5),
    (errors.Refused, 6),
    (errors.NoGateway, 6),
    (errors.RolledBack, 7),
    (errors.Busy, 8),
    (errors.LostContact, 9),
]


@pytest.mark.parametrize(("kind", "code"), ERRORS, ids=[kind.__name__ for kind, _ in ERRORS])
@pytest.mark.parametrize("as_json", [True, False])
def test_errors_become_one_line_and_their_exit_code(
    kind: type[errors.VmproxyError], code: int, as_json: bool, stories: Stories, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each error of the tree: its exit code, one line of at most 200 characters, and the same in the object."""
    stories.answers = {"a": kind("what went wrong \x1b[2J" + "x" * 300, where="place", hint="do this")}
    assert run(["apply", "--vm", "a", *(["--json"] if as_json else [])]) == code
    captured = capsys.readouterr()
    if as_json:
        value = json.loads(captured.out)
        assert schema.problems(value, "result") == []
        assert (value["exit"], value["code"], value["ok"], value["hint"]) == (code, kind.code, False, "do this")
        assert value["vms"][0]["rolled_back"] is (kind is errors.RolledBack)
    said = lines(captured.err)
    assert len(said) == 2
    assert said[0].startswith("vmproxy: error: a: what went wrong \\x1b[2J")
    assert said[1] == "hint: do this"


def test_quiet_is_nothing_or_one_line(stories: Stories, capsys: pytest.CaptureFixture[str]) -> None:
    """The hook's ``-q``: nothing where all is well, exactly one line where not."""
    stories.answers = {"bad": errors.Refused("no proxy answers", where="10.0.2.2:8123", hint="start it")}
    stories.answers["fine"] = Report(target="fine", changed=True, message="applied", diff="+x", warnings=("hm",))
    assert run(["apply", "--vm", "fine", "-q"]) == 0
    assert capsys.readouterr() == ("", "")
    assert run(["-q", "apply", "--vm", "fine,bad"]) == 6
    captured = capsys.readouterr()
    assert captured.out == ""
    assert lines(captured.err) == ["vmproxy: error: bad: no proxy answers (10.0.2.2:8123)"]


def test_findings_diff_and_warnings_are_shown(stories: Stories, capsys: pytest.CaptureFixture[str]) -> None:
    """``status`` prints each point on stdout, warnings on stderr, and exits 1 on drift."""
    stories.answers["a"] = Report(
        target="a",
        ok=False,
        exit=1,
        code="E_DRIFT",
        message="1 of 2 points differs",
        hint="vmproxy apply --vm a",
        findings=(Finding(subject="rules", ok=True), Finding(subject="profile", ok=False, detail="block\nmissing")),
        warnings=("old rules\x07 found",),
        diff="--- a\n+++ b\n-x\n+y\x1b[1m",
    )
    assert run(["status", "--vm", "a"]) == 1
    said = ["  ok rules", "  -- profile: block\\x0amissing", "a: 1 of 2 points differs"]
    assert lines(capsys.readouterr().out) == said
    assert run(["status", "--vm", "a", "-v"]) == 1
    captured = capsys.readouterr()
    assert lines(captured.out) == [
        "--- a",
        "+++ b",
        "-x",
        "+y\\x1b[1m",
        *said,
    ]
    assert lines(captured.err) == [
        "a: looking",
        "vmproxy: warning: a: old rules\\x07 found",
        "hint: vmproxy apply --vm a",
    ]
    assert run(["status", "--vm", "a", "-q"]) == 1
    assert capsys.readouterr() == ("", "vmproxy: error: a: 1 of 2 points differs\n")


def test_json_object_follows_its_schema(stories: Stories, capsys: pytest.CaptureFixture[str]) -> None:
    """docs/schema.json describes the object exactly: no key too many, none too few, whatever happened."""
    stories.answers = {
        "a": Report(target="a", changed=True, message="applied", gateway="10.0.2.2", diff="+x", warnings=("w",)),
        "b": Report(target="b", ok=False, exit=1, code="E_DRIFT", findings=(Finding(subject="s", ok=False),)),
        "c": errors.Untrusted("another key", where="c"),
    }
    assert run(["apply", "--json", "--vm", "a,b,c"]) == 4
    value = json.loads(capsys.readouterr().out)
    assert schema.problems(value, "result") == []
    assert (value["ok"], value["exit"], value["code"], value["changed"]) == (False, 4, "E_HOSTKEY", True)
    assert [vm["vm"] for vm in value["vms"]] == ["a", "b", "c"]
    assert run(["apply", "--json", "--nosuch"]) == 2
    assert schema.problems(json.loads(capsys.readouterr().out), "result") == []


@pytest.mark.parametrize(
    ("exit_code", "diff", "code"), [(True, "+x", 3), (True, "", 0), (False, "+x", 0), (False, "", 0)]
)
def test_f68_dry_run_exit_code(
    exit_code: bool, diff: str, code: int, stories: Stories, capsys: pytest.CaptureFixture[str]
) -> None:
    """``--dry-run`` is 0 either way; with ``--exit-code`` it is 3 where there is something to do."""
    stories.answers["a"] = Report(target="a", diff=diff, message="would change")
    assert run(["apply", "--vm", "a", "--dry-run", *(["--exit-code"] if exit_code else [])]) == code
    assert capsys.readouterr().out == (f"{diff}\n" if diff else "") + "a: would change\n"
    assert stories.asked[0][3]["confirm"] is None


def test_a_bug_is_exit_70_with_a_private_redacted_report(
    stories: Stories, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An unexpected exception: one line with the path of a 0600 file that holds the traceback and no password (P6)."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    shown = "http://user:s3cr%40t-word@proxy:1 and s3cr@t-word, dXNlcjpzM2NyQHQtd29yZA=="
    stories.answers["a"] = ZeroDivisionError(shown)
    argv = ["apply", "--vm", "a,b", "--proxy", "http://user:s3cr%40t-word@proxy:1"]
    assert run(argv) == 70
    captured = capsys.readouterr()
    said = lines(captured.err)
    assert len(said) == 3
    assert said[0].startswith("vmproxy: error: a: this is a bug: ZeroDivisionError")
    (report,) = tmp_path.glob("vmproxy-report-*")
    assert str(report) in said[0]
    assert stat.S_IMODE(report.stat().st_mode) == 0o600
    text = report.read_text(encoding="utf-8")
    assert "ZeroDivisionError" in text
    assert "Traceback" in text
    for form in ("s3cr%40t-word", "s3cr@t-word", "dXNlcjpzM2NyQHQtd29yZA"):
        assert form not in text + captured.err + captured.out
    assert [target for _, target, *_ in stories.asked] == ["a", "b"]


def test_debug_adds_the_traceback(stories: Stories, capsys: pytest.CaptureFixture[str]) -> None:
    """Without --debug there is no traceback, with it there is."""
    stories.answers["a"] = errors.Refused("no")
    assert run(["apply", "--vm", "a"]) == 6
    assert "Traceback" not in capsys.readouterr().err
    assert run(["apply", "--vm", "a", "--debug"]) == 6
    assert "Traceback" in capsys.readouterr().err


def test_p6_the_traceback_of_debug_shows_no_password(
    stories: Stories, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Even an exception that carries a password does not bring it to the terminal: --proxy's, the host's, the key's."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setenv("https_proxy", "http://me:host-word@proxy:2")
    monkeypatch.setenv("VMPROXY_SSH_PASSPHRASE", "key-word")
    stories.answers["a"] = RuntimeError("x s3cr@t-word y host-word z key-word http://user:s3cr%40t-word@proxy:1")
    assert run(["apply", "--vm", "a", "--debug", "--proxy", "http://user:s3cr%40t-word@proxy:1"]) == 70
    err = capsys.readouterr().err
    assert "RuntimeError: x *** y *** z *** http://" in err
    assert "-word" not in err
    assert "-word" not in "".join(path.read_text(encoding="utf-8") for path in tmp_path.iterdir())


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_f28_f29_a_signal_lets_the_story_put_back_and_exits_128_plus_n(
    name: str, stories: Stories, capsys: pytest.CaptureFixture[str]
) -> None:
    """The first signal interrupts, a second one during the putting back is held, the VMs after it are left alone."""
    number = getattr(signal, name)
    put_back = []

    def story() -> Report:
        try:
            os.kill(os.getpid(), number)
            signal.sigtimedwait([], 5)
        except KeyboardInterrupt:
            os.kill(os.getpid(), number)
            os.kill(os.getpid(), signal.SIGINT)
            put_back.append(True)
            raise
        pytest.fail("the signal did not interrupt")

    before = signal.getsignal(number)
    stories.answers["a"] = story
    assert run(["apply", "--vm", "a,b"]) == 128 + number
    assert put_back == [True]
    assert [target for _, target, *_ in stories.asked] == ["a"]
    assert lines(capsys.readouterr().err) == [
        "vmproxy: error: a: interrupted",
        "0 of 2 VMs well; not well: a; 1 not begun",
    ]
    assert signal.getsignal(number) is before


def test_an_ignored_signal_stays_ignored(stories: Stories) -> None:
    """Under nohup SIGHUP is ignored, and a hook goes on when its terminal closes."""

    def story() -> Report:
        os.kill(os.getpid(), signal.SIGHUP)
        return Report(target="a")

    stories.answers["a"] = story
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert run(["apply", "--vm", "a"]) == 0
    finally:
        signal.signal(signal.SIGHUP, before)


def test_settings_file_as_windows_editors_save_it(tmp_path: Path) -> None:
    """A byte order mark and CR LF change nothing."""
    file = tmp_path / "settings.toml"
    file.write_bytes(b"\xef\xbb\xbflisten-port = 8124\r\n")
    assert common.read_file(str(file), {}) == (str(file), {"listen-port": 8124})


def test_config_file_is_the_users_and_never_the_current_directorys(
    stories: Stories, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """vmproxy.toml of a directory one happens to stand in is not read; the user's own and --config's are."""
    (tmp_path / "vmproxy.toml").write_text("nonsense = 1\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    assert run(["status", "--vm", "a"]) == 0
    own = Path(os.environ["XDG_CONFIG_HOME"]) / "vmproxy" / "vmproxy.toml"
    own.parent.mkdir()
    own.write_text('vm = "from-file"\nproxy = "http://p:3128"\n', encoding="utf-8")
    assert run(["status"]) == 0
    assert stories.asked[-1][1] == "from-file"
    assert stories.asked[-1][2].proxy is not None
    capsys.readouterr()
    assert run(["status", "--config", str(tmp_path / "vmproxy.toml")]) == 2
    error = capsys.readouterr().err
    assert "nonsense" in error
    assert str(tmp_path / "vmproxy.toml") in error


def test_the_usual_place_of_the_file_is_the_platforms(monkeypatch: pytest.MonkeyPatch) -> None:
    """The short cut taken on Linux says the same as platformdirs."""
    import platformdirs

    from vmproxy.cli.common import default_path

    for value in ("/somewhere/else", "", None):
        if value is None:
            monkeypatch.delenv("XDG_CONFIG_HOME")
        else:
            monkeypatch.setenv("XDG_CONFIG_HOME", value)
        wanted = os.path.join(platformdirs.user_config_dir("vmproxy", appauthor=False), "vmproxy.toml")
        assert default_path(os.environ) == wanted


def test_progress_is_for_terminals(stories: Stories, capsys: pytest.CaptureFixture[str]) -> None:
    """Into a pipe or a log goes no progress, unless -v asks for it."""
    assert run(["apply", "--vm", "a"]) == 0
    assert capsys.readouterr().err == ""
    assert run(["apply", "--vm", "a", "-v"]) == 0
    assert capsys.readouterr().err == "a: looking\n"


@pytest.mark.parametrize("read_by", ["a program", "a person"])
def test_news_is_for_everybody_but_quiet(
    stories: Stories, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, read_by: str
) -> None:
    """A host key kept for the first time is said on stderr, terminal or not, and not with -q; with --json only to a
    person, who may have to touch a security key."""
    monkeypatch.setattr("vmproxy.cli.output.is_terminal", lambda stream: read_by == "a person" and stream is sys.stderr)
    monkeypatch.setenv("TERM", "dumb")

    def story(target: str, settings: Settings, **words: Any) -> Report:
        words["progress"](Event(target=target, text="new host key kept", news=True))
        return Report(target=target, message="fine")

    sys.modules["vmproxy.converge"].status = story  # type: ignore[attr-defined]
    for extra, shown in (
        ([], "a: new host key kept\n"),
        (["-v"], "a: new host key kept\n"),
        (["-q"], ""),
        (["--json"], "a: new host key kept\n" if read_by == "a person" else ""),
        (["--json", "-q"], ""),
    ):
        assert run(["status", "--vm", "a", *extra]) == 0
        assert capsys.readouterr().err == shown


def test_nobody_is_asked_without_a_terminal(stories: Stories) -> None:
    """Where stdin or stderr is no terminal the story gets no way to ask."""
    assert run(["apply", "--vm", "a"]) == 0
    assert stories.asked[0][3]["confirm"] is None


def test_color_is_only_where_wanted(
    stories: Stories, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Escape codes appear with --color always, not into a pipe, and never with NO_COLOR on a terminal."""
    stories.answers["a"] = Report(target="a", findings=(Finding(subject="s", ok=True),))
    assert run(["status", "--vm", "a", "--color", "always"]) == 0
    assert "\x1b[32mok" in capsys.readouterr().out
    assert run(["status", "--vm", "a"]) == 0
    assert "\x1b" not in capsys.readouterr().out
    from vmproxy.cli.output import wants_color

    terminal = SimpleNamespace(isatty=lambda: True)
    assert wants_color("auto", terminal, {"TERM": "xterm"})  # type: ignore[arg-type]
    assert not wants_color("auto", terminal, {"TERM": "xterm", "NO_COLOR": "1"})  # type: ignore[arg-type]
    assert not wants_color("auto", terminal, {"TERM": "dumb"})  # type: ignore[arg-type]


TABLES = {
    "one": ("default via 10.0.2.2 dev eth0\n10.0.2.0/24 dev eth0 scope link\n", 0),
    "none": ("10.0.2.0/24 dev eth0 scope link\n", 6),
    "equal": ("default via 10.0.2.2 dev eth0\ndefault via 10.0.3.2 dev eth1\n", 6),
}


@pytest.mark.parametrize("name", TABLES)
def test_detect_gateway_json_follows_its_schema(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """docs/schema.json describes detect-gateway's object too, found or not."""
    text, code = TABLES[name]
    (tmp_path / "table").write_text(text, encoding="utf-8")
    assert run(["detect-gateway", "--table", str(tmp_path / "table"), "--json"]) == code
    value = json.loads(capsys.readouterr().out)
    assert schema.problems(value, "gateway") == []
    assert value["exit"] == code


ENV = ["env", "--proxy", "http://user:p%24x@127.0.0.1:3128", "--no-proxy", "a.b,10.0.0.0/8", "--gateway", "10.0.2.2"]


@pytest.mark.parametrize("argv", [[*ENV, "--json"], [*ENV, "--format", "json"]])
def test_env_json(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """``env --json`` is one object of variables, both cases, the loopback proxy rewritten to the gateway."""
    assert run(argv) == 0
    value = json.loads(capsys.readouterr().out)
    assert schema.problems(value, "environment") == []
    url = "http://user:p%24x@10.0.2.2:3128"
    direct = "a.b,10.0.0.0/8,localhost,127.0.0.1,::1,127.0.0.0/8,host.docker.internal,10.0.2.2"
    pairs = {"http_proxy": url, "https_proxy": url, "no_proxy": direct}
    assert value == pairs | {name.upper(): text for name, text in pairs.items()}


def test_env_without_a_gateway_uses_dockers_own_name(capsys: pytest.CaptureFixture[str]) -> None:
    """A proxy on this host is at host.docker.internal for a container, else where it is."""
    assert run(["env", "--proxy", "http://localhost:3128", "--format", "dotenv"]) == 0
    assert "http_proxy=http://host.docker.internal:3128\n" in capsys.readouterr().out
    assert run(["env", "--proxy", "http://proxy.corp:3128"]) == 0
    assert "export http_proxy='http://proxy.corp:3128'\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("environ", "wanted"),
    [
        ({}, ("http://host.docker.internal:8123", "http://host.docker.internal:8123")),
        ({"http_proxy": "http://p:1"}, ("http://p:1", "http://p:1")),
        ({"https_proxy": "http://p:1"}, ("http://p:1", "http://p:1")),
        ({"http_proxy": "http://p:1", "HTTPS_PROXY": "http://q:2"}, ("http://p:1", "http://q:2")),
        ({"http_proxy": "http://p:1", "VMPROXY_PROXY": "http://r:3"}, ("http://r:3", "http://r:3")),
    ],
)
def test_env_takes_the_hosts_own_proxy_last(
    environ: dict[str, str],
    wanted: tuple[str, str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """--proxy and VMPROXY_PROXY, then the host's variables, then 127.0.0.1:8123."""
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    assert run(["env", "--json"]) == 0
    value = json.loads(capsys.readouterr().out)
    assert (value["http_proxy"], value["https_proxy"]) == wanted


def test_env_of_a_vm_asks_the_story(stories: Stories, capsys: pytest.CaptureFixture[str]) -> None:
    """With --vm the variables are the ones that lead to the VM's own bridge."""
    stories.answers["a"] = Report(target="a", variables={"http_proxy": "http://172.17.0.1:8123"})
    assert run(["env", "--vm", "a"]) == 0
    assert capsys.readouterr().out == "export http_proxy='http://172.17.0.1:8123'\n"


SHELLS = [("bash", "complete -o"), ("zsh", "#compdef"), ("fish", "complete --no-files")]


@pytest.mark.parametrize(("shell", "word"), SHELLS)
def test_completion_scripts(shell: str, word: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Each shell's script names the program and nothing is said on stderr."""
    assert run(["completion", shell]) == 0
    captured = capsys.readouterr()
    assert word in captured.out
    assert "_VMPROXY_COMPLETE" in captured.out
    assert captured.err == ""


def complete(words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """What a Tab after ``words`` offers, as bash would ask."""
    monkeypatch.setenv("_VMPROXY_COMPLETE", "bash_complete")
    monkeypatch.setenv("COMP_WORDS", words)
    monkeypatch.setenv("COMP_CWORD", str(len(words.split(" ")) - 1))
    assert run([]) == 0
    return [line.partition(",")[2] for line in capsys.readouterr().out.split()]


def test_completion_offers_commands_options_and_vms(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Commands, option names, choices, and the VM names that the providers know; an error of theirs offers nothing."""
    from vmproxy import targets

    assert complete("vmproxy ap", monkeypatch, capsys) == ["apply"]
    assert "--listen-port" in complete("vmproxy apply --li", monkeypatch, capsys)
    assert complete("vmproxy apply --restart a", monkeypatch, capsys) == ["auto", "always"]
    assert complete("vmproxy apply --guest sys", monkeypatch, capsys) == ["systemd", "sysv"]
    monkeypatch.setattr(targets, "names", lambda *, environ: ("default", "dev", "other"))
    assert complete("vmproxy apply --vm d", monkeypatch, capsys) == ["default", "dev"]

    def broken(*, environ: object) -> tuple[str, ...]:
        raise OSError

    monkeypatch.setattr(targets, "names", broken)
    assert complete("vmproxy apply --vm d", monkeypatch, capsys) == []


def test_a_rollback_that_is_not_complete_is_not_reported_as_one() -> None:
    """``rolled_back`` is true only where everything is as before; else something of the VM has changed."""
    from vmproxy.cli.common import failed

    whole = failed("box", errors.RolledBack("no; everything was put back"))
    half = failed("box", errors.RolledBack("ROLLBACK INCOMPLETE: no", complete=False))
    assert (whole.rolled_back, whole.changed, whole.exit) == (True, False, 7)
    assert (half.rolled_back, half.changed, half.exit) == (False, True, 7)
    signalled = [failed("box", errors.Interrupted(2, rolled_back=begun)) for begun in (True, False)]
    assert [(report.rolled_back, report.changed, report.exit) for report in signalled] == [
        (True, False, 130),
        (False, False, 130),
    ]


def test_every_option_has_a_help_text() -> None:
    """No option without a sentence of help."""
    assert all(option.help.endswith((".", "]")) for option in OPTIONS.values())


def test_a_number_that_ends_somewhere_says_where() -> None:
    """The end of a range is in the help, not only in the error; that of a port everybody knows."""
    ends = {option.name: option for option in OPTIONS.values() if option.high not in (0, 65535)}
    assert "jobs" in ends
    assert all(str(option.high) in option.help for option in ends.values())


def test_the_usual_hint_names_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Where nobody knows better the hint is that command's own help."""
    config = tmp_path / "vmproxy.toml"
    config.write_text("vm = [", encoding="utf-8")
    assert run(["status", "--config", str(config)]) == 2
    assert "hint: vmproxy status --help\n" in capsys.readouterr().err
