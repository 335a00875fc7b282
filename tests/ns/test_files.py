"""Somebody else's files: what is kept to the byte, what is refused untouched, and disks that do not take a file."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.ns.endings import Base, refused, unchanged
from tests.ns.story import (
    BOOTLOCAL,
    DATA,
    PROFILE,
    Vmproxy,
    daemon_environment,
    dump,
    files,
    foreign,
    held,
    ours,
    shim,
)
from tests.unit.foreign_files import KEPT, REFUSED, SWALLOWED
from vmproxy import converge
from vmproxy.errors import ForeignFile, NotPermitted, Refused

PROXY = "http://10.0.2.2:8123"


QUIET = ("--no-check", "--no-verify")


def told(vmproxy: Vmproxy, **settings: object) -> None:
    """An apply in this process that has to end well; nobody asks a proxy, that is not what these tests are about."""
    report = vmproxy.tell(converge.apply, check=False, verify=False, **settings)
    assert report.ok, report


# ---- foreign bytes (F41) --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", KEPT)
def test_f41_foreign_bytes_come_back(base: Base, vmproxy: Vmproxy, name: str) -> None:
    """apply keeps every foreign byte and works; remove gives back bytes, mode and owner of both files."""
    content = KEPT[name]
    base.write(PROFILE, content, mode="640", owner="1000:50")
    base.write(BOOTLOCAL, content, mode="700", owner="0:1000")
    before, rules = files(base.machine), dump(base.machine)
    told(vmproxy)
    environment = daemon_environment(base.machine)
    assert environment["http_proxy"] == environment["HTTP_PROXY"] == PROXY
    assert "TZ" not in environment or environment["TZ"].strip() == "UTC"
    profile, boot = held(base.machine, PROFILE), held(base.machine, BOOTLOCAL)
    assert profile is not None
    assert boot is not None
    assert profile.content.startswith(content)
    assert (profile.mode, profile.owner, boot.mode, boot.owner) == ("0640", (1000, 50), "0700", (0, 1000))
    outside = re.sub(rb"(?ms)^# >>> vmproxy.*?^# <<< vmproxy\n", b"", boot.content)
    assert outside in (content or b"#!/bin/sh\n", content + b"\n")
    assert vmproxy.tell(converge.status).ok
    assert vmproxy.tell(converge.remove).changed
    assert files(base.machine) == before
    assert dump(base.machine) == rules


@pytest.mark.parametrize("name", REFUSED)
def test_f41_what_cannot_work_is_refused_untouched(base: Base, vmproxy: Vmproxy, name: str) -> None:
    """A profile whose end is not reached or has no effect: exit 6, file and line named, nothing touched."""
    row = REFUSED[name]
    base.write(PROFILE, row.content)
    with unchanged(base.machine), pytest.raises(ForeignFile) as caught:
        vmproxy.tell(converge.apply, check=False, verify=False)
    assert caught.value.where == f"{PROFILE}:{row.line}"
    assert caught.value.hint


def test_f41_a_restart_that_would_be_dockers_last_is_refused(base: Base, vmproxy: Vmproxy) -> None:
    """EXTRA_ARGS on a line that ends in CR LF: exit 6 with the line, nothing touched, Docker not stopped. If it comes
    later, remove says so before it stops a Docker that would not start again, and works once it is repaired."""
    base.write(PROFILE, b'export TZ=UTC\nEXTRA_ARGS="-D"\r\n')
    with unchanged(base.machine), pytest.raises(ForeignFile, match="EXTRA_ARGS has a carriage return") as caught:
        vmproxy.tell(converge.apply, check=False, verify=False)
    assert caught.value.where == f"{PROFILE}:2"
    base.write(PROFILE, b"export TZ=UTC\n")
    told(vmproxy)
    applied = held(base.machine, PROFILE)
    assert applied is not None
    base.write(PROFILE, b"EXTRA_ARGS=-D\r\n" + applied.content)
    with unchanged(base.machine), pytest.raises(ForeignFile, match="Docker would not start with it again") as caught:
        vmproxy.tell(converge.remove)
    assert caught.value.where == f"{PROFILE}:1"
    base.write(PROFILE, b"EXTRA_ARGS=-D\n" + applied.content)
    assert vmproxy.tell(converge.remove).changed


def test_f41_exit_in_the_boot_script_is_behind_our_block(base: Base, vmproxy: Vmproxy) -> None:
    """`exit 0` at the end of bootlocal.sh does no harm: our block stands before it; removed, all is as before."""
    content = b"#!/bin/sh\necho mine\nexit 0\n"
    base.write(BOOTLOCAL, content)
    told(vmproxy)
    now = held(base.machine, BOOTLOCAL)
    assert now is not None
    assert now.content.startswith(b"#!/bin/sh\n# >>> vmproxy")
    assert now.content.endswith(b"\necho mine\nexit 0\n")
    vmproxy.tell(converge.remove)
    assert held(base.machine, BOOTLOCAL) is not None
    assert held(base.machine, BOOTLOCAL).content == content  # type: ignore[union-attr]


def test_f41_a_boot_script_in_another_language_is_refused(base: Base, vmproxy: Vmproxy) -> None:
    """bootlocal.sh that says it is Python: exit 6 with line 1."""
    base.write(BOOTLOCAL, b"#!/usr/bin/env python3\nprint()\n")
    with unchanged(base.machine), pytest.raises(ForeignFile) as caught:
        vmproxy.tell(converge.apply, check=False, verify=False)
    assert caught.value.where == f"{BOOTLOCAL}:1"


def test_f42_a_file_that_does_not_parse(base: Base, vmproxy: Vmproxy) -> None:
    """exit 6 naming the file and the line of sh -n; its content is not shown."""
    base.write(PROFILE, b"export TZ=UTC\nif true; then\nsecret=hunter22 )\n")
    with unchanged(base.machine):
        line = refused(vmproxy.apply(*QUIET), 6, "cannot parse", f"{PROFILE}:3", secrets=("hunter22",))
    assert "then" not in line


def test_f42_the_boot_script_must_parse_too(base: Base, vmproxy: Vmproxy) -> None:
    """A broken bootlocal.sh is refused: its shell would never get to our block, or die in the middle."""
    base.write(BOOTLOCAL, b"#!/bin/sh\nfi\n")
    with unchanged(base.machine), pytest.raises(ForeignFile) as caught:
        vmproxy.tell(converge.apply, check=False, verify=False)
    assert caught.value.where == f"{BOOTLOCAL}:2"


def test_f43_an_open_here_document_is_seen_by_the_dry_run(base: Base, vmproxy: Vmproxy) -> None:
    """The dry run refuses as well what would be dead, although the file parses."""
    base.write(PROFILE, b"cat >/dev/null <<END\nnever closed\n")
    with unchanged(base.machine):
        refused(vmproxy.apply("--dry-run"), 6, PROFILE)


@pytest.mark.parametrize("content", SWALLOWED)
def test_f43_what_only_the_vms_shell_knows(base: Base, vmproxy: Vmproxy, content: bytes) -> None:
    """Here-documents that end for some shells and not for the VM's: its own `sh -n` decides, nothing is touched."""
    base.write(PROFILE, content)
    with unchanged(base.machine), pytest.raises(ForeignFile, match="would not be read") as caught:
        vmproxy.tell(converge.apply, check=False, verify=False)
    assert caught.value.where == PROFILE


def test_f44_hand_set_before_our_block_loses(base: Base, vmproxy: Vmproxy) -> None:
    """http_proxy set by hand earlier in the profile: the requested value has effect, and the old line comes back."""
    content = b"export http_proxy=http://mine.example:3128 HTTP_PROXY=http://mine.example:3128\n"
    base.write(PROFILE, content)
    told(vmproxy)
    assert daemon_environment(base.machine)["http_proxy"] == PROXY
    vmproxy.tell(converge.remove)
    assert held(base.machine, PROFILE).content == content  # type: ignore[union-attr]
    assert daemon_environment(base.machine)["http_proxy"] == "http://mine.example:3128"


@pytest.mark.parametrize("line", [b"unset http_proxy\n", b"export http_proxy=http://mine:1\n", b"http_proxy=\n"])
def test_f44_set_or_unset_behind_our_block_is_drift(base: Base, vmproxy: Vmproxy, line: bytes) -> None:
    """A line behind our block that takes the value away is drift; apply moves the block, the line stays."""
    told(vmproxy)
    profile = held(base.machine, PROFILE)
    assert profile is not None
    base.write(PROFILE, profile.content + line)
    assert vmproxy.tell(converge.status).exit == 1
    told(vmproxy)
    assert daemon_environment(base.machine)["http_proxy"] == PROXY
    again = held(base.machine, PROFILE)
    assert again is not None
    assert again.content.startswith(line + b"# >>> vmproxy")
    vmproxy.tell(converge.remove)
    assert held(base.machine, PROFILE).content == line  # type: ignore[union-attr]


def _damaged(content: bytes) -> dict[str, tuple[bytes, int]]:
    """Every way a marked block gets damaged: the bytes, and the line to be named."""
    lines = content.splitlines(keepends=True)
    begin = next(i for i, line in enumerate(lines) if line.startswith(b"# >>>"))
    end = next(i for i, line in enumerate(lines) if line.startswith(b"# <<<"))
    whole = lines[begin : end + 1]
    return {
        "no end": (b"".join(lines[:end]), begin + 1),
        "no beginning": (b"".join(lines[:begin] + lines[begin + 1 :]), end),
        "doubled": (content + b"".join(whole), len(lines) + 1),
        "reordered": (lines[end] + b"".join(lines[:end]), 1),
        "record cut": (content.replace(b'":', b"", 1), begin + 1),
        "CRLF markers": (content.replace(b"# <<< vmproxy\n", b"# <<< vmproxy\r\n"), end + 1),
        "a newer format": (content.replace(b">>> vmproxy 1 ", b">>> vmproxy 99 "), begin + 1),
    }


@pytest.mark.parametrize("what", _damaged(b"# >>> vmproxy 1 {}\n# <<< vmproxy\n"))
def test_f45_damaged_markers_are_refused_untouched(base: Base, vmproxy: Vmproxy, what: str) -> None:
    """Damaged, doubled or reordered markers: apply, remove and status say which line, and touch nothing."""
    base.write(PROFILE, b"# mine\n")
    told(vmproxy)
    profile = held(base.machine, PROFILE)
    assert profile is not None
    content, line = _damaged(profile.content)[what]
    base.write(PROFILE, content)
    with unchanged(base.machine):
        for story in (converge.apply, converge.remove, converge.status):
            with pytest.raises(ForeignFile) as caught:
                vmproxy.tell(story)
            assert caught.value.where == f"{PROFILE}:{line}"
            assert caught.value.hint


# ---- what may not be replaced (F38, F39, T07) -----------------------------------------------------------------------

KINDS = {
    "symlink": ("ln -s /etc/hostname {path}", "a symbolic link"),
    "dangling symlink": ("ln -s /nowhere {path}", "a symbolic link"),
    "fifo": ("mkfifo {path}", "a device, fifo or socket"),
    "device": ("mknod {path} c 1 3", "a device, fifo or socket"),
    "directory": ("mkdir {path}", "a directory"),
    "hard link": ("echo >{path}.other; ln {path}.other {path}", "more than one hard link"),
}


@pytest.mark.parametrize("path", [PROFILE, BOOTLOCAL])
@pytest.mark.parametrize("kind", KINDS)
def test_f38_only_a_plain_file_is_replaced(base: Base, vmproxy: Vmproxy, kind: str, path: str) -> None:
    """Symlink, fifo, device, directory, hard link: refused with its kind named, and what it leads to is untouched."""
    command, named = KINDS[kind]
    base.machine.run(command.format(path=path))
    look = f"ls -ldin --full-time {path} {DATA}; cat /etc/hostname; ls -la {DATA}; iptables-save | grep -c VMPROXY"
    before = base.machine.run(look, check=False).stdout
    with pytest.raises(ForeignFile) as caught:
        vmproxy.tell(converge.apply, check=False, verify=False)
    assert named in caught.value.what
    assert caught.value.where == path
    assert base.machine.run(look, check=False).stdout == before


def test_t07_a_link_that_comes_in_between_is_refused(base: Base, vmproxy: Vmproxy) -> None:
    """The docker user puts a symlink in the file's place after the look: refused, what it points at is untouched."""
    base.machine.run("echo precious >/etc/precious")
    shim(base.machine, "mktemp", f'ln -s /etc/precious {PROFILE}; exec /usr/bin/mktemp "$@"')
    with pytest.raises(Refused):
        vmproxy.tell(converge.apply, check=False, verify=False)
    assert base.machine.path("/etc/precious").read_text() == "precious\n"
    assert base.machine.path(PROFILE).is_symlink()
    assert ours(dump(base.machine)) == []
    assert held(base.machine, BOOTLOCAL) is None
    base.machine.run("rm /etc/precious")


def test_t07_the_work_area_must_be_roots_own(base: Base, vmproxy: Vmproxy) -> None:
    """A work area that somebody else made beforehand is not used: exit 6, nothing changed."""
    base.machine.run("rm -rf /run/vmproxy; mkdir /run/vmproxy; chown docker /run/vmproxy")
    with unchanged(base.machine):
        refused(vmproxy.apply(*QUIET), 6, "/run/vmproxy is not ours")


@pytest.mark.parametrize("at", ["/usr/bin/mktemp", "/usr/sbin/iptables-nft-restore"])
def test_f39_an_edit_between_reading_and_renaming_is_not_lost(base: Base, vmproxy: Vmproxy, at: str) -> None:
    """The profile is edited after it was compared, before or after the rules are written: exit 6, the edit is kept,
    rules and the other file are put back."""
    base.write(PROFILE, b"# mine\n")
    once = f"[ -e /run/edited ] || {{ : >/run/edited; echo '# edited' >>{PROFILE}; }}"
    # The test of the rules runs beside the comparison: only their writing comes surely after it.
    shim(base.machine, Path(at).name, f'case "$*" in *--test*) ;; *) {once} ;; esac; exec {at} "$@"')
    ran = vmproxy.apply(*QUIET)
    base.machine.run("rm /run/edited")
    refused(ran, 6, f"{PROFILE} was changed meanwhile")
    now = held(base.machine, PROFILE)
    assert now is not None
    assert now.content == b"# mine\n# edited\n"
    assert held(base.machine, BOOTLOCAL) is None
    assert ours(dump(base.machine)) == []
    assert not [path for path in files(base.machine) if ".vmproxy-" in path]


def test_f39_an_edit_before_the_lock_is_looked_at_again(base: Base, vmproxy: Vmproxy) -> None:
    """Edited between the look and the change: it looks again and puts the block behind the edit."""
    base.write(PROFILE, b"# mine\n")
    once = f"[ -e /run/edited ] || {{ : >/run/edited; echo '# edited' >>{PROFILE}; }}"
    shim(base.machine, "flock", f'{once}; exec /usr/bin/flock "$@"')
    told(vmproxy)
    base.machine.run("rm /run/edited /usr/local/sbin/flock")
    now = held(base.machine, PROFILE)
    assert now is not None
    assert now.content.startswith(b"# mine\n# edited\n# >>> vmproxy")
    vmproxy.tell(converge.remove)
    assert held(base.machine, PROFILE).content == b"# mine\n# edited\n"  # type: ignore[union-attr]


# ---- disks (F33 to F36, F40) ----------------------------------------------------------------------------------------


def mount(base: Base, options: str) -> None:
    """A small file system over the VM's directory, with two foreign files in it."""
    base.machine.run(
        f"""
        mount -t tmpfs -o {options} small /mnt && cp -a {DATA}/ssh {DATA}/log /mnt/ && rm -f /mnt/log/* &&
            chown docker /mnt && mount --move /mnt {DATA}
        """
    )
    base.write(PROFILE, b"# mine\nexport TZ=UTC\n", mode="600")
    base.write(BOOTLOCAL, b"#!/bin/sh\n# mine\n", mode="750")


def settle_for(base: Base, vmproxy: Vmproxy, *words: str) -> None:
    """An apply that fails for the disk: exit 7, everything as before, no temporary file; it works once there is
    room."""
    before, rules, daemon = files(base.machine), dump(base.machine), daemon_environment(base.machine)
    refused(vmproxy.apply(*QUIET), 7, "everything was put back", *words)
    assert files(base.machine) == before
    assert dump(base.machine) == rules
    assert daemon_environment(base.machine) == daemon


def test_f33_disk_full(base: Base, vmproxy: Vmproxy) -> None:
    """No room for the new file: the old one is untouched, nothing of ours is left; with room again it works (A5)."""
    mount(base, "size=64k")
    base.machine.run(f"dd if=/dev/zero of={DATA}/ballast bs=4096 2>/dev/null", check=False)
    settle_for(base, vmproxy, "cannot write beside", "No space left")
    base.machine.run(f"rm {DATA}/ballast")
    told(vmproxy)
    assert vmproxy.tell(converge.status).ok


def test_f33_disk_full_at_the_second_file(base: Base, vmproxy: Vmproxy) -> None:
    """Room for one of the two files only: neither is changed, nor a rule."""
    mount(base, "size=128k")
    script = f"dd if=/dev/zero of={DATA}/ballast bs=4096 2>/dev/null; truncate -s -12288 {DATA}/ballast"
    base.machine.run(script, check=False)
    settle_for(base, vmproxy, "No space left")


def test_f33_remove_on_a_full_disk(base: Base, vmproxy: Vmproxy) -> None:
    """A remove that finds no room is put back whole: still applied, in sync."""
    mount(base, "size=64k")
    told(vmproxy)
    base.machine.run(f"dd if=/dev/zero of={DATA}/ballast bs=4096 2>/dev/null", check=False)
    before = files(base.machine)
    refused(vmproxy.remove(), 7, "everything was put back")
    assert files(base.machine) == before
    assert vmproxy.tell(converge.status).ok


def test_f34_no_inodes(base: Base, vmproxy: Vmproxy) -> None:
    """No inode for a temporary file: as a full disk."""
    mount(base, "nr_inodes=24")
    base.machine.run(f"i=0; while : >{DATA}/log/$i; do i=$((i + 1)); done 2>/dev/null", check=False)
    settle_for(base, vmproxy, "cannot write beside")
    base.machine.run(f"rm -r {DATA}/log/*")
    told(vmproxy)


@pytest.mark.parametrize("name", ["apply", "remove"])
def test_f35_a_read_only_disk_is_seen_before_the_first_change(base: Base, vmproxy: Vmproxy, name: str) -> None:
    """A read-only disk: exit 6 before any rule is written or taken away."""
    if name == "remove":
        told(vmproxy)
    base.machine.run(f"mount --bind {DATA} {DATA} && mount -o remount,bind,ro {DATA}")
    with unchanged(base.machine):
        refused(vmproxy.command(name, "--no-verify"), 6, "read-only", DATA)


def test_f36_a_disk_that_forgets_is_warned_about(base: Base, vmproxy: Vmproxy) -> None:
    """On tmpfs apply works and warns that a reboot forgets it."""
    mount(base, "size=1m")
    ran = vmproxy.apply(*QUIET)
    assert ran.code == 0, ran
    assert re.search(r"(?m)^vmproxy: warning: .*not on a lasting disk.*reboot", ran.err), ran
    assert vmproxy.tell(converge.status).ok


def test_f36_require_persistent_refuses(base: Base, vmproxy: Vmproxy) -> None:
    """With --require-persistent that is exit 6 and nothing is changed; on a disk the option changes nothing."""
    mount(base, "size=1m")
    with unchanged(base.machine):
        refused(vmproxy.apply("--require-persistent", *QUIET), 6, "not on a lasting disk")
    base.reset()
    ran = vmproxy.apply("--require-persistent", *QUIET)
    assert ran.code == 0, ran
    assert "warning" not in ran.err, ran


NO_OWNERS = "echo 'Operation not permitted' >&2; exit 1"


def test_f40_a_share_without_owners_gets_the_content(base: Base, vmproxy: Vmproxy) -> None:
    """Where chown and chmod fail (vfat, a host's share) the content is right, and a warning says so."""
    base.write(PROFILE, b"# mine\n")
    for name in ("chown", "chmod"):
        shim(base.machine, name, NO_OWNERS)
    shim(base.machine, "ls", """/bin/ls "$@" | sed 's/ [0-9][0-9]:/ 00:/'""")  # also right after midnight
    ran = vmproxy.apply(*QUIET)
    assert ran.code == 0, ran
    assert re.search(rf"(?m)^vmproxy: warning: .*{PROFILE}", ran.err), ran
    assert vmproxy.tell(converge.status).ok
    assert vmproxy.tell(converge.remove).ok
    assert held(base.machine, PROFILE).content == b"# mine\n"  # type: ignore[union-attr]
    assert held(base.machine, BOOTLOCAL) is None


def test_f40_credentials_are_not_put_where_anybody_can_read(base: Base, vmproxy: Vmproxy) -> None:
    """The same with credentials in the proxy's URL is refused: the file's mode could not be narrowed."""
    base.write(PROFILE, b"# mine\n", mode="644")
    shim(base.machine, "chown", NO_OWNERS)
    shim(base.machine, "chmod", f'/usr/bin/chmod 0644 "$2"; {NO_OWNERS}')
    said = {"VMPROXY_PROXY": "http://me:hunter22@127.0.0.1:8123"}
    with unchanged(base.machine):
        refused(vmproxy.apply(*QUIET, environ=said), 6, PROFILE, secrets=("hunter22",))


# ---- root (F06, F37, T13) -------------------------------------------------------------------------------------------


def _sudoers(base: Base, line: str) -> None:
    base.machine.run("cp -p /etc/sudoers /etc/sudoers.was; cat >/etc/sudoers", stdin=f"{line}\n".encode())


@pytest.fixture
def sudoers(base: Base) -> Iterator[Base]:
    """A VM whose /etc/sudoers a test may rewrite."""
    yield base
    base.machine.run("[ ! -e /etc/sudoers.was ] || mv /etc/sudoers.was /etc/sudoers; chmod u+s /usr/bin/sudo")


@pytest.mark.parametrize("name", ["apply", "remove", "status", "verify"])
def test_f06_sudo_wants_a_password(sudoers: Base, vmproxy: Vmproxy, name: str) -> None:
    """`sudo -n` that wants a password: exit 5 at once, nothing changed, the hint names sudoers."""
    _sudoers(sudoers, "docker ALL=(ALL) ALL")
    with unchanged(sudoers.machine):
        ran = vmproxy.command(name)
    refused(ran, 5, "sudo -n", "password")
    assert "sudoers" in ran.err


@pytest.mark.parametrize(
    "how",
    ["cat >/etc/sudoers </dev/null", "chmod 644 /usr/bin/sudo", "chmod u-s /usr/bin/sudo"],
)
def test_f37_no_way_to_root(sudoers: Base, vmproxy: Vmproxy, how: str) -> None:
    """Not in sudoers, no sudo program, sudo without its setuid bit: exit 5, nothing changed."""
    sudoers.machine.run("cp -p /etc/sudoers /etc/sudoers.was")
    sudoers.machine.run(how)
    try:
        with unchanged(sudoers.machine), pytest.raises(NotPermitted) as caught:
            vmproxy.tell(converge.apply)
    finally:
        sudoers.machine.run("chmod 4755 /usr/bin/sudo")
    assert "sudoers" in caught.value.hint


def test_f37_detect_gateway_and_env_need_no_root(sudoers: Base, vmproxy: Vmproxy) -> None:
    """Without any way to root detect-gateway and env still answer."""
    _sudoers(sudoers, "docker ALL=(ALL) ALL")
    assert vmproxy.detect().out == "10.0.2.2\n"
    assert "http_proxy='http://172.17.0.1:8123'" in vmproxy.env().out.replace('"', "'")


def test_t13_one_sudo_a_run_and_never_a_question(base: Base, vmproxy: Vmproxy) -> None:
    """One `sudo -n` a run, for look and change together, with a PATH of ours, whatever the user's own says."""
    log = "/run/sudo.log"
    shim(base.machine, "sudo", f'echo "$*" >>{log}; chmod 666 {log}; exec /usr/bin/sudo "$@"')
    base.machine.run(f": >{log}; chmod 666 {log}")
    for _run in ("a change", "nothing to do"):
        base.machine.run(f": >{log}")
        told(vmproxy)
        (call,) = base.machine.path(log).read_text().splitlines()
        assert call.startswith("-n sh -c LC_ALL=C PATH=/usr/local/sbin:")
        assert "8123" not in call
    base.machine.run(f"rm {log}")


# ---- hostile words (T05) --------------------------------------------------------------------------------------------

CANARY = "/tmp/canary"
HOSTILE = [
    ("--proxy", f"http://$(touch {CANARY})@127.0.0.1:8123"),
    ("--proxy", f"http://127.0.0.1:8123/;touch {CANARY}"),
    ("--proxy", f"http://`touch {CANARY}`:8123"),
    ("--proxy", f"http://127.0.0.1:8123\ntouch {CANARY}"),
    ("--no-proxy", f"';touch {CANARY};'"),
    ("--no-proxy", f"a$(touch {CANARY})"),
    ("--no-proxy", f"a\ntouch {CANARY}\n"),
    ("--bridge", f"docker0;touch {CANARY}"),
    ("--bridge", "-j ACCEPT"),
    ("--gateway", f"10.0.2.2;touch {CANARY}"),
    ("--gateway", "10.0.2.2\n-A INPUT -j ACCEPT"),
    ("--vm", f"ssh://-oProxyCommand=touch {CANARY}@127.0.0.1:22"),
    ("--vm", f"ssh:-oProxyCommand=touch${{IFS}}{CANARY}"),
    ("--vm", f"$(touch {CANARY})"),
]


@pytest.mark.parametrize(("option", "value"), HOSTILE)
def test_t05_hostile_words_run_nothing(base: Base, vmproxy: Vmproxy, option: str, value: str) -> None:
    """Words that a shell would run are refused or taken literally; no canary file, no rule, here or in the VM."""
    target = () if option == "--vm" else vmproxy.vm_words
    before = files(base.machine), dump(base.machine)
    ran = vmproxy.run("apply", *target, option, value, *QUIET)
    if ran.code == 0:
        assert option == "--no-proxy", ran
        assert daemon_environment(base.machine)["no_proxy"].startswith(value.replace(" ", ","))
        assert vmproxy.tell(converge.remove).ok
    else:
        refused(ran, 2)
    assert (files(base.machine), dump(base.machine)) == before
    assert not Path(CANARY).exists()
    assert not base.machine.path(CANARY).exists()


def test_t05_a_password_like_a_script_arrives_literally(base: Base, vmproxy: Vmproxy) -> None:
    """Quotes, dollars, back-quotes and percent signs in a password: the daemon's URL is exactly it, nothing runs."""
    password = "%27%22%24%28touch%20%2Ftmp%2Fcanary%29%60touch%20%2Ftmp%2Fcanary%60%5C%25s"
    said = {"VMPROXY_PROXY": f"http://me:{password}@127.0.0.1:8123"}
    ran = vmproxy.apply(*QUIET, "-v", environ=said)
    assert ran.code == 0, ran
    assert daemon_environment(base.machine)["http_proxy"] == f"http://me:{password}@10.0.2.2:8123"
    assert not base.machine.path(CANARY).exists()
    assert "canary" not in ran.all
    profile = held(base.machine, PROFILE)
    assert profile is not None
    assert profile.mode == "0600"
    assert "canary" not in vmproxy.status("-v").all
    assert vmproxy.tell(converge.remove).ok
    assert held(base.machine, PROFILE) is None
    assert not base.machine.path(CANARY).exists()


def test_credentials_narrow_the_mode_and_remove_gives_it_back(base: Base, vmproxy: Vmproxy) -> None:
    """A profile of mode 0644 is 0600 while it holds credentials, and 0644 again afterwards."""
    base.write(PROFILE, b"# mine\n", mode="644", owner="1000:50")
    before = files(base.machine)
    ran = vmproxy.apply(*QUIET, environ={"VMPROXY_PROXY": "http://me:hunter22@127.0.0.1:8123"})
    assert ran.code == 0, ran
    assert "hunter22" not in ran.all
    assert held(base.machine, PROFILE).mode == "0600"  # type: ignore[union-attr]
    assert vmproxy.tell(converge.status).ok
    vmproxy.tell(converge.remove)
    assert files(base.machine) == before


def test_t06_no_secret_in_any_argv_or_file_of_others(base: Base, vmproxy: Vmproxy) -> None:
    """While a change with credentials runs, no process of the VM has them in its argv, and nobody but root can read
    the files of the run."""
    look = "cat /proc/[0-9]*/cmdline | tr '\\0' '\\n' >>/run/argvs"
    for name, real in (("mktemp", "/usr/bin/mktemp"), ("iptables-nft-restore", "/usr/sbin/iptables-nft-restore")):
        shim(base.machine, name, f'{look}; find /run/vmproxy /tmp -perm /077 -type f >>/run/open; exec {real} "$@"')
    ran = vmproxy.apply(*QUIET, environ={"VMPROXY_PROXY": "http://me:hunter22@127.0.0.1:8123"})
    assert ran.code == 0, ran
    argvs = base.machine.path("/run/argvs").read_bytes()
    assert b"sshd" in argvs
    assert b"hunter22" not in argvs
    opened = base.machine.path("/run/open").read_text().split()
    assert [path for path in opened if path.startswith("/run/vmproxy/work")] == []
    base.machine.run("rm /run/argvs /run/open")


def test_foreign_rules_keep_their_order(base: Base, vmproxy: Vmproxy) -> None:
    """Whatever the files: rules that are not ours stand in the same order while applied (I5)."""
    before = dump(base.machine)
    told(vmproxy)
    assert [line for line in foreign(dump(base.machine)) if not line.startswith(":")] == [
        line for line in before if not line.startswith(":")
    ]
