"""Proxy variables as the text that starts containers, builds and programs with them. PURE.

Each format is a function from variables to text; :data:`FORMATS` lists them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from vmproxy import quoting
from vmproxy.containers.arguments import build_arguments, by_name, run_arguments
from vmproxy.containers.files import compose, dockerfile, dotenv, systemd
from vmproxy.containers.shells import fish, powershell, sh
from vmproxy.errors import UsageError

__all__ = ("FORMATS", "by_name", "render")


def _json(variables: Mapping[str, str]) -> str:
    """One object, in ASCII."""
    import json

    return json.dumps(dict(variables), indent=2, ensure_ascii=True) + "\n"


_RENDER: dict[str, Callable[[Mapping[str, str]], str]] = {
    "sh": sh,
    "fish": fish,
    "powershell": powershell,
    "dotenv": dotenv,
    "json": _json,
    "docker-run": run_arguments,
    "docker-build": build_arguments,
    "compose": compose,
    "dockerfile": dockerfile,
    "systemd": systemd,
}

FORMATS = tuple(_RENDER)
"""The names of the formats; the help of ``--format`` lists them in this order."""


def render(variables: Mapping[str, str], fmt: str) -> str:
    """``variables``, in their order, as text with a final newline; nothing for no variables (json: ``{}``).

    Values hold credentials where the proxy has any, but in ``docker-run`` and ``docker-build``, which then have the
    name alone (:func:`by_name` lists those). Raises UsageError, and never shows a value: for an unknown format, for a
    name that is no variable's, for a value that the format cannot carry.
    """
    if fmt not in _RENDER:
        raise UsageError("there is no such format", hint=f"one of: {', '.join(FORMATS)}")
    for name, value in variables.items():
        quoting.value_text(value, what=f"the value of {quoting.variable_name(name)}")
    return _RENDER[fmt](variables) if variables or fmt == "json" else ""
