"""What in a shell text keeps a block behind it from being reached or from having effect. PURE."""

from __future__ import annotations

import re
from itertools import dropwhile, takewhile

from vmproxy import shellscan

_LINE_END = re.compile(rb"(?:^|[;&|({]|\bthen|\belse|\bdo)[ \t]*(exit|return|exec)\b")
# What Docker's own scripts start it with: boot2docker's init.d/docker, and those of upstream's contrib/init.
_DOCKERS = re.compile(r"DOCKER\w*|EXTRA_ARGS|CERTDIR|CACERT|SERVERKEY|SERVERCERT", re.ASCII)
_LINE_LOCK = re.compile(rb"\b(?:readonly|declare|typeset)\b(.*)")


def touched(command: shellscan.Command) -> frozenset[str]:
    """The variables that this command sets or unsets for the commands after it."""
    argv = command.argv
    if command.enclosed:
        return frozenset()
    if not argv or argv[0] in (":", ".", "eval", "exec", "set", "trap"):
        return frozenset(command.assigned)
    if argv[0] in ("unset", "read"):
        return frozenset(word.partition("=")[0] for word in argv[1:])  # dash takes unset NAME=VALUE for NAME
    if argv[0] in ("export", "readonly", "declare", "typeset", "local"):
        loses = any(word.startswith("-") and "n" in word for word in argv[1:])
        return frozenset(word.partition("=")[0] for word in argv[1:] if loses or "=" in word)
    return frozenset()


def spoiled(content: bytes) -> list[tuple[int, str]]:
    """(line, name) of each of Docker's own variables that is given a carriage return, as a file with lines of CR LF
    does: that gets into Docker's command line, and it does not start."""
    try:
        commands = shellscan.scan(content).commands if b"\r" in content else ()
    except shellscan.Lost:
        return []
    found = []
    for command in commands:
        for name, equals, value in (word.partition("=") for word in command.words):
            if equals and "\r" in value and _DOCKERS.fullmatch(name):
                found.append((command.line, name))
    return found


def harm(before: bytes, names: frozenset[str]) -> list[tuple[int, str]]:
    """(line, what) of all that keeps a block behind ``before`` from being reached or from having effect."""
    try:
        scan = shellscan.scan(before)
    except shellscan.Lost:
        return _line_harm(before, names)
    fatal = _fatal_functions(scan.commands)
    found = []
    for command in scan.commands:
        ending = _ending(command, fatal)
        if ending and not command.function and not command.enclosed:
            found.append((command.line, f"{ending} ends the file before our block at its end is reached"))
        locked = _locked(command) & names
        if locked:
            found.append((command.line, f"{min(locked)} is made readonly before our block"))
    if scan.swallowed_line:
        found.append((scan.swallowed_line, "a here-document is open to the end and would swallow our block"))
    return found


def _line_harm(before: bytes, names: frozenset[str]) -> list[tuple[int, str]]:
    """The same for a text that cannot be followed: whatever looks harmful is."""
    found = []
    for number, line in enumerate(before.split(b"\n"), start=1):
        ending = _LINE_END.search(line)
        if ending:
            found.append((number, f"{ending[1].decode()} may end the file before our block at its end is reached"))
        lock = _LINE_LOCK.search(line)
        locked = names & {word.decode("latin-1") for word in re.findall(rb"\w+", lock[1])} if lock else ()
        if locked:
            found.append((number, f"{min(locked)} may be made readonly before our block"))
    return found


def _ending(command: shellscan.Command, fatal: frozenset[str]) -> str:
    """The word by which this command ends the shell, the sourced file, or nothing ("")."""
    argv = _called(command)
    if not argv:
        return ""
    name = argv[0]
    if name in ("exit", "return", shellscan.ENDLESS) or name in fatal or (name == "exec" and argv[1:]):
        return name if name in ("exit", "return", "exec", shellscan.ENDLESS) else "a function that exits"
    if name == "eval":
        match = re.search(r"\b(exit|return|exec)\b", " ".join(argv[1:]))
        return match[1] if match else ""
    options = list(takewhile(lambda word: word != "--", argv[1:]))
    if name == "set" and any(re.match(r"-[a-z]*n|noexec$", word) for word in options):
        return "set -n"
    return "alias" if name == "alias" and any(word.startswith("export=") for word in argv[1:]) else ""


def _called(command: shellscan.Command) -> tuple[str, ...]:
    """What is run, and its arguments: what expands may expand to nothing."""
    words = (word.replace(shellscan.EXPANSION, "").rstrip("\r") for word in command.argv)
    return tuple(dropwhile(lambda word: word in ("", "command", "builtin", "--", "-p"), words))


def _fatal_functions(commands: tuple[shellscan.Command, ...]) -> frozenset[str]:
    """The functions that end the shell, by themselves or by one that they call."""
    callers: dict[str, list[str]] = {}
    fatal: set[str] = set()
    for command in commands:
        if command.function and not command.enclosed:
            ending = _ending(command, frozenset())
            if ending not in ("", "return"):
                fatal.add(command.function)
            elif not ending and (argv := _called(command)):
                callers.setdefault(argv[0], []).append(command.function)
    fresh = list(fatal)
    while fresh:
        calling = set(callers.get(fresh.pop(), ())) - fatal
        fatal |= calling
        fresh += calling
    return frozenset(fatal)


def _locked(command: shellscan.Command) -> frozenset[str]:
    """The variables that this command makes readonly for our block."""
    argv = command.argv
    if command.enclosed or not argv:
        return frozenset()
    options = "".join(word for word in argv[1:] if word.startswith("-"))
    if argv[0] == "readonly" or (argv[0] in ("declare", "typeset") and "r" in options):
        return frozenset(word.partition("=")[0] for word in argv[1:])
    return frozenset()
