"""What putting back must do and must not: take away what others wrote, leave a proof half done, say more than is so."""

from __future__ import annotations

import pytest

from tests.ns.endings import Base, refused
from tests.ns.story import BOOTLOCAL, PROFILE, Vmproxy, daemon_environment, dump, held, ours, shim
from vmproxy import converge
from vmproxy.errors import RolledBack

MINE = b"# somebody else's line\n"


def test_f39_somebody_elses_file_survives_a_put_back(base: Base, vmproxy: Vmproxy) -> None:
    """The profile is rewritten while Docker restarts, and Docker does not come back: that file stays, and is named."""
    machine = base.machine
    shim(machine, "setsid", f'echo "# somebody else\'s line" >{PROFILE}; exec /usr/bin/setsid "$@"')
    shim(machine, "sleep", "exec /bin/sleep 0.05")  # nobody has to see the seconds pass
    machine.path("/run/lab/stub/fail-start").write_text("1\n")
    refused(vmproxy.apply("--no-check", "--no-verify"), 7, "ROLLBACK INCOMPLETE", PROFILE)
    profile = held(machine, PROFILE)
    assert profile is not None
    assert profile.content == MINE
    assert held(machine, BOOTLOCAL) is None
    assert not ours(dump(machine))
    assert "http_proxy" not in daemon_environment(machine)


def test_a6_a_proof_cut_short_leaves_nothing_in_docker(base: Base, vmproxy: Vmproxy) -> None:
    """The client goes while the proof runs in containers: put back, and the image of the proof is removed too."""
    machine = base.machine
    shim(
        machine,
        "docker",
        """case $1 in
        import) echo sha256:abc; : >/run/image ;;
        images) [ ! -e /run/image ] || echo abc ;;
        rmi) rm -f /run/image ;;
        run) cat >/dev/null; kill -TERM "$(cat /run/committing)"; sleep 0.2 ;;
        *) exec /usr/local/bin/docker "$@" ;;
        esac""",
    )
    # mktemp is started by commit.sh itself, which is so known by its number.
    shim(machine, "mktemp", 'echo "$PPID" >/run/committing; exec /usr/bin/mktemp "$@"')
    with pytest.raises(Exception, match="everything was put back"):
        vmproxy.tell(converge.apply, check=False)
    assert not machine.path("/run/image").exists()
    assert held(machine, PROFILE) is None
    assert not ours(dump(machine))


def test_f46_yes_restarts_in_the_same_change(base: Base, vmproxy: Vmproxy) -> None:
    """With --yes and containers running, a Docker that does not come back is put back with all the rest: exit 7."""
    machine = base.machine
    machine.path("/run/lab/stub/running").write_text("2\n")
    machine.path("/run/lab/stub/fail-with-proxy").touch()
    shim(machine, "sleep", "exec /bin/sleep 0.05")
    with pytest.raises(RolledBack, match="everything was put back"):
        vmproxy.tell(converge.apply, check=False, verify=False, yes=True)
    assert held(machine, PROFILE) is None
    assert held(machine, BOOTLOCAL) is None
    assert not ours(dump(machine))
    assert "http_proxy" not in daemon_environment(machine)


def test_f46_a_restart_agreed_to_later_says_what_stays(base: Base, vmproxy: Vmproxy) -> None:
    """Asked on the terminal and told yes, the change is there already: no word of "put back" when Docker fails then."""
    machine = base.machine
    machine.path("/run/lab/stub/running").write_text("2\n")
    machine.path("/run/lab/stub/fail-with-proxy").touch()
    shim(machine, "sleep", "exec /bin/sleep 0.05")
    with pytest.raises(RolledBack, match="ROLLBACK INCOMPLETE: the change is made, its restart failed"):
        converge.apply(vmproxy.target, vmproxy.settings(check=False, verify=False), confirm=lambda _: True)
    assert held(machine, PROFILE) is not None


def test_f65_remove_says_that_it_cannot_see_the_rules(base: Base, vmproxy: Vmproxy) -> None:
    """iptables-save fails: the files go, and that the rules could not be looked at is a warning, not silence."""
    machine = base.machine
    assert vmproxy.tell(converge.apply, check=False, verify=False).ok
    for name in ("iptables-nft-save", "iptables-legacy-save", "iptables-save"):
        shim(machine, name, "exit 3")
    report = vmproxy.tell(converge.remove)
    assert held(machine, PROFILE) is None
    assert any("cannot be read" in text for text in report.warnings), report


def test_a_docker_run_that_fails_by_itself_is_run_once(base: Base, vmproxy: Vmproxy) -> None:
    """125 is docker's own word for "not run", and timeout's too: a proof's container is not started a second time."""
    machine = base.machine
    vmproxy.tell(converge.apply, check=False, verify=False)
    shim(
        machine,
        "docker",
        """case $1 in
        import) echo sha256:abc ;;
        run) echo "$5" >>/run/runs; echo 'docker: no' >&2; exit 125 ;;
        ps|images|rm|rmi|network) ;;
        *) exec /usr/local/bin/docker "$@" ;;
        esac""",
    )
    ran = vmproxy.command("verify")
    assert ran.code != 0 and "docker: no" in ran.all, ran
    runs = machine.path("/run/runs").read_text().splitlines()
    assert runs and len(runs) == len(set(runs)), runs
