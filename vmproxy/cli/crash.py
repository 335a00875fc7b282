"""A bug of ours: one line for the user, and a file that only the user can read, without secrets, to send to us."""

from __future__ import annotations

import os
import platform
import re
import tempfile
import traceback
from collections.abc import Iterable

from vmproxy import __version__
from vmproxy.errors import UsageError
from vmproxy.model import ProxyURL, Report

EXIT = 70
CODE = "E_BUG"
_SHORTEST = 4
_USERINFO = re.compile(r"(?<=://)[^\s/@'\"]*(?:@[^\s/@'\"]*)*@")


def redact(text: str, secrets: Iterable[ProxyURL | str] = ()) -> str:
    """``text`` with user info of URLs and every spelling of the ``secrets`` masked."""
    from vmproxy.preview import secrets as spellings

    secrets = tuple(secrets)
    forms = {*spellings(*(one for one in secrets if isinstance(one, ProxyURL)))}
    forms |= {one for one in secrets if isinstance(one, str) and len(one) >= _SHORTEST}
    forms |= {repr(form)[1:-1] for form in forms} | {form.rstrip("=") for form in forms}
    for form in sorted(forms - {""}, key=len, reverse=True):
        text = text.replace(form, "***")
    return _USERINFO.sub("***@", text)


def write_report(error: BaseException, secrets: Iterable[ProxyURL | str]) -> str:
    """Write the traceback to a new file of mode 0600, redacted; its path, "" where it could not be written."""
    lines = [
        f"vmproxy {__version__}, Python {platform.python_version()}, {platform.platform()}",
        "",
        "".join(traceback.format_exception(error)),
    ]
    try:
        handle, path = tempfile.mkstemp(prefix="vmproxy-report-", suffix=".txt")
        with os.fdopen(handle, "w", encoding="utf-8", errors="backslashreplace") as stream:
            stream.write(redact("\n".join(lines), secrets))
    except OSError:
        return ""
    return path


def crashed(target: str, error: Exception, secrets: Iterable[ProxyURL | str]) -> Report:
    """The report of a VM (or, with ``target`` "", of the command) that ended with a bug of ours.

    That the current directory was deleted is none: whatever takes a relative path can meet it.
    """
    if isinstance(error, FileNotFoundError) and error.filename is None and _is_nowhere():
        return Report(
            target=target,
            ok=False,
            exit=UsageError.exit,
            code=UsageError.code,
            message="the current directory is not there any more",
            hint="cd to another one",
        )
    what = redact(f"{type(error).__name__}: {error}", secrets).splitlines()[0]
    path = write_report(error, secrets)
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


def _is_nowhere() -> bool:
    """Whether the current directory was deleted."""
    try:
        os.getcwd()
    except FileNotFoundError:
        return True
    return False


def debug_wanted(argv: Iterable[str]) -> bool:
    """Whether ``--debug`` stands on the command line, for errors before the options are read."""
    return "--debug" in argv or os.environ.get("VMPROXY_DEBUG", "").lower() in ("1", "true", "yes", "on")
