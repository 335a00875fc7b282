"""The caching proxy beside squid: the same origin, the same objects, the same client, turn and turn about.

nginx is the origin, wrk the client with 20 connections; all of them, and the proxies, share this machine's cores. squid
keeps objects in memory and writes no log; vmproxy's cache keeps them on disk and counts what it saves.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.paired import BenchmarkError
from tests.lab import default_cache, tree

CONNECTIONS = 20
OBJECT_BYTES = 10_000
OBJECTS = 100
LARGE_BYTES = 1 << 30
_START_SECONDS = 30.0
# Debian's packages are laid over this machine's programs, for one process and what it starts.
_OVER = """
mount -t overlay overlay -o lowerdir=$0/usr:/usr /usr && mount -t overlay overlay -o lowerdir=$0/etc:/etc /etc || exit
exec "$@"
"""
_NGINX = """
daemon off; master_process off; pid %(directory)s/nginx.pid; error_log %(directory)s/nginx.log crit;
events { worker_connections 1024; }
http {
  client_body_temp_path %(directory)s/t1; proxy_temp_path %(directory)s/t2; fastcgi_temp_path %(directory)s/t3;
  uwsgi_temp_path %(directory)s/t4; scgi_temp_path %(directory)s/t5;
  access_log off; sendfile on; tcp_nopush on; keepalive_requests 1000000; default_type application/octet-stream;
  server {
    listen 127.0.0.1:%(port)d backlog=1024;
    root %(directory)s/objects;
    location /hit/ { alias %(directory)s/objects/; add_header Cache-Control max-age=86400; }
    location /miss/ { alias %(directory)s/objects/; add_header Cache-Control no-store; }
  }
}
"""
_SQUID = """
http_port 127.0.0.1:%(port)d
http_access allow all
cache_mem 64 MB
maximum_object_size_in_memory 64 KB
access_log none
cache_log /dev/null
cache_effective_user nobody
pid_filename none
pinger_enable off
netdb_filename none
shutdown_lifetime 1 second
coredump_dir none
"""
_ASK = """
local number = 0
request = function()
  number = number %% %(objects)d + 1
  return wrk.format("GET", "http://127.0.0.1:%(port)d/%(kind)s/" .. number)
end
"""
_UNITS = {"us": 1e-6, "ms": 1e-3, "s": 1.0}


@dataclass(frozen=True, kw_only=True)
class Load:
    """What wrk saw: requests per second, and the time that 99 of 100 requests did not pass."""

    rate: float
    p99_seconds: float


class Proxies:
    """An origin, vmproxy's cache and squid, for the time of a ``with``."""

    def __init__(self, *, python: str, package: Path) -> None:
        self._python, self._package = python, package
        self._tree = tree.stage(default_cache(), "bench", ("wrk", "nginx-core", "squid"))
        self._running: list[subprocess.Popen[bytes]] = []
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Proxies:
        self._directory = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="vmproxy-bench-")))
        objects = self._directory / "objects"
        objects.mkdir()
        for number in range(1, OBJECTS + 1):
            (objects / str(number)).write_bytes(os.urandom(OBJECT_BYTES))
        with (objects / "large").open("wb") as file:
            file.truncate(LARGE_BYTES)
        self._directory.chmod(0o755)
        self.origin, squid, ours = _free_ports(3)
        values = {"directory": self._directory, "port": self.origin}
        self._start(self._over("/usr/sbin/nginx", "-c", self._file("nginx.conf", _NGINX % values)), self.origin)
        conf = self._file("squid.conf", _SQUID % {**values, "port": squid})
        self.ports = {"squid": squid, "vmproxy": ours}
        self.processes = {
            "squid": self._start(self._over("/usr/sbin/squid", "-N", "-n", f"bench{os.getpid()}", "-f", conf), squid)
        }
        words = ["cache", "serve", "--port", str(ours), "--dir", str(self._directory / "cache")]
        words += ["--allow-target", "127.0.0.0/8", "--connect-port", str(self.origin)]
        environ = {"PATH": os.environ["PATH"], "HOME": str(self._directory), "PYTHONPATH": str(self._package.parent)}
        self.processes["vmproxy"] = self._start([self._python, "-m", "vmproxy", *words], ours, environ=environ)
        return self

    def __exit__(self, *_: object) -> None:
        for process in reversed(self._running):
            process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(10)
            process.kill()
            process.wait()
        self._stack.close()

    def load(self, name: str, kind: str, *, seconds: int) -> Load:
        """wrk through the proxy of that name; ``kind`` is hit or miss. Raises BenchmarkError for a failed request."""
        script = self._file("ask.lua", _ASK % {"objects": OBJECTS, "port": self.origin, "kind": kind})
        to = f"http://127.0.0.1:{self.ports[name]}/"
        words = ["-t1", f"-c{CONNECTIONS}", f"-d{seconds}s", "--latency", "-s", script, to]
        done = subprocess.run(
            self._over("/usr/bin/wrk", *words), capture_output=True, text=True, timeout=60 + seconds, check=False
        )
        rate = re.search(r"Requests/sec:\s+([\d.]+)", done.stdout)
        p99 = re.search(r"99%\s+([\d.]+)(us|ms|s)\b", done.stdout)
        if not rate or not p99 or "Non-2xx" in done.stdout or "Socket errors" in done.stdout:
            raise BenchmarkError(f"wrk through {name}: {done.stdout[-500:]}{done.stderr[-500:]}")
        return Load(rate=float(rate[1]), p99_seconds=float(p99[1]) * _UNITS[p99[2]])

    def stream(self, name: str) -> None:
        """One gigabyte through the proxy of that name. Raises BenchmarkError."""
        url = f"http://127.0.0.1:{self.origin}/miss/large"
        words = [
            "curl",
            "-sS",
            "-o",
            os.devnull,
            "-w",
            "%{size_download}",
            "-x",
            f"http://127.0.0.1:{self.ports[name]}",
        ]
        done = subprocess.run([*words, url], capture_output=True, text=True, timeout=120, check=False)
        if done.stdout != str(LARGE_BYTES):
            raise BenchmarkError(f"a gigabyte through {name}: {done.stdout} {done.stderr}")

    def peak_bytes(self, name: str) -> int:
        """The most memory that a proxy's process had at one time (VmHWM)."""
        text = Path(f"/proc/{self.processes[name].pid}/status").read_text(encoding="ascii")
        found = re.search(r"VmHWM:\s+(\d+) kB", text)
        assert found is not None
        return int(found[1]) << 10

    def _over(self, *argv: str) -> list[str]:
        return ["unshare", "-m", "sh", "-c", _OVER, str(self._tree), *argv]

    def _file(self, name: str, text: str) -> str:
        path = self._directory / name
        path.write_text(text, encoding="utf-8")
        return str(path)

    def _start(
        self, argv: Sequence[str], port: int, *, environ: dict[str, str] | None = None
    ) -> subprocess.Popen[bytes]:
        with (self._directory / "said").open("ab") as said:
            process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=said, stderr=said, env=environ)
        self._running.append(process)
        limit = time.monotonic() + _START_SECONDS
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                return process
            if process.poll() is not None or time.monotonic() > limit:
                text = (self._directory / "said").read_text(encoding="utf-8", errors="replace")
                raise BenchmarkError(f"{' '.join(argv[-5:])} does not answer: {text[-1000:]}")
            time.sleep(0.05)


def side_by_side(proxies: Proxies, kind: str, *, rounds: int, seconds: int) -> Iterator[tuple[Load, Load]]:
    """(vmproxy's, squid's) of each round; who is first turns round by round. What is kept is there before."""
    for name in proxies.ports:
        proxies.load(name, kind, seconds=1)
    for number in range(rounds):
        names = ["vmproxy", "squid"] if number % 2 else ["squid", "vmproxy"]
        seen = {name: proxies.load(name, kind, seconds=seconds) for name in names}
        yield seen["vmproxy"], seen["squid"]


def median(values: Sequence[float]) -> float:
    """The middle one."""
    return statistics.median(values)


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        taken = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [server.getsockname()[1] for server in taken]
