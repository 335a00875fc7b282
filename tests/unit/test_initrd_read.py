"""Initramfs images read: by our own writer and by GNU's programs, as the kernel unpacks them, and hostile ones."""

from __future__ import annotations

import gc
import gzip
import lzma
import os
import stat
import tracemalloc
import weakref
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from tests.unit import images
from vmproxy import initrd, members, newc
from vmproxy.compression import packer
from vmproxy.errors import ForeignFile, Refused
from vmproxy.initrd import Image
from vmproxy.members import Budget, Stream

LIMIT = 1 << 20


def read(image: Image, path: bytes) -> bytes | None:
    """A file as the VM reads it."""
    name = image.find(path)
    return None if name is None else image.contents([name], limit_bytes=LIMIT)[name]


def again(content: bytes) -> bytes:
    """An archive read record by record and written anew."""
    stream = Stream(content, "cpio", 0, Budget())
    out = b""
    for entry in newc.entries(stream, many=False):
        assert not isinstance(entry, int)
        fields = ("ino", "uid", "gid", "nlink", "mtime", "devmajor", "devminor", "rdevmajor", "rdevminor", "check")
        out += newc.record(
            entry.name,
            stream.take(entry.size),
            entry.raw[:6],
            mode=entry.field("mode"),
            **{name: entry.field(name) for name in fields},
        )
    return out + content[len(out) :]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A directory with all that cpio knows and may be made here."""
    root = tmp_path / "tree"
    (root / "etc/init.d").mkdir(parents=True)
    (root / "usr/bin").mkdir(parents=True)
    script = root / "etc/init.d/docker"
    script.write_bytes(images.SCRIPT)
    script.chmod(0o755)
    (root / "usr/bin/mobyconfig").write_bytes(b"#!/bin/sh\nexit 1\n")
    (root / "usr/bin/one").write_bytes(b"shared\n" * 1000)
    os.link(root / "usr/bin/one", root / "usr/bin/two")
    (root / "bin").symlink_to("usr/bin")
    os.mkfifo(root / "fifo", 0o600)
    (root / "usr/bin/one").chmod(0o4755)
    return root


@pytest.mark.parametrize("kind", ["cpio", "gzip", "xz", "zstd", "lzma"])
def test_gnu_images_are_read(tree: Path, kind: str) -> None:
    """What GNU cpio and each compressor pack is read: contents, modes, links; behind microcode and zeros too."""
    for content in (images.gnu(tree, kind), images.early() + images.gnu(tree, kind)):
        image = Image(content)
        image.must_be_read()
        assert read(image, b"/etc/init.d/docker") == images.SCRIPT
        assert read(image, b"/bin/one") == read(image, b"/usr/bin/two") == b"shared\n" * 1000
        found = image.node(image.find(b"/bin/two") or b"")
        assert found is not None
        assert newc.field(found.raw, "mode") == stat.S_IFREG | 0o4755
        assert image.file("/fifo", {}).kind == "other"
        assert image.file("/bin", {}).kind == "link"
        assert image.matching(b"/etc/*/docker") == (b"/etc/init.d/docker",)
        assert b"".join(content[span.start : span.end] for span in image.spans) == content


def test_written_as_gnu_cpio_writes(tree: Path) -> None:
    """An archive of GNU cpio, read and written anew, is the same to the byte: also the newc format with checksums."""
    plain = images.gnu(tree, "cpio")
    assert again(plain) == plain
    names = b"etc/init.d/docker\nusr/bin/one\nusr/bin/two\nbin\n"
    checked = images.run(("cpio", "-o", "-H", "crc", "--quiet"), names, cwd=tree)
    assert checked.startswith(b"070702")
    assert again(checked) == checked


@pytest.mark.parametrize("kind", images.KINDS)
def test_a_later_member_wins(kind: str) -> None:
    """As the kernel unpacks them: files, links instead of files, files through links of an earlier member."""
    later = images.pack(
        newc.archive(
            [
                images.file(b"./etc/os-release", b"ID=later\n"),
                images.file(b"bin/new", b"through the link\n"),
                images.link(b"etc/init.d/docker", b"/usr/bin/one"),
            ]
        ),
        "gzip",
    )
    first = images.moby(kind)
    image = Image(images.early() + first + later)
    assert read(image, b"/etc/os-release") == b"ID=later\n"
    assert read(image, b"/usr/bin/new") == b"through the link\n"
    assert read(image, b"/etc/init.d/docker") == b"shared\n"
    assert read(image, b"/kernel/x86/../x86/microcode/GenuineIntel.bin") == bytes(range(256)) * 9
    assert [span.kind for span in image.spans] == [
        "cpio",
        "zeros",
        kind,
        *(["zeros"] if kind == "cpio" else []),
        "gzip",
    ]


def test_two_archives_inside_one_member() -> None:
    """A compressed member may hold several archives with zeros between them."""
    one = newc.archive([images.directory(b"etc"), images.file(b"etc/a", b"1")])
    two = newc.archive([images.file(b"etc/a", b"2"), images.file(b"etc/b", b"3")])
    image = Image(images.pack(one + bytes(512) + two, "xz"))
    assert read(image, b"/etc/a") == b"2"
    assert read(image, b"/etc/b") == b"3"


def test_t15_names_stay_inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``..``, absolute names and links out of the image end at its root; nothing appears on this host."""
    monkeypatch.chdir(tmp_path)
    records = [
        images.directory(b"etc"),
        images.file(b"../../escape", b"1"),
        images.file(b"/etc/absolute", b"2"),
        images.link(b"etc/out", b"../../../../../../etc"),
        images.file(b"etc/out/through", b"3"),
        images.link(b"loop", b"loop"),
        images.file(b"loop/x", b"4"),
        images.file(b"nowhere/x", b"5"),
        images.file(b"etc/absolute/x", b"6"),
        images.file(b"etc/..", b"7"),
        images.file(b"etc/absolute/../through", b"8"),
    ]
    image = Image(newc.archive(records))
    assert read(image, b"/escape") == b"1"
    assert read(image, b"/etc/absolute") == b"2"
    assert read(image, b"/../etc/through") == b"3"
    assert image.find(b"/loop") is None
    assert image.find(b"/loop/x") is None
    assert image.find(b"/nowhere/x") is None
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("content", "said"),
    {
        "empty": (b"", "no archive"),
        "zeros": (bytes(4096), "no archive"),
        "text": (b"hello, world\n", "no archive"),
        "lz4": (images.early() + b"\x02\x21\x4c\x18" + bytes(range(99)), "compressed with lz4"),
        "lz4 frame": (b"\x04\x22\x4d\x18" + bytes(99), "compressed with lz4"),
        "lzop": (b"\x89LZO\0\r\n\x1a\n" + bytes(99), "compressed with lzop"),
        "old cpio": (b"070707" + b"0" * 70, "old format"),
        "kernel": (b"MZ" + bytes(99), "a program"),
        "bootconfig": (images.moby() + b"a=1\n" + bytes(8) + b"#BOOTCONFIG\n", "boot configuration"),
        "not aligned": (images.moby() + b"\0" * ((1 - len(images.moby())) % 4) + images.early(), "multiple of 4"),
    }.values(),
)
def test_f72_what_is_not_read_is_named(content: bytes, said: str) -> None:
    """Exit 6 with the compression's name; every byte of it is still accounted for."""
    image = Image(content)
    with pytest.raises(ForeignFile, match=said) as caught:
        image.must_be_read()
    assert caught.value.exit == 6
    assert b"".join(content[span.start : span.end] for span in image.spans) == content


def header(**numbers: bytes) -> bytes:
    """A header with some fields as they must not be."""
    fields = dict.fromkeys(("ino", "mode", "uid", "gid", "nlink", "mtime", "filesize", "a", "b", "c", "d"), b"0" * 8)
    fields |= {"namesize": b"00000002", "check": b"0" * 8, **numbers}
    return b"070701" + b"".join(fields.values()) + b"x\0"


@pytest.mark.parametrize(
    ("content", "said"),
    {
        "not hex": (header(mode=b"0000zzzz"), "no header"),
        "a sign": (header(filesize=b"      -1"), "no header"),
        "a name of nothing": (header(namesize=b"00000000"), "a name of 0 bytes"),
        "a long name": (header(namesize=b"00001001") + bytes(5000), "a name of 4097 bytes"),
        "a name without end": (header(namesize=b"00000001") + bytes(50), "has no end"),
        "a huge file": (header(filesize=b"FFFFFFFF") + bytes(50), "cut short"),
        "a long link": (header(mode=b"0000A1FF", filesize=b"00002000") + bytes(9000), "symbolic link"),
        "no trailer": (newc.record(b"a", b"1", mode=0o100644), "cut short"),
        "half a header": (newc.archive([])[:60], "cut short"),
        "junk between": (images.pack(newc.archive([]) + b"junk" * 64, "gzip"), "no header"),
    }.values(),
)
def test_t15_absurd_headers_are_one_line(content: bytes, said: str) -> None:
    """Each ends with its member named, exit 6; also inside a compressed member."""
    for whole in (content, images.pack(content, "xz")) if content[:1] == b"0" else (content,):
        with pytest.raises(ForeignFile, match=said) as caught:
            Image(whole)
        assert "member 1" in caught.value.where


@pytest.mark.parametrize("kind", ["gzip", "xz", "zstd", "lzma", "bzip2"])
def test_f72_a_truncated_or_broken_member(kind: str) -> None:
    """Cut anywhere, or with a wrong byte where the format keeps a checksum: refused in one line, or read whole."""
    whole = images.moby(kind)
    for cut in range(4, len(whole), 7):
        with pytest.raises(ForeignFile):
            Image(whole[:cut]).must_be_read()
    right = Image(whole)
    for at in range(0, len(whole), 5):
        wrong = whole[:at] + bytes([whole[at] ^ 0x55]) + whole[at + 1 :]
        try:
            image = Image(wrong)
            image.must_be_read()
        except ForeignFile as error:
            assert "\n" not in str(error)
        else:
            if kind != "lzma":  # which has no checksum
                assert image.names_in(range(99)) == right.names_in(range(99))


def measured(content: bytes) -> tuple[int, str]:
    """The peak of memory taken while an image is read, beside the image itself, and what was said."""
    tracemalloc.start()
    try:
        try:
            Image(content).must_be_read()
            said = ""
        except Refused as error:
            said = str(error)
        return tracemalloc.get_traced_memory()[1], said
    finally:
        tracemalloc.stop()


def zeros(size: int) -> Iterator[bytes]:
    """An archive with one file of so many zeros, piece by piece."""
    yield newc.record(b"big", mode=0o100644)[:54] + b"%08X" % size + b"0" * 32 + b"00000004" + b"0" * 8 + b"big\0\0\0"
    for _ in range(size >> 20):
        yield bytes(1 << 20)


@pytest.mark.parametrize("kind", ["gzip", "xz", "zstd", "lzma", "bzip2"])
def test_t15_a_bomb_is_stopped(kind: str) -> None:
    """200 times what goes in is the end, in memory that hangs on the input's size (P14)."""
    packed = packer(kind)
    content = b"".join([*(packed.compress(piece) for piece in zeros(64 << 20)), packed.flush()])
    peak, said = measured(content)
    assert "more than 200 times its size" in said
    assert peak < 4 * len(content) + (64 << 20)


@pytest.mark.parametrize("kind", images.KINDS)
def test_p14_what_unpacks_goes_when_nobody_needs_it(kind: str) -> None:
    """The dictionary of xz -9 alone is 64 MiB: it does not stay until the next collection of garbage."""
    stream = Stream(images.moby(kind), kind, 0, Budget())
    assert stream.some(4) == b"0707"
    seen = weakref.ref(stream)
    gc.disable()
    try:
        del stream
        assert seen() is None
    finally:
        gc.enable()


def test_t15_zstd_blocks_of_nothing() -> None:
    """Blocks of one byte that stand for 128 KiB each are unpacked one by one; a huge window is refused unseen."""
    block = ((128 << 10) << 3 | 1 << 1).to_bytes(3, "little") + b"\0"
    start = b"\x28\xb5\x2f\xfd\x00"
    peak, said = measured(start + b"\x60" + block * 100_000)
    assert "no header" in said
    assert peak < (16 << 20) + 4 * 400_000
    named = newc.record(b"big", mode=0o100644)[:54] + b"7FFFFFFF" + b"0" * 32 + b"00000004" + b"0" * 8 + b"big\0\0\0"
    peak, said = measured(start + b"\x60" + (len(named) << 3).to_bytes(3, "little") + named + block * 100_000)
    assert "times its size" in said
    assert peak < (16 << 20) + 4 * 400_000
    _peak, said = measured(start + b"\xff" + block * 10)
    assert "window" in said
    with pytest.raises(ForeignFile, match="dictionary"):
        Image(b"\x28\xb5\x2f\xfd\x01\x60\x01" + block)


def _long(count: int) -> Iterator[bytes]:
    return (newc.record(b"%060x" % number, mode=0o100644) for number in range(count))


def _short(count: int) -> Iterator[bytes]:
    return (newc.record(b"%x" % number, mode=0o100644) for number in range(count))


def _linked(count: int) -> Iterator[bytes]:
    return (newc.record(b"%x" % number, mode=0o100644, nlink=2, ino=number) for number in range(count))


def _behind_a_link(count: int) -> Iterator[bytes]:
    """A name of four bytes, and with what the link stands for a path of 3,800."""
    parts = [b"%02d" % number + b"n" * 250 for number in range(15)]
    yield from (images.directory(b"/".join(parts[: number + 1])) for number in range(15))
    yield images.link(b"s", b"/" + b"/".join(parts))
    yield from (newc.record(b"s/%x" % number, mode=0o100644) for number in range(count))


@pytest.mark.parametrize("shape", [_long, _short, _linked, _behind_a_link])
def test_t15_more_names_than_its_size_allows(
    shape: Callable[[int], Iterator[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Names beyond the limit are refused, however little they take packed; of those below it three images, as many as
    a change holds, fit into 64 MiB."""
    kept = initrd._MOST_KEPT_BYTES // 4
    monkeypatch.setattr(initrd, "_MOST_KEPT_BYTES", kept)
    content = gzip.compress(b"".join(shape(20_000)) + newc.archive([]), 9)
    peak, said = measured(content)
    assert "too many names" in said
    assert 3 * (peak - (2 << 20)) < (64 << 20) // 4
    assert measured(gzip.compress(b"".join(shape(500)) + newc.archive([]), 9))[1] == ""


def test_t15_a_file_of_many_names_each_with_content() -> None:
    """The last content counts for every name: to give it to all of them each time would take for ever."""
    records = [newc.record(b"%x" % number, b"x", mode=0o100644, nlink=2, ino=7) for number in range(20_000)]
    assert "too many links" in measured(gzip.compress(newc.archive(records), 9))[1]
    image = Image(newc.archive(records[:50]))
    assert {image.contents([name], limit_bytes=9)[name] for name in (b"/0", b"/31")} == {b"x"}


def test_t15_gigabytes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond the absolute limit nothing is unpacked, whatever the ratio."""
    monkeypatch.setattr(members, "MOST_BYTES", 1 << 20)
    noise = b"".join(zlib.compress(os.urandom(64)) for _ in range(40_000))
    with pytest.raises(ForeignFile, match="unpacks to more than"):
        Image(images.pack(newc.archive([images.file(b"noise", noise)]), "gzip"))


def test_t15_many_members() -> None:
    """Thousands of tiny members are refused, not read for ever."""
    with pytest.raises(ForeignFile, match="members"):
        Image(gzip.compress(newc.archive([])) * 5000)


NAMES = some.lists(some.binary(min_size=1, max_size=40).filter(lambda name: b"\0" not in name), max_size=8)
FIELDS = some.fixed_dictionaries(
    {
        name: some.integers(0, 0xFFFFFFFF)
        for name in ("ino", "uid", "gid", "nlink", "mtime", "devmajor", "devminor", "rdevmajor", "rdevminor")
    }
)


@given(
    records=some.lists(
        some.tuples(
            some.binary(min_size=1, max_size=60).filter(lambda name: b"\0" not in name and name != newc.TRAILER),
            some.binary(max_size=200),
            some.sampled_from([stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK, stat.S_IFCHR, stat.S_IFIFO]),
            FIELDS,
        ),
        max_size=8,
    ),
    kind=some.sampled_from(images.KINDS),
    gap=some.integers(0, 9),
)
@settings(max_examples=60, deadline=None)
def test_p14_what_is_written_is_read(
    records: list[tuple[bytes, bytes, int, dict[str, int]]], kind: str, gap: int
) -> None:
    """read(write(m)) == m for any names, numbers and contents, alone and behind others in an image."""
    content = newc.archive([newc.record(name, data, mode=bits | 0o644, **more) for name, data, bits, more in records])
    assert again(content) == content
    whole = content + bytes(4 * gap) + images.pack(content, kind)
    image = Image(whole)
    image.must_be_read()
    assert b"".join(whole[span.start : span.end] for span in image.spans) == whole
    _stream, items = image.walk(image.members[-1])
    names = [entry.name for entry in items if not isinstance(entry, int)]
    assert names == [*(name for name, _data, _bits, _more in records), newc.TRAILER]


@given(data=some.data())
@settings(max_examples=150, deadline=None)
def test_p14_mutated_and_arbitrary_bytes(data: some.DataObject) -> None:
    """Nothing but one of our errors, and no memory beyond the bound."""
    kind = data.draw(some.sampled_from(images.KINDS))
    content = bytearray(data.draw(some.sampled_from([images.moby(kind), images.early() + images.moby(kind), b""])))
    content += data.draw(some.binary(max_size=64))
    for _ in range(data.draw(some.integers(0, 4)) if content else 0):
        content[data.draw(some.integers(0, len(content) - 1))] = data.draw(some.integers(0, 255))
    peak, said = measured(bytes(content[: data.draw(some.integers(0, len(content)))]))
    assert "\n" not in said
    assert peak < 4 * len(content) + (64 << 20)


def test_xz_with_the_largest_preset() -> None:
    """Images of ``xz -9`` are read, although their dictionary is 64 MiB; one that wants more is not."""
    whole = newc.archive(images.moby_records())
    Image(lzma.compress(whole, preset=9, check=lzma.CHECK_CRC32)).must_be_read()
    filters = [{"id": lzma.FILTER_LZMA2, "dict_size": 1 << 29}]
    with pytest.raises(ForeignFile):
        Image(lzma.compress(whole, format=lzma.FORMAT_XZ, filters=filters))
