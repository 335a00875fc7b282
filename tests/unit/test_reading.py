"""What the frames of a look say, from recorded VMs and from hostile ones."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit import worlds
from vmproxy.errors import Refused
from vmproxy.guests.boot2docker import BOOTLOCAL, PROFILE
from vmproxy.machines import reading
from vmproxy.machines.frames import Frame
from vmproxy.model import Address, Facts, File, Mount
from vmproxy.routes import choose_gateway


@pytest.mark.parametrize("name", worlds.NAMES)
def test_every_world(name: str) -> None:
    """What is the same in each recorded VM: system, tools, interfaces, routes, addresses, mounts, sshd listening."""
    facts = worlds.world(name)
    assert (facts.live, facts.uid) == (True, 0)
    assert len(facts.boot_id) == 36
    assert facts.os_release["ID"] == "boot2docker"
    assert {"ip", "bash", "nc", "flock", "iptables-nft-save"} <= facts.commands
    assert facts.paths == {"/var/lib/boot2docker", "/etc/init.d/docker"}
    assert {"eth0", "eth1", "eth2", "lo"} <= facts.interfaces
    assert choose_gateway(facts.routes).gateway == "10.0.2.2"
    assert Address(interface="eth0", cidr="10.0.2.15/24") in facts.addresses
    assert {("0.0.0.0", 22), ("::", 22)} <= set(facts.listeners)
    assert Mount(point="/var/lib/boot2docker", fstype="ext4", options=frozenset({"rw"})) in facts.mounts
    assert set(facts.files) == {PROFILE, BOOTLOCAL}


DAEMONS = {name: name != "no-docker" for name in worlds.NAMES}


@pytest.mark.parametrize("name", DAEMONS)
def test_the_daemon_and_its_bridge(name: str) -> None:
    """docker0 with its address, Docker's rules, and the running daemon's environment; nothing of it without Docker."""
    facts = worlds.world(name)
    assert (facts.daemon is not None) == DAEMONS[name]
    assert ("docker0" in facts.bridges) == DAEMONS[name]
    assert (Address(interface="docker0", cidr="172.17.0.1/16") in facts.addresses) == DAEMONS[name]
    assert any(b"DOCKER-USER" in dump for dump in facts.dumps.values()) == DAEMONS[name]
    if facts.daemon is not None:
        assert facts.daemon.pid > 1
        assert facts.daemon.environment["PATH"].startswith("/usr/local/sbin:")
        assert (facts.daemon.environment.get("http_proxy") == "http://10.0.2.2:8123") == ("applied" in name)


@pytest.mark.parametrize("variant", ["nft", "legacy"])
def test_the_variant_with_dockers_rules(variant: str) -> None:
    """Each variant's dump stands under its own name."""
    facts = worlds.world(f"applied-{variant}")
    (holds,) = [name for name, dump in facts.dumps.items() if b"VMPROXY-FORWARD" in dump]
    assert holds == variant


def test_files_byte_for_byte() -> None:
    """Content, mode, owner and links of what is there; busybox's ls and the shell's verdict too."""
    facts = worlds.world("busybox-applied")
    profile, boot = facts.files[PROFILE], facts.files[BOOTLOCAL]
    assert profile.content is not None
    assert boot.content is not None
    assert profile.content.startswith(b"# mine\r\nexport TZ=UTC\n# >>> vmproxy 1 ")
    assert profile.content.endswith(b"# <<< vmproxy\n")
    assert (profile.mode, profile.uid, profile.gid, profile.kind, profile.links) == (0o600, 1000, 50, "file", 1)
    assert (boot.mode, boot.uid, boot.kind) == (0o755, 0, "file")
    assert boot.content.startswith(b"#!/bin/sh\n# >>> vmproxy 1 ")
    assert all(syntax.parses and syntax.tail_lives and not syntax.message for syntax in facts.syntax.values())


def test_absent_files() -> None:
    """A file that is not there is absent, without content and without a verdict."""
    facts = worlds.world("fresh-nft")
    assert facts.files[PROFILE] == File(path=PROFILE, kind="absent")
    assert facts.syntax == {}
    assert facts.leftovers == ()


def test_what_is_no_plain_file_is_not_read() -> None:
    """A link and a directory are named by kind and not opened; what an earlier run left is listed."""
    facts = worlds.world("odd-kinds")
    assert (facts.files[PROFILE].kind, facts.files[PROFILE].content) == ("link", None)
    assert (facts.files[BOOTLOCAL].kind, facts.files[BOOTLOCAL].content) == ("dir", None)
    assert "/var/lib/boot2docker/.vmproxy-abc123" in facts.leftovers


def test_odd_content() -> None:
    """NUL, bad bytes and a look-alike frame in a file are content; the shell's complaints become line numbers; set-uid
    and sticky bits are read."""
    facts = worlds.world("odd-content")
    almost = worlds.NONCE[:-1].encode() + b"0 end"
    assert facts.files[PROFILE].content == b"cat <<END\n@" + almost + b"\nnever closed \xff\0\n"
    assert (facts.files[PROFILE].mode, facts.files[BOOTLOCAL].mode) == (0o4751, 0o1644)
    assert (facts.syntax[PROFILE].parses, facts.syntax[PROFILE].tail_lives) == (True, False)
    assert (facts.syntax[BOOTLOCAL].parses, facts.syntax[BOOTLOCAL].line) == (False, 3)
    assert BOOTLOCAL in facts.syntax[BOOTLOCAL].message


@given(name=st.sampled_from(worlds.NAMES), at=st.floats(0, 1, exclude_max=True))
def test_a_look_cut_short_is_no_look(name: str, at: float) -> None:
    """Truncated before its last frame: refused, never half a VM."""
    raw = worlds.raw(name)
    end = raw.rindex(b"\n@" + worlds.NONCE.encode())
    with pytest.raises(Refused, match="not whole"):
        worlds.parse(raw[: int(end * at)])


@given(
    name=st.sampled_from(worlds.NAMES), changes=st.lists(st.tuples(st.integers(0), st.binary(max_size=9)), max_size=8)
)
def test_a_damaged_look_never_crashes(name: str, changes: list[tuple[int, bytes]]) -> None:
    """Bytes overwritten, put in or taken out anywhere: facts of the right types, or Refused; nothing else is raised."""
    raw = bytearray(worlds.raw(name))
    for place, data in changes:
        at = place % len(raw)
        raw[at : at + place % 7] = data
    try:
        facts = worlds.parse(bytes(raw))
    except Refused:
        return
    assert isinstance(facts, Facts)
    assert all(reading._INTERFACE.match(one) for one in facts.interfaces | facts.bridges)
    assert all(0 <= port < 65536 for _host, port in facts.listeners)
    for file in facts.files.values():
        assert file.kind in ("file", "absent", "link", "dir", "other")
        assert 0 <= file.mode <= 0o7777


def take(kind: str, body: bytes = b"", *words: str) -> Facts:
    """Facts of one frame."""
    return reading.facts([Frame(words=(kind, *words), body=body), Frame(words=("end",))])


@pytest.mark.parametrize("name", ["eth0;reboot", "a" * 16, "br ", "\x1b[2J", "-j"])
def test_names_of_interfaces_are_strict(name: str) -> None:
    """Names that an interface of use to us cannot have are not taken (T04)."""
    known = take("interface", b"", name).interfaces | take("bridge", b"", name).bridges
    assert known <= {"-j"}  # a legal name; it is only ever an argument behind -i
    assert take("bridge", b"", "br-0123456789ab").bridges == {"br-0123456789ab"}


def test_a_file_beyond_the_limit_is_refused() -> None:
    """More than a mebibyte: refused with the path."""
    with pytest.raises(Refused, match="larger"):
        take("file", b"x" * (reading.FILE_LIMIT_BYTES + 1), "/p")


def test_a_dump_that_failed_is_none() -> None:
    """iptables-save with a status: no dump, and what happened."""
    facts = reading.facts(
        [Frame(words=("dump", "nft"), body=b"*nat\n"), Frame(words=("dumped", "nft", "4")), Frame(words=("end",))]
    )
    assert facts.dumps == {}
    assert "status 4" in facts.dump_errors["nft"]


@pytest.mark.parametrize(
    ("line", "file"),
    [
        (b"12 -rw-r--r-- 1 0 0 5 Nov 22 07:32 /p", File(path="/p", mode=0o644)),
        (b" 12 -rwsr-sr-t    2 1000     50     5 Jan 2020 /p", File(path="/p", mode=0o7755, uid=1000, gid=50, links=2)),
        (b"12 -rwSr-Sr-T 1 0 0 5 x", File(path="/p", mode=0o7644)),
        (b"12 -rw-r--r--+ 1 0 0 5 x", File(path="/p", mode=0o644)),
        (b"12 lrwxrwxrwx 1 0 0 5 Nov 22 07:32 /p -> /q", File(path="/p", kind="link", mode=0o777)),
        (b"12 drwx------ 2 0 0 5 x", File(path="/p", kind="dir", mode=0o700, links=2)),
        (b"12 prw------- 1 0 0 5 x", File(path="/p", kind="other", mode=0o600)),
        (b"12 crw-rw-rw- 1 0 0 1, 3 x", File(path="/p", kind="other", mode=0o666)),
        (b"", File(path="/p", kind="absent")),
        (b"ls: cannot access", File(path="/p", kind="absent")),
        (b"12 -rw-r--r-- one 0 0 5", File(path="/p", kind="absent")),
    ],
)  # fmt: skip
def test_lines_of_ls(line: bytes, file: File) -> None:
    """coreutils' and busybox's ``ls -ldin``: kind, mode with the special bits, links, owner."""
    assert reading.stat("/p", line) == file


def test_listeners_in_hex() -> None:
    """/proc/net/tcp and tcp6: words in the machine's order; only listening sockets; v4-mapped is v4."""
    rows = (
        b"  0: 0100007F:1FBB 00000000:0000 0A 0\n  1: 0F02000A:0016 0202000A:D6A4 01 0\n"
        b"  2: 0000000000000000FFFF0000010011AC:1FBB 0:0 0A 0\n  3: 00000000000000000000000001000000:0050 0:0 0A 0\n"
        b"  4: xyz:0050 0:0 0A\n  5: 0100007F 0:0 0A 0\n"
    )
    assert reading.listeners(rows) == (("127.0.0.1", 8123), ("172.17.0.1", 8123), ("::1", 80))


def test_addresses_of_ifconfig() -> None:
    """Old and new ifconfig where the VM has no ip."""
    old = b"docker0   Link encap:Ethernet\n          inet addr:172.17.0.1  Bcast:0.0.0.0  Mask:255.255.0.0\n"
    new = b"docker0: flags=4163<UP>  mtu 1500\n        inet 172.17.0.1  netmask 255.255.0.0  broadcast 0.0.0.0\n"
    wanted = (Address(interface="docker0", cidr="172.17.0.1/16"),)
    assert reading.addresses(old) == wanted
    assert reading.addresses(new) == wanted


def test_resolved_names() -> None:
    """getent's and nslookup's answers: the addresses of the name, not of the name server."""
    getent = b"10.1.2.3      STREAM proxy.corp\n10.1.2.3      DGRAM\n10.1.2.4      STREAM\n"
    nslookup = b"Server:\t\t10.0.2.3\nAddress:\t10.0.2.3:53\n\nName:\tproxy.corp\nAddress: 10.1.2.3\n"
    assert reading.resolved(getent) == ("10.1.2.3", "10.1.2.4")
    assert reading.resolved(nslookup) == ("10.1.2.3",)
    assert reading.resolved(b"\xff junk 999.1.1.1\n") == ()
