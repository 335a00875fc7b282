"""A look sent on its way is waited for once; one loader takes script after script, and each gets its own answer."""

from __future__ import annotations

import pytest

from vmproxy.errors import LostContact
from vmproxy.machines import Look, Terms
from vmproxy.machines.loader import AS_ROOT, AS_USER
from vmproxy.machines.shell import Shell
from vmproxy.model import Plan


class Channel:
    """A loader whose scripts answer at once; as uid they say how many scripts came over all channels.

    ``scripts`` are the data behind each script. After ``dies_after`` scripts the stream ends.
    """

    def __init__(self, connection: Connection, dies_after: int) -> None:
        self.connection, self.dies_after = connection, dies_after
        self.scripts: list[bytes] = []
        self.texts: list[bytes] = []
        self.answers: list[bytes] = []
        self.closed = False

    def send(self, data: bytes, *, timeout_seconds: float) -> None:
        length, rest = data.split(b"\n", 1)
        behind = rest[int(length) :]
        self.texts.append(rest[: int(length)])
        if not behind:  # functions only: nothing is said
            return
        self.scripts.append(behind)
        self.connection.count += 1
        nonce = behind.split(b"\n", 1)[0]
        if len(self.scripts) <= self.dies_after:
            self.answers.append(b"\n@%s system %d boot\n\n@%s end\n" % (nonce, self.connection.count, nonce))

    def receive(self, *, timeout_seconds: float) -> bytes:
        return self.answers.pop(0) if self.answers else b""

    def end_input(self) -> None:
        """Nothing more comes."""

    def wait(self, *, timeout_seconds: float) -> int | None:
        return 0

    @property
    def stderr(self) -> bytes:
        return b"sudo: nothing to do with it"

    def close(self) -> None:
        self.closed = True


class Connection:
    """Keeps the commands that were started, and their channels."""

    def __init__(self, *, dies_after: int = 99) -> None:
        self.channels: list[Channel] = []
        self.commands: list[str] = []
        self.count = 0
        self._dies_after = dies_after

    def start(self, command: str) -> Channel:
        self.commands.append(command)
        self.channels.append(Channel(self, self._dies_after))
        return self.channels[-1]

    def close(self) -> None:
        """Nothing to close."""


ONE, TWO = Look(files=("/etc/one",)), Look(files=("/etc/two",))


def test_the_same_look_is_one_script() -> None:
    """``begin`` sends everything; ``observe`` reads its answer; the next ``observe`` is a script of its own."""
    connection = Connection()
    machine = Shell(connection)
    machine.begin(ONE)
    assert connection.count == 1 and b"want_files='/etc/one\n'" in connection.channels[0].texts[0]
    assert machine.observe(Look(files=("/etc/one",))).uid == 1
    assert machine.observe(ONE).uid == 2


def test_looks_share_one_channel() -> None:
    """One command is started, whatever the number of looks; each script has a nonce of its own."""
    connection = Connection()
    machine = Shell(connection)
    assert [machine.observe(look).uid for look in (ONE, TWO, ONE)] == [1, 2, 3]
    assert connection.commands == [AS_ROOT]
    assert len({script.split(b"\n")[0] for script in connection.channels[0].scripts}) == 3


def test_another_look_does_not_get_its_answer() -> None:
    """A different look does not wait for the one begun: that channel is let go, answer and all."""
    connection = Connection()
    machine = Shell(connection)
    machine.begin(ONE)
    assert machine.observe(TWO).uid == 2
    assert [channel.closed for channel in connection.channels] == [True, False]


def test_functions_travel_once() -> None:
    """A loader that has looked is not told the look's functions again; for a change to come they go along with it."""
    connection = Connection()
    machine = Shell(connection)
    machine.begin(ONE, change=True)
    machine.observe(ONE)
    machine.observe(TWO)
    with pytest.raises(LostContact):  # this loader knows looks only
        machine.commit(Plan(), Terms(look=ONE), judge=bool, verdict=bool, step=str)
    first, functions, second, story = connection.channels[0].texts
    for name, text in ((b"look_files() {", first), (b"put_back() {", functions), (b"ask() {", functions)):
        assert [one for one in (first, functions, second, story) if name in one] == [text]
    assert b"step stage" in story
    machine = Shell(Connection())
    machine.observe(ONE)
    assert machine.check(("/etc/one",)) == {}


def test_rights_are_not_shared() -> None:
    """A look that needs no root gets a loader without it, and the other way round."""
    connection = Connection()
    machine = Shell(connection)
    machine.observe(ONE)
    machine.observe(Look(root=False))
    machine.observe(ONE)
    assert connection.commands == [AS_ROOT, AS_USER, AS_ROOT]
    assert [channel.closed for channel in connection.channels] == [True, True, False]


def test_a_loader_that_is_gone_is_lost_contact_and_not_used_again() -> None:
    """Sudo is not blamed for a loader that has worked before; the next look starts a new one."""
    connection = Connection(dies_after=1)
    machine = Shell(connection)
    assert machine.observe(ONE).uid == 1
    with pytest.raises(LostContact):
        machine.observe(ONE)
    assert connection.channels[0].closed
    assert machine.observe(ONE).uid == 3
    assert len(connection.channels) == 2
