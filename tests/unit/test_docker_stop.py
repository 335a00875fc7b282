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
from typing import Any

import pytest

from vmproxy.errors import Interrupted, Unreachable
from vmproxy.model import Target
from vmproxy.stopping import Stop
from vmproxy.transports import SshOptions, _engine, docker
from vmproxy.transports._piped import Piped

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


@pytest.mark.parametrize("where", ["the channel", "the image"])
def test_f28_a_signal_at_the_very_end_leaves_no_image(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It comes while the last container is waited for, or while the image is removed: every channel is closed, and the
    image is gone, before it is heard."""
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    (tmp_path / "answer").write_text(json.dumps({"OSType": "linux"}))
    (tmp_path / "hangs").write_text("nowhere")
    client = CLIENT + f'[ "$1" != import ] || echo sha256:{"a" * 64}\n'
    (tmp_path / "docker").write_text(client)
    (tmp_path / "docker").chmod(0o755)
    connection = docker.connect(TARGET, options=SshOptions())
    closed, signals, run = [], [2], connection._engine.run

    def interrupted(turn: str) -> None:
        if turn == where and signals:
            raise Interrupted(signals.pop())

    class Ending:
        def close(self) -> None:
            closed.append(self)
            interrupted("the channel")

    def remove(*words: str, **more: Any) -> Any:
        interrupted("the image")
        return run(*words, **more)

    monkeypatch.setattr(connection._engine, "run", remove)
    connection._open += [Ending(), Ending()]  # type: ignore[list-item]
    with pytest.raises(Interrupted):
        connection.close()
    assert len(closed) == 2
    asked = (tmp_path / "asked").read_text().splitlines()
    assert len([line for line in asked if line.startswith("image rm vmproxy-way-in:")]) == 1


def test_f28_a_signal_while_a_client_is_waited_for_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """No process of ours is left behind, whatever it was doing."""
    way = Piped(("sleep", "1000"), environ=os.environ)
    wait, signals = way._process.wait, [2]

    def once(timeout: float | None = None) -> int:
        if signals:
            raise Interrupted(signals.pop())
        return wait(timeout)

    monkeypatch.setattr(way._process, "wait", once)
    with pytest.raises(Interrupted):
        way.close(patience_seconds=60)
    assert way._process.poll() == -signal.SIGKILL
    way.close()
