"""The QEMU VM "systemd": Debian with its own systemd, docker.io and OpenSSH on a disk; what is written outlives a boot.

    with SystemdVM(state, cache=cache) as vm:
        vm.start()
        vm.root("systemctl is-active docker")
        vm.reboot()

The root is an ext4 image of a staged tree, made once and kept; a VM's disk is laid over it. A small initramfs loads the
disk's driver and goes over to it. ``release="trixie"`` has the programs of Debian 13, systemd 257 and Docker 26 among
them; the kernel stays that of this machine's release.
"""

from __future__ import annotations

import fcntl
import functools
import hashlib
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

from tests.lab import initramfs, kmod, newc, tree
from tests.lab.qemu import ADDRESS, GATEWAY, QemuVM, make_key

_IMAGE_MIB = 4096
_BOOT_SECONDS = 600.0
_OLD_SECONDS = 2 * 86400
_PACKAGES = (*tree.PACKAGES, "systemd", "systemd-sysv")
_UNIT = f"""[Unit]
Description=the lab's network
DefaultDependencies=no
After=systemd-modules-load.service
Before=network.target network-online.target
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/usr/sbin/ip link set lo up
ExecStart=/usr/sbin/ip address add {ADDRESS}/24 dev eth0
ExecStart=/usr/sbin/ip link set eth0 up
ExecStart=/usr/sbin/ip route add default via {GATEWAY}
[Install]
WantedBy=multi-user.target
"""
_FILES = {
    # Without a bus there is no systemd driver for cgroups.
    "etc/docker/daemon.json": '{"exec-opts": ["native.cgroupdriver=cgroupfs"]}\n',
    "etc/fstab": "",
    "etc/hostname": "lab\n",
    "etc/hosts": "127.0.0.1 localhost lab\n",
    "etc/machine-id": "5f2b0c7a9d5e4f0e8a4f5d3c2b1a0918\n",
    "etc/modules-load.d/lab.conf": (initramfs.GUEST / "modules.txt").read_text(encoding="utf-8"),
    "etc/ssh/sshd_config": "HostKey /etc/ssh/ssh_host_ed25519_key\nUsePAM no\nUseDNS no\nPrintMotd no\n"
    "PasswordAuthentication no\nMaxStartups 100\nMaxSessions 100\n",
    "etc/systemd/system/lab-net.service": _UNIT,
}
_WANTED = {
    "multi-user.target.wants": ("ssh.service", "docker.service", "containerd.service", "lab-net.service"),
    "sockets.target.wants": ("docker.socket",),
}
_INIT = """#!/usr/bin/busybox sh
export PATH=/usr/bin
for name in mkdir mount modprobe switch_root sleep; do busybox ln -s busybox /usr/bin/$name; done
mkdir -p /proc /sys /dev /new
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
modprobe virtio_pci
modprobe virtio_blk
while [ ! -b /dev/vda ]; do sleep 0.1; done
mount -t ext4 /dev/vda /new
mount --move /dev /new/dev
exec switch_root /new /lib/systemd/systemd
"""


class SystemdVM(QemuVM):
    """See :class:`tests.lab.qemu.QemuVM`; there are no snapshots, and the user ``docker`` has no password.

    ``release`` is a key of ``tree.RELEASES``, "" for this machine's own.
    """

    def __init__(self, state: Path, *, cache: Path, release: str = "", lock: Path | None = None) -> None:
        super().__init__(state, cache=cache, lock=lock)
        self.release = release

    def wait_docker(self, limit_seconds: float = _BOOT_SECONDS) -> None:
        """systemd knows when it is up."""
        self.root("systemctl start docker.service", timeout_seconds=limit_seconds)

    def _make_disk(self) -> None:
        """A disk over the image that is kept."""
        base = ["-b", str(self._built()[1]), "-F", "raw"]
        _command("qemu-img", "create", "-q", "-f", "qcow2", *base, str(self.disk))

    def _image(self) -> initramfs.Image:
        kernel, _disk, initrd = self._built()
        return initramfs.Image(kernel=kernel, initrd=initrd, key=initrd.stem)

    def _member(self) -> bytes:
        return b""

    def _argv(self, kernel: Path, initrd: Path) -> list[str]:
        more = " net.ifnames=0 audit=0 apparmor=0 systemd.show_status=0 systemd.getty_auto=0"
        words = super()._argv(kernel, initrd)
        place = words.index("-append") + 1
        return [*words[:place], words[place] + more, *words[place + 1 :]]

    def _built(self) -> tuple[Path, Path, Path]:
        make_key(self.key)
        return build(self.cache, self.key.with_suffix(".pub"), self.release)


@functools.cache
def build(cache: Path, public_key: Path, release: str = "") -> tuple[Path, Path, Path]:
    """``(kernel, disk, initrd)`` from the cache, or built now. Raises LabError."""
    packages = (*_PACKAGES, *tree.RELEASES.get(release, ()))
    kind = "-".join(filter(None, ("systemd", release)))
    staged = tree.stage(cache, kind, packages, finish=_finish, release=release)
    kernel = tree.fetch_kernel(cache)
    sources = [Path(__file__), Path(kmod.__file__), initramfs.GUEST / "modules.txt", public_key]
    digest = hashlib.sha256(f"{staged.name} {kernel.name}".encode() + b"".join(path.read_bytes() for path in sources))
    disk = cache / f"disk-{digest.hexdigest()[:16]}.ext4"
    initrd = disk.with_suffix(".cpio")
    with (cache / "lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (disk.exists() and initrd.exists()):
            for old in cache.glob("disk-*"):
                if time.time() - old.stat().st_mtime > _OLD_SECONDS:
                    old.unlink()
            with initrd.with_suffix(".new").open("wb") as out:
                _initrd(staged, kernel).write(out)
            _disk(staged, kernel, public_key, disk.with_suffix(".new-disk"))
            initrd.with_suffix(".new").rename(initrd)
            disk.with_suffix(".new-disk").rename(disk)
    for kept in (disk, initrd):
        os.utime(kept)
    (vmlinuz,) = (kernel / "boot").glob("vmlinuz-*")
    return vmlinuz, disk, initrd


def _initrd(staged: Path, kernel: Path) -> newc.Archive:
    archive = newc.Archive()
    for name in ("bin", "sbin", "lib", "lib64"):
        archive.symlink(name, f"usr/{name}")
    triplet = next((staged / "usr/lib").glob("*-linux-gnu"))
    initramfs._with_libraries(archive, staged, triplet, ["usr/bin/busybox"])
    version, files = kmod.modules(kernel)
    for name, content in files.items():
        archive.file(f"usr/lib/modules/{version}/{name}", content)
    archive.device("dev/console", "c", 5, 1)
    archive.file("init", _INIT.encode(), 0o755)
    return archive


def _disk(staged: Path, kernel: Path, public_key: Path, disk: Path) -> None:
    """The staged tree, the kernel's modules and the lab's key as an ext4 image; nothing has to be mounted for that."""
    with tempfile.TemporaryDirectory(dir=disk.parent, prefix="disk-building-") as building:
        root = Path(building) / "root"
        shutil.copytree(staged, root, symlinks=True)
        _owners(staged, root)
        version, files = kmod.modules(kernel)
        for name, content in files.items():
            place = root / "usr/lib/modules" / version / name
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(content.read_bytes() if isinstance(content, Path) else content)
        for name in ("modules.order", "modules.builtin.modinfo"):
            shutil.copyfile(kernel / "lib/modules" / version / name, root / "usr/lib/modules" / version / name)
        # kmod reads no text indexes.
        _command("chroot", str(root), "/usr/sbin/depmod", version)
        place = root / "home/docker/.ssh/authorized_keys"
        place.parent.mkdir(mode=0o700)
        shutil.copyfile(public_key, place)
        for path in (place, place.parent):
            os.chown(path, 1000, 1000)
        _command("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(root / "etc/ssh/ssh_host_ed25519_key"))
        with disk.open("wb") as made:
            made.truncate(_IMAGE_MIB << 20)
        _command("mke2fs", "-q", "-t", "ext4", "-E", "root_owner=0:0", "-d", str(root), str(disk))


def _owners(source: Path, copy: Path) -> None:
    """The copy's owners and special mode bits as the source's."""
    for path in source.rglob("*"):
        seen = path.lstat()
        there = copy / path.relative_to(source)
        os.chown(there, seen.st_uid, seen.st_gid, follow_symlinks=False)
        if not path.is_symlink():
            os.chmod(there, seen.st_mode & 0o7777)


def _finish(root: Path) -> None:
    """The accounts and links of the other VM's tree, then what is a Debian machine's own."""
    tree._finish(root)
    (root / "etc/os-release").unlink()
    (root / "etc/os-release").symlink_to("../usr/lib/os-release")
    shutil.rmtree(root / "var/lib/boot2docker")
    for path, text in _FILES.items():
        file = root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.unlink(missing_ok=True)
        file.write_text(text, encoding="utf-8")
    system = root / "etc/systemd/system"
    for target, units in _WANTED.items():
        for unit in units:
            (system / target).mkdir(exist_ok=True)
            (system / target / unit).symlink_to(f"/{_place(root, unit)}/{unit}")
    (system / "default.target").unlink(missing_ok=True)
    (system / "default.target").symlink_to("/lib/systemd/system/multi-user.target")
    for unit in ("systemd-networkd.service", "systemd-resolved.service", "e2scrub_reap.service", "apt-daily.timer"):
        (system / unit).unlink(missing_ok=True)
        (system / unit).symlink_to("/dev/null")


def _command(*argv: str) -> None:
    done = subprocess.run(argv, capture_output=True, text=True, timeout=600, check=False)
    if done.returncode:
        raise tree.LabError(f"{argv[0]} ended with {done.returncode}: {done.stderr[-1000:]}")


def _place(root: Path, unit: str) -> str:
    places: Iterable[str] = ("etc/systemd/system", "lib/systemd/system")
    return next(place for place in places if (root / place / unit).exists())
