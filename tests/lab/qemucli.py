"""The QEMU VM by hand: ``python -m tests.lab.qemucli start``, then ssh, vmproxy, reboot, cut, stop.

The machine is in ``qemu/`` below the cache, or where ``--state`` says, and runs until ``stop``.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from pathlib import Path

from tests.lab import default_cache
from tests.lab.qemu import QemuVM


def add_commands(parser: argparse.ArgumentParser) -> None:
    """The QEMU VM's options and commands, for the parser of whoever offers them."""
    parser.add_argument("--state", type=Path, help="the machine's directory (qemu/ in the cache)")
    parser.add_argument("--overlay", type=Path, help="a directory laid over the guest's root at each boot")
    parser.add_argument("--sshd", choices=("openssh", "dropbear"), default="openssh")
    parser.add_argument("--iptables", choices=("legacy", "nft"), default="legacy")
    parser.add_argument("--port", type=int, default=0, help="the ssh port on 127.0.0.1 (a free one)")
    parser.add_argument("--snapshot", action="store_true", help="restore a new machine instead of booting it")
    parser.add_argument("command", choices=("start", "stop", "reboot", "cut", "wipe", "ssh", "status", "image"))
    parser.add_argument("words", nargs="*", help="for ssh: the command to run (-- before options)")


def run(options: argparse.Namespace) -> int:
    """Do one command. Gives the exit status."""
    cache = default_cache()
    vm = QemuVM(
        options.state or cache / "qemu",
        cache=cache,
        overlay=options.overlay,
        sshd=options.sshd,
        iptables=options.iptables,
        port=options.port,
    )
    running = vm.pid()
    if options.command == "start" and running is None:
        vm.start(snapshot=options.snapshot)
    elif options.command == "stop":
        vm.stop()
    elif options.command == "reboot":
        vm.reboot()
    elif options.command == "cut":
        vm.power_cut()
    elif options.command == "wipe":
        vm.power_cut()
        shutil.rmtree(vm.state, ignore_errors=True)
    elif options.command == "image":
        vm.import_image()
    elif options.command == "ssh":
        if running is None:
            print("the VM does not run", file=sys.stderr)
            return 1
        words = vm.ssh_command()
        os.execvp(words[0], [*words, *options.words])
    if vm.pid() is None:
        print("the VM does not run")
        return int(options.command == "status")
    profile = vm.state / "profile"
    profile.write_text(f"SSHPort = {vm.port}\nSSHKey = {json.dumps(str(vm.key))}\n", encoding="utf-8")
    print(f"pid {vm.pid()}, ssh -i {vm.key} -p {vm.port} docker@127.0.0.1, console {vm.console_socket}")
    print(f"export BOOT2DOCKER_PROFILE={profile}   # then: vmproxy apply --vm boot2docker")
    return 0


def main(argv: list[str] | None = None) -> int:
    """The command line. Gives the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.lab.qemucli", description=__doc__)
    add_commands(parser)
    return run(parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
