"""The host's door: files, ports and processes, each with a bound."""

from __future__ import annotations

import hashlib
import os
import socket
import sys
import time
from pathlib import Path

import pytest

from vmproxy import hostproc
from vmproxy.errors import LostContact, Refused, UsageError

PYTHON = sys.executable


def run(script: str, **options: object) -> hostproc.Output:
    """Run a Python script; it must be installed."""
    options.setdefault("timeout_seconds", 60.0)
    output = hostproc.run((PYTHON, "-I", "-c", script), environ=dict(os.environ), **options)  # type: ignore[arg-type]
    assert output is not None
    return output


def test_run_gives_both_outputs_and_the_status() -> None:
    """argv in, bytes and status out; stdin is closed."""
    output = run("import sys; print(len(sys.stdin.read())); print('err', file=sys.stderr); sys.exit(3)")
    assert output == hostproc.Output(stdout=b"0\n", stderr=b"err\n", status=3)


def test_run_takes_no_shell() -> None:
    """Every word arrives as it is."""
    words = ("$(id)", "; id", "a b", "*", "")
    argv = (PYTHON, "-I", "-c", "import sys; print(sys.argv[1:])", *words)
    output = hostproc.run(argv, environ=dict(os.environ), timeout_seconds=60.0)
    assert output is not None
    assert output.stdout.decode().strip() == str(list(words))


def test_program_that_is_not_there(tmp_path: Path) -> None:
    """Not installed is None, not an error."""
    assert hostproc.run(("no-such-program-of-vmproxy",), environ={"PATH": "/usr/bin"}) is None
    assert hostproc.run((str(tmp_path),), environ={}) is None


def test_t12_children_get_a_clean_environment() -> None:
    """No LD_…, DYLD_…, PYTHON… and none of our secrets; LC_ALL is C; the rest stays."""
    bad = {
        "LD_PRELOAD": "x", "LD_LIBRARY_PATH": "x", "DYLD_INSERT_LIBRARIES": "x", "PYTHONPATH": "x",
        "PYTHONSTARTUP": "x", "VMPROXY_SSH_PASSWORD": "x", "VMPROXY_SSH_PASSPHRASE": "x",
        "BASH_ENV": "x", "ENV": "x", "IFS": "x",
    }  # fmt: skip
    kept = {"PATH": "/bin", "HOME": "/home/me", "LC_ALL": "de_DE", "SSH_AUTH_SOCK": "/s"}
    assert hostproc.clean_environment({**bad, **kept}) == {**kept, "LC_ALL": "C"}
    os.environ["LD_VMPROXY_TEST"] = "x"
    try:
        assert run("import os; print('LD_VMPROXY_TEST' in os.environ, os.environ['LC_ALL'])").stdout == b"False C\n"
    finally:
        del os.environ["LD_VMPROXY_TEST"]


def lives(pid: int) -> bool:
    """Whether it is there, and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_time_limit_ends_the_program_and_its_children(tmp_path: Path) -> None:
    """A program that hangs, with a child that holds its output, is ended: exit 9, nothing of it is left."""
    pids = tmp_path / "pids"
    script = (
        "import os, subprocess, sys, time\n"
        "child = subprocess.Popen(['sleep', '60'])\n"
        f"open({str(pids)!r} + '.tmp', 'w').write(f'{{os.getpid()}} {{child.pid}}')\n"
        f"os.rename({str(pids)!r} + '.tmp', {str(pids)!r})\n"
        "time.sleep(60)\n"
    )
    with pytest.raises(LostContact, match="no end within"):
        run(script, timeout_seconds=8)
    for pid in map(int, pids.read_text().split()):
        limit = time.monotonic() + 60
        while lives(pid):
            assert time.monotonic() < limit, f"process {pid} is still there"
            time.sleep(0.02)


def test_child_that_outlives_the_program() -> None:
    """A program that ends but leaves its output to a background child does not hold us for ever."""
    with pytest.raises(LostContact):
        run("import subprocess; subprocess.Popen(['sleep', '60'])", timeout_seconds=2)


def test_f11_endless_output_is_cut_off() -> None:
    """Output past the limit is exit 6; the program is ended."""
    with pytest.raises(Refused, match="more than 100000 bytes"):
        run("import sys\nwhile True: sys.stdout.write('x' * 65536)", limit_bytes=100_000)


def test_outputs_cannot_block_each_other() -> None:
    """A megabyte on stderr before the first byte on stdout is no hang."""
    output = run("import sys; sys.stderr.write('e' * 900000); print('done')")
    assert (output.stdout, len(output.stderr)) == (b"done\n", 900000)


def test_read_file(tmp_path: Path) -> None:
    """Bytes of a plain file or a link to one, None for none, exit 2 for everything odd; a fifo is not waited for."""
    (tmp_path / "plain").write_bytes(b"\x00\xff")
    (tmp_path / "link").symlink_to("plain")
    os.mkfifo(tmp_path / "fifo")
    assert hostproc.read_file(str(tmp_path / "plain")) == b"\x00\xff"
    assert hostproc.read_file(str(tmp_path / "link")) == b"\x00\xff"
    assert hostproc.read_file(str(tmp_path / "none")) is None
    assert hostproc.read_file(str(tmp_path / "plain" / "below")) is None
    for odd in (str(tmp_path), str(tmp_path / "fifo"), "a\0b", "/dev/zero"):
        with pytest.raises(UsageError):
            hostproc.read_file(odd)
    with pytest.raises(UsageError, match="bigger than 1 bytes"):
        hostproc.read_file(str(tmp_path / "plain"), limit_bytes=1)


def test_directories(tmp_path: Path) -> None:
    """Names sorted and bounded; () where there is no directory."""
    for name in ("b", "a", "c"):
        (tmp_path / name).touch()
    assert hostproc.list_directory(str(tmp_path)) == ("a", "b", "c")
    assert len(hostproc.list_directory(str(tmp_path), limit=2)) == 2
    assert hostproc.list_directory(str(tmp_path / "a")) == ()
    assert hostproc.is_file(str(tmp_path / "a"))
    assert not hostproc.is_file(str(tmp_path))
    assert hostproc.is_directory(str(tmp_path))


def test_ports(monkeypatch: pytest.MonkeyPatch) -> None:
    """Open and closed are told apart; odd ports and names are closed; a proxy of the environment is not asked."""
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert hostproc.port_open("127.0.0.1", port)
    assert not hostproc.port_open("127.0.0.1", port)
    assert not hostproc.port_open("127.0.0.1", 70000)
    assert not hostproc.port_open("a" * 300, 1)


def test_run_gives_data_and_outlives_who_does_not_read_it() -> None:
    """More than a pipe holds arrives whole; a program that ends without reading is no error."""
    data = bytes(range(256)) * 4096
    script = "import hashlib, sys; print(hashlib.sha256(sys.stdin.buffer.read()).hexdigest())"
    assert run(script, data=data).stdout.decode().strip() == hashlib.sha256(data).hexdigest()
    assert run("import sys; print(len(sys.stdin.read()))", data=b"").stdout == b"0\n"
    assert run("print('done')", data=data).stdout == b"done\n"
