"""A word to the service manager that started us, where it asked for one (sd_notify(3)). Nothing elsewhere."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from contextlib import suppress


def tell(state: str, environ: Mapping[str, str]) -> None:
    """Send ``state`` (``READY=1``) to the datagram socket of ``NOTIFY_SOCKET``; ``@`` begins an abstract one."""
    address = environ.get("NOTIFY_SOCKET", "")
    if address[:1] not in ("/", "@") or not hasattr(socket, "AF_UNIX"):
        return
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as talk:
        talk.connect("\0" + address[1:] if address.startswith("@") else address)
        talk.sendall(state.encode())
