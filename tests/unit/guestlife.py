"""A VM of any guest in memory: its files, its kernel's rules and its daemon, beside the same VM that never met us.

Everybody else's doing is done to both. So what ``remove`` has to give back is known after any life: the other VM.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from tests.unit import guestworlds
from tests.unit.rulekernel import Kernel, ours
from vmproxy import blocks, guests, rules
from vmproxy import plan as planning
from vmproxy.guests._payload import variables
from vmproxy.iptsave import split_words
from vmproxy.managed import MADE
from vmproxy.model import Address, Daemon, Desired, Facts, File, FileChange, Plan, Route, Wish

FIXTURES = Path(__file__).resolve().parents[2] / "fixtures" / "iptables"
DUMPS = {name: (FIXTURES / f"{name}.save").read_bytes() for name in ("docker20-nft-fresh", "docker20-nft-networks")}
WORLDS = {
    "boot2docker": "boot2docker-19.03",
    "systemd": "debian-12",
    "openrc": "alpine-3.19",
    "sysv": "debian-12-sysvinit",
    "upstart": "ubuntu-14.04",
    "moby": "docker-for-mac-2016",
}
VARIANT = "nft"
_RUN_AGAIN = ("systemd", "upstart", "moby", "openrc")
"""Where a restart of Docker runs the boot script as well; boot2docker and sysv run it at boot alone."""
_SCRIPT = b"#!/sbin/openrc-run\n\nstart()\n{\n\tebegin x\n}\n"

Key = tuple[str, str]
Words = tuple[str, ...]


class VM:
    """``files`` and ``kernel`` are the VM's; ``their_files`` and ``their_kernel`` those of the one without us."""

    def __init__(self, kind: str, dump: str, files: dict[str, File]) -> None:
        self.guest = guests.load(kind)
        self.dump = DUMPS[dump]
        base = guestworlds.world(WORLDS[kind])
        self.base = replace(base, paths=base.paths - set(self.guest.DIRECTORIES))
        if kind == "moby":  # its one file is upstream's own
            files = {self.guest.WISH_FILE: File(path=self.guest.WISH_FILE, content=_SCRIPT, mode=0o755)}
        self.files, self.their_files = dict(files), dict(files)
        self.in_memory = dict(files) if kind == "moby" else None
        self.kernel, self.their_kernel = Kernel(self.dump), Kernel(self.dump)
        self.directories: set[str] = set()
        self.leftovers: set[str] = set()
        self.daemon: dict[str, str] = {}

    # ---- looks and plans --------------------------------------------------------------------------------------------

    def facts(self) -> Facts:
        """What a look would see."""
        kernel = self.kernel.ruleset()
        bridges = {"docker0", *rules.docker_bridges(kernel)}
        absent = {path: File(path=path, kind="absent") for path in self.guest.FILES}
        return replace(
            self.base,
            paths=self.base.paths | self.directories,
            routes=(Route(destination="0.0.0.0/0", gateway="10.0.2.2", interface="eth0"),),
            addresses=(Address(interface="docker0", cidr="172.17.0.1/16"),),
            interfaces=frozenset({"lo", "eth0", *bridges}),
            bridges=frozenset(bridges),
            files={**absent, **self.files},
            dumps={VARIANT: self.kernel.save()},
            daemon=Daemon(pid=7, environment=self.daemon),
            leftovers=tuple(sorted(self.leftovers)),
        )

    def desired(self, wish: Wish | None) -> Desired:
        """What is wanted, None for gone."""
        return planning.desire(self.facts(), self.guest, wish, VARIANT) if wish is not None else Desired()

    def plan(self, wish: Wish | None) -> Plan:
        """From what is there to what is wanted."""
        return planning.diff(self.facts(), self.guest, self.desired(wish), VARIANT)

    def steps(self, plan: Plan, *, restart: bool) -> list[Callable[[], None]]:
        """The plan as commit.sh goes about it: what a run may be cut off between."""
        made: list[Callable[[], None]] = [self._clear]
        made += [lambda c=change: self._directory(c) for change in plan.files if change.directory]  # type: ignore[misc]
        if plan.rules is not None:
            done = plan.rules.do
            made += [lambda t=table: self.kernel.restore(done[t]) for table in ("filter", "nat") if done.get(table)]  # type: ignore[misc]
        made += [lambda c=change: self._write(c.after) for change in plan.files]  # type: ignore[misc]
        if restart and plan.restart:
            made.append(self.docker_restarts_for_us)
        return [*made, lambda: self._end(plan)]

    def put_back(self, plan: Plan, done: int, *, restart: bool) -> None:
        """What commit.sh does when it fails behind ``done`` steps: rules by the plan's own undo, files as seen."""
        count = min(done - 1 - sum(change.directory for change in plan.files), 2)
        for table in ("filter", "nat") if plan.rules is not None else ():
            if plan.rules and plan.rules.do.get(table) and count > 0:
                self.kernel.restore(plan.rules.undo[table])
                count -= 1
        for change in plan.files:
            self._write(change.before)
        if restart and plan.restart:
            self.daemon = self._given()
        self._end(plan)

    def _clear(self) -> None:
        """What a run before left; the sign in a directory that may have to go stays until the end."""
        self.leftovers = {path for path in self.leftovers if path.endswith(f"/{MADE}")}

    def _directory(self, change: FileChange) -> None:
        place = change.after.path.rpartition("/")[0]
        self.directories.add(place)
        self.leftovers.add(f"{place}/{MADE}")

    def _write(self, after: File) -> None:
        if after.content is None:
            self.files.pop(after.path, None)
        else:
            self.files[after.path] = after

    def _end(self, plan: Plan) -> None:
        """The work area goes, and what of our directories is empty."""
        ours = {change.after.path.rpartition("/")[0] for change in plan.files if change.directory}
        ours |= {path.rpartition("/")[0] for path in self.leftovers}
        self.leftovers.clear()
        self.directories -= {place for place in ours if not any(path.startswith(f"{place}/") for path in self.files)}

    # ---- what others do ---------------------------------------------------------------------------------------------

    def both(self) -> Iterator[Kernel]:
        """The two kernels."""
        yield from (self.kernel, self.their_kernel)

    def somebody_adds(self, key: Key, words: Words, place: int) -> None:
        """One foreign rule before the foreign rule of that number, or at the end."""
        for kernel in self.both():
            chain = kernel.chains[key][1]
            theirs = [index for index, rule in enumerate(chain) if not ours(rule)]
            chain.insert(theirs[place] if place < len(theirs) else len(chain), words)

    def somebody_flushes(self, key: Key) -> None:
        """``iptables -F`` of one chain."""
        for kernel in self.both():
            kernel.chains[key][1].clear()

    def docker_restarts(self) -> None:
        """dockerd by itself: what it misses of its own it puts on top; its init gives it what the files say."""
        for kernel in self.both():
            for key, (policy, rules_of_docker) in Kernel(self.dump).chains.items():
                chain = kernel.chains.setdefault(key, (policy, []))[1]
                missing = [rule for rule in rules_of_docker if rule not in chain]
                chain[:0] = missing
        self.daemon = self._given()
        if self.guest.NAME in _RUN_AGAIN:
            self._boot_script()

    def docker_restarts_for_us(self) -> None:
        """The same, at our word."""
        self.docker_restarts()

    def reboot(self) -> None:
        """A fresh kernel, Docker's rules, the boot script; a VM whose root is in memory has forgotten everything."""
        self.kernel, self.their_kernel = Kernel(self.dump), Kernel(self.dump)
        if self.in_memory is not None:
            self.files, self.their_files = dict(self.in_memory), dict(self.in_memory)
            self.directories.clear()
            self.leftovers.clear()
        self.daemon = self._given()
        self._boot_script()

    def somebody_appends(self, path: str, line: bytes) -> bool:
        """A line at a file's end, where that end is a whole line of somebody else's; whether it was done."""
        mine, theirs = self.files.get(path), self.their_files.get(path)
        ends = [file.content or b"" for file in (mine, theirs) if file is not None]
        if len(ends) != 2 or not all(content.endswith(b"\n") for content in ends):
            return False
        for files in (self.files, self.their_files):
            files[path] = replace(files[path], content=(files[path].content or b"") + line)
        return True

    def somebody_rewrites(self, path: str, content: bytes) -> None:
        """As docker-machine does it: the whole file, by a program that keeps the mode of one that is there."""
        mode = self.files[path].mode if path in self.files else 0o644
        for files in (self.files, self.their_files):
            files[path] = File(path=path, content=content, mode=mode)

    # ---- what the VM's init makes of our files ----------------------------------------------------------------------

    def _given(self) -> dict[str, str]:
        """The variables that the files give the daemon: those of the blocks."""
        found: dict[str, str] = {}
        for path in self.guest.FILES:
            content = self.files[path].content if path in self.files else None
            found |= variables(content) if content is not None and _has_block(content) else {}
        return found

    def _boot_script(self) -> None:
        for path in self.guest.FILES:
            content = (self.files[path].content if path in self.files else None) or b""
            block = blocks.find(content)
            if block is not None and b"VMPROXY-END" in block.payload:
                _run(block.payload, self.kernel)


def _has_block(content: bytes) -> bool:
    return blocks.find(content) is not None


def _run(script: bytes, kernel: Kernel) -> None:
    """A boot script's texts and jumps, as its shell would carry them out; tests/unit/test_boot_script.py has shells."""
    lines = iter(script.decode("ascii").split("\n"))
    for line in lines:
        if "<<'VMPROXY-END'" in line:
            text = []
            while (part := next(lines)) != "VMPROXY-END":
                text.append(part)
            kernel.restore("\n".join([*text, ""]).encode("ascii"))
        elif "vmproxy_jump iptables" in line:
            words = split_words(line[line.index("vmproxy_jump") :]) or ()
            table, name, jump = words[2], words[3], tuple(words[4:])
            _jump(kernel.chains[table, name][1], jump, name)


def _jump(chain: list[Words], words: Words, name: str) -> None:
    form = rules.canonical(words)
    chain[:] = [rule for rule in chain if rules.canonical(rule) != form]
    ends = [index for index, rule in enumerate(chain) if rule[:2] in (("-j", "DROP"), ("-j", "REJECT"))]
    chain.insert(ends[0] if ends and name == "FORWARD" else len(chain), words)
