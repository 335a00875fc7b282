"""Frames on a stream of bytes: ``\\n@NONCE words…\\n`` and then raw bytes up to the next such line.

The nonce is 128 random bits made for one run, so that no file content, banner or echo in the VM can look like a frame.
"""

from __future__ import annotations

from vmproxy.values import dataclass


@dataclass(frozen=True, kw_only=True)
class Frame:
    """One frame: its words (printable ASCII, the first is its kind) and the raw bytes that follow its line."""

    words: tuple[str, ...]
    body: bytes = b""

    @property
    def kind(self) -> str:
        """The first word, "" where there is none."""
        return self.words[0] if self.words else ""

    @property
    def rest(self) -> str:
        """The words behind the first, joined by single spaces (paths of ours hold none)."""
        return " ".join(self.words[1:])


class Splitter:
    """Cuts frames out of a stream that arrives in pieces. A frame is given out when the next one begins, or at once
    where
    its kind is in ``eager`` (frames without a body, after which the VM waits for us)."""

    def __init__(self, nonce: str, *, eager: frozenset[str] = frozenset(), noise_limit_bytes: int = 65536) -> None:
        self._mark = b"\n@" + nonce.encode("ascii") + b" "
        self._eager = eager
        self._buffer = bytearray(b"\n")
        self._words: tuple[str, ...] | None = None
        self._searched = 0
        self._noise_limit = noise_limit_bytes
        self.noise = b""

    def feed(self, data: bytes) -> list[Frame]:
        """The frames that are complete now. What stands before the first frame (a banner) goes to ``noise``."""
        self._buffer += data
        out: list[Frame] = []
        while True:
            at = self._buffer.find(self._mark, self._searched)
            if at < 0:
                self._searched = max(0, len(self._buffer) - len(self._mark) + 1)
                return out
            end = self._buffer.find(b"\n", at + len(self._mark))
            if end < 0:
                self._searched = at
                return out
            self._close(bytes(self._buffer[:at]), out)
            line = bytes(self._buffer[at + len(self._mark) : end])
            self._words = tuple(line[:1000].decode("ascii", "backslashreplace").split())
            # The line's own newline stays: it may be the one that begins the next frame's line.
            del self._buffer[:end]
            self._searched = 0
            if self._words and self._words[0] in self._eager:
                out.append(Frame(words=self._words))
                self._words = ()

    def finish(self) -> list[Frame]:
        """The last frame, at the end of the stream."""
        out: list[Frame] = []
        self._close(bytes(self._buffer), out)
        self._buffer.clear()
        self._words = ()
        return out

    def _close(self, before: bytes, out: list[Frame]) -> None:
        body = before[1:]  # behind the newline that ended the frame's own line
        if self._words is None:
            self.noise = body[: self._noise_limit]
        elif self._words:
            out.append(Frame(words=self._words, body=body))
