"""The pieces that the QEMU VM's root is made of, without QEMU."""

from __future__ import annotations

import io
import socket
import stat
import sys
import threading
from pathlib import Path

import pytest

from tests.lab import elf, kmod, newc
from tests.lab.qmp import Qmp, QmpError
from tests.lab.serialline import KERNEL


def _records(data: bytes) -> dict[str, tuple[list[int], bytes]]:
    """``{name: (the 13 numbers, content)}`` as the kernel reads them."""
    found = {}
    at = 0
    while True:
        assert data[at : at + 6] == b"070701"
        numbers = [int(data[at + 6 + 8 * index : at + 14 + 8 * index], 16) for index in range(13)]
        name = data[at + 110 : at + 110 + numbers[11] - 1].decode()
        start = (at + 110 + numbers[11] + 3) // 4 * 4
        if name == "TRAILER!!!":
            assert not data[start:].strip(b"\0")
            return found
        found[name] = (numbers, data[start : start + numbers[6]])
        at = (start + numbers[6] + 3) // 4 * 4


def _written(archive: newc.Archive) -> dict[str, tuple[list[int], bytes]]:
    out = io.BytesIO()
    archive.write(out)
    assert len(out.getvalue()) % 512 == 0
    return _records(out.getvalue())


def test_an_archive_keeps_modes_owners_nodes_and_links() -> None:
    """What goes into an archive is what the kernel reads from it, without root."""
    archive = newc.Archive()
    archive.file("/a/b/file", b"12345", 0o4755, uid=7, gid=8)
    archive.symlink("a/link", "b/file")
    archive.device("dev/null", "c", 1, 3, 0o666)
    archive.hardlinks(["x", "y"], b"same")
    read = _written(archive)
    assert list(read) == ["a", "a/b", "a/b/file", "a/link", "dev", "dev/null", "x", "y"]
    numbers, content = read["a/b/file"]
    assert (numbers[1], numbers[2], numbers[3], content) == (stat.S_IFREG | 0o4755, 7, 8, b"12345")
    assert read["a/link"][1] == b"b/file"
    assert (read["dev/null"][0][1], read["dev/null"][0][9:11]) == (stat.S_IFCHR | 0o666, [1, 3])
    assert read["x"][0][0] == read["y"][0][0]
    assert (read["x"][0][4], read["x"][1], read["y"][1]) == (2, b"", b"same")


def test_a_later_name_replaces_the_earlier_one() -> None:
    """The same name twice is one record with the last content."""
    archive = newc.Archive()
    archive.file("name", b"old")
    archive.file("./name", b"new")
    assert _written(archive)["name"][1] == b"new"


def test_a_program_says_which_libraries_it_needs() -> None:
    """This Python's own needs are read without a tool; a text file has none."""
    needs = elf.needs(Path(sys.executable).resolve())
    assert needs is not None
    assert "ld-" in needs.interpreter
    assert "libc.so.6" in needs.libraries
    assert elf.needs(Path(__file__)) is None


def test_modules_come_with_their_dependencies(tmp_path: Path) -> None:
    """A wanted module brings what it needs, listed so that loading from right to left works; others stay out."""
    root = tmp_path / "lib/modules/6.1"
    for path, facts in {
        "kernel/drivers/net/veth.ko": b"\0depends=mid-dle\0alias=rtnl-link-veth\0",
        "kernel/lib/mid-dle.ko": b"\0depends=low\0",
        "kernel/lib/low.ko": b"\0depends=\0",
        "kernel/sound/loud.ko": b"\0depends=low\0",
    }.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(b"\x7fELF" + facts)
    (root / "modules.builtin").touch()
    version, files = kmod.modules(tmp_path)
    assert version == "6.1"
    assert "kernel/sound/loud.ko" not in files
    assert b"kernel/drivers/net/veth.ko: kernel/lib/mid-dle.ko kernel/lib/low.ko\n" in bytes(files["modules.dep"])
    assert files["modules.alias"] == b"alias rtnl-link-veth veth\n"


def _qemu(path: Path, answers: list[bytes]) -> threading.Thread:
    """A stand-in for QEMU's side: greets, then gives one line for each request."""
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(path))
    server.listen()

    def serve() -> None:
        with server:
            client, _ = server.accept()
            with client, client.makefile("rb") as lines:
                client.sendall(b'{"QMP": {}}\n')
                for answer in [b'{"return": {}}', *answers]:
                    lines.readline()
                    client.sendall(answer + b"\n")

    thread = threading.Thread(target=serve)
    thread.start()
    return thread


def test_qmp_keeps_events_apart_from_answers(tmp_path: Path) -> None:
    """An event before the answer is kept; an error and a closed connection are raised."""
    thread = _qemu(tmp_path / "qmp", [b'{"event": "STOP"}\n{"return": 7}', b'{"error": {"desc": "no"}}'])
    with Qmp(tmp_path / "qmp", timeout_seconds=60) as qmp:
        assert qmp.ask("stop") == 7
        assert qmp.events == [{"event": "STOP"}]
        with pytest.raises(QmpError, match="cont: no"):
            qmp.ask("cont")
        with pytest.raises(QmpError):
            qmp.ask("quit")
    thread.join()


def test_a_message_of_the_kernels_tears_no_word() -> None:
    """What the kernel says on a serial line is taken out, wherever it stands; other brackets stay."""
    torn = b"QUJD[   12.345678] watchdog: BUG: soft lockup! [sh:7]\r\nREVG\r\n[x] lo[    3.000001] a\r\ngin: "
    assert KERNEL.sub(b"", torn) == b"QUJDREVG\r\n[x] login: "
