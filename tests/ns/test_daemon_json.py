"""``--via daemon-json`` on Docker 26 of Debian 13: what Docker works with, what containers reach, and back to the byte.

One walk through the VM's life writes down what it saw; each test looks at one part of it. The VM is Debian's with
sysvinit, so that the file is where Debian has it.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.lab import default_cache
from tests.lab.hostside import Greeter
from tests.lab.nsvm import NamespaceVM
from tests.lab.proxy import KNOWN
from tests.lab.tree import build_tree
from tests.ns import story
from tests.ns.story import Held, Ran, Vmproxy
from tests.ns.test_flows import CLOSED, FLOWS, PORT, PROXY, UPLINK, Stage
from tests.unit import guestworlds
from vmproxy.guests import sysv

CONFIG = sysv.DAEMON_CONFIG
THEIRS = b'{\r\n  "debug": false,\r\n  "log-opts": {"max-size": "10m"}\r\n}'
FIRST, SECOND = "http://me:hunter22@127.0.0.1:8124", "http://me:hunter33@127.0.0.1:8124"
INFO = ("info", "--format", "{{.HTTPProxy}} {{.HTTPSProxy}} {{.NoProxy}}")
_PULL = f"CONNECT {KNOWN}:443 HTTP/1.1"
_BASIC = base64.b64encode(b"me:hunter22").decode()
_BOOT = """#!/bin/sh
exec >>/var/log/boot.log 2>&1
. /run/lab/options
mkdir -p /var/lib/boot2docker/ssh
/usr/local/etc/init.d/openssh start
/etc/init.d/docker start
"""


@dataclass(kw_only=True)
class Walk:
    """What was seen on the way, by the name of the run before it."""

    runs: dict[str, Ran] = field(default_factory=dict)
    info: dict[str, str] = field(default_factory=dict)
    config: dict[str, Held | None] = field(default_factory=dict)
    defaults: dict[str, Held | None] = field(default_factory=dict)
    pid: dict[str, int] = field(default_factory=dict)
    flows: dict[str, str] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)
    pulled: dict[str, set[tuple[str, bool]]] = field(default_factory=dict)
    rules: dict[str, list[str]] = field(default_factory=dict)


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NamespaceVM]:
    """Debian 13 with sysvinit and a real Docker, started by Debian's own script."""
    overlay = tmp_path_factory.mktemp("overlay")
    overlay.chmod(0o755)
    release = guestworlds.world("debian-12-sysvinit").os_release
    # A container that the tests run in may not raise its limits.
    script = (build_tree(default_cache(), "trixie") / "etc/init.d/docker").read_text(encoding="utf-8")
    for path, text in {
        "etc/os-release": "".join(f'{name}="{value}"\n' for name, value in release.items()),
        "etc/inittab": "",
        "etc/fstab": "# cgroups are mounted\ncgroup /sys/fs/cgroup\n",
        "etc/default/docker": "# Docker's options\nDOCKER_OPTS=\n",
        "etc/init.d/docker": re.sub(r"ulimit -\w \w+", ":", script),
        "opt/bootsync.sh": _BOOT,
    }.items():
        (overlay / path).parent.mkdir(parents=True, exist_ok=True)
        (overlay / path).write_text(text, encoding="utf-8")
        (overlay / path).chmod(0o755 if path.startswith(("etc/init.d/", "opt/")) else 0o644)
    with NamespaceVM(release="trixie", more=("dpkg",), overlay=overlay) as vm:
        vm.import_image()
        yield vm


@pytest.fixture(scope="module")
def walk(machine: NamespaceVM, tmp_path_factory: pytest.TempPathFactory) -> Walk:
    """The whole way, once; nothing is asserted here."""
    seen, vmproxy, stage = Walk(), Vmproxy(machine, tmp_path_factory.mktemp("home")), Stage(machine)
    flags = machine.path("/etc/default/docker")

    def stop(name: str, ran: Ran | None = None) -> None:
        seen.config[name], seen.defaults[name] = story.held(machine, CONFIG), story.held(machine, sysv.DEFAULTS)
        seen.info[name], seen.pid[name] = machine.docker(*INFO), story.daemon_pid(machine)
        if ran is not None:
            seen.runs[name] = ran

    def pull(name: str, proxy: story.LabProxy) -> None:
        proxy.forget()
        machine.docker("pull", f"{KNOWN}/nothing", check=False)
        asked = [request for request in proxy.requests if KNOWN in request.line]
        seen.pulled[name] = {(each.line, any(_BASIC in header for header in each.headers)) for each in asked}

    with ExitStack() as stack:
        proxy = stack.enter_context(story.host_proxy(machine))
        closed = stack.enter_context(story.host_proxy(machine, port=8124, mode="auth", credentials="me:hunter22"))
        # Somebody listens at the uplink's address all the time: what containers reach there stays as it was.
        stack.enter_context(Greeter(machine.surroundings.vm, UPLINK, PORT, "uplink"))
        machine.path(CONFIG).write_bytes(THEIRS)
        stage.build()
        seen.rules["before"] = story.dump(machine)
        machine.docker("start", "docker0")
        stop("before")
        stop("a container runs", vmproxy.apply("--via", "daemon-json", "--no-verify"))
        stop("pending", vmproxy.status())
        stage.stop()
        stop("applied", vmproxy.apply())
        stop("again", vmproxy.apply())
        seen.environment = story.daemon_environment(machine)
        seen.flows = stage.record()
        stage.stop()
        pull("plain", proxy)
        # Another program writes the file anew, and leaves ours out.
        kept = machine.path(CONFIG).read_bytes()
        machine.path(CONFIG).write_bytes(b"{}")
        stop("lost", vmproxy.status())
        machine.path(CONFIG).write_bytes(kept)
        stop("removed", vmproxy.remove("--restart", "never"))
        stop("still", vmproxy.remove())
        seen.rules["removed"] = story.dump(machine)
        stop("secret", vmproxy.apply("--no-verify", "--via", "daemon-json", environ={"VMPROXY_PROXY": FIRST}))
        pull("secret", closed)
        stop("secret env", vmproxy.env())
        new = {"VMPROXY_PROXY": SECOND}
        stop("other secret", vmproxy.apply("--no-verify", "--no-check", "--restart", "never", environ=new))
        stop("other secret pending", vmproxy.status())
        stop("other way", vmproxy.apply("--no-verify", "--via", "drop-in", "--proxy", "http://127.0.0.1:8123"))
        # Docker does not start with the same thing as a flag and in the file.
        flags.write_text(flags.read_text() + 'DOCKER_OPTS="--http-proxy=http://10.0.2.2:8123"\n')
        stop("flag", vmproxy.apply("--no-verify", "--via", "daemon-json"))
        stop("flag forced", vmproxy.apply("--no-verify", "--via", "daemon-json", "--force"))
        flags.write_text(flags.read_text().rpartition("DOCKER_OPTS")[0])
        stop("gone", vmproxy.remove("--restart", "always"))
    return seen


RUNS = {
    "a container runs": (3, "pending"),
    "pending": (1, "restart pending"),
    "applied": (0, "done"),
    "again": (0, "in sync, nothing to do"),
    "lost": (1, "proxies is missing"),
    "removed": (3, "pending"),
    "still": (0, "no file names any more"),
    "secret": (0, "done"),
    "secret env": (6, CONFIG),
    "other secret": (3, "pending"),
    "other secret pending": (1, "perhaps other credentials (restart pending)"),
    "other way": (0, "done"),
    "flag": (6, "has --http-proxy among Docker's flags"),
    "flag forced": (7, "Docker does not come back"),
    "gone": (0, "removed"),
}


@pytest.mark.parametrize("name", RUNS)
def test_every_run_of_the_way_ends_as_it_should(walk: Walk, name: str) -> None:
    """The exit code and the words of each run; no secret in any of them."""
    code, words = RUNS[name]
    assert walk.runs[name].code == code, walk.runs[name]
    assert words in walk.runs[name].all
    assert "hunter" not in walk.runs[name].all


def test_docker_works_with_the_file_and_not_with_its_environment(walk: Walk) -> None:
    """docker info names the proxy once Docker was restarted, dockerd's environment has none; a pull goes through it."""
    url = "http://10.0.2.2:8123"
    assert walk.info["before"].strip() == walk.info["pending"].strip() == walk.info["gone"].strip() == ""
    assert walk.info["applied"] == f"{url} {url} localhost,127.0.0.1,::1"
    assert [name for name in walk.environment if name.lower().endswith("_proxy")] == []
    assert (_PULL, False) in walk.pulled["plain"]


def test_one_member_goes_in_and_nothing_else_changes(walk: Walk) -> None:
    """In the file's own layout, before the first member; every other byte and the mode are as they were."""
    before, after = walk.config["before"], walk.config["applied"]
    assert before is not None
    assert after is not None
    member = json.dumps(json.loads(after.content)["proxies"], indent=2).replace("/", "\\/").replace("\n", "\r\n  ")
    assert after.content == THEIRS.replace(b"{", b'{\r\n  "proxies": ' + member.encode() + b",", 1)
    assert (after.mode, after.owner) == (before.mode, before.owner)


def test_a_second_apply_leaves_docker_alone(walk: Walk) -> None:
    """The same process, and not a byte written."""
    assert walk.pid["again"] == walk.pid["applied"] != walk.pid["pending"]
    assert (before := walk.config["applied"]) is not None
    assert (after := walk.config["again"]) is not None
    assert after.mtime == before.mtime


@pytest.mark.parametrize("row", FLOWS)
def test_flow(walk: Walk, row: str) -> None:
    """The table of DESIGN section 4 with Docker 26: wanted ones lead to the proxy, others go as without vmproxy."""
    wanted, found = FLOWS[row].wanted, walk.flows[row]
    assert found == wanted if wanted in (PROXY, CLOSED) else found.startswith(wanted), (found, wanted)


def test_f78_a_secret_is_for_root_alone_and_works(walk: Walk) -> None:
    """The file is 0600 as long as it has credentials, Docker uses them (and masks them), and the mode is given back."""
    held = walk.config["secret"]
    assert held is not None
    assert held.mode == "0600"
    assert walk.info["secret"].startswith("http://xxxxx:xxxxx@10.0.2.2:8124 ")
    assert (_PULL, True) in walk.pulled["secret"]
    assert (defaults := walk.defaults["secret"]) is not None
    assert b"hunter" not in defaults.content
    assert walk.config["other way"] == walk.config["before"]


def test_the_other_way_takes_this_one_back(walk: Walk) -> None:
    """--via drop-in: the variables stand in Docker's own file, and daemon.json is as it was before the first apply."""
    assert (defaults := walk.defaults["other way"]) is not None
    assert b"export http_proxy='http://10.0.2.2:8123'" in defaults.content
    assert walk.config["other way"] == walk.config["before"]
    assert walk.info["other way"].startswith("http://10.0.2.2:8123 ")


@pytest.mark.parametrize("name", ["flag", "flag forced"])
def test_a_docker_that_would_not_start_is_put_back(walk: Walk, name: str) -> None:
    """Refused before anything is changed; with --force Docker's failure puts both files back, and Docker runs."""
    assert walk.config[name] == walk.config["other way"]
    assert (was := walk.defaults["other way"]) is not None
    assert (now := walk.defaults[name]) is not None
    assert now.content.startswith(was.content)
    assert walk.info[name].startswith("http://10.0.2.2:8123 ")


def test_remove_gives_back_every_byte(walk: Walk) -> None:
    """Both files byte for byte with mode and owner, the rules as before. A Docker that still has the proxy is said."""
    for name in ("removed", "gone"):
        assert (walk.config[name], walk.defaults[name]) == (walk.config["before"], walk.defaults["before"]), name
    assert sorted(walk.rules["removed"]) == sorted(walk.rules["before"])
    assert walk.info["still"].startswith("http://10.0.2.2:8123 ")


def test_an_older_docker_is_refused(tmp_path: Path) -> None:
    """Docker 20.10 does not know the member and would not start with it: exit 6 with what to do, nothing changed."""
    with NamespaceVM() as old, story.host_proxy(old):
        before = story.files(old), story.dump(old)
        ran = Vmproxy(old, tmp_path).apply("--via", "daemon-json")
        assert ran.code == 6, ran
        assert "Docker 20.10" in ran.err
        assert "hint: --via drop-in, or upgrade Docker" in ran.err
        assert (story.files(old), story.dump(old)) == before
