"""The gateway from every recorded route table: fixtures/routes/WORLD/*, as WORLD/expected.json says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from vmproxy.errors import NoGateway, Refused
from vmproxy.routes import choose_gateway, describe, parse

FOLDER = Path(__file__).parents[2] / "fixtures" / "routes"
FILES = sorted(path for path in FOLDER.glob("*/*") if path.suffix in (".txt", ".bin"))
NO_DEFAULT = {"error": "the main route table has no default route", "candidates": []}


def names(path: Path) -> str:
    """How a recorded file is called in the test's name."""
    return f"{path.parent.name}/{path.name}"


def links(world: Path) -> dict[int, str] | None:
    """Interface names by index as recorded beside the tables."""
    file = world / "links"
    if not file.exists():
        return None
    return {int(index): name for index, name in (line.split() for line in file.read_text().splitlines())}


def expected(path: Path) -> dict[str, Any]:
    """What must come out of a file: by its name, else by the families that its format holds."""
    wanted: dict[str, Any] = json.loads((path.parent / "expected.json").read_text())
    if path.name in wanted:
        return dict(wanted[path.name])
    if path.stem.endswith("-6"):
        return dict(wanted.get("ipv6", NO_DEFAULT))
    both = path.name in ("ip-all.txt", "busybox-ip-all.txt", "ip-save.bin")
    return dict(wanted["both"] if both and "both" in wanted else wanted["ipv4"])


def outcome(data: bytes, world: Path) -> dict[str, Any]:
    """What comes out, in the shape of expected.json; candidates of a choice are left to other tests."""
    try:
        choice = choose_gateway(parse(data, links(world)))
    except NoGateway as error:
        return {"error": error.what, "candidates": list(error.candidates)}
    return {
        "gateway": choice.gateway,
        "interface": choice.interface,
        "family": choice.family,
        "reason": choice.reason,
    }


def test_every_world_is_recorded() -> None:
    """A world without recordings, or a recording without an expectation, does not go unnoticed."""
    worlds = sorted(path for path in FOLDER.iterdir() if path.is_dir())
    assert len(worlds) >= 18
    assert [world for world in worlds if not (world / "expected.json").exists()] == []
    assert [world for world in worlds if not [file for file in FILES if file.parent == world]] == []


@pytest.mark.parametrize("path", FILES, ids=names)
def test_f08_f09_recorded_table(path: Path) -> None:
    """Each tool's output of each world gives its gateway and reason, or the error that names the candidates."""
    assert outcome(path.read_bytes(), path.parent) == expected(path)


@pytest.mark.parametrize("path", [path for path in FILES if path.suffix == ".txt"], ids=names)
def test_line_ends_and_marks_of_other_systems(path: Path) -> None:
    """CRLF, UTF-16 as PowerShell writes it, and a UTF-8 byte order mark change nothing."""
    data = path.read_bytes()
    crlf = data.replace(b"\n", b"\r\n")
    for other in (crlf, b"\xef\xbb\xbf" + data, crlf.decode("ascii").encode("utf-16")):
        assert outcome(other, path.parent) == expected(path)


@pytest.mark.parametrize(
    "world", sorted({path.parent for path in FILES if path.suffix == ".bin"}), ids=lambda p: p.name
)
def test_text_and_bytes_agree(world: Path) -> None:
    """`ip route show table all` and `ip route save table all` of one machine hold the same default routes."""
    text = parse((world / "ip-all.txt").read_bytes())
    saved = parse((world / "ip-save.bin").read_bytes(), links(world))
    assert set(text) - set(saved) == set()
    assert outcome((world / "ip-all.txt").read_bytes(), world) == outcome((world / "ip-save.bin").read_bytes(), world)


@pytest.mark.parametrize(
    "world", sorted({path.parent for path in FILES if path.suffix == ".bin"}), ids=lambda p: p.name
)
def test_save_without_names(world: Path) -> None:
    """Without the interfaces' names the saved routes carry their numbers, and the gateway is the same."""
    data = (world / "ip-save.bin").read_bytes()
    known = links(world) or {}
    for bare, named in zip(parse(data), parse(data, known), strict=True):
        assert bare.gateway == named.gateway
        index = int(bare.interface.removeprefix("if#"))
        assert known[index] == named.interface


def prefixes(data: bytes) -> list[bytes]:
    """Every beginning of a table, or about 300 of a long one."""
    step = max(1, len(data) // 300)
    return [data[:size] for size in range(0, len(data), step)]


@pytest.mark.parametrize(
    "path",
    [path for path in FILES if "gateway" in expected(path) and path.parent.name != "table-77"],
    ids=names,
)
def test_truncated_table_never_gives_another_gateway(path: Path) -> None:
    """However short a table is cut, what comes out is its gateway or an error, never half an address."""
    wanted = expected(path)["gateway"]
    for part in prefixes(path.read_bytes()):
        try:
            assert choose_gateway(parse(part)).gateway == wanted, part[-80:]
        except Refused:
            continue


def test_describe_is_what_expected_json_writes() -> None:
    """A candidate reads address, device, metric, so that the user can copy the address."""
    (route,) = parse(b"default via 10.0.2.2 dev eth0 metric 7\n")
    assert describe(route) == "10.0.2.2 dev eth0 metric 7"
