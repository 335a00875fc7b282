"""A Docker engine through the host's docker client: can it be asked, what is it, what do complaints mean."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any

from vmproxy import hostproc
from vmproxy.errors import LostContact, NotPermitted, Refused, Unreachable, UsageError, VmproxyError
from vmproxy.model import printable

_OVERRIDES = ("DOCKER_DEFAULT_PLATFORM", "DOCKER_CONTENT_TRUST")
"""Variables that make the client look for another image than the one named by its id."""
_LOOK_SECONDS = 30.0
_REASON_LIMIT = 200
_BY_SSH = " stderr="
Stoppable = Callable[[Callable[[], None]], AbstractContextManager[None]]


class Engine:
    """One engine. ``context`` "" is the client's current one: DOCKER_HOST, DOCKER_CONTEXT, ``docker context use``."""

    def __init__(self, context: str, *, environ: Mapping[str, str]) -> None:
        self._context = context
        self.environ = {name: value for name, value in environ.items() if name not in _OVERRIDES}
        self.has_cgroup_namespaces = False

    def argv(self, *words: str) -> tuple[str, ...]:
        """The client's command line."""
        return ("docker", *(("--context", self._context) if self._context else ()), *words)

    def run(self, *words: str, timeout_seconds: float, stoppable: Stoppable | None = None) -> hostproc.Output:
        """One command of the client to its end. Raises UsageError where there is no client, Unreachable in time-out
        and where a signal ended the client.

        ``stoppable`` is that of :class:`vmproxy.transports.SshOptions`.
        """
        try:
            said = hostproc.run(
                self.argv(*words), timeout_seconds=timeout_seconds, environ=self.environ, stoppable=stoppable
            )
        except LostContact as error:
            hint = "docker info; --connect-timeout S waits longer"
            what = f"the Docker engine does not answer: {error.what}"
            raise Unreachable(what, where=self._where, hint=hint) from error
        if said is None:
            raise UsageError(
                "there is no docker client on this host",
                where="docker",
                hint="install it, or reach the VM by ssh://USER@HOST",
            )
        if said.status < 0:
            raise Unreachable("the docker client was ended", where=self._where, hint="once more")
        return said

    def ask(self, *, timeout_seconds: float, stoppable: Stoppable | None = None) -> None:
        """Whether it can be entered. Raises UsageError, Unreachable, NotPermitted, Refused."""
        said = self.run("info", "--format", "{{json .}}", timeout_seconds=timeout_seconds, stoppable=stoppable)
        info = _object(said.stdout)
        errors = info.get("ServerErrors")
        if said.status != 0 or errors:
            listed = " ".join(map(str, errors)).encode() if isinstance(errors, list) else b""
            raise explain(listed or said.stderr, where=self._where)
        kind = info.get("OSType")
        if not kind:
            podman = isinstance(info.get("host"), dict)  # what podman-docker's "docker" says of itself
            what = "this docker client is Podman's" if podman else "what docker info says is not an engine's"
            raise Refused(what, where=self._where, hint="Docker's own client, or the VM by ssh://USER@HOST")
        if kind != "linux":
            raise Refused(
                f"the engine runs {printable(str(kind), limit=40)} containers, not Linux ones",
                where=self._where,
                hint="docker context ls shows the others",
            )
        security = info.get("SecurityOptions")
        if isinstance(security, list) and any("rootless" in str(option) for option in security):
            raise Refused(
                "the engine is rootless: no container of it gets into the VM",
                where=self._where,
                hint="set HTTP_PROXY in ~/.config/systemd/user/docker.service.d/ in the VM, or run Docker as root",
            )
        # Since API 1.41 engine and client have both, or the client does not print it.
        self.has_cgroup_namespaces = bool(info.get("CgroupVersion"))

    def image(self, name: str, *, stoppable: Stoppable | None = None) -> str:
        """The id of an image that is there. Raises UsageError."""
        if name.startswith("-") or not name.isprintable() or not name.isascii() or " " in name:
            raise UsageError(f"{printable(name, limit=60)} is no image name", hint="--helper-image NAME[:TAG]")
        words = ("image", "inspect", "--format", "{{.Id}}", name)
        said = self.run(*words, timeout_seconds=_LOOK_SECONDS, stoppable=stoppable)
        if said.status != 0:
            raise UsageError(
                f"the engine has no image {name}, and vmproxy pulls none",
                where=self._where,
                hint=f"docker pull {name}, or leave --helper-image out",
            )
        return said.stdout.decode("ascii", "replace").strip()

    @property
    def _where(self) -> str:
        return f"docker:{self._context}"


def explain(stderr: bytes, *, own_image: bool = False, where: str = "docker") -> VmproxyError:
    """The error for what the docker client, or nsenter in the container, complains of."""
    text = stderr.decode("utf-8", "replace")
    low = text.lower()
    said = _reason(printable(" ".join(text.split()), limit=100_000)) or "it says nothing"
    if "authorization denied" in low or "permission denied while trying to connect" in low:
        return NotPermitted(f"the engine refuses: {said}", where=where, hint="docker info says the same?")
    if re.search(r'context "[^"]*"[^\n]{0,40}(not found|does not exist)', low):
        return UsageError(f"docker knows no such context: {said}", where=where, hint="docker context ls")
    if low.startswith("failed to initialize") or "unable to resolve docker endpoint" in low:
        hint = "DOCKER_HOST, DOCKER_CERT_PATH and DOCKER_TLS_VERIFY, or docker context ls"
        return UsageError(f"the docker client cannot use its settings: {said}", where=where, hint=hint)
    if "no space left on device" in low:
        hint = "make room on the VM's disk: docker system df, docker image prune"
        return Refused(f"the engine takes no helper image: {said}", where=where, hint=hint)
    if "nsenter" in low and ("executable file not found" in low or "no such file" in low):
        what, hint = "the helper image has no nsenter", "leave --helper-image out, or name an image of a whole system"
        if own_image:
            what, hint = "the VM has no nsenter", "--helper-image NAME, an image in the engine that has it"
        return Refused(what, where=where, hint=hint)
    if "nsenter" in low or "operation not permitted" in low or "privileged" in low:
        return NotPermitted(
            f"the engine lets no container into the VM: {said}",
            where=where,
            hint="Docker Desktop's Enhanced Container Isolation forbids it; ssh://USER@VM needs no container",
        )
    if _BY_SSH in text:
        hint = "the docker client starts this host's ssh, which must get in by itself: ssh_config, ssh-add"
        if "permission denied (" in low:
            return NotPermitted(f"ssh is not let in to the engine: {said}", where=where, hint=hint)
        return Unreachable(f"ssh does not get to the engine: {said}", where=where, hint=hint)
    hint = "docker info; is Docker running?"
    if re.search(r"client version [0-9.]+ is too (old|new)", low):
        hint = "upgrade the docker client, or the engine"
    return Unreachable(f"the engine cannot be used: {said}", where=where, hint=hint)


def _reason(text: str) -> str:
    """The end of what was said, where the reason stands: behind the docker client's own words of the ssh that it
    started (cli/connhelper/commandconn), and of a long line whole words."""
    words = text.rpartition(_BY_SSH)[2].split() or text.split()
    kept: list[str] = []
    while words and len(" ".join((words[-1], *kept))) < _REASON_LIMIT:
        kept.insert(0, words.pop())
    return " ".join((["…"] if words else []) + kept) if kept else "".join(words[-1:])[-_REASON_LIMIT:]


def _object(data: bytes) -> Mapping[str, Any]:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
