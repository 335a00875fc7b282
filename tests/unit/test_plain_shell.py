"""A plain shell takes its first script as text and becomes a loader for the next; where it will not do, one comes."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Container, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmproxy.errors import LostContact, NotPermitted, Refused
from vmproxy.machines import Look, Terms, sending, shell
from vmproxy.model import Plan, Target
from vmproxy.transports import SshOptions, local
from vmproxy.transports._child import ChildChannel

SHELLS = ("dash", "bash", "busybox sh")
Start = Callable[..., "Vm"]


class Vm:
    """This machine as a VM that looks for programs in ``bin`` first; it keeps the commands that were started."""

    def __init__(self) -> None:
        self.commands: list[str] = []
        self.channels: list[ChildChannel] = []
        self._connection = local.connect(
            Target(name="local", provider="local", transport="local"), options=SshOptions(output_limit_bytes=1 << 20)
        )

    def start(self, command: str) -> ChildChannel:
        """As the transport."""
        self.commands.append(command)
        self.channels.append(self._connection.start(command))
        return self.channels[-1]

    def close(self) -> None:
        """As the transport."""
        self._connection.close()

    def machine(self, user: str, *, root: bool = False) -> shell.Shell:
        """What a session makes of it."""
        return shell.open(self, first=shell.first_command(root=root, plain_for=user))


@pytest.fixture
def vm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    """``vm(sh, sudo)``: the programs of those names, the latter as the text of a script or, for "", absent."""
    made: list[Vm] = []
    monkeypatch.setattr(shell, "LOOK_SECONDS", 300.0)  # six hundred programs take their time on a busy machine

    def start(sh: str = "dash", sudo: str = "") -> Vm:
        place = tmp_path / "bin"
        place.mkdir()
        name, _, option = sh.partition(" ")
        scripts = {"sh": f'exec {shutil.which(name)} {option} "$@"'} | ({"sudo": sudo} if sudo else {})
        for program, text in scripts.items():
            (place / program).write_text(f"#!/bin/sh\n{text}\n")
            (place / program).chmod(0o755)
        monkeypatch.setenv("PATH", str(place))
        made.append(Vm())
        return made[-1]

    yield start
    for one in made:
        one.close()


@pytest.mark.parametrize("sh", SHELLS)
def test_one_shell_for_look_after_look(vm: Start, tmp_path: Path, sh: str) -> None:
    """The first look is text, the second comes to the loader that the shell has become, and both see the same."""
    (tmp_path / "one").write_bytes(b"$(exit 3)\n.\n")
    made = vm(sh)
    machine = made.machine("docker")
    look = Look(root=False, files=(str(tmp_path / "one"),), paths=("/etc/pass*",), resolve="localhost")
    first, second, third = (machine.observe(look) for _ in range(3))
    assert first == second == third
    assert first.files[str(tmp_path / "one")].content == b"$(exit 3)\n.\n"
    assert "/etc/passwd" in first.paths and first.resolved[:1] == ("127.0.0.1",) and first.routes is not None
    assert made.commands == [shell.PLAIN_USER]


@pytest.mark.parametrize("sh", SHELLS)
def test_all_of_the_text_is_read_before_the_answer(vm: Start, monkeypatch: pytest.MonkeyPatch, sh: str) -> None:
    """However long it is: what a shell would read only behind its answer, it would read along with what comes then."""
    made, whole = vm(sh), shell.observe_script
    for more in range(0, 1200, 60):  # the end of the text passes the seams between the pieces that shells read

        def longer(look: Look, known: Container[str] = (), more: int = more) -> str:
            script = whole(look, known)
            return script if known else script + "#" * (more + -len(script) % 8192) + "\n"

        monkeypatch.setattr(shell, "observe_script", longer)
        machine = made.machine("docker")
        first, second = machine.observe(Look(root=False)), machine.observe(Look(root=False))
        assert first.boot_id == second.boot_id != ""
    assert set(made.commands) == {shell.PLAIN_USER}


@pytest.mark.parametrize("sh", SHELLS)
def test_what_is_said_behind_the_look_is_read(vm: Start, sh: str) -> None:
    """A script with its own data on stdin, of more than a shell reads ahead, comes whole to what was a plain shell."""
    made = vm(sh)
    machine = made.machine("docker")
    machine.observe(Look(root=False))
    assert machine.reach(("127.0.0.1",) * 600, 1) == ()  # nothing listens at port 1; the lines are some 6 kB


def test_two_programs_less(vm: Start, tmp_path: Path) -> None:
    """sudo gets a shell and no script: what it logs is short, and no dd reads the script."""
    made = vm("dash", f'printf "%s\\n" "$*" >>{tmp_path}/asked; shift; exec "$@"')
    machine = made.machine("docker", root=True)
    assert machine.observe(Look(listeners=False)).uid == 0
    assert (tmp_path / "asked").read_text() == "-n sh -s\n"
    assert made.commands == [shell.PLAIN_ROOT]


@pytest.mark.parametrize("sudo", ["", "echo 'sudo: a password is required' >&2; exit 1", "exit 127"])
def test_a_loader_comes_where_the_plain_shell_says_nothing(vm: Start, sudo: str) -> None:
    """No sudo, or one that gives nothing: the loader finds out whether root is there without it (here it is)."""
    made = vm("dash", sudo)
    machine = made.machine("admin", root=True)
    assert machine.observe(Look(listeners=False)).uid == 0
    assert made.commands == [shell.PLAIN_ROOT, shell.AS_ROOT]
    assert machine.observe(Look(listeners=False)).uid == 0
    assert len(made.commands) == 2


def test_f06_the_loader_knows_why_not(vm: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it has no root either, its error is the one that is told, with its hint; no third try."""
    monkeypatch.setattr(shell, "AS_ROOT", "echo 'sudo: a password is required' >&2; exit 1")
    monkeypatch.setattr("vmproxy.machines.loader.AS_ROOT", shell.AS_ROOT)
    made = vm("dash", "echo 'sudo: a password is required' >&2; exit 1")
    with pytest.raises(NotPermitted, match="a password is required") as caught:
        made.machine("docker", root=True).observe(Look())
    assert "NOPASSWD" in caught.value.hint
    assert len(made.commands) == 2


def test_f06_a_shell_that_ends_before_a_change(vm: Start) -> None:
    """A change that cannot begin says that nothing was changed, whichever shell it was meant for."""
    made = vm("dash", 'shift; exec "$@"')
    machine = made.machine("docker", root=True)
    machine.observe(Look(listeners=False))
    made.channels[0].end_input()
    made.start = lambda _command: made.channels[0]  # type: ignore[method-assign]
    with pytest.raises(LostContact, match="nothing was changed"):
        machine.commit(Plan(), Terms(look=Look()), judge=bool, verdict=bool, step=str)


def test_a_shell_without_here_documents_is_no_shell(vm: Start, tmp_path: Path) -> None:
    """Where a shell has no room for one (bash before 5.1 on a full disk), it ends at once, and a loader looks."""
    made = vm("dash")
    script = """
[ "$1" = -s ] || exec /bin/sh "$@"
while IFS= read -r line; do
  case $line in "} <<'.'"*) eval "false ${line#*.?}" ;; esac
done
"""
    (tmp_path / "bin" / "sh").write_text(f"#!/bin/sh\n{script}")
    machine = made.machine("docker")
    assert machine.observe(Look(root=False)).uid == 0
    assert made.commands == [shell.PLAIN_USER, shell.AS_USER]


@pytest.mark.parametrize("name", ["x\n.\ntouch /tmp/canary", "a b", "", "$(id)", "a;b", "\u00e9"])
def test_t05_no_name_can_leave_its_line(name: str) -> None:
    """A name to resolve is one word of a strict alphabet, or none at all."""
    if not name:
        assert sending.look_lines(Look(resolve=name)) == b".\n"
        return
    with pytest.raises(Refused):
        sending.look_lines(Look(resolve=name))


@given(st.text(st.characters(codec="utf-8"), max_size=30))
def test_t05_no_path_can_leave_its_quotes(text: str) -> None:
    """Whatever stands in a list is refused, or has no character that ends or means anything in single quotes."""
    for field in ("files", "paths", "texts", "configs"):
        look = Look(**{field: (f"/{text}",)})
        try:
            words = sending.look_words(look)
        except Refused:
            continue
        assert f"want_{field}='/{text}\n'\n" in words
        assert not set(text) & set("'\\\"$`;&|<>(){}[]!#~ \t\n\r\0")
        assert words.count("'") == 8
