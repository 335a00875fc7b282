"""The one question to a proxy, as shells that VMs have put it."""

from __future__ import annotations

import socket
import subprocess
import threading
from pathlib import Path

import pytest

from vmproxy.machines import shell

_SHELLS = [("dash",), ("busybox", "sh"), ("bash",)]
_TWICE = """
timeout() { return 127; } # as where it takes its words otherwise
for n in 1 2; do ask 127.0.0.1 "$1" "$2/question" "$2" >"$2/said.$n" && echo "$n came" || echo "$n was late"; done
"""


@pytest.mark.parametrize("words", _SHELLS, ids=" ".join)
def test_an_answer_behind_one_that_did_not_come(tmp_path: Path, words: tuple[str, ...]) -> None:
    """A proxy that is silent once and answers the next question has answered that one."""
    (tmp_path / "question").write_bytes(b"GET http://x/ HTTP/1.0\r\n\r\n")
    script = shell._text("ask.sh") + _TWICE
    with socket.create_server(("127.0.0.1", 0)) as server:
        over = threading.Event()

        def answer() -> None:
            with server.accept()[0] as _silent, server.accept()[0] as second:
                second.recv(4096)
                second.sendall(b"HTTP/1.0 204 No Content\r\n\r\n")
                over.wait(60)

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        argv = [*words, "-c", script, "ask", str(server.getsockname()[1]), str(tmp_path)]
        try:
            done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, timeout=120, check=False)
        finally:
            over.set()
    thread.join(60)
    assert done.stdout.splitlines() == [b"1 was late", b"2 came"], done
    assert b"HTTP/1.0 204" in (tmp_path / "said.2").read_bytes()
