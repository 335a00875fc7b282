"""vmproxy's known_hosts: what a file says about a key, and how a key is kept."""

from __future__ import annotations

import base64
import hashlib
import hmac
import multiprocessing
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmproxy.errors import Untrusted, UsageError
from vmproxy.transports import _known_hosts
from vmproxy.transports._known_hosts import entries, fingerprint, host_name, judge, may_know, read, trust


def blob(kind: str, content: str) -> bytes:
    """A key as it travels: length, type, length, bytes."""
    parts = (kind.encode(), content.encode())
    return b"".join(len(part).to_bytes(4, "big") + part for part in parts)


OURS = blob("ssh-ed25519", "ours")
OTHER = blob("ssh-ed25519", "other")
RSA = blob("ssh-rsa", "rsa")
NAME = "[127.0.0.1]:2022"


def line(name: str, key: bytes, kind: str = "ssh-ed25519", comment: str = "") -> bytes:
    """One line of a known_hosts file."""
    return f"{name} {kind} {base64.b64encode(key).decode()}{comment}\n".encode()


def hashed(name: str) -> str:
    """The name as ssh writes it with HashKnownHosts."""
    salt = b"s" * 20
    digest = hmac.new(salt, name.encode(), hashlib.sha1).digest()
    return f"|1|{base64.b64encode(salt).decode()}|{base64.b64encode(digest).decode()}"


@pytest.mark.parametrize(
    ("host", "port", "name"),
    [
        ("vm", 22, "vm"),
        ("VM.Example", 22, "vm.example"),
        ("127.0.0.1", 2022, NAME),
        ("::1", 22, "::1"),
        ("::1", 2022, "[::1]:2022"),
    ],
)
def test_t01_name_and_port_form(host: str, port: int, name: str) -> None:
    """A key is kept for a host and its port, as OpenSSH writes it."""
    assert host_name(host, port) == name


@pytest.mark.parametrize(
    "data",
    [
        line(NAME, OURS),
        line(NAME, OURS, comment=" docker@vm"),
        line(f"vm,{NAME},other", OURS),
        line(hashed(NAME), OURS),
        line("[127.0.0.?]:*", OURS),
        line("*", OURS),
        b"  " + line(NAME, OURS),
        line(NAME, OURS).replace(b" ", b"\t"),
        line(NAME, OURS).rstrip(b"\n"),
        line(NAME, OURS).replace(b"\n", b"\r\n"),
        b"# " + line(NAME, OTHER) + b"\n\n" + line(NAME, OURS),
        line(NAME, RSA, "ssh-rsa") + line(NAME, OURS),
        b"\xff\xfe\n@cert-authority * ssh-rsa AAAA\nshort\n" + line(NAME, OURS),
        line(NAME, OTHER) + line(NAME, OURS),
    ],
)
def test_t01_known(data: bytes) -> None:
    """Plain, hashed, listed and pattern names, comments, CRLF, junk lines and CA lines: the key is known."""
    assert judge(data, NAME, OURS).state == "known"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        line("127.0.0.1", OTHER),
        line("[127.0.0.1]:22", OTHER),
        line(f"!{NAME},*", OTHER),
        line(hashed("vm"), OTHER),
        b"#" + line(NAME, OTHER),
        b"@cert-authority " + line(NAME, OTHER),
        b"@unknown " + line(NAME, OTHER),
        line("|1|bad|hash", OTHER),
        line("|1|AAAA", OTHER),
        f"{NAME} ssh-ed25519 !!!\n".encode(),
    ],
)
def test_t01_unknown(data: bytes) -> None:
    """Lines of other hosts, other ports, negated names, and lines nobody can read say nothing of this host."""
    assert judge(data, NAME, OURS).state == "unknown"


@pytest.mark.parametrize(
    ("data", "number"),
    [
        (line(NAME, OTHER), 1),
        (b"# first\n" + line(NAME, OTHER), 2),
        (line(NAME, RSA, "ssh-rsa") + line(NAME, OTHER), 2),
        (line(NAME, RSA, "ssh-rsa"), 1),
        (line(hashed(NAME), OTHER), 1),
    ],
)
def test_t01_changed(data: bytes, number: int) -> None:
    """A host with lines but none for this key has changed, whatever the type; the line of the same type is named."""
    verdict = judge(data, NAME, OURS)
    assert verdict.state == "changed"
    assert verdict.entry is not None
    assert verdict.entry.line == number


@pytest.mark.parametrize("where", ["*", NAME, "vm"])
def test_t01_revoked_beats_known(where: str) -> None:
    """A revoked key is refused though another line knows it; a revoked line for another host does not count."""
    data = b"@revoked " + line(where, OURS) + line(NAME, OURS)
    assert judge(data, NAME, OURS).state == ("known" if where == "vm" else "revoked")


def test_t01_keeping_a_key(tmp_path: Path) -> None:
    """An unknown key becomes one line behind what was there, once, also where the last line has no newline."""
    path = tmp_path / "known_hosts"
    before = b"# mine\n" + line("vm", OTHER).rstrip(b"\n")
    path.write_bytes(before)
    assert trust(path, name=NAME, kind="ssh-ed25519", blob=OURS, data=read(path))
    assert path.read_bytes() == before + b"\n" + line(NAME, OURS)
    assert not trust(path, name=NAME, kind="ssh-ed25519", blob=OURS, data=b"")
    assert path.read_bytes() == before + b"\n" + line(NAME, OURS)


def test_t01_another_process_was_quicker(tmp_path: Path) -> None:
    """A key that came into the file after we looked is held against: no second line, no silent other key."""
    path = tmp_path / "known_hosts"
    path.write_bytes(line(NAME, OTHER))
    with pytest.raises(Untrusted):
        trust(path, name=NAME, kind="ssh-ed25519", blob=OURS, data=b"")
    assert path.read_bytes() == line(NAME, OTHER)


def _keep(path: Path, number: int) -> None:
    _known_hosts._LOCK_SECONDS = 120.0  # of a process of its own
    for _ in range(5):
        trust(path, name=f"vm{number}", kind="ssh-ed25519", blob=OURS, data=b"")
        trust(path, name="shared", kind="ssh-ed25519", blob=OURS, data=b"")


def test_t01_processes_at_once(tmp_path: Path) -> None:
    """Four processes that keep keys at once leave each line once and whole."""
    path = tmp_path / "known_hosts"
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_keep, args=(path, number)) for number in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(300)
        assert process.exitcode == 0
    expected = [line(name, OURS) for name in ("vm0", "vm1", "vm2", "vm3", "shared")]
    assert sorted(path.read_bytes().splitlines(keepends=True)) == sorted(expected)


def test_t01_busy_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that another program keeps locked is exit 8, not a hang."""
    import fcntl

    from vmproxy.errors import Busy

    monkeypatch.setattr(_known_hosts, "_LOCK_SECONDS", 0.1)
    path = tmp_path / "known_hosts"
    with path.open("wb") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        with pytest.raises(Busy):
            trust(path, name=NAME, kind="ssh-ed25519", blob=OURS, data=b"")


def test_unusable_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A directory in the file's place, one in its way, or a huge file: exit 2 with the path, no traceback."""
    with pytest.raises(UsageError):
        read(tmp_path)
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UsageError):
        trust(tmp_path / "file" / "known_hosts", name=NAME, kind="ssh-ed25519", blob=OURS, data=b"")
    monkeypatch.setattr(_known_hosts, "_MAX_BYTES", 10)
    (tmp_path / "file").write_bytes(b"x" * 11)
    with pytest.raises(UsageError, match="too big"):
        read(tmp_path / "file")


def test_a_foreign_file_that_says_nothing_may_know_the_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Too big for us or no file: no key is a new one then. One that can be read knows what stands in it."""
    path = tmp_path / "file"
    assert not may_know(path, NAME)
    path.write_bytes(line(NAME, OURS))
    assert may_know(path, NAME) and not may_know(path, "other")
    assert may_know(tmp_path, NAME)
    monkeypatch.setattr(_known_hosts, "_MAX_BYTES", 10)
    assert may_know(path, "other")


def test_fingerprint_is_openssh_s() -> None:
    """As ssh-keygen -lf prints it: SHA-256, base64, no padding."""
    assert fingerprint(b"") == "SHA256:47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU"


@given(
    data=st.binary(max_size=300)
    | st.lists(st.sampled_from([b"*", b" ", b"\n", b"|1|", b"=", b"@revoked", b"ssh-rsa", b"AAAA", b"!", b"\xff"])).map(
        b"".join
    )
)
def test_t01_any_bytes(data: bytes) -> None:
    """No content of the file is a crash, and junk before a good line does not hide it."""
    entries(data, NAME)
    verdict = judge(data + b"\n" + line(NAME, OURS), NAME, OURS)
    assert verdict.state == "known"
