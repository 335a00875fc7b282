"""The variables in a block of ours, whatever kind of file it stands in. PURE."""

from __future__ import annotations


def variables(payload: bytes) -> dict[str, str]:
    """The pairs of our own ``export`` or ``Environment=`` lines; lines that are not ours are passed over."""
    from vmproxy.quoting import read_sh_exports

    found = read_sh_exports(payload)
    if b"[Service]" in payload:
        from vmproxy.guests import _units

        for key, value in _units.settings(payload, "Service"):
            if key == "Environment":
                found.update(_units.assigned(value))
    return found
