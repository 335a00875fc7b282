"""What is sent to the scripts in the VM: constant words, paths that were checked, content framed by its length.

PURE. No value gets into a command; the scripts take all of it from stdin as data (DESIGN section 6).
"""

from __future__ import annotations

import re

from vmproxy.errors import Refused
from vmproxy.machines import Look, Terms
from vmproxy.model import File, Plan, printable
from vmproxy.proof import SURE_CODES, Question

XTABLES_WAIT_SECONDS = 5
_PATH_OK = re.compile(r"/[A-Za-z0-9._/+@-]+\Z")
_LINES = re.compile(rb"(?:[\t\r -~]*\n)*")
_LINES_LIMIT_BYTES = 8192
_WORD_OK = re.compile(r"[A-Za-z0-9._/+@:=-]+\Z")


def look_words(look: Look) -> str:
    """What observe.sh is to look at, as assignments: paths that are constants of ours, of characters that mean nothing
    to a shell, and inside quotes all the same. Raises Refused for any other path."""
    flags = {
        "rules": look.root,
        "save": look.save,
        "syntax": look.syntax,
        "docker": look.docker,
        "listeners": look.listeners,
        "stats": look.stats,
    }
    lists = {
        "files": [_path(path) for path in look.files],
        "paths": [_pattern(path) for path in look.paths],
        "texts": [_pattern(path) for path in look.texts],
        "configs": [_path(path) for path in look.configs] if look.root else [],
    }
    words = [f"want_{name}={'1' * flag}" for name, flag in flags.items()]
    for name, paths in lists.items():
        words.append(f"want_{name}='" + "".join(f"{path}\n" for path in paths) + "'")
    return "".join(f"{word}\n" for word in words)


def look_lines(look: Look) -> bytes:
    """What observe.sh reads behind the nonce. Raises Refused for a name that cannot be sent."""
    if look.resolve and not _WORD_OK.match(look.resolve):
        raise Refused("a name has characters that cannot be sent", where=printable(look.resolve, limit=80))
    return f"resolve {look.resolve}\n.\n".encode("ascii") if look.resolve else b".\n"


def _path(path: str) -> str:
    if not _PATH_OK.match(path):
        raise Refused("a path has characters that cannot be sent", where=printable(path))
    return path


def _pattern(path: str) -> str:
    """A path in which ``*`` may stand for any part of one name: the VM's shell puts in what there is."""
    _path(path.replace("*", "x"))
    return path


def _word(word: str) -> str:
    if not _WORD_OK.match(word):
        raise Refused("a word of the restart has characters that cannot be sent", where=printable(word))
    return word


def blob(name: str, content: bytes) -> bytes:
    """Content for a work file. Short plain text goes as lines, which the shell itself reads; all else by length."""
    if len(content) <= _LINES_LIMIT_BYTES and _LINES.fullmatch(content):
        return f"lines {name} {content.count(10)}\n".encode("ascii") + content
    return f"blob {name} {len(content)}\n".encode("ascii") + content + b"\n"


def question_lines(question: Question) -> bytes:
    """What the proof asks, and from where."""
    ends = f"{question.vm_host} {question.vm_port} {question.container_host} {question.container_port}"
    legs = [f"bridge6={question.container_host6}" if leg == "bridge6" else leg for leg in question.legs]
    return (
        blob("connect", question.connect)
        + blob("get", question.get)
        + (blob("fetch", question.fetch) if question.fetch else b"")
        + f"prove {ends} {' '.join(legs)}\n".encode("ascii")
    )


def plan_lines(plan: Plan, terms: Terms) -> bytes:
    """What commit.sh reads: files, rules, the restart, the questions. Raises Refused as :func:`look_lines`."""
    out = [f"lock {int(terms.lock_timeout_seconds)}\n".encode("ascii")]
    for number, change in enumerate(plan.files):
        out.append(_file_lines(number, change.before, change.after, shell=change.shell))
        if change.directory:
            out.append(f"directory {number}\n".encode("ascii"))
    if plan.rules is not None:
        out.append(f"variant {plan.rules.variant}\nxwait {XTABLES_WAIT_SECONDS}\n".encode("ascii"))
        out.append(blob("seen", plan.rules.seen))
        if plan.rules.seen6 is not None:
            out.append(blob("seen6", plan.rules.seen6))
        for table, text in plan.rules.do.items():
            if text:
                out += [blob(f"{table}.do", text), blob(f"{table}.undo", plan.rules.undo[table])]
    out.append(f"restart {terms.restart if plan.restart else 'no'}\n".encode("ascii"))
    if terms.reload_argv:
        out.append(f"reload {' '.join(_word(word) for word in terms.reload_argv)}\n".encode("ascii"))
    changed = [change.after.path for change in plan.files]
    for path, *argv in terms.gone:
        if path in changed:
            out.append(f"gone {_path(path)} {' '.join(_word(word) for word in argv)}\n".encode("ascii"))
    out += [f"argv {' '.join(_word(word) for word in argv)}\n".encode("ascii") for argv in terms.restart_argv]
    if terms.daemon_pid is not None:
        out.append(f"daemon {terms.daemon_pid}\n".encode("ascii"))
    if terms.legacy_writer is not None:
        python, package = terms.legacy_writer
        out.append(f"python {_path(python)}\npackage {_path(package)}\n".encode("ascii"))
    if terms.log:
        out.append(f"log {_path(terms.log)}\n".encode("ascii"))
    if terms.check is not None:
        out.append(blob("connect", terms.check.connect) + blob("get", terms.check.get))
        codes = " ".join(str(code) for code in sorted(SURE_CODES))
        out.append(f"ask {terms.check.vm_host} {terms.check.vm_port} {codes}\n".encode("ascii"))
    if terms.proof is not None:
        out.append(question_lines(terms.proof))
    return b"".join([*out, b".\n"])


def _file_lines(number: int, before: File, after: File, *, shell: bool) -> bytes:
    was = "absent" if before.content is None else "present"
    new = "delete" if after.content is None else "write"
    check = "sh" if shell else "plain"
    words = f"file {number} {after.mode:04o} {after.uid}:{after.gid} {was} {new} {check} {_path(after.path)}\n"
    out = words.encode("ascii")
    if before.content is not None:
        out += blob(f"was.{number}", before.content)
    if after.content is not None:
        out += blob(f"new.{number}", after.content)
    return out
