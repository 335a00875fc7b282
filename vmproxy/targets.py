"""What ``--vm`` says, made a Target: the providers ask, the host answers."""

from __future__ import annotations

from collections.abc import Mapping

from vmproxy import hostproc, providers
from vmproxy.errors import UsageError, VmproxyError
from vmproxy.model import Target, printable
from vmproxy.providers import Answers, Queries

_WORDS = frozenset({"local"})
"""Texts that are a kind and a name in one."""
_ROUNDS = 4


def resolve(text: str, *, environ: Mapping[str, str]) -> Target:
    """The target of one ``--vm`` value: ``PROVIDER:NAME``, ``ssh://…``, ``ssh:ALIAS``, ``rootfs:DIR``,
    ``local`` or a bare name.

    A bare name asks every provider; two answers are an error, except for the classic VM's name: the
    first answer counts there (DESIGN section 2). Raises UsageError, Unreachable.
    """
    if not text or text.startswith("-") or not text.isprintable():
        raise UsageError(
            f"{printable(text) or 'an empty text'} is no VM name", hint="--vm PROVIDER:NAME, or a bare NAME"
        )
    kind, colon, name = text.partition(":")
    colon = colon or (":" if kind in _WORDS else "")
    if colon:
        target = ask(kind, name, environ=environ)
        if target is None:
            raise UsageError(f"{kind} has no VM named {printable(name)}", hint=_known(environ))
        return target
    found = _ask_all(text, environ)
    if not found:
        by_ssh = "" if "@" not in text else f"ssh://{text} for any host by SSH"
        raise UsageError(f"no provider knows a VM named {text}", hint=by_ssh or _known(environ))
    if len(found) > 1:
        listed = ", ".join(f"{target.provider}:{text}" for target in found)
        raise UsageError(f"{text} is the name of {len(found)} VMs", hint=f"one of: {listed}")
    return found[0]


def ask(provider: str, name: str, *, environ: Mapping[str, str]) -> Target | None:
    """One provider's answer; its questions are carried to the host until there are no more."""
    member = providers.load(provider)
    answers = Answers()
    for _ in range(_ROUNDS):
        wanted = member.queries(name, environ, answers)
        if not _missing(wanted, answers):
            break
        answers = _answer(wanted, answers)
    return member.parse(name, environ, answers)


def names(*, environ: Mapping[str, str]) -> tuple[str, ...]:
    """The VM names the providers know, sorted, for shell completion and hints. Raises nothing."""
    found: set[str] = set()
    for provider in providers.NAMES:
        member = providers.load(provider)
        try:
            found.update(member.names(environ, _answer(member.listing(environ), Answers())))
        except VmproxyError:
            continue
    return tuple(sorted(found))


def _ask_all(name: str, environ: Mapping[str, str]) -> list[Target]:
    """Every provider's answer. A provider's error counts only where no other has the VM."""
    found: list[Target] = []
    errors: list[VmproxyError] = []
    for provider in providers.BARE:
        try:
            target = ask(provider, name, environ=environ)
        except VmproxyError as error:
            errors.append(error)
            continue
        if target is not None:
            found.append(target)
            if name in providers.FIRST_COUNTS:
                break
    if not found and errors:
        raise errors[0]
    return found


def _known(environ: Mapping[str, str]) -> str:
    known = names(environ=environ)
    if known:
        return f"known: {printable(', '.join(known[:10]), limit=120)}"
    return "ssh://user@host:port, or ssh:ALIAS for a host of your ssh_config"


def _missing(wanted: Queries, answers: Answers) -> bool:
    return bool(
        wanted.read - answers.read.keys()
        or wanted.exist - answers.exist.keys()
        or wanted.listing - answers.listing.keys()
        or wanted.ports - answers.ports.keys()
    )


def _answer(wanted: Queries, answers: Answers) -> Answers:
    return Answers(
        read={**answers.read, **{path: hostproc.read_file(path) for path in wanted.read - answers.read.keys()}},
        exist={**answers.exist, **{path: hostproc.is_file(path) for path in wanted.exist - answers.exist.keys()}},
        listing={
            **answers.listing,
            **{path: hostproc.list_directory(path) for path in wanted.listing - answers.listing.keys()},
        },
        ports={**answers.ports, **{end: hostproc.port_open(*end) for end in wanted.ports - answers.ports.keys()}},
    )
