"""Ed25519 keys in files: PKCS#8 PEM at mode 0600, and the public half as PEM in `<name>.pub` beside it.

Both are what stock OpenSSL reads. Whoever needs a signer takes `protocols.envelope.Signer`, so a key in a
security module can stand in for the file.
"""

import os
import stat
from pathlib import Path
from typing import Final

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)

from protocols.envelope import KeySigner, key_id
from protocols.errors import InputError

MAX_KEY_BYTES: Final = 16 << 10
"""Largest key file that is read, in bytes."""


def public_path(path: Path) -> Path:
    """Return where the public half of the key in `path` lies: `dpo.pem` → `dpo.pem.pub`."""
    return path.with_name(path.name + ".pub")


def new_key(path: Path) -> bytes:
    """Make an Ed25519 key, write it to `path` (mode 0600) and its public half to `<path>.pub`.

    Neither file is ever overwritten: a key that signs for someone is not replaced by accident.

    Returns:
        The raw 32-byte public key.

    Raises:
        InputError: a file of that name exists, or the folder cannot be written.
    """
    private = Ed25519PrivateKey.generate()
    public = private.public_key()
    _write_new(public_path(path), public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo), 0o644)
    try:
        _write_new(path, private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()), 0o600)
    except InputError:
        public_path(path).unlink(missing_ok=True)
        raise
    return public.public_bytes_raw()


def load_signer(path: Path) -> KeySigner:
    """Return a signer that holds the private key in `path`.

    Raises:
        InputError: no such file, readable by others than its owner, or not an Ed25519 key in PKCS#8 PEM.
    """
    try:
        key = load_pem_private_key(_read(path, private=True), password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        # TypeError is the library's answer to an encrypted key without a password.
        raise _not_a_key(path, "an unencrypted Ed25519 private key in PKCS#8 PEM") from None
    if not isinstance(key, Ed25519PrivateKey):
        raise _not_a_key(path, "an unencrypted Ed25519 private key in PKCS#8 PEM")
    return KeySigner(key)


def load_public(path: Path) -> bytes:
    """Return the raw 32-byte public key in the PEM file `path`.

    Raises:
        InputError: no such file, or not an Ed25519 public key in PEM.
    """
    try:
        key = load_pem_public_key(_read(path, private=False))
    except (ValueError, UnsupportedAlgorithm):
        raise _not_a_key(path, "an Ed25519 public key in PEM") from None
    if not isinstance(key, Ed25519PublicKey):
        raise _not_a_key(path, "an Ed25519 public key in PEM")
    return key.public_bytes_raw()


def fingerprint(public_key: bytes) -> str:
    """Return the key's id in sixteen groups of four hex digits, for two people to compare aloud."""
    digits = key_id(public_key).removeprefix("sha256:")
    return " ".join(digits[at : at + 4] for at in range(0, len(digits), 4))


def _read(path: Path, *, private: bool) -> bytes:
    try:
        # Opened once and judged by descriptor: the name may not change hands between check and read.
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise _not_a_key(path, "a regular file")
            if private and status.st_mode & 0o077:
                raise InputError(
                    f"key file {path.name} has mode {stat.S_IMODE(status.st_mode):04o},"
                    " expected 0600: others on this machine can read it",
                    code="key-exposed",
                    hint=f"run chmod 600 {path}; if others had access, make a new key",
                )
            data = file.read(MAX_KEY_BYTES + 1)
    except OSError as error:
        raise InputError(
            f"key file {path} cannot be read ({error.strerror})",
            code="key-unreadable",
            hint="make one with minshu-policy key new, or correct the path",
        ) from None
    if len(data) > MAX_KEY_BYTES:
        raise _not_a_key(path, f"a file of at most {MAX_KEY_BYTES} bytes")
    return data


def _write_new(path: Path, data: bytes, mode: int) -> None:
    """Create `path` with `data`, durably; whatever goes wrong leaves no file behind."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, mode)
    except FileExistsError:
        raise InputError(
            f"{path} exists already, a key is never overwritten",
            code="key-exists",
            hint="choose another name, or move the old key away if it is no longer used",
        ) from None
    except OSError as error:
        raise InputError(
            f"{path} cannot be written ({error.strerror})",
            code="key-unwritable",
            hint="check that the folder exists and is yours",
        ) from None
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        path.unlink(missing_ok=True)
        raise InputError(
            f"{path} cannot be written ({error.strerror})",
            code="key-unwritable",
            hint="check the space left on the disk",
        ) from None


def _not_a_key(path: Path, expected: str) -> InputError:
    return InputError(
        f"{path.name} is not {expected}",
        code="bad-key",
        hint="keys are made by minshu-policy key new; the public half ends in .pub",
    )
