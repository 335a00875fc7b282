"""What the docker client complains of, in one line that ends with the reason."""

from __future__ import annotations

import pytest

from vmproxy.errors import NotPermitted, Refused, Unreachable, UsageError, VmproxyError
from vmproxy.transports._engine import explain

BY_SSH = (
    'error during connect: Get "http://docker.example.com/v1.50/info": command [ssh -o ConnectTimeout=30 -T -l nobody'
    " -p 1 -- 127.0.0.1 docker system dial-stdio] has exited with exit status 255, make sure the URL is valid, and"
    " Docker 18.09 or later is installed on the remote host: stderr="
)


@pytest.mark.parametrize(
    ("said", "kind", "words"),
    [
        (BY_SSH + "ssh: connect to host x port 1: Connection refused", Unreachable, "ssh: connect to host x port 1: C"),
        (
            BY_SSH + "No secrets.\r\n" * 60 + "n@x: Permission denied (publickey).",
            NotPermitted,
            "… No secrets. No secrets.",
        ),
        (BY_SSH, Unreachable, "… -T -l nobody -p 1 -- 127.0.0.1 docker system dial-stdio]"),
        ("error: " + "x" * 400, Unreachable, "x" * 200),
        ("error: " + "y " * 400 + "unexpected EOF", Unreachable, "… y y y"),
        ("error: " + "\x1b " * 400 + "unexpected EOF", Unreachable, "… \\x1b \\x1b"),
        ("error: " * 3 + "unexpected EOF", Unreachable, "error: error: error: unexpected EOF"),
    ],
)
def test_a_long_complaint_keeps_its_reason(said: str, kind: type[VmproxyError], words: str) -> None:
    """The reason stands at the end, with ssh behind what the client says of the ssh that it has started: no half word,
    and no half address, goes before it."""
    error = explain(said.encode())
    assert type(error) is kind and error.hint
    assert error.what.partition(": ")[2].startswith(words)
    assert error.what.endswith(said.rstrip()[-14:])


@pytest.mark.parametrize(
    ("said", "kind", "hint"),
    [
        (
            "Failed to initialize: unable to resolve docker endpoint: invalid bind address format: foo://x",
            UsageError,
            "DOCKER_HOST",
        ),
        (
            "unable to resolve docker endpoint: open /home/me/.docker/ca.pem: no such file or directory",
            UsageError,
            "DOCKER_CERT_PATH",
        ),
        ("Failed to initialize: protocol not available", UsageError, "DOCKER_HOST"),
        (
            "Error response from daemon: write /var/lib/docker/tmp/x: no space left on device",
            Refused,
            "make room on the VM's disk",
        ),
        (
            "Error response from daemon: client version 1.41 is too old. Minimum supported API version is 1.44",
            Unreachable,
            "upgrade the docker client",
        ),
    ],
)
def test_the_hint_is_about_what_is_wrong(said: str, kind: type[VmproxyError], hint: str) -> None:
    """Settings of the client's are exit 2, a full disk in the VM is exit 6, and nobody is asked whether Docker runs
    where it has just answered."""
    error = explain(said.encode())
    assert type(error) is kind
    assert hint in error.hint
    assert said[-20:] in error.what
