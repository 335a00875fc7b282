"""The house holds: who may import whom, where the outside world is touched, where things are printed."""

from __future__ import annotations

import ast
import functools
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / "vmproxy"

PURE = {
    "errors", "model", "quoting", "proxyenv", "routes", "rules", "blocks", "initrd", "guests", "providers", "plan",
    "containers", "config", "wish", "proof", "preview", "scene", "tools", "jsonedit", "clientconfig",
    "dockerversion",
}  # fmt: skip

# DESIGN section 3. A helper file of a room (routetext of routes) is listed in ROOM_OF and shares the room's row.
MAY_IMPORT: dict[str, set[str]] = {
    "model": set(),
    "errors": {"model"},
    "quoting": {"errors"},
    "proxyenv": {"model", "errors"},
    "routes": {"model", "errors"},
    "rules": {"model", "errors"},
    "blocks": {"model", "errors"},
    "initrd": {"model", "errors"},
    "proof": {"model", "errors"},
    "wish": {"model", "errors", "quoting", "proxyenv"},
    "guests": {"model", "errors", "quoting", "proxyenv", "routes", "rules", "blocks", "initrd", "wish", "jsonedit"},
    "tools": {"model", "errors", "quoting", "proxyenv", "blocks"},
    "providers": {"model", "errors"},
    "hostproc": {"errors"},
    "nearby": {"model", "errors", "hostproc"},
    "transports": {"model", "errors", "quoting", "hostproc"},
    "machines": {"transports", "hostproc", "hostfiles", *PURE - {"config", "containers"}},
    "plan": PURE - {"plan", "config", "providers", "containers", "scene"},
    "containers": {"model", "errors", "quoting", "proxyenv"},
    "jsonedit": {"model", "errors"},
    "dockerversion": {"model"},
    "clientconfig": {"model", "errors", "jsonedit", "proxyenv"},
    "hostfiles": {"model", "errors"},
    "options": set(),
    "config": {"model", "errors", "proxyenv", "options"},
    "cache": {"model", "errors", "config", "quoting", "proxyenv", "noproxy", "hostproc", "nearby"},
    "cachestory": {"model", "errors", "hostproc", "stopping", "cache", "cacherun", "converge"},
    "cacherun": {"model", "errors", "hostproc", "hostfiles", "quoting", "cache"},
    "preview": {"model", "errors", "quoting"},
    "scene": PURE - {"config", "providers", "containers"},
    "stopping": {"errors", "turns"},
    "turns": set(),
    "session": {*PURE, "transports", "machines", "targets", "stopping"},
    "targets": {"model", "errors", "providers", "hostproc"},
    "converge": {"model", "errors", "routes", "session", "stopping", "story", "tools"},
    "story": {*PURE, "machines", "session"},
    "dokkuplan": {"model", "errors"},
    "dokku": {*PURE, "converge", "dokkuplan", "machines", "session"},
}

ROOM_OF: dict[str, str] = {
    **dict.fromkeys(("answers", "outcomes"), "story"),
    **dict.fromkeys(("dokkucalls", "dokkufacts"), "dokkuplan"),
    "dokkuhost": "dokku",
    **dict.fromkeys(("composefile", "composeoverride", "composeyaml"), "containers"),
    **dict.fromkeys(("routecolumns", "routeparts", "routetext", "routewire"), "routes"),
    **dict.fromkeys(("iptsave", "ruleflow", "dockerrules", "door"), "rules"),
    **dict.fromkeys(("shellscan", "shellharm"), "blocks"),
    **dict.fromkeys(("managed", "containerview", "daemonjson", "ruleplan", "ipv6"), "plan"),
    **dict.fromkeys(("noproxy", "direct", "dialects", "pip"), "proxyenv"),
    "cacheservice": "cacherun",
    "cachehit": "proof",
    "values": "model",
    **dict.fromkeys(("compression", "initrdedit", "initrdmark", "members", "newc"), "initrd"),
    "jsontext": "jsonedit",
    **dict.fromkeys(("dirlock", "fileswap"), "hostfiles"),
}

# What touches the outside world, and the rooms that may.
OUTSIDE: dict[str, set[str]] = {
    "subprocess": {"hostproc", "transports", "machines"},
    "paramiko": {"transports"},
    "pyroute2": {"routes", "machines", "hostproc"},
    "socket": {"hostproc", "transports", "machines", "cache"},
    "click": {"cli"},
    "platformdirs": {"cli", "transports", "converge"},
}

NOT_ON_WINDOWS = ("fcntl", "termios", "pwd", "grp", "resource", "tty", "pty", "syslog")


def files() -> list[Path]:
    """Every Python file of the package."""
    return sorted(PACKAGE.rglob("*.py"))


def name_of(path: Path) -> str:
    """``vmproxy/machines/shell.py`` is ``machines/shell``."""
    return path.relative_to(PACKAGE).with_suffix("").as_posix()


def room_of(path: Path) -> str:
    """The row of the table that a file belongs to."""
    first = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    return ROOM_OF.get(first, first)


def imports(tree: ast.AST, module: tuple[str, ...]) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of every import, relative ones made absolute; ``from a import b`` gives ``a.b``."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                base = ".".join([*module[: len(module) - node.level], *filter(None, [node.module])])
            for alias in node.names:
                yield node.lineno, f"{base}.{alias.name}"


@functools.cache
def parsed(path: Path) -> ast.Module:
    """The file's syntax tree."""
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


@pytest.mark.parametrize("path", files(), ids=name_of)
def test_a_room_imports_only_what_its_row_allows(path: Path) -> None:
    """DESIGN's import table holds for every file, imports inside functions included."""
    room = room_of(path)
    if room in ("cli", "__init__", "__main__"):
        return
    assert room in MAY_IMPORT, f"{name_of(path)} has no row: add it to ROOM_OF or MAY_IMPORT"
    wrong = []
    for line, name in imports(parsed(path), ("vmproxy", *path.relative_to(PACKAGE).parts)):
        parts = name.split(".")
        if parts[0] != "vmproxy" or len(parts) == 1 or parts[1] == "__version__":
            continue
        other = ROOM_OF.get(parts[1], parts[1])
        if other != room and other not in MAY_IMPORT[room]:
            wrong.append(f"{name_of(path)}.py:{line} imports {name}")
    assert not wrong


def test_the_package_itself_imports_nothing_heavy() -> None:
    """``import vmproxy`` loads no room, so that --help stays quick; the library face is loaded late."""
    code = "import sys, vmproxy; print([m for m in sys.modules if m.startswith('vmproxy.') or m in ('click', 'json')])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=PACKAGE.parent)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("path", files(), ids=name_of)
def test_the_outside_world_is_touched_only_in_its_rooms(path: Path) -> None:
    """subprocess, sockets, paramiko, pyroute2 and click are imported only in the rooms that own them."""
    wrong = [
        f"{name_of(path)}.py:{line} imports {name}"
        for line, name in imports(parsed(path), ("vmproxy", *path.relative_to(PACKAGE).parts))
        if (top := name.split(".")[0]) in OUTSIDE and room_of(path) not in OUTSIDE[top]
    ]
    assert not wrong


@pytest.mark.parametrize("path", files(), ids=name_of)
def test_heavy_and_unix_imports_stay_inside_functions(path: Path) -> None:
    """At the top of a file there is no paramiko, pyroute2 or platformdirs, and nothing that Windows has not."""
    tree = parsed(path)
    found = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    top = ast.Module(body=list(found), type_ignores=[])
    barred = {"paramiko", "pyroute2", "platformdirs", "iptc", "hishel", *NOT_ON_WINDOWS}
    wrong = [name for _line, name in imports(top, ("vmproxy",)) if name.split(".")[0] in barred]
    assert not wrong


@pytest.mark.parametrize("path", files(), ids=name_of)
def test_only_the_command_line_prints_and_exits(path: Path) -> None:
    """print, input, sys.exit, os._exit and SystemExit stand in cli/ and __main__ only."""
    if room_of(path) in ("cli", "__main__"):
        return
    wrong = []
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            if called in ("print", "input", "exit", "quit", "sys.exit", "os._exit", "getpass.getpass"):
                wrong.append(f"{name_of(path)}.py:{node.lineno} calls {called}")
        elif isinstance(node, ast.Name) and node.id == "SystemExit":
            wrong.append(f"{name_of(path)}.py:{node.lineno} names SystemExit")
    assert not wrong


@pytest.mark.parametrize("path", files(), ids=name_of)
def test_no_value_reaches_a_host_shell(path: Path) -> None:
    """No shell=True, os.system or os.popen, and no policy that accepts any host key."""
    wrong = []
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            by_shell = any(word.arg == "shell" for word in node.keywords) and called.startswith("subprocess.")
            if by_shell or called in ("os.system", "os.popen", "eval", "exec"):
                wrong.append(f"{name_of(path)}.py:{node.lineno} calls {called}")
        elif isinstance(node, ast.Attribute | ast.Name) and re.search("AutoAddPolicy|WarningPolicy", ast.unparse(node)):
            wrong.append(f"{name_of(path)}.py:{node.lineno} accepts any host key")
    assert not wrong


def code_words(path: Path) -> Iterator[tuple[int, str]]:
    """(line, text) of every name and string constant of a file that is no docstring."""
    tree = parsed(path)
    docstrings = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
                docstrings.add(id(first.value))
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            docstrings.add(id(node.value))
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str | bytes) and id(node) not in docstrings:
            yield node.lineno, node.value if isinstance(node.value, str) else node.value.decode("latin-1")
        elif isinstance(node, ast.Name):
            yield node.lineno, node.id


@pytest.mark.parametrize("path", files(), ids=name_of)
def test_a_guests_name_lives_in_its_own_file(path: Path) -> None:
    """The word boot2docker stands in code only in its guest, its provider and the two lists of names."""
    allowed = ("guests/boot2docker", "providers/boot2docker", "guests/__init__", "providers/__init__")
    if name_of(path) in allowed or room_of(path) == "cli":
        return
    wrong = [f"{name_of(path)}.py:{line}" for line, text in code_words(path) if "boot2docker" in text.lower()]
    assert not wrong


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.sh")), ids=lambda path: path.name)
def test_a_guests_name_is_in_no_script(path: Path) -> None:
    """The commands that run in a VM know no kind of VM by name; a comment may say whose behaviour it is about."""
    lines = path.read_text(encoding="utf-8").lower().splitlines()
    assert not [line for line in lines if "boot2docker" in line.partition("#")[0]]


@pytest.mark.parametrize("path", files(), ids=name_of)
def test_a_room_stays_small(path: Path) -> None:
    """No file passes 20 kB: one noun a file."""
    assert path.stat().st_size <= 20_000


@pytest.mark.parametrize("path", files(), ids=name_of)
def test_nothing_is_left_unfinished(path: Path) -> None:
    """No marker of unfinished work and no NotImplementedError in the package."""
    assert not re.search(r"TODO|FIXME|XXX|NotImplementedError", path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("path", files(), ids=name_of)
def test_everything_public_has_a_docstring(path: Path) -> None:
    """Modules, public classes, functions and methods say what they are."""
    tree = parsed(path)
    missing = [] if ast.get_docstring(tree) else ["the module"]

    def look(body: list[ast.stmt], inside: str) -> None:
        for node in body:
            if not isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) or node.name.startswith("_"):
                continue
            if not ast.get_docstring(node) and not any("overload" in ast.unparse(d) for d in node.decorator_list):
                missing.append(inside + node.name)
            if isinstance(node, ast.ClassDef):
                look(node.body, f"{node.name}.")

    look(tree.body, "")
    if room_of(path) == "cli":
        missing = [name for name in missing if not name.startswith("_")]
    assert not missing


def test_everything_imports_without_unix_modules() -> None:
    """On Windows there is no fcntl, termios, pwd: every module of ours imports without them (DESIGN section 7)."""
    code = f"""
import importlib, pkgutil, sys
for name in {NOT_ON_WINDOWS!r}:
    sys.modules[name] = None
import vmproxy
for found in pkgutil.walk_packages(vmproxy.__path__, "vmproxy."):
    if found.name != "vmproxy.__main__":
        importlib.import_module(found.name)
        print(found.name)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=PACKAGE.parent)
    assert done.returncode == 0, done.stderr[-600:]
    assert len(done.stdout.split()) == len(files()) - 2  # without vmproxy itself and __main__
