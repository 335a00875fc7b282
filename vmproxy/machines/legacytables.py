"""``iptables-legacy-restore --noflush`` by python-iptables: a process of its own that writes one table in one commit.

``commit.sh`` starts it as ``python -m vmproxy.cli.legacytables -w SECONDS --noflush [--test] < TEXT``, with the
exit codes of iptables-restore: 0, 1 for a text that cannot be, 4 for a lock that others hold. What LIBRARIES section 2
found wrong with the library is answered here: a process for each call and one address family (IPv4 then IPv6 in one
process fails), no threads, every word a string, every rule decoded again and compared before it is used (a match that
the library does not take it drops without a word, which would make the rule wider), the kernel's table read inside
/run/xtables.lock and written in one commit, and no table touched that is not named.
"""

from __future__ import annotations

import copy
import re
import time
from collections.abc import Callable, Iterator, Sequence
from typing import IO, Any

from vmproxy.errors import Busy, Refused, VmproxyError
from vmproxy.iptsave import split_words
from vmproxy.model import printable

LOCK = "/run/xtables.lock"
_POLL_SECONDS = 0.05
_HEADER = {"-p": "protocol", "-s": "src", "-d": "dst", "-i": "in-interface", "-o": "out-interface"}
_TABLES = ("filter", "nat", "mangle", "raw")
_TEXT_LIMIT_BYTES = 1 << 20


def arguments(words: Sequence[str]) -> tuple[float, bool]:
    """Seconds to wait for the lock, and whether this is only a test. Raises Refused."""
    wait, test = 0.0, False
    rest = iter(words)
    for word in rest:
        if word == "-w":
            number = next(rest, "")
            if not re.fullmatch(r"[0-9]{1,6}", number):
                raise Refused("-w wants a number of seconds")
            wait = float(number)
        elif word == "--test":
            test = True
        elif word != "--noflush":
            raise Refused(f"there is no option {printable(word)}")
    return wait, test


def rule_words(words: Sequence[str]) -> dict[str, Any]:
    """The words of one rule as the library's dictionary: every value a string, a flag's the empty one, a negated one
    with ``!`` before it. Raises Refused for what does not fit.
    """
    rule: dict[str, Any] = {}
    holder: dict[str, Any] | None = None
    rest = list(words)
    while rest:
        word = rest.pop(0)
        negated = "!" if word == "!" else ""
        if negated and rest:
            word = rest.pop(0)
        value = rest.pop(0) if rest and not rest[0].startswith("-") and rest[0] != "!" else ""
        if word in _HEADER and value:
            rule[_HEADER[word]] = negated + value
        elif word == "-m" and value and not negated:
            holder = rule.setdefault(value, {})
        elif word in ("-j", "-g") and value and not negated:
            holder = {}
            rule["target" if word == "-j" else "goto"] = {value: holder}
        elif word.startswith("--") and holder is None and "protocol" in rule:  # the match is named by the protocol
            holder = rule.setdefault(rule["protocol"], {})
            holder[word[2:]] = negated + value
        elif word.startswith("--") and holder is not None:
            holder[word[2:]] = negated + value
        else:
            raise Refused(f"a rule's word is not understood: {printable(word)}")
    target = rule.get("target")
    if target is not None and not next(iter(target.values())):
        rule["target"] = next(iter(target))
    return rule


def encoded(words: Sequence[str]) -> Any:
    """An ``iptc.Rule`` of exactly these words. Raises Refused where the library would make another rule of them."""
    import iptc
    from iptc import easy

    wanted = rule_words(words)
    try:
        rule = easy.encode_iptc_rule(copy.deepcopy(wanted))
        made = easy.decode_iptc_rule(rule)
    except (iptc.XTablesError, iptc.IPTCError, ValueError, AttributeError, TypeError) as error:
        raise Refused(f"Couldn't load or use a match or target: {printable(str(error))}") from error
    if _normal(made) != _normal(wanted):
        raise Refused(f"the library makes another rule of: {printable(' '.join(words))}")
    return rule


def _normal(rule: dict[str, Any]) -> dict[str, Any]:
    """The same for a rule as it was said and as the library tells it: no counters, addresses with their length."""
    out = {name: value for name, value in rule.items() if name != "counters"}
    for name in ("src", "dst"):
        if name in out:
            address, _, length = str(out[name]).partition("/")
            out[name] = f"{address}/{'32' if length in ('', '255.255.255.255') else length}"
    return {name: _sorted(value) for name, value in out.items()}


def _sorted(value: Any) -> Any:
    return sorted(value.items()) if isinstance(value, dict) else value


def change(table: Any, lines: Sequence[str]) -> None:
    """Carry out restore lines on a table with autocommit off. Raises Refused, naming the line."""
    import iptc

    for line in lines:
        words = split_words(line)
        if not words:
            raise Refused(f"a line is not understood: {printable(line, limit=100)}")
        try:
            _step(table, words)
        except (iptc.IPTCError, ValueError, IndexError) as error:
            raise Refused(f"{printable(line, limit=100)}: {printable(str(error))}") from error


def _step(table: Any, words: Sequence[str]) -> None:
    import iptc

    if words[0].startswith(":"):
        name = words[0][1:]
        if words[1:2] != ["-"]:
            raise Refused("a built-in chain is nobody's to set", where=printable(name))
        if table.is_chain(name):
            iptc.Chain(table, name).flush()
        else:
            table.create_chain(name)
        return
    flag, name, rest = words[0], words[1], list(words[2:])
    chain = iptc.Chain(table, name)
    if flag not in ("-A", "-I", "-D", "-F", "-X"):
        raise Refused(f"there is no command {printable(flag)}")
    if not table.is_chain(name):
        raise Refused(f"there is no chain {printable(name)}")
    if flag == "-A":
        chain.append_rule(encoded(rest))
    elif flag == "-I":
        place = int(rest.pop(0)) if rest and rest[0].isdigit() else 1
        chain.insert_rule(encoded(rest), position=place - 1)
    elif flag == "-D":
        chain.delete_rule(_same(chain, encoded(rest)))
    elif flag == "-F":
        chain.flush()
    else:
        table.delete_chain(name)


def _same(chain: Any, wanted: Any) -> Any:
    """The first rule of the chain that says what ``wanted`` says. Raises Refused."""
    from iptc import easy

    goal = _normal(easy.decode_iptc_rule(wanted))
    for rule in chain.rules:
        if _normal(easy.decode_iptc_rule(rule)) == goal:
            return rule
    raise Refused("there is no such rule")


def blocks(text: str) -> Iterator[tuple[str, list[str]]]:
    """(table, lines) of each ``*table … COMMIT``. Raises Refused for a text that has no end."""
    table = ""
    lines: list[str] = []
    for line in text.splitlines():
        if line.startswith("*"):
            table, lines = line[1:].strip(), []
            if table not in _TABLES:
                raise Refused(f"there is no table {printable(table)}")
        elif line == "COMMIT":
            yield table, lines
            table = ""
        elif line and not line.startswith("#"):
            if not table:
                raise Refused("a line stands before any table")
            lines.append(line)
    if table:
        raise Refused("the text ends before COMMIT")


def locked(path: str, wait_seconds: float) -> IO[bytes]:
    """The lock that the iptables programs take too, held until the file is closed. Raises Busy, Refused."""
    import fcntl

    deadline = time.monotonic() + wait_seconds
    try:
        file = open(path, "ab")  # noqa: SIM115 - the caller holds it
    except OSError as error:
        raise Refused(f"cannot open {path}: {error.strerror}") from error
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return file
        except OSError:
            if time.monotonic() >= deadline:
                file.close()
                raise Busy("Another app is currently holding the xtables lock") from None
            time.sleep(_POLL_SECONDS)


def restore(text: str, *, wait_seconds: float, test: bool, lock: str = LOCK) -> None:
    """Carry out a restore text, each table in one commit; with ``test`` nothing is committed. Raises VmproxyError."""
    import iptc

    every = list(blocks(text))
    with locked(lock, wait_seconds):
        for name, lines in every:
            _write(iptc, name, lines, test=test)


def _write(iptc: Any, name: str, lines: Sequence[str], *, test: bool) -> None:
    # To know a jump from an extension the library looks for the chain in all of its tables, and a look makes a table.
    iptc.Table.ALL = [name]
    try:
        table = iptc.Table(name)
        table.autocommit = False
        table.refresh()  # what was read before the lock was ours may be old
        change(table, lines)
        if not test:
            table.commit()
        table.close()
    except iptc.IPTCError as error:
        if "temporarily" in str(error):
            raise Busy("the table changed while it was being written") from error
        raise Refused(f"table {name}: {printable(str(error))}") from error


def main(words: Sequence[str], *, read: Callable[[int], str], say: Callable[[str], object]) -> int:
    """The program: exit 0, 1 or 4, with one line of why."""
    try:
        wait, test = arguments(words)
        restore(read(_TEXT_LIMIT_BYTES), wait_seconds=wait, test=test)
    except Busy as error:
        say(f"{error}\n")
        return 4
    except VmproxyError as error:
        say(f"{error}\n")
        return 1
    return 0
