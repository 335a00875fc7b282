"""``--tools``: the programs themselves read what was written for them, and every byte goes away again."""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.nsvm import NamespaceVM
from tests.lab.proxy import LabProxy
from tests.ns.endings import refused
from tests.ns.story import BOOTLOCAL, PROFILE, Held, Vmproxy, held, host_proxy
from vmproxy import converge, tools
from vmproxy.errors import Refused, RolledBack, UsageError
from vmproxy.model import Facts
from vmproxy.proxyenv import parse_proxy, variables

URL = "http://only-the-proxy-knows.test"
PROXY = "http://10.0.2.2:8123"
ALL = tuple(tools.NAMES)
EMPTY = "env -i HOME=/tmp PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin "
SECRET = "hunter22"

THEIRS = {
    "/etc/gitconfig": b"[user]\r\n\tname = Somebody",
    "/etc/wgetrc": b"# theirs\ntries = 3\nhttp_proxy = http://127.0.0.1:9/\n",
    "/etc/pip.conf": b"[install]\nno-compile = yes\n[global]\n  timeout = 7\n  retries = 1\n[list]\nformat = columns\n",
    "/etc/dnf/dnf.conf": b"[main]\ngpgcheck=1\nreposdir=/none\n",
    "/etc/environment": b"",
    "/usr/etc/npmrc": b"; theirs\nfund=false",
}
"""Files as a VM may have them: CRLF and no final newline, another proxy, sections around, empty, no final newline."""

PROGRAMS = {
    # Not to be had from Debian: what apk itself would do is ask the proxy of its variables.
    "/sbin/apk": "#!/bin/sh\nexec wget --no-config -qO- http://only-the-proxy-knows.test/\n",
    "/usr/bin/npm": "#!/bin/sh\n",
}
NPM = """NODE_PATH=/usr/share/nodejs node -e '
console.log(JSON.stringify(require("ini").parse(require("fs").readFileSync("/usr/etc/npmrc", "utf8"))))'"""
"""npm's own reader of the file, without the 400 packages of npm."""
PAM = "auth sufficient pam_permit.so\naccount required pam_permit.so\nsession required pam_env.so readenv=1\n"


@dataclasses.dataclass
class Box:
    """A VM with the programs, the proxy of its host, and vmproxy."""

    machine: NamespaceVM
    proxy: LabProxy
    vmproxy: Vmproxy

    def picture(self) -> dict[str, Held | None]:
        """Every file that any tool may have, and the two of the guest."""
        return {path: held(self.machine, path) for path in (*tools.files(ALL), PROFILE, BOOTLOCAL)}

    def apply(self, *names: str, **more: object) -> str:
        """An apply in this process: how it ended."""
        settings = {"tools": names, "verify": False, "yes": True, "no_proxy": ("intern.test", ".corp.test"), **more}
        return self.vmproxy.tell(converge.apply, **settings).message

    def says(self, command: str, *, user: str = "root") -> str:
        """What a command in the VM answers, both streams, with nothing in its environment."""
        done = self.machine.run(EMPTY + command, user=user, check=False)
        return (done.stdout + done.stderr).decode()

    def asked(self, command: str, *, user: str = "root") -> bool:
        """Whether the proxy is asked for the address that it alone knows while that command runs."""
        before = len(self.proxy.requests)
        self.says(command, user=user)
        return any("only-the-proxy-knows" in str(request) for request in self.proxy.requests[before:])


@pytest.fixture(scope="module")
def box(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Box]:
    """One VM for all tests of this file, with everybody's files and no block of ours."""
    with contextlib.ExitStack() as stack:
        machine = stack.enter_context(
            NamespaceVM(docker="stub", more=("apt", "dnf", "git", "node-ini", "nodejs", "python3-pip"))
        )
        proxy = stack.enter_context(host_proxy(machine))
        for path, content in THEIRS.items():
            machine.path(path).parent.mkdir(parents=True, exist_ok=True)
            machine.path(path).write_bytes(content)
        machine.path("/etc/wgetrc").chmod(0o604)
        for path, text in PROGRAMS.items():
            machine.path(path).write_text(text)
            machine.path(path).chmod(0o755)
        machine.path("/etc/pam.d/su").write_text(PAM)
        with machine.path("/etc/profile").open("a") as file:  # as Alpine's and Debian's
            file.write("for part in /etc/profile.d/*.sh; do [ -r $part ] && . $part; done\n")
        with machine.path("/etc/sudoers").open("a") as file:
            file.write("@includedir /etc/sudoers.d\n")
        machine.path("/etc/apt/sources.list").write_text(f"deb [trusted=yes] {URL}/debian x main\n")
        yield Box(machine, proxy, Vmproxy(machine, tmp_path_factory.mktemp("home")))


@pytest.fixture(autouse=True)
def _as_before(box: Box) -> Iterator[None]:
    """Each test leaves a VM that is byte for byte, mode and absence as it was."""
    before = box.picture()
    yield
    box.vmproxy.tell(converge.remove, yes=True)
    assert box.picture() == before


def test_each_program_asks_the_proxy_without_any_variable(box: Box) -> None:
    """apt, git, pip and wget, run with an empty environment as root and as another user, ask the proxy; so does what
    gets its variables from log-in shells, sudo and PAM. Without their files none of them does."""
    commands = {
        "apt": "apt-get update",
        "dnf": f"dnf --repofrompath=x,{URL}/ --repo=x --setopt=cachedir=/tmp/dnf --setopt=retries=1 makecache",
        "git": f"git ls-remote {URL}/x.git",
        "pip": f"pip3 download --retries 0 -d /tmp -i {URL}/simple --trusted-host only-the-proxy-knows.test x",
        "wget": f"wget -t 1 -qO- {URL}/",
    }
    later = {
        "environment": f"su docker -s /bin/sh -c 'wget --no-config -t 1 -qO- {URL}/'",
        "apk": "sh -lc apk",
        "sudo": "sh -lc 'sudo -n apk'",
    }
    assert not box.asked(commands["wget"])
    assert not box.asked(later["sudo"])
    assert box.apply(*ALL) == "done"
    for name, command in {**commands, **later}.items():
        assert box.asked(command), (name, box.says(command))
    for name in ("git", "wget"):
        assert box.asked(commands[name], user="docker"), name
    assert "parsed OK" in box.says("visudo -c")


def test_the_programs_read_back_exactly_what_was_said(box: Box) -> None:
    """The programs' own ways of showing their settings give both proxies and what goes without, and what was in their
    files before means the same."""
    box.apply(*ALL, https_proxy=parse_proxy("http://192.0.2.7:3129"))
    shown = box.says("apt-config dump")
    assert f'Acquire::http::Proxy "{PROXY}";' in shown
    assert 'Acquire::https::Proxy "http://192.0.2.7:3129";' in shown
    assert 'Acquire::http::Proxy::intern.test "DIRECT";' in shown
    for address, wanted in (
        ("https://elsewhere.test/x", "http://192.0.2.7:3129"),
        ("https://intern.test/x", ""),
        ("http://a.corp.test/", ""),
        ("http://127.0.0.1/", ""),
        ("http://[::1]/", ""),
    ):
        assert box.says(f"git config --get-urlmatch http.proxy '{address}'").strip() == wanted, address
    dnf = "import dnf.conf; c = dnf.conf.Conf(); c.read(); print(c.proxy, c.gpgcheck)"
    assert box.says(f"python3 -c '{dnf}'").strip() == "http://192.0.2.7:3129 True"
    assert box.says("git config --system user.name").strip() == "Somebody"
    listed = box.says("pip3 config list")
    assert "global.proxy='http://192.0.2.7:3129'" in listed
    for theirs in ("global.timeout='7'", "global.retries='1'", "install.no-compile='yes'", "list.format='columns'"):
        assert theirs in listed
    read = json.loads(box.says(NPM))
    assert (read["fund"], read["proxy"], read["https-proxy"]) == (False, PROXY, "http://192.0.2.7:3129")
    assert read["noproxy"].split(",")[:2] == ["intern.test", ".corp.test"]
    # wget goes without the proxy where it is told to: nothing listens there.
    before = len(box.proxy.requests)
    box.says("wget -t 1 -T 3 -qO- http://127.0.0.1:9/")
    assert len(box.proxy.requests) == before


def test_the_wish_is_kept_in_the_vm(box: Box) -> None:
    """A second apply, status and a hook with no option at all know the tools; a drift in one of their files is told
    and repaired."""
    ran = box.vmproxy.apply("--tools", "git,apt", "--no-verify", "--yes")
    assert ran.code == 0, ran
    assert "a reboot forgets the files of apt, git" in ran.err
    ran = box.vmproxy.apply("--yes")
    assert (ran.code, "nothing to do" in ran.all) == (0, True), ran
    assert box.vmproxy.status().code == 0
    box.machine.path("/etc/gitconfig").write_bytes(THEIRS["/etc/gitconfig"])
    box.machine.path(tools.load("apt").FILES[-1]).unlink()
    ran = box.vmproxy.status()
    assert ran.code == 1, ran
    assert "/etc/gitconfig: our block is missing" in ran.all
    assert "zz-vmproxy: the file is missing" in ran.all
    assert box.vmproxy.tell(converge.apply, verify=False, yes=True).changed
    assert box.asked(f"git ls-remote {URL}/x.git")


def test_a_tool_that_is_left_out_is_taken_back(box: Box) -> None:
    """None is written unless it is named. Another list takes away the blocks of what it leaves out, byte for byte, and
    keeps the others; ``none`` all."""
    before = box.picture()
    assert box.apply() == "done"
    assert {path for path, file in box.picture().items() if file != before[path]} == {PROFILE, BOOTLOCAL}
    box.apply(*ALL)
    box.apply("apt", "sudo")
    kept = {path: file for path, file in box.picture().items() if file != before[path]}
    assert set(kept) == {tools.load("apt").FILES[-1], *tools.files(("sudo",)), PROFILE, BOOTLOCAL}
    box.apply("none")
    assert {path for path, file in box.picture().items() if file != before[path]} == {PROFILE, BOOTLOCAL}
    assert box.apply("none") == "in sync, nothing to do"


def test_what_the_user_changed_meanwhile_stays(box: Box) -> None:
    """``git config --system`` does not write into our block; what it wrote is there after remove."""
    box.apply("git")
    box.says("git config --system http.sslVerify false")
    assert box.vmproxy.tell(converge.status).ok
    box.vmproxy.tell(converge.remove, yes=True)
    path = box.machine.path("/etc/gitconfig")
    assert b"sslVerify = false" in path.read_bytes()
    assert b"vmproxy" not in path.read_bytes()
    path.write_bytes(THEIRS["/etc/gitconfig"])


def test_remove_needs_no_record(box: Box) -> None:
    """Where another program wrote the guest's files anew, remove finds the tools' blocks all the same."""
    box.apply(*ALL)
    for path in (PROFILE, BOOTLOCAL):
        box.machine.path(path).unlink()
    assert box.vmproxy.tell(converge.remove, yes=True).changed
    assert all(b"vmproxy" not in file.content for file in box.picture().values() if file)


def test_a_failed_proof_puts_the_tools_files_back(box: Box) -> None:
    """They are part of the one change: the proof fails (the stub runs no container) and every file is as before."""
    before = box.picture()
    with pytest.raises(RolledBack):
        box.apply(*ALL, verify=True)
    assert box.picture() == before


def test_credentials_stay_out_of_files_that_everybody_reads(box: Box) -> None:
    """A proxy with a password and a tool is exit 6, nothing is changed and the password is not shown; sudo's file has
    no values and is allowed."""
    before = box.picture()
    environ = {"VMPROXY_PROXY": f"http://me:{SECRET}@127.0.0.1:8123"}
    for name in ALL:
        if name not in ("sudo", "apt"):
            with pytest.raises(Refused, match=f"credentials cannot be given to {name}"):
                box.apply(name, proxy=parse_proxy(environ["VMPROXY_PROXY"]))
    ran = box.vmproxy.apply("--tools", "sudo,git", "--yes", environ=environ)
    refused(ran, 6, "credentials cannot be given to git", secrets=(SECRET,))
    assert box.picture() == before
    ran = box.vmproxy.apply("--tools", "sudo", "--no-verify", "--no-check", "--yes", environ=environ)
    assert ran.code == 0, ran
    assert SECRET not in ran.all
    assert SECRET.encode() not in box.machine.path(tools.load("sudo").FILES[0]).read_bytes()


def test_apt_has_a_file_for_credentials(box: Box) -> None:
    """The proxy gets user and password from apt; the file with them is root's alone, and other users' apt does not
    mind. No run shows them, and remove leaves nothing."""
    url = f"http://me:{SECRET}%23x%22@127.0.0.1:8123"
    ran = box.vmproxy.apply("--tools", "apt", "--dry-run", environ={"VMPROXY_PROXY": url})
    assert (ran.code, "login" in ran.all, SECRET in ran.all) == (0, False, False), ran
    ran = box.vmproxy.apply("--tools", "apt", "--no-verify", "--yes", environ={"VMPROXY_PROXY": url})
    assert (ran.code, SECRET in ran.all) == (0, False), ran
    files = {path: held(box.machine, path) for path in tools.load("apt").FILES}
    secret = [(path, file.mode) for path, file in files.items() if file and SECRET.encode() in file.content]
    assert secret == [("/etc/apt/auth.conf.d/zz-vmproxy.conf", "0600")]
    before = len(box.proxy.requests)
    box.says("apt-get update")
    basic = base64.b64encode(f'me:{SECRET}#x"'.encode()).decode()
    assert any(basic in header for request in box.proxy.requests[before:] for header in request.headers)
    done = box.machine.run("apt-cache policy", user="docker")
    assert (done.returncode, done.stderr) == (0, b"")
    assert (ran := box.vmproxy.apply("--yes")).code == 0, ran
    assert "nothing to do" in ran.all


HARD = ("a=b", "%41", "é.test", "a'b", 'a"b', "a#b", "a\\b", "$HOME", "a;b&c", "*", "[::1]:80", "@{HOME}", "a`b")


def test_hard_values_reach_their_readers(box: Box) -> None:
    """What is in no_proxy is exactly what a session of PAM, a log-in shell, npm's reader and wget get, or is refused.

    (npm's file is the one of NodeSource's package.)
    """
    seen = Facts(paths=frozenset(path for path in tools.paths(ALL) if not re.search("local|share", path)))
    readers = {"environment": "su docker -s /bin/sh -c 'printenv no_proxy'", "apk": "sh -lc 'printenv no_proxy'"}
    carried: dict[str, set[str]] = {name: set() for name in (*readers, "npm", "wget")}
    box.apply(*carried)
    for value in HARD:
        said = tools.Order(variables=variables(parse_proxy(PROXY), None, (value, "127.0.0.1")))
        for name, values in carried.items():
            try:
                (block,) = tools.load(name).render(said, seen)
            except Refused:
                continue
            box.machine.path(block.path).write_bytes(block.payload)
            if name in readers:
                assert box.says(readers[name]) == f"{value},127.0.0.1\n", (name, value)
            elif name == "npm":
                assert json.loads(box.says(NPM))["noproxy"] == f"{value},127.0.0.1", value
            else:
                before = len(box.proxy.requests)
                box.says("wget -t 1 -T 3 -qO- http://127.0.0.1:9/")
                assert len(box.proxy.requests) == before, value
            values.add(value)
    assert carried["apk"] == carried["npm"] == carried["wget"] == set(HARD)
    assert carried["environment"] == {"a=b", "%41", "é.test", "*", "[::1]:80", "@{HOME}"}
    for path in ("/etc/profile.d/vmproxy.sh", "/etc/environment"):
        box.machine.path(path).unlink()
    box.machine.path("/etc/environment").write_bytes(THEIRS["/etc/environment"])
    for path in ("/etc/wgetrc", "/usr/etc/npmrc"):
        box.machine.path(path).write_bytes(THEIRS[path])


def test_what_is_not_there_is_refused(box: Box) -> None:
    """A tool that the VM has not is exit 6, one that nobody knows exit 2, a file that is a link exit 6; nothing is
    changed."""
    before = box.picture()
    program = box.machine.path("/sbin/apk")
    program.rename(program.with_name("apk.aside"))
    refused(box.vmproxy.apply("--tools", "apt,apk", "--yes"), 6, "the VM has no apk", "/sbin/apk is missing")
    program.with_name("apk.aside").rename(program)
    with pytest.raises(UsageError, match="there is no tool named brew"):
        box.apply("apt", "brew")
    link = box.machine.path("/etc/apt/apt.conf.d/zz-vmproxy")
    link.symlink_to("/etc/passwd")
    with pytest.raises(Refused, match="a symbolic link"):
        box.apply("apt")
    link.unlink()
    with pytest.raises(Refused, match="a reboot forgets this file"):
        box.apply("git", require_persistent=True)
    assert box.picture() == before


def test_dry_run_shows_each_file(box: Box) -> None:
    """--dry-run writes nothing and shows the lines of every tool."""
    before = box.picture()
    ran = box.vmproxy.json("apply", "--dry-run", "--tools", ",".join(ALL))
    assert ran.code == 0, ran
    diff = json.loads(ran.out)["vms"][0]["diff"]
    for path in ("/etc/apt/apt.conf.d/zz-vmproxy", "/etc/gitconfig.vmproxy", "/etc/pip.conf", "/usr/etc/npmrc"):
        assert f"+++ {path}" in diff
    assert box.picture() == before


def test_the_lab_has_what_these_tests_are_about(box: Box) -> None:
    """The programs are the real ones."""
    assert all(
        Path(box.machine.path(f"/usr/bin/{name}")).exists() for name in ("apt-get", "dnf", "git", "pip3", "wget")
    )
