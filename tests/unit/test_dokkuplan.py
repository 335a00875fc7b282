"""What vmproxy does to Dokku's config and options: the plan, its undo, and whose is what."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.fakedokku import FakeDokku
from vmproxy import dokkucalls, dokkufacts, dokkuplan
from vmproxy.dokkucalls import GLOBAL, Call
from vmproxy.dokkufacts import App, Record
from vmproxy.dokkuplan import DokkuDesired, DokkuPlan
from vmproxy.errors import Refused

URL = "http://172.17.0.1:8123"
WANTED = {"http_proxy": URL, "HTTP_PROXY": URL, "no_proxy": "localhost,web", "NO_PROXY": "localhost,web"}
OTHER = {**WANTED, "http_proxy": "http://10.0.0.9:3128", "HTTP_PROXY": "http://10.0.0.9:3128"}
SECRET = "http://user:hunter22@10.0.0.9:3128"
ARGS = [f"--build-arg {name}" for name in sorted(WANTED)]


def plan(host: FakeDokku, variables: Mapping[str, str] = WANTED, **options: Any) -> DokkuPlan:
    """The plan that an apply makes now."""
    facts = host.look()
    return dokkuplan.diff(facts, dokkuplan.desire(facts, variables), **options)


def apply(host: FakeDokku, variables: Mapping[str, str] = WANTED, **options: Any) -> DokkuPlan:
    """An apply; its plan."""
    made = plan(host, variables, **options)
    host.carry_out(made.steps)
    return made


def remove(host: FakeDokku) -> DokkuPlan:
    """A remove; its plan."""
    made = dokkuplan.diff(host.look(), DokkuDesired())
    host.carry_out(made.steps)
    return made


def host(**more: Any) -> FakeDokku:
    """One app built from a Dockerfile, one by buildpacks, one never built."""
    return FakeDokku({"web": "dockerfile", "pack": "herokuish", "new": ""}, **more)


# ---- what is set ----------------------------------------------------------------------------------------------------


def test_only_a_dockerfile_app_has_it_in_its_own_config_and_in_build_arguments() -> None:
    """Global config for all; a copy and ``--build-arg NAME`` where the build sees no global config; nothing for
    builders that hand ``--build-arg`` to ``docker create``; an app never built is a warning."""
    dokku = host()
    made = apply(dokku)
    assert dokku.config == {GLOBAL: WANTED, "web": WANTED}
    assert dokku.options == {"web": ARGS}
    assert [text for text in made.warnings if "new" in text]
    assert (made.values, made.options) == (8, 4)


def test_twice_changes_nothing_and_remove_gives_back_all() -> None:
    """The second plan is empty; after remove there is what was before, to the byte."""
    dokku = host(config={GLOBAL: {"A": "it's"}, "web": {"B": "$x"}}, options={"web": ["--build-arg NODE_ENV"]})
    before = dokku.state()
    apply(dokku)
    assert not plan(dokku)
    assert not plan(dokku).drift
    remove(dokku)
    assert dokku.state() == before
    assert not remove(dokku)


def test_another_proxy_takes_the_place_of_ours() -> None:
    """What we wrote is ours to replace, without --force; an unset pair goes."""
    dokku = host()
    before = dokku.state()
    apply(dokku)
    apply(dokku, {"http_proxy": SECRET, "HTTP_PROXY": SECRET})
    assert dokku.config == {scope: {"http_proxy": SECRET, "HTTP_PROXY": SECRET} for scope in (GLOBAL, "web")}
    assert dokku.options == {"web": ["--build-arg HTTP_PROXY", "--build-arg http_proxy"]}
    remove(dokku)
    assert dokku.state() == before


def test_an_app_that_changes_its_builder_loses_the_build_arguments() -> None:
    """They would break a build by buildpacks."""
    dokku = host()
    apply(dokku)
    dokku.builders["web"] = "herokuish"
    assert {finding.subject for finding in plan(dokku).drift} == {"dokku config web", "dokku build web"}
    apply(dokku)
    assert dokku.config == {GLOBAL: WANTED, "web": {}}
    assert dokku.options == {"web": []}


def test_apps_come_and_go() -> None:
    """A new one is drift; one that is gone is only forgotten, and is no obstacle to remove."""
    dokku = host()
    apply(dokku)
    dokku.builders["api"] = "dockerfile"
    assert {finding.subject for finding in plan(dokku).drift} == {"dokku config api", "dokku build api"}
    apply(dokku)
    for held in (dokku.builders, dokku.config, dokku.options):
        held.pop("web", None)
    made = apply(dokku)
    assert (made.values, made.options) == (0, 0)
    assert dokku.record is not None
    assert b'"web"' not in dokku.record
    remove(dokku)
    assert dokku.state() == ({}, {}, None)


# ---- whose is what --------------------------------------------------------------------------------------------------


def test_another_value_is_refused_and_force_says_what_is_lost() -> None:
    """Exit 6 with the key and its scope; with force it is overwritten, and remove takes ours away."""
    dokku = host(config={GLOBAL: {"HTTP_PROXY": "http://theirs:1"}})
    with pytest.raises(Refused, match="HTTP_PROXY") as caught:
        plan(dokku)
    assert caught.value.where == GLOBAL
    assert "--force" in caught.value.hint
    made = apply(dokku, force=True)
    assert "cannot give it back" in " ".join(made.overwritten)
    assert dokku.config[GLOBAL] == WANTED
    remove(dokku)
    assert not dokku.config[GLOBAL]


def test_the_same_value_of_somebody_else_stays_theirs() -> None:
    """What was there before and is as we want it is in sync, and remove leaves it."""
    dokku = host(config={GLOBAL: {"http_proxy": URL}}, options={"web": ["--build-arg http_proxy"]})
    before = dokku.state()
    apply(dokku)
    assert not plan(dokku)
    remove(dokku)
    assert dokku.state() == before


def test_what_was_changed_since_stays_and_is_named() -> None:
    """Remove takes what still has our value, and says what it leaves."""
    dokku = host()
    apply(dokku)
    dokku.config[GLOBAL]["http_proxy"] = "http://by-hand:1"
    with pytest.raises(Refused):
        plan(dokku)
    made = remove(dokku)
    assert dokku.config == {GLOBAL: {"http_proxy": "http://by-hand:1"}, "web": {}}
    assert "http_proxy of --global was changed since, and stays" in made.warnings
    assert dokku.record is None


def test_drift_by_hand_is_each_point_and_converges() -> None:
    """A variable and a build argument taken away are two points, and come back."""
    dokku = host()
    apply(dokku)
    del dokku.config[GLOBAL]["no_proxy"]
    dokku.options["web"].remove("--build-arg no_proxy")
    found = plan(dokku).drift
    assert [(point.subject, point.detail) for point in found] == [
        ("dokku config", "no_proxy is not set"),
        ("dokku build web", "--build-arg no_proxy is not there"),
    ]
    apply(dokku)
    assert dokku.config == {GLOBAL: WANTED, "web": WANTED}
    assert dokku.options == {"web": ARGS}


def test_an_apps_own_proxy_wins_in_both_cases() -> None:
    """An app that names a proxy itself keeps it and gets no second one beside it; its other variables are ours."""
    dokku = host(config={"web": {"http_proxy": "http://own:1"}})
    before = dokku.state()
    apply(dokku)
    names = {"no_proxy": "localhost,web", "NO_PROXY": "localhost,web"}
    assert dokku.config["web"] == {"http_proxy": "http://own:1", **names}
    remove(dokku)
    assert dokku.state() == before


def test_a_build_argument_with_a_value_of_its_own_stays_alone() -> None:
    """``--build-arg http_proxy=…`` of somebody is not given a second one without."""
    dokku = host(options={"web": ["--build-arg http_proxy=http://own:1"]})
    apply(dokku)
    assert "--build-arg http_proxy" not in dokku.options["web"]
    assert "--build-arg HTTP_PROXY" in dokku.options["web"]


# ---- passwords ------------------------------------------------------------------------------------------------------


def test_no_value_is_in_a_command_line() -> None:
    """Apply, change and remove with a password: words name keys only, and the record has no value."""
    dokku = host()
    apply(dokku, {"http_proxy": SECRET})
    record = dokku.record
    apply(dokku, {"http_proxy": SECRET.replace("22", "23")})
    remove(dokku)
    assert "hunter" not in repr(dokku.words)
    assert record is not None
    assert b"hunter" not in record
    assert b"10.0.0.9" not in record


def test_nothing_shows_a_value_by_accident() -> None:
    """repr of calls, facts, wish and plan has no value."""
    dokku = host(config={GLOBAL: {"http_proxy": SECRET}})
    facts = dokku.look()
    wish = dokkuplan.desire(facts, {"https_proxy": SECRET})
    made = dokkuplan.diff(facts, wish)
    assert "hunter" not in repr((facts, wish, made, made.steps, made.expect))


def test_an_old_dokku_takes_values_as_words_but_no_password() -> None:
    """Before 0.37.0 there is only config:set: base64, exact; with credentials it is refused."""
    dokku = host(version="0.36.5")
    apply(dokku, {"http_proxy": URL, "no_proxy": "it's $5 \"%\" `a`"})
    assert dokku.config[GLOBAL] == {"http_proxy": URL, "no_proxy": "it's $5 \"%\" `a`"}
    assert not [words for words in dokku.words if "config:import" in words]
    remove(dokku)
    with pytest.raises(Refused, match=r"0\.36\.5.*password"):
        plan(dokku, {"http_proxy": SECRET})


def test_too_old_a_dokku_is_refused() -> None:
    """Before 0.31.0 the build of a Dockerfile sees no config."""
    with pytest.raises(Refused, match=r"0\.30\.11 is too old"):
        host(version="0.30.11").look()
    assert host(version="0.31.0").look().version == (0, 31, 0)


def test_a_value_that_could_not_be_put_back_is_refused() -> None:
    """Somebody's bytes that are no UTF-8 are not overwritten even by force: JSON could not give them back."""
    dokku = host(config={GLOBAL: {"http_proxy": "http://\udcff"}})
    with pytest.raises(Refused, match="could not be put back"):
        plan(dokku, force=True)


# ---- the undo -------------------------------------------------------------------------------------------------------

CHANGES = [OTHER, {"http_proxy": SECRET}, {**WANTED, "https_proxy": URL}, {}]


@pytest.mark.parametrize("after", CHANGES, ids=["another", "fewer", "more", "none"])
def test_every_step_of_a_change_can_be_the_last(after: dict[str, str]) -> None:
    """Cut short after any step, the next run takes what is there for its own; put back after any step, and after one
    that failed before it did anything, there is what was there."""
    steps = 10
    cut = 0
    while cut <= steps:
        dokku = host(options={"web": ["--build-arg NODE_ENV"]})
        before = dokku.state()
        apply(dokku)
        there, made = dokku.state(), plan(dokku, after)
        steps = len(made.steps)
        dokku.carry_out(made.steps, cut=cut)
        dokku.put_back(made.steps[: cut + 1])
        assert dokku.state() == there
        dokku.carry_out(made.steps, cut=cut)
        apply(dokku, after)
        assert not plan(dokku, after)
        remove(dokku)
        assert dokku.state() == before
        cut += 1
    assert steps >= 4


NAMES = ("http_proxy", "HTTP_PROXY", "no_proxy", "NO_PROXY")
VALUES = st.sampled_from((URL, "http://10.0.0.9:3128", SECRET, "a b\"c'$%\\`!", "ünïcode", "", "1"))
VARIABLES = st.dictionaries(st.sampled_from(NAMES), VALUES)
APPS = st.dictionaries(
    st.sampled_from(("web", "api.example.com", "a_b")), st.sampled_from(("dockerfile", "herokuish", "")), max_size=3
)
OPTIONS = st.sets(st.sampled_from([*ARGS, "--build-arg NODE_ENV", "--build-arg http_proxy=x", "--link a:b"]))


@st.composite
def hosts(draw: st.DrawFn) -> FakeDokku:
    """Any Dokku that vmproxy has not seen."""
    builders = draw(APPS)
    scopes = [GLOBAL, *builders]
    config = {scope: {**draw(VARIABLES), **draw(st.just({"OTHER": "x"}))} for scope in scopes}
    return FakeDokku(builders, config=config, options={app: draw(OPTIONS) for app in builders})


@given(dokku=hosts(), wishes=st.lists(VARIABLES, min_size=1, max_size=3))
@settings(max_examples=60, deadline=None)
def test_remove_gives_back_what_no_apply_overwrote(dokku: FakeDokku, wishes: list[dict[str, str]]) -> None:
    """Any state, any wishes one after the other: in sync after each; remove gives back the state of before, or the
    apply was refused and did nothing."""
    before = dokku.state()
    for wish in wishes:
        held = dokku.state()
        try:
            apply(dokku, wish)
        except Refused:
            assert dokku.state() == held
            continue
        assert not plan(dokku, wish)
    remove(dokku)
    assert dokku.state() == before


@given(dokku=hosts(), wish=VARIABLES, after=VARIABLES, cut=st.integers(0, 40), force=st.booleans())
@settings(max_examples=60, deadline=None)
def test_put_back_at_any_step_gives_back_the_state(
    dokku: FakeDokku, wish: dict[str, str], after: dict[str, str], cut: int, force: bool
) -> None:
    """A change that is put back after any number of its steps leaves what was there; a step that did nothing too."""
    apply(dokku, wish, force=True)
    try:
        made = plan(dokku, after, force=force)
    except Refused:
        return
    before = dokku.state()
    dokku.carry_out(made.steps, cut=cut)
    dokku.put_back(made.steps[: cut + 1])
    assert dokku.state() == before
    dokku.carry_out(made.steps)
    dokku.carry_out(dokkuplan.inverse(made))
    assert dokku.state() == before


@given(dokku=hosts(), wish=VARIABLES, after=VARIABLES, cut=st.integers(0, 40))
@settings(max_examples=60, deadline=None)
def test_cut_short_at_any_step_the_next_run_knows_its_own(
    dokku: FakeDokku, wish: dict[str, str], after: dict[str, str], cut: int
) -> None:
    """A power cut between two steps: apply converges without --force, and remove gives back the state of before."""
    before = dokku.state()
    try:
        apply(dokku, wish)
        made = plan(dokku, after)
    except Refused:
        return
    dokku.carry_out(made.steps, cut=cut)
    apply(dokku, after)
    assert not plan(dokku, after)
    remove(dokku)
    assert dokku.state() == before


# ---- what Dokku says ------------------------------------------------------------------------------------------------


def asked(**outputs: str) -> dokkufacts.App:
    """One app named x, of these reports."""
    return dokkufacts._app("x", outputs.get("builder", "").encode(), outputs.get("options", "").encode())


@pytest.mark.parametrize(
    ("report", "builder"),
    [
        ("=====> x builder information\n       Builder computed selected:     dockerfile\n", "dockerfile"),
        ("       Builder computed selected:\n       Builder detected:  herokuish\n", "herokuish"),
        ("       Builder computed selected:     herokuish\n       Builder detected:  dockerfile\n", "herokuish"),
        ("       Builder computed selected:\n       Builder selected:\n", ""),
        ("       builder computed selected: dockerfile", "dockerfile"),
        ("", ""),
    ],
)
def test_the_builder_is_the_selected_one_else_the_detected_one(report: str, builder: str) -> None:
    """docs/deployment/builders/builder-management.md; versions differ in case and in lines."""
    assert asked(builder=report).builder == builder


def test_values_are_read_as_dokku_writes_them() -> None:
    """godotenv's escapes, a bare number; a line that is no assignment of the family is none; one that cannot be read
    is refused without its value."""
    text = b'HTTP_PROXY="a\\"b\\\\n\\$c\\!\\`\\nd\\re=f"\nno_proxy=12\nOTHER="x"\nhttp_proxy_x="y"\n\n'
    assert dokkufacts.family(text, "web") == {"HTTP_PROXY": 'a"b\\n$c!`\nd\re=f', "no_proxy": "12"}
    for bad in (b"http_proxy=hunter22", b'http_proxy="hunter22', b"http_proxy='hunter22'"):
        with pytest.raises(Refused, match=r"http_proxy cannot be read \(web\)") as caught:
            dokkufacts.family(bad, "web")
        assert "hunter" not in f"{caught.value} {caught.value.hint}"


def test_options_are_read_as_words() -> None:
    """Both spellings of a flag, quotes, options of one process; links of every phase; names that are none are left."""
    report = (
        "       Docker options build:   --build-arg A --build-arg=B --build-arg 'C=x y' --build-arg $(x) --link p:db\n"
        "       Docker options deploy:         --link dokku.redis.r:dokku-redis-r -v /a:/b --restart=on-failure:10\n"
        "       Docker options deploy web:     --link solo\n"
        "       Docker options run:            --link bad/name\n"
    )
    app = asked(options=report)
    assert app.args == ("A", "B")
    assert app.valued == {"C"}
    assert app.links == ("db", "dokku-redis-r", "solo")
    assert asked(options="       Docker options build: --build-arg A --label 'x\n").args == ("A",)


def test_names_for_no_proxy() -> None:
    """``APP.web`` and links; an app's bare name only where it is no public name."""
    apps = (App(name="web", links=("dokku-postgres-main",)), App(name="example.com"))
    facts = dokkufacts.DokkuFacts(version=(0, 38, 0), apps=apps)
    assert dokkuplan.names_of(facts) == ("web", "web.web", "dokku-postgres-main", "example.com.web")


@pytest.mark.parametrize(
    ("said", "version"),
    [
        (b"dokku version 0.38.27\n", (0, 38, 27)),
        (b"dokku version v0.37\n", (0, 37, 0)),
        (b"dokku version v0.38.27-4-gabcdef1\n", (0, 38, 27)),
        (b"dokku version master\n", (999999, 0, 0)),
        (b"", (999999, 0, 0)),
    ],
)
def test_versions(said: bytes, version: tuple[int, int, int]) -> None:
    """STABLE_VERSION and VERSION have a v or not; one without numbers is a build of its authors."""
    assert dokkufacts.read_version(said) == version


@given(st.binary(max_size=300))
def test_hostile_answers_raise_nothing_but_refusals(noise: bytes) -> None:
    """Apps, keys, reports and values of random bytes are read, or refused."""
    ok = dokkucalls.Answer(status=0, stdout=noise)
    dokku = FakeDokku()

    def answers(actions: tuple[Any, ...]) -> Any:
        return tuple((action, ok) for action in actions)

    first = (*dokku.ask(dokkufacts.first_questions())[:1], *answers(dokkufacts.first_questions()[1:3]))
    first = (*first, (dokkufacts.ReadRecord(), dokkucalls.Answer(status=1)))
    second = answers(dokkufacts.second_questions(first))
    try:
        facts = dokkufacts.read(first, second)
    except Refused:
        return
    for scope in (GLOBAL, *(app.name for app in facts.apps)):
        calls = dokkucalls.take(scope, facts.config.get(scope, {}))
        assert all(word.isascii() for call in calls for word in call.words)


def test_a_failing_command_is_named() -> None:
    """Dokku's own complaint in one line, exit 6."""
    dokku = host()
    first = dokku.ask(dokkufacts.first_questions())
    bad = dokkucalls.Answer(status=1, complaint=b" !     \x1b[31mno plugn\n")
    with pytest.raises(Refused, match=r"dokku apps:list fails.*no plugn"):
        dokkufacts.second_questions((first[0], (first[1][0], bad), *first[2:]))


@pytest.mark.parametrize(
    "content",
    [
        b"", b"{", b"[]", b'{"version": 2}', b'{"version": 1, "config": 3, "options": {}, "names": []}',
        b'{"version": 1, "config": {"../x": {}}, "options": {}, "names": []}',
        b'{"version": 1, "config": {"web": {"a b": []}}, "options": {}, "names": []}',
        b'{"version": 1, "config": {}, "options": {"web": ["x y"]}, "names": []}',
        b'{"version": 1, "config": {}, "options": {}, "names": ["-x"]}', b"[" * 5000,
    ],
)  # fmt: skip
def test_a_damaged_record_is_refused(content: bytes) -> None:
    """With the file's path; nothing of it becomes a word of a command."""
    with pytest.raises(Refused, match=r"damaged \(/var/lib/vmproxy/dokku\.json\)"):
        dokkufacts.read_record(content)


def test_the_record_is_read_as_it_was_written() -> None:
    """And an empty one is no file."""
    record = Record(config={"web": {"http_proxy": frozenset("ab")}}, options={"web": frozenset(("A",))}, names=("db",))
    written = dokkufacts.write_record(record)
    assert written is not None
    assert dokkufacts.read_record(written) == record
    assert dokkufacts.write_record(Record(names=("db",))) is None


def test_names_and_index_are_remembered() -> None:
    """The names of an apply are in the record; its index is read back from Dokku while it is ours."""
    dokku = host()
    facts = dokku.look()
    index = {"PIP_INDEX_URL": "http://u:p@10.0.2.2:3141/simple/"}
    made = dokkuplan.diff(facts, dokkuplan.desire(facts, {**WANTED, **index}, names=("db",)))
    dokku.carry_out(made.steps)
    again = dokku.look()
    assert again.record.names == ("db",)
    assert dokkuplan.pip_index(again) == index["PIP_INDEX_URL"]
    dokku.config[GLOBAL]["PIP_INDEX_URL"] = "http://theirs/simple/"
    assert dokkuplan.pip_index(dokku.look()) == ""


# ---- as data --------------------------------------------------------------------------------------------------------


def test_the_data_of_a_change() -> None:
    """Lengths before bytes, words one a line; values only in stdin of a call."""
    call = dokkucalls.put("web", {"A": "x\ny"}, (0, 38, 0))[0]
    body = json.dumps({"A": "x\ny"}).encode() + b"\n"
    words = b"--quiet\nconfig:import\n--no-restart\n--format\njson\nweb\n-\n"
    assert dokkucalls.ask((call,)) == b"ask\ncall 7 %d\n" % len(body) + words + body + b"\n.\n"
    step = dokkucalls.Step(do=(dokkucalls.Write(content=b"x"),), undo=(dokkucalls.Write(content=None),))
    expect = ((Call(words=("version",)), dokkucalls.Answer(status=0, stdout=b"v\n")),)
    data = dokkucalls.tell((step,), expect=expect, lock_timeout_seconds=5.0)
    assert data == b"tell 5\nexpect 18 4\ncall 1 0\nversion\n\n\n0\nv\n\ndo 10\nwrite 1\nx\n\nundo 7\nforget\n\n.\n"
