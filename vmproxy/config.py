"""Options, VMPROXY_… variables and vmproxy.toml become one frozen ``Settings``. No I/O: the texts are handed in.

``vmproxy.options`` is the list of what there is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from vmproxy.errors import UsageError, VmproxyError
from vmproxy.model import ProxyURL, Settings, printable
from vmproxy.options import OPTIONS, Option, variable

_TRUE = ("1", "true", "yes", "on")
_FALSE = ("0", "false", "no", "off")
_NOT_SETTINGS = ("VMPROXY_LAB", "VMPROXY_WAY_IN")
_WEEK_SECONDS = 7 * 24 * 3600


def _wrong(option: Option, value: object, wanted: str) -> UsageError:
    # What stands before an @ may be a password.
    shown = "***" if "@" in str(value) else f"'{printable(str(value), limit=60)}'"
    return UsageError(f"{option.name}: {shown} is not {wanted}")


def _text(option: Option, value: object) -> str:
    if not isinstance(value, str):
        raise _wrong(option, value, "a text")
    if any(ord(char) < 32 or ord(char) == 127 for char in value):
        raise _wrong(option, value, "a text of one line")
    return value


def _way(option: Option, value: object) -> str:
    """Nothing, as of a variable that is not set, must not mean: directly."""
    text = _text(option, value)
    if not text.strip():
        raise UsageError(f"{option.name}: no host is named", hint=f"--{option.name} none goes directly")
    return text


def _flag(option: Option, value: object) -> bool:
    if isinstance(value, bool):
        return value
    word = str(value).strip().lower()
    if word not in _TRUE + _FALSE:
        raise _wrong(option, value, "yes or no")
    return word in _TRUE


def _int(option: Option, value: object) -> int:
    text = str(value)
    if isinstance(value, bool) or not (text.isascii() and text.isdigit() and len(text) < 10):
        raise _wrong(option, value, f"a whole number from {option.low} to {option.high}")
    if not option.low <= int(text) <= option.high:
        raise _wrong(option, value, f"a whole number from {option.low} to {option.high}")
    return int(text)


def _count(option: Option, value: object) -> int:
    if isinstance(value, bool) or str(value).lower() in _TRUE + _FALSE:
        return int(_flag(option, value))
    text = str(value)
    if not (text.isascii() and text.isdigit()):
        raise _wrong(option, value, "a number")
    return int(text)


def _seconds(option: Option, value: object) -> float:
    try:
        number = float(value) if isinstance(value, int | float) else float(str(value) if str(value).isascii() else "")
    except ValueError:
        number = math.nan
    if isinstance(value, bool) or not 0 <= number <= _WEEK_SECONDS:
        raise _wrong(option, value, "a number of seconds")
    return number


def _choice(option: Option, value: object) -> str:
    if value not in option.choices:
        raise _wrong(option, value, f"one of {', '.join(option.choices)}")
    return str(value)


def _pieces(option: Option, value: object) -> tuple[str, ...]:
    if isinstance(value, str):
        return (_text(option, value),)
    if not isinstance(value, Sequence):
        raise _wrong(option, value, "a list of texts")
    return tuple(_text(option, item) for item in value)


def _list(option: Option, value: object) -> tuple[str, ...]:
    items = [item.strip() for text in _pieces(option, value) for item in text.split(",")]
    return tuple(dict.fromkeys(item for item in items if item))


def _path(option: Option, value: object) -> str:
    text = _text(option, value)
    if text.startswith("~"):
        import os.path

        return os.path.expanduser(text)
    return text


def _paths(option: Option, value: object) -> tuple[str, ...]:
    return tuple(_path(option, item) for item in _pieces(option, value) if item)


def _address(option: Option, value: object) -> str:
    import ipaddress

    text = _text(option, value)
    try:
        address = ipaddress.ip_address(text.strip())
    except ValueError:
        raise _wrong(option, value, "an IP address") from None
    # A link-local address of IPv6 is one only with an interface beside it, for which a URL has no place.
    scoped = address.version == 6 and address.is_link_local
    if address.is_unspecified or address.is_multicast or address.is_loopback or scoped:
        raise _wrong(option, value, "an address at which the VM can reach this host")
    return str(address)


def _fingerprint(option: Option, value: object) -> str:
    text = _text(option, value).rstrip("=")
    digits = text.removeprefix("SHA256:")
    if digits == text or len(digits) != 43 or not all(char.isalnum() or char in "+/" for char in digits):
        raise _wrong(option, value, "a fingerprint as ssh-keygen -l prints it, SHA256:…")
    return text


def _proxy(option: Option, value: object) -> ProxyURL:
    from vmproxy.proxyenv import parse_proxy

    return parse_proxy(_text(option, value))


def _no_proxy(option: Option, value: object) -> tuple[str, ...]:
    from vmproxy.proxyenv import merge_no_proxy

    entries = merge_no_proxy(",".join(_pieces(option, value)))
    for entry in entries:
        if not _can_be_direct(entry):
            raise _wrong(option, entry, "a host, .domain, address, network or *")
    return entries


def _can_be_direct(entry: str) -> bool:
    """Whether any program could take the entry for something: no URL, no network that is none, no list of another
    kind (Windows separates by semicolons)."""
    import ipaddress

    if "/" in entry:
        try:
            ipaddress.ip_network(entry, strict=False)
        except ValueError:
            return False
    return ";" not in entry


def _names(option: Option, value: object) -> tuple[str, ...]:
    from vmproxy.direct import container_name

    return tuple(container_name(item) for item in _list(option, value))


def _index(option: Option, value: object) -> str:
    from vmproxy.pip import parse_index

    text = _text(option, value)
    return parse_index(text) if text else ""


_CONVERT: dict[str, Callable[[Option, object], Any]] = {
    "flag": _flag,
    "count": _count,
    "text": _text,
    "way": _way,
    "int": _int,
    "seconds": _seconds,
    "choice": _choice,
    "list": _list,
    "path": _path,
    "paths": _paths,
    "address": _address,
    "fingerprint": _fingerprint,
    "proxy": _proxy,
    "no-proxy": _no_proxy,
    "names": _names,
    "index": _index,
}


def convert(option: Option, value: object, *, source: str) -> Any:
    """One raw value of one option, parsed. ``source`` is the flag, variable or file to name when it is wrong.

    Raises UsageError; the text of a value that may hold a password is never repeated.
    """
    try:
        return _CONVERT[option.kind](option, value)
    except VmproxyError as error:
        raise UsageError(error.what, where=error.where or source, hint=error.hint) from None


def parse_file(text: str, *, path: str) -> dict[str, object]:
    """The text of a vmproxy.toml, its keys checked against :data:`OPTIONS` and every value parsed once.

    Returns raw values by option name. Raises UsageError naming the file and the key.
    """
    import tomllib

    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"this is not TOML: {printable(str(error), limit=100)}", where=path) from None
    known = {name: option for option in OPTIONS.values() for name in (option.name, option.off) if name}
    del known["config"]
    values: dict[str, object] = {}
    for key, value in table.items():
        if key not in known:
            import difflib

            near = difflib.get_close_matches(key.replace("_", "-"), known, n=1)
            hint = f"did you mean {near[0]}?" if near else "the keys are the long options without their dashes"
            raise UsageError(f"there is no setting named '{printable(key, limit=60)}'", where=path, hint=hint)
        option = known[key]
        if option.kind == "flag" and not isinstance(value, bool):
            raise UsageError(f"{key}: true or false is wanted", where=path)
        where = f"{path}: {key}"
        convert(option, value, source=where)
        values[option.name] = (not value) if key == option.off else value
    return values


def resolve(
    names: Sequence[str],
    *,
    given: Mapping[str, object],
    environ: Mapping[str, str],
    file: Mapping[str, object],
    path: str = "",
) -> dict[str, Any]:
    """The value of each option of ``names`` that was said at all: command line, then environment, then file.

    ``given`` are raw values from the command line by option name. An empty variable counts as not set.
    Raises UsageError.
    """
    values: dict[str, Any] = {}
    for name in names:
        option = OPTIONS[name]
        if name in given:
            values[name] = convert(option, given[name], source=f"--{name}")
        elif environ.get(option.variable):
            values[name] = convert(option, environ[option.variable], source=option.variable)
        elif option.off and environ.get(variable(option.off)):
            values[name] = not convert(option, environ[variable(option.off)], source=variable(option.off))
        elif name in file:
            values[name] = convert(option, file[name], source=f"{path}: {name}")
    return values


def unknown_variables(environ: Mapping[str, str]) -> str:
    """One line that names each VMPROXY_… variable that is none of ours and has no effect; "" where there is none."""
    known = {variable(name) for option in OPTIONS.values() for name in (option.name, option.off) if name}
    others = ("VMPROXY_SSH_PASSWORD", "VMPROXY_SSH_PASSPHRASE")
    found = []
    for name in sorted(environ):
        strange = name.startswith("VMPROXY_") and name not in known and name not in others
        if strange and not name.startswith(_NOT_SETTINGS):
            import difflib

            near = difflib.get_close_matches(name, (*known, *others), n=1, cutoff=0.8)
            found.append(printable(name, limit=40) + (f" (did you mean {near[0]}?)" if near else ""))
    return f"no setting, and ignored: {', '.join(found)}" if found else ""


def settings(values: Mapping[str, Any], *, environ: Mapping[str, str]) -> Settings:
    """``Settings`` from resolved values by option name, and the host's own proxy variables from ``environ``."""
    fields = {OPTIONS[name].field: value for name, value in values.items() if OPTIONS[name].field}
    return Settings(**fields, given=frozenset(fields), **host_environment(environ))


def host_environment(environ: Mapping[str, str]) -> dict[str, Any]:
    """The host's own proxy variables as ``host_environment_*`` fields. Wrong ones become one line, not an error."""
    fields: dict[str, Any] = {}
    if not any(environ.get(name) or environ.get(name.upper()) for name in ("http_proxy", "https_proxy", "no_proxy")):
        return fields
    from vmproxy.proxyenv import conflicts, from_environ, merge_no_proxy, parse_proxy

    if found := conflicts(environ):
        fields["host_environment_conflicts"] = tuple(f"this host's environment: {one.detail}" for one in found)
    try:
        pairs = from_environ(environ)
        for name, field in (("http_proxy", "proxy"), ("https_proxy", "https_proxy")):
            if text := pairs.get(name):
                fields[f"host_environment_{field}"] = parse_proxy(text)
        if text := pairs.get("no_proxy"):
            fields["host_environment_no_proxy"] = merge_no_proxy(text)
    except UsageError as error:
        return {"host_environment_problem": f"this host's environment: {error}"}
    return fields
