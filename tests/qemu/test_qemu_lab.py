"""The QEMU VM is what the other tests take it for: a cold boot, a RAM root, one disk that lasts."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.lab import default_cache
from tests.lab.qemu import QemuVM
from tests.qemu.walks import booted

_BOOTLOCAL = "#!/bin/sh\necho ran >/run/bootlocal\n"
_PROFILE = "export http_proxy=http://10.0.2.2:9\nnot_exported=x\n"


@pytest.fixture(scope="module")
def cold(tmp_path_factory: pytest.TempPathFactory) -> Iterator[QemuVM]:
    """A VM booted from nothing, with an overlay directory and the image ``busybox``."""
    overlay = tmp_path_factory.mktemp("overlay")
    (overlay / "etc").mkdir()
    (overlay / "etc/motd").write_text("laid over\n", encoding="utf-8")
    with booted(QemuVM(tmp_path_factory.mktemp("vm"), cache=default_cache(), overlay=overlay)) as machine:
        yield machine


def test_a_cold_boot_ends_with_ssh_and_docker(cold: QemuVM) -> None:
    """The VM has the address, gateway, user, sudo and Docker that the classic VM has."""
    assert cold.run("id -un; . /etc/os-release; echo $ID; sudo -n id -u").text.split() == ["docker", "boot2docker", "0"]
    assert "default via 10.0.2.2 dev eth0" in cold.run("ip route").text
    assert cold.run("docker version -f '{{.Server.Os}}'").text == "linux"
    assert cold.run("stat -c %U /var/lib/boot2docker/").text == "docker"


def test_the_overlay_lies_over_the_root(cold: QemuVM) -> None:
    """A file of the overlay directory is in the guest, owned by root."""
    assert cold.run("cat /etc/motd; stat -c %u /etc/motd").text.split("\n") == ["laid over", "0"]


def test_a_container_runs_from_an_image_without_a_registry(cold: QemuVM) -> None:
    """An imported image runs, with an address on docker0 and the VM as its gateway."""
    assert "default via 172.17.0.1" in cold.run("docker run --rm busybox ip route").text


def test_a_reboot_keeps_the_disk_and_loses_the_rest(cold: QemuVM) -> None:
    """After a reboot the disk is there, rules and RAM files are gone, profile and bootlocal.sh have run."""
    cold.root("cat >/var/lib/boot2docker/profile", stdin=_PROFILE.encode())
    cold.root("cat >/var/lib/boot2docker/bootlocal.sh", stdin=_BOOTLOCAL.encode())
    cold.root("touch /root/lost /opt/lost; iptables -t nat -N LOST; mkdir -m 700 /var/lib/boot2docker/kept")
    boot = cold.run("cat /proc/sys/kernel/random/boot_id").text
    cold.reboot()
    assert cold.run("cat /proc/sys/kernel/random/boot_id").text != boot
    assert cold.root("stat -c %a /var/lib/boot2docker/kept; cat /run/bootlocal").text.split() == ["700", "ran"]
    assert cold.root("ls /root/lost /opt/lost; iptables -t nat -S LOST", check=False).text == ""
    assert "busybox" in cold.run("docker images").text
    environ = cold.root("tr '\\0' '\\n' </proc/$(cat /var/run/docker.pid)/environ").text
    assert "http_proxy=http://10.0.2.2:9" in environ
    assert "not_exported" not in environ


def test_a_power_cut_leaves_what_was_synced(cold: QemuVM) -> None:
    """After QEMU is killed the synced file is whole, and the VM comes back with ssh and Docker."""
    cold.root("printf whole >/var/lib/boot2docker/synced; sync; printf half >/var/lib/boot2docker/unsynced")
    cold.power_cut()
    cold.start()
    assert cold.root("cat /var/lib/boot2docker/synced").text == "whole"
    assert cold.root("cat /var/lib/boot2docker/unsynced", check=False).text in ("", "half")
