"""A look that was sent on its way is waited for once, and is not mistaken for another one."""

from __future__ import annotations

from vmproxy.machines import Look
from vmproxy.machines.shell import Shell


class Channel:
    """A command whose script answers at once: its system line carries the number of the channel as its uid."""

    def __init__(self, number: int) -> None:
        self.number, self.sent, self.said, self.closed = number, b"", False, False

    def send(self, data: bytes, *, timeout_seconds: float) -> None:
        self.sent += data

    def receive(self, *, timeout_seconds: float) -> bytes:
        if self.said:
            return b""
        self.said = True
        length, rest = self.sent.split(b"\n", 1)
        nonce = rest[int(length) :].split(b"\n", 1)[0]
        return b"\n@%s system %d boot\n\n@%s end\n" % (nonce, self.number, nonce)

    def end_input(self) -> None:
        assert self.sent.endswith(b"\n.\n")

    def wait(self, *, timeout_seconds: float) -> int | None:
        return 0

    @property
    def stderr(self) -> bytes:
        return b""

    def close(self) -> None:
        self.closed = True


class Connection:
    """Counts the commands that were started."""

    def __init__(self) -> None:
        self.channels: list[Channel] = []

    def start(self, command: str) -> Channel:
        self.channels.append(Channel(len(self.channels) + 1))
        return self.channels[-1]

    def close(self) -> None:
        """Nothing to close."""


def test_the_same_look_is_one_command() -> None:
    """``begin`` starts it and sends everything; ``observe`` reads it; the next ``observe`` is a new command."""
    connection = Connection()
    machine = Shell(connection)
    look = Look(files=("/etc/one",))
    machine.begin(look)
    assert len(connection.channels) == 1 and b"file /etc/one\n" in connection.channels[0].sent
    assert machine.observe(Look(files=("/etc/one",))).uid == 1
    assert machine.observe(look).uid == 2
    assert len(connection.channels) == 2


def test_another_look_does_not_get_its_answer() -> None:
    """A different look is a command of its own, and the one begun is let go."""
    connection = Connection()
    machine = Shell(connection)
    machine.begin(Look(files=("/etc/one",)))
    assert machine.observe(Look(files=("/etc/two",))).uid == 2
    assert machine.observe(Look(files=("/etc/one",))).uid == 3
    assert all(channel.closed for channel in connection.channels)
