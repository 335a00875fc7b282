"""The one place where errors become a line and an exit code."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from vmproxy import __version__
from vmproxy.cli import COMMANDS
from vmproxy.cli.params import click_option, said
from vmproxy.cli.signals import as_interruption
from vmproxy.errors import Interrupted, Refused, UsageError, VmproxyError
from vmproxy.options import GLOBAL, OPTIONS

if TYPE_CHECKING:
    from vmproxy.model import Report

_COMPLETE = "_VMPROXY_COMPLETE"
_WITHOUT_VM = (["docker-config"], ["cache"])

_HELP = """Put a container VM behind a proxy that its host can reach, and take it back byte for byte.

Every option can also be set as VMPROXY_… in the environment (--listen-port is VMPROXY_LISTEN_PORT) and in vmproxy.toml.

\b
TARGET names a VM:
  NAME, PROVIDER:NAME      a VM that a provider on this host knows
  ssh://[user@]host[:port], ssh:ALIAS
  console:[PATH]           by its serial line, a terminal or a unix socket
  docker:[CONTEXT]         the VM of a Docker engine, by its API
  rootfs:DIR, initrd:FILE  its files only, in a directory or an initramfs image
  local                    the VM that vmproxy itself runs in

\b
Exit codes: 0 done or already so; 1 drift or a failed leg; 2 usage; 3 a decision is needed;
4 VM not reached or not trusted; 5 not permitted; 6 refused, nothing changed;
7 failed and rolled back; 8 busy; 9 lost contact; 70 bug; 128+n signal.
"""

_EPILOG = """\b
Examples:
  vmproxy apply --vm default --proxy http://127.0.0.1:8123 --dry-run
  vmproxy apply --vm default
  vmproxy status --vm default
  vmproxy remove --vm default
"""


class _Lazy(click.Group):
    """The commands by name; a command's module is imported when it is used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        import importlib

        found = importlib.import_module(COMMANDS[cmd_name][0]).main
        assert isinstance(found, click.Command)  # noqa: S101  (a promise of our own table)
        found.name = cmd_name
        return found

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            import difflib

            near = difflib.get_close_matches(args[0], COMMANDS, n=1)
            hint = f"did you mean {near[0]}?" if near else "vmproxy --help lists the commands"
            raise UsageError(f"there is no command {args[0]!r}", hint=hint)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The list from the table: ``--help`` imports no command."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_module, text) in COMMANDS.items()])


def make_group() -> click.Group:
    """The ``vmproxy`` command with its global options."""

    def callback(**_params: object) -> None:
        ctx = click.get_current_context()
        ctx.obj = said(ctx)

    def version(ctx: click.Context, _param: click.Parameter, value: bool) -> None:
        if value and not ctx.resilient_parsing:
            click.echo(f"vmproxy {__version__}")
            ctx.exit()

    return _Lazy(
        name="vmproxy",
        callback=callback,
        no_args_is_help=True,
        params=[
            *(click_option(OPTIONS[name]) for name in GLOBAL),
            click.Option(
                ["--version"],
                is_flag=True,
                is_eager=True,
                expose_value=False,
                callback=version,
                help="Print the version.",
            ),
        ],
        help=_HELP,
        epilog=_EPILOG,
        context_settings={"help_option_names": ["-h", "--help"]},
    )


def run(argv: list[str]) -> int:
    """Run one command line; the exit code. Everything that can go wrong is said here and nowhere else."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by whoever started us
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # a terminal without UTF-8 must not turn a result into a bug
    group = make_group()
    if os.environ.get(_COMPLETE):
        from click.shell_completion import shell_complete

        return shell_complete(group, {}, "vmproxy", _COMPLETE, os.environ[_COMPLETE])
    try:
        with as_interruption():
            code = _invoke(group, argv)
        if sys.stdout is not None:
            sys.stdout.flush()
    except BrokenPipeError:
        from vmproxy.cli.common import BROKEN_PIPE
        from vmproxy.cli.output import silence

        silence(sys.stdout)
        return BROKEN_PIPE
    except OSError as error:  # of the flush: a full disk behind > FILE
        return _unwritten(argv, error)
    return code


def _unwritten(argv: list[str], error: OSError) -> int:
    from vmproxy.cli.common import unwritten
    from vmproxy.cli.output import silence

    silence(sys.stdout)
    return _fail(argv, unwritten(error.strerror or str(error)))


def _invoke(group: click.Group, argv: list[str]) -> int:
    meta: Mapping[str, Any] = {}
    try:
        with group.make_context("vmproxy", list(argv)) as ctx:
            meta = ctx.meta
            group.invoke(ctx)
        return 0
    except click.exceptions.Exit as end:
        return end.exit_code
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        return error.exit_code
    except click.exceptions.Abort:
        return _fail(argv, Interrupted(2))
    except click.UsageError as error:
        hint = f"{error.ctx.command_path} --help" if error.ctx else ""
        return _fail(argv, UsageError(error.format_message().rstrip("."), hint=hint))
    except click.ClickException as error:
        return _fail(argv, UsageError(error.format_message()))
    except (VmproxyError, Interrupted) as error:
        return _fail(argv, error, meta=meta)
    except BrokenPipeError:
        raise
    except KeyboardInterrupt:
        return _fail(argv, Interrupted(2), meta=meta)
    except Exception as error:
        if isinstance(error, OSError) and error.errno == errno.ENOSPC and error.filename is None:
            return _unwritten(argv, error)  # --help and --version, which click prints
        from vmproxy.cli.common import OUTPUT
        from vmproxy.cli.crash import crashed

        output = meta.get(OUTPUT)
        return _fail(argv, error, meta=meta, report=crashed("", error, output.secrets if output else ()))


def _fail(
    argv: list[str], error: BaseException, *, meta: Mapping[str, Any] | None = None, report: Report | None = None
) -> int:
    """Say an error that ended the whole command: as its options have it, where they were read (``meta``)."""
    from dataclasses import replace

    from vmproxy.cli.common import COMMAND, OUTPUT, failed
    from vmproxy.cli.crash import debug_wanted
    from vmproxy.cli.output import Output, summary

    if report is None:
        assert isinstance(error, VmproxyError | Interrupted)  # noqa: S101
        report = failed("", error)
    words = argv[: argv.index("--")] if "--" in argv else argv
    meta = meta or {}
    output = meta.get(OUTPUT)
    if output is None:
        as_json = "--json" in words or os.environ.get("VMPROXY_JSON", "").lower() in ("1", "true", "yes", "on")
        quiet = any(word in ("-q", "--quiet") for word in words)
        output = Output(json=as_json, verbosity=-1 if quiet else 0, debug=debug_wanted(words))
    if report.hint == UsageError.usual_hint:
        name = next((f"vmproxy {word}" for word in words if word in COMMANDS), "vmproxy")
        report = replace(report, hint=f"{meta.get(COMMAND, name)} --help")
    elif report.hint == Refused.usual_hint and (words := str(meta.get(COMMAND, "")).split())[1:2] in _WITHOUT_VM:
        # How a VM stands tells nothing of a file or a cache of this host, and status has just failed to tell it.
        again = "run again with --debug" if words[-1] == "status" else f"vmproxy {words[1]} status shows how it stands"
        report = replace(report, hint=again)
    output.error(report.message, hint=report.hint, error=error)
    if output.json:
        output.document(summary([report]))
    return report.exit
