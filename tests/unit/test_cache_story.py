"""``apply --cache`` as a story: where the cache is started, when it is ended, what is told. VM and cache are fakes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest

from vmproxy import cachestory
from vmproxy.cacherun import Started
from vmproxy.cachestory import CacheStory
from vmproxy.errors import Interrupted, NoProxy, RolledBack, UsageError
from vmproxy.model import GatewayChoice, ProxyURL, Report, Settings
from vmproxy.routes import Sighting
from vmproxy.stopping import Stop

CHOICE = GatewayChoice(gateway="192.168.64.1", interface="eth0", family="inet", reason="", candidates=())


class World:
    """A host with a cache that may run, and VMs; ``calls`` is what happened, in order."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, reached: str = "192.168.64.1", own: bool = True) -> None:
        self.calls: list[str] = []
        self.status: dict[str, Any] | None = None
        self.reached, self.url = reached, "http://cache.vmproxy.invalid/x"
        self.lent, self.returned = 0, list[str]()
        self.how = "in the background"
        self.ends: dict[str, BaseException | Report] = {}
        self.meanwhile: dict[str, Callable[[], object]] = {}
        self.settings: list[Settings] = []
        monkeypatch.setattr(cachestory.cacherun, "running", lambda _directory: self.status)
        monkeypatch.setattr(cachestory.cacherun, "stop", self.stop)
        monkeypatch.setattr(cachestory.control, "ask", self.ask)
        monkeypatch.setattr(cachestory.converge, "apply", self.apply)
        monkeypatch.setattr(cachestory.converge, "verify", self.verify)
        monkeypatch.setattr(cachestory.converge, "detect_gateway", self.detect)
        monkeypatch.setattr(cachestory.hostproc, "own_address", lambda _address: own)
        self.story = CacheStory("/d", self.start, port=8123, bound=False)

    def start(self, words: Sequence[str]) -> Started:
        """Start the cache."""
        self.calls.append(" ".join(["start", *words]))
        bound = [word.removeprefix("--bind=") for word in words if word.startswith("--bind=")]
        self.status = {"listen": f"{bound[0] if bound else '127.0.0.1'}:8123", "pid": 7}
        return Started(status=self.status, how=self.how)

    def stop(self, _directory: str) -> bool:
        """End it."""
        self.calls.append("stop")
        self.status = None
        return True

    def ask(self, _directory: str, question: dict[str, Any]) -> dict[str, Any]:
        """Its control socket."""
        if question["do"] == "sample":
            self.lent += 1
            return {"url": f"{self.url}{self.lent}" if self.url else ""}
        self.returned.append(question["url"])
        return {"asked": 1}

    def detect(self, _target: str, _settings: Settings, *, probe_port: int | None = None, **_more: Any) -> Sighting:
        """What the VM sees of its host."""
        assert probe_port in (None, 8123)
        listen = str((self.status or {}).get("listen", "")).rpartition(":")[0]
        answers = ("192.168.64.1",) if probe_port and listen == self.reached else ()
        return Sighting(choice=CHOICE, answering=answers, networks=("192.168.64.0/24",))

    def apply(self, target: str, settings: Settings, *, dry_run: bool = False, **_more: Any) -> Report:
        """The usual story."""
        self.calls.append(f"apply {target}{' dry' if dry_run else ''}")
        self.settings.append(settings)
        end = self.ends.get(target, Report(target=target, changed=True, message="done"))
        if target in self.meanwhile:
            self.meanwhile.pop(target)()
        if isinstance(end, BaseException):
            raise end
        return end

    def verify(self, target: str, settings: Settings, **_more: Any) -> Report:
        """The proof."""
        self.calls.append(f"verify {target}")
        return Report(target=target, message="the proxy answers from everywhere")


def test_it_is_started_at_the_gateway_for_the_vms_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """An address of this host's own that the VM reaches: nothing else is listened on; the proxy is said as this host's,
    with the object to be fetched; the report says how the cache runs."""
    world = World(monkeypatch)
    report = world.story.apply("a", Settings())
    assert world.calls == ["start --bind=192.168.64.1 --allow=192.168.64.0/24", "apply a"]
    (told,) = world.settings
    assert told.proxy == ProxyURL(scheme="http", host="127.0.0.1", port=8123) and "proxy" in told.given
    assert told.cache_object == f"{world.url}1" and world.returned == [told.cache_object]
    assert report.findings[0].detail == "192.168.64.1:8123, started in the background, process 7"


@pytest.mark.parametrize("own", [True, False])
def test_else_it_is_started_on_loopback(monkeypatch: pytest.MonkeyPatch, own: bool) -> None:
    """A gateway that is not this host's, or that leads to loopback all the same."""
    world = World(monkeypatch, reached="127.0.0.1", own=own)
    world.story.apply("a", Settings())
    first = ["start --bind=192.168.64.1 --allow=192.168.64.0/24", "stop"] if own else []
    assert world.calls == [*first, "start --allow=192.168.64.0/24", "apply a"]


def test_f28_a_signal_while_another_vms_cache_is_started(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who waited for that begins nothing after it; and the look that the start needs hears the signal, too."""
    world = World(monkeypatch)
    stop = Stop()
    heard: list[object] = []

    def detect(target: str, settings: Settings, *, stop: object, **more: Any) -> Sighting:
        heard.append(stop)
        return world.detect(target, settings, **more)

    monkeypatch.setattr(cachestory.converge, "detect_gateway", detect)
    world.story.apply("a", Settings(), stop=stop)
    assert heard and set(heard) == {stop}
    before = list(world.calls)
    stop.set(2)
    with pytest.raises(Interrupted):
        world.story.apply("b", Settings(), stop=stop)
    assert world.calls == before


def test_a_cache_that_the_vm_does_not_reach_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """Exit 6, both places named, nothing left running, no apply."""
    world = World(monkeypatch, reached="nowhere")
    with pytest.raises(NoProxy, match="then 127") as found:
        world.story.apply("a", Settings())
    assert found.value.exit == 6 and world.status is None
    assert not [call for call in world.calls if call.startswith("apply")]


def test_where_the_user_says_where_it_listens_nothing_is_added(monkeypatch: pytest.MonkeyPatch) -> None:
    """--bind from the environment or the file is taken as it is."""
    world = World(monkeypatch, reached="127.0.0.1")
    CacheStory("/d", world.start, port=8123, bound=True).apply("a", Settings())
    assert world.calls == ["start", "apply a"]


@pytest.mark.parametrize("end", [RolledBack("no"), Interrupted(2), NoProxy("no")], ids=lambda end: type(end).__name__)
def test_it_is_ended_again_where_apply_fails(monkeypatch: pytest.MonkeyPatch, end: BaseException) -> None:
    """Whatever ended it, if no VM is behind the cache; one that ran before goes on."""
    world = World(monkeypatch)
    world.ends["a"] = end
    with pytest.raises(type(end)):
        world.story.apply("a", Settings())
    assert world.status is None and world.calls[-1] == "stop"
    world.status, world.calls = {"listen": "127.0.0.1:8200", "pid": 9}, []
    with pytest.raises(type(end)):
        world.story.apply("a", Settings())
    assert world.calls == ["apply a"] and world.settings[-1].proxy == ProxyURL(
        scheme="http", host="127.0.0.1", port=8200
    )


def test_one_vm_behind_it_is_enough_to_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second of two fails: the cache is the first one's; a restart that is pending counts, too."""
    world = World(monkeypatch)
    world.ends = {"a": Report(target="a", ok=False, exit=3, changed=True), "b": RolledBack("no")}
    world.story.apply("a", Settings())
    with pytest.raises(RolledBack):
        world.story.apply("b", Settings())
    assert world.status is not None and "stop" not in world.calls


@pytest.mark.parametrize("verify", [True, False])
def test_a_vm_that_fails_leaves_the_cache_to_those_still_at_work(monkeypatch: pytest.MonkeyPatch, verify: bool) -> None:
    """Side by side, with a proof and without: the one that fails first ends nothing, the last one does; each has had
    an object of its own."""
    world = World(monkeypatch)
    world.ends = {"a": RolledBack("no"), "b": RolledBack("no")}
    seen: list[bool] = []

    def other() -> None:
        with pytest.raises(RolledBack):
            world.story.apply("b", Settings(verify=verify))
        seen.append(world.status is not None)

    world.meanwhile["a"] = other
    with pytest.raises(RolledBack):
        world.story.apply("a", Settings(verify=verify))
    assert seen == [True] and world.calls[-3:] == ["apply a", "apply b", "stop"]
    assert world.returned == ([f"{world.url}2", f"{world.url}1"] if verify else [])


@pytest.mark.parametrize("reached", ["192.168.64.1", "nowhere"])
def test_what_another_run_started_is_not_ours_to_end(monkeypatch: pytest.MonkeyPatch, reached: str) -> None:
    """It was quicker: whatever comes of the VM, that cache goes on, and is not said to be started by us."""
    world = World(monkeypatch, reached=reached)
    world.how = ""
    report = world.story.apply("a", Settings())
    assert ", running, process 7" in report.findings[0].detail
    world.status, world.ends["a"] = None, RolledBack("no")
    with pytest.raises(RolledBack):
        world.story.apply("a", Settings())
    assert world.status is not None and "stop" not in world.calls


def test_a_vm_in_sync_is_proved_where_only_the_cache_was_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Then, and not where the cache ran; and not without a proof."""
    world = World(monkeypatch)
    world.ends["a"] = Report(target="a", message="in sync, nothing to do")
    assert world.story.apply("a", Settings()).message == "in sync, nothing to do; the proxy answers from everywhere"
    assert world.calls[-1] == "verify a"
    again = CacheStory("/d", world.start, port=8123, bound=False)
    assert again.apply("a", Settings()).message == "in sync, nothing to do" and world.calls[-1] == "apply a"
    world.story.apply("a", Settings(verify=False))
    assert world.calls[-1] == "apply a" and world.settings[-1].cache_object == ""


def test_a_dry_run_starts_nothing_and_another_proxy_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The plan is that with the cache; an older cache without an object is said."""
    world = World(monkeypatch)
    report = world.story.apply("a", Settings(), dry_run=True)
    assert world.calls == ["apply a dry"] and "it would be started (port 8123)" in report.warnings[0]
    other = replace(Settings(), proxy=ProxyURL(scheme="http", host="10.1.1.1", port=3128))
    with pytest.raises(UsageError, match="exclude"):
        world.story.apply("a", other)
    assert world.calls == ["apply a dry"]
    world.url = ""
    assert "first hit is not shown" in world.story.apply("a", Settings()).warnings[-1]
