"""ssh_config for one host: every rule of ssh_config(5) we follow, on files that exist only in the test."""

from __future__ import annotations

import fnmatch
import shutil
import socket
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmproxy.errors import UsageError
from vmproxy.model import Target
from vmproxy.transports import SshOptions
from vmproxy.transports._route import endpoint_of
from vmproxy.transports._ssh_config import Disk, HostConfig, Person, lookup

USER = "/home/me/.ssh/config"
PERSON = Person(home="/home/me", user="me", environ={"WORK": "/work"})


def look(text: str, alias: str = "vm", *, user: str = "", port: int = 0, **files: str) -> HostConfig:
    """What ``text`` as ~/.ssh/config says; ``files`` are others, by path with / as ``__`` and . as ``_dot_``."""
    disk = {USER: text, **{name.replace("__", "/").replace("_dot_", "."): body for name, body in files.items()}}

    def read(path: str) -> bytes | None:
        return disk[path].encode() if path in disk else None

    def expand(pattern: str) -> list[str]:
        return sorted(name for name in disk if fnmatch.fnmatchcase(name, pattern))

    return lookup(alias, user=user, port=port, ssh_config="", person=PERSON, disk=Disk(read=read, expand=expand))


def test_nothing_said() -> None:
    """An alias that no file knows is its own host name."""
    assert look("") == HostConfig(hostname="vm")


def test_first_value_stays() -> None:
    """The first value of a keyword counts, from any block that applies; IdentityFile adds up."""
    found = look(
        "User first\nHost vm\n  User second\n  HostName 10.0.0.1\n  Port 2022\n  IdentityFile /a\n"
        "Host *\n  HostName other\n  Port 1\n  IdentityFile ~/b\n  IdentitiesOnly yes\n"
    )
    assert found == HostConfig(
        hostname="10.0.0.1", user="first", port=2022, identities=("/a", "/home/me/b"), only_identities=True
    )


def test_the_command_line_comes_before_the_file() -> None:
    """ssh://user@host:port is not overruled, and %r and %p are what it said."""
    found = look("Host vm\nUser file\nPort 1\nIdentityFile /k-%r-%p", user="line", port=7)
    assert (found.user, found.port, found.identities) == ("line", 7, ("/k-line-7",))


@pytest.mark.parametrize(
    ("patterns", "applies"),
    [
        ("vm", True),
        ("VM", False),
        ("other vm", True),
        ("v?", True),
        ("v*", True),
        ("*", True),
        ("* !vm", False),
        ("!vm *", False),
        ("!other", False),
        ("!other *", True),
        ('"vm"', True),
        ("[v]m", False),
        ("vm.example", False),
    ],
)
def test_host_patterns(patterns: str, applies: bool) -> None:
    """``*``, ``?`` and ``!`` as the manual page has them; brackets are no pattern."""
    assert (look(f"Host {patterns}\n  Port 5\n").port == 5) is applies


@pytest.mark.parametrize(
    "text",
    [
        "Host vm\n\tPort 5",
        "host=vm\nPORT = 5",
        "Host vm\r\n  port=5\r\n",
        '  Host vm # mine\n  Port "5" # five',
        "# Host x\n\nHost vm\n# Port 6\nPort 5",
    ],
)
def test_how_lines_are_written(text: str) -> None:
    """Case, =, quotes, comments, tabs and CRLF."""
    assert look(text).port == 5


def test_words_with_quotes() -> None:
    """A path with spaces in quotes is one word; a closing quote that is missing is an error with file and line."""
    assert look('IdentityFile "/a b/k"').identities == ("/a b/k",)
    assert look("IdentityFile '/a b/k'").identities == ("/a b/k",)
    assert look(r"IdentityFile /a\ b/k").identities == ("/a b/k",)
    with pytest.raises(UsageError) as caught:
        look('Host vm\nIdentityFile "/a')
    assert caught.value.where == f"{USER}:2"


def test_tokens_and_environment() -> None:
    """%h %n %r %u %d %p %l %% and ${NAME} in a key's name; HostName takes %h."""
    found = look("HostName %h.example\nUser you\nIdentityFile ${WORK}/%h-%n-%r-%u-%p-%%\nIdentityFile %d/%l")
    assert found.hostname == "vm.example"
    assert found.identities == ("/work/vm.example-vm-you-me-22-%", f"/home/me/{socket.gethostname()}")


@pytest.mark.parametrize(
    "text", ["IdentityFile /%Z", "IdentityFile ${NOPE}/k", "Port x", "Port 70000", "HostName", "HostName %p"]
)
def test_values_that_make_no_sense(text: str) -> None:
    """Unknown tokens, variables that are not set and bad ports are exit 2, not a guess."""
    with pytest.raises(UsageError):
        look(text)


def test_none() -> None:
    """``none`` is no identity file, no proxy and no agent."""
    found = look("IdentityFile none\nProxyJump none\nProxyCommand none\nIdentityAgent none")
    assert found == HostConfig(hostname="vm", only_identities=True)


# Include


def test_include_is_relative_to_dot_ssh_and_sorted() -> None:
    """Globs and several names; what is not there is passed over."""
    found = look(
        "Include conf.d/* nothing ~/.ssh/more\n",
        __home__me___dot_ssh__conf_dot_d__2="Port 2\nUser two",
        __home__me___dot_ssh__conf_dot_d__1="Port 1",
        __home__me___dot_ssh__more="HostKeyAlias kept",
    )
    assert (found.port, found.user, found.key_alias) == (1, "two", "kept")


def test_include_inside_a_host_block() -> None:
    """It is read only where the block applies, and a Host line in it does not outlive the file."""
    inner = {"__home__me___dot_ssh__inner": "Host other\n  Port 9\n"}
    assert look("Host vm\n  Include inner\n  User after\n", **inner).user == "after"
    assert look("Host vm\n  Include inner\n", alias="other", **inner).port == 0
    assert look("Include inner\nUser after\n", alias="other", **inner) == HostConfig(
        hostname="other", port=9, user="after"
    )


def test_include_depth() -> None:
    """A file that includes itself ends at the depth limit, as an error."""
    with pytest.raises(UsageError, match="too many Includes"):
        look("Include config")


def test_system_file_comes_last() -> None:
    """/etc/ssh/ssh_config is read after the user's, its Includes relative to /etc/ssh."""
    found = look(
        "Host vm\nPort 1\n",
        __etc__ssh__ssh_config="Host *\nPort 2\nUser system\nInclude more",
        __etc__ssh__more="HostKeyAlias kept",
    )
    assert (found.port, found.user, found.key_alias) == (1, "system", "kept")


def test_named_file_is_the_only_one(tmp_path: Path) -> None:
    """-F FILE: that file alone; one that is not there is exit 2; ``none`` is no file at all."""
    (tmp_path / "config").write_text("Host vm\n  Port 5\n")
    assert lookup("vm", user="", port=0, ssh_config=str(tmp_path / "config"), person=PERSON).port == 5
    assert lookup("vm", user="", port=0, ssh_config="none", person=PERSON) == HostConfig(hostname="vm")
    with pytest.raises(UsageError):
        lookup("vm", user="", port=0, ssh_config=str(tmp_path / "gone"), person=PERSON)


# Match


@pytest.mark.parametrize(
    ("criteria", "applies"),
    [
        ("all", True),
        ("originalhost vm", True),
        ("originalhost other", False),
        ("!originalhost other", True),
        ("host 10.0.0.*", True),
        ("host vm", False),
        ("host=10.0.0.1", True),
        ("user you", True),
        ("user me", False),
        ("localuser me,you", True),
        ("originalhost vm user you", True),
        ("originalhost vm user me", False),
        ("originalhost vm exec true", False),
        ("exec false", False),
        ("localnetwork 0.0.0.0/0", False),
        ("final all", False),
        ("tagged x", False),
    ],
)
def test_match(criteria: str, applies: bool) -> None:
    """Criteria that can be decided are; the others do not apply."""
    assert (look(f"User you\nHostName 10.0.0.1\nMatch {criteria}\n  Port 5\n").port == 5) is applies


def test_match_exec_never_runs(tmp_path: Path) -> None:
    """The command of a Match exec is not run."""
    look(f'Match exec "touch {tmp_path / "ran"}"\n  Port 5\n')
    assert not (tmp_path / "ran").exists()


# proxies


@pytest.mark.parametrize(
    "text",
    [
        "ProxyCommand nc %h %p\n",
        "Host vm\n  proxycommand = ssh -W %h:%p bastion\n",
        "ProxyCommand nc %h %p\nProxyJump bastion\n",
        "Host vm\n  ProxyJump bastion\nHost bastion\n  ProxyCommand nc %h %p\n",
    ],
)
def test_an_alias_behind_a_command_is_refused(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ProxyCommand is exit 2 with a hint, for a jump host too; the host is never reached directly."""
    assert look(text).proxy
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "config").write_text(text)
    target = Target(name="ssh:vm", provider="ssh", host="vm", port=0)
    with pytest.raises(UsageError, match="is reached by a ProxyCommand") as caught:
        endpoint_of(target, SshOptions(ssh_config=str(tmp_path / "config")))
    assert caught.value.hint == "--ssh openssh"


@pytest.mark.parametrize(
    "text",
    [
        "Host other\n  ProxyJump bastion\n",
        "ProxyJump none\nHost vm\n  ProxyCommand nc\n",
        "Host vm\n ProxyCommand none\nHost *\n ProxyJump bastion\n",
        "Match originalhost other exec true\n  ProxyJump bastion\n",
    ],
)
def test_no_proxy_where_none_applies(text: str) -> None:
    """Another host's proxy is not ours, and the first of the two directives settles both."""
    assert look(text).proxy == ""


@pytest.mark.parametrize("criteria", ["exec true", "originalhost vm exec true", "final", "localnetwork 10.0.0.0/8"])
def test_a_proxy_in_doubt_is_refused(criteria: str) -> None:
    """A proxy in a block that cannot be decided is exit 2, also from a file included there."""
    with pytest.raises(UsageError, match="cannot be told"):
        look(f"Match {criteria}\n  ProxyJump bastion\n")
    with pytest.raises(UsageError, match="cannot be told"):
        look(f"Match {criteria}\n  Include inner\n", __home__me___dot_ssh__inner="Host v*\n ProxyCommand x\n")
    assert look(f"Match {criteria}\n  Include inner\n", __home__me___dot_ssh__inner="Host x\n ProxyCommand x\n")


# endpoints


def test_only_the_ssh_provider_reads_ssh_config(tmp_path: Path) -> None:
    """A ``Host *`` of the user's does not bend the way to a VM that its provider knows."""
    (tmp_path / "config").write_text("Host *\n  HostName elsewhere\n  Port 9\n  User x\n  ProxyJump bastion\n")
    (tmp_path / "mine").touch()
    mine = str(tmp_path / "mine")
    target = Target(name="b", provider="boot2docker", host="127.0.0.1", port=2022, user="docker", identities=("/k",))
    found = endpoint_of(target, SshOptions(ssh_config=str(tmp_path / "config"), identities=(mine,)))
    assert (found.host, found.port, found.user) == ("127.0.0.1", 2022, "docker")
    assert found.identities == (mine, "/k")
    assert found.place == "docker@127.0.0.1:2022"


@pytest.mark.parametrize(
    "text", ["HostName -oProxyCommand=x", "HostName 'a b'", "User -x", "HostKeyAlias '* ssh-rsa x'"]
)
def test_t05_names_from_the_file_are_checked(text: str, tmp_path: Path) -> None:
    """A name that is an option, a pattern or two words is refused wherever it comes from."""
    (tmp_path / "config").write_text(text)
    with pytest.raises(UsageError):
        endpoint_of(
            Target(name="ssh:vm", provider="ssh", host="vm", port=0), SshOptions(ssh_config=str(tmp_path / "config"))
        )


WORDS = st.sampled_from(
    [
        "Host",
        "vm",
        "*",
        "!vm",
        "Port",
        "5",
        "User",
        "u",
        "=",
        '"',
        "'",
        "\n",
        "#",
        "Match",
        "all",
        "%h",
        "\\",
        "Include",
    ]
)


@given(text=st.lists(WORDS, max_size=30).map(" ".join) | st.text(max_size=60))
def test_any_text(text: str) -> None:
    """No file is a crash: an answer or a usage error."""
    try:
        said = look(text).hostname
    except UsageError as error:
        said = f"{error} {error.where}"
    assert said


CASES = [
    "Host vm\n  HostName 10.0.0.1\n  Port 2022\n  User docker\n",
    "Host v* !vmx\n  Port 5\nHost *\n  Port 6\n  User all\n",
    "Match originalhost vm user root\n  Port 7\nMatch all\n  Port 8\n",
    'User "you"\nMatch user you\n  HostName %h.example\nHost=vm\nPort=9\n',
    "Include {directory}/inner\nHost vm\n  Port 10\n",
    "Host other\n  Include {directory}/inner\nHost vm\n  Port 11\n",
    "HostName 10.1.1.1\nMatch host 10.1.*\n  Port 12\n",
    "Host vm other # comment\n  Port 13 # comment\n",
]


@pytest.mark.parametrize("text", CASES)
@pytest.mark.parametrize("alias", ["vm", "vmx", "other"])
def test_as_openssh_reads_it(text: str, alias: str, tmp_path: Path) -> None:
    """``ssh -G`` gives the same host, port and user for the same file."""
    assert shutil.which("ssh"), "this test needs OpenSSH's client"
    (tmp_path / "inner").write_text("Host vm\n  User inner\n")
    config = tmp_path / "config"
    config.write_text(text.replace("{directory}", str(tmp_path)))
    argv = ["ssh", "-G", "-F", str(config), alias]
    done = subprocess.run(argv, check=True, capture_output=True, text=True, timeout=60)
    theirs = dict(row.split(" ", 1) for row in done.stdout.splitlines() if " " in row)
    person = Person(home=str(tmp_path), user=theirs["user"] if "User" not in text else "me")
    ours = lookup(alias, user="", port=0, ssh_config=str(config), person=person)
    assert (ours.hostname, ours.port or 22) == (theirs["hostname"], int(theirs["port"]))
    if ours.user:
        assert ours.user == theirs["user"]
