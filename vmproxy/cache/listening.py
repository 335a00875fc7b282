"""Where a proxy listens: why it cannot, and the addresses of this machine."""

from __future__ import annotations

import asyncio
import errno
import os
import re
import socket
import sys
from contextlib import suppress
from ipaddress import ip_address

from vmproxy import nearby
from vmproxy.cache.guard import Address
from vmproxy.cache.limits import CacheSettings
from vmproxy.errors import Refused

_SECONDS = 20.0
_FILE_LIMIT = 4 << 20
_LOCAL_4 = re.compile(r"\|-- ([0-9.]+)\n\s+/32 host LOCAL")
_IFCONFIG = re.compile(r"^\s+inet6? ([0-9A-Fa-f:.]+)", re.MULTILINE)


def refused(settings: CacheSettings, error: OSError) -> Refused:
    """The error of an address that cannot be listened on."""
    why = os.strerror(error.errno) if error.errno else error.strerror or "refused"  # asyncio's own has the address, too
    what, hint = f"cannot listen there: {why.lower()}", "--bind ADDR, --port N"
    port = settings.port
    if error.errno == errno.EADDRINUSE:
        # The question goes to 127.0.0.1: who listens at another address it cannot tell.
        if settings.address in ("127.0.0.1", "0.0.0.0") and (found := nearby.who(port)):  # noqa: S104
            hint = f"--port N; or use it as it is: vmproxy apply --proxy {found.url}"
            return Refused(f"{found.name} listens there already", where=f"{settings.address}:{port}", hint=hint)
        who = f"ss -ltnp sport = :{port}" if sys.platform == "linux" else f"lsof -nP -iTCP:{port}"
        what, hint = "something listens there already", f"--port N; who it is says {who}"
    return Refused(what, where=f"{settings.address}:{port}", hint=hint)


def try_listening(settings: CacheSettings) -> None:
    """Listen for a moment. Raises Refused."""
    family = socket.AF_INET6 if ":" in settings.address else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            if sys.platform != "win32":
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((settings.address, settings.port))
            probe.listen()
    except OSError as error:
        raise refused(settings, error) from None


async def own_addresses() -> tuple[Address, ...]:
    """This machine's addresses: of Linux by /proc, elsewhere by ifconfig. Raises Refused where that does not end."""
    found: list[str] = []
    if sys.platform == "linux":
        found += _LOCAL_4.findall(_read("/proc/net/fib_trie"))
        for line in _read("/proc/net/if_inet6").splitlines():
            digits = line[:32]
            found.append(":".join(digits[at : at + 4] for at in range(0, 32, 4)))
    else:
        with suppress(OSError):
            child = await asyncio.create_subprocess_exec(
                "ifconfig",
                "-a",
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.DEVNULL,
            )
            try:
                async with asyncio.timeout(_SECONDS):
                    said, _errors = await child.communicate()
                found += _IFCONFIG.findall(said.decode("latin-1"))
            except TimeoutError:
                raise Refused(f"ifconfig does not end within {_SECONDS:g} s", hint="ifconfig -a") from None
            finally:
                with suppress(ProcessLookupError):
                    child.kill()
                await child.communicate()
    addresses = set()
    for text in found:
        with suppress(ValueError):
            addresses.add(ip_address(text))
    return tuple(sorted(addresses, key=lambda one: (one.version, int(one))))


def _read(path: str) -> str:
    with suppress(OSError), open(path, encoding="latin-1") as file:
        return file.read(_FILE_LIMIT)
    return ""
