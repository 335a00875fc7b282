"""Through jump hosts with ssh: how they may be named, and which of them is named when one of them fails."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.fake.conftest import Keys, read_all
from tests.fake.realservers import free_port, open_directory
from vmproxy.errors import LostContact, NotPermitted, Unreachable, VmproxyError
from vmproxy.model import Target
from vmproxy.transports import SshOptions, openssh
from vmproxy.transports._jump import Hop
from vmproxy.transports._sshprogram import Place, Way, options_of_run, way

Start = Callable[..., Any]
TRANSPORT = "openssh"


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A temporary directory of the test's own, of a short name. No agent."""
    with open_directory(0o700) as directory:
        monkeypatch.setenv("TMPDIR", str(directory))
        monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
        yield directory


@pytest.fixture
def written(tmp_path: Path, keys: Keys) -> Callable[..., str]:
    """Write an ssh_config: ``written(one=port, two=port, more="…")``; each host has the key ``ecdsa``."""

    def write(more: str = "", key: str = "ecdsa", **ports: int) -> str:
        path = tmp_path / "ssh_config"
        hosts = (f"Host {name}\n HostName 127.0.0.1\n Port {port}\n User guard\n" for name, port in ports.items())
        common = f"Host *\n IdentityFile {keys.path(key)}\n IdentitiesOnly yes\n"
        path.write_text("".join(hosts) + more + common)
        return str(path)

    return write


@pytest.fixture
def door(serve: Start, keys: Keys) -> Callable[[], Any]:
    """A jump host that lets ``ecdsa`` in."""
    return lambda: serve(host=("host_rsa",), keys=frozenset({keys.blob("ecdsa")}), forward=True)


@pytest.mark.parametrize(
    "form", ["guard@127.0.0.1:{}", "ssh://guard@127.0.0.1:{}", "guard@[127.0.0.1]:{}", "ProxyJump"]
)
def test_a_jump_host_that_is_an_ipv4_address(
    serve: Start, log_in: Start, door: Callable[[], Any], written: Callable[..., str], form: str
) -> None:
    """However it is named, by -J or in ssh_config; ssh itself repeats it in brackets."""
    first, vm = door(), serve()
    proxy = f" ProxyJump guard@127.0.0.1:{first.port}\n" if form == "ProxyJump" else ""
    more = f"Host dev\n HostName 127.0.0.1\n Port {vm.port}\n User docker\n{proxy}"
    target = {"provider": "ssh", "host": "dev", "port": 0, "user": ""}
    jump = "" if proxy else form.format(first.port)
    connection = log_in(0, target=target, ssh_config=written(more), jump=jump)
    assert read_all(connection.start("echo in")) == b"in\n"
    assert f"direct-tcpip 127.0.0.1:{vm.port}" in first.seen


@pytest.mark.parametrize(
    ("jump", "text"),
    [
        ("127.0.0.1", "127.0.0.1"),
        ("ssh://root@[::1]:2222", "root@[::1]:2222"),
        ("a,ssh://[::1]", "a,[::1]"),
        ("ssh://me@a:22/,[::1]:23,127.1", "me@a:22,[::1]:23,127.1"),
        ("10", "10"),
    ],
)
def test_ssh_is_given_forms_that_it_takes(jump: str, text: str) -> None:
    """What the reference allows and ssh does not comes to it in its own form, and back from ``ssh -G``."""
    vm = Target(name="vm", provider="ssh", host="vm.invalid", user="me", port=22)
    options = SshOptions(ssh_config="none", jump=jump)
    found = way(vm, options, "", environ=os.environ)
    assert ",".join(hop.text for hop in found.jumps) == text
    assert [hop for hop, _place in found.hops] == list(found.jumps)
    words = options_of_run(found, options, "", batch=True)
    assert words[words.index("-J") + 1] == text


def test_which_jump_host_it_was(
    log_in: Start, serve: Start, door: Callable[[], Any], written: Callable[..., str], keys: Keys
) -> None:
    """Of two on the way the one is named that does not let us in, is silent, or is not there for the one before."""
    one, two, vm, port = door(), door(), serve(), free_port()
    other = frozenset({keys.blob("other")})
    ways = {"one": f"guard@127.0.0.1:{one.port}", "two": f"guard@127.0.0.1:{two.port}"}
    config = written(one=one.port, two=two.port, gone=port)

    def fails(kind: type[VmproxyError], match: str, jump: str = "one,two") -> VmproxyError:
        with pytest.raises(kind, match=match) as caught:
            log_in(vm.port, jump=jump, ssh_config=config)
        return caught.value

    for name, server in (("one", one), ("two", two)):
        before, server.rules.keys = server.rules.keys, other
        error = fails(NotPermitted, r"^jump host: not let in: key .*ecdsa \(refused\); it takes publickey")
        assert error.where == ways[name]
        assert "ssh_config" in error.hint and "-i FILE" not in error.hint
        server.rules.keys = before
    assert fails(Unreachable, "^jump host: cannot connect", "gone,two").where == f"127.0.0.1:{port}"
    error = fails(Unreachable, "^jump host: the jump host cannot connect", "one,gone")
    assert error.where == f"guard@127.0.0.1:{port} from {ways['one']}"
    error = fails(Unreachable, "^jump host: the jump host cannot connect", "one,x@nohost.invalid")
    assert error.where == f"x@nohost.invalid:22 from {ways['one']}" and "the VM" not in error.hint
    two.rules.forward = False
    error = fails(Unreachable, "^the jump host does not pass connections on")
    assert error.where == f"docker@127.0.0.1:{vm.port} from {ways['two']}"


def test_f02_a_jump_host_whose_log_in_takes_too_long(short: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its place is told, not the VM's; where it waits for a touch, it is its key that ssh_config can name, not -i."""
    program, key = short / "ssh", "ECDSA-SK SHA256:" + "b" * 43
    hop = Place(user="guard", host="door", port=22, name="door", files=(), strict=True)
    vm = Place(user="docker", host="vm", port=22, name="vm", files=(), strict=True)
    found = Way(
        program=str(program),
        where=(),
        words=(),
        host="vm",
        place=vm,
        known_hosts=short / "known",
        hops=((Hop(host="door"), hop),),
    )

    def late(process: openssh.SshProcess, _line: bytes, _seconds: float) -> bool:
        while not process.stderr.endswith(b"\n"):
            with contextlib.suppress(LostContact):
                process.receive(timeout_seconds=0.2)
        raise LostContact("late")

    monkeypatch.setattr(openssh.SshProcess, "hears", late)
    for said, kind in (("debug1: Connecting", Unreachable), (f"debug1: Server accepts key: /k {key}", NotPermitted)):
        program.write_text(f"#!/bin/sh\necho '{said}' >&2\nexec sleep 600\n")
        program.chmod(0o700)
        directory = openssh.RunDirectory()
        try:
            with pytest.raises(kind) as caught:
                openssh._Opening(found, SshOptions(), "", directory)._try(batch=True)
        finally:
            directory.remove()
        assert caught.value.where == hop.text
        assert "names the key" not in caught.value.hint and "-i FILE" not in caught.value.hint
    assert key in str(caught.value) and "IdentityFile" in caught.value.hint
