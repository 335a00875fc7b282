"""A Dokku host behind the proxy, and back: the real scripts over ssh, against a Dokku that keeps and refuses."""

from __future__ import annotations

import functools
import json
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.lab.nsvm import NamespaceVM
from tests.ns.conftest import HostProxy
from tests.ns.dokkuhost import PACKAGES, RECORD, DokkuLab
from tests.ns.endings import Base, refused, unchanged
from tests.ns.story import PROFILE, Vmproxy, daemon_environment, dump, held, ours, shim, until
from vmproxy import converge, dokku
from vmproxy.errors import Busy, Refused, RolledBack, VmproxyError
from vmproxy.model import Report
from vmproxy.proxyenv import parse_proxy

INSIDE = "http://172.17.0.1:8123"
NAMES = ("HTTPS_PROXY", "HTTP_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy")
OTHERS_OPTIONS = ["--build-arg NODE_ENV", "--link dokku.postgres.main:dokku-postgres-main"]


@pytest.fixture(scope="module")
def as_booted() -> Iterator[Base]:
    """The stub VM with what the stand-in for Dokku needs."""
    with NamespaceVM(docker="stub", more=PACKAGES) as machine:
        yield Base(machine)


@pytest.fixture
def host(base: Base) -> Iterator[DokkuLab]:
    """Dokku as it was installed, with apps."""
    lab = DokkuLab(base.machine)
    lab.fresh()
    yield lab
    lab.gone()


def tell(vmproxy: Vmproxy, story: Any, **settings: Any) -> Report:
    """A story in this process, without the proof and the question before it: no proxy is there."""
    preview = {"dry_run": True} if settings.pop("dry_run", False) else {}
    return vmproxy.tell(functools.partial(story, **preview), **{"verify": False, "check": False, **settings})


def points(report: Report) -> list[tuple[str, str]]:
    """What a status found."""
    return [(finding.subject, finding.detail) for finding in report.findings]


def test_there_and_back(vmproxy: Vmproxy, host: DokkuLab, host_proxy: HostProxy) -> None:
    """One command: Docker's environment, the door, the global config of all apps, a Dockerfile app's config and build
    arguments; in sync, changes nothing when run again; one command takes all away, and Dokku's files are as before."""
    machine = vmproxy.machine
    host_proxy(machine)
    before, rules = host.state(), dump(machine)

    def run(name: str, *words: str) -> Any:
        return vmproxy.run("dokku", name, *vmproxy.vm_words, *words)

    status = run("status")
    assert (status.code, "not applied" in status.out) == (1, True), status
    preview = run("apply", "--dry-run", "--exit-code", "--no-verify")
    assert preview.code == 3, preview
    for line in ("+export http_proxy=", f"+http_proxy={INSIDE}", "+--build-arg NO_PROXY", "+++ dokku config --global"):
        assert line in preview.out, preview
    assert (host.state(), dump(machine), held(machine, PROFILE)) == (before, rules, None)

    applied = run("apply", "--json", "--no-verify")
    assert applied.code == 0, applied
    assert applied.vm["changed"] is True
    assert "ps:restart" in " ".join(applied.vm["warnings"])
    assert "builder:set new selected dockerfile" in " ".join(applied.vm["warnings"])
    config = host.config()
    assert config.pop("SENTRY") == "it's $5 \"a\" `b` \\ %"
    assert sorted(config) == list(NAMES)
    assert {config[name] for name in NAMES if "NO" not in name.upper()} == {INSIDE}
    assert {"localhost", "172.17.0.0/16", "web", "web.web", "pack.web", "dokku-postgres-main"} <= set(
        config["no_proxy"].split(",")
    )
    assert host.config("web") == config
    assert host.config("pack") == {"SECRET_KEY": "of-the-app"}
    assert host.config("new") == {}
    assert host.build("web") == sorted([*OTHERS_OPTIONS, *(f"--build-arg {name}" for name in NAMES)])
    assert host.build("pack") == host.build("new") == []
    assert daemon_environment(machine)["http_proxy"] == "http://10.0.2.2:8123"
    assert ours(dump(machine))
    record = machine.path(RECORD)
    assert record.stat().st_mode & 0o777 == 0o600
    assert record.parent.stat().st_mode & 0o777 == 0o700

    status = run("status")
    assert (status.code, "in sync" in status.out) == (0, True), status
    held_then = host.state()
    host.argvs()
    again = run("apply", "--json", "--no-verify")
    assert (again.code, again.vm["changed"], again.vm["message"]) == (0, False, "in sync, nothing to do"), again
    said = {word for words in host.argvs() for word in words[:2]}
    assert not [word for word in said if word.endswith((":set", ":unset", ":import", ":add", ":remove"))]
    assert host.state() == held_then

    assert "still gives the proxy" in tell(vmproxy, converge.remove, dry_run=True).warnings[0]
    removed = run("remove")
    assert removed.code == 0, removed
    assert (host.state(), dump(machine), held(machine, PROFILE)) == (before, rules, None)
    assert "http_proxy" not in daemon_environment(machine)
    assert not record.parent.exists()
    assert "nothing to do" in run("remove").out


def test_drift_by_hand_is_named_and_converges(vmproxy: Vmproxy, host: DokkuLab) -> None:
    """A variable, a build argument, a new app and a VM's own block that go or come: each is a point; apply puts right
    what is ours without touching the rest, and remembers names and the index that were said once."""
    before = host.state()
    tell(vmproxy, dokku.apply, names=("db",), pip_index="http://127.0.0.1:3141/simple/")
    assert host.config()["PIP_INDEX_URL"] == "http://10.0.2.2:3141/simple/"
    assert "--build-arg PIP_INDEX_URL" in host.build("web")
    assert tell(vmproxy, dokku.status).ok
    host.dokku("config:unset", "--global", "NO_PROXY")
    host.dokku("docker-options:remove", "web", "build", "--build-arg http_proxy")
    vmproxy.machine.path(PROFILE).unlink()
    host.dokku("config:set", "--global", "LATER=by hand")
    status = tell(vmproxy, dokku.status, names=("db",), proxy=parse_proxy("http://127.0.0.1:8123"))
    assert status.exit == 1
    assert ("dokku config", "NO_PROXY is not set") in points(status)
    assert ("dokku build web", "--build-arg http_proxy is not there") in points(status)
    assert any("profile" in subject + detail for subject, detail in points(status))
    assert tell(vmproxy, dokku.apply).changed
    assert tell(vmproxy, dokku.status).ok
    assert "db" in host.config()["NO_PROXY"].split(",")
    host.dokku("config:set", "--global", "http_proxy=http://by-hand:1")
    with pytest.raises(Refused, match="http_proxy"):
        tell(vmproxy, dokku.apply)
    gone = tell(vmproxy, dokku.remove)
    assert "http_proxy of --global was changed since, and stays" in gone.warnings
    assert {key: host.config()[key] for key in ("http_proxy", "LATER")} == {
        "http_proxy": "http://by-hand:1", "LATER": "by hand",
    }  # fmt: skip
    host.dokku("config:unset", "--global", "http_proxy", "LATER")
    assert host.state() == before


def test_another_value_is_refused_before_anything_is_changed(vmproxy: Vmproxy, host: DokkuLab) -> None:
    """Exit 6 names the key, and nothing is touched. --force overwrites, and says so; an app's own stays."""
    host.dokku("config:set", "--global", "HTTP_PROXY=http://theirs:1")
    host.dokku("config:set", "--no-restart", "web", "https_proxy=http://own:1")
    before = host.state()
    with unchanged(vmproxy.machine):
        ran = vmproxy.run("dokku", "apply", *vmproxy.vm_words, "--no-check")
    refused(ran, 6, "HTTP_PROXY", "--global")
    assert "--force" in ran.err
    assert host.state() == before
    status = tell(vmproxy, dokku.status)
    assert ("dokku config", "HTTP_PROXY is another") in points(status)
    forced = tell(vmproxy, dokku.apply, force=True)
    assert "cannot give it back" in " ".join(forced.warnings)
    assert host.config()["HTTP_PROXY"] == INSIDE
    own = host.config("web")
    assert (own["https_proxy"], "HTTPS_PROXY" in own, own["http_proxy"]) == ("http://own:1", False, INSIDE)


def test_a_host_without_dokku_or_with_an_old_one(vmproxy: Vmproxy, host: DokkuLab) -> None:
    """One line, exit 6, nothing changed; the same for a damaged record."""
    with unchanged(vmproxy.machine):
        host.gone()
        for name in ("apply", "status", "remove"):
            ran = vmproxy.run("dokku", name, *vmproxy.vm_words)
            refused(ran, 6, "there is no Dokku")
        host.fresh(version="0.30.11")
        refused(vmproxy.run("dokku", "apply", *vmproxy.vm_words, "--no-check"), 6, "0.30.11 is too old")
        host.fresh()
        vmproxy.machine.run("mkdir -m 700 /var/lib/vmproxy; echo '{' >/var/lib/vmproxy/dokku.json")
        refused(vmproxy.run("dokku", "remove", *vmproxy.vm_words), 6, "damaged", RECORD)


def test_credentials_are_in_no_command_line(vmproxy: Vmproxy, host: DokkuLab, host_proxy: HostProxy) -> None:
    """A password with every awkward character arrives exactly, by stdin; no word of any dokku command, no output and
    no record shows it; Dokku before 0.37.0 could only take it as a word: exit 6 and nothing changed."""
    machine = vmproxy.machine
    secret = "p'q\"$(id)`%5C"
    quoted = "p%27q%22%24%28id%29%60%255C"
    host_proxy(machine, mode="auth", credentials=f"user:{secret}")
    environ = {"VMPROXY_PROXY": f"http://user:{quoted}@127.0.0.1:8123"}
    before = host.state()

    def run(*words: str) -> Any:
        ran = vmproxy.run("dokku", words[0], *vmproxy.vm_words, "-v", *words[1:], environ=environ)
        for text in (secret, quoted, "p'q", "p%27q"):
            assert text not in ran.all, ran
        return ran

    assert run("apply", "--dry-run", "--no-verify").code == 0
    applied = run("apply", "--no-verify")
    assert applied.code == 0, applied
    value = host.config()["http_proxy"]
    assert parse_proxy(value).password == secret
    assert host.config("web")["HTTPS_PROXY"] == value
    told = json.dumps(host.argvs())
    assert "config:import" in told
    assert all(text not in told for text in ("p'q", "p%27q", "@172"))
    assert b"%27" not in machine.path(RECORD).read_bytes()
    assert run("status").code == 0
    host.dokku("config:unset", "--global", "http_proxy")
    assert run("status").code == 1
    assert run("remove").code == 0
    assert host.state() == before

    host.fresh(version="0.36.5")
    old = host.state()
    with unchanged(machine):
        ran = run("apply", "--no-verify")
    refused(ran, 6, "0.36.5", "password")
    assert host.state() == old
    plain = tell(vmproxy, dokku.apply, no_proxy=("it's", "50%", "$(x)", '"q"', "\\d"))
    assert plain.changed
    entries = host.config()["no_proxy"].split(",")
    assert entries[:5] == ["it's", "50%", "$(x)", '"q"', "\\d"]
    assert host.config("web") == {key: value for key, value in host.config().items() if key != "SENTRY"}
    tell(vmproxy, dokku.remove)
    assert host.state() == old


@pytest.mark.parametrize("how", ["fail", "fail-after"])
def test_a_command_that_fails_in_the_middle(vmproxy: Vmproxy, host: DokkuLab, how: str) -> None:
    """Exit 7 with Dokku's own words: what was told before is taken back, and Docker's part of this very run too. The
    same on the way out, where what was there stays."""
    machine = vmproxy.machine
    before, rules = host.state(), dump(machine)
    host.switch(how, "docker-options:add web build --build-arg")
    ran = vmproxy.run("dokku", "apply", *vmproxy.vm_words, "--no-check", "--no-verify")
    refused(ran, 7, "Failure of the lab", "everything was put back")
    assert (host.state(), dump(machine), held(machine, PROFILE)) == (before, rules, None)
    host.off(how)
    tell(vmproxy, dokku.apply)
    there, rules = host.state(), dump(machine)
    host.switch(how, "config:unset .* web")
    with pytest.raises(RolledBack, match="Failure of the lab"):
        tell(vmproxy, dokku.remove)
    assert (host.state(), dump(machine)) == (there, rules)
    host.switch(how, "docker-options:add")
    with pytest.raises(RolledBack, match="Docker's part is done and stays"):
        tell(vmproxy, dokku.apply, proxy=parse_proxy("http://127.0.0.1:3128"), pip_index="http://10.0.2.2/simple/")
    assert host.state() == there


def test_a_put_back_that_fails_says_so(vmproxy: Vmproxy, host: DokkuLab) -> None:
    """Where Dokku refuses the way back as well: ROLLBACK INCOMPLETE; the record still knows what is ours, so that
    remove works once Dokku does."""
    before = host.state()
    host.switch("fail-after", "docker-options:add")
    host.switch("fail", "docker-options:remove")
    with pytest.raises(RolledBack, match="ROLLBACK INCOMPLETE") as caught:
        tell(vmproxy, dokku.apply)
    assert not caught.value.complete
    assert "--build-arg http_proxy" in host.build("web")
    assert sorted(host.config()) == ["SENTRY"]
    host.off("fail", "fail-after")
    tell(vmproxy, dokku.remove)
    assert host.state() == before


def test_what_fails_in_the_vm_gives_dokku_back_too(vmproxy: Vmproxy, host: DokkuLab) -> None:
    """On the way out Dokku goes first; where the VM's own part then fails, Dokku's is put back as well."""
    tell(vmproxy, dokku.apply)
    there = host.state()
    failing = shim(vmproxy.machine, "iptables-nft-restore", "exit 1")
    with pytest.raises(VmproxyError):
        tell(vmproxy, dokku.remove)
    vmproxy.machine.path(failing).unlink()
    assert host.state() == there
    assert tell(vmproxy, dokku.status).ok


def test_somebody_else_at_the_same_moment(vmproxy: Vmproxy, host: DokkuLab) -> None:
    """A proxy variable set between look and lock: looked at again, and refused as any other's; another variable is no
    matter. Another run that holds the lock: exit 8."""
    host.switch("before", "config:export .* new\nconfig:set --global no_proxy=meanwhile")
    with pytest.raises(Refused, match="no_proxy"):
        tell(vmproxy, dokku.apply)
    assert sorted(host.config()) == ["SENTRY", "no_proxy"]
    assert held(vmproxy.machine, PROFILE) is None
    host.dokku("config:unset", "--global", "no_proxy")
    host.switch("before", "config:export .* new\nconfig:set --global MEANWHILE=1")
    assert tell(vmproxy, dokku.apply).changed
    assert host.config()["MEANWHILE"] == "1"
    host.dokku("config:unset", "--global", "http_proxy")
    there = host.state()
    holder = vmproxy.machine.run("flock /run/vmproxy/lock sleep 300 >/dev/null 2>&1 & echo $!").stdout.decode().strip()
    try:
        free = "flock -n /run/vmproxy/lock true"
        until(lambda: vmproxy.machine.run(free, check=False).returncode != 0, "the other holds the lock")
        with pytest.raises(Busy):
            tell(vmproxy, dokku.apply, lock_timeout_seconds=0.0)
        assert host.state() == there
    finally:
        vmproxy.machine.run(f"pkill -P {holder}; kill {holder}", check=False)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_interrupted_in_the_middle(vmproxy: Vmproxy, host: DokkuLab, number: int) -> None:
    """Ctrl-C, and a client that is just gone: the VM takes back what Dokku was told by then; after Ctrl-C Docker's part
    of the run is gone too, exit 130."""
    machine = vmproxy.machine
    before = host.state()
    host.switch("slow", "0.15")
    host.switch("hold", "docker-options:add")
    host.argvs()
    log = machine.path("/run/lab/dokku/argv")
    process = subprocess.Popen(
        vmproxy.argv("dokku", "apply", *vmproxy.vm_words, "--no-check", "--no-verify"),
        env=vmproxy.environ, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
    )  # fmt: skip
    try:
        until(lambda: log.exists() and "docker-options:add" in log.read_text(encoding="utf-8"), "options are added")
        process.send_signal(number)
        time.sleep(1)  # the VM hears of it meanwhile; five more commands come behind the one that is held
        host.off("hold")
        _out, err = process.communicate(timeout=100)
    finally:
        host.off("hold")
        process.kill()
        process.wait()
    assert process.returncode == (130 if number == signal.SIGINT else -number), err
    until(lambda: machine.run("flock -n /run/vmproxy/lock true", check=False).returncode == 0, "the lock is free")
    host.off("slow")
    assert host.state() == before
    assert not [name for name in Path(machine.path("/run/vmproxy")).iterdir() if name.name != "lock"]
    assert (held(machine, PROFILE) is None) == (number == signal.SIGINT)
    tell(vmproxy, converge.remove)


def test_restart_always_starts_the_apps_anew(vmproxy: Vmproxy, host: DokkuLab) -> None:
    """While apps run, Docker's restart is pending, exit 3, and Dokku is told all the same. ``ps:restart --all`` when
    asked and something changed, not else; one that fails is exit 1, done and kept."""
    restarted = vmproxy.machine.path("/run/lab/dokku/restarted")
    running = vmproxy.machine.path("/run/lab/stub/running")
    running.write_text("2\n", encoding="utf-8")
    pending = tell(vmproxy, dokku.apply)
    assert (pending.exit, pending.changed) == (3, True)
    assert "restart is pending (2 containers run)" in pending.message
    assert host.config()["http_proxy"] == INSIDE
    assert tell(vmproxy, dokku.status).exit == 1
    running.unlink()
    assert tell(vmproxy, dokku.apply).exit == 0
    assert not restarted.exists()
    report = tell(vmproxy, dokku.apply, proxy=parse_proxy("http://127.0.0.1:3128"), restart="always")
    assert report.ok
    assert restarted.read_text(encoding="utf-8").splitlines() == ["new", "pack", "web"]
    host.switch("fail", "ps:restart")
    report = tell(vmproxy, dokku.remove, restart="always")
    assert (report.exit, report.code, report.changed) == (1, "E_RESTART", True)
    assert "Failure of the lab" in report.findings[-1].detail
    assert sorted(host.config()) == ["SENTRY"]
