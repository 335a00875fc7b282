"""Transport ``ssh``: paramiko, a bare Transport over our own socket.

Measured (PERFORMANCE.md): TCP_NODELAY is the one setting that matters, each wrong key costs two round trips, and the
import of paramiko takes as long as a log-in, so TCP connects meanwhile. The agent, X11 and ports are never forwarded:
nothing here asks for it, and paramiko refuses such channels when a server opens one.
"""

from __future__ import annotations

import contextlib
import dataclasses
import socket
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vmproxy.errors import NotPermitted, Unreachable, Untrusted
from vmproxy.model import Target, printable
from vmproxy.transports import Secrets, SshOptions, _known_hosts
from vmproxy.transports._auth import SECONDS, Endpoint, Login
from vmproxy.transports._burst import NoBurst, burst, only_key
from vmproxy.transports._channel import SshConnection, shut
from vmproxy.transports._jump import JUMP_HINT, JUMP_NAME_HINT, NAME_HINT
from vmproxy.transports._library import first as first_to_import
from vmproxy.transports._library import library as _library
from vmproxy.transports._route import route
from vmproxy.transports._tcp import GREETING, Dial, Line, place, round_trip
from vmproxy.transports._tunnel import Passage, Tunnel

if TYPE_CHECKING:
    import paramiko

_WEAK = {
    "macs": ["hmac-sha1", "hmac-md5", "hmac-sha1-96", "hmac-md5-96"],
    "ciphers": ["3des-cbc", "aes128-cbc", "aes192-cbc", "aes256-cbc"],
}

_HINTS = {NAME_HINT: JUMP_NAME_HINT, JUMP_HINT: JUMP_HINT}
"""What a jump host's hint is, where it is not that of a VM in other words."""


def connect(target: Target, *, options: SshOptions, first: str = "") -> SshConnection:
    """Connect, hold the host key against what is known, log in; on the way to it, the same at each jump host.

    Raises Unreachable (within the connect timeout), Untrusted (before any authentication), NotPermitted, UsageError.
    ``first`` is started along with the log-in where that can be done (see ``_burst``).
    """
    *jumps, endpoint = route(target, options)
    pin = _known_hosts.check_pin(options.host_key or target.host_key) if options.host_key or target.host_key else ""
    path = Path(options.known_hosts or target.known_hosts or _known_hosts.default_path()).expanduser()
    line = Line()
    with options.stoppable(line.cut):
        below = _through(jumps, options, line) if jumps else None
        try:
            if first:
                with contextlib.suppress(NoBurst):
                    return _connect(endpoint, options, pin, path, first, below, line)
            return _connect(endpoint, options, pin, path, "", below, line)
        except BaseException:
            if below is not None:
                below.close()
            raise


def _through(jumps: list[Endpoint], options: SshOptions, line: Line) -> SshConnection:
    """A connection to the last of the jump hosts. What the user said for the VM alone is not for them: its pin, its
    password (RELIABILITY T02)."""
    path = Path(options.known_hosts or _known_hosts.default_path()).expanduser()
    secrets = Secrets(passphrase=options.secrets.passphrase)
    theirs = dataclasses.replace(options, secrets=secrets, host_key="", meanwhile=lambda: None)
    below: SshConnection | None = None
    for endpoint in jumps:
        try:
            below = _connect(endpoint, theirs, "", path, "", below, line)
        except BaseException as error:
            if below is not None:
                below.close()
            if isinstance(error, Unreachable | NotPermitted):
                hint = _HINTS.get(error.hint) or _its(error.hint)
                raise type(error)(f"jump host: {_its(error.what)}", where=error.where, hint=hint) from error
            raise
    assert below is not None  # noqa: S101 - there is one at least
    return below


def _its(text: str) -> str:
    """What is said of the VM, of a jump host."""
    return text.replace("the VM's", "its").replace("the VM", "it")


def _connect(
    endpoint: Endpoint, options: SshOptions, pin: str, path: Path, first: str, below: SshConnection | None, line: Line
) -> SshConnection:
    """One connection, trusted and logged in, over ``below`` where there is one; that stays open when this fails. What
    it hangs on, the lowest of all, is ``line``'s.

    Raises NoBurst where ``first`` cannot be started along with it.
    """
    dial: Dial | Tunnel
    if below is None:
        seconds = options.connect_timeout_seconds
        dial = Dial(endpoint.host, endpoint.port, timeout_seconds=seconds, busy=first_to_import(), line=line)
    else:
        dial = Tunnel(below, endpoint.host, endpoint.port, timeout_seconds=options.connect_timeout_seconds)
    name = endpoint.key_name or _known_hosts.host_name(endpoint.host, endpoint.port)
    known = b"" if pin else _known_hosts.read(path)
    library = _library()
    key = only_key(endpoint, options) if first else None
    sock = dial.result()
    options.reached(round_trip(sock) if isinstance(sock, socket.socket) else None)
    try:
        transport = _handshake(library, sock, dial, known, name)
    except BaseException:
        sock.close()
        raise
    connection = SshConnection(transport, sock, endpoint.place, options, below)
    try:
        _trust(transport.get_remote_server_key(), endpoint, options, pin, path, name, known)
        if key is not None:
            with connection.guard(SECONDS):
                running = burst(
                    transport, endpoint.user, key, first, timeout_seconds=SECONDS, meanwhile=options.meanwhile
                )
                connection.keep(first, running)
        else:
            Login(transport, endpoint, options, connection.guard, line).run()
        transport.set_keepalive(options.keepalive_seconds)
    except BaseException:
        connection.below = None
        connection.close()
        raise
    return connection


def _trust(
    key: paramiko.PKey, endpoint: Endpoint, options: SshOptions, pin: str, path: Path, name: str, known: bytes
) -> None:
    """Hold the key against the pin or the file; an unknown one is kept and said. Raises Untrusted."""
    blob = key.asbytes()
    if pin:
        _check_pin(pin, _known_hosts.fingerprint(blob), key.get_name(), endpoint)
    elif _known_hosts.trust(path, name=name, kind=key.get_name(), blob=blob, data=known):
        options.notify(f"new host key of {printable(name)} kept: {_known_hosts.fingerprint(blob)} ({path})")


def _handshake(
    library: Any, sock: socket.socket | Passage, dial: Dial | Tunnel, known: bytes, name: str
) -> paramiko.Transport:
    """Banner and key exchange, until the dial's deadline. The server is not yet trusted after it."""
    where = place(dial.host, dial.port)
    transport: paramiko.Transport = library.Transport(sock, disabled_algorithms=_WEAK)
    transport.local_version = GREETING
    transport.set_log_channel("vmproxy.ssh")
    transport.banner_timeout = transport.handshake_timeout = 60  # ours, below, is the shorter one
    kinds = [entry.kind for entry in _known_hosts.entries(known, name) if not entry.marker]
    offered = transport.get_security_options()
    first = [kind for kind in offered.key_types if kind in kinds or (kind.startswith("rsa-") and "ssh-rsa" in kinds)]
    offered.key_types = tuple(first) + tuple(kind for kind in offered.key_types if kind not in first)
    done = threading.Event()
    transport.start_client(event=done)
    in_time = done.wait(max(0.05, dial.deadline - time.monotonic()))
    if in_time and transport.is_active():
        return transport
    error = transport.get_exception()
    banner = transport.remote_version
    shut(transport, sock)
    if not in_time:
        raise Unreachable("connected, but no SSH handshake in time", where=where, hint="--connect-timeout S") from error
    if isinstance(error, library.ssh_exception.IncompatiblePeer):
        raise Unreachable(
            f"no common algorithm with the ssh server {printable(banner, limit=60)}: {printable(str(error), limit=99)}",
            where=where,
            hint="--ssh openssh speaks with older servers too",
        ) from error
    detail = printable(str(error), limit=120) if error and str(error) else "the connection ended"
    raise Unreachable(f"no SSH handshake: {detail}", where=where, hint="is this the VM's ssh port?") from error


def _check_pin(pin: str, shown: str, kind: str, endpoint: Endpoint) -> None:
    if shown != pin:
        raise Untrusted(
            f"the host key is {shown} ({printable(kind, limit=40)}), wanted is {pin}; not logging in",
            where=place(endpoint.host, endpoint.port),
            hint="--host-key takes the fingerprint of the VM's key of that type",
        )
