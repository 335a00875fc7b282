"""A security key (FIDO) in software, as a middleware of OpenSSH's: ``securitykey.c``. No hardware, no protection.

::

    device = SecurityKey(tmp_path)
    key = device.make(tmp_path / "id_ecdsa_sk")       # the public half is beside it
    ssh -o SecurityKeyProvider={device.library} -i {key} …
    device.signatures                                 # the flags of each, 1 for one that a touch was asked for
    device.put("waits"); device.touch()               # a person: each touch is good for one signature
"""

from __future__ import annotations

import subprocess
from pathlib import Path

PIN = "2468"
_SOURCE = Path(__file__).resolve().parent / "securitykey.c"


class SecurityKey:
    """One device; its library and its state are files of ``directory``. Needs gcc, OpenSSH 9 and libcrypto 3."""

    def __init__(self, directory: Path) -> None:
        self.library = directory / "device.so"
        argv = ["gcc", "-Wall", "-Wextra", "-O1", "-shared", "-fPIC", "-o", str(self.library), str(_SOURCE)]
        subprocess.run([*argv, "-l:libcrypto.so.3"], check=True, timeout=120)

    def make(self, path: Path, *options: str, phrase: str = "") -> Path:
        """A new key in that file, the public half beside it; ``options`` are more words of ssh-keygen's."""
        argv = ["ssh-keygen", "-q", "-t", "ecdsa-sk", "-w", str(self.library), "-N", phrase, "-C", path.name]
        subprocess.run([*argv, "-f", str(path), *options], check=True, timeout=60)
        return path

    @property
    def signatures(self) -> list[int]:
        """The flags that each signature was asked for with; the lowest bit is a touch (SSH_SK_USER_PRESENCE_REQD)."""
        words = [line.split() for line in self._beside("log").read_text().splitlines()]
        return [int(flags, 16) for what, flags, _counter in words if what == "sign"]

    def fingerprint(self, name: str) -> str:
        """``SHA256:…`` of a key beside the library."""
        argv = ["ssh-keygen", "-l", "-f", str(self.library.with_name(f"{name}.pub"))]
        return subprocess.run(argv, check=True, timeout=60, capture_output=True, text=True).stdout.split()[1]

    def put(self, *states: str) -> None:
        """The device is so from now on: ``unplugged``, ``waits``, ``careless``; and in no other way."""
        for state in ("unplugged", "waits", "careless", "touch"):
            if state in states:
                self._beside(state).touch()
            else:
                self._beside(state).unlink(missing_ok=True)

    def touch(self) -> None:
        """One touch: of the signature that waits for it, or of the next one; ``felt`` when one has taken it."""
        self._beside("touch").touch()

    @property
    def felt(self) -> bool:
        """Whether a signature has taken the last touch."""
        return not self._beside("touch").exists()

    def _beside(self, ending: str) -> Path:
        return self.library.with_name(f"{self.library.name}.{ending}")
