"""pyinfra and ansible-core, each in a virtual environment of its own, doing the same job in many VMs.

The route is read, three rules and two files are seen to, and where something was missing Docker is restarted. Both are
set up as their documentation recommends for speed: all hosts at a time, ansible with pipelining and without facts.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from benchmarks.many import Many
from benchmarks.paired import BenchmarkError, Way
from benchmarks.world import FILES, PORT, ROOT

VERSIONS = {"pyinfra": "3.10.0", "ansible-core": "2.19.14"}
_INSTALL_SECONDS = 600.0
_LIMIT_SECONDS = 400.0
_RESTART = "/etc/init.d/docker restart"

_DEPLOY = f"""
from pyinfra import host
from pyinfra.facts.server import Command
from pyinfra.operations import files, iptables, server

words = host.get_fact(Command, command="ip -4 route show default").split()
gateway = words[words.index("via") + 1]
done = [
    iptables.rule(table="nat", chain="PREROUTING", jump="DNAT", in_interface="docker0", protocol="tcp",
                  destination_port={PORT}, to_destination=gateway + ":{PORT}"),
    iptables.rule(table="nat", chain="POSTROUTING", jump="MASQUERADE", destination=gateway, protocol="tcp",
                  destination_port={PORT}),
    iptables.rule(chain="FORWARD", jump="ACCEPT", destination=gateway, protocol="tcp", destination_port={PORT}),
    *(files.put(src=src, dest=dest, mode=mode) for src, dest, mode in FILES),
]
server.shell(commands=["{_RESTART}"], _if=lambda: any(one.did_change() for one in done))
"""

_PLAYBOOK = [
    {
        "hosts": "all",
        "gather_facts": False,
        "become": True,
        "tasks": [
            {"ansible.builtin.command": "ip -4 route show default", "register": "route", "changed_when": False},
            {"ansible.builtin.set_fact": {"gateway": "{{ route.stdout.split()[2] }}"}},
            {
                "ansible.builtin.iptables": {
                    "table": "nat",
                    "chain": "PREROUTING",
                    "in_interface": "docker0",
                    "protocol": "tcp",
                    "destination_port": str(PORT),
                    "jump": "DNAT",
                    "to_destination": f"{{{{ gateway }}}}:{PORT}",
                },
                "notify": "restart",
            },
            {
                "ansible.builtin.iptables": {
                    "table": "nat",
                    "chain": "POSTROUTING",
                    "destination": "{{ gateway }}",
                    "protocol": "tcp",
                    "destination_port": str(PORT),
                    "jump": "MASQUERADE",
                },
                "notify": "restart",
            },
            {
                "ansible.builtin.iptables": {
                    "chain": "FORWARD",
                    "destination": "{{ gateway }}",
                    "protocol": "tcp",
                    "destination_port": str(PORT),
                    "jump": "ACCEPT",
                },
                "notify": "restart",
            },
            *(
                {
                    "ansible.builtin.copy": {"src": f"{{{{ kept }}}}/{Path(path).name}", "dest": path, "mode": mode},
                    "notify": "restart",
                }
                for path, mode in zip(FILES, ("0644", "0755"), strict=True)
            ),
        ],
        "handlers": [{"name": "restart", "ansible.builtin.command": _RESTART}],
    }
]


def installed(name: str) -> Path:
    """The programs of that package, in an environment that is kept in the cache. Raises BenchmarkError."""
    place = ROOT / ".cache" / f"bench-{name}-{VERSIONS[name]}"
    if not (place / "ready").exists():
        try:
            subprocess.run([sys.executable, "-m", "venv", "--clear", place], check=True, timeout=_INSTALL_SECONDS)
            words = [place / "bin/pip", "install", "-qq", f"{name}=={VERSIONS[name]}"]
            subprocess.run(words, check=True, timeout=_INSTALL_SECONDS)
        except (OSError, subprocess.SubprocessError) as error:
            raise BenchmarkError(f"{name} {VERSIONS[name]} cannot be installed: {error}") from error
        (place / "ready").touch()
    return place / "bin"


def pyinfra(world: Many, before: Callable[[], None]) -> Way:
    """``pyinfra`` with all hosts at a time."""
    kept = _texts(world)
    listed = [(str(kept / Path(path).name), path, mode) for path, mode in zip(FILES, ("644", "755"), strict=True)]
    deploy = world.write("deploy.py", f"FILES = {listed!r}\n{_DEPLOY}")
    data = {
        "ssh_user": "docker",
        "ssh_key": str(world.key),
        "ssh_known_hosts_file": str(world.known),
        "ssh_config_file": "/dev/null",
        "_sudo": True,
    }
    inventory = world.write("inventory.py", f"hosts = ({world.addresses!r}, {data!r})\n")
    words = ("--yes", "--parallel", str(world.count), str(inventory), str(deploy))
    argv = (str(installed("pyinfra") / "pyinfra"), *words)
    return Way(name="pyinfra", argv=argv, environ=world.host.environ, before=before, limit_seconds=_LIMIT_SECONDS)


def ansible(world: Many, before: Callable[[], None]) -> Way:
    """``ansible-playbook`` with all hosts at a time; its shared connections of the round before are ended first."""
    kept = _texts(world)
    playbook = world.write("playbook.yml", json.dumps(_PLAYBOOK))
    variables = f"ansible_user=docker ansible_python_interpreter=/usr/bin/python3 kept={kept}"
    inventory = world.write("inventory", "".join(f"{where} {variables}\n" for where in world.addresses))
    control = kept / "control"
    control.mkdir(exist_ok=True)
    own = f"-F none -o UserKnownHostsFile={world.known} -o IdentitiesOnly=yes"
    environ = {
        **world.host.environ,
        "ANSIBLE_HOME": str(kept / "ansible"),
        "ANSIBLE_FORKS": str(world.count),
        "ANSIBLE_PIPELINING": "1",
        "ANSIBLE_PRIVATE_KEY_FILE": str(world.key),
        "ANSIBLE_SSH_ARGS": f"{own} -o ControlMaster=auto -o ControlPersist=60s",
        "ANSIBLE_SSH_CONTROL_PATH_DIR": str(control),
    }

    def alone() -> None:
        for socket in control.iterdir():
            with contextlib.suppress(subprocess.SubprocessError):
                words = ["ssh", "-F", "none", "-o", f"ControlPath={socket}", "-O", "exit", "x"]
                subprocess.run(words, capture_output=True, check=False, timeout=10)
        before()

    argv = (str(installed("ansible-core") / "ansible-playbook"), "-i", str(inventory), str(playbook))
    return Way(name="ansible", argv=argv, environ=environ, before=alone, limit_seconds=_LIMIT_SECONDS)


def _texts(world: Many) -> Path:
    """The two files, as vmproxy makes them, for those who copy them."""
    for path in FILES:
        world.write(Path(path).name, world.text(path))
    return world.kept
