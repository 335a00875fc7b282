"""The user's ssh_config for one host, as ssh_config(5) says, without ever running anything.

Our own reader: paramiko's takes no ``Include`` and runs ``Match exec``. A ``Match`` that can only be decided by running
something, or by what we do not know (``exec``, ``localnetwork``, ``tagged``, ``canonical``, ``final`` …), is in doubt
and does not apply; but where such a block holds a ProxyJump or ProxyCommand the host is refused: it could be one that
must not be reached directly. UserKnownHostsFile and StrictHostKeyChecking are not used: vmproxy keeps its own file.
"""

from __future__ import annotations

import fnmatch
import glob
import os.path
import re
import socket
from collections.abc import Callable, Iterator, Mapping
from dataclasses import field

from vmproxy import hostproc
from vmproxy.errors import UsageError
from vmproxy.model import printable
from vmproxy.values import dataclass

_DEPTH = 16
_FILES = 512
_LINE = re.compile(r"\s*([^\s=]+)(?:\s*=\s*|\s+)?(.*)")
_WORD = re.compile(r"""((?:[^\s"'\\]|\\.|\\$|"(?:[^"\\]|\\.)*"|'[^']*')+)\s*""")
_SINGLE = frozenset({"hostname", "user", "port", "identitiesonly", "identityagent", "hostkeyalias"})


@dataclass(frozen=True, kw_only=True)
class HostConfig:
    """What ssh_config says of one host; "" , 0 and () where it is silent. ``proxy`` is the directive as it stands."""

    hostname: str
    user: str = ""
    port: int = 0
    identities: tuple[str, ...] = ()
    only_identities: bool = False
    key_alias: str = ""
    proxy: str = ""


@dataclass(frozen=True, kw_only=True)
class Disk:
    """How files are read and globs expanded; the tests put a dictionary here."""

    read: Callable[[str], bytes | None] = field(default=hostproc.read_file)
    expand: Callable[[str], list[str]] = field(default=lambda pattern: sorted(glob.glob(pattern)))


@dataclass(frozen=True, kw_only=True)
class Person:
    """Who asks: home directory, local user name, and the environment for ``${NAME}`` in paths."""

    home: str
    user: str
    environ: Mapping[str, str] = field(default_factory=dict, repr=False)


def lookup(
    alias: str,
    *,
    user: str,
    port: int,
    ssh_config: str,
    person: Person,
    disk: Disk | None = None,
    proxy: str = "",
) -> HostConfig:
    """What applies to ``alias``, with the user and port (0: not said) the command line gave. Raises UsageError.

    ``ssh_config`` is -F: one file, alone; ``none`` for no file; "" for the user's, then the system's. ``proxy`` is a
    directive that was said before all files (``ProxyJump none``), so that theirs do not matter.
    """
    reader = _Reader(alias, user, port, person, disk or Disk(), proxy)
    if ssh_config == "none":
        pass
    elif ssh_config:
        reader.file(_tilde(ssh_config, person.home), must_be=True)
    else:
        reader.file(os.path.join(person.home, ".ssh", "config"))
        reader.file("/etc/ssh/ssh_config", base="/etc/ssh")
    return reader.result()


class _Reader:
    """One pass over the files; the first value of a keyword stays, IdentityFile adds up."""

    def __init__(self, alias: str, user: str, port: int, person: Person, disk: Disk, proxy: str) -> None:
        self._alias = alias
        self._user = user
        self._port = port
        self._person = person
        self._disk = disk
        self._values: dict[str, str] = {}
        self._identities: list[str] = []
        self._proxy = proxy
        self._files = 0

    def file(self, path: str, *, must_be: bool = False, base: str = "", depth: int = 0, doubt: bool = False) -> None:
        """Read one file. ``base`` is where its relative Includes lie, ~/.ssh unless said; ``doubt``: all of it is."""
        if depth > _DEPTH or self._files >= _FILES:
            raise UsageError("too many Includes in ssh_config", where=path)
        self._files += 1
        data = self._disk.read(path)
        if data is None:
            if must_be:
                raise UsageError("there is no such ssh_config", where=path)
            return
        base = base or os.path.join(self._person.home, ".ssh")
        unless_matched = None if doubt else True
        applies: bool | None = unless_matched  # None: in doubt
        for number, line in enumerate(data.decode("utf-8", "surrogateescape").splitlines(), 1):
            match = _LINE.fullmatch(line)
            if not match or match[1].startswith("#"):
                continue
            keyword, rest = match[1].lower(), match[2].rstrip()
            where = f"{path}:{number}"
            if keyword == "host":
                applies = _among(_words(rest, where), self._alias) and unless_matched
            elif keyword == "match":
                applies = self._match(_words(rest, where), where) and unless_matched
            elif applies is None and keyword in ("proxyjump", "proxycommand"):
                self._uncertain(rest, keyword, where)
            elif applies is not False and keyword == "include":
                for pattern in _words(rest, where):
                    for name in self._disk.expand(os.path.join(base, self._path(pattern, where))):
                        self.file(name, base=base, depth=depth + 1, doubt=applies is None)
            elif applies:
                self._take(keyword, rest, where)

    def result(self) -> HostConfig:
        """Everything found, tokens expanded."""
        hostname = self._hostname()
        port = self._port or self._number()
        user = self._user or self._values.get("user", "")
        tokens = {
            "%": "%",
            "d": self._person.home,
            "h": hostname,
            "l": socket.gethostname() if any("%l" in name for name in self._identities) else "",
            "n": self._alias,
            "p": str(port or 22),
            "r": user or self._person.user,
            "u": self._person.user,
        }
        return HostConfig(
            hostname=hostname,
            user=user,
            port=port,
            identities=tuple(
                _tilde(_tokens(name, tokens), self._person.home) for name in self._identities if name != "none"
            ),
            only_identities=self._values.get("identitiesonly", "").lower() in ("yes", "true")
            or self._values.get("identityagent", "").lower() == "none",
            key_alias=self._values.get("hostkeyalias", ""),
            proxy=self._proxy if self._proxy.partition(" ")[2].lower() != "none" else "",
        )

    def _take(self, keyword: str, rest: str, where: str) -> None:
        if keyword in ("proxyjump", "proxycommand"):
            name = "ProxyJump" if keyword == "proxyjump" else "ProxyCommand"
            self._proxy = self._proxy or f"{name} {_plain(rest)}"
        elif keyword == "identityfile":
            self._identities += [self._environment(word, where) for word in _words(rest, where)[:1]]
        elif keyword in _SINGLE:
            words = _words(rest, where)
            if not words:
                raise UsageError(f"{printable(keyword)} has no value", where=where)
            self._values.setdefault(keyword, words[0])

    def _uncertain(self, rest: str, keyword: str, where: str) -> None:
        """A proxy in a block that cannot be decided: refused, unless an earlier directive has settled the matter."""
        if not self._proxy and _plain(rest).lower() != "none":
            raise UsageError(
                f"whether {keyword} applies to {printable(self._alias)} cannot be told without running something",
                where=where,
                hint="--ssh openssh runs it, or name the VM directly: ssh://user@host:port, with -J none",
            )

    def _match(self, words: list[str], where: str) -> bool | None:
        """True, False, or None where it cannot be decided; one criterion that fails settles it."""
        outcome: bool | None = True
        queue = list(words)
        while queue:
            name, equals, value = queue.pop(0).partition("=")
            negated, name = name.startswith("!"), name.removeprefix("!").lower()
            if name == "all":
                continue
            if name in ("canonical", "final"):
                outcome = outcome and None
                continue
            if not equals:
                if not queue:
                    raise UsageError(f"Match {printable(name)} has no value", where=where)
                value = queue.pop(0)
            subjects: dict[str, Callable[[], str]] = {
                "host": self._hostname,
                "originalhost": lambda: self._alias,
                "user": lambda: self._user or self._values.get("user") or self._person.user,
                "localuser": lambda: self._person.user,
            }
            if name not in subjects:
                outcome = outcome and None
            elif _among(value.split(","), subjects[name]()) == negated:
                return False
        return outcome

    def _hostname(self) -> str:
        return _tokens(self._values.get("hostname", "%h"), {"h": self._alias, "%": "%"})

    def _number(self) -> int:
        text = self._values.get("port", "0")
        if not (text.isascii() and text.isdigit() and len(text) < 6 and int(text) < 65536):
            raise UsageError(f"{printable(text)} is no port", where="ssh_config")
        return int(text)

    def _path(self, text: str, where: str) -> str:
        return _tilde(self._environment(text, where), self._person.home)

    def _environment(self, text: str, where: str) -> str:
        def value(match: re.Match[str]) -> str:
            found = self._person.environ.get(match[1])
            if found is None:
                raise UsageError(f"{printable(match[1])} is not in the environment", where=where)
            return found

        return re.sub(r"\$\{(\w+)\}", value, text)


def _among(patterns: list[str], subject: str) -> bool:
    """A pattern list: one that matches is needed, one with ``!`` that matches forbids."""
    found = False
    for pattern in patterns:
        if fnmatch.fnmatchcase(subject, pattern.removeprefix("!").replace("[", "[[]")):
            if pattern.startswith("!"):
                return False
            found = True
    return found


def _words(rest: str, where: str) -> list[str]:
    return list(_split(rest, where))


def _split(rest: str, where: str) -> Iterator[str]:
    """Words with double or single quotes; a word that begins with # ends the line."""
    position = 0
    while position < len(rest):
        match = _WORD.match(rest, position)
        if match is None:
            raise UsageError("a quote is not closed in ssh_config", where=where)
        if match[1].startswith("#"):
            return
        yield _plain(match[1])
        position = match.end()


def _plain(text: str) -> str:
    """Without the quotes; a backslash stands for itself unless a quote or another backslash follows."""
    pieces = re.findall(r"""'([^']*)'|"((?:[^"\\]|\\.)*)"|((?:[^"'\\]|\\.|\\$)+)|["']""", text.strip())
    return "".join(single or re.sub(r"""\\(["'\\ ])""", r"\1", double or bare) for single, double, bare in pieces)


def _tilde(path: str, home: str) -> str:
    if path == "~" or path.startswith(("~/", "~\\")):
        return home + path[1:]
    return os.path.expanduser(path)


def _tokens(text: str, tokens: Mapping[str, str]) -> str:
    def value(match: re.Match[str]) -> str:
        if match[1] not in tokens:
            raise UsageError(f"%{printable(match[1])} in {printable(text)} is not known here", where="ssh_config")
        return tokens[match[1]]

    return re.sub(r"%(.?)", value, text)
