"""What ssh's own words become: the kind of error, its place, its hint. The words are those of OpenSSH 7.4 to 9.2."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmproxy.errors import NotPermitted, Unreachable, Untrusted, UsageError, VmproxyError
from vmproxy.model import printable
from vmproxy.transports._sshsaid import Offence, Said, awaited_key
from vmproxy.transports._touch import Touch

SHOWN = "SHA256:" + "A" * 43
SK = "ECDSA-SK SHA256:" + "b" * 43
KEY = f"debug1: Server host key: ssh-ed25519 {SHOWN}\n"
CHANGED = (
    "@    WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED!     @\r\n"
    f"The fingerprint for the ED25519 key sent by the remote host is\r\n{SHOWN}.\r\n"
    "Offending ECDSA key in /home/me/known hosts:12\r\n"
    '  remove with:\r\n  ssh-keygen -f "/home/me/known hosts" -R "vm"\r\n'
    "Host key verification failed.\r\n"
)


def said(log: str, more: str = "", **more_fields: Any) -> VmproxyError:
    """The error of one try at ``me@vm:22``."""
    return Said(log=log, more=more, where="me@vm:22", timeout_seconds=3.0, **more_fields).error()


@pytest.mark.parametrize(
    ("log", "kind", "words"),
    [
        ("ssh: Could not resolve hostname vm: Name or service not known\n", Unreachable, "name is not known"),
        ("ssh: connect to host vm port 22: No route to host\n", Unreachable, "no route to host"),
        ("ssh: connect to host vm port 22: Connection timed out\n", Unreachable, "no answer within 3 s"),
        ("Connection timed out during banner exchange\n", Unreachable, "no answer within 3 s"),
        ("kex_exchange_identification: read: Connection reset by peer\n", Unreachable, "no SSH handshake"),
        ("Bad remote protocol version identification: 'HTTP'\n", Unreachable, "no SSH handshake"),
        ("Unable to negotiate with ::1 port 22: no matching MAC found. Their offer: x\n", Unreachable, "matching MAC"),
        (KEY + "me@vm: Permission denied (publickey,password).\n", NotPermitted, "takes publickey, password"),
        (KEY + "Received disconnect from ::1 port 22:2: Too many authentication failures\n", NotPermitted, "ended"),
        (KEY + 'Load key "/k": error in libcrypto\nme@vm: Permission denied (publickey).\n', NotPermitted, "/k (error"),
        (KEY + "Host key verification failed.\n", Untrusted, "not one that is known"),
        (KEY + "Host key ED25519 SHA256:x revoked by file /r\n", Untrusted, "revoked"),
        (KEY + CHANGED, Untrusted, "has changed"),
        ("something new\n", Unreachable, "something new"),
        ("", Unreachable, "without a word"),
        ("debug1: nothing but details\n", Unreachable, "without a word"),
    ],
)
def test_what_it_becomes(log: str, kind: type[VmproxyError], words: str) -> None:
    """Each failure is the error that the library's transport raises for it."""
    error = said(log)
    assert type(error) is kind
    assert words in str(error)
    assert error.hint


def test_changed_key_is_told_whole() -> None:
    """Place in the file, both fingerprints, the command to forget."""
    tried = Said(log=KEY + CHANGED, where="me@vm:22")
    assert tried.offence == Offence(path="/home/me/known hosts", line=12)
    error = tried.error("SHA256:before")
    assert "SHA256:before" in str(error) and SHOWN in str(error)
    assert error.where == "/home/me/known hosts:12"
    assert 'ssh-keygen -f "/home/me/known hosts" -R "vm"' in error.hint


def test_pin() -> None:
    """Both fingerprints, where one was wanted."""
    error = said(KEY + "Host key verification failed.\n", pin="SHA256:wanted")
    assert SHOWN in str(error) and "SHA256:wanted" in str(error)


@pytest.mark.parametrize(
    ("more", "kind", "words"),
    [
        (
            "guard@door: Permission denied (publickey).\r\n",
            NotPermitted,
            "a host on the way does not let us in; it takes publickey",
        ),
        (CHANGED, Untrusted, "has changed"),
        ("channel 0: open failed: administratively prohibited: open failed\r\n", Unreachable, "does not pass"),
        ("channel 0: open failed: connect failed: Connection refused\r\n", Unreachable, "the jump host cannot"),
        ("ssh: connect to host door port 22: Connection refused\r\n", Unreachable, "cannot connect"),
    ],
)
def test_on_the_way(more: str, kind: type[VmproxyError], words: str) -> None:
    """What a jump host's ssh says counts while the VM has not shown its key, and not after."""
    end = "kex_exchange_identification: Connection closed by remote host\nConnection closed by UNKNOWN port 65535\n"
    error = said(end, more)
    assert type(error) is kind
    assert words in str(error)
    later = said(KEY + "me@vm: Permission denied (publickey).\n", more)
    assert "the VM takes publickey" in str(later)


ONE, TWO = "guard@10.0.0.1:22", "guard@10.0.0.2:2222"
LET_IN = 'Authenticated to 10.0.0.1 ([10.0.0.1]:22) using "publickey".\r\n'
BY_MASTER = "debug1: mux_client_request_stdio_fwd: master session id: 2\r\n"
ENDED = "kex_exchange_identification: Connection closed by remote host\nConnection closed by UNKNOWN port 65535\n"
SILENT = "Connection timed out during banner exchange\nConnection to UNKNOWN port 65535 timed out\n"
BANNER = "All connections are Permission denied (to nobody): banner timed out\r\n"
DENIED = (
    "debug1: Remote protocol version 2.0, remote software version x\r\n"
    "debug1: Offering public key: /home/me/k ED25519 SHA256:x explicit\r\n"
    "guard@10.0.0.2: Permission denied (publickey).\r\n"
)
NO_NAME = "channel 0: open failed: connect failed: Name or service not known\r\nstdio forwarding failed\r\n"
REFUSED_THERE = "channel 0: open failed: connect failed: Connection refused\r\nKilled by signal 1.\r\n"
NOT_LET_IN = "jump host: not let in: key /home/me/k (refused); it takes publickey"
NOT_RIGHT = "jump host: the jump host cannot connect: name or service not known"
FROM_TWO = "the jump host cannot connect: connection refused"


@pytest.mark.parametrize(
    ("log", "more", "words", "where", "hint"),
    [
        (ENDED, DENIED, NOT_LET_IN, ONE, "ssh_config"),
        (ENDED, BANNER + LET_IN + DENIED, NOT_LET_IN, TWO, "ssh_config"),
        (ENDED, BY_MASTER + DENIED, NOT_LET_IN, TWO, "ssh_config"),
        (ENDED, LET_IN + NO_NAME, NOT_RIGHT, f"{TWO} from {ONE}", "looks this name up"),
        (ENDED, LET_IN + REFUSED_THERE, f"jump host: {FROM_TWO}", f"{TWO} from {ONE}", "is it running"),
        (ENDED, LET_IN + LET_IN + NO_NAME, NOT_RIGHT[11:], f"me@vm:22 from {TWO}", "looks this name up"),
        (ENDED, LET_IN + LET_IN + REFUSED_THERE, FROM_TWO, f"me@vm:22 from {TWO}", "is the VM running"),
        (SILENT, "debug1: Connection established.\r\n", "jump host: no answer within 3 s", ONE, "is it running"),
        (SILENT, BANNER + LET_IN, "jump host: no answer within 3 s", TWO, "is it running"),
        (SILENT, BANNER + LET_IN + LET_IN, "no answer within 3 s", "me@vm:22", "is the VM running"),
        (ENDED, "ssh: Could not resolve hostname x: Name or service not known\r\n", "jump host: ", "x", "jump host"),
        (ENDED, LET_IN + "Host key verification failed.\r\n", "jump host: the host key", TWO, "known"),
        (ENDED, LET_IN + "something new\r\n", "jump host: something new", TWO, "is it running"),
    ],
)
def test_which_jump_host(log: str, more: str, words: str, where: str, hint: str) -> None:
    """Of several the one that it failed at is named, and what a banner of another one says does not count. No hint
    speaks of -i as if it were for jump hosts, nor of the VM."""
    error = said(log, more, hops=(ONE, TWO))
    assert error.what.startswith(words)
    assert error.where == where
    assert hint in error.hint


REFUSED = "ssh: connect to host vm port 22: Connection refused\n"


@pytest.mark.parametrize(
    ("more", "direct"),
    [
        ("Warning: Identity file /gone not accessible: No such file or directory.\n", False),
        ("Warning: Identity file /gone not accessible: No such file or directory.\n", True),
        ("what a Match exec said\n", True),
    ],
)
def test_a_warning_is_no_jump_host(more: str, direct: bool) -> None:
    """A key file that is not there, or any word of a VM with nothing on the way to it, hides no reason in the log."""
    error = said(REFUSED, more, direct=direct)
    assert "connection refused" in str(error) and error.where == "vm:22"


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ("command-line: line 0: Bad configuration option: remotecommand\r\n", "OpenSSH 7.6 is needed"),
        ('command-line line 0: unsupported option "accept-new".\r\n', "OpenSSH 7.6 is needed"),
        ("command-line: line 0: Bad configuration option: checkhostip\r\n", "Bad configuration option: checkhostip"),
    ],
)
def test_an_ssh_that_does_not_know_our_options(more: str, words: str) -> None:
    """Exit 2 and the version that is needed; what the ssh of a ProxyCommand says of its own options is none of it."""
    error = said("", more, direct=True)
    assert type(error) is UsageError and words in str(error) and error.hint
    assert type(said("debug1: Executing proxy command: ssh\n", more)) is Unreachable


def test_a_usual_password_is_the_librarys() -> None:
    """Where the library would have got in by it, the hint says so."""
    denied = KEY + "docker@vm: Permission denied (publickey,password).\n"
    assert "without --ssh openssh" in said(denied, password=True).hint
    assert "without --ssh openssh" not in said(denied).hint


@pytest.mark.parametrize(
    ("log", "more", "may"),
    [
        (KEY + "me@vm: Permission denied (publickey,password).\n", "", True),
        ("Connection closed by UNKNOWN port 65535\n", "guard@door: Permission denied (password).\n", True),
        (KEY + "exec request failed\n", "Welcome: Permission denied (to nobody)\n", False),
        (KEY + CHANGED, "", False),
        ("ssh: connect to host vm port 22: Connection refused\n", "", False),
    ],
)
def test_whether_a_person_may_help(log: str, more: str, may: bool) -> None:
    """Only where a log-in was refused, at the VM or at a jump host; what a server's banner says does not count."""
    assert Said(log=log, more=more).person_may_help is may


@pytest.mark.parametrize(
    ("log", "needed"),
    [
        ("Unable to negotiate: no matching host key type found. Their offer: ssh-rsa\n", True),
        ("Unable to negotiate: no matching host key type found. Their offer: ssh-rsa,ssh-dss\n", True),
        ("Unable to negotiate: no matching host key type found. Their offer: ssh-dss\n", False),
        ("Unable to negotiate: no matching host key type found. Their offer: ssh-rsa,x\n", False),
        ("debug1: send_pubkey_test: no mutual signature algorithm\nme@vm: Permission denied (publickey).\n", True),
        ("me@vm: Permission denied (publickey).\n", False),
        ("", False),
    ],
)
def test_sha1(log: str, needed: bool) -> None:
    """SHA-1 is needed only where the server offers nothing else, or an RSA key has no other way."""
    assert Said(log=log).needs_sha1 is needed


@given(st.text(max_size=300), st.text(max_size=300))
def test_t03_anything_becomes_one_printable_line(log: str, more: str) -> None:
    """Whatever is written there, the error is one line of bounded length without controls."""
    error = said(log, more)
    for text in (str(error), error.hint):
        assert printable(text, limit=1200) == text


ACCEPTED = (
    f"debug1: Offering public key: /k 1 {SK} explicit authenticator\ndebug1: Server accepts key: /k 1 {SK} explicit"
)


@pytest.mark.parametrize(
    ("log", "waits"),
    [
        (f"{ACCEPTED} authenticator\n", True),
        (f"{ACCEPTED} authenticator\r\ndebug1: start_helper: starting /usr/lib/openssh/ssh-sk-helper \r\n", True),
        (f"debug1: Server accepts key: {SK} authenticator agent\n", True),
        (f'{ACCEPTED}\ndebug1: sshsk_sign: provider "internal", key ECDSA-SK, flags 0x05 with-pin\n', True),
        (f'{ACCEPTED}\ndebug1: sshsk_sign: provider "internal", key ECDSA-SK, flags 0x00\n', False),
        (f'{ACCEPTED}\nsign_and_send_pubkey: signing failed for ECDSA-SK "/k 1": device not found\n', False),
        (f"{ACCEPTED}\ndebug1: Authentications that can continue: publickey\n", False),
        (f"{ACCEPTED}\ndebug1: Offering public key: /other ED25519 SHA256:x explicit\n", False),
        (f'{ACCEPTED}\nAuthenticated to vm ([::1]:22) using "publickey".\n', False),
        (f"{ACCEPTED}\ndebug1: Server accepts key: /other ED25519 SHA256:x explicit\n", False),
        (f"debug1: Offering public key: /k {SK} explicit authenticator\n", False),
        ("debug1: Server accepts key: \x1b[2J-SK SHA256:x\n", False),
        ("", False),
    ],
)
def test_which_security_key_is_waited_for(log: str, waits: bool) -> None:
    """The last key that the server took, until ssh has gone on."""
    assert awaited_key(log) == (SK if waits else "")


def test_a_touch_is_asked_for_once_it_is_missing() -> None:
    """Not of a key that signs at once, once for each wait, and again for another key."""
    asked: list[str] = []
    keys = iter(["", SK, SK, "", "", SK, SK, SK, SK, SK, *["ED25519-SK SHA256:z"] * 4])
    touch = Touch(lambda: next(keys), asked.append)
    for _ in range(10):
        touch()
    assert len(asked) == 1 and SK in asked[0]
    for _ in range(4):
        touch()
    assert len(asked) == 2 and "SHA256:z" in asked[1]
    missed = Touch(lambda: SK, asked.append).missed(40, "me@vm:22")
    assert missed and missed.exit == 5 and SK in str(missed) and missed.hint
    assert Touch(lambda: "", asked.append).missed(40, "me@vm:22") is None


def test_a_security_key_that_does_not_sign_is_told() -> None:
    """Not as refused: the server would have taken it. The hint is about the device."""
    error = said(
        KEY
        + f"debug1: Offering public key: /k {SK} explicit authenticator\n"
        + 'sign_and_send_pubkey: signing failed for ECDSA-SK "/k": device not found\r\n'
        + f"debug1: Offering public key: me@home {SK} authenticator agent\n"
        + 'sign_and_send_pubkey: signing failed for ECDSA-SK "me@home" from agent: agent refused operation\r\n'
        + "debug1: Offering public key: /other ED25519 SHA256:x explicit\n"
        + "me@vm: Permission denied (publickey).\r\n"
    )
    told = "key /k (device not found), agent's me@home (agent refused operation), key /other (refused)"
    assert type(error) is NotPermitted and told in str(error)
    assert "plugged in" in error.hint
