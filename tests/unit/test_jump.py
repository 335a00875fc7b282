"""What -J takes, and what it refuses."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmproxy import converge
from vmproxy.errors import Unreachable, UsageError
from vmproxy.model import Settings
from vmproxy.transports._jump import LIMIT, Hop, parse


@pytest.mark.parametrize(
    ("text", "hops"),
    [
        ("", ()),
        ("none", ()),
        ("None", ()),
        ("bastion", (Hop(host="bastion"),)),
        ("me@bastion:2222", (Hop(host="bastion", user="me", port=2222),)),
        ("a@dom@bastion", (Hop(host="bastion", user="a@dom"),)),
        ("ssh://me@bastion:22/", (Hop(host="bastion", user="me", port=22),)),
        ("[::1]:22,10.0.0.1", (Hop(host="::1", port=22), Hop(host="10.0.0.1"))),
        ("me@[fe80::2]", (Hop(host="fe80::2", user="me"),)),
        ("[127.0.0.1]:2222,[10]", (Hop(host="127.0.0.1", port=2222), Hop(host="10"))),
        ("ssh://root@[::1]:2222", (Hop(host="::1", user="root", port=2222),)),
    ],
)
def test_forms(text: str, hops: tuple[Hop, ...]) -> None:
    """Names, users, ports, URLs and IPv6 in brackets; the first is the nearest."""
    assert parse(text) == hops
    assert parse(",".join(hop.text for hop in hops)) == hops


@pytest.mark.parametrize(
    "text",
    [
        *("-oProxyCommand=x", "a,-b", "-l@a", "a b", "a,,b", ",", "a,", "@a", "a@", "a:0", "a:65536", "a:", "a:x"),
        *("::1", "[::1", "[::1]x", "[a]", "[]", "a*", "a;b", "$(x)", "`x`", "a|b", "%h", "é", "a:٣", "a\n", "\x1b[2J"),
        *("[1a]", "[.]", "[10]x", "[10"),
        *("me:secret@a", "ssh://me:secret@a", "ssh://", "http://a", "a/b", "none,a,none,a", "[fe80::1%eth0]"),
        ",".join(f"h{number}" for number in range(LIMIT + 1)),
    ],
)
def test_t05_what_is_refused(text: str) -> None:
    """Exit 2 for what is no host, what a shell or ssh could misread, and a password, which is not repeated."""
    with pytest.raises(UsageError) as caught:
        parse(text)
    assert str(caught.value).isprintable()
    assert "secret" not in str(caught.value)


@given(st.text(max_size=40))
def test_t05_nothing_odd_comes_through(text: str) -> None:
    """Whatever was taken has only letters, digits and a few signs in it, and does not begin with a minus."""
    try:
        hops = parse(text)
    except UsageError:
        return
    for hop in hops:
        for word in (hop.host, hop.user):
            assert not word.startswith("-")
            assert not set(word) & set(" \t\n'\"`$;&|<>(){}*?!#~%,")


@pytest.mark.parametrize("target", ["local", "console:/dev/null", "docker:"])
def test_a_jump_host_is_for_ssh_alone(target: str, tmp_path: Path) -> None:
    """-J with a VM that is reached otherwise is exit 2, not ignored; ``none`` is no jump host."""
    with pytest.raises(UsageError, match="jump host"):
        converge.detect_gateway(target, Settings(jump="bastion", known_hosts=str(tmp_path / "known")))


@pytest.mark.parametrize("ssh", ["paramiko", "openssh"])
def test_no_jump_host_leads_to_this_hosts_loopback(ssh: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A jump host of vmproxy.toml does not turn boot2docker's 127.0.0.1 into another host's: exit 2; ``none`` works."""
    profile = tmp_path / "profile"
    profile.write_text("SSHPort = 1\n")
    monkeypatch.setenv("BOOT2DOCKER_PROFILE", str(profile))
    settings = Settings(jump="bastion.invalid", ssh=ssh, known_hosts=str(tmp_path / "known"))
    with pytest.raises(UsageError, match="on this host") as caught:
        converge.detect_gateway("boot2docker", settings)
    assert caught.value.hint == "--jump none"
    with pytest.raises(Unreachable, match="refused"):
        converge.detect_gateway("boot2docker", replace(settings, jump="None"))


@pytest.mark.parametrize("target", ["local", "console:/dev/null", "docker:"])
def test_a_host_key_is_for_ssh_alone(target: str) -> None:
    """--host-key with a VM that is reached otherwise is exit 2, not ignored."""
    with pytest.raises(UsageError, match="host key"):
        converge.detect_gateway(target, Settings(host_key="SHA256:" + "A" * 43))
