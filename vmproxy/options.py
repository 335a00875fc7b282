"""The table of every option.

An option is written once here and is then known to the command line, to the environment (``--listen-port`` is
``VMPROXY_LISTEN_PORT``) and to the file (``listen-port = 8124``). Imports nothing of ours: ``--help`` needs only this.
"""

from __future__ import annotations

from typing import NamedTuple


class Option(NamedTuple):
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
    Option(
        name="jump",
        kind="way",
        flags=("-J",),
        metavar="HOST",
        field="jump",
        help="Go through this host, [USER@]HOST[:PORT]; several with commas.",
    ),
    Option(
        name="ssh",
        kind="choice",
        choices=("paramiko", "openssh"),
        field="ssh",
        help="Speak SSH with the library, or with this host's ssh program. [paramiko]",
    ),
    Option(
        name="helper-image",
        kind="text",
        metavar="NAME",
        field="helper_image",
        help="For docker: VMs: enter by this image, which must be there, instead of one made for it.",
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
    Option(
        name="tools",
        kind="list",
        metavar="LIST",
        field="tools",
        help="Programs in the VM to tell of the proxy, each in its own file, or none (apt, git, npm…).",
    ),
    Option(
        name="via",
        kind="choice",
        choices=("drop-in", "daemon-json"),
        field="via",
        help="Tell Docker in a file of its service, or in daemon.json (Docker 23 and later). [drop-in]",
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
    Option(
        name="rewrite",
        kind="flag",
        field="rewrite",
        help="In an initrd image: pack the archive with the file anew, instead of appending a small one.",
    ),
    Option(name="wait", kind="seconds", metavar="S", field="wait_seconds", help="Wait up to S seconds for the VM."),
    Option(
        name="lock-timeout",
        kind="seconds",
        metavar="S",
        field="lock_timeout_seconds",
        help="Wait up to S seconds for another run of vmproxy. [30]",
    ),
    Option(
        name="require-persistent",
        kind="flag",
        field="require_persistent",
        help="Refuse a VM that would forget the change at its next boot.",
    ),
    Option(name="jobs", kind="int", metavar="N", low=1, high=256, help="Treat N VMs at a time, at most 256. [1]"),
    # detect-gateway
    Option(name="table", kind="path", metavar="FILE|-", help="Read a recorded routing table instead of asking."),
    Option(name="all", kind="flag", help="Show every default route, the one chosen first."),
    Option(name="probe", help="Ask whether something answers at this port of the gateway.", **_PORT),  # type: ignore[arg-type]
    # containers and builds
    Option(
        name="names",
        kind="names",
        metavar="LIST",
        field="names",
        help="Containers and services that are reached by name, without the proxy.",
    ),
    Option(
        name="pip-index",
        kind="index",
        metavar="URL",
        field="pip_index",
        help="A package index for pip: adds its variables, and its host to no_proxy.",
    ),
    # docker-config
    Option(
        name="daemon",
        kind="text",
        metavar="HOST",
        help="Only for the daemon at this address, tcp://… or unix://…, instead of for all.",
    ),
    # cache
    Option(name="port", help="The port that the cache listens on. [8123]", **_PORT),  # type: ignore[arg-type]
    Option(name="bind", kind="text", metavar="ADDR", help="The address to listen on, with --allow. [127.0.0.1]"),
    Option(name="dir", kind="path", metavar="DIR", help="Where the cache keeps its files."),
    Option(name="size", kind="text", metavar="N[KMGT]", help="How much the cache keeps on disk. [10G]"),
    Option(name="allow", kind="list", metavar="CIDR", help="A network whose machines may use the proxy."),
    Option(
        name="allow-target",
        kind="list",
        metavar="CIDR",
        help="A private network, or one of this machine's, that may be asked for.",
    ),
    Option(
        name="connect-port",
        kind="list",
        metavar="N",
        help="A port that may be asked for, beside 443 for https: and 80 and those above 1023 for http:.",
    ),
    Option(
        name="engine",
        kind="choice",
        choices=("embedded", "squid"),
        help="Be the proxy, or configure, start and watch this host's squid. [embedded]",
    ),
    Option(
        name="upstream",
        kind="proxy",
        metavar="URL",
        help="Ask this proxy in place of the origins; its password never here, but in VMPROXY_UPSTREAM.",
    ),
    Option(name="upstream-file", kind="path", metavar="FILE", help="The same URL, from a file that only you can read."),
    Option(
        name="upstream-keyring",
        kind="flag",
        help="Take the password of the user in --upstream from the keyring.",
    ),
    Option(name="pip", kind="flag", help="A cache for pip beside the cache, too: proxpi, on --pip-port."),
    Option(name="pip-port", help="The port of the cache for pip. [5001]", **_PORT),  # type: ignore[arg-type]
    Option(name="watch", kind="flag", help="Show it anew every --interval seconds, until q or Ctrl-C."),
    Option(name="interval", kind="seconds", metavar="S", help="With --watch: seconds between two looks. [2]"),
    Option(
        name="service",
        kind="choice",
        choices=("systemd", "launchd"),
        help="Which of them starts it, instead of this system's own.",
    ),
    Option(name="print", kind="flag", help="Print the file that would be written, and do nothing."),
    Option(
        name="cache",
        kind="flag",
        help="Use this host's caching proxy: start it where it does not run, and prove that it keeps what is fetched.",
    ),
    # compose
    Option(name="file", kind="paths", flags=("-f",), metavar="FILE", help="A Compose file; repeat it for more."),
    # env
    Option(
        name="format",
        kind="choice",
        choices=(
            *("sh", "fish", "powershell", "dotenv", "json", "docker-run", "docker-build", "compose", "dockerfile"),
            "systemd",
        ),
        help="How to write them. [sh]",
    ),
)

#: Every option by its long name.
OPTIONS: dict[str, Option] = {option.name: option for option in _ALL}

GLOBAL = ("json", "verbose", "quiet", "color", "config", "debug")
SSH = ("identity", "ssh-config", "known-hosts", "host-key", "connect-timeout", "jump", "ssh", "helper-image")
WISH = (
    *("proxy", "https-proxy", "no-proxy", "listen-port", "forward", "gateway", "guest", "bridge", "tools"),
    *("names", "pip-index", "via"),
)
CHANGE = (
    *("dry-run", "exit-code", "yes", "restart", "verify", "check", "keep", "force"),
    *("wait", "lock-timeout", "require-persistent", "rewrite"),
)
