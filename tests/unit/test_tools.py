"""What each tool's file becomes: pure, read back by a model of the tool or by its own parser, and undone exactly."""

from __future__ import annotations

import ast
import configparser
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.test_cli import complete
from tests.unit.test_tree import GATEWAY, Root
from vmproxy import blocks, converge, guests, managed, tools
from vmproxy.cli.params import click_option
from vmproxy.errors import ForeignFile, Refused, UsageError
from vmproxy.machines import Look
from vmproxy.machines.tree import Tree
from vmproxy.model import Desired, Facts, File, FileChange, Mount, Settings, Wish
from vmproxy.options import OPTIONS
from vmproxy.proxyenv import merge_no_proxy, parse_proxy, variables
from vmproxy.quoting import read_sh_exports
from vmproxy.wish import DEFAULT, choose, record, recorded

ALL = tuple(tools.NAMES)
HTTP, HTTPS = "http://10.0.2.2:8123", "http://192.0.2.7:3129"
NPM = json.loads((Path(__file__).parents[2] / "fixtures/tools/npm.json").read_text())
GUEST = guests.load("boot2docker")


def order(*no_proxy: str, secret: bool = False) -> tools.Order:
    """What is to be said, with another proxy for https."""
    return tools.Order(variables=variables(parse_proxy(HTTP), parse_proxy(HTTPS), no_proxy), secret=secret)


def facts(*, without: tuple[str, ...] = (), **files: bytes) -> Facts:
    """A VM that has every tool, and these files (``etc_pip_conf`` is /etc/pip.conf)."""
    found = {path: File(path=path, kind="absent") for path in tools.files(ALL)}
    for name, content in files.items():
        path = next(path for path in found if re.sub(r"\W", "_", path) == f"_{name}")
        found[path] = File(path=path, content=content)
    return Facts(paths=frozenset(tools.paths(ALL)) - set(without), files=found)


def after(seen: Facts, desired: Desired) -> tuple[Facts, tuple[FileChange, ...]]:
    """The VM once that is done, and what was done."""
    changes, _drift = managed.changes(seen, GUEST, desired)
    made = {
        change.after.path: change.after
        if change.after.content is not None
        else File(path=change.after.path, kind="absent")
        for change in changes
    }
    return Facts(paths=seen.paths, files={**seen.files, **made}), changes


def wanted(seen: Facts, *names: str, no_proxy: tuple[str, ...] = ()) -> Desired:
    """These tools and nothing else."""
    made, _warnings = managed.for_tools(seen, names, order(*no_proxy).variables, secret=False, said=ALL)
    return Desired(blocks=made)


def payload(name: str, said: tools.Order, seen: Facts | None = None) -> str:
    """The lines of a tool's first block."""
    return tools.load(name).render(said, seen or facts())[0].payload.decode()


# ---- the family -----------------------------------------------------------------------------------------------------


def test_every_member_is_whole() -> None:
    """Each name is a module with everything that the Protocol asks for; no file belongs to two tools or a guest."""
    every = tools.files(ALL)
    assert len(every) == len(set(every))
    assert not set(every) & set(guests.files())
    assert list(ALL) == sorted(ALL)
    for name in ALL:
        tool = tools.load(name)
        assert name == tool.NAME
        assert set(tool.SHELL) <= set(tool.FILES)
        for block in tool.render(order("intern.test"), facts()):
            assert block.path in tool.FILES
            assert tools.owner(block.path) is tool
            assert (block.where == "end") == (block.path in tool.SHELL)
            assert block.payload.endswith(b"\n")


def test_a_tool_that_nobody_knows() -> None:
    """An unknown name is a usage error that lists what there is; ``none`` is the empty list, alone."""
    with pytest.raises(UsageError, match="no tool named brew"):
        tools.chosen(("apt", "brew"))
    assert tools.chosen(("none",)) == ()
    assert tools.chosen(("wget", "apt", "wget")) == ("apt", "wget")


@pytest.mark.parametrize("name", [name for name in ALL if tools.load(name).PATHS])
def test_a_tool_that_the_vm_has_not(name: str) -> None:
    """Refused with the path that shows it."""
    with pytest.raises(Refused, match=f"the VM has no {name}"):
        tools.load(name).render(order(), facts(without=tools.load(name).PATHS))


@pytest.mark.parametrize("name", ALL)
def test_credentials_are_given_to_no_file_that_everybody_reads(name: str) -> None:
    """Refused, and the refusal does not show them; sudo's file has names only, and apt has a file for root alone."""
    said = tools.Order(variables=variables(parse_proxy("http://me:hunter22@h:1"), None), secret=True)
    if name == "sudo":
        assert b"hunter22" not in tools.load(name).render(said, facts())[0].payload
        return
    if name == "apt":
        secret, open_to_all = tools.load(name).render(said, facts())
        assert (secret.mode, secret.secret) == (0o600, True)
        assert secret.payload == b"machine http://h:1 login me password hunter22\n"
        assert b"hunter22" not in open_to_all.payload
        return
    with pytest.raises(Refused, match="credentials") as caught:
        tools.load(name).render(said, facts())
    assert "hunter22" not in str(caught.value) + caught.value.hint + repr(said)


ENTRIES = {
    "intern.test": ("host", "intern.test", 0),
    "intern.test:8080": ("host", "intern.test", 8080),
    ".corp": ("below", "corp", 0),
    "*.corp": ("below", "corp", 0),
    "10.0.0.1": ("host", "10.0.0.1", 0),
    "10.0.0.1:80": ("host", "10.0.0.1", 80),
    "::1": ("host", "::1", 0),
    "[::1]:80": ("host", "::1", 80),
    "[fe80::1]": ("host", "fe80::1", 0),
    "10.0.0.0/8": ("network", "", 0),
    "*": ("all", "", 0),
    "a_b": ("host", "a_b", 0),
    "a..b": ("other", "", 0),
    "host:http": ("other", "", 0),
    'q"x': ("other", "", 0),
    "é.test": ("other", "", 0),
    "host:99999": ("other", "", 0),
    ".": ("other", "", 0),
}


@pytest.mark.parametrize("text", ENTRIES)
def test_entries_are_told_apart(text: str) -> None:
    """Hosts, domains, networks, ports: what each tool's own words are chosen by."""
    entry = tools.entry(text)
    assert (entry.kind, entry.host, entry.port) == ENTRIES[text]


def test_what_a_tool_cannot_say_is_a_warning() -> None:
    """One line for each tool, naming the entries; what is only this machine's own name is not worth one."""
    _made, none = managed.for_tools(
        facts(), ALL, order("localhost", "127.0.0.1", "::1").variables, secret=False, said=()
    )
    assert none == ()
    no_proxy = ("a.test", ".corp", "10.0.0.0/8", "b.test:81", "*")
    _made, said = managed.for_tools(facts(), ALL, order(*no_proxy).variables, secret=False, said=())
    told = {line.split()[0]: line for line in said}
    assert set(told) == {"apk", "apt", "dnf", "git", "npm", "pip", "wget"}
    assert ".corp, 10.0.0.0/8, b.test:81 and 1 more" in told["apt"]
    assert "for 10.0.0.0/8, * of" in told["git"]
    assert "a.test" in told["pip"]
    assert "a.test" not in told["wget"]


def test_what_no_tool_was_asked_for_costs_nothing() -> None:
    """A VM of somebody who uses no tools: no module of a tool is loaded to plan for it."""
    code = """
import sys
from vmproxy import guests, managed
from vmproxy.model import Desired, Facts, File
guest = guests.load("boot2docker")
files = {path: File(path=path, kind="absent") for path in guests.files()}
assert managed.changes(Facts(files=files), guest, Desired()) == ((), [])
print([name for name in sys.modules if name.startswith("vmproxy.tools.")])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_files_that_a_reboot_forgets() -> None:
    """One warning names the tools whose files are in the VM's memory."""
    seen = facts()
    seen = Facts(
        paths=seen.paths,
        files=seen.files,
        mounts=(
            Mount(point="/", fstype="ext4", options=frozenset()),
            Mount(point="/etc", fstype="tmpfs", options=frozenset()),
        ),
    )
    _made, said = managed.for_tools(seen, ("apt", "npm"), order().variables, secret=False, said=())
    assert said == ("not on a lasting disk: a reboot forgets the files of apt",)


# ---- what each reader gets ------------------------------------------------------------------------------------------


def read_apt(text: str) -> dict[str, str]:
    """apt.conf of our own form: ``Name "value";``."""
    return {m[1]: m[2] for line in text.splitlines() if (m := re.fullmatch(r'([\w:.-]+) "([^"]*)";', line))}


def read_git(text: str) -> dict[str, str]:
    """git-config(1): sections with a quoted subsection, quoted values with backslash escapes."""
    found, section = {}, ""
    for line in text.splitlines():
        if m := re.fullmatch(r'\[(\w+)(?: "((?:[^"\\]|\\.)*)")?\]', line):
            section = m[1] if m[2] is None else m[1] + "." + re.sub(r"\\(.)", r"\1", m[2])
        elif m := re.fullmatch(r'    (\w+) = "((?:[^"\\]|\\["\\])*)"', line):
            found[f"{section}.{m[1]}"] = re.sub(r"\\(.)", r"\1", m[2])
    return found


def read_lines(text: str) -> dict[str, str]:
    """``name = value`` as wget reads it, ``NAME=value`` as pam_env does."""
    return {line.partition("=")[0].strip(): line.partition("=")[2].strip() for line in text.splitlines()}


def read_npm(text: str) -> dict[str, str]:
    """npm's ini: a value between double quotes is JSON."""
    return {name: json.loads(value) if value.startswith('"') else value for name, value in read_lines(text).items()}


def test_apt_says_both_proxies_and_whole_names() -> None:
    """Both schemes; DIRECT for hosts and IPv4 addresses, and no line that names a domain, a network or a port."""
    read = read_apt(payload("apt", order("intern.test", ".corp", "10.0.0.0/8", "a.test:81", "::1", "10.1.1.1")))
    assert read == {
        "Acquire::http::Proxy": HTTP,
        "Acquire::https::Proxy": HTTPS,
        **{
            f"Acquire::{scheme}::Proxy::{host}": "DIRECT"
            for scheme in ("http", "https")
            for host in ("intern.test", "10.1.1.1")
        },
    }


APT_REFUSED = {
    "two users of one proxy": ("http://a:b@h:1", "http://c:d@h:1"),
    "one of two without": ("http://a:b@h:1", "http://h:1"),
    "a blank": ("http://a:b%20c@h:1", None),
    "not ASCII": ("http://a:%C3%A9@h:1", None),
    "no password": ("http://a@h:1", None),
    "IPv6": ("http://a:b@[::2]:1", None),
}


@pytest.mark.parametrize("case", APT_REFUSED)
def test_apt_credentials_that_cannot_be_said(case: str) -> None:
    """netrc has no quotes, and one line for each machine: refused, not written another way."""
    http, https = (parse_proxy(text) if text else None for text in APT_REFUSED[case])
    assert http is not None
    with pytest.raises(Refused):
        tools.load("apt").render(tools.Order(variables=variables(http, https), secret=True), facts())


def test_apt_credentials_of_two_proxies() -> None:
    """A line for each; for a proxy that speaks TLS without http://, so that they go over nothing else."""
    said = tools.Order(
        variables=variables(parse_proxy("http://a:b%23@h:1"), parse_proxy("https://c:d@i:2")), secret=True
    )
    secret, settings = tools.load("apt").render(said, facts())
    assert secret.payload == b"machine http://h:1 login a password b#\nmachine i:2 login c password d\n"
    assert b"@" not in settings.payload


def test_what_wins_over_our_file_is_said() -> None:
    """apt's old single file is read last; a comment in it is none. sudo without its directory is refused."""
    apt = tools.load("apt")
    for text, wins in (
        (b"# proxy\n// Acquire::http::Proxy x\nAPT::X 1;\n", False),
        (b'Acquire { http { Proxy "http://x:1"; } }\n', True),
    ):
        assert bool(apt.overrides(Facts(texts={"/etc/apt/apt.conf": text}))) == wins
    sudo = tools.load("sudo")
    for text, read in (
        (b"#includedir /etc/sudoers.d\r\n", True),
        (b"@includedir /etc/sudoers.d", True),
        (b"x\n", False),
    ):
        seen = Facts(paths=frozenset(tools.paths(ALL)), texts={"/etc/sudoers": text})
        if read:
            assert sudo.render(order(), seen)
        else:
            with pytest.raises(Refused, match="does not read"):
                sudo.render(order(), seen)


def test_domains_are_spelled_as_most_programs_know_them() -> None:
    """``*.corp`` means .corp to Docker; wget and npm know only that."""
    for name in ("wget", "npm"):
        assert ".corp,a.test" in payload(name, order("*.corp", "a.test"))
        assert "*" not in payload(name, order("*.corp", "a.test"))


def test_git_says_one_proxy_and_the_servers_without() -> None:
    """The https one for both; each server by URL, a domain as one label, ports and IPv6 addresses as they are."""
    read = read_git(payload("git", order("intern.test:81", ".corp", "::1", "10.0.0.0/8")))
    assert read.pop("http.proxy") == HTTPS
    assert read == {
        f"http.{scheme}://{host}.proxy": ""
        for scheme in ("http", "https")
        for host in ("intern.test:81", "*.corp", "[::1]")
    }


def test_git_from_its_own_source() -> None:
    """A git in /usr/local has its file there."""
    blocks_of = tools.load("git").render(order(), facts(without=("/usr/bin/git",)))
    assert [block.path for block in blocks_of] == ["/usr/local/etc/gitconfig.vmproxy", "/usr/local/etc/gitconfig"]


PLACES = {
    "/usr/local/etc/npmrc": (),
    "/etc/npmrc": ("/usr/local/bin/npm",),
    "/usr/etc/npmrc": ("/usr/local/bin/npm", "/usr/share/nodejs/npm", "/usr/share/npm"),
}


@pytest.mark.parametrize("path", PLACES)
def test_npm_by_where_it_is_from(path: str) -> None:
    """nodejs.org's, Debian's and NodeSource's npm keep their file in another directory each."""
    (block,) = tools.load("npm").render(order(), facts(without=PLACES[path]))
    assert block.path == path


def test_npm_reads_what_the_record_says() -> None:
    """The bytes that a real npm was given are those written today, and it read back what was said (recorded)."""
    said = tools.Order(
        variables={"http_proxy": NPM["proxy"], "https_proxy": NPM["https-proxy"], "no_proxy": NPM["noproxy"]}
    )
    assert payload("npm", said) == NPM["npmrc"]
    assert NPM["shown"] == {"proxy": NPM["proxy"], "https-proxy": NPM["https-proxy"], "noproxy": [NPM["noproxy"]]}
    assert read_npm(NPM["npmrc"])["noproxy"] == NPM["noproxy"]


no_proxies = st.lists(
    st.text(st.characters(exclude_categories=("Cc", "Cf", "Cs", "Zs", "Zl", "Zp"), exclude_characters=","), min_size=1),
    max_size=4,
).map(lambda items: merge_no_proxy(",".join(items)))
READERS: dict[str, Callable[[str], dict[str, str]]] = {
    "wget": read_lines,
    "environment": read_lines,
    "npm": read_npm,
    "apk": lambda text: read_sh_exports(text.encode()),
}


@pytest.mark.parametrize("name", READERS)
@given(no_proxy=no_proxies)
def test_values_are_read_back_exactly_or_refused(name: str, no_proxy: tuple[str, ...]) -> None:
    """Whatever is in no_proxy: the reader gets it exactly, or nothing is written; one line for each name."""
    said = order(*no_proxy)
    try:
        text = payload(name, said)
    except Refused as refusal:
        assert not set(refusal.what) & {'"', "\\"}
        return
    read = {key.lower(): value for key, value in READERS[name](text).items()}
    wanted = ",".join(e.plain if name in ("wget", "npm") else e.text for e in said.no_proxy)
    assert read.get("no_proxy", read.get("noproxy", "")) == wanted
    assert len(text.splitlines()) == text.count("\n")


@pytest.mark.parametrize(
    ("name", "value"),
    [("npm", "${HOME}"), ("environment", "a#b"), ("environment", "a\\"), ("environment", "a;b"), ("wget", "a\u00a0b")],
)
def test_values_that_a_reader_would_take_for_more(name: str, value: str) -> None:
    """Replaced, cut or split by the reader: refused without being shown."""
    said = tools.Order(variables={**order().variables, "no_proxy": value})
    with pytest.raises(Refused) as caught:
        payload(name, said)
    assert value not in str(caught.value) + caught.value.hint


@pytest.mark.parametrize("name", ["apt", "git"])
@given(no_proxy=no_proxies)
def test_entries_that_are_no_names_never_reach_these_files(name: str, no_proxy: tuple[str, ...]) -> None:
    """Each entry is either said in the tool's own words, by safe characters only, or told as unsaid."""
    said = order(*no_proxy)
    text = payload(name, said)
    assert re.fullmatch(r'[\w:/.\[\]"*;= \n-]*', text, re.ASCII)
    unsaid = tools.load(name).unsaid(said)
    for entry in said.no_proxy:
        assert entry.text in unsaid or entry.host in text


# ---- in files that are there already --------------------------------------------------------------------------------

contents = st.binary(max_size=40) | st.lists(
    st.sampled_from(
        [b"[a]", b"[global]", b"  x = 1", b"[main]", b"y=2", b"# c", b"", b"proxy = u", b"\tz\r", b"no_proxy=x", b"\\"]
    ),
    max_size=8,
).map(b"\n".join)  # fmt: skip


@pytest.mark.parametrize("name", ["dnf", "git", "npm", "wget", "environment", "pip"])
@given(content=contents)
def test_every_byte_comes_back(name: str, content: bytes) -> None:
    """Apply, the same again, another list, remove: nothing to do the second time, and exactly the bytes of before."""
    key = {"git": "etc_gitconfig", "npm": "usr_local_etc_npmrc", "pip": "etc_pip_conf", "dnf": "etc_dnf_dnf_conf"}.get(
        name
    )
    key = key or {"wget": "etc_wgetrc", "environment": "etc_environment"}[name]
    seen = facts(**{key: content})
    try:
        there, done = after(seen, wanted(seen, name))
    except ForeignFile:
        return
    assert done
    assert after(there, wanted(there, name))[1] == ()
    other, _done = after(there, wanted(there, name, no_proxy=("intern.test",)))
    assert after(other, Desired())[0].files == seen.files


@given(content=contents)
def test_pip_itself_reads_what_it_read_before_and_the_proxy(content: bytes) -> None:
    """By the very parser that pip uses: everything as before, and our proxy; else nothing is written."""

    def read(text: bytes) -> dict[tuple[str, str], str]:
        parser = configparser.RawConfigParser()
        parser.read_string(text.decode())
        return {(section, key): value for section in parser.sections() for key, value in parser.items(section)}

    seen = facts(etc_pip_conf=content)
    try:
        there, _done = after(seen, wanted(seen, "pip"))
    except ForeignFile:
        return
    now = there.files["/etc/pip.conf"].content
    assert now is not None
    assert read(now) == {**read(content), ("global", "proxy"): HTTPS}


PIP = {
    "no file": (None, b"[global]\nproxy = %s\n"),
    "another section": (b"[list]\nformat = columns\n", b"[global]\nproxy = %s\n"),
    "an indented section": (b"[global]\n  timeout = 7\n[list]\n", b"  proxy = %s\n"),
    "a comment first": (b"[global]\n# c\n\n\ttimeout = 7", b"\tproxy = %s\n"),
    "the last line": (b"[global]", b"proxy = %s\n"),
}


@pytest.mark.parametrize("case", PIP)
def test_pip_has_one_section_of_that_name(case: str) -> None:
    """A second ``[global]`` would make pip fail: ours stands in the one there is, as deep as its first option."""
    content, lines = PIP[case]
    seen = facts(**({"etc_pip_conf": content} if content is not None else {}))
    assert payload("pip", order(), seen).encode() == lines % HTTPS.encode()


PIP_REFUSED = {
    "a proxy of its own": (b"[global]\nproxy = http://x:1\n", "a proxy of its own"),
    "broken": (b"x = 1\n", "no ini file"),
    "two of them": (b"[global]\n[global]\n", "no ini file"),
    "no text": (b"[global]\nx = \xff\n", "no ini file"),
    "a header in depth": (b" [global]\nx = 1\n", "no section"),
}


@pytest.mark.parametrize("case", PIP_REFUSED)
def test_pip_files_that_cannot_take_ours(case: str) -> None:
    """Refused, naming why."""
    content, words = PIP_REFUSED[case]
    seen = facts(etc_pip_conf=content)
    with pytest.raises(ForeignFile, match=words):
        after(seen, wanted(seen, "pip"))


def test_lines_that_need_our_section_keep_us_from_leaving() -> None:
    """What was written below our own header would change its section or break the file: remove says so."""
    for name, key, line in (("pip", "etc_pip_conf", b"timeout = 7\n"), ("git", "etc_gitconfig", b"  path = x\n")):
        seen = facts()
        there, _done = after(seen, wanted(seen, name))
        path = next(path for path in there.files if re.sub(r"\W", "_", path) == f"_{key}")
        content = there.files[path].content
        assert content is not None
        edited = Facts(paths=there.paths, files={**there.files, path: File(path=path, content=content + line)})
        with pytest.raises(ForeignFile):
            after(edited, Desired())


def test_dnf_and_yum() -> None:
    """dnf's file where there is one, else yum's; in [main], which other sections may follow."""
    seen = facts(etc_dnf_dnf_conf=b"[main]\ngpgcheck=1\n[x]\nproxy=_none_\n")
    there, _done = after(seen, wanted(seen, "dnf"))
    content = there.files["/etc/dnf/dnf.conf"].content or b""
    assert content.startswith(
        b"[main]\n# >>> vmproxy 1 {}\nproxy = " + HTTPS.encode() + b"\n# <<< vmproxy\ngpgcheck=1\n[x]"
    )
    (block,) = tools.load("dnf").render(order(), facts(without=("/etc/dnf/dnf.conf",)))
    assert block.path == "/etc/yum.conf"
    seen = facts(etc_dnf_dnf_conf=b"[main]\nproxy = http://x:1\n")
    with pytest.raises(ForeignFile, match=r"proxy of its own in \[main\]"):
        wanted(seen, "dnf")


def test_npm_files_with_a_section_are_refused() -> None:
    """Our lines behind it would belong to it."""
    seen = facts(usr_local_etc_npmrc=b"[section]\nx=1\n")
    with pytest.raises(ForeignFile, match="section"):
        after(seen, wanted(seen, "npm"))


def test_a_later_line_of_theirs_moves_ours_behind_it() -> None:
    """The last line wins in these files: where somebody sets one of our names behind our block, it goes to the end; any
    other line behind it leaves it where it is."""
    seen = facts(etc_wgetrc=b"tries = 3\n")
    there, _done = after(seen, wanted(seen, "wget"))
    content = there.files["/etc/wgetrc"].content
    assert content is not None
    for line, moves in ((b"timeout = 9\n", False), (b" HTTP_PROXY=http://x:1\n", True)):
        edited = Facts(
            paths=there.paths,
            files={**there.files, "/etc/wgetrc": File(path="/etc/wgetrc", content=content + line)},
        )
        again, done = after(edited, wanted(edited, "wget"))
        assert bool(done) == moves
        now = again.files["/etc/wgetrc"].content or b""
        assert now.endswith(b"# <<< vmproxy\n") == moves
        assert after(again, Desired())[0].files["/etc/wgetrc"].content == b"tries = 3\n" + line


def test_the_order_of_writing() -> None:
    """The record of the wish is written before what it tells of, and goes after it."""
    seen = facts()
    profile = blocks.put(None, b"export x='1'\n", where="end", record={})
    seen = Facts(paths=seen.paths, files={**seen.files, GUEST.WISH_FILE: File(path=GUEST.WISH_FILE, content=profile)})
    there, done = after(seen, wanted(seen, "apt"))
    assert [change.before.path for change in done] == [GUEST.WISH_FILE, "/etc/apt/apt.conf.d/zz-vmproxy"]
    both = Facts(paths=there.paths, files={**there.files, GUEST.WISH_FILE: File(path=GUEST.WISH_FILE, content=profile)})
    _gone, undone = after(both, Desired())
    assert [change.before.path for change in undone] == ["/etc/apt/apt.conf.d/zz-vmproxy", GUEST.WISH_FILE]


def test_no_shell_is_asked_about_files_that_none_reads() -> None:
    """What looks like an open here-document or an exit to a shell is nothing in these files."""
    seen = facts(etc_wgetrc=b"exit\ncat <<X\n")
    _there, done = after(seen, wanted(seen, "wget", "apk"))
    assert {change.before.path: change.shell for change in done} == {
        "/etc/wgetrc": False,
        "/etc/profile.d/vmproxy.sh": True,
    }


# ---- the wish, and a directory of files -----------------------------------------------------------------------------


def test_the_record_keeps_the_list() -> None:
    """Sorted, each once; another list replaces it, ``none`` empties it, and what is no name is a damaged record."""
    said = choose(Settings(tools=("wget", "apt", "apt"), given=frozenset({"tools"})), None)
    assert said.tools == ("apt", "wget")
    assert recorded(record(said), {}) == said
    assert choose(Settings(), said).tools == ("apt", "wget")
    assert choose(Settings(tools=("none",), given=frozenset({"tools"})), said).tools == ()
    assert "tools" not in record(Wish(proxy=DEFAULT))
    for wrong in ("apt", ["../x"], [1], ["A"]):
        with pytest.raises(Refused, match="damaged"):
            recorded({"proxy": "http://h:1", "tools": wrong}, {})


@pytest.fixture
def root(tmp_path: Path) -> Root:
    """A VM's files with apt, git and somebody's pip.conf."""
    made = Root(tmp_path)
    for name in ("etc/apt/apt.conf.d", "usr/bin"):
        (made.directory / name).mkdir(parents=True)
    for name in ("git", "pip3"):
        made.write(f"/usr/bin/{name}", b"")
    made.write("/etc/pip.conf", b"[global]\ntimeout = 7", mode=0o640)
    return made


def test_a_directory_of_files(root: Root) -> None:
    """``rootfs:DIR`` takes them as well; one look where the tools are said or none were ever, two where only the record
    tells of them; remove gives back every byte and mode."""
    before = root.picture()
    looks: list[Look] = []
    observe = Tree.observe

    def counted(tree: Tree, look: Look) -> Facts:
        looks.append(look)
        return observe(tree, look)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Tree, "observe", counted)
        assert root.tell(converge.apply).changed
        looks.clear()
        assert not root.tell(converge.apply).changed
        assert len(looks) == 1
        assert not set(looks[0].files) & set(tools.files(ALL))
        assert root.tell(converge.apply, tools=("apt", "git", "pip")).changed
        looks.clear()
        assert not root.tell(converge.apply, tools=("git", "pip", "apt")).changed
        assert len(looks) == 1
        looks.clear()
        assert not root.tell(converge.apply).changed
        assert len(looks) == 2
        assert root.tell(converge.status).ok
    assert HTTP.encode() in root.path("/etc/apt/apt.conf.d/zz-vmproxy").read_bytes()
    assert root.path("/etc/pip.conf").stat().st_mode & 0o7777 == 0o640
    assert root.tell(converge.apply, tools=("git",)).changed
    assert not root.path("/etc/apt/apt.conf.d/zz-vmproxy").exists()
    assert root.path("/etc/pip.conf").read_bytes() == b"[global]\ntimeout = 7"
    assert root.tell(converge.remove).changed
    assert root.picture() == before
    assert GATEWAY in HTTP


def test_a_tool_that_has_gone_since(root: Root) -> None:
    """Where only the record names it, the rest goes on with a warning and its block goes away; said now, it is
    refused. When it is back, so is its block."""
    root.tell(converge.apply, tools=("apt", "git"))
    root.path("/usr/bin/git").rename(root.path("/usr/bin/git.aside"))
    root.path("/var/lib/boot2docker/profile").unlink()
    report = root.tell(converge.apply)
    assert report.ok
    assert any("no git" in line for line in report.warnings)
    assert not root.path("/etc/gitconfig").exists()
    assert root.path("/etc/apt/apt.conf.d/zz-vmproxy").exists()
    assert root.tell(converge.status).ok
    with pytest.raises(Refused, match="the VM has no git"):
        root.tell(converge.apply, tools=("apt", "git"))
    root.path("/usr/bin/git.aside").rename(root.path("/usr/bin/git"))
    assert root.tell(converge.apply).changed
    assert root.path("/etc/gitconfig").exists()


def test_a_record_of_a_newer_vmproxy(root: Root) -> None:
    """A tool that this version does not know is refused, not forgotten."""
    root.tell(converge.apply, tools=("git",))
    for path in ("profile", "bootlocal.sh"):
        file = root.path(f"/var/lib/boot2docker/{path}")
        file.write_bytes(file.read_bytes().replace(b'["git"]', b'["brew"]'))
    with pytest.raises(Refused, match="no tool named brew"):
        root.tell(converge.apply)


def test_the_list_is_completed_piece_by_piece(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A Tab press knows the tools, behind a comma those that are not in the list yet."""
    assert complete("vmproxy apply --tools a", monkeypatch, capsys) == ["apk", "apt"]
    assert complete("vmproxy apply --tools n", monkeypatch, capsys) == ["npm", "none"]
    context, option = click.Context(click.Command("x")), click_option(OPTIONS["tools"])
    assert [item.value for item in option.shell_complete(context, "apt,a")] == ["apt,apk"]


def test_no_tool_is_named_in_other_rooms() -> None:
    """A new tool is one file and one line: no other module of the package knows one by name."""
    package = Path(tools.__file__).parents[1]
    names = {name for name in ALL if name not in ("environment", "pip", "sudo", "wget", "git")}
    for path in package.rglob("*.py"):
        if path.parent.name == "tools":
            continue
        words = {node.value for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Constant)}
        assert not words & names or path.stem == "dialects", path
