"""What the frames of a look say, from recorded VMs and from hostile ones."""

from __future__ import annotations

import ipaddress

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


def test_addresses_are_of_the_family_that_they_are_said_to_be() -> None:
    """A rule of one family cannot hold an address of the other: such a line tells of none."""
    lines = b"3: docker0    inet fd00::1/64 scope global\n3: docker0    inet6 172.17.0.1/16 scope global\n"
    assert reading.addresses(lines) == ()


def test_resolved_names() -> None:
    """getent's and nslookup's answers: the addresses of the name, not of the name server."""
    getent = b"10.1.2.3      STREAM proxy.corp\n10.1.2.3      DGRAM\n10.1.2.4      STREAM\n"
    nslookup = b"Server:\t\t10.0.2.3\nAddress:\t10.0.2.3:53\n\nName:\tproxy.corp\nAddress: 10.1.2.3\n"
    assert reading.resolved(getent) == ("10.1.2.3", "10.1.2.4")
    assert reading.resolved(nslookup) == ("10.1.2.3",)
    assert reading.resolved(b"\xff junk 999.1.1.1\n") == ()


# ---- routes and addresses of one program ----------------------------------------------------------------------------

# `ip -o route show table all` and `ip -o addr show` (iproute2 6.1) of one network namespace.
_ROUTES = b"""\
10.51.0.0/16 via 10.0.2.3 dev eth0 table 100 
default via 10.0.2.2 dev eth0 metric 100 
10.0.2.0/24 dev eth0 proto kernel scope link src 10.0.2.15 
10.9.0.2 dev eth1 proto kernel scope link src 10.9.0.1 
10.50.0.0/16 \\\tnexthop via 10.0.2.2 dev eth0 weight 2 \\\tnexthop via 192.168.99.1 dev eth1 weight 1 
unreachable 10.66.0.0/16 
172.17.0.0/16 dev docker0 proto kernel scope link src 172.17.0.1 
192.168.99.0/24 dev eth1 proto kernel scope link src 192.168.99.100 
local 10.0.2.15 dev eth0 table local proto kernel scope host src 10.0.2.15 
broadcast 10.0.2.255 dev eth0 table local proto kernel scope link src 10.0.2.15 
local 127.0.0.0/8 dev lo table local proto kernel scope host src 127.0.0.1 
fe80::/64 dev eth0 proto kernel metric 256 pref medium
default via fe80::2 dev eth0 metric 1024 pref medium
local ::1 dev lo table local proto kernel metric 0 pref medium
multicast ff00::/8 dev eth0 table local proto kernel metric 256 pref medium
"""  # noqa: W291
_ADDRESSES = b"""\
1: lo    inet 127.0.0.1/8 scope host lo\\       valid_lft forever preferred_lft forever
1: lo    inet6 ::1/128 scope host \\       valid_lft forever preferred_lft forever
3: eth0    inet 10.0.2.15/24 scope global eth0\\       valid_lft forever preferred_lft forever
3: eth0    inet6 fe80::a8f5:12ff:fe26:b2ca/64 scope link tentative \\       valid_lft forever preferred_lft forever
5: eth1    inet 192.168.99.100/24 scope global eth1\\       valid_lft forever preferred_lft forever
5: eth1    inet 10.9.0.1 peer 10.9.0.2/32 scope global eth1\\       valid_lft forever preferred_lft forever
16: docker0    inet 172.17.0.1/16 scope global docker0\\       valid_lft forever preferred_lft forever
"""


def looked(*frames: tuple[str, bytes]) -> Facts:
    """Facts of frames of one word each."""
    return reading.facts([*(Frame(words=(kind,), body=body) for kind, body in frames), Frame(words=("end",))])


def test_routes_and_addresses_of_one_program() -> None:
    """``ip -o -batch -`` tells both without a line between: each gets its own, as from two programs."""
    facts = looked(("network", _ROUTES + _ADDRESSES))
    assert facts == looked(("routes", _ROUTES), ("addresses", _ADDRESSES))
    assert choose_gateway(facts.routes).gateway == "10.0.2.2"
    assert [address.cidr for address in facts.addresses if address.family == "inet"] == [
        *("127.0.0.1/8", "10.0.2.15/24", "192.168.99.100/24", "10.9.0.1/32", "172.17.0.1/16"),
    ]
    assert [route.interface for route in facts.routes if route.destination == "10.50.0.0/16"] == ["eth0", "eth1"]
    assert facts.routes == looked(("routes", _ROUTES.replace(b" \\\t", b" \n\t"))).routes


@pytest.mark.parametrize(
    "partly", [b"", b"10.0.0.0/8 via 10.9.9.9 dev eth7 \n7: eth7    inet 10.9.9.9/24 scope global\n"]
)
def test_without_batch_the_two_frames_count(partly: bytes) -> None:
    """busybox's ip has no -batch, and another may fail half way: what was said by then gives way to the two frames."""
    wanted = looked(("routes", _ROUTES), ("addresses", _ADDRESSES))
    assert looked(("network", partly), ("routes", _ROUTES), ("addresses", _ADDRESSES)) == wanted


_SOCKETS = {
    "any IPv4": (b"0.0.0.0:22", b"00000000:0016", ("0.0.0.0", 22)),
    "any IPv6": (b"[::]:22", b"00000000000000000000000000000000:0016", ("::", 22)),
    "any of both": (b"*:80", b"00000000000000000000000000000000:0050", ("::", 80)),
    "on an interface": (b"127.0.0.53%lo:53", b"3500007F:0035", ("127.0.0.53", 53)),
    "IPv4 by IPv6": (b"[::ffff:1.2.3.4]:80", b"0000000000000000FFFF000004030201:0050", ("1.2.3.4", 80)),
    "link-local": (b"[fe80::1]%eth0:80", b"000080FE000000000000000001000000:0050", ("fe80::1", 80)),
    "a bridge's": (b"172.17.0.1:8123", b"010011AC:1FBB", ("172.17.0.1", 8123)),
    "the highest port": (b"[::1]:65535", b"00000000000000000000000001000000:FFFF", ("::1", 65535)),
}


def ss(*shown: bytes) -> bytes:
    """``ss -Hltn`` (iproute2): state, two queues, here, there; columns as wide as they come."""
    return b"".join(b"LISTEN 0      128 %20s            *:*          \n" % each for each in shown)


@pytest.mark.parametrize("name", _SOCKETS)
def test_listeners_of_ss(name: str) -> None:
    """What ss shows is what /proc/net/tcp and tcp6 say in hex."""
    shown, raw, wanted = _SOCKETS[name]
    assert looked(("listeners", ss(shown))).listeners == (wanted,)
    assert reading.listeners(b"   0: %s 00000000:0000 0A 00000000:00000000 00:00\n" % raw) == (wanted,)


def test_all_listeners_of_ss() -> None:
    """Each once and in one order, whoever tells them."""
    every = ss(*(shown for shown, _raw, _wanted in _SOCKETS.values()))
    assert reading.listeners(every + every) == tuple(sorted(wanted for _shown, _raw, wanted in _SOCKETS.values()))


@pytest.mark.parametrize(
    "line",
    [
        *(ss(b""), ss(b":"), ss(b"80"), ss(b"*"), ss(b"*:"), ss(b"*:*"), ss(b"*:http"), ss(b"*:-1")),
        *(ss(b"*:%s" % (b"9" * 5000)), ss(b"1.2.3:80"), ss(b"1.2.3.4.5:80"), ss(b"[::1::80"), ss(b"[]:80")),
        *(ss(b"[fe80::1%eth0"), ss(b"x" * 100_000 + b":1"), ss("*:\u0663".encode()), ss(b"\xff:80"), ss(b"%lo:1")),
        *(b"LISTEN", b"LISTEN 0 128", b"LISTEN\n0 128\n*:80\n", b"ESTAB 0 0 1.2.3.4:80 *:*\n", b"UNCONN 0 0 *:8 *:*\n"),
        *(b"State Recv-Q Send-Q Local Address:Port\n", b"\0" * 99, b"\x1b[2J LISTEN 0 0 *:80 *:*\n"),
        *(ss(b"*:65536"), ss(b"*:9999999999"), b"0: 0100007F:10000 0:0 0A 0\n", b"0: 0100007F:-1 0:0 0A 0\n"),
    ],
)  # fmt: skip
def test_lines_that_are_no_listener(line: bytes) -> None:
    """Headings, other states, half lines, names and numbers beyond all ports: nothing, and what follows is read."""
    assert reading.listeners(line) == ()
    assert reading.listeners(line + b"\n" + ss(b"*:80")) == (("::", 80),)


_WORDS = st.sampled_from(
    [b"LISTEN", b"0", b"0A", b"*:80", b"[::1]:", b"%", b":", b"1.2.3.4", b"0100007F:1FBB", b"\xff"]
)


@given(lines=st.lists(st.lists(_WORDS | st.binary(max_size=6), max_size=6).map(b" ".join), max_size=4))
def test_hostile_listeners_are_no_error(lines: list[bytes]) -> None:
    """Whatever a VM says: sorted pairs of an address and a port that exists."""
    found = reading.listeners(b"\n".join(lines))
    assert list(found) == sorted(set(found))
    assert all(str(ipaddress.ip_address(host)) == host and 0 <= port < 65536 for host, port in found)


@given(body=st.lists(st.sampled_from([*_ROUTES.splitlines(), *_ADDRESSES.splitlines()]) | st.binary(), max_size=6))
def test_a_hostile_network_is_no_error(body: list[bytes]) -> None:
    """Lines mixed, cut and of any bytes: routes and addresses of the right kinds, never an error."""
    facts = looked(("network", b"\n".join(body)))
    for address in facts.addresses:
        assert reading._INTERFACE.match(address.interface)
        assert ipaddress.ip_interface(address.cidr).with_prefixlen == address.cidr
