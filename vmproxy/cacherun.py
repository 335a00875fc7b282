"""The caching proxy as a process of its own: started in the background, waited for, asked to end."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from vmproxy import hostproc
from vmproxy.cache import control, place
from vmproxy.errors import Busy, Refused, UsageError
from vmproxy.model import printable

BACKGROUND = "in the background"
START_SECONDS = 60.0
STOP_SECONDS = 30.0
_PAUSE_SECONDS = 0.1
_TAIL_BYTES = 64 << 10
_PACKAGES = ("site-packages", "dist-packages")
_NOT_FOR_IT = ("VMPROXY_SSH_PASSWORD", "VMPROXY_SSH_PASSPHRASE", "NOTIFY_SOCKET")


@dataclass(frozen=True, kw_only=True)
class Started:
    """What :func:`start` gives: the proxy's own status, and whether it was we who started it (``how`` says by what)."""

    status: Mapping[str, Any]
    how: str = ""


def program() -> tuple[tuple[str, ...], dict[str, str]]:
    """The words that run this very vmproxy, and the variables that they need.

    ``-P`` keeps Python from importing what lies in the directory it happens to be started in.
    """
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    more = {} if os.path.basename(root) in _PACKAGES else {"PYTHONPATH": root}
    return (sys.executable, "-P", "-m", "vmproxy"), more


def start(directory: str, words: Sequence[str], *, environ: Mapping[str, str]) -> Started:
    """Start ``vmproxy cache serve WORDS`` for a directory, in a session of its own, and wait until it answers.

    It goes on when we end; what it says is in ``serve.log`` in the directory. Where one runs there already, nothing is
    done. Raises Refused with its own words where it does not come up, NotPermitted, Busy; UsageError where this
    platform has no socket by which a running proxy is asked.
    """
    if not place.askable():
        hint = "vmproxy cache serve in a terminal of its own, then vmproxy apply --proxy http://127.0.0.1:8123"
        raise UsageError("a cache in the background cannot be asked anything on this platform", hint=hint)
    if running(directory) is not None and (found := _of_another(directory)) is not None:
        return Started(status=found)
    place.prepare(directory)
    log = os.path.join(directory, place.LOG)
    argv, more = program()
    environment = {name: value for name, value in {**environ, **more}.items() if name not in _NOT_FOR_IT}
    child = hostproc.detach((*argv, "cache", "serve", *words), log=log, directory=directory, environ=environment)
    try:
        found = until_up(directory, ended=child.ended, log=log)
        return Started(status=found, how=BACKGROUND if found.get("pid") == child.pid else "")
    except Refused:
        child.end()
        # Another run of ours may have been quicker: a hook for each of two VMs that start together.
        if (other := _of_another(directory)) is None:
            raise
        return Started(status=other)
    except BaseException:
        child.end()
        raise


def running(directory: str) -> dict[str, Any] | None:
    """The status of the proxy that runs on a directory, None where none does. Raises LostContact."""
    return control.ask(directory, {"do": "status"})


def _ready(status: Mapping[str, Any]) -> bool:
    """Whether all of a proxy is there; one of an older version does not say."""
    return status.get("ready") is not False


def until_up(directory: str, *, ended: Callable[[], bool], log: str) -> dict[str, Any]:
    """Wait for a proxy that was just started. Raises Refused where it ends, or does not answer in time."""
    limit = time.monotonic() + START_SECONDS
    while time.monotonic() < limit:
        gone = ended()
        if (found := running(directory)) is not None and _ready(found) and not gone:
            return found
        if gone:
            what, hint = _last_words(log)
            raise Refused(f"the cache does not start: {what}", hint=hint or f"its own words are in {log}")
        time.sleep(_PAUSE_SECONDS)
    raise Refused(f"the cache does not answer within {START_SECONDS:g} s", hint=f"its own words are in {log}")


def _of_another(directory: str) -> dict[str, Any] | None:
    """The status of a proxy that somebody else is just starting on the directory, None where nobody is."""
    limit = time.monotonic() + START_SECONDS
    while time.monotonic() < limit:
        if (found := running(directory)) is not None and _ready(found):
            return found
        try:
            _free(directory, seconds=0.0, what="")
        except Busy:
            time.sleep(_PAUSE_SECONDS)
            continue
        return None
    return None


def stop(directory: str) -> bool:
    """Have the proxy that runs on a directory end, and wait for it; False where none runs.

    Raises Busy where one runs that cannot be asked, or does not end in time.
    """
    answer = control.ask(directory, {"do": "stop"})
    if answer is None:
        if not os.path.isdir(directory):
            return False
        _free(directory, seconds=0.0, what="a cache runs there that cannot be asked to end")
        return False
    if "error" in answer:
        raise UsageError("the cache that runs is of an older vmproxy", where=directory, hint="end its process")
    _free(directory, seconds=STOP_SECONDS, what=f"the cache does not end within {STOP_SECONDS:g} s")
    return True


def _free(directory: str, *, seconds: float, what: str) -> None:
    limit = time.monotonic() + seconds
    while True:
        try:
            handle = place.lock(directory)
        except Busy:
            if time.monotonic() >= limit:
                raise Busy(what, where=directory, hint="end its process") from None
            time.sleep(_PAUSE_SECONDS)
            continue
        if handle is not None:
            os.close(handle)
        return


def _last_words(log: str) -> tuple[str, str]:
    """What a proxy that ended said: its error and its hint, as printable lines."""
    data = b""
    with suppress(OSError), open(log, "rb") as file:
        file.seek(max(0, os.path.getsize(log) - _TAIL_BYTES))
        data = file.read(_TAIL_BYTES)
    what, hint = "it ended without a word", ""
    for line in data.decode("utf-8", "replace").splitlines():
        if line.startswith("vmproxy: error: "):
            what, hint = printable(line.removeprefix("vmproxy: error: ")), ""
        elif line.startswith("hint: "):
            hint = printable(line.removeprefix("hint: "))
    return what, hint
