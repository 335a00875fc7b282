"""Private key files: OpenSSH's format and PEM; RSA, ed25519, ECDSA; encrypted or not; with a certificate beside it."""

from __future__ import annotations

import base64
import copy
import io
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import paramiko

FILE_LIMIT_BYTES = 64 << 10


class NeedsPassphraseError(Exception):
    """The key file is encrypted."""


class BadKeyError(Exception):
    """The key file cannot be used; the text is short and has no secret."""


def load_key(path: Path, passphrase: str = "") -> paramiko.PKey:
    """A private key, with the certificate beside it. Raises OSError, NeedsPassphraseError, BadKeyError.

    paramiko's own reader loads a key twice: two times the passphrase's slow hash, or the proof of an RSA key's primes,
    which takes longer than the log-in. Here it is once, and without that proof, as ssh takes the user's own file.
    """
    from cryptography.exceptions import UnsupportedAlgorithm

    data = path.read_bytes()
    try:
        key = copy.copy(_key(data, passphrase.encode() if passphrase else None))
        certificate = Path(f"{path}-cert.pub")
        if certificate.exists():
            key.load_certificate(str(certificate))
    except TypeError as error:
        if not passphrase:
            raise NeedsPassphraseError from error
        raise BadKeyError("not a key file") from error
    except UnsupportedAlgorithm as error:
        raise BadKeyError("a kind of key that is not supported") from error
    except Exception as error:  # cryptography raises a dozen kinds for a damaged or foreign file
        raise BadKeyError("wrong passphrase" if passphrase else "not a key file") from error
    return key


@lru_cache(maxsize=8)  # many VMs take one key, and a passphrase's slow hash takes a tenth of a second each time
def _key(data: bytes, secret: bytes | None) -> paramiko.PKey:
    """The key of a file in OpenSSH's format or PEM. Raises what cryptography raises; TypeError: it is encrypted."""
    import paramiko
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

    loaded: Any
    if b"BEGIN OPENSSH PRIVATE KEY" in data:
        loaded = serialization.load_ssh_private_key(data, secret, unsafe_skip_rsa_key_validation=True)
    else:
        loaded = serialization.load_pem_private_key(data, secret, unsafe_skip_rsa_key_validation=True)
    if isinstance(loaded, rsa.RSAPrivateKey):
        return paramiko.RSAKey(key=loaded)
    if not isinstance(loaded, ed25519.Ed25519PrivateKey | ec.EllipticCurvePrivateKey):
        raise UnsupportedAlgorithm(type(loaded).__name__)
    plain = loaded.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    )
    kind = paramiko.Ed25519Key if isinstance(loaded, ed25519.Ed25519PrivateKey) else paramiko.ECDSAKey
    return kind.from_private_key(io.StringIO(plain.decode()))


def public_blob(path: Path) -> bytes:
    """The public half from the file beside the key, b"" where there is none."""
    try:
        with path.with_name(path.name + ".pub").open("rb") as stream:
            return base64.b64decode(stream.read(FILE_LIMIT_BYTES).split()[1], validate=True)
    except (OSError, ValueError, IndexError):
        return b""
