"""What OpenSSH's ssh wrote when it did not get in, made an error of ours. Pure.

``log`` is its own ``-E`` file at LogLevel DEBUG1, ``more`` its stderr: what the ssh processes of jump hosts say at that
level, one after the other, and banners of servers. The words are those of sshconnect.c, readconf.c and packet.c, which
no locale changes. Nothing but the wording of an error hangs on them.
"""

from __future__ import annotations

import re

from vmproxy.errors import NotPermitted, Unreachable, Untrusted, UsageError, VmproxyError
from vmproxy.model import printable
from vmproxy.transports._jump import JUMP_HINT, JUMP_NAME_HINT, NAME_HINT
from vmproxy.values import dataclass

_NOISE = re.compile(
    r"debug\d:|Authenticated to |Warning: Permanently added|@{5}|Pseudo-terminal|Transferred: |Bytes per second"
    r"|\*\* |Connection closed by UNKNOWN|Warning: Identity file |Killed by signal|\s*$"
)
TOO_OLD = "this ssh is too old: OpenSSH 7.6 is needed"
"""The oldest with RemoteCommand and ``StrictHostKeyChecking=accept-new``; ``-G`` came with 6.8."""
_SECURITY_KEY = r"[A-Z0-9]+-SK(?:-CERT)? (?:SHA256|MD5):[\w+/:]+"
_PRESENCE = 0x01  # SSH_SK_USER_PRESENCE_REQD of sk-api.h
_LET_IN = re.compile(r"^(?:Authenticated to |debug1: mux_client_request_stdio_fwd: master session).*$", re.MULTILINE)
_DETAIL = re.compile(r"^debug\d: .*\n?", re.MULTILINE)
_NO_NAME = re.compile(r"not known|name resolution|nodename nor servname|not found", re.IGNORECASE)
"""What resolvers say (gai_strerror(3) of glibc, musl and the BSDs)."""
_OLD = frozenset({"ssh-rsa", "ssh-dss", "ssh-rsa-cert-v01@openssh.com", "ssh-dss-cert-v01@openssh.com"})


def awaited_key(log: str) -> str:
    """The security key whose signature ssh waits for as its log ends, as ``ECDSA-SK SHA256:…``; "" where it waits for
    none, or for one that wants no touch as far as that is told (not in a ``-E`` file).

    ssh itself asks for the touch on a terminal, or by a window, and with BatchMode never on a terminal (readpass.c).
    """
    accepted = [*re.finditer(r"^debug1: Server accepts key: (?:.* )?(\S+ \w+:[\w+/:]+)", log, re.MULTILINE)]
    if not accepted or not (key := re.fullmatch(_SECURITY_KEY, accepted[-1][1])):
        return ""
    after = log[accepted[-1].end() :]
    if re.search(r"^(?:Authenticated|sign_and_send|debug1: (?:Authenti|Next|Offering|Trying))", after, re.MULTILINE):
        return ""
    asked = re.search(r"^debug1: sshsk_sign: provider .* flags 0x([0-9a-f]+)", after, re.MULTILINE)
    return "" if asked and not int(asked[1], 16) & _PRESENCE else key[0]


def _unsigned(log: str) -> list[tuple[str, str]]:
    """Keys that would have been taken, and why there was no signature."""
    words = r'^sign_and_send_pubkey: signing failed for \S+ "(.+?)"(?: from agent)?: (.+?)\r?$'
    return re.findall(words, log, re.MULTILINE)


@dataclass(frozen=True, kw_only=True)
class Offence:
    """The line of a known_hosts file that another key stands in."""

    path: str
    line: int


@dataclass(frozen=True, kw_only=True)
class Said:
    """One try of ssh. ``where`` is ``user@host:port``, and so are the ``hops``, the jump hosts in order; ``pin`` is the
    fingerprint that was wanted, if any; ``direct`` says that neither a jump host nor a ProxyCommand is on the way: then
    ``more`` tells of no other failure. ``password`` says that the library knows a usual password of the VM."""

    log: str
    more: str = ""
    where: str = ""
    hops: tuple[str, ...] = ()
    pin: str = ""
    timeout_seconds: float = 0.0
    direct: bool = False
    password: bool = False

    @property
    def shown(self) -> str:
        """The fingerprint of the key that the server showed, "" where it did not come to that."""
        found = re.search(r"^debug1: Server host key: \S+ (SHA256:[A-Za-z0-9+/]+)", self.log, re.MULTILINE)
        return found[1] if found else ""

    @property
    def offence(self) -> Offence | None:
        """Where the key stands that is known instead."""
        found = re.search(r"^Offending (?:\S+ )?key (?:for IP )?in (.+):(\d+)\r?$", self._text, re.MULTILINE)
        return Offence(path=found[1], line=int(found[2])) if found else None

    @property
    def stop(self) -> str:
        """Where it stopped: ``where``, or a place on the way to it."""
        return self._hop or (f"on the way to {self.where}" if self._on_the_way else self.where)

    @property
    def at_jump_host(self) -> bool:
        """Whether that is a jump host, which has not let us in."""
        return bool(self._hop)

    @property
    def person_may_help(self) -> bool:
        """Whether a person at a terminal could get in: by a password, a passphrase, the PIN of a key."""
        return bool(re.search(r"^\S+: Permission denied \(", self._text, re.MULTILINE))

    @property
    def device_failed(self) -> bool:
        """Whether a security key that was taken has not signed."""
        return bool(re.search(r"^sign_and_send_pubkey: signing failed for \S+-SK", self._text, re.MULTILINE))

    @property
    def needs_sha1(self) -> bool:
        """Whether the VM knows RSA with SHA-1 alone, as the key that it shows or as the one that it takes."""
        if "no matching host key type found" in self.log:
            return self.shows_sha1
        return "Permission denied (" in self.log and "no mutual signature" in self.log

    @property
    def shows_sha1(self) -> bool:
        """Whether the only key that the VM can show is RSA with SHA-1."""
        found = re.search(r"no matching host key type found\. Their offer: (\S+)", self.log)
        kinds = set(found[1].split(",")) if found else set()
        return "ssh-rsa" in kinds and kinds <= _OLD

    def error(self, known: str = "") -> VmproxyError:
        """The error to raise. ``known`` is the fingerprint at :attr:`offence`."""
        return (
            self._words()
            or self._trust(known)
            or self._algorithms()
            or self._log_in()
            or self._way()
            or Unreachable(
                f"{self._jump}{self._last() or 'ssh ends without a word'}",
                where=self.stop,
                hint=f"is {self._thing} running, and its ssh server?",
            )
        )

    # what kind of failure

    def _words(self) -> VmproxyError | None:
        """An option of ours that ssh does not know; it has opened no log then."""
        found = re.search(r"^command-line:? line \d+: (.+)", self.more, re.MULTILINE)
        if self.log or not found:
            return None
        said = printable(found[1].strip(), limit=160)
        if re.search(r"remotecommand|accept-new", said, re.IGNORECASE):
            return UsageError(TOO_OLD, where="ssh", hint="without --ssh openssh")
        return UsageError(f"ssh does not take its options: {said}", where="ssh", hint="without --ssh openssh")

    def _trust(self, known: str) -> VmproxyError | None:
        text = self._text
        shown = self._shown_there
        if re.search(r"REVOKED HOST KEY|Host key \S+ \S+ revoked|is revoked", text):
            return Untrusted(f"{self._jump}the host key is revoked: {shown or 'ssh says so'}", where=self.stop)
        if re.search(r"HOST IDENTIFICATION HAS CHANGED|Host key for .* has changed", text):
            offence = self.offence
            before = f"known {known}, " if known else ""
            what = f"{self._jump}the host key has changed: {before}now {shown}; not logging in"
            where = f"{printable(offence.path)}:{offence.line}" if offence else self.stop
            return Untrusted(what, where=where, hint=f"if {self._thing} was made anew: {self._forget()}")
        if "Host key verification failed" not in text:
            return None
        if self.pin and not self._on_the_way:
            return Untrusted(
                f"the host key is {shown}, wanted is {self.pin}; not logging in",
                where=self.where,
                hint="--host-key takes the fingerprint of the VM's key of that type",
            )
        return Untrusted(
            f"{self._jump}the host key is not one that is known{': ' + shown if shown else ''}; not logging in",
            where=self.stop,
            hint="ssh-keygen -F HOST shows what is known; StrictHostKeyChecking of your ssh_config counts too",
        )

    def _algorithms(self) -> VmproxyError | None:
        found = re.search(r"Unable to negotiate with .*?: (no matching .*)", self._text)
        if not found:
            return None
        return Unreachable(
            f"{self._jump}no common algorithm: {printable(found[1].strip(), limit=160)}",
            where=self.stop,
            hint="ssh_config can allow what such an old server needs: HostKeyAlgorithms, KexAlgorithms, Ciphers, MACs",
        )

    def _log_in(self) -> VmproxyError | None:
        text = self._text
        denied = re.search(r"Permission denied \(([^)]*)\)", text)
        ended = re.search(r"Too many authentication failures", text)
        if not denied and not ended:
            return None
        tried = ", ".join(self._tried()) or "nothing to try"
        what = f"not let in: {tried}" if denied else f"{self._thing} ended the connection: {tried}"
        if self._on_the_way and not self._hop:  # a ProxyCommand's ssh, which does not say what it tried
            what = f"a host on the way {'does not let us in' if denied else 'ended the connection'}"
        what += f"; {self._thing} takes {printable(denied[1].replace(',', ', '), limit=120)}" if denied else ""
        hint = "-i FILE names the key; ssh-add, or a terminal to ask on, for a passphrase or a password"
        if self.device_failed:
            hint = "is the security key plugged in, and was it touched? ssh_config's SecurityKeyProvider is its library"
        elif self._on_the_way:
            hint = JUMP_HINT
        elif self.password:
            hint = "without --ssh openssh: the usual password of such a VM is tried then"
        elif self.needs_sha1:
            hint = "this server takes RSA keys with SHA-1 only: PubkeyAcceptedAlgorithms +ssh-rsa in ssh_config"
        return NotPermitted(f"{self._jump}{what}", where=self.stop, hint=hint)

    def _way(self) -> VmproxyError | None:
        text = self._text
        if found := re.search(r"Could not resolve hostname (\S+):", text):
            hint = JUMP_NAME_HINT if self._on_the_way else NAME_HINT
            return Unreachable(f"{self._jump}the host name is not known", where=printable(found[1]), hint=hint)
        if found := re.search(r"connect to host (\S+) port (\d+): (.+)", text):
            return self._no_connection(found[3].strip(), printable(f"{found[1]}:{found[2]}"))
        if found := re.search(r"channel \d+: open failed: ([\w -]+): (.*)", text):
            return self._not_passed_on(found[1], printable(found[2].strip().lower() or found[1], limit=80))
        if re.search(r"[Tt]imed out|Timeout, server|not responding", text):
            return self._no_connection("timed out", self.stop)
        if re.search(r"banner|exchange_identification|protocol (version|identification)", text, re.IGNORECASE):
            hint = "is this its ssh port?" if self._hop else "is this the VM's ssh port?"
            return Unreachable(f"{self._jump}no SSH handshake: {self._last()}", where=self.stop, hint=hint)
        return None

    def _no_connection(self, reason: str, where: str) -> VmproxyError:
        if "timed out" in reason.lower():
            what = f"no answer within {self.timeout_seconds:g} s" if self.timeout_seconds else "no answer"
            return Unreachable(
                f"{self._jump}{what}", where=where, hint=f"is {self._thing} running? --connect-timeout S"
            )
        what = f"{self._jump}cannot connect: {printable(reason, limit=80).lower()}"
        return Unreachable(what, where=where, hint=f"is {self._thing} running, and its ssh server?")

    def _not_passed_on(self, kind: str, reason: str) -> VmproxyError:
        """The last jump host that has let us in does not reach the next one, or the VM."""
        before = self.hops[self._passed - 1] if self._passed else ""
        where = f"{self._hop or self.where}{' from ' + before if before else ''}"
        if "prohibited" in kind:
            what, hint = "does not pass connections on", "AllowTcpForwarding in the jump host's sshd_config"
        else:
            what, hint = "cannot connect", f"is {'it' if self._hop else 'the VM'} running, and its ssh server?"
            if _NO_NAME.search(reason):
                hint = "it is the jump host that looks this name up: is it right there?"
        return Unreachable(f"{self._jump}the jump host {what}: {reason}", where=where, hint=hint)

    # parts

    @property
    def _passed(self) -> int:
        """How many jump hosts have let us in."""
        return min(len(_LET_IN.findall(self.more)), len(self.hops))

    @property
    def _hop(self) -> str:
        """The jump host that has not, where it stopped there; "" where none of them is known to."""
        stopped = self.more and not self.direct and not self.shown and self._passed < len(self.hops)
        return self.hops[self._passed] if stopped else ""

    @property
    def _there(self) -> str:
        """What was said since the last jump host has let us in: the banners of those before are not in it."""
        return self.more[max((found.end() for found in _LET_IN.finditer(self.more)), default=0) :]

    @property
    def _reason(self) -> str:
        """That without details, "" where nothing of it is a reason."""
        text = _DETAIL.sub("", self._there)
        return text if any(not _NOISE.match(line) for line in text.splitlines()) else ""

    @property
    def _on_the_way(self) -> bool:
        """Whether it stopped before the VM had shown its key, at a jump host or behind one."""
        return not self.direct and not self.shown and bool(self._hop or self._reason)

    @property
    def _text(self) -> str:
        return (self._on_the_way and self._reason) or self.log  # of a silent one it is our own ssh that tells

    @property
    def _jump(self) -> str:
        return "jump host: " if self._hop else ""

    @property
    def _thing(self) -> str:
        return "it" if self._on_the_way else "the VM"

    @property
    def _shown_there(self) -> str:
        if self.shown:
            return self.shown
        found = re.search(r"sent by the remote host is\s+(SHA256:[A-Za-z0-9+/]+)", self._text)
        return found[1] if found else ""

    def _forget(self) -> str:
        found = re.search(r'^\s+(ssh-keygen -f "[^"]*" -R "[^"]*")', self._text, re.MULTILINE)
        return printable(found[1]) if found else "ssh-keygen -R HOST -f FILE"

    def _tried(self) -> list[str]:
        """Each key with what came of it, and what ssh says of key files."""
        log = self._there if self._on_the_way else self.log
        out: list[str] = []
        unsigned = {key: printable(why, limit=60) for key, why in _unsigned(log)}
        for found in re.finditer(r"^debug1: Offering public key: (.+?) (\S+) SHA256:\S+(.*)$", log, re.MULTILINE):
            agent = "agent's " if " agent" in found[3] and not found[1].startswith("/") else "key "
            label = f"{agent}{printable(found[1], limit=120)} ({unsigned.get(found[1], 'refused')})"
            out += [label] if label not in out else []
        for found in re.finditer(r'^Load key "(.+?)": (.+?)\r?$', log, re.MULTILINE):
            out.append(f"key {printable(found[1], limit=120)} ({printable(found[2], limit=60)})")
        if "no mutual signature" in log:
            out.append("RSA key (no common signature)")
        return out[:8]

    def _last(self) -> str:
        """The last line that is no detail, printable."""
        # More than the log only where that is empty: ssh opens it after its own words.
        text = self._text or _DETAIL.sub("", self.more)
        lines = [line.strip() for line in text.splitlines() if not _NOISE.match(line)]
        return printable(lines[-1], limit=160) if lines else ""
