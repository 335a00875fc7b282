"""Several VMs at a time: a thread for each, and only the main thread speaks, asks and hears signals."""

from __future__ import annotations

import importlib
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from vmproxy.cli.common import Hands
from vmproxy.cli.output import Output
from vmproxy.cli.signals import heard_by
from vmproxy.errors import Interrupted
from vmproxy.model import Event, Report
from vmproxy.stopping import Stop
from vmproxy.transports import _library

_LOOK_SECONDS = 0.5  # on Windows a wait without a limit hears no Ctrl-C


# Rooms of almost every story. Fifty threads that want the same module all wake up for each module that it needs; and
# fifty VMs on this host that are called at once leave no processor for the imports. So a few are called ahead.
_AHEAD = 12
_FIRST = ("vmproxy.machines.shell", "vmproxy.transports.ssh")
_NEXT = ("vmproxy.machines.reading", "vmproxy.guests._boot", "vmproxy.story", "vmproxy.answers")


def _import(names: Sequence[str]) -> None:
    for name in names:
        importlib.import_module(name)


Told = tuple[Report, BaseException | None]
Tell = Callable[[str, Hands], Told]


@dataclass(frozen=True)
class _Question:
    """Put by a story's thread, answered by the main one."""

    ask: Callable[[str], Any]
    text: str
    otherwise: Any
    answer: queue.SimpleQueue[Any] = field(default_factory=queue.SimpleQueue)


def each(targets: Sequence[str], tell: Tell, hands: Hands, *, jobs: int, output: Output) -> Iterator[tuple[int, Told]]:
    """Tell the story of each target, ``jobs`` at a time; what came of it, in the order in which they end, with the
    target's place in the row.

    On a signal no further story is begun, those that run are stopped, and what they say is still given.
    """
    stop = Stop()
    said: queue.SimpleQueue[Event | _Question | Interrupted | tuple[int, Told]] = queue.SimpleQueue()
    begun = 0
    asked = heard_one = False

    def heard_signal(number: int) -> bool:
        """A question is given up; else it waits its turn, so that no report is cut short."""
        nonlocal heard_one
        heard_one = True
        if not asked:
            said.put(Interrupted(number))
        return not asked

    def asking(ask: Callable[[str], Any] | None, otherwise: object) -> Callable[[str], Any] | None:
        def put(text: str) -> Any:
            question = _Question(ask, text, otherwise)  # type: ignore[arg-type]
            said.put(question)
            return question.answer.get()

        return put if ask else None

    theirs = Hands(progress=said.put, confirm=asking(hands.confirm, False), ask=asking(hands.ask, None), stop=stop)

    def begin() -> int:
        nonlocal begun
        if stop.is_set or heard_one or begun == len(targets):
            return 0
        thread = threading.Thread(target=one, args=(begun,), name=f"vmproxy {targets[begun]}", daemon=True)
        begun += 1
        thread.start()
        return 1

    def one(place: int) -> None:
        said.put((place, tell(targets[place], theirs)))

    def take() -> tuple[int, Told] | None:
        """One thing that a thread has said. Raises Interrupted at a signal."""
        nonlocal asked
        try:
            heard = said.get(timeout=_LOOK_SECONDS)
        except queue.Empty:
            return None
        if isinstance(heard, Interrupted):
            raise heard
        if isinstance(heard, _Question):
            answer = heard.otherwise
            try:
                try:
                    asked = not stop.is_set
                    answer = heard.ask(heard.text) if asked else answer
                finally:
                    asked = False
            except Exception as error:  # input that cannot be read is no answer: the story says what is missing
                output.note(f"no answer to be had: {type(error).__name__}")
            finally:  # at a signal, too, wherever it comes: the thread is not to wait for ever
                heard.answer.put(answer)
            return None
        if isinstance(heard, Event):
            if not stop.is_set:
                hands.progress(heard)
            return None
        return heard

    _import(_FIRST)
    with heard_by(heard_signal):
        running = sum(begin() for _ in range(min(jobs, _AHEAD)))
        _import(_NEXT)
        with suppress(Exception):  # each story says it for itself
            _library.wait()
        running += sum(begin() for _ in range(min(jobs, len(targets)) - _AHEAD))
        ended = 0
        while running:
            output.ahead = f"{ended}/{len(targets)} "
            try:
                found = take()
            except Interrupted as signal:
                stop.set(signal.number)
                continue
            finally:
                output.ahead = ""
            if found is not None:
                running += begin() - 1
                ended += 1
                yield found
