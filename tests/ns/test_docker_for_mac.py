"""docs/docker-for-mac.rst, command by command as it stands there, on a VM of that kind by its serial line and an image.

The VM is the lab's with Debian's OpenRC and Docker; its terminal is linked to where Docker for Mac has it.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fake.serialvm import SerialVM
from tests.lab.nsvm import NamespaceVM
from tests.ns import story
from tests.ns.story import ROOT, Vmproxy, daemon_environment, dump
from tests.ns.test_guests import KINDS, _lay
from tests.unit import images
from vmproxy.initrd import Image

PAGE = ROOT / "docs/docker-for-mac.rst"
SCRIPT = "/etc/init.d/docker"
LINE = "Library/Containers/com.docker.docker/Data/com.docker.driver.amd64-linux/tty"
# What the page names and is another here: where the image is, and a proxy by its own address. The lab's is on the VM's
# host, which the VM reaches as 10.0.2.2.
HERE = {"http://proxy.example.com:8080": "http://10.0.2.2:8123"}
IMAGE = "/Applications/Docker.app/Contents/Resources/moby/initrd.img"


def commands() -> list[str]:
    """The page's lines that are commands, in their order; those that install or only assign stand apart."""
    lines = [line.strip() for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("    ")]
    assert lines[:2] == ["pip install 'vmproxy[console]'", f"image={IMAGE}"]
    assert all(line.startswith("vmproxy ") for line in lines[2:])
    return lines[2:]


class Mac:
    """A host whose user has the VM's line where Docker for Mac links it to, the image, and nothing else."""

    def __init__(self, machine: NamespaceVM, line: SerialVM, home: Path) -> None:
        self.machine, self.home = machine, home
        self.environ = Vmproxy(machine, home).environ
        self.image = home / "moby/initrd.img"
        self.image.parent.mkdir()
        self.image.write_bytes(images.moby())
        link = home / LINE
        link.parent.mkdir(parents=True)
        link.symlink_to(line.path)
        program = home / "bin/vmproxy"
        program.parent.mkdir()
        program.write_text(f'#!/bin/sh\nexec {sys.executable} -m vmproxy "$@"\n')
        program.chmod(0o755)
        self.environ["PATH"] = f"{program.parent}:{self.environ['PATH']}"

    def types(self, line: str) -> subprocess.CompletedProcess[str]:
        """One line of the page at this host's shell."""
        for there, here in HERE.items():
            line = line.replace(there, here)
        argv = ["sh", "-c", f"image={self.image}\n{line}"]
        return subprocess.run(
            argv, env=self.environ, cwd=self.home, stdin=-3, capture_output=True, text=True, timeout=300, check=False
        )

    def state(self) -> tuple[object, ...]:
        """What must come back: the VM's script, rules and environment, the image and what lies beside it."""
        proxies = {name for name in daemon_environment(self.machine) if name.lower().endswith("_proxy")}
        beside = sorted(path.name for path in self.image.parent.iterdir())
        return story.held(self.machine, SCRIPT), dump(self.machine), proxies, self.image.read_bytes(), beside


@pytest.fixture
def mac(tmp_path: Path) -> Iterator[Mac]:
    """The VM runs, Docker in it; nobody has the line."""
    overlay = tmp_path / "overlay"
    overlay.mkdir()
    _lay(overlay, KINDS["moby"])
    (home := tmp_path / "home").mkdir()
    with NamespaceVM(overlay=overlay, more=KINDS["moby"].more) as machine, story.host_proxy(machine):
        enter = ("nsenter", "-t", str(machine.pid), "-m", "-n", "-p", "-u", "-i", "-C", "--", "sh", "-i")
        line = SerialVM(program=enter, ready=b"# ", by_tty=True)
        try:
            yield Mac(machine, line, home)
        finally:
            line.close()
    shutil.rmtree(overlay)


def test_the_page_as_its_reader_types_it(mac: Mac) -> None:
    """Every command ends with 0; after the first two Docker runs with the proxy and the image has it, and after the
    last two the VM and the image are what they were."""
    before = mac.state()
    lines = commands()
    assert [line.split()[1] for line in lines[:2]] == ["apply", "apply"]
    assert [line.split()[1] for line in lines[-2:]] == ["remove", "remove"]
    for number, line in enumerate(lines):
        ran = mac.types(line)
        assert ran.returncode == 0, (line, ran.stdout, ran.stderr)
        if number == 0:
            assert daemon_environment(mac.machine)["http_proxy"] == HERE["http://proxy.example.com:8080"]
            assert "a reboot forgets the change" in ran.stderr
        if number == 1:
            image = Image(mac.image.read_bytes())
            script = image.contents([SCRIPT.encode()], limit_bytes=1 << 20)[SCRIPT.encode()]
            assert b"export http_proxy='http://10.0.2.2:8123'" in script
    assert mac.state() == before


def test_a_proxy_on_the_mac_itself(mac: Mac) -> None:
    """The page's second pair, on a VM and an image that know of nothing: the Mac's own proxy, by the address at which
    the VM sees the Mac, with a door for containers; and the way back."""
    before = mac.state()
    lines = commands()
    pair = [line for line in lines if line.startswith("vmproxy apply") and "--proxy" not in line]
    assert len(pair) == 2
    for line in pair:
        ran = mac.types(line)
        assert ran.returncode == 0, (line, ran.stdout, ran.stderr)
    assert daemon_environment(mac.machine)["http_proxy"] == "http://10.0.2.2:8123"
    assert story.ours(dump(mac.machine))
    image = Image(mac.image.read_bytes())
    script = image.contents([SCRIPT.encode()], limit_bytes=1 << 20)[SCRIPT.encode()]
    assert b"export http_proxy='http://10.0.2.2:8123'" in script
    assert b"VMPROXY-PREROUTING" in script
    for line in lines[-2:]:
        ran = mac.types(line)
        assert ran.returncode == 0, (line, ran.stdout, ran.stderr)
    assert mac.state() == before


def test_both_at_once(mac: Mac) -> None:
    """``--jobs`` takes VMs of different ways in side by side: the line and the image in one command, one line for each
    and a summary; a third that is not there stops neither."""
    before = mac.state()
    both = f"--vm console: --vm initrd:{mac.image}"
    ran = mac.types(f"vmproxy apply --jobs 3 {both} --vm console:/nowhere --proxy http://10.0.2.2:8123")
    assert ran.returncode == 4, ran
    ends = [line for line in ran.stdout.splitlines() if not line.startswith(" ")]  # the others are the proof's legs
    assert sorted(ends) == ["console: done", f"initrd:{mac.image}: done"]
    assert ran.stderr.splitlines()[-1] == "2 of 3 VMs well; 2 changed; not well: console:/nowhere"
    assert mac.types(f"vmproxy status --jobs 2 {both}").returncode == 0
    ran = mac.types(f"vmproxy remove --jobs 2 {both}")
    assert ran.returncode == 0, ran
    assert mac.state() == before
