"""What a VM may answer to the two scripts, told by a connection without a VM: lies, drips, and an end half way."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import pytest

from vmproxy.errors import Busy, Interrupted, LostContact, Refused, RolledBack, VmproxyError
from vmproxy.machines import Look, Outcome, Terms, shell
from vmproxy.machines.frames import Frame
from vmproxy.machines.reading import facts
from vmproxy.model import Finding, Plan
from vmproxy.outcomes import failure
from vmproxy.proof import Question


class Told:
    """A connection and its one channel: gives out frames, each as words, or bytes as they are."""

    def __init__(self, *said: str | bytes) -> None:
        self._said: Iterator[str | bytes] = iter(said)
        self.sent = b""
        self.ended = False

    def start(self, command: str) -> Told:
        return self

    def send(self, data: bytes, *, timeout_seconds: float) -> None:
        self.sent += data

    def receive(self, *, timeout_seconds: float) -> bytes:
        said = next(self._said, b"")
        if isinstance(said, bytes):
            return said
        length, _, rest = self.sent.partition(b"\n")
        nonce = rest[int(length) :].partition(b"\n")[0]
        return b"\n@" + nonce + b" " + said.encode() + b"\n"

    def end_input(self) -> None:
        self.ended = True

    def wait(self, *, timeout_seconds: float) -> int | None:
        return 0

    @property
    def stderr(self) -> bytes:
        return b""

    def close(self) -> None:
        self.ended = True


def commit(told: Told, *, verdict: Callable[[Outcome], bool] = lambda _: True) -> Outcome:
    """One commit of an empty plan over that connection."""

    def judge(_finding: Finding) -> bool:
        return True

    return shell.open(told).commit(Plan(), Terms(look=Look()), judge=judge, verdict=verdict, step=lambda _: None)


CHANGED = ("step stage", "step look", "system 0 -", "end", "ready")


def test_a3_a_second_look_that_cannot_be_read_is_rolled_back() -> None:
    """A refusal after the first change is no "nothing was changed" (6): the put-back is heard out, and it is 7."""

    def verdict(_outcome: Outcome) -> bool:
        raise Refused("iptables-save (nft) ends with status 124", where="iptables")

    told = Told(*CHANGED, "step put-back", "result undone 9 interrupted")
    with pytest.raises(RolledBack, match="status 124; everything was put back"):
        commit(told, verdict=verdict)
    assert told.ended
    with pytest.raises(RolledBack, match="not whole; everything was put back"):
        commit(Told("step stage", "step look", "ready", "result undone 9 interrupted"))
    for last in ([], ["result incomplete 9 left: docker"]):
        with pytest.raises(LostContact, match="does not say that everything was put back"):
            commit(Told(*CHANGED, *last), verdict=verdict)


@pytest.mark.parametrize("last", ["undone 9 interrupted", "busy 8 another run", "moved 6 changed", "gone 9 away"])
def test_f28_an_interrupted_change_that_was_none_ends_as_the_signal(last: str) -> None:
    """Whatever last word says that the VM is as before, the signal's own exit code is the one of the run."""

    class Signalled(Told):
        def receive(self, *, timeout_seconds: float) -> bytes:
            if not self.ended:
                raise Interrupted(15)
            return super().receive(timeout_seconds=timeout_seconds)

    with pytest.raises(Interrupted) as caught:
        commit(Signalled(f"result {last}"))
    assert caught.value.rolled_back is last.startswith("undone")


def test_f28_what_was_refused_before_it_was_begun_is_not_put_back() -> None:
    """Also where the VM's word for it is the same: 6 and 8 are those of what was not begun, unless something had been
    written before."""
    ends = {code: Outcome(status="undone", exit=code).rolled_back for code in (6, 7, 8, 9)}
    assert ends == {6: False, 7: True, 8: False, 9: True}
    assert all(Outcome(status="undone", exit=code, wrote=True).rolled_back for code in ends)
    assert commit(Told("step stage", "step put-back", "wrote", "result undone 8 a lock")).wrote
    assert not commit(Told("step stage", "step put-back", "result undone 8 a lock")).wrote
    assert not any(Outcome(status=status, exit=9, wrote=True).rolled_back for status in ("gone", "kept", "incomplete"))


@pytest.mark.parametrize(("code", "kind", "untouched"), [(6, Refused, "; nothing was changed"), (8, Busy, "")])
def test_f19_a_refusal_says_whether_something_was_put_back(
    code: int, kind: type[VmproxyError], untouched: str
) -> None:
    """Its exit code does not tell: filter may have been written when the lock of nat was held."""
    for wrote, end in ((True, "; everything was put back"), (False, untouched)):
        error = failure(Outcome(status="undone", exit=code, text="the lock is held", wrote=wrote), None, ())
        assert type(error) is kind
        assert (error.what, error.rolled_back) == (f"the lock is held{end}", wrote)


@pytest.mark.parametrize(
    ("said", "last", "status"),
    [
        (("asked vm",), "result gone 9 the client went away", "gone"),
        (CHANGED, "result undone 9 interrupted", "undone"),
    ],
    ids=["before", "in the middle"],
)
def test_f28_the_end_of_input_from_another_thread_is_heard_out(said: tuple[str, ...], last: str, status: str) -> None:
    """Where it comes just when we have an answer to give: the VM's last word counts, not the answer that failed."""

    class Ending(Told):
        def send(self, data: bytes, *, timeout_seconds: float) -> None:
            if self.ended:
                raise LostContact("the command's input is closed")
            super().send(data, timeout_seconds=timeout_seconds)

    told = Ending(*said, last)
    machine = shell.open(told)

    def interrupted(_what: object) -> bool:
        assert machine.interrupt()
        return True

    put = Question(
        vm_host="10.0.2.2", vm_port=1, container_host="172.17.0.1", container_port=1, connect=b"", get=b"", legs=("vm",)
    )
    terms = Terms(look=Look(), check=put)
    assert not machine.interrupt()
    outcome = machine.commit(Plan(), terms, judge=interrupted, verdict=interrupted, step=lambda _: None)
    assert outcome.status == status
    assert told.ended


def test_t03_a_vm_that_drips_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """Never silent for long and never done: the whole script has a limit in time too."""
    clock = itertools.count(0.0, 20.0)
    monkeypatch.setattr("vmproxy.machines.shell.time.monotonic", lambda: next(clock))
    told = Told(*["step more"] * 10_000)
    with pytest.raises(LostContact, match="not done after 300 s"):
        shell.open(told).observe(Look())


HOSTILE = {
    "numbers of many digits": [("stat", "/x", b"1 -rw-r--r-- " + b"9" * 5000 + b" 0 0"), ("daemon", "9" * 900, b"")],
    "another kind of iptables": [("dump", "evil", b"*nat\nCOMMIT\n"), ("dumped", "evil 1", b"")],
    "no numbers": [("system", "\u0663 x", b""), ("stat", "/x", b"1 -rw- \xd9\xa3 0 0")],
}


@pytest.mark.parametrize("what", HOSTILE)
def test_t04_what_is_no_fact_is_not_believed(what: str) -> None:
    """Frames with values of no sensible type are passed over, never a crash."""
    frames = [Frame(words=(kind, *rest.split()), body=body) for kind, rest, body in HOSTILE[what]]
    seen = facts([*frames, Frame(words=("end",))])
    assert seen.daemon is None
    assert not seen.dumps
    assert not seen.dump_errors
    assert seen.uid == -1
    assert all(file.kind == "absent" for file in seen.files.values())
