"""Which guest a VM is: one answer and one line of why, on VMs written down from upstream's files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.unit import guestworlds
from vmproxy import guests
from vmproxy.errors import Refused
from vmproxy.model import Daemon, Facts

SERVED = {
    "alpine-3.19": ("openrc", "/run/openrc is there: OpenRC runs"),
    "boot2docker-1.12": ("boot2docker", "ID=boot2docker in /etc/os-release"),
    "boot2docker-19.03": ("boot2docker", "ID=boot2docker in /etc/os-release"),
    "debian-12": ("systemd", "/run/systemd/system is there: systemd runs"),
    "debian-12-sysvinit": (
        "sysv",
        "/etc/init.d/docker, /lib/lsb/init-functions and /etc/inittab are there, and no other init",
    ),
    "docker-for-mac-2016": ("moby", "/usr/bin/mobyconfig is there, as in Docker for Mac of 2016"),
    "fedora-coreos": ("systemd", "/run/systemd/system is there: systemd runs"),
    "minikube-iso": ("systemd", "/run/systemd/system is there: systemd runs"),
    "ubuntu-14.04": ("upstart", "/etc/init/rc-sysinit.conf is there"),
}
REFUSED = {
    "debian-13-docker-29-nftables": (
        "Docker uses its firewall backend nftables, and vmproxy's rules are iptables' (/etc/docker/daemon.json)",
        "take firewall-backend out and restart Docker",
    ),
    "docker-desktop": (
        "this VM is made anew at each start, by LinuxKit (Docker Desktop)",
        "set the proxy where the VM is made: Docker Desktop's Settings > Resources > Proxies; "
        "for containers: vmproxy docker-config apply",
    ),
    "lima-default": (
        "there is no Docker here, only another container engine (/usr/local/bin/containerd)",
        "vmproxy serves Docker; for containerd set HTTP_PROXY in its service, or install Docker",
    ),
    "lima-docker": (
        "Docker runs rootless, with its bridges in a network namespace of its own (/run/user/501/docker.sock)",
        "set HTTP_PROXY in ~/.config/systemd/user/docker.service.d/, or run Docker as root",
    ),
    "ubuntu-24.04-docker-snap": (
        "Docker is a snap here, whose service is not docker.service (/etc/systemd/system/snap.docker.dockerd.service)",
        "set HTTP_PROXY in /etc/systemd/system/snap.docker.dockerd.service.d/, or install Docker as a package",
    ),
    "linuxkit": (
        "this VM is made anew at each start, by LinuxKit (/bin/rc.init)",
        "set the proxy where the VM is made: Docker Desktop's Settings > Resources > Proxies; "
        "for containers: vmproxy docker-config apply",
    ),
}
ON_DISK = {
    "alpine-3.19": "/sbin/openrc-run is there",
    "debian-12": "/usr/lib/systemd/systemd is there, and no /etc/inittab",
    "fedora-coreos": "/usr/lib/systemd/systemd is there, and no /etc/inittab",
    "minikube-iso": "/usr/lib/systemd/systemd is there, and no /etc/inittab",
}


def test_every_world_has_its_answer() -> None:
    """No recorded VM is left out of the tables here."""
    assert sorted({**SERVED, **REFUSED}) == guestworlds.NAMES


@pytest.mark.parametrize("name", SERVED)
def test_exactly_one_guest_matches_and_says_why(name: str) -> None:
    """One guest, one line; and every other guest says nothing."""
    facts = guestworlds.world(name)
    guest, reason = guests.detect(facts)
    assert (guest.NAME, reason) == SERVED[name]
    assert "\n" not in reason
    assert [other for other in guests.NAMES if guests.load(other).matches(facts)] == [guest.NAME]


@pytest.mark.parametrize("name", SERVED)
def test_the_same_guest_matches_its_directory_of_files(name: str) -> None:
    """Where nothing runs and /run is empty, the files alone lead to the same guest."""
    facts = guestworlds.on_disk(guestworlds.world(name))
    guest, reason = guests.detect(facts)
    assert (guest.NAME, reason) == (SERVED[name][0], ON_DISK.get(name, SERVED[name][1]))
    assert [other for other in guests.NAMES if guests.load(other).matches(facts)] == [guest.NAME]


@pytest.mark.parametrize("name", ["boot2docker-1.12", "boot2docker-19.03", "docker-for-mac-2016"])
@pytest.mark.parametrize(
    "beside", [("/lib/lsb/init-functions", "/etc/inittab", "/etc/init.d/docker"), ("/sbin/openrc",)]
)
def test_a_vm_that_says_what_it_is_may_have_a_general_init_beside(name: str, beside: tuple[str, ...]) -> None:
    """Its own word goes before what the files of a general init look like."""
    facts = guestworlds.world(name)
    guest, reason = guests.detect(replace(facts, paths=facts.paths | set(beside)))
    assert (guest.NAME, reason) == SERVED[name]


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("wanted", ["", "systemd"])
def test_what_cannot_be_served_is_refused_with_what_to_do(name: str, wanted: str) -> None:
    """Exit 6 with one line, where it was seen, and a hint; --guest does not talk it into half a job."""
    with pytest.raises(Refused) as error:
        guests.detect(guestworlds.world(name), wanted)
    assert error.value.exit == 6
    assert (str(error.value), error.value.hint) == REFUSED[name]


def test_rootless_docker_beside_the_systems_is_no_obstacle() -> None:
    """A dockerd of root's runs: it is served, whoever else has one of his own."""
    facts = guestworlds.world("debian-12")
    both = replace(facts, paths=facts.paths | {"/run/user/1000/docker.sock"})
    assert guests.detect(both)[0].NAME == "systemd"
    unprivileged = replace(both, daemon=None, uid=1000, paths=both.paths | {"/var/run/docker.sock"})
    assert guests.detect(unprivileged)[0].NAME == "systemd"


def test_rootless_docker_in_a_directory_of_files() -> None:
    """No socket is there to see: the user's own unit tells, unless the system's Docker is enabled beside it."""
    unit = "/home/kit.linux/.config/systemd/user/docker.service"
    facts = guestworlds.on_disk(guestworlds.world("lima-docker"))
    assert guests.detect(facts)[0].NAME == "systemd"
    alone = replace(facts, paths=facts.paths | {unit})
    with pytest.raises(Refused, match="Docker runs rootless") as error:
        guests.detect(alone)
    assert unit in str(error.value)
    assert "HTTP_PROXY in ~/.config/systemd/user" in error.value.hint
    both = replace(alone, paths=alone.paths | {"/etc/systemd/system/multi-user.target.wants/docker.service"})
    assert guests.detect(both)[0].NAME == "systemd"


def test_docker_as_a_snap_beside_or_in_a_directory_of_files() -> None:
    """Files alone tell of a snap, too; a Docker of the system's that runs, or is there while the snap's does not, is
    served."""
    facts = guestworlds.world("ubuntu-24.04-docker-snap")
    with pytest.raises(Refused, match="Docker is a snap here"):
        guests.detect(guestworlds.on_disk(facts))
    running = replace(facts, daemon=Daemon(pid=1, environment={}))
    assert guests.detect(running)[0].NAME == "systemd"
    other = replace(facts, paths=(facts.paths | {"/usr/bin/dockerd"}) - {"/run/snap.docker"})
    assert guests.detect(other)[0].NAME == "systemd"


@pytest.mark.parametrize("flag", [b"--firewall-backend=nftables", b"--firewall-backend nftables"])
def test_the_nftables_backend_as_an_option_of_the_unit(flag: bytes) -> None:
    """It is found in docker.service's command line, too."""
    facts = guestworlds.world("debian-12")
    unit = "/lib/systemd/system/docker.service"
    facts = replace(facts, texts={unit: b"[Service]\nExecStart=/usr/sbin/dockerd -H fd:// " + flag + b"\n"})
    with pytest.raises(Refused, match="nftables") as error:
        guests.detect(facts)
    assert unit in str(error.value)


def test_an_unknown_vm_is_refused_with_the_list() -> None:
    """Nothing that any guest knows: exit 6, the kinds there are, and --guest."""
    with pytest.raises(Refused) as error:
        guests.detect(Facts(os_release={"PRETTY_NAME": "Plan 9"}))
    assert "Plan 9" in str(error.value)
    assert all(name in str(error.value) for name in guests.NAMES)


def test_the_reference_names_every_kind_and_its_files() -> None:
    """The table of kinds is whole: each guest, and each file that it writes."""
    text = (Path(__file__).parents[2] / "docs/reference.rst").read_text(encoding="utf-8")
    for name in guests.NAMES:
        assert f"``{name}``" in text
        for path in guests.load(name).FILES:
            assert path in text or path.rpartition("/")[2] in text, path
