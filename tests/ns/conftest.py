"""Namespace VMs for the tests. They need root, and say so instead of being skipped."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.lab.nsvm import NamespaceVM


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
