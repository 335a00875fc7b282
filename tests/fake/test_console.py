"""The serial line, against a real shell on a pty: lines left dirty, log-ins, noise, loss, and who else is on it."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.fake.conftest import read_all
from tests.fake.serialvm import SerialVM
from vmproxy.errors import Busy, LostContact, NotPermitted, Refused, Unreachable, UsageError
from vmproxy.model import Target
from vmproxy.transports import SshOptions, _line, _lineshell, console, load
from vmproxy.transports.console import ConsoleConnection

Start = Callable[..., SerialVM]
Attach = Callable[..., ConsoleConnection]


@pytest.fixture
def serial() -> Iterator[Start]:
    """Start a VM: ``serial("ash", getty=True, …)``."""
    running: list[SerialVM] = []

    def start(*args: object, **more: object) -> SerialVM:
        running.append(SerialVM(*args, **more))  # type: ignore[arg-type]
        return running[-1]

    yield start
    for vm in running:
        vm.close()


@pytest.fixture
def attach(monkeypatch: pytest.MonkeyPatch) -> Iterator[Attach]:
    """Open the line of a VM: ``attach(vm, connect_timeout_seconds=…)``."""
    monkeypatch.setattr(_line, "_HANG_UP_SECONDS", 60.0)
    running: list[ConsoleConnection] = []

    def start(vm: SerialVM, **options: object) -> ConsoleConnection:
        options.setdefault("connect_timeout_seconds", 60.0)
        target = Target(name="console:x", provider="console", transport="console", line=vm.path)
        running.append(console.connect(target, options=SshOptions(**options)))  # type: ignore[arg-type]
        return running[-1]

    yield start
    for connection in running:
        connection.close()


def said(connection: ConsoleConnection, command: str) -> bytes:
    """What a command says on stdout."""
    return read_all(connection.start(command))


def eventually(check: Callable[[], bool], what: str) -> None:
    """Wait, generously, until it holds."""
    until = time.monotonic() + 60
    while not check():
        assert time.monotonic() < until, what
        time.sleep(0.05)


# ---- to a shell -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shell", ["dash", "ash", "bash"])
def test_at_a_prompt_and_back_to_it(serial: Start, attach: Attach, shell: str) -> None:
    """The shell that was there runs commands with three streams apart, without a terminal, and is there again after."""
    vm = serial(shell)
    for _ in range(2):
        connection = attach(vm)
        channel = connection.start("read x; echo got $x; cat; tty -s && echo tty; echo oops >&2; exit 3")
        channel.send(b"one\n\x00\x03\x04\x11\x7f\xff\r\n", timeout_seconds=60)
        channel.end_input()
        assert read_all(channel) == b"got one\n\x00\x03\x04\x11\x7f\xff\r\n"
        assert channel.wait(timeout_seconds=60) == 3
        assert channel.stderr == b"oops\n"
        assert not int(re.search(rb"SigIgn:\s*(\w+)", said(connection, "cat /proc/self/status"))[1], 16) & 0b10  # type: ignore[index]
        connection.close()
    vm.type(b"stty -a; echo is''back\n")
    eventually(lambda: b"isback" in vm.said, "the shell is gone")
    settings = bytes(vm.said).rpartition(b"speed")[2].split()
    assert {b"icanon", b"isig", b"echo", b"icrnl", b"opost"} <= set(settings)
    work = {f".vmproxy-line-{name.decode()}" for name in re.findall(rb"D=(\w+) U=", vm.sent)}
    assert len(work) >= 2  # where the VM is slow it is typed once more
    assert not work & {*os.listdir("/run"), *os.listdir("/dev/shm"), *os.listdir("/tmp")}


@pytest.mark.parametrize("shell", ["dash", "ash"])
def test_log_in_as_root(serial: Start, attach: Attach, shell: str) -> None:
    """root is logged in without a password, and logged out again."""
    vm = serial(shell, getty=True)
    for _ in range(2):
        connection = attach(vm)
        assert said(connection, "echo in") == b"in\n"
        connection.close()
    eventually(lambda: bytes(vm.said).rstrip().endswith(b"moby login:"), "nobody logged out")


@pytest.mark.parametrize(
    "left",
    [
        b"touch BAD",  # half a command
        b"echo 'touch BAD\n",  # an open quote
        b"cat\n",  # a program that reads
        b"stty -echo; PS1=; PS2=\n",  # no echo, no prompt
        b"stty raw -echo\n",
        b"x" * 6000,  # more than a terminal's line holds
        b"cat <<EOF\ntouch BAD\n",
        b"\x1b[6n\x1b",
    ],
    ids=["half", "quote", "program", "silent", "raw", "long", "here", "escape"],
)
@pytest.mark.parametrize("shell", ["dash", "ash"])
def test_a_line_left_dirty(serial: Start, attach: Attach, tmp_path: Path, left: bytes, shell: str) -> None:
    """Whatever somebody left on the line: nothing of it runs, and we get our shell."""
    bad = tmp_path / "bad"
    vm = serial(shell)
    vm.type(left.replace(b"BAD", os.fsencode(bad)))
    assert said(attach(vm), "echo in") == b"in\n"
    assert not bad.exists()


def test_a_log_in_left_dirty(serial: Start, attach: Attach) -> None:
    """Somebody typed half a name, or is asked for a password: log in anew."""
    for left in (b"someb", b"somebody\n"):
        vm = serial(getty=True)
        vm.type(left)
        assert said(attach(vm), "echo in") == b"in\n"


def test_boot_messages_in_between(serial: Start, attach: Attach) -> None:
    """Kernel messages behind the prompt and in the middle of every second piece hide neither a log-in nor an answer."""
    vm = serial(getty=True)
    count = 0

    def noisy(data: bytes) -> bytes:
        nonlocal count
        count += 1
        message = b"[   %d.123456] docker0: port 1(veth) entered blocking state\r\n" % count
        return data[: len(data) // 2] + message + data[len(data) // 2 :] if count % 2 else data + message

    vm.down = noisy
    assert said(attach(vm), "head -c 100000 /dev/zero | tr '\\0' x") == b"x" * 100000
    assert count > 30


# ---- F74 and T16 ----------------------------------------------------------------------------------------------------


def until_seen(vm: SerialVM, monkeypatch: pytest.MonkeyPatch, seen: str, typed: int) -> None:
    """Have the time for the log-in end, by its clock, once that was the last that came and ^C was typed so often: it
    takes as long as the machine takes for it."""
    ahead = 0.0
    read = _line.Line.read

    def noted(line: _line.Line, seconds: float) -> bytes:
        nonlocal ahead
        data = read(line, seconds)
        if vm.sent.count(b"\x03") >= typed and re.search(seen, line.last_words()):
            ahead = 3600.0
        return data

    monkeypatch.setattr(_line.Line, "read", noted)
    monkeypatch.setattr(_lineshell, "time", SimpleNamespace(monotonic=lambda: time.monotonic() + ahead))


def test_f74_nothing_comes(serial: Start, attach: Attach) -> None:
    """At the deadline: exit 9."""
    vm = serial(program=("sleep", "1000"), ready=b"")
    with pytest.raises(LostContact, match=r"no usable prompt within 5 s.*(nothing came from it|\^C)") as caught:
        attach(vm, connect_timeout_seconds=5.0)
    assert caught.value.exit == 9


@pytest.mark.parametrize(
    ("program", "seen", "typed"),
    [
        (
            ("sh", "-c", "trap '' INT; while :; do printf 'grub rescue: \\033[31m\\201 '; sleep 0.1; done"),
            "grub rescue: ",
            0,
        ),
        (
            ("sh", "-c", "stty -echo; trap : INT; while :; do echo 'Enter a number'; read x; done"),
            "Enter a number",
            3,
        ),
    ],
    ids=["garbage", "menu"],
)
def test_f74_no_prompt(
    serial: Start, attach: Attach, monkeypatch: pytest.MonkeyPatch, program: tuple[str, ...], seen: str, typed: int
) -> None:
    """At the deadline: exit 9, and what was seen, as one printable line of 80 characters."""
    vm = serial(program=program, ready=seen.encode())
    until_seen(vm, monkeypatch, seen, typed)
    with pytest.raises(LostContact, match=f"no usable prompt within 60 s.*{seen}") as caught:
        attach(vm)
    assert caught.value.exit == 9
    assert str(caught.value).isprintable()
    assert len(caught.value.what) < 140


def test_f74_an_editor_is_left_alone(
    serial: Start, attach: Attach, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Whoever edits the script by hand leaves an editor, whose last line ends with a per cent sign: it is no prompt,
    and what is meant for a shell is not typed into somebody's file."""
    script = tmp_path / "docker"
    script.write_text("".join(f"line {number} #\n" for number in range(99)))
    edit = f"cd {tmp_path} && exec busybox vi docker"  # its last line names the file, and is no longer than the screen
    vm = serial(program=("sh", "-c", edit), ready=b"docker")
    until_seen(vm, monkeypatch, r"\d%", 3)
    with pytest.raises(LostContact, match=r"no usable prompt within 60 s; last seen: .*%") as caught:
        attach(vm)
    assert caught.value.exit == 9
    assert b"sh -c" not in vm.sent
    assert b"Modified" not in vm.said


def test_f74_password_prompt(serial: Start, attach: Attach) -> None:
    """A password for root is not guessed: said, exit 9, and the log-in is left as it was."""
    vm = serial(password=True)
    with pytest.raises(LostContact, match=r"wants a password for root; last seen: .*Password:") as caught:
        attach(vm)
    assert caught.value.exit == 9
    eventually(lambda: bytes(vm.said).rstrip().endswith(b"moby login:"), "still at the password")


def test_f74_disconnect_in_the_middle(serial: Start, attach: Attach, tmp_path: Path) -> None:
    """The line goes while a command runs: exit 9; the command's input ends, and the next one finds the line usable."""
    over = tmp_path / "over"
    vm = serial()
    channel = attach(vm).start(f"echo on; cat; echo > {over}")
    assert channel.receive(timeout_seconds=60) == b"on\n"
    vm.hang_up()
    with pytest.raises(LostContact, match="the VM's end of the line is gone"):
        channel.receive(timeout_seconds=60)
    assert said(attach(vm), f"until [ -e {over} ]; do sleep 0.1; done; echo next") == b"next\n"


def test_f74_a_terminal_that_goes_in_the_middle(serial: Start, attach: Attach) -> None:
    """The same where the line is a terminal: an error of the terminal's is no crash."""
    vm = serial(by_tty=True)
    channel = attach(vm).start("echo on; cat")
    assert channel.receive(timeout_seconds=60) == b"on\n"
    vm.hang_up()
    with pytest.raises(LostContact, match="the VM's end of the line is gone"):
        channel.receive(timeout_seconds=60)


@pytest.mark.parametrize("shell", ["dash", "ash", "bash"])
def test_f74_a_line_that_hangs_up_in_the_vm(attach: Attach, tmp_path: Path, shell: str) -> None:
    """Where the VM's own end of the line goes, the command's input ends, and nothing of ours is left."""
    over = tmp_path / "over"
    vm = SerialVM(shell)
    try:
        channel = attach(vm).start(f"echo on; cat; echo > {over}")
        assert channel.receive(timeout_seconds=60) == b"on\n"
        work = {f".vmproxy-line-{mark.decode()}" for mark in re.findall(rb"D=(\w+) U=", vm.sent)}
        assert work & {*os.listdir("/run"), *os.listdir("/dev/shm")}
    finally:
        vm.close()
    eventually(over.exists, "the command's input did not end")
    eventually(lambda: not work & {*os.listdir("/run"), *os.listdir("/dev/shm")}, "something is left")


@pytest.mark.parametrize("shell", ["dash", "ash"])
def test_f74_a_client_that_says_nothing_more(
    serial: Start, attach: Attach, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shell: str
) -> None:
    """A serial line has no hang-up: after the time limit the VM ends the command's input and gives the line back."""
    monkeypatch.setattr(_lineshell, "SILENCE_SECONDS", 12)  # more than a machine may stall until it begins
    over = tmp_path / "over"
    vm = serial(shell, getty=True)
    connection = attach(vm)
    channel = connection.start(f"echo on; cat; echo > {over}")
    assert channel.receive(timeout_seconds=60) == b"on\n"
    vm.up = lambda _data: b""
    eventually(over.exists, "the command's input did not end")
    eventually(lambda: bytes(vm.said).rstrip().endswith(b"moby login:"), "the line was not given back")


def test_silence_of_the_caller_is_none_of_the_client(
    serial: Start, attach: Attach, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While a person thinks about a question, the client keeps the far end alive."""
    for module in (_lineshell, console):
        monkeypatch.setattr(module, "SILENCE_SECONDS", 12)
    vm = serial()
    connection = attach(vm)
    channel = connection.start("read x; echo $x")
    before = len(vm.sent)
    eventually(lambda: bytes(vm.sent[before:]).count(b" alive ") > 5, "no sign of life")
    channel.send(b"on\n", timeout_seconds=60)
    assert read_all(channel) == b"on\n"


def test_t16_not_root(serial: Start, attach: Attach) -> None:
    """A shell of somebody else's is left as it was: exit 5."""
    vm = serial("dash", uid=1000)
    with pytest.raises(NotPermitted, match=r"not root's .user 1000.") as caught:
        attach(vm)
    assert caught.value.exit == 5
    vm.type(b"echo st''ill\n")
    eventually(lambda: b"still" in vm.said, "the shell is gone")


def test_t16_terminal_restored(serial: Start, attach: Attach) -> None:
    """The host's terminal has the settings it had: after a session, and after one that did not come about."""
    vm = serial("dash", by_tty=True)
    before = vm.settings
    connection = attach(vm)
    assert vm.settings != before
    data = bytes(range(256)) * 100
    channel = connection.start("cat")
    channel.send(data, timeout_seconds=60)
    channel.end_input()
    assert read_all(channel) == data
    connection.close()
    assert vm.settings == before
    vm.down = vm.up = lambda _data: b""
    with pytest.raises(LostContact):
        attach(vm, connect_timeout_seconds=1.0)
    assert vm.settings == before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=["INT", "TERM", "HUP"])
def test_t16_terminal_restored_after_a_signal(serial: Start, tmp_path: Path, number: int) -> None:
    """Also where a signal ends the command: 128+n, and the line is free."""
    vm = serial("dash", by_tty=True)
    before = vm.settings
    vm.down = lambda _data: b""
    argv = [sys.executable, "-m", "vmproxy", "detect-gateway", "--vm", f"console:{vm.path}", "--connect-timeout", "100"]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as child:
        eventually(lambda: b"\x05\x15\n" in vm.sent, "nothing came")
        assert vm.settings != before
        child.send_signal(number)
        child.communicate(timeout=60)
    assert child.returncode == 128 + number
    assert vm.settings == before


@pytest.mark.parametrize("shell", ["dash", "bash"])  # busybox's has a stty of its own
def test_t16_a_ctrl_c_as_the_far_end_begins(serial: Start, attach: Attach, shell: str) -> None:
    """It comes, from a client that gives up, when the directory is made and the terminal is not yet ours: neither that
    one nor another stays."""
    vm = serial(shell)
    waits, go = vm.directory / "waits", vm.directory / "go"
    wait = f"case $1 in raw) : >{waits}; until [ -e {go} ] || [ ! -e {vm.path} ]; do sleep 0.1; done ;; esac"
    (vm.directory / "stty").write_text(f'#!/bin/sh\n{wait}\nexec {shutil.which("stty")} "$@"\n')
    (vm.directory / "stty").chmod(0o755)

    def give_up() -> None:
        eventually(waits.exists, "it does not begin")
        vm.type(b"\x03")
        go.touch()

    other = threading.Thread(target=give_up)
    other.start()
    connection = attach(vm)
    other.join()
    assert said(connection, "echo in") == b"in\n"
    connection.close()
    work = {f".vmproxy-line-{mark.decode()}" for mark in re.findall(rb"D=(\w+) U=", vm.sent)}
    assert work
    assert not work & {*os.listdir("/run"), *os.listdir("/dev/shm"), *os.listdir("/tmp")}


def test_t16_in_use_by_another_program(serial: Start, attach: Attach) -> None:
    """A program that has the terminal open (screen, with or without anybody attached): exit 8 with its name."""
    vm = serial(by_tty=True)
    before = vm.settings
    with open(vm.path, "rb+", buffering=0) as line, subprocess.Popen(["sleep", "1000"], stdin=line) as other:
        try:
            with pytest.raises(Busy, match=f"in use by sleep, process {other.pid}") as caught:
                attach(vm)
        finally:
            other.kill()
    assert caught.value.exit == 8
    assert vm.settings == before
    assert not vm.sent


def test_t16_locked_by_another_program(serial: Start, attach: Attach) -> None:
    """A lock on the terminal (another vmproxy, picocom, minicom): exit 8, nothing sent."""
    vm = serial(by_tty=True)
    with open(vm.path, "rb+", buffering=0) as line:
        fcntl.flock(line, fcntl.LOCK_EX)
        with pytest.raises(Busy, match="in use by another program"):
            attach(vm)
    assert not vm.sent


def test_t16_socket_in_use(serial: Start, attach: Attach, monkeypatch: pytest.MonkeyPatch) -> None:
    """QEMU's socket takes one: while somebody has it, exit 8, without a wait for an answer that never comes."""
    vm = serial()
    first = attach(vm)
    monkeypatch.setattr(_line, "_HANG_UP_SECONDS", 0.0)
    with pytest.raises(Busy, match="in use by another program"):
        attach(vm)
    assert said(first, "echo on") == b"on\n"


def test_t16_only_what_was_asked_for(serial: Start, attach: Attach) -> None:
    """What a command prints cannot pass for the line's own words: not a copy of all that was seen, not the request."""
    vm = serial("dash")
    connection = attach(vm)
    seen = bytes(vm.said) + bytes(vm.sent)
    channel = connection.start("cat; cat >&2; exit 7")
    channel.send(seen, timeout_seconds=60)
    channel.end_input()
    assert read_all(channel) == seen
    assert channel.wait(timeout_seconds=60) == 7


def test_an_echo_that_comes_back(serial: Start, attach: Attach) -> None:
    """Where all we send is echoed, every answer is still the VM's."""
    vm = serial("dash")
    connection = attach(vm)

    def up(data: bytes) -> bytes:
        vm.echo(data)
        return data

    vm.up = up
    channel = connection.start("wc -c")
    channel.send(b"x" * 20000, timeout_seconds=60)
    channel.end_input()
    assert read_all(channel).strip() == b"20000"


# ---- what is lost or broken -----------------------------------------------------------------------------------------


def test_lost_and_broken_pieces_are_sent_again(serial: Start, attach: Attach, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every seventh piece loses a byte, has one changed, or is lost whole, both ways: what arrives is right."""
    monkeypatch.setattr(console, "_AGAIN_SECONDS", 0.2)
    vm = serial()
    connection = attach(vm)
    counts = {"up": 0, "down": 0}

    def harm(way: str) -> Callable[[bytes], bytes]:
        def one(data: bytes) -> bytes:
            counts[way] += 1
            middle = len(data) // 2
            return {
                3: data[:middle] + data[middle + 1 :],
                10: data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :],
                17: b"",
            }.get(counts[way] % 21, data)

        return one

    vm.up, vm.down = harm("up"), harm("down")
    data = os.urandom(60000)
    channel = connection.start("cat; exit 5")
    channel.send(data, timeout_seconds=120)
    channel.end_input()
    assert read_all(channel, timeout_seconds=120) == data
    assert channel.wait(timeout_seconds=60) == 5
    assert min(counts.values()) > 21


def test_a_vm_that_says_too_much(serial: Start, attach: Attach) -> None:
    """Output ends at the limit, and the line serves the next command."""
    vm = serial()
    connection = attach(vm, output_limit_bytes=20000)
    with pytest.raises(LostContact, match="sends more than 20000 bytes"):
        said(connection, "yes")
    assert said(connection, "echo next") == b"next\n"


def test_a_command_that_does_not_read(serial: Start, attach: Attach) -> None:
    """Input that nobody reads ends at the time limit; input for a command that has ended, at once."""
    vm = serial()
    connection = attach(vm)
    with pytest.raises(LostContact, match="took no more input for 2 s"):
        connection.start("sleep 20").send(b"x" * 200000, timeout_seconds=2)
    with pytest.raises(LostContact, match="no longer reads its input"):
        connection.start("exit 0").send(b"x" * 200000, timeout_seconds=60)


def test_a_command_that_talks_while_it_is_sent_to(serial: Start, attach: Attach) -> None:
    """Neither side waits for the other."""
    vm = serial()
    channel = attach(vm).start("head -c 150000 /dev/zero >&2; head -c 150000 /dev/zero; cat | wc -c")
    channel.send(b"x" * 150000, timeout_seconds=60)
    channel.end_input()
    assert read_all(channel).lstrip(b"\0").strip() == b"150000"
    assert len(channel.stderr) == 64 << 10


def test_a_vm_without_the_programs(serial: Start, attach: Attach, tmp_path: Path) -> None:
    """What the VM lacks is named: exit 6, nothing was changed."""
    for name in ("sh", "stty", "sha256sum", "printf", "dd", "mkdir", "rm", "mv"):
        (tmp_path / name).symlink_to(shutil.which(name) or name)
    vm = serial("dash", tools=tmp_path)
    with pytest.raises(Refused, match="the VM has no base64, mkfifo"):
        attach(vm)


def test_busybox_alone(serial: Start, attach: Attach, tmp_path: Path) -> None:
    """A VM whose programs are all busybox's has what is needed."""
    for name in ("sh", "stty", "sha256sum", "base64", "mkfifo", "dd", "mkdir", "rm", "mv", "cat", "setsid"):
        (tmp_path / name).symlink_to(shutil.which("busybox") or "busybox")
    vm = serial("ash", tools=tmp_path)
    channel = attach(vm).start("cat; exit 4")
    data = os.urandom(20000)
    channel.send(data, timeout_seconds=60)
    channel.end_input()
    assert (read_all(channel), channel.wait(timeout_seconds=60)) == (data, 4)


# ---- the host's side ------------------------------------------------------------------------------------------------


def test_a_line_is_not_for_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Exit 2 for whatever is named there, before a module is missed."""
    monkeypatch.setattr(_line, "os", SimpleNamespace(name="nt", stat=os.stat))
    with pytest.raises(UsageError, match="Linux or macOS"):
        _line.open_line("/dev/null", timeout_seconds=1)


def test_a_line_of_somebody_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """The directory, a terminal or a socket that one may not open: exit 5, not a VM that is down, and who may."""
    import socket

    def refused(*_words: object, **_more: object) -> int:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    def connecting(_self: object, _path: str) -> None:
        refused()

    place = Path(tempfile.mkdtemp(prefix="line-"))
    _master, slave = os.openpty()
    try:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(place / "socket"))
            for path, module, call, failing in (
                (place, _line.os, "stat", refused),
                (os.ttyname(slave), _line.os, "open", refused),
                (place / "socket", socket.socket, "connect", connecting),
            ):
                with monkeypatch.context() as patch:
                    patch.setattr(module, call, failing)
                    with pytest.raises(NotPermitted, match="Permission denied") as caught:
                        _line.open_line(str(path), timeout_seconds=1)
                assert caught.value.exit == 5
                assert "sudo" in caught.value.hint
    finally:
        os.close(_master)
        os.close(slave)
        shutil.rmtree(place)


def test_a_line_that_ends_before_a_prompt() -> None:
    """Nobody is sent from ``vmproxy status`` to ``vmproxy status``: the hint is about the line."""
    import socket

    place = Path(tempfile.mkdtemp(prefix="line-"))
    try:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(place / "socket"))
            listener.listen(1)

            def end() -> None:
                listener.accept()[0].close()

            ending = threading.Thread(target=end)
            ending.start()
            target = Target(name="console:x", provider="console", transport="console", line=str(place / "socket"))
            with pytest.raises(LostContact, match="end of the line is gone") as caught:
                console.connect(target, options=SshOptions(connect_timeout_seconds=30))
            ending.join(60)
        assert "shell on this line" in caught.value.hint
    finally:
        shutil.rmtree(place)


def test_no_such_line(tmp_path: Path) -> None:
    """No line: exit 4. Something else of that name: exit 2. Nobody listens: exit 4."""
    import socket

    for path, error in ((tmp_path / "none", Unreachable), (tmp_path, UsageError), (Path("/dev/null"), UsageError)):
        with pytest.raises(error):
            _line.open_line(str(path), timeout_seconds=1)
    dead = Path("/tmp") / f"dead-{os.getpid()}"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(dead))
    try:
        with pytest.raises(Unreachable, match="refused"):
            _line.open_line(str(dead), timeout_seconds=1)
    finally:
        dead.unlink()


def test_without_pexpect(serial: Start, attach: Attach, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the extra: exit 2 and how to get it."""
    vm = serial()
    monkeypatch.setitem(sys.modules, "pexpect.socket_pexpect", None)
    with pytest.raises(UsageError) as caught:
        attach(vm)
    assert caught.value.hint == "pip install 'vmproxy[console]'"


def test_the_family_knows_it() -> None:
    """It is a member of the transports."""
    assert load("console").connect is console.connect
