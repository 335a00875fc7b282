"""The program as a process: pipes, streams, speed of what it does not import."""

from __future__ import annotations

import fcntl
import os
import pty
import signal
import socket
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest

TOP = Path(__file__).resolve().parents[2]


def vmproxy(*argv: str, code: str = "", **words: object) -> subprocess.CompletedProcess[str]:
    """``python -m vmproxy`` with the words."""
    program = ["-c", code] if code else ["-m", "vmproxy", *argv]
    return subprocess.run(
        [sys.executable, *program], cwd=TOP, capture_output=True, text=True, check=False, timeout=60, **words
    )  # type: ignore[call-overload,no-any-return]


def test_f69_a_closed_pipe_is_exit_141_and_silent() -> None:
    """``vmproxy … | head``: no traceback, no "Exception ignored", exit 141."""
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "vmproxy", "--help"],
            cwd=TOP,
            stdout=writing,
            stderr=subprocess.PIPE,
            check=False,
            timeout=60,
        )
    finally:
        os.close(writing)
    assert (done.returncode, done.stderr) == (141, b"")


@pytest.mark.parametrize("words", [("--help",), ("env", "--proxy", "http://p:1"), ("env", "--json", "--proxy", "http://p:1")])
def test_f69_a_full_disk_behind_stdout_is_one_line(words: tuple[str, ...]) -> None:
    """``vmproxy … > FILE`` on a full disk: one error line, exit 2, no report of a bug."""
    with open("/dev/full", "w", encoding="utf-8") as full:
        done = subprocess.run(
            [sys.executable, "-m", "vmproxy", *words],
            cwd=TOP, stdout=full, stderr=subprocess.PIPE, text=True, check=False, timeout=60,
        )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.startswith("vmproxy: error: the result cannot be written: No space left on device")
    assert done.stderr.count("\n") == 2


def test_f69_every_vm_has_its_turn_though_nobody_reads() -> None:
    """The reader goes away after the first line of several VMs: the stories go on, then it is exit 141 (or theirs)."""
    code = """
import sys, types, vmproxy
from vmproxy.model import Report
told = []
def status(target, settings, **words):
    told.append(target)
    return Report(target=target, message="in sync", exit=%d, ok=%r)
vmproxy.converge = sys.modules["vmproxy.converge"] = types.SimpleNamespace(status=status)
from vmproxy.cli.edge import run
ended = run(["status", "--vm", "a,b,c"])
print(*told, ended, file=sys.stderr)
"""
    good, bad = "3 of 3 VMs well\n", "0 of 3 VMs well; not well: a, b, c\n"
    for values, wanted in (((0, True), f"{good}a b c 141\n"), ((1, False), f"{bad}a b c 1\n")):
        reading, writing = os.pipe()
        os.close(reading)
        try:
            done = subprocess.run(
                [sys.executable, "-c", code % values],
                cwd=TOP,
                stdout=writing,
                stderr=subprocess.PIPE,
                text=True,
                check=False,
                timeout=60,
            )
        finally:
            os.close(writing)
        assert done.stderr == wanted


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-", "<&-"])
def test_f69_streams_that_were_never_open(closed: str) -> None:
    """Started without stdout, stderr or stdin, as by some hooks: the exit code is still the right one."""
    for argv, code in (("env --proxy http://p:1", 0), ("env --proxy nonsense", 2)):
        done = subprocess.run(
            ["bash", "-c", f'"$0" -m vmproxy {argv} {closed}', sys.executable],
            cwd=TOP,
            capture_output=True,
            check=False,
        )
        assert done.returncode == code
        assert b"Traceback" not in done.stderr


def test_help_imports_nothing_heavy() -> None:
    """``--help`` and ``env`` load neither paramiko nor pyroute2 nor a story (PERFORMANCE, the 5x row)."""
    code = (
        "import sys\nfrom vmproxy.cli.edge import run\n"
        "run(%r)\nprint(*(name for name in sys.modules), file=sys.stderr)\n"
    )
    for argv, barred in (
        (["--help"], {"vmproxy.model", "vmproxy.config", "tomllib", "json", "traceback"}),
        (["apply", "--help"], {"vmproxy.converge", "vmproxy.transports"}),
        (["env"], {"vmproxy.converge", "vmproxy.transports"}),
    ):
        loaded = set(vmproxy(code=code % (argv,)).stderr.split())
        assert loaded & {"click"}
        assert not loaded & ({"paramiko", "pyroute2", "platformdirs", "socket", "asyncio", "ssl"} | barred)


def test_output_survives_a_terminal_without_unicode() -> None:
    """Where stdout cannot carry an ellipsis the help text shows its escape, and is no bug."""
    done = vmproxy("--help", env={**os.environ, "PYTHONIOENCODING": "latin-1"})
    assert done.returncode == 0
    assert "VMPROXY_\\u2026" in done.stdout


@pytest.mark.parametrize("argv", [["--help"], ["--version"]])
def test_module_and_script_are_the_same_program(argv: list[str]) -> None:
    """``python -m vmproxy`` says vmproxy, not __main__.py."""
    done = vmproxy(*argv)
    assert done.returncode == 0
    assert "__main__" not in done.stdout


def test_questions_need_a_terminal_on_both_ends() -> None:
    """A question is possible only where stdin and stderr are both terminals."""
    ours, theirs = pty.openpty()
    program = [sys.executable, "-c", "from vmproxy.cli.output import may_ask; print(may_ask())"]
    for stdin, stderr, wanted in (
        (theirs, theirs, "True"),
        (theirs, subprocess.PIPE, "False"),
        (subprocess.DEVNULL, theirs, "False"),
    ):
        done = subprocess.run(
            program,
            cwd=TOP,
            stdin=stdin,
            stderr=stderr,
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        assert done.stdout.strip() == wanted
    os.close(ours)
    os.close(theirs)


@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGHUP", 129)])
def test_f28_a_signal_while_connecting_ends_it_with_one_line(name: str, code: int, tmp_path: Path) -> None:
    """A VM that accepts and says nothing: Ctrl-C ends the wait at once, with one line and 128 + n."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        server.settimeout(60)
        place = f"ssh://somebody@127.0.0.1:{server.getsockname()[1]}"
        argv = ["status", "--vm", place, "--connect-timeout", "300", "--known-hosts", str(tmp_path / "known")]
        running = subprocess.Popen(
            [sys.executable, "-m", "vmproxy", *argv],
            cwd=TOP,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            connection, _ = server.accept()
            with connection:
                running.send_signal(getattr(signal, name))
                out, err = running.communicate(timeout=60)
        finally:
            running.kill()
            running.wait()
    assert (running.returncode, out, err) == (code, "", f"vmproxy: error: {place}: interrupted\n")


@pytest.mark.parametrize(("columns", "wanted"), [(20, 19), (0, 78), (200, 78)])
def test_progress_fits_into_one_line_of_the_terminal(columns: int, wanted: int) -> None:
    """What is written over has to be one line, on a narrow terminal too; one that does not say is taken for 80 wide."""
    code = f"""
from vmproxy.cli.output import Output
from vmproxy.model import Event
output = Output()
output.progress(Event(target="default", text={"x" * 100!r}))
output.clear_progress()
"""
    ours, theirs = pty.openpty()
    try:
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        subprocess.run([sys.executable, "-c", code], cwd=TOP, stderr=theirs, check=True, timeout=60)
        line, blanks, *_ = os.read(ours, 4096).decode().split("\r")
    finally:
        os.close(theirs)
        os.close(ours)
    assert line == ("default: " + "x" * 100)[:wanted]
    assert blanks == " " * wanted


def test_questions_and_their_answers_on_a_terminal() -> None:
    """Yes is only y or yes; a password is read without echo; Ctrl-C at a question is an interruption, not an answer."""
    code = """
import fcntl, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)  # so that ^C of this terminal reaches this process
from vmproxy.cli.output import Output
output = Output()
print(output.confirm("stop 2 containers?"), output.confirm("again?"), output.ask("password:"), flush=True)
from vmproxy.cli import signals
try:
    with signals.as_interruption():
        output.confirm("really?")
except KeyboardInterrupt as error:
    print(type(error).__name__, error.exit)
"""
    ours, theirs = pty.openpty()
    running = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=TOP,
        stdin=theirs,
        stderr=theirs,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    os.close(theirs)
    shown = b""

    def until(text: bytes) -> None:
        nonlocal shown
        while text not in shown:
            shown += os.read(ours, 4096)

    try:
        for question, answer in ((b"containers?", b"y\n"), (b"again?", b"perhaps\n"), (b"password:", b"s3cret\n")):
            until(question)
            os.write(ours, answer)
        until(b"really?")
        os.write(ours, b"\x03")
        out = running.communicate(timeout=60)[0]
    finally:
        running.kill()
        running.wait()
        os.close(ours)
    assert out == "True False s3cret\nInterrupted 130\n"
    assert b"s3cret" not in shown
    assert b"stop 2 containers? [y/N] " in shown


def test_f28_a_signal_that_lands_in_a_destructor_is_not_lost() -> None:
    """Python drops what is raised in a destructor: the command ends by its signal all the same, and says no more."""
    code = """
import os, signal, sys, time
from vmproxy.cli import signals
from vmproxy.errors import Interrupted

class Thing:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGTERM)
        for _ in range(1000):  # the handler runs in here
            pass

try:
    with signals.as_interruption():
        Thing()
        time.sleep(600)
        print("lost")
except Interrupted as error:
    print(error.exit)
"""
    done = vmproxy(code=code)
    assert (done.stdout, done.stderr) == ("143\n", "")
