"""The values that travel between the rooms: frozen, keyword-only, units in names. Imports nothing of ours."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from dataclasses import field
from typing import Literal

from vmproxy.values import dataclass

_BIDI = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def printable(text: str | bytes, *, limit: int = 200) -> str:
    """Text from outside as one printable line: controls, bidi marks and bad bytes become ``\\x..`` escapes.

    Used for everything that a VM said before it reaches a terminal or a log (RELIABILITY T03, P17).
    """
    if isinstance(text, bytes):
        text = text[: 4 * limit].decode("utf-8", "backslashreplace")
    out = []
    for char in text[: 4 * limit]:
        if char in _BIDI or unicodedata.category(char) in ("Cc", "Cf", "Cs", "Zl", "Zp", "Cn", "Co"):
            out.append(f"\\x{ord(char):02x}" if ord(char) < 256 else f"\\u{ord(char):04x}")
        else:
            out.append(char)
    line = "".join(out)
    return line if len(line) <= limit else line[: limit - 1] + "…"


@dataclass(frozen=True, kw_only=True)
class ProxyURL:
    """One proxy. ``password`` and ``username`` are percent-decoded; ``repr`` and ``str`` mask the password.

    ``host`` is an IP address (IPv6 without brackets) or an ASCII RFC 1123 name. ``url`` has everything.
    """

    scheme: str
    host: str
    port: int
    username: str = field(default="", repr=False)
    password: str = field(default="", repr=False)

    @property
    def has_credentials(self) -> bool:
        """Whether the URL carries a user name or a password."""
        return bool(self.username or self.password)

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        mask = "***@" if self.has_credentials else ""
        return f"{self.scheme}://{mask}{host}:{self.port}"


@dataclass(frozen=True, kw_only=True)
class Target:
    """Where a VM is and how to get in. Made by a provider; ``name`` is what the user said.

    ``transport`` is a name of the transports family (``ssh``) or "" where only files are reached (``directory``);
    ``machine`` one of the machines family, for what is done over a transport.
    ``identities`` are private key files in the order to try; ``only_identities`` keeps the agent and default keys out.
    ``passwords`` are well-known defaults of that VM kind (boot2docker's), tried last. For the ``ssh`` provider
    ``host`` may
    be an alias of the user's ssh_config; ``port`` 0 and ``user`` "" then mean "as ssh_config says, else 22 and the
    log-in name". ``line`` is a serial line's tty or unix socket, ``context`` a context of the docker client.
    """

    name: str
    provider: str
    transport: str = "ssh"
    machine: str = "shell"
    host: str = ""
    port: int = 22
    user: str = ""
    identities: tuple[str, ...] = ()
    only_identities: bool = False
    known_hosts: str = ""
    host_key: str = ""
    directory: str = ""
    line: str = ""
    context: str = ""
    passwords: tuple[str, ...] = field(default=(), repr=False)


@dataclass(frozen=True, kw_only=True)
class Result:
    """What one exec gave: bounded bytes, and the exit status (None where the VM gave none)."""

    stdout: bytes
    stderr: bytes
    status: int | None


@dataclass(frozen=True, kw_only=True)
class Route:
    """One unicast route. ``destination`` is CIDR text (``0.0.0.0/0`` for the default), ``gateway`` "" where there is
    none."""

    destination: str
    gateway: str = ""
    interface: str = ""
    metric: int = 0
    table: int = 254
    family: Literal["inet", "inet6"] = "inet"


@dataclass(frozen=True, kw_only=True)
class GatewayChoice:
    """The gateway chosen, one line of why, and every default route that was looked at."""

    gateway: str
    interface: str
    family: Literal["inet", "inet6"]
    reason: str
    candidates: tuple[Route, ...]


@dataclass(frozen=True, kw_only=True)
class Door:
    """The one opening for containers: ``bridges:listen_port`` on ``bridge_address`` leads to ``gateway:port``.

    ``bridges`` are interface names as iptables takes them (``docker0``, ``br-+``). ``six`` is the same door by IPv6.
    """

    gateway: str
    port: int
    listen_port: int
    bridge_address: str
    bridges: tuple[str, ...]
    six: Door | None = None


@dataclass(frozen=True, kw_only=True)
class Rule:
    """One ``-A CHAIN …`` line of iptables-save, split into words (quotes removed)."""

    chain: str
    words: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Chain:
    """One chain of one table in order. ``policy`` is "" for user-defined chains."""

    table: str
    name: str
    policy: str = ""
    rules: tuple[Rule, ...] = ()


@dataclass(frozen=True, kw_only=True)
class File:
    """One file as seen or as wanted. ``content`` None means absent; ``kind`` is file, absent, link, dir or other."""

    path: str
    content: bytes | None = None
    mode: int = 0o644
    uid: int = 0
    gid: int = 0
    kind: str = "file"
    links: int = 1


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One point of a report: a leg of the proof, or a point of drift. ``subject`` is short and stable."""

    subject: str
    ok: bool
    detail: str = ""
    hint: str = ""
    code: str = ""


@dataclass(frozen=True, kw_only=True)
class Address:
    """One address of one interface, ``cidr`` as the kernel prints it (``172.17.0.1/16``)."""

    interface: str
    cidr: str
    family: Literal["inet", "inet6"] = "inet"


@dataclass(frozen=True, kw_only=True)
class Mount:
    """One line of /proc/mounts: mount point, file system type, options."""

    point: str
    fstype: str
    options: frozenset[str]


@dataclass(frozen=True, kw_only=True)
class Syntax:
    """What the VM's own shell says of one file: whether it parses, and whether a block at its end would be read.

    ``message`` is the shell's complaint as printable text; ``line`` the line it names, 0 where it names none.
    """

    parses: bool
    tail_lives: bool
    message: str = ""
    line: int = 0


@dataclass(frozen=True, kw_only=True)
class Daemon:
    """The running dockerd: its process id and the environment it was started with (/proc/PID/environ).

    ``proxies`` are those it works with by daemon.json's names, credentials masked as Docker does; None where it was not
    asked or did not say. ``words`` are its command line, where it was asked. ``newer`` are places of daemon.json that
    were written to since it was started.
    """

    pid: int
    environment: Mapping[str, str] = field(repr=False)
    proxies: Mapping[str, str] | None = field(default=None, repr=False)
    words: tuple[str, ...] = field(default=(), repr=False)
    newer: frozenset[str] = frozenset()


@dataclass(frozen=True, kw_only=True)
class Facts:
    """One look at one VM, parsed and typed; everything the pure rooms may know of it.

    ``dumps`` are iptables-save bytes by variant (nft, legacy, default); ``dump_errors`` what that program said where
    it failed. ``dumps6`` are ip6tables-save's, only where a bridge has an IPv6 address that is not link-local.
    ``listeners`` are (address, port) pairs of listening TCP sockets. ``bare`` says that nobody looked at them, nor at
    owners, links and modes of ``files``. ``paths`` are those asked for that exist.
    ``real`` says where a directory of these is when symbolic links are followed.
    ``texts`` are bytes of files that are only read.
    ``resolved`` are IPv4 addresses of the name asked for. ``route_save`` are ``ip route save`` bytes, empty where
    not asked.
    ``busy``: another run of vmproxy held the lock and lived.
    ``live`` is False where only files are reached: then there are no rules, no daemon and nobody to ask.
    ``docker_version`` is "" where it was not asked for or cannot be told.
    Of an image: ``superseded`` are those of ``leftovers`` that are backups of an earlier one, ``notes`` what else a
    reader is to know of what lies beside it, ``needs`` options without which an ``apply`` cannot write it.
    """

    live: bool = True
    uid: int = 0
    boot_id: str = ""
    os_release: Mapping[str, str] = field(default_factory=dict)
    commands: frozenset[str] = frozenset()
    paths: frozenset[str] = frozenset()
    real: Mapping[str, str] = field(default_factory=dict)
    routes: tuple[Route, ...] = ()
    route_save: bytes = b""
    addresses: tuple[Address, ...] = ()
    interfaces: frozenset[str] = frozenset()
    bridges: frozenset[str] = frozenset()
    listeners: tuple[tuple[str, int], ...] = ()
    bare: bool = False
    mounts: tuple[Mount, ...] = ()
    files: Mapping[str, File] = field(default_factory=dict)
    syntax: Mapping[str, Syntax] = field(default_factory=dict)
    texts: Mapping[str, bytes] = field(default_factory=dict, repr=False)
    dumps: Mapping[str, bytes] = field(default_factory=dict)
    dumps6: Mapping[str, bytes] = field(default_factory=dict)
    dump_errors: Mapping[str, str] = field(default_factory=dict)
    daemon: Daemon | None = None
    docker_version: str = ""
    leftovers: tuple[str, ...] = ()
    superseded: frozenset[str] = frozenset()
    notes: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    busy: bool = False
    resolved: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Wish:
    """What an ``apply`` wants of a VM, free of credentials when written down (see ``wish.py``).

    ``proxy`` and ``https_proxy`` are as the user said them (a loopback host still means "my host").
    ``names`` and ``pip_index`` are for containers alone (see :class:`Settings`).
    ``tools`` are members of the tools family, sorted; ``tools_said`` those of them that were said now, and not only
    recorded. ``gateway6`` is the host's IPv6 address at which the proxy
    answered when it was asked, "" for no door there.
    ``hidden_credentials`` says that the record knows of credentials which this look could not read.
    ``via`` is where Docker is told of the proxy: in the guest's own file (``drop-in``) or in ``daemon-json``.
    """

    proxy: ProxyURL
    https_proxy: ProxyURL | None = None
    no_proxy: tuple[str, ...] = ()
    listen_port: int | None = None
    forward: bool = False
    gateway: str = ""
    gateway6: str = ""
    bridges: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    pip_index: str = field(default="", repr=False)
    tools: tuple[str, ...] = ()
    tools_said: frozenset[str] = field(default=frozenset(), compare=False)
    hidden_credentials: bool = False
    via: Literal["drop-in", "daemon-json"] = "drop-in"


@dataclass(frozen=True, kw_only=True)
class BlockWish:
    """Our block in one file. ``where`` is a place that :func:`vmproxy.blocks.put` knows; ``mode`` is for a file that is
    new, ``section`` the ini section of the place of that name.

    ``names`` are what the payload sets: variables, or an ini file's names. ``secret`` says that it holds credentials,
    so that the file must not be readable by others.
    """

    path: str
    payload: bytes = field(repr=False)
    where: Literal["end", "after-shebang", "last", "section"]
    record: Mapping[str, object]
    names: tuple[str, ...] = ()
    mode: int = 0o644
    secret: bool = False
    section: str = ""


@dataclass(frozen=True, kw_only=True)
class Desired:
    """All that vmproxy wants in one VM. The zero value means "gone": undo is the same pipeline with ``Desired()``.

    ``environment`` are the daemon's variables; None leaves open what the running daemon has. ``proxies`` are those of
    its daemon.json by the names there, None for none of ours. ``bridges_named``: the user said which bridges the door
    covers, so that others are left out on purpose. ``warnings`` are lines for the user.
    """

    blocks: tuple[BlockWish, ...] = ()
    door: Door | None = None
    bridges_named: bool = False
    environment: Mapping[str, str] | None = field(default=None, repr=False)
    proxies: Mapping[str, str] | None = field(default=None, repr=False)
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class FileChange:
    """One file replaced whole (``after.content`` None: deleted), only while it still equals ``before``.

    ``directory``: the file's directory is made where it is missing, and removed where it ends up empty. ``shown`` are
    the lines of a diff to show in place of the file's own, where those are somebody else's.
    """

    before: File
    after: File
    shell: bool = True
    directory: bool = False
    shown: str = ""


@dataclass(frozen=True, kw_only=True)
class RuleChange:
    """Rules of one variant: iptables-restore texts by table (``filter``, ``nat``; ``filter6`` and ``nat6`` are those of
    ip6tables), the texts that undo them, and the dumps they were made for; ``seen6`` is None where there is no IPv6."""

    variant: str
    do: Mapping[str, bytes]
    undo: Mapping[str, bytes]
    seen: bytes
    seen6: bytes | None = None
    lines: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What to do in one VM, made from one look. Empty (falsy) when nothing differs.

    ``leftovers`` are paths that a run cut short left behind; every commit clears them.
    """

    files: tuple[FileChange, ...] = ()
    rules: RuleChange | None = None
    restart: bool = False
    leftovers: tuple[str, ...] = ()
    drift: tuple[Finding, ...] = ()
    warnings: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.files or self.rules or self.restart or self.leftovers)


@dataclass(frozen=True, kw_only=True)
class Report:
    """How one command ended for one VM; ``exit`` and ``code`` as in DESIGN's table, ``diff`` redacted and unified."""

    target: str
    ok: bool = True
    exit: int = 0
    code: str = "OK"
    changed: bool = False
    rolled_back: bool = False
    message: str = ""
    hint: str = ""
    findings: tuple[Finding, ...] = ()
    diff: str = ""
    warnings: tuple[str, ...] = ()
    gateway: str = ""
    variables: Mapping[str, str] = field(default_factory=dict, repr=False)


@dataclass(frozen=True, kw_only=True)
class Event:
    """One step of the story, for progress: a short present-tense line about one VM.

    ``news`` is worth a line of its own even where nobody watches progress: a host key kept for the first time.
    """

    target: str
    text: str
    news: bool = False


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What the user said, by option, environment or file, parsed once (``vmproxy.config``).

    ``given`` names the fields that were said at all, so that a wish recorded in the VM fills in only the others.
    ``host_environment_*`` is the host's own http_proxy, https_proxy, no_proxy: they come after a recorded wish;
    ``host_environment_problem`` is one line where they cannot be read, to be raised only by who needs them;
    ``host_environment_conflicts`` are lines about what they say twice.
    ``names`` are containers and services that others call by name; ``pip_index`` is the URL of a package index;
    ``tools`` are members of the tools family. ``via`` "" is what the record in the VM says, else ``drop-in``.
    ``cache_object`` is a URL that only this host's cache can give: a proof then fetches it twice. ``cache_index`` is
    the port of this host's cache and the package index beside it.
    All ``*_seconds`` are limits; 0 for ``wait_seconds`` means one try.
    """

    proxy: ProxyURL | None = None
    https_proxy: ProxyURL | None = None
    no_proxy: tuple[str, ...] = ()
    host_environment_proxy: ProxyURL | None = None
    host_environment_https_proxy: ProxyURL | None = None
    host_environment_no_proxy: tuple[str, ...] = ()
    host_environment_problem: str = ""
    host_environment_conflicts: tuple[str, ...] = ()
    listen_port: int | None = None
    forward: bool = False
    gateway: str = ""
    guest: str = ""
    bridges: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    pip_index: str = field(default="", repr=False)
    cache_object: str = ""
    cache_index: tuple[int, str] = (0, "")
    tools: tuple[str, ...] = ()
    via: Literal["", "drop-in", "daemon-json"] = ""
    restart: Literal["auto", "always", "never"] = "auto"
    verify: bool = True
    check: bool = True
    keep: bool = False
    force: bool = False
    rewrite: bool = False
    yes: bool = False
    wait_seconds: float = 0.0
    lock_timeout_seconds: float = 30.0
    require_persistent: bool = False
    connect_timeout_seconds: float = 10.0
    identities: tuple[str, ...] = ()
    ssh_config: str = ""
    known_hosts: str = ""
    host_key: str = ""
    jump: str = ""
    ssh: Literal["paramiko", "openssh"] = "paramiko"
    helper_image: str = ""
    given: frozenset[str] = frozenset()
