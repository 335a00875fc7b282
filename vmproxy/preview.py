"""A plan as text for people: unified diffs of files, rule lines, the restart. PURE, and free of secrets."""

from __future__ import annotations

import base64
import difflib
import re
from collections.abc import Iterable, Iterator
from urllib.parse import quote

from vmproxy.model import File, Plan, ProxyURL, printable
from vmproxy.quoting import sh

MASK = "***"
_SHORTEST = 1
_USERINFO = re.compile(r"(?<=://)[^\s/'\"]*@")
_LINE_LIMIT = 400


def secrets(*proxies: ProxyURL | None) -> tuple[str, ...]:
    """Every spelling in which the passwords (and user names) of these proxies may stand in a file, longest first."""
    out: set[str] = set()
    for proxy in proxies:
        if proxy is None or not proxy.has_credentials:
            continue
        pair = f"{proxy.username}:{proxy.password}"
        out.add(f"{quote(proxy.username, safe='')}:{quote(proxy.password, safe='')}")
        out |= {pair, base64.b64encode(pair.encode()).decode("ascii")}
        out.add(f"login {proxy.username} password {proxy.password}")  # netrc's, for a password of one character too
        if len(proxy.password) > _SHORTEST:
            plain = proxy.password
            out |= {plain, quote(plain, safe=""), quote(plain), sh(plain)[1:-1], plain.replace("%", "%%")}
    return tuple(sorted((text for text in out if text), key=len, reverse=True))


def redact(text: str, hidden: Iterable[str]) -> str:
    """``text`` with each of ``hidden`` masked, and the user info of every URL."""
    for secret in hidden:
        text = text.replace(secret, MASK)
    return _USERINFO.sub(f"{MASK}@", text)


def plan_text(plan: Plan, hidden: Iterable[str] = ()) -> str:
    """The whole plan; "" for an empty one."""
    hidden = tuple(hidden)
    parts = [_file_text(change.before, change.after, hidden, change.shown) for change in plan.files]
    if plan.rules is not None:
        lines = "\n".join(printable(line, limit=300) for line in plan.rules.lines)
        parts.append(f"--- iptables ({plan.rules.variant})\n+++ iptables ({plan.rules.variant})\n{lines}\n")
    if plan.restart:
        parts.append("--- Docker daemon\n+++ Docker daemon\n+ restart, for its environment\n")
    parts += [f"--- {path}\n+++ /dev/null\n" for path in plan.leftovers]
    return redact("".join(parts), hidden).rstrip("\n")


def _file_text(before: File, after: File, hidden: tuple[str, ...], shown: str) -> str:
    old, new = _lines(before.content), _lines(after.content)
    ends = (
        "/dev/null" if before.content is None else before.path,
        "/dev/null" if after.content is None else after.path,
    )
    out = [f"--- {ends[0]}", f"+++ {ends[1]}"]
    if before.content is None:
        out.append(f"new mode {after.mode:04o}")
    elif after.content is not None and before.mode != after.mode:
        out.append(f"old mode {before.mode:04o}, new mode {after.mode:04o}")
    if shown:
        out += [printable(redact(line, hidden), limit=_LINE_LIMIT) for line in shown.split("\n")]
        return "\n".join(out) + "\n"
    # No context lines: what is somebody else's in this file may hold secrets that we do not know.
    for line in _differing(old, new):
        # Masked before it is cut: half of a long password would not be known again.
        out.append(printable(redact(line, hidden), limit=_LINE_LIMIT))
    return "\n".join(out) + "\n"


def _differing(old: list[str], new: list[str]) -> Iterator[str]:
    """The hunks of a unified diff without context. Only what lies between the ends that are the same is compared:
    difflib takes time by the square, and most of somebody else's file stays as it is."""
    most = min(len(old), len(new))
    head = next((at for at in range(most) if old[at] != new[at]), most)
    tail = next((at for at in range(most - head) if old[-1 - at] != new[-1 - at]), most - head)
    left, right = old[head : len(old) - tail], new[head : len(new) - tail]
    for kind, a, b, c, d in difflib.SequenceMatcher(None, left, right).get_opcodes():
        if kind != "equal":
            yield f"@@ -{_range(head + a, b - a)} +{_range(head + c, d - c)} @@"
            yield from (f"-{line}" for line in left[a:b])
            yield from (f"+{line}" for line in right[c:d])


def _range(start: int, length: int) -> str:
    """Lines as a unified diff counts them (POSIX, diff): of none, the one before."""
    return f"{start + 1}" if length == 1 else f"{start + 1 if length else start},{length}"


def _lines(content: bytes | None) -> list[str]:
    return (content or b"").decode("utf-8", "backslashreplace").split("\n")
