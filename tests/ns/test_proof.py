"""``verify`` on a VM with a real Docker: each vantage point, what it leaves (nothing), every tool it asks with."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.nsvm import NamespaceVM
from tests.lab.proxy import LabProxy
from tests.ns.endings import clean_text, refused
from tests.ns.story import Vmproxy, daemon_environment, dump, files, host_proxy, ours, shim, until
from vmproxy import converge
from vmproxy.errors import NoProxy

LEGS = ("vm", "bridge", "network")
QUESTIONS = {"CONNECT vmproxy.invalid:443 HTTP/1.1", "GET http://vmproxy.invalid/ HTTP/1.1"}
REJECT = "-p tcp --dport 8123 -j REJECT"
BROKEN = {
    "vm": f"-I OUTPUT -d 10.0.2.2 {REJECT}",
    "bridge": f"-I DOCKER-USER -i docker0 {REJECT}",
    "network": f"-I DOCKER-USER ! -i docker0 {REJECT}",
}
"""A rule of somebody else's that breaks one leg and no other."""


@pytest.fixture(scope="module")
def machine() -> Iterator[NamespaceVM]:
    """A VM with a real Docker, with no image at all."""
    with NamespaceVM() as vm:
        yield vm


@pytest.fixture(scope="module")
def proxy(machine: NamespaceVM) -> Iterator[LabProxy]:
    """The host's proxy."""
    with host_proxy(machine) as running:
        yield running


@pytest.fixture
def vmproxy(machine: NamespaceVM, proxy: LabProxy, tmp_path: Path) -> Iterator[Vmproxy]:
    """An applied VM, and again after the test; nothing of the proof is left in it."""
    made = Vmproxy(machine, tmp_path)
    proxy.mode = "proxy"
    if not made.tell(converge.status).ok:
        assert made.tell(converge.apply, verify=False).ok
    proxy.forget()
    yield made
    for rule in BROKEN.values():
        machine.run(f"while iptables -w {rule.replace('-I', '-D', 1)} 2>/dev/null; do :; done")
    machine.run("rm -f /usr/local/sbin/*")
    assert nothing_left(machine)


def nothing_left(machine: NamespaceVM) -> bool:
    """No container, network or image of the proof, no image at all, no work directory."""
    seen = [
        machine.docker("ps", "-aq"),
        machine.docker("images", "-aq"),
        machine.docker("network", "ls", "-q", "--filter", "label=vmproxy=proof"),
        machine.run("ls /run | grep vmproxy-proof; ls /run/vmproxy | grep work; true").stdout.decode(),
    ]
    return not any(seen)


def legs(vmproxy: Vmproxy) -> dict[str, bool]:
    """The findings of ``verify --json`` by leg."""
    return {finding["subject"]: finding["ok"] for finding in vmproxy.json("verify").vm["findings"]}


def test_every_leg(vmproxy: Vmproxy, proxy: LabProxy) -> None:
    """All three legs are good: exit 0. The proxy saw our two questions from each, and no other: no image is pulled."""
    ran = vmproxy.verify()
    assert ran.code == 0, ran
    assert proxy.lines.count("CONNECT vmproxy.invalid:443 HTTP/1.1") == 3
    assert set(proxy.lines) == QUESTIONS
    assert legs(vmproxy) == dict.fromkeys(LEGS, True)


@pytest.mark.parametrize("leg", LEGS)
def test_a_broken_leg_is_named(vmproxy: Vmproxy, machine: NamespaceVM, leg: str) -> None:
    """One vantage point cut off by somebody's rule: exit 1, that leg is named and the others are good."""
    machine.run(f"iptables -w {BROKEN[leg]}")
    ran = vmproxy.verify()
    where = {"vm": "from the VM", "bridge": "from a container on the default bridge", "network": "user-defined network"}
    assert ran.code == 1, ran
    assert re.search(rf"-- {leg}: nothing answers at .*{where[leg]}\n +hint: ", ran.out), ran
    assert "Traceback" not in ran.err
    assert legs(vmproxy) == {name: name != leg for name in LEGS}


def test_our_own_door_shut_is_named(vmproxy: Vmproxy, machine: NamespaceVM) -> None:
    """Our rules emptied by hand: the VM's own leg is good, both containers' are not; status says drift."""
    machine.run("iptables -w -t nat -F VMPROXY-PREROUTING")
    assert legs(vmproxy) == {"vm": True, "bridge": False, "network": False}
    assert vmproxy.status().code == 1


@pytest.mark.parametrize(("mode", "code"), [("webserver", "web"), ("tls", "tls"), ("closes", "silent")])
def test_what_answers_is_no_proxy(vmproxy: Vmproxy, proxy: LabProxy, mode: str, code: str) -> None:
    """A web server, TLS, one that hangs up: every leg says which, exit 1."""
    proxy.mode = mode
    ran = vmproxy.json("verify")
    assert ran.code == 1, ran
    assert [finding["code"] for finding in ran.vm["findings"]] == [code] * 3
    assert clean_text(ran.all)


def test_a_status_that_asks_for_credentials(vmproxy: Vmproxy, proxy: LabProxy) -> None:
    """407 from each leg: said so, with the hint where to put them."""
    proxy.mode = "status:407"
    ran = vmproxy.json("verify")
    assert ran.code == 1, ran
    assert [finding["code"] for finding in ran.vm["findings"]] == ["credentials"] * 3
    assert "--proxy" in ran.vm["hint"]


HIDE = "for name in {}; do while p=$(command -v $name); do mv $p $p.hidden || exit 1; done; done"
SHOW = "find /usr/sbin /usr/bin /sbin /bin /usr/local -name '*.hidden' | while read -r p; do mv $p ${p%.hidden}; done"
TOOLS = ("bash", "nc", "curl", "wget")


@pytest.fixture
def tools(machine: NamespaceVM) -> Iterator[NamespaceVM]:
    """The VM, whose tools a test may hide."""
    yield machine
    machine.run(SHOW)


@pytest.mark.parametrize("tool", TOOLS)
def test_asked_with_one_tool(vmproxy: Vmproxy, tools: NamespaceVM, proxy: LabProxy, tool: str) -> None:
    """Where the VM has only one of the tools, that one is enough, in containers too; also to see what is no proxy."""
    tools.run(HIDE.format(" ".join(name for name in TOOLS if name != tool)))
    assert legs(vmproxy) == dict.fromkeys(LEGS, True)
    proxy.mode = "webserver"
    assert legs(vmproxy) == dict.fromkeys(LEGS, False)


def test_wget_alone_shows_the_credentials(vmproxy: Vmproxy, tools: NamespaceVM) -> None:
    """A proxy that wants credentials, and a VM that has only wget: right ones are shown, missing ones are told."""
    tools.run(HIDE.format("bash nc curl"))

    def code(**environ: str) -> str:
        words = () if environ else ("--proxy", "http://127.0.0.1:3129")
        found = vmproxy.json("verify", *words, environ=environ).vm["findings"]
        return str(next(leg["code"] for leg in found if leg["subject"] == "vm"))

    with host_proxy(tools, port=3129, mode="auth", credentials="me:s p%"):
        assert code(VMPROXY_PROXY="http://me:s%20p%25@127.0.0.1:3129") in ("", "OK")
        assert code() == "credentials"


def test_asked_with_busyboxs_nc(vmproxy: Vmproxy, tools: NamespaceVM, proxy: LabProxy) -> None:
    """The same with busybox's own nc, as on Tiny Core."""
    tools.run(HIDE.format(" ".join(TOOLS)))
    tools.run('ln -s "$(command -v busybox)" /usr/local/sbin/nc')
    assert legs(vmproxy) == dict.fromkeys(LEGS, True)
    proxy.mode = "status:407"
    assert {finding["code"] for finding in vmproxy.json("verify").vm["findings"]} == {"credentials"}


def test_asked_with_no_tool(vmproxy: Vmproxy, tools: NamespaceVM) -> None:
    """Without any of them apply refuses, exit 6, and names --no-check; verify says so for each leg."""
    assert vmproxy.tell(converge.remove).ok
    before = files(tools), dump(tools)
    tools.run(HIDE.format(" ".join(TOOLS)))
    ran = vmproxy.apply()
    refused(ran, 6, "none of bash, nc, curl, wget")
    assert "--no-check" in ran.err
    assert (files(tools), dump(tools)) == before
    ran = vmproxy.apply("--no-check", "--no-verify")
    assert ran.code == 0, ran
    ran = vmproxy.json("verify")
    assert ran.code == 1, ran
    assert {finding["code"] for finding in ran.vm["findings"]} == {"tool"}


def test_f56_the_vm_reaches_it_and_a_container_does_not(vmproxy: Vmproxy, machine: NamespaceVM) -> None:
    """apply where somebody's rule keeps containers out: exit 7 with the leg named, everything put back."""
    assert vmproxy.tell(converge.remove).ok
    machine.run(f"iptables -w {BROKEN['bridge']}")
    before = files(machine), dump(machine)
    ran = vmproxy.apply()
    refused(ran, 7, "from a container on the default bridge", "put back")
    assert (files(machine), dump(machine)) == before
    assert "http_proxy" not in daemon_environment(machine)


def test_f56_keep_keeps(vmproxy: Vmproxy, machine: NamespaceVM) -> None:
    """The same with --keep: exit 1, the leg is named, what was applied stays."""
    assert vmproxy.tell(converge.remove).ok
    machine.run(f"iptables -w {BROKEN['network']}")
    ran = vmproxy.json("apply", "--keep")
    assert (ran.code, ran.json["changed"]) == (1, True), ran
    assert [f["subject"] for f in ran.vm["findings"] if not f["ok"]] == ["network"]
    assert len(ours(dump(machine))) > 5
    assert daemon_environment(machine)["http_proxy"] == "http://10.0.2.2:8123"
    machine.run(f"iptables -w {BROKEN['network'].replace('-I', '-D', 1)}")
    assert vmproxy.tell(converge.status).ok


def test_apply_proves_itself(vmproxy: Vmproxy, proxy: LabProxy, machine: NamespaceVM) -> None:
    """A whole apply asks before the first change and from every leg after the last; its findings are in the report."""
    assert vmproxy.tell(converge.remove).ok
    proxy.forget()
    report = vmproxy.tell(converge.apply)
    assert {finding.subject: finding.ok for finding in report.findings} == dict.fromkeys(LEGS, True)
    assert proxy.lines.count("CONNECT vmproxy.invalid:443 HTTP/1.1") == 4
    assert set(proxy.lines) == QUESTIONS
    assert nothing_left(machine)


def test_a_proof_that_was_cut_short_leaves_nothing(vmproxy: Vmproxy, proxy: LabProxy, machine: NamespaceVM) -> None:
    """The connection drops in the middle of the proof: what it made goes by itself."""
    waits = ': >/run/proving; until [ -e /run/cut ]; do sleep 0.05; done'
    shim(machine, "docker", f'[ "$1" != run ] || {{ {waits}; }}; exec /usr/bin/env PATH="${{PATH#*:}}" docker "$@"')

    def cut() -> None:
        try:
            until(machine.path("/run/proving").exists, "the proof")
            machine.relay.cut()
        finally:
            machine.path("/run/cut").touch()

    thread = threading.Thread(target=cut)
    thread.start()
    ran = vmproxy.verify()
    thread.join()
    assert ran.code == 9, ran
    until(lambda: nothing_left(machine), "the proof's end")
    machine.run("rm /run/proving /run/cut")


def test_an_image_of_the_users_own_stays(vmproxy: Vmproxy, machine: NamespaceVM) -> None:
    """Images, containers and networks that are not the proof's are the same before and after."""
    machine.import_image("mine")
    machine.docker("run", "-d", "--name", "box", "mine", "sleep", "1000")
    machine.docker("network", "create", "mynet")
    try:
        before = [machine.docker(*words) for words in (("ps", "-aq"), ("images", "-aq"), ("network", "ls", "-q"))]
        assert vmproxy.tell(converge.verify).ok
        after = [machine.docker(*words) for words in (("ps", "-aq"), ("images", "-aq"), ("network", "ls", "-q"))]
        assert after == before
    finally:
        machine.docker("rm", "-f", "box")
        machine.docker("network", "rm", "mynet")
        machine.docker("rmi", "-f", "mine")


def test_docker_stopped_leaves_only_the_vms_leg(vmproxy: Vmproxy, machine: NamespaceVM) -> None:
    """Without a running Docker only the VM itself is asked, and it is said which legs were not."""
    machine.run("/etc/init.d/docker stop")
    try:
        ran = vmproxy.verify()
    finally:
        machine.start_docker()
    assert ran.code == 0, ran
    assert ran.err.count("not asked from a container") == 2, ran


def test_no_proxy_is_an_error_of_its_own(vmproxy: Vmproxy, proxy: LabProxy) -> None:
    """In the library a missing proxy is NoProxy, before anything is changed."""
    assert vmproxy.tell(converge.remove).ok
    proxy.mode = "closes"
    with pytest.raises(NoProxy):
        vmproxy.tell(converge.apply)
