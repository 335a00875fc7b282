"""What the containers of one VM are told: which proxy, what goes without it, which package index."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from tests.unit.test_plan import fresh
from vmproxy import plan
from vmproxy.containerview import container_variables, container_view, notes
from vmproxy.errors import NoGateway
from vmproxy.model import Address, Wish
from vmproxy.proxyenv import parse_proxy
from vmproxy.wish import DEFAULT

ENDS: dict[str, tuple[Callable[[Wish], Wish], str]] = {
    "default": (lambda wish: wish, "http://172.17.0.1:8123"),
    "listen port": (lambda wish: replace(wish, listen_port=9000), "http://172.17.0.1:9000"),
    "elsewhere": (lambda wish: replace(wish, proxy=parse_proxy("http://p.test:1")), "http://p.test:1"),
    "the gateway by its address": (
        lambda wish: replace(wish, proxy=parse_proxy("http://10.0.2.2:1")),
        "http://172.17.0.1:1",
    ),
    "the gateway by --gateway": (
        lambda wish: replace(wish, proxy=parse_proxy("http://10.9.9.9:1"), gateway="10.9.9.9"),
        "http://172.17.0.1:1",
    ),
    "forward": (
        lambda wish: replace(wish, proxy=parse_proxy("http://192.0.2.7:1"), forward=True),
        "http://172.17.0.1:1",
    ),
}


def told(wish: Wish | None = None, *, index: str = "", names: tuple[str, ...] = ()) -> dict[str, str]:
    """The variables for a recorded VM without anything of ours."""
    return container_view(fresh("fresh-nft"), wish or Wish(proxy=DEFAULT), names=names, pip_index=index)


@pytest.mark.parametrize("what", ENDS)
def test_what_containers_are_told(what: str) -> None:
    """Containers ask the bridge's address where there is a door, else the proxy itself; env says the same without
    root, and never proxies what is local."""
    change, wanted = ENDS[what]
    wish, facts = change(Wish(proxy=DEFAULT)), fresh("fresh-nft")
    found = container_view(facts, wish)
    assert found["http_proxy"] == found["HTTPS_PROXY"] == wanted
    assert {"localhost", "127.0.0.1", "::1"} <= set(found["no_proxy"].split(","))
    assert container_variables(plan.view(facts, wish, "nft"), wish, facts) == found


def test_a_second_proxy_on_the_host_is_reached_though_the_first_is_elsewhere() -> None:
    """A loopback https proxy becomes the gateway for containers, wherever the http proxy is."""
    wish = Wish(proxy=parse_proxy("http://p.test:1"), https_proxy=parse_proxy("http://localhost:2"))
    assert told(wish)["https_proxy"] == "http://10.0.2.2:2"


def test_no_proxy_is_the_users_list_and_then_what_this_vm_is() -> None:
    """The user's entries in their order; local names, the VM's addresses, its Docker networks, names; both cases."""
    found = told(Wish(proxy=DEFAULT, no_proxy=("z.test", "a.test", "LOCALHOST")), names=("db", "my_cache"))
    assert found["NO_PROXY"] == found["no_proxy"]
    entries = found["no_proxy"].split(",")
    assert entries[:3] == ["z.test", "a.test", "LOCALHOST"]
    assert {"10.0.2.15", "172.17.0.1", "172.17.0.0/16", "host.docker.internal", "db", "my_cache"} <= set(entries)
    assert "10.0.2.0/24" not in entries
    assert len({entry.lower() for entry in entries}) == len(entries)


def test_what_listens_on_the_host_is_reached_as_before() -> None:
    """The host's address as the VM sees it is in no_proxy where the proxy runs there: asked for 10.0.2.2, that proxy
    would find nothing. A proxy elsewhere says nothing about this."""
    assert "10.0.2.2" in told()["no_proxy"].split(",")
    assert "10.9.9.9" in told(Wish(proxy=DEFAULT, gateway="10.9.9.9"))["no_proxy"].split(",")
    assert "10.0.2.2" not in told(Wish(proxy=parse_proxy("http://p.test:1")))["no_proxy"].split(",")


def test_networks_are_those_of_dockers_bridges() -> None:
    """A user-defined network and a bridge that --bridge names are in; the uplink's network and a LAN bridge are not."""
    more = (
        Address(interface="br-0123456789ab", cidr="172.18.0.1/16"),
        Address(interface="br-lan", cidr="192.168.1.1/24"),
        Address(interface="shop", cidr="10.7.0.1/24"),
    )
    facts = fresh("fresh-nft")
    facts = replace(facts, addresses=(*facts.addresses, *more))
    entries = container_view(facts, Wish(proxy=DEFAULT, bridges=("docker0", "shop")))["no_proxy"].split(",")
    assert {"172.18.0.0/16", "172.18.0.1", "10.7.0.0/24", "192.168.1.1"} <= set(entries)
    assert "192.168.1.0/24" not in entries


INDEXES = {
    "http://localhost:3141/root/pypi/+simple/": ("http://10.0.2.2:3141/root/pypi/+simple/", "10.0.2.2", "10.0.2.2"),
    "http://127.0.0.1/simple": ("http://10.0.2.2/simple", "10.0.2.2", "10.0.2.2"),
    "http://pypi.lan:8080/simple/": ("http://pypi.lan:8080/simple/", "pypi.lan", "pypi.lan"),
    "https://pypi.lan/simple/": ("https://pypi.lan/simple/", None, "pypi.lan"),
    "https://me:p%40ss@pypi.lan/simple/": ("https://me:p%40ss@pypi.lan/simple/", None, "pypi.lan"),
    "http://[fd00::7]:8080/": ("http://[fd00::7]:8080/", "fd00::7", "fd00::7"),
}


@pytest.mark.parametrize("index", INDEXES)
def test_the_index_goes_with_its_trusted_host_and_its_no_proxy_entry(index: str) -> None:
    """PIP_INDEX_URL, PIP_TRUSTED_HOST for plain http, and the host in no_proxy of both cases, all three together."""
    found = told(index=index)
    url, trusted, direct = INDEXES[index]
    assert found["PIP_INDEX_URL"] == url
    assert found.get("PIP_TRUSTED_HOST") == trusted
    assert direct in found["no_proxy"].split(",") and direct in found["NO_PROXY"].split(",")


def test_an_index_on_the_host_is_at_the_gateway_said_or_seen() -> None:
    """--gateway decides; a proxy elsewhere changes nothing; where no gateway is known the index cannot be told."""
    elsewhere = Wish(proxy=parse_proxy("http://p.test:1"))
    assert told(elsewhere, index="http://localhost:3141/")["PIP_INDEX_URL"] == "http://10.0.2.2:3141/"
    said = replace(elsewhere, gateway="10.9.9.9")
    assert told(said, index="http://localhost:3141/")["PIP_INDEX_URL"] == "http://10.9.9.9:3141/"
    lost = replace(fresh("fresh-nft"), routes=())
    with pytest.raises(NoGateway):
        container_view(lost, elsewhere, pip_index="http://localhost:3141/")
    assert "PIP_INDEX_URL" in container_view(lost, elsewhere, pip_index="http://pypi.lan/")


def test_without_an_index_there_is_no_word_of_pip() -> None:
    """No PIP_ variable is made up."""
    assert not [name for name in told() if name.startswith("PIP_")]


def test_notes_are_about_what_the_user_said() -> None:
    """The VM's own networks are no reason to warn; a network of the user's list is."""
    assert notes(Wish(proxy=DEFAULT)) == ()
    assert len(notes(Wish(proxy=DEFAULT, no_proxy=("10.0.0.0/8",)))) == 1
