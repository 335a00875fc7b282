"""The lab: real VMs for the tests, made from Debian packages without installing anything on this machine."""

from __future__ import annotations

import os
from pathlib import Path


def default_cache() -> Path:
    """Where staged trees, packages and images are kept: ``VMPROXY_LAB_CACHE``, else the user's cache directory."""
    if named := os.environ.get("VMPROXY_LAB_CACHE"):
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vmproxy-lab"
