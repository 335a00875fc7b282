"""The story that ``scripts/demo`` tells: before, apply, after, reboot, after, remove, gone. Every step is checked."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType

from tests.lab import default_cache, image, tree
from tests.lab.proxy import ANSWER, KNOWN, LabProxy
from tests.lab.qemu import GATEWAY, QemuVM

_COMMAND_SECONDS = 300


class DemoError(Exception):
    """A step did not go as told."""


class Demo:
    """One run. ``state`` is the demo's own directory, ``vmproxy`` the installed command."""

    def __init__(self, state: Path, vmproxy: Path) -> None:
        self._began = time.monotonic()
        self._state = state
        self._vmproxy = vmproxy
        self._run_dir = state / "run"
        self._cache = default_cache() if "VMPROXY_LAB_CACHE" in os.environ else state / "lab"
        self._proxy = LabProxy(socket.create_server(("127.0.0.1", 0)))
        self._vm = QemuVM(state / "vm", cache=self._cache)
        self._variables: dict[str, str] = {}

    def tell(self) -> None:
        """The whole story. Raises DemoError at the first step that is not as told."""
        self._say(f"state in {self._state}")
        # What an earlier run that was killed may have left.
        self._vm.power_cut()
        for directory in (self._state / "vm", self._run_dir):
            shutil.rmtree(directory, ignore_errors=True)
        for name in ("home", "config", "cache"):
            (self._run_dir / name).mkdir(parents=True)

        self._say(f"a proxy on this machine: http://127.0.0.1:{self._proxy.port}; it alone knows http://{KNOWN}/")
        self._timed("the VM's packages and root, about 150 MB at the first run", self._prepare)
        self._timed("the VM boots (emulated, so it takes a while)", self._vm.start)
        self._timed("a busybox image made from the VM's own packages, no registry asked", self._import_image)
        self._write_profile()
        before = self._fingerprint()
        self._variables = json.loads(self._ours("env", "--vm", "boot2docker", "--proxy", self._url, "--format", "json"))
        self._say("a container's variables: " + " ".join(f"{k}={v}" for k, v in self._variables.items() if k.islower()))

        self._ask_expecting("before: the container gets no answer", answered=False)
        self._ours("apply", "--vm", "boot2docker", "--proxy", self._url, shown=True)
        self._ask_expecting("after apply: the proxy answers the container", answered=True)
        said = self._vm.run("docker info 2>/dev/null").text
        self._expect("Docker itself uses the proxy", f"HTTP Proxy: http://{GATEWAY}:{self._proxy.port}" in said)
        self._timed("the VM reboots; all but its disk is lost", self._vm.reboot)
        self._ours("verify", "--vm", "boot2docker", shown=True)
        self._ask_expecting("after the reboot: the proxy answers the container", answered=True)
        self._ours("remove", "--vm", "boot2docker", shown=True)
        self._ask_expecting("after remove: the container gets no answer", answered=False)
        self._expect("the VM's files and rules are what they were before", self._fingerprint() == before)
        self._say("all as told")

    def close(self) -> None:
        """End the VM and the proxy."""
        self._vm.stop()
        self._proxy.close()

    # -- steps --------------------------------------------------------------------------------------------------------

    @property
    def _url(self) -> str:
        return f"http://127.0.0.1:{self._proxy.port}"

    def _prepare(self) -> None:
        image.build_image(tree.build_tree(self._cache), self._cache)
        tree.fetch_kernel(self._cache)

    def _import_image(self) -> None:
        self._vm.import_image()

    def _write_profile(self) -> None:
        """The profile that boot2docker's own command writes; this is how ``--vm boot2docker`` is found."""
        text = f'VM = "boot2docker-vm"\nSSHPort = {self._vm.port}\nSSHKey = {json.dumps(str(self._vm.key))}\n'
        (self._run_dir / "profile").write_text(text, encoding="utf-8")

    def _ours(self, *words: str, shown: bool = False) -> str:
        """Run vmproxy as a user would, with directories of the demo's own. Gives its stdout."""
        environment = {
            "PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8", "HOME": str(self._run_dir / "home"),
            "XDG_CONFIG_HOME": str(self._run_dir / "config"), "XDG_CACHE_HOME": str(self._run_dir / "cache"),
            "XDG_DATA_HOME": str(self._run_dir / "cache"), "XDG_STATE_HOME": str(self._run_dir / "cache"),
            "BOOT2DOCKER_PROFILE": str(self._run_dir / "profile"),
        }  # fmt: skip
        began = time.monotonic()
        print(f"\n    $ vmproxy {shlex.join(words)}", flush=True)
        done = subprocess.run(
            [self._vmproxy, *words],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
            timeout=_COMMAND_SECONDS,
            check=False,
        )
        if shown:
            print("".join(f"    {line}\n" for line in done.stdout.splitlines()), end="", flush=True)
        if done.returncode:
            raise DemoError(f"vmproxy {words[0]} ended with {done.returncode}")
        if shown:
            print(f"    ({time.monotonic() - began:.1f} s)\n", flush=True)
        return done.stdout

    def _ask_expecting(self, what: str, *, answered: bool) -> None:
        """Ask for the name from a container that has the proxy variables."""
        words = [word for name, value in self._variables.items() for word in ("-e", f"{name}={value}")]
        command = ["docker", "run", "--rm", *words, "busybox", "wget", "-q", "-O", "-", f"http://{KNOWN}/"]
        self._proxy.forget()
        print(f"\n    $ docker run --rm -e http_proxy=… busybox wget -q -O - http://{KNOWN}/", flush=True)
        done = self._vm.run(shlex.join(command), check=False, timeout_seconds=_COMMAND_SECONDS)
        said = (done.stdout + done.stderr).decode("utf-8", "backslashreplace").strip()
        print("".join(f"    {line}\n" for line in said.splitlines()), end="", flush=True)
        asked = [line for line in self._proxy.lines if KNOWN in line]
        # docker run itself ends with 125 to 127 where there was no container to ask from.
        refused = done.status not in (0, 125, 126, 127) and not asked
        there = done.status == 0 and ANSWER.decode().strip() in said and len(asked) == 1
        self._expect(what, there if answered else refused)

    def _fingerprint(self) -> str:
        """The VM's rules without counters, and every file that a proxy setting could be in, with owner and mode."""
        return self._vm.root(
            "for t in nat filter; do iptables-save -t $t | sed -n 's/ \\[.*//; /^#/!p'; done; "
            "cd /var/lib/boot2docker; find . -path ./log -prune -o -path ./ssh -prune -o -type f -exec ls -ln {} \\; "
            "| awk '{print $1, $3, $4, $5, $NF}' | sort; "
            "find . -path ./log -prune -o -path ./ssh -prune -o -type f -exec sha256sum {} \\; | sort"
        ).text

    # -- telling ------------------------------------------------------------------------------------------------------

    def _say(self, text: str) -> None:
        print(f"[{time.monotonic() - self._began:6.1f} s] {text}", flush=True)

    def _timed(self, text: str, work: Callable[[], None]) -> None:
        self._say(f"{text} …")
        began = time.monotonic()
        work()
        self._say(f"  done in {time.monotonic() - began:.1f} s")

    def _expect(self, what: str, true: bool) -> None:
        if not true:
            raise DemoError(f"not as told: {what}")
        self._say(f"✔ {what}")


def main() -> int:
    """``python -m tests.lab.demo STATE VMPROXY``: 0 when all was as told."""

    def ended(number: int, _frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, ended)
    demo = Demo(Path(sys.argv[1]), Path(sys.argv[2]))
    try:
        demo.tell()
    except KeyboardInterrupt:
        return 130
    except DemoError as error:
        print(f"\nscripts/demo: {error}", file=sys.stderr)
        return 1
    finally:
        demo.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
