"""A signal to another thread while the ssh program logs in: its processes are ended, and nobody waits for a limit.

Every limit is an hour here, and every wait of the test a minute: what ends in time has been ended.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.fake.conftest import Keys, Silent, comes
from tests.fake.test_openssh import children, short  # noqa: F401 - a fixture
from tests.fake.test_ssh_stop import begun, closed_by  # noqa: F401 - a fixture
from vmproxy.errors import Interrupted, Unreachable
from vmproxy.stopping import Stop

ENDED = (Unreachable, Interrupted)
"""The latter where the signal comes between the start of a process and who is to end it."""
TRANSPORT = "openssh"


def runs(process: int) -> bool:
    """Whether that process is there; one that has ended, and that nobody has waited for, is not."""
    try:
        return bool(Path("/proc", str(process), "cmdline").read_bytes())
    except OSError:
        return False


def test_f28_a_server_that_does_not_greet_is_not_waited_for(
    begun: Callable[..., Any],  # noqa: F811 - the fixture
    silent: Silent,
    short: Path,  # noqa: F811 - the fixture
) -> None:
    """Its connection is closed, no process and no file is left; after the signal no log-in is begun."""
    stop = Stop()
    ended = begun(stop, silent.port)
    client = silent.client()
    stop.set(2)
    assert isinstance(ended(), ENDED)
    assert closed_by(client)
    assert isinstance(begun(stop, silent.port)(), Interrupted)
    assert children() == set()
    assert list((short / "t").iterdir()) == []


def test_f28_behind_a_jump_host_the_whole_way_is_closed(
    begun: Callable[..., Any],  # noqa: F811 - the fixture
    serve: Callable[..., Any],
    silent: Silent,
    keys: Keys,
    tmp_path: Path,
) -> None:
    """The VM behind it does not greet: its connection ends, and so do the processes of the way."""
    door = serve(host=("host_rsa",), keys=frozenset({keys.blob("ecdsa")}), forward=True)
    config = tmp_path / "ssh_config"
    config.write_text(f"Host *\n IdentityFile {keys.path('ecdsa')}\n IdentitiesOnly yes\n")
    stop = Stop()
    ended = begun(stop, silent.port, jump=f"guard@127.0.0.1:{door.port}", ssh_config=str(config))
    client = silent.client()
    stop.set(2)
    assert isinstance(ended(), ENDED)
    assert closed_by(client)
    assert children() == set()


def test_f28_an_ssh_config_that_takes_its_time_is_not_waited_for(
    begun: Callable[..., Any],  # noqa: F811 - the fixture
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A program of the user's, run by Match exec before anything is connected to, is ended too."""
    monkeypatch.setattr("vmproxy.transports._sshprogram._SECONDS", 3600.0)
    config, began = tmp_path / "ssh_config", tmp_path / "began"
    config.write_text(f'Match exec "echo $$ >{began}; exec sleep 3600"\n User x\n')
    stop = Stop()
    ended = begun(stop, 0, target={"provider": "ssh", "host": "vm.invalid"}, ssh_config=str(config))
    assert comes(lambda: began.exists() and began.read_text().endswith("\n"))
    stop.set(2)
    assert isinstance(ended(), ENDED)
    assert children() == set()
    program = int(began.read_text())
    assert comes(lambda: not runs(program))
