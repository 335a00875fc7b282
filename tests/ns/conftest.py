"""Namespace VMs for the tests. They need root, and say so instead of being skipped."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.lab.hostside import connect, listen
from tests.lab.nsvm import NamespaceVM
from tests.lab.proxy import LabProxy
from tests.ns.endings import Base
from tests.ns.story import Vmproxy

HostProxy = Callable[..., LabProxy]


@pytest.fixture(scope="module")
def vm() -> Iterator[NamespaceVM]:
    """A VM with Docker and the image ``busybox``, iptables-nft; one for all tests of a file."""
    with NamespaceVM() as machine:
        machine.import_image()
        yield machine


@pytest.fixture(scope="module")
def legacy_vm() -> Iterator[NamespaceVM]:
    """As ``vm``, with iptables-legacy."""
    with NamespaceVM(iptables="legacy") as machine:
        machine.import_image()
        yield machine


@pytest.fixture
def fresh_vm() -> Iterator[NamespaceVM]:
    """A VM with Docker of the test's own."""
    with NamespaceVM() as machine:
        yield machine


@pytest.fixture
def bare_vm() -> Iterator[NamespaceVM]:
    """A VM of the test's own with sshd and no Docker, for quick tests."""
    with NamespaceVM(docker=False) as machine:
        yield machine


@pytest.fixture
def stub_vm() -> Iterator[NamespaceVM]:
    """A VM of the test's own whose dockerd only sleeps, for interruption tests by the hundred."""
    with NamespaceVM(docker="stub") as machine:
        yield machine


@pytest.fixture(scope="module")
def as_booted() -> Iterator[Base]:
    """A VM with the stub, for all tests of a file that use ``base``."""
    with NamespaceVM(docker="stub") as machine:
        yield Base(machine)


@pytest.fixture
def base(as_booted: Base) -> Iterator[Base]:
    """A VM as it came up, and so again after the test, without a boot."""
    yield as_booted
    as_booted.reset()


@pytest.fixture
def vmproxy(base: Base, tmp_path: Path) -> Vmproxy:
    """vmproxy on the VM of ``base``, with a HOME of the test's own."""
    return Vmproxy(base.machine, tmp_path)


@pytest.fixture
def host_proxy() -> Iterator[HostProxy]:
    """``host_proxy(vm, port=8123, mode="proxy", credentials="")``: a proxy on that VM's host, at its 127.0.0.1."""
    with contextlib.ExitStack() as stack:

        def start(machine: NamespaceVM, *, port: int = 8123, mode: str = "proxy", credentials: str = "") -> LabProxy:
            network = machine.surroundings.host
            proxy = LabProxy(
                listen(network, "127.0.0.1", port),
                mode=mode,
                credentials=credentials,
                dial=lambda host, to_port: connect(network, host, to_port, seconds=5.0),
            )
            return stack.enter_context(proxy)

        yield start
