"""The commands of a POSIX shell text, found without running it. PURE; bytes in, values out.

It follows quotes, comments, here-documents, substitutions, functions, subshells, loops and ``case`` just well enough
to say which word of a file stands where a command stands. It is made to err towards "cannot tell" (:class:`Lost`).
"""

from __future__ import annotations

import re
from bisect import bisect_right
from dataclasses import dataclass, field

_BLANKS = re.compile(r"(?:[ \t]|\\\n)+")
_PLAIN = re.compile(r"[^ \t\n\\'\"`$|&;<>()]+")
_QUOTED = re.compile(r"[^\"\\`$]+")
_PARAMETER = re.compile(r"\$(?:[A-Za-z_][A-Za-z0-9_]*|[0-9@*#?$!-])")
_OPERATOR = re.compile(r"&&|\|\||;;|<<-|<<<|<<|>>|<&|>&|<>|>\||[|&;()<>\n]")
_ASSIGNMENT = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)\+?=", re.ASCII)
_DEPTH = 50  # of nested substitutions
_FRAMES = 500  # of nested compound commands
_ENDLESS = frozenset({("while", ("true",)), ("while", (":",)), ("until", ("false",))})
_LOOP_ENDS = frozenset({"break", "exit", "return", "exec"})

ENDLESS = "endless loop"
"""The name of the pseudo command that stands for ``while true`` without a way out."""


EXPANSION = "\u2026"
"""What stands in a word for one ``$…`` or backquoted part; no byte of the text decodes to it."""


class Lost(Exception):
    """The text cannot be followed to its end."""


@dataclass(frozen=True, kw_only=True)
class Command:
    """One simple command. ``words`` without quotes and redirections, with :data:`EXPANSION` for what expands.

    ``line`` counts from 1. ``function`` is the function whose body it stands in, "" outside of any.
    ``enclosed`` says whether it can end no more than a subshell.
    """

    line: int
    words: tuple[str, ...]
    function: str = ""
    enclosed: bool = False

    @property
    def assigned(self) -> tuple[str, ...]:
        """The names assigned in front of the command's own name."""
        names = []
        for word in self.words:
            match = _ASSIGNMENT.match(word)
            if not match:
                break
            names.append(match[1])
        return tuple(names)

    @property
    def argv(self) -> tuple[str, ...]:
        """The command's own name and arguments; empty for a line of assignments only."""
        return self.words[len(self.assigned) :]


@dataclass(frozen=True, kw_only=True)
class Scan:
    """``swallowed_line`` is the line of a here-document that reaches the end of the text, else 0."""

    commands: tuple[Command, ...]
    swallowed_line: int = 0


@dataclass(kw_only=True)
class _Frame:
    kind: str  # ( { case loop
    function: str
    offset: int = 0
    opener: str = ""
    condition: tuple[str, ...] | None = None
    leaves: bool = False
    endless: list[int] = field(default_factory=list)  # offsets of loops without end directly inside


@dataclass(kw_only=True)
class _List:
    """What is known inside one list of commands: the text itself, or one ``$(…)``."""

    enclosed: bool
    frames: list[_Frame] = field(default_factory=list)
    words: list[str] = field(default_factory=list)
    offset: int = 0
    naming: str = ""  # a function whose body comes next


def scan(content: bytes) -> Scan:
    """The commands of ``content`` in order. Raises Lost."""
    scanner = _Scanner(content.decode("latin-1"))
    scanner.read_list(_List(enclosed=False), closer=False)
    return Scan(commands=tuple(scanner.commands), swallowed_line=scanner.swallowed_line)


class _Scanner:
    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self.depth = 0
        self.commands: list[Command] = []
        self.heredocs: list[tuple[str, bool, bool, int]] = []
        self.swallowed_line = 0
        self._starts = [0, *(match.end() for match in re.finditer("\n", text))]

    def line(self, offset: int) -> int:
        return bisect_right(self._starts, offset)

    # words

    def skip(self, *, newlines: bool = False) -> None:
        """Past blanks, and past newlines and comments where ``newlines``."""
        while True:
            match = _BLANKS.match(self.text, self.at)
            if match:
                self.at = match.end()
            elif newlines and self.text.startswith("\n", self.at):
                self.at += 1
                self.read_heredocs()
            elif newlines and self.text.startswith("#", self.at):
                self.skip_comment()
            else:
                return

    def skip_comment(self) -> None:
        end = self.text.find("\n", self.at)
        self.at = len(self.text) if end < 0 else end

    def word(self) -> tuple[str, bool]:
        """The next word without its quotes, and whether any of it was quoted. ("", False) where none is."""
        out: list[str] = []
        quoted = False
        while self.at < len(self.text):
            match = _PLAIN.match(self.text, self.at)
            if match:
                out.append(match.group())
                self.at = match.end()
                continue
            char = self.text[self.at]
            if char == "\\":
                following = self.text[self.at + 1 : self.at + 2]
                if following != "\n":
                    out.append(following)
                    quoted = True
                self.at += 2
            elif char == "'":
                quoted = True
                end = self.find("'", self.at + 1)
                out.append(self.text[self.at + 1 : end])
                self.at = end + 1
            elif char == '"':
                quoted = True
                self.double_quotes(out)
            elif char in "`$":
                self.expansion(in_quotes=False)
                out.append(EXPANSION)
            else:
                break
        return "".join(out), quoted

    def find(self, char: str, start: int) -> int:
        end = self.text.find(char, start)
        if end < 0:
            raise Lost
        return end

    def double_quotes(self, out: list[str]) -> None:
        self.at += 1
        while self.at < len(self.text):
            match = _QUOTED.match(self.text, self.at)
            if match:
                out.append(match.group())
                self.at = match.end()
                continue
            char = self.text[self.at]
            if char == '"':
                self.at += 1
                return
            if char == "\\":
                following = self.text[self.at + 1 : self.at + 2]
                out.append(following if following in '$`"\\' else "" if following == "\n" else char + following)
                self.at += 2
            else:
                self.expansion(in_quotes=True)
                out.append(EXPANSION)
        raise Lost

    def expansion(self, *, in_quotes: bool) -> None:
        """Past one ``$…`` or backquoted part."""
        self.depth += 1
        if self.depth > _DEPTH:
            raise Lost
        following = self.text[self.at : self.at + 3]
        if following.startswith("`"):
            self.at += 1
            while self.text[self.at : self.at + 1] != "`":
                if self.at >= len(self.text):
                    raise Lost
                self.at += 2 if self.text[self.at] == "\\" else 1
            self.at += 1
        elif following == "$((":
            self.balanced("(", ")")
        elif following.startswith("$("):
            self.at += 2
            self.read_list(_List(enclosed=True), closer=True)
        elif following.startswith("${"):
            self.braces(in_quotes=in_quotes)
        elif following.startswith("$'") and not in_quotes:
            raise Lost  # one thing in bash and busybox, another in dash
        else:
            match = _PARAMETER.match(self.text, self.at)
            self.at = match.end() if match else self.at + 1
        self.depth -= 1

    def balanced(self, opening: str, closing: str) -> None:
        level = 0
        while self.at < len(self.text):
            char = self.text[self.at]
            self.at += 1
            level += (char == opening) - (char == closing)
            if char == closing and level == 0:
                return
        raise Lost

    def braces(self, *, in_quotes: bool) -> None:
        self.at += 2
        while self.at < len(self.text):
            char = self.text[self.at]
            if char == "}":
                self.at += 1
                return
            if char == "\\":
                self.at += 2
            elif char == "'" and not in_quotes:
                self.at = self.find("'", self.at + 1) + 1
            elif char == '"':
                self.double_quotes([])
            elif char in "`$":
                self.expansion(in_quotes=in_quotes)
            else:
                self.at += 1
        raise Lost

    def read_heredocs(self) -> None:
        """Past the bodies that begin here, which is just behind a newline."""
        waiting, self.heredocs = self.heredocs, []
        for delimiter, literal, tabs, offset in waiting:
            continued = False
            while True:
                if self.at >= len(self.text):
                    self.swallowed_line = self.swallowed_line or self.line(offset)
                    return
                end = self.text.find("\n", self.at)
                end = len(self.text) if end < 0 else end
                line = self.text[self.at : end]
                self.at = end + 1
                if (line.lstrip("\t") if tabs else line) == delimiter:
                    if continued:
                        raise Lost  # shells differ on a delimiter behind a continued line
                    break
                continued = not literal and (len(line) - len(line.rstrip("\\"))) % 2 == 1
            self.at = min(self.at, len(self.text))

    # commands

    def read_list(self, state: _List, *, closer: bool) -> None:
        """Commands up to the end of the text, or to the ``)`` that belongs to ``$(`` where ``closer``."""
        while True:
            self.skip()
            if self.at >= len(self.text):
                self.flush(state)
                if self.heredocs:
                    self.swallowed_line = self.swallowed_line or self.line(self.heredocs[0][3])
                if closer or state.frames:
                    raise Lost
                return
            if self.text[self.at] == "#":
                self.skip_comment()
                continue
            match = _OPERATOR.match(self.text, self.at)
            if match:
                self.at = match.end()
                if self.operator(state, match.group(), closer=closer):
                    return
                continue
            start = self.at
            word, quoted = self.word()
            if state.words or quoted or not self.reserved(state, word, start):
                state.naming = ""
                if not state.words:
                    state.offset = start
                following = self.text[self.at : self.at + 1]
                if not (word.isdigit() and not quoted and following and following in "<>"):
                    state.words.append(word)

    def flush(self, state: _List) -> None:
        """The words so far are one command."""
        if not state.words:
            return
        words, state.words = tuple(state.words), []
        loops = [frame for frame in state.frames if frame.kind == "loop"]
        if loops and loops[-1].condition is None:
            loops[-1].condition = words
        if words[0] in _LOOP_ENDS:
            for frame in loops:
                frame.leaves = True
        function = state.frames[-1].function if state.frames else ""
        enclosed = state.enclosed or any(frame.kind == "(" for frame in state.frames)
        self.commands.append(Command(line=self.line(state.offset), words=words, function=function, enclosed=enclosed))

    def push(self, state: _List, kind: str, *, opener: str = "", offset: int = 0) -> None:
        function = state.naming or (state.frames[-1].function if state.frames else "")
        state.naming = ""
        state.frames.append(_Frame(kind=kind, function=function, offset=offset, opener=opener))
        if len(state.frames) > _FRAMES:
            raise Lost

    def pop(self, state: _List, kind: str) -> None:
        if not state.frames or state.frames[-1].kind != kind:
            raise Lost
        frame = state.frames.pop()
        if kind == "loop" and (frame.opener, frame.condition) in _ENDLESS and not frame.leaves:
            frame.endless.append(frame.offset)
        self.skip()
        following = self.text[self.at : self.at + 2]
        if frame.endless and (following[:1] != "&" or following == "&&"):  # a subshell, too, is waited for
            if state.frames and state.frames[-1].function == frame.function:
                state.frames[-1].endless += frame.endless
            else:
                self.commands += [
                    Command(line=self.line(offset), words=(ENDLESS,), function=frame.function)
                    for offset in frame.endless
                ]

    def operator(self, state: _List, text: str, *, closer: bool) -> bool:
        """True at the ``)`` that ends a substitution."""
        if text in ("<<", "<<-"):
            offset = self.at
            self.skip()
            delimiter, literal = self.word()
            self.heredocs.append((delimiter, literal, text == "<<-", offset))
        elif text[0] in "<>":
            self.skip()
            self.word()
        elif text == "(":
            self.skip()
            if len(state.words) == 1 and self.text.startswith(")", self.at):
                self.at += 1
                state.naming = state.words.pop()
                if "=" in state.naming:
                    raise Lost  # an array of bash's, no function
                self.skip(newlines=True)
            else:
                self.flush(state)
                self.push(state, "(")
        elif text == ")":
            self.flush(state)
            if closer and not state.frames:
                return True
            self.pop(state, "(")
        else:
            self.flush(state)
            if text == "\n":
                self.read_heredocs()
            elif text == ";;":
                self.patterns(state)
        return False

    def patterns(self, state: _List) -> None:
        """Past the patterns of one arm of ``case``, or at its ``esac``."""
        if not state.frames or state.frames[-1].kind != "case":
            raise Lost
        self.skip(newlines=True)
        start = self.at
        if self.word() == ("esac", False):
            self.pop(state, "case")
            return
        self.at = start
        if self.text.startswith("(", self.at):
            self.at += 1
        while True:
            self.skip()
            char = self.text[self.at : self.at + 1]
            if char == ")":
                self.at += 1
                return
            if char == "|":
                self.at += 1
            elif not char or char in "\n;&<>(" or self.word() == ("", False):
                raise Lost

    def reserved(self, state: _List, word: str, start: int) -> bool:
        """Whether ``word``, where a command may begin, was a reserved word."""
        if word in ("if", "then", "else", "elif", "fi", "do", "!"):
            state.naming = ""
            return True
        if word == "{":
            self.push(state, "{")
        elif word == "}":
            self.pop(state, "{")
        elif word in ("while", "until", "for"):
            self.push(state, "loop", opener=word, offset=start)
            if word == "for":
                state.words.append(word)
                state.offset = start
        elif word == "done":
            self.pop(state, "loop")
        elif word == "case":
            self.case(state)
        elif word == "esac":
            self.pop(state, "case")
        elif word == "function":
            self.function(state)
        else:
            return False
        return True

    def case(self, state: _List) -> None:
        """Past ``WORD in`` and the first patterns."""
        self.skip(newlines=True)
        self.word()
        self.skip(newlines=True)
        if self.word() != ("in", False):
            raise Lost
        self.push(state, "case")
        self.patterns(state)

    def function(self, state: _List) -> None:
        """Past the name behind bash's word ``function``."""
        self.skip()
        state.naming, _ = self.word()
        self.skip()
        if self.text.startswith("()", self.at):
            self.at += 2
        self.skip(newlines=True)
