"""The QEMU VM "boot2docker": own kernel, RAM root, one persistent disk, ssh on 127.0.0.1. TCG only, one VM at a time.

    with QemuVM(state, cache=cache) as vm:
        vm.start()
        vm.run("docker info")
        vm.reboot()

A directory ``state`` is one machine: its disk, console log, sockets and known hosts. ``overlay`` is laid over the
guest's root at every boot, so that other boot scripts than the lab's own can be tried.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import io
import json
import os
import random
import shlex
import shutil
import signal
import socket
import subprocess
import tarfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.lab import image, initramfs, tree
from tests.lab.qmp import Qmp, QmpError

MEMORY_MIB = 1024
DISK_MIB = 4096
GATEWAY = "10.0.2.2"
ADDRESS = "10.0.2.15"

_FORMAT_ME = "boot2docker, please format-me"
_BOOT_SECONDS = 300.0
_LOCK_SECONDS = 1800.0
_POLL_SECONDS = 0.1

boots: list[tuple[Path, int]] = []
"""Every boot by this process: the file of the console, and how long it was then."""


class QemuError(RuntimeError):
    """The VM did not do in time what was asked; the text carries the end of its console."""


@dataclass(frozen=True, kw_only=True)
class Done:
    """What a command in the VM gave."""

    stdout: bytes
    stderr: bytes
    status: int

    @property
    def text(self) -> str:
        """stdout as text without the last newline."""
        return self.stdout.decode("utf-8", "backslashreplace").rstrip("\n")


class QemuVM:
    """One VM. ``sshd`` is openssh or dropbear, ``iptables`` legacy or nft; ``port`` 0 takes a free one.

    ``userdata`` is what docker-machine writes on a new disk: see :func:`userdata`.
    """

    def __init__(
        self,
        state: Path,
        *,
        cache: Path,
        overlay: Path | None = None,
        sshd: str = "openssh",
        iptables: str = "legacy",
        port: int = 0,
        userdata: bytes = b"",
        lock: Path | None = None,
    ) -> None:
        self.state = state
        self.cache = cache
        self.overlay = overlay
        self.sshd = sshd
        self.iptables = iptables
        self.port = port
        self.userdata = userdata
        self.key = cache / "ssh" / "id_lab"
        self.known_hosts = state / "known_hosts"
        self.disk = state / "disk.qcow2"
        self.console_log = state / "console.log"
        self.console_socket = state / "console"
        self._lock_path = lock or cache / "qemu.lock"
        self._process: subprocess.Popen[bytes] | None = None
        self._held = False

    def __enter__(self) -> QemuVM:
        """From now on QEMU ends with this process, however that ends."""
        self._held = True
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    # -- life ---------------------------------------------------------------------------------------------------------

    def start(self, *, snapshot: bool = False, wait: str = "docker") -> None:
        """Boot; or with ``snapshot`` restore a machine that was kept right after its first boot, in some seconds.

        ``wait`` is "" (return at once), ``ssh`` or ``docker``. A snapshot is only for a machine that has no disk yet.
        """
        self.state.mkdir(parents=True, exist_ok=True)
        make_key(self.key)
        root = self._image()
        fresh = not self.disk.exists()
        if snapshot and fresh:
            kept = self._kept(root)
            if not (kept / "ready").exists():
                self._keep(root, kept)
            shutil.copyfile(kept / "disk.qcow2", self.disk)
            self._restore(root, kept / "memory")
        else:
            if fresh:
                self._make_disk()
            self._launch(root)
            if wait:
                self.wait_ssh()
        if wait == "docker":
            self.wait_docker()

    def reboot(self, *, wait: str = "docker") -> None:
        """An orderly stop and a cold start on the same disk: the RAM root is new, the disk is what it was.

        Raises QemuError where the guest does not answer: a power cut would be something else."""
        if self.pid() is not None:
            self._end()
        self._forget()
        self.start(wait=wait)

    def power_cut(self) -> None:
        """QEMU is killed: what was not on the disk is gone."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
        elif (pid := self.pid()) is not None:
            os.kill(pid, signal.SIGKILL)
            self._until(lambda: self.pid() is None, 120, "QEMU to end")
        self._forget()

    def stop(self) -> None:
        """Write the disk and end QEMU; safe to call twice. A power cut where the guest does not answer."""
        if self.pid() is None:
            self._forget()
            return
        try:
            self._end()
        except (QmpError, QemuError, OSError, subprocess.SubprocessError):
            self.power_cut()
        self._forget()

    def _end(self) -> None:
        """Write the disk and end QEMU. Raises QemuError or QmpError."""
        self.run("sync", timeout_seconds=120)
        with Qmp(self.state / "qmp") as qmp, contextlib.suppress(QmpError):  # it may be gone before it has answered
            qmp.ask("quit")
        self._until(lambda: self.pid() is None, 120, "QEMU to end")
        if self._process is not None:
            self._process.wait()
            self._process = None

    def pid(self) -> int | None:
        """QEMU's process id while it runs, from any process that looks at the same state directory."""
        if self._process is not None:
            return self._process.pid if self._process.poll() is None else None
        try:
            pid, self.port = json.loads((self.state / "running").read_text(encoding="utf-8"))
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        except (OSError, ValueError):
            return None
        return int(pid) if os.fsencode(str(self.disk)) in b" ".join(words) else None

    # -- talking to it ------------------------------------------------------------------------------------------------

    def run(
        self,
        script: str,
        *,
        stdin: bytes = b"",
        user: str = "docker",
        timeout_seconds: float = 180.0,
        check: bool = True,
    ) -> Done:
        """Run ``script`` by the user's own shell. Raises QemuError where it fails and ``check`` is set, or takes longer
        than it may."""
        words = [*self.ssh_command(user), script]
        try:
            done = subprocess.run(words, input=stdin, capture_output=True, timeout=timeout_seconds, check=False)
        except subprocess.TimeoutExpired as error:
            raise QemuError(
                f"{script!r} has not ended in {timeout_seconds:.0f} s; the console:\n{self._tail('console.log')}"
            ) from error
        if check and done.returncode:
            raise QemuError(f"{script!r} ended with {done.returncode}: {done.stderr[-2000:]!r} {done.stdout[-500:]!r}")
        return Done(stdout=done.stdout, stderr=done.stderr, status=done.returncode)

    def root(self, script: str, *, stdin: bytes = b"", timeout_seconds: float = 180.0, check: bool = True) -> Done:
        """Run ``script`` by sh as root."""
        return self.run(
            f"sudo -n sh -c {shlex.quote(script)}", stdin=stdin, timeout_seconds=timeout_seconds, check=check
        )

    def ssh_command(self, user: str = "docker") -> list[str]:
        """The words of an ssh command into the VM; options of the user's own files are not read."""
        options = {
            "UserKnownHostsFile": self.known_hosts, "GlobalKnownHostsFile": "/dev/null",
            "StrictHostKeyChecking": "accept-new", "BatchMode": "yes", "IdentitiesOnly": "yes", "ConnectTimeout": 90,
            "ServerAliveInterval": 30, "ServerAliveCountMax": 4, "LogLevel": "ERROR",
        }  # fmt: skip
        words = [word for name, value in options.items() for word in ("-o", f"{name}={value}")]
        return ["ssh", "-F", "none", "-i", str(self.key), "-p", str(self.port), *words, f"{user}@127.0.0.1"]

    def wait_ssh(self, limit_seconds: float = _BOOT_SECONDS) -> None:
        """Wait for the server to answer and log in once."""

        def greets() -> bool:
            try:
                with socket.create_connection(("127.0.0.1", self.port), 20) as client:
                    return client.recv(4) == b"SSH-"
            except OSError:
                return False

        def logs_in() -> bool:
            with contextlib.suppress(QemuError):
                return self.run("true", check=False, timeout_seconds=120).status == 0
            return False

        self._until(greets, limit_seconds, "an SSH greeting")
        self._until(logs_in, limit_seconds, "an SSH log-in")

    def wait_docker(self, limit_seconds: float = _BOOT_SECONDS) -> None:
        """Wait in the guest until dockerd answers its ping; one exec does the polling."""
        loop = (
            f"end=$(($(cut -d. -f1 /proc/uptime) + {limit_seconds:.0f})); "
            "until curl -sf -m 10 --unix-socket /var/run/docker.sock http://d/_ping >/dev/null 2>&1; do "
            "[ $(cut -d. -f1 /proc/uptime) -lt $end ] || exit 1; usleep 250000; done"
        )
        done = self.root(loop, check=False, timeout_seconds=limit_seconds + 60)
        if done.status:
            log = self.root("tail -n 30 /var/lib/boot2docker/log/docker.log", check=False).text
            raise QemuError(f"dockerd did not answer in {limit_seconds:.0f} s:\n{log}")

    def import_image(self, name: str = "busybox") -> None:
        """A busybox image made of the staged tree, without any registry."""
        tar = image.build_image(tree.build_tree(self.cache), self.cache)
        self.run(f"docker import -c 'CMD [\"sh\"]' - {shlex.quote(name)}", stdin=tar.read_bytes())

    # -- inside -------------------------------------------------------------------------------------------------------

    def _make_disk(self) -> None:
        """An empty disk, or one that begins with the user data."""
        raw = self.disk.with_suffix(".raw")
        raw.write_bytes(self.userdata)
        os.truncate(raw, DISK_MIB << 20)
        _run("qemu-img", "convert", "-q", "-f", "raw", "-O", "qcow2", str(raw), str(self.disk))
        raw.unlink()

    def _image(self) -> initramfs.Image:
        return _image(self.cache)

    def _member(self) -> bytes:
        conf = f"LAB_SSHD={self.sshd} LAB_IPTABLES={self.iptables}\n".encode()
        public = self.key.with_suffix(".pub").read_bytes()
        return initramfs.member([("conf", conf, 0o644), ("authorized_keys", public, 0o644)], self.overlay)

    def _initrd(self, root: initramfs.Image) -> Path:
        """The file that the guest boots."""
        initrd = self.state / "initrd"
        with initrd.open("wb") as out, root.initrd.open("rb") as base:
            out.write(self._member())
            shutil.copyfileobj(base, out, 1 << 20)
        return initrd

    def _launch(self, root: initramfs.Image, incoming: Path | None = None) -> None:
        """Start QEMU under the lock of one VM a machine; QEMU itself holds the lock until it ends."""
        self.port = self.port or free_port()
        for name in ("qmp", "console", "running"):
            (self.state / name).unlink(missing_ok=True)
        initrd = self._initrd(root)
        lock = _hold(self._lock_path)
        memory = os.open(incoming, os.O_RDONLY) if incoming else -1
        argv = self._argv(root.kernel, initrd)
        if incoming:
            argv += ["-incoming", f"fd:{memory}"]
        if self._held:
            argv = ["setpriv", "--pdeathsig", "KILL", *argv]
        boots.append((self.console_log, self.console_log.stat().st_size if self.console_log.exists() else 0))
        passed = [descriptor for descriptor in (lock, memory) if descriptor >= 0]
        try:
            with (self.state / "qemu.log").open("ab") as log:
                self._process = subprocess.Popen(
                    argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, pass_fds=passed, start_new_session=True
                )
        finally:
            for descriptor in passed:
                os.close(descriptor)
        (self.state / "running").write_text(json.dumps([self._process.pid, self.port]), encoding="utf-8")

    def _argv(self, kernel: Path, initrd: Path) -> list[str]:
        user = f"user,id=net0,net=10.0.2.0/24,host={GATEWAY},dhcpstart={ADDRESS},hostfwd=tcp:127.0.0.1:{self.port}-:22"
        log = self.console_log
        return [
            "qemu-system-x86_64", "-nodefaults", "-no-user-config", "-display", "none",
            "-machine", "q35", "-cpu", "max", "-accel", "tcg,thread=multi", "-smp", "2", "-m", str(MEMORY_MIB),
            # On a busy machine the kernel finds its timer slow, and may give it up for broken.
            "-append", "console=ttyS0 quiet panic=-1 mitigations=off no_timer_check",
            "-kernel", str(kernel), "-initrd", str(initrd),
            "-drive", f"file={self.disk},if=none,id=disk0,format=qcow2,cache=writeback",
            "-device", "virtio-blk-pci,drive=disk0",
            "-netdev", user, "-device", "virtio-net-pci,netdev=net0,romfile=", "-device", "virtio-rng-pci",
            "-chardev", f"socket,id=tty0,path={self.console_socket},server=on,wait=off,logappend=on,logfile={log}",
            "-serial", "chardev:tty0", "-qmp", f"unix:{self.state / 'qmp'},server=on,wait=off",
        ]  # fmt: skip

    def _kept(self, root: initramfs.Image) -> Path:
        """Where the snapshot of just this kernel, root, member and QEMU is kept."""
        version = _run("qemu-system-x86_64", "--version").splitlines()[0]
        shape = json.dumps([root.key, version, self._argv(Path("kernel"), Path("initrd"))[:20], MEMORY_MIB, DISK_MIB])
        digest = hashlib.sha256(shape.encode() + self._member() + Path(__file__).read_bytes())
        return self.cache / f"snapshot-{digest.hexdigest()[:16]}"

    def _keep(self, root: initramfs.Image, kept: Path) -> None:
        """Boot once, stop the clock, write memory and disk aside."""
        shutil.rmtree(kept, ignore_errors=True)
        kept.mkdir(parents=True)
        for old in sorted(self.cache.glob("snapshot-*"), key=lambda path: path.stat().st_mtime)[:-2]:
            shutil.rmtree(old, ignore_errors=True)
        self._make_disk()
        self._launch(root)
        self.wait_ssh()
        self.wait_docker()
        self.root("sync")
        with Qmp(self.state / "qmp") as qmp, (kept / "memory").open("wb") as memory:
            qmp.ask("stop")
            qmp.ask("migrate-set-parameters", **{"max-bandwidth": 1 << 34})
            qmp.ask("getfd", fd=memory.fileno(), fdname="memory")
            qmp.ask("migrate", uri="fd:memory")
            self._until(lambda: qmp.ask("query-migrate")["status"] in ("completed", "failed"), 300, "the snapshot")
            if qmp.ask("query-migrate")["status"] != "completed":
                raise QemuError(f"the snapshot failed: {qmp.ask('query-migrate')}")
            qmp.ask("quit")
        self._until(lambda: self.pid() is None, 120, "QEMU to end")
        self._process = None
        self._forget()
        shutil.move(self.disk, kept / "disk.qcow2")
        (kept / "ready").touch()

    def _restore(self, root: initramfs.Image, memory: Path) -> None:
        """Start from a kept memory. The guest is frozen until QEMU is told to go on; its clock is that of then."""
        self._launch(root, incoming=memory)
        with Qmp(self.state / "qmp", timeout_seconds=60) as qmp:
            self._until(lambda: qmp.ask("query-status")["status"] != "inmigrate", 300, "the snapshot to be read")
            qmp.ask("cont")
        self.wait_ssh()
        self.root(f"date -u -s @{int(time.time())} >/dev/null")

    def _until(self, ready: Callable[[], bool], limit_seconds: float, what: str) -> None:
        limit = time.monotonic() + limit_seconds
        while not ready():
            if self._process is not None and self._process.poll() is not None and "end" not in what:
                raise QemuError(f"QEMU ended while waiting for {what}: {self._tail('qemu.log')}")
            if time.monotonic() > limit:
                raise QemuError(
                    f"waited {limit_seconds:.0f} s for {what}; the console ends with\n{self._tail('console.log')}"
                )
            time.sleep(_POLL_SECONDS)

    def _tail(self, name: str) -> str:
        try:
            return (self.state / name).read_bytes()[-2000:].decode("utf-8", "backslashreplace")
        except OSError:
            return ""

    def _forget(self) -> None:
        for name in ("running", "qmp", "console", "initrd"):
            (self.state / name).unlink(missing_ok=True)


@functools.cache
def _image(cache: Path) -> initramfs.Image:
    """Asked once a process: apt takes seconds to say that nothing changed."""
    return initramfs.build(cache, tree.build_tree(cache), tree.fetch_kernel(cache))


def userdata(public_key: bytes) -> bytes:
    """What docker-machine puts at the start of a new disk: a tar whose first name asks boot2docker to format it."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, content in ((_FORMAT_ME, _FORMAT_ME.encode()), (".ssh/authorized_keys", public_key)):
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(content), 0o644
            tar.addfile(entry, io.BytesIO(content))
    return out.getvalue()


def make_key(path: Path) -> None:
    """An ed25519 key pair at ``path``, once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with (path.parent / "lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            _run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "lab", "-f", str(path))


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nobody listens on, below those that the kernel gives away: a VM that is booted again
    wants it again."""
    while True:
        port = random.randrange(10000, 30000)
        with socket.socket() as listener:
            try:
                listener.bind(("127.0.0.1", port))
            except OSError:
                continue
        return port


def _hold(path: Path) -> int:
    """A descriptor that holds the lock of one VM at a time. Raises QemuError after half an hour."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    limit = time.monotonic() + _LOCK_SECONDS
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > limit:
                os.close(descriptor)
                raise QemuError(f"another VM has held {path} for {_LOCK_SECONDS:.0f} s") from None
            time.sleep(_POLL_SECONDS)
        else:
            return descriptor


def _run(*argv: str) -> str:
    done = subprocess.run(argv, capture_output=True, text=True, timeout=300, check=False)
    if done.returncode:
        raise QemuError(f"{argv[0]} ended with {done.returncode}: {done.stderr[-1000:]}")
    return done.stdout
