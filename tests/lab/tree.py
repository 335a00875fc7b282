"""One staged Debian or Ubuntu tree with everything both kinds of VM need, and the kernel for QEMU.

Nothing is installed on this machine: apt resolves and downloads against an empty status file, the packages are only
unpacked, no maintainer script runs, and the few things those scripts would have made are made here. Needs root (owners
and modes are kept). The cache holds::

    debs/          downloaded packages, shared by all builds
    tree-KEY/      a staged tree; KEY names the packages with their hashes and this file's own text
    tree-NAME-KEY/ the same of another release of the distribution, from the same mirror
    more-NAME-KEY/ packages that lie over a tree where a test asks for them
    lists-NAME/    what apt knows of another release
    kernel-KEY/    boot/vmlinuz-… and lib/modules/…
"""

from __future__ import annotations

import fcntl
import functools
import hashlib
import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

# fmt: off
PACKAGES = (
    "base-files", "base-passwd", "bash", "busybox", "ca-certificates", "coreutils", "curl", "dash", "debianutils",
    "diffutils", "docker.io", "dropbear-bin", "e2fsprogs", "findutils", "gawk", "grep", "gzip", "hostname",
    "iproute2", "iptables", "iputils-ping", "kmod", "libc-bin", "libpam-modules", "mount", "net-tools",
    "netcat-openbsd", "openssh-client", "openssh-server", "openssl", "procps", "sed", "strace", "sudo", "tar",
    "util-linux", "wget",
)
# fmt: on
"""What is asked for; apt adds what these need. kmod and e2fsprogs are for the QEMU VM."""

RELEASES: dict[str, tuple[str, ...]] = {"trixie": ("docker-cli", "docker-buildx", "docker-compose")}
"""Releases of Debian that a tree can be made of beside this machine's own, and what their docker.io leaves out."""

_DEADLINE_SECONDS = 900
_TRIES = 4
_PAUSE_SECONDS = 15.0
_OLD_SECONDS = 2 * 86400
_LISTS_SECONDS = 86400
_IPTABLES = tuple(f"{family}{tail}" for family in ("iptables", "ip6tables") for tail in ("", "-save", "-restore"))

# SHA-512 crypt of boot2docker's well-known password, "tcuser".
_TCUSER = "$6$vmproxylab$CFn0ZcZRJ25wHUmL5m..O7O7hbg0niSKu0WO5frLHwPZypn28snorg.grW0pDypvrgqlA1j/2GnWO6Bdk4r9l."

_FILES = {
    "etc/passwd": "root:x:0:0:root:/root:/bin/bash\nsshd:x:74:65534::/run/sshd:/usr/sbin/nologin\n"
    "nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\ndocker:x:1000:1000:Docker:/home/docker:/bin/sh\n",
    "etc/group": "root:x:0:\ntty:x:5:\nstaff:x:50:\nshadow:x:42:\nutmp:x:43:\nnogroup:x:65534:\ndocker:x:1000:\n",
    "etc/shadow": f"root:*:19000:0:99999:7:::\nsshd:*:19000:0:99999:7:::\nnobody:*:19000:0:99999:7:::\n"
    f"docker:{_TCUSER}:19000:0:99999:7:::\n",
    "etc/os-release": "NAME=Boot2Docker\nVERSION=19.03.12\nID=boot2docker\nID_LIKE=tcl\nVERSION_ID=19.03.12\n"
    'PRETTY_NAME="Boot2Docker 19.03.12 (lab)"\n',
    "etc/sudoers": "Defaults secure_path=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\n"
    "root ALL=(ALL:ALL) ALL\ndocker ALL=(ALL) NOPASSWD: ALL\n",
    "etc/shells": "/bin/sh\n/bin/bash\n/bin/dash\n",
    "etc/hosts": "127.0.0.1 localhost boot2docker\n::1 localhost\n",
    "etc/hostname": "boot2docker\n",
    "etc/resolv.conf": "nameserver 10.0.2.3\n",
    "etc/nsswitch.conf": "passwd: files\ngroup: files\nshadow: files\nhosts: files dns\n",
    "etc/profile": "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\nexport PATH\n",
    "etc/pam.d/common-auth": "auth required pam_unix.so\n",
    "etc/pam.d/common-account": "account required pam_permit.so\n",
    "etc/pam.d/common-password": "password required pam_unix.so\n",
    "etc/pam.d/common-session": "session required pam_permit.so\n",
    "etc/pam.d/common-session-noninteractive": "session required pam_permit.so\n",
    "etc/pam.d/sudo": "auth required pam_unix.so\naccount required pam_permit.so\nsession required pam_permit.so\n",
    "etc/ssh/sshd_config": "Port 22\nHostKey /var/lib/boot2docker/ssh/ssh_host_ed25519_key\nUsePAM no\n"
    "PermitRootLogin yes\nPasswordAuthentication yes\nKbdInteractiveAuthentication no\n"
    "UseDNS no\nPrintMotd no\nStrictModes yes\n"
    "MaxStartups 100\nMaxSessions 100\nPidFile /run/sshd.pid\nSubsystem sftp /usr/lib/openssh/sftp-server\n",
}
_MODES = {"etc/shadow": 0o640, "etc/sudoers": 0o440}
_DIRECTORIES = {
    "proc": 0o555, "sys": 0o555, "dev": 0o755, "run": 0o755, "run/sshd": 0o755, "tmp": 0o1777, "root": 0o700, "mnt":
    0o755, "var/tmp": 0o1777, "var/log": 0o755, "var/lib/docker": 0o711, "var/lib/boot2docker": 0o755,
    "home/docker": 0o755, "usr/local/bin": 0o755, "usr/local/sbin": 0o755, "usr/local/etc": 0o755, "opt": 0o755,
    "etc/init.d": 0o755, "etc/dropbear": 0o755,
}  # fmt: skip


class LabError(Exception):
    """The lab could not be built or started; the text says which command and what it answered."""


@functools.cache
def build_tree(cache: Path, release: str = "") -> Path:
    """The staged tree for today's package versions; built now where the cache has none. Raises LabError.

    ``release`` is a key of :data:`RELEASES`, "" for this machine's own.
    """
    if not release:
        return stage(cache, "tree", PACKAGES, finish=_finish)
    return stage(cache, f"tree-{release}", (*PACKAGES, *RELEASES[release]), finish=_finish, release=release)


@functools.cache
def build_more(cache: Path, packages: tuple[str, ...], release: str = "") -> Path:
    """A directory with these packages and all they need, to lie below a tree of the same release. Raises LabError."""
    return stage(cache, "-".join(["more", *filter(None, [release]), *packages]), packages, release=release)


def fetch_kernel(cache: Path) -> Path:
    """A directory with ``boot/vmlinuz-VERSION`` and ``lib/modules/VERSION`` (depmod not run). Raises LabError.

    Debian's cloud kernel; on Ubuntu the virtual kernel with its modules package.
    """
    arch = _command("dpkg", "--print-architecture").strip()
    ubuntu = re.search(r"^ID=\"?ubuntu", Path("/etc/os-release").read_text(encoding="utf-8"), re.MULTILINE)
    package = "linux-image-virtual" if ubuntu else f"linux-image-cloud-{arch}"
    return stage(cache, "kernel", (package,), wanted=r"linux-(image|modules)-\d")


def use_iptables(root: Path, variant: str) -> None:
    """Point the alternatives links below ``root`` at ``nft`` or ``legacy``, as update-alternatives would."""
    for name in _IPTABLES:
        family, _, tail = name.partition("-")
        link = root / "etc/alternatives" / name
        link.unlink(missing_ok=True)
        link.symlink_to(f"/usr/sbin/{family}-{variant}{'-' + tail if tail else ''}")


def stage(
    cache: Path,
    kind: str,
    packages: tuple[str, ...],
    *,
    wanted: str = "",
    finish: Callable[[Path], None] | None = None,
    release: str = "",
) -> Path:
    """The directory ``kind-KEY`` in the cache with these packages and all they need, unpacked.

    ``wanted`` is a pattern that picks among the packages by file name; ``finish`` is run on the new tree; ``release``
    is another release of the distribution. It is built under a lock, beside its final place, and renamed: two builders
    at once make one. Raises LabError.
    """
    cache.mkdir(parents=True, exist_ok=True)
    (cache / "debs" / "partial").mkdir(parents=True, exist_ok=True)
    with _locked(cache / "lock"):
        for left in reversed(range(_TRIES)):
            try:
                closure = [line for line in _closure(cache, release, packages) if re.match(wanted, line.split()[1])]
                text = "\n".join([*sorted(closure), Path(__file__).read_text(encoding="utf-8")])
                final = cache / f"{kind}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"
                if final.is_dir():
                    os.utime(final)
                    return final
                debs = _fetched(cache, release, packages, closure)
                break
            except LabError:
                if not left:
                    raise
                # A mirror that does not answer; or lists that name packages it has newer ones of by now.
                time.sleep(_PAUSE_SECONDS)
                with suppress(LabError):
                    _update(cache, release)
        building = Path(tempfile.mkdtemp(prefix=f"{kind}-building-", dir=cache))
        try:
            building.chmod(0o755)
            _unpack(debs, building)
            if finish:
                finish(building)
            building.rename(final)
            # tar gave it the date of the packages, which would be old enough for _prune.
            os.utime(final)
            _prune(cache, kind)
        finally:
            shutil.rmtree(building, ignore_errors=True)
        return final


def _prune(cache: Path, kind: str) -> None:
    """Remove what no build has asked for lately; a younger one may be the root of somebody's VM."""
    for old in cache.glob(f"{kind}-*"):
        key = old.name.removeprefix(f"{kind}-")
        if re.fullmatch("[0-9a-f]{16}|building-.*", key) and time.time() - old.stat().st_mtime > _OLD_SECONDS:
            shutil.rmtree(old, ignore_errors=True)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold the cache's lock; it goes with the process that holds it."""
    with path.open("a") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _closure(cache: Path, release: str, packages: tuple[str, ...]) -> list[str]:
    """``'URI' FILE SIZE HASH`` of every package that a machine with nothing installed would need."""
    words = ("--print-uris", "-y", "-qq", "install", *packages)
    lists = cache / f"lists-{release}" / "partial"
    if release and (not lists.is_dir() or time.time() - lists.stat().st_mtime > _LISTS_SECONDS):
        # apt moves what it got out of there, so this is when it last looked.
        _update(cache, release)
        os.utime(lists)
    try:
        text = _apt(cache, release, *words)
    except LabError:
        # A fresh machine or container image has no package lists yet.
        _update(cache, release)
        text = _apt(cache, release, *words)
    return [line for line in text.splitlines() if line.startswith("'")]


def _fetched(cache: Path, release: str, packages: tuple[str, ...], closure: list[str]) -> list[Path]:
    """The files of these lines in the cache, downloaded where one is missing or not whole. Raises LabError."""
    sizes = {cache / "debs" / line.split()[1]: int(line.split()[2]) for line in closure}

    def missing() -> list[Path]:
        return [deb for deb, size in sizes.items() if not deb.is_file() or deb.stat().st_size != size]

    if missing():
        for deb in missing():
            deb.unlink(missing_ok=True)
        _apt(cache, release, "--download-only", "-y", "-qq", "install", *packages)
    if missing():
        raise LabError(f"apt has not fetched {', '.join(deb.name for deb in missing())}")
    return list(sizes)


def _update(cache: Path, release: str) -> None:
    """Fetch the package lists: of this machine, or, into the cache, of another release."""
    if not release:
        _command("apt-get", "update", "-qq")
        return
    sources = cache / f"sources-{release}.list"
    (cache / f"lists-{release}" / "partial").mkdir(parents=True, exist_ok=True)
    sources.touch(mode=0o600)
    sources.write_text(f"deb {mirror()} {release} main\n", encoding="utf-8")
    _apt(cache, release, "-qq", "-o", "APT::Update::Error-Mode=any", "update")


def mirror() -> str:
    """The base address of the distribution's mirror, as this machine's own apt is told to use it. Raises LabError."""
    system = Path("/etc/os-release").read_text(encoding="utf-8")
    name = re.search(r"^VERSION_CODENAME=\"?([a-z]+)", system, re.MULTILINE)
    asked = _command("apt-get", "--print-uris", "update")
    found = name and re.search(rf"^'(\S+?)/dists/{name[1]}/", asked, re.MULTILINE)
    if not found:
        raise LabError("the sources of this machine's apt do not name its own release")
    return found[1]


def _apt(cache: Path, release: str, *argv: str) -> str:
    """apt-get with nothing installed, no recommendations, and its archives in the cache."""
    status = cache / "status"
    status.touch()
    # --print-uris leaves out what is downloaded already: so it is asked with an archive directory that stays empty.
    archives = cache / ("debs" if "--download-only" in argv else "none")
    (archives / "partial").mkdir(parents=True, exist_ok=True)
    options: dict[str, object] = {
        "Dir::State::status": status,
        "Dir::Cache::archives": archives,
        "Dir::Cache::pkgcache": "",
        "Dir::Cache::srcpkgcache": "",
        "APT::Install-Recommends": "0",
        "APT::Install-Suggests": "0",
        "APT::Sandbox::User": "root",
        "Acquire::Retries": "5",
        "Debug::NoLocking": "1",
    }
    if release:
        # The release's own keys are in debian-archive-keyring since 12.11; it is signed with the older ones as well.
        options |= {
            "Dir::State::lists": cache / f"lists-{release}",
            "Dir::Etc::sourcelist": cache / f"sources-{release}.list",
            "Dir::Etc::sourceparts": "/dev/null",
            "Acquire::Languages": "none",
        }
    return _command("apt-get", *(word for name, value in options.items() for word in ("-o", f"{name}={value}")), *argv)


def _command(*argv: str) -> str:
    """stdout of one command of this machine; LabError with the end of stderr where it fails."""
    environment = {**os.environ, "LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"}
    try:
        done = subprocess.run(
            argv,
            capture_output=True,
            text=True,
            timeout=_DEADLINE_SECONDS,
            env=environment,
            check=False,
            stdin=subprocess.DEVNULL,
        )
    except subprocess.TimeoutExpired as error:
        raise LabError(f"{argv[0]} {argv[-1]} has not ended in {_DEADLINE_SECONDS} s") from error
    if done.returncode:
        raise LabError(f"{argv[0]} {argv[-1]} ended with {done.returncode}: {done.stderr.strip()[-2000:]}")
    return done.stdout


def _unpack(debs: list[Path], root: Path) -> None:
    """Unpack every package into ``root``, whose /bin, /sbin and /lib are merged into /usr first."""
    for name in ("bin", "sbin", "lib", "lib64"):
        (root / "usr" / name).mkdir(parents=True, exist_ok=True)
        (root / name).symlink_to(f"usr/{name}")
    for deb in debs:
        with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", deb], stdout=subprocess.PIPE) as reader:
            tar: list[str | Path] = ["tar", "-x", "-p", "--numeric-owner", "--keep-directory-symlink", "-C", root]
            done = subprocess.run(tar, stdin=reader.stdout, capture_output=True, text=True, check=False, timeout=300)
        if done.returncode or reader.returncode:
            raise LabError(f"cannot unpack {deb.name}: {done.stderr.strip()[-500:]}")


def _finish(root: Path) -> None:
    """Make what maintainer scripts would have made: accounts, links, the linker's cache."""
    for path, mode in _DIRECTORIES.items():
        (root / path).mkdir(parents=True, exist_ok=True)
        (root / path).chmod(mode)
    for path, text in _FILES.items():
        file = root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.unlink(missing_ok=True)
        file.write_text(text, encoding="utf-8")
        file.chmod(_MODES.get(path, 0o644))
    os.chown(root / "etc/shadow", 0, 42)
    for path in ("home/docker", "var/lib/boot2docker"):
        os.chown(root / path, 1000, 1000)
    (root / "etc/alternatives").mkdir(exist_ok=True)
    for name in _IPTABLES:
        link = root / "usr/sbin" / name
        link.unlink(missing_ok=True)
        link.symlink_to(f"/etc/alternatives/{name}")
    use_iptables(root, "nft")
    for path, to in {"usr/bin/awk": "gawk", "usr/bin/nc": "nc.openbsd", "usr/bin/which": "which.debianutils"}.items():
        if not os.path.lexists(root / path) and (root / "usr/bin" / to).exists():
            (root / path).symlink_to(to)
    for name in ("run", "lock"):
        shutil.rmtree(root / "var" / name, ignore_errors=True)
        (root / "var" / name).symlink_to("/run" if name == "run" else "/run/lock")
    if not os.path.lexists(root / "etc/mtab"):
        (root / "etc/mtab").symlink_to("/proc/self/mounts")
    for junk in ("usr/share/doc", "usr/share/man", "usr/share/locale", "usr/share/info"):
        shutil.rmtree(root / junk, ignore_errors=True)
    _command("ldconfig", "-r", str(root))
