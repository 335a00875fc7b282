"""What an earlier apply left in the VM, met by a later run: F63 to F66, and docker-machine's rewriting of profile."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from tests.lab.nsvm import NamespaceVM
from tests.ns.story import (
    BOOTLOCAL,
    DATA,
    PROFILE,
    Vmproxy,
    daemon_environment,
    daemon_pid,
    dump,
    files,
    held,
    host_proxy,
    ours,
    reset,
    until,
)

# What docker-machine's boot2docker provisioner writes: the whole file, for TLS on 2376.
MACHINE_PROFILE = b"""
EXTRA_ARGS='
--label provider=virtualbox

'
CACERT=/var/lib/boot2docker/ca.pem
DOCKER_HOST='-H tcp://0.0.0.0:2376'
DOCKER_STORAGE=overlay2
DOCKER_TLS=auto
SERVERKEY=/var/lib/boot2docker/server-key.pem
SERVERCERT=/var/lib/boot2docker/server.pem

"""


@pytest.fixture(scope="module")
def booted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Vmproxy]:
    """One VM whose dockerd is a stub, with proxies on its host at 8123 and 3128."""
    with NamespaceVM(docker="stub") as machine, host_proxy(machine), host_proxy(machine, port=3128):
        yield Vmproxy(machine, tmp_path_factory.mktemp("home"))


@pytest.fixture
def vmproxy(booted: Vmproxy) -> Vmproxy:
    """The same, booted anew without anything of ours."""
    reset(booted.machine)
    return booted


def rewrite(machine: NamespaceVM, path: str, old: bytes, new: bytes) -> None:
    """Replace bytes that are there, in place."""
    content = machine.path(path).read_bytes()
    assert old in content
    machine.path(path).write_bytes(content.replace(old, new))


# ---- F63: another version of vmproxy --------------------------------------------------------------------------------


def older(vmproxy: Vmproxy) -> None:
    """Make what is there look as a version would have written it that knew fewer variables and other rules."""
    machine = vmproxy.machine
    assert vmproxy.apply("--no-verify").code == 0
    content = machine.path(PROFILE).read_bytes()
    machine.path(PROFILE).write_bytes(re.sub(rb"export (HTTPS_PROXY|NO_PROXY)=.*\n", b"", content))
    rewrite(machine, BOOTLOCAL, b'echo "vmproxy: $(date)"\n', b"echo begun\n")
    machine.run("iptables -w -t nat -A VMPROXY-PREROUTING -p udp -j RETURN")
    machine.run("iptables -w -N VMPROXY-OLD; iptables -w -A INPUT -i docker0 -j VMPROXY-OLD")


def test_f63_apply_replaces_what_an_older_version_left(vmproxy: Vmproxy) -> None:
    """Blocks and chains of an older version are drift; apply makes of them exactly what a clean apply makes."""
    assert vmproxy.apply("--no-verify").code == 0
    clean = sorted(dump(vmproxy.machine)), files(vmproxy.machine)
    assert vmproxy.remove().code == 0
    older(vmproxy)
    assert vmproxy.status().code == 1
    ran = vmproxy.apply("--no-verify")
    assert ran.code == 0, ran
    assert (sorted(dump(vmproxy.machine)), files(vmproxy.machine)) == clean


def test_f63_remove_takes_what_an_older_version_left(vmproxy: Vmproxy) -> None:
    """Remove takes an older version's blocks, rules and chains whole."""
    before, kept = dump(vmproxy.machine), files(vmproxy.machine)
    older(vmproxy)
    ran = vmproxy.remove()
    assert ran.code == 0, ran
    assert (dump(vmproxy.machine), files(vmproxy.machine)) == (before, kept)


@pytest.mark.parametrize("command", ["apply", "remove", "status"])
def test_f63_a_newer_format_is_refused_untouched(vmproxy: Vmproxy, command: str) -> None:
    """A block that a newer vmproxy wrote: exit 6, file and line named, "upgrade" as the hint, nothing touched."""
    assert vmproxy.apply("--no-verify").code == 0
    rewrite(vmproxy.machine, PROFILE, b"# >>> vmproxy 1 ", b"# >>> vmproxy 2 ")
    before, kept = dump(vmproxy.machine), files(vmproxy.machine)
    ran = vmproxy.command(command)
    assert ran.code == 6, ran
    assert f"{PROFILE}:1" in ran.err
    assert "upgrade" in ran.err
    assert (dump(vmproxy.machine), files(vmproxy.machine)) == (before, kept)


def test_the_hosts_own_loopback_becomes_an_address_in_the_vm(vmproxy: Vmproxy) -> None:
    """One case of one variable, on this host's loopback: the daemon gets the host's address, containers the bridge's,
    in both cases of every name; and the VM remembers it."""
    own = {"HTTP_PROXY": "http://localhost:3128", "no_proxy": "first.test,second.test"}
    ran = vmproxy.apply("--no-verify", environ=own)
    assert ran.code == 0, ran
    assert daemon_environment(vmproxy.machine)["http_proxy"] == "http://10.0.2.2:3128"
    told = vmproxy.env("--json").json
    urls = {told[name] for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY")}
    assert urls == {"http://172.17.0.1:3128"}
    assert told["no_proxy"] == told["NO_PROXY"]
    assert told["no_proxy"].startswith("first.test,second.test,localhost,")


def test_names_and_the_package_index_are_recorded(vmproxy: Vmproxy) -> None:
    """``apply --names --pip-index``: status, a second apply and ``env --vm`` need no option; ``''`` takes them back.
    They are for containers: Docker is not restarted."""
    assert vmproxy.apply("--no-verify").code == 0
    pid = daemon_pid(vmproxy.machine)
    plain, kept = vmproxy.env("--json").json, files(vmproxy.machine)
    words = ("--names", "db,my_cache", "--pip-index", "http://localhost:3141/simple/")
    assert vmproxy.status(*words).code == 1
    ran = vmproxy.apply("--no-verify", *words)
    assert ran.code == 0, ran
    assert vmproxy.status().code == 0
    assert "nothing to do" in vmproxy.apply().out
    told = vmproxy.env("--json").json
    assert told == vmproxy.env("--json", *words).json
    assert {"db", "my_cache"} <= set(told["no_proxy"].split(","))
    assert (told["PIP_INDEX_URL"], told["PIP_TRUSTED_HOST"]) == ("http://10.0.2.2:3141/simple/", "10.0.2.2")
    ran = vmproxy.apply("--no-verify", "--names", "", "--pip-index", "")
    assert ran.code == 0, ran
    assert (vmproxy.env("--json").json, files(vmproxy.machine)) == (plain, kept)
    assert daemon_pid(vmproxy.machine) == pid


# ---- remove where little or nothing is there ------------------------------------------------------------------------


def test_f64_remove_without_apply_writes_nothing(vmproxy: Vmproxy) -> None:
    """Nothing of ours is there: exit 0, said so, and neither file nor directory has another time."""
    machine = vmproxy.machine
    machine.path(PROFILE).write_bytes(b"# mine")
    machine.path(BOOTLOCAL).write_bytes(b"#!/bin/sh\nexit 0\n")
    before, rules = files(machine), dump(machine)
    times = [entry.mtime for entry in before.values() if entry]
    directory = machine.path(DATA).stat().st_mtime_ns
    ran = vmproxy.remove()
    assert ran.code == 0, ran
    assert "nothing to do" in ran.out
    after = files(machine)
    assert (after, [entry.mtime for entry in after.values() if entry]) == (before, times)
    assert machine.path(DATA).stat().st_mtime_ns == directory
    assert dump(machine) == rules


BY_HAND = {
    "every chain and jump": """
        iptables -w -D FORWARD -m comment --comment vmproxy -j VMPROXY-FORWARD
        iptables -w -F VMPROXY-FORWARD; iptables -w -X VMPROXY-FORWARD
        iptables -w -t nat -S | sed -n 's/^-A \\(PREROUTING\\|POSTROUTING\\) \\(.*VMPROXY.*\\)/-D \\1 \\2/p' |
            while read -r rule; do iptables -w -t nat $rule; done
        for c in PREROUTING POSTROUTING; do
            iptables -w -t nat -F VMPROXY-$c; iptables -w -t nat -X VMPROXY-$c
        done
    """,
    "one chain": """
        iptables -w -D FORWARD -m comment --comment vmproxy -j VMPROXY-FORWARD
        iptables -w -F VMPROXY-FORWARD; iptables -w -X VMPROXY-FORWARD
    """,
    "the jumps": "iptables -w -D FORWARD -m comment --comment vmproxy -j VMPROXY-FORWARD",
    "what is in a chain": "iptables -w -t nat -F VMPROXY-PREROUTING",
    "the files": f"rm {PROFILE} {BOOTLOCAL}",
}


@pytest.mark.parametrize("what", BY_HAND)
def test_f65_remove_after_some_was_deleted_by_hand(vmproxy: Vmproxy, what: str) -> None:
    """The user has deleted part of ours: status says so, remove takes the rest, without an error."""
    before, kept = dump(vmproxy.machine), files(vmproxy.machine)
    assert vmproxy.apply("--no-verify").code == 0
    vmproxy.machine.run(BY_HAND[what])
    assert vmproxy.status().code == 1
    ran = vmproxy.remove()
    assert ran.code == 0, ran
    assert not ours(dump(vmproxy.machine))
    assert (dump(vmproxy.machine), files(vmproxy.machine)) == (before, kept)


def test_f65_apply_after_the_chains_were_flushed(vmproxy: Vmproxy) -> None:
    """Another tool has flushed nat: status is drift, apply makes it as it was."""
    assert vmproxy.apply("--no-verify").code == 0
    rules = sorted(ours(dump(vmproxy.machine)))
    vmproxy.machine.run("iptables -w -t nat -F VMPROXY-PREROUTING; iptables -w -t nat -F PREROUTING")
    assert vmproxy.status().code == 1
    assert vmproxy.apply("--no-verify").code == 0
    assert sorted(ours(dump(vmproxy.machine))) == rules


# ---- docker-machine -------------------------------------------------------------------------------------------------


def test_f66_remove_after_docker_machine_rewrote_profile(vmproxy: Vmproxy) -> None:
    """profile was rewritten whole: remove takes rules and bootlocal.sh, and leaves the new profile as it is."""
    before = dump(vmproxy.machine)
    assert vmproxy.apply("--no-verify").code == 0
    vmproxy.machine.path(PROFILE).write_bytes(MACHINE_PROFILE)
    new = held(vmproxy.machine, PROFILE)
    ran = vmproxy.remove()
    assert ran.code == 0, ran
    assert dump(vmproxy.machine) == before
    after = held(vmproxy.machine, PROFILE)
    assert after == new
    assert after is not None
    assert new is not None
    assert after.mtime == new.mtime
    assert held(vmproxy.machine, BOOTLOCAL) is None


def test_docker_machine_rewriting_profile_is_drift_and_apply_converges(vmproxy: Vmproxy) -> None:
    """After the rewrite status is exit 1; apply without options has proxy, ports and exceptions from the record."""
    machine = vmproxy.machine
    words = ("--proxy", "http://127.0.0.1:3128", "--listen-port", "18123", "--no-proxy", "intra.example,10.9.0.0/16")
    assert vmproxy.apply("--no-verify", *words).code == 0
    rules, script = ours(dump(machine)), held(machine, BOOTLOCAL)
    environment = daemon_environment(machine)
    assert "intra.example" in environment["no_proxy"]
    machine.path(PROFILE).write_bytes(MACHINE_PROFILE)
    machine.run("/etc/init.d/docker restart")
    until(lambda: daemon_pid(machine) != 0, "the stub runs")
    status = vmproxy.status()
    assert status.code == 1, status
    assert f"{PROFILE}: our block is missing" in status.out
    ran = vmproxy.apply("--no-verify")
    assert ran.code == 0, ran
    assert (ours(dump(machine)), held(machine, BOOTLOCAL)) == (rules, script)
    assert {name: daemon_environment(machine).get(name) for name in environment} == environment
    assert "172.17.0.1:18123" in vmproxy.env().out
    assert vmproxy.status().code == 0
    assert vmproxy.remove().code == 0
    profile = held(machine, PROFILE)
    assert profile is not None
    assert profile.content == MACHINE_PROFILE
