"""sudo: lets the caller's proxy variables through to what it runs. PURE.

A file of our own in sudoers.d with one constant line, so that it can never be one which sudo cannot parse; ``env_keep``
adds to what ``env_reset`` leaves (sudoers(5)). The file holds names and no values.
"""

from __future__ import annotations

import re

from vmproxy.errors import Refused
from vmproxy.model import BlockWish, Facts
from vmproxy.tools import Order, missing

NAME = "sudo"
_DIRECTORY = "/etc/sudoers.d"
FILE = f"{_DIRECTORY}/vmproxy"
FILES = (FILE,)
SHELL = ()
PATHS = (_DIRECTORY,)
TEXTS = ("/etc/sudoers",)
_INCLUDES = re.compile(rb"^[@#]includedir[ \t]+\"?/etc/sudoers\.d/?\"?[ \t\r]*$", re.MULTILINE)
_NAMES = "http_proxy https_proxy no_proxy HTTP_PROXY HTTPS_PROXY NO_PROXY"


def render(order: Order, facts: Facts) -> tuple[BlockWish, ...]:
    """One line."""
    if _DIRECTORY not in facts.paths:
        raise missing(NAME, _DIRECTORY)
    main = facts.texts.get(TEXTS[0])
    if main is not None and not _INCLUDES.search(main):
        raise Refused("sudo does not read /etc/sudoers.d", where=TEXTS[0], hint="add @includedir by visudo")
    payload = f'Defaults env_keep += "{_NAMES}"\n'.encode()
    return (BlockWish(path=FILE, payload=payload, where="last", record={}, mode=0o440),)


def unsaid(order: Order) -> tuple[str, ...]:
    """None: it hands on what is there."""
    return ()


def overrides(facts: Facts) -> str:
    """Nothing that could be seen here."""
    return ""


def objection(content: bytes, *, leaving: bool) -> str:
    """None: the file is ours."""
    return ""
