"""What the documents say is so."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path

import pytest

from tests.unit import schema
from tests.unit.test_guest_files import KINDS
from tests.unit.test_guests import SERVED
from vmproxy import errors, guests, machines, providers, tools, transports
from vmproxy.cli import COMMANDS
from vmproxy.model import Settings
from vmproxy.options import OPTIONS

TOP = Path(__file__).resolve().parents[2]
DOCS = tuple((TOP / "docs").glob("*.rst"))
README = (TOP / "README.rst").read_text(encoding="utf-8")
REFERENCE = (TOP / "docs" / "reference.rst").read_text(encoding="utf-8")
CONTRIBUTING = (TOP / "CONTRIBUTING.rst").read_text(encoding="utf-8")


def words(text: str) -> set[str]:
    """Words, options and codes of a text."""
    return set(re.findall(r"--[a-z][a-z-]*|[A-Z]+_[A-Z_]+|[a-z][a-z_.-]+", text))


@pytest.mark.parametrize("name", OPTIONS)
def test_every_option_is_in_the_reference(name: str) -> None:
    """No option without a line in docs/reference.rst; ``--verify`` and ``--check`` by their useful form."""
    option = OPTIONS[name]
    assert {f"--{name}", f"--{option.off}" if option.off else f"--{name}"} & words(REFERENCE)


def test_the_reference_names_no_option_that_is_not_there() -> None:
    """What the documents name exists."""
    known = {f"--{name}" for option in OPTIONS.values() for name in (option.name, option.off) if name}
    known |= {"--add-host", "--build-arg", "--help", "--version", "--internal", "--env-file", "--host"}
    for text in (README, REFERENCE):
        assert {word for word in words(text) if word.startswith("--") and word != "--"} <= known | {"--format"}


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_is_in_the_reference(name: str) -> None:
    """No command without a line."""
    assert f"``{name}``" in REFERENCE


def error_kinds() -> list[type[errors.VmproxyError]]:
    """The whole tree."""
    found = [errors.VmproxyError]
    for kind in found:
        found.extend(kind.__subclasses__())
    return found


@pytest.mark.parametrize("kind", error_kinds(), ids=lambda kind: kind.__name__)
def test_every_error_code_is_in_the_reference_with_its_exit(kind: type[errors.VmproxyError]) -> None:
    """The table of codes and the tree of errors agree."""
    assert re.search(rf"^{kind.exit} +``{kind.code}`` ", REFERENCE, re.MULTILINE)


def test_the_schema_names_what_it_is_made_of() -> None:
    """Every object that a command prints is one of the alternatives, and every part is named somewhere."""
    parts = set(schema.SCHEMA["$defs"])
    alternatives = {one["$ref"].removeprefix("#/$defs/") for one in schema.SCHEMA["anyOf"]}
    assert alternatives == {"result", "gateway", "gateways", "environment", "compose", "listening"}
    named = set(re.findall(r'"#/\$defs/([a-z]+)"', (TOP / "docs" / "schema.json").read_text(encoding="utf-8")))
    assert named == parts


def test_the_python_example_runs() -> None:
    """The pure part of the library example gives what its comments say, and the Settings of the other can be made."""
    code = "\n".join(line.strip() for line in REFERENCE.rpartition(".. code-block:: python")[2].splitlines())
    pure = [line for line in code.splitlines() if line.startswith(("import", "from", "proxyenv.", "routes."))]
    names: dict[str, object] = {}
    exec("\n".join(line for line in pure if line.startswith(("import", "from"))), names)
    results = [eval(line, names) for line in pure if line.startswith(("proxyenv.", "routes."))]
    assert results[0] == ("localhost", ".corp", "10.0.0.0/8")
    assert results[1] is True
    assert results[2] == {"http_proxy": "http://172.17.0.1:3128", "HTTP_PROXY": "http://172.17.0.1:3128"}
    assert results[3] == "10.0.2.2"
    settings = re.search(r"^settings = (.*)$", code, re.MULTILINE)
    assert settings
    assert isinstance(eval(settings[1], names), Settings)


def test_the_recipes_name_what_is_there() -> None:
    """CONTRIBUTING's families exist with a list called NAMES, and the files it names exist."""
    assert all(family.NAMES for family in (guests, transports, providers, machines))
    for path in re.findall(r"``((?:vmproxy|tests|docs|scripts)/[a-z_/.]+)``", CONTRIBUTING):
        assert (TOP / path).exists(), path


@pytest.mark.parametrize("name", [*providers.NAMES, *tools.NAMES, *guests.NAMES])
def test_every_member_has_its_row_in_the_reference(name: str) -> None:
    """A way to name a VM, a tool, a kind of VM: none without a row of its own."""
    assert re.search(rf"^``{name}(``|:)", REFERENCE, re.MULTILINE)


@pytest.mark.parametrize(
    ("title", "protocol"),
    [
        ("A new guest", guests.Guest),
        ("A new transport", transports.Transport),
        ("A new provider", providers.Provider),
        ("A new tool", tools.Tool),
    ],
)
def test_a_recipe_names_all_that_its_protocol_asks_for(title: str, protocol: type) -> None:
    """Who follows it leaves nothing out: every constant and function is named."""
    recipe = CONTRIBUTING.partition(f"\n{title}\n---")[2].partition("\n---")[0]
    asked = {name for name in (*vars(protocol), *protocol.__annotations__) if not name.startswith("_")}
    assert asked
    assert asked - set(re.findall(r"``([A-Za-z_]+)\b", recipe)) == set()


def test_every_member_has_what_its_recipe_asks_for() -> None:
    """A guest has a recorded VM that it alone serves, and a row of the test where its files are evaluated; a provider
    that is asked for bare names has its maker's files."""
    served = {guest for guest, _reason in SERVED.values()}
    assert served == set(KINDS) == set(guests.NAMES)
    folder = TOP / "fixtures" / "providers"
    recorded = {json.loads(path.read_text(encoding="utf-8"))["provider"] for path in folder.glob("*/world.json")}
    assert recorded >= set(providers.BARE)


@pytest.mark.parametrize("name", sorted(path.relative_to(TOP).as_posix() for path in (*TOP.glob("*.rst"), *DOCS)))
def test_what_a_document_links_to_is_there(name: str) -> None:
    """A link that is no address is a file beside the document; and the README links to every document of docs/."""
    path = TOP / name
    links = re.findall(r"`[^`<]+<([^>:]+)>`_", path.read_text(encoding="utf-8"))
    assert [link for link in links if not (path.parent / link).exists()] == []
    assert path not in DOCS or f"<{name}>`_" in README


def hook_of(maker: str) -> str:
    """The lines of the README's hook that belong to ``maker``."""
    (_, _, rest) = README.partition("As the VM starts")
    (_, _, rest) = rest.partition(f"{maker}, in ")
    (_, _, rest) = rest.partition("::\n\n")
    return "\n".join(line.strip() for line in rest.partition("\n\n")[0].splitlines())


@pytest.mark.parametrize(
    ("argv", "status", "calls"),
    [
        ("start dev", 0, ["docker-machine start dev", "vmproxy apply --vm dev --wait 60 -q"]),
        ("start", 0, ["docker-machine start", "vmproxy apply --vm default --wait 60 -q"]),
        (
            "create -d virtualbox dev",
            0,
            ["docker-machine create -d virtualbox dev", "vmproxy apply --vm dev --wait 60 -q"],
        ),
        ("ls", 0, ["docker-machine ls"]),
        ("start dev", 1, ["docker-machine start dev"]),
    ],
)
def test_the_docker_machine_hook_runs_vmproxy_after_a_start(
    argv: str, status: int, calls: list[str], tmp_path: Path
) -> None:
    """The README's two lines, in bash: after a successful start the VM is converged, else nothing is added."""
    for name, code in (("docker-machine", status), ("vmproxy", 0)):
        program = tmp_path / name
        program.write_text(f'#!/bin/sh\necho "{name} $*" >>"$LOG"\nexit {code}\n', encoding="utf-8")
        program.chmod(0o755)
    hook = hook_of("docker-machine")
    assert len(hook.splitlines()) == 2
    done = subprocess.run(
        ["bash", "-euc", f"{hook}\ndocker-machine {argv}"],
        env={"PATH": f"{tmp_path}:{os.environ['PATH']}", "LOG": str(tmp_path / "log")},
        check=False,
        timeout=60,
    )
    assert done.returncode == status
    assert (tmp_path / "log").read_text(encoding="utf-8").splitlines() == calls


def test_the_hooks_options_are_right() -> None:
    """Both hooks run a command line that vmproxy takes."""
    for maker in ("docker-machine", "Vagrant"):
        assert "vmproxy apply --vm" in hook_of(maker)
        assert "--wait 60 -q" in hook_of(maker)
        assert len(hook_of(maker).splitlines()) == 2


def test_the_project_speaks_of_itself_alone() -> None:
    """No machine's own paths or addresses of registries in the documents."""
    for path in (*TOP.glob("*.rst"), *(TOP / "docs").iterdir(), TOP / "setup.cfg"):
        assert not re.search(r"/work/|/root/|/tmp/venv|index-url", path.read_text(encoding="utf-8")), path
