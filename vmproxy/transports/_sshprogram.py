"""The host's ssh program: where it is, what it makes of ssh_config (``ssh -G``), and the options of one run.

``ssh -G`` is the only reader that knows all of the user's ssh_config (``Include``, ``Match exec`` …) as ssh will. What
it says decides which host keys count; everything else ssh reads once more itself.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from vmproxy import hostproc
from vmproxy.errors import LostContact, Refused, Unreachable, UsageError
from vmproxy.model import Target, printable
from vmproxy.transports import SshOptions, _known_hosts
from vmproxy.transports._jump import LIMIT, Hop, parse
from vmproxy.transports._sshsaid import TOO_OLD
from vmproxy.values import dataclass

_SECONDS = 20.0
_INSTEAD = "or without --ssh openssh"
# What an ssh_config must not do to a run of ours; each only where this ssh knows the word.
_WHERE_KNOWN = {
    "sessiontype": "SessionType=default",
    "stdinnull": "StdinNull=no",
    "forkafterauthentication": "ForkAfterAuthentication=no",
    "gssapidelegatecredentials": "GSSAPIDelegateCredentials=no",
}
_ALWAYS = (
    *("ForwardAgent=no", "ForwardX11=no", "PermitLocalCommand=no", "UpdateHostKeys=no", "CheckHostIP=no"),
    *("ConnectionAttempts=1", "ServerAliveCountMax=3"),
)
"""For the VM and for each jump host."""
_VM_ONLY = ("ClearAllForwardings=yes", "Tunnel=no", "RequestTTY=no", "RemoteCommand=none")
# The pin is an argument, and so are the server's key and its name: the text is constant.
_PINNED = (
    """KnownHostsCommand=/bin/sh -c 'if [ "$1" = "$5" ]; then echo "$2 $3 $4"; fi' sh %f %H %t %K """,
    "HostKeyAlgorithms=-*-cert-v01@openssh.com",
)


@dataclass(frozen=True, kw_only=True)
class Place:
    """One host as ssh_config makes it out: ``name`` is how known_hosts calls it, ``files`` are known_hosts files of
    the user's that ssh would look into, ``strict`` whether nothing but a key that is known will do."""

    user: str
    host: str
    port: int
    name: str
    files: tuple[str, ...]
    strict: bool

    @property
    def text(self) -> str:
        """``user@host:port``, printable."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return printable(f"{self.user}@{host}:{self.port}")


@dataclass(frozen=True, kw_only=True)
class Way:
    """How one VM is reached. ``where`` are ``-F`` words and ``words`` others that go before the host on ssh's command
    line; ``jumps`` are said by ``-J``, ``hops`` are all hosts on the way, those of ssh_config too. ``socket`` is the
    ControlPath of ssh_config, "" for none; ``config`` is the text of an ssh_config for this run, "" for none.
    ``direct`` says that there is no ProxyCommand either, ``password`` that the library knows a usual password of it."""

    program: str
    where: tuple[str, ...]
    words: tuple[str, ...]
    host: str
    place: Place
    known_hosts: Path
    jumps: tuple[Hop, ...] = ()
    hops: tuple[tuple[Hop, Place], ...] = ()
    socket: str = ""
    config: str = ""
    direct: bool = False
    password: bool = False


Said = Mapping[str, tuple[str, ...]]


def find(environ: Mapping[str, str]) -> str:
    """The path of the ssh program. Raises UsageError where there is none."""
    for directory in environ.get("PATH", os.defpath).split(os.pathsep):
        path = os.path.join(directory, "ssh")
        if os.path.isabs(path) and os.path.isfile(path) and os.access(path, os.X_OK):
            return path
    raise UsageError("there is no ssh program", where="PATH", hint=f"install the OpenSSH client, {_INSTEAD}")


def way(target: Target, options: SshOptions, pin: str, *, environ: Mapping[str, str]) -> Way:
    """All that is to know before ssh is started. Runs ``ssh -G``, for each host on the way. Raises UsageError,
    Unreachable."""
    program = find(environ)
    theirs = _config_words(options)
    where = theirs if target.provider == "ssh" else ("-F", "none")
    words: tuple[str, ...] = ("-l", target.user) if target.user else ()
    words += ("-p", str(target.port)) if target.port else ()
    # In our own words: ssh takes no IPv6 address in an ssh:// of -J.
    wanted = ",".join(hop.text for hop in parse(options.jump)) or "none"
    jump = ("-o", f"ProxyJump={wanted}") if options.jump else ()
    said = _ask(program, (*where, *words, *jump, *(_pinned(pin) if pin else ())), target.host, options, environ)
    own = Path(options.known_hosts or target.known_hosts or _known_hosts.default_path()).expanduser()
    place = _place(said, own, users=target.provider == "ssh")
    words += tuple(word for name in (*options.identities, *target.identities) for word in ("-i", _key(name)))
    if target.only_identities:
        words += ("-o", "IdentitiesOnly=yes")
        # Where ssh finds none of the files, it would take the usual ones.
        mine = any(os.path.isfile(os.path.expanduser(name)) for name in (*options.identities, *target.identities))
        words += () if mine else ("-o", "IdentityFile=none")
    words += _options(*(text for key, text in _WHERE_KNOWN.items() if key in said))
    jumps = parse(" ".join(said.get("proxyjump", ())), where="-J" if options.jump else "ssh_config")
    path = "" if pin else " ".join(said.get("controlpath", ("none",)))
    found = Way(
        program=program,
        where=where,
        words=words,
        host=target.host,
        place=place,
        known_hosts=own,
        jumps=jumps,
        socket="" if path in ("", "none") else path,
        password=bool(target.passwords),
        direct=not jumps and _one(said, "proxycommand") in ("", "none"),
    )
    if not jumps:
        return found
    kept = Path(options.known_hosts or _known_hosts.default_path()).expanduser()
    hops = _hops(jumps, lambda hop: _ask(program, (*theirs, *_hop_words(hop)), hop.host, options, environ), kept)
    if (place.user, place.host, place.port) in [(one.user, one.host, one.port) for _hop, one in hops]:
        raise UsageError(f"the way to {place.text} leads through itself", where="-J" if options.jump else "ssh_config")
    return replace(found, hops=hops, config=_file(target, options, hops, kept))


def options_of_run(way: Way, options: SshOptions, pin: str, *, batch: bool) -> tuple[str, ...]:
    """``-o`` words for the VM. Raises UsageError for a path that cannot be told to ssh."""
    files = way.place.files
    trust: tuple[str, ...] = (
        f"UserKnownHostsFile={' '.join(_quoted(name) for name in (str(way.known_hosts), *files))}",
        f"StrictHostKeyChecking={'yes' if way.place.strict else 'accept-new'}",
    )
    if pin:
        trust = ("UserKnownHostsFile=/dev/null", "GlobalKnownHostsFile=/dev/null", "StrictHostKeyChecking=yes")
    return (
        *_options(*_limits(options), *_ALWAYS, *_VM_ONLY, *trust, *(("BatchMode=yes",) if batch else ())),
        *(_pinned(pin) if pin else ()),
        *(("-J", ",".join(hop.text for hop in way.jumps)) if way.jumps else ()),
        *(_options("ProxyJump=none") if options.jump and not way.jumps else ()),
    )


def usual_algorithms(way: Way, options: SshOptions, environ: Mapping[str, str]) -> bool:
    """Whether nobody has said in ssh_config which kinds of keys will do: then old ones may be added."""
    names = ("hostkeyalgorithms", "pubkeyacceptedalgorithms")
    said, usual = (_ask(way.program, words, way.host, options, environ) for words in (way.where, ("-F", "none")))
    return all(said.get(name) == usual.get(name) for name in names) and "pubkeyacceptedalgorithms" in said


def control_socket(path: str) -> str:
    """A path as ``ControlPath`` takes it."""
    return path.replace("%", "%%")


# ssh -G


def _ask(program: str, words: tuple[str, ...], host: str, options: SshOptions, environ: Mapping[str, str]) -> Said:
    """What ssh_config says, by lower-case keyword. Raises UsageError, Unreachable where a signal ended ssh."""
    argv = (program, "-G", "-T", *words, "--", host)
    try:
        done = hostproc.run(argv, timeout_seconds=_SECONDS, environ=environ, stoppable=options.stoppable)
    except (LostContact, Refused) as error:
        what = f"ssh does not read its configuration: {error.what}"
        raise UsageError(what, where="ssh -G", hint="a Match exec?") from error
    if done is None:
        raise UsageError("ssh cannot be started", where=program, hint=f"install the OpenSSH client, {_INSTEAD}")
    if done.status < 0:
        raise Unreachable("ssh was ended while it read its configuration", where="ssh -G", hint="once more")
    if done.status != 0:
        raise _complaint(done.stderr.decode("utf-8", "replace"))
    found: dict[str, tuple[str, ...]] = {}
    for line in done.stdout.decode("utf-8", "surrogateescape").splitlines():
        keyword, _, value = line.partition(" ")
        found[keyword] = (*found.get(keyword, ()), value)
    return found


def _complaint(text: str) -> UsageError:
    """What ssh says of its options or of its configuration."""
    lines = [line.strip() for line in text.splitlines() if line.strip() and "terminating," not in line]
    if any("knownhostscommand" in line.lower() for line in lines):
        hint = f"--known-hosts FILE with the VM's key, {_INSTEAD}"
        return UsageError("this ssh cannot be held to one host key: OpenSSH 8.5 can", where="--host-key", hint=hint)
    if any("option -- G" in line for line in lines):
        return UsageError(TOO_OLD, where="ssh -G", hint="without --ssh openssh")
    said = printable(lines[0], limit=160) if lines else "it does not say why"
    return UsageError(f"ssh does not take its configuration: {said}", where="ssh -G", hint="-F FILE, or -F none")


def _place(said: Said, own: Path, *, users: bool) -> Place:
    """One host; ``own`` is the file that keys are kept in, ``users`` whether the user's files count as well."""
    host, port = _one(said, "hostname"), int(_one(said, "port"))
    alias = _one(said, "hostkeyalias")
    name = alias if alias not in ("", "none") else _known_hosts.host_name(host, port)
    files = _paths(_one(said, "userknownhostsfile")) if users else ()
    everybody = _paths(_one(said, "globalknownhostsfile")) if users else ()
    known = _known_hosts.knows(_known_hosts.read(own), name)
    known = known or any(_known_hosts.may_know(Path(path), name) for path in (*files, *everybody))
    strict = known or (users and _one(said, "stricthostkeychecking") in ("yes", "true"))
    return Place(user=_one(said, "user"), host=host, port=port, name=name, files=files, strict=strict)


def _one(said: Said, keyword: str) -> str:
    return said.get(keyword, ("",))[0]


def _paths(text: str) -> tuple[str, ...]:
    """``ssh -G`` puts blanks between paths and leaves those in them: the longest that is a file is one."""
    words = text.split(" ")
    found: list[str] = []
    while words:
        ends = range(len(words), 0, -1)
        end = next((end for end in ends if os.path.isfile(os.path.expanduser(" ".join(words[:end])))), 1)
        path = os.path.expanduser(" ".join(words[:end]))
        if path not in ("", "none", "/dev/null"):
            found.append(path)
        del words[:end]
    return tuple(found)


# words


def _config_words(options: SshOptions) -> tuple[str, ...]:
    if not options.ssh_config:
        return ()
    return ("-F", "none" if options.ssh_config == "none" else str(Path(options.ssh_config).expanduser().absolute()))


def _hop_words(hop: Hop) -> tuple[str, ...]:
    return (*(("-l", hop.user) if hop.user else ()), *(("-p", str(hop.port)) if hop.port else ()))


def _pinned(pin: str) -> tuple[str, ...]:
    return _options(_PINNED[0] + pin, _PINNED[1])


def _options(*texts: str) -> tuple[str, ...]:
    return tuple(word for text in texts for word in ("-o", text))


def _limits(options: SshOptions) -> tuple[str, str]:
    seconds = max(1, math.ceil(options.connect_timeout_seconds))
    return f"ConnectTimeout={seconds}", f"ServerAliveInterval={max(1, options.keepalive_seconds)}"


def _key(name: str) -> str:
    return str(Path(name).expanduser().absolute()).replace("%", "%%")


def _quoted(path: str) -> str:
    """A path inside a line of ssh_config."""
    if any(char in path for char in '"\\\n') or "${" in path:
        raise UsageError("this path cannot be told to ssh", where=printable(path), hint="--known-hosts FILE")
    return '"' + path.replace("%", "%%") + '"'


# the way through other hosts


def _hops(jumps: tuple[Hop, ...], ask: Callable[[Hop], Said], own: Path) -> tuple[tuple[Hop, Place], ...]:
    """Every host on the way: the first one's own ProxyJump counts too, as ssh has it. Raises UsageError for a loop."""
    chain = list(jumps)
    while True:
        said = ask(chain[0])
        before = parse(" ".join(said.get("proxyjump", ())), where="ssh_config")
        if not before:
            break
        chain = [*before, *chain]
        if len(chain) > LIMIT or len(set(chain)) < len(chain):
            raise UsageError(f"the jump hosts lead in a circle, or are more than {LIMIT}", where="ssh_config")
    found = tuple((hop, _place(ask(hop), own, users=True)) for hop in chain)
    places = [(place.user, place.host, place.port) for _hop, place in found]
    if len(set(places)) < len(places):
        raise UsageError("a jump host is on the way twice", where="-J")
    return found


def _file(target: Target, options: SshOptions, hops: tuple[tuple[Hop, Place], ...], kept: Path) -> str:
    """An ssh_config for this run: the ssh processes of jump hosts get no other word from us than ``-F``.

    The first value of a keyword counts, so what we say stands before what it includes of the user's.
    """
    lines = [*_limits(options), *_ALWAYS]
    names = {hop.host for hop, _place in hops}
    for name in sorted(names):
        places = [place for hop, place in hops if hop.host == name]
        files = dict.fromkeys(path for place in places for path in (str(kept), *place.files))
        lines.append(f"Host {name}")
        lines += ["ControlMaster no", "LogLevel DEBUG1"]  # so we hear of a key that waits for a touch
        lines.append(f"UserKnownHostsFile={' '.join(map(_quoted, files))}")
        strict = all(place.strict for place in places)
        lines.append(f"StrictHostKeyChecking={'yes' if strict else 'accept-new'}")
    if options.ssh_config != "none":
        lines.append("Host *" if target.provider == "ssh" else f"Host {' '.join(sorted(names))}")
        mine = [_config_words(options)[1]] if options.ssh_config else ["~/.ssh/config", "/etc/ssh/ssh_config"]
        lines += [f"Include {_quoted(name)}" for name in mine]
    return "".join(f"{line}\n" for line in lines)
