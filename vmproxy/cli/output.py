"""What the user sees: results on stdout, everything else on stderr, one JSON object with ``--json``."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Mapping
from typing import IO, Any

import click

from vmproxy.model import Event, Finding, ProxyURL, Report, printable

_LINE_LIMIT = 200
_HINT_LIMIT = 1000
"""A hint is a line to be typed: half of one would be none."""
_FINDINGS = (1, 3)  # drift, and done with a restart pending: results, unlike an error that was raised


def is_terminal(stream: IO[str] | None) -> bool:
    """Whether a stream is a terminal; a closed one is none."""
    try:
        return stream is not None and stream.isatty()
    except ValueError:
        return False


def _columns(stream: IO[str]) -> int:
    """How wide the terminal is; a line that goes on in the next one could not be taken off again."""
    try:
        return os.get_terminal_size(stream.fileno()).columns or 80  # a serial line says 0
    except (OSError, ValueError):
        return 80


def silence(stream: IO[str]) -> None:
    """Point a stream at nothing, so that the interpreter's last flush has nobody to fail against."""
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, stream.fileno())
    os.close(nothing)


def may_ask() -> bool:
    """Whether a question can be asked: somebody sits at stdin and sees stderr."""
    return is_terminal(sys.stdin) and is_terminal(sys.stderr)


def wants_color(choice: str, stream: IO[str] | None, environ: Mapping[str, str] | None = None) -> bool:
    """Whether to colour what goes to ``stream``; ``auto`` follows NO_COLOR and TERM=dumb."""
    env = os.environ if environ is None else environ
    if choice in ("always", "never"):
        return choice == "always"
    return is_terminal(stream) and not env.get("NO_COLOR") and env.get("TERM") != "dumb"


class Output:
    """How to say things. ``verbosity`` is -1 for ``-q``, 0, or the number of ``-v``.

    ``secrets`` are masked in tracebacks: proxies with credentials, and passwords.
    """

    def __init__(
        self,
        *,
        json: bool = False,
        verbosity: int = 0,
        color: str = "auto",
        debug: bool = False,
        secrets: Iterable[ProxyURL | str] = (),
    ) -> None:
        self.secrets = secrets
        self.json = json
        self.verbosity = verbosity
        self.color = color
        self.debug = debug
        self._shown = 0
        self.ahead = ""
        """What stands before a progress line that is written over: how far several VMs are."""
        self.broken = False
        self.unwritten = ""

    @property
    def quiet(self) -> bool:
        """Whether ``-q`` was given."""
        return self.verbosity < 0

    def _say(self, text: str | bytes, *, err: bool) -> None:
        self.clear_progress()
        self._write(text, err=err)

    def _write(self, text: str | bytes, *, err: bool, newline: bool = True) -> None:
        """Nobody may be reading any more (``| head``), or the disk be full: then the rest is not said, and what is
        under way goes on. ``broken`` and ``unwritten`` remember it for the exit code."""
        stream = sys.stderr if err else sys.stdout
        try:
            click.echo(text, err=err, nl=newline, color=wants_color(self.color, stream))
        except BrokenPipeError:
            silence(stream)
            self.broken = True
        except OSError as error:
            silence(stream)
            self.unwritten = error.strerror or "unknown reason"

    def result(self, text: str) -> None:
        """One result for stdout."""
        self._say(text, err=False)

    def exact(self, text: str) -> None:
        """A result that is a file or a program's input: UTF-8 and LF on every platform, unless a terminal shows it."""
        self._say(text if is_terminal(sys.stdout) else text.encode(), err=False)

    def document(self, value: object) -> None:
        """The one JSON object of ``--json``: ASCII, stable order, one line."""
        import json

        self._say(json.dumps(value, ensure_ascii=True, sort_keys=False), err=False)

    def note(self, text: str) -> None:
        """A line on stderr that is neither result nor warning; not with ``-q``."""
        if not self.quiet:
            self._say(printable(text, limit=_LINE_LIMIT), err=True)

    def warn(self, text: str, *, beside_json: bool = False) -> None:
        """``vmproxy: warning: …`` on stderr; not with ``-q``, and with ``--json`` it is in the object.

        ``beside_json`` is for an object that has no place for it.
        """
        if not (self.quiet or (self.json and not beside_json)):
            label = click.style("warning:", fg="yellow")
            self._say(f"vmproxy: {label} {printable(text, limit=_LINE_LIMIT)}", err=True)

    def error(self, what: str, *, hint: str = "", error: BaseException | None = None) -> None:
        """``vmproxy: error: …`` and, but with ``-q``, one ``hint:`` line; with ``--debug`` the traceback before."""
        if self.debug and error is not None:
            import traceback

            from vmproxy.cli.crash import redact

            self._say(redact("".join(traceback.format_exception(error)), self.secrets).rstrip(), err=True)
        label = click.style("error:", fg="red", bold=True)
        self._say(f"vmproxy: {label} {_cut(what, _LINE_LIMIT - 16)}", err=True)
        if hint and not self.quiet:
            self._say(f"hint: {_cut(hint, _HINT_LIMIT)}", err=True)

    def progress(self, event: Event) -> None:
        """One step of the story: a line that is written over on a terminal, kept with ``-v``, else nothing. With
        ``--json`` only news, and only where a person reads them: a security key may wait to be touched."""
        if self.quiet or (self.json and not (event.news and is_terminal(sys.stderr))):
            return
        line = printable(f"{_name(event.target)}: {event.text}", limit=_LINE_LIMIT)
        if event.news and self.verbosity == 0:
            self.clear_progress()
            self.note(line)
            return
        if self.verbosity > 0:
            self._say(line, err=True)
        elif is_terminal(sys.stderr):
            self.clear_progress()
            line = f"{self.ahead}{line}"[: min(78, _columns(sys.stderr) - 1)]
            self._write(line, err=True, newline=False)
            self._shown = len(line)

    def clear_progress(self) -> None:
        """Take the running progress line off the terminal."""
        if self._shown:
            shown, self._shown = self._shown, 0
            self._write("\r" + " " * shown + "\r", err=True, newline=False)

    def confirm(self, question: str) -> bool:
        """Ask yes or no on the terminal; no is the default. Only to be called where :func:`may_ask`.

        Not click's: that one turns a signal into an end of input, and the exit code would be lost.
        """
        self.clear_progress()
        self._write(f"{printable(question, limit=_LINE_LIMIT)} [y/N] ", err=True, newline=False)
        return sys.stdin.readline().strip().lower() in ("y", "yes")

    def ask(self, question: str) -> str | None:
        """Ask for a secret on the terminal, without echo; None at the end of input."""
        import getpass

        self.clear_progress()
        try:
            return getpass.getpass(printable(question, limit=_LINE_LIMIT).rstrip() + " ", stream=sys.stderr)
        except EOFError:
            return None

    def diff(self, text: str) -> None:
        """A unified diff on stdout, coloured where wanted. Its bytes came from a VM: each line is made printable."""
        for line in text.splitlines():
            shown = printable(line.replace("\t", "    "), limit=2000)
            if line.startswith(("+++", "---", "@@")):
                shown = click.style(shown, bold=True)
            elif line.startswith("+"):
                shown = click.style(shown, fg="green")
            elif line.startswith("-"):
                shown = click.style(shown, fg="red")
            self.result(shown)

    def findings(self, findings: Iterable[Finding]) -> None:
        """The points of a report: ``ok`` or ``--``, the subject, the detail."""
        for finding in findings:
            mark = click.style("ok", fg="green") if finding.ok else click.style("--", fg="red")
            detail = f": {finding.detail}" if finding.detail else ""
            self.result(f"  {mark} {printable(finding.subject + detail, limit=_LINE_LIMIT)}")
            if finding.hint and not finding.ok:
                self.result(f"     hint: {_cut(finding.hint, _HINT_LIMIT)}")

    def report(self, report: Report, *, diff: bool = True, error: BaseException | None = None) -> None:
        """One VM's report for a reader: what differs, each point, then the one line of how it ended.

        Without ``diff`` the diff is shown only with ``-v``.
        """
        for text in report.warnings:
            self.warn(f"{_name(report.target)}: {text}")
        if not (self.quiet or self.json):
            if diff or self.verbosity > 0:
                self.diff(report.diff)
            self.findings(report.findings)
        finding = error is None and report.exit in _FINDINGS and not (self.quiet or self.json)
        if report.ok or finding:
            if not (self.quiet or self.json) and report.message:
                self.result(f"{_name(report.target)}: {printable(report.message, limit=_LINE_LIMIT)}")
            if finding and report.hint:
                self._say(f"hint: {_cut(report.hint, _HINT_LIMIT)}", err=True)
        else:
            self.error(_placed(report), hint=report.hint, error=error)


def _cut(text: str, limit: int) -> str:
    """As one printable line of at most ``limit`` characters, cut between two words where it has to be."""
    line = printable(text, limit=limit)
    if not line.endswith("…") or text.endswith("…"):
        return line
    head = line[:-1].rpartition(" ")[0]
    return f"{head} …" if len(head) > limit // 2 else line


def _placed(report: Report) -> str:
    """The message with the VM named, unless it already is."""
    named = report.message.startswith(f"{report.target}: ") or report.message.endswith(f"({report.target})")
    if not report.target or named:
        return report.message
    return f"{_name(report.target)}: {report.message}"


def _name(target: str) -> str:
    """A VM's name before a colon: one that ends with a colon itself (``docker:``) has it once."""
    return target.removesuffix(":")


def as_json(report: Report) -> dict[str, Any]:
    """One element of ``vms`` (docs/schema.json)."""
    return {
        "vm": report.target,
        "ok": report.ok,
        "code": report.code,
        "exit": report.exit,
        "changed": report.changed,
        "rolled_back": report.rolled_back,
        "gateway": report.gateway,
        "message": report.message,
        "hint": report.hint,
        "findings": [
            {
                "subject": printable(finding.subject),
                "ok": finding.ok,
                "detail": printable(finding.detail, limit=1000),
                "hint": finding.hint,
                "code": finding.code,
            }
            for finding in report.findings
        ],
        "warnings": [printable(text, limit=1000) for text in report.warnings],
        "diff": report.diff,
    }


def summary(reports: Iterable[Report]) -> dict[str, Any]:
    """The object of ``--json``: the highest exit code of all VMs and its code, then each VM."""
    reports = list(reports)
    worst = max(reports, key=lambda report: report.exit, default=Report(target=""))
    failed = worst.exit != 0 or not worst.ok
    return {
        "ok": all(report.ok for report in reports),
        "code": worst.code,
        "exit": worst.exit,
        "changed": any(report.changed for report in reports),
        "message": worst.message if failed else "",
        "hint": worst.hint if failed else "",
        "vms": [as_json(report) for report in reports if report.target],
    }
