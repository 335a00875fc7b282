"""An agent with keys that a person has to touch, or that it does not sign with; the library logs in. The agent is real,
the device is software (tests/lab/securitykey.c)."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.fake.conftest import By, Keys, read_all
from tests.fake.realservers import agent_listens, sshd
from tests.lab.securitykey import SecurityKey
from vmproxy.errors import NotPermitted
from vmproxy.transports import _agent, _touch

Start = Callable[..., Any]
ANY = {"only_identities": False, "identities": ()}
"""A VM without a key of its own: the agent's count."""


@pytest.fixture(scope="module")
def plugged(tmp_path_factory: pytest.TempPathFactory) -> SecurityKey:
    """A device with the key ``touch`` beside its library."""
    device = SecurityKey(tmp_path_factory.mktemp("device"))
    device.make(device.library.parent / "touch")
    return device


@pytest.fixture
def held(device: SecurityKey, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Path], None]]:
    """A real ssh-agent that has ``touch``; call it with a key file to add one."""
    monkeypatch.setenv("HOME", str(tmp_path))
    path = tmp_path / "agent.sock"
    argv = ["ssh-agent", "-D", "-a", str(path), "-P", f"{device.library.parent}/*"]
    process = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        agent_listens(path)
        monkeypatch.setenv("SSH_AUTH_SOCK", str(path))

        def add(key: Path) -> None:
            words = ["ssh-add", "-q", "-S", str(device.library), str(key)]
            subprocess.run(words, check=True, timeout=60, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

        add(device.library.parent / "touch")
        yield add
    finally:
        process.terminate()
        process.wait(60)


class TestByBoth:
    """What the library and the ssh program do alike."""

    @pytest.fixture(params=["ssh", "openssh"])
    def by(self, request: pytest.FixtureRequest) -> By:
        """Each of the two."""
        return By(request.param)

    def test_the_agent_signs_with_a_security_key(
        self, log_in: Start, held: Callable[[Path], None], device: SecurityKey, keys: Keys, tmp_path: Path
    ) -> None:
        """As one of the agent's, and where its file is named: sshd lets in once the person, who was asked, has touched
        the device."""
        device.put("waits")
        key = device.library.parent / "touch"
        signed = len(device.signatures)

        def hear(line: str) -> None:
            if device.fingerprint("touch") in line:
                device.touch()

        with sshd(tmp_path, authorized=key.with_name("touch.pub"), host_key=Path(keys.path("host_ed25519"))) as place:
            for named in ((), (str(key),)):
                target = {**ANY, "user": place[1], "identities": named}
                assert read_all(log_in(place[0], target=target, notify=hear).start("echo in")) == b"in\n"
        assert device.signatures[signed:] == [1, 1]


def test_no_touch_is_asked_for_where_another_key_will_do(
    log_in: Start, serve: Start, held: Callable[[Path], None], device: SecurityKey, keys: Keys
) -> None:
    """The library signs before it knows whether a key is taken: security keys come after all others."""
    device.put("waits")
    held(Path(keys.path("ed25519")))
    signed = len(device.signatures)
    assert read_all(log_in(serve().port, target=ANY).start("echo in")) == b"in\n"
    assert len(device.signatures) == signed


def test_a_touch_that_does_not_come(
    log_in: Start, serve: Start, held: Callable[[Path], None], device: SecurityKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The person is asked, by the key's fingerprint; then it is exit 5, one line and a hint, and no traceback."""
    monkeypatch.setattr(_agent, "TOUCH_SECONDS", 2.0)
    monkeypatch.setattr(_touch, "_SECONDS", 0.0)
    device.put("waits")
    said: list[str] = []
    with pytest.raises(NotPermitted, match=r"sk-ecdsa-\S+ \(the agent does not answer\)") as caught:
        log_in(serve().port, target=ANY, notify=said.append)
    assert "touched" in caught.value.hint
    assert len([line for line in said if device.fingerprint("touch") in line]) == 1


def test_an_agent_that_does_not_sign(
    log_in: Start, serve: Start, held: Callable[[Path], None], device: SecurityKey
) -> None:
    """The device is not there: exit 5 with that reason, not the VM's."""
    device.put("unplugged")
    with pytest.raises(NotPermitted, match="the agent does not sign with it") as caught:
        log_in(serve().port, target=ANY)
    assert "plugged in" in caught.value.hint
