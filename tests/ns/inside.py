"""vmproxy inside the VM itself (``--vm local``): a Python there, the package, and what it needs.

::

    with NamespaceVM(more=PYTHON) as vm:
        inside = Inside(vm, tmp_path)
        assert inside.apply("--yes").code == 0
"""

from __future__ import annotations

import importlib.util
import shutil
import time
from collections.abc import Mapping
from pathlib import Path

from tests.lab.nsvm import NamespaceVM
from tests.ns.story import SECONDS, Ran, Vmproxy

PYTHON = ("python3",)
"""Packages for the VM beside the usual ones."""
SITE = "/opt/site-packages"
_NEEDED = ("click", "platformdirs", "pyroute2", "iptc", "vmproxy")


class Inside(Vmproxy):
    """As :class:`tests.ns.story.Vmproxy`, but every run is one inside the VM, as root or as ``user``."""

    def __init__(self, machine: NamespaceVM, directory: Path, *, user: str = "root") -> None:
        super().__init__(machine, directory)
        self.target, self.vm_words, self.user = "local", ("--vm", "local"), user
        if not machine.path(SITE).exists():
            install(machine)

    @property
    def environ(self) -> dict[str, str]:
        """The whole environment of each run."""
        home = "/root" if self.user == "root" else f"/home/{self.user}"
        return {"HOME": home, "LC_ALL": "C.UTF-8", "PYTHONPATH": SITE, "PYTHONDONTWRITEBYTECODE": "1"}

    def argv(self, *words: str) -> list[str]:
        """The words of a process inside the VM."""
        return ["python3", "-m", "vmproxy", *words]

    def run(self, *words: str, environ: Mapping[str, str] | None = None, seconds: float = SECONDS) -> Ran:
        """Any words, inside the VM."""
        started = time.monotonic()
        pairs = [f"{name}={value}" for name, value in {**self.environ, **(environ or {})}.items()]
        done = self.machine.run(["env", *pairs, *self.argv(*words)], user=self.user, check=False, seconds=seconds)
        out, err = done.stdout.decode("utf-8"), done.stderr.decode("utf-8")
        return Ran(argv=words, code=done.returncode, out=out, err=err, seconds=time.monotonic() - started)


def install(machine: NamespaceVM) -> None:
    """The package and its libraries, as this test's own Python has them, into the VM's memory."""
    place = machine.path(SITE)
    place.mkdir(parents=True)
    for name in _NEEDED:
        spec = importlib.util.find_spec(name)
        assert spec is not None
        assert spec.origin is not None, name
        source = Path(spec.origin).parent
        shutil.copytree(source, place / name, ignore=shutil.ignore_patterns("__pycache__"))
        for library in source.parent.glob("libxtwrapper*.so") if name == "iptc" else ():
            shutil.copy(library, place / library.name)
