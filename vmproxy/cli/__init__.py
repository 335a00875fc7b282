"""The command line: the only room that prints or exits. One file per command, one line per command below."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Sequence
from contextlib import suppress

#: name -> (module, one line of help). The module is imported when the command is used and holds it as ``main``.
COMMANDS: dict[str, tuple[str, str]] = {
    "detect-gateway": ("vmproxy.cli.detect_gateway", "Print this host's address as the VM sees it."),
    "apply": ("vmproxy.cli.apply", "Put the VM and its containers behind the proxy."),
    "status": ("vmproxy.cli.status", "Say whether the VM is as wished, or where it differs."),
    "verify": ("vmproxy.cli.verify", "Prove it from the VM and from its containers."),
    "remove": ("vmproxy.cli.remove", "Take everything back, byte for byte."),
    "env": ("vmproxy.cli.env", "Print the proxy variables for containers."),
    "compose": ("vmproxy.cli.compose", "Print a Compose file that gives every service the proxy."),
    "run": ("vmproxy.cli.run", "Run a command with the proxy variables set."),
    "docker-config": ("vmproxy.cli.docker_config", "Have docker give the proxy to containers and builds."),
    "dokku": ("vmproxy.cli.dokku", "Put a Dokku host behind the proxy: Docker, apps and their builds."),
    "cache": ("vmproxy.cli.cache", "Run a caching proxy on this host; what it saved; purge it."),
    "completion": ("vmproxy.cli.completion", "Print the completion script for a shell."),
}

_PUTS_RIGHT = "vmproxy.transports._line"
"""Has something to do at the interpreter's end: the terminal of a serial line gets its settings back."""


def main(argv: Sequence[str] | None = None) -> None:
    """The ``vmproxy`` program: never returns, exits with the codes of docs/reference.rst."""
    gc.disable()  # imports make no garbage; ``common.command`` switches it on before anything is done
    try:
        from vmproxy.cli.edge import run

        code = run(sys.argv[1:] if argv is None else list(argv))
    except KeyboardInterrupt:  # so early that nothing was begun
        code = 130
    if argv is None and _PUTS_RIGHT not in sys.modules:
        # Every file and connection is closed, and what threads there are wait for nothing: the interpreter need not
        # take itself apart, which is a tenth of the time of --help, and 10 ms where VMs were spoken to.
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError, AttributeError):
                stream.flush()
        os._exit(code)
    gc.freeze()  # what is left is not searched for garbage once more at the end
    sys.exit(code)
