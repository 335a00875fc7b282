"""Hints that can be typed as they stand, and what the command line says of mistakes beside it."""

from __future__ import annotations

import json
import socket
import threading
from pathlib import Path

import pytest

from tests.unit import schema
from tests.unit.test_cli import Stories, lines, stories
from vmproxy import targets
from vmproxy.cache import place
from vmproxy.cli import hints
from vmproxy.cli.edge import run
from vmproxy.errors import Refused, Untrusted, UsageError
from vmproxy.model import Finding, Report
from vmproxy.transports import _known_hosts

__all__ = ["stories"]  # the fixture

GIVEN = {"proxy": "http://127.0.0.1:3128", "no-proxy": ("a b",)}
SAID = "--proxy http://127.0.0.1:3128 --no-proxy 'a b'"


@pytest.mark.parametrize(
    ("hint", "whole"),
    [
        ("vmproxy apply", f"vmproxy apply --vm dev {SAID}"),
        ("vmproxy apply --vm dev", f"vmproxy apply --vm dev {SAID}"),
        ("vmproxy apply --restart always", f"vmproxy apply --vm dev --restart always {SAID}"),
        ("vmproxy status, then vmproxy remove", f"vmproxy status --vm dev {SAID}, then vmproxy remove --vm dev {SAID}"),
        ("vmproxy status shows how the VM stands", f"vmproxy status --vm dev {SAID} shows how the VM stands"),
        ("vmproxy apply --proxy http://h:1", "vmproxy apply --vm dev --proxy http://h:1 --no-proxy 'a b'"),
        ("--listen-port N", "--listen-port N"),
        ("vmproxy --help lists the commands", "vmproxy --help lists the commands"),
        ("", ""),
    ],
)
def test_a_hint_names_the_vm_and_what_was_said(hint: str, whole: str) -> None:
    """Each of our commands in it gets the VM and the options, once; what the hint itself says goes before them."""
    assert hints.whole(hint, "dev", hints.again(GIVEN)) == whole
    assert hints.whole(hints.whole(hint, "dev", {}), "dev", {}) == hints.whole(hint, "dev", {})


def test_what_was_said_is_said_again_without_credentials() -> None:
    """Wish and way in as words for a shell; a password of a proxy or an index is a word to fill in."""
    given = {
        "proxy": "http://kit:hunter22@corp.test:3128",
        "https-proxy": "kit:hunter22@corp.test:3129",
        "pip-index": "https://kit:hunter22@pypi.corp.test/simple",
        "bridge": ("docker0", "br 1"),
        "forward": False,
        "identity": ("/home/kit/id's",),
        "vm": ("dev",),
        "dry-run": True,
    }
    text = " ".join(hints.again(given).values())
    assert "hunter22" not in text
    assert "--proxy http://USER:PASSWORD@corp.test:3128 --https-proxy USER:PASSWORD@corp.test:3129" in text
    assert "--no-forward --bridge docker0 --bridge 'br 1'" in text
    assert "--pip-index https://USER:PASSWORD@pypi.corp.test/simple" in text
    assert text.endswith("""--identity '/home/kit/id'"'"'s'""")
    assert "--vm" not in text
    assert "--dry-run" not in text


def test_statuss_hint_is_the_apply_that_was_meant(stories: Stories, capsys: pytest.CaptureFixture[str]) -> None:
    """``status --proxy X`` compares with X: so does the apply that it hints at, also under each point."""
    point = Finding(subject="daemon", ok=False, hint="vmproxy apply --restart always")
    stories.answers["a"] = Report(target="a", ok=False, exit=1, hint="vmproxy apply --vm a", findings=(point,))
    assert run(["status", "--vm", "a", "--proxy", "http://127.0.0.1:3128"]) == 1
    captured = capsys.readouterr()
    assert lines(captured.err) == ["hint: vmproxy apply --vm a --proxy http://127.0.0.1:3128"]
    assert "     hint: vmproxy apply --vm a --restart always --proxy http://127.0.0.1:3128" in lines(captured.out)


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("ssh://me:geheim@h", "ssh://***@h"),
        ("ssh://me:ge//heim@h:22", "ssh://***@h:22"),
        ("ssh:me:geheim@h", "ssh:***@h"),
        ("me:geheim@h", "***@h"),
        ("http://me:geheim@h", "http://***@h"),
        ("docker:tcp://me:geheim@h", "docker:tcp://***@h"),
    ],
)
@pytest.mark.parametrize("command", ["status", "detect-gateway"])
@pytest.mark.parametrize("more", ["--json", "--debug"])
def test_a_password_in_the_name_of_a_vm_is_refused_and_not_shown(
    name: str, shown: str, command: str, more: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit 2; neither the line nor the object has it, nor the traceback."""
    assert run([command, "--vm", name, more]) == 2
    captured = capsys.readouterr()
    assert "heim" not in captured.out + captured.err
    assert f"vmproxy: error: {shown}: " in captured.err


@pytest.mark.parametrize("name", ["ssh://me@h", "ssh:me@h", "me@h", "rootfs:/a:b@c", "initrd:x:y@z", "dev", "docker:"])
def test_a_name_without_a_password_is_shown_as_it_was_said(name: str) -> None:
    """A user is no secret, and neither is a path."""
    assert hints.without_password(name) == name


def test_a_daemons_address_with_a_password_is_not_shown(capsys: pytest.CaptureFixture[str]) -> None:
    """docker-config's, too."""
    assert run(["docker-config", "apply", "--daemon", "tcp://me:geheim@h:1", "--proxy", "http://p:1"]) == 2
    assert "geheim" not in capsys.readouterr().err


def test_a_vms_usage_error_names_the_command(stories: Stories, capsys: pytest.CaptureFixture[str]) -> None:
    """No hint has the word COMMAND to fill in."""
    stories.answers["a"] = UsageError("the name is wrong")
    assert run(["status", "--vm", "a"]) == 2
    assert "hint: vmproxy status --help" in lines(capsys.readouterr().err)


@pytest.mark.parametrize(
    ("words", "command"),
    [
        ("cache start --port 0", "vmproxy cache start"),
        ("docker-config apply --gateway x", "vmproxy docker-config apply"),
        ("apply --vm", "vmproxy apply"),
        ("--config /nonexistent.toml status", "vmproxy status"),
        ("--color", "vmproxy"),
    ],
)
def test_a_usage_error_names_the_whole_command(
    words: str, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command within a command too, and with ``--json`` the object has the hint that stderr has."""
    assert run(["--json", *words.split()]) == 2
    captured = capsys.readouterr()
    assert lines(captured.err)[1] == f"hint: {command} --help"
    assert json.loads(captured.out)["hint"] == f"{command} --help"


@pytest.mark.parametrize(
    ("inner", "hint"),
    [("purge", "vmproxy cache status shows how it stands"), ("status", "run again with --debug")],
)
def test_no_hint_about_a_cache_is_about_a_vm(
    inner: str, hint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A cache that hangs up: how a VM stands tells nothing of it, and its status does not send to itself."""
    monkeypatch.chdir(tmp_path)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(place.CONTROL)
        server.listen()
        server.settimeout(60)

        def hang_up() -> None:
            server.accept()[0].close()

        hanging_up = threading.Thread(target=hang_up)
        hanging_up.start()
        assert run(["cache", inner, "--dir", str(tmp_path)]) == 9
        hanging_up.join()
    assert lines(capsys.readouterr().err)[-1] == f"hint: {hint}"


def test_a_config_json_that_is_no_file_is_to_be_moved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """docker-config has no VM to look at, either."""
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    (tmp_path / "config.json").mkdir()
    assert run(["docker-config", "apply", "--proxy", "http://p:1"]) == 6
    assert lines(capsys.readouterr().err)[-1] == "hint: move it away"


@pytest.mark.parametrize("words", ["status", "env --proxy nonsense", "cache start --size 1"])
def test_the_settings_file_says_how_an_error_is_said(
    words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """``json`` and ``quiet`` in vmproxy.toml count for errors of a whole command too, whichever option is wrong."""
    config = tmp_path / "vmproxy.toml"
    config.write_text("json = true\nquiet = true\n", encoding="utf-8")
    assert run(["--config", str(config), *words.split()]) == 2
    captured = capsys.readouterr()
    (line,) = lines(captured.err)
    value = json.loads(captured.out)
    assert schema.problems(value, "result") == []
    assert line == f"vmproxy: error: {value['message']}"


def test_a_format_on_the_command_line_goes_before_json_elsewhere(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """``json`` in vmproxy.toml gives way to ``--format``: the command line comes first."""
    config = tmp_path / "vmproxy.toml"
    config.write_text('json = true\nproxy = "http://p:1"\n', encoding="utf-8")
    assert run(["--config", str(config), "env", "--format", "dotenv"]) == 0
    assert "http_proxy=http://p:1\n" in capsys.readouterr().out
    assert run(["--config", str(config), "env"]) == 0
    assert json.loads(capsys.readouterr().out)["http_proxy"] == "http://p:1"


@pytest.mark.parametrize("words", ["compose", "status --vm rootfs:.", "cache status --dir x"])
def test_a_deleted_current_directory_is_no_bug(
    words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A relative path in a directory that is gone: exit 2 and one line, no report to send."""
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert run(words.split()) == 2
    (error, hint) = lines(capsys.readouterr().err)
    assert error.endswith("the current directory is not there any more")
    assert hint == "hint: cd to another one"


def test_what_cannot_be_printed_is_shown_once_escaped(capsys: pytest.CaptureFixture[str]) -> None:
    """A line end in a value is told as \\x0a, as anywhere else."""
    for words in (["env", "--gateway", "a\nb"], ["cache", "serve", "--bind", "a\nb"]):
        assert run(words) == 2
        assert f"{words[-2][2:]}: 'a\\x0ab' is not" in capsys.readouterr().err


def test_a_misspelt_variable_is_said(
    stories: Stories, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One line that names what is meant; those of the lab and of ssh are left alone, and no value is shown."""
    stories.answers["a"] = Report(target="a", message="in sync")
    for name in ("VMPROXY_LAB_CACHE", "VMPROXY_SSH_PASSWORD", "VMPROXY_SSH_PASSPHRASE", "VMPROXY_NO_VERIFY"):
        monkeypatch.setenv(name, "1")
    assert run(["status", "--vm", "a"]) == 0
    assert capsys.readouterr().err == ""
    monkeypatch.setenv("VMPROXY_PROXI", "http://hunter22@x:1")
    monkeypatch.setenv("VMPROXY_SOMETHING", "1")
    assert run(["status", "--vm", "a"]) == 0
    assert lines(capsys.readouterr().err) == [
        "vmproxy: warning: no setting, and ignored: VMPROXY_PROXI (did you mean VMPROXY_PROXY?), VMPROXY_SOMETHING"
    ]
    assert run(["status", "--vm", "a", "-q"]) == 0
    assert capsys.readouterr().err == ""


def test_a_long_error_is_cut_between_words(stories: Stories, capsys: pytest.CaptureFixture[str]) -> None:
    """One line of at most 200 characters, no half word; a hint is whole, since it is there to be typed."""
    hint = f"ssh-keygen -R {'y' * 300}"
    stories.answers["a"] = Refused(" ".join(f"word{number:03}" for number in range(60)), hint=hint)
    assert run(["status", "--vm", "a"]) == 6
    error, shown = capsys.readouterr().err.splitlines()
    assert len(error) <= 200
    assert error.endswith(" …")
    assert all(len(word) == 7 for word in error.split()[3:-1])
    assert shown == f"hint: {hint}"


def test_a_changed_host_key_is_said_whole(tmp_path: Path) -> None:
    """Both fingerprints stand in the line, with the VM's name before them and the file behind."""
    key = "AAAAC3NzaC1lZDI1NTE5AAAAI" + "A" * 43
    other = b"\0\0\0\x0bssh-ed25519\0\0\0 " + b"b" * 32
    path = tmp_path / "known_hosts"
    path.write_text(f"[127.0.0.1]:2022 ssh-ed25519 {key}\n")
    data = path.read_bytes()
    with pytest.raises(Untrusted) as error:
        _known_hosts.trust(path, name="[127.0.0.1]:2022", kind="ssh-ed25519", blob=other, data=data)
    assert len(f"vmproxy: error: ssh://docker@127.0.0.1:2022: {error.value.what}") <= 200
    assert error.value.what.count("SHA256:") == 2


def test_a_user_and_a_host_are_by_ssh() -> None:
    """``docker@host`` is no name of a VM: the hint is the address that was meant."""
    with pytest.raises(UsageError) as error:
        targets.resolve("docker@host", environ={"HOME": "/nonexistent"})
    assert error.value.hint == "ssh://docker@host for any host by SSH"


def test_status_does_not_send_to_itself() -> None:
    """What ``status`` has just failed to show is not hinted at by it; another command hints at it."""
    failed = Report(target="dev", ok=False, exit=6, hint=Refused.usual_hint)
    assert hints.complete(failed, said={}, command="vmproxy status").hint == "run again with --debug"
    assert "vmproxy status --vm dev" in hints.complete(failed, said={}, command="vmproxy apply").hint
