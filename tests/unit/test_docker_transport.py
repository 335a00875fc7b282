"""``docker:`` without an engine: what its client's answers mean, and a conversation that outlives its containers."""

from __future__ import annotations

import hashlib
import json
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmproxy.errors import LostContact, NotPermitted, Refused, Unreachable, UsageError, VmproxyError
from vmproxy.model import Target
from vmproxy.providers import Answers
from vmproxy.providers import docker as provider
from vmproxy.transports import SshOptions, docker
from vmproxy.transports._engine import explain
from vmproxy.transports._piped import Piped

TARGET = Target(name="docker:", provider="docker", transport="docker")
LINUX = {"OSType": "linux", "SecurityOptions": ["name=seccomp,profile=default"], "CgroupVersion": "2"}


class Client:
    """A docker client that gives one answer to each of its commands, and notes what it was asked."""

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.directory = directory
        monkeypatch.setenv("PATH", f"{directory}:/usr/bin:/bin")
        for name in ("DOCKER_HOST", "DOCKER_CONTEXT"):
            monkeypatch.delenv(name, raising=False)
        script = f"""#!/bin/sh
echo "$*" >>{directory}/asked
[ "$1" != --context ] || shift 2
if [ -e "{directory}/$1.out" ]; then cat "{directory}/$1.out"; fi
if [ -e "{directory}/$1.err" ]; then cat "{directory}/$1.err" >&2; exit 1; fi
"""
        (directory / "docker").write_text(script)
        (directory / "docker").chmod(0o755)

    def says(self, command: str, *, out: str = "", err: str = "") -> None:
        """What a command prints; with ``err`` it fails."""
        (self.directory / f"{command}.out").write_text(out)
        if err:
            (self.directory / f"{command}.err").write_text(err)

    @property
    def asked(self) -> list[str]:
        """The command lines so far."""
        return (self.directory / "asked").read_text().splitlines()


@pytest.fixture
def client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Client:
    """A client in PATH whose engine is a Linux one."""
    made = Client(tmp_path, monkeypatch)
    made.says("info", out=json.dumps(LINUX))
    made.says("import", out="sha256:" + "a" * 64 + "\n")
    return made


def test_without_a_client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exit 2, and what to do."""
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UsageError, match="no docker client") as caught:
        docker.connect(TARGET, options=SshOptions())
    assert caught.value.hint


@pytest.mark.parametrize(
    ("err", "kind"),
    [
        ("Cannot connect to the Docker daemon at tcp://10.0.0.1:2375. Is the docker daemon running?", Unreachable),
        ("error during connect: Get https://x: x509: certificate signed by unknown authority", Unreachable),
        ("permission denied while trying to connect to the Docker daemon socket", NotPermitted),
        ("Error response from daemon: authorization denied by plugin x", NotPermitted),
        ('context "lab": context not found: open /home/me/.docker/x: no such file or directory', UsageError),
        ('Current context "lab" is not found on the file system, please check your config', UsageError),
        ("error during connect: context deadline exceeded", Unreachable),
    ],
)
def test_an_engine_that_cannot_be_asked(client: Client, err: str, kind: type[VmproxyError]) -> None:
    """The client's complaint becomes exit 4, 5 or 2, with a hint; nothing is made."""
    client.says("info", err=err)
    with pytest.raises(VmproxyError) as caught:
        docker.connect(TARGET, options=SshOptions())
    assert type(caught.value) is kind
    assert caught.value.hint
    assert len(client.asked) == 1


def test_an_error_that_old_clients_put_into_their_answer(client: Client) -> None:
    """``info`` that succeeds with ServerErrors (Docker 20.10) is exit 4."""
    client.says("info", out=json.dumps({"ServerErrors": ["Cannot connect to the Docker daemon\x1b[2J"]}))
    with pytest.raises(Unreachable) as caught:
        docker.connect(TARGET, options=SshOptions())
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"SecurityOptions": ["name=rootless"]}, "rootless"),
        ({"OSType": "windows"}, "windows"),
        ({"OSType": None}, "not an engine's"),
        ({"OSType": None, "host": {"os": "linux"}, "version": {"APIVersion": "4.3.1"}}, "Podman"),
    ],
    ids=["rootless", "windows", "nothing", "podman"],
)
def test_engines_that_cannot_be_entered(client: Client, change: dict[str, object], word: str) -> None:
    """A rootless engine, one of other containers, and Podman's client, are exit 6; nothing is made."""
    client.says("info", out=json.dumps({**LINUX, **change}))
    with pytest.raises(Refused, match=word):
        docker.connect(TARGET, options=SshOptions())
    assert len(client.asked) == 1


def test_what_is_made_is_removed(client: Client) -> None:
    """Closing the connection removes the image by its own name, and only old ones with our label."""
    docker.connect(TARGET, options=SshOptions()).close()
    made = client.asked[1].split()[-1]
    assert made.startswith("vmproxy-way-in:")
    assert client.asked[2:] == [
        f"image rm {made}",
        "image prune --all --force --filter=label=vmproxy=way-in --filter=until=10m",
    ]


def test_an_import_that_fails_leaves_nothing(client: Client) -> None:
    """What the engine said is told, and what it may have made is removed."""
    client.says("import", err="Error response from daemon: no space left on device")
    with pytest.raises(Refused, match="no space left"):
        docker.connect(TARGET, options=SshOptions())
    assert client.asked[2].startswith("image rm vmproxy-way-in:")


def test_an_engine_that_goes_while_the_image_is_made(client: Client) -> None:
    """One try to remove what may be there, and no word of an image that was perhaps never made."""
    client.says("import", err="Cannot connect to the Docker daemon at unix:///var/run/docker.sock.")
    client.says("image", err="Error: conflict: the image is used by a container that is on its way out")
    said: list[str] = []
    with pytest.raises(Unreachable):
        docker.connect(TARGET, options=SshOptions(notify=said.append))
    assert [line.rpartition(":")[0] for line in client.asked[2:]] == ["image rm vmproxy-way-in"]
    assert said == []


def test_a_helper_image(client: Client) -> None:
    """It is run by its id and never pulled, made or removed; one that is not there, or no name, is exit 2."""
    client.says("image", out="sha256:" + "b" * 64 + "\n")
    docker.connect(TARGET, options=SshOptions(helper_image="tools:1")).close()
    assert client.asked[1:] == ["image inspect --format {{.Id}} tools:1"]
    for name in ("--privileged", "a b", "a\x1b"):
        with pytest.raises(UsageError):
            docker.connect(TARGET, options=SshOptions(helper_image=name))
    client.says("image", err="Error: No such image: tools:1")
    with pytest.raises(UsageError, match="pulls none"):
        docker.connect(TARGET, options=SshOptions(helper_image="tools:1"))


def test_a_way_in_that_does_not_open(client: Client) -> None:
    """``run`` that fails says why, and the image goes."""
    client.says("run", err='exec: "nsenter": executable file not found in $PATH: unknown')
    connection = docker.connect(TARGET, options=SshOptions())
    with pytest.raises(Refused, match="the VM has no nsenter") as caught:
        connection.start("true")
    assert "--helper-image" in caught.value.hint
    connection.close()
    words = " ".join(client.asked)
    assert "--log-driver=none" in words
    assert "--privileged" in words
    assert "--cgroupns=host" in words
    assert client.asked[-2].startswith("image rm ")


def test_complaints_of_the_way_in() -> None:
    """A kernel or a plugin that says no is exit 5."""
    for said in (b"nsenter: reassociate to namespace 'ns/mnt' failed: Operation not permitted", b"privileged denied"):
        assert isinstance(explain(said), NotPermitted)


def test_contexts_of_the_client() -> None:
    """A context is there where its file is; without a name it is the client's business; odd names are exit 2."""
    digest = hashlib.sha256(b"lab").hexdigest()
    path = f"/home/me/.docker/contexts/meta/{digest}/meta.json"
    environ = {"HOME": "/home/me"}
    assert provider.queries("lab", environ, Answers()).exist == {path}
    assert provider.parse("lab", environ, Answers(exist={path: True})).context == "lab"
    with pytest.raises(UsageError, match="knows no context lab"):
        provider.parse("lab", environ, Answers(exist={path: False}))
    elsewhere = provider.queries("lab", {"DOCKER_CONFIG": r"C:\d"}, Answers()).exist
    assert elsewhere == {rf"C:\d\contexts\meta\{digest}\meta.json"}
    for name in ("", "default"):
        assert not provider.queries(name, {}, Answers()).exist
        assert provider.parse(name, {}, Answers()).context == name
    for name in ("-x", "a/../b", "a b", "é", "a\n"):
        with pytest.raises(UsageError):
            provider.parse(name, environ, Answers())


# ---- the conversation -----------------------------------------------------------------------------------------------


class World:
    """A VM with a keeper: a command that reads ``wanted`` bytes and then says ``answer``; see enter.sh for the words.

    ``ends`` are how many bytes each container in turn passes on, in and out, before the engine ends it.
    """

    def __init__(self, wanted: int, answer: bytes, ends: list[tuple[int, int]], piece: int) -> None:
        self.wanted, self.answer, self.ends, self.piece = wanted, answer, list(ends), piece
        self.heard = bytearray()
        self.ways: list[Way] = []

    def way(self) -> Way:
        """The next container."""
        self.ways.append(Way(self, *(self.ends.pop(0) if self.ends else (1 << 30, 1 << 30))))
        return self.ways[-1]


class Way:
    """One container: stands for :class:`vmproxy.transports._piped.Piped`."""

    stderr = b""

    def __init__(self, world: World, takes: int, gives: int) -> None:
        self.world, self.takes, self.gives = world, takes, gives
        self.lines = b""
        self.out = b""
        self.open = True
        self.sent = 0

    def send(self, data: bytes, *, timeout_seconds: float) -> None:
        """The first line is the relay's, the rest the command's."""
        if not self.lines.endswith(b"\n"):
            first, _newline, data = data.partition(b"\n")
            self.lines = first + b"\n"
            mode, _nonce, offset = first.split()
            assert mode == (b"open" if self is self.world.ways[0] else b"again")
            self.sent = int(offset)
            self.out = b"ready %d\n" % len(self.world.heard)
        some = data[: self.takes]
        self.takes -= len(some)
        self.world.heard += some
        if len(some) < len(data):
            raise LostContact("the command ended before it had read its input")

    def receive(self, *, timeout_seconds: float) -> bytes:
        """What the relay says, in pieces."""
        world = self.world
        if not self.out and len(world.heard) >= world.wanted:
            rest = world.answer[self.sent :]
            self.sent += len(rest)
            self.out = b"out %d\n%b" % (len(rest), rest) if rest else b"err 4\noopsend 3\n"
        some = self.out[: min(self.gives, world.piece)]
        self.gives -= len(some)
        self.out = self.out[len(some) :]
        return some

    def end_input(self) -> None:
        """The client's end of input."""
        self.open = False

    def wait(self, *, timeout_seconds: float) -> int | None:
        """Ended by the engine."""
        return None

    def close(self, *, patience_seconds: float = 0.0) -> None:
        """Nothing to do."""


def talk(world: World, request: bytes) -> docker.DockerChannel:
    """A whole conversation with that VM, to its end."""
    channel = docker.DockerChannel(world.way, own_image=True, limit_bytes=1 << 20)  # type: ignore[arg-type,return-value]
    channel.begin()
    channel.send(request, timeout_seconds=60)
    said = b""
    while piece := channel.receive(timeout_seconds=60):
        said += piece
    assert bytes(world.heard) == request
    assert said == world.answer
    assert channel.wait(timeout_seconds=60) == 3
    assert channel.stderr == b"oops"
    return channel


@given(
    request_=st.binary(min_size=10, max_size=40),
    answer=st.binary(min_size=10, max_size=60),
    ends=st.lists(st.tuples(st.integers(0, 40), st.integers(8, 60)), min_size=1, max_size=5),
    piece=st.integers(1, 30),
)
def test_p12_no_end_of_a_container_loses_or_doubles_a_byte(
    request_: bytes, answer: bytes, ends: list[tuple[int, int]], piece: int
) -> None:
    """Wherever the engine ends one container after the other, input and output arrive whole, once, in order."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(docker, "_PAUSE_SECONDS", 0.0)
        talk(World(len(request_), answer, ends, piece), request_)


def test_p12_an_engine_that_stays_away() -> None:
    """Where no further container comes to be, the time limit ends the wait."""
    world = World(4, b"never", [(100, 8), *[(0, 0)] * 1000], 8)
    channel = docker.DockerChannel(world.way, own_image=True, limit_bytes=1 << 20)  # type: ignore[arg-type,return-value]
    channel.begin()
    with pytest.raises(LostContact, match="does not take another"):
        channel.receive(timeout_seconds=0.3)


def talking(world: World) -> docker.DockerChannel:
    """A conversation that has begun."""
    channel = docker.DockerChannel(world.way, own_image=True, limit_bytes=1 << 20)  # type: ignore[arg-type,return-value]
    channel.begin()
    return channel


def test_f28_a_channel_that_was_closed_starts_no_container(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its container ends because another thread has closed it: contact is lost, and no further one begins."""
    world = World(4, b"never", [(100, 8)], 8)
    channel = talking(world)
    receive = world.ways[0].receive

    def closed_meanwhile(*, timeout_seconds: float) -> bytes:
        channel.close()
        return receive(timeout_seconds=timeout_seconds)

    monkeypatch.setattr(world.ways[0], "receive", closed_meanwhile)
    for again in (lambda: channel.receive(timeout_seconds=60), lambda: channel.wait(timeout_seconds=60)):
        with pytest.raises(LostContact, match="closed"):
            again()
    with pytest.raises(LostContact, match="closed"):
        channel.send(b"x", timeout_seconds=60)
    assert len(world.ways) == 1


def test_f28_a_container_that_begins_while_the_channel_is_closed_is_ended() -> None:
    """The other thread could not see it: so it is ended here, without a word to it."""
    world = World(4, b"never", [(100, 8)], 8)
    ended = []

    def way() -> Way:
        made = world.way()
        if len(world.ways) > 1:
            channel.close()
            made.close = lambda *, patience_seconds=0.0: ended.append(made)  # type: ignore[method-assign]
        return made

    channel = docker.DockerChannel(way, own_image=True, limit_bytes=1 << 20)  # type: ignore[arg-type,return-value]
    channel.begin()
    with pytest.raises(LostContact, match="closed"):
        channel.receive(timeout_seconds=60)
    assert ended == world.ways[1:]
    assert [made.lines for made in ended] == [b""]


def test_f28_a_connection_that_was_closed_starts_no_container(client: Client) -> None:
    """A thread that is about to start a command hears that contact is lost; nothing is run."""
    connection = docker.connect(TARGET, options=SshOptions())
    connection.close()
    asked = client.asked
    with pytest.raises(LostContact):
        connection.start("true")
    assert client.asked == asked


def test_the_status_is_heard_behind_output_that_nobody_reads() -> None:
    """``wait`` takes what the command still says, and it can be read after it."""
    world = World(0, b"said before the end", [], 4)
    channel = talking(world)
    assert channel.wait(timeout_seconds=60) == 3
    assert channel.receive(timeout_seconds=60) == world.answer
    assert channel.receive(timeout_seconds=60) == b""


@pytest.mark.parametrize("garbage", [b"\x1b[31m\n", b"out -1\n", b"out 99999999999999\n", b"x" * 5000])
def test_p12_a_vm_that_does_not_speak_as_agreed(garbage: bytes) -> None:
    """Whatever comes in place of a header is one printable line."""
    world = World(0, b"", [], 1 << 20)
    channel = docker.DockerChannel(world.way, own_image=True, limit_bytes=1 << 20)  # type: ignore[arg-type,return-value]
    channel.begin()
    world.ways[0].out = garbage
    with pytest.raises(LostContact, match="as agreed") as caught:
        channel.receive(timeout_seconds=60)
    assert str(caught.value).isprintable()


def test_p12_more_than_is_believable() -> None:
    """The output limit holds over all containers together."""
    world = World(0, b"a" * 3000, [], 1 << 20)
    channel = docker.DockerChannel(world.way, own_image=True, limit_bytes=2000)  # type: ignore[arg-type,return-value]
    channel.begin()
    with pytest.raises(LostContact, match="more than is believable"):
        channel.receive(timeout_seconds=60)


@pytest.mark.parametrize(("word", "kind"), [(b"bound\n", Refused), (b"failed\n", LostContact), (b"hm\n", LostContact)])
def test_first_words_that_end_it(word: bytes, kind: type[VmproxyError]) -> None:
    """Control groups that cannot be left are exit 6; a VM that cannot begin says that nothing was changed."""
    world = World(0, b"", [], 1 << 20)

    def way() -> Way:
        made = world.way()
        made.send = lambda data, *, timeout_seconds: None  # type: ignore[method-assign]
        made.out = word
        return made

    channel = docker.DockerChannel(way, own_image=True, limit_bytes=1)  # type: ignore[arg-type,return-value]
    with pytest.raises(kind):
        channel.begin()


# ---- the parts ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("words", [("dash",), ("busybox", "sh"), ("bash", "--posix")], ids=" ".join)
@pytest.mark.parametrize("name", ["enter.sh", "keep.sh"])
def test_the_scripts_parse(name: str, words: tuple[str, ...]) -> None:
    """`sh -n` in dash, busybox ash, bash; without comments and indentation."""
    text = docker._text(name)
    done = subprocess.run([*words, "-n"], input=text.encode(), capture_output=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    assert not [line for line in text.splitlines() if line.startswith(("# ", " "))]


def test_a_program_with_pipes() -> None:
    """Bytes both ways, stderr apart, the status; an end that is not heard of is made."""
    with_words = Piped(
        ("sh", "-c", "read x; echo got $x; cat; echo oops >&2; exit 3"), environ={"PATH": "/usr/bin:/bin"}
    )
    with_words.send(b"one\n", timeout_seconds=60)
    assert with_words.receive(timeout_seconds=60) == b"got one\n"
    with_words.send(b"\x00\xff\r\n", timeout_seconds=60)
    assert with_words.receive(timeout_seconds=60) == b"\x00\xff\r\n"
    with pytest.raises(LostContact, match="no answer"):
        with_words.receive(timeout_seconds=0.05)
    with_words.end_input()
    assert with_words.receive(timeout_seconds=60) == b""
    assert with_words.wait(timeout_seconds=60) == 3
    assert with_words.stderr == b"oops\n"
    with pytest.raises(LostContact, match="closed"):
        with_words.send(b"x", timeout_seconds=60)
    with_words.close()
    deaf = Piped(("sh", "-c", "exec sleep 1000"), environ={"PATH": "/usr/bin:/bin"})
    with pytest.raises(LostContact, match="no end"):
        deaf.wait(timeout_seconds=0.05)
    deaf.close()
    assert deaf.wait(timeout_seconds=60) is None
