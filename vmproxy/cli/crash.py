"""A bug of ours: one line for the user, and a file that only the user can read, without secrets, to send to us."""

from __future__ import annotations

import os
import platform
import re
import sys
import tempfile
import traceback
from collections.abc import Iterable, Mapping
from typing import Any

from vmproxy import __version__
from vmproxy.model import ProxyURL, Report

EXIT = 70
CODE = "E_BUG"
_USERINFO = re.compile(r"(?<=://)[^\s/@'\"]*(?:@[^\s/@'\"]*)*@")


def secret_forms(values: Iterable[object]) -> list[str]:
    """Every way in which the passwords among ``values`` may stand in a text, longest first."""
    from vmproxy.preview import secrets

    proxies = [value for value in values if isinstance(value, ProxyURL)]
    forms = {*secrets(*proxies), *(repr(form)[1:-1] for form in secrets(*proxies))}
    return sorted(forms | {form.rstrip("=") for form in forms}, key=len, reverse=True)


def redact(text: str, values: Iterable[object] = ()) -> str:
    """``text`` with user info of URLs and every known password masked."""
    for form in secret_forms(values):
        text = text.replace(form, "***")
    return _USERINFO.sub("***@", text)


def write_report(error: BaseException, values: Mapping[str, Any]) -> str:
    """Write the traceback to a new file of mode 0600, redacted; its path, "" where it could not be written."""
    lines = [
        f"vmproxy {__version__}, Python {platform.python_version()}, {platform.platform()}",
        f"options given: {', '.join(sorted(values))}",
        "",
        "".join(traceback.format_exception(error)),
    ]
    try:
        handle, path = tempfile.mkstemp(prefix="vmproxy-report-", suffix=".txt")
        with os.fdopen(handle, "w", encoding="utf-8", errors="backslashreplace") as stream:
            stream.write(redact("\n".join(lines), values.values()))
    except OSError:
        return ""
    return path


def crashed(target: str, error: Exception, values: Mapping[str, Any]) -> Report:
    """The report of a VM (or, with ``target`` "", of the command) that ended with a bug of ours."""
    what = redact(f"{type(error).__name__}: {error}".splitlines()[0], values.values())
    path = write_report(error, values)
    where = f" ({path})" if path else ""
    room = 180 - len(where)
    what = what if len(what) <= room - 20 else what[: room - 21] + "…"
    return Report(
        target=target,
        ok=False,
        exit=EXIT,
        code=CODE,
        message=f"this is a bug: {what}{where}",
        hint="please report it with that file; --debug shows the traceback" if path else "--debug shows the traceback",
    )


def debug_wanted(argv: Iterable[str]) -> bool:
    """Whether ``--debug`` stands on the command line, for errors before the options are read."""
    return "--debug" in argv or os.environ.get("VMPROXY_DEBUG", "").lower() in ("1", "true", "yes", "on")


def silence_stdout() -> None:
    """Point stdout at nothing, so that the interpreter's last flush has nobody to fail against."""
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, sys.stdout.fileno())
    os.close(nothing)
