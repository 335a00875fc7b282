"""What a transport promises on every SSH server and by every way; run against the fake one, OpenSSH and dropbear."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.fake.conftest import Keys, read_all
from tests.fake.realservers import open_directory
from vmproxy.errors import LostContact, NotPermitted, Untrusted
from vmproxy.transports._channel import SshConnection

Connect = Callable[..., Any]


class ChannelContract:
    """Derive, give a fixture ``place`` (port, user), and every promise below is tested there; ``by`` is the way."""

    quick_commands = 60

    @pytest.fixture
    def vm(self, place: tuple[int, str], keys: Keys) -> dict[str, Any]:
        """The target's fields for ``log_in``."""
        return {"user": place[1], "port": place[0]}

    def test_dialogue(self, log_in: Connect, vm: dict[str, Any]) -> None:
        """Bytes both ways, stderr apart, the status; without a pty nothing is translated."""
        channel = log_in(vm["port"], target=vm).start("read x; echo got $x; cat; echo oops >&2; exit 3")
        channel.send(b"one\n", timeout_seconds=60)
        assert channel.receive(timeout_seconds=60) == b"got one\n"
        channel.send(b"\x00\x03\x04\xff\r\n", timeout_seconds=60)
        channel.end_input()
        assert read_all(channel) == b"\x00\x03\x04\xff\r\n"
        assert channel.wait(timeout_seconds=60) == 3
        assert channel.stderr == b"oops\n"

    def test_first_command(self, log_in: Connect, vm: dict[str, Any]) -> None:
        """The command that is named at the log-in is as any other, and so is another one in its place."""
        command = "read x; echo got $x >&2; cat; exit 3"
        channel = log_in(vm["port"], target=vm, first=command).start(command)
        channel.send(b"one\nrest", timeout_seconds=60)
        channel.end_input()
        assert read_all(channel) == b"rest"
        assert channel.wait(timeout_seconds=60) == 3
        assert channel.stderr == b"got one\n"
        assert read_all(log_in(vm["port"], target=vm, first="exec cat").start("echo other")) == b"other\n"

    def test_no_terminal_and_no_agent(self, log_in: Connect, vm: dict[str, Any]) -> None:
        """The command sees no terminal, no agent and no display."""
        command = 'tty -s && echo tty; echo "$SSH_AUTH_SOCK$DISPLAY$SSH_TTY"'
        assert read_all(log_in(vm["port"], target=vm).start(command)) == b"\n"

    def test_channels_one_after_the_other_and_together(self, log_in: Connect, vm: dict[str, Any]) -> None:
        """One log-in carries many commands."""
        connection = log_in(vm["port"], target=vm)
        both = [connection.start(f"echo on; read x; echo {name} $x") for name in ("a", "b")]
        for channel in both:  # dropbear loses a command that is started while another one ends
            assert channel.receive(timeout_seconds=60) == b"on\n"
        for channel in reversed(both):
            channel.send(b"in\n", timeout_seconds=60)
        assert [read_all(channel) for channel in both] == [b"a in\n", b"b in\n"]
        for number in range(3):
            assert read_all(connection.start(f"echo {number}")) == f"{number}\n".encode()

    def test_quick_commands_in_a_row(self, log_in: Connect, vm: dict[str, Any]) -> None:
        """A command that is started while the last one's process ends is not lost (dropbear closes its channel)."""
        connection = log_in(vm["port"], target=vm)
        for number in range(self.quick_commands):
            assert read_all(connection.start(f"echo {number}")) == f"{number}\n".encode()

    def test_megabytes_both_ways(self, log_in: Connect, vm: dict[str, Any]) -> None:
        """Input and output larger than any window arrive whole."""
        data = os.urandom(1 << 20)
        connection = log_in(vm["port"], target=vm)
        channel = connection.start("wc -c")
        channel.send(data, timeout_seconds=60)
        channel.end_input()
        assert read_all(channel).strip() == str(len(data)).encode()
        assert len(read_all(connection.start("head -c 3000000 /dev/zero; head -c 300000 /dev/zero >&2"))) == 3_000_000

    def test_killed_command_is_no_success(self, log_in: Connect, vm: dict[str, Any]) -> None:
        """A command that a signal ends has a status that is not 0, or none."""
        channel = log_in(vm["port"], target=vm).start("kill -9 $$")
        assert read_all(channel) == b""
        assert channel.wait(timeout_seconds=60) != 0

    def test_longest_command(self, log_in: Connect, vm: dict[str, Any]) -> None:
        """A command of almost 8 kB still runs (a longer one would cost us the connection on dropbear)."""
        command = "echo in #" + "x" * 8000
        assert read_all(log_in(vm["port"], target=vm).start(command)) == b"in\n"

    def test_end_of_input_is_seen_when_we_go(self, log_in: Connect, vm: dict[str, Any]) -> None:
        """Closing the connection ends the command's stdin: what a script in the VM watches for."""
        with open_directory(0o777) as directory:
            seen = directory / "seen"
            connection = log_in(vm["port"], target=vm)
            channel = connection.start(f"trap '' HUP; echo on; cat; echo gone > {seen}.tmp; mv {seen}.tmp {seen}")
            assert channel.receive(timeout_seconds=60) == b"on\n"
            connection.close()
            watch = log_in(vm["port"], target=vm).start(f"until [ -e {seen} ]; do sleep 0.05; done; cat {seen}")
            assert read_all(watch) == b"gone\n"

    def test_silence_ends_at_the_limit(self, log_in: Connect, vm: dict[str, Any]) -> None:
        """A command that says nothing is given up, and another one can be started."""
        connection = log_in(vm["port"], target=vm)
        channel = connection.start("cat")
        with pytest.raises(LostContact):
            channel.receive(timeout_seconds=0.3)
        channel.close()
        assert read_all(connection.start("echo on")) == b"on\n"


class Contract(ChannelContract):
    """What a way in over a network promises besides."""

    def test_wrong_key_is_refused(self, log_in: Connect, vm: dict[str, Any]) -> None:
        """Exit 5 with the key that was tried and the methods the server takes."""
        with pytest.raises(NotPermitted, match=r"other \(refused\).*the VM takes .*publickey"):
            log_in(vm["port"], identities=("other",), target=vm)

    def test_changed_host_key(self, log_in: Connect, vm: dict[str, Any], keys: Keys, known_hosts: Path) -> None:
        """The key of another VM at this place in the file: exit 4."""
        wrong = keys.load("host_new")
        known_hosts.parent.mkdir(parents=True)
        known_hosts.write_text(f"[127.0.0.1]:{vm['port']} {wrong.get_name()} {wrong.get_base64()}\n")
        with pytest.raises(Untrusted, match=r"SHA256:.*SHA256:"):
            log_in(vm["port"], target=vm)


class BurstContract(Contract):
    """The promises of the library's transport, which starts the first command along with the log-in."""

    @pytest.fixture
    def burst_taken(self, monkeypatch: pytest.MonkeyPatch) -> list[str]:
        """Every command that was started by a burst."""
        taken: list[str] = []
        keep = SshConnection.keep

        def note(connection: SshConnection, command: str, channel: Any) -> None:
            taken.append(command)
            keep(connection, command, channel)

        monkeypatch.setattr(SshConnection, "keep", note)
        return taken

    def test_first_command_along_with_the_log_in(
        self, log_in: Connect, vm: dict[str, Any], burst_taken: list[str]
    ) -> None:
        """The command that is named at the log-in runs in one burst with it, and is as any other."""
        command = "read x; echo got $x >&2; cat; exit 3"
        connection = log_in(vm["port"], target=vm, first=command)
        assert burst_taken == [command]
        channel = connection.start(command)
        channel.send(b"one\nrest", timeout_seconds=60)
        channel.end_input()
        assert read_all(channel) == b"rest"
        assert channel.wait(timeout_seconds=60) == 3
        assert channel.stderr == b"got one\n"
        assert read_all(connection.start("echo next")) == b"next\n"

    def test_first_command_with_a_key_that_is_refused(
        self, log_in: Connect, vm: dict[str, Any], burst_taken: list[str]
    ) -> None:
        """The burst's failure is no other failure: exit 5 with the key and the methods."""
        with pytest.raises(NotPermitted, match=r"other \(refused\).*the VM takes .*publickey"):
            log_in(vm["port"], identities=("other",), target=vm, first="echo in")
        assert burst_taken == []
