"""What travels on a serial line: answers are found whole, in any noise, or not at all (P16); the provider's paths."""

from __future__ import annotations

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmproxy import targets
from vmproxy.errors import UsageError
from vmproxy.providers import console
from vmproxy.transports import _lineframes, _lineshell
from vmproxy.transports._lineframes import Answer, Answers, body, digest, pieces

MARK = "0123456789abcdef0123456789abcdef"
KERNEL_LINE = b"[    1.234567] docker0: link is not ready\r\n"


def answer(tag: int, stream: str, number: int, data: bytes) -> bytes:
    """One piece of a stream as the VM sends it."""
    text = base64.b64encode(data).decode()
    return f"\n@{MARK} {tag} {stream} {number} {digest(f'c0ffee {stream} {number} {text}')} {text} .\r\n".encode()


@given(
    st.lists(st.tuples(st.sampled_from(["out", "err"]), st.integers(1, 99), st.binary(max_size=300)), max_size=6),
    st.data(),
)
def test_p16_nothing_false_comes_out(sent: list[tuple[str, int, bytes]], data: st.DataObject) -> None:
    """Noise anywhere, pieces cut anywhere: every answer found is one that was sent, and none is found twice."""
    stream = bytearray(b"".join(answer(tag, *one) for tag, one in enumerate(sent)))
    noise = st.one_of(st.binary(min_size=1, max_size=30), st.just(KERNEL_LINE), st.just(f"@{MARK} 0 out 1 ".encode()))
    for _ in range(data.draw(st.integers(0, 5))):
        at = data.draw(st.integers(0, len(stream)))
        stream[at:at] = data.draw(noise)
    reader = Answers(MARK)
    found = []
    while stream:
        size = data.draw(st.integers(1, len(stream)))
        found += reader.feed(bytes(stream[:size]), "c0ffee")
        del stream[:size]
    pieces_found = [one for one in found if one.kind in ("out", "err")]
    assert all(sent[one.tag] == (one.kind, one.number, one.data) for one in pieces_found if one.tag < len(sent))
    assert len({one.tag for one in pieces_found}) == len(pieces_found) <= len(sent)


@given(st.binary(max_size=3000), st.data())
def test_p16_kernel_messages_do_no_harm(content: bytes, data: st.DataObject) -> None:
    """A kernel message in the middle of an answer is taken out of it."""
    line = answer(5, "out", 1, content)
    at = data.draw(st.integers(0, len(line)))
    cut = data.draw(st.integers(0, len(line) + len(KERNEL_LINE)))
    noisy = line[:at] + KERNEL_LINE + line[at:]
    reader = Answers(MARK)
    found = reader.feed(noisy[:cut], "c0ffee") + reader.feed(noisy[cut:], "c0ffee")
    assert found == [Answer(tag=5, kind="out", number=1, data=content)]


def test_t16_an_answer_of_another_command_is_none() -> None:
    """The digest is over the command's own number, made for it at random."""
    reader = Answers(MARK)
    assert reader.feed(answer(1, "out", 1, b"x"), "badcafe") == []
    assert reader.broken == 1


@pytest.mark.parametrize(
    "line",
    [
        "1 status 0 0000 .",
        "1 status -1 x .",
        "1 out 1 x .",
        "1 out x y z .",
        "1 out 1 0 *** .",
        "x yes .",
        "1 yes",
        "1  .",
    ],
)
def test_broken_answers_are_counted(line: str) -> None:
    """What begins as an answer and is none is to be asked for again."""
    reader = Answers(MARK)
    assert reader.feed(f"@{MARK} {line}\n".encode()) == []
    assert reader.broken == 1


def test_an_answer_without_end_is_bounded() -> None:
    """A line that never ends takes no more memory than one answer may."""
    reader = Answers(MARK)
    for _ in range(100):
        assert reader.feed(b"x" * 10_000) == []
    assert len(reader._buffer) <= 64 << 10
    assert reader.feed(f"\n@{MARK} 7 yes .\n".encode()) == [Answer(tag=7, kind="yes")]


@given(st.binary(max_size=5000))
def test_requests_are_short_lines(content: bytes) -> None:
    """Lines of at most 1,000 characters, and no piece fills a tty's 4,096 bytes."""
    back = b""
    for number, piece in enumerate(pieces(content), 1):
        words, lines = body("c0ffee", number, piece)
        identity, said, count, checked = words.split()
        assert (identity, int(said), int(count)) == ("c0ffee", number, lines.count(b"\n"))
        assert max(len(line) for line in lines.split(b"\n")) <= 1000
        assert len(lines) + len(words) < 3500
        text = lines.replace(b"\n", b"").decode()
        assert checked == digest(f"c0ffee {number} {text}")
        back += base64.b64decode(text)
    assert back == content


def test_what_is_typed_gets_through_a_line_editor() -> None:
    """The one line that is typed at a prompt is short, without what a shell or an editor would take for its own."""
    line = _lineshell._READER
    assert len(line) < 700
    assert line.isascii()
    assert line.isprintable()
    assert not set("'!\t") & set(line)
    assert max(len(part) for part in _lineshell.program("a" * 32, "b" * 16).splitlines()) < 300


@pytest.mark.parametrize(
    ("text", "state"),
    [
        (b"\r\nmoby login: ", "login"),
        (b"moby login: [   12.345678] eth0: link up\r\n", "login"),
        (b"Last login: Thu May 19 13:43:03 2016\r\nmoby:~# ", "prompt"),
        (b"Last login: ", "unknown"),
        (b"Password: ", "password"),
        (b"root's password: ", "password"),
        (b"/ # \x1b[6n", "prompt"),
        (b"\x1b[?2004hroot@vm:~# ", "prompt"),
        (b"[root@vm ~]# ", "prompt"),
        (b"user@vm:~$ ", "prompt"),
        (b"fish> ", "prompt"),
        (b"host% ", "prompt"),
        (b"vm1% ", "prompt"),
        (b"user@node-12% ", "prompt"),
        (b"\x1b[24;1H\x1b[K- /etc/init.d/docker [Modified] 4/32 12%\x1b[4;1H", "unknown"),
        (b"10,1          50%", "unknown"),
        (b"10,1\x1b[11C50%\x1b[1;1H", "unknown"),
        (b"/etc/init.d/docker lines 1-23/200 12%", "unknown"),
        (b"> ", "unknown"),
        (b"[   12.345678] random: crng init done\r\n", "unknown"),
        (b"", "unknown"),
    ],
)
def test_what_a_line_waits_for(text: bytes, state: str) -> None:
    """A log-in, a password, a prompt; a second prompt (PS2), an editor and a boot message are none."""
    assert _lineshell.state_of(text) == state


def test_paths() -> None:
    """A path is taken as it is, ``~/`` and nothing at all are below HOME: Docker for Mac's usual line."""
    environ = {"HOME": "/Users/me"}
    target = targets.resolve("console:/dev/ttyUSB0", environ=environ)
    assert (target.transport, target.machine, target.line) == ("console", "shell", "/dev/ttyUSB0")
    assert targets.resolve("console:~/tty", environ=environ).line == "/Users/me/tty"
    usual = "/Users/me/Library/Containers/com.docker.docker/Data/com.docker.driver.amd64-linux/tty"
    assert targets.resolve("console:", environ=environ).line == usual
    assert console.names(environ, None) == ()  # type: ignore[arg-type]
    with pytest.raises(UsageError):
        targets.resolve("console:", environ={})


def test_no_answer_can_be_made_of_what_is_sent() -> None:
    """The word that answers begin with goes up in halves, and in the program's text only where no line begins so."""
    text = _lineshell.program(MARK, "b" * 16)
    assert f"@{MARK}" not in text
    assert f"@{MARK}" not in _lineshell._READER
    assert _lineframes.Answers(MARK).feed(text.encode()) == []
