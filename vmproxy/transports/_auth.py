"""Logging in over an SSH connection whose host key is already trusted: keys, the agent, a password; in this order."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Generator, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from vmproxy.errors import NotPermitted, Unreachable
from vmproxy.model import printable
from vmproxy.transports import SshOptions, _agent
from vmproxy.transports._jump import JUMP_HINT
from vmproxy.transports._keyfiles import FILE_LIMIT_BYTES, BadKeyError, NeedsPassphraseError, load_key, public_blob
from vmproxy.transports._known_hosts import fingerprint
from vmproxy.transports._tcp import Line, place
from vmproxy.transports._touch import Reminder
from vmproxy.values import dataclass

if TYPE_CHECKING:
    import paramiko

_DEFAULT_KEYS = ("id_ed25519", "id_ecdsa", "id_rsa")
_SECURITY_KEYS = ("id_ed25519_sk", "id_ecdsa_sk")
_AGENT_KEYS = 4  # sshd's MaxAuthTries is 6
_ASKED = 3
_SPARE_SECONDS = 10.0
SECONDS = 30.0


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """Where to log in and with what: the target, or a jump host, with ssh_config and the defaults filled in."""

    host: str
    port: int
    user: str
    identities: tuple[str, ...] = ()
    only_identities: bool = False
    passwords: tuple[str, ...] = ()
    key_name: str = ""
    is_jump_host: bool = False

    @property
    def place(self) -> str:
        """``user@host:port``, printable."""
        return f"{printable(self.user)}@{place(self.host, self.port)}"


class Login:
    """One log-in: every method once, what came of each for the error message; secrets are not kept.

    Where ``line`` is cut it ends, also where it waits for the agent.
    """

    def __init__(
        self,
        transport: paramiko.Transport,
        endpoint: Endpoint,
        options: SshOptions,
        guard: Callable[[float], contextlib.AbstractContextManager[object]],
        line: Line,
    ) -> None:
        self._transport = transport
        self._endpoint = endpoint
        self._options = options
        self._guard = guard
        self._line = line
        self._tried: list[str] = []
        self._allowed: tuple[str, ...] = ()
        self._seen: set[bytes] = set()
        self._sent = 0
        self._rsa_refused = False
        self._held: _agent.Keys | None = None
        self._touched = False

    def run(self) -> None:
        """Log in. Raises NotPermitted with the methods tried, Unreachable where the connection ended."""
        try:
            if not self._by_key() and not self._by_password():
                raise NotPermitted(self._story(), where=self._endpoint.place, hint=self._hint())
        finally:
            if self._held is not None:
                self._held.close()

    def _by_key(self) -> bool:
        for label, key in self._keys():
            with self._patience(key) as seconds:
                if self._attempt(label, partial(self._transport.auth_publickey, self._endpoint.user, key), seconds):
                    return True
            self._rsa_refused |= "rsa" in key.get_name()
        return False

    @contextlib.contextmanager
    def _patience(self, key: paramiko.PKey) -> Iterator[float]:
        """How long this key may take: a security key waits for a touch, which the person is told."""
        seconds = SECONDS
        if self._held is not None and any(key is held for held in self._held.all):
            seconds = max(seconds, self._held.allow_seconds(key) + _SPARE_SECONDS)
        self._touched = _agent.wants_touch(key)
        with Reminder(_described(key), self._options.notify) if self._touched else contextlib.nullcontext():
            yield seconds

    # keys

    def _keys(self) -> Iterator[tuple[str, paramiko.PKey]]:
        """Keys in the order to try, loaded one at a time: those named, the agent's, the usual files; security keys of
        the agent's, which somebody has to touch, come after all others."""
        for name in self._endpoint.identities:
            yield from self._key_file(name)
        if self._endpoint.only_identities:
            return
        held = sorted(self._agent(), key=_agent.wants_touch)[:_AGENT_KEYS]
        yield from self._from_agent(key for key in held if not _agent.wants_touch(key))
        if not self._endpoint.identities:
            for name in (*_DEFAULT_KEYS, *_SECURITY_KEYS):
                path = Path("~/.ssh").expanduser() / name
                if path.is_file():
                    yield from self._key_file(str(path))
        yield from self._from_agent(key for key in held if _agent.wants_touch(key))

    def _from_agent(self, keys: Iterable[paramiko.AgentKey]) -> Iterator[tuple[str, paramiko.PKey]]:
        for key in keys:
            if self._is_new(key):
                yield f"agent's {printable(key.get_name(), limit=40)}", key

    def _key_file(self, name: str) -> Iterator[tuple[str, paramiko.PKey]]:
        path = Path(name).expanduser()
        label = f"key {printable(str(path))}"
        try:
            if not path.is_file() or path.stat().st_size > FILE_LIMIT_BYTES:
                self._tried.append(f"{label} (no such key file)")
                return
            key = load_key(path)
        except OSError as error:
            self._tried.append(f"{label} ({error.strerror})")
            return
        except NeedsPassphraseError:
            yield from self._encrypted(path, label)
            return
        except BadKeyError as error:
            if not (yield from self._copy_in_agent(path, label)):
                self._tried.append(f"{label} ({error})")
            return
        if self._is_new(key):
            yield label, key

    def _copy_in_agent(self, path: Path, label: str) -> Generator[tuple[str, paramiko.PKey], None, bool]:
        """The agent's copy of a key that cannot be loaded; whether there is one that was not tried before."""
        public = b"" if self._endpoint.only_identities else public_blob(path)
        for held in self._agent() if public else ():
            if held.asbytes() == public and self._is_new(held):
                yield label, held
                return True
        return False

    def _encrypted(self, path: Path, label: str) -> Iterator[tuple[str, paramiko.PKey]]:
        """The agent's copy of an encrypted key where it has one; else the passphrase is needed."""
        if (yield from self._copy_in_agent(path, label)) or public_blob(path) in self._seen:
            return
        outcome = "needs a passphrase"
        for passphrase in self._passphrases(path):
            try:
                key = load_key(path, passphrase)
            except (NeedsPassphraseError, BadKeyError):
                outcome = "wrong passphrase"
                continue
            if self._is_new(key):
                yield label, key
            return
        self._tried.append(f"{label} ({outcome})")

    def _passphrases(self, path: Path) -> Iterator[str]:
        if self._options.secrets.passphrase:
            yield self._options.secrets.passphrase
        if self._options.ask is None:
            return
        for _ in range(_ASKED):
            answer = self._options.ask(f"Passphrase for {printable(str(path))}: ")
            if not answer:
                return
            yield answer

    def _agent(self) -> tuple[paramiko.AgentKey, ...]:
        """The agent's keys, asked for once."""
        if self._held is None:
            self._held = _agent.Keys(self._line)
        return self._held.all

    def _is_new(self, key: paramiko.PKey) -> bool:
        blob = key.asbytes()
        if blob in self._seen:
            return False
        self._seen.add(blob)
        return True

    # passwords

    def _by_password(self) -> bool:
        """Passwords go only to a server that says it takes one, and each only to the VM it is for."""
        if self._attempt("", partial(self._transport.auth_none, self._endpoint.user)):
            return True
        if self._allowed and not {"password", "keyboard-interactive"} & set(self._allowed):
            return False
        for label, secret in self._passwords():
            if self._attempt(label, partial(self._transport.auth_password, self._endpoint.user, secret)):
                return True
        return False

    def _passwords(self) -> Iterator[tuple[str, str]]:
        if given := self._options.secrets.password_for(self._endpoint.place):
            yield "VMPROXY_SSH_PASSWORD", given
        for known in self._endpoint.passwords:
            yield "the usual password of such a VM", known
        for _ in range(_ASKED if self._options.ask else 0):
            if self._options.ask is None or not (answer := self._options.ask(f"Password for {self._endpoint.place}: ")):
                return
            yield "password", answer

    # one attempt

    def _attempt(self, label: str, send: Callable[[], list[str]], seconds: float = SECONDS) -> bool:
        """Whether we are in now. A partial success (a second factor is wanted) goes on with the next method."""
        import paramiko

        outcome = "refused"
        self._transport.auth_timeout = seconds + _SPARE_SECONDS  # the guard comes first: then there is no next method
        with self._guard(seconds) as guard:
            try:
                more = send()
                if not more and self._transport.is_authenticated():
                    return True
                self._allowed = tuple(more)
                outcome = "accepted, but more is wanted"
            except paramiko.BadAuthenticationType as error:
                self._allowed = tuple(error.allowed_types)
                outcome = "not taken"
            except (paramiko.SSHException, OSError, EOFError, ValueError):
                outcome = self._unsigned or outcome
        if label:
            self._sent += 1
            self._tried.append(f"{label} ({outcome})")
        if not self._transport.is_active():
            self._ended(seconds if getattr(guard, "fired", False) else 0.0)
        return False

    def _ended(self, waited_seconds: float) -> None:
        """The connection did; after that long without an answer, 0 where it was not our doing."""
        if self._unsigned:
            raise NotPermitted(self._story(), where=self._endpoint.place, hint=self._hint())
        if waited_seconds:
            raise Unreachable(f"no answer to a log-in within {waited_seconds:g} s", where=self._endpoint.place)
        if self._sent:
            raise NotPermitted(
                f"the VM ended the connection; {self._story()}", where=self._endpoint.place, hint=self._hint()
            )
        raise Unreachable("the VM ended the connection during log-in", where=self._endpoint.place)

    @property
    def _unsigned(self) -> str:
        """Why the agent has not signed with the last of its keys, "" where it has."""
        return self._held.trouble if self._held is not None else ""

    def _story(self) -> str:
        tried = ", ".join(self._tried) or "nothing to try"
        allowed = ", ".join(printable(name, limit=40) for name in self._allowed[:8])
        return f"not let in: {tried}" + (f"; the VM takes {allowed}" if allowed else "")

    def _hint(self) -> str:
        if self._rsa_refused and _knows_only_sha1(self._transport.remote_version):
            return "this ssh server knows RSA keys with SHA-1 only: an ecdsa key, or --ssh openssh"
        if self._unsigned and self._touched:
            return "is the security key plugged in, and was it touched? ssh-add -L lists what the agent holds"
        if self._unsigned:
            another = "ssh_config's IdentityFile" if self._endpoint.is_jump_host else "-i FILE"
            return f"ssh-add -L lists what the agent holds; {another} names another key"
        if any("not supported" in line for line in self._tried):
            return "--ssh openssh takes every kind of key that this host's ssh does"
        if any("passphrase" in line for line in self._tried):
            return "VMPROXY_SSH_PASSPHRASE, ssh-add, or a terminal to ask on"
        if self._endpoint.is_jump_host:
            return JUMP_HINT
        return "-i FILE names the key; VMPROXY_SSH_PASSWORD holds a password"


def _described(key: paramiko.PKey) -> str:
    """A key of the agent's as ssh names it: kind and fingerprint."""
    return f"{key.get_name()} {fingerprint(key.asbytes())}"


def _knows_only_sha1(version: str) -> bool:
    """Whether an sshd of that banner knows ``ssh-rsa`` with SHA-1 alone: OpenSSH < 7.2, dropbear < 2020.79."""
    if match := re.match(r"SSH-[\d.]+-OpenSSH_(\d+)\.(\d+)", version):
        return (int(match[1]), int(match[2])) < (7, 2)
    if match := re.match(r"SSH-[\d.]+-dropbear_(\d+)\.(\d+)", version):
        return (int(match[1]), int(match[2])) < (2020, 79)
    return False
