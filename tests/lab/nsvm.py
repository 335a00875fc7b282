"""A VM without a machine: namespaces, a RAM root over the staged tree, real sshd, real dockerd, real iptables.

It has this machine's kernel and no boot loader; everything else is as on boot2docker. Up in a quarter of a second.
The VM ends with the process that made it (parent-death signal), and nothing of it is left: see ``leftovers``.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType

from tests.lab import default_cache
from tests.lab.hostside import Relay, Surroundings
from tests.lab.image import build_image
from tests.lab.leftovers import PREFIX, make_groups, remove_groups, started, sweep
from tests.lab.tree import LabError, build_more, build_tree

HERE = Path(__file__).resolve().parent
GUEST = HERE / "guest"
_UIDS = {"root": 0, "docker": 1000}
_ENVIRONMENT = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C"}
# A process that comes in from outside joins the VM's own groups first: else dockerd would see paths above its root.
_JOIN = """
for f in /sys/fs/cgroup/init/cgroup.procs /sys/fs/cgroup/*/cgroup.procs; do
    [ -e "$f" ] && echo 0 >"$f"
done 2>/dev/null
exec "$@"
"""


class NamespaceVM:
    """One VM; a context manager, or :meth:`start` and :meth:`close`.

    ``iptables`` is ``nft`` or ``legacy``; ``docker`` is True (dockerd is started at boot), False (sshd only) or
    ``"stub"`` (a sleeping process named dockerd); ``ssh`` is ``openssh`` or ``dropbear``; ``shell`` is what /bin/sh
    is: dash, bash or busybox. ``overlay`` is a directory laid over the guest's root at every boot. ``release`` is
    another release of Debian for the VM's programs (a key of ``tree.RELEASES``), ``more`` names packages it has beside
    the usual ones.
    Raises LabError where something does not come up; needs root.
    """

    def __init__(
        self,
        *,
        iptables: str = "nft",
        docker: bool | str = True,
        ssh: str = "openssh",
        shell: str = "dash",
        overlay: Path | None = None,
        release: str = "",
        more: tuple[str, ...] = (),
        cache: Path | None = None,
    ) -> None:
        self._release, self._more = release, more
        self._cache = cache or default_cache()
        self._variant, self._docker, self._ssh, self._shell, self._overlay = iptables, docker, ssh, shell, overlay
        self._holder: subprocess.Popen[bytes] | None = None
        self._groups: list[Path] = []
        self.pid = 0
        self.state = Path()
        self.surroundings: Surroundings
        self.relay: Relay

    def __enter__(self) -> NamespaceVM:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # The machine: on, reset, off.

    def start(self) -> None:
        """Build what the cache lacks, switch the VM on, wait for ssh and, unless ``docker`` is False, for Docker."""
        sweep()
        self._tree = build_tree(self._cache, self._release)
        below = [build_more(self._cache, self._more, self._release)] if self._more else []
        self._lower = ":".join(map(str, (self._tree, *below)))
        owner = f"{os.getpid()}-{started(os.getpid())}"
        self.state = Path(tempfile.mkdtemp(prefix=f"{PREFIX}-{owner}-"))
        atexit.register(self.close)
        try:
            (self.state / "root").mkdir()
            self.surroundings = Surroundings(self._tree)
            self.relay = Relay(self.surroundings.host, "10.0.2.15", 22)
            self.boot()
        except BaseException:
            self.close()
            raise

    def boot(self) -> None:
        """Switch on: a new RAM root and empty rules over the disk there is."""
        self.surroundings.plug()
        self._groups = make_groups(self.state.name)
        mode = self._docker if isinstance(self._docker, str) else "yes" if self._docker else "no"
        (self.state / "options").write_text(f"lab_ssh={self._ssh}\nlab_docker={mode}\n", encoding="utf-8")
        join = 'for d in "$@"; do [ "$d" = -- ] && break; echo 0 >"$d/cgroup.procs"; shift; done; shift; exec "$@"'
        guest = GUEST if self._docker != "stub" else HERE / "stub"
        argv = [
            "setpriv", "--pdeathsig", "KILL", "sh", "-ec", join, "sh", *map(str, self._groups), "--",
            *self.surroundings.argv(self.surroundings.vm),
            "unshare", "--mount", "--pid", "--uts", "--ipc", "--cgroup", "--fork", "--kill-child=KILL",
            "sh", str(HERE / "nsstage.sh"), str(self.state), self._lower, str(guest), str(self._overlay or ""),
            self._shell, self._variant,
        ]  # fmt: skip
        with (self.state / "boot.log").open("ab") as log:
            self._holder = subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=_ENVIRONMENT, start_new_session=True
            )
        self._until((self.state / "pid").exists, "the VM's first process")
        self.pid = int((self.state / "pid").read_text())
        (self.state / "pid").unlink()
        self._until(self._greets, "sshd")
        key = " ".join(self.path("/run/lab/host_key.pub").read_text().split()[:2])
        self.known_hosts.write_text(f"[127.0.0.1]:{self.ssh_port} {key}\n", encoding="utf-8")
        if self._docker is True:
            self.wait_for_docker()
        elif self._docker:
            self._until(lambda: self.run(["docker", "version"], check=False).returncode == 0, "the stub")

    def kill(self) -> None:
        """End the VM at once and everything in it, as pulling the plug of a machine; its disk stays."""
        if self.pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
        if self._holder:
            # It ends by itself once it has seen its child's end, and so leaves no zombie to somebody else.
            try:
                self._holder.wait(timeout=60 if self.pid else 0)
            except subprocess.TimeoutExpired:
                self._holder.kill()
                self._holder.wait(timeout=60)
        self._holder, self.pid = None, 0
        remove_groups(self._groups)

    def restart_boot(self) -> None:
        """Pull the plug and boot again on the same disk: profile, docker, ``bootlocal.sh`` run anew, RAM is lost."""
        self.kill()
        self.boot()

    def close(self) -> None:
        """End the VM and remove all of it; safe to call twice."""
        self.kill()
        if hasattr(self, "relay"):
            self.relay.close()
        if hasattr(self, "surroundings"):
            self.surroundings.close()
        if self.state.name.startswith(PREFIX):
            shutil.rmtree(self.state, ignore_errors=True)
        atexit.unregister(self.close)

    # The way in.

    @property
    def ssh_port(self) -> int:
        """The port on this machine's 127.0.0.1 that leads to the VM's port 22; the same after a reset."""
        return self.relay.port

    @property
    def key(self) -> Path:
        """The private key that ``docker`` and ``root`` accept."""
        return self.state / "key"

    @property
    def known_hosts(self) -> Path:
        """A known_hosts file with the VM's host key under ``[127.0.0.1]:PORT``."""
        return self.state / "known_hosts"

    def path(self, inside: str) -> Path:
        """A path of the VM as seen from outside; links in it that are absolute lead out, so name real files."""
        return Path(f"/proc/{self.pid}/root") / inside.lstrip("/")

    # Commands.

    def run(
        self,
        command: str | Sequence[str],
        *,
        user: str = "root",
        stdin: bytes = b"",
        check: bool = True,
        seconds: float = 120.0,
    ) -> subprocess.CompletedProcess[bytes]:
        """Run words, or a script by /bin/sh, in the VM. With ``check`` a failing command raises LabError."""
        words = ["sh", "-c", command] if isinstance(command, str) else list(command)
        uid = str(_UIDS[user])
        if user != "root":
            words = ["setpriv", "--reuid", uid, "--regid", uid, "--init-groups", "--", *words]
        enter = ["nsenter", "-t", str(self.pid), "-m", "-n", "-p", "-u", "-i", "-C", "--"]
        home = "/root" if user == "root" else f"/home/{user}"
        return self._command([*enter, "sh", "-c", _JOIN, "sh", *words], stdin, check, seconds, HOME=home, USER=user)

    def host(
        self, argv: Sequence[str], *, stdin: bytes = b"", check: bool = True, seconds: float = 60.0
    ) -> subprocess.CompletedProcess[bytes]:
        """Run a program of this machine in the host's network (10.0.2.2)."""
        return self._beside(self.surroundings.host, argv, stdin=stdin, check=check, seconds=seconds)

    def lan(
        self, argv: Sequence[str], *, stdin: bytes = b"", check: bool = True, seconds: float = 60.0
    ) -> subprocess.CompletedProcess[bytes]:
        """Run a program of this machine in the LAN neighbour's network (192.168.99.1)."""
        return self._beside(self.surroundings.lan, argv, stdin=stdin, check=check, seconds=seconds)

    def outside(
        self, argv: Sequence[str], *, stdin: bytes = b"", check: bool = True, seconds: float = 60.0
    ) -> subprocess.CompletedProcess[bytes]:
        """Run a program of this machine in the outside host's network (203.0.113.9)."""
        return self._beside(self.surroundings.outside, argv, stdin=stdin, check=check, seconds=seconds)

    def docker(self, *words: str, check: bool = True, seconds: float = 120.0) -> str:
        """``docker …`` in the VM; its stdout without the last newline."""
        return self.run(["docker", *words], check=check, seconds=seconds).stdout.decode().rstrip("\n")

    def start_docker(self) -> None:
        """Start Docker as the boot does, and wait until it answers (in a VM without the stub)."""
        self.run('env -i PATH="$PATH" setsid /etc/init.d/docker start </dev/null >/dev/null 2>&1')
        self.wait_for_docker()

    def wait_for_docker(self, seconds: float = 120.0) -> None:
        """Until dockerd answers a ping on its socket."""
        self._until(self._pings, "dockerd", seconds)

    def import_image(self, name: str = "busybox") -> None:
        """Make the image ``name`` out of the tree's own busybox; no registry is asked."""
        with build_image(self._tree, self._cache).open("rb") as tar:
            self.run(["docker", "import", "-", name], stdin=tar.read())

    @contextlib.contextmanager
    def container_network(self, name: str) -> Iterator[int]:
        """A descriptor of a running container's network namespace, for ``hostside``'s ask, connect and listen."""
        pid = self.docker("inspect", "--format", "{{.State.Pid}}", name)
        network = os.open(self.path(f"/proc/{pid}/ns/net"), os.O_RDONLY)
        try:
            yield network
        finally:
            os.close(network)

    # Inside.

    def _beside(
        self, network: int, argv: Sequence[str], *, stdin: bytes = b"", check: bool = True, seconds: float = 60.0
    ) -> subprocess.CompletedProcess[bytes]:
        return self._command([*self.surroundings.argv(network), *argv], stdin, check, seconds, **os.environ)

    def _command(
        self, argv: list[str], stdin: bytes, check: bool, seconds: float, **environment: str
    ) -> subprocess.CompletedProcess[bytes]:
        done = subprocess.run(
            argv, input=stdin, capture_output=True, timeout=seconds, check=False, env={**_ENVIRONMENT, **environment}
        )
        if check and done.returncode:
            raise LabError(f"{argv[-4:]} ended with {done.returncode}: {done.stderr[-2000:].decode(errors='replace')}")
        return done

    def _until(self, holds: Callable[[], bool], what: str, seconds: float = 60.0) -> None:
        limit = time.monotonic() + seconds
        while not holds():
            if time.monotonic() > limit or (self._holder and self._holder.poll() is not None):
                raise LabError(f"{what} did not come up: {self._logs()}")
            time.sleep(0.01)

    def _logs(self) -> str:
        texts = []
        docker_log = self.state / "disk/boot2docker/log/docker.log"
        for path in (self.state / "boot.log", self.path("/var/log/boot.log"), docker_log):
            with contextlib.suppress(OSError):
                texts.append(f"{path.name}: {path.read_text(encoding='utf-8', errors='replace')[-1500:]}")
        return "\n".join(texts)

    def _greets(self) -> bool:
        with (
            contextlib.suppress(OSError),
            socket.create_connection(("127.0.0.1", self.ssh_port), timeout=5) as connection,
        ):
            return connection.recv(4) == b"SSH-"
        return False

    def _pings(self) -> bool:
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(10)
            connection.connect(str(self.path("/run/docker.sock")))
            connection.sendall(b"GET /_ping HTTP/1.0\r\nHost: docker\r\n\r\n")
            return b"200 OK" in connection.recv(200)
        return False
