"""Hints that can be typed as they stand: with the VM and the options that were said, without credentials. PURE."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from vmproxy.errors import Refused, UsageError
from vmproxy.model import Report
from vmproxy.options import OPTIONS, SSH, WISH
from vmproxy.providers import NAMES

# A command with the options that directly follow it.
_COMMAND = re.compile(r"\bvmproxy (apply|remove|status|verify)\b((?: --[a-z][a-z0-9-]*(?: [\w./:=@-]*[\w/])?)*)")
_USERINFO = re.compile(r"(?:(?<=://)|\A)[^\s/]*@")


def again(given: Mapping[str, Any]) -> dict[str, str]:
    """The options of the wish and of the way in, of those in ``given`` (raw, by name), each as words for a shell.

    A password becomes the word PASSWORD: who types the hint knows it, and nobody else need.
    """
    said: dict[str, str] = {}
    for name in (*WISH, *SSH):
        if name not in given:
            continue
        option, value = OPTIONS[name], given[name]
        if isinstance(value, bool):
            said[name] = f"--{name if value else option.off}"
            continue
        words = []
        for item in value if isinstance(value, list | tuple) else (value,):
            text = str(item)
            if option.kind in ("proxy", "index"):
                text = _USERINFO.sub("USER:PASSWORD@", text)
            words += [f"--{name}", shlex.quote(text)]
        said[name] = " ".join(words)
    return said


def without_password(target: str) -> str:
    """A VM's name as a user wrote it, without what may be a password: ``ssh://user:password@host`` is refused, and the
    refusal names the VM. Paths stay, and so does ``ssh:user@host``."""
    kind, _, rest = target.partition(":")
    head, at, tail = rest.rpartition("@")
    scheme, slashes, user = head.partition("//") if "//" in head else ("", "", head)
    if not at or kind in ("rootfs", "initrd", "console") or (kind in NAMES and ":" not in user):
        return target
    return f"{kind}:{scheme}{slashes}***@{tail}" if kind in NAMES or slashes else f"***@{tail}"


def whole(hint: str, target: str, said: Mapping[str, str]) -> str:
    """``hint`` with the VM and the options ``said`` behind each of our commands in it, but those it names itself."""

    def command(match: re.Match[str]) -> str:
        name, options = match[1], match[2]
        own = options.split()
        vm = "" if "--vm" in own else f" --vm {shlex.quote(target)}"
        more = "".join(f" {words}" for option, words in said.items() if f"--{option}" not in own)
        return f"vmproxy {name}{vm}{options}{more}"

    return _COMMAND.sub(command, hint) if hint else ""


def complete(report: Report, *, said: Mapping[str, str], command: str) -> Report:
    """A VM's report with its hints whole. ``command`` is the one that ran, as it was typed."""
    if command == "vmproxy status" and report.hint == Refused.usual_hint:
        report = replace(report, hint="run again with --debug")  # it has just failed to show how the VM stands
    hint = f"{command} --help" if report.hint == UsageError.usual_hint else whole(report.hint, report.target, said)
    if hint == report.hint and not any(one.hint for one in report.findings):
        return report
    findings = tuple(replace(one, hint=whole(one.hint, report.target, said)) for one in report.findings)
    return replace(report, hint=hint, findings=findings)
