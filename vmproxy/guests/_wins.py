"""What in a VM wins over the variables that we give its daemon. PURE: texts in, findings out."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping

from vmproxy.model import Finding, printable

_KEYS = {"http-proxy": "http_proxy", "https-proxy": "https_proxy", "no-proxy": "no_proxy"}


def finding(path: str, names: Iterable[str], why: str) -> Finding:
    """One thing that wins; no value is shown, since it may hold a password."""
    listed = ", ".join(dict.fromkeys(names))
    return Finding(
        subject=f"file {path}",
        ok=False,
        code="E_DRIFT",
        detail=printable(f"{path} {why} {listed}, and wins over what vmproxy sets"),
        hint=f"take that out of {path}, or say the same with --proxy",
    )


def daemon_json(texts: Mapping[str, bytes], path: str, wanted: Mapping[str, str]) -> tuple[Finding, ...]:
    """``proxies`` of daemon.json (Docker 23 and later): its members go before the daemon's environment (dockerd(8)).

    What ``--via daemon-json`` has written is no finding: it is taken away.
    """
    proxies = _member(texts.get(path), "proxies")
    if not isinstance(proxies, Mapping) or _is_ours(texts[path]):
        return ()
    names = [key for key, name in _KEYS.items() if proxies.get(key) and name in wanted and proxies[key] != wanted[name]]
    return (finding(path, names, "has proxies that set"),) if names else ()


def _is_ours(content: bytes) -> bool:
    from vmproxy import jsonedit
    from vmproxy.errors import ForeignFile

    try:
        found = jsonedit.find(content, ("proxies",))
    except ForeignFile:
        return False
    return bool(found and found.ours)


def nftables(texts: Mapping[str, bytes], path: str) -> bool:
    """Whether daemon.json gives Docker the firewall backend nftables (Docker 29)."""
    return _member(texts.get(path), "firewall-backend") == "nftables"


def _member(content: bytes | None, name: str) -> object:
    """A member of a JSON object; None where there is none. A daemon.json that is no JSON keeps Docker from starting."""
    try:
        value = json.loads(content or b"{}")
    except (ValueError, RecursionError):
        return None
    return value.get(name) if isinstance(value, dict) else None
