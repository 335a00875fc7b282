"""The upstream of ``cache serve``: its URL and its password, from where no other user of this machine sees them."""

from __future__ import annotations

import os
from dataclasses import replace

import click

from vmproxy import config
from vmproxy.cli.common import Run, said
from vmproxy.errors import UsageError
from vmproxy.model import ProxyURL
from vmproxy.options import OPTIONS

_FILE_LIMIT_BYTES = 8192
_ELSEWHERE = "VMPROXY_UPSTREAM=URL, --upstream-file FILE or --upstream-keyring"


def upstream(run: Run) -> ProxyURL | None:
    """The upstream that the options name, with its password; None where they name none.

    Raises UsageError: for a password on the command line, which every user of this machine sees in the list of
    processes; for a file that others can read; for a keyring that cannot be asked, or does not know it.
    """
    found = _given(run)
    if found is not None:
        run.output.secrets = (*run.output.secrets, found)
    return found


def no_proxy(run: Run) -> tuple[str, ...]:
    """What goes to its origin directly: the host's own list, and that of the option."""
    from vmproxy.proxyenv import merge_no_proxy

    own = run.settings.host_environment_no_proxy
    return merge_no_proxy(own, run.value("no-proxy", ()))


def _given(run: Run) -> ProxyURL | None:
    proxy: ProxyURL | None = run.value("upstream")
    if proxy and proxy.password and _on_command_line("upstream"):
        raise UsageError("a password on the command line is seen by every user", where="--upstream", hint=_ELSEWHERE)
    path = run.value("upstream-file")
    if path and _on_command_line("upstream"):
        if _on_command_line("upstream-file"):
            raise UsageError("--upstream and --upstream-file exclude each other")
        path = None
    if path:
        proxy = _from_file(path)
    if run.value("upstream-keyring"):
        if proxy is None or not proxy.username:
            raise UsageError("--upstream-keyring needs the user", hint="--upstream http://USER@host:port")
        if proxy.password:
            raise UsageError("--upstream-keyring is given, and the URL has a password already")
        return replace(proxy, password=_from_keyring(proxy))
    return proxy


def _on_command_line(name: str) -> bool:
    ctx: click.Context | None = click.get_current_context(silent=True)
    while ctx is not None:
        if name in said(ctx):
            return True
        ctx = ctx.parent
    return False


def _from_file(path: str) -> ProxyURL:
    """The URL that a file holds. Raises UsageError, without a word of what it holds."""
    from vmproxy import hostproc

    data = hostproc.read_file(path, limit_bytes=_FILE_LIMIT_BYTES)
    if data is None:
        raise UsageError("there is no such file", where=path, hint=_ELSEWHERE)
    if os.name == "posix":
        mode = os.stat(path).st_mode
        if mode & 0o077:
            raise UsageError("others than you can read it", where=path, hint=f"chmod 600 {path}")
    try:
        lines = data.decode("utf-8-sig").split("\n")
    except UnicodeDecodeError:
        raise UsageError("this is not UTF-8", where=path) from None
    lines = [line.strip() for line in lines if line.strip()]
    if len(lines) != 1:
        raise UsageError("one line is wanted, http://user:password@host:port", where=path)
    found: ProxyURL = config.convert(OPTIONS["upstream"], lines[0], source=path)
    return found


def _from_keyring(proxy: ProxyURL) -> str:
    """The password that the keyring has for this user and proxy. Raises UsageError."""
    service = str(replace(proxy, username="", password=""))
    store = f"keyring set {service} USER"
    try:
        import keyring
        from keyring.errors import KeyringError
    except ImportError:
        raise UsageError("the keyring needs the package keyring", hint="pip install 'vmproxy[keyring]'") from None
    try:
        password: str | None = keyring.get_password(service, proxy.username)
    except KeyringError as error:  # NoKeyringError, where nobody is logged in at a desktop, is one of them
        what = f"the keyring cannot be asked: {type(error).__name__}"
        raise UsageError(what, hint="--upstream-file FILE, or VMPROXY_UPSTREAM=URL") from None
    if not password:
        raise UsageError("the keyring has no password for that user", where=service, hint=store)
    return password
