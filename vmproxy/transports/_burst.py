"""Log-in, channel and command in one burst: three round trips less than one after the other.

Right after the host key was found good, all four requests go out without waiting for an answer (tested on OpenSSH and
dropbear). It takes exactly one key that is likely right, and a guess: that the server numbers its first channel 0. It
also takes methods of paramiko that are not public. Whatever goes wrong, a refused key too, the caller connects again
and takes the plain way; nothing is lost but the time, and a refusal is then said as usual.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vmproxy.transports import SshOptions
from vmproxy.transports._auth import Endpoint
from vmproxy.transports._keyfiles import BadKeyError, NeedsPassphraseError, load_key

if TYPE_CHECKING:
    import paramiko

_FIRST_CHANNEL = 0
_OPEN, _REQUEST = bytes([90]), bytes([98])  # SSH_MSG_CHANNEL_OPEN, SSH_MSG_CHANNEL_REQUEST


class NoBurst(Exception):
    """The plain way has to be taken."""


def only_key(endpoint: Endpoint, options: SshOptions) -> paramiko.PKey | None:
    """The one key file there is to try, None where there are more, or none, or it cannot be opened without asking."""
    if len(endpoint.identities) != 1:
        return None
    path = Path(endpoint.identities[0]).expanduser()
    try:
        return load_key(path)
    except NeedsPassphraseError:
        pass
    except (OSError, BadKeyError):
        return None
    try:
        return load_key(path, options.secrets.passphrase) if options.secrets.passphrase else None
    except (OSError, BadKeyError, NeedsPassphraseError):
        return None


def burst(
    transport: paramiko.Transport,
    user: str,
    key: paramiko.PKey,
    command: str,
    *,
    timeout_seconds: float,
    meanwhile: Callable[[], object],
) -> paramiko.Channel:
    """The channel with the command running; ``meanwhile`` is called while the server works. Raises NoBurst for
    anything else."""
    try:
        sent = _send(transport, user, key, command)
    except Exception as error:  # a paramiko whose insides have changed raises anything
        raise NoBurst from error
    meanwhile()
    try:
        return _answered(transport, *sent, timeout_seconds)
    except NoBurst:
        raise
    except Exception as error:  # a paramiko whose insides have changed raises anything
        raise NoBurst from error


def _send(transport: Any, user: str, key: paramiko.PKey, command: str) -> tuple[Any, threading.Event, threading.Event]:
    """All four requests; the channel, and the events of the log-in and of the channel's being open."""
    import paramiko
    from paramiko.auth_handler import AuthHandler

    class Eager(AuthHandler):
        """Has sent its request already when the service is accepted."""

        def _parse_service_accept(self, _message: paramiko.Message) -> None:
            return

    authenticated = threading.Event()
    handler: Any = Eager(transport)
    handler.auth_event, handler.auth_method = authenticated, "publickey"
    handler.username, handler.private_key = user, key
    transport.auth_handler = handler
    handler._request_auth()
    accepted = paramiko.Message()
    accepted.add_string("ssh-userauth")
    accepted.rewind()
    AuthHandler._parse_service_accept(handler, accepted)  # type: ignore[attr-defined]

    channel, opened = _open(transport)
    request = paramiko.Message()
    request.add_byte(_REQUEST)
    request.add_int(_FIRST_CHANNEL)
    request.add_string("exec")
    request.add_boolean(True)
    request.add_string(command)
    channel._event_pending()
    transport._send_user_message(request)
    return channel, authenticated, opened


def _answered(
    transport: Any, channel: Any, authenticated: threading.Event, opened: threading.Event, timeout_seconds: float
) -> paramiko.Channel:
    for event in (authenticated, opened, channel.event):
        if not event.wait(timeout_seconds) or not transport.is_active():
            raise NoBurst
        if not transport.is_authenticated() or transport._channels.get(channel.get_id()) is None:
            raise NoBurst
    if channel.remote_chanid != _FIRST_CHANNEL or not channel.event_ready:
        raise NoBurst
    result: paramiko.Channel = channel
    return result


def _open(transport: Any) -> tuple[Any, threading.Event]:
    """Ask for a session channel as Transport.open_channel does, without waiting for the answer."""
    import paramiko

    opened = threading.Event()
    with transport.lock:
        window = transport._sanitize_window_size(None)
        packet = transport._sanitize_packet_size(None)
        number = transport._next_channel()
        channel: Any = paramiko.Channel(number)
        transport._channels.put(number, channel)
        transport.channel_events[number] = opened
        transport.channels_seen[number] = True
        channel._set_transport(transport)
        channel._set_window(window, packet)
    message = paramiko.Message()
    message.add_byte(_OPEN)
    message.add_string("session")
    message.add_int(number)
    message.add_int(window)
    message.add_int(packet)
    transport._send_user_message(message)
    return channel, opened
