"""What in a VM wins over vmproxy's variables is found, named by its file, and stops apply; status says it."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from tests.unit import guestworlds
from tests.unit.test_guest_files import Root
from vmproxy import converge, guests, quoting
from vmproxy.errors import Refused
from vmproxy.guests import _units, systemd

_WANTED = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://10.0.2.2:8123")
_DIR = "/etc/systemd/system/docker.service.d"
_ELSE = b'[Service]\nEnvironment="HTTP_PROXY=http://me:hunter22@corp.test:3128"\n'
WINS = {
    "a drop-in behind ours": {f"{_DIR}/http-proxy.conf": _ELSE},
    "one of /run": {"/run/systemd/system/docker.service.d/50-x.conf": _ELSE},
    "one of all services": {"/etc/systemd/system/service.d/99-proxy.conf": _ELSE},
    "one that forgets all before it": {f"{_DIR}/override.conf": b"[Service]\nEnvironment=\n"},
    "one that takes it away, before ours": {f"{_DIR}/00-x.conf": b"[Service]\nUnsetEnvironment=HTTP_PROXY\n"},
    "in our own file behind our block": {
        systemd.DROP_IN: b"# >>> vmproxy 1 {}\n# <<< vmproxy\nEnvironment=http_proxy=x\n"
    },
    "continued lines": {f"{_DIR}/z.conf": b"[Service]\nEnvironment=A=b \\\n # said by x\n  'http_proxy=http://x:1'\n"},
    "daemon.json": {"/etc/docker/daemon.json": b'{"proxies": {"http-proxy": "http://corp.test:3128"}}'},
    "an environment file": {
        "/lib/systemd/system/docker.service": b"[Service]\nEnvironmentFile=-/etc/default/docker\n",
        "/etc/default/docker": b"http_proxy=http://corp.test:3128\n",
    },
}
LOSES = {
    "docker-machine's, before ours": {f"{_DIR}/10-machine.conf": _ELSE},
    "the unit itself": {"/lib/systemd/system/docker.service": _ELSE},
    "the same value": {f"{_DIR}/http-proxy.conf": b'[Service]\nEnvironment="HTTP_PROXY=http://10.0.2.2:8123"\n'},
    "other variables": {f"{_DIR}/z.conf": b"[Service]\nEnvironment=GODEBUG=x TMPDIR=/y\nLimitNOFILE=1\n"},
    "another section": {f"{_DIR}/z.conf": b"[Unit]\nEnvironment=HTTP_PROXY=http://x:1\n"},
    "a comment": {f"{_DIR}/z.conf": b"[Service]\n#Environment=HTTP_PROXY=http://x:1\n; Environment=http_proxy=x\n"},
    "masked by one of /etc": {
        "/usr/lib/systemd/system/docker.service.d/z.conf": _ELSE,
        f"{_DIR}/z.conf": b"[Service]\n",
    },
    "no drop-in by its name": {f"{_DIR}/z.conf.bak": _ELSE},
    "an environment file that nothing reads": {"/etc/default/docker": b"http_proxy=http://corp.test:3128\n"},
    "daemon.json without proxies": {"/etc/docker/daemon.json": b'{"bip": "172.31.0.1/16"}'},
    "no JSON": {"/etc/docker/daemon.json": b"{"},
}


@pytest.mark.parametrize("case", WINS)
def test_what_wins_is_found_by_its_file(case: str) -> None:
    """One finding with the file's path and no value, since that may hold a password."""
    (found,) = _overrides(WINS[case])
    assert found.split()[0] in WINS[case]
    assert "hunter22" not in found


@pytest.mark.parametrize("case", LOSES)
def test_what_does_not_win_is_left_alone(case: str) -> None:
    """No finding where ours arrive, or the same arrives."""
    assert _overrides(LOSES[case]) == []


_SECRET = dict.fromkeys(_WANTED, "http://u:p@10.0.2.2:8123")
_READS = b"[Service]\nEnvironmentFile=-/etc/default/docker\n"
_DEFAULTS = {"/etc/default/docker": b"http_proxy=http://corp.test:3128\n"}
BY_FILE = {
    "an environment file behind ours": ({f"{_DIR}/z.conf": _READS, **_DEFAULTS}, ["/etc/default/docker"]),
    "one before ours": ({"/lib/systemd/system/docker.service": _READS, **_DEFAULTS}, []),
    "the list emptied behind ours": ({f"{_DIR}/z.conf": b"[Service]\nEnvironmentFile=\n"}, [f"{_DIR}/z.conf"]),
    "the list emptied before ours": ({f"{_DIR}/00.conf": b"[Service]\nEnvironmentFile=\n"}, []),
    "Environment= behind ours": ({f"{_DIR}/http-proxy.conf": _ELSE}, []),
    "UnsetEnvironment=": ({f"{_DIR}/00.conf": b"[Service]\nUnsetEnvironment=HTTP_PROXY\n"}, [f"{_DIR}/00.conf"]),
    "daemon.json": (WINS["daemon.json"], ["/etc/docker/daemon.json"]),
}


@pytest.mark.parametrize("case", BY_FILE)
def test_what_wins_over_an_environment_file_of_ours(case: str) -> None:
    """With credentials ours stand in a file, which no Environment= beats (systemd.exec(5)), but a later file does."""
    texts, paths = BY_FILE[case]
    found = systemd.overrides(replace(guestworlds.world("debian-12"), texts=texts), _SECRET)
    assert [finding.detail.split()[0] for finding in found] == paths


@pytest.mark.parametrize("kind", ["openrc", "sysv", "upstart", "moby"])
def test_daemon_json_wins_everywhere(kind: str) -> None:
    """Its proxies go before any environment, whatever the init."""
    facts = replace(guestworlds.world("debian-12"), texts=WINS["daemon.json"])
    (found,) = guests.load(kind).overrides(facts, _WANTED)
    assert found.detail.startswith("/etc/docker/daemon.json has proxies that set http-proxy")


def test_a_file_whose_name_is_no_text(tmp_path: Path) -> None:
    """A directory of files has names of any bytes: one that wins is named all the same, in characters to be read."""
    root = Root(tmp_path / "root", "systemd", {f"{_DIR}/x.conf": _ELSE})
    place = root.path(f"{_DIR}/x.conf")
    place.rename(place.with_name(os.fsdecode(b"\xff\n.conf")))
    with pytest.raises(Refused, match=r"\\udcff\\x0a\.conf sets or unsets HTTP_PROXY"):
        root.tell(converge.apply)
    assert root.tell(converge.apply, force=True).ok
    assert root.tell(converge.remove).ok


def test_apply_refuses_status_says_force_goes_on(tmp_path: Path) -> None:
    """Exit 6 naming the file, nothing changed; with --force a warning; status counts it as drift."""
    root = Root(tmp_path / "root", "systemd", {f"{_DIR}/http-proxy.conf": _ELSE})
    before = root.picture()
    with pytest.raises(Refused, match=r"http-proxy\.conf") as error:
        root.tell(converge.apply)
    assert error.value.what == f"{_DIR}/http-proxy.conf sets or unsets HTTP_PROXY, and wins over what vmproxy sets"
    assert error.value.hint == f"take that out of {_DIR}/http-proxy.conf, or say the same with --proxy, or --force"
    assert root.picture() == before
    report = root.tell(converge.apply, force=True)
    assert any("http-proxy.conf" in line and "HTTP_PROXY" in line for line in report.warnings)
    status = root.tell(converge.status)
    assert (status.exit, [f.subject for f in status.findings]) == (1, [f"file {_DIR}/http-proxy.conf"])
    root.tell(converge.remove)
    assert root.picture() == before


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ('"A=b c" D=e', ("A=b c", "D=e")),
        ("A='b \"c' F", ('A=b "c', "F")),
        (r'"a\x41\101\u0041\s\\\"\'"', ("aAAA \\\"'",)),
        ('""', ("",)),
        ("", ()),
        ('"open', None),
        (r"\q", None),
        (r"\x4", None),
        ("\\", None),
    ],
)
def test_words_are_split_as_systemd_splits_them(value: str, words: tuple[str, ...] | None) -> None:
    """systemd.syntax(7): quotes of both kinds, C escapes; what it would refuse is None."""
    assert _units.words(value) == words


@given(st.text(st.characters(exclude_categories=("Cc", "Cs", "Zl", "Zp"))))
def test_p4_what_we_write_is_read_back_from_among_others_lines(value: str) -> None:
    """P4: any value in a drop-in between other people's lines is read as exactly it, and nothing else is set."""
    assume(not any(0xFDD0 <= ord(c) <= 0xFDEF or ord(c) & 0xFFFE == 0xFFFE for c in value))
    line = quoting.systemd("http_proxy", value)
    text = f"# a comment\n[Unit]\nAfter=x\n[Service]\nLimitNOFILE=1\n{line}\n; the end\n".encode()
    pairs = [
        pair
        for key, found in _units.settings(text, "Service")
        if key == "Environment"
        for pair in _units.assigned(found)
    ]
    assert pairs == [("http_proxy", value)]


@given(st.binary(max_size=300))
def test_any_unit_file_can_be_read(content: bytes) -> None:
    """Whatever stands in a file of the VM's: it is read without an exception."""
    for _key, value in _units.settings(b"[Service]\n" + content, "Service"):
        _units.words(value)
        _units.assigned(value)


def _overrides(texts: dict[str, bytes]) -> list[str]:
    facts = guestworlds.world("debian-12")
    return [found.detail for found in systemd.overrides(replace(facts, texts=texts), _WANTED)]
