"""Docker for Mac's VM of 2016 by its serial console and its initrd: there is no other way in.

One walk through the VM's life writes down what it saw, by the lab's own reader of the serial line; each test looks at
one part of it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

from tests.lab import default_cache
from tests.lab.moby import SCRIPT, MobyVM
from tests.lab.proxy import ANSWER, KNOWN, LabProxy
from tests.qemu.conftest import Command, Ran
from tests.qemu.walks import booted

_FACTS = f"""
echo "script $(sha256sum {SCRIPT} | cut -c1-64) $(stat -c '%a %u %g' {SCRIPT})"
echo "services $(ls /etc/init.d /etc/conf.d /etc/local.d 2>/dev/null | tr '\\n' ' ')"
tr '\\0' '\\n' </proc/$(cat /run/docker.pid)/environ | grep -i proxy | sort | sed 's/^/environ /'
for table in nat filter; do iptables-save -t $table | sed -e '/^[#:]/d' -e "s/^/$table /"; done
"""
# The rules are set beside Docker's start: until they are there and the part of the init script behind it has ended.
_SETTLE = """
end=$(($(cut -d. -f1 /proc/uptime) + 600))
until grep -q 'rules are in place' /var/log/vmproxy.log && ! grep -q init.d/docker /proc/[0-9]*/cmdline 2>/dev/null; do
    [ $(cut -d. -f1 /proc/uptime) -lt $end ] || { cat /var/log/vmproxy.log; exit 1; }
    usleep 250000
done
"""


class AtAFile(Command):
    """The command for the VM's initrd."""

    def _words(self, command: str, words: tuple[str, ...]) -> list[str]:
        assert isinstance(self.vm, MobyVM)
        return [command, "--vm", f"initrd:{self.vm.initrd}", "--gateway", "10.0.2.2", *words]


class OverConsole(Command):
    """The command for the VM's serial line."""

    def _words(self, command: str, words: tuple[str, ...]) -> list[str]:
        return [command, "--vm", f"console:{self.vm.console_socket}", "--connect-timeout", "180", *words]


@dataclass(kw_only=True)
class Walk:
    """What was seen at each stop of the way: lines of facts by boot, runs of the command, the initrd's sums."""

    runs: dict[str, Ran] = field(default_factory=dict)
    facts: dict[str, list[str]] = field(default_factory=dict)
    flows: dict[str, bytes] = field(default_factory=dict)
    images: dict[str, str] = field(default_factory=dict)
    beside: dict[str, list[str]] = field(default_factory=dict)

    def lines(self, boot: str, kind: str) -> list[str]:
        """The facts of one kind."""
        return [line.partition(" ")[2] for line in self.facts[boot] if line.startswith(f"{kind} ")]

    def rules(self, boot: str) -> list[str]:
        """vmproxy's rules."""
        return sorted(line for line in self.facts[boot] if "VMPROXY" in line)


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MobyVM]:
    """The VM, booted once, with the image ``busybox`` on its disk."""
    with booted(MobyVM(tmp_path_factory.mktemp("vm"), cache=default_cache())) as vm:
        yield vm


@pytest.fixture(scope="module")
def walk(machine: MobyVM, host_proxy: LabProxy, tmp_path_factory: pytest.TempPathFactory) -> Walk:
    """The whole way, once."""
    home = tmp_path_factory.mktemp("home")
    console, file = OverConsole(machine, host_proxy, home), AtAFile(machine, host_proxy, home)
    seen = Walk()

    def look(name: str) -> None:
        seen.facts[name] = machine.root(_FACTS).text.splitlines()

    def image(name: str) -> None:
        seen.images[name] = hashlib.sha256(machine.initrd.read_bytes()).hexdigest()
        seen.beside[name] = sorted(path.name for path in machine.state.iterdir() if path.name.startswith("initrd"))

    def flows(name: str) -> None:
        """A container on a network of one's own asks at the network's address and at docker0's."""
        ways = " && ".join(
            f"http_proxy=http://{address}:{host_proxy.port} wget -q -O - http://{KNOWN}/"
            for address in ("172.30.1.1", "172.17.0.1")
        )
        machine.root("docker network create --subnet 172.30.1.0/24 own")
        seen.flows[name] = machine.root(f"docker run --rm --network own busybox sh -c '{ways}'", check=False).stdout
        machine.root("docker network rm own")

    look("before")
    image("before")
    # Its proof starts three containers, which are slow here; the lab asks from one.
    seen.runs["live apply"] = console.apply("--restart", "always", "--no-verify")
    machine.root(_SETTLE, timeout_seconds=660)
    look("live")
    flows("live")
    seen.runs["live status"] = console("status", status=None)
    image("live")
    machine.reboot()
    look("restarted")
    seen.runs["restarted status"] = console("status", status=None)
    machine.stop()
    for boot, words in {"appended": (), "rewritten": ("--rewrite",)}.items():
        seen.runs[f"apply {boot}"] = file.apply(*words)
        seen.runs[f"status {boot}"] = file("status", status=None)
        image(boot)
        machine.start()
        machine.root(_SETTLE, timeout_seconds=660)
        look(boot)
        flows(boot)
        seen.runs[f"{boot} status"] = console("status", status=None)
        machine.stop()
        seen.runs[f"remove {boot}"] = file("remove", status=None)
        image(f"{boot} and removed")
    machine.start()
    look("removed")
    return seen


@pytest.mark.parametrize("command", ["apply", "status"])
def test_every_command_over_the_console_succeeds(walk: Walk, command: str) -> None:
    """A live edit by the serial line alone: applied with Docker's restart, and then in sync."""
    ran = walk.runs[f"live {command}"]
    assert ran.status == 0, ran


def test_a_live_edit_makes_docker_run_with_the_proxy(walk: Walk, host_proxy: LabProxy) -> None:
    """dockerd was started anew with the variables, in the init script's own block; containers reach the proxy."""
    assert f"http_proxy=http://10.0.2.2:{host_proxy.port}" in walk.lines("live", "environ")
    assert walk.lines("live", "script") != walk.lines("before", "script")
    assert walk.lines("live", "services") == walk.lines("before", "services")
    assert walk.flows["live"] == 2 * ANSWER
    assert walk.rules("live")


def test_that_a_restart_loses_a_live_edit_is_said_and_so(walk: Walk) -> None:
    """apply warns; the VM started anew is as it was, and status says that it differs. The initrd was never touched."""
    assert "a reboot forgets the change" in walk.runs["live apply"].stderr
    assert walk.facts["restarted"] == walk.facts["before"]
    assert walk.runs["restarted status"].status == 1, walk.runs["restarted status"]
    assert walk.images["live"] == walk.images["before"]


@pytest.mark.parametrize("boot", ["appended", "rewritten"])
def test_every_command_at_the_file_succeeds(walk: Walk, boot: str) -> None:
    """apply, status in sync, remove: each ends with 0, without a warning."""
    for command in ("apply", "status", "remove"):
        ran = walk.runs[f"{command} {boot}"]
        assert ran.status == 0, ran
        assert "warning" not in ran.stderr, ran


@pytest.mark.parametrize("boot", ["appended", "rewritten"])
def test_status_over_the_console_knows_the_block_of_the_image(walk: Walk, boot: str) -> None:
    """It looks docker0's address up at boot, where a live edit writes it down: both are as wished."""
    ran = walk.runs[f"{boot} status"]
    assert ran.status == 0, ran


@pytest.mark.parametrize("boot", ["appended", "rewritten"])
def test_the_patched_image_boots_with_the_proxy_set(walk: Walk, host_proxy: LabProxy, boot: str) -> None:
    """dockerd starts with every variable; before and after with none."""
    url = f"http://10.0.2.2:{host_proxy.port}"
    wanted = [f"{name}={url}" for name in ("HTTPS_PROXY", "HTTP_PROXY", "http_proxy", "https_proxy")]
    assert [line for line in walk.lines(boot, "environ") if "no_proxy" not in line.lower()] == wanted
    assert walk.lines("before", "environ") == walk.lines("removed", "environ") == []


@pytest.mark.parametrize("boot", ["appended", "rewritten"])
def test_containers_reach_the_proxy_through_the_door_of_the_image(walk: Walk, boot: str) -> None:
    """By docker0's address and by that of a network of one's own; the rules are there once, behind Docker's."""
    assert walk.flows[boot] == 2 * ANSWER
    assert walk.rules(boot)
    assert len(walk.rules(boot)) == len(set(walk.rules(boot)))
    assert [line for line in walk.lines(boot, "filter") if line.startswith("-A FORWARD")][-1].endswith(
        "-j VMPROXY-FORWARD"
    )


def test_f73_without_us_the_image_is_the_one_before_and_boots_as_before(walk: Walk) -> None:
    """To the byte, without a file beside it; then script, environment, services and rules are what they were."""
    for boot in ("appended", "rewritten"):
        assert walk.images[boot] != walk.images["before"]
        assert walk.beside[boot] == ["initrd.img", "initrd.img.vmproxy-backup"]
        assert walk.images[f"{boot} and removed"] == walk.images["before"]
        assert walk.beside[f"{boot} and removed"] == ["initrd.img"]
    assert walk.facts["removed"] == walk.facts["before"]
    assert walk.facts["appended"] != walk.facts["before"]
