"""Variables as a file, or a piece of one: env file, Compose, Dockerfile, systemd unit. PURE."""

from __future__ import annotations

from collections.abc import Mapping

from vmproxy import quoting
from vmproxy.errors import UsageError
from vmproxy.proxyenv import FAMILY, holds_credentials

_COMPOSE = "# Below a service; build: only in one that has a build.\n"
_DOCKERFILE = """\
# Below FROM, for the build alone. Not ENV: that stays in the image, so that every container made of it, wherever it
# runs, looks for this proxy, and everybody who has the image can read it.
# The proxy variables are predefined: passed by --build-arg they need no line here, and docker history does not show
# them, as it does with one. PIP_... and, to Docker 20.10, ALL_PROXY are not: they need their ARG.
"""
_PREDEFINED = "docker build $(vmproxy env --format docker-build), without ARG lines for the proxy"


def dotenv(variables: Mapping[str, str]) -> str:
    """A file for ``docker run --env-file``: the values as they stand."""
    return "".join(f"{quoting.dotenv(name, value)}\n" for name, value in variables.items())


def compose(variables: Mapping[str, str]) -> str:
    """``environment:`` and ``build: args:`` of one service, YAML in ASCII for every version of Compose."""
    pairs = [f"{quoting.yaml_key(name)}: {quoting.yaml(quoting.compose(value))}\n" for name, value in variables.items()]
    environment = "".join(f"  {pair}" for pair in pairs)
    arguments = "".join(f"    {pair}" for pair in pairs)
    return f"{_COMPOSE}environment:\n{environment}build:\n  args:\n{arguments}"


def dockerfile(variables: Mapping[str, str]) -> str:
    """``ARG`` lines, and why not ``ENV``. A value with credentials is refused: docker history would show it."""
    for name, value in variables.items():
        if holds_credentials(name, value):
            raise UsageError(
                f"{name} holds credentials, and an ARG line would leave them in the image's history",
                hint=_PREDEFINED if name.lower() in FAMILY else "RUN --mount=type=secret keeps them out (BuildKit)",
            )
    return _DOCKERFILE + "".join(f"ARG {quoting.dockerfile(name, value)}\n" for name, value in variables.items())


def systemd(variables: Mapping[str, str]) -> str:
    """A drop-in for a service: ``[Service]`` and one ``Environment=`` line for each."""
    return "[Service]\n" + "".join(f"{quoting.systemd(name, value)}\n" for name, value in variables.items())
