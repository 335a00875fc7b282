"""Frames on a byte stream, however it arrives."""

from __future__ import annotations

from hypothesis import example, given
from hypothesis import strategies as st

from tests.unit import worlds
from vmproxy.machines.frames import Frame, Splitter

NONCE = "0123456789abcdef0123456789abcdef"
OTHER = "f" * 32
WORD = st.text(alphabet="abcXYZ019/._-", min_size=1, max_size=12)
# Bodies full of what could be taken for a frame.
BODY = st.lists(
    st.one_of(
        st.binary(max_size=40),
        st.sampled_from(
            [b"\n", b"@", b"\n@", b"\r\n", b"\0", f"\n@{OTHER} end\n".encode(), f"\n@{NONCE[:-1]} end\n".encode(),
             f"@{NONCE}".encode(), NONCE.encode(), f"\n@{NONCE}\n".encode(), f" @{NONCE} end\n".encode()]
        ),
    ),
    max_size=6,
).map(b"".join)  # fmt: skip
FRAMES = st.lists(st.tuples(st.lists(WORD, min_size=1, max_size=4), BODY), max_size=6)


def stream(noise: bytes, frames: list[tuple[list[str], bytes]]) -> bytes:
    """As observe.sh writes it: a newline, the mark, the words, a newline; then the body."""
    return noise + b"".join(f"\n@{NONCE} {' '.join(words)}\n".encode() + body for words, body in frames)


def wanted(frames: list[tuple[list[str], bytes]]) -> list[Frame]:
    """The same as frames."""
    return [Frame(words=tuple(words), body=body) for words, body in frames]


def cut(data: bytes, places: list[int]) -> list[bytes]:
    """The stream in pieces."""
    ends = sorted({place % (len(data) + 1) for place in places})
    return [data[a:b] for a, b in zip([0, *ends], [*ends, len(data)], strict=True)]


def innocent(body: bytes) -> bool:
    """No frame of this very nonce is in it: nothing in a VM can know the nonce before it has the script."""
    return f"\n@{NONCE} ".encode() not in b"\n" + body


@given(noise=BODY.filter(innocent), frames=FRAMES, places=st.lists(st.integers(0, 5000), max_size=12))
@example(noise=b"", frames=[(["a"], b""), (["b"], b"\n@")], places=[1, 2, 3, 4, 5, 6])
def test_any_splitting_gives_the_same_frames(
    noise: bytes, frames: list[tuple[list[str], bytes]], places: list[int]
) -> None:
    """The same frames and the same noise in whatever pieces; bodies come through byte for byte (T03, P12)."""
    frames = [(words, body) for words, body in frames if innocent(body)]
    splitter = Splitter(NONCE)
    found: list[Frame] = []
    for piece in cut(stream(noise, frames), places):
        found += splitter.feed(piece)
    found += splitter.finish()
    assert found == wanted(frames)
    if frames:
        assert splitter.noise == noise


@given(frames=FRAMES, at=st.integers(0, 5000))
def test_a_stream_cut_anywhere_gives_a_beginning(frames: list[tuple[list[str], bytes]], at: int) -> None:
    """Truncated anywhere: the frames before the cut are whole, at most the last one is short, none is made up."""
    frames = [(words, body) for words, body in frames if innocent(body)]
    data = stream(b"", frames)
    splitter = Splitter(NONCE)
    found = [*splitter.feed(data[: at % (len(data) + 1)]), *splitter.finish()]
    whole = wanted(frames)
    assert found[:-1] == whole[: max(0, len(found) - 1)]
    if found:
        last, rest = whole[len(found) - 1], stream(b"", frames[len(found) :])
        assert (last.body + rest).startswith(found[-1].body)
        assert found[-1].words == last.words


def test_frames_of_another_nonce_are_content() -> None:
    """A file that holds a whole recorded look of another run is a body and nothing else."""
    recorded = worlds.raw("applied-nft")
    splitter = Splitter(NONCE)
    found = [*splitter.feed(stream(b"", [(["file", "/p"], recorded), (["end"], b"")])), *splitter.finish()]
    assert [(frame.kind, frame.body) for frame in found] == [("file", recorded), ("end", b"")]


def test_eager_frames_come_at_once() -> None:
    """A kind that the VM waits behind is given out when its line is whole, not when the next frame begins."""
    splitter = Splitter(NONCE, eager=frozenset({"ready"}))
    head = stream(b"", [(["daemon"], b"x"), (["ready", "now"], b"")])
    assert splitter.feed(head[:-1]) == []
    assert splitter.feed(head[-1:]) == [Frame(words=("daemon",), body=b"x"), Frame(words=("ready", "now"))]
    assert splitter.feed(stream(b"", [(["result", "kept", "0"], b"")])) == []
    assert splitter.finish() == [Frame(words=("result", "kept", "0"))]


def test_noise_is_bounded() -> None:
    """What stands before the first frame is kept up to its limit."""
    splitter = Splitter(NONCE, noise_limit_bytes=10)
    splitter.feed(b"x" * 1000)
    splitter.feed(stream(b"", [(["end"], b"")]))
    assert splitter.noise == b"x" * 10


def test_words_are_printable_ascii() -> None:
    """Bytes that are no ASCII in a frame's line become escapes; a frame without words is none."""
    splitter = Splitter(NONCE)
    found = splitter.feed(f"\n@{NONCE} leftover /a\\".encode() + b"\xff\n" + f"\n@{NONCE} \nbody".encode())
    found += splitter.finish()
    assert found == [Frame(words=("leftover", "/a\\\\xff"))]
    assert (Frame(words=()).kind, Frame(words=("a", "b", "c")).rest) == ("", "b c")
