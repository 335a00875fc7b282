"""Every guest's files on a root file system in a directory: written, read by what reads them there, taken back."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.unit import guestworlds
from tests.unit.test_guests import SERVED
from vmproxy import blocks, converge, guests
from vmproxy.errors import Refused, VmproxyError
from vmproxy.guests import openrc, systemd, sysv, upstart
from vmproxy.guests._payload import variables
from vmproxy.model import Report, Settings
from vmproxy.proxyenv import parse_proxy

GATEWAY = "10.0.2.2"
KINDS = {
    "openrc": "alpine-3.19",
    "systemd": "debian-12",
    "sysv": "debian-12-sysvinit",
    "upstart": "ubuntu-14.04",
    "moby": "docker-for-mac-2016",
    "boot2docker": "boot2docker-19.03",
}
_OPENRC_RUN = b"#!/sbin/openrc-run\n\ndepend()\n{\n\tafter transfused\n}\n\nstart()\n{\n\tebegin x\n}\n"
_OTHERS = {
    "openrc": {"/etc/conf.d/docker": b'# Docker\nDOCKER_OPTS="-D"\n'},
    "systemd": {"/etc/systemd/system/docker.service.d/05-mine.conf": b"[Service]\nLimitNOFILE=65536\n"},
    "sysv": {"/etc/default/docker": b'#DOCKER_OPTS="--dns 8.8.8.8"', "/etc/rc.local": b"#!/bin/sh -e\ntrue\nexit 0\n"},
    "upstart": {"/etc/default/docker": b'DOCKER_OPTS="-D"\n'},
    "moby": {"/etc/init.d/docker": _OPENRC_RUN},
    "boot2docker": {"/var/lib/boot2docker/profile": b'EXTRA_ARGS="-D"\n'},
}
_EXECUTABLE = {"/etc/rc.local", "/etc/init.d/docker"}
# What a URL's user and password may hold, once it is no longer percent-encoded by us, and what %-escapes look like.
HOSTILE = "http://u%25ser:p%27a%22s%24s%23w%5Cd%60%21%26%3B%28@10.9.8.7:3128"
_ODD = {"http_proxy": """a'b"c$d#e\\f%g`h!i;j&k|l(m)n*o~p é€🐳 %n %% $HOME \\x41""", "no_proxy": "a,b"}


class Root:
    """A root file system of one kind of VM."""

    def __init__(self, directory: Path, kind: str, files: Mapping[str, bytes]) -> None:
        self.directory = directory
        facts = guestworlds.world(KINDS[kind])
        for path in sorted(guestworlds.on_disk(facts).paths):
            place = self.path(path)
            place.parent.mkdir(parents=True, exist_ok=True)
            if path in ("/var/lib/boot2docker", "/etc/local.d"):
                place.mkdir(exist_ok=True)
            elif not place.exists():
                place.write_bytes(b"")
        for path in ("/etc/systemd/system", "/etc/init", "/etc/default", "/etc/conf.d", "/etc/init.d"):
            self.path(path).mkdir(parents=True, exist_ok=True)
        self.path("/var/lib/boot2docker/userdata.tar").unlink(missing_ok=True)
        self.path("/etc/os-release").write_text("".join(f'{k}="{v}"\n' for k, v in facts.os_release.items()))
        for path, content in files.items():
            self.path(path).parent.mkdir(parents=True, exist_ok=True)
            self.path(path).write_bytes(content)
            self.path(path).chmod(0o755 if path in _EXECUTABLE else 0o644)

    def path(self, inside: str) -> Path:
        """A file of the VM on this host."""
        return self.directory / inside.lstrip("/")

    def picture(self) -> dict[str, tuple[int, bytes]]:
        """Every file and directory: mode, bytes."""
        return {
            str(path.relative_to(self.directory)): (path.lstat().st_mode, path.read_bytes() if path.is_file() else b"")
            for path in sorted(self.directory.rglob("*"))
        }

    def tell(self, story: object, **settings: object) -> Report:
        """A story on this directory."""
        more = {"gateway": GATEWAY, **settings}
        report = story(f"rootfs:{self.directory}", Settings(given=frozenset(more), **more))  # type: ignore[operator, arg-type]
        assert isinstance(report, Report)
        return report


def test_a_block_for_another_kind_of_vm_is_told(tmp_path: Path) -> None:
    """Applied as another kind than the VM is, or before its init became another: every command names the file that is
    left, and the words that take it away."""
    root = Root(tmp_path / "root", "sysv", _OTHERS["sysv"])
    before = root.picture()
    root.tell(converge.apply, guest="upstart")
    left = f"{upstart.JOB} has a block of ours for another kind of VM: vmproxy remove --guest upstart"
    for command in (converge.apply, converge.status, converge.remove, converge.status):
        assert left in root.tell(command).warnings
    assert left not in root.tell(converge.remove, guest="upstart").warnings
    assert root.picture() == before


@pytest.mark.parametrize(
    ("kind", "others"),
    # moby's one file is upstream's own.
    [(kind, others) for kind in KINDS for others in (True, False) if others or kind != "moby"],
)
def test_f73_apply_again_status_remove_on_files(kind: str, others: bool, tmp_path: Path) -> None:
    """F73 for files, each guest: they are made, a second apply has nothing to do, status agrees, remove gives back
    every byte, mode and directory."""
    root = Root(tmp_path / "root", kind, _OTHERS[kind] if others else {})
    before = root.picture()
    assert root.tell(converge.apply).changed
    applied = root.picture()
    guest = guests.load(kind)
    assert all(root.path(path).exists() for path in guest.FILES if path != systemd.ENVIRONMENT)
    assert b"10.0.2.2:8123" in root.path(guest.WISH_FILE).read_bytes()
    assert not root.tell(converge.apply).changed
    assert root.tell(converge.status).ok
    assert root.picture() == applied
    assert root.tell(converge.remove).changed
    assert root.picture() == before
    assert not root.tell(converge.remove).changed


@pytest.mark.parametrize("kind", KINDS)
def test_another_wish_and_a_proxy_elsewhere(kind: str, tmp_path: Path) -> None:
    """From a door to a proxy elsewhere: what only the door needs goes, the rest is rewritten; remove leaves nothing."""
    root = Root(tmp_path / "root", kind, _OTHERS[kind])
    before = root.picture()
    root.tell(converge.apply)
    root.tell(converge.apply, proxy=parse_proxy("http://proxy.corp.test:3128"), gateway="")
    text = root.path(guests.load(kind).WISH_FILE).read_text()
    assert "http://proxy.corp.test:3128" in text
    assert "vmproxy-rules" not in text
    assert b"VMPROXY-" not in b"".join(content for _, content in root.picture().values())
    root.tell(converge.remove, gateway="")
    assert root.picture() == before


@pytest.mark.parametrize("kind", KINDS)
def test_f78_p4_credentials_are_read_back_exactly_and_by_nobody_else(kind: str, tmp_path: Path) -> None:
    """F78: whatever a password holds, what reads the file gets exactly it; the file is 0600 meanwhile, and no other
    file has the password."""
    root = Root(tmp_path / "root", kind, _OTHERS[kind])
    before = root.picture()
    root.tell(converge.apply, proxy=parse_proxy(HOSTILE))
    place = root.path(systemd.ENVIRONMENT if kind == "systemd" else guests.load(kind).WISH_FILE)
    assert place.stat().st_mode & 0o077 == 0
    assert [name for name, (_, data) in root.picture().items() if b"p%27a" in data.replace(b"%%", b"%")] == [
        str(place.relative_to(root.directory))
    ]
    wanted = {"http_proxy": HOSTILE, "HTTPS_PROXY": HOSTILE}
    block = blocks.find(place.read_bytes())
    assert block is not None
    found = variables(block.payload)
    assert {name: found[name] for name in wanted} == wanted
    if kind != "systemd":
        assert {name: value for name, value in _sourced(place, "dash").items() if name in wanted} == wanted
    assert root.tell(converge.status, proxy=parse_proxy(HOSTILE)).ok
    assert root.tell(converge.status).ok  # from what is recorded in the VM
    root.tell(converge.remove)
    assert root.picture() == before


@pytest.mark.parametrize("shell", [["dash"], ["busybox", "sh"], ["bash", "--posix"]], ids=lambda words: words[0])
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "systemd"])
def test_p4_a_shell_reads_exactly_the_values(kind: str, shell: list[str], tmp_path: Path) -> None:
    """Quotes, $, #, backslash, %, and what else is special: sourced, each variable has exactly its value."""
    facts = guestworlds.world(KINDS[kind])
    made = guests.load(kind).render(guests.Order(environment=_ODD, door=None, variant="default", record={}), facts)
    (block,) = made
    place = tmp_path / "file"
    place.write_bytes(block.payload)
    found = _sourced(place, *shell)
    assert {name: found[name] for name in _ODD} == _ODD


def test_p4_systemd_reads_exactly_the_values() -> None:
    """The same in a drop-in, by the rules of systemd.syntax(7) with specifiers undone; no % is left alone."""
    order = guests.Order(environment=_ODD, door=None, variant="default", record={})
    (block,) = systemd.render(order, guestworlds.world("debian-12"))
    found = variables(block.payload)
    assert {name: found[name] for name in _ODD} == _ODD
    assert b"%" not in block.payload.replace(b"%%", b"")


def test_p4_systemd_reads_exactly_the_values_of_its_file() -> None:
    """With credentials they stand in a file, by the rules of systemd.exec(5) for EnvironmentFile=; the drop-in, which
    systemctl show tells to everybody, has none of them."""
    order = guests.Order(environment=_ODD, door=None, variant="default", record={}, secret=True)
    file, drop_in = systemd.render(order, guestworlds.world("debian-12"))
    assert variables(file.payload) == _ODD
    assert (file.path, file.secret, drop_in.secret) == (systemd.ENVIRONMENT, True, False)
    assert drop_in.payload == b"[Service]\nEnvironmentFile=-/etc/vmproxy-docker.env\n"


def test_credentials_come_to_systemds_file_and_go_from_it(tmp_path: Path) -> None:
    """From a wish without them to one with, and back: the file comes and goes, the drop-in says what is where."""
    root = Root(tmp_path / "root", "systemd", {})
    before = root.picture()
    root.tell(converge.apply)
    plain = root.picture()
    root.tell(converge.apply, proxy=parse_proxy("http://u:hunter22@127.0.0.1:8123"))
    assert b"hunter22" in root.path(systemd.ENVIRONMENT).read_bytes()
    assert b"Environment=" not in root.path(systemd.DROP_IN).read_bytes()
    assert root.path(systemd.DROP_IN).stat().st_mode & 0o777 == 0o644
    root.tell(converge.apply, proxy=parse_proxy("http://127.0.0.1:8123"))
    assert root.picture() == plain
    root.tell(converge.apply, proxy=parse_proxy("http://u:hunter22@127.0.0.1:8123"))
    root.tell(converge.remove)
    assert root.picture() == before


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("value", ["a\nb", "a\rb", "a\0b", "a\x1bb"])
def test_p4_what_no_format_can_carry_is_refused(kind: str, value: str) -> None:
    """Control characters are refused by every guest, and not shown."""
    order = guests.Order(environment={"http_proxy": value}, door=None, variant="default", record={})
    with pytest.raises(VmproxyError) as error:
        guests.load(kind).render(order, guestworlds.world(KINDS[kind]))
    assert value not in str(error.value)


def test_etc_default_docker_is_never_written_on_a_systemd_machine(tmp_path: Path) -> None:
    """There it is dead: nothing reads it."""
    root = Root(tmp_path / "root", "systemd", {"/etc/default/docker": b"#DOCKER_OPTS=\n"})
    root.tell(converge.apply)
    assert root.path("/etc/default/docker").read_bytes() == b"#DOCKER_OPTS=\n"
    assert sysv.DEFAULTS not in systemd.FILES


def test_systemds_files_need_no_enabling(tmp_path: Path) -> None:
    """The drop-in wants the unit, the unit comes after Docker; there is no link to make. systemd finds no fault."""
    root = Root(tmp_path / "root", "systemd", {})
    root.tell(converge.apply)
    drop_in = root.path(systemd.DROP_IN).read_text().splitlines()
    assert drop_in[1:3] == ["[Unit]", "Wants=vmproxy-rules.service"]
    assert "[Service]" in drop_in
    unit = root.path(systemd.UNIT).read_text().splitlines()
    assert {"After=docker.service", "Type=oneshot", f"ExecStart=/bin/sh {systemd.SCRIPT}"} <= set(unit)
    assert not any(path.is_symlink() for path in root.directory.rglob("*"))
    assert root.path(systemd.SCRIPT).stat().st_mode & 0o777 == 0o755
    assert root.path(systemd.DROP_IN).parent.stat().st_mode & 0o777 == 0o755


@pytest.mark.parametrize(
    ("kind", "path"), [("openrc", openrc.SCRIPT), ("sysv", sysv.RC_LOCAL)], ids=["local.d", "rc.local"]
)
def test_a_script_that_init_would_not_run_is_refused(kind: str, path: str, tmp_path: Path) -> None:
    """Without its x nothing runs it at boot: exit 6, chmod +x; nothing is changed."""
    root = Root(tmp_path / "root", kind, {path: b"#!/bin/sh\n"})
    root.path(path).chmod(0o644)
    before = root.picture()
    with pytest.raises(Refused, match="not executable") as error:
        root.tell(converge.apply)
    assert error.value.hint == f"chmod +x {path}"
    assert root.picture() == before


def test_openrc_without_its_service_local_runs_the_script_after_docker(tmp_path: Path) -> None:
    """Where local is in a runlevel it runs the script; elsewhere Docker's start_post does, and one of the user's own is
    not replaced."""
    root = Root(tmp_path / "alpine", "openrc", {})
    root.tell(converge.apply)
    assert "start_post() { /etc/local.d/vmproxy.start || :; }\n" in root.path(openrc.CONFIG).read_text()
    root = Root(tmp_path / "gentoo", "openrc", {"/etc/runlevels/default/local": b""})
    root.tell(converge.apply)
    assert "start_post" not in root.path(openrc.CONFIG).read_text()
    root = Root(tmp_path / "own", "openrc", {openrc.CONFIG: b"start_post() { echo mine; }\n"})
    with pytest.raises(Refused, match="start_post") as error:
        root.tell(converge.apply)
    assert error.value.hint == "rc-update add local default"


def test_upstarts_job_is_whole(tmp_path: Path) -> None:
    """The job starts with Docker; its script parses as a script of sh -e and ends where Upstart wants it."""
    root = Root(tmp_path / "root", "upstart", {})
    root.tell(converge.apply)
    text = root.path(upstart.JOB).read_text()
    head, _, rest = text.partition("script\n")
    script, _, tail = rest.partition("end script\n")
    assert "start on started docker\ntask\n" in head
    assert tail == "# <<< vmproxy\n"
    checked = subprocess.run(["sh", "-n"], input=script, text=True, capture_output=True, timeout=60, check=False)
    assert (checked.returncode, checked.stderr) == (0, "")


@pytest.mark.parametrize("name", SERVED)
def test_every_served_world_can_be_rendered(name: str) -> None:
    """Each kind of VM here has blocks for each of its files and a way to restart Docker."""
    facts = guestworlds.world(name)
    guest, _ = guests.detect(facts)
    order = guests.Order(environment={"http_proxy": "http://x:1"}, door=None, variant="default", record={})
    assert {block.path for block in guest.render(order, facts)} <= set(guest.FILES)
    assert guest.WISH_FILE in guest.FILES
    assert guest.RESTART


def _sourced(place: Path, *shell: str) -> dict[str, str]:
    """The environment that a child of the shell has once the file is sourced; nothing else may run."""
    script = f". {place}; exec env -0"
    path = {"PATH": "/usr/bin:/bin", "HOME": "/nowhere"}
    ran = subprocess.run([*shell, "-c", script], env=path, capture_output=True, timeout=60, check=False)
    assert (ran.returncode, ran.stderr) == (0, b"")
    pairs = (item.partition(b"=") for item in ran.stdout.split(b"\0") if item)
    return {os.fsdecode(name): value.decode() for name, _, value in pairs}
