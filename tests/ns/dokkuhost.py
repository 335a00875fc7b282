"""A VM of the lab that is a Dokku host: the stand-in ``tests/lab/stub/dokku``, and what it holds.

::

    host = DokkuLab(vm)
    host.dokku("apps:create", "web")
    before = host.state()
    assert host.config()["http_proxy"] == "http://172.17.0.1:8123"
"""

from __future__ import annotations

import ast
import json
import shutil
from pathlib import Path
from typing import Any

from tests.lab.nsvm import NamespaceVM

STUB = Path(__file__).resolve().parents[1] / "lab" / "stub" / "dokku"
LIB = "/var/lib/dokku"
RECORD = "/var/lib/vmproxy/dokku.json"
PACKAGES = ("python3",)
"""What the stand-in needs beside a VM's own packages."""


class DokkuLab:
    """One VM's Dokku. :meth:`fresh` makes it anew: ``web`` is built from a Dockerfile, ``pack`` by buildpacks, ``new``
    was never built; one global variable, one of an app and options are somebody's."""

    def __init__(self, machine: NamespaceVM) -> None:
        self.machine = machine

    def fresh(self, *, version: str = "0.38.27") -> None:
        """An installed Dokku with its apps."""
        machine = self.machine
        self.gone()
        target = machine.path("/usr/local/bin/dokku")
        target.write_bytes(STUB.read_bytes())
        target.chmod(0o755)
        for name in (f"{LIB}/config", "/home/dokku", "/run/lab/dokku"):
            machine.path(name).mkdir(parents=True, exist_ok=True)
        machine.path(f"{LIB}/VERSION").write_text(f"v{version}\n", encoding="utf-8")
        for name in ("web", "pack", "new"):
            self.dokku("apps:create", name)
        self.dokku("builder:set", "web", "selected", "dockerfile")
        built = machine.path(f"{LIB}/config/builder/pack/detected")
        built.parent.mkdir(parents=True, exist_ok=True)
        built.write_text("herokuish", encoding="utf-8")
        self.dokku("config:set", "--global", "SENTRY=it's $5 \"a\" `b` \\ %")
        self.dokku("config:set", "--no-restart", "pack", "SECRET_KEY=of-the-app")
        self.dokku("docker-options:add", "web", "build,deploy", "--link dokku.postgres.main:dokku-postgres-main")
        self.dokku("docker-options:add", "web", "build", "--build-arg NODE_ENV")
        machine.path("/run/lab/dokku/argv").unlink()

    def gone(self) -> None:
        """No Dokku at all."""
        self.machine.path("/usr/local/bin/dokku").unlink(missing_ok=True)
        for name in (LIB, "/home/dokku", "/run/lab/dokku", "/var/lib/vmproxy"):
            shutil.rmtree(self.machine.path(name), ignore_errors=True)

    def dokku(self, *words: str, stdin: bytes = b"", check: bool = True) -> str:
        """Somebody's ``dokku …`` in the VM; its stdout."""
        return self.machine.run(["dokku", *words], stdin=stdin, check=check).stdout.decode()

    def config(self, scope: str = "--global") -> dict[str, Any]:
        """A scope's variables, as Dokku tells them."""
        found: dict[str, Any] = json.loads(self.dokku("config:export", "--format", "json", scope))
        return found

    def build(self, app: str) -> list[str]:
        """An app's build options."""
        path = self.machine.path(f"{LIB}/config/docker-options/{app}/_default_.build")
        return path.read_text(encoding="utf-8").splitlines() if path.exists() else []

    def state(self) -> dict[str, tuple[bytes, int]]:
        """Every file of Dokku's, its bytes and mode, and our record. A file without lines is as none to Dokku."""
        found = {}
        for top in (LIB, "/home/dokku", "/var/lib/vmproxy"):
            for path in sorted(self.machine.path(top).rglob("*")):
                if path.is_file() and path.read_bytes().strip():
                    name = f"{top}/{path.relative_to(self.machine.path(top))}"
                    found[name] = (path.read_bytes(), path.stat().st_mode & 0o7777)
        return found

    def switch(self, name: str, text: str) -> None:
        """One of the stand-in's switches."""
        self.machine.path(f"/run/lab/dokku/{name}").write_text(text, encoding="utf-8")

    def off(self, *names: str) -> None:
        """Switches off."""
        for name in names:
            self.machine.path(f"/run/lab/dokku/{name}").unlink(missing_ok=True)

    def argvs(self) -> list[list[str]]:
        """Every command line since :meth:`fresh`, or since the last call."""
        path = self.machine.path("/run/lab/dokku/argv")
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        path.unlink(missing_ok=True)
        return [ast.literal_eval(line) for line in lines]
