"""Debian 13: the proxy in daemon.json, with systemd 257 and Docker 26, over a real reboot; gone again to the byte.

One walk through the VM's life writes down what it saw; each test looks at one part of it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

from tests.lab import default_cache
from tests.lab.proxy import KNOWN, LabProxy
from tests.lab.systemdvm import SystemdVM
from tests.qemu.walks import ENVIRON, DebianWalk, OverSsh, booted

_CONFIG = "/etc/docker/daemon.json"
_INFO = "docker info --format '{{.ServerVersion}} {{.HTTPProxy}} {{.HTTPSProxy}} {{.NoProxy}}'"
# A container asks at its bridge's address for a name that the proxy alone knows.
_ASK = "docker run --rm -e http_proxy=http://172.17.0.1:{port} busybox wget -q -O - http://" + KNOWN + "/"


@dataclass(kw_only=True)
class Walk(DebianWalk):
    """What was seen at each stop of the way."""

    info: dict[str, str] = field(default_factory=dict)
    environ: str = ""
    config: str = ""
    answer: str = ""
    pulled: list[str] = field(default_factory=list)


@pytest.fixture(scope="module")
def walk(host_proxy: LabProxy, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Walk]:
    """apply, a reboot, a container and a pull, remove."""
    seen = Walk()
    with booted(SystemdVM(tmp_path_factory.mktemp("vm"), cache=default_cache(), release="trixie")) as machine:
        command = OverSsh(machine, host_proxy, tmp_path_factory.mktemp("home"))

        def stop(name: str) -> None:
            seen.look(machine, name)
            seen.info[name] = machine.root(_INFO).text

        stop("before")
        # Its proof starts three containers, which are slow here; one is asked below.
        words = ("--via", "daemon-json", "--require-persistent", "--no-verify", "--restart", "always")
        seen.runs["apply"] = command.apply(*words, status=None)
        stop("applied")
        machine.reboot()
        stop("rebooted")
        seen.runs["status"] = command("status", status=None)
        seen.environ = machine.root(ENVIRON, check=False).text
        seen.config = machine.root(f"cat {_CONFIG}").text
        seen.answer = machine.root(_ASK.format(port=host_proxy.port), check=False, timeout_seconds=300).text
        host_proxy.forget()
        machine.root(f"docker pull {KNOWN}/nothing", check=False)
        seen.pulled = host_proxy.lines
        seen.runs["remove"] = command("remove", "--restart", "always", status=None)
        stop("removed")
    yield seen


@pytest.mark.parametrize("name", ["apply", "status", "remove"])
def test_every_command_of_the_way_succeeds(walk: Walk, name: str) -> None:
    """Each command ends with 0, status without any option, and none warns of anything; the disk is a lasting one."""
    ran = walk.runs[name]
    assert ran.status == 0, ran
    assert "warning" not in ran.stderr


def test_docker_works_with_the_proxy_from_its_file_alone(walk: Walk, host_proxy: LabProxy) -> None:
    """After apply and after a reboot docker info names it, with nothing in dockerd's environment; a pull goes there."""
    url = f"http://10.0.2.2:{host_proxy.port}"
    assert walk.info["before"].startswith("26.")
    assert "http://" not in walk.info["before"] + walk.info["removed"]
    assert walk.info["applied"].split()[1:] == [url, url, "localhost,127.0.0.1,::1"]
    assert walk.info["rebooted"] == walk.info["applied"]
    assert walk.environ == ""
    assert f"CONNECT {KNOWN}:443 HTTP/1.1" in walk.pulled


def test_the_file_has_its_own_member_and_ours(walk: Walk) -> None:
    """What the VM had in daemon.json is there still, beside the three names of the proxy."""
    config = json.loads(walk.config)
    assert sorted(config) == ["exec-opts", "proxies"]
    assert sorted(config["proxies"]) == ["http-proxy", "https-proxy", "no-proxy"]


def test_f62_a_reboot_ends_with_the_rules_in_place(walk: Walk) -> None:
    """The same rules, each once, behind Docker's; a container then reaches the proxy at its bridge's address."""
    assert walk.ours("applied")
    assert walk.ours("rebooted") == walk.ours("applied")
    assert walk.last_forward("rebooted").endswith("-j VMPROXY-FORWARD")
    assert "the proxy knows" in walk.answer


def test_remove_leaves_no_trace(walk: Walk) -> None:
    """Files byte for byte, modes, directories; no rule of ours."""
    assert walk.files["applied"] != walk.files["before"]
    assert walk.files["removed"] == walk.files["before"]
    assert sorted(walk.rules["removed"]) == sorted(walk.rules["before"])
