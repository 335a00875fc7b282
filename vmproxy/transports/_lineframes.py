"""What travels on a serial line, as text: requests up, answers down, each with a digest. PURE.

An answer is one line that begins with a word which never travels up: no echo, and nothing that a command or the kernel
says, can be taken for one. What is broken on its way is not an answer, and is asked for again.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Iterator

from vmproxy.values import dataclass

LINE_LIMIT = 1000
PIECE_BYTES = 2250
"""Three lines of base64: they fit into the 4,096 bytes that a Linux tty keeps for a slow reader (n_tty.c)."""
_ANSWER_LIMIT_BYTES = 64 << 10
KERNEL = re.compile(rb"(?:<\d>)?\[ *\d+\.\d{6}\][^\n]*\n")
"""A message of the Linux kernel's (printk with its usual time stamp), which may come in the middle of anything."""
_ESCAPES = re.compile(rb"\x1b(?:\[[0-9;?]*[ -/]*[@-~]|[()][A-Z0-9]|[=>78])")


def digest(text: str) -> str:
    """Of a line of text in ASCII, as ``sha256sum`` gives it: with the newline."""
    return hashlib.sha256(f"{text}\n".encode("ascii")).hexdigest()


def plain(data: bytes) -> bytes:
    """Without terminal escapes (ECMA-48) and carriage returns."""
    return _ESCAPES.sub(b"", data).replace(b"\r", b"")


def body(identity: str, number: int, data: bytes) -> tuple[str, bytes]:
    """The words behind the verb, and the lines behind the request, for one piece of at most :data:`PIECE_BYTES`."""
    text = base64.b64encode(data).decode("ascii")
    lines = [text[at : at + LINE_LIMIT] for at in range(0, len(text), LINE_LIMIT)]
    words = f"{identity} {number} {len(lines)} {digest(f'{identity} {number} {text}')}"
    return words, "".join(f"{line}\n" for line in lines).encode("ascii")


def pieces(data: bytes) -> Iterator[bytes]:
    """The data in pieces that a request can carry."""
    for at in range(0, len(data), PIECE_BYTES):
        yield data[at : at + PIECE_BYTES]


@dataclass(frozen=True, kw_only=True)
class Answer:
    """One answer. ``kind`` is its first word: yes, no, bad, full, none, or what a poll found (out, err, status).

    For ``out`` and ``err`` there are the piece's number and content; ``status`` is the command's.
    """

    tag: int
    kind: str
    words: tuple[str, ...] = ()
    number: int = 0
    data: bytes = b""
    status: int = 0


class Answers:
    """Cuts answers out of the line. ``mark`` is the word that answers begin with."""

    def __init__(self, mark: str) -> None:
        self._mark = f"@{mark} ".encode("ascii")
        self._shape = re.compile(rb"@" + re.escape(mark.encode("ascii")) + rb" (\d{1,9}) ([!-~][ -~]*) \.")
        self._buffer = bytearray()
        self.broken = 0
        """Lines that began as an answer and were none."""

    def feed(self, data: bytes, identity: str = "") -> list[Answer]:
        """The answers that are whole now; ``identity`` is the command that a poll is about."""
        self._buffer += data
        # One that is cut in two by the kernel is made whole again; its digest says whether that went well.
        whole, newline, rest = bytes(self._buffer).rpartition(b"\n")
        *lines, rest = (KERNEL.sub(b"", whole + newline) + rest).split(b"\n")
        self._buffer = bytearray(rest[-_ANSWER_LIMIT_BYTES:])
        found = []
        for line in lines:
            at = line.find(self._mark)
            if at < 0:
                continue
            match = self._shape.fullmatch(line[at:].rstrip(b"\r"))
            answer = _read(int(match[1]), match[2].decode("ascii").split(" "), identity) if match else None
            if answer is None:
                self.broken += 1
            else:
                found.append(answer)
        return found


def _read(tag: int, words: list[str], identity: str) -> Answer | None:
    """What the words say; None where the digest does not agree."""
    kind, rest = words[0], words[1:]
    if kind in ("out", "err"):
        if len(rest) != 3 or not rest[0].isdigit() or digest(f"{identity} {kind} {rest[0]} {rest[2]}") != rest[1]:
            return None
        try:
            data = base64.b64decode(rest[2], validate=True)
        except binascii.Error:
            return None
        return Answer(tag=tag, kind=kind, number=int(rest[0]), data=data)
    if kind == "status":
        if len(rest) != 2 or not re.fullmatch(r"\d{1,3}", rest[0]) or digest(f"{identity} status {rest[0]}") != rest[1]:
            return None
        return Answer(tag=tag, kind=kind, status=int(rest[0]))
    return Answer(tag=tag, kind=kind, words=tuple(rest))
