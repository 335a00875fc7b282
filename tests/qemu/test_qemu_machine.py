"""A VM as docker-machine makes it: user data on the disk, no profile, remote access on, found by its config.json."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.lab import default_cache
from tests.lab.proxy import LabProxy
from tests.lab.qemu import QemuVM, make_key, userdata
from tests.qemu.conftest import Command

_REMOTE = (
    "cd /home/docker/.docker && curl -s -m 60 --noproxy '*' --cacert ca.pem --cert cert.pem --key key.pem "
    "https://127.0.0.1:2376/_ping"
)


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[QemuVM]:
    """A VM booted from a disk that asks to be formatted; dropbear and iptables-nft for once."""
    cache = default_cache()
    vm = QemuVM(tmp_path_factory.mktemp("vm"), cache=cache, sshd="dropbear", iptables="nft")
    make_key(vm.key)
    vm.userdata = userdata(vm.key.with_suffix(".pub").read_bytes())
    with vm:
        vm.start()
        yield vm


def test_remote_access_survives_apply_and_reboot(
    machine: QemuVM, host_proxy: LabProxy, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """The profile that apply creates would switch port 2376 off: it answers after apply, reboot and remove."""
    command = Command(machine, host_proxy, tmp_path_factory.mktemp("home"), "lab-machine")
    assert machine.run("ls /var/lib/boot2docker/userdata.tar; ls /var/lib/boot2docker/profile", check=False).text == (
        "/var/lib/boot2docker/userdata.tar"
    )
    assert machine.root(_REMOTE).text == "OK"
    # What runs is nobody's question here, and a Docker that has just started may not say.
    command.apply("--no-verify", "--restart", "always")
    assert machine.root(_REMOTE).text == "OK"
    machine.reboot()
    assert machine.root(_REMOTE).text == "OK"
    assert f"HTTP Proxy: http://10.0.2.2:{host_proxy.port}" in machine.run("docker info 2>/dev/null").text
    command("status")
    command("remove", "--restart", "always")
    assert machine.root(_REMOTE).text == "OK"
    assert machine.root("ls /var/lib/boot2docker/profile", check=False).status != 0
