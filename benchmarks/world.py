"""What is compared: vmproxy as installed, and ``ssh HOST sh -s < script`` doing the same job, at one VM of the lab.

F is stock ssh with the shortest script that somebody would write by hand: the route, three rules, two files, and where
something was missing a restart of Docker. F' is the same with a quick key exchange and one iptables-save.
"""

from __future__ import annotations

import compileall
import contextlib
import ctypes
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from benchmarks.link import THERE, Link
from benchmarks.paired import Way
from tests.lab.hostside import CLONE_NEWNET, listen
from tests.lab.nsvm import NamespaceVM
from tests.lab.proxy import LabProxy

ROOT = Path(__file__).resolve().parents[1]
PORT = 8123
PROXY = f"http://127.0.0.1:{PORT}"
DATA = "/var/lib/boot2docker"
FILES = (f"{DATA}/profile", f"{DATA}/bootlocal.sh")
RESTART = f"""#!/bin/sh
# Docker's script with the waiting left out: a restart takes as long as two processes.
[ ! -f {DATA}/profile ] || . {DATA}/profile
read -r old </var/run/docker.pid && kill "$old"
/run/lab/dockerd infinity </dev/null >/dev/null 2>&1 &
echo $! >/var/run/docker.pid
"""
_PACKAGES = "import sys; print(*(path for path in sys.path if path.endswith('-packages')), sep='\\n')"
_LAUNCHER = "import sys\nfrom vmproxy.cli import main\n\nif __name__ == '__main__':\n    sys.exit(main())\n"
_QUICK = ("-o", "KexAlgorithms=curve25519-sha256")
_ROUTE = "gateway=$(ip -4 route show default); gateway=${gateway#*via }; gateway=${gateway%% *}\n"
_HERE = '[ "$gateway" = 10.0.2.2 ] || exit 1\n'
_FIRST = f"""{_ROUTE}
changed=''
p={PORT}
iptables -t nat -C PREROUTING -i docker0 -p tcp --dport $p -j DNAT --to-destination $gateway:$p 2>/dev/null ||
  {{ iptables -t nat -A PREROUTING -i docker0 -p tcp --dport $p -j DNAT --to-destination $gateway:$p; changed=1; }}
iptables -t nat -C POSTROUTING -d $gateway -p tcp --dport $p -j MASQUERADE 2>/dev/null ||
  {{ iptables -t nat -A POSTROUTING -d $gateway -p tcp --dport $p -j MASQUERADE; changed=1; }}
iptables -C FORWARD -d $gateway -p tcp --dport $p -j ACCEPT 2>/dev/null ||
  {{ iptables -A FORWARD -d $gateway -p tcp --dport $p -j ACCEPT; changed=1; }}
for file in profile bootlocal.sh; do
  [ "$(cat {DATA}/$file 2>/dev/null)" = "$(cat $tmp/$file)" ] || {{ cp $tmp/$file {DATA}/$file; changed=1; }}
done
[ -z "$changed" ] || /etc/init.d/docker restart >/dev/null 2>&1
rm -r $tmp
"""


@contextlib.contextmanager
def standing_in(network: int) -> Iterator[None]:
    """This thread, and every process that it starts, stands in that network namespace meanwhile."""
    libc = ctypes.CDLL(None, use_errno=True)
    before = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        if libc.setns(network, CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "cannot enter the network namespace")
        yield
    finally:
        libc.setns(before, CLONE_NEWNET)
        os.close(before)


class Host:
    """A user's computer: a directory as HOME, and vmproxy as pip leaves it (a copy of the package, compiled).

    It has an environment of its own, with the packages of ``python`` behind it: that one may have vmproxy installed in
    place, and then each start of it pays for setuptools' finder.
    """

    def __init__(self, directory: Path, *, python: str = sys.executable, package: Path = ROOT / "vmproxy") -> None:
        self.directory, self.python = directory, str(directory / "environment/bin/python")
        subprocess.run([python, "-m", "venv", "--without-pip", directory / "environment"], check=True)
        own, packages = (
            subprocess.run([one, "-c", _PACKAGES], capture_output=True, text=True, check=True).stdout
            for one in (self.python, python)
        )
        site = Path(own.splitlines()[0])
        (site / "others.pth").write_text(packages, encoding="utf-8")
        shutil.copytree(package, site / "vmproxy", ignore=shutil.ignore_patterns("__pycache__"))
        compileall.compile_dir(site, quiet=1)
        directory.mkdir(exist_ok=True)
        (directory / "vmproxy").write_text(_LAUNCHER, encoding="utf-8")
        self.environ = {
            "PATH": os.environ["PATH"],
            "LOGNAME": "user",  # as every log-in has it
            "HOME": str(directory),
            "XDG_CONFIG_HOME": str(directory / "config"),
            "XDG_STATE_HOME": str(directory / "state"),
            "LC_ALL": "C.UTF-8",
        }

    def vmproxy(self, *words: str, codes: tuple[int, ...] = (0,), stdin: Path = Path(os.devnull)) -> Way:
        """The program with these words."""
        argv = (self.python, str(self.directory / "vmproxy"), *words)
        return Way(name=" ".join(words[:1]), argv=argv, environ=self.environ, codes=codes, stdin=stdin)

    def bare(self) -> Way:
        """Python itself, doing nothing."""
        return Way(name="python", argv=(self.python, "-I", "-c", "pass"), environ=self.environ)


class World:
    """One VM with a stub of Docker, a proxy on its host, and what each way needs there; the clients run on the host.

    A context manager. ``converge`` and ``reset`` put the VM into one of its two states. With ``rtt_seconds`` the VM is
    at the other end of a slow link, else the two are joined by a virtual cable.
    """

    def __init__(self, host: Host, *, rtt_seconds: float = 0.0) -> None:
        self.host = host
        self._rtt_seconds = rtt_seconds
        self._address = THERE if rtt_seconds else "10.0.2.15"
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> World:
        with self._stack as stack:
            self.vm = stack.enter_context(NamespaceVM(docker="stub"))
            network = self.vm.surroundings
            stack.enter_context(LabProxy(listen(network.host, "127.0.0.1", PORT)))
            stack.enter_context(standing_in(network.host))
            self.link = stack.enter_context(Link(network.host, network.vm, rtt_seconds=self._rtt_seconds))
            kept = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="vmproxy-bench-")))
            self.key, self.known, self.kept = kept / "key", kept / "known_hosts", kept
            shutil.copy(self.vm.key, self.key)
            key = self.vm.known_hosts.read_text(encoding="utf-8").split(" ", 1)[1]
            self.known.write_text(f"{self._address} {key}", encoding="utf-8")
            self._rules = self.vm.run("iptables-save").stdout
            self.vm.path("/etc/init.d/docker").write_text(RESTART, encoding="utf-8")
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def vmproxy(self, command: str, *words: str, codes: tuple[int, ...] = (0,)) -> Way:
        """``vmproxy COMMAND`` on this VM."""
        target = f"ssh://docker@{self._address}"
        known = str(self.kept / "vmproxy_known_hosts")
        return self.host.vmproxy(
            command, "-q", "--vm", target, "-i", str(self.key), "--known-hosts", known, *words, codes=codes
        )

    def ssh(self, script: Path, *options: str) -> Way:
        """``ssh docker@VM sudo -n sh -s < script`` with no setting but where it leads and with which key."""
        argv = (
            "ssh", "-F", "none", "-o", f"UserKnownHostsFile={self.known}", "-o", "BatchMode=yes", *options,
            "-o", "IdentitiesOnly=yes", "-i", str(self.key), f"docker@{self._address}", "sudo -n sh -s",
        )  # fmt: skip
        return Way(name="ssh", argv=argv, environ=self.host.environ, stdin=script)

    def stock(self) -> Way:
        """F where there is nothing to do: each rule asked for by name, each file read."""
        asked = "".join(f"iptables -t {table} -C {rule} || exit 1\n" for table, rule in self._three_rules())
        return self.ssh(self.write("stock.sh", _ROUTE + _HERE + asked + self._two_files()))

    def quick(self) -> Way:
        """F' where there is nothing to do."""
        look = "".join(f'case $rules in *"-A {rule}"*) ;; *) exit 1 ;; esac\n' for _table, rule in self._three_rules())
        text = _ROUTE + _HERE + "rules=$(iptables-save) || exit 1\n" + look
        return self.ssh(self.write("quick.sh", text + self._two_files()), *_QUICK)

    def first(self, *options: str) -> Way:
        """F where everything is to be done: three rules, two files, a restart."""
        texts = "".join(
            f"cat >$tmp/{Path(path).name} <<'END-OF-FILE'\n{self.text(path)}END-OF-FILE\n" for path in FILES
        )
        return self.ssh(self.write("first.sh", "tmp=$(mktemp -d) || exit 1\n" + texts + _FIRST), *options)

    def quick_options(self) -> tuple[str, ...]:
        """What makes F' of F."""
        return _QUICK

    def converge(self) -> None:
        """Into the state that vmproxy wants; what it made there is what the other ways then look for."""
        from benchmarks.paired import once

        self.reset()
        once(self.vmproxy("apply", "--proxy", PROXY, "--no-verify"))
        self._texts = {path: self.vm.path(path).read_text(encoding="utf-8") for path in FILES}

    def reset(self) -> None:
        """Into the state of a VM that nobody has touched: no files, the rules of before, Docker started anew."""
        self.vm.run("rm -f " + " ".join(FILES))
        self.vm.run("iptables-restore", stdin=self._rules)
        self.vm.run("env -i PATH=$PATH /etc/init.d/docker restart </dev/null >/dev/null 2>&1")

    def _three_rules(self) -> list[tuple[str, str]]:
        """The rules in other chains that lead to ours, as iptables-save prints them, with their tables."""
        found, table = [], ""
        for line in self.vm.run("iptables-save").stdout.decode().splitlines():
            table = line[1:] if line.startswith("*") else table
            if line.startswith("-A ") and " -j VMPROXY-" in line and not line.startswith("-A VMPROXY-"):
                found.append((table, line.removeprefix("-A ")))
        return found

    def _two_files(self) -> str:
        return "".join(
            f"""[ "$(cat {path})" = "$(cat <<'END-OF-FILE'\n{self.text(path)}END-OF-FILE\n)" ] || exit 1\n"""
            for path in FILES
        )

    def text(self, path: str) -> str:
        """One of the two files, as vmproxy makes it."""
        return self._texts[path]

    def write(self, name: str, text: str) -> Path:
        """A file for the length of the benchmark."""
        path = self.kept / name
        path.write_text(text, encoding="utf-8")
        return path
