"""What every test shares: nothing of the user's own settings reaches a test."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

from tests.lab.securitykey import SecurityKey

# Started in the background of a script we ignore SIGINT, and every program and VM of the tests would inherit that.
for _number in (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP):
    if signal.getsignal(_number) is signal.SIG_IGN:
        signal.signal(_number, signal.default_int_handler if _number is signal.SIGINT else signal.SIG_DFL)

# The same examples every time, and no deadline for one: a shared machine is slow when it is slow. New examples are for
# ``pytest --hypothesis-profile=explore``.
_COMMON = {"deadline": None, "suppress_health_check": [hypothesis.HealthCheck.too_slow], "print_blob": True}
hypothesis.settings.register_profile("vmproxy", derandomize=True, database=None, **_COMMON)
hypothesis.settings.register_profile("explore", max_examples=2000, **_COMMON)
hypothesis.settings.load_profile("vmproxy")


@pytest.fixture(autouse=True)
def _nothing_of_the_users(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """No VMPROXY_… and proxy variable, no vmproxy.toml, no colour choice of the machine that runs the tests."""
    for name in list(os.environ):
        ours = name.startswith(("VMPROXY_", "BOOT2DOCKER_")) and not name.startswith("VMPROXY_LAB")
        if ours or name.lower() in ("http_proxy", "https_proxy", "ftp_proxy", "no_proxy", "all_proxy"):
            monkeypatch.delenv(name)
    for name in ("NO_COLOR", "_VMPROXY_COMPLETE", "MACHINE_STORAGE_PATH", "SSH_AUTH_SOCK"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path_factory.mktemp("config")))


@pytest.fixture(scope="session")
def root() -> Path:
    """The top of the work tree."""
    return Path(__file__).resolve().parents[1]


@pytest.fixture
def device(plugged: SecurityKey) -> Iterator[SecurityKey]:
    """The module's own security key, ``plugged``: before a test and after it nobody is waited for."""
    plugged.put()
    yield plugged
    plugged.put()
