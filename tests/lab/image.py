"""A container image without a registry: the staged tree's busybox with its libraries, as one tar."""

from __future__ import annotations

import io
import os
import subprocess
import tarfile
import tempfile
from pathlib import Path

from tests.lab.tree import LabError


def build_image(tree: Path, cache: Path) -> Path:
    """The tar for ``docker import``, kept in the cache beside its tree. Raises LabError."""
    final = cache / f"image-{tree.name}.tar"
    if final.is_file():
        return final
    handle, name = tempfile.mkstemp(prefix="image-building-", dir=cache)
    with os.fdopen(handle, "wb") as file, tarfile.open(fileobj=file, mode="w") as tar:
        for directory in ("bin", "etc", "tmp", "root"):
            _add(tar, directory, None, 0o1777 if directory == "tmp" else 0o755)
        _add(tar, "etc/passwd", b"root:x:0:0:root:/root:/bin/sh\n", 0o644)
        for path in ("/bin/busybox", *_libraries(tree)):
            _add(tar, path.lstrip("/"), (tree / path.lstrip("/")).read_bytes(), 0o755)
        for applet in _chroot(tree, "/bin/busybox", "--list").split():
            if applet != "busybox":
                link = tarfile.TarInfo(f"bin/{applet}")
                link.type, link.linkname, link.mode = tarfile.SYMTYPE, "busybox", 0o777
                tar.addfile(link)
    Path(name).rename(final)
    return final


def _libraries(tree: Path) -> list[str]:
    words = _chroot(tree, "ldd", "/bin/busybox").split()
    return sorted({word for word in words if word.startswith("/")})


def _chroot(tree: Path, *argv: str) -> str:
    done = subprocess.run(["chroot", tree, *argv], capture_output=True, text=True, check=False, timeout=120)
    if done.returncode:
        raise LabError(f"{argv} in the tree: {done.stderr[-500:]}")
    return done.stdout


def _add(tar: tarfile.TarFile, name: str, content: bytes | None, mode: int) -> None:
    entry = tarfile.TarInfo(name)
    entry.mode = mode
    if content is None:
        entry.type = tarfile.DIRTYPE
        tar.addfile(entry)
    else:
        entry.size = len(content)
        tar.addfile(entry, io.BytesIO(content))
