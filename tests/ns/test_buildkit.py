"""Docker 26 of Debian 13: BuildKit, and docker compose 2, take what vmproxy prints."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.lab.proxy import KNOWN
from tests.ns import composing
from tests.ns.composing import ASK, KNOWS, STORE, Shop, told


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    """One VM for all tests of this file."""
    home = tmp_path_factory.mktemp("home")
    with composing.opened(home, ("docker", "compose"), release="trixie") as opened:
        yield opened


def test_the_programs_are_the_new_ones(shop: Shop) -> None:
    """It is Docker 26, BuildKit as its builder, and Compose 2 that these tests are about."""
    assert shop.machine.docker("version", "--format", "{{.Server.Version}}").startswith("26.")
    assert "buildx" in shop.machine.docker("buildx", "version")
    assert "version 2." in shop.compose("version")


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


def test_a_file_with_a_version_takes_it(shop: Shop) -> None:
    """The file has no version of its own, and is taken beside a file that has one, whatever stands in its values."""
    composing.takes_odd_values(shop, "3.7")


def test_included_and_extended_services_are_overridden(shop: Shop) -> None:
    """Services of an included file get the variables too, what they set by ``extends`` stays, and a value that a later
    file takes back by ``!reset`` is no longer the service's own."""
    shop.write("base.yaml", 'services: {plain: {image: python, environment: {http_proxy: "http://own.test:1"}}}')
    shop.write("more.yaml", "services: {other: {extends: {file: base.yaml, service: plain}}}")
    shop.write("main.yaml", "include: [more.yaml]\nservices: {web: {image: python, environment: {https_proxy: x}}}")
    shop.write("over.yaml", "services: {web: {environment: !reset null}}")
    files = ("main.yaml", "over.yaml")
    shop.override(*(word for file in files for word in ("-f", file)))
    services = shop.config(files=files)
    assert services["other"]["environment"]["http_proxy"] == "http://own.test:1"
    assert "HTTP_PROXY" not in services["other"]["environment"]
    assert services["other"]["environment"]["https_proxy"] == services["web"]["environment"]["https_proxy"]
    assert services["web"]["environment"]["https_proxy"].endswith(":8123")
    assert {"web", "other"} <= set(services["web"]["environment"]["no_proxy"].split(","))


def test_a_build_sees_the_variables_and_the_image_does_not(shop: Shop) -> None:
    """``docker build $(vmproxy env --format docker-build)`` with BuildKit: each step has the variables and fetches
    through the proxy; neither the image's configuration nor its history nor the build cache's keys hold them."""
    arguments = shop.vmproxy.env("--format", "docker-build").out
    shop.machine.path("/tmp/shop/arguments").write_text(arguments, encoding="utf-8")
    build = "DOCKER_BUILDKIT=1 docker build --progress plain $(cat arguments) -t plain . 2>&1"
    shop.asked()
    text = shop.machine.run(f"cd /tmp/shop; {build}", user="docker", seconds=300).stdout.decode()
    found = {name: value for name, value in told(text).items() if "proxy" in name.lower()}
    assert found == shop.vmproxy.env("--json").json
    assert f"build: {KNOWS}" in text
    assert shop.asked() == [f"GET http://{KNOWN}/ HTTP/1.1"]
    image = json.loads(shop.machine.docker("image", "inspect", "plain"))[0]
    assert not [pair for pair in image["Config"].get("Env") or [] if "proxy" in pair.lower()]
    assert "8123" not in json.dumps(image) + shop.machine.docker("history", "--no-trunc", "plain")
    assert ":8123" in arguments
    shop.machine.path("/tmp/shop/arguments").write_text(arguments.replace(":8123", ":8124"), encoding="utf-8")
    again = shop.machine.run(f"cd /tmp/shop; {build}", user="docker", seconds=300).stdout
    assert b"CACHED" in again
    assert shop.asked() == []


def test_run_hands_the_variables_to_a_container(shop: Shop) -> None:
    """``vmproxy run --names db -- docker run -e http_proxy -e no_proxy …``: the container asks the proxy for what is
    elsewhere and the named container directly, whatever proxy the host itself has."""
    shop.machine.docker("network", "create", "back")
    shop.machine.docker("run", "-d", "--name", "db", "--network", "back", "python", "sh", "-c", STORE)
    ask = ASK.replace("store", "db").replace("shelf", "db").replace("shop-db", "db")
    words = (
        "docker",
        "run",
        "--rm",
        "--network",
        "back",
        "-e",
        "http_proxy",
        "-e",
        "no_proxy",
        "python",
        "python3",
        "-c",
        ask,
    )
    inside = ("nsenter", "-t", str(shop.machine.pid), "-m", "-n", "-p", "-u", "-i", "--")
    shop.asked()
    ran = shop.vmproxy.command(
        "run", "--names", "db", "--", *inside, *words, environ={"http_proxy": "http://127.0.0.1:9"}
    )
    assert ran.code == 0, ran
    assert ran.out.splitlines()[1:] == ["from the store"] * 3 + [KNOWS]
    assert told(ran.out)["http_proxy"] == "http://172.17.0.1:8123"
    assert shop.asked() == [f"GET http://{KNOWN}/ HTTP/1.1"]
