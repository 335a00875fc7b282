"""The variables in a block of ours, whatever kind of file it stands in. PURE."""

from __future__ import annotations

FOR_SYSTEMD = b"# Read by systemd (EnvironmentFile=), not by a shell.\n"
"""The first line of a block in an environment file: another file's ``NAME="value"`` lines are none of ours."""


def variables(payload: bytes) -> dict[str, str]:
    """The pairs of our own ``export`` or ``Environment=`` lines, or of our lines of an environment file; lines that are
    not ours are passed over."""
    from vmproxy.quoting import read_sh_exports, read_systemd_file

    if payload.startswith(FOR_SYSTEMD):
        return read_systemd_file(payload)
    found = read_sh_exports(payload)
    if b"[Service]" in payload:
        from vmproxy.guests import _units

        for key, value in _units.settings(payload, "Service"):
            if key == "Environment":
                found.update(_units.assigned(value))
    return found
