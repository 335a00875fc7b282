"""OpenSSH's sshd and dropbear on a loopback port, with keys and accounts of the test's own."""

from __future__ import annotations

import contextlib
import getpass
import os
import select
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path


def free_port() -> int:
    """A port on which nobody listens but who is told of it: it stays bound as long as this process lives, so that the
    kernel gives it to nobody else. A server that sets SO_REUSEADDR may listen there all the same."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind(("127.0.0.1", 0))
    port = int(sock.getsockname()[1])
    sock.detach()
    return port


@contextlib.contextmanager
def deaf_port() -> Iterator[int]:
    """A port that takes no connection: its queue is full, SYNs are dropped."""
    with contextlib.ExitStack() as stack:
        sock = stack.enter_context(socket.socket())
        sock.bind(("127.0.0.1", 0))
        sock.listen(0)
        fillers = [stack.enter_context(socket.socket()) for _ in range(8)]
        for filler in fillers:
            filler.setblocking(False)
            filler.connect_ex(sock.getsockname())
        assert select.select([], fillers, [], 60)[1], "the queue does not fill"
        yield int(sock.getsockname()[1])


def agent_listens(path: Path) -> None:
    """Wait until an ssh-agent takes clients there: its socket has a name a moment before."""
    deadline = time.monotonic() + 60
    while True:
        with socket.socket(socket.AF_UNIX) as sock:
            try:
                return sock.connect(str(path))
            except OSError:
                assert time.monotonic() < deadline, "ssh-agent does not listen"
        time.sleep(0.02)


@contextlib.contextmanager
def open_directory(mode: int) -> Iterator[Path]:
    """A directory that other accounts reach too (pytest's own are closed to them), gone afterwards."""
    directory = Path(tempfile.mkdtemp(prefix="vmproxy-test-"))
    try:
        directory.chmod(mode)
        yield directory
    finally:
        shutil.rmtree(directory)


@contextlib.contextmanager
def sshd(directory: Path, *, authorized: Path, host_key: Path, more: tuple[str, ...] = ()) -> Iterator[tuple[int, str]]:
    """Port and user of an OpenSSH server that lets ``authorized`` in as whoever runs the tests."""
    port = free_port()
    lines = [
        f"Port {port}",
        "ListenAddress 127.0.0.1",
        f"HostKey {host_key}",
        f"AuthorizedKeysFile {authorized}",
        f"PidFile {directory / 'sshd.pid'}",
        "StrictModes no",
        "UsePAM no",
        *more,
    ]
    config = directory / "sshd_config"
    config.write_text("\n".join(lines) + "\n")
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # sshd's own privilege separation directory
    argv = ["/usr/sbin/sshd", "-D", "-e", "-f", str(config)]
    with _running(argv, port, directory / "sshd.log"):
        yield port, getpass.getuser()


@contextlib.contextmanager
def dropbear(directory: Path, *, authorized: Path, password_hash: str) -> Iterator[tuple[int, str]]:
    """Port and user of a dropbear that lets ``authorized`` in as ``docker``, an account that only it sees. Needs root.

    dropbear takes accounts from /etc/passwd alone; a mount namespace of its own shows it another one.
    """
    port = free_port()
    home = directory / "home"
    (home / ".ssh").mkdir(parents=True)
    (home / ".ssh" / "authorized_keys").write_bytes(authorized.read_bytes())
    for path, mode in ((directory, 0o755), (home, 0o700), (home / ".ssh", 0o700)):
        path.chmod(mode)
    for path in (home / ".ssh" / "authorized_keys", home / ".ssh", home):
        os.chown(path, 1000, 1000)
    (directory / "passwd").write_text(f"root:x:0:0::/root:/bin/sh\ndocker:{password_hash}:1000:1000::{home}:/bin/sh\n")
    key = directory / "dropbear_key"
    subprocess.run(["dropbearkey", "-t", "ed25519", "-f", str(key)], check=True, capture_output=True, timeout=60)
    script = 'mount --bind "$1" /etc/passwd && shift && exec "$@"'
    server = ["dropbear", "-F", "-E", "-r", str(key), "-p", f"127.0.0.1:{port}", "-P", str(directory / "dropbear.pid")]
    argv = ["unshare", "--mount", "sh", "-c", script, "sh", str(directory / "passwd"), *server]
    with _running(argv, port, directory / "dropbear.log"):
        yield port, "docker"


@contextlib.contextmanager
def _running(argv: list[str], port: int, log: Path) -> Iterator[None]:
    with log.open("wb") as stream:
        process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=stream, stderr=stream)
        try:
            _wait_for(port, process, log)
            yield
        finally:
            process.terminate()
            process.wait(60)


def _wait_for(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.02)
    raise AssertionError(f"{process.args!r} does not listen: {log.read_text()}")
