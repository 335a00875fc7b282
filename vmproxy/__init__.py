"""Put a container VM behind a proxy that its host can reach, and take it back byte for byte.

The library face is small and stable: everything raised is a :class:`vmproxy.errors.VmproxyError`.
Nothing heavy is imported here, so that ``vmproxy --help`` stays quick.
"""

from __future__ import annotations

__version__ = "0.1.0"
