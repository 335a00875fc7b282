"""Credentials in the proxy's URL: dockerd gets them, and nobody else does (T06)."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.nsvm import NamespaceVM
from tests.lab.proxy import LabProxy
from tests.ns.story import DATA, PROFILE, Ran, Vmproxy, daemon_environment, held, host_proxy, reset, until

REGISTRY = "192.0.2.7:5000"
USER, SECRET = "build%40site", "p%27a%24%24%25w0rd"
PLAIN_SECRET = "p'a$$%w0rd"
SECRETS = (SECRET, PLAIN_SECRET, "w0rd")


class Watch(threading.Thread):
    """Reads the words of every process there is, over and over, until told to stop."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.found: set[str] = set()
        self._end = threading.Event()

    def run(self) -> None:
        while not self._end.wait(0.02):
            for pid in filter(str.isdigit, os.listdir("/proc")):
                with contextlib.suppress(OSError):
                    words = Path(f"/proc/{pid}/cmdline").read_bytes()
                    if any(secret.encode() in words for secret in SECRETS):
                        self.found.add(words.decode("utf-8", "replace"))

    def __enter__(self) -> Watch:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self.join()


def told_nothing(ran: Ran) -> Ran:
    """The run, in whose output no secret may stand."""
    assert not [secret for secret in SECRETS if secret in ran.all], ran
    return ran


@pytest.fixture(scope="module")
def booted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Vmproxy, LabProxy]]:
    """One VM with real dockerd, and the proxy on its host."""
    with NamespaceVM() as machine, host_proxy(machine) as proxy:
        machine.import_image()
        yield Vmproxy(machine, tmp_path_factory.mktemp("home")), proxy


@pytest.fixture
def world(booted: tuple[Vmproxy, LabProxy]) -> Iterator[tuple[Vmproxy, LabProxy]]:
    """The same, booted anew without anything of ours."""
    vmproxy, proxy = booted
    reset(vmproxy.machine)
    yield vmproxy, proxy
    proxy.mode = "proxy"


def test_watch_sees_the_words_of_processes() -> None:
    """The watch of the next test does see a secret in somebody's argv."""
    argv = [sys.executable, "-c", "import time; time.sleep(600)", "w0rd"]
    with Watch() as watch, subprocess.Popen(argv) as process:
        try:
            until(lambda: bool(watch.found), "the watch sees it")
        finally:
            process.kill()


def test_credentials_reach_dockerd_and_nobody_else(world: tuple[Vmproxy, LabProxy]) -> None:
    """A URL with credentials: profile 0600, dockerd gets them exactly; no argv, output, log or other file has them."""
    vmproxy, proxy = world
    proxy.mode, proxy.credentials = "auth", f"build@site:{PLAIN_SECRET}"
    machine = vmproxy.machine
    machine.path(PROFILE).write_bytes(b"# mine\n")
    machine.path(PROFILE).chmod(0o664)
    before = held(machine, PROFILE)
    secret_url = f"http://{USER}:{SECRET}@127.0.0.1:8123"
    said = Vmproxy(machine, vmproxy.home, environ={"VMPROXY_PROXY": secret_url})
    with Watch() as watch:
        dry = told_nothing(said.apply("--dry-run", "-v", "--debug"))
        assert dry.code == 0, dry
        assert "http_proxy" in dry.out
        ran = told_nothing(said.apply("-vv", "--debug"))
        assert ran.code == 0, ran
        for command in ("status", "verify"):
            run = told_nothing(said.command(command, "-v"))
            assert run.code == 0, run
            # Without the variable the record in the VM is enough.
            bare = told_nothing(vmproxy.json(command))
            assert bare.code == 0, bare
        assert vmproxy.apply().code == 0
        told_nothing(vmproxy.remove("--dry-run"))
        machine.run(["timeout", "60", "docker", "pull", f"{REGISTRY}/app"], check=False)
    assert watch.found == set()
    inside = f"http://{USER}:{SECRET}@10.0.2.2:8123"
    assert daemon_environment(machine)["https_proxy"] == inside
    assert daemon_environment(machine)["HTTP_PROXY"] == inside
    authorized = [request for request in proxy.requests if REGISTRY in request.line]
    assert any(header.startswith("Proxy-Authorization: Basic") for header in authorized[-1].headers)
    profile = held(machine, PROFILE)
    assert profile is not None
    assert (profile.mode, SECRET.encode() in profile.content) == ("0600", True)
    # Every file of the VM's memory and disk that was written, and every file of the user's on the host.
    where = f"/run /tmp /var/log /home /root {DATA}"
    hits = machine.run(["sh", "-c", f"grep -rl -s -F -e w0rd {where}"], check=False).stdout.decode().split()
    assert hits == [PROFILE]
    for path in vmproxy.home.rglob("*"):
        assert not path.is_file() or b"w0rd" not in path.read_bytes(), path
    removed = told_nothing(vmproxy.remove())
    assert removed.code == 0, removed
    assert held(machine, PROFILE) == before
    assert not any("w0rd" in value for value in daemon_environment(machine).values())


def test_new_credentials_replace_the_old_ones(world: tuple[Vmproxy, LabProxy]) -> None:
    """A second apply with another password changes what dockerd has; one without any opens the profile again."""
    vmproxy, _ = world
    for url, wanted, mode in (
        ("http://me:first@127.0.0.1:8123", "http://me:first@10.0.2.2:8123", "0600"),
        ("http://me:second@127.0.0.1:8123", "http://me:second@10.0.2.2:8123", "0600"),
        ("http://127.0.0.1:8123", "http://10.0.2.2:8123", "0644"),
    ):
        ran = vmproxy.apply("--no-verify", environ={"VMPROXY_PROXY": url})
        assert ran.code == 0, ran
        assert daemon_environment(vmproxy.machine)["http_proxy"] == wanted
        profile = held(vmproxy.machine, PROFILE)
        assert profile is not None
        assert profile.mode == mode
