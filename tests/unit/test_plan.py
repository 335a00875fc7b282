"""What is wanted and what differs: on every recorded VM, from fresh to applied and back, without any I/O."""

from __future__ import annotations

import ipaddress
import json
from dataclasses import replace

import pytest

from tests.unit import worlds
from tests.unit.rulekernel import Kernel, foreign, form
from vmproxy import blocks, guests, ipv6, managed, plan, rules, scene
from vmproxy.errors import ForeignFile, NoGateway, Refused
from vmproxy.guests.boot2docker import BOOTLOCAL, PROFILE, USERDATA
from vmproxy.model import (
    Address,
    Daemon,
    Desired,
    Facts,
    File,
    Mount,
    Plan,
    Route,
    Rule,
    Settings,
    Syntax,
    Wish,
)
from vmproxy.proxyenv import parse_proxy
from vmproxy.wish import DEFAULT, record

GUEST = guests.load("boot2docker")
SECRET = "http://me:hunter22@127.0.0.1:8123"
# Worlds where an apply is possible.
WORLDS = [name for name in worlds.NAMES if not name.startswith("odd") and name != "no-docker"]
WISHES = {
    "the default": Wish(proxy=DEFAULT),
    "credentials": Wish(proxy=parse_proxy(SECRET)),
    "another port and names": Wish(
        proxy=parse_proxy("http://localhost:3128"), no_proxy=("corp.test",), listen_port=9000
    ),
    "an https proxy of its own": Wish(proxy=DEFAULT, https_proxy=parse_proxy("http://127.0.0.1:8124")),
    "a gateway by hand": Wish(proxy=DEFAULT, gateway="10.0.2.9"),
    "the gateway by its address": Wish(proxy=parse_proxy("http://10.0.2.2:3128")),
    "one bridge": Wish(proxy=DEFAULT, bridges=("docker0",)),
    "elsewhere": Wish(proxy=parse_proxy("http://proxy.corp.test:3128")),
}


def seen(facts: Facts, wish: Wish) -> scene.Scene:
    """The scene of a look for a wish."""
    made = scene.read(facts, Settings())
    made.wish = wish
    return made


def step(facts: Facts, wish: Wish | None) -> tuple[Plan, Facts, Desired]:
    """One apply (``wish`` None: a remove) carried out in memory: the plan, the VM afterwards, what was wanted."""
    now = seen(facts, wish or Wish(proxy=DEFAULT))
    variant = now.variant if wish else now.variant_with_ours
    desired = plan.desire(facts, GUEST, wish, variant) if wish else Desired()
    made = plan.diff(facts, GUEST, desired, variant)
    environment = dict(desired.environment) if desired.environment is not None else {}
    return made, worlds.carry_out(made, facts, environment), desired


def fresh(name: str) -> Facts:
    """A recorded VM with our part taken out."""
    return step(worlds.world(name), None)[1]


def written_offline(facts: Facts, wish: Wish, variant: str) -> Facts:
    """A VM that has booted from files which were changed while it was off, when nobody knew docker0's address."""
    _made, after, desired = step(facts, wish)
    assert desired.door is not None
    order = guests.Order(
        environment=desired.environment or {},
        door=replace(desired.door, bridge_address=guests.ADDRESS_AT_BOOT),
        variant=variant,
        record=record(wish),
    )
    made = managed.changes(facts, GUEST, Desired(blocks=GUEST.render(order, facts)))[0]
    return replace(after, files={**after.files, **{change.after.path: change.after for change in made}})


@pytest.mark.parametrize("plain", [True, False], ids=["iptables", "its variant's"])
@pytest.mark.parametrize("name", WORLDS)
def test_a_boot_script_that_looks_the_address_up_is_as_wished(name: str, plain: bool) -> None:
    """docker0's, found at boot: in sync where that is the address that is wanted; else, and where bridges are named,
    the script is written with the address in it."""
    wish = WISHES["the default"]
    before = fresh(name)
    offline = written_offline(before, wish, "default" if plain else seen(before, wish).variant)
    at_boot = guests.ADDRESS_AT_BOOT.encode()
    assert at_boot in (offline.files[BOOTLOCAL].content or b"")
    assert not step(offline, wish)[0]
    made, after, _desired = step(offline, replace(wish, bridges=("docker0",)))
    assert made and at_boot not in (after.files[BOOTLOCAL].content or b"")
    assert step(offline, replace(wish, listen_port=9000))[0].files


def theirs(dump: bytes) -> list[tuple[str, str, str, list[tuple[str, ...]]]]:
    """What is not ours in a dump, in order within each table."""
    return sorted(foreign(rules.parse_save(dump)), key=lambda chain: chain[0])


@pytest.mark.parametrize("wish", WISHES)
@pytest.mark.parametrize("name", WORLDS)
def test_apply_then_nothing_then_remove(name: str, wish: str) -> None:
    """A first apply changes, a second has nothing to do, remove gives back every byte, mode and rule, a second remove
    has nothing to do (I3, I4, I5)."""
    before = fresh(name)
    first, applied, _ = step(before, WISHES[wish])
    assert first
    assert first.drift
    again, same, _ = step(applied, WISHES[wish])
    assert not again, again.drift
    assert again.drift == ()
    assert same == applied
    back, after, _ = step(applied, None)
    assert back
    assert after.files == before.files
    for variant, dump in before.dumps.items():
        assert form(rules.parse_save(after.dumps[variant])) == form(rules.parse_save(dump))
        assert theirs(applied.dumps[variant]) == theirs(dump)
    assert not step(after, None)[0]


@pytest.mark.parametrize("name", WORLDS)
def test_from_one_wish_to_another_is_as_from_the_start(name: str) -> None:
    """Whatever was applied before: the second wish's VM is the same as if it had been the first (P3 for the whole)."""
    before = fresh(name)
    _, one, _ = step(before, WISHES["another port and names"])
    _, other, _ = step(one, WISHES["the default"])
    _, straight, _ = step(before, WISHES["the default"])
    assert other.files == straight.files
    for variant, dump in straight.dumps.items():
        assert form(rules.parse_save(other.dumps[variant])) == form(rules.parse_save(dump))


@pytest.mark.parametrize("name", WORLDS)
def test_only_one_variant_is_written(name: str) -> None:
    """Rules go where Docker's are, and nowhere else (F17)."""
    made, _, _ = step(fresh(name), WISHES["the default"])
    assert made.rules is not None
    assert made.rules.variant == ("legacy" if "legacy" in name else "nft")


@pytest.mark.parametrize("name", [name for name in WORLDS if "applied" in name])
def test_the_recorded_wish_is_found(name: str) -> None:
    """An applied VM says what it was applied with; either file alone is enough."""
    facts = worlds.world(name)
    assert plan.seen_wish(facts, GUEST) == Wish(proxy=DEFAULT)
    for path in (PROFILE, BOOTLOCAL):
        one = replace(facts, files={**facts.files, path: File(path=path, kind="absent")})
        assert plan.seen_wish(one, GUEST) == Wish(proxy=DEFAULT)
    neither = {path: File(path=path, kind="absent") for path in facts.files}
    assert plan.seen_wish(replace(facts, files=neither), GUEST) is None


def with_file(content: bytes | None, *, path: str = PROFILE, **more: object) -> Facts:
    """A fresh VM with one file in it."""
    facts = fresh("fresh-nft")
    made = replace(File(path=path, content=content), **more)  # type: ignore[arg-type]
    syntax = {path: Syntax(parses=True, tail_lives=True)} if content is not None else {}
    return replace(facts, files={**facts.files, path: made}, syntax=syntax)


@pytest.mark.parametrize("kind", ["link", "dir", "other"])
@pytest.mark.parametrize("path", [PROFILE, BOOTLOCAL])
def test_f38_only_plain_files(path: str, kind: str) -> None:
    """Anything but a plain file is refused by apply, and is nothing to remove."""
    facts = with_file(None, path=path, kind=kind)
    with pytest.raises(ForeignFile, match="not a plain file") as caught:
        step(facts, WISHES["the default"])
    assert caught.value.where == path
    assert not step(facts, None)[0]


def test_f38_hard_links_and_unreadable_files() -> None:
    """Two names, or a content that could not be read: refused."""
    with pytest.raises(ForeignFile, match="hard link"):
        step(with_file(b"", links=2), WISHES["the default"])
    with pytest.raises(ForeignFile, match="cannot be read"):
        step(with_file(None, kind="file"), WISHES["the default"])


@pytest.mark.parametrize(
    ("syntax", "words", "where"),
    [
        (Syntax(parses=False, tail_lives=True, message="x", line=7), "cannot parse", f"{PROFILE}:7"),
        (Syntax(parses=False, tail_lives=True, message="x"), "cannot parse", PROFILE),
        (Syntax(parses=True, tail_lives=False), "would not be read", PROFILE),
    ],
)
def test_f42_f43_what_the_vms_shell_says_counts(syntax: Syntax, words: str, where: str) -> None:
    """A file that does not parse, or whose tail is swallowed, by the VM's own shell: refused with its place."""
    facts = replace(with_file(b"# mine\n"), syntax={PROFILE: syntax})
    with pytest.raises(ForeignFile, match=words) as caught:
        step(facts, WISHES["the default"])
    assert caught.value.where == where


@pytest.mark.parametrize("old", [0o644, 0o600, 0o664, 0o755, 0o4755, 0o640, 0o400])
def test_credentials_narrow_the_mode_until_they_are_gone(old: int) -> None:
    """With credentials nobody else can read; without them again, or removed, the old mode is back, also over several
    applies."""
    before = with_file(b"# mine\n", mode=old)
    _, secret, _ = step(before, WISHES["credentials"])
    assert secret.files[PROFILE].mode == old & 0o7700
    assert not step(secret, WISHES["credentials"])[0]
    _, plain, _ = step(secret, WISHES["the default"])
    assert plain.files[PROFILE].mode == old
    for applied in (secret, plain):
        assert step(applied, None)[1].files[PROFILE] == before.files[PROFILE]


@pytest.mark.parametrize("recorded", [-1, True, 0o10000600, 10**30, "0644", None])
def test_a_mode_that_cannot_be_is_not_given_back(recorded: object) -> None:
    """The record is text of the VM: only what is a mode, and was narrowed to this one, counts."""
    _, applied, _ = step(with_file(b"# mine\n", mode=0o600), WISHES["the default"])
    content = applied.files[PROFILE].content or b""
    for mode in (0o600, 0o7700, 0):
        said = content.replace(b"vmproxy 1 {", b'vmproxy 1 {"mode":%s,' % json.dumps(recorded).encode())
        file = replace(applied.files[PROFILE], content=said, mode=mode)
        for wish in (WISHES["the default"], None):
            _, after, _ = step(replace(applied, files={**applied.files, PROFILE: file}), wish)
            assert after.files[PROFILE].mode == mode


def test_a_mode_changed_by_hand_is_kept() -> None:
    """Somebody widens the mode of a file with credentials: drift, narrowed again; another narrow one is theirs."""
    before = with_file(b"# mine\n", mode=0o644)
    _, secret, _ = step(before, WISHES["credentials"])
    opened = replace(secret, files={**secret.files, PROFILE: replace(secret.files[PROFILE], mode=0o666)})
    made, again, _ = step(opened, WISHES["credentials"])
    assert made.files
    assert again.files[PROFILE].mode == 0o600
    closed = replace(secret, files={**secret.files, PROFILE: replace(secret.files[PROFILE], mode=0o400)})
    assert step(closed, None)[1].files[PROFILE].mode == 0o400


def test_f66_docker_machine_rewrote_profile() -> None:
    """The profile is somebody else's by now: drift for apply; remove takes the rules and the other file, leaves it."""
    _, applied, _ = step(fresh("fresh-nft"), WISHES["the default"])
    theirs = File(path=PROFILE, content=b"EXTRA_ARGS='\n--label provider=virtualbox\n'\n", mode=0o644)
    facts = replace(applied, files={**applied.files, PROFILE: theirs})
    made, _, _ = step(facts, WISHES["the default"])
    assert [finding.subject for finding in made.drift] == [f"file {PROFILE}"]
    assert made.drift[0].detail == "our block is missing"
    back, after, _ = step(facts, None)
    assert [change.after.path for change in back.files] == [BOOTLOCAL]
    assert after.files[PROFILE] == theirs


def test_a_docker_machine_keeps_its_remote_access() -> None:
    """userdata.tar and no profile: ours says DOCKER_REMOTE=yes; where a profile of theirs is, it does not."""
    facts = fresh("fresh-nft")
    machine = replace(facts, paths=facts.paths | {USERDATA})
    _, applied, desired = step(machine, WISHES["the default"])
    assert desired.environment is not None
    assert desired.environment["DOCKER_REMOTE"] == "yes"
    assert b"export DOCKER_REMOTE='yes'\n" in (applied.files[PROFILE].content or b"")
    assert not step(applied, WISHES["the default"])[0]
    theirs = replace(machine, files={**machine.files, PROFILE: File(path=PROFILE, content=b"# theirs\n")})
    _, applied, _ = step(replace(theirs, syntax={}), WISHES["the default"])
    assert b"DOCKER_REMOTE" not in (applied.files[PROFILE].content or b"")


# ---- the daemon -----------------------------------------------------------------------------------------------------


def test_a_restart_that_is_pending_is_drift_each_time() -> None:
    """Files and rules are right, the running daemon's environment is not: a plan of a restart alone, and a finding."""
    before = fresh("fresh-nft")
    _, applied, _ = step(before, WISHES["the default"])
    pending = replace(applied, daemon=before.daemon)
    made, _, _ = step(pending, WISHES["the default"])
    assert (made.files, made.rules, made.restart) == ((), None, True)
    (finding,) = made.drift
    assert (finding.subject, finding.ok) == ("daemon", False)
    assert "restart pending" in finding.detail
    assert "http_proxy" in finding.detail


def test_removed_but_not_restarted() -> None:
    """After a remove whose restart was put off nothing differs, but --restart always still restarts; not where the
    user's own profile names that proxy."""
    _, applied, _ = step(fresh("fresh-nft"), WISHES["the default"])
    facts = replace(applied, files=fresh("fresh-nft").files, dumps=fresh("fresh-nft").dumps)
    assert not plan.diff(facts, GUEST, Desired(), "nft")
    assert plan.diff(facts, GUEST, Desired(), "nft", restart_always=True).restart
    theirs = b"export HTTP_PROXY=http://10.0.2.2:8123\n"
    own = replace(facts, files={**facts.files, PROFILE: File(path=PROFILE, content=theirs)})
    assert not plan.diff(own, GUEST, Desired(), "nft", restart_always=True)


def test_f48_a_daemon_that_does_not_run_needs_no_restart() -> None:
    """Docker is stopped: files and rules are wanted, no restart."""
    facts = replace(fresh("fresh-nft"), daemon=None)
    made, _, _ = step(facts, WISHES["the default"])
    assert made.files
    assert made.rules is not None
    assert not made.restart


def test_other_variables_of_the_daemon_are_its_own() -> None:
    """Variables that are not ours make no drift."""
    _, applied, _ = step(fresh("fresh-nft"), WISHES["the default"])
    assert applied.daemon is not None
    more = Daemon(pid=9, environment={**applied.daemon.environment, "ftp_proxy": "http://x:1", "TZ": "UTC"})
    assert not step(replace(applied, daemon=more), WISHES["the default"])[0]


# ---- gateway, bridge, port ------------------------------------------------------------------------------------------


def test_f57_a_new_gateway_is_drift_with_both_addresses() -> None:
    """The VM's gateway has changed since: old and new are named, and apply leads to the new one."""
    _, applied, _ = step(fresh("fresh-nft"), WISHES["the default"])
    routes = tuple(replace(r, gateway="10.0.2.99") if r.gateway == "10.0.2.2" else r for r in applied.routes)
    moved = replace(applied, routes=routes)
    desired = plan.desire(moved, GUEST, WISHES["the default"], "nft")
    assert desired.door is not None
    said = plan.moved_gateway(moved, "nft", desired.door)
    assert "10.0.2.99" in said
    assert "10.0.2.2" in said
    _, after, _ = step(moved, WISHES["the default"])
    assert b"10.0.2.2:8123" not in after.dumps["nft"]
    assert not step(after, WISHES["the default"])[0]
    assert plan.moved_gateway(after, "nft", desired.door) == ""


def test_f12_no_bridge_or_a_renamed_one() -> None:
    """No docker0: Docker's own rules name its bridge; none at all is refused with the bridges there are."""
    facts = fresh("fresh-nft")
    none = replace(facts, addresses=tuple(a for a in facts.addresses if a.interface != "docker0"))
    with pytest.raises(Refused, match="no bridge with an IPv4 address") as caught:
        step(none, WISHES["the default"])
    assert "docker0" in caught.value.where
    assert "--bridge" in caught.value.hint
    renamed = replace(
        none,
        addresses=(*none.addresses, Address(interface="bridge0", cidr="10.99.0.1/16")),
        interfaces=(none.interfaces - {"docker0"}) | {"bridge0"},
        bridges=frozenset({"bridge0"}),
        dumps={name: dump.replace(b"docker0", b"bridge0") for name, dump in none.dumps.items()},
    )
    desired = plan.desire(renamed, GUEST, WISHES["the default"], "nft")
    assert desired.door is not None
    assert desired.door.bridge_address == "10.99.0.1"


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "172.17.0.1"])
def test_a_port_that_is_taken_is_refused(host: str) -> None:
    """Something listens where containers would ask: refused with --listen-port; loopback and other ports are free."""
    facts = fresh("fresh-nft")
    with pytest.raises(Refused, match="already listens") as caught:
        step(replace(facts, listeners=((host, 8123),)), WISHES["the default"])
    assert caught.value.hint == "--listen-port N"
    for free in ((host, 8124), ("127.0.0.1", 8123), ("10.0.2.15", 8123)):
        assert step(replace(facts, listeners=(free,)), WISHES["the default"])[0]
    assert step(replace(facts, listeners=((host, 8123),)), WISHES["another port and names"])[0]


def test_no_iptables_is_refused_only_where_a_door_is_needed() -> None:
    """F15: without iptables-save a door is refused; a proxy elsewhere needs none."""
    facts = replace(fresh("fresh-nft"), dumps={})
    with pytest.raises(Refused, match="iptables"):
        step(facts, WISHES["the default"])
    failed = replace(facts, dump_errors={"nft": "iptables-save (nft) ends with status 4"})
    with pytest.raises(Refused, match="status 4"):
        step(failed, WISHES["the default"])
    made, _, desired = step(facts, WISHES["elsewhere"])
    assert made.files
    assert desired.door is None


def test_an_ipv6_gateway_has_no_door() -> None:
    """The door is IPv4: an IPv6 gateway is refused with the --gateway hint."""
    with pytest.raises(NoGateway) as caught:
        step(fresh("fresh-nft"), Wish(proxy=DEFAULT, gateway="fd00::2"))
    assert "--gateway" in caught.value.hint


def test_forward_resolves_in_the_vm() -> None:
    """--forward: the gateway of the rules is what the VM resolves; unresolved is refused; an address is itself."""
    wish = Wish(proxy=parse_proxy("http://proxy.corp.test:3128"), forward=True)
    facts = fresh("fresh-nft")
    with pytest.raises(NoGateway, match="resolve"):
        step(facts, wish)
    found = replace(facts, resolved=("10.1.2.3", "10.1.2.4"))
    desired = plan.desire(found, GUEST, wish, "nft")
    assert desired.door is not None
    assert desired.door.gateway == "10.1.2.3"
    by_address = Wish(proxy=parse_proxy("http://10.9.9.9:3128"), forward=True)
    door = plan.desire(facts, GUEST, by_address, "nft").door
    assert door is not None
    assert door.gateway == "10.9.9.9"


# ---- the disk -------------------------------------------------------------------------------------------------------

DISKS = {
    "ext4": ((("/", "tmpfs", "rw"), ("/var/lib/boot2docker", "ext4", "rw,relatime")), False, False),
    "mounted above": ((("/", "tmpfs", "rw"), ("/var/lib", "ext4", "rw")), False, False),
    "in RAM": ((("/", "rootfs", "rw"),), True, False),
    "tmpfs over it": ((("/var/lib/boot2docker", "ext4", "rw"), ("/var/lib/boot2docker", "tmpfs", "rw")), True, False),
    "read-only": ((("/", "tmpfs", "rw"), ("/var/lib/boot2docker", "ext4", "ro,relatime")), False, True),
    "errors=remount-ro is not ro": ((("/", "ext4", "rw,errors=remount-ro"),), False, False),
    "a neighbour": ((("/", "ext4", "rw"), ("/var/lib/boot2docker2", "tmpfs", "ro")), False, False),
    "not known": ((), False, False),
}


@pytest.mark.parametrize("what", DISKS)
def test_f35_f36_the_disk(what: str) -> None:
    """Which mount holds the files: whether it forgets, whether it is read-only; the last one mounted counts."""
    rows, forgets, read_only = DISKS[what]
    mounts = tuple(Mount(point=p, fstype=t, options=frozenset(o.split(","))) for p, t, o in rows)
    warning, ro = plan.disk(replace(fresh("fresh-nft"), mounts=mounts), GUEST)
    assert (bool(warning), ro) == (forgets, read_only)


def test_i1_i2_every_rule_of_ours_is_scoped() -> None:
    """Each rule of ours lies in a chain of ours or jumps to one, with our comment; a nat jump names its bridge, or
    gateway, port and DNAT; FORWARD only lets DNATed connections of that gateway and port pass."""
    for name in WORLDS:
        made, applied, desired = step(fresh(name), WISHES["the default"])
        assert made.rules is not None
        assert desired.door is not None
        door = desired.door
        assert ipaddress.ip_address(door.gateway).is_private
        for chain in rules.parse_save(applied.dumps[made.rules.variant]).chains:
            mine = [r for r in chain.rules if chain.name.startswith("VMPROXY-") or "VMPROXY" in " ".join(r.words)]
            for rule in mine:
                _scoped(rule, chain.table, chain.name, door.gateway, door.port)


def _scoped(rule: Rule, table: str, chain: str, gateway: str, port: int) -> None:
    words = " ".join(rule.words)
    assert "--comment vmproxy" in words
    if (table, chain) == ("nat", "PREROUTING"):
        assert "-i docker0 " in words or "-i br-" in words
        assert f"--dport {port}" in words
    if (table, chain) == ("nat", "POSTROUTING"):
        assert f"-d {gateway}/32" in words
        assert f"--dport {port}" in words
        assert "--ctstate DNAT" in words
    if chain == "VMPROXY-FORWARD":
        assert "--ctstate DNAT" in words
        assert f"{gateway}/32" in words
        assert f"port {port}" in words


def test_the_blocks_record_no_credentials() -> None:
    """The marker line has the wish without user and password."""
    _, applied, _ = step(fresh("fresh-nft"), WISHES["credentials"])
    for path in (PROFILE, BOOTLOCAL):
        found = blocks.find(applied.files[path].content or b"", path=path)
        assert found is not None
        assert "hunter22" not in str(found.record)
    again = plan.seen_wish(applied, GUEST)
    assert again == WISHES["credentials"]


def test_a_proxy_named_by_the_gateways_address_is_on_the_host() -> None:
    """http://10.0.2.2:P, where 10.0.2.2 is the VM's gateway, is the host's proxy and gets its door; others get none."""
    facts = worlds.world("fresh-nft")
    door = plan.view(facts, Wish(proxy=parse_proxy("http://10.0.2.2:3128")), "nft").door
    assert door is not None
    assert (door.gateway, door.port) == ("10.0.2.2", 3128)
    assert plan.view(facts, Wish(proxy=parse_proxy("http://10.0.2.9:3128")), "nft").door is None
    assert plan.view(replace(facts, routes=()), Wish(proxy=parse_proxy("http://10.0.2.2:3128")), "nft").door is None


def six(facts: Facts, gateway: str = "fd00:2::2", metric: int = 7) -> Facts:
    """The VM with IPv6 in Docker and a default route by IPv6."""
    address = Address(interface="docker0", cidr="fd00:17::1/64", family="inet6")
    local = Address(interface="docker0", cidr="fe80::1/64", family="inet6")
    route = Route(destination="::/0", gateway=gateway, interface="eth0", metric=metric, family="inet6")
    return replace(
        facts, addresses=(local, address, *facts.addresses), routes=(*facts.routes, route), dumps6={"nft": b""}
    )


@pytest.mark.parametrize(
    ("gateway", "wish", "wanted"),
    [
        ("fd00:2::2", Wish(proxy=DEFAULT), ("fd00:2::2", "")),
        ("fe80::2", Wish(proxy=DEFAULT), ("", "link-local")),
        ("", Wish(proxy=DEFAULT), ("", "no gateway address")),
        ("fd00:2::2", Wish(proxy=DEFAULT, gateway="10.0.2.9"), ("", "--gateway names")),
        ("fd00:2::2", Wish(proxy=parse_proxy("http://proxy.corp.test:1")), ("", "")),
    ],
)
def test_where_a_door_by_ipv6_can_be(gateway: str, wish: Wish, wanted: tuple[str, str]) -> None:
    """The host's IPv6 address where a rule can name it, else one line of why; nothing where none is needed."""
    found, why = ipv6.candidate(six(worlds.world("fresh-nft"), gateway), wish, "nft")
    assert found == wanted[0]
    assert bool(why) == bool(wanted[1])
    assert wanted[1] in why


def test_a_door_by_ipv6_there_and_back() -> None:
    """Wanted only as recorded; its rules are ip6tables' and are undone by their own texts; gone with the wish."""
    facts = six(worlds.world("fresh-nft"))
    wish = Wish(proxy=DEFAULT, gateway6="fd00:2::2")
    desired = plan.desire(facts, GUEST, wish, "nft")
    assert desired.door is not None
    assert desired.door.six is not None
    made = plan.diff(facts, GUEST, desired, "nft")
    assert made.rules is not None
    assert set(made.rules.do) == {"filter", "nat", "filter6", "nat6"}
    assert b"[fd00:2::2]:8123" in made.rules.do["nat6"]
    assert b"-d fd00:17::1/128" in made.rules.do["nat6"]
    assert any(line.startswith("+ ip6tables -t nat -A") for line in made.rules.lines)
    assert b"ip6tables-nft-restore" in next(block.payload for block in desired.blocks if block.path == BOOTLOCAL)
    kernel = Kernel()
    for table in ("filter6", "nat6"):
        kernel.restore(made.rules.do[table])
    applied = replace(facts, dumps6={"nft": kernel.save()})
    again = plan.diff(applied, GUEST, desired, "nft")
    assert again.rules is not None
    assert not any(again.rules.do.get(table) for table in ("filter6", "nat6"))
    gone = plan.diff(applied, GUEST, Desired(), "nft").rules
    assert gone is not None
    for table in ("filter6", "nat6"):
        kernel.restore(gone.do[table])
    assert not [rule for chain in kernel.ruleset().chains for rule in chain.rules]
    assert plan.desire(facts, GUEST, Wish(proxy=DEFAULT), "nft").door == replace(desired.door, six=None)
    moved = plan.desire(six(worlds.world("fresh-nft"), "fd00:2::9"), GUEST, wish, "nft").door
    assert moved is not None
    assert moved.six is None
