"""What a user installs: the built wheel, in an environment of its own, without a compiler."""

from __future__ import annotations

import configparser
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest

import vmproxy

TOP = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.xdist_group("packaging")


@dataclass(frozen=True)
class Installed:
    """The wheel, the source archive and what it was made of, and the directory of the programs of an environment that
    the wheel was installed into."""

    wheel: Path
    archive: Path
    tree: frozenset[str]
    bin: Path
    cwd: Path

    def run(self, *argv: str) -> subprocess.CompletedProcess[str]:
        """One of its programs, with nothing of this environment's."""
        environ = {"PATH": str(self.bin), "HOME": str(self.cwd)}
        return subprocess.run(
            [self.bin / argv[0], *argv[1:]],
            cwd=self.cwd,
            env=environ,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """A source archive of a copy of the tree, and the wheel built from that, as those who package it do; installed with
    its dependencies, as binary packages only."""
    work = tmp_path_factory.mktemp("packaging")
    source = work / "source"
    for name in ("vmproxy", "tests", "docs", "fixtures", "scripts", "benchmarks", ".ci"):
        shutil.copytree(TOP / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for path in (*TOP.glob("*.rst"), *map(TOP.joinpath, ("setup.cfg", "pyproject.toml", "MANIFEST.in", ".gitignore"))):
        shutil.copy(path, source)
    tree = frozenset(path.relative_to(source).as_posix() for path in source.rglob("*") if path.is_file())
    # Names of the pip settings stay (an index, a certificate), those of Python itself do not.
    environ = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    environ |= {"PIP_DISABLE_PIP_VERSION_CHECK": "1", "CC": "/bin/false"}

    def quietly(*argv: object) -> None:
        done = subprocess.run(
            [str(word) for word in argv],
            cwd=work,
            env=environ,
            capture_output=True,
            text=True,
            check=False,
            timeout=570,
        )
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]

    quietly(sys.executable, "-m", "build", "--outdir", work / "dist", source)
    (wheel,) = (work / "dist").glob("*.whl")
    (archive,) = (work / "dist").glob("*.tar.gz")
    quietly(sys.executable, "-m", "venv", work / "venv")
    python = work / "venv" / "bin" / "python"
    quietly(python, "-m", "pip", "install", "--quiet", "--only-binary", ":all:", wheel)
    return Installed(wheel=wheel, archive=archive, tree=tree, bin=python.parent, cwd=work)


def test_the_wheel_holds_the_whole_package_and_nothing_else(installed: Installed) -> None:
    """Every module, every script that runs in a VM and py.typed are in the wheel; tests and docs are not."""
    with zipfile.ZipFile(installed.wheel) as archive:
        packed = {name for name in archive.namelist() if not name.split("/")[0].endswith(".dist-info")}
    wanted = {
        path.relative_to(TOP).as_posix()
        for path in (TOP / "vmproxy").rglob("*")
        if path.suffix in (".py", ".sh") or path.name == "py.typed"
    }
    assert packed == wanted
    assert any(name.endswith(".sh") for name in packed)


def test_the_source_archive_is_the_whole_project(installed: Installed) -> None:
    """Documents, tests, recordings and scripts, these still executable: who packages it needs no clone."""
    with tarfile.open(installed.archive) as archive:
        packed = {member.name.partition("/")[2]: member.mode for member in archive if member.isfile()}
    made = {name for name in packed if name.startswith("vmproxy.egg-info/")} | {"PKG-INFO"}
    assert packed.keys() - made == installed.tree
    assert {"CHANGELOG.rst", "docs/reference.rst", "tests/unit/test_packaging.py"} <= installed.tree
    assert packed["scripts/test"] == 0o755


def test_the_wheel_is_for_every_platform(installed: Installed) -> None:
    """No compiled part: one wheel for Linux, macOS and Windows."""
    assert installed.wheel.name == f"vmproxy-{vmproxy.__version__}-py3-none-any.whl"


@pytest.mark.parametrize("argv", [("vmproxy",), ("python", "-I", "-m", "vmproxy")])
def test_the_installed_program_runs(argv: tuple[str, ...], installed: Installed) -> None:
    """``vmproxy`` and ``python -m vmproxy`` run from anywhere and say the version of the tree."""
    done = installed.run(*argv, "--version")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"vmproxy {vmproxy.__version__}\n", "")
    done = installed.run(*argv, "env", "--proxy", "http://p:1", "--format", "dotenv")
    assert (done.returncode, done.stderr) == (0, "")
    assert "http_proxy=http://p:1\n" in done.stdout


def test_the_installed_package_imports_whole(installed: Installed) -> None:
    """Every module imports with the declared dependencies alone, and finds its scripts."""
    code = """
import importlib, pkgutil, vmproxy
from importlib.resources import files
for found in pkgutil.walk_packages(vmproxy.__path__, "vmproxy."):
    if found.name != "vmproxy.__main__":
        importlib.import_module(found.name)
import click, paramiko, pyroute2, platformdirs
print(sorted(entry.name for entry in files("vmproxy.machines").iterdir() if entry.name.endswith(".sh")))
"""
    done = installed.run("python", "-I", "-c", code)
    assert done.returncode == 0, done.stderr[-800:]
    assert "observe.sh" in done.stdout
    assert "commit.sh" in done.stdout


def test_extras_are_the_ones_promised(installed: Installed) -> None:
    """The optional parts of the design exist by name, and none of them is needed by the core."""
    with zipfile.ZipFile(installed.wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith("METADATA"))
        metadata = archive.read(name).decode()
    extras = {line.partition(": ")[2] for line in metadata.splitlines() if line.startswith("Provides-Extra")}
    assert extras >= {"local", "initrd", "console", "cache", "pip-cache", "rich", "pac", "keyring", "test"}
    assert "Requires-Python: >=3.11" in metadata


def test_test_tools_are_pinned() -> None:
    """Every tool of the test extra has exactly one version, so that the same tree gives the same answer tomorrow."""
    parser = configparser.ConfigParser()
    parser.read(TOP / "setup.cfg", encoding="utf-8")
    tools = parser["options.extras_require"]["test"].strip().splitlines()
    assert len(tools) > 5
    assert all("==" in tool for tool in tools)


@pytest.mark.parametrize("name", ["scripts/test", "scripts/demo", "scripts/lab", ".ci/run"])
def test_scripts_are_there_and_can_be_run(name: str) -> None:
    """The commands that the README names exist, are executable, and parse."""
    path = TOP / name
    assert os.access(path, os.X_OK)
    with path.open("rb") as stream:
        first = stream.readline()
    if b"bash" in first:
        done = subprocess.run(["bash", "-n", path], capture_output=True, check=False)
        assert (done.returncode, done.stderr) == (0, b"")
