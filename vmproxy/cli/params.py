"""The options of the table as click knows them. Light: ``vmproxy --help`` needs no more than this."""

from __future__ import annotations

from typing import Any

import click
from click.core import ParameterSource

from vmproxy.options import OPTIONS, Option


def click_option(option: Option) -> click.Option:
    """The click option of one entry of the table. Values stay raw: ``config.convert`` parses all sources alike."""
    text = option.help
    names = [option.key, *option.flags, f"--{option.name}"]
    if option.kind == "flag":
        if option.off:
            names[-1] = f"--{option.name}/--{option.off}"
        return click.Option(names, is_flag=True, default=None, help=text)
    if option.kind == "count":
        return click.Option(names, count=True, default=0, help=text)
    multiple = option.kind in ("list", "paths", "no-proxy", "names")
    kind: click.ParamType[Any] = click.STRING
    if option.kind == "choice":
        kind = click.Choice(option.choices)
    elif option.kind in ("path", "paths"):
        kind = click.Path()
    complete = {"vm": _complete_vm, "tools": _complete_tools, "guest": _complete_guest}.get(option.name)
    return click.Option(
        names,
        type=kind,
        multiple=multiple,
        default=None,
        metavar=option.metavar or None,
        help=text,
        shell_complete=complete,
    )


def _complete_vm(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[str]:
    from vmproxy.cli.completion import vm_names

    return vm_names(incomplete)


def _complete_tools(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[str]:
    from vmproxy.tools import NAMES, NONE

    before, comma, last = incomplete.rpartition(",")
    names = NAMES if comma else (*NAMES, NONE)
    return [f"{before}{comma}{name}" for name in names if name.startswith(last) and name not in before.split(",")]


def _complete_guest(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[str]:
    from vmproxy.guests import NAMES

    return [name for name in NAMES if name.startswith(incomplete)]


def said(ctx: click.Context) -> dict[str, Any]:
    """Of a context's parameters those that stood on the command line, raw, by option name."""
    return {
        option.name: ctx.params[option.key]
        for option in OPTIONS.values()
        if option.key in ctx.params and ctx.get_parameter_source(option.key) is ParameterSource.COMMANDLINE
    }
