"""A block that is accepted is reached and has effect in real shells; what would kill it is refused (P2, F41–F44)."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st

from vmproxy import blocks, shellharm, shellscan

SHELLS = (("dash",), ("busybox", "sh"), ("bash", "--posix"))
NAMES = ("http_proxy", "HTTP_PROXY")
PAYLOAD = b"export HTTP_PROXY='http://10.0.2.2:8123'\nexport http_proxy='http://10.0.2.2:8123'\n"
WANTED = b"http://10.0.2.2:8123"

# Lines and pieces of lines whose every combination ends by itself and touches nothing outside the shell.
FRAGMENTS = [
    b"\n",
    b"\n",
    b"\n",
    b"; ",
    b" && ",
    b" || ",
    b" & ",
    b" | ",
    b"( ",
    b" )",
    b"{ ",
    b"; }",
    b"if :; then ",
    b"if false; then ",
    b"; else ",
    b"; fi",
    b"for i in 1 exit; do ",
    b"while false; do ",
    b"; done",
    b"case exit in exit) ",
    b"case a in (a|exit) ",
    b";; *) ",
    b";; esac",
    b"f() ",
    b"f() { ",
    b"f() ( ",
    b"f",
    b"! ",
    b"exit",
    b"exit 0",
    b"return 0",
    b"exec true",
    b"exec 2>&1",
    b"exec 3>/dev/null",
    b"eval 'exit 0'",
    b"eval ':'",
    b"command exit",
    b"$nothing ",
    b"e''xit",
    b"ex\\\nit",
    b'"exit"',
    b"$(exit 3)",
    b"`exit 3`",
    b"echo exit",
    b"echo 'exit",
    b"'",
    b'"',
    b"`",
    b"echo ${x:-exit}",
    b'"$(',
    b")",
    b"# exit",
    b"echo #",
    b": <<EOF\n",
    b": <<-'EOF'\n",
    b": << \\EOF; exit\n",
    b"EOF\n",
    b"\tEOF\n",
    b"http_proxy=mine",
    b"export http_proxy=mine",
    b"unset http_proxy",
    b"readonly http_proxy",
    b"readonly http_proxy=mine",
    b"X=1 ",
    b"set -n",
    b"set -u",
    b"set -- exit -n",
    b"alias export=:",
    b" \\",
    b"\\\n",
    b"\r\n",
    b"echo $((1<<2))",
    b"\xff\xfe",
    b"break",
]
TEXTS = st.lists(st.sampled_from(FRAGMENTS), max_size=9).map(b"".join)


def sh(
    shell: tuple[str, ...], *words: str, script: bytes, cwd: Path | None = None
) -> subprocess.CompletedProcess[bytes]:
    """The shell reading ``script``, without anything of ours in its environment."""
    argv = [shutil.which(shell[0]) or shell[0], *shell[1:], *words]
    return subprocess.run(
        argv, input=script, capture_output=True, cwd=cwd, env={"LC_ALL": "C"}, check=False, timeout=60
    )


def parses(shell: tuple[str, ...], text: bytes) -> bool:
    """``sh -n`` of the text."""
    return sh(shell, "-n", script=text).returncode == 0


def lives(text: bytes) -> bool:
    """What observe asks before a block goes in: the line scan, ``sh -n`` and the tail probe in the VM's own shell."""
    return (
        not blocks.objections(text, where="end", names=NAMES)
        and all(parses(shell, text) for shell in SHELLS)
        and not any(parses(shell, blocks.tail_probe(text)) for shell in SHELLS)
    )


def sourced(shell: tuple[str, ...], profile: bytes, cwd: Path) -> subprocess.CompletedProcess[bytes]:
    """stdout is what a child sees of a shell that sourced the profile, as boot2docker's init.d/docker does."""
    (cwd / "profile").write_bytes(profile)
    script = "exec 9>&1 >/dev/null\n. ./profile\n/bin/sh -c 'printf %s \"$http_proxy\" >&9'\n"
    return sh(shell, "-c", script, script=b"", cwd=cwd)


def has_effect(shell: tuple[str, ...], profile: bytes, cwd: Path) -> bool:
    """Whether our value arrives; a profile that ends with an error message would not let its owner's VM boot either."""
    done = sourced(shell, profile, cwd)
    assume(done.stdout == WANTED or not done.stderr)
    return done.stdout == WANTED


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(text=TEXTS)
@example(text=b"")
@example(text=b"#!/bin/sh\nexport EXTRA_ARGS='--debug'")
@example(text=b"die() { echo no; exit 1; }\n[ -n 1 ] || die\n")
@example(text=b"f() { exit; }\n(f)\n")
@example(text=b": <<EOF\nexit 0\nreadonly http_proxy\nEOF\n")
@example(text=b"x='\nexit 0\n'\n")
@example(text=b"case exit in exit) : ;; esac\n")
def test_p2_an_accepted_block_is_valid_and_has_effect(text: bytes, tmp_path: Path) -> None:
    """Where nothing speaks against it, the block parses, is not swallowed and gives its value, in every shell."""
    assume(lives(text))
    done = blocks.put(text, PAYLOAD, where="end", record={})
    assert not blocks.objections(done, where="end", names=NAMES)
    for shell in SHELLS:
        assert parses(shell, done)
        assert not parses(shell, blocks.tail_probe(done))
        assert has_effect(shell, done, tmp_path)


@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
@given(text=TEXTS, tail=TEXTS)
def test_p2_a_block_has_effect_also_after_lines_were_added_behind_it(text: bytes, tail: bytes, tmp_path: Path) -> None:
    """put on a file in which the user wrote on behind our block: in place or moved, the value is ours."""
    assume(lives(text))
    edited = blocks.put(text, PAYLOAD, where="end", record={}) + tail
    assume(lives(edited) and not blocks.objections(tail, where="end", names=NAMES))
    again = blocks.put(edited, PAYLOAD, where="end", record={})
    for shell in SHELLS:
        assert parses(shell, again)
        assert has_effect(shell, again, tmp_path)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(text=TEXTS, shebang=st.sampled_from([b"", b"#!/bin/sh\n", b"#!/bin/sh\r\n", b"\xef\xbb\xbf#!/bin/sh\n", b"\n"]))
def test_p2_a_block_behind_the_shebang_runs_first(text: bytes, shebang: bytes, tmp_path: Path) -> None:
    """Whatever a boot script does, our block at its top parses with it and is run."""
    whole = shebang + text
    assume(all(parses(shell, whole) for shell in SHELLS))
    done = blocks.put(whole, b": > canary\n", where="after-shebang", record={})
    for shell in SHELLS:
        assert parses(shell, done)
        (tmp_path / "bootlocal.sh").write_bytes(done)
        (tmp_path / "canary").unlink(missing_ok=True)
        sh(shell, "bootlocal.sh", script=b"", cwd=tmp_path)
        assert (tmp_path / "canary").exists()


@pytest.mark.parametrize("shell", SHELLS, ids=" ".join)
@pytest.mark.parametrize(
    ("text", "swallows"),
    [
        (b"", False),
        (b"a=1", False),
        (b"a=1\n", False),
        (b"# comment", False),
        (b"cat <<EOF\nEOF\n", False),
        (b"cat <<EOF\nEOF", False),
        (b"cat <<EOF\n", True),
        (b"cat <<EOF", True),
        (b"cat <<'EOF'\nx\n", True),
        (b"cat <<-EOF\n  EOF\n", True),
        (b"cat <<EOF\nEOF \n", True),
        (b"cat <<EOF\r\nEOF\n", True),
        (b"a=1 # <<EOF\n", False),
        (b"a=$((1<<2))\n", False),
    ],
)
def test_f43_the_tail_probe_tells_an_open_here_document(shell: tuple[str, ...], text: bytes, swallows: bool) -> None:
    """``sh -n`` accepts the probe only where the file's tail swallows what is appended; the scan agrees."""
    assert parses(shell, text)
    assert parses(shell, blocks.tail_probe(text)) is swallows
    assert bool(blocks.objections(text, where="end", names=NAMES)) is swallows


@pytest.mark.parametrize("shell", SHELLS, ids=" ".join)
def test_the_tail_probe_can_be_built_in_the_vm(shell: tuple[str, ...], tmp_path: Path) -> None:
    """The documented shell line makes the very same text."""
    (tmp_path / "profile").write_bytes(b"cat <<EOF\n\xff")
    done = sh(shell, "-c", r"""{ cat profile; printf '\n)\n'; }""", script=b"", cwd=tmp_path)
    assert done.stdout == blocks.tail_probe(b"cat <<EOF\n\xff")


@pytest.mark.parametrize(
    ("text", "line", "word"),
    [
        (b"exit 0\n", 1, "exit"),
        (b"#!/bin/sh\n\n  exit\n", 3, "exit"),
        (b"exit 0\r\n", 1, "exit"),
        (b"exit\r\n", 1, "exit"),
        (b"a=1\n[ -f /x ] && exit 0\n", 2, "exit"),
        (b"if [ -f /x ]; then\n\treturn\nfi\n", 2, "return"),
        (b"exec /usr/bin/something\n", 1, "exec"),
        (b"X=1 exec something\n", 1, "exec"),
        (b"case $1 in\n a) exit 3;;\nesac\n", 2, "exit"),
        (b"case $1 in exit) ;; esac\nexit\n", 2, "exit"),
        (b"command exit\n", 1, "exit"),
        (b"eval \"exit 1\"\n", 1, "exit"),
        (b"$maybe exit\n", 1, "exit"),
        (b"$1$2 command $x return\n", 1, "return"),
        (b"\\exit\n", 1, "exit"),
        (b"die() { exit 1; }\nok\nx || die\n", 3, "function"),
        (b"a() { b; }\nb() { exec z; }\na\n", 3, "function"),
        (b"{\nexit 1\n}\n", 2, "exit"),
        (b"while true; do\n sleep 1\ndone\n", 1, "endless"),
        (b"a=1\nuntil false; do sleep 1; done\n", 2, "endless"),
        (b"( while :; do sleep 1; done )\n", 1, "endless"),
        (b"readonly http_proxy\n", 1, "http_proxy"),
        (b"a=1\nreadonly x=1 HTTP_PROXY=mine\n", 2, "HTTP_PROXY"),
        (b"declare -rx http_proxy=mine\n", 1, "http_proxy"),
        (b"f() { readonly http_proxy; }\n", 1, "http_proxy"),
        (b"set -n\n", 1, "set"),
        (b"set -eno pipefail\n", 1, "set"),
        (b"set -o noexec\n", 1, "set"),
        (b"alias export=echo\n", 1, "alias"),
        (b"cat > /x <<EOF\nexit 0\n", 1, "here-document"),
        (b"a=1 \\\n", 1, "backslash"),
        (b"a=1 \\", 1, "backslash"),
        (b"a=1 \\\\\\\n", 1, "backslash"),
        (b"a=1\nb\0c\n", 2, "NUL"),
        (b"\xff\xfee\0x\0", 1, "NUL"),
        (b"echo 'open\nexit 0\n", 2, "exit"),
        (b"echo \\'\nexit 0\necho \\'\n", 2, "exit"),
        (b'echo \\"\nexit 0\necho \\"\n', 2, "exit"),
        (b'echo "a\\\\"\nexit 0\necho "b"\n', 2, "exit"),
        (b"x=`a`; exit\n", 1, "exit"),
        (b"ex\\\nit\n", 1, "exit"),
        (b"cat <<EOF", 1, "here-document"),
        (b"echo ${x:-a}\nexit\n", 2, "exit"),
        (b"echo ${x:-\\}}\nexit\necho }\n", 2, "exit"),
        (b"echo \"${x:-it's}\"\nexit\necho \"it's\"\n", 2, "exit"),
        (b"echo ${x:-$(a)}${y}\nexit\n", 2, "exit"),
        (b"x=$(( (1) ))\nexit\n", 2, "exit"),
        (b"echo $'\\''\nexit 0\n#'\n", 2, "exit"),
        (b"x=`a`\nexit\ny=`b`\n", 2, "exit"),
        (b'x="`a`"; exit\n', 1, "exit"),
        (b"case $1 in\n(a|b) :;;\n(c) exit;;\nesac\n", 3, "exit"),
        (b"cat <<EOF\nfoo\\\nEOF\nexit 0\nEOF\n", 4, "exit"),
        (b"echo $'it\\'s'\nexit 0\n", 2, "exit"),
        (b"echo $'it\\'s'\nreadonly http_proxy\n", 2, "http_proxy"),
    ],
)  # fmt: skip
def test_f41_f44_what_would_kill_the_block_is_an_objection(text: bytes, line: int, word: str) -> None:
    """The line and the word are named, and nothing else of the file."""
    first, *_ = blocks.objections(text, where="end", names=NAMES, path="/p")
    assert first.where == f"/p:{line}"
    assert word in first.what
    assert first.hint


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"a=1",
        b"#!/usr/bin/python\nx=1\n",
        b"# exit 0\n",
        b"echo exit 0\n",
        b"echo 'a\nexit 0\n'\n",
        b'echo "a\nexit 0\n"\n',
        b"cat <<EOF\nexit 0\nreadonly http_proxy\nEOF\n",
        b'echo "it \\" is\nexit 0\n"\n',
        b'echo "a\\\nb"\n',
        b"x=`\nexit 1\n`\n",
        b"x=${b:-'}\nexit 1\n'}\n",
        b'x=${b:-"}\nexit 1\n"}\n',
        b"x=${b:-$(\nexit 1\n)}\n",
        b"x=$(( (1) + (2\n)))\n(exit)\n",
        b"case x in\na) y\nesac\n(exit)\n",
        b"for i in a\ndo case $i in a) (x) ;; esac; done\n(exit)\n",
        b"x=`echo \\`\nexit 1\n\\``\n",
        b"case exit in\n(exit) :;;\nexit | b) :;;\nesac\n",
        b"cat <<'EOF'\nfoo\\\nEOF\necho exit\n",
        b"cat <<-'A B' <<\"C\"\nexit\n\tA B\nexit\nC\n",
        b"die() { exit 1; }\n",
        b"function die { exit 1; }\n",
        b"f()\n(\nexit 1\n)\nf\n",
        b"f() { return 0; }\nf\n",
        b"(exit 1)\n",
        b"x=$(echo a; exit 1)\n",
        b'x="$(case $y in a) exit 3;; esac)"\n',
        b"x=`exit 1`\n",
        b"exec 2>/dev/null\nexec 3>&1 4<&-\n",
        b"exits=1\nexit_code=3\nreturned\n",
        b"for i in exit return; do echo $i; done\n",
        b"while true; do sleep 1; break; done\n",
        b"while true; do sleep 1; done &\n",
        b"( while :; do sleep 1; done ) &\n",
        b"loop() { while :; do sleep 1; done; }\nloop2 &\n",
        b"while read x; do :; done < f\n",
        b"http_proxy=mine\nexport http_proxy\nunset HTTP_PROXY\n",
        b"readonly PATH\nreadonly my_http_proxy\n",
        b"(readonly http_proxy)\n",
        b"declare http_proxy=mine\ndeclare -x HTTP_PROXY\n",
        b"alias ll='ls -l'\necho export=1\n",
        b"set -e\nset -u\nset -- -n\n",
        b"# comment \\\n",
        b"a='\\\\'\nb=\\\\\n",
        b"a=\xff\xfe\n",
        b"a=1\r\n",
        b"\xef\xbb\xbfa=1\n",
        b"a=" + b"x" * 200_000 + b"\n",
        b"a=${b:-'}'}${c#\"}\"}\n",
        b"a=$((1<<2))\n",
        b"if :; then (a); fi\n",
    ],
)
def test_harmless_text_is_no_objection(text: bytes) -> None:
    """Words in quotes, comments, here-documents, functions that nobody calls and subshells end nothing."""
    assert blocks.objections(text, where="end", names=NAMES) == ()


def test_objections_show_nothing_of_the_file() -> None:
    """A line that is named may hold a password: it is not quoted."""
    text = b"exit hunter2secret\nreadonly http_proxy=http://u:hunter2secret@h\ncat <<hunter2secret\n"
    found = blocks.objections(text, where="end", names=NAMES)
    assert len(found) == 3
    assert not any("hunter2secret" in f"{error!r}{error}{error.hint}" for error in found)


def test_f44_assignments_before_the_block_are_told() -> None:
    """What a user has set by hand above our block is known by line and name; ours wins."""
    text = b"http_proxy=mine\nexport http_proxy\nexport HTTP_PROXY=mine\n# no_proxy=x\n"
    assert blocks.overridden(text, names=NAMES) == ((1, "http_proxy"), (3, "HTTP_PROXY"))
    assert blocks.overridden(None, names=NAMES) == ()
    assert blocks.overridden(b"echo 'open\n", names=NAMES) == ()


def test_objections_count_lines_of_the_file_as_it_is() -> None:
    """With our block in the middle the line numbers are those that an editor shows."""
    block = blocks.put(b"", PAYLOAD, where="end", record={})
    text = b"a=1\n" + block + b"unset http_proxy\nexit 0\n"
    (only,) = blocks.objections(text, where="end", names=NAMES)
    assert only.where == "line 7"
    assert text.split(b"\n")[6] == b"exit 0"


def test_an_exit_behind_a_block_that_stays_is_no_objection() -> None:
    """Our block is reached before it."""
    block = blocks.put(b"", PAYLOAD, where="end", record={})
    assert blocks.objections(block + b"exit 0\n", where="end", names=NAMES) == ()


@pytest.mark.parametrize("line", [b"#!/usr/bin/python3\n", b"#!/usr/bin/env perl\n", b"#!/bin/false", b"#!\n"])
def test_a_boot_script_in_another_language_is_refused(line: bytes) -> None:
    """A block of shell in a script of another language would break it."""
    (only,) = blocks.objections(line + b"print 1\n", where="after-shebang", names=NAMES)
    assert only.where == "line 1"


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"#!/bin/sh",
        b"#! /bin/sh -e\r\n",
        b"#!/usr/bin/env bash\n",
        b"#!/bin/busybox sh\n",
        b"# comment\n",
        b"exit 0\n",
    ],
)
def test_a_boot_script_may_do_what_it_likes_below(line: bytes) -> None:
    """At the top nothing that follows can keep our block from running."""
    assert blocks.objections(line + b"\nreadonly http_proxy\nexit 0\n", where="after-shebang", names=NAMES) == ()
    assert blocks.objections(b"\0", where="after-shebang", names=NAMES)


@given(TEXTS | st.binary())
def test_the_scan_never_fails_otherwise(text: bytes) -> None:
    """Any bytes: an answer, or Lost; every line number is one of the text's."""
    try:
        scan = shellscan.scan(text)
    except shellscan.Lost:
        return
    assert all(1 <= command.line <= text.count(b"\n") + 1 for command in scan.commands)


@pytest.mark.parametrize(
    "piece", [b"$(", b'"$(', b"${x:-", b"( ", b"{ ", b"if :; then ", b"case a in a) ", b"`", b"\\", b"<<E "]
)
def test_deep_and_long_input_is_answered(piece: bytes) -> None:
    """Twenty thousand of anything neither exhausts the stack nor hangs."""
    blocks.objections(piece * 20_000, where="end", names=NAMES)


# The shape of what docker-machine's provisioner writes for a boot2docker VM that was made with --engine-env.
DOCKER_MACHINE_PROFILE = b"""
EXTRA_ARGS='
--label provider=virtualbox

'
CACERT=/var/lib/boot2docker/ca.pem
DOCKER_HOST='-H tcp://0.0.0.0:2376'
DOCKER_STORAGE=overlay2
DOCKER_TLS=auto
SERVERKEY=/var/lib/boot2docker/server-key.pem
SERVERCERT=/var/lib/boot2docker/server.pem

export "HTTP_PROXY=http://192.168.99.1:3128"
"""


def test_f66_docker_machines_profile_carries_our_block(tmp_path: Path) -> None:
    """Its own proxy line stays and is told, ours has effect behind it, and taking ours out gives its bytes back."""
    assert lives(DOCKER_MACHINE_PROFILE)
    assert blocks.overridden(DOCKER_MACHINE_PROFILE, names=NAMES) == ((13, "HTTP_PROXY"),)
    done = blocks.put(DOCKER_MACHINE_PROFILE, PAYLOAD, where="end", record={})
    assert all(sourced(shell, done, tmp_path).stdout == WANTED for shell in SHELLS)
    assert blocks.take(done) == DOCKER_MACHINE_PROFILE


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (b'EXTRA_ARGS="-D"\r\n', [(1, "EXTRA_ARGS")]),
        (b"#!/bin/sh\n\nexport DOCKER_OPTS='-D\r\n--tls\r\n'\n", [(3, "DOCKER_OPTS")]),
        (b"if true; then\n DOCKER_HOST=x\r\nfi\n", [(2, "DOCKER_HOST")]),
        (b"export TZ=UTC\r\nexport HTTP_PROXY=x\r\n", []),
        (b'EXTRA_ARGS="-D"\n# EXTRA_ARGS=x\r\n', []),
        (b"EXTRA_ARGS=-D\n\r\n", []),
        (b"if EXTRA_ARGS=x\r\n", [(1, "EXTRA_ARGS")]),
    ],
)
def test_variables_of_dockers_with_a_carriage_return(text: bytes, found: list[tuple[int, str]]) -> None:
    """Each is named with its line; other people's variables, comments and bare line ends do Docker no harm."""
    assert shellharm.spoiled(text) == found
