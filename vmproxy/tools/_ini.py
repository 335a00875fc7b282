"""One option in one section of an ini file that is somebody else's, as Python's configparser reads it. PURE.

A section may stand in such a file once, an option once in it, and an indented line goes on with the one above it: so a
block behind everything would be in the wrong section, and one with a header of its own could be a second section. The
parser itself says whether a file can take ours.
"""

from __future__ import annotations

import re

from vmproxy.errors import ForeignFile
from vmproxy.model import BlockWish, Facts


def block(facts: Facts, path: str, section: str, option: str, value: str) -> BlockWish:
    """The option behind the section's header, with a header of its own at the end where there is none.

    Raises ForeignFile where the file has the option already, or is none that a parser takes.
    """
    from vmproxy import blocks

    file = facts.files.get(path)
    rest = (blocks.take(file.content, path=path) if file and file.content else None) or b""
    meaning = _meaning(rest)
    if meaning is None:
        raise ForeignFile("this is no ini file", where=path, hint="repair it and run vmproxy again")
    if (section, option) in meaning:
        raise ForeignFile(
            f"this file has a {option} of its own in [{section}]", where=path, hint=f"remove its line {option} = …"
        )
    own = (section, "") in meaning
    line = (_indent(rest, section) if own else b"") + f"{option} = {value}\n".encode()
    return BlockWish(
        path=path,
        payload=line if own else f"[{section}]\n".encode() + line,
        where="section" if own else "last",
        section=section if own else "",
        record={},
    )


def objection(content: bytes, section: str, option: str, *, leaving: bool) -> str:
    """What the parser says of the file with our block and without: nothing else may mean something else."""
    from vmproxy import blocks

    found = blocks.find(content)
    if found is None:
        return ""
    whole = _meaning(content)
    rest = _meaning(content[: found.start] + content[found.end :])
    if whole is None:
        return "" if leaving else "the file would be no ini file any more"
    ours = whole.pop((section, option), "")
    if f"[{section}]".encode() in found.payload:
        whole.pop((section, ""))
    return "" if whole == rest and "\n" not in ours else "our line and one beside it depend on each other"


def _meaning(content: bytes) -> dict[tuple[str, str], str] | None:
    """(section, name) → value, each section's mere presence as (section, ""); None where it cannot be read."""
    import configparser

    parser = configparser.RawConfigParser()
    try:
        parser.read_string(content.decode("utf-8"))
    except (configparser.Error, UnicodeDecodeError):
        return None
    there = {(section, ""): "" for section in parser.sections()}
    return there | {(section, name): value for section in parser.sections() for name, value in parser.items(section)}


def _indent(content: bytes, section: str) -> bytes:
    """That of the section's first option: a deeper one below ours would be read as more of it."""
    header = re.search(rb"^\[%b\][^\n]*" % re.escape(section.encode()), content, re.MULTILINE)
    for line in content[header.end() :].splitlines()[1:] if header else ():
        text = line.strip()
        if text and not text.startswith((b"#", b";")):
            return b"" if text.startswith(b"[") else line[: len(line) - len(line.lstrip())]
    return b""
