"""Providers: each recorded world under fixtures/providers gives the target, or the error, that it says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmproxy import providers
from vmproxy.errors import UsageError, VmproxyError
from vmproxy.providers import Answers, Queries

WORLDS = Path(__file__).resolve().parents[2] / "fixtures" / "providers"


class World:
    """A host that exists in a file: answers what it is asked, and remembers it."""

    def __init__(self, directory: Path) -> None:
        self.said: dict[str, Any] = json.loads((directory / "world.json").read_text())
        self._read = {path: (directory / name).read_bytes() for path, name in self.said.get("read", {}).items()}
        self.asked: list[Queries] = []

    def answer(self, wanted: Queries, before: Answers) -> Answers:
        """Everything wanted, on top of what was answered before."""
        self.asked.append(wanted)
        ports = {tuple(end) for end in self.said.get("ports", ())}
        return Answers(
            read={**before.read, **{path: self._read.get(path) for path in wanted.read}},
            exist={**before.exist, **{path: path in self.said.get("exist", ()) for path in wanted.exist}},
            listing={**before.listing, **dict.fromkeys(wanted.listing, ())},
            ports={**before.ports, **{end: end in ports for end in wanted.ports}},
        )

    def resolve(self) -> Any:
        """The target, as ``targets.ask`` would find it."""
        member = providers.load(self.said["provider"])
        answers = Answers()
        for _ in range(4):
            wanted = member.queries(self.said["name"], self.said["environ"], answers)
            answers = self.answer(wanted, answers)
        return member.parse(self.said["name"], self.said["environ"], answers)


@pytest.mark.parametrize("case", sorted(path.name for path in WORLDS.iterdir()))
def test_recorded_world(case: str) -> None:
    """The target has every field the world says; an empty one means that the provider has no such VM."""
    world = World(WORLDS / case)
    if "error" in world.said:
        kind, _, what = world.said["error"].partition(": ")
        with pytest.raises(VmproxyError) as caught:
            world.resolve()
        assert type(caught.value).__name__ == kind
        assert caught.value.what.startswith(what)
        assert str(caught.value).isprintable()
        return
    target = world.resolve()
    expected = {key: tuple(value) if isinstance(value, list) else value for key, value in world.said["target"].items()}
    if not expected:
        assert target is None
        return
    assert target.provider == world.said["provider"]
    assert {key: getattr(target, key) for key in expected} == expected


def test_named_profile_is_the_only_place() -> None:
    """With BOOT2DOCKER_PROFILE nothing of the user's usual VM is asked for."""
    world = World(WORLDS / "boot2docker-named-profile")
    world.resolve()
    asked = json.dumps([[sorted(q.read), sorted(q.exist), sorted(q.ports)] for q in world.asked])
    assert "id_boot2docker" not in asked
    assert "2022" not in asked
    assert "/home/me/.boot2docker" not in asked


def test_t06_no_secret_of_a_machine_is_shown() -> None:
    """Cloud keys in docker-machine's file and the usual password are in no repr."""
    assert "not-to-be-shown" not in repr(World(WORLDS / "machine-amazon").resolve())
    assert "tcuser" not in repr(World(WORLDS / "boot2docker-key").resolve())


@pytest.mark.parametrize("name", ["../x", "-x", "a/b", "a b", "", "x\0", "x" * 300])
def test_t05_machine_names_that_are_paths(name: str) -> None:
    """A name that leaves docker-machine's directory, or is an option, asks for nothing."""
    member = providers.load("docker-machine")
    assert member.queries(name, {"HOME": "/home/me"}, Answers()) == Queries()
    assert member.parse(name, {"HOME": "/home/me"}, Answers()) is None


@pytest.mark.parametrize(
    ("name", "user", "host", "port"),
    [
        ("//vm", "", "vm", 0),
        ("//docker@vm:2022", "docker", "vm", 2022),
        ("//docker@[::1]:2022/", "docker", "::1", 2022),
        ("//a%2Bb@vm", "a+b", "vm", 0),
        ("//[fe80::1%25eth0]", "", "fe80::1%eth0", 0),
        ("dev", "", "dev", 0),
        ("docker@dev", "docker", "dev", 0),
        ("my_host.example", "", "my_host.example", 0),
    ],
)
def test_ssh_addresses(name: str, user: str, host: str, port: int) -> None:
    """ssh://[user@]host[:port] and ssh:ALIAS; what is not said is left to ssh_config."""
    target = providers.load("ssh").parse(name, {}, Answers())
    assert target is not None
    assert (target.user, target.host, target.port, target.transport) == (user, host, port, "ssh")
    assert target.name == f"ssh:{name}"


@pytest.mark.parametrize(
    "name",
    [
        "//", "", "//-oProxyCommand=x", "-x", "//u@-x", "-l@x", "//vm:0", "//vm:99999", "//vm:x", "//vm/path", "//vm?q",
        "//vm#f",
        "//u:hunter2@vm", "u:hunter2@vm", "//u:hunter2@vm:x", "a b", "//a b", "a\nb", "a;b", "$(x)", "*", "a,b",
    ],
)  # fmt: skip
def test_t05_ssh_addresses_that_are_none(name: str) -> None:
    """Options, patterns, paths, odd ports and passwords are exit 2; a password is not repeated."""
    with pytest.raises(UsageError) as caught:
        providers.load("ssh").parse(name, {}, Answers())
    assert "hunter2" not in f"{caught.value}{caught.value.hint}"
    assert str(caught.value).isprintable()
    assert not str(caught.value).startswith(" ")


def test_rootfs() -> None:
    """A directory, with ~ as HOME says; nothing is an error."""
    member = providers.load("rootfs")
    for text, directory in (("/x", "/x"), ("~/x", "/home/me/x"), ("x", "x")):
        target = member.parse(text, {"HOME": "/home/me"}, Answers())
        assert target is not None
        assert (target.directory, target.transport) == (directory, "")
    for text in ("", "\0"):
        with pytest.raises(UsageError):
            member.parse(text, {}, Answers())


@given(data=st.binary(max_size=200), provider=st.sampled_from(["boot2docker", "docker-machine"]))
def test_any_file(data: bytes, provider: str) -> None:
    """No content of a tool's file is a crash."""
    member = providers.load(provider)
    environ = {"HOME": "/home/me"}
    wanted = member.queries("boot2docker", environ, Answers())
    answers = Answers(read=dict.fromkeys(wanted.read, data))
    try:
        member.queries("boot2docker", environ, answers)
        member.parse("boot2docker", environ, answers)
        outcome = 0
    except VmproxyError as error:
        outcome = error.exit
    assert outcome in (0, 2, 4)


def test_unknown_provider() -> None:
    """Exit 2 with the list."""
    with pytest.raises(UsageError) as caught:
        providers.load("nosuch")
    assert "docker-machine" in caught.value.hint
