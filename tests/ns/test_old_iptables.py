"""F18: iptables before -w, -C and iptables-restore's -w: the same rules in the end, now and at the next boot."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.nsvm import NamespaceVM
from tests.ns.story import BOOTLOCAL, Vmproxy, dump, files, host_proxy, ours, settled, shim

# What the old programs say and how they end (iptables.c and iptables-restore.c of the versions named); the stub for
# Docker is of today and may use what there is.
_TODAY = 'case $(cat /proc/$PPID/comm) in dockerd) exec /usr/sbin/xtables-nft-multi "$0" "$@" ;; esac'
_RESTORE = """
me=iptables-restore
last=''
for word; do
  if [ "$last" = -w ]; then echo "Can't open $word: No such file or directory" >&2; exit 1; fi
  if [ "$word" = -w ]; then echo "iptables-restore: invalid option -- 'w'" >&2; fi
  last=$word
done
[ "$last" != -w ] || exit 1
exec /usr/sbin/xtables-nft-multi iptables-restore "$@"
"""
_NO_OPTION = """
for word; do
  case $word in -w|-C) echo "iptables v1.4.7: unknown option \\`$word'" >&2; exit 2 ;; esac
done
exec /usr/sbin/xtables-nft-multi iptables "$@"
"""
_NO_SECONDS = """
last=''
for word; do
  if [ "$last" = -w ]; then case $word in [0-9]*) echo "Bad argument \\`$word'" >&2; exit 2 ;; esac; fi
  last=$word
done
exec /usr/sbin/xtables-nft-multi iptables "$@"
"""
VERSIONS = {"1.4.7, no -w and no -C": _NO_OPTION, "1.4.21, -w without seconds": _NO_SECONDS}


@pytest.fixture(params=VERSIONS)
def old(request: pytest.FixtureRequest) -> Iterator[NamespaceVM]:
    """A VM with one iptables, an old one, and a proxy on its host."""
    with NamespaceVM(docker="stub") as machine, host_proxy(machine):
        for name in ("iptables", "iptables-restore", "ip6tables", "ip6tables-restore"):
            for variant in ("nft", "legacy"):
                first, dash, tail = name.partition("-")
                for end in {f"{dash}{tail}", "-save"}:
                    machine.path(f"/usr/sbin/{first}-{variant}{end}").unlink(missing_ok=True)
        shim(machine, "iptables", f"{_TODAY}\n{VERSIONS[str(request.param)]}")
        shim(machine, "iptables-restore", f"{_TODAY}\n{_RESTORE}")
        machine.path("/usr/local/sbin/iptables-save").symlink_to("/usr/sbin/xtables-nft-multi")
        yield machine


def test_f18_old_iptables_ends_as_the_modern_one(old: NamespaceVM, tmp_path: Path) -> None:
    """apply, a no-op, the boot script from nothing, another port, remove: the rules are those of a modern VM."""
    with NamespaceVM(docker="stub") as modern, host_proxy(modern):
        assert Vmproxy(modern, tmp_path).apply("--no-verify").code == 0
        wanted = ours(dump(modern))
    before, disk = dump(old), files(old)
    vmproxy = Vmproxy(old, tmp_path)
    ran = vmproxy.apply("--no-verify")
    assert ran.code == 0, ran
    assert ours(dump(old)) == wanted
    applied = dump(old)
    assert "nothing to do" in vmproxy.apply().all
    old.run(["sh", BOOTLOCAL])
    settled(old)
    assert sorted(dump(old)) == sorted(applied)
    assert b"option" not in old.run("cat /var/log/vmproxy.log").stdout
    old.run("iptables -t nat -F VMPROXY-PREROUTING && iptables -F VMPROXY-FORWARD")
    assert vmproxy.status().code == 1
    old.run(["sh", BOOTLOCAL])
    settled(old)
    assert sorted(ours(dump(old))) == sorted(wanted)
    assert vmproxy.apply("--listen-port", "18123", "--no-verify").code == 0
    ran = vmproxy.remove()
    assert ran.code == 0, ran
    assert (dump(old), files(old)) == (before, disk)


def test_f18_the_lock_of_others_is_waited_for(old: NamespaceVM, tmp_path: Path) -> None:
    """A restore that takes no lock is run under the others' lock: held by another program it is waited for."""
    old.run("exec flock /run/xtables.lock sleep 2 >/dev/null 2>&1 &")
    vmproxy = Vmproxy(old, tmp_path)
    ran = vmproxy.apply("--no-verify")
    assert ran.code == 0, ran
    assert old.run("flock -n /run/xtables.lock true", check=False).returncode == 0
    assert ours(dump(old))
