"""The scripts that run in the VM: they parse everywhere, the command line is a constant, values are only data."""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Callable
from dataclasses import replace

import pytest

from tests.unit import worlds
from tests.unit.test_plan import GUEST, WISHES, step
from vmproxy.errors import LostContact, NotPermitted, Refused
from vmproxy.machines import Look, Terms, sending, shell
from vmproxy.model import File, FileChange, Plan, ProxyURL
from vmproxy.proof import question

SHELLS = (("dash",), ("busybox", "sh"), ("bash", "--posix"), ("bash",))
SCRIPTS: dict[str, Callable[[], str]] = {
    "observe": lambda: shell.observe_script(Look()),
    "commit": lambda: shell.commit_script(Look()),
    "prove": shell.prove_script,
}
SECRET = "hunter22-in-the-url"


@pytest.mark.parametrize("words", SHELLS, ids=" ".join)
@pytest.mark.parametrize("name", [*SCRIPTS, "reach", "loader", "root loader"])
def test_they_parse(name: str, words: tuple[str, ...]) -> None:
    """`sh -n` in dash, busybox ash, bash."""
    others = {"reach": shell._text("reach.sh"), "loader": shell.AS_USER, "root loader": shell.AS_ROOT}
    text = others[name] if name in others else SCRIPTS[name]()
    done = subprocess.run([*words, "-n"], input=text.encode(), capture_output=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, b"")


def test_the_loaders_fit_every_server() -> None:
    """A command under 8 kB: dropbear drops a connection at some 9,000 bytes; printable ASCII, no newline, no NUL."""
    for text in (shell.AS_USER, shell.AS_ROOT):
        assert len(text) < 8000
        assert text.isascii()
        assert text.isprintable()


def test_sudo_is_never_asked_for_a_password() -> None:
    """T13: always -n, with a PATH and locale of ours; a look without root has no sudo at all."""
    settled = "LC_ALL=C PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin; export LC_ALL PATH; "
    become_root, loader = shlex.split(shell.AS_ROOT)[3], shlex.split(shell.AS_ROOT)[5]
    assert become_root.startswith(settled) and loader.startswith(settled)
    assert "exec sudo -n sh -c" in become_root
    assert "sudo" not in shell.AS_USER
    assert "umask 077" in shell.AS_USER


@pytest.mark.parametrize("words", [("dash", "-c"), ("bash", "-c"), ("busybox", "sh", "-c")], ids=lambda w: w[0])
@pytest.mark.parametrize("payload", [b"x", b"\n", b"'\"$(exit 3)`exit 4`\\", b"\xff\xfe\x01", b"end\n.\n" * 400])
def test_the_loader_reads_not_one_byte_too_many(words: tuple[str, ...], payload: bytes) -> None:
    """What follows the length-prefixed script on stdin is the script's data, to the byte."""
    script = b"cat\n"
    stdin = str(len(script)).encode() + b"\n" + script + payload
    done = subprocess.run([*words, shell.AS_USER], input=stdin, capture_output=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (0, payload), done.stderr


def test_comments_are_not_sent() -> None:
    """The VM reads the script byte by byte: no comment line, no indentation; strings and here-texts are whole."""
    for make in SCRIPTS.values():
        text = make()
        assert len(text) < 40_000
        assert not [line for line in text.splitlines() if line.startswith(("# ", " "))]


def test_no_value_stands_in_a_script() -> None:
    """The texts are constants: made twice they are the same, and know no address, port or path of a wish."""
    for make in SCRIPTS.values():
        assert make() == make()
        for value in ("8123", "10.0.2.2", "172.17.0.1", "boot2docker", SECRET):
            assert value not in make()


class Recorder:
    """A connection that notes what would go over it, and ends at once."""

    def __init__(self) -> None:
        self.commands: list[str] = []
        self.sent = b""

    def start(self, command: str) -> Recorder:
        self.commands.append(command)
        return self

    def send(self, data: bytes, *, timeout_seconds: float) -> None:
        self.sent += data

    def receive(self, *, timeout_seconds: float) -> bytes:
        return b""

    def end_input(self) -> None:
        """Nothing to end."""

    def wait(self, *, timeout_seconds: float) -> int | None:
        return 255

    @property
    def stderr(self) -> bytes:
        return b""

    def close(self) -> None:
        """Nothing to close."""


def hostile_plan() -> tuple[Plan, Terms]:
    """A whole plan with credentials, foreign content full of shell, and a question."""
    plan, _, _ = step(worlds.world("fresh-nft"), WISHES["the default"])
    change = plan.files[0]
    nasty = File(path=change.before.path, content=b"'; touch /tmp/canary; '$(touch /tmp/canary)\n.\ngo\n")
    secret = ProxyURL(scheme="http", host="10.0.2.2", port=8123, username="me", password=SECRET)
    put = question(secret, vm_host="10.0.2.2", vm_port=8123, container_host="172.17.0.1", container_port=8123)
    after = replace(nasty, content=(nasty.content or b"") + SECRET.encode())
    made = replace(plan, files=(FileChange(before=nasty, after=after), *plan.files[1:]))
    return made, Terms(look=Look(files=GUEST.FILES), restart_argv=GUEST.RESTART, log=GUEST.LOG, check=put, proof=put)


def test_t05_t06_no_value_and_no_secret_in_a_command() -> None:
    """Whatever is looked at, asked or changed: the command is one of two constants; values travel on stdin, the
    secret too."""
    plan, terms = hostile_plan()
    proof = terms.proof
    assert proof is not None
    runs: list[Callable[[shell.Shell], object]] = [
        lambda vm: vm.observe(Look(files=GUEST.FILES, paths=GUEST.PATHS, resolve="proxy.corp.test")),
        lambda vm: vm.observe(Look(root=False)),
        lambda vm: vm.prove(proof),
        lambda vm: vm.reach(("10.0.2.2",), 8123),
        lambda vm: vm.commit(plan, terms, judge=lambda _f: True, verdict=lambda _o: True, step=lambda _t: None),
    ]
    for run in runs:
        connection = Recorder()
        with pytest.raises(LostContact):
            run(shell.open(connection))
        assert set(connection.commands) <= {shell.AS_USER, shell.AS_ROOT}
        assert SECRET not in str(connection.commands)
    assert SECRET.encode() in connection.sent


def test_blobs_say_their_length() -> None:
    """Content is framed by its length, in lines or in bytes, so that nothing in it can end it."""
    plan, terms = hostile_plan()
    data = sending.plan_lines(plan, terms)
    contents = [b"", b"\n", b".\ngo\n", b"no end", b"\0\n", b"\x81\xff\n", b"x" * 9000 + b"\n"]
    data = b"".join(sending.blob(f"content.{i}", content) for i, content in enumerate(contents)) + data
    assert b"lines content.2 2\n" in data
    lines, blobs = [], {}
    while data:
        line, _, data = data.partition(b"\n")
        lines.append(line)
        if line.startswith(b"blob "):
            name, length = line.split()[1:]
            blobs[name.decode()], data = data[: int(length)], data[int(length) :]
            assert data.startswith(b"\n")
            data = data[1:]
        elif line.startswith(b"lines "):
            name, count = line.split()[1:]
            content = b"".join(line + b"\n" for line in data.split(b"\n")[: int(count)])
            blobs[name.decode()], data = content, data[len(content) :]
    assert lines[-1] == b"."
    assert [blobs[f"content.{i}"] for i in range(len(contents))] == contents
    assert blobs["was.0"] == plan.files[0].before.content
    assert blobs["new.0"] == plan.files[0].after.content
    assert all(line.isascii() for line in lines)
    assert not [line for line in lines if SECRET.encode() in line]


@pytest.mark.parametrize("path", ["/a b", "/a\nb", "relative", "/a;b", "/a'b", "/\u00e9", "", "/a\0"])
def test_paths_are_strict(path: str) -> None:
    """A path with characters that a line cannot carry is refused before anything is sent."""
    connection = Recorder()
    with pytest.raises(Refused):
        shell.open(connection).observe(Look(files=(path,)))
    assert not [one for one in (connection.sent,) if path and path.encode() in one]


def test_the_constants_are_quoted_words() -> None:
    """The exec command is one `exec sh …` of plain words, the same for sh, csh and fish; sudo is never asked to ask."""
    assert (shell.PLAIN_USER, shell.PLAIN_ROOT) == ("exec sh -s", "exec sudo -n sh -s")
    for user, root, command in (
        ("docker", True, shell.PLAIN_ROOT),
        ("root", True, shell.PLAIN_USER),
        ("docker", False, shell.PLAIN_USER),
        ("", True, shell.AS_ROOT),
        ("", False, shell.AS_USER),
    ):
        assert shell.first_command(root=root, plain_for=user) == command
    for text in (shell.AS_USER, shell.AS_ROOT):
        words = shlex.split(text)
        assert words[:3] == ["exec", "sh", "-c"]
        assert words[4] == "vmproxy" and words[6:] == []
        assert "!" not in text  # csh's history


def test_f06_a_command_that_ended_before_it_had_read_all_says_why() -> None:
    """sudo says no while the script is still on its way: what it said is the error, not the broken pipe."""

    class Gone(Recorder):
        said = b"sudo: a password is required\n"

        def send(self, data: bytes, *, timeout_seconds: float) -> None:
            raise LostContact("the command in the VM has ended")

        @property
        def stderr(self) -> bytes:
            return self.said

    with pytest.raises(NotPermitted, match="a password is required"):
        shell.open(Gone()).observe(Look(files=GUEST.FILES))
    Gone.said = b""
    with pytest.raises(LostContact, match="has ended"):
        shell.open(Gone()).observe(Look(files=GUEST.FILES))
