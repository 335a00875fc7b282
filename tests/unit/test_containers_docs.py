"""docs/containers.rst: every row of its table names tests that there are, and its table of programs is the tests'."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.ns.test_no_proxy_tools import TABLE

TOP = Path(__file__).resolve().parents[2]
TEXT = (TOP / "docs" / "containers.rst").read_text(encoding="utf-8")
ROWS = TEXT.partition(":widths:")[2].partition("Not ``ENV``")[0].split("\n   * - ")[2:]
COLUMNS = {"go": 1, "curl": 2, "wget": 3, "apt": 4, "pip": 5, "urllib": 6}
LINES = {
    "``a.b``": "a.test",
    "``*`` alone": "*",
    "``*`` in a list": "*,b.test",
    "``10.1.2.3``": "10.1.2.3",
    "``10.0.0.0/8``": "10.0.0.0/8",
    "``fd00::1``": "fd00::1",
    "``[fd00::1]``": "[fd00::1]",
    "``fd00::/8``": "fd00::/8",
    "``10.``, ``x*``": "10.",
}


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.split("\n")[0])
def test_every_row_is_shown_by_a_test(row: str) -> None:
    """Layer, command, what is set, and at least one test, which is there."""
    cells = row.split("\n     - ")
    assert len(cells) == 4
    named = re.findall(r"``(test_\w+)``", cells[3])
    every = "\n".join(path.read_text(encoding="utf-8") for path in (TOP / "tests").rglob("test_*.py"))
    assert named and all(f"def {name}(" in every for name in named)


@pytest.mark.parametrize("line", LINES)
def test_the_table_of_programs_says_what_the_programs_do(line: str) -> None:
    """For entries that are direct or not: the words of the table are those of the tools' own test."""
    (shown,) = [text for text in TEXT.splitlines() if text.startswith(f"{line} ")]
    rule = next(text for text in TEXT.splitlines() if text.startswith("=============== ============ "))
    starts = [match.start() for match in re.finditer(r"=+", rule)]
    ends = [*(start - 1 for start in starts[1:]), len(shown)]
    cells = [shown[start:end].strip() for start, end in zip(starts, ends, strict=True)]
    tools = next(tools for entry, _host, tools in TABLE if entry == LINES[line]).split()
    assert {tool: cells[column].startswith("direct") for tool, column in COLUMNS.items()} == {
        tool: tool in tools for tool in COLUMNS
    }
