"""The QEMU VM "moby" by hand: ``python -m tests.lab.mobycli start``, then console, vmproxy, reboot, stop.

The machine is in ``moby/`` below the cache, or where ``--state`` says, and runs until ``stop``.
"""

from __future__ import annotations

import argparse
import os
import select
import shutil
import socket
import sys
import termios
import tty
from pathlib import Path

from tests.lab import default_cache
from tests.lab.moby import MobyVM

_LEAVE = b"\x1d"  # Ctrl-]


def add_commands(parser: argparse.ArgumentParser) -> None:
    """The VM's options and commands, for the parser of whoever offers them."""
    parser.add_argument("--state", type=Path, help="the machine's directory (moby/ in the cache)")
    parser.add_argument("command", choices=("start", "stop", "reboot", "wipe", "console", "run", "status", "image"))
    parser.add_argument("words", nargs="*", help="for run: the command to run (-- before options)")


def run(options: argparse.Namespace) -> int:
    """Do one command. Gives the exit status."""
    cache = default_cache()
    vm = MobyVM(options.state or cache / "moby", cache=cache)
    running = vm.pid() is not None
    if options.command == "start" and not running:
        vm.start()
    elif options.command == "stop":
        vm.stop()
    elif options.command == "reboot":
        vm.reboot()
    elif options.command == "wipe":
        vm.power_cut()
        shutil.rmtree(vm.state, ignore_errors=True)
    elif options.command in ("console", "run", "image"):
        if not running:
            print("the VM does not run", file=sys.stderr)
            return 1
        if options.command == "console":
            return attach(vm.console_socket)
        if options.command == "image":
            vm.import_image()
            return 0
        done = vm.run(" ".join(options.words), check=False)
        sys.stdout.buffer.write(done.stdout)
        return done.status
    if vm.pid() is None:
        print("the VM does not run")
        return int(options.command == "status")
    print(f"pid {vm.pid()}, proxies of this machine's 127.0.0.1 are at 10.0.2.2 for the VM")
    print(f"vmproxy apply --vm console:{vm.console_socket}   # gone at the next start")
    print(f"vmproxy apply --vm initrd:{vm.initrd} --gateway 10.0.2.2   # from the next start on")
    return 0


def attach(path: Path) -> int:
    """This terminal on the serial line, until Ctrl-] or the end of either. Gives the exit status."""
    with socket.socket(socket.AF_UNIX) as line:
        line.connect(str(path))
        print("Ctrl-] leaves the line; log out before that", file=sys.stderr)
        before = termios.tcgetattr(0) if os.isatty(0) else None
        try:
            if before is not None:
                tty.setraw(0)
            line.sendall(b"\r")
            _carry(line)
        finally:
            if before is not None:
                termios.tcsetattr(0, termios.TCSADRAIN, before)
    print(file=sys.stderr)
    return 0


def _carry(line: socket.socket) -> None:
    while True:
        ready, _, _ = select.select([0, line], [], [])
        if line in ready:
            if not (came := line.recv(4096)):
                return
            os.write(1, came)
        if 0 in ready:
            typed = os.read(0, 4096)
            before, left, _ = typed.partition(_LEAVE)
            line.sendall(before)
            if left or not typed:
                return


def main(argv: list[str] | None = None) -> int:
    """The command line. Gives the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.lab.mobycli", description=__doc__)
    add_commands(parser)
    return run(parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
