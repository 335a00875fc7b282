"""A kernel's modules for a small root: which ones, what they need, and the index files that busybox's modprobe reads.

Each module says its dependencies and aliases in its ``.modinfo`` section, so no depmod is needed.
"""

from __future__ import annotations

import re
from pathlib import Path

_WANTED = re.compile(
    r"kernel/(net/(ipv4|ipv6|netfilter|bridge|802|8021q|llc|core|packet|unix)/"
    r"|drivers/net/(veth|dummy|macvlan|ipvlan|vxlan|tun|virtio_net|net_failover)"
    r"|drivers/(virtio/|block/virtio_blk|char/hw_random/virtio|firmware/qemu_fw_cfg)"
    r"|fs/overlayfs/|fs/fuse/)"
)
_UNWANTED = re.compile(r"/(ipvs|ipset|sctp|dccp|vsock|ila|seg6)/|ip_vs")
_MODINFO = re.compile(rb"(?:(?<=\0)|^)(depends|alias|name)=([^\0]*)\0")


def modules(kernel: Path) -> tuple[str, dict[str, bytes | Path]]:
    """``(version, {name below lib/modules/VERSION: content})``: what a container VM wants, its closure, the indexes.

    ``kernel`` is a directory with ``lib/modules/VERSION``.
    """
    (root,) = (kernel / "lib/modules").iterdir()
    found = {_name(path): path.relative_to(root).as_posix() for path in root.rglob("*.ko")}
    facts: dict[str, tuple[list[str], list[str]]] = {}
    pending = [name for name, path in found.items() if _WANTED.match(path) and not _UNWANTED.search(path)]
    while pending:
        name = pending.pop()
        if name not in facts:
            facts[name] = _modinfo(root / found[name])
            pending += facts[name][0]
    files: dict[str, bytes | Path] = {found[name]: root / found[name] for name in sorted(facts)}
    needs = {name: " ".join(found[need] for need in _closure(name, facts)) for name in sorted(facts)}
    aliases = [f"alias {alias} {name}" for name in sorted(facts) for alias in facts[name][1]]
    files["modules.dep"] = "".join(f"{found[name]}: {paths}\n" for name, paths in needs.items()).encode()
    files["modules.alias"] = ("\n".join(aliases) + "\n").encode()
    files["modules.symbols"] = b""
    files["modules.builtin"] = root / "modules.builtin"
    return root.name, files


def _name(path: Path) -> str:
    return path.name.removesuffix(".ko").replace("-", "_")


def _modinfo(path: Path) -> tuple[list[str], list[str]]:
    """``(dependencies, aliases)`` by module name."""
    needs: list[str] = []
    aliases: list[str] = []
    for key, value in _MODINFO.findall(path.read_bytes()):
        if key == b"depends":
            needs = [word.replace("-", "_") for word in value.decode().split(",") if word]
        elif key == b"alias":
            aliases.append(value.decode())
    return needs, aliases


def _closure(name: str, facts: dict[str, tuple[list[str], list[str]]]) -> list[str]:
    """What ``name`` needs, in modules.dep's order: a module stands before what it needs (loaded right to left)."""
    order: list[str] = []

    def visit(module: str) -> None:
        for need in facts[module][0]:
            visit(need)
            if need not in order:
                order.append(need)

    visit(name)
    return order[::-1]
