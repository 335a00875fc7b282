"""A signal to another thread while a Docker engine that does not answer is entered: the client is ended.

Every limit is an hour here, and every wait of the test a minute: what ends in time has been ended.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import threading
import time
from pathlib import Path

import pytest

from vmproxy.errors import Interrupted, Unreachable
from vmproxy.model import Target
from vmproxy.stopping import Stop
from vmproxy.transports import SshOptions, _engine, docker

SECONDS, HOUR = 60.0, 3600.0
TARGET = Target(name="docker:", provider="docker", transport="docker")
CLIENT = """#!/bin/sh
cd "$(dirname "$0")" || exit
echo "$*" >>asked
[ "$1" != info ] || cat answer
[ "$1 $2" != "$(cat hangs)" ] || { echo $$ >began.new; mv began.new began; exec sleep 3600; }
"""


@pytest.mark.parametrize(
    ("hangs", "image"),
    [("info --format", ""), ("image inspect", "debian"), ("import --change=LABEL vmproxy=way-in", "")],
    ids=["asked", "its image looked up", "its image made"],
)
def test_f28_an_engine_that_does_not_answer_is_not_waited_for(
    hangs: str, image: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever it stops to answer on the way in, the client's process ends at the signal, and what was being made is
    removed; after the signal there is no second try."""
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr(docker, "_MAKE_SECONDS", HOUR)
    monkeypatch.setattr(_engine, "_LOOK_SECONDS", HOUR)
    (tmp_path / "answer").write_text(json.dumps({"OSType": "linux"}))
    (tmp_path / "hangs").write_text(hangs)
    (tmp_path / "docker").write_text(CLIENT)
    (tmp_path / "docker").chmod(0o755)
    stop, raised, began = Stop(), list[BaseException](), tmp_path / "began"
    options = SshOptions(connect_timeout_seconds=HOUR, stoppable=stop.calling, helper_image=image)

    def enter() -> None:
        try:
            docker.connect(TARGET, options=options)
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=enter, daemon=True)
    thread.start()
    limit = time.monotonic() + SECONDS
    while not began.exists() and time.monotonic() < limit:
        time.sleep(0.02)
    process = int(began.read_text())
    try:
        stop.set(2)
        thread.join(SECONDS)
        assert not thread.is_alive(), "it still waits for its limit"
        # The latter where it comes between the start of the client and who is to end it.
        assert isinstance(raised[0], Unreachable | Interrupted)
        with pytest.raises(ProcessLookupError):
            os.kill(process, 0)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)
    asked = (tmp_path / "asked").read_text().splitlines()
    assert [line for line in asked if line.startswith("image rm")] == (
        [f"image rm {asked[-2].split()[-1]}"] if "import" in hangs else []
    )
    with pytest.raises(Interrupted):
        docker.connect(TARGET, options=options)
