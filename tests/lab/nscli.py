"""A namespace VM by hand: ``scripts/lab ns up``, then ssh, vmproxy, reset, ``scripts/lab ns down``.

A holder process in the background keeps the VM and a proxy on its host; both end with it.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.lab import default_cache
from tests.lab.hostside import connect, listen
from tests.lab.leftovers import started
from tests.lab.nsvm import NamespaceVM
from tests.lab.proxy import LabProxy
from tests.lab.tree import RELEASES

_WAIT_SECONDS = 600.0


def add_commands(parser: argparse.ArgumentParser) -> None:
    """The namespace VM's options and commands, for the parser of whoever offers them."""
    parser.add_argument("--name", default="lab", help="several can be up at once")
    parser.add_argument("--overlay", type=Path, help="a directory laid over the guest's root at each boot")
    parser.add_argument("--iptables", choices=("nft", "legacy"), default="nft")
    parser.add_argument("--docker", choices=("yes", "no", "stub"), default="yes")
    parser.add_argument("--ssh", choices=("openssh", "dropbear"), default="openssh")
    parser.add_argument("--shell", choices=("dash", "bash", "busybox"), default="dash", help="what /bin/sh is")
    parser.add_argument("--release", choices=("", *RELEASES), default="", help="a release of Debian for the VM")
    parser.add_argument("--proxy", type=int, default=8123, help="port of the proxy on the VM's host (0: none)")
    parser.add_argument("command", choices=("up", "down", "reset", "shell", "root", "status", "hold"))
    parser.add_argument("words", nargs="*", help="for shell (ssh as docker) and root (no ssh): a command, after --")


def run(options: argparse.Namespace) -> int:
    """Do one command. Gives the exit status."""
    record = default_cache() / "ns" / f"{options.name}.json"
    if options.command == "hold":
        return _hold(options, record)
    known = _known(record)
    if options.command == "up" and not known:
        known = _up(options, record)
    elif options.command == "down" and known:
        os.kill(known["holder"], signal.SIGTERM)
        return 0 if _until(lambda: not _known(record)) else 1
    elif options.command == "reset" and known:
        pid = known["pid"]
        os.kill(known["holder"], signal.SIGHUP)
        _until(lambda: _known(record).get("pid", pid) != pid)
        known = _known(record)
    if not known:
        print("the VM is not up", file=sys.stderr)
        return int(options.command != "down")
    ssh = [
        "ssh", "-p", str(known["port"]), "-i", known["key"], "-o", f"UserKnownHostsFile={known['known_hosts']}",
        "-o", "IdentitiesOnly=yes", "-o", "IdentityAgent=none", "-F", "none", "docker@127.0.0.1",
    ]  # fmt: skip
    if options.command == "shell":
        os.execvp("ssh", [*ssh, *options.words])
    if options.command == "root":
        words = options.words or ["/bin/sh", "-l"]
        os.execvp("nsenter", ["nsenter", "-t", str(known["pid"]), "-m", "-n", "-p", "-u", "-i", "-C", "--", *words])
    print(" ".join(ssh))
    print(f"export BOOT2DOCKER_PROFILE={known['profile']}   # then: vmproxy apply --vm boot2docker")
    print(f"files of the VM: /proc/{known['pid']}/root; the proxy's log: {known['log']}")
    return 0


def _up(options: argparse.Namespace, record: Path) -> dict[str, Any]:
    """Start the holder and wait for its record; its own words on stderr where it fails."""
    record.parent.mkdir(parents=True, exist_ok=True)
    names = ("name", "iptables", "docker", "ssh", "shell", "release", "proxy")
    words = [word for name in names for word in _option(options, name)]
    if options.overlay:
        words += ["--overlay", str(options.overlay.resolve())]
    log = record.with_suffix(".log")
    with log.open("wb") as sink:
        holder = subprocess.Popen(
            [sys.executable, "-m", "tests.lab.nscli", *words, "hold"],
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=sink,
            start_new_session=True,
            cwd=Path(__file__).resolve().parents[2],
        )
    _until(lambda: bool(_known(record)) or holder.poll() is not None)
    if not _known(record):
        print(log.read_text(encoding="utf-8", errors="replace"), file=sys.stderr)
    return _known(record)


def _option(options: argparse.Namespace, name: str) -> list[str]:
    return [f"--{name}", str(getattr(options, name))]


def _hold(options: argparse.Namespace, record: Path) -> int:
    """Keep the VM until SIGTERM; SIGHUP resets it."""
    signals = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP}
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    docker = {"yes": True, "no": False}.get(options.docker, options.docker)
    vm = NamespaceVM(
        iptables=options.iptables,
        docker=docker,
        ssh=options.ssh,
        shell=options.shell,
        overlay=options.overlay,
        release=options.release,
    )
    log = record.with_suffix(".proxy.log")
    with vm, log.open("a", encoding="utf-8") as sink:
        if options.docker == "yes":
            vm.import_image()
        network = vm.surroundings.host
        proxy = options.proxy and LabProxy(
            listen(network, "127.0.0.1", options.proxy), log=sink, dial=lambda host, port: connect(network, host, port)
        )
        try:
            while True:
                _write(record, vm, log)
                if signal.sigwait(signals) != signal.SIGHUP:
                    return 0
                vm.restart_boot()
        finally:
            record.unlink(missing_ok=True)
            if proxy:
                proxy.close()


def _write(record: Path, vm: NamespaceVM, log: Path) -> None:
    profile = vm.state / "profile"
    profile.write_text(f"SSHPort = {vm.ssh_port}\nSSHKey = {json.dumps(str(vm.key))}\n", encoding="utf-8")
    facts = {
        "holder": os.getpid(),
        "started": started(os.getpid()),
        "pid": vm.pid,
        "port": vm.ssh_port,
        "key": str(vm.key),
        "known_hosts": str(vm.known_hosts),
        "profile": str(profile),
        "log": str(log),
    }
    fresh = record.with_suffix(".new")
    fresh.write_text(json.dumps(facts), encoding="utf-8")
    fresh.rename(record)


def _known(record: Path) -> dict[str, Any]:
    """What the holder wrote; empty where it is gone."""
    try:
        facts: dict[str, Any] = json.loads(record.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return facts if started(int(facts["holder"])) == facts["started"] else {}


def _until(holds: Callable[[], bool]) -> bool:
    limit = time.monotonic() + _WAIT_SECONDS
    while not holds():
        if time.monotonic() > limit:
            return False
        time.sleep(0.05)
    return True


def main(argv: list[str] | None = None) -> int:
    """The command line. Gives the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.lab.nscli", description=__doc__)
    add_commands(parser)
    return run(parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
