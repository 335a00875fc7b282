"""``vmproxy cache start|stop|install|uninstall``: the proxy without a terminal of its own."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from vmproxy.cli.cacheupstream import no_proxy
from vmproxy.cli.common import Run
from vmproxy.errors import UsageError
from vmproxy.model import ProxyURL
from vmproxy.options import OPTIONS, variable

if TYPE_CHECKING:
    from vmproxy.cache.limits import CacheSettings
    from vmproxy.cacherun import Started


def directory(run: Run) -> str:
    """The directory of the cache; the platform's place for caches if nobody says another."""
    said = run.value("dir")
    if said:
        return os.path.abspath(os.path.expanduser(str(said)))
    if os.name == "posix" and sys.platform != "darwin":
        # What platformdirs does there, without its import.
        base = run.environ.get("XDG_CACHE_HOME", "").strip() or os.path.expanduser("~/.cache")
        return os.path.join(base, "vmproxy", "proxy")
    import platformdirs

    return os.path.join(platformdirs.user_cache_dir("vmproxy", appauthor=False), "proxy")


def index(run: Run) -> tuple[int, str]:
    """The port of this host's cache, and the package index beside it as this host says it; (0, "") where none runs."""
    where = directory(run)
    if not os.path.exists(os.path.join(where, "control")):  # before what it takes to ask is imported
        return 0, ""
    from vmproxy.cache import control
    from vmproxy.errors import VmproxyError

    try:
        found = control.ask(where, {"do": "status"}) or {}
    except VmproxyError:
        return 0, ""
    pip, port = found.get("pip"), str(found.get("listen", "")).rpartition(":")[2]
    if not pip or not pip["running"] or not port.isdigit():
        return 0, ""
    # On loopback or at a gateway's address: to a container it is this host either way.
    return int(port), f"http://127.0.0.1:{pip['listen'].rpartition(':')[2]}/index/"


def words(run: Run, names: tuple[str, ...]) -> tuple[list[str], dict[str, str]]:
    """The options of ``serve`` as they were said, for another process: words, and variables for what is secret.

    Of ``upstream`` and ``upstream-file`` the one that counts (:mod:`vmproxy.cli.cacheupstream`): both on the command
    line of the other process would exclude each other.
    """
    out, secrets = [f"--dir={directory(run)}"], {}
    if file := run.value("config"):
        out.append(f"--config={os.path.abspath(file)}")
    left_out = ""
    if run.value("upstream") and run.value("upstream-file"):
        left_out = "upstream-file" if "upstream" in run.given else "upstream"
    for name in names:
        value = run.value(name)
        if name == "no-proxy" and (run.value("upstream") or run.value("upstream-file")):
            value = no_proxy(run) or None  # a service does not have this environment
        if name in ("dir", left_out) or value is None:
            continue
        option = OPTIONS[name]
        if option.kind == "flag":
            said = name if value else option.off  # without a word that says no it is off by itself
            out += [f"--{said}"] if said else []
        elif isinstance(value, ProxyURL):
            from vmproxy.proxyenv import url

            if value.password:
                secrets[variable(name)] = url(value)
            else:
                out.append(f"--{name}={url(value)}")
        elif option.kind == "path":
            out.append(f"--{name}={os.path.abspath(value)}")
        elif isinstance(value, tuple):
            out += [f"--{name}={item}" for item in value]
        else:
            out.append(f"--{name}={value}")
    return out, secrets


def check(settings: CacheSettings) -> None:
    """Raises UsageError where what a proxy with these settings needs is not installed."""
    from vmproxy.cache import engines
    from vmproxy.cache.pipcache import need_proxpi

    engines.check(settings.engine)
    if settings.pip_port:
        need_proxpi()


def start(run: Run, names: tuple[str, ...]) -> int:
    """Start the proxy in the background, or have its service start, and wait until it answers."""
    from vmproxy import cacherun
    from vmproxy.cli.cache import document, settings_of

    where = directory(run)
    wanted = settings_of(run)
    check(wanted)  # what is wrong with an option, or not installed, is said here
    begun = started(run, names)
    found = begun.status
    has = found.get("options", wanted.words())  # one of an older version does not say
    lacks = [word for word in wanted.words() if word not in has]
    if run.value("port") and not lacks and not str(found["listen"]).endswith(f":{run.value('port')}"):
        lacks = [f"--port={run.value('port')}"]  # the usual one is in nobody's words
    if lacks:
        run.output.warn(f"it runs without {' '.join(lacks)}; vmproxy cache stop ends it", beside_json=True)
    if run.output.json:
        run.output.document(document(changed=bool(begun.how), cache=dict(found)))
    elif begun.how:
        log = f"; its words are in {os.path.join(where, 'serve.log')}" if begun.how == cacherun.BACKGROUND else ""
        run.output.result(f"listening on {found['listen']}, {begun.how}, process {found['pid']}{log}")
    else:
        run.output.result(f"it runs already: {found['listen']}, process {found['pid']}")
    return 0


def started(run: Run, names: tuple[str, ...], more: tuple[str, ...] = ()) -> Started:
    """The same without a word; ``more`` are words beside those that were said. Raises what cacherun.start raises."""
    from vmproxy import cacherun, cacheservice

    where = directory(run)
    found = cacherun.running(where)
    if found is not None:
        return cacherun.Started(status=found)
    try:
        kind = cacheservice.service(None, environ=run.environ)
    except UsageError:
        kind = None
    if kind and cacheservice.installed(kind, where):
        return cacheservice.wake(kind, where, environ=run.environ)
    said, secrets = words(run, names)
    return cacherun.start(where, (*said, *more), environ={**run.environ, **secrets})


def stop(run: Run) -> int:
    """Have the proxy that runs on the directory end."""
    from vmproxy import cacherun
    from vmproxy.cli.cache import document

    ended = cacherun.stop(directory(run))
    if run.output.json:
        run.output.document(document(changed=ended))
    else:
        run.output.result("ended" if ended else "no cache runs there")
    return 0


def install(run: Run, names: tuple[str, ...]) -> int:
    """Have the proxy started at each log-in, and now."""
    from vmproxy import cacheservice
    from vmproxy.cache import units
    from vmproxy.cli.cache import document, settings_of

    check(settings_of(run))
    said, secrets = words(run, names)
    if secrets:
        names_of = ", ".join(secrets)
        raise UsageError(
            f"the credentials in {names_of} would stand in a file that programs show",
            hint=f"--upstream-file FILE, --upstream-keyring, or for systemd {names_of}=… in ~/.config/{units.SECRETS}",
        )
    kind = cacheservice.service(run.value("service"), environ=run.environ)
    if run.value("print"):
        run.output.exact(cacheservice.text(kind, said).decode().removesuffix("\n"))
        return 0
    changed = cacheservice.install(kind, directory(run), said, environ=run.environ)
    if run.output.json:
        run.output.document(document(changed=changed))
    else:
        run.output.result(f"installed: {kind.path}" if changed else f"installed already: {kind.path}")
        if kind.note:
            run.output.note(kind.note)
    return 0


def uninstall(run: Run) -> int:
    """Take the service away."""
    from vmproxy import cacheservice
    from vmproxy.cli.cache import document

    kind = cacheservice.service(run.value("service"), environ=run.environ)
    changed = cacheservice.uninstall(kind, environ=run.environ)
    if run.output.json:
        run.output.document(document(changed=changed))
    else:
        run.output.result(f"removed: {kind.path}" if changed else "no service of vmproxy's is installed")
    return 0
