"""``vmproxy detect-gateway`` of recorded tables, and what it says of VMs."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from vmproxy import converge
from vmproxy.cli.edge import run
from vmproxy.errors import NoGateway, Unreachable
from vmproxy.machines import native
from vmproxy.model import Route
from vmproxy.routes import Sighting, choose_gateway

FOLDER = Path(__file__).parents[2] / "fixtures" / "routes"
ONE = str(FOLDER / "one-default" / "ip.txt")
TWO = str(FOLDER / "two-metrics" / "route.txt")
EQUAL = str(FOLDER / "equal-metrics" / "ip.txt")


def command(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of one run."""
    code = run(["detect-gateway", *argv])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_the_address_alone_on_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    """stdout holds the address and nothing else, so that a script can use it."""
    assert command(capsys, "--table", ONE) == (0, "10.0.2.2\n", "")


def test_table_from_stdin(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """``--table -`` reads stdin as bytes: an `ip route save` stream too."""
    for name in ("ip.txt", "ip-save.bin"):
        data = (FOLDER / "one-default" / name).read_bytes()
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(data)))
        assert command(capsys, "--table", "-") == (0, "10.0.2.2\n", "")


def test_verbose_says_why(capsys: pytest.CaptureFixture[str]) -> None:
    """``-v`` adds the reason on stderr."""
    code, out, err = command(capsys, "--table", TWO, "-v")
    assert (code, out) == (0, "10.0.2.254\n")
    assert "the lowest metric, 100, of 2 default routes" in err


def test_all_lists_every_candidate(capsys: pytest.CaptureFixture[str]) -> None:
    """``--all``: address, interface, metric, the chosen one first."""
    assert command(capsys, "--table", TWO, "--all") == (0, "10.0.2.254 eth0 100\n192.168.7.1 wlan0 600\n", "")


def test_f08_equal_metrics(capsys: pytest.CaptureFixture[str]) -> None:
    """Equal metrics are exit 6: nothing on stdout, both candidates on stderr, and what takes the one chosen."""
    code, out, err = command(capsys, "--table", EQUAL)
    assert (code, out) == (6, "")
    assert err.startswith("vmproxy: error: 2 default routes share the metric 100: 10.0.2.2 dev eth0")
    assert "192.168.7.1 dev eth1" in err
    assert "hint: say which where it is used: vmproxy apply --gateway IP\n" in err
    assert len(err.splitlines()) == 2


@pytest.mark.parametrize("path", ["/nonexistent/table", "/"])
def test_a_table_that_cannot_be_read_is_said_with_what_to_give(path: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit 2, the path, and a hint without a word to fill in but the file."""
    code, out, err = command(capsys, "--table", path)
    assert (code, out) == (2, "")
    assert f"({path})\nhint: --table FILE, or - for stdin\n" in err


def test_f08_all_lists_candidates_of_an_undecided_table(capsys: pytest.CaptureFixture[str]) -> None:
    """``--all`` lists them on stdout even where none can be chosen, and the exit code still says so."""
    code, out, _err = command(capsys, "--table", EQUAL, "--all")
    assert (code, out) == (6, "10.0.2.2 eth0 100\n192.168.7.1 eth1 100\n")


@pytest.mark.parametrize("world", ["no-default", "ppp", "ipv6-link-local-only"])
def test_f09_no_gateway(world: str, capsys: pytest.CaptureFixture[str]) -> None:
    """No default route, one without gateway, and link-local IPv6 alone are exit 6."""
    code, out, err = command(capsys, "--table", str(FOLDER / world / "ip-all.txt"))
    assert (code, out) == (6, "")
    assert "--gateway" in err


def test_json_of_a_choice(capsys: pytest.CaptureFixture[str]) -> None:
    """The object of --json: gateway, interface, family, reason, candidates, ok, exit, code."""
    code, out, err = command(capsys, "--table", TWO, "--json")
    assert (code, err) == (0, "")
    assert json.loads(out) == {
        "gateway": "10.0.2.254",
        "interface": "eth0",
        "family": "inet",
        "reason": "the lowest metric, 100, of 2 default routes",
        "candidates": [
            {"gateway": "10.0.2.254", "interface": "eth0", "family": "inet", "metric": 100},
            {"gateway": "192.168.7.1", "interface": "wlan0", "family": "inet", "metric": 600},
        ],
        "ok": True,
        "exit": 0,
        "code": "OK",
        "hint": "",
    }


@pytest.mark.parametrize(
    ("table", "code", "name", "count"),
    [(EQUAL, 6, "E_GATEWAY", 2), (__file__, 6, "E_REFUSED", 0), ("/nowhere/at/all", 2, "E_USAGE", 0)],
)
def test_json_of_an_error(table: str, code: int, name: str, count: int, capsys: pytest.CaptureFixture[str]) -> None:
    """The object has the same keys where there is no choice, with nulls and the code."""
    status, out, _err = command(capsys, "--table", table, "--json")
    found = json.loads(out)
    assert (status, found["exit"], found["code"], found["ok"]) == (code, code, name, False)
    assert (found["gateway"], found["interface"], found["family"]) == (None, None, None)
    assert found["reason"]
    assert len(found["candidates"]) == count


def test_table_and_vm_exclude_each_other(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Both on the command line are exit 2; a VM that merely stands in the settings gives way."""
    assert command(capsys, "--table", ONE, "--vm", "default")[0] == 2
    monkeypatch.setenv("VMPROXY_VM", "default")
    assert command(capsys, "--table", ONE) == (0, "10.0.2.2\n", "")


def test_elsewhere_than_on_linux(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Without --vm on macOS or Windows: exit 2 with the --vm hint, and nothing tried."""
    monkeypatch.setattr("sys.platform", "darwin")
    code, out, err = command(capsys)
    assert (code, out) == (2, "")
    assert "--vm" in err


class Asked:
    """Stands in for the network of ``native.reach``: which addresses take a connection."""

    def __init__(self, *answering: str) -> None:
        self.answering = answering
        self.asked: list[tuple[str, int]] = []

    def __call__(self, routes: tuple[Route, ...], port: int) -> tuple[str, ...]:
        self.asked += [(route.gateway, port) for route in routes]
        return tuple(route.gateway for route in routes if route.gateway in self.answering)


def test_probe_says_who_answers(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """``--probe`` asks every candidate and says who answers; the address alone stays on stdout."""
    network = Asked("192.168.7.1")
    monkeypatch.setattr(native, "reach", network)
    code, out, err = command(capsys, "--table", TWO, "--probe", "8123")
    assert (code, out) == (0, "10.0.2.254\n")
    assert network.asked == [("10.0.2.254", 8123), ("192.168.7.1", 8123)]
    assert "10.0.2.254 dev eth0 metric 100 does not answer at port 8123" in err
    assert "192.168.7.1 dev wlan0 metric 600 answers at port 8123" in err
    assert command(capsys, "--table", TWO, "--probe", "8123", "--all")[1] == (
        "10.0.2.254 eth0 100 silent\n192.168.7.1 wlan0 600 answers\n"
    )
    found = json.loads(command(capsys, "--table", TWO, "--probe", "8123", "--json")[1])
    assert [candidate["answers"] for candidate in found["candidates"]] == [False, True]


def test_probe_names_the_one_that_answers(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Where metrics do not decide and exactly one candidate answers, the hint names it; the choice stays the user's."""
    monkeypatch.setattr(native, "reach", Asked("192.168.7.1"))
    code, _out, err = command(capsys, "--table", EQUAL, "--probe", "8123")
    assert code == 6
    assert "hint: vmproxy apply --gateway 192.168.7.1, the only one that answers\n" in err


def fake_vms(target: str, _settings: object, *, probe_port: int | None, progress: object, ask: object) -> Sighting:
    """Three VMs: one with a gateway, one that cannot be reached, one whose table does not decide."""
    if target in ("away", "docker:"):
        raise Unreachable("no answer", where="192.0.2.9:22")
    if target == "torn":
        return Sighting(error=NoGateway("two readings differ", hint="--gateway IP"))
    route = Route(destination="0.0.0.0/0", gateway="10.0.2.2", interface="eth0")
    return Sighting(choice=choose_gateway([route]), candidates=(route,))


def test_several_vms(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """One VM gives its address alone; of several each line names its VM, an error ends no other, the worst counts."""
    monkeypatch.setattr(converge, "detect_gateway", fake_vms)
    assert command(capsys, "--vm", "one") == (0, "10.0.2.2\n", "")
    code, out, err = command(capsys, "--vm", "away,one,torn,two")
    assert (code, out) == (6, "10.0.2.2 one\n10.0.2.2 two\n")
    assert "error: away: no answer (192.0.2.9:22)" in err
    assert "error: torn: two readings differ" in err
    assert "error: docker: no answer (192.0.2.9:22)" in command(capsys, "--vm", "docker:")[2]
    found: dict[str, Any] = json.loads(command(capsys, "--vm", "away,one", "--json")[1])
    assert (found["ok"], found["exit"], found["code"]) == (False, 4, "E_UNREACHABLE")
    assert [(vm["vm"], vm["gateway"]) for vm in found["vms"]] == [("away", None), ("one", "10.0.2.2")]


def test_a_table_of_text_imports_nothing_heavy() -> None:
    """``--table`` of text loads neither pyroute2 nor paramiko (PERFORMANCE)."""
    script = (
        "import sys; from vmproxy.cli.edge import run; code = run(sys.argv[1:]);"
        "heavy = sorted({name.partition('.')[0] for name in sys.modules} & {'pyroute2', 'paramiko', 'asyncio', 'ssl'});"
        "sys.exit(f'{code} {heavy}')"
    )
    argv = [sys.executable, "-c", script, "detect-gateway", "--table", ONE]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False, cwd=FOLDER.parents[1])
    assert (done.stdout, done.stderr.strip()) == ("10.0.2.2\n", "0 []")
