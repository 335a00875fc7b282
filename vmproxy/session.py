"""One VM opened: the connection, its waits, and the looks. What ``--wait`` allows is spent here."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from vmproxy import guests, machines, targets, tools, transports
from vmproxy.errors import (
    Interrupted,
    LostContact,
    NotPermitted,
    Refused,
    Unreachable,
    Untrusted,
    UsageError,
    VmproxyError,
)
from vmproxy.machines import Judge, Look, Machine, Outcome, Terms, Verdict
from vmproxy.model import Desired, Facts, Plan, Settings, Target, printable
from vmproxy.stopping import Stop

if TYPE_CHECKING:
    from vmproxy.scene import Scene

_PAUSE_SECONDS = 1.0
_BY_DAEMON_JSON = "daemon-json"
DOKKU_RECORD = "/var/lib/vmproxy/dokku.json"
"""Where a VM remembers what Dokku in it was told."""
_AS_BEFORE = frozenset({"undone", "gone", "refused", "busy", "moved"})
"""How a change ends after which the VM is as it was."""
STILL_IN_DOKKU = "Dokku in this VM still gives the proxy to its apps: vmproxy dokku remove"


class Session:
    """An open machine. ``tell`` hears each step, ``news`` what must not be missed; ``ask`` puts a question to the
    person at the terminal, if any.
    ``syntax`` says that a change is likely to be planned and not made: the VM's shell is asked along with the look.
    ``root`` says whether the first look will need it, ``only_look`` that nothing else is likely to follow;
    ``look_at_tools`` are tools whose files it reads, besides those that the user named. ``stop`` is asked at each step,
    where several stories run side by side.

    Raises what the transport raises; while ``wait_seconds`` last, an unreachable VM is tried again.
    """

    def __init__(
        self,
        name: str,
        settings: Settings,
        *,
        tell: Callable[[str], None],
        news: Callable[[str], None],
        ask: Callable[[str], str | None] | None,
        root: bool = True,
        only_look: bool = False,
        syntax: bool = False,
        look_at_tools: tuple[str, ...] = (),
        stop: Stop | None = None,
    ) -> None:
        self.name, self.settings = name, settings
        self._tell, self._stop, self._alone = tell, stop or Stop(), stop is None
        self._news, self._ask, self._root, self._syntax = news, ask, root, syntax
        self._tools = tools.chosen({*tools.chosen(settings.tools), *look_at_tools})
        self._only_look = only_look
        self._ask_docker = False
        self._listeners = self._stats = True
        self._deadline = time.monotonic() + settings.wait_seconds
        self._given_up = False
        self._kept = False
        self._target = targets.resolve(name, environ=os.environ)
        self._calling = contextlib.ExitStack()
        self._turn = contextlib.ExitStack()
        try:
            self.machine: Machine = self._connect(self._target)
        except BaseException:
            self._turn.close()
            raise
        try:
            self._calling.enter_context(self._stop.calling(self._interrupt))
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Session:
        return self

    def __exit__(self, _kind: object, error: BaseException | None, _traceback: object) -> None:
        self.close()
        if self._kept and isinstance(error, Interrupted):
            error.stays("the change was made before, and stays")
        put_back = isinstance(error, VmproxyError) and error.rolled_back
        if (
            self._stop.is_set
            and error is not None
            and (self._given_up or put_back)
            and not isinstance(error, Interrupted)
        ):
            raise Interrupted(self._stop.number, rolled_back=put_back) from error

    def tell(self, text: str) -> None:
        """A step begins. Raises Interrupted."""
        self._stop.check()
        self._tell(text)

    def rest(self, seconds: float) -> None:
        """Let time pass. Raises Interrupted."""
        self._stop.wait(seconds)

    def _interrupt(self) -> None:
        """Another thread got a signal: what runs in the VM is to end. A change that is under way is put back there,
        and we stay to hear it; else there is nothing to wait for."""
        if not self.machine.interrupt():
            self._given_up = True
            self.machine.close()

    def close(self) -> None:
        """Let go of the VM."""
        self._turn.close()
        self._calling.close()
        self.machine.close()

    def look_for_all(self) -> Look:
        """The look that every decision is made from."""
        settings = self.settings
        name = settings.proxy.host if settings.proxy is not None and settings.forward else ""
        configs = guests.daemon_configs()
        places = tuple(path.rpartition("/")[0] for path in configs)
        return Look(
            files=(*guests.files(), *configs, *tools.files(self._tools)),
            paths=(*guests.paths(), *places, *tools.paths(self._tools), DOKKU_RECORD),
            texts=(*guests.texts(), *tools.texts(self._tools)),
            configs=configs,
            resolve=name,
            syntax=self._syntax,
            docker=settings.via == _BY_DAEMON_JSON or self._ask_docker,
            listeners=self._listeners,
            stats=self._stats,
        )

    def look_after(self, *, resolve: str) -> Look:
        """The look behind a change: nobody asks any more what listens, which was known before."""
        return replace(self.look_for_all(), listeners=False, stats=True, resolve=resolve)

    def begin(self, *, change: bool = False) -> None:
        """Send the first look on its way; :meth:`scene` waits for what it says, or tries again.

        ``change`` says that one may follow. One VM has what it takes sent along, to save a round trip; of many most
        have nothing to change, and what only a change would need is looked at then: all of them are on one host.
        """
        self._listeners = self._alone or not change
        self._stats = self._alone or self.settings.via == _BY_DAEMON_JSON
        change = change and self._alone
        with contextlib.suppress(LostContact):
            self.machine.begin(self.look_for_all(), change=change)
        # What it takes to read the answer is imported while the VM looks.
        from vmproxy.guests import _boot, _payload  # noqa: F401
        from vmproxy.machines import reading  # noqa: F401

    def scene(self, *, wait_for_docker: bool = True, with_tools: bool = True) -> Scene:
        """One look, or as many as ``--wait`` allows until Docker has made its bridge and rules.

        ``with_tools``: where only the record in the VM names tools, one more look reads their files, too.
        """
        look = self.look_for_all()
        facts = self.observe(look)
        from vmproxy.proxyenv import is_loopback
        from vmproxy.scene import docker_ready, read

        while wait_for_docker and facts.live and not docker_ready(facts) and self._pause():
            facts = self.observe(look)
        scene = read(facts, self.settings)
        wish = scene.wish
        resolve = look.resolve
        if wish.forward and not resolve and not is_loopback(wish.proxy.host) and not wish.gateway:
            resolve = wish.proxy.host
        # Where daemon.json has proxies, Docker was asked already; else only the record told of them.
        # To keep a daemon.json's mode in the record, it has to be known before anything is wished for.
        if facts.bare:
            self._stats = self._stats or _BY_DAEMON_JSON in (wish.via, scene.seen.via if scene.seen else "")
        self._ask_docker = self._ask_docker or (wish.via == _BY_DAEMON_JSON and not scene.facts.docker_version)
        if with_tools:
            self._know({*wish.tools, *(scene.seen.tools if scene.seen else ())})
        again = replace(self.look_for_all(), resolve=resolve)
        if again != look:
            scene = read(self.observe(again), self.settings)
        return scene

    def booted(self, *, with_tools: bool = True) -> Scene:
        """The same, and then as many as ``--wait`` allows until the VM has made the rules that it makes at boot."""
        from vmproxy.scene import coming

        scene = self.scene(with_tools=with_tools)
        while time.monotonic() < self._deadline and coming(scene) and self._pause():
            scene = self.scene(with_tools=with_tools)
        return scene

    def _know(self, names: set[str]) -> None:
        """From now on the files of these tools are looked at as well. Raises Refused."""
        if names <= set(self._tools):
            return
        try:
            self._tools = tools.chosen({*self._tools, *names})
        except UsageError as error:
            raise Refused(f"{error.what}, and the VM's record has it", hint="upgrade vmproxy") from None

    def plan(self, scene: Scene, desired: Desired) -> Plan:
        """The steps from what was seen to what is wanted. Raises Refused, ForeignFile and what the machine raises.

        Of a file that is to change, and of no other, it matters what the VM's own shell says: so it is asked then.
        """
        from vmproxy.plan import diff

        def made() -> Plan:
            force, always = self.settings.force, self.settings.restart == "always"
            return diff(scene.facts, scene.guest, desired, scene.variant, force=force, restart_always=always)

        self.tell("planning")
        found = made()
        if scene.facts.bare and (found.files or (found.rules is not None and desired.door is not None)):
            self._listeners = self._stats = True
            look = self.look_for_all()
            facts = _filled_in(scene.facts, self.observe(replace(look, rest=True)))
            if facts is None:  # a file has come or gone meanwhile
                seen = self.observe(look)
                facts = replace(scene.facts, listeners=seen.listeners, files=seen.files, bare=False)
            scene.facts = facts
            found = made()
        changed = {change.before.path for change in found.files if change.shell and change.before.content is not None}
        if desired.blocks and not changed <= set(scene.facts.syntax):
            said = self.machine.check(tuple(sorted(changed)))
            scene.facts = replace(scene.facts, syntax={**scene.facts.syntax, **said})
            found = made()
        return found

    def commit(self, plan: Plan, terms: Terms, *, judge: Judge, verdict: Verdict) -> Outcome:
        """Carry the plan out. Raises Interrupted, besides what the machine raises, where a signal to another thread
        came and the VM is as it was: whatever word it has for the end of our input."""
        outcome = self.machine.commit(plan, terms, judge=judge, verdict=verdict, step=self.tell)
        if outcome.status in _AS_BEFORE and self._stop.is_set:
            raise Interrupted(self._stop.number, rolled_back=outcome.rolled_back)
        self._kept = self._kept or outcome.status == "kept"
        return outcome

    def observe(self, look: Look) -> Facts:
        """One look. A VM that is just starting may drop us: then again, over a new connection, while time is left."""
        while True:
            self.tell("looking")
            try:
                seen = self.machine.observe(look)
                self._turn.close()
                return seen
            except LostContact:
                self._turn.close()
                if not self._pause():
                    raise
                self.machine.close()
                self.machine = self._connect(self._target)

    def _connect(self, target: Target) -> Machine:
        _check_options(target, self.settings)
        if target.directory:
            if target.machine == "image":
                image: Machine = machines.load("image").open(target.directory, rewrite=self.settings.rewrite)
                return image
            tree: Machine = machines.load("tree").open(target.directory)
            return tree
        settings = self.settings
        options = transports.SshOptions(
            connect_timeout_seconds=settings.connect_timeout_seconds,
            ssh_config=settings.ssh_config,
            identities=settings.identities,
            known_hosts=settings.known_hosts,
            host_key=settings.host_key,
            jump=settings.jump,
            helper_image=settings.helper_image,
            ask=self._ask,
            side_by_side=not self._alone,
            notify=self._news,
            reached=self._stop.turns.reached,
            secrets=_secrets_of_this_process(),
            meanwhile=self.look_for_all,  # its guests are imported with it
            stoppable=self._stop.calling,
        )
        by_program = target.transport == "ssh" and settings.ssh == "openssh"
        if target.transport == "ssh" and not by_program and not self._alone:
            self._stop.turns.take()
            self._turn.callback(self._stop.turns.give)
        self.tell(f"connecting to {target.name}")
        transport = transports.load("openssh" if by_program else target.transport)
        machine = machines.load(target.machine)
        # Elsewhere root is had otherwise, or each program takes long to start.
        user = target.user if self._only_look and target.transport == "ssh" else ""
        while True:
            try:
                first = machine.first_command(root=self._root, plain_for=user)
                opened: Machine = machine.open(transport.connect(target, options=options, first=first), first=first)
                return opened
            except Untrusted:
                raise
            except (Unreachable, LostContact):
                self._turn.close()
                self._stop.check()  # the signal came meanwhile: that is what ended it, whatever the VM would have done
                if not self._pause():
                    raise
            except NotPermitted:
                self._stop.check()  # what was cut off in the middle is taken for a no
                raise

    def _pause(self) -> bool:
        """Wait a little if ``--wait`` allows it."""
        left = self._deadline - time.monotonic()
        if left <= 0:
            return False
        self.rest(min(_PAUSE_SECONDS, left))
        return True


def _filled_in(facts: Facts, seen: Facts) -> Facts | None:
    """The first look with what it had left out. None where the two do not see the same files."""
    files = {
        path: replace(file, content=facts.files[path].content)
        for path, file in seen.files.items()
        if path in facts.files and facts.files[path].kind == file.kind
    }
    if len(files) != len(facts.files):
        return None
    return replace(facts, listeners=seen.listeners, files=files, bare=False)


def _check_options(target: Target, settings: Settings) -> None:
    """What was said about SSH and cannot be had is refused, not passed over. Raises UsageError."""
    by_ssh = target.transport == "ssh"
    if settings.host_key and not by_ssh:
        what = f"a host key is what VMs have that are reached by SSH, and {target.name} is not"
        raise UsageError(what, where=printable(settings.host_key), hint="without --host-key, also in vmproxy.toml")
    if settings.jump.lower() in ("", "none"):
        return
    if not by_ssh:
        what = f"a jump host is for VMs that are reached by SSH, and {target.name} is not"
        raise UsageError(what, where=printable(settings.jump), hint="--jump none")
    from vmproxy.proxyenv import is_loopback

    # By another host it would be that one's loopback; who means that says so by ssh://.
    if target.provider != "ssh" and is_loopback(target.host):
        what = f"{target.name} is on this host ({target.host}:{target.port}), no jump host leads to it"
        raise UsageError(what, where=printable(settings.jump), hint="--jump none")


_SECRETS: transports.Secrets | None = None
_SECRETS_LOCK = threading.Lock()


def _secrets_of_this_process() -> transports.Secrets:
    """One for the whole process: a password that one VM has had is not tried at another (RELIABILITY T02)."""
    global _SECRETS  # noqa: PLW0603
    with _SECRETS_LOCK:
        if _SECRETS is None:
            _SECRETS = transports.Secrets(
                password=os.environ.get("VMPROXY_SSH_PASSWORD", ""),
                passphrase=os.environ.get("VMPROXY_SSH_PASSPHRASE", ""),
            )
        return _SECRETS
