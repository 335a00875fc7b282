"""Proxy variables as the text that starts containers with them. PURE."""

from __future__ import annotations

import json
from collections.abc import Mapping

from vmproxy import quoting
from vmproxy.errors import UsageError

FORMATS = ("sh", "json", "dotenv")


def render(variables: Mapping[str, str], fmt: str) -> str:
    """``variables``, in their order, as text with a final newline.

    ``sh``: lines for ``eval`` in any POSIX shell. ``json``: one object. ``dotenv``: a file for
    ``docker run --env-file`` and Compose. Values hold credentials where the proxy has any. Raises UsageError for an
    unknown format, for a name that is no variable's, and for a value that the format cannot carry.
    """
    if fmt == "sh":
        return quoting.sh_exports(variables).decode()
    if fmt == "json":
        checked = {quoting.variable_name(name): quoting.value_text(value) for name, value in variables.items()}
        return json.dumps(checked, indent=2, ensure_ascii=True) + "\n"
    if fmt == "dotenv":
        return "".join(f"{quoting.dotenv(name, value)}\n" for name, value in variables.items())
    raise UsageError("there is no such format", hint=f"one of: {', '.join(FORMATS)}")
