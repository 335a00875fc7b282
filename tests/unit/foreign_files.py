"""What stands in the files of other people's VMs, for every machine that keeps them: F41, F43, F44."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Foreign:
    """What stands in a file, and the line that is to be named where it cannot carry our block (0: it can)."""

    content: bytes
    line: int = 0


LONG = b"# " + b"x" * 200_000
KEPT = {
    "empty": b"",
    "one newline": b"\n",
    "no final newline": b"export TZ=UTC",
    "no shebang": b"export TZ=UTC\n",
    "shebang alone, no newline": b"#!/bin/sh",
    "a shebang with words": b"#! /bin/sh -e\n# mine\n",
    "CRLF comments": b"# one\r\n# two\r\n",
    "CRLF lines": b"export TZ=UTC\r\nexport LANG=C\r\n",
    "not UTF-8": b"# caf\xe9 \xff\xfe\nexport NAME='\xe9'\n",
    "a byte order mark": b"\xef\xbb\xbf# mine\nexport TZ=UTC\n",
    "a line of 200 kB": b"#!/bin/sh\n" + LONG + b"\nexport TZ=UTC\n",
    "a last line of 200 kB without newline": LONG,
    "a here-document": b"cat >/dev/null <<'END'\n$(exit 1) `x` ' \"\nexit 0\nEND\nexport TZ=UTC\n",
    "escape codes": b"# \x1b]0;owned\x07 \x1b[2J\n",
    "trailing blanks": b"export TZ=UTC   \n\n\n\t\n",
}
"""A profile and a boot script that can carry our block, and come back byte for byte."""

REFUSED = {
    "exit 0 at the end": Foreign(content=b"export TZ=UTC\n# the end\nexit 0\n", line=3),
    "return": Foreign(content=b"return\n", line=1),
    "exec of a program": Foreign(content=b"\n\nexec true\n", line=3),
    "exit, CRLF": Foreign(content=b"export TZ=UTC\r\nexit\r\n", line=2),
    "NUL": Foreign(content=b"export TZ=UTC\n# a\0b\n", line=2),
    "readonly": Foreign(content=b"\nreadonly http_proxy=http://mine:1\n", line=2),
    "a here-document without end (F43)": Foreign(content=b"# a\ncat <<END\nnever closed\n", line=2),
    "a backslash at the end (F43)": Foreign(content=b"export TZ=UTC \\\n", line=1),
    "an endless loop": Foreign(content=b"# a\nwhile :; do sleep 1; done\n", line=2),
}
"""A profile whose end is not reached, or where our lines would have no effect."""

SWALLOWED = [b"cat >/dev/null <<END\nfoo \\\nEND\n", b"cat >/dev/null <<$'END'\nfoo\nEND\n"]
"""A profile whose tail the VM's own shell (dash) would swallow, and the scan of ours does not say so."""
