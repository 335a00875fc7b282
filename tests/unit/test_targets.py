"""--vm: what a text means on this host, with a home of the test's own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from vmproxy import hostproc, targets
from vmproxy.errors import UsageError


@pytest.fixture
def environ(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """HOME is an empty directory and no port is open."""
    monkeypatch.setattr(hostproc, "port_open", lambda *_args, **_kwargs: False)
    return {"HOME": str(tmp_path)}


def machine(environ: dict[str, str], name: str) -> None:
    """docker-machine has a VM of that name."""
    directory = Path(environ["HOME"]) / ".docker" / "machine" / "machines" / name
    directory.mkdir(parents=True)
    driver = {"SSHUser": "docker", "SSHPort": 50022, "StorePath": str(directory.parents[1]), "MachineName": name}
    (directory / "config.json").write_text(json.dumps({"DriverName": "virtualbox", "Driver": driver}))


def classic(environ: dict[str, str]) -> None:
    """The classic VM's key is there."""
    (Path(environ["HOME"]) / ".ssh").mkdir()
    (Path(environ["HOME"]) / ".ssh" / "id_boot2docker").write_bytes(b"key")


def test_bare_name_asks_every_provider(environ: dict[str, str]) -> None:
    """A name that one provider has is that VM."""
    machine(environ, "dev")
    target = targets.resolve("dev", environ=environ)
    assert (target.provider, target.port) == ("docker-machine", 50022)


def test_bare_boot2docker_is_the_classic_vm_first(environ: dict[str, str]) -> None:
    """The classic VM where it is there, else docker-machine's machine of that name (DESIGN section 2)."""
    machine(environ, "boot2docker")
    assert targets.resolve("boot2docker", environ=environ).provider == "docker-machine"
    classic(environ)
    assert targets.resolve("boot2docker", environ=environ).provider == "boot2docker"
    assert targets.resolve("docker-machine:boot2docker", environ=environ).provider == "docker-machine"


def test_bare_boot2docker_with_a_profile_that_is_gone(environ: dict[str, str]) -> None:
    """A named profile that is not there is said, unless docker-machine has the VM."""
    environ["BOOT2DOCKER_PROFILE"] = "/nowhere/profile"
    with pytest.raises(UsageError, match="/nowhere/profile"):
        targets.resolve("boot2docker", environ=environ)
    machine(environ, "boot2docker")
    assert targets.resolve("boot2docker", environ=environ).provider == "docker-machine"


def test_two_answers_are_an_error_that_lists_them(environ: dict[str, str]) -> None:
    """A name that two providers have is exit 2 with both."""
    machine(environ, "boot2docker-vm")
    classic(environ)
    with pytest.raises(UsageError) as caught:
        targets.resolve("boot2docker-vm", environ=environ)
    assert caught.value.hint == "one of: boot2docker:boot2docker-vm, docker-machine:boot2docker-vm"


def test_unknown_name_lists_the_known_ones(environ: dict[str, str]) -> None:
    """Exit 2 with the names there are, and with the other ways to say it where there are none."""
    with pytest.raises(UsageError) as caught:
        targets.resolve("nope", environ=environ)
    assert "ssh:ALIAS" in caught.value.hint
    machine(environ, "dev")
    with pytest.raises(UsageError) as caught:
        targets.resolve("docker-machine:nope", environ=environ)
    assert caught.value.hint == "known: dev"


@pytest.mark.parametrize("text", ["", "-x", "a\x1bb", "nosuch:x", "local:x", "docker:-x", "docker:gone", "initrd:"])
def test_texts_that_name_no_vm(environ: dict[str, str], text: str) -> None:
    """Options, controls, unknown providers and kinds that do not exist yet are exit 2."""
    with pytest.raises(UsageError) as caught:
        targets.resolve(text, environ=environ)
    assert str(caught.value).isprintable()


def test_other_kinds(environ: dict[str, str]) -> None:
    """ssh://, rootfs: and local need nothing of the host."""
    assert targets.resolve("ssh://docker@vm:2022", environ={}).port == 2022
    assert targets.resolve("ssh:dev", environ={}).host == "dev"
    assert targets.resolve("rootfs:/x", environ={}).directory == "/x"
    local = targets.resolve("local", environ={})
    assert (local.transport, local.machine, local.name) == ("local", "native", "local")
    engine = targets.resolve("docker:", environ={})
    assert (engine.transport, engine.machine, engine.context) == ("docker", "shell", "")
    assert targets.resolve("docker:default", environ={}).context == "default"


def test_t12_home_missing(environ: dict[str, str]) -> None:
    """Without HOME a bare name is a clean exit 2."""
    with pytest.raises(UsageError, match="HOME is not set"):
        targets.resolve("dev", environ={})


def test_names_for_completion(environ: dict[str, str]) -> None:
    """Every provider's names, sorted; a host without any gives none, and no error."""
    assert targets.names(environ=environ) == ()
    machine(environ, "dev")
    machine(environ, "a")
    classic(environ)
    assert targets.names(environ=environ) == ("a", "boot2docker", "dev")
    assert targets.names(environ={}) == ()
