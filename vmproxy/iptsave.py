"""The text of iptables-save: bytes of one variant → chains, and the canonical form in which rules are compared.

Syntax after iptables 1.4 to 1.8 (``iptables-save.c``, ``xtables_save_string``): ``*table``, ``:CHAIN POLICY [p:b]``,
``-A CHAIN words``, ``COMMIT``; a word with other characters stands in double quotes with backslash escapes.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence
from functools import cached_property, lru_cache
from typing import NamedTuple

from vmproxy.errors import Refused
from vmproxy.model import Chain, Rule, printable
from vmproxy.values import dataclass

MAX_BYTES = 8 << 20
MAX_RULES = 100_000
MAX_WORDS = 1_000
_REMEMBERED_BYTES = 64 << 10

Canonical = tuple[tuple[str, bool, tuple[str, ...]], ...]


@dataclass(frozen=True, kw_only=True)
class Ruleset:
    """Every chain of one variant, in the order of the dump. The zero value is a kernel without rules."""

    chains: tuple[Chain, ...] = ()

    def table(self, table: str) -> tuple[Chain, ...]:
        """The chains of one table, in order."""
        return tuple(chain for chain in self.chains if chain.table == table)

    def chain(self, table: str, name: str) -> Chain | None:
        """One chain, or None."""
        return self._by_name.get((table, name))

    @cached_property  # asked for each of Kubernetes' thousands; no field, so no part of the value
    def _by_name(self) -> dict[tuple[str, str], Chain]:
        return {(chain.table, chain.name): chain for chain in reversed(self.chains)}


class Option(NamedTuple):  # many are made; a frozen dataclass costs four times as much
    """One option of a rule with its values; ``name`` is the short or usual spelling, ``negated`` a ``!`` at it."""

    name: str
    values: tuple[str, ...] = ()
    negated: bool = False


_LINE_CHAIN = re.compile(r":([^\s\x00-\x1f\x7f]{1,64}) ([A-Z]{1,32}|-)(?: \[\d{0,20}:\d{0,20}\])?\Z")
_COUNTERS = re.compile(r"\[\d{0,20}:\d{0,20}\] ")
_BY_ITSELF = re.compile(rb"^(?:#.*|(:.*) \[\d{0,20}:\d{0,20}\])$", re.MULTILINE)
_CAS_COUNTERS = re.compile(rb" \[[0-9]*:[0-9]*\]\Z")
_TABLE = re.compile(r"\*([a-z][a-z0-9_]{0,31})\Z")
_PLAIN_WORD = re.compile(r"[A-Za-z0-9_./:,@=+!%-]+\Z")

_SPELLINGS = {
    "--protocol": "-p", "--proto": "-p",
    "--source": "-s", "--src": "-s",
    "--destination": "-d", "--dst": "-d",
    "--in-interface": "-i", "--out-interface": "-o",
    "--match": "-m", "--jump": "-j", "--goto": "-g", "--set-counters": "-c", "--fragment": "-f",
    "--destination-port": "--dport", "--source-port": "--sport",
    "--destination-ports": "--dports", "--source-ports": "--sports",
    "--state": "--ctstate",
}  # fmt: skip
_CONTROLS = re.compile(r"[\x00-\x08\x0a-\x1f]")
_FREE_TEXT = frozenset(
    ("--comment", "--log-prefix", "--nflog-prefix", "--ulog-prefix", "--string", "--hex-string", "--name")
)
_PROTOCOLS = {"6": "tcp", "17": "udp", "1": "icmp", "0": "all"}


def cas_text(data: bytes) -> bytes:
    """The dump without comment lines and chain counters, for compare-and-swap.

    Exactly what ``sed -e '/^#/d' -e 's/ \\[[0-9]*:[0-9]*\\]$//'`` makes of it (``commit.sh`` runs that in the VM).
    """
    kept = []
    for line in data.split(b"\n"):
        if not line.startswith(b"#"):
            kept.append(_CAS_COUNTERS.sub(b"", line))
    text = b"\n".join(kept)
    # A last line without newline stays so; where it was a comment, the newline before it is still that line's end.
    if kept and not data.endswith(b"\n") and data.rpartition(b"\n")[2].startswith(b"#"):
        text += b"\n"
    return text


def parse_save(data: bytes) -> Ruleset:
    """The rule set of one variant's ``iptables-save``; with or without counters, comments, CRLF.

    No bytes at all are a kernel without rules. Raises :class:`~vmproxy.errors.Refused` on what is no whole dump (a
    missing ``COMMIT`` must not be read as "no rules"), and beyond 8 MiB, 100,000 rules, 1,000 words.
    """
    return _remembered(data) if len(data) <= _REMEMBERED_BYTES else _parsed(data)


@lru_cache(maxsize=32)  # each dump is asked for several times in one run
def _remembered(data: bytes) -> Ruleset:
    return _said(settled(data))


@lru_cache(maxsize=32)  # and VMs of one kind have the same
def _said(data: bytes) -> Ruleset:
    return _parsed(data)


def settled(data: bytes) -> bytes:
    """The dump with its comments and the counters of its chains left blank, line for line: what changes by itself."""
    return _BY_ITSELF.sub(rb"\1", data)


def _parsed(data: bytes) -> Ruleset:
    if len(data) > MAX_BYTES:
        raise Refused(f"the VM's iptables-save output is longer than {MAX_BYTES >> 20} MiB")
    chains: dict[tuple[str, str], tuple[str, list[Rule]]] = {}
    seen_tables: set[str] = set()
    table = ""
    count = 0
    for number, raw in enumerate(data.split(b"\n"), 1):
        line = raw.decode("utf-8", "surrogateescape").rstrip("\r")
        stripped = line.strip(" \t")
        if not stripped or line.startswith("#"):
            continue
        if not table:
            found = _TABLE.match(stripped)
            if not found or found[1] in seen_tables:
                raise _nonsense(number, line)
            table = found[1]
            seen_tables.add(table)
        elif stripped == "COMMIT":
            table = ""
        elif line.startswith(":"):
            head = _LINE_CHAIN.match(stripped)
            if not head or (table, head[1]) in chains:
                raise _nonsense(number, line)
            chains[table, head[1]] = ("" if head[2] == "-" else head[2], [])
        else:
            count += 1
            rule = _rule(number, line)
            if (table, rule.chain) not in chains or count > MAX_RULES:
                raise _nonsense(number, line)
            chains[table, rule.chain][1].append(rule)
    if table:
        raise Refused("the VM's iptables-save output ends early", where=f"table {table} has no COMMIT")
    return Ruleset(
        chains=tuple(
            Chain(table=owner, name=name, policy=policy, rules=tuple(rules))
            for (owner, name), (policy, rules) in chains.items()
        )
    )


def _nonsense(number: int, line: str) -> Refused:
    return Refused("the VM's iptables-save output cannot be read", where=f"line {number}: {printable(line, limit=80)}")


def _rule(number: int, line: str) -> Rule:
    words = split_words(_COUNTERS.sub("", line, count=1) if line.startswith("[") else line)
    if words is None or words[:1] != ["-A"] or not 1 < len(words) <= MAX_WORDS:
        raise _nonsense(number, line)
    return Rule(chain=words[1], words=tuple(words[2:]))


def split_words(line: str) -> list[str] | None:
    """The words of one line, quotes removed as iptables-restore removes them; None for an open quote or a control."""
    if _CONTROLS.search(line):
        return None
    if '"' not in line:
        return [word for word in line.replace("\t", " ").split(" ") if word]
    words: list[str] = []
    word: list[str] | None = None
    quoted = escaped = False
    for char in line:
        if quoted:
            assert word is not None  # noqa: S101 - a quote always opens a word
            if escaped or char not in '\\"':
                word.append(char)
                escaped = False
            elif char == "\\":
                escaped = True
            else:
                quoted = False
        elif char == '"':
            quoted, word = True, [] if word is None else word
        elif char in " \t":
            if word is not None:
                words.append("".join(word))
                word = None
        else:
            word = [] if word is None else word
            word.append(char)
    if quoted:
        return None
    if word is not None:
        words.append("".join(word))
    return words


def join_words(words: Sequence[str]) -> str:
    """Words as iptables-restore reads them back: plain ones bare, others in double quotes.

    Raises :class:`~vmproxy.errors.Refused` for a word with a control character, which no line can carry.
    """
    out = []
    for word in words:
        if any(char < " " or char == "\x7f" for char in word):
            raise Refused("a rule holds a control character", where=printable(word, limit=80))
        if _PLAIN_WORD.match(word):
            out.append(word)
        else:
            out.append('"' + word.replace("\\", "\\\\").replace('"', '\\"') + '"')
    return " ".join(out)


@lru_cache(maxsize=2048)  # each rule is asked for several times in one run
def options(words: tuple[str, ...]) -> tuple[Option, ...]:
    """A rule's words as options in order; ``-i ! X`` of old versions is ``! -i X``, ``-c`` counters are dropped."""
    found: list[tuple[str, list[str], bool]] = []
    negate = False
    index = 0
    while index < len(words):
        word = words[index]
        index += 1
        if word == "!":
            follows_option = index < len(words) and not words[index].startswith("-")
            if found and not found[-1][1] and follows_option:
                found[-1] = (found[-1][0], found[-1][1], not found[-1][2])
            else:
                negate = not negate
        elif word.startswith("-") and len(word) > 1:
            name = _SPELLINGS.get(word, word)
            found.append((name, [], negate))
            negate = False
            if name in _FREE_TEXT and index < len(words):
                found[-1][1].append(words[index])
                index += 1
        elif found:
            found[-1][1].append(word)
        else:
            found.append(("", [word], negate))
    return tuple(
        Option(name=name, values=tuple(values), negated=negated) for name, values, negated in found if name != "-c"
    )


@lru_cache(maxsize=2048)
def canonical(words: tuple[str, ...]) -> Canonical:
    """One form for the different words in which versions and variants print the same rule.

    Order of options, ``-m tcp`` beside ``-p tcp``, ``/32``, long spellings, ``-m state``, the order of states and the
    place of ``!`` make no difference; everything else does.
    """
    parsed = options(words)
    protocol = next((_protocol(o.values[0]) for o in parsed if o.name == "-p" and len(o.values) == 1), "")
    out: list[tuple[str, bool, tuple[str, ...]]] = []
    for option in parsed:
        values = option.values
        if option.name == "-m" and len(values) == 1:
            if values[0] == protocol:
                continue
            if values[0] == "state":
                values = ("conntrack",)
        elif option.name == "-p":
            if values in (("all",), ("0",)):
                continue
            values = tuple(map(_protocol, values))
        elif option.name in ("-s", "-d"):
            values = tuple(map(_network, values))
            if values in (("0.0.0.0/0",), ("::/0",)) and not option.negated:
                continue
        elif option.name == "--ctstate":
            values = tuple(",".join(sorted(set(value.upper().split(",")))) for value in values)
        out.append((option.name, option.negated, values))
    return tuple(sorted(out))


def _protocol(text: str) -> str:
    return _PROTOCOLS.get(text, text.lower())


def _network(text: str) -> str:
    try:
        return str(ipaddress.ip_network(text, strict=False))
    except ValueError:
        return text


def target(words: tuple[str, ...]) -> str:
    """The chain or target that a rule jumps (or goes) to, "" where it has none."""
    for option in reversed(options(words)):
        if option.name in ("-j", "-g") and option.values:
            return option.values[0]
    return ""
