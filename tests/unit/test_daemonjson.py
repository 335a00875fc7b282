"""``--via daemon-json``: one member of daemon.json goes in and comes out to the byte; what runs is compared with it."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from tests.unit import guestworlds, images, worlds
from tests.unit.hostilejson import BLANKS, documents
from tests.unit.test_guest_files import KINDS, Root
from tests.unit.test_initrd import Disk
from vmproxy import converge, daemonjson, guests, jsonedit, newc, plan, preview
from vmproxy.errors import ForeignFile, Refused
from vmproxy.guests import Guest
from vmproxy.jsontext import parse
from vmproxy.machines import Look, reading, sending
from vmproxy.machines.frames import Frame
from vmproxy.model import Daemon, Desired, Facts, File, Finding, Plan, Wish
from vmproxy.proxyenv import parse_proxy

ETC = "/etc/docker/daemon.json"
ELSEWHERE = Wish(proxy=parse_proxy("http://proxy.corp.test:3128"), no_proxy=("corp.test",), via="daemon-json")
SECRET = replace(ELSEWHERE, proxy=parse_proxy("http://me:hunter22@proxy.corp.test:3128"))
OTHER_SECRET = replace(ELSEWHERE, proxy=parse_proxy("http://me:hunter33@proxy.corp.test:3128"))
VALUE = {
    "http-proxy": "http://proxy.corp.test:3128",
    "https-proxy": "http://proxy.corp.test:3128",
    "no-proxy": "corp.test,localhost,127.0.0.1,::1",
}
MASKED = {key: text.replace("://proxy", "://xxxxx:xxxxx@proxy") for key, text in VALUE.items()}
THEIRS = b'{"proxies": {"http-proxy": "http://boss:hunter44@other.test:1"}, "log-level": "warn"}'


class Vm:
    """One VM in memory with Docker 26: plans are carried out, and Docker is restarted only where that is said."""

    def __init__(self, kind: str = "systemd", content: bytes | None = None, *, mode: int = 0o644, **more: Any) -> None:
        facts = guestworlds.world(KINDS[kind])
        self.guest: Guest = guests.load(kind)
        self.path = self.guest.DAEMON_CONFIG
        files = {path: File(path=path, kind="absent") for path in self.guest.FILES}
        if kind == "moby":
            files[self.guest.WISH_FILE] = File(path=self.guest.WISH_FILE, content=b"#!/sbin/openrc-run\n", mode=0o755)
        present = File(path=self.path, content=content, mode=mode)
        files[self.path] = present if content is not None else File(path=self.path, kind="absent")
        paths = facts.paths | {self.path.rpartition("/")[0]}
        self.facts = replace(
            facts,
            files=files,
            paths=paths,
            docker_version="26.1.5+dfsg1",
            daemon=Daemon(pid=7, environment={}, proxies={}),
        )
        self.facts = replace(self.facts, **more)

    @property
    def file(self) -> File:
        """daemon.json as it is now."""
        return self.facts.files[self.path]

    @property
    def content(self) -> bytes:
        """Its bytes."""
        assert self.file.content is not None
        return self.file.content

    def write(self, content: bytes) -> None:
        """Somebody else writes it."""
        self.facts = replace(self.facts, files={**self.facts.files, self.path: replace(self.file, content=content)})

    def planned(self, wish: Wish | None, *, force: bool = False) -> Plan:
        """The plan for a wish, None for remove."""
        desired = plan.desire(self.facts, self.guest, wish, "nft") if wish else Desired()
        return plan.diff(self.facts, self.guest, desired, "nft", force=force)

    def carried_out(self, wish: Wish | None, *, force: bool = False, restart: bool = True) -> Plan:
        """The same, carried out; Docker masks what it is asked for."""
        made = self.planned(wish, force=force)
        self.facts = worlds.carry_out(made, self.facts)
        daemon = self.facts.daemon
        assert daemon is not None
        if made.restart and restart:
            held = daemonjson.held(self.facts, self.guest)
            proxies = {
                key: text.replace("me:hunter22", "xxxxx:xxxxx") for key, text in daemonjson.proxies(held).items()
            }
            proxies = {key: text.replace("me:hunter33", "xxxxx:xxxxx") for key, text in proxies.items()}
            daemon = replace(daemon, proxies=proxies, newer=frozenset(), environment={})
        elif any(change.after.path == self.path for change in made.files):
            daemon = replace(daemon, newer=frozenset({self.path}))
        self.facts = replace(self.facts, daemon=daemon)
        return made

    def seen(self) -> Wish | None:
        """The wish that is recorded."""
        return plan.seen_wish(self.facts, self.guest)


@settings(max_examples=120)
@given(
    kind=st.sampled_from(sorted(KINDS)), document=st.none() | documents() | BLANKS, mode=st.sampled_from([0o644, 0o640])
)
@example(kind="systemd", document=b'{\r\n\t"debug": true\r\n}\r\n', mode=0o644)
@example(kind="sysv", document=b"{}", mode=0o600)
@example(kind="openrc", document=None, mode=0o644)
@example(kind="upstart", document=b"", mode=0o644)
def test_p10_remove_gives_back_every_byte(kind: str, document: bytes | None, mode: int) -> None:
    """Through each guest's plan: the member says the wish, all else has its bytes, a second apply has nothing to do,
    another wish and one with a secret follow, and remove gives back bytes and mode, or the absence."""
    vm = Vm(kind, document, mode=mode)
    before = dict(vm.facts.files)
    try:
        vm.carried_out(ELSEWHERE)
    except ForeignFile:
        # Only where the member, or one that Go takes for it, is there already.
        names = [each.name.casefold() for each in parse(document or b"{}").members]
        assert "proxies" in names
        assert vm.facts.files == before
        return
    assume(document is None or vm.content != document)
    found = jsonedit.find(vm.content, ("proxies",))
    assert found is not None
    assert found.value == VALUE
    assert b"proxy.corp.test" not in _payload(vm)
    assert vm.seen() == ELSEWHERE
    assert not vm.planned(ELSEWHERE)
    vm.carried_out(SECRET)
    assert vm.file.mode & 0o077 == 0
    assert vm.seen() == SECRET
    assert not vm.planned(vm.seen())
    vm.carried_out(None)
    left = {path: file for path, file in vm.facts.files.items() if file.kind != "absent"}
    assert left == {path: file for path, file in before.items() if file.kind != "absent"}
    assert not vm.planned(None)


def test_a_secret_is_in_the_file_alone() -> None:
    """The record has none, neither has the preview; the mode is recorded and given back by a wish without one."""
    vm = Vm(content=b'{"bip": "172.31.0.1/16"}', mode=0o664)
    made = vm.planned(SECRET)
    text = preview.plan_text(made, ())
    assert "hunter22" not in text
    assert "old mode 0664, new mode 0600" in text
    assert "172.31" not in text  # of somebody else's line nothing is shown
    vm.carried_out(SECRET)
    assert [path for path, file in vm.facts.files.items() if file.content and b"hunter22" in file.content] == [vm.path]
    assert vm.file.mode == 0o600
    vm.carried_out(ELSEWHERE)
    assert vm.file.mode == 0o664
    assert not vm.planned(ELSEWHERE)


def test_another_value_is_refused_and_force_says_that_it_is_lost() -> None:
    """Exit 6 names the file; with --force the value goes, with a warning, and remove leaves the file without it."""
    vm = Vm(content=THEIRS)
    with pytest.raises(ForeignFile, match="another value") as error:
        vm.planned(ELSEWHERE)
    assert (error.value.where, "--force" in error.value.hint, error.value.exit) == (ETC, True, 6)
    made = vm.carried_out(ELSEWHERE, force=True)
    assert any("cannot be given back" in line for line in made.warnings)
    assert "hunter44" not in preview.plan_text(made, ())
    assert not vm.planned(ELSEWHERE)
    vm.carried_out(None)
    assert json.loads(vm.content) == {"log-level": "warn"}


@pytest.mark.parametrize("value", [b"[]", b'"x"', b"null", b'{"http-proxy": 1}', b"{}"])
def test_any_other_value_is_another_value(value: bytes) -> None:
    """Whatever kind of value it is: it is refused, and --force replaces it."""
    vm = Vm(content=b'{"proxies": ' + value + b"}")
    with pytest.raises(ForeignFile):
        vm.planned(ELSEWHERE)
    vm.carried_out(ELSEWHERE, force=True)
    assert json.loads(vm.content)["proxies"] == VALUE


def test_the_same_value_of_somebody_elses_stays_his() -> None:
    """Where the file says it already, in its own way, nothing of it changes, and remove leaves it alone."""
    content = json.dumps({"proxies": VALUE}, indent=3).encode()
    vm = Vm(content=content)
    vm.carried_out(ELSEWHERE)
    assert vm.content == content
    assert not vm.planned(ELSEWHERE)
    vm.carried_out(None)
    assert vm.content == content


def test_a_file_that_another_program_wrote_anew_is_still_known() -> None:
    """Without our way of writing it, the member is ours by what it says: apply follows a new wish, remove takes it."""
    for wish in (ELSEWHERE, SECRET):
        vm = Vm(content=b'{"bip": "172.31.0.1/16"}')
        vm.carried_out(wish)
        vm.write(json.dumps(json.loads(vm.content), indent=1).encode())
        assert not vm.planned(wish)
        vm.carried_out(replace(wish, no_proxy=("more.test",)))
        assert "more.test" in json.loads(vm.content)["proxies"]["no-proxy"]
        vm.write(json.dumps(json.loads(vm.content), indent=1).encode())
        vm.carried_out(None)
        assert json.loads(vm.content) == {"bip": "172.31.0.1/16"}


def test_a_value_changed_by_hand_is_drift_and_not_taken_away() -> None:
    """status names the member; apply does not overwrite it without --force; remove leaves it, and takes the rest."""
    vm = Vm()
    vm.carried_out(ELSEWHERE)
    vm.write(vm.content.replace(b"\\/", b"/").replace(b"proxy.corp.test", b"mine.test"))
    with pytest.raises(ForeignFile):
        vm.planned(ELSEWHERE)
    (drift,) = [one for one in vm.planned(ELSEWHERE, force=True).drift if one.subject.startswith("file")]
    assert drift.detail == "proxies differs in http-proxy, https-proxy"
    vm.carried_out(None)
    assert b"mine.test" in vm.content
    assert vm.seen() is None


def test_a_lost_member_is_put_back_without_a_restart() -> None:
    """Colima makes the file anew at each start: that is drift; where the running Docker has it all, it stays."""
    vm = Vm(content=b"{}")
    vm.carried_out(ELSEWHERE)
    vm.write(b'{"bip": "172.31.0.1/16"}')
    made = vm.planned(ELSEWHERE)
    assert [one.detail for one in made.drift] == ["proxies is missing"]
    assert not made.restart


@pytest.mark.parametrize("kind", KINDS)
def test_switching_the_way_takes_the_other_one_back(kind: str) -> None:
    """From the guest's own file to daemon.json and back: what is left is that of the one way; remove leaves nothing."""
    vm = Vm(kind, b'{"debug": true}')
    before = dict(vm.facts.files)
    usual = replace(ELSEWHERE, via="drop-in")
    vm.carried_out(usual)
    assert b"proxy.corp.test:3128" in _payload(vm)
    vm.carried_out(ELSEWHERE)
    assert b"proxy.corp.test" not in _payload(vm)
    assert json.loads(vm.content) == {"proxies": VALUE, "debug": True}
    made = vm.planned(usual)
    assert made.files[0].after.path == vm.path  # its record goes last
    vm.carried_out(usual)
    assert vm.content == b'{"debug": true}'
    assert b"proxy.corp.test:3128" in _payload(vm)
    vm.carried_out(None)
    assert {path for path, file in vm.facts.files.items() if file != before[path] and file.content is not None} == set()


def test_our_member_does_not_win_over_our_own_drop_in() -> None:
    """What an apply left in daemon.json, its record lost, is taken away by the other way and by remove; it is no
    stranger's that wins."""
    vm = Vm(content=b'{"debug": true}')
    vm.carried_out(ELSEWHERE)
    rest = {path: File(path=path, kind="absent") for path in vm.guest.FILES}
    vm.facts = replace(vm.facts, files={**vm.facts.files, **rest}, texts={vm.path: vm.content})
    usual = replace(ELSEWHERE, via="drop-in", proxy=parse_proxy("http://new.test:1"))
    desired = plan.desire(vm.facts, vm.guest, usual, "nft")
    assert plan.overridden(vm.facts, vm.guest, desired) == ()
    assert [change.after.content for change in vm.planned(usual).files if change.after.path == vm.path] == [
        b'{"debug": true}'
    ]
    vm.carried_out(None)
    assert vm.content == b'{"debug": true}'


# ---- which Docker, and what runs ------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["20.10.24+dfsg1", "19.03.12", "22.06.0-beta.0", "1.13.1"])
def test_an_older_docker_is_refused_with_what_to_do(version: str) -> None:
    """Docker before 23 has no proxies there, and does not start with them: exit 6 says which way to go."""
    vm = Vm(docker_version=version)
    with pytest.raises(Refused, match=version.replace("+", r"\+")) as error:
        vm.planned(ELSEWHERE)
    assert error.value.hint.startswith("--via drop-in")


def test_a_version_that_cannot_be_told_is_refused_until_it_was_known() -> None:
    """Exit 6 without a version; where an earlier apply knew it, a look that does not is no reason to stop."""
    vm = Vm(docker_version="")
    with pytest.raises(Refused, match="cannot be told"):
        vm.planned(ELSEWHERE)
    vm = Vm()
    vm.carried_out(ELSEWHERE)
    vm.facts = replace(vm.facts, docker_version="")
    assert not vm.planned(ELSEWHERE)


def test_what_runs_is_what_docker_says() -> None:
    """A restart is pending while docker info names other values, and no longer; remove restarts what still has it."""
    vm = Vm()
    made = vm.carried_out(ELSEWHERE, restart=False)
    assert made.restart
    again = vm.planned(ELSEWHERE)
    assert (again.files, again.restart) == ((), True)
    assert "http-proxy, https-proxy, no-proxy" in again.drift[0].detail
    vm.carried_out(ELSEWHERE)
    assert not vm.planned(ELSEWHERE)
    gone = vm.carried_out(None, restart=False)
    assert gone.restart
    assert not vm.planned(None)
    assert plan.unnamed_proxy(vm.facts, vm.guest)
    assert plan.diff(vm.facts, vm.guest, Desired(), "nft", restart_always=True).restart


def test_other_credentials_are_pending_while_the_file_is_the_younger() -> None:
    """docker info masks them: so a file that is younger than the running Docker counts, and after a restart no more."""
    vm = Vm()
    vm.carried_out(SECRET)
    assert vm.facts.daemon is not None
    assert vm.facts.daemon.proxies == MASKED
    assert vm.carried_out(OTHER_SECRET, restart=False).restart
    assert "credentials" in vm.planned(OTHER_SECRET).drift[0].detail
    vm.carried_out(OTHER_SECRET)
    assert not vm.planned(OTHER_SECRET)


def test_variables_of_the_old_way_are_pending_until_a_restart() -> None:
    """After the switch docker info says the same, from the environment: it counts until the environment is without."""
    vm = Vm()
    environment = {"http_proxy": VALUE["http-proxy"], "HTTP_PROXY": VALUE["http-proxy"]}
    vm.facts = replace(vm.facts, daemon=Daemon(pid=7, environment=environment, proxies=VALUE))
    assert vm.carried_out(ELSEWHERE, restart=False).restart
    assert vm.planned(ELSEWHERE).restart
    vm.carried_out(ELSEWHERE)
    assert not vm.planned(ELSEWHERE)


def test_a_docker_that_does_not_answer_counts_by_the_age_of_the_file() -> None:
    """Without docker info: pending where the file is younger than the running Docker, and only then."""
    vm = Vm()
    vm.carried_out(ELSEWHERE)
    assert vm.facts.daemon is not None
    vm.facts = replace(vm.facts, daemon=replace(vm.facts.daemon, proxies=None))
    assert not vm.planned(ELSEWHERE)
    vm.facts = replace(vm.facts, daemon=Daemon(pid=7, environment={}, newer=frozenset({vm.path})))
    assert vm.planned(ELSEWHERE).restart
    assert vm.planned(None).restart


def test_a_docker_that_comes_back_without_them_is_no_success() -> None:
    """It reads another file than the one that was written: the finding that makes a change be put back."""
    vm = Vm()
    vm.carried_out(ELSEWHERE)
    assert vm.facts.daemon is not None
    desired = plan.desire(vm.facts, vm.guest, ELSEWHERE, "nft")
    assert plan.not_taken(vm.facts, desired) is None
    vm.facts = replace(vm.facts, daemon=replace(vm.facts.daemon, proxies={}))
    found = plan.not_taken(vm.facts, desired)
    assert found is not None
    assert "http-proxy, https-proxy, no-proxy" in found.detail


def test_a_docker_that_does_not_run_is_told_by_its_file() -> None:
    """Written, with no restart and nothing pending."""
    vm = Vm(daemon=None)
    made = vm.planned(ELSEWHERE)
    assert [change.after.path for change in made.files][-1] == vm.path
    assert not made.restart


UNIT = "/lib/systemd/system/docker.service"
_LINES = b"OPTIONS='\n--label a=b\n  --https-proxy=http://boss:hunter44@x:1\n'\n"
FLAGS: dict[str, dict[str, Any]] = {
    "in the unit": {
        "texts": {UNIT: b"[Service]\nExecStart=/usr/bin/dockerd \\\n  --http-proxy=http://boss:hunter44@x:1\n"}
    },
    "in a file that the unit reads": {
        "texts": {
            UNIT: b"[Service]\nEnvironmentFile=-/etc/default/docker\nExecStart=/usr/bin/dockerd $DOCKER_OPTS\n",
            "/etc/default/docker": b'DOCKER_OPTS="-D --no-proxy corp.test"\n',
        }
    },
    "in a variable of several lines": {
        "texts": {UNIT: b"[Service]\nEnvironmentFile=/etc/sysconfig/docker\n", "/etc/sysconfig/docker": _LINES}
    },
    "of the running one": {"words": ("/usr/bin/dockerd", "-H", "fd://", "--https-proxy", "http://boss:hunter44@x:1")},
    "another file": {"words": ("dockerd", "--config-file=/srv/docker.json")},
}


@pytest.mark.parametrize("case", FLAGS)
def test_flags_that_docker_would_not_start_with_are_named(case: str) -> None:
    """The same thing as a flag and in the file keeps dockerd from starting; another file is not read: one finding."""
    vm = _flagged(FLAGS[case])
    (found,) = _overridden(vm, ELSEWHERE)
    assert "hunter44" not in found.detail
    assert "--via drop-in" in found.hint
    assert ("/srv/docker.json" in found.detail) == (case == "another file")


@pytest.mark.parametrize(
    "case",
    [
        {
            "texts": {
                UNIT: b"[Service]\nExecStart=/usr/bin/dockerd -H fd://\n#ExecStart=dockerd --http-proxy=http://x:1\n"
            }
        },
        {"texts": {"/etc/default/docker": b'DOCKER_OPTS="--http-proxy=http://x:1"\n'}},
        {"texts": {UNIT: b"[Service]\nEnvironment=X=my--http-proxy=1 y--no-proxy\n"}},
        {"words": ("dockerd", "--config-file", ETC, "--log-opt", "http-proxy=1", "-l", "info")},
        {"texts": {UNIT: b"[Service]\nExecStartPre=/usr/bin/wget --no-proxy -q http://x/\nExecStart=dockerd\n"}},
        {
            "texts": {
                UNIT: b"[Service]\nEnvironmentFile=/etc/default/docker\n",
                "/etc/default/docker": b"wget --no-proxy x\n",
            }
        },
        {"words": ()},
    ],
)
def test_flags_that_do_not_matter_are_left_alone(case: dict[str, Any]) -> None:
    """A comment, a file that nothing reads, another flag, the usual file by name."""
    assert _overridden(_flagged(case), ELSEWHERE) == ()


def test_a_flag_wins_over_the_drop_in_too() -> None:
    """In the usual way a flag goes before the environment: named where its value is another one."""
    usual = replace(ELSEWHERE, via="drop-in")
    (found,) = _overridden(_flagged(FLAGS["in the unit"]), usual)
    assert found.detail.startswith(f"{UNIT} has --http-proxy")
    same = {"texts": {UNIT: f"[Service]\nExecStart=dockerd --http-proxy={VALUE['http-proxy']}\n".encode()}}
    assert _overridden(_flagged(same), usual) == ()
    assert _overridden(_flagged(FLAGS["another file"]), usual) == ()


# ---- what cannot be edited ------------------------------------------------------------------------------------------

REFUSED: dict[str, tuple[bytes, str, str]] = {
    "a byte order mark": (b'\xef\xbb\xbf{"debug": true}', f"{ETC}:1:1", "byte order mark"),
    "no JSON": (b'{\r\n  "debug": true,\r\n}', f"{ETC}:3:1", ""),
    "a comment": (b'{"a": 1} // mine', f"{ETC}:1:10", ""),
    "a list": (b"[]", f"{ETC}:1:1", "no JSON object"),
    "twice": (b'{"proxies": {},\n "b": 1, "proxies": {}}', f"{ETC}:2:10", "more than once"),
    "in other letters": (b'{"Proxies": {}}', ETC, "Proxies"),
    "UTF-16": ('{"debug": true}'.encode("utf-16"), f"{ETC}:1:1", ""),
}


@pytest.mark.parametrize("case", REFUSED)
def test_p10_what_cannot_be_edited_is_refused_with_its_place(case: str) -> None:
    """Exit 6 with path, line and column; the other way, and remove where nothing of ours is there, do not care."""
    content, where, words = REFUSED[case]
    vm = Vm(content=content)
    with pytest.raises(ForeignFile) as error:
        vm.planned(ELSEWHERE)
    assert error.value.where == where
    assert words in error.value.what
    assert "Docker refuses" not in error.value.hint
    vm.carried_out(replace(ELSEWHERE, via="drop-in"))
    vm.carried_out(None)
    assert vm.content == content


@pytest.mark.parametrize("odd", [{"kind": "link"}, {"kind": "dir"}, {"kind": "other"}, {"kind": "file", "links": 2}])
def test_f38_what_is_no_plain_file_is_refused(odd: dict[str, Any]) -> None:
    """A link, a directory, a fifo, a second name: exit 6 names it; the other way does not care."""
    vm = Vm()
    file = File(path=vm.path, content=b"{}" if odd["kind"] == "file" else None, **odd)
    vm.facts = replace(vm.facts, files={**vm.facts.files, vm.path: file})
    with pytest.raises(ForeignFile) as error:
        vm.planned(ELSEWHERE)
    assert error.value.where == vm.path
    vm.carried_out(replace(ELSEWHERE, via="drop-in"))
    assert vm.planned(None).files


def test_a_file_that_was_broken_since_is_not_passed_over_by_remove() -> None:
    """Ours is in it, and it cannot be read: exit 6 with the place, and nothing is half undone."""
    vm = Vm(content=b"{}")
    vm.carried_out(ELSEWHERE)
    vm.write(vm.content + b",")
    with pytest.raises(ForeignFile) as error:
        vm.planned(None)
    assert error.value.where.startswith(f"{ETC}:")


@given(
    state=st.dictionaries(
        st.sampled_from(["proxy", "mode", "theirs"]), st.integers() | st.text(max_size=5) | st.booleans()
    )
)
def test_t04_a_record_that_somebody_edited_does_no_harm(state: Mapping[str, Any]) -> None:
    """Whatever stands in the record: apply and remove end, and what is not ours stays."""
    vm = Vm(content=b'{"debug": true}')
    vm.carried_out(ELSEWHERE)
    file = vm.facts.files[vm.guest.WISH_FILE]
    assert file.content is not None
    old = json.dumps({"proxy": VALUE["http-proxy"]}, separators=(",", ":")).encode()
    assert old in file.content
    new = file.content.replace(old, json.dumps(state).encode())
    vm.facts = replace(vm.facts, files={**vm.facts.files, file.path: replace(file, content=new)})
    assert json.loads(vm.content)["debug"] is True
    vm.carried_out(None)
    assert json.loads(vm.content)["debug"] is True
    assert 0 <= vm.file.mode <= 0o7777


# ---- the look -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "wanted"),
    [
        (
            b'"26.1.5+dfsg1" "http://xxxxx:xxxxx@h:1" "" "a,b"\n',
            {"http-proxy": "http://xxxxx:xxxxx@h:1", "no-proxy": "a,b"},
        ),
        (b'"20.10.24" "" "" ""\n', {}),
        (b'"" "" "" ""\n', None),
        (b"19.03.12-stub\n", None),
        (b'"26.1.5" "a"', None),
        (b'"26.1.5" 1 2 3', None),
        (b'"not a version" "" "" ""', None),
        (b"", None),
        (b"[" * 100000, None),
    ],
)
def test_what_docker_says_is_read_or_not_at_all(said: bytes, wanted: dict[str, str] | None) -> None:
    """Four JSON texts of a daemon that answers; anything else is no answer."""
    found = reading.info(said)
    assert (found[1] if found else None) == wanted


@given(st.binary(max_size=200))
def test_t03_any_answer_can_be_read(body: bytes) -> None:
    """Whatever a VM says in these frames, the look is read."""
    words = ("system 0", "daemon 7", "command", "newer", "info", "version", "end")
    frames = [Frame(words=tuple(line.split()), body=b"" if line in ("end", "system 0") else body) for line in words]
    facts = reading.facts(frames)
    assert facts.daemon is not None
    assert facts.daemon.proxies is None or facts.docker_version


def test_the_frames_become_facts() -> None:
    """The command line, which places are younger, and what a Docker that does not run says of itself."""

    def read(*frames: tuple[str, bytes]) -> Facts:
        given = [("system 0", b""), *frames, ("end", b"")]
        return reading.facts([Frame(words=tuple(line.split()), body=body) for line, body in given])

    facts = read(
        ("daemon 7", b"A=b\0"), ("command", b"dockerd\0-H\0fd://\0\0"), ("newer", f" {ETC}".encode()),
        ("info", b'"26.1.5" "" "" ""'), ("version", b"Docker version 28.0.1, build x\n"),
    )  # fmt: skip
    assert facts.daemon == Daemon(
        pid=7, environment={"A": "b"}, proxies={}, words=("dockerd", "-H", "fd://", ""), newer=frozenset({ETC})
    )
    assert facts.docker_version == "26.1.5"
    assert read(("version", b"Docker version 28.0.1, build x\n")).docker_version == "28.0.1"
    assert read(("version", b"Segmentation fault\n")).docker_version == ""


def test_docker_is_asked_only_where_it_matters() -> None:
    """The look names the places of daemon.json as root, and asks in any case only where that is said."""
    look = Look(configs=(ETC,))
    assert f"want_configs='{ETC}\n'\n" in sending.look_words(look)
    assert "want_docker=\n" in sending.look_words(look)
    assert "want_docker=1\n" in sending.look_words(replace(look, docker=True))
    assert "want_configs=''\n" in sending.look_words(replace(look, root=False))


_ASKED = b"@n info"
_LOOK = """
docker_pid() { f=$PLACE/docker.pid; REPLY=$$; }
limit() { shift; "$@"; }
docker() { echo '"26.1.5" "" "" ""'; }
have() { false; }
nonce=n want_docker='' want_configs="$PLACE/docker/daemon.json
"
look_docker
"""
LOOKS: dict[str, tuple[dict[str, tuple[str, int]], bool]] = {
    "nothing there": ({}, False),
    "others' settings": ({"daemon.json": ("{}", -9)}, False),
    "proxies": ({"daemon.json": ('{"proxies": {}}', -9)}, True),
    "written since": ({"daemon.json": ("{}", 9)}, True),
    "taken away since": ({".": ("", 9), "other": ("", -9)}, True),
    "Docker's own key": ({".": ("", 9), "key.json": ("", 9)}, False),
}


@pytest.mark.parametrize("shell", [("dash",), ("bash", "--posix"), ("busybox", "sh")], ids=lambda words: words[0])
@pytest.mark.parametrize("case", LOOKS)
def test_the_script_asks_docker_where_it_may_have_proxies(case: str, shell: tuple[str, ...], tmp_path: Path) -> None:
    """Where daemon.json has proxies, or was written to or taken away since Docker was started; else it is not asked."""
    files, wanted = LOOKS[case]
    (tmp_path / "docker").mkdir()
    for name, (text, _age) in files.items():
        if name != ".":
            (tmp_path / "docker" / name).write_text(text)
    (tmp_path / "docker.pid").write_text("1")
    start = (tmp_path / "docker.pid").stat().st_mtime
    for name, age in {**dict.fromkeys(["."], -9), **{name: age for name, (_text, age) in files.items()}}.items():
        os.utime(tmp_path / "docker" / name, (start + age, start + age))
    script = Path(sending.__file__).with_name("observe.sh").read_text(encoding="utf-8") + _LOOK
    ran = subprocess.run(
        [*shell, "-c", script],
        env={"PLACE": str(tmp_path), "PATH": os.environ["PATH"]},
        capture_output=True,
        check=True,
    )
    assert (_ASKED in ran.stdout) == wanted
    assert (b"daemon.json\n@n info" in ran.stdout) == (case == "written since")
    assert ran.stderr == b""


# ---- on files -------------------------------------------------------------------------------------------------------

DPKG = (
    "Package: other\nStatus: install ok installed\nVersion: 99\n\n"
    "Package: {}\nStatus: {}\nVersion: {}\nDescription: x\n y\n"
)
INSTALLED = {
    "/var/lib/dpkg/status": DPKG.format("docker-ce", "install ok installed", "5:26.1.4-1~debian.12~bookworm"),
    "/lib/apk/db/installed": "C:Q1x=\nP:docker-engine\nV:26.1.5-r0\nA:x86_64\n\nP:docker\nV:9-r0\n",
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("packages", INSTALLED)
@pytest.mark.parametrize("content", [None, b'{\n  "debug": true\n}\n'])
def test_every_guest_on_files(kind: str, packages: str, content: bytes | None, tmp_path: Path) -> None:
    """Where dpkg or apk has a Docker of 23 or later: apply, again, status, the other way and back, remove; to the byte,
    the directory too where there was none."""
    config = guests.load(kind).DAEMON_CONFIG
    files = {packages: INSTALLED[packages].encode(), **({config: content} if content else {})}
    if kind == "moby":
        files["/etc/init.d/docker"] = b"#!/sbin/openrc-run\n\ndepend()\n{\n\tafter x\n}\n"
    root = Root(tmp_path / "root", kind, files)
    root.path(config).parent.parent.mkdir(parents=True, exist_ok=True)
    before = root.picture()
    assert root.tell(converge.apply, via="daemon-json").changed
    applied = root.picture()
    wanted = json.loads(root.path(config).read_bytes())
    assert wanted["proxies"]["http-proxy"] == "http://10.0.2.2:8123"
    assert ("debug" in wanted) == bool(content)
    assert b"=" + b"'http" not in root.path(guests.load(kind).WISH_FILE).read_bytes()
    assert not root.tell(converge.apply).changed
    assert root.tell(converge.status).ok
    assert root.tell(converge.apply, via="drop-in").changed
    assert root.path(config).exists() == bool(content)
    assert not root.tell(converge.apply).changed
    assert root.tell(converge.apply, via="daemon-json").changed
    assert root.picture() == applied
    assert root.tell(converge.remove).changed
    assert root.picture() == before


@pytest.mark.parametrize("rewrite", [False, True], ids=["appended", "rewritten"])
@pytest.mark.parametrize("content", [None, b'{"debug": true}'])
def test_f73_in_an_image(content: bytes | None, rewrite: bool, tmp_path: Path) -> None:
    """An initramfs image with a newer Docker by apk: the member goes in, the wish is followed, remove to the byte."""
    apk = INSTALLED["/lib/apk/db/installed"].encode()
    more = [images.directory(name) for name in (b"lib", b"lib/apk", b"lib/apk/db", b"etc/docker")]
    more.append(images.file(b"lib/apk/db/installed", apk))
    more += [images.file(b"etc/docker/daemon.json", content)] if content else []
    disk = Disk(tmp_path)
    disk.write(images.pack(newc.archive([*images.moby_records(), *more]), "gzip"))
    before = disk.picture()
    assert disk.tell(converge.apply, via="daemon-json", rewrite=rewrite).changed
    assert json.loads(disk.read(ETC.encode()))["proxies"]["http-proxy"] == "http://192.168.64.1:8123"
    assert b"export http_proxy" not in disk.read()
    assert not disk.tell(converge.apply, rewrite=rewrite).changed
    assert disk.tell(converge.status, rewrite=rewrite).ok
    assert disk.tell(converge.apply, no_proxy=("more.test",), rewrite=rewrite).changed
    assert "more.test" in json.loads(disk.read(ETC.encode()))["proxies"]["no-proxy"]
    assert disk.tell(converge.remove, rewrite=rewrite).changed
    assert disk.picture() == before


@pytest.mark.parametrize(
    ("packages", "message"),
    [
        ({}, "cannot be told"),
        (
            {"/var/lib/dpkg/status": DPKG.format("docker.io", "install ok installed", "20.10.24+dfsg1-1")},
            "Docker 20.10.24",
        ),
        ({"/var/lib/dpkg/status": DPKG.format("docker.io", "deinstall ok config-files", "26.1.5")}, "cannot be told"),
        ({"/var/lib/dpkg/status": "\0\xff" * 50}, "cannot be told"),
    ],
)
def test_files_of_an_older_or_unknown_docker_are_refused(
    packages: dict[str, str], message: str, tmp_path: Path
) -> None:
    """Exit 6, and not a byte was changed."""
    root = Root(tmp_path / "root", "systemd", {path: text.encode() for path, text in packages.items()})
    before = root.picture()
    with pytest.raises(Refused, match=message):
        root.tell(converge.apply, via="daemon-json")
    assert root.picture() == before


def _payload(vm: Vm) -> bytes:
    """What stands in the guest's own file, without our marker lines."""
    content = vm.facts.files[vm.guest.WISH_FILE].content or b""
    return b"\n".join(line for line in content.splitlines() if not line.startswith(b"# >>> vmproxy"))


def _flagged(case: Mapping[str, Any]) -> Vm:
    daemon = Daemon(pid=7, environment={}, proxies={}, words=case.get("words", ()))
    return Vm(texts=case.get("texts", {}), daemon=daemon)


def _overridden(vm: Vm, wish: Wish) -> tuple[Finding, ...]:
    return plan.overridden(vm.facts, vm.guest, plan.desire(vm.facts, vm.guest, wish, "nft"))
