"""Put a container VM behind a proxy that its host can reach, and take it back byte for byte.

The library face is small and stable: everything raised is a :class:`vmproxy.errors.VmproxyError`.
Nothing heavy is imported here, so that ``vmproxy --help`` stays quick.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vmproxy.model import Report, Settings

__version__ = "0.1.0"


def apply(target: str, settings: Settings) -> Report:
    """Put one VM behind the proxy (see :func:`vmproxy.converge.apply`). Raises VmproxyError."""
    from vmproxy import converge

    return converge.apply(target, settings)


def status(target: str, settings: Settings) -> Report:
    """The difference between the wish and one VM. Raises VmproxyError."""
    from vmproxy import converge

    return converge.status(target, settings)


def verify(target: str, settings: Settings) -> Report:
    """The proof for one VM, leg by leg. Raises VmproxyError."""
    from vmproxy import converge

    return converge.verify(target, settings)


def remove(target: str, settings: Settings) -> Report:
    """Take everything of ours out of one VM. Raises VmproxyError."""
    from vmproxy import converge

    return converge.remove(target, settings)
