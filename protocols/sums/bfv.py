"""BFV through TenSEAL: one parameter set, and ciphertexts of peers let in as nothing but coefficients.

SEAL's loader takes parameters, sizes and compression from the bytes it reads. So bytes of a peer are never
given to it as they came: they are decompressed here, to exactly the one size a ciphertext has; all that
stands before the coefficients is compared; and the loader gets them uncompressed. It then refuses
coefficients that are out of range. SPEC.md, section 3.

Keys and encryption draw from SEAL's own generator, which the operating system seeds.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from protocols.errors import ProtocolAborted

DEGREE: Final = 4096
"""N: degree of the ring, and words in one ciphertext."""

PRIME: Final = 35_184_371_884_033
"""Plaintext modulus: the largest prime below 2^45 that is 1 modulo 2N, so that words are slots."""

COEFFICIENT_BITS: Final = 109
"""Bits of the whole coefficient modulus, the most that 128-bit security allows at N = 4096."""

MAX_CIPHERTEXT_BYTES: Final = 95_000
"""Bound on a serialised ciphertext, checked before anything is decompressed; in fact about 88,600."""

MAX_KEY_BYTES: Final = 140_000
"""Bound on a serialised public key; in fact about 134,200."""

_HEADER: Final = 16  # of a SEAL object: magic, its own length, version, compression, u64 length of all
_PLAIN: Final = bytes.fromhex("5ea1100403000000")  # the same without the length: version 4.3, not compressed
_ZSTD: Final = bytes.fromhex("5ea1100403020000")
_PREFIX: Final = 97  # of a ciphertext: parameters, form, sizes, scale, and the header of its coefficients
_SIZES: Final = b"\x0a\x02\x80\x20\x12"  # of a TenSEAL vector: one chunk of 4096 words, then its ciphertext

_RAISED: Final = (ValueError, TypeError, RuntimeError, LookupError, ArithmeticError, MemoryError)
"""What pybind11 makes of the exceptions of C++."""


@dataclass(frozen=True, slots=True)
class _Form:
    """How this library writes a context and its objects; read off a throw-away key pair once."""

    parameters: bytes  # of a context: its encryption parameters
    tail: bytes  # of a context: flags
    key_prefix: bytes  # of a decompressed public key
    ciphertext_prefix: bytes  # of a decompressed ciphertext


def _library() -> Any:
    import tenseal  # type: ignore[import-untyped]  # ships no types

    return tenseal._ts_cpp  # noqa: SLF001  # the classes themselves: the wrappers convert each word in Python


def _fresh() -> Any:
    library = _library()
    return library.TenSEALContext.new(
        library.SCHEME_TYPE.BFV, DEGREE, PRIME, [], library.ENCRYPTION_TYPE.ASYMMETRIC, 1
    )


@lru_cache(maxsize=1)
def _form() -> _Form:
    """Return the form of this library's objects.

    Raises:
        RuntimeError: it is not the one this module knows.
    """
    context = _fresh()
    empty = context.serialize(False, False, False, False)  # noqa: FBT003  # a binding without names
    parameters = empty[: 2 + empty[1]]
    tail = empty[len(parameters) + 2 :]
    if (empty[:1], empty[len(parameters) : len(parameters) + 2]) != (b"\x0a", bytes((0x12, len(tail)))):
        raise RuntimeError("TenSEAL writes contexts in another form than protocols.sums.bfv knows")
    written = context.serialize(True, False, False, False)  # noqa: FBT003
    key = _key_of(written, parameters)
    words = _library().BFVVector(context, [0] * DEGREE).serialize()
    found = _Form(
        parameters,
        tail,
        _unpacked(key, _PREFIX + 3 * 2 * 8 * DEGREE)[:_PREFIX],
        _unpacked(_ciphertext_of(words), _PREFIX + 2 * 2 * 8 * DEGREE)[:_PREFIX],
    )
    if _context_with(found, key) != written:
        raise RuntimeError("TenSEAL writes public keys in another form than protocols.sums.bfv knows")
    return found


def _key_of(context: bytes, parameters: bytes) -> bytes:
    return _content(_content(context, parameters + b"\x12"), b"\x0a")


def _ciphertext_of(vector: bytes) -> bytes:
    return _content(vector, _SIZES)


def _context_with(form: _Form, key: bytes) -> bytes:
    return form.parameters + _field(b"\x12", _field(b"\x0a", key) + form.tail)


def _field(tag: bytes, content: bytes) -> bytes:
    """Return a length-delimited field of a protocol buffer."""
    length, digits = len(content), bytearray()
    while length > 0x7F:
        digits.append(length & 0x7F | 0x80)
        length >>= 7
    digits.append(length)
    return tag + bytes(digits) + content


def _content(data: bytes, tag: bytes) -> bytes:
    """Return what `_field` was given; others may follow it."""
    length, at = 0, len(tag)
    while True:
        length |= (data[at] & 0x7F) << 7 * (at - len(tag))
        at += 1
        if data[at - 1] <= 0x7F:
            return data[at : at + length]


def _unpacked(data: bytes, size: int) -> bytes:
    """Return what a compressed SEAL object holds, if that is `size` bytes; never more is written.

    Raises:
        ValueError: no such object, or one of another size.
    """
    from pyarrow import Codec

    if data[:_HEADER] != _ZSTD + len(data).to_bytes(8, "little"):
        raise ValueError("no compressed SEAL object")
    try:
        unpacked: bytes = Codec("zstd").decompress(data[_HEADER:], decompressed_size=size, asbytes=True)
    except OSError as error:
        raise ValueError("not compressed, or of another size") from error
    if len(unpacked) != size:
        raise ValueError("of another size")
    return unpacked


def _plain_object(data: bytes, prefix: bytes, polynomials: int) -> bytes:
    """Return a peer's object uncompressed, once everything but its coefficients is as it has to be."""
    unpacked = _unpacked(data, _PREFIX + polynomials * 8 * DEGREE)
    if unpacked[:_PREFIX] != prefix:
        raise ValueError("other parameters")
    return _PLAIN + (_HEADER + len(unpacked)).to_bytes(8, "little") + unpacked


class PublicKey:
    """Encrypts. The secret key is not in it."""

    def __init__(self, data: bytes) -> None:
        """Load a serialised public key from a peer.

        Raises:
            ProtocolAborted: `bad-public-key`: no key, one for other parameters, one with a secret, or one of
                zeros, which would hide nothing.
        """
        bad = ProtocolAborted(
            f"{len(data)} bytes that are no public key of the agreed parameters",
            code="bad-public-key",
            hint="bring all nodes to one version",
        )
        if len(data) > MAX_KEY_BYTES:
            raise bad
        form, library = _form(), _library()
        try:
            key = _plain_object(data, form.key_prefix, 2 * 3)
            self._context = library.TenSEALContext.deserialize(_context_with(form, key), 1)
            usable = self._context.has_public_key() and not self._context.is_private()
            # A polynomial of a true key is zero modulo one of the primes with a probability below 2^-100000.
            residues = np.frombuffer(key, np.uint8, offset=len(key) - 2 * 3 * 8 * DEGREE).reshape(2 * 3, -1)
            usable &= bool(residues.any(axis=1).all())
        except _RAISED:
            raise bad from None
        if not usable:
            raise bad

    def encrypt(self, words: npt.NDArray[np.int64]) -> bytes:
        """Return the ciphertext of `DEGREE` words from 0 to `PRIME` - 1."""
        written: bytes = _library().BFVVector(self._context, words.tolist()).serialize()
        return _ciphertext_of(written)


class SecretKey:
    """A key pair, made here and kept here."""

    def __init__(self) -> None:
        self._context = _fresh()
        self._secret = self._context.secret_key()

    def public(self) -> bytes:
        """Return the public key, serialised; the secret is not written."""
        written: bytes = self._context.serialize(True, False, False, False)  # noqa: FBT003
        return _key_of(written, _form().parameters)

    def decrypt(self, data: bytes) -> npt.NDArray[np.int64]:
        """Return the `DEGREE` words of a ciphertext, from 0 to `PRIME` - 1; of another key's, random ones.

        Raises:
            ProtocolAborted: `bad-ciphertext`.
        """
        vector = _loaded(self._context, data)
        try:
            words = np.array(vector.decrypt(self._secret), dtype=np.int64)
        except _RAISED:
            raise _bad_ciphertext(data) from None
        return np.where(words < 0, words + PRIME, words)


class Adder:
    """Running sums of ciphertexts, place by place. Holds one ciphertext for each place, and no key."""

    def __init__(self, places: int) -> None:
        form = _form()
        empty = form.parameters + _field(b"\x12", form.tail)
        self._context = _library().TenSEALContext.deserialize(empty, 1)
        self._sums: list[Any] = [None] * places

    def add(self, place: int, data: bytes) -> None:
        """Add a ciphertext to the sum at `place`.

        Raises:
            ProtocolAborted: `bad-ciphertext`.
        """
        vector = _loaded(self._context, data)
        if self._sums[place] is None:
            self._sums[place] = vector
            return
        try:
            self._sums[place].add_(vector)
        except _RAISED:
            raise _bad_ciphertext(data) from None

    def take(self, place: int) -> bytes:
        """Return the sum at `place`, serialised, and forget it.

        Raises:
            ProtocolAborted: `bad-ciphertext`: what was added leaves no ciphertext.
        """
        vector, self._sums[place] = self._sums[place], None
        try:
            written: bytes = vector.serialize()
        except _RAISED:
            raise _bad_ciphertext(b"") from None
        return _ciphertext_of(written)


def _loaded(context: Any, data: bytes) -> Any:
    if len(data) > MAX_CIPHERTEXT_BYTES:
        raise _bad_ciphertext(data)
    try:
        plain = _plain_object(data, _form().ciphertext_prefix, 2 * 2)
        return _library().BFVVector(context, _SIZES[:-1] + _field(_SIZES[-1:], plain))
    except _RAISED:
        raise _bad_ciphertext(data) from None


def _bad_ciphertext(data: bytes) -> ProtocolAborted:
    return ProtocolAborted(
        f"{len(data)} bytes that are no ciphertext of the agreed parameters",
        code="bad-ciphertext",
        hint="bring all nodes to one version; if they are, their operators compare what was sent",
    )


def packed(ciphertexts: Sequence[bytes]) -> bytes:
    """Return ciphertexts in one body: each behind its u32 length."""
    return b"".join(len(each).to_bytes(4, "big") + each for each in ciphertexts)


def unpack(body: bytes, count: int) -> list[bytes]:
    """Return the `count` ciphertexts of a body.

    Raises:
        ProtocolAborted: `bad-length`: it holds another number, or one is too long.
    """
    found: list[bytes] = []
    at = 0
    while at + 4 <= len(body) and len(found) < count:
        length = int.from_bytes(body[at : at + 4], "big")
        if length > MAX_CIPHERTEXT_BYTES:
            break
        found.append(body[at + 4 : at + 4 + length])
        at += 4 + length
    if at != len(body) or len(found) != count:
        raise ProtocolAborted(
            f"body of {len(body)} bytes that does not hold {count} ciphertext(s)", code="bad-length"
        )
    return found
