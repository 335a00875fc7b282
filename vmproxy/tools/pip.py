"""pip: its file for the whole machine, /etc/pip.conf. PURE.

pip reads it with Python's own RawConfigParser: ``proxy`` belongs to the section ``[global]``, of which there must be
one only, and in it one ``proxy``; an indented line goes on with the one above it. So the same parser says here whether
the file can take our lines. One proxy serves http and https, and there are no words for what goes without (pip's
configuration, "proxy").
"""

from __future__ import annotations

import re

from vmproxy.errors import ForeignFile
from vmproxy.model import BlockWish, Facts
from vmproxy.tools import Order, missing, no_secrets

NAME = "pip"
FILE = "/etc/pip.conf"
_PROGRAMS = ("/usr/bin/pip3", "/usr/bin/pip", "/usr/local/bin/pip3", "/usr/local/bin/pip")
FILES = (FILE,)
SHELL = ()
PATHS = _PROGRAMS
TEXTS = ()
_GLOBAL = re.compile(rb"^\[global\][^\n]*", re.MULTILINE)


def render(order: Order, facts: Facts) -> tuple[BlockWish, ...]:
    """The proxy, with its section where the file has none."""
    if not any(path in facts.paths for path in _PROGRAMS):
        raise missing(NAME, _PROGRAMS[0])
    no_secrets(order, NAME)
    from vmproxy import blocks

    file = facts.files.get(FILE)
    rest = (blocks.take(file.content, path=FILE) if file and file.content else None) or b""
    meaning = _meaning(rest)
    if meaning is None:
        raise ForeignFile("pip cannot read this file", where=FILE, hint="repair it and run vmproxy again")
    own = ("global", "") in meaning
    if ("global", "proxy") in meaning:
        raise ForeignFile("this file names a proxy of its own", where=FILE, hint="remove its line proxy = …")
    indent = _indent(rest) if own else b""
    line = indent + f"proxy = {order.https}\n".encode()
    return (
        BlockWish(
            path=FILE,
            payload=line if own else b"[global]\n" + line,
            where="section" if own else "last",
            section="global" if own else "",
            record={},
        ),
    )


def unsaid(order: Order) -> tuple[str, ...]:
    """Everything but this machine's own names, which no index has."""
    local = ("localhost", "127.0.0.1", "::1")
    return tuple(entry.text for entry in order.no_proxy if entry.text not in local)


def overrides(facts: Facts) -> str:
    """Nothing that could be seen here."""
    return ""


def objection(content: bytes, *, leaving: bool) -> str:
    """What pip's own parser says of the file, with our block and without: nothing else may mean something else."""
    from vmproxy import blocks

    found = blocks.find(content)
    if found is None:
        return ""
    whole = _meaning(content)
    rest = _meaning(content[: found.start] + content[found.end :])
    if whole is None:
        return "" if leaving else "pip could not read it"
    ours = whole.pop(("global", "proxy"), "")
    if b"[global]" in found.payload:
        whole.pop(("global", ""))
    return "" if whole == rest and "\n" not in ours else "our line and one beside it depend on each other"


def _meaning(content: bytes) -> dict[tuple[str, str], str] | None:
    """(section, name) → value, each section's mere presence as (section, ""); None where pip could not read it."""
    import configparser

    parser = configparser.RawConfigParser()
    try:
        parser.read_string(content.decode("utf-8"))
    except (configparser.Error, UnicodeDecodeError):
        return None
    there = {(section, ""): "" for section in parser.sections()}
    return there | {(section, name): value for section in parser.sections() for name, value in parser.items(section)}


def _indent(content: bytes) -> bytes:
    """That of the first option in [global]: a deeper one below ours would be read as more of it."""
    header = _GLOBAL.search(content)
    for line in content[header.end() :].splitlines()[1:] if header else ():
        text = line.strip()
        if text and not text.startswith((b"#", b";")):
            return b"" if text.startswith(b"[") else line[: len(line) - len(line.lstrip())]
    return b""
