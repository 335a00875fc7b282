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
    """Half of paramiko's import is for features never used here: it is left out."""
    script = (
        "import sys; from vmproxy.transports.ssh import _library; _library()\n"
        "unwanted = ('invoke', 'asyncio', 'unittest', 'importlib.metadata', 'zipfile', 'tempfile', 'lzma')\n"
        "print([m for m in unwanted if m in sys.modules])"
    )
    assert python(script) == "[]\n"


def test_paramiko_is_whole_for_others() -> None:
    """Another user of paramiko in the process still has Match exec, agents of its own, and the modules themselves."""
    script = (
        "from vmproxy.transports.ssh import _library; paramiko = _library()\n"
        "print(paramiko.config.invoke.run('echo out', hide='stdout').stdout.strip())\n"
        "import invoke; print(invoke.run.__name__)\n"
        "import tempfile; print(paramiko.agent.tempfile.mkdtemp is tempfile.mkdtemp)"
    )
    assert python(script) == "out\nrun\nTrue\n"


def test_paramiko_knows_its_version_and_metadata_is_whole() -> None:
    """``paramiko.__version__`` is the installed one, and importlib.metadata is itself again."""
    script = (
        "from vmproxy.transports.ssh import _library; paramiko = _library()\n"
        "from importlib import metadata\n"
        "print(paramiko.__version__ == metadata.version('paramiko'), metadata.version('click') != '')\n"
        "print(paramiko.metadata.files is metadata.files)"
    )
    assert python(script) == "True True\nTrue\n"


def test_a_version_that_no_directory_tells_is_asked_of_importlib_metadata() -> None:
    """A package installed otherwise than by pip still gets its version, or the usual error."""
    script = (
        "from vmproxy.transports._library import _Metadata\n"
        "from importlib import metadata\n"
        "print(_Metadata('importlib.metadata').version('click') == metadata.version('click'))\n"
        "try: _Metadata('importlib.metadata').version('no-such-package')\n"
        "except metadata.PackageNotFoundError: print('not found')"
    )
    assert python(script) == "True\nnot found\n"


def test_paramiko_that_was_there_before_is_left_alone() -> None:
    """Where paramiko is imported already, nothing is done to it."""
    script = (
        "import paramiko, invoke; from vmproxy.transports.ssh import _library\n"
        "print(_library() is paramiko, paramiko.config.invoke is invoke)"
    )
    assert python(script) == "True True\n"
