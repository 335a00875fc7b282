"""Container images with Python and pip: a small one of Debian's own packages, unpacked, and one made by debootstrap."""

from __future__ import annotations

import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
import zipfile
from pathlib import Path

from tests.lab.tree import LabError, mirror, stage

PACKAGES = ("dash", "python3", "python3-pip-whl")

_WHEELS = "usr/share/python-wheels"
_UNUSED = tuple(f"usr/share/{name}" for name in ("doc", "man", "locale", "lintian", "perl", "pixmaps"))
_DOWNLOADS = ("var/cache/apt", "var/lib/apt/lists")
_UNUSED_MODULES = ("EXTERNALLY-MANAGED", "idlelib", "lib2to3", "pydoc_data", "test", "unittest", "turtledemo")


@functools.cache
def build_python_tree(cache: Path) -> Path:
    """The image's files as a directory to ``chroot`` into. Raises LabError."""
    text = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:8]
    return stage(cache, f"python-{text}", PACKAGES, finish=_finish)


def build_python_image(cache: Path) -> Path:
    """The tar for ``docker import``, 60 MB, kept in the cache beside its tree. Raises LabError."""
    tree = build_python_tree(cache)
    final = cache / f"image-{tree.name}.tar"
    if not final.is_file():
        handle, name = tempfile.mkstemp(prefix="image-building-", dir=cache)
        os.close(handle)
        _run("tar", "-c", "-f", name, "--numeric-owner", "-C", str(tree), ".")
        Path(name).rename(final)
    return final


@functools.cache
def build_debootstrap_image(cache: Path) -> Path:
    """The tar of what debootstrap makes of this machine's own release with ``python3-pip``: a minute; then kept.

    Left out are documents, downloads, and the mark by which Debian's pip wants a virtual environment: no image for
    Docker has that one. Raises LabError.
    """
    system = platform.freedesktop_os_release()
    components = "main,universe" if system["ID"] == "ubuntu" else "main"
    words = ("--variant=minbase", f"--components={components}", "--include=python3-pip", system["VERSION_CODENAME"])
    text = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:8]
    final = cache / f"image-debootstrap-{system['VERSION_CODENAME']}-{text}.tar"
    if final.is_file():
        return final
    cache.mkdir(parents=True, exist_ok=True)
    building = tempfile.mkdtemp(prefix="debootstrap-building-", dir=cache)
    root, left = f"{building}/root", (*_UNUSED, *_DOWNLOADS, "dev/*", "proc/*", "sys/*", "usr/lib/*/EXTERNALLY-MANAGED")
    try:
        try:
            _run("debootstrap", *words, root, mirror())
        except LabError:  # a mirror that did not answer
            _run("rm", "-rf", "--one-file-system", root)
            _run("debootstrap", *words, root, mirror())
        exclude = (f"--exclude=./{path}" for path in left)
        _run("tar", "-c", "-f", f"{building}/tar", *exclude, "--one-file-system", "--numeric-owner", "-C", root, ".")
        Path(building, "tar").rename(final)
    finally:
        # Never into what a debootstrap that failed may have left mounted.
        _run("rm", "-rf", "--one-file-system", building)
    return final


def _finish(root: Path) -> None:
    for path in (*_UNUSED, *(path.relative_to(root) for path in root.glob("usr/lib/*/gconv"))):
        shutil.rmtree(root / path, ignore_errors=True)
    (library,) = (root / "usr/lib").glob("python3.*")
    for name in _UNUSED_MODULES:
        unused = library / name
        shutil.rmtree(unused) if unused.is_dir() else unused.unlink(missing_ok=True)
    for wheel in (root / _WHEELS).glob("pip-*.whl"):
        with zipfile.ZipFile(wheel) as packed:
            packed.extractall(root / "usr/lib/python3/dist-packages")
    shutil.rmtree(root / _WHEELS)
    for name in ("tmp", "root", "etc"):
        (root / name).mkdir(exist_ok=True)
    (root / "tmp").chmod(0o1777)
    (root / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\n", encoding="utf-8")
    _run("ldconfig", "-r", str(root))
    # What this imports is then compiled already, so that pip in a container starts in half the time.
    _run("chroot", str(root), "python3", "-m", "pip", "download", "--no-index", "nothing", wanted=1)


def _run(*argv: str, wanted: int = 0) -> None:
    ways = {name: value for name, value in os.environ.items() if name.lower().endswith("_proxy")}  # as apt has them
    environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8", **ways}
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=900, env=environment)
    if done.returncode != wanted:
        raise LabError(f"{argv[0]} ended with {done.returncode}: {done.stderr[-1000:]}")
