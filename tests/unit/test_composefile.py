"""Compose files: what each service says itself, and the override that says the rest."""

from __future__ import annotations

import json
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from vmproxy import composefile, composeoverride, proxyenv
from vmproxy.composefile import Project
from vmproxy.errors import UsageError

GIVEN = proxyenv.variables(
    proxyenv.parse_proxy("http://172.17.0.1:8123"), None, ("localhost", "a$b.corp", "${HOME}.corp")
)
NAMES = st.from_regex(r"\A[A-Za-z0-9._-]{1,12}\Z")
FAMILY = st.sampled_from(["http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "no_proxy", "NO_PROXY", "OTHER"])
OWN = st.dictionaries(FAMILY, st.sampled_from(["", "own", None]), max_size=4)


def project(*names: str, **files: str) -> Project:
    """A project of these files; the name ``a`` stands for a.yaml."""
    known = {f"{name}.yaml" if "." not in name else name: text for name, text in files.items()}

    def read(path: str) -> bytes | None:
        text = known.get(path)
        return None if text is None else text.encode()

    return composefile.load([f"{name}.yaml" for name in names or ("a",)], read)


def override(found: Project, given: dict[str, str] = GIVEN) -> Any:
    """The override as a YAML reader sees it."""
    services = composeoverride.parts(found, composeoverride.values(found, given))
    text = composeoverride.render(services, ("for the reader\n: [",))
    document = yaml.safe_load(text)
    assert text.isascii()
    assert document == composeoverride.document(services)
    return document["services"]


def as_list(own: dict[str, str | None]) -> list[str]:
    """The same variables in the other form that Compose takes."""
    return [name if value is None else f"{name}={value}" for name, value in own.items()]


@st.composite
def services(draw: st.DrawFn) -> dict[str, Any]:
    """Services with variables and arguments of their own, in both forms, with and without a build."""
    found: dict[str, Any] = {}
    for name in draw(st.lists(NAMES, min_size=1, max_size=5, unique=True)):
        service: dict[str, Any] = {"image": "x"}
        for key in ("environment", "args"):
            own = draw(OWN)
            service[key] = draw(st.sampled_from([own, as_list(own)]))
        arguments = service.pop("args")
        build = draw(st.sampled_from([None, ".", {"context": ".", "args": arguments}]))
        found[name] = service | ({"build": build} if build else {})
    return found


def own_names(value: Any) -> set[str]:
    """The lower-case names of variables in either form."""
    return {str(item).partition("=")[0].lower() for item in value or ()}


@settings(max_examples=60)
@given(services())
def test_every_variable_is_the_services_own_or_ours(made: dict[str, Any]) -> None:
    """For any services: each has every variable, ours where it has none in either case; its build likewise; the names
    of all are in no_proxy; what the reader gets, ``$`` undoubled, is exactly the value."""
    found = override(project(a=json.dumps({"services": made})))
    assert list(found) == list(made)
    for name, service in made.items():
        build = service.get("build")
        inside = [(service["environment"], found[name].get("environment", {}))]
        if build is None:
            assert "build" not in found[name]
        else:
            own = build["args"] if isinstance(build, dict) else {}
            inside.append((own, found[name].get("build", {}).get("args", {})))
        for own, ours in inside:
            assert {key for key in GIVEN if key.lower() not in own_names(own)} == ours.keys()
            for key, value in ours.items():
                plain = value.replace("$$", "$")
                if key.lower() == "no_proxy":
                    assert plain.split(",") == list(proxyenv.merge_no_proxy(GIVEN[key], list(made)))
                else:
                    assert plain == GIVEN[key]


def test_names_of_services_are_in_no_proxy() -> None:
    """container_name, hostname with and without its domain, aliases and links count; a name that Compose fills in stays
    as it is, and one that cannot stand in a list is told."""
    found = project(
        a="""
services:
  web:
    image: x
    container_name: ${PREFIX:-shop}-web
    hostname: www
    domainname: shop.test
    networks: {front: {aliases: [shop, "a,b"]}, back: }
    links: [db:database, cache]
    external_links: [old_1]
  db: {image: x, networks: [front]}
"""
    )
    names = ("web", "${PREFIX:-shop}-web", "www", "shop", "db", "database", "cache", "old_1", "www.shop.test")
    assert found.names == names
    value = override(found)["db"]["environment"]["no_proxy"]
    assert value == ",".join(["localhost", "a$$b.corp", "$${HOME}.corp", *names])
    assert found.warnings == ("a.yaml: service web: the name a,b cannot stand in no_proxy",)


def test_no_proxy_is_made_where_there_is_none() -> None:
    """Without any list, no_proxy is the services' names; a lone * stays alone."""
    found = project(a="services: {web: {image: x}}")
    assert override(found, {"http_proxy": "http://p:1"})["web"]["environment"]["NO_PROXY"] == "web"
    assert override(found, {"no_proxy": "*", "NO_PROXY": "*"})["web"]["environment"]["no_proxy"] == "*"


def test_later_files_add_and_take_away() -> None:
    """Files are merged in order: what any of them sets is the service's own, but for what ``!reset`` takes back."""
    found = project(
        "a",
        "b",
        a="services: {web: {build: {args: [http_proxy]}, environment: {http_proxy: x, no_proxy: y}}, gone: {image: x}}",
        b="services: {gone: !reset 0, web: {environment: {http_proxy: !reset 0, HTTPS_PROXY: }}, more: {build: .}}",
    )
    web, more = found.services
    assert (web.environment, web.args, web.build) == ({"no_proxy", "https_proxy"}, {"http_proxy"}, True)
    assert (more.name, more.build) == ("more", True)
    told = project("a", "b", a="services: {w: {build: .}}", b="services: {w: {build: !reset null}}").services[0]
    assert not told.build
    told = project("a", "b", a="services: {w: {build: .}}", b="services: {w: !override {image: x}}").services[0]
    assert not told.build


def test_extends_is_followed() -> None:
    """What a service extends, here or in another file, counts as its own words, through several steps, not for ever."""
    found = project(
        a="""
services:
  web: {extends: base, environment: {no_proxy: x}}
  base: {extends: {service: far, file: sub/b.yaml}}
  loop: {extends: pool}
  pool: {extends: {service: loop}}
  lost: {extends: {service: nobody}}
  odd: {extends: {service: x, file: "${WHERE}/c.yaml"}}
""",
        **{
            "sub/b.yaml": "services: {far: {build: ., environment: [http_proxy=x], env_file: f.env}}",
            "sub/f.env": "FTP_PROXY=",
        },
    )
    web = found.services[0]
    assert (web.environment, web.build) == ({"no_proxy", "http_proxy", "ftp_proxy"}, True)
    assert found.names == ("web", "base", "loop", "pool", "lost", "odd")
    assert found.warnings == (
        "a.yaml: service lost: what it extends, nobody in a.yaml, is not known",
        "a.yaml: service odd: what it extends, x in ${WHERE}/c.yaml, is not known",
    )


def test_env_files_count() -> None:
    """A variable from an env_file is the service's own: our ``environment`` would win over it."""
    found = project(
        a="services: {w: {image: x, env_file: [one.env, {path: two.env, required: false}, nothing.env, '$$x.env']}}",
        **{"one.env": "# http_proxy=no\n export HTTP_PROXY = 'x'\nOTHER=https_proxy=1\n", "two.env": "no_proxy\n"},
    )
    assert found.services[0].environment == {"http_proxy", "other", "no_proxy"}
    assert found.warnings == ("a.yaml: service w: what the env_file $$x.env sets is not known",)


def test_include_is_followed() -> None:
    """Included services are services, their env_files stand beside their own file; what is elsewhere is told."""
    found = project(
        a="include: [sub/b.yaml, {path: [c.yaml, d.yaml]}, 'https://x.test/e.yaml']\nservices: {web: {image: x}}",
        **{
            "sub/b.yaml": "services: {far: {image: x, env_file: f.env}}",
            "sub/f.env": "http_proxy=x",
            "c.yaml": "services: {more: {image: x}}",
            "d.yaml": "services: {more: {build: .}}",
        },
    )
    assert [(s.name, s.build, sorted(s.environment)) for s in found.services] == [
        ("far", False, ["http_proxy"]),
        ("more", True, []),
        ("web", False, []),
    ]
    assert found.warnings == ("a.yaml: the services that https://x.test/e.yaml includes are not known",)


def test_what_was_printed_before_is_passed_over() -> None:
    """An override of ours among the files says nothing: its variables are no service's own."""
    first = project(a="services: {web: {image: x}}")
    text = composeoverride.render(composeoverride.parts(first, composeoverride.values(first, GIVEN)))
    assert project("a", "b", a="services: {web: {image: x}}", b=text) == first


def test_credentials_are_names_alone() -> None:
    """A value with a password is not printed, neither for a service nor for its build, and that is said."""
    found = project(a="services: {web: {build: .}}")
    given = GIVEN | {"http_proxy": "http://u:s3cret@p:1", "HTTPS_PROXY": "http://u:s3cret@p:1"}
    web = override(found, given)["web"]
    assert "s3cret" not in repr(web)
    assert web["environment"]["http_proxy"] is web["build"]["args"]["HTTPS_PROXY"] is None
    (line,) = composeoverride.warnings(found, composeoverride.values(found, given))
    assert line.startswith("http_proxy, HTTPS_PROXY: by name")


def test_the_hosts_network_is_told() -> None:
    """A bridge's address leads nowhere from the network of Docker's host: services and builds there are named."""
    found = project(a="services: {web: {image: x, network_mode: host}, b: {build: {network: host}}}")
    lines = composeoverride.warnings(found, composeoverride.values(found, GIVEN))
    assert [line.split(" the network")[0] for line in lines] == ["service web uses", "service b is built in"]


def test_the_hosts_name_is_given_to_who_can_have_it() -> None:
    """Where the proxy is host.docker.internal, services and builds get to know that name; not those that have it, nor
    those that live in another's network, where Docker refuses it."""
    found = project(
        a="""
services:
  web: {build: .}
  own: {build: {extra_hosts: ["host.docker.internal:1.2.3.4"]}, extra_hosts: {host.docker.internal: 1.2.3.4}}
  equals: {image: x, extra_hosts: [host.docker.internal=1.2.3.4]}
  join: {network_mode: "service:web", build: {network: none}}
"""
    )
    given = proxyenv.variables(proxyenv.parse_proxy("http://host.docker.internal:8123"), None)
    assert composeoverride.calls_host(given)
    assert not composeoverride.calls_host(GIVEN | {"no_proxy": "host.docker.internal"})
    parts = composeoverride.parts(found, composeoverride.values(found, given), host=True)
    read = yaml.safe_load(composeoverride.render(parts))
    assert read == composeoverride.document(parts)
    hosts = ["host.docker.internal:host-gateway"]
    assert read["services"]["web"]["extra_hosts"] == read["services"]["web"]["build"]["extra_hosts"] == hosts
    others = [read["services"][name] for name in ("own", "equals", "join")]
    assert not [part for part in (*others, *(other.get("build", {}) for other in others)) if "extra_hosts" in part]


def test_who_keeps_its_own_is_told() -> None:
    """One line names each service that sets a variable or an argument itself; without one there is no line."""
    found = project(
        a="services: {a: {image: x}, b: {image: x, environment: [HTTP_PROXY]}, c: {build: {args: [https_proxy=]}}}"
    )
    given = composeoverride.values(found, GIVEN)
    assert composeoverride.kept(found, given) == "left as the files say: b (http_proxy), c (https_proxy)"
    assert composeoverride.kept(project(a="services: {a: {image: x, environment: [OTHER=1]}}"), given) == ""


def test_a_list_of_its_own_is_told() -> None:
    """A service with a no_proxy of its own does not get the names, and that is said."""
    found = project(a="services: {web: {image: x, environment: [NO_PROXY=x]}}")
    (line,) = composeoverride.warnings(found, composeoverride.values(found, GIVEN))
    assert line.startswith("service web sets no_proxy itself")
    assert "no_proxy" not in override(found)["web"]["environment"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("web: {image: x}", "version 1"),
        ("services: [web]", "services is not a mapping"),
        ("services: {web: text}", "service web is not a mapping"),
        ("services: {web: {environment: text}}", "environment of service web is not a mapping"),
        ("- web", "the file is not a mapping"),
        ("services: {}", "no services"),
        ("", "no services"),
        ("include: [a.yaml]", "includes itself"),
    ],
)
def test_what_is_no_compose_file(text: str, says: str) -> None:
    """One line that names the file; exit 2."""
    with pytest.raises(UsageError) as caught:
        project(a=text)
    assert says in caught.value.what
    assert caught.value.where == "a.yaml"


def test_a_missing_file_is_named() -> None:
    """A file of the project that is not there is exit 2."""
    with pytest.raises(UsageError, match=r"there is no such file \(b.yaml\)"):
        project("a", "b", a="services: {web: {image: x}}")


@pytest.mark.parametrize(
    "text",
    [
        "services: {" + ", ".join(f"s{i}: " for i in range(1001)) + "}",
        "services: {" + ", ".join(f"s{i}: {{extends: s{i + 1}}}" for i in range(999)) + "}",
        "services: {web: {image: x, container_name: " + "x" * 200_000 + "}}",
        "services: {s: {environment: &e ["
        + "a," * 9000
        + "]}, "
        + "".join(f"s{i}: {{environment: *e}}, " for i in range(900))
        + "}",
        "services: {s: {networks: {n: &n {aliases: ["
        + "a," * 9000
        + "]}, "
        + "".join(f"n{i}: *n, " for i in range(900))
        + "}}}",
        "services: {s: {env_file: [" + "a.yaml," * 50_000 + "]}}",
    ],
    ids=["many", "chain", "long", "shared", "aliases", "env-files"],
)
def test_hostile_projects_are_refused(text: str) -> None:
    """Too many services, chains of ``extends`` and names beyond what a variable can hold are refused."""
    with pytest.raises(UsageError):
        override(project(a=text))


def test_warnings_have_an_end() -> None:
    """A file that could be warned of for ever is warned of twenty times."""
    text = "services: {s: {image: x, links: [" + ",".join(f"'?{i}'" for i in range(50)) + "]}}"
    warnings = project(a=text).warnings
    assert (len(warnings), warnings[-1]) == (21, "30 more like these")


def test_odd_shapes_do_no_harm() -> None:
    """Where a value has a shape that Compose would refuse, it says so itself; here it counts for nothing."""
    text = """
services:
  web:
    image: x
    environment: [[x], {a: b}, http_proxy]
    env_file: {path: [x]}
    networks: text
    links: {a: b}
    extends: [x]
    hostname: [x]
"""
    (web,) = project(a=text).services
    assert web.environment == {"", "http_proxy"}
