"""Worlds that the rules meet: a mix of variants, other tools' rules, a boot, broken iptables, a lock that is held.

On the VM whose dockerd is a stub, which makes the rules that Docker makes; so each test has a boot of its own.
"""

from __future__ import annotations

import fcntl
import re
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.lab.nsvm import NamespaceVM
from tests.ns.story import BOOTLOCAL, DATA, Vmproxy, dump, files, foreign, host_proxy, ours, reset, settled, shim, until
from tests.ns.test_invariants import FOREIGN


@dataclass(frozen=True, kw_only=True)
class World:
    """A VM just booted, with a proxy on its host and nothing of ours in it."""

    machine: NamespaceVM
    vmproxy: Vmproxy
    variant: str


@pytest.fixture(scope="module", params=["nft", "legacy"])
def booted(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """One VM for all the tests below."""
    variant = str(request.param)
    with NamespaceVM(iptables=variant, docker="stub") as machine, host_proxy(machine):
        yield World(machine=machine, vmproxy=Vmproxy(machine, tmp_path_factory.mktemp("home")), variant=variant)


@pytest.fixture
def world(booted: World) -> World:
    """The same, reset."""
    booted.machine.path(f"{DATA}/bootsync.sh").unlink(missing_ok=True)
    reset(booted.machine)
    return booted


def test_i3_i5_without_a_last_rule(world: World) -> None:
    """Where FORWARD has no last REJECT the jump goes to its end, and remove gives back the very dump."""
    world.machine.run(FOREIGN)
    before = dump(world.machine)
    ran = world.vmproxy.apply("--no-verify")
    assert ran.code == 0, ran
    forward = [line for line in dump(world.machine) if line.startswith("-A FORWARD ")]
    assert forward[-1].endswith("-j VMPROXY-FORWARD")
    assert world.vmproxy.remove().code == 0
    assert dump(world.machine) == before


def test_i6_counters_of_foreign_rules_go_on(world: World) -> None:
    """No foreign rule is taken out and put in again: each keeps what it has counted."""
    counted = b"*filter\n[7:700] -A INPUT -s 198.51.100.1 -j DROP\nCOMMIT\n"
    world.machine.run("iptables-restore -w -c --noflush", stdin=counted)
    assert world.vmproxy.apply("--no-verify").code == 0
    assert world.vmproxy.remove().code == 0
    assert "[7:700] -A INPUT -s 198.51.100.1/32 -j DROP" in world.machine.run("iptables-save -c").stdout.decode()


@pytest.mark.parametrize("command", ["apply", "remove"])
def test_i7_one_restore_per_table_and_no_single_calls(world: World, command: str) -> None:
    """Rules are written by one iptables-restore -w N --noflush per table, tested first by one, and by nothing else."""
    if command == "remove":
        assert world.vmproxy.apply("--no-verify").code == 0
    for name in (f"iptables-{world.variant}", f"iptables-{world.variant}-restore", "iptables", "iptables-restore"):
        shim(world.machine, name, f'echo "{name} $*" >>/run/calls\nexec /usr/sbin/{name} "$@"')
    ran = world.vmproxy.command(command, *(["--no-verify"] if command == "apply" else []), "--restart", "never")
    assert ran.code in (0, 3), ran
    calls = world.machine.path("/run/calls").read_text().splitlines()
    tested = [call for call in calls if call.endswith(" --test")]
    assert len(tested) == 1
    assert calls[:1] == tested
    assert len(calls) == 3
    assert all(re.fullmatch(rf"iptables-{world.variant}-restore -w \d+ --noflush( --test)?", call) for call in calls)


def test_f17_only_the_variant_that_holds_dockers_rules_is_written(world: World) -> None:
    """With rules in both nft and legacy apply succeeds, warns of the mix, and touches only Docker's variant."""
    other = "legacy" if world.variant == "nft" else "nft"
    world.machine.run(f"iptables-{other} -A INPUT -s 198.51.100.1 -j DROP")
    before, mine = dump(world.machine, other), dump(world.machine, world.variant)
    ran = world.vmproxy.apply("--no-verify")
    assert ran.code == 0, ran
    assert "vmproxy: warning:" in ran.err
    assert re.search(rf"{other} iptables has rules", ran.err), ran
    assert dump(world.machine, other) == before
    assert ours(dump(world.machine, world.variant))
    assert world.vmproxy.remove().code == 0
    assert dump(world.machine, other) == before
    assert dump(world.machine, world.variant) == mine


def test_f20_a_dnat_on_the_same_port_is_refused_and_quoted(world: World) -> None:
    """Another tool's DNAT of the door's port: exit 6, that rule in the message, nothing changed; --force goes on."""
    rule = "-A PREROUTING -i docker0 -p tcp -m tcp --dport 8123 -j DNAT --to-destination 192.168.99.1:80"
    world.machine.run(f"iptables -t nat {rule}")
    before, held = dump(world.machine), files(world.machine)
    ran = world.vmproxy.apply("--no-verify")
    assert ran.code == 6, ran
    assert "--to-destination 192.168.99.1:80" in ran.err
    assert "--listen-port" in ran.err
    assert (dump(world.machine), files(world.machine)) == (before, held)
    forced = world.vmproxy.apply("--no-verify", "--force")
    assert forced.code == 0, forced
    assert rule in dump(world.machine)
    assert world.vmproxy.remove().code == 0
    assert dump(world.machine) == before


def test_f20_another_listen_port_gets_round_it(world: World) -> None:
    """With --listen-port the door stands beside the other tool's DNAT, and leads to the proxy's own port."""
    world.machine.run("iptables -t nat -A PREROUTING -p tcp --dport 8123 -j DNAT --to-destination 192.168.99.1:80")
    ran = world.vmproxy.apply("--no-verify", "--listen-port", "18123")
    assert ran.code == 0, ran
    jumps = [line for line in ours(dump(world.machine)) if line.startswith("-A PREROUTING")]
    assert jumps
    assert all("--dport 18123" in line for line in jumps)
    assert "172.17.0.1:18123" in world.vmproxy.env().out


GUIDE = """
iptables -I FORWARD -p tcp -d 10.0.2.2 --dport 8123 -j ACCEPT
iptables -t nat -A POSTROUTING -o docker0 -j MASQUERADE
iptables -t nat -A PREROUTING -i docker0 -p tcp --dport 8123 -j DNAT --to-destination 10.0.2.2:8123
"""


def test_f21_rules_of_the_classic_guide_are_reported_not_doubled_not_deleted(world: World) -> None:
    """The three rules of the guide: apply succeeds with a warning for each, and all three stay, once."""
    world.machine.run(GUIDE)
    before = dump(world.machine)
    ran = world.vmproxy.apply("--no-verify")
    assert ran.code == 0, ran
    for chain in ("FORWARD", "POSTROUTING", "PREROUTING"):
        assert re.search(rf"vmproxy: warning: .*-A {chain} ", ran.err), ran
    assert foreign(dump(world.machine)) == before
    again = world.vmproxy.json("apply", "--no-verify")
    assert (again.code, again.json["changed"]) == (0, False), again
    assert len(world.vmproxy.json("status").vm["warnings"]) >= 3
    assert world.vmproxy.remove().code == 0
    assert dump(world.machine) == before


def test_f62_the_boot_script_run_again_changes_nothing(world: World) -> None:
    """The block in bootlocal.sh is idempotent: run by hand a second time it leaves the same dump."""
    assert world.vmproxy.apply("--no-verify").code == 0
    applied = dump(world.machine)
    for _ in range(2):
        world.machine.run(["sh", BOOTLOCAL])
        settled(world.machine)
    assert sorted(dump(world.machine)) == sorted(applied)
    assert world.vmproxy.status().code == 0


# ---- iptables that does not do what it should -----------------------------------------------------------------------

# As iptables 1.8 words it; of iptables-nft, then of iptables-legacy.
MODULES = {
    "addrtype": "iptables-restore v1.8.9 (legacy): Couldn't load match `addrtype':No such file or directory",
    "MASQUERADE": "Warning: Extension MASQUERADE revision 0 not supported, missing kernel module?\n"
    "iptables-restore v1.8.9 (nf_tables): \nline 6: RULE_APPEND failed (No such file or directory): rule in chain X",
    "nat": "iptables-restore v1.8.9 (legacy): iptables-restore: unable to initialize table 'nat'",
}
REFUSES = """
text=$(cat)
case " $* " in *' --test '*) ;; *) echo late >>/run/late ;; esac
case $text in *'*nat'*)
    cat >&2 <<'END'
{said}
END
    exit 2 ;;
esac
printf '%s\\n' "$text" | /usr/sbin/{name} "$@"
"""


@pytest.mark.parametrize("module", MODULES)
def test_f16_what_the_kernel_lacks_is_found_before_any_change(world: World, module: str) -> None:
    """A table, match or target that iptables-restore --test refuses: exit 6, it is named, nothing has changed."""
    before, held = dump(world.machine), files(world.machine)
    name = f"iptables-{world.variant}-restore"
    shim(world.machine, name, REFUSES.format(said=MODULES[module], name=name))
    ran = world.vmproxy.apply("--no-verify")
    assert ran.code == 6, ran
    (line,) = (line for line in ran.err.splitlines() if line.startswith("vmproxy: error: "))
    assert module in line
    assert line.endswith("nothing was changed")
    assert (dump(world.machine), files(world.machine)) == (before, held)
    assert not world.machine.path("/run/late").exists()


HALF = """
case " $* " in *' --test '*) exec /usr/sbin/{name} "$@" ;; esac
text=$(cat)
case $text in
    *'*nat'*) [ -e /run/failed ] || {{ : >/run/failed; {meanwhile}; echo 'line 99 failed' >&2; exit {code}; }} ;;
esac
printf '%s\\n' "$text" | exec /usr/sbin/{name} "$@"
"""


@pytest.mark.parametrize("meanwhile", [":", "iptables -A INPUT -s 198.51.100.7 -j DROP"])
@pytest.mark.parametrize(("code", "exits"), [(1, 7), (4, 8)])
@pytest.mark.parametrize("command", ["apply", "remove"])
def test_f19_a_table_that_fails_behind_one_that_was_written(
    world: World, command: str, code: int, exits: int, meanwhile: str
) -> None:
    """filter is committed, nat is not: all is as before, also where somebody else adds a rule at that moment, and the
    report says that it was put back."""
    if command == "remove":
        assert world.vmproxy.apply("--no-verify").code == 0
    before, held = dump(world.machine), files(world.machine)
    name = f"iptables-{world.variant}-restore"
    meanwhile = meanwhile.replace("iptables", f"iptables-{world.variant}")
    world.machine.path("/run/failed").unlink(missing_ok=True)
    shimmed = shim(world.machine, name, HALF.format(name=name, code=code, meanwhile=meanwhile))
    ran = world.vmproxy.command(command, "--json", *(["--no-verify"] if command == "apply" else []))
    assert ran.code == exits, ran
    assert "INCOMPLETE" not in ran.err and "everything was put back" in ran.err, ran
    assert (ran.vm["rolled_back"], ran.vm["changed"]) == (True, False), ran
    added = ["-A INPUT -s 198.51.100.7/32 -j DROP"] if meanwhile != ":" else []
    assert sorted(dump(world.machine)) == sorted([*before, *added])
    assert files(world.machine) == held
    world.machine.path(shimmed).unlink()
    assert world.vmproxy.command(command, *(["--no-verify"] if command == "apply" else [])).code == 0


@pytest.mark.parametrize("booted", ["legacy"], indirect=True)
def test_f13_a_lock_that_is_soon_free_is_waited_for(world: World) -> None:
    """Another program holds the xtables lock when apply comes to it, and a second more: apply waits and succeeds."""
    there = world.machine.path("/run/there")
    name = "iptables-legacy-restore"
    shim(world.machine, name, f'touch /run/there; exec /usr/sbin/{name} "$@"')
    order = []
    with world.machine.path("/run/xtables.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)

        def release() -> None:
            until(there.exists, "apply comes to the lock")
            time.sleep(1)
            order.append("released")
            fcntl.flock(lock, fcntl.LOCK_UN)

        other = threading.Thread(target=release)
        other.start()
        ran = world.vmproxy.apply("--no-verify")
        order.append("applied")
        other.join()
    assert ran.code == 0, ran
    assert order == ["released", "applied"]
    assert world.vmproxy.status().code == 0


@pytest.mark.parametrize("booted", ["legacy"], indirect=True)
def test_f14_a_lock_that_is_never_free_is_busy_and_nothing_changed(world: World) -> None:
    """The xtables lock is held for longer than vmproxy waits: exit 8, no rule and no file changed; later it works."""
    before, held = dump(world.machine), files(world.machine)
    with world.machine.path("/run/xtables.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        ran = world.vmproxy.apply("--no-verify")
        fcntl.flock(lock, fcntl.LOCK_UN)
    assert ran.code == 8, ran
    assert (dump(world.machine), files(world.machine)) == (before, held)
    assert world.vmproxy.apply("--no-verify").code == 0


@pytest.mark.parametrize("what", ["iptables*", "iptables*-save"])
def test_f15_without_iptables_no_file_is_touched(world: World, what: str) -> None:
    """The iptables binaries are missing: exit 6, said so, and not one file is there that was not before."""
    held = files(world.machine)
    world.machine.run(f"rm -f /usr/sbin/{what} /sbin/{what}")
    ran = world.vmproxy.apply("--no-verify")
    assert ran.code == 6, ran
    assert "iptables" in ran.err
    assert files(world.machine) == held
