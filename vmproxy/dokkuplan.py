"""What vmproxy wants in Dokku, and the steps that lead there. PURE.

Global config reaches what runs, and the builds by buildpacks. It does not reach the build of a Dockerfile: there
Dokku exports the app's own config and not the global one (plugins/builder-dockerfile/builder-build), so such an app
has the variables in its own config too, and ``--build-arg NAME`` for each, without a value. Other builders hand
``--build-arg`` on to ``docker create``, which does not know it: so only apps that are built from a Dockerfile get it.

Ours is what the record says and still has the value that we wrote; all else is somebody's own.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import field

from vmproxy import dokkucalls as dokku
from vmproxy.dokkucalls import GLOBAL, Action, Answer, Step, Write
from vmproxy.dokkufacts import App, DokkuFacts, Record, digest, write_record
from vmproxy.errors import Refused
from vmproxy.model import Finding, printable
from vmproxy.values import dataclass

DRIFT = "E_DRIFT"
_USERINFO = re.compile(r"://[^/\s]*@")
DOCKERFILE = "dockerfile"


@dataclass(frozen=True, kw_only=True)
class DokkuDesired:
    """All that is wanted in Dokku: variables by scope, build arguments by app. The zero value means "gone"."""

    config: Mapping[str, Mapping[str, str]] = field(default_factory=dict, repr=False)
    args: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    names: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class DokkuPlan:
    """What to do, made from one look. Empty (falsy) when nothing differs.

    ``expect`` is what must still be so when it is done; ``overwritten`` warns of what ``force`` does; ``lines`` tell a
    reader what changes (they may hold passwords); ``values`` and ``options`` say how many of each.
    """

    steps: tuple[Step, ...] = field(default=(), repr=False)
    expect: tuple[tuple[Action, Answer], ...] = field(default=(), repr=False)
    drift: tuple[Finding, ...] = ()
    warnings: tuple[str, ...] = ()
    overwritten: tuple[str, ...] = ()
    lines: tuple[str, ...] = field(default=(), repr=False)
    values: int = 0
    options: int = 0

    def __bool__(self) -> bool:
        return bool(self.steps)


def pip_index(facts: DokkuFacts) -> str:
    """The package index that an earlier apply wrote, "" where there is none; it may hold a password."""
    value = facts.config.get(GLOBAL, {}).get("PIP_INDEX_URL", "")
    return value if facts.record.owns(GLOBAL, "PIP_INDEX_URL", value) else ""


def names_of(facts: DokkuFacts) -> tuple[str, ...]:
    """What containers call each other: ``APP.web`` (docs/networking/network.md), an app without a dot also by its
    name alone, and the aliases of linked services. A name with a dot may be a public one."""
    out: dict[str, None] = {}
    for app in facts.apps:
        out.update(dict.fromkeys((*([app.name] if "." not in app.name else []), f"{app.name}.web", *app.links)))
    return tuple(out)


def desire(facts: DokkuFacts, variables: Mapping[str, str], *, names: tuple[str, ...] = ()) -> DokkuDesired:
    """The wish for this host: ``variables`` are those of the VM's containers, ``names`` those the user said."""
    wanted = dict(variables)
    config, args = {GLOBAL: wanted}, {}
    for app in facts.apps:
        if app.builder == DOCKERFILE:
            held = facts.config.get(app.name, {})
            own = {key.lower() for key, value in held.items() if not _same(facts, app, key, value, wanted)}
            config[app.name] = {key: value for key, value in wanted.items() if key.lower() not in own}
            args[app.name] = tuple(key for key in wanted if key not in app.valued)
    return DokkuDesired(config=config, args=args, names=names)


def _same(facts: DokkuFacts, app: App, key: str, value: str, wanted: Mapping[str, str]) -> bool:
    return wanted.get(key) == value or facts.record.owns(app.name, key, value)


def diff(facts: DokkuFacts, desired: DokkuDesired, *, force: bool = False) -> DokkuPlan:
    """The plan from these facts to that wish. Raises Refused where another's value stands in the way."""
    made = _Making(facts)
    for scope in dict.fromkeys((*desired.config, *facts.record.config)):
        made.scope(scope, desired.config.get(scope, {}), force=force)
    for app in facts.apps:
        made.args(app, desired.args.get(app.name, ()))
    return made.plan(desired)


def inverse(plan: DokkuPlan) -> tuple[Step, ...]:
    """The steps that take a plan back that was carried out."""
    return tuple(Step(do=step.undo, undo=step.do) for step in reversed(plan.steps))


class _Making:
    """A plan while it is made."""

    def __init__(self, facts: DokkuFacts) -> None:
        self._facts = facts
        self._steps: list[Step] = []
        self._touched: dict[str, None] = {}
        self._drift: list[Finding] = []
        self._warnings: list[str] = []
        self._overwritten: list[str] = []
        self._lines: list[str] = []
        self._values = self._options = 0
        self._before: dict[str, dict[str, frozenset[str]]] = {}
        self._after: dict[str, dict[str, frozenset[str]]] = {}
        self._args_before: dict[str, frozenset[str]] = {}
        self._args_after: dict[str, frozenset[str]] = {}
        self._there = {app.name for app in facts.apps} | {GLOBAL}

    # ---- variables ---------------------------------------------------------------------------------------------------

    def scope(self, scope: str, wanted: Mapping[str, str], *, force: bool) -> None:
        """One scope's variables. A scope whose app is gone needs nothing but to be forgotten."""
        if scope not in self._there:
            return
        have = self._facts.config.get(scope, {})
        record = self._facts.record.config.get(scope, {})
        put: dict[str, str] = {}
        taken: list[str] = []
        for key in dict.fromkeys((*wanted, *record)):
            value, want = have.get(key), wanted.get(key)
            ours = value is not None and self._facts.record.owns(scope, key, value)
            if value is not None and not ours and want is not None and value != want:
                if not force:
                    raise Refused(
                        f"Dokku's config has another {key} already",
                        where=scope,
                        hint="--force writes ours over it; remove cannot give it back",
                    )
                self._overwritten.append(f"{key} of {scope} is overwritten; remove cannot give it back")
            if want is not None and value != want:
                put[key] = want
                self._own(scope, key, digest(want), value if ours else None)
                self._found(scope, f"{key} is not set" if value is None else f"{key} is another")
            elif want is not None and ours:
                self._own(scope, key, digest(want), value)
            elif want is None and ours:
                taken.append(key)
                self._found(scope, f"{key} is set")
                self._before.setdefault(scope, {})[key] = record[key]
            elif want is None and value is not None and key in record:
                self._warnings.append(f"{key} of {scope} was changed since, and stays")
        self._change(scope, have, put, taken)

    def _own(self, scope: str, key: str, new: str, old: str | None) -> None:
        self._after.setdefault(scope, {})[key] = frozenset((new,))
        both = (new,) if old is None else (new, digest(old))
        self._before.setdefault(scope, {})[key] = frozenset(both)

    def _found(self, scope: str, what: str) -> None:
        subject = "dokku config" if scope == GLOBAL else f"dokku config {scope}"
        self._drift.append(Finding(subject=subject, ok=False, detail=what, code=DRIFT))

    def _change(self, scope: str, have: Mapping[str, str], put: Mapping[str, str], taken: Iterable[str]) -> None:
        since = self._facts.version
        changed = dict.fromkeys((*put, *taken))
        if not changed:
            return
        self._touched[scope] = None
        self._values += len(changed)
        old = {key: have[key] for key in changed if key in have}
        if put:
            self._carried(scope, (*put.values(), *old.values()))
        undo = (*dokku.take(scope, [key for key in changed if key not in have]), *dokku.put(scope, old, since))
        calls = (*dokku.put(scope, put, since), *dokku.take(scope, taken))
        self._steps += [Step(do=(call,), undo=undo) for call in calls]
        self._lines += [f"--- dokku config {scope}", f"+++ dokku config {scope}"]
        for key in changed:
            if key in have:
                self._lines.append(f"-{key}={have[key]}")
            if key in put:
                self._lines.append(f"+{key}={put[key]}")

    def _carried(self, scope: str, values: Iterable[str]) -> None:
        """Raises Refused for a value that Dokku cannot be given, or not without showing a password."""
        for value in values:
            if self._facts.version < dokku.IMPORT and _USERINFO.search(value):
                shown = ".".join(map(str, self._facts.version))
                raise Refused(
                    f"Dokku {shown} takes values as words of a command, where a password can be read",
                    hint=f"Dokku {'.'.join(map(str, dokku.IMPORT))} or newer, or a proxy without credentials",
                )
            if any("\ud800" <= char <= "\udfff" for char in value):
                raise Refused("a value there could not be put back", where=scope, hint="change it in Dokku first")

    # ---- build arguments ---------------------------------------------------------------------------------------------

    def args(self, app: App, wanted: tuple[str, ...]) -> None:
        """One app's build arguments. One that somebody else added is never ours."""
        ours = self._facts.record.options.get(app.name, frozenset())
        more, less, kept = [], [], set()
        for name in dict.fromkeys((*wanted, *sorted(ours))):
            there = name in app.args
            if name in wanted and (name in ours or not there):
                kept.add(name)
            if name in wanted and not there:
                more.append(f"--build-arg {name}")
            elif name not in wanted and name in ours and there:
                less.append(f"--build-arg {name}")
        if kept:
            self._args_after[app.name] = frozenset(kept)
        if kept or ours:
            self._args_before[app.name] = frozenset(kept | ours)
        if not (more or less):
            return
        since = self._facts.version
        out, back = dokku.remove_options, dokku.add_options
        if more:
            self._steps.append(Step(do=back(app.name, more, since), undo=out(app.name, more, since)))
        if less:  # put back by taking them away first: they may be there again already, and must not be there twice
            undo = (*out(app.name, less, since), *back(app.name, less, since))
            self._steps.append(Step(do=out(app.name, less, since), undo=undo))
        for options, what in ((more, "is not there"), (less, "is there")):
            found = (f"{option} {what}" for option in options)
            subject = f"dokku build {app.name}"
            self._drift += [Finding(subject=subject, ok=False, detail=text, code=DRIFT) for text in found]
        self._touched[app.name] = None
        self._options += len(more) + len(less)
        title = f"dokku docker-options {app.name} build"
        self._lines += [f"--- {title}", f"+++ {title}"]
        self._lines += [*(f"-{option}" for option in less), *(f"+{option}" for option in more)]

    # ---- the whole ---------------------------------------------------------------------------------------------------

    def plan(self, desired: DokkuDesired) -> DokkuPlan:
        """The record goes first with what will be ours beside what is, and last as it then is: cut short in between,
        the next run still knows its own."""
        held = self._facts.record_bytes
        after = write_record(Record(config=self._after, options=self._args_after, names=desired.names))
        steps = self._steps
        if steps:
            before = write_record(Record(config=self._before, options=self._args_before, names=desired.names))
            steps = [
                *([Step(do=(Write(content=before),), undo=(Write(content=held),))] if before != held else []),
                *steps,
                *([Step(do=(Write(content=after),), undo=(Write(content=before),))] if after != before else []),
            ]
        elif after != held:
            steps = [Step(do=(Write(content=after),), undo=(Write(content=held),))]
        if desired.config:
            self._warnings += [_unknown(app) for app in self._facts.apps if not app.builder]
        return DokkuPlan(
            steps=tuple(steps),
            expect=tuple(pair for scope in self._touched for pair in self._facts.asked.get(scope, ())),
            drift=tuple(self._drift),
            warnings=tuple(self._warnings),
            overwritten=tuple(self._overwritten),
            lines=tuple(self._lines),
            values=self._values,
            options=self._options,
        )


def _unknown(app: App) -> str:
    return (
        f"it is not known how {printable(app.name)} is built; if from a Dockerfile: "
        f"dokku builder:set {printable(app.name)} selected dockerfile, then again"
    )
