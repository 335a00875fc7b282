"""What is said of the host's own variables where they are what ``apply`` and ``env --vm`` go by."""

from __future__ import annotations

from vmproxy.config import host_environment
from vmproxy.model import Settings, Wish
from vmproxy.proxyenv import parse_proxy
from vmproxy.wish import choose, host_notes

BOTH = {"http_proxy": "http://lower:1", "HTTP_PROXY": "http://me:pass-word@upper:2"}
SAID = ("this host's environment: http_proxy and HTTP_PROXY differ; http_proxy is used",)


def notes(settings: Settings, seen: Wish | None = None) -> tuple[str, ...]:
    """The lines for what these settings choose."""
    return host_notes(settings, choose(settings, seen), seen)


def test_two_cases_that_differ_are_said_where_they_count() -> None:
    """The host's variables are the wish: the lower case is taken, and one line says so without a value."""
    settings = Settings(**host_environment(BOTH))
    assert choose(settings, None).proxy == parse_proxy("http://lower:1")
    assert notes(settings) == SAID


def test_they_are_not_said_where_another_proxy_is_used() -> None:
    """``--proxy``, or a recorded wish, which has a line of its own where the host says something else."""
    settings = Settings(proxy=parse_proxy("http://p:1"), **host_environment(BOTH))
    assert notes(settings) == ()
    recorded = Wish(proxy=parse_proxy("http://recorded:3"))
    (line,) = notes(Settings(**host_environment(BOTH)), recorded)
    assert line == "the VM's recorded proxy http://recorded:3 is used; this host's own http_proxy says http://lower:1"


def test_a_host_that_says_one_thing_is_not_remarked_on() -> None:
    """One case, both the same, or none."""
    for environ in ({}, {"HTTP_PROXY": "http://p:1"}, dict.fromkeys(("HTTP_PROXY", "http_proxy"), "http://p:1")):
        assert notes(Settings(**host_environment(environ))) == ()


def test_a_request_header_is_left_out_and_that_is_said() -> None:
    """HTTP_PROXY beside REQUEST_METHOD is what somebody sent (CVE-2016-5386)."""
    environ = {"REQUEST_METHOD": "GET", "HTTP_PROXY": "http://evil:1", "https_proxy": "http://good:1"}
    settings = Settings(**host_environment(environ))
    assert choose(settings, None).proxy == parse_proxy("http://good:1")
    assert notes(settings) == ("this host's environment: HTTP_PROXY is ignored because REQUEST_METHOD is set",)
