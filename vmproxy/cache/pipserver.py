"""The process of the cache for pip: proxpi behind werkzeug's server, on a free port of loopback.

``python -m vmproxy.cache.pipserver``: its port is the one line on stdout; it ends when its stdin does, so that it never
outlives the proxy that started it. Nobody but that proxy is meant to speak to it.
"""

from __future__ import annotations

import os
import sys
import threading
from importlib import import_module


def _end_with_stdin() -> None:
    while sys.stdin.buffer.read(4096):
        pass
    os.kill(os.getpid(), 15)


def main() -> None:
    """Serve until stdin ends."""
    threading.Thread(target=_end_with_stdin, daemon=True).start()
    app = import_module("proxpi.server").app
    import_module("logging").getLogger("werkzeug").setLevel("ERROR")  # it would say each request
    server = import_module("werkzeug.serving").make_server("127.0.0.1", 0, app, threaded=True)
    sys.stdout.write(f"{server.port}\n")
    sys.stdout.flush()
    server.serve_forever()


if __name__ == "__main__":
    main()
