"""Which Docker a VM has: from what its programs say, and from what a package manager has written down. PURE."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

from vmproxy.model import printable

LIMIT_BYTES = 32 << 20
"""How much of a package manager's file is read."""
DATABASES = ("/var/lib/dpkg/status", "/lib/apk/db/installed", "/usr/lib/apk/db/installed")
"""Where dpkg and apk write down what is installed (dpkg(1), apk-installed(5)); rpm's is no text."""
_PACKAGES = ("docker-ce", "docker.io", "moby-engine", "docker-engine", "docker-ee", "docker")
"""That have dockerd in them, by the distributions that have them; Alpine's ``docker`` pulls in ``docker-engine``."""
_NUMBER = re.compile(r"(\d{1,4})\.\d{1,4}[0-9A-Za-z.+~:-]{0,60}\Z")
_SAID = re.compile(r"Docker version (\S+?),? ")


def said(text: str) -> str:
    """The version in the line of ``dockerd --version``, "" where there is none."""
    found = _SAID.match(f"{text.strip()} ")
    return checked(found[1]) if found else ""


def checked(version: str) -> str:
    """A version as it is where it is one, else ""."""
    return version if _NUMBER.match(version) else ""


def major(version: str) -> int:
    """Its first number, 0 where it is none."""
    found = _NUMBER.match(version)
    return int(found[1]) if found else 0


def installed(read: Callable[[str], bytes | None]) -> str:
    """The version of the package with dockerd in it, "" where none is found; ``read`` gives a file or None."""
    for path in DATABASES:
        content = read(path)
        if content:
            found = dict(_dpkg(content) if path.endswith("status") else _apk(content))
            for name in _PACKAGES:
                if version := checked(found.get(name, "").rpartition(":")[2]):  # dpkg's epoch stands before it
                    return version
    return ""


def _dpkg(content: bytes) -> Iterator[tuple[str, str]]:
    """Package and version of all that is unpacked and configured (deb822(5), dpkg-query(1))."""
    for stanza in content.split(b"\n\n"):
        fields = _fields(stanza, b": ")
        if fields.get("Status", "").split()[-1:] == ["installed"]:
            yield fields.get("Package", ""), fields.get("Version", "")


def _apk(content: bytes) -> Iterator[tuple[str, str]]:
    for stanza in content.split(b"\n\n"):
        fields = _fields(stanza, b":")
        yield fields.get("P", ""), fields.get("V", "")


def _fields(stanza: bytes, colon: bytes) -> dict[str, str]:
    """The first line of each field, which is all that a name or a version has."""
    pairs = (line.partition(colon) for line in stanza.splitlines() if not line.startswith((b" ", b"\t")))
    return {name[:20].decode("ascii", "replace"): printable(value.strip()) for name, mark, value in pairs if mark}


__all__ = ["DATABASES", "LIMIT_BYTES", "checked", "installed", "major", "said"]
