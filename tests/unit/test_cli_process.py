"""The program as a process: pipes, streams, speed of what it does not import."""

from __future__ import annotations

import os
import subprocess
import sys
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
    import pty

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
