"""Options, VMPROXY_… variables and vmproxy.toml become one frozen ``Settings``. No I/O: the texts are handed in.

:data:`OPTIONS` is the whole list. An option is written once here and is then known to the command line, to the
environment (``--listen-port`` is ``VMPROXY_LISTEN_PORT``) and to the file (``listen-port = 8124``).
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vmproxy.errors import UsageError, VmproxyError
from vmproxy.model import ProxyURL, Settings, printable

FORMATS = ("sh", "json", "dotenv")


@dataclass(frozen=True, kw_only=True)
class Option:
    """One option. ``kind`` is a key of the converters below; ``off`` the name that says no to a flag.

    ``field`` is the name in ``Settings``, "" where the option is the command's own business.
    """

    name: str
    kind: str
    help: str
    flags: tuple[str, ...] = ()
    metavar: str = ""
    field: str = ""
    off: str = ""
    choices: tuple[str, ...] = ()
    low: int = 0
    high: int = 0

    @property
    def key(self) -> str:
        """The name as an identifier, ``listen_port``."""
        return self.name.replace("-", "_")

    @property
    def variable(self) -> str:
        """The environment variable, ``VMPROXY_LISTEN_PORT``."""
        return variable(self.name)


def variable(name: str) -> str:
    """The environment variable of an option name."""
    return "VMPROXY_" + name.replace("-", "_").upper()


_PORT = {"kind": "int", "metavar": "N", "low": 1, "high": 65535}

_ALL: tuple[Option, ...] = (
    # every command
    Option(name="json", kind="flag", help="Print one JSON object on stdout."),
    Option(name="verbose", kind="count", flags=("-v",), help="Say more; twice for every step."),
    Option(name="quiet", kind="flag", flags=("-q",), help="Say nothing but one line on failure."),
    Option(name="color", kind="choice", choices=("auto", "always", "never"), help="Colour on a terminal."),
    Option(name="config", kind="path", metavar="FILE", help="Read settings from FILE instead of the usual place."),
    Option(name="debug", kind="flag", help="Show the traceback of an error."),
    # which VM, and how to get in
    Option(name="vm", kind="list", metavar="TARGET", help="The VM; repeat it or separate with commas."),
    Option(name="identity", kind="paths", flags=("-i",), metavar="FILE", field="identities", help="Private key file."),
    Option(
        name="ssh-config",
        kind="path",
        flags=("-F",),
        metavar="FILE",
        field="ssh_config",
        help="Read FILE instead of ~/.ssh/config.",
    ),
    Option(
        name="known-hosts",
        kind="path",
        metavar="FILE",
        field="known_hosts",
        help="Keep host keys in FILE.",
    ),
    Option(
        name="host-key",
        kind="fingerprint",
        metavar="SHA256:…",
        field="host_key",
        help="Accept only the host key with this fingerprint.",
    ),
    Option(
        name="connect-timeout",
        kind="seconds",
        metavar="S",
        field="connect_timeout_seconds",
        help="Seconds for one connection. [10]",
    ),
    # the wish
    Option(name="proxy", kind="proxy", metavar="URL", field="proxy", help="The proxy; 127.0.0.1 means: on this host."),
    Option(
        name="https-proxy",
        kind="proxy",
        metavar="URL",
        field="https_proxy",
        help="Another proxy for https: addresses.",
    ),
    Option(
        name="no-proxy",
        kind="no-proxy",
        metavar="LIST",
        field="no_proxy",
        help="Names and networks that go without the proxy.",
    ),
    Option(
        name="listen-port",
        field="listen_port",
        help="The port that containers use, where it must not be the proxy's.",
        **_PORT,  # type: ignore[arg-type]
    ),
    Option(
        name="forward",
        kind="flag",
        field="forward",
        off="no-forward",
        help="Make the door for a proxy that is not on this host, too.",
    ),
    Option(
        name="gateway",
        kind="address",
        metavar="IP",
        field="gateway",
        help="This host's address as the VM sees it, instead of looking it up.",
    ),
    Option(
        name="guest",
        kind="text",
        metavar="KIND",
        field="guest",
        help="What kind of VM it is, instead of looking.",
    ),
    Option(
        name="bridge",
        kind="list",
        metavar="NAME",
        field="bridges",
        help="Only this Docker bridge in the VM; repeat it for more.",
    ),
    # how to change
    Option(name="dry-run", kind="flag", help="Show what would change, as a diff; write nothing."),
    Option(name="exit-code", kind="flag", help="With --dry-run: exit 3 if there is something to do."),
    Option(name="yes", kind="flag", field="yes", help="Do not ask before running containers are stopped."),
    Option(
        name="restart",
        kind="choice",
        choices=("auto", "always", "never"),
        field="restart",
        help="Restart Docker: when no container runs (auto), always, never. [auto]",
    ),
    Option(name="verify", kind="flag", field="verify", off="no-verify", help="Prove it end to end afterwards. [yes]"),
    Option(
        name="check", kind="flag", field="check", off="no-check", help="Ask the proxy before the first change. [yes]"
    ),
    Option(name="keep", kind="flag", field="keep", help="Keep the change although the proof fails."),
    Option(name="force", kind="flag", field="force", help="Go on where another tool's rule or value is in the way."),
    Option(name="wait", kind="seconds", metavar="S", field="wait_seconds", help="Wait up to S seconds for the VM."),
    Option(
        name="lock-timeout",
        kind="seconds",
        metavar="S",
        field="lock_timeout_seconds",
        help="Wait up to S seconds for another run or program. [30]",
    ),
    Option(
        name="require-persistent",
        kind="flag",
        field="require_persistent",
        help="Refuse a VM that would forget the change at its next boot.",
    ),
    # detect-gateway
    Option(name="table", kind="path", metavar="FILE|-", help="Read a recorded routing table instead of asking."),
    Option(name="all", kind="flag", help="Show every default route, the one chosen first."),
    Option(name="probe", help="Ask whether something answers at this port of the gateway.", **_PORT),  # type: ignore[arg-type]
    # env
    Option(name="format", kind="choice", choices=FORMATS, help="How to write them. [sh]"),
)

#: Every option by its long name.
OPTIONS: dict[str, Option] = {option.name: option for option in _ALL}

GLOBAL = ("json", "verbose", "quiet", "color", "config", "debug")
SSH = ("identity", "ssh-config", "known-hosts", "host-key", "connect-timeout")
WISH = ("proxy", "https-proxy", "no-proxy", "listen-port", "forward", "gateway", "guest", "bridge")
CHANGE = (
    *("dry-run", "exit-code", "yes", "restart", "verify", "check", "keep", "force"),
    *("wait", "lock-timeout", "require-persistent"),
)

_TRUE = ("1", "true", "yes", "on")
_FALSE = ("0", "false", "no", "off")
_WEEK_SECONDS = 7 * 24 * 3600


def _wrong(option: Option, value: object, wanted: str) -> UsageError:
    return UsageError(f"{option.name}: {printable(str(value), limit=60)!r} is not {wanted}")


def _text(option: Option, value: object) -> str:
    if not isinstance(value, str):
        raise _wrong(option, value, "a text")
    if any(ord(char) < 32 or ord(char) == 127 for char in value):
        raise _wrong(option, value, "a text of one line")
    return value


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
    if address.is_unspecified or address.is_multicast or address.is_loopback:
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

    return merge_no_proxy(",".join(_pieces(option, value)), ())


_CONVERT: dict[str, Callable[[Option, object], Any]] = {
    "flag": _flag,
    "count": _count,
    "text": _text,
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
            near = difflib.get_close_matches(key.replace("_", "-"), known, n=1)
            hint = f"did you mean {near[0]}?" if near else "the keys are the long options without their dashes"
            raise UsageError(f"there is no setting named {printable(key, limit=60)!r}", where=path, hint=hint)
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


def settings(values: Mapping[str, Any], *, environ: Mapping[str, str]) -> Settings:
    """``Settings`` from resolved values by option name, and the host's own proxy variables from ``environ``."""
    fields = {OPTIONS[name].field: value for name, value in values.items() if OPTIONS[name].field}
    return Settings(**fields, given=frozenset(fields), **host_environment(environ))


def host_environment(environ: Mapping[str, str]) -> dict[str, Any]:
    """The host's own proxy variables as ``host_environment_*`` fields. Wrong ones become one line, not an error.

    Lower case first, as curl does; upper-case HTTP_PROXY is not read in a CGI program (there the client sets it).
    """
    fields: dict[str, Any] = {}

    def of(name: str) -> str:
        if name == "http_proxy" and "REQUEST_METHOD" in environ:
            return environ.get(name, "")
        return environ.get(name, "") or environ.get(name.upper(), "")

    for name in ("http_proxy", "https_proxy"):
        if not (text := of(name)):
            continue
        from vmproxy.proxyenv import parse_proxy

        try:
            fields[f"host_environment_{name.removesuffix('_proxy')}_proxy".replace("_http_", "_")] = parse_proxy(text)
        except VmproxyError as error:
            fields["host_environment_problem"] = f"{error.what} ({name} in the environment)"
    if text := of("no_proxy"):
        from vmproxy.proxyenv import merge_no_proxy

        try:
            fields["host_environment_no_proxy"] = merge_no_proxy(text, ())
        except VmproxyError as error:
            fields["host_environment_problem"] = f"{error.what} (no_proxy in the environment)"
    return fields
