"""vmproxy's own known_hosts: OpenSSH's format (sshd(8), "SSH_KNOWN_HOSTS FILE FORMAT"), trust on first use."""

from __future__ import annotations

import base64
import binascii
import contextlib
import fnmatch
import hashlib
import hmac
import os
import re
import shlex
import time
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Literal

from vmproxy.errors import Busy, Untrusted, UsageError
from vmproxy.model import printable
from vmproxy.values import dataclass

_MAX_BYTES = 8 << 20
_LOCK_SECONDS = 10.0


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One line that concerns a host: its number (from 1), marker ("" or ``@revoked``), key type and key bytes."""

    line: int
    marker: str
    kind: str
    blob: bytes


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What the file says about a key: known, unknown (no line names the host), changed, or revoked; and which line."""

    state: Literal["known", "unknown", "changed", "revoked"]
    entry: Entry | None = None


def host_name(host: str, port: int) -> str:
    """The name under which a key is kept: ``host``, or ``[host]:port`` off port 22; always lower case."""
    host = host.lower()
    return host if port == 22 else f"[{host}]:{port}"


def fingerprint(blob: bytes) -> str:
    """``SHA256:…`` as OpenSSH prints it: base64 without padding."""
    return "SHA256:" + base64.b64encode(hashlib.sha256(blob).digest()).decode().rstrip("=")


def check_pin(text: str) -> str:
    """A ``--host-key`` value, in the form of :func:`fingerprint`. Raises UsageError."""
    match = re.fullmatch(r"(?i:sha256):([A-Za-z0-9+/]{43})=?", text.strip())
    if not match:
        raise UsageError(
            f"{printable(text)} is no host key fingerprint",
            hint="as ssh-keygen -lf prints it: SHA256: and 43 characters",
        )
    return "SHA256:" + match[1]


@lru_cache(maxsize=8)  # each log-in asks several times
def entries(data: bytes, name: str) -> tuple[Entry, ...]:
    """Every line of a known_hosts file that names this host. Lines that cannot be read are passed over, as ssh does.

    ``@cert-authority`` lines are passed over too: a plain key is never checked against a CA.
    """
    return tuple(_entries(data, name))


def _entries(data: bytes, name: str) -> Iterator[Entry]:
    for number, marker, words in _lines(data):
        if not _names(words[0], name):
            continue
        try:
            blob = base64.b64decode(words[2], validate=True)
        except (binascii.Error, ValueError):
            continue
        yield Entry(line=number, marker=marker, kind=words[1], blob=blob)


@lru_cache(maxsize=2)  # many VMs are looked up in one file
def _lines(data: bytes) -> tuple[tuple[int, str, tuple[str, ...]], ...]:
    """The lines that have a key: number, marker, and the words behind it."""
    out = []
    for number, raw in enumerate(data.split(b"\n"), 1):
        words = raw.decode("utf-8", "replace").split()
        if not words or words[0].startswith("#"):
            continue
        marker = words.pop(0) if words[0].startswith("@") else ""
        if marker in ("", "@revoked") and len(words) >= 3:
            out.append((number, marker, tuple(words[:3])))
    return tuple(out)


def at_line(data: bytes, number: int) -> str:
    """The fingerprint of the key in that line (from 1), "" where there is none."""
    words = b"".join(data.split(b"\n")[number - 1 : number]).split()
    with contextlib.suppress(binascii.Error, ValueError):
        return fingerprint(base64.b64decode(words[2 + words[0].startswith(b"@")], validate=True)) if words[2:] else ""
    return ""


def prepare(path: Path) -> None:
    """Make the file, empty and for its owner alone, where another program is to keep keys in it. Raises UsageError."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600))
    except OSError as error:
        raise UsageError(
            f"cannot keep the host key: {error.strerror}", where=str(path), hint="--known-hosts FILE"
        ) from error


def knows(data: bytes, name: str) -> bool:
    """Whether the file has a key for this host, or a CA that signs for it: then no other key is a new one."""
    for raw in data.split(b"\n"):
        words = raw.decode("utf-8", "replace").split()
        if words and words[0] == "@cert-authority":
            words.pop(0)
        if len(words) >= 3 and not words[0].startswith(("#", "@")) and _names(words[0], name):
            return True
    return False


def _names(field: str, name: str) -> bool:
    if field.startswith("|1|"):
        try:
            salt, digest = (base64.b64decode(part, validate=True) for part in field[3:].split("|"))
        except (binascii.Error, ValueError):
            return False
        return hmac.compare_digest(hmac.new(salt, name.encode(), hashlib.sha1).digest(), digest)
    found = False
    for pattern in field.lower().split(","):
        if _match(pattern.removeprefix("!"), name):
            if pattern.startswith("!"):
                return False
            found = True
    return found


def _match(pattern: str, name: str) -> bool:
    """``*`` and ``?`` only: brackets are literal in a known_hosts pattern."""
    if "*" not in pattern and "?" not in pattern:
        return pattern == name
    return fnmatch.fnmatchcase(name, pattern.replace("[", "[[]"))


def judge(data: bytes, name: str, blob: bytes) -> Verdict:
    """What the file says about this key for this name.

    Stricter than ssh in one point: a host with a line, but with none for this key, has *changed*, whatever the key's
    type; else an impostor would only have to come with another type.
    """
    lines = entries(data, name)
    for entry in lines:
        if entry.marker == "@revoked" and entry.blob == blob:
            return Verdict(state="revoked", entry=entry)
    plain = [entry for entry in lines if not entry.marker]
    for entry in plain:
        if entry.blob == blob:
            return Verdict(state="known", entry=entry)
    if not plain:
        return Verdict(state="unknown")
    kind = _kind(blob)
    same = [entry for entry in plain if entry.kind == kind]
    return Verdict(state="changed", entry=(same or plain)[0])


def _kind(blob: bytes) -> str:
    return blob[4 : 4 + int.from_bytes(blob[:4], "big")].decode("ascii", "replace")[:64]


def default_path() -> Path:
    """The file in the platform's user state directory (``~/.local/state/vmproxy/known_hosts`` on Linux)."""
    import platformdirs

    return Path(platformdirs.user_state_dir("vmproxy", appauthor=False)) / "known_hosts"


def read(path: Path) -> bytes:
    """The file's bytes, b"" where there is none. Raises UsageError."""
    try:
        with path.open("rb") as stream:
            data = stream.read(_MAX_BYTES + 1)
    except FileNotFoundError:
        return b""
    except OSError as error:
        raise UsageError(f"cannot read the known hosts: {error.strerror}", where=str(path)) from error
    if len(data) > _MAX_BYTES:
        raise UsageError("the known hosts file is too big", where=str(path))
    return data


def may_know(path: Path, name: str) -> bool:
    """:func:`knows` of a file that is not ours: one that cannot be read, or is too big for us, may well have a key for
    this host, and a key is no new one then."""
    try:
        return knows(read(path), name)
    except UsageError:
        return True


def trust(path: Path, *, name: str, kind: str, blob: bytes, data: bytes) -> bool:
    """Hold this key against the file whose bytes are ``data``; keep an unknown one. True if it was new.

    Raises Untrusted for a changed or revoked key, with both fingerprints, file, line and the command to forget.
    """
    verdict = judge(data, name, blob)
    if verdict.state == "unknown":
        return _keep(path, name=name, kind=kind, blob=blob)
    _refuse(verdict, path, name, blob)
    return False


def _refuse(verdict: Verdict, path: Path, name: str, blob: bytes) -> None:
    if verdict.state in ("known", "unknown") or verdict.entry is None:
        return
    where = f"{path}:{verdict.entry.line}"
    if verdict.state == "revoked":
        raise Untrusted(f"the host key of {name} is revoked: {fingerprint(blob)}", where=where)
    raise Untrusted(
        f"the host key has changed: known {fingerprint(verdict.entry.blob)}, now {fingerprint(blob)}; not logging in",
        where=where,
        hint=f"if the VM was made anew: ssh-keygen -R {shlex.quote(name)} -f {shlex.quote(str(path))}",
    )


def _keep(path: Path, *, name: str, kind: str, blob: bytes) -> bool:
    """Append one line under a lock; another process may have been quicker, with this key or with another."""
    line = f"{name} {kind} {base64.b64encode(blob).decode()}\n".encode()
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | getattr(os, "O_BINARY", 0), 0o600)
    except OSError as error:
        raise UsageError(
            f"cannot keep the host key: {error.strerror}", where=str(path), hint="--known-hosts FILE"
        ) from error
    with os.fdopen(descriptor, "r+b", buffering=0) as stream, _locked(stream.fileno(), path):
        stream.seek(0)
        data = stream.read(_MAX_BYTES) or b""
        verdict = judge(data, name, blob)
        if verdict.state != "unknown":
            _refuse(verdict, path, name, blob)
            return False
        stream.write(line if not data or data.endswith(b"\n") else b"\n" + line)
        with contextlib.suppress(OSError):
            os.fsync(stream.fileno())
    return True


@contextlib.contextmanager
def _locked(descriptor: int, path: Path) -> Iterator[None]:
    """The whole file locked against other vmproxy processes for a moment. Raises Busy."""
    deadline = time.monotonic() + _LOCK_SECONDS
    while not _try_lock(descriptor):
        if time.monotonic() > deadline:
            raise Busy("another program holds the known hosts", where=str(path))
        time.sleep(0.02)
    yield  # closing the descriptor lets go


def _try_lock(descriptor: int) -> bool:
    try:
        if os.name == "nt":
            import msvcrt

            os.lseek(descriptor, _MAX_BYTES, os.SEEK_SET)  # a byte nobody writes: Windows locks are mandatory
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined,unused-ignore]
        else:
            import fcntl

            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
