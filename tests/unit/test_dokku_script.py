"""The script that talks to Dokku in the VM: a constant text that parses in every shell."""

from __future__ import annotations

import subprocess

import pytest

from vmproxy.machines import shell


@pytest.mark.parametrize("words", [("dash",), ("busybox", "sh"), ("bash", "--posix"), ("bash",)], ids=" ".join)
def test_it_parses(words: tuple[str, ...]) -> None:
    """`sh -n` in dash, busybox ash, bash."""
    done = subprocess.run([*words, "-n"], input=shell._text("dokku.sh").encode(), capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")


def test_no_word_of_its_data_is_evaluated() -> None:
    """No eval, no shell of its own, and the words of a call go to dokku as they are."""
    lines = shell._text("dokku.sh").splitlines()
    assert not [line for line in lines if "eval" in line or "sh -c" in line]
    assert len([line for line in lines if " dokku " in line and "have dokku" not in line]) == 1
    assert [line for line in lines if 'dokku "$@" <' in line]
