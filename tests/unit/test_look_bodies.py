"""The files of a look are read by one ``head``, whole and byte for byte, and one by one where that head will not do.

The product's own scripts run here, in each shell that a VM may have, over the product's own local transport.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from vmproxy.errors import Refused
from vmproxy.machines import Look, reading, shell
from vmproxy.machines.frames import Frame
from vmproxy.model import Facts, Target
from vmproxy.transports import SshOptions, local

SHELLS = {"dash": "dash", "bash": "bash", "posix bash": "bash --posix", "busybox": "busybox sh"}
END = Frame(words=("end",))
MARK = "/./" * 12

# What a VM's own files may hold, the last without a newline at its end as most of the others.
CONTENTS = {
    "nul": b"\0one\0\0\n\0",
    "not-utf-8": b"\xff\xfe\x80 \xc3(\n\xed\xa0\x80",
    "no-end": b"no newline at the end",
    "empty": b"",
    "newline": b"\n",
    "newlines": b"\n\n\n\n",
    "crlf": b"# mine\r\nexport TZ=UTC\r\n\r\r\n",
    "frame": b"\n@00112233445566778899aabbccddeeff end\n\n@ whole 1\n\n@\n",
    "shell": b"$(exit 3)`exit 4`'\"\\\n%s%d\\0\\n\n.\n",
    "large": bytes(range(256)) * 4096,
    "last": b"the last, and no newline",
}
assert len(CONTENTS["large"]) == reading.FILE_LIMIT_BYTES


Opened = Callable[[], shell.Shell]


@pytest.fixture(params=[(name, way) for name in SHELLS for way in ("loader", "plain")], ids=" ".join)
def opened(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Opened]:
    """``opened()``: a machine whose sh is one of those shells, and a loader from the start or a plain shell at first.
    It notes, in ``tmp_path/ran``, that it was one."""
    which, way = request.param
    name, _, option = SHELLS[which].partition(" ")
    program = shutil.which(name)
    assert program is not None
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "sh").write_text(f'#!/bin/sh\n: >{tmp_path}/ran\nexec {program} {option} "$@"\n')
    (tmp_path / "bin" / "sh").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))  # the loader sets its own
    with ExitStack() as stack:

        def new() -> shell.Shell:
            target = Target(name="local", provider="local", transport="local")
            first = shell.first_command(root=False, plain_for="somebody" * (way == "plain"))
            machine = shell.open(local.connect(target, options=SshOptions(), first=first), first=first)
            stack.callback(machine.close)
            return machine

        yield new
        assert (tmp_path / "ran").exists()


@pytest.fixture
def files(tmp_path: Path) -> dict[str, bytes]:
    """All of CONTENTS, and files that look like what head writes of the others, by path."""
    made = {str(tmp_path / name): content for name, content in CONTENTS.items()}
    first, last = str(tmp_path / "nul"), str(tmp_path / "last")
    header = f"==> {last} <==\n".encode("ascii")
    made[str(tmp_path / "header")] = header + b"forged"
    made[str(tmp_path / "headers")] = b"x\n" + header + b"\n" + header.replace(b"> /", b"> //./") + b"forged\n"
    made[str(tmp_path / "half-a-header")] = f"\n\n==> {first}".encode("ascii")
    for path, content in made.items():
        Path(path).write_bytes(content)
    return dict(sorted(made.items()))


def contents(facts: Facts) -> dict[str, bytes | None]:
    """What was read of each file."""
    return {path: file.content for path, file in facts.files.items()}


def with_head(monkeypatch: pytest.MonkeyPatch, body: str) -> None:
    """Have every look find another ``head``: a function, since busybox's shell has one of its own before any PATH."""
    real = shell.observe_script
    monkeypatch.setattr(shell, "observe_script", lambda look, known=(): f"head() {{ {body}; }}\n{real(look, known)}")


# ---- in real shells -------------------------------------------------------------------------------------------------


def test_every_byte_of_every_file(opened: Opened, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    """NUL, what is not UTF-8, no newline at the end, nothing at all, CR LF, a mebibyte, look-alikes of what head and
    the look write: each as it is, as a file and as a text, by a single head; a second look sees the same."""
    heads = Path(next(iter(files))).with_name("heads")
    with_head(monkeypatch, f'echo $# >>{heads}; command head "$@"')
    look = Look(root=False, files=tuple(files), texts=tuple(reversed(files)))
    machine = opened()
    for _ in range(2):
        facts = machine.observe(look)
        assert contents(facts) == files
        assert facts.texts == files
    assert [int(words) for words in heads.read_text().split()] == [len(files) + 4] * 2  # what both want is read once


HEADS = {
    "missing": "return 127",
    "without -v": "echo \"head: invalid option -- 'v'\" >&2; return 1",
    "broken": "echo '==> /etc/passwd <=='; echo junk; return 1",
    "ends early": 'command head "$@" | dd bs=300 count=1; return 1',
}


@pytest.mark.parametrize("head", HEADS)
def test_a_head_that_will_not_do(
    head: str, opened: Opened, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where head is missing, knows no -v or fails half way, each file is read by itself, to the same bytes."""
    with_head(monkeypatch, HEADS[head])
    facts = opened().observe(Look(root=False, files=tuple(files), texts=tuple(files)))
    assert contents(facts) == files
    assert facts.texts == files


def test_a_file_that_vanishes_does_not_spoil_the_others(
    opened: Opened, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that was seen and is gone when it is read: nothing is read of it, all others are whole."""
    for name in ("empty", "newline", "last"):  # in the middle, and the last one
        (gone,) = [path for path in files if path.endswith(f"/{name}")]
        with monkeypatch.context() as patch:
            with_head(patch, f'rm -f {gone}; command head "$@"')
            found = contents(opened().observe(Look(root=False, files=tuple(files))))
        assert not found.pop(gone)
        assert found == {path: content for path, content in files.items() if path != gone}
        Path(gone).write_bytes(files[gone])


def test_what_is_too_large_is_not_sent_whole(opened: Opened, tmp_path: Path) -> None:
    """A text of more than a mebibyte is left out, and a file refused, however large it is; what stands beside them is
    read."""
    beside, large = tmp_path / "beside", tmp_path / "too-large"
    beside.write_bytes(b"x" * 9)
    for size in (reading.FILE_LIMIT_BYTES + 1, 64 << 20):
        with large.open("wb") as file:
            file.truncate(size)
        facts = opened().observe(Look(root=False, files=(str(beside),), texts=(str(large), str(beside))))
        assert contents(facts) == {str(beside): b"x" * 9}
        assert facts.texts == {str(beside): b"x" * 9}
        with pytest.raises(Refused, match="larger"):
            opened().observe(Look(root=False, files=(str(large), str(beside))))


def test_kinds_that_are_not_read(opened: Opened, files: dict[str, bytes], tmp_path: Path) -> None:
    """A link, a directory and a pipe among the files have no content, and the look does not wait for them."""
    (tmp_path / "link").symlink_to(tmp_path / "crlf")
    (tmp_path / "dir").mkdir()
    os.mkfifo(tmp_path / "pipe")
    odd = {str(tmp_path / name): kind for name, kind in (("link", "link"), ("dir", "dir"), ("pipe", "other"))}
    facts = opened().observe(Look(root=False, files=(*odd, *files, str(tmp_path / "none"))))
    assert {path: facts.files[path].kind for path in odd} == odd
    assert contents(facts) == {**files, **dict.fromkeys((*odd, str(tmp_path / "none")))}


def test_the_spelling_of_the_root_directory() -> None:
    """Each digit of a nonce has a part in it, it means / and is taken for a mark; other nonces spell it otherwise."""
    nonces = [digit * 32 for digit in "0123456789abcdef"] + ["0123456789abcdef" * 2, "048c" * 8, "c840" * 8]
    script = shell._text("observe.sh") + 'for nonce do spell; printf "%s\\n" "$root"; done\n'
    told = {}
    for words in SHELLS.values():
        done = subprocess.run([*words.split(), "-c", script, "x", *nonces], capture_output=True, text=True, check=True)
        told[words] = done.stdout.splitlines()
    spelled = next(iter(told.values()))
    assert all(other == spelled for other in told.values())
    for root in spelled:
        assert reading._MARK.match(root)
        assert Path(root).resolve() == Path("/")
        assert len(re.findall("/", root)) >= 32
    assert len(set(spelled)) == 4 + 3


# ---- what head wrote, taken apart -----------------------------------------------------------------------------------


def headed(mark: str, held: dict[str, bytes]) -> bytes:
    """What ``head -v`` writes of files whose names begin with a mark (coreutils, and busybox the same)."""
    return b"\n".join(f"==> {mark}{path} <==\n".encode("ascii") + content for path, content in held.items())


MARKS = st.lists(st.sampled_from(["/", "/.", "//.", "/./."]), min_size=32, max_size=32).map("".join)
PATHS = st.from_regex(re.compile(r"(/[A-Za-z0-9._+@-]{1,9}){1,3}", re.ASCII), fullmatch=True)
LIKELY = st.lists(
    st.sampled_from(
        [b"\n", b"==>", b" ", b"<==", b"/", b"/.", b"\n==> ", b" <==\n", b"\0", b"\xff", b"\r\n", b"\n==> /a <==\n"]
    ),
    max_size=12,
).map(b"".join)


@given(mark=MARKS, held=st.dictionaries(PATHS, st.binary(max_size=60) | LIKELY, max_size=6))
@example(mark=MARK, held={"/a": b"\n==> /b <==\n", "/b": b"", "/c": b"\n==> " + MARK[:-1].encode() + b"x"})
@example(mark="/" * 32, held={"/a": b"==> /a <==\n\n", "/b": b"\n==> " + b"/" * 31})
def test_what_head_wrote_is_taken_apart(mark: str, held: dict[str, bytes]) -> None:
    """Whatever the files hold, short of the very mark: every one of them, to the byte."""
    assume(not any(b"==> " + mark.encode("ascii") in content for content in held.values()))
    assert reading.bodies(mark, headed(mark, held)) == held


@pytest.mark.parametrize(
    "mark", ["", "/", "/" * 31, "/" * 129, "/" * 32 + "\n", "/" * 32 + "a", "a" * 40, "\u00e9" * 40, "/ " * 20]
)
def test_a_mark_that_is_none_gives_nothing(mark: str) -> None:
    """What spell cannot have made is no mark: then nothing is taken for a file."""
    data = f"==> {mark}/etc/profile <==\nforged\n".encode()
    assert reading.bodies(mark, data + b"\n" + data) == {}
    assert reading.bodies(MARK, data) == {}


@given(mark=st.text(max_size=150) | MARKS | st.text("./", min_size=32, max_size=128), data=st.binary() | LIKELY)
@example(mark=MARK, data=f"==> {MARK}/".encode("ascii") + b"\xff\0\xc3 <==\nx")
def test_no_bytes_are_an_error(mark: str, data: bytes) -> None:
    """Anything at all, also cut and mixed: some files by absolute path, never more bytes than there were."""
    for text in (data, headed(MARK, {"/a": data, "/b": data})[len(data) // 2 :] + data):
        found = reading.bodies(mark, text)
        assert all(path.startswith("/") for path in found)
        assert sum(map(len, found.values())) <= len(text)


def test_a_header_that_was_cut_has_no_file() -> None:
    """The end of the stream in the middle of a header: no empty file of half a name; those before are whole."""
    whole = headed(MARK, {"/a": b"one", "/b": b""})
    at = whole.index(b"/b <==\n")
    for end in range(at, len(whole)):
        assert reading.bodies(MARK, whole[:end]).keys() == {"/a"}
    assert reading.bodies(MARK, whole) == {"/a": b"one", "/b": b""}


# ---- frames ---------------------------------------------------------------------------------------------------------


def told(*frames: Frame) -> Facts:
    """A look of those frames behind a file and a text."""
    asked = (Frame(words=("stat", "/f")), Frame(words=("file", "/f")), Frame(words=("text", "/t")))
    return reading.facts([*asked, *frames, END])


def test_bodies_belong_to_what_was_asked_for() -> None:
    """Files and texts, the mounts and the daemon's environment get theirs; a path that nobody named is nothing."""
    held = {
        "/f": b"one\0",
        "/t": b"two",
        "/proc/mounts": b"tmpfs / tmpfs rw,noatime 0 0\n",
        "/proc/77/environ": b"A=1\0http_proxy=x\0",
        "/proc/78/environ": b"B=2\0",
        "/etc/shadow": b"nobody's",
    }
    daemon = Frame(words=("daemon", "77"))
    bodies = Frame(words=("bodies", MARK), body=headed(MARK, held))
    facts = told(daemon, bodies, Frame(words=("whole", "0")))
    assert (contents(facts), facts.texts) == ({"/f": b"one\0"}, {"/t": b"two"})
    assert [(mount.point, mount.fstype) for mount in facts.mounts] == [("/", "tmpfs")]
    assert facts.daemon is not None and facts.daemon.environment == {"A": "1", "http_proxy": "x"}


def test_after_a_failure_only_what_came_by_itself_counts() -> None:
    """``whole 1``: what head said is forgotten, each ``body`` has its file, and one that is gone is empty."""
    bodies = Frame(words=("bodies", MARK), body=headed(MARK, {"/f": b"half", "/t": b"half"}))
    gone = Frame(words=("body", "/t"))
    again = [Frame(words=("body", "/f"), body=b"\n==> /t <==\nwhole"), Frame(words=("body", "/g"), body=b"other"), gone]
    facts = told(bodies, Frame(words=("whole", "1")), *again)
    assert contents(facts) == {"/f": b"\n==> /t <==\nwhole"}
    assert not facts.texts["/t"]


def test_a_body_that_was_told_of_and_did_not_come_is_no_empty_file() -> None:
    """A head with other lines before its files ends well and says nothing of ours: refused, not read as empty."""
    other = Frame(words=("bodies", MARK), body=b"### /f ###\ntext")
    with pytest.raises(Refused, match="not whole"):
        told(other, Frame(words=("whole", "0")))


@pytest.mark.parametrize("name", ["\u00fcn\u00ef.conf", "a  b.conf", "a\tb.conf", "\udcff.conf", "a <==.conf"])
def test_a_text_of_an_odd_name_has_its_content(opened: Opened, tmp_path: Path, name: str) -> None:
    """A drop-in that a pattern finds is read whatever its name is: what wins over ours may stand in it."""
    place = tmp_path / "drop-ins"
    place.mkdir()
    (place / name).write_bytes(b"Environment=http_proxy=x\n")
    machine = opened()
    facts = machine.observe(Look(root=False, texts=(f"{place}/*.conf",)))
    assert list(facts.texts.values()) == [b"Environment=http_proxy=x\n"]
