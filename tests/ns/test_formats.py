"""``vmproxy env --format …``: each format is read back by its real consumer, and gives exactly the value.

Docker 20.10 with both builders, Compose 1.29, seven shells, fish, and systemd's own manager run in one VM, Docker 26
and Compose 2 in another. The values are every character that a value can have, and those on which readers trip.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace

import pytest

from tests.lab.nsvm import NamespaceVM
from tests.values import HARD, every_character, variables
from vmproxy import blocks
from vmproxy.containers import render
from vmproxy.guests import Order, systemd
from vmproxy.model import Facts
from vmproxy.proxyenv import from_environ

EVERY = every_character(length=15_000)
VALUES = (*HARD, *EVERY)
TAKEN_APART = " *?[\\{"
WORDS = (
    *(value for value in HARD if not re.search(r"[ *?\[\\{]|[@+!]\(", value)),
    *every_character(without=TAKEN_APART, length=15_000),
)
# The classic builder takes 0.2 seconds for every ARG line: fewer values, with all the same characters.
FEW = ("", "\\'\"", "$$HOME", " leading and trailing ", "ends with a backslash\\", "".join(HARD).replace("://", ":/"))
FEW_WORDS = ("".join(WORDS[:-5]).replace("://", ":/"), *WORDS[-5:])
PROXY = from_environ(
    {
        **{
            "http_proxy": "http://172.17.0.1:8123",
            "HTTPS_PROXY": "http://172.17.0.1:3128",
            "ftp_proxy": "172.17.0.1:2121",
        },
        **{"no_proxy": "localhost,10.0.0.0/8,.corp.example", "ALL_PROXY": "socks5h://172.17.0.1:1080"},
    }
)
SECRET = "http://me:pass-word@172.17.0.1:8123"


@pytest.fixture(scope="module")
def vm() -> Iterator[NamespaceVM]:
    """One VM with all readers."""
    with NamespaceVM(more=("docker-compose", "fish", "ksh93u+m", "mksh", "systemd", "zsh")) as machine:
        machine.import_image()
        machine.run("mkdir /tmp/work")
        yield machine


@pytest.fixture(scope="module")
def new_vm() -> Iterator[NamespaceVM]:
    """One VM with a newer Docker."""
    with NamespaceVM(release="trixie") as machine:
        machine.import_image()
        machine.run("mkdir /tmp/work")
        yield machine


DOCKERS = pytest.mark.parametrize("which", ["vm", "new_vm"], ids=["20.10", "26"])


def put(vm: NamespaceVM, name: str, text: str) -> None:
    """A file in the VM's /tmp/work."""
    vm.path(f"/tmp/work/{name}").write_text(text, encoding="utf-8")


def environment(data: bytes) -> dict[str, str]:
    """What /proc/self/environ says."""
    return dict(item.decode().split("=", 1) for item in data.split(b"\0") if item)


def assert_within(found: Mapping[str, str], wanted: Mapping[str, str]) -> None:
    """Every wanted variable is there with its exact value; no command in a value was run."""
    wrong = {name: (found.get(name), value) for name, value in wanted.items() if found.get(name) != value}
    assert not wrong


def no_canary(vm: NamespaceVM) -> None:
    """No command that stands in a value has run."""
    assert not vm.path("/tmp/canary").exists()


SHELLS = (
    "dash -c", "busybox sh -c", "bash -c", "bash -O extglob -O nullglob -c", "bash -O extglob -O failglob -c",
    "bash --posix -c", "ksh93 -c", "mksh -c", "zsh -c", "zsh -o sh_word_split -o extended_glob -c",
)  # fmt: skip


def test_p4_every_shell_leaves_the_words_whole(vm: NamespaceVM) -> None:
    """``$(…)`` unquoted in ten moods of seven shells, among files that patterns would find; fish takes lines apart."""
    pairs = variables("W", WORDS)
    put(vm, "arguments", render(pairs, "docker-run"))
    wanted = [word for name, value in pairs.items() for word in ("-e", f"{name}={value}")]
    print_all = "'%s\\0'"
    for shell in SHELLS:
        put(vm, "script", f'set -- $(cat ../arguments); printf {print_all} "$@"')
        script = f'mkdir -p files && cd files && touch e W a "W0=#" && exec {shell} "$(cat ../script)"'
        done = vm.run(["env", "LC_ALL=C.UTF-8", "sh", "-c", f"cd /tmp/work && {script}"])
        assert [word.decode() for word in done.stdout.split(b"\0")[:-1]] == wanted, shell
        assert not done.stderr
    put(vm, "script", f"printf {print_all} (cat arguments | string split -m 1 ' ')")
    done = vm.run(["env", "LC_ALL=C.UTF-8", "sh", "-c", "cd /tmp/work && exec fish --no-config script"])
    assert [word.decode() for word in done.stdout.split(b"\0")[:-1]] == wanted
    no_canary(vm)


@DOCKERS
def test_p4_docker_run_reads_arguments_and_env_file(which: str, request: pytest.FixtureRequest) -> None:
    """One container: ``$(…)`` unquoted, credentials by name, and --env-file; a container's own -e behind them wins."""
    vm: NamespaceVM = request.getfixturevalue(which)
    words = variables("W", WORDS) | {"SECRET": SECRET} | PROXY
    lines = variables("F", VALUES)
    put(vm, "arguments", render(words, "docker-run"))
    put(vm, "file", render(lines, "dotenv"))
    assert SECRET not in render(words, "docker-run")
    run = "docker run --rm $(cat arguments) --env-file file -e no_proxy=own busybox cat /proc/self/environ"
    done = vm.run(["env", f"SECRET={SECRET}", "sh", "-c", f"cd /tmp/work && exec {run}"])
    assert_within(environment(done.stdout), words | lines | {"no_proxy": "own"})
    no_canary(vm)


BUILDERS = pytest.mark.parametrize(
    ("which", "buildkit"), [("vm", "0"), ("vm", "1"), ("new_vm", "1")], ids=["classic", "buildkit", "buildx"]
)


@BUILDERS
def test_p4_docker_build_reads_arguments_and_dockerfile(
    which: str, buildkit: str, request: pytest.FixtureRequest
) -> None:
    """RUN sees the predefined proxies, declared build arguments and ARG defaults; the image has none of it as ENV.

    The proxy given by ``--build-arg`` alone is not in the image's history either. ALL_PROXY needs its ARG in 20.10.
    What is said behind the list wins, in both cases of the name: of two that differ BuildKit takes either.
    """
    vm: NamespaceVM = request.getfixturevalue(which)
    words = variables("W", FEW_WORDS) | {"PIP_INDEX_URL": "http://172.17.0.1:3141/root/pypi/+simple/"}
    lines = variables("D", (*FEW, *EVERY) if buildkit == "0" else VALUES)
    late = ("ALL_PROXY", "all_proxy") if which == "vm" else ()
    declared = "".join(f"ARG {name}\n" for name in (*words, *late))
    text = f"FROM busybox\n{declared}{render(lines, 'dockerfile')}RUN cat /proc/self/environ > /environ\n"
    put(vm, "Dockerfile", text)
    put(vm, "arguments", render(words | PROXY, "docker-build"))
    own = {"no_proxy": "own", "NO_PROXY": "own"}
    behind = " ".join(f"--build-arg {name}={value}" for name, value in own.items())
    build = f"DOCKER_BUILDKIT={buildkit} docker build --no-cache $(cat arguments) {behind} -t made{buildkit} -"
    vm.run(f"cd /tmp/work && {build} < Dockerfile")
    found = environment(vm.run(["docker", "run", "--rm", f"made{buildkit}", "cat", "/environ"]).stdout)
    assert_within(found, words | lines | PROXY | own)
    no_canary(vm)
    assert "172.17.0.1:8123" not in vm.docker("history", "--no-trunc", f"made{buildkit}")
    baked = json.loads(vm.docker("inspect", "--format", "{{json .Config.Env}}", f"made{buildkit}")) or []
    assert [line for line in baked if not line.startswith("PATH=")] == []


@pytest.mark.parametrize(("which", "compose"), [("vm", "docker-compose"), ("new_vm", "docker compose")])
def test_p4_compose_reads_the_fragment(which: str, compose: str, request: pytest.FixtureRequest) -> None:
    """Compose 1.29 and 2: the fragment below a service gives environment and build arguments, ``$`` and all."""
    vm: NamespaceVM = request.getfixturevalue(which)
    # Its reader of YAML takes a second for ten thousand escapes: every 40th character.
    pairs = variables("C", (*FEW, "".join(EVERY)[::40])) | PROXY
    put(
        vm,
        "Dockerfile",
        f"FROM busybox\n{''.join(f'ARG {name}{chr(10)}' for name in pairs)}RUN cat /proc/self/environ > /environ\n",
    )
    fragment = re.sub("(?m)^", "    ", render(pairs, "compose")).replace(
        "    build:\n", "    build:\n      context: .\n"
    )
    put(vm, "docker-compose.yml", f"version: '3.4'\nservices:\n  one:\n{fragment}\n")
    script = f"cd /tmp/work && export HOME=/wrong && {compose} build -q one && {compose} run --rm -T one"
    done = vm.run(f"{script} sh -c 'cat /proc/self/environ; echo; echo ---; cat /environ'", seconds=300)
    ran, _, built = done.stdout.partition(b"\n---\n")
    assert_within(environment(ran), pairs)
    assert_within(environment(built), pairs)
    no_canary(vm)


@pytest.mark.parametrize("locale", ["C.UTF-8", "C"])
def test_p4_fish_reads_its_lines(vm: NamespaceVM, locale: str) -> None:
    """``vmproxy env --format fish | source`` exports exactly the values, and sets nothing else."""
    pairs = variables("S", VALUES) | PROXY
    put(vm, "lines.fish", render(pairs, "fish"))
    script = "set -n | sort > before; source < lines.fish; set -n | sort > after; command cat /proc/self/environ"
    done = vm.run(["env", f"LC_ALL={locale}", "sh", "-c", f"cd /tmp/work && exec fish --no-config -c '{script}'"])
    assert not done.stderr
    assert_within(environment(done.stdout), pairs)
    names = [set(vm.path(f"/tmp/work/{file}").read_text().split()) for file in ("before", "after")]
    assert names[1] - names[0] == set(pairs)
    no_canary(vm)


def test_p4_systemd_reads_the_drop_in(vm: NamespaceVM) -> None:
    """A service's drop-in, and the file for credentials, read and run by systemd's own manager: exactly the values."""
    pairs = variables("U", VALUES) | PROXY
    vm.run("mkdir -p -m 700 /run/systemd/system /tmp/runtime /tmp/units/probe.service.d")
    vm.path("/tmp/units/probe.service").write_text(
        "[Unit]\nDefaultDependencies=no\nSuccessAction=exit-force\nFailureAction=exit-force\n"
        "[Service]\nType=oneshot\nExecStart=/bin/cp /proc/self/environ /tmp/work/environ\n"
    )
    vm.path("/tmp/units/probe.service.d/proxy.conf").write_text(render(pairs, "systemd"), encoding="utf-8")
    # The file with credentials, as the systemd guest writes it, beside it.
    inside = variables("F", VALUES)
    order = Order(environment=inside, door=None, variant="default", record={}, secret=True)
    file, drop_in = systemd.render(order, Facts())
    vm.path(systemd.ENVIRONMENT).write_bytes(blocks.put(None, file.payload, where="last", record={}))
    vm.path("/tmp/units/probe.service.d/secret.conf").write_bytes(drop_in.payload)
    shown = variables("G", VALUES)
    (drop_in,) = systemd.render(replace(order, environment=shown, secret=False), Facts())
    vm.path("/tmp/units/probe.service.d/10-vmproxy.conf").write_bytes(drop_in.payload)
    manager = "timeout -s KILL 120 /usr/lib/systemd/systemd --user --unit=probe.service --log-target=console"
    done = vm.run(f"XDG_RUNTIME_DIR=/tmp/runtime SYSTEMD_UNIT_PATH=/tmp/units {manager} </dev/null", check=False)
    vm.run(f"rmdir /run/systemd/system; rm {systemd.ENVIRONMENT}")
    assert done.returncode == 0, done.stderr[-1000:]
    assert_within(environment(vm.path("/tmp/work/environ").read_bytes()), pairs | inside | shown)
    no_canary(vm)
