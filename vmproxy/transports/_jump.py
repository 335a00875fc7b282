"""What ``-J`` and ssh_config's ProxyJump say: hosts on the way to the VM, the first one first. Pure."""

from __future__ import annotations

import re
from ipaddress import AddressValueError, IPv6Address

from vmproxy.errors import UsageError
from vmproxy.model import printable
from vmproxy.values import dataclass

LIMIT = 8
"""How many hosts there may be on the way."""
_HINT = "-J [USER@]HOST[:PORT], several with commas; an IPv6 address in brackets"
JUMP_HINT = "ssh_config names a jump host's key (IdentityFile), or the agent has it; -i is for the VM"
JUMP_NAME_HINT = "is it right? a jump host is a name, an address, or a Host of your ssh_config"
NAME_HINT = "is it right? ssh:ALIAS is for a Host of your ssh_config, ssh://[user@]host[:port] for any other"
_HOST = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,254}")
_NUMBERS = re.compile(r"[0-9][0-9.]{0,254}")  # ssh -G has these in brackets, too (readconf.c)
_USER = re.compile(r"[A-Za-z0-9_.\\][A-Za-z0-9_.\\@+=-]{0,254}")


@dataclass(frozen=True, kw_only=True)
class Hop:
    """One host on the way, as said: ``user`` "" and ``port`` 0 leave it to ssh_config. An IPv6 address has no
    brackets."""

    host: str
    user: str = ""
    port: int = 0

    @property
    def text(self) -> str:
        """As ssh's ``-J`` takes it."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return (f"{self.user}@" if self.user else "") + host + (f":{self.port}" if self.port else "")


def parse(text: str, *, where: str = "-J") -> tuple[Hop, ...]:
    """The hosts of ``[USER@]HOST[:PORT][,…]`` or ``ssh://[USER@]HOST[:PORT]``; () for ``none`` and for nothing.

    Raises UsageError for anything that another program could take for an option, a pattern or a command.
    """
    if not text or text.lower() == "none":
        return ()
    pieces = text.split(",")
    if len(pieces) > LIMIT:
        raise UsageError(f"more than {LIMIT} jump hosts", where=where, hint=_HINT)
    hops = tuple(_hop(piece.strip(" "), where) for piece in pieces)
    for number, hop in enumerate(hops):
        if hop in hops[:number]:
            raise UsageError(f"{printable(hop.text)} is on the way twice", where=where, hint=_HINT)
    return hops


def check_name(what: str, text: str) -> None:
    """No name that another program could take for an option, a pattern or two words. Raises UsageError."""
    if not text or text.startswith("-") or not text.isprintable() or re.search(r"[\s,*?!|]", text):
        raise UsageError(f"{printable(text) or 'nothing'} is no {what} name", where="ssh")


def _hop(text: str, where: str) -> Hop:
    rest = text[len("ssh://") :].removesuffix("/") if text.lower().startswith("ssh://") else text
    user, at, place = rest.rpartition("@")
    if ":" in user:  # perhaps a password: so it is not shown
        raise UsageError("a password does not belong in the name of a jump host", where=where, hint=_HINT)
    if place.startswith("["):
        host, bracket, port = place[1:].partition("]")
        good = _is_ipv6(host) or bool(_NUMBERS.fullmatch(host))
        good = good and bool(bracket) and (not port or port.startswith(":"))
        colon, port = port[:1], port[1:]
    else:
        host, colon, port = place.partition(":")
        good = bool(_HOST.fullmatch(host))
    if colon:
        good = good and port.isascii() and port.isdigit() and len(port) < 6 and 0 < int(port) < 65536
    if not good or (at and not _USER.fullmatch(user)):
        raise UsageError(f"{printable(text, limit=80) or 'an empty name'} is no jump host", where=where, hint=_HINT)
    return Hop(host=host, user=user, port=int(port) if colon else 0)


def _is_ipv6(text: str) -> bool:
    try:
        IPv6Address(text)
    except AddressValueError:
        return False
    return "%" not in text
