"""Where to log in for one target, and through which hosts: what was said, then ssh_config, then the defaults."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

from vmproxy.errors import UsageError
from vmproxy.model import Target, printable
from vmproxy.transports import SshOptions
from vmproxy.transports._auth import Endpoint
from vmproxy.transports._jump import LIMIT, Hop, check_name, parse

_PROXY_JUMP = "ProxyJump "


def endpoint_of(target: Target, options: SshOptions) -> Endpoint:
    """The target's own end; see :func:`route`. Raises UsageError."""
    return route(target, options)[-1]


def route(target: Target, options: SshOptions) -> tuple[Endpoint, ...]:
    """Every host to log in to, the target last. Raises UsageError for a way that is none, or that needs a program.

    ssh_config counts for targets of the ``ssh`` provider and for every jump host. As with ssh, ``-J`` replaces what
    ssh_config says of the target's way, ``-J none`` means none, and the first jump host's own ProxyJump counts.
    A jump host is logged in to with what ssh_config, the agent and the usual files have for it: the keys and passwords
    that were named for the VM are for the VM (RELIABILITY T02).
    """
    for identity in options.identities:
        if not Path(identity).expanduser().is_file():
            raise UsageError("there is no such key file", where=printable(identity), hint="-i FILE: a private key")
    said = Endpoint(
        host=target.host,
        port=target.port,
        user=target.user,
        identities=options.identities + target.identities,
        only_identities=target.only_identities,
        passwords=target.passwords,
    )
    jumps = parse(options.jump)
    source = "-J" if options.jump else "ssh_config"
    if target.provider == "ssh":
        said, proxy = _with_ssh_config(said, options, settled="" if not options.jump else f"{_PROXY_JUMP}none")
        jumps = jumps or _through(proxy, said.host)
    chain = _way([(jump, source) for jump in jumps], options)
    ends = (*chain, _complete(said))
    places = [(end.user, end.host.lower(), end.port) for end in ends]
    if len(set(places)) < len(places):
        raise UsageError(f"the way to {ends[-1].place} leads through one host twice", where=source)
    return ends


def _way(jumps: list[tuple[Hop, str]], options: SshOptions) -> tuple[Endpoint, ...]:
    """The jump hosts' ends, with those that lead to the first of them."""
    ends: list[Endpoint] = []
    seen: list[Hop] = []
    while jumps:
        hop, source = jumps.pop()
        if hop in seen or len(seen) >= LIMIT:
            raise UsageError(f"the jump hosts lead in a circle, or are more than {LIMIT}", where=source)
        seen.append(hop)
        said = Endpoint(host=hop.host, port=hop.port, user=hop.user, is_jump_host=True)
        end, proxy = _with_ssh_config(said, options, settled=f"{_PROXY_JUMP}none" if jumps else "")
        ends.insert(0, _complete(end))
        if not jumps:
            jumps = [(more, "ssh_config") for more in _through(proxy, hop.host)]
    return tuple(ends)


def _through(proxy: str, host: str) -> tuple[Hop, ...]:
    """The jump hosts of a directive of ssh_config. Raises UsageError for a ProxyCommand."""
    if proxy and not proxy.startswith(_PROXY_JUMP):
        raise UsageError(
            f"{printable(host)} is reached by a {printable(proxy, limit=80)}", where="ssh_config", hint="--ssh openssh"
        )
    return parse(proxy.removeprefix(_PROXY_JUMP), where="ssh_config")


def _with_ssh_config(said: Endpoint, options: SshOptions, *, settled: str) -> tuple[Endpoint, str]:
    """What was said, then what ssh_config says; and its ProxyJump or ProxyCommand, unless that is settled."""
    from vmproxy.transports._ssh_config import Person, lookup

    person = Person(home=os.path.expanduser("~"), user=_login_name(), environ=os.environ)
    found = lookup(
        said.host, user=said.user, port=said.port, ssh_config=options.ssh_config, person=person, proxy=settled
    )
    end = dataclasses.replace(
        said,
        host=found.hostname,
        port=found.port,
        user=found.user,
        identities=said.identities + found.identities,
        only_identities=said.only_identities or found.only_identities,
        key_name=found.key_alias.lower(),
    )
    return end, found.proxy


def _complete(said: Endpoint) -> Endpoint:
    """With the defaults; no name goes on that another program could misread."""
    end = dataclasses.replace(said, port=said.port or 22, user=said.user or _login_name())
    check_name("host", end.host)
    check_name("user", end.user)
    if end.key_name:
        check_name("host", end.key_name)
    return end


def _login_name() -> str:
    import getpass

    try:
        return getpass.getuser()
    except (KeyError, OSError, ImportError) as error:
        raise UsageError("no log-in name is known", hint="say it: ssh://USER@HOST") from error
