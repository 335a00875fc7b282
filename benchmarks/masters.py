"""A connection that the user's ssh keeps open (``ControlMaster``), and the ways that go over it."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from functools import partial

from benchmarks.paired import Way
from benchmarks.world import World


@contextlib.contextmanager
def live_socket(world: World) -> Iterator[tuple[Way, Way]]:
    """vmproxy's no-op and F, both over one live connection, which is opened before and closed after."""
    plain = world.stock()
    address = plain.argv[-2].partition("@")[2]
    config = world.write(
        "ssh_config",
        f"Host bench\n HostName {address}\n User docker\n IdentityFile {world.key}\n IdentitiesOnly yes\n"
        f" UserKnownHostsFile {world.known}\n ControlPath {world.kept}/master\n",
    )
    ssh = ("ssh", "-F", str(config), "-o", "BatchMode=yes")
    quiet = partial(subprocess.run, check=True, timeout=60, env=world.host.environ, stdout=-3, stderr=-3)
    quiet([*ssh, "-MNf", "--", "bench"])
    try:
        ours = world.host.vmproxy("apply", "-q", "--vm", "ssh:bench", "-F", str(config), "--ssh", "openssh")
        yield ours, replace(plain, argv=(*ssh, "--", "bench", plain.argv[-1]))
    finally:
        quiet([*ssh, "-O", "exit", "--", "bench"])
