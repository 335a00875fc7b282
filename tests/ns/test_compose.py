"""docker-compose 1.29 beside Docker 20.10 takes what ``vmproxy compose`` prints: config, build, up."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.ns import composing
from tests.ns.composing import Shop


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    """One VM for all tests of this file."""
    home = tmp_path_factory.mktemp("home")
    with composing.opened(home, ("docker-compose",), more=("docker-compose",)) as opened:
        yield opened


def test_the_client_is_the_old_one(shop: Shop) -> None:
    """It is docker-compose 1.29 that these tests are about."""
    assert "version 1.29" in shop.compose("version")


def test_services_reach_the_proxy_and_each_other(shop: Shop) -> None:
    """A service that is brought up has the variables, asks the proxy at the bridge's address for a name that only the
    proxy knows, and reaches another service by name, alias and container name without the proxy."""
    composing.reaches_proxy_and_services(shop)


def test_a_services_own_variables_win(shop: Shop) -> None:
    """What a service sets itself, in a list or an env_file, stays; the rest is added."""
    composing.own_variables_win(shop)


def test_nothing_else_changes(shop: Shop) -> None:
    """However a service says variables and arguments itself (anchors, lists, env_file, extends, several files), the
    client understands the same as without our file, and ours beside it."""
    composing.changes_nothing_else(shop)


def test_build_arguments_are_used_and_not_kept(shop: Shop) -> None:
    """A service's build has the arguments and its own ones, fetches through the proxy, and the image tells nothing."""
    composing.builds(shop)


def test_services_know_the_host_by_name(shop: Shop) -> None:
    """Without ``--vm`` the proxy is host.docker.internal: services and builds get to know that name, and reach it."""
    composing.host_by_name(shop)


def test_credentials_come_from_the_environment(shop: Shop) -> None:
    """A proxy's password is not in the printed file; ``vmproxy run`` gives it to the client, which fills it in."""
    composing.credentials_by_name(shop)


@pytest.mark.parametrize("version", ["", "2.1", "3.7"])
def test_every_version_of_the_format_takes_it(shop: Shop, version: str) -> None:
    """The file has no version of its own, and is taken beside a file of any version, whatever stands in its values."""
    composing.takes_odd_values(shop, version)
