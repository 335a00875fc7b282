"""The SSH library is imported late, without what is not needed, and stays whole for others in the process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def python(script: str) -> str:
    """What a fresh interpreter prints."""
    argv = [sys.executable, "-W", "error", "-c", script]
    done = subprocess.run(argv, check=False, capture_output=True, text=True, timeout=60, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_naming_the_transport_imports_no_library() -> None:
    """The transport's module alone brings neither paramiko nor cryptography."""
    script = (
        "import sys, vmproxy.transports.ssh\n"
        "print([m for m in ('paramiko', 'cryptography', 'nacl', 'vmproxy.transports._ssh_config') if m in sys.modules])"
    )
    assert python(script) == "[]\n"


def test_library_comes_without_invoke_and_asyncio() -> None:
    """Half of paramiko's import is for a feature never used here: it is left out."""
    script = (
        "import sys; from vmproxy.transports.ssh import _library; _library()\n"
        "print([m for m in ('invoke', 'asyncio', 'unittest') if m in sys.modules])"
    )
    assert python(script) == "[]\n"


def test_paramiko_is_whole_for_others() -> None:
    """Another user of paramiko in the process still has Match exec, and invoke itself."""
    script = (
        "from vmproxy.transports.ssh import _library; paramiko = _library()\n"
        "print(paramiko.config.invoke.run('echo out', hide='stdout').stdout.strip())\n"
        "import invoke; print(invoke.run.__name__)"
    )
    assert python(script) == "out\nrun\n"


def test_paramiko_that_was_there_before_is_left_alone() -> None:
    """Where paramiko is imported already, nothing is done to it."""
    script = (
        "import paramiko, invoke; from vmproxy.transports.ssh import _library\n"
        "print(_library() is paramiko, paramiko.config.invoke is invoke)"
    )
    assert python(script) == "True True\n"
