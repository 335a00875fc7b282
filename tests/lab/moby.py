"""The QEMU VM "moby", as Docker for Mac had one in 2016: no ssh, a log-in on the serial line, all files in the initrd.

    with MobyVM(state, cache=cache) as vm:
        vm.start()
        vm.root("docker info")
        vm.reboot()

The serial line is the unix socket ``vm.console_socket``: root, without a password. The initrd is ``vm.initrd``, the
VM's own copy, and the next boot reads what then stands there. Only Docker's data is on a disk.
"""

from __future__ import annotations

import functools
import json
import re
import shlex
import shutil
from pathlib import Path

from tests.lab import image, initramfs, newc, tree
from tests.lab.qemu import Done, QemuError, QemuVM
from tests.lab.serialline import KERNEL, SerialError, SerialLine

GUEST = Path(__file__).with_name("mobyguest")
SCRIPT = "/etc/init.d/docker"

_WORLD = Path(__file__).resolve().parents[2] / "fixtures/guests/docker-for-mac-2016.json"
_OPENRC = ("dpkg", "openrc")
_BOOT_SECONDS = 600.0
# As upstream's; more than one kind of compression would only cost time here.
_PACKER = ("gz", ("gzip", "-1", "-n", "-c"))
_RUNLEVELS = {"sysinit": (), "boot": ("moby",), "default": ("docker",), "shutdown": ()}
_DIRECTORIES = (
    *("proc", "sys", "dev", "run", "mnt", "usr/bin", "usr/sbin", "usr/lib", "usr/lib64"),
    *("var/lib/docker", "var/log", "var/config/moby"),
)
_FILES = {
    "etc/hostname": "moby\n",
    "etc/hosts": "127.0.0.1 localhost moby\n",
    "etc/passwd": "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/sbin/nologin\n",
    "etc/group": "root:x:0:\ntty:x:5:\nuucp:x:10:\nnogroup:x:65534:\ndocker:x:1000:\n",
    "etc/shadow": "root::17000:0:99999:7:::\nnobody:*:17000:0:99999:7:::\n",
    "etc/profile": "export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\nPS1='\\h:\\w\\$ '\n",
    "etc/fstab": "",
    "etc/insserv.conf": "",  # Debian's OpenRC looks for it
    "etc/resolv.conf": "nameserver 10.0.2.3\n",
    "etc/nsswitch.conf": "passwd: files\ngroup: files\nshadow: files\nhosts: files dns\n",
}


class MobyVM(QemuVM):
    """See :class:`tests.lab.qemu.QemuVM`; there are no snapshots and no user but root.

    ``initrd`` outlives a boot: whoever patches it has the patched VM at the next start.
    """

    def __init__(self, state: Path, *, cache: Path, lock: Path | None = None) -> None:
        super().__init__(state, cache=cache, lock=lock)
        self.initrd = state / "initrd.img"
        self._quiet = 0

    def run(
        self,
        script: str,
        *,
        stdin: bytes = b"",
        user: str = "root",
        timeout_seconds: float = 300.0,
        check: bool = True,
    ) -> Done:
        """Run ``script`` over the serial line, in a log-in of its own. Raises QemuError where it fails and ``check``
        is set, or where nobody answers. There is no input and no other user than root."""
        if stdin or user != "root":
            raise ValueError("the serial line has no input, and only root")
        try:
            with SerialLine(self.console_socket) as line:
                status, output = line.ask(script, limit_seconds=timeout_seconds)
        except (SerialError, OSError) as error:
            raise QemuError(f"the serial line: {error}; the console ends with\n{self._tail('console.log')}") from error
        if check and status:
            raise QemuError(f"{script!r} ended with {status}: {output[-2000:]!r}")
        return Done(stdout=output, stderr=b"", status=status)

    def root(self, script: str, *, stdin: bytes = b"", timeout_seconds: float = 300.0, check: bool = True) -> Done:
        """The same as :meth:`run`."""
        return self.run(script, stdin=stdin, timeout_seconds=timeout_seconds, check=check)

    def wait_ssh(self, limit_seconds: float = _BOOT_SECONDS) -> None:
        """There is no ssh: wait until the line asks for a name. Nobody has to be connected to it for that."""
        self._until(lambda: b"login: " in self._said(), limit_seconds, "a log-in")

    def wait_docker(self, limit_seconds: float = _BOOT_SECONDS) -> None:
        """Wait in the guest until dockerd answers; one log-in does the polling."""
        # Docker's client takes a second of a slow machine's time; its log, in memory, begins with the boot.
        loop = (
            f"end=$(($(cut -d. -f1 /proc/uptime) + {limit_seconds:.0f})); "
            "until grep -q 'API listen on' /var/log/docker.log && docker version >/dev/null 2>&1; do usleep 250000; "
            "[ $(cut -d. -f1 /proc/uptime) -lt $end ] || { tail -n 30 /var/log/docker.log; exit 1; }; done"
        )
        self.root(loop, timeout_seconds=limit_seconds + 60)

    def import_image(self, name: str = "busybox") -> None:
        """A busybox image; its tar is in the guest's root."""
        self.root(f"docker import -c 'CMD [\"sh\"]' /usr/share/lab/image.tar {shlex.quote(name)}")

    def _said(self) -> bytes:
        """What the serial line has said since this boot, but for the kernel's records."""
        try:
            with self.console_log.open("rb") as log:
                log.seek(self._quiet)
                return KERNEL.sub(b"", log.read())
        except FileNotFoundError:
            return b""

    def _image(self) -> initramfs.Image:
        return build(self.cache)

    def _member(self) -> bytes:
        return b""

    def _initrd(self, root: initramfs.Image) -> Path:
        self._quiet = self.console_log.stat().st_size if self.console_log.exists() else 0
        if not self.initrd.exists():
            draft = self.initrd.with_suffix(".new")
            shutil.copyfile(root.initrd, draft)
            draft.rename(self.initrd)
        return self.initrd

    def _argv(self, kernel: Path, initrd: Path) -> list[str]:
        return [re.sub(r",hostfwd=[^,]*", "", word) for word in super()._argv(kernel, initrd)]


@functools.cache
def build(cache: Path) -> initramfs.Image:
    """The kernel and the initrd from the cache, or built now. Raises LabError."""
    base = tree.build_tree(cache)
    openrc = tree.build_more(cache, _OPENRC)
    kernel = tree.fetch_kernel(cache)
    box = image.build_image(base, cache)
    own = repr(sorted(_FILES.items())) + Path(__file__).read_text(encoding="utf-8") + _WORLD.read_text(encoding="utf-8")
    return initramfs.kept(
        cache,
        "moby",
        f"{base.name} {openrc.name} {kernel.name} {box.name} {own}",
        kernel,
        [GUEST, initramfs.GUEST],
        _PACKER,
        lambda: _root(base, openrc, kernel, box),
    )


def _root(base: Path, openrc: Path, kernel: Path, box: Path) -> newc.Archive:
    """The whole root file system."""
    archive = newc.Archive()
    for name in _DIRECTORIES:
        archive.directory(name)
    archive.directory("tmp", 0o1777)
    archive.directory("root", 0o700)
    for name in ("bin", "sbin", "lib", "lib64"):
        archive.symlink(name, f"usr/{name}")
    archive.symlink("var/run", "/run")
    archive.device("dev/console", "c", 5, 1)
    archive.device("dev/null", "c", 1, 3, 0o666)
    for staged in (base, openrc):
        initramfs.programs(archive, staged, GUEST / "programs.txt")
    initramfs.applets(archive, base)
    initramfs.modules(archive, kernel)
    for name in ("iptables", "ip6tables"):
        for tail in ("", "-save", "-restore"):
            archive.symlink(f"etc/alternatives/{name}{tail}", f"/usr/sbin/{name}-legacy{tail}")
    archive.path(openrc / "etc/rc.conf", "etc/rc.conf")
    for name in ("protocols", "services"):
        if (base / "etc" / name).exists():
            archive.path(base / "etc" / name, f"etc/{name}")
    for name, text in _FILES.items():
        archive.file(name, text.encode(), 0o640 if name == "etc/shadow" else 0o644)
    archive.file("etc/os-release", json.loads(_WORLD.read_text(encoding="utf-8"))["os_release"].encode())
    archive.file("init", initramfs.GUEST / "init", 0o755)
    archive.file("usr/bin/mobyconfig", GUEST / "mobyconfig", 0o755)
    archive.file("usr/share/lab/image.tar", box)
    for name in ("inittab", "motd"):
        archive.file(f"etc/{name}", GUEST / name)
    for path in sorted((GUEST / "init.d").iterdir()):
        archive.file(f"etc/init.d/{path.name}", path, 0o755)
    for runlevel, services in _RUNLEVELS.items():
        archive.directory(f"etc/runlevels/{runlevel}")
        for service in services:
            archive.symlink(f"etc/runlevels/{runlevel}/{service}", f"/etc/init.d/{service}")
    return archive
