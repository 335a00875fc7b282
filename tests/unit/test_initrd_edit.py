"""Files put into images of any shape and taken out again: the pure part, by properties."""

from __future__ import annotations

import stat
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from tests.unit import images
from vmproxy import initrdedit, newc, providers
from vmproxy.errors import ForeignFile, Refused, UsageError
from vmproxy.initrd import Image
from vmproxy.initrdmark import Mark, fingerprint
from vmproxy.model import File

OTHERS = some.lists(
    some.builds(
        images.file,
        some.binary(min_size=1, max_size=30).filter(
            lambda name: b"\0" not in name and b"etc" not in name and name != newc.TRAILER
        ),
        some.binary(max_size=300),
        mode=some.integers(0, 0o7777),
        ino=some.integers(0, 0xFFFFFFFF),
        nlink=some.integers(0, 9),
        mtime=some.integers(0, 0xFFFFFFFF),
    ),
    max_size=5,
)
CONTENT = some.binary(max_size=400)
FILE = some.builds(
    File,
    path=some.just("/etc/ours"),
    content=CONTENT,
    mode=some.integers(0, 0o7777),
    uid=some.integers(0, 0xFFFFFFFF),
    gid=some.integers(0, 0xFFFFFFFF),
)


def shape(others: list[bytes], kind: str, front: bool, gap: int, there: bool) -> bytes:
    """An image of some members, with or without a file where ours goes."""
    own = [images.file(b"etc/ours", b"theirs\n", ino=7, mtime=9, uid=3)] if there else []
    main = images.pack(newc.archive([images.directory(b"etc"), *own, *others]), kind)
    return (images.early() if front else b"") + main + bytes(4 * gap)


def seen(image: Image) -> File:
    """Our file as the VM will have it."""
    name = image.find(b"/etc/ours")
    assert name is not None
    return image.file("/etc/ours", image.contents([name], limit_bytes=1 << 20))


@given(
    others=OTHERS,
    kind=some.sampled_from(images.APPENDABLE),
    front=some.booleans(),
    gap=some.integers(0, 3),
    there=some.booleans(),
    file=FILE,
    mode=some.none() | some.integers(0, 0o7777),
)
@settings(max_examples=60, deadline=None)
def test_p14_appended_and_cut_off(
    others: list[bytes], kind: str, front: bool, gap: int, there: bool, file: File, mode: int | None
) -> None:
    """The file is seen with its bytes, mode and owner; our mark is read back; cut off, not a byte is left."""
    base = Image(shape(others, kind, front, gap, there))
    image = Image(initrdedit.append(base, [file], mode=mode))
    assert seen(image) == file
    assert initrdedit.without_ours(image) == base.content
    (mark,) = image.marks.values()
    assert mark == Mark(appended=True, base=fingerprint(base.content), padding=mark.padding, mode=mode)
    again = Image(initrdedit.append(image, [file], mode=None))
    assert initrdedit.without_ours(again) == base.content


@given(
    others=OTHERS,
    kind=some.sampled_from(images.KINDS),
    front=some.booleans(),
    gap=some.integers(0, 3),
    there=some.booleans(),
    file=FILE,
)
@settings(max_examples=60, deadline=None)
def test_p14_rewritten_in_place(others: list[bytes], kind: str, front: bool, gap: int, there: bool, file: File) -> None:
    """Our file has its bytes, mode and owner, and keeps its number and time; every other record is the same."""
    base = Image(shape(others, kind, front, gap, there))
    image = Image(initrdedit.rewrite(base, [file], mode=None))
    assert seen(image) == file
    assert initrdedit.differing(base, image) == {b"etc/ours"}
    if there:
        node = image.node(b"/etc/ours")
        assert node is not None
        assert [newc.field(node.raw, name) for name in ("ino", "mtime", "nlink")] == [7, 9, 1]
    assert [span.kind for span in image.spans if span.kind != "zeros"] == [
        span.kind for span in base.spans if span.kind != "zeros"
    ]


def test_checksums_of_the_crc_format_are_right() -> None:
    """A record of the format with checksums stays one, with the new content's sum."""
    whole = b"".join(
        [
            newc.record(b"etc", mode=stat.S_IFDIR | 0o755),
            newc.record(b"etc/ours", b"\x01\x02", b"070702", mode=stat.S_IFREG | 0o644),
            newc.trailer(),
        ]
    )
    image = Image(initrdedit.rewrite(Image(whole), [File(path="/etc/ours", content=b"\xff\xff\xff")], mode=None))
    node = image.node(b"/etc/ours")
    assert node is not None
    assert node.raw[:6] == b"070702"
    assert newc.field(node.raw, "check") == 3 * 0xFF


def test_a_newer_mark_is_not_touched() -> None:
    """An image changed by a later vmproxy in another way is refused with the way out."""
    mark = Mark(appended=True, base=bytes(16)).trailer()
    newer = mark[:22] + b"00000002" + mark[30:]
    assert Image(newc.archive([], mark)).marks
    with pytest.raises(ForeignFile) as caught:
        Image(newc.archive([], newer))
    assert "newer" in caught.value.what


def test_zstd_without_a_library(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where Python has no zstd, what to install is said; other images need nothing."""
    whole = images.moby("zstd")
    monkeypatch.setitem(sys.modules, "zstandard", None)
    monkeypatch.setitem(sys.modules, "compression.zstd", None)
    with pytest.raises(Refused) as caught:
        Image(whole)
    assert caught.value.hint == "pip install 'vmproxy[initrd]'"
    Image(images.moby("gzip")).must_be_read()


def test_the_provider() -> None:
    """``initrd:FILE`` is a target without a transport; ``~/`` is the user's directory."""
    member = providers.load("initrd")
    target = member.parse("~/initrd.img", {"HOME": "/home/ann"}, providers.Answers())
    assert target is not None
    assert (target.name, target.transport, target.machine) == ("initrd:~/initrd.img", "", "image")
    assert target.directory.replace("\\", "/") == "/home/ann/initrd.img"
    assert member.queries("x", {}, providers.Answers()) == member.listing({}) == providers.Queries()
    assert member.names({}, providers.Answers()) == ()
    for name in ("", "a\0b"):
        with pytest.raises(UsageError):
            member.parse(name, {}, providers.Answers())
