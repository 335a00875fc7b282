"""apply, a real reboot, verify, remove on one VM: what lasts, what a container reaches, and that nothing is left.

One walk through the VM's life writes down what it saw; each test looks at one part of it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.lab.proxy import LabProxy
from tests.lab.qemu import QemuVM
from tests.qemu.conftest import Command, Ran

_FLOWS = Path(__file__).with_name("flows.sh").read_bytes()
_UNCHANGED = {
    "bridge-to-another-port-of-the-host": "none",
    "bridge-to-the-host": "proxy",
    "bridge-to-unrelated-host": "outside sees 203.0.113.1",
    "bridge-to-uplink": "uplink sees 172.17.",
    "internal-to-docker0": "none",
    "internal-to-its-own-gateway": "none",
    "internal-to-the-host": "none",
    "lan-to-docker0": "none",
    "lan-to-the-host-through-the-vm": "none",
    "lan-to-the-vm": "none",
    "outside-to-a-published-port": "published sees 203.0.113.9",
    "own-to-unrelated-host": "outside sees 203.0.113.1",
    "own-to-uplink": "uplink sees 172.30.1.",
}
_OPENED = (
    "bridge-to-its-own-address",
    "own-to-its-own-gateway",
    "own-to-docker0",
    "unmasked-to-its-own-gateway",
    "unmasked-to-docker0",
)
_RULES = "for t in nat filter; do iptables-save -t $t | sed -e '/^#/d' -e 's/ \\[.*//'; done"
_FILES = (
    "cd /var/lib/boot2docker/ && find . -path ./log -prune -o -path ./ssh -prune -o -type f -print | sort | "
    "while read -r f; do ls -ln $f | awk '{print $1, $3, $4}'; sha256sum $f; done"
)
_ENVIRON = "tr '\\0' '\\n' </proc/$(cat /var/run/docker.pid)/environ | grep -i proxy"


@dataclass(kw_only=True)
class Walk:
    """What was seen at each stop of the way."""

    runs: dict[str, Ran] = field(default_factory=dict)
    rules: dict[str, str] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)
    flows: dict[str, dict[str, str]] = field(default_factory=dict)
    info: str = ""
    pulled: list[str] = field(default_factory=list)
    environ: str = ""


@pytest.fixture(scope="module")
def walk(vm: QemuVM, host_proxy: LabProxy, tmp_path_factory: pytest.TempPathFactory) -> Walk:
    """The whole way, once."""
    command = Command(vm, host_proxy, tmp_path_factory.mktemp("home"))
    seen = Walk()

    def settle() -> None:
        """Until the boot script's part that runs beside Docker's start has ended."""
        vm.root("n=0; while pgrep -f '[b]ootlocal.sh' && [ $n -lt 600 ]; do n=$((n + 1)); usleep 200000; done")

    def stop(name: str) -> None:
        settle()
        seen.rules[name] = vm.root(_RULES).text
        seen.files[name] = vm.root(_FILES).text

    def flows() -> dict[str, str]:
        said = vm.root(f"cat >/run/flows.sh; sh /run/flows.sh {host_proxy.port}", stdin=_FLOWS, timeout_seconds=600)
        # Networks of one's own come and go with Docker; only vmproxy's rules are of interest to the other stops.
        vm.root("docker rm -f c-bridge c-own c-unmasked c-closed; docker network rm own unmasked closed")
        vm.root("ip netns del lan; ip netns del outside; ip link del eth7; ip link del eth8", check=False)
        return dict(line.split(": ", 1) for line in said.text.splitlines())

    stop("before")
    seen.runs["apply"] = command.apply("--require-persistent", status=None)
    stop("applied")
    seen.runs["again"] = command.apply(status=None)
    stop("again")
    seen.info = vm.run("docker info 2>/dev/null").text
    host_proxy.forget()
    vm.run("docker pull nowhere.test/nothing", check=False)
    seen.pulled = host_proxy.lines
    vm.reboot()
    seen.runs["verify"] = command("verify", status=None)
    stop("rebooted")
    for name in ("bootlocal once more", "bootlocal twice more"):
        vm.root("sh /var/lib/boot2docker/bootlocal.sh")
        stop(name)
    seen.environ = vm.root(_ENVIRON).text
    seen.runs["status"] = command("status", status=None)
    seen.flows["rebooted"] = flows()
    seen.runs["remove"] = command("remove", status=None)
    stop("removed")
    seen.runs["remove again"] = command("remove", status=None)
    seen.flows["removed"] = flows()
    return seen


@pytest.mark.parametrize("name", ["apply", "again", "verify", "status", "remove", "remove again"])
def test_every_command_of_the_way_succeeds(walk: Walk, name: str) -> None:
    """Each command ends with 0, and none warns of anything."""
    ran = walk.runs[name]
    assert ran.status == 0, ran
    assert "warning" not in ran.stderr


def test_a_second_apply_changes_nothing(walk: Walk) -> None:
    """I4: after the second apply rules and files are what they were after the first, which had changed them."""
    assert walk.rules["applied"] != walk.rules["before"]
    assert walk.rules["again"] == walk.rules["applied"]
    assert walk.files["again"] == walk.files["applied"]


def test_docker_info_shows_the_proxy(walk: Walk, host_proxy: LabProxy) -> None:
    """The daemon itself says that it uses the host's proxy."""
    assert f"HTTP Proxy: http://10.0.2.2:{host_proxy.port}" in walk.info
    assert f"HTTPS Proxy: http://10.0.2.2:{host_proxy.port}" in walk.info


def test_a_pull_asks_the_hosts_proxy(walk: Walk) -> None:
    """A pull's CONNECT reaches the proxy on the host."""
    assert any(line.startswith("CONNECT nowhere.test:443 ") for line in walk.pulled), walk.pulled


def test_f62_rules_and_environment_come_back_after_a_reboot(walk: Walk, host_proxy: LabProxy) -> None:
    """F62: profile and bootlocal.sh alone give the same rules and environment; run twice more, still so."""
    ours = [line for line in walk.rules["applied"].splitlines() if "VMPROXY" in line]
    assert ours
    assert [line for line in walk.rules["rebooted"].splitlines() if "VMPROXY" in line] == ours
    # At boot ours may come before Docker's own; neither run makes more or fewer of them.
    assert sorted(walk.rules["bootlocal once more"].splitlines()) == sorted(walk.rules["rebooted"].splitlines())
    assert walk.rules["bootlocal twice more"] == walk.rules["bootlocal once more"]
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        assert f"{name}=http://10.0.2.2:{host_proxy.port}" in walk.environ.splitlines()


@pytest.mark.parametrize("flow", _OPENED)
def test_containers_reach_the_proxy_after_a_reboot(walk: Walk, flow: str) -> None:
    """The wanted rows of the flow table: the host's proxy after the reboot, no connection after remove."""
    assert walk.flows["rebooted"][flow] == "proxy"
    assert walk.flows["removed"][flow] == "none"


@pytest.mark.parametrize("flow", _UNCHANGED)
def test_every_other_flow_is_as_it_was(walk: Walk, flow: str) -> None:
    """The other rows: the same answer after the reboot as after remove, with the client's true address."""
    for state in ("rebooted", "removed"):
        assert walk.flows[state][flow].startswith(_UNCHANGED[flow]), state


def test_remove_leaves_no_trace(walk: Walk) -> None:
    """I3: files byte for byte, modes and absence as before apply; no rule or chain of ours."""
    assert walk.files["removed"] == walk.files["before"]
    assert sorted(walk.rules["removed"].splitlines()) == sorted(walk.rules["before"].splitlines())
