"""The VMs of fixtures/guests: what a look at each says of its kind, written down from upstream's own files."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from vmproxy.machines.reading import os_release
from vmproxy.model import Daemon, Facts, File

FOLDER = Path(__file__).parents[2] / "fixtures" / "guests"
NAMES = sorted(path.stem for path in FOLDER.glob("*.json"))


def world(name: str) -> Facts:
    """A live VM."""
    data = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    return Facts(
        os_release=os_release(data["os_release"].encode()),
        paths=frozenset(data["paths"]),
        texts={path: text.encode() for path, text in data["texts"].items()},
        daemon=Daemon(pid=1, environment={}) if data["daemon"] else None,
    )


def on_disk(facts: Facts) -> Facts:
    """The same VM as a directory of files: nothing runs, and /run is empty."""
    paths = frozenset(path for path in facts.paths if not path.startswith(("/run/", "/var/run/")))
    return replace(facts, live=False, paths=paths, daemon=None)


def with_file(facts: Facts, path: str, content: bytes, *, mode: int = 0o644) -> Facts:
    """The same VM with one more file that may carry a block."""
    return replace(facts, files={**facts.files, path: File(path=path, content=content, mode=mode)})
