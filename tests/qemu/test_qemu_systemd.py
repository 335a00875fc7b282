"""A Debian machine with systemd: apply, Docker's own restart, a real reboot, the flow table, remove; all on a disk.

One walk through the VM's life writes down what it saw; each test looks at one part of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

from tests.lab import default_cache
from tests.lab.proxy import LabProxy
from tests.lab.systemdvm import SystemdVM
from tests.qemu.test_qemu_apply import _FLOWS, _OPENED, _UNCHANGED
from tests.qemu.walks import ENVIRON, DebianWalk, OverSsh, booted
from vmproxy.guests import systemd

# Nothing of vmproxy's is active, failed or waiting once a change is over.
_UNITS = f"systemctl list-units --all --plain --no-legend --no-pager {systemd.UNIT_NAME}"
# It fails once, as where a rule could not be made, and its files are as they were.
_DROP_IN = f"/run/systemd/system/{systemd.UNIT_NAME}.d"
_FAILS = f"""
mkdir -p {_DROP_IN}; printf '[Service]\\nExecStart=\\nExecStart=/bin/false\\n' >{_DROP_IN}/fails.conf
systemctl daemon-reload; ! systemctl start {systemd.UNIT_NAME} || exit
rm -r {_DROP_IN}; systemctl daemon-reload
"""

# All that systemd tells of docker.service, which it tells to everybody, and what root finds in the file.
_FILE = systemd.ENVIRONMENT
_SHOWN = f"systemctl show --no-pager docker.service; stat -c 'mode %a' {_FILE}; grep -c hunter22 {_FILE}"


@dataclass(kw_only=True)
class Walk(DebianWalk):
    """What was seen at each stop of the way."""

    environ: dict[str, str] = field(default_factory=dict)
    failed: str = ""
    units: str = ""
    shown: str = ""
    flows: dict[str, str] = field(default_factory=dict)


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SystemdVM]:
    """The VM, booted, with the image ``busybox``."""
    with booted(SystemdVM(tmp_path_factory.mktemp("vm"), cache=default_cache())) as vm:
        yield vm


@pytest.fixture(scope="module")
def walk(machine: SystemdVM, host_proxy: LabProxy, tmp_path_factory: pytest.TempPathFactory) -> Walk:
    """The whole way, once."""
    command = OverSsh(machine, host_proxy, tmp_path_factory.mktemp("home"))
    seen = Walk()

    def stop(name: str) -> None:
        seen.look(machine, name)
        seen.environ[name] = machine.root(ENVIRON, check=False).text

    stop("before")
    # Its proof starts three containers, which are slow here; the flow table asks more. --restart auto would ask what
    # runs, of a Docker that is still busy with its start, and put the restart off.
    words = ("--require-persistent", "--no-verify", "--restart", "always")
    seen.runs["apply"] = command.apply(*words, status=None)
    stop("applied")
    assert seen.runs["apply"].status == 0, seen.runs["apply"]
    machine.root("systemctl restart docker", timeout_seconds=300)
    stop("restarted")
    machine.reboot()
    stop("rebooted")
    seen.runs["status"] = command("status", status=None)
    # busybox's server and client, as in the VM that the table was written for.
    links = "mkdir -p /run/bb; for name in httpd wget; do ln -sf /usr/bin/busybox /run/bb/$name; done"
    said = machine.root(
        f"{links}; cat >/run/flows.sh; PATH=/run/bb:$PATH sh /run/flows.sh {host_proxy.port}",
        stdin=_FLOWS,
        timeout_seconds=600,
    )
    seen.flows = dict(line.split(": ", 1) for line in said.text.splitlines())
    machine.root("docker rm -f c-bridge c-own c-unmasked c-closed; docker network rm own unmasked closed")
    machine.root("ip netns del lan; ip netns del outside; ip link del eth7; ip link del eth8", check=False)
    # The same proxy with credentials, without a restart: only what systemd tells of them is of interest here.
    secret = f"http://kit:hunter22@127.0.0.1:{host_proxy.port}"
    words = ("--proxy", secret, "--restart", "never", "--no-verify")
    seen.runs["secret"] = command("apply", *words, status=None)
    seen.shown = machine.root(_SHOWN).text
    machine.root(_FAILS, timeout_seconds=300)
    seen.failed = machine.root(_UNITS).text
    seen.runs["remove"] = command("remove", "--restart", "always", status=None)
    stop("removed")
    seen.units = machine.root(_UNITS).text
    return seen


@pytest.mark.parametrize("name", ["apply", "status", "remove"])
def test_every_command_of_the_way_succeeds(walk: Walk, name: str) -> None:
    """Each command ends with 0, and none warns of anything; the disk is a lasting one."""
    ran = walk.runs[name]
    assert ran.status == 0, ran
    assert "warning" not in ran.stderr


def test_f62_a_docker_restart_and_a_reboot_end_with_the_rules_in_place(walk: Walk) -> None:
    """The unit that the drop-in wants makes the same rules, each once, behind Docker's; nothing had to be enabled."""
    assert walk.ours("applied")
    for name in ("restarted", "rebooted"):
        assert walk.ours(name) == walk.ours("applied"), name
        assert walk.last_forward(name).endswith("-j VMPROXY-FORWARD")


def test_the_daemon_has_the_variables_until_remove(walk: Walk, host_proxy: LabProxy) -> None:
    """systemd gives dockerd all of them after apply, a restart and a reboot, and none before and after."""
    wanted = f"http_proxy=http://10.0.2.2:{host_proxy.port}"
    assert [wanted in walk.environ[name].splitlines() for name in ("applied", "restarted", "rebooted")] == [True] * 3
    assert walk.environ["restarted"] == walk.environ["applied"] == walk.environ["rebooted"]
    assert walk.environ["before"] == walk.environ["removed"] == ""


def test_credentials_are_not_what_systemctl_show_tells(walk: Walk) -> None:
    """systemd reads them from a file of root's, and tells its name alone; Docker was not restarted for it: exit 3."""
    assert walk.runs["secret"].status == 3, walk.runs["secret"]
    properties, _, file = walk.shown.partition("mode ")
    assert f"EnvironmentFiles={systemd.ENVIRONMENT} (ignore_errors=yes)" in properties
    assert "hunter22" not in properties
    assert file.split() == ["600", "4"]


@pytest.mark.parametrize("flow", [*_OPENED, *_UNCHANGED])
def test_the_flow_table_after_a_reboot(walk: Walk, flow: str) -> None:
    """Each row: the host's proxy where it is wanted, and every other flow as without vmproxy."""
    assert walk.flows[flow].startswith(_UNCHANGED.get(flow, "proxy"))


def test_remove_leaves_no_trace(walk: Walk) -> None:
    """Files byte for byte, modes, the drop-in's directory; no rule of ours; no unit that systemd still knows, though it
    had failed."""
    assert walk.files["applied"] != walk.files["before"]
    assert walk.files["removed"] == walk.files["before"]
    assert sorted(walk.rules["removed"]) == sorted(walk.rules["before"])
    assert "failed" in walk.failed
    assert walk.units == ""
