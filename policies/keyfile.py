"""Ed25519 keys in files: PKCS#8 PEM at mode 0600, and the public half as PEM in `<name>.pub` beside it.

With a passphrase the private half is an `ENCRYPTED PRIVATE KEY` (RFC 5958): PBES2 (RFC 8018) with scrypt
(RFC 7914) and AES-256-CBC. Stock OpenSSL reads every file written here. Read are also files that OpenSSL
encrypts by default, PBES2 with PBKDF2; older schemes are refused.

Whoever needs a signer takes `protocols.envelope.Signer`, so a key in a security module can stand in for the
file: see `policies.signers`.
"""

import base64
import getpass
import os
import re
import stat
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final, Literal

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat import asn1
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CBC
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt
from cryptography.hazmat.primitives.padding import PKCS7
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_der_private_key,
    load_pem_private_key,
    load_pem_public_key,
)
from cryptography.x509 import ObjectIdentifier

from protocols.envelope import KeySigner, key_id
from protocols.errors import InputError

MAX_KEY_BYTES: Final = 16 << 10
"""Largest key file that is read, in bytes."""

MAX_SECRET_BYTES: Final = 1023
"""Longest passphrase or PIN, in bytes: what OpenSSL takes. A file may end it with one newline."""

MIN_PASSPHRASE_CHARACTERS: Final = 12

SCRYPT_N: Final = 1 << 14
SCRYPT_R: Final = 8
SCRYPT_P: Final = 8
"""Cost of the keys written here: 16 MiB, done eight times in turn.

OpenSSL gives scrypt 32 MiB when it opens a key, so N = 2^15 at r = 8 would already lock out `openssl pkey`.
What N may not carry, p does: N·r·p is that of N = 2^17, r = 8, p = 1, OWASP's first choice, and above the
N = 2^14, r = 8, p = 5 that OWASP lists for this memory.
"""

MAX_SCRYPT_N: Final = 1 << 17
MAX_SCRYPT_R: Final = 8
MAX_SCRYPT_P: Final = 10
MAX_PBKDF2_ITERATIONS: Final = 5_000_000
"""Dearest derivations that are done for a file: at r = 8, 128 MiB; a few seconds each."""

SecretKind = Literal["passphrase", "pin"]

SECRET_FILES: Final[dict[SecretKind, str]] = {
    "passphrase": "MINSHU_PASSPHRASE_FILE",
    "pin": "MINSHU_PIN_FILE",
}
"""Environment variables that name the file a secret lies in."""

_ENCRYPTED_BEGIN: Final = b"-----BEGIN ENCRYPTED PRIVATE KEY-----"
_ENCRYPTED_END: Final = b"-----END ENCRYPTED PRIVATE KEY-----"
_ENCRYPTED: Final = re.compile(_ENCRYPTED_BEGIN + rb"\r?\n([A-Za-z0-9+/=\r\n]+)" + _ENCRYPTED_END)

_PBES2: Final = ObjectIdentifier("1.2.840.113549.1.5.13")
_PBKDF2: Final = ObjectIdentifier("1.2.840.113549.1.5.12")
_SCRYPT: Final = ObjectIdentifier("1.3.6.1.4.1.11591.4.11")
_AES_256_CBC: Final = ObjectIdentifier("2.16.840.1.101.3.4.1.42")


@asn1.sequence
class _Algorithm:
    """AlgorithmIdentifier, RFC 5280 4.1.1.2."""

    oid: ObjectIdentifier
    parameters: asn1.TLV


@asn1.sequence
class _EncryptedKey:
    """EncryptedPrivateKeyInfo, RFC 5958 3."""

    scheme: _Algorithm
    data: bytes


@asn1.sequence
class _Pbes2:
    """PBES2-params, RFC 8018 A.4."""

    derivation: _Algorithm
    cipher: _Algorithm


@asn1.sequence
class _Scrypt:
    """scrypt-params, RFC 7914 7.1."""

    salt: bytes
    n: int
    r: int
    p: int
    key_length: int | None


@asn1.sequence
class _Pbkdf2:
    """PBKDF2-params, RFC 8018 A.2."""

    salt: bytes
    iterations: int
    key_length: int | None
    prf: _Algorithm | None


def public_path(path: Path) -> Path:
    """Return where the public half of the key in `path` lies: `dpo.pem` → `dpo.pem.pub`."""
    return path.with_name(path.name + ".pub")


def new_key(path: Path, passphrase: bytes | None = None) -> bytes:
    """Make an Ed25519 key, write it to `path` (mode 0600) and its public half to `<path>.pub`.

    Neither file is ever overwritten: a key that signs for someone is not replaced by accident.

    Args:
        path: the private key's file.
        passphrase: encrypts the private half; without one, only the file's mode guards it.

    Returns:
        The raw 32-byte public key.

    Raises:
        InputError: a file of that name exists, the folder cannot be written, or the passphrase is too short
            or too long.
    """
    private = Ed25519PrivateKey.generate()
    public = private.public_key()
    if passphrase is None:
        pem = private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    else:
        _check_new(passphrase)
        pem = _encrypted(private, passphrase)
    _write_new(public_path(path), public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo), 0o644)
    try:
        _write_new(path, pem, 0o600)
    except InputError:
        public_path(path).unlink(missing_ok=True)
        raise
    return public.public_bytes_raw()


def load_signer(path: Path, passphrase: Callable[[], bytes] | bytes | None = None) -> KeySigner:
    """Return a signer that holds the private key in `path`.

    Args:
        path: the private key's file.
        passphrase: opens an encrypted key, and is not asked for otherwise. Without one: see `find_secret`.

    Raises:
        InputError: no such file, readable by others than its owner, not an Ed25519 key in PKCS#8 PEM,
            encrypted at a cost nobody should pay, not to be opened for want of the right passphrase, or
            another key than its public half beside it.
    """
    data = _read(path, "key", private=True)
    if _ENCRYPTED_BEGIN in data:
        der = _bounded_der(path, data)
        if passphrase is None:
            passphrase = find_secret("passphrase", path.name)
        elif callable(passphrase):
            passphrase = passphrase()
        key = _decrypted(path, der, passphrase)
        _check_public(path, key)
    else:
        try:
            key = load_pem_private_key(data, password=None)
        except (ValueError, TypeError, UnsupportedAlgorithm):
            # TypeError is the library's answer to a key in an older encrypted form.
            raise _not_a_key(path, "an Ed25519 private key in PKCS#8 PEM") from None
    if not isinstance(key, Ed25519PrivateKey):
        raise _not_a_key(path, "an Ed25519 private key in PKCS#8 PEM")
    return KeySigner(key)


def load_public(path: Path) -> bytes:
    """Return the raw 32-byte public key in the PEM file `path`.

    Raises:
        InputError: no such file, or not an Ed25519 public key in PEM.
    """
    try:
        key = load_pem_public_key(_read(path, "key", private=False))
    except (ValueError, UnsupportedAlgorithm):
        raise _not_a_key(path, "an Ed25519 public key in PEM") from None
    if not isinstance(key, Ed25519PublicKey):
        raise _not_a_key(path, "an Ed25519 public key in PEM")
    return key.public_bytes_raw()


def fingerprint(public_key: bytes) -> str:
    """Return the key's id in sixteen groups of four hex digits, for two people to compare aloud."""
    digits = key_id(public_key).removeprefix("sha256:")
    return " ".join(digits[at : at + 4] for at in range(0, len(digits), 4))


def find_secret(kind: SecretKind, of: str) -> bytes:
    """Return the passphrase or PIN `of` a key: from the file the environment names, else from the terminal.

    Raises:
        InputError: the file is not to be used (see `read_secret`), or none is named and nobody can be asked.
    """
    if named := os.environ.get(SECRET_FILES[kind]):
        return read_secret(Path(named), kind)
    return _ask(kind, f"{kind} for {of}: ")


def read_secret(path: Path, kind: SecretKind) -> bytes:
    """Return the passphrase or PIN in `path`, without the one newline that may end it.

    Raises:
        InputError: no regular file, readable by others than its owner, empty, or too long.
    """
    secret = _read(path, kind, private=True).removesuffix(b"\n")
    if not 1 <= len(secret) <= MAX_SECRET_BYTES:
        raise InputError(
            f"{kind} file {path.name} is empty or holds more than {MAX_SECRET_BYTES} bytes",
            code=f"bad-{kind}-file",
            hint=f"the file holds the {kind} and nothing else",
        )
    return secret


def ask_new_passphrase() -> bytes:
    """Return the passphrase for a new key, asked for twice; or that of MINSHU_PASSPHRASE_FILE, if set.

    Raises:
        InputError: nobody to ask, the two differ, or it is too short or too long.
    """
    if named := os.environ.get(SECRET_FILES["passphrase"]):
        passphrase = read_secret(Path(named), "passphrase")
        _check_new(passphrase)
        return passphrase
    passphrase = _ask("passphrase", f"new passphrase (at least {MIN_PASSPHRASE_CHARACTERS} characters): ")
    _check_new(passphrase)
    if _ask("passphrase", "the same again: ") != passphrase:
        raise InputError(
            "the two passphrases differ", code="passphrase-mismatch", hint="run the command again"
        )
    return passphrase


def _ask(kind: SecretKind, prompt: str) -> bytes:
    # Only a person types: a pipe on stdin holds a document, not a passphrase.
    if sys.stdin is not None and sys.stdin.isatty():
        try:
            return getpass.getpass(prompt).encode("utf-8")
        except (EOFError, UnicodeError):
            pass  # no answer, or bytes that are no text: as if nobody were there
    raise InputError(
        f"a {kind} is needed and nobody could be asked for it",
        code=f"{kind}-needed",
        hint=f"run this in a terminal, or name a file of mode 0600 that holds it in {SECRET_FILES[kind]}",
    )


def _check_new(passphrase: bytes) -> None:
    characters = len(passphrase.decode("utf-8", errors="replace"))
    if characters < MIN_PASSPHRASE_CHARACTERS or len(passphrase) > MAX_SECRET_BYTES:
        raise InputError(
            f"a passphrase has at least {MIN_PASSPHRASE_CHARACTERS} characters and at most"
            f" {MAX_SECRET_BYTES} bytes; this one does not",
            code="weak-passphrase",
            hint="take five or six words drawn at random",
        )


def _encrypted(private: Ed25519PrivateKey, passphrase: bytes) -> bytes:
    """Return the key as ENCRYPTED PRIVATE KEY in PEM. The library writes PBKDF2 only, hence by hand."""
    salt, iv = os.urandom(16), os.urandom(16)
    derived = Scrypt(salt=salt, length=32, n=SCRYPT_N, r=SCRYPT_R, p=SCRYPT_P).derive(passphrase)
    padder, encryptor = PKCS7(128).padder(), Cipher(AES(derived), CBC(iv)).encryptor()
    plain = private.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
    data = encryptor.update(padder.update(plain) + padder.finalize()) + encryptor.finalize()
    scheme = _Pbes2(
        derivation=_algorithm(
            _SCRYPT, _Scrypt(salt=salt, n=SCRYPT_N, r=SCRYPT_R, p=SCRYPT_P, key_length=None)
        ),
        cipher=_algorithm(_AES_256_CBC, iv),
    )
    der = asn1.encode_der(_EncryptedKey(scheme=_algorithm(_PBES2, scheme), data=data))
    text = base64.b64encode(der)
    lines = (text[at : at + 64] for at in range(0, len(text), 64))
    return b"\n".join((_ENCRYPTED_BEGIN, *lines, _ENCRYPTED_END, b""))


def _algorithm(oid: ObjectIdentifier, parameters: object) -> _Algorithm:
    return _Algorithm(oid=oid, parameters=asn1.decode_der(asn1.TLV, asn1.encode_der(parameters)))


def _bounded_der(path: Path, data: bytes) -> bytes:
    """Return the DER of an encrypted key whose derivation is affordable; nothing has been derived yet."""
    try:
        der = _unarmoured(data)
        affordable = _affordable(der)
    except ValueError:
        raise _not_a_key(path, "one private key in PEM, encrypted by PBES2 with scrypt or PBKDF2") from None
    if not affordable:
        raise InputError(
            f"{path.name} asks for more than scrypt with N = 2^17, r = {MAX_SCRYPT_R}, p = {MAX_SCRYPT_P}, or"
            f" {MAX_PBKDF2_ITERATIONS} iterations of PBKDF2, to be opened",
            code="key-too-costly",
            hint="if the file is yours, encrypt it anew with openssl pkcs8 -topk8 -scrypt",
        )
    return der


def _unarmoured(data: bytes) -> bytes:
    """Return the DER between the PEM lines.

    Raises:
        ValueError: there is anything else, or it is no base64.
    """
    block = _ENCRYPTED.fullmatch(data.strip())
    if block is None:
        raise ValueError
    return base64.b64decode(b"".join(block[1].split()), validate=True)


def _affordable(der: bytes) -> bool:
    """Return whether the key's derivation stays within bounds.

    Raises:
        ValueError: not DER of an EncryptedPrivateKeyInfo by PBES2 with scrypt or PBKDF2.
    """
    scheme = asn1.decode_der(_EncryptedKey, der).scheme
    if scheme.oid != _PBES2:
        raise ValueError
    derivation = scheme.parameters.parse(_Pbes2).derivation
    if derivation.oid == _SCRYPT:
        cost: _Scrypt = derivation.parameters.parse(_Scrypt)
        if cost.n < 2 or cost.n.bit_count() != 1 or cost.r < 1 or cost.p < 1:
            raise ValueError
        return cost.n <= MAX_SCRYPT_N and cost.r <= MAX_SCRYPT_R and cost.p <= MAX_SCRYPT_P
    if derivation.oid == _PBKDF2:
        iterations: int = derivation.parameters.parse(_Pbkdf2).iterations
        if iterations < 1:
            raise ValueError
        return iterations <= MAX_PBKDF2_ITERATIONS
    raise ValueError


def _decrypted(path: Path, der: bytes, passphrase: bytes) -> object:
    try:
        # An empty one would be taken for none at all.
        if 1 <= len(passphrase) <= MAX_SECRET_BYTES:
            return load_der_private_key(der, passphrase)
    except UnsupportedAlgorithm:
        raise _not_a_key(path, "encrypted by a cipher this version knows") from None
    except ValueError:
        pass  # Bad padding and bad content look alike: what came out tells nobody how close a guess was.
    raise InputError(
        f"{path.name} cannot be opened with this passphrase, or is damaged",
        code="bad-passphrase",
        hint="try again; without its passphrase a key is lost and a new one must be made",
    )


def _check_public(path: Path, key: object) -> None:
    """Compare a key with its public half: CBC has no checksum, so a damaged file may open as another."""
    beside = public_path(path)
    if (
        isinstance(key, Ed25519PrivateKey)
        and beside.exists()
        and load_public(beside) != key.public_key().public_bytes_raw()
    ):
        raise InputError(
            f"{path.name} opens as another key than {beside.name}",
            code="key-mismatch",
            hint=f"the file is damaged, or {beside.name} belongs to another key: restore both from a copy",
        )


def _read(path: Path, kind: Literal["key"] | SecretKind, *, private: bool) -> bytes:
    limit = MAX_KEY_BYTES if kind == "key" else MAX_SECRET_BYTES + 1
    try:
        # Opened once and judged by descriptor: the name may not change hands between check and read.
        with open(path, "rb", opener=_open_at_once) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise InputError(
                    f"{kind} file {path.name} is not a regular file",
                    code="bad-key" if kind == "key" else f"bad-{kind}-file",
                    hint="name a file that holds it; pipes and devices are not read",
                )
            if private and status.st_mode & 0o077:
                raise InputError(
                    f"{kind} file {path.name} has mode {stat.S_IMODE(status.st_mode):04o},"
                    " expected 0600: others on this machine can read it",
                    code=f"{kind}-exposed",
                    hint=f"run chmod 600 {path}; if others had access, make a new {kind}",
                )
            data = file.read(limit + 1)
    except OSError as error:
        raise InputError(
            f"{kind} file {path} cannot be read ({error.strerror})",
            code=f"{kind}-unreadable",
            hint="make one with minshu-policy key new, or correct the path"
            if kind == "key"
            else f"correct the path, in {SECRET_FILES[kind]} or the key's URI",
        ) from None
    if kind == "key" and len(data) > limit:
        raise _not_a_key(path, f"a file of at most {limit} bytes")
    return data


def _open_at_once(path: str, flags: int) -> int:
    """Open without waiting: a FIFO nobody writes to would hold the program for ever."""
    return os.open(path, flags | os.O_NONBLOCK | os.O_NOCTTY)


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
