"""P4 for what each guest writes: any text is read back exactly by what reads the file, or refused; nothing else is set,
and nothing is run. systemd itself reads its two in tests/ns/test_formats.py.
"""

from __future__ import annotations

import os
import subprocess
import unicodedata
from dataclasses import replace
from pathlib import Path

import pytest

from tests.unit import guestworlds
from tests.unit.test_guest_files import KINDS
from tests.unit.test_quoting import systemd_environment, systemd_file_value
from tests.values import HARD, every_character, variables
from vmproxy import blocks, guests
from vmproxy.errors import UsageError
from vmproxy.guests import Order, read_payload
from vmproxy.guests.boot2docker import USERDATA
from vmproxy.model import BlockWish

VALUES = variables("V", (*HARD, *every_character()))
SHELLS = (("dash",), ("busybox", "sh"), ("bash", "--posix"))
SOURCED = ["boot2docker", "moby", "openrc", "sysv", "upstart"]
_CONTROLS = [chr(code) for code in (*range(32), *range(127, 160), 0x2028, 0x2029, 0xD800, 0xFFFE)]


def rendered(kind: str, environment: dict[str, str], *, secret: bool = False) -> tuple[BlockWish, ...]:
    """What a guest writes of these variables, without a door."""
    order = Order(environment=environment, door=None, variant="default", record={}, secret=secret)
    facts = guestworlds.world(KINDS[kind])
    # With a userdata.tar there and no profile yet, boot2docker's block says one thing more.
    return guests.load(kind).render(order, replace(facts, paths=facts.paths - {USERDATA}))


@pytest.mark.parametrize("shell", SHELLS, ids=lambda words: words[0])
@pytest.mark.parametrize("kind", SOURCED)
def test_p4_sourced_as_the_vm_does_it(kind: str, shell: tuple[str, ...], tmp_path: Path) -> None:
    """Between other people's lines the file is sourced: each variable has exactly its value, there is no other, no
    command of a value has run."""
    (block,) = rendered(kind, VALUES)
    content = blocks.put(b'OPTS="-D"', block.payload, where=block.where, record=block.record, names=block.names)
    place = tmp_path / "file"
    place.write_bytes(content + b"# behind\n")
    canary = tmp_path / "canary"
    for name in ("touch", "id", "reboot", "sh"):
        (tmp_path / name).write_text(f"#!/bin/sh\necho {name} >>{canary}\n")
        (tmp_path / name).chmod(0o755)
    plain = {"PATH": str(tmp_path), "HOME": "/nowhere"}
    program = "/bin/" + shell[0] if os.path.exists("/bin/" + shell[0]) else "/usr/bin/" + shell[0]
    ran = [
        subprocess.run(
            [program, *shell[1:], "-c", f"{text} exec /usr/bin/env -0"],
            env=plain, capture_output=True, timeout=60, check=False,
        )
        for text in ("", f". {place};")
    ]  # fmt: skip
    assert [(one.returncode, one.stderr) for one in ran] == [(0, b"")] * 2
    before, after = (dict(item.split(b"=", 1) for item in one.stdout.split(b"\0") if item) for one in ran)
    wanted = {name.encode(): value.encode() for name, value in VALUES.items()}
    assert {name: after.get(name) for name in wanted} == wanted
    assert after.keys() - before.keys() == wanted.keys()
    assert not canary.exists()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("secret", [False, True])
def test_p4_our_own_reader_reads_it_back(kind: str, secret: bool) -> None:
    """The record of a VM with credentials is made from the block's own lines: each is read as it was."""
    found: dict[str, str] = {}
    for block in rendered(kind, VALUES, secret=secret):
        found |= read_payload(block.payload)
    assert found == VALUES


def test_p4_systemds_lines_one_by_one() -> None:
    """By a model of systemd: ``Environment=`` of the drop-in with its specifiers, and ``EnvironmentFile=``'s file."""
    (drop_in,) = rendered("systemd", VALUES)
    lines = drop_in.payload.decode().splitlines()
    assert lines[0] == "[Service]"
    assert [systemd_environment(line) for line in lines[1:]] == [f"{name}={value}" for name, value in VALUES.items()]
    file, drop_in = rendered("systemd", VALUES, secret=True)
    lines = file.payload.decode().splitlines()
    assert lines[0].startswith("#")
    values = [systemd_file_value(f"http_proxy={line.partition('=')[2]}") for line in lines[1:]]
    assert values == list(VALUES.values())
    assert drop_in.payload.count(b"\n") == 2


@pytest.mark.parametrize("kind", KINDS)
def test_p4_what_is_no_text_of_one_line_is_refused(kind: str) -> None:
    """Every control character, line separators, what is no character: refused by name, the value is not shown."""
    for char in _CONTROLS:
        for secret in (False, True):
            with pytest.raises(UsageError) as error:
                rendered(kind, {"http_proxy": f"hunter{char}22"}, secret=secret)
            assert "hunter" not in str(error.value), unicodedata.category(char)
