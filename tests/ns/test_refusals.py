"""What vmproxy says no to: one error line, one hint, the right exit code, and a VM that was not touched."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.nsvm import NamespaceVM
from tests.ns.conftest import HostProxy
from tests.ns.endings import Base, clean_text, refused, unchanged
from tests.ns.story import (
    BOOTLOCAL,
    PROFILE,
    Ran,
    Vmproxy,
    daemon_environment,
    dump,
    files,
    ours,
    shim,
    stop,
    until,
)
from vmproxy import converge
from vmproxy.errors import LostContact, Refused
from vmproxy.machines import shell

QUIET = ("--no-check", "--no-verify")
SECRET = "hunter22"


# ---- the command line -----------------------------------------------------------------------------------------------

WRONG = {
    "no such option": ("--bogus",),
    "no such choice": ("--restart", "sometimes"),
    "no number": ("--listen-port", "eighty"),
    "no port": ("--listen-port", "70000"),
    "a URL without a host": ("--proxy", f"http://me:{SECRET}@:8123"),
    "a URL without a known scheme": ("--proxy", f"gopher://me:{SECRET}@127.0.0.1:70"),
    "a port out of range": ("--proxy", f"http://me:{SECRET}@127.0.0.1:99999"),
    "control bytes in a URL": ("--proxy", f"http://me:{SECRET}@127.0.0.1:8123/\x1b[2J"),
    "a gateway that is a name": ("--gateway", "gateway.example"),
    "an unknown guest": ("--guest", "windows"),
    "a negative wait": ("--wait", "-1"),
    "exit-code without dry-run": ("--exit-code",),
}


@pytest.mark.parametrize("what", WRONG)
def test_wrong_options_and_urls(base: Base, vmproxy: Vmproxy, what: str) -> None:
    """A wrong option or URL: exit 2 before anybody is asked, nothing changed, no secret shown."""
    with unchanged(base.machine):
        refused(vmproxy.apply(*WRONG[what]), 2, secrets=(SECRET,))


@pytest.mark.parametrize("name", ["apply", "remove", "status", "verify"])
def test_no_vm_is_named(vmproxy: Vmproxy, name: str) -> None:
    """Without --vm: exit 2, the hint says how to name one."""
    ran = vmproxy.run(name)
    refused(ran, 2)
    assert "--vm" in ran.err


def test_an_unknown_vm_name(vmproxy: Vmproxy) -> None:
    """A bare name that no provider knows: exit 2 with the name."""
    refused(vmproxy.run("apply", "--vm", "nosuchvm"), 2, "nosuchvm")


def test_a_refusal_in_json(base: Base, vmproxy: Vmproxy) -> None:
    """With --json a refusal is one object with ok, code, exit, changed; stderr still has the one line."""
    with unchanged(base.machine):
        ran = vmproxy.json("apply")
    assert ran.code == 6, ran
    only = ran.vm
    assert (ran.json["ok"], ran.json["exit"], ran.json["changed"]) == (False, 6, False)
    assert (only["ok"], only["code"], only["exit"], only["changed"]) == (False, "E_PROXY", 6, False)
    assert only["hint"]


# ---- reaching and trusting (F01 to F06, F67) ------------------------------------------------------------------------


@pytest.fixture
def port() -> Iterator[int]:
    """A port of this machine where nothing listens."""
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        yield reserved.getsockname()[1]


@pytest.mark.parametrize("name", ["apply", "remove", "status", "verify", "env"])
def test_f01_f67_a_dead_vm(vmproxy: Vmproxy, port: int, name: str) -> None:
    """Connection refused, remove with the VM gone too: exit 4, host and port named."""
    refused(vmproxy.run(name, "--vm", f"ssh://docker@127.0.0.1:{port}"), 4, f"127.0.0.1:{port}")


def test_f01_a_name_that_does_not_resolve(vmproxy: Vmproxy) -> None:
    """No such host: exit 4 with its name."""
    refused(vmproxy.run("apply", "--vm", "ssh://docker@nowhere.invalid"), 4, "nowhere.invalid")


def test_f02_a_banner_that_never_comes(vmproxy: Vmproxy) -> None:
    """Something takes the connection and says nothing: exit 4 when the time for connecting is over."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        place = f"127.0.0.1:{silent.getsockname()[1]}"
        ran = vmproxy.run("apply", "--vm", f"ssh://docker@{place}", "--connect-timeout", "1", seconds=100)
    refused(ran, 4, place)


def test_f02_a_black_hole(vmproxy: Vmproxy) -> None:
    """A SYN that nobody answers: exit 4 when the time for connecting is over."""
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        place = full.getsockname()
        waiting = [socket.socket() for _ in range(3)]
        for one in waiting:  # the queue of connections not yet taken is full: further ones get no answer
            one.setblocking(False)
            one.connect_ex(place)
        target = f"ssh://docker@127.0.0.1:{place[1]}"
        ran = vmproxy.run("apply", "--vm", target, "--connect-timeout", "1", seconds=100)
        for one in waiting:
            one.close()
    refused(ran, 4, f"127.0.0.1:{place[1]}")


def _key(path: Path, passphrase: str = "") -> str:
    words = ["ssh-keygen", "-q", "-t", "ed25519", "-N", passphrase, "-C", "other", "-f", str(path)]
    subprocess.run(words, check=True, stdin=subprocess.DEVNULL, timeout=100)
    return str(path)


def test_f05_a_key_that_is_not_let_in(base: Base, vmproxy: Vmproxy, tmp_path: Path) -> None:
    """The wrong key: exit 5, nothing changed; what was tried is named."""
    with unchanged(base.machine):
        ran = vmproxy.run("apply", "--vm", vmproxy.target, "--identity", _key(tmp_path / "other"))
    line = refused(ran, 5)
    assert "other" in line + ran.err


def test_f05_a_passphrase_without_a_terminal(base: Base, vmproxy: Vmproxy, tmp_path: Path) -> None:
    """A key that needs a passphrase, and nobody to ask: exit 5 at once, no question waits."""
    key = _key(tmp_path / "locked", passphrase="sesame-street")
    ran = vmproxy.run("apply", "--vm", vmproxy.target, "--identity", key, seconds=100)
    refused(ran, 5, secrets=("sesame-street",))


def test_f04_another_host_key_than_the_known_one(base: Base, vmproxy: Vmproxy, tmp_path: Path) -> None:
    """A changed host key: exit 4, both fingerprints shown, no log-in tried; nothing of known_hosts is replaced."""
    other = Path(_key(tmp_path / "host") + ".pub").read_text().split()
    known = tmp_path / "known"
    known.write_text(f"[127.0.0.1]:{base.machine.ssh_port} {other[0]} {other[1]}\n")
    before = known.read_bytes()
    with unchanged(base.machine):
        ran = vmproxy.apply("--known-hosts", str(known))
    assert ran.code == 4, ran
    assert ran.err.count("SHA256:") == 2, ran
    refused(ran, 4, "host key")
    assert known.read_bytes() == before


def test_f04_a_pinned_host_key(base: Base, vmproxy: Vmproxy) -> None:
    """--host-key with another fingerprint: exit 4; with the right one it works."""
    with unchanged(base.machine):
        refused(vmproxy.apply("--host-key", "SHA256:" + "A" * 43), 4, "host key")
    shown = base.machine.run("ssh-keygen -lf /run/lab/host_key.pub").stdout.decode().split()[1]
    ran = vmproxy.status("--host-key", shown)
    assert ran.code == 1, ran


# ---- the look (F03, F07 to F11, F23) --------------------------------------------------------------------------------

HIDE = "for name in ip netstat route; do while p=$(command -v $name); do mv $p $p.hidden || exit 1; done; done"
SHOW = "find /usr/sbin /usr/bin /sbin /bin /usr/local -name '*.hidden' | while read -r p; do mv $p ${p%.hidden}; done"


def test_f07_no_tool_that_prints_routes(base: Base, vmproxy: Vmproxy) -> None:
    """Without ip, netstat and route: the gateway comes from /proc, docker0's address from ifconfig, and apply works."""
    base.machine.run(HIDE)
    try:
        assert vmproxy.detect().out == "10.0.2.2\n"
        ran = vmproxy.apply(*QUIET)
        assert ran.code == 0, ran
        assert vmproxy.tell(converge.status).ok
    finally:
        base.machine.run(SHOW)


def test_f07_no_tool_that_prints_addresses(base: Base, vmproxy: Vmproxy) -> None:
    """Without ip and ifconfig nobody tells docker0's address: exit 6, nothing changed."""
    base.machine.run(HIDE.replace("ip netstat", "ip ifconfig netstat"))
    try:
        with unchanged(base.machine):
            refused(vmproxy.apply(*QUIET), 6, "bridge")
    finally:
        base.machine.run(SHOW)


ROUTES = {
    "F08 equal metrics": "ip route add default via 10.0.2.9 dev eth0 metric 0; ip route append default via 10.0.2.9",
    "F09 no default route": "ip route flush default",
    "F09 a default route without a gateway": "ip route flush default; ip route add default dev eth0 scope link",
}


@pytest.mark.parametrize("what", ROUTES)
def test_f08_f09_no_single_gateway(base: Base, vmproxy: Vmproxy, what: str) -> None:
    """No single gateway: exit 6 and the --gateway hint, nothing written; with --gateway it works."""
    base.machine.run(ROUTES[what], check=False)
    try:
        with unchanged(base.machine):
            ran = vmproxy.apply(*QUIET)
        refused(ran, 6)
        assert "--gateway" in ran.err
        assert vmproxy.tell(converge.apply, gateway="10.0.2.2", check=False, verify=False).ok
    finally:
        base.machine.run("ip route flush default; ip route add default via 10.0.2.2")


def test_f10_not_a_known_system(base: Base, vmproxy: Vmproxy) -> None:
    """Another system: exit 6 with its name and what is known; --guest overrules."""
    base.machine.run("cp -P /etc/os-release /run/os-release.was; rm /etc/os-release; cat >/etc/os-release; "
                     "mv /lib/lsb/init-functions /run/",
                     stdin=b'ID=plan9\nPRETTY_NAME="Plan \x1b[31m9"\n')  # fmt: skip
    try:
        with unchanged(base.machine):
            ran = vmproxy.apply(*QUIET)
        refused(ran, 6, "not known", "Plan \\x1b[31m9")
        assert "--guest" in ran.err
        assert vmproxy.tell(converge.apply, guest="boot2docker", check=False, verify=False).ok
    finally:
        base.machine.run("rm /etc/os-release; cp -P /run/os-release.was /etc/os-release")
        base.machine.run("mv /run/init-functions /lib/lsb/")


ENDLESS = {
    "lines": "while :; do echo 'default via 10.0.2.2 dev eth0 metric 1'; done",
    "zeros": "exec cat /dev/zero",
    "noise": "exec cat /dev/urandom",
}


# A process begins with the peak of the one that started it (exec keeps ru_maxrss): so not of pytest, which is large.
_PEAK = """
import os, sys
pid = os.posix_spawn(sys.argv[2], sys.argv[2:], os.environ)
_pid, status, usage = os.wait4(pid, 0)
with open(sys.argv[1], "w") as file:
    file.write(str(usage.ru_maxrss))
sys.exit(os.waitstatus_to_exitcode(status))
"""


def _status_and_peak_kb(vmproxy: Vmproxy) -> tuple[Ran, int]:
    peak = vmproxy.home / "peak"
    done = subprocess.run(
        [sys.executable, "-c", _PEAK, str(peak), *vmproxy.argv("status", *vmproxy.vm_words)],
        env=vmproxy.environ,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        cwd=vmproxy.home,
        check=False,
    )
    ran = Ran(argv=("status",), code=done.returncode, out=done.stdout.decode(), err=done.stderr.decode(), seconds=0.0)
    return ran, int(peak.read_text())


@pytest.mark.parametrize("what", ENDLESS)
def test_f11_output_without_end(base: Base, vmproxy: Vmproxy, what: str) -> None:
    """A VM that never stops talking: read up to the cap, exit 9; the memory grows by less than 64 MiB."""
    usual = _status_and_peak_kb(vmproxy)[1]
    shim(base.machine, "ip", ENDLESS[what])
    ran, peak = _status_and_peak_kb(vmproxy)
    refused(ran, 9, "more than")
    assert usual > 0
    assert peak - usual < 64 << 10


def test_f11_invalid_bytes_everywhere(base: Base, vmproxy: Vmproxy) -> None:
    """Random bytes from ip, iptables-save's stderr and sh: an answer or one clean error, never a crash."""
    shim(base.machine, "ip", "dd if=/dev/urandom bs=65536 count=4 2>/dev/null")
    ran = vmproxy.status()
    assert ran.code in (1, 6), ran
    assert clean_text(ran.all)
    assert "Traceback" not in ran.all


def test_f03_a_slow_vm(base: Base, vmproxy: Vmproxy, monkeypatch: pytest.MonkeyPatch) -> None:
    """A VM whose commands take long works within the limit; past the limit it ends as exit 9, nothing changed."""
    shim(base.machine, "ip", 'sleep 1; exec /usr/sbin/ip "$@"')
    shim(base.machine, "iptables-nft-save", 'sleep 1; exec /usr/sbin/iptables-nft-save "$@"')
    assert vmproxy.tell(converge.apply, check=False, verify=False).ok
    shim(base.machine, "ip", "exec sleep 30")
    monkeypatch.setattr(shell, "LOOK_SECONDS", 1.0)
    with unchanged(base.machine), pytest.raises(LostContact) as caught:
        vmproxy.tell(converge.remove)
    assert caught.value.hint


def test_f23_the_connection_drops_before_any_change(base: Base, vmproxy: Vmproxy) -> None:
    """The connection is cut while the VM looks: exit 9, nothing changed, and it says so."""
    waits = ": >/run/looking; until [ -e /run/cut ]; do sleep 0.05; done"
    shim(base.machine, "ip", f'{waits}; exec /usr/sbin/ip "$@"')
    with unchanged(base.machine):
        process = subprocess.Popen(
            vmproxy.argv("apply", *vmproxy.vm_words, *QUIET),
            env=vmproxy.environ, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        try:
            until(base.machine.path("/run/looking").exists, "the look")
            base.machine.relay.cut()
            out, err = process.communicate(timeout=100)
        finally:
            stop(process)
            base.machine.run("touch /run/cut")
        base.machine.run("rm /run/looking")
    ran = Ran(argv=("apply",), code=process.returncode, out=out.decode(), err=err.decode(), seconds=0.0)
    refused(ran, 9)


# ---- between apply and the second look (F22) ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "flush", ["iptables -w -t nat -F", "iptables -w -t nat -F VMPROXY-PREROUTING", "iptables -w -F FORWARD"]
)
def test_f22_another_tool_flushes_our_rules(base: Base, vmproxy: Vmproxy, flush: str) -> None:
    """Another tool empties nat while Docker restarts: the second look says no, exit 7, all of ours is put back."""
    shim(base.machine, "dockerd", f'{flush}; exec /usr/local/bin/dockerd "$@"')
    before = files(base.machine)
    ran = vmproxy.apply(*QUIET)
    refused(ran, 7, "put back")
    assert "INCOMPLETE" not in ran.err, ran
    assert files(base.machine) == before
    assert ours(dump(base.machine)) == []
    assert "http_proxy" not in daemon_environment(base.machine)


# ---- the proxy (F52 to F55) -----------------------------------------------------------------------------------------


def test_f52_no_proxy_on_the_host(base: Base, vmproxy: Vmproxy) -> None:
    """Nothing listens at the proxy's port: exit 6 naming where, nothing changed; --no-check goes on."""
    with unchanged(base.machine):
        refused(vmproxy.apply(), 6, "nothing answers at 10.0.2.2:8123")
    assert vmproxy.apply("--no-check", "--no-verify").code == 0


def test_f53_a_proxy_that_wants_credentials(base: Base, vmproxy: Vmproxy, host_proxy: HostProxy) -> None:
    """407: exit 6, said so, the hint shows where to put them; wrong ones are not shown; the right ones work."""
    host_proxy(base.machine, mode="auth", credentials="me:sesame-street")
    with unchanged(base.machine):
        refused(vmproxy.apply(), 6, "wants credentials")
        wrong = vmproxy.apply(environ={"VMPROXY_PROXY": f"http://me:{SECRET}@127.0.0.1:8123"})
        refused(wrong, 6, "credentials", secrets=(SECRET,))
    right = vmproxy.apply("--no-verify", environ={"VMPROXY_PROXY": "http://me:sesame-street@127.0.0.1:8123"})
    assert right.code == 0, right
    assert "sesame-street" not in right.all


NO_PROXY = {"tls": "speaks TLS", "closes": "nothing answers", "webserver": "web server", "silent": "nothing answers",
            "status:401": "web server", "status:418": "web server"}  # fmt: skip


@pytest.mark.parametrize("mode", NO_PROXY)
def test_f54_something_else_listens(base: Base, vmproxy: Vmproxy, host_proxy: HostProxy, mode: str) -> None:
    """What listens is no proxy: exit 6, and it is said what it was."""
    host_proxy(base.machine, mode=mode)
    with unchanged(base.machine):
        refused(vmproxy.apply(), 6, NO_PROXY[mode])


def test_f54_hangs_up_and_only_wget_asks(base: Base, vmproxy: Vmproxy, host_proxy: HostProxy) -> None:
    """wget alone would try one that hangs up twenty times, for minutes: it is stopped, and the no is the same."""
    host_proxy(base.machine, mode="closes")
    base.machine.run(HIDE.replace("ip netstat route", "bash nc curl"))
    try:
        with unchanged(base.machine):
            refused(vmproxy.apply(seconds=100), 6, "nothing answers")
    finally:
        base.machine.run(SHOW)


@pytest.mark.parametrize("mode", ["no-connect", "status:403", "status:502", "status:503", "status:504"])
def test_f54_a_proxy_by_how_it_fails(base: Base, vmproxy: Vmproxy, host_proxy: HostProxy, mode: str) -> None:
    """A proxy without CONNECT, one that forbids, one that finds no such name: proxies all the same."""
    host_proxy(base.machine, mode=mode)
    ran = vmproxy.apply("--no-verify")
    assert ran.code == 0, ran


def test_f54_garbage_is_shown_as_escapes(base: Base, vmproxy: Vmproxy) -> None:
    """What the other side says is shown as at most 80 printable characters."""
    import threading

    from tests.lab.hostside import listen

    with listen(base.machine.surroundings.host, "127.0.0.1", 8123) as server:

        def serve() -> None:
            while True:
                try:
                    client, _ = server.accept()
                except OSError:
                    return
                with client, contextlib.suppress(OSError):  # who asks may be gone by then
                    client.recv(4096)
                    client.sendall(b"\x1b[31mSSH-2.0-nonsense\r\n" + b"x" * 400 + b"\r\n\r\n")

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        with unchanged(base.machine):
            ran = vmproxy.apply()
        server.shutdown(socket.SHUT_RDWR)
    thread.join(timeout=60)
    line = refused(ran, 6, "SSH-2.0-nonsense")
    assert "x" * 80 not in line


def test_f55_a_proxy_on_the_hosts_loopback(base: Base, vmproxy: Vmproxy, host_proxy: HostProxy) -> None:
    """A proxy at the host's 127.0.0.1 alone is reached where the gateway leads there; at another port, the listen
    hint."""
    host_proxy(base.machine, port=3128)
    with unchanged(base.machine):
        ran = vmproxy.apply()
        refused(ran, 6, "10.0.2.2:8123")
    assert "listen" in ran.err
    ran = vmproxy.apply("--proxy", "http://127.0.0.1:3128", "--no-verify")
    assert ran.code == 0, ran


# ---- dry run (F68) --------------------------------------------------------------------------------------------------

CHANGING = ("mv", "rm", "cp", "mkdir", "mktemp", "chmod", "chown", "sync", "setsid", "touch", "tee", "ln",
            "iptables-restore", "iptables-nft-restore", "iptables-legacy-restore", "iptables", "docker")  # fmt: skip


def test_f68_a_dry_run_runs_nothing_that_changes(base: Base, vmproxy: Vmproxy) -> None:
    """At every state (fresh, applied, drifted): 0, or 3 with --exit-code, a redacted diff, nothing written or run."""
    said = {"VMPROXY_PROXY": f"http://me:{SECRET}@127.0.0.1:8123"}
    base.write(PROFILE, b"# mine\ntoken=topsecret99\n")
    states = {"fresh": (True, False), "applied": (False, True), "drifted": (True, True)}
    for state, (applies, removes) in states.items():
        if state == "applied":
            assert vmproxy.apply(*QUIET, environ=said).code == 0
        if state == "drifted":
            base.machine.run("iptables -w -t nat -F VMPROXY-PREROUTING")
        for name in CHANGING:
            shim(base.machine, name, f"echo {name} >>/run/changed; exit 1")
        for name, differs in (("apply", applies), ("remove", removes)):
            with unchanged(base.machine):
                plain = vmproxy.command(name, "--dry-run", environ=said)
                coded = vmproxy.command(name, "--dry-run", "--exit-code", environ=said)
            assert (plain.code, coded.code) == (0, 3 if differs else 0), (state, name, plain, coded)
            assert (PROFILE in plain.out) == (differs and (state, name) != ("drifted", "apply")), plain
            for secret in (SECRET, "topsecret99"):
                assert secret not in plain.all + coded.all, (state, name)
            assert clean_text(plain.all)
        assert not base.machine.path("/run/changed").exists(), state
        base.machine.run("cd /usr/local/sbin && /bin/rm -f *")


# ---- a closed stdout (F69) ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "codes"),
    [(("apply", "-v", *QUIET), (0, 141)), (("status", "-v"), (0, 1, 141)), (("apply", "--dry-run"), (0, 141)),
     (("apply", "--json", *QUIET), (0, 141)), (("remove",), (0, 141))],
)  # fmt: skip
def test_f69_nobody_reads_stdout(base: Base, vmproxy: Vmproxy, words: tuple[str, ...], codes: tuple[int, ...]) -> None:
    """`| head -c0`, and a closed stdout: no traceback, exit 0 or 141, and the job is done or was never begun."""
    if words[0] == "remove":
        assert vmproxy.tell(converge.apply, check=False, verify=False).ok
    command = [*vmproxy.argv(words[0], *vmproxy.vm_words, *words[1:])]
    for script in ('"$@" | head -c0; exit ${PIPESTATUS[0]}', '"$@" >&-'):
        done = subprocess.run(
            ["bash", "-c", script, "bash", *command],
            env=vmproxy.environ, stdin=subprocess.DEVNULL, capture_output=True, timeout=180, check=False,
        )  # fmt: skip
        err = done.stderr.decode()
        assert done.returncode in codes, (script, done.returncode, err)
        assert "Traceback" not in err
        assert "Exception ignored" not in err
    if "--dry-run" in words:
        assert ours(dump(base.machine)) == []
    elif words[0] == "apply":
        assert vmproxy.tell(converge.status).ok
    elif words[0] == "remove":
        assert ours(dump(base.machine)) == []


# ---- other servers and shells ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("ssh", "sh"), [("dropbear", "dash"), ("openssh", "bash"), ("openssh", "busybox"),
                                         ("dropbear", "busybox")])  # fmt: skip
def test_the_whole_job_on_other_servers_and_shells(tmp_path: Path, host_proxy: HostProxy, ssh: str, sh: str) -> None:
    """dropbear, and busybox or bash as /bin/sh: apply with its question, status, a no-op, remove; all as before."""
    with NamespaceVM(docker="stub", ssh=ssh, shell=sh) as machine:
        host_proxy(machine)
        vmproxy = Vmproxy(machine, tmp_path)
        Base(machine).write(PROFILE, b"# mine\r\nexport TZ=UTC")
        before, rules = files(machine), dump(machine)
        ran = vmproxy.apply("--no-verify")
        assert ran.code == 0, ran
        assert daemon_environment(machine)["http_proxy"] == "http://10.0.2.2:8123"
        assert len(ours(dump(machine))) > 5
        assert machine.path(BOOTLOCAL).exists()
        again = vmproxy.json("apply", "--no-verify")
        assert (again.code, again.json["changed"]) == (0, False), again
        assert vmproxy.status().code == 0
        assert json.loads(vmproxy.env("--format", "json").out)["http_proxy"] == "http://172.17.0.1:8123"
        ran = vmproxy.remove()
        assert ran.code == 0, ran
        assert (files(machine), dump(machine)) == (before, rules)
        assert "http_proxy" not in daemon_environment(machine)


def test_refused_is_refused_in_the_library_too(base: Base, vmproxy: Vmproxy) -> None:
    """The same no as an exception with exit, code, where and hint."""
    with pytest.raises(Refused) as caught:
        vmproxy.tell(converge.apply)
    assert (caught.value.exit, caught.value.code) == (6, "E_PROXY")
    assert caught.value.hint
