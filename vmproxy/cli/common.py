"""What every command shares: options from the one table, resolved settings, and the loop over several VMs.

A command's file looks like this, and gets one line in ``vmproxy.cli.COMMANDS``::

    @command("vm", *SSH, "table", examples=("vmproxy detect-gateway --vm default",))
    def main(run: Run) -> int:
        '''Print this host's address as the VM sees it.'''
        ...
        run.output.result(text)
        return 0

The names are keys of ``vmproxy.config.OPTIONS``; the global options come by themselves. ``run.value("table")`` is the
parsed value or None; ``run.settings`` everything a story needs. Raise a VmproxyError to fail: the edge prints it.
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from vmproxy import config
from vmproxy.cli import hints
from vmproxy.cli.output import Output, may_ask, summary
from vmproxy.cli.params import click_option, said
from vmproxy.errors import Interrupted, NoProxy, RolledBack, UsageError, VmproxyError
from vmproxy.model import ProxyURL, Report, Settings
from vmproxy.options import CHANGE, GLOBAL, OPTIONS, SSH, WISH

if TYPE_CHECKING:
    from vmproxy.model import Event
    from vmproxy.stopping import Stop

__all__ = ["CHANGE", "SSH", "WISH", "Hands", "Run", "command", "each_vm", "failed", "group", "said"]

BROKEN_PIPE = 141  # 128 + SIGPIPE, as for other programs
COMMAND, OUTPUT = "vmproxy.command", "vmproxy.output"
"""What the edge finds in click's ``meta``: the command that runs, as it was typed, and how it says things."""
_FILE_LIMIT_BYTES = 1 << 20
_NAMES_SHOWN = 5
_GARBAGE_OBJECTS = 50_000  # the imports of a story are no garbage either; a long wait makes some, slowly


class Hands(NamedTuple):
    """What a story may use: how to tell its steps, how to ask, and when to stop."""

    progress: Callable[[Event], None]
    confirm: Callable[[str], bool] | None
    ask: Callable[[str], str | None] | None
    stop: Stop | None = None


class Run:
    """One run of one command: the values of its options, and how to say things.

    ``values`` are parsed values by option name, of the options that were given at all (command line, VMPROXY_…, file);
    ``given`` are those of the command line alone, raw.
    """

    def __init__(
        self,
        *,
        values: Mapping[str, Any],
        environ: Mapping[str, str],
        output: Output,
        given: Mapping[str, Any] | None = None,
    ) -> None:
        self.values = values
        self.given = given or {}
        self.environ = environ
        self.output = output

    def value(self, name: str, default: Any = None) -> Any:
        """The parsed value of an option, or ``default`` where nobody gave it."""
        return self.values.get(name, default)

    @cached_property
    def settings(self) -> Settings:
        """Everything a story needs."""
        return config.settings(self.values, environ=self.environ)

    @property
    def targets(self) -> tuple[str, ...]:
        """The VMs named by ``--vm``, in order, each once; empty where there is none."""
        return tuple(self.values.get("vm", ()))

    def need_targets(self) -> tuple[str, ...]:
        """The same, or UsageError."""
        if not self.targets:
            raise UsageError("no VM is named", hint='--vm NAME, or vm = ["NAME"] in vmproxy.toml')
        return self.targets

    @property
    def confirm(self) -> Callable[[str], bool] | None:
        """How to ask yes or no; None where nobody can answer."""
        return self.output.confirm if may_ask() and not self.output.json else None

    @property
    def ask(self) -> Callable[[str], str | None] | None:
        """How to ask for a password or a passphrase; None where nobody can answer."""
        return self.output.ask if may_ask() else None


def command(*names: str, examples: Sequence[str] = ()) -> Callable[[Callable[[Run], int]], click.Command]:
    """Make a command of a function that takes a :class:`Run` and gives an exit code. See the module's docstring."""

    def decorate(function: Callable[[Run], int]) -> click.Command:
        def callback(**_params: object) -> None:
            ctx = click.get_current_context()
            ctx.meta[COMMAND] = ctx.command_path
            run = make_run(names, before=ctx.obj or {}, after=said(ctx), environ=os.environ)
            gc.freeze()
            gc.set_threshold(_GARBAGE_OBJECTS)
            gc.enable()
            code = function(run)
            if run.output.unwritten and not code:
                raise unwritten(run.output.unwritten)
            ctx.exit(BROKEN_PIPE if run.output.broken and not code else code)

        return click.Command(
            name=None,
            callback=callback,
            params=[click_option(OPTIONS[name]) for name in dict.fromkeys((*names, *GLOBAL))],
            help=function.__doc__,
            epilog="\b\nExamples:\n" + "\n".join(f"  {line}" for line in examples) if examples else None,
            context_settings={"help_option_names": ["-h", "--help"]},
        )

    return decorate


def unwritten(why: str) -> UsageError:
    """The error of a result that could not be written; the work itself was done."""
    return UsageError(f"the result cannot be written: {why}", where="stdout", hint="make room there")


def group(text: str, commands: Mapping[str, click.Command]) -> click.Group:
    """A command of commands, for ``main`` of a command's file: each of ``commands`` is what :func:`command` makes.

    The global options are accepted before the inner command's name, too; its examples are the first of each.
    """

    def callback(**_params: object) -> None:
        ctx = click.get_current_context()
        before, after = ctx.obj or {}, said(ctx)
        both = {**before, **after}
        if "verbose" in before and "verbose" in after:
            both["verbose"] = before["verbose"] + after["verbose"]
        ctx.obj = both

    examples = []
    for name, inner in commands.items():
        inner.name = name
        examples += (inner.epilog or "").splitlines()[2:3]
    return click.Group(
        commands=dict(commands),
        callback=callback,
        params=[click_option(OPTIONS[name]) for name in GLOBAL],
        help=text,
        epilog="\n".join(["\b\nExamples:", *examples]) if examples else None,
        context_settings={"help_option_names": ["-h", "--help"]},
    )


def make_run(
    names: Sequence[str], *, before: Mapping[str, Any], after: Mapping[str, Any], environ: Mapping[str, str]
) -> Run:
    """Resolve the options of one run: those ``before`` the command give way to those ``after`` it.

    Every command resolves the wish and the ssh options too: a proxy in vmproxy.toml counts for ``status`` as well.
    Raises UsageError.
    """
    given = {**before, **after}
    if "verbose" in before and "verbose" in after:
        given["verbose"] = before["verbose"] + after["verbose"]
    start = config.resolve(("config",), given=given, environ=environ, file={})
    path, file = read_file(start.get("config"), environ)
    general = config.resolve(GLOBAL, given=given, environ=environ, file=file, path=path)
    if general.get("quiet") and general.get("verbose"):
        raise UsageError("--quiet and --verbose exclude each other")
    output = Output(
        json=general.get("json", False),
        verbosity=-1 if general.get("quiet") else general.get("verbose", 0),
        color=general.get("color", "auto"),
        debug=general.get("debug", False),
    )
    if context := click.get_current_context(silent=True):
        context.meta[OUTPUT] = output  # before the other options: one of them may be wrong
    every = tuple(dict.fromkeys((*names, *WISH, *SSH, "dir")))
    values = {**general, **config.resolve(every, given=given, environ=environ, file=file, path=path)}
    output.secrets = secrets_of(values, environ)
    if unknown := config.unknown_variables(environ):
        output.warn(unknown, beside_json=True)
    return Run(values=values, environ=environ, output=output, given=given)


def secrets_of(values: Mapping[str, Any], environ: Mapping[str, str]) -> tuple[ProxyURL | str, ...]:
    """What must not be seen in a traceback: every proxy and index known here, and the environment's passwords."""
    every = (*values.values(), *config.host_environment(environ).values())
    if "@" in (index := values.get("pip-index", "")):
        from vmproxy import pip

        every = (*every, pip.server(index))
    words = (environ.get("VMPROXY_SSH_PASSWORD", ""), environ.get("VMPROXY_SSH_PASSPHRASE", ""))
    return (*(value for value in every if isinstance(value, ProxyURL)), *filter(None, words))


def read_file(path: str | None, environ: Mapping[str, str]) -> tuple[str, dict[str, object]]:
    """The settings file and its raw values: ``path``, which must exist, else the usual one, which may not.

    Never the current directory's: a cloned repository must not choose a proxy. Raises UsageError.
    """
    name = path or default_path(environ)
    if not path and not os.path.exists(name):
        return name, {}
    try:
        with open(name, "rb") as stream:
            data = stream.read(_FILE_LIMIT_BYTES)
        # Windows' editors may begin a file with a byte order mark, which TOML does not know.
        text = data.decode("utf-8-sig")
    except OSError as error:
        raise UsageError(f"cannot read the settings: {error.strerror}", where=name) from None
    except UnicodeDecodeError:
        raise UsageError("this is not UTF-8", where=name) from None
    return name, config.parse_file(text, path=name)


def default_path(environ: Mapping[str, str]) -> str:
    """vmproxy.toml in the platform's user config directory. Raises nothing; the file need not exist."""
    if os.name == "posix" and sys.platform != "darwin":
        # What platformdirs does on Linux and its kin, without its import: half of what --help may cost.
        base = environ.get("XDG_CONFIG_HOME", "").strip() or os.path.expanduser("~/.config")
        return os.path.join(base, "vmproxy", "vmproxy.toml")
    import platformdirs

    return os.path.join(platformdirs.user_config_dir("vmproxy", appauthor=False), "vmproxy.toml")


def failed(target: str, error: VmproxyError | Interrupted) -> Report:
    """The report of a VM whose story ended with an error."""
    changed = error.changed if isinstance(error, Interrupted) else isinstance(error, RolledBack) and not error.complete
    return Report(
        target=target,
        ok=False,
        exit=error.exit,
        code=error.code,
        changed=changed,
        rolled_back=error.rolled_back,
        message=error.what if isinstance(error, Interrupted) else str(error),
        hint=_hint(error),
    )


def _hint(error: VmproxyError | Interrupted) -> str:
    """The error's hint; where no proxy answers, first those of this host that could be used as they are."""
    if isinstance(error, NoProxy):
        from vmproxy import nearby

        return "; or ".join(filter(None, (nearby.hint(), error.hint)))
    return error.hint


def each_vm(run: Run, story: Callable[[str, Hands], Report], *, diff: bool = True) -> int:
    """Tell a story for each ``--vm``, ``--jobs`` at a time, on after a failed one; the highest exit code of all.

    ``diff`` is whether a reader wants to see the diff without ``-v``.

    A signal ends it: what the stories that run put back is put back, the VMs after them are not touched.
    """
    targets = run.need_targets()
    hands = Hands(progress=run.output.progress, confirm=run.confirm, ask=run.ask)
    reports: dict[int, Report] = {}
    said_again = hints.again(run.given)
    context = click.get_current_context(silent=True)

    def tell(target: str, hands: Hands) -> tuple[Report, BaseException | None]:
        try:
            return story(target, hands), None
        except (VmproxyError, Interrupted) as error:
            return failed(hints.without_password(target), error), error
        except Exception as error:
            from vmproxy.cli.crash import crashed

            return crashed(target, error, run.output.secrets), error

    jobs = min(run.value("jobs", 1), len(targets))
    if jobs > 1:
        from vmproxy.cli.sidebyside import each

        told = each(targets, tell, hands, jobs=jobs, output=run.output)
    else:
        told = ((place, tell(target, hands)) for place, target in enumerate(targets))
    command = context.command_path if context else "vmproxy"
    for place, (told_report, cause) in told:
        report = hints.complete(told_report, said=said_again, command=command)
        reports[place] = report
        run.output.report(report, diff=diff, error=cause)
        if jobs == 1 and isinstance(cause, Interrupted):
            break
    in_order = [reports[place] for place in sorted(reports)]
    if run.output.json:
        run.output.document(summary(in_order))
    elif len(targets) > 1:
        run.output.note(_in_all(targets, in_order))
    return max(report.exit for report in in_order)


def _in_all(targets: Sequence[str], reports: Sequence[Report]) -> str:
    """One line about several VMs: how many are well, how many were changed, and which are not well."""
    bad = [report.target for report in reports if report.exit]
    changed = sum(report.changed for report in reports)
    parts = [f"{len(reports) - len(bad)} of {len(targets)} VMs well"]
    if changed:
        parts.append(f"{changed} changed")
    if bad:
        parts.append(f"not well: {', '.join(bad[:_NAMES_SHOWN])}{' and more' if len(bad) > _NAMES_SHOWN else ''}")
    if len(reports) < len(targets):
        parts.append(f"{len(targets) - len(reports)} not begun")
    return "; ".join(parts)
