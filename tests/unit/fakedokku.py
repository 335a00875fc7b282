"""Dokku in memory, as far as vmproxy asks and tells it; it answers and refuses as ``tests/lab/stub/dokku`` does."""

from __future__ import annotations

import base64
import copy
import json
import re
from collections.abc import Callable, Iterable, Mapping

from vmproxy import dokkufacts
from vmproxy.dokkucalls import GLOBAL, Action, Answer, Call, ReadRecord, Step, Write
from vmproxy.dokkufacts import DokkuFacts

FAMILY = re.compile(r"((https?|ftp|all|no)_proxy|pip_(index_url|trusted_host))=", re.IGNORECASE)
"""What dokku.sh lets out of the VM."""


class Refusal(Exception):
    """Dokku says no."""


class FakeDokku:
    """``builders`` are the apps and what each is built by, "" for never built; ``config`` variables by scope;
    ``options`` build options by app. ``words`` collects every command line."""

    def __init__(
        self,
        builders: Mapping[str, str] | None = None,
        *,
        config: Mapping[str, Mapping[str, str]] | None = None,
        options: Mapping[str, Iterable[str]] | None = None,
        version: str = "0.38.27",
    ) -> None:
        self.builders = dict(builders or {})
        self.config = {scope: dict(values) for scope, values in (config or {}).items()}
        self.options = {app: sorted(lines) for app, lines in (options or {}).items()}
        self.version = version
        self.record: bytes | None = None
        self.words: list[tuple[str, ...]] = []

    def state(self) -> object:
        """All that it holds; a scope without variables and none are the same."""
        config = {scope: values for scope, values in self.config.items() if values}
        options = {app: lines for app, lines in self.options.items() if lines}
        return copy.deepcopy((config, options, self.record))

    def look(self) -> DokkuFacts:
        """The facts of now."""
        first = self.ask(dokkufacts.first_questions())
        second = self.ask(dokkufacts.second_questions(first))
        return dokkufacts.read(first, second)

    def ask(self, actions: Iterable[Action]) -> dokkufacts.Asked:
        """Each action with its answer."""
        out = []
        for action in actions:
            try:
                answer = Answer(status=0, stdout=self.run(action))
            except Refusal as error:
                answer = Answer(status=1, complaint=f" !     {error}\n".encode())
            out.append((action, answer))
        return tuple(out)

    def carry_out(self, steps: Iterable[Step], *, cut: int = 10**9) -> None:
        """The steps, as dokku.sh does them, up to a cut; nothing is put back."""
        for step in tuple(steps)[:cut]:
            for action in step.do:
                self.run(action)

    def put_back(self, steps: Iterable[Step]) -> None:
        """The undo of these steps, the last first."""
        for step in reversed(tuple(steps)):
            for action in step.undo:
                self.run(action)

    def run(self, action: Action) -> bytes:
        """One action. Raises Refusal."""
        if isinstance(action, Write):
            self.record = action.content
            return b""
        if isinstance(action, ReadRecord):
            if self.record is None:
                raise Refusal("no record")
            return self.record
        self.words.append(action.words)
        words = [word for word in action.words if word not in ("--quiet", "--no-restart")]
        command: Callable[[list[str], Call], str] = getattr(self, "_" + re.sub(r"[:-]", "_", words[0]))
        return command(words[1:], action).encode("utf-8", "surrogateescape")

    # ---- commands ----------------------------------------------------------------------------------------------------

    def _version(self, _words: list[str], _call: Call) -> str:
        return f"dokku version {self.version}\n"

    def _apps_list(self, _words: list[str], _call: Call) -> str:
        return "".join(f"{name}\n" for name in sorted(self.builders))

    def _config_export(self, words: list[str], call: Call) -> str:
        assert words[:2] == ["--format", "envfile"]
        lines = []
        for name, value in sorted(self.config.get(self._scope(words[2]), {}).items()):
            escaped = "".join({"\n": "\\n", "\r": "\\r"}.get(c, f"\\{c}") if c in '\\\n\r"!$`' else c for c in value)
            lines.append(f"{name}={int(value)}" if re.fullmatch("[0-9]+", value) else f'{name}="{escaped}"')
        return "\n".join(line for line in lines if not call.filtered or FAMILY.match(line)) + "\n"

    def _config_import(self, words: list[str], call: Call) -> str:
        assert words[:2] == ["--format", "json"]
        assert words[3] == "-"
        self.config.setdefault(self._scope(words[2]), {}).update(json.loads(call.stdin))
        return ""

    def _config_set(self, words: list[str], _call: Call) -> str:
        assert words[0] == "--encoded"
        pairs = (pair.partition("=") for pair in words[2:])
        new = {name: base64.b64decode(value, validate=True).decode() for name, _equals, value in pairs}
        self.config.setdefault(self._scope(words[1]), {}).update(new)
        return ""

    def _config_unset(self, words: list[str], _call: Call) -> str:
        for key in words[1:]:
            self.config.get(self._scope(words[0]), {}).pop(key, None)
        return ""

    def _builder_report(self, words: list[str], _call: Call) -> str:
        builder = self.builders[self._scope(words[0])]
        return f"       Builder computed selected:     \n       Builder detected:              {builder}\n"

    def _docker_options_report(self, words: list[str], _call: Call) -> str:
        return f"       Docker options build:          {' '.join(self.options.get(self._scope(words[0]), []))}\n"

    def _docker_options_add(self, words: list[str], _call: Call) -> str:
        app, phase, *more = words
        assert phase == "build"
        assert len(more) == 1 or self.version >= "0.38"
        self.options[self._scope(app)] = sorted([*self.options.get(app, []), *more])
        return ""

    def _docker_options_remove(self, words: list[str], _call: Call) -> str:
        app, phase, *less = words
        assert phase == "build"
        assert len(less) == 1 or self.version >= "0.38"
        self.options[app] = [line for line in self.options.get(self._scope(app), []) if line not in less]
        return ""

    def _scope(self, name: str) -> str:
        if name != GLOBAL and name not in self.builders:
            raise Refusal(f"App {name} does not exist")
        return name
