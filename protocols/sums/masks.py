"""Masks that cancel: pairwise streams of words, added by one of the pair and subtracted by the other.

The lower of two sources draws a 32-byte seed and sends it to the other in a sealed frame. Both expand it with
AES-256-CTR under a key that HKDF-SHA256 derives from it. SPEC.md, section 2.
"""

from collections.abc import Iterable
from typing import Any, Final, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext, algorithms, modes
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from protocols.ids import Role

SEED_BYTES: Final = 32
WORD_BYTES: Final = 8
RING: Final = 1 << 64
"""Modulus of words that wrap; every other modulus is an odd prime below 2^62."""

_DOMAIN: Final = b"minshu/sums-mask/1"
_SPAN: Final = 1 << 14  # words; three arrays of them stay in the cache of one core
_NONCE: Final = bytes(16)  # one key, one stream

_Words: TypeAlias = npt.NDArray[np.unsignedinteger[Any]]


def stream_key(seed: bytes, ctx: bytes, lower: Role, higher: Role, label: bytes) -> bytes:
    """Return the AES-256 key of one stream of one pair.

    Args:
        seed: 32 bytes that the two share.
        ctx: 32 bytes, binds the stream to the attempt.
        lower: the one of the two that comes first among the sources.
        higher: the other; the same, where a source masks for itself alone.
        label: what the stream is for.
    """
    names = (_counted(name.encode()) for name in (lower, higher))
    info = b"".join((_DOMAIN, ctx, *names, _counted(label)))
    return HKDF(algorithm=SHA256(), length=32, salt=None, info=info).derive(seed)


def _counted(text: bytes) -> bytes:
    return len(text).to_bytes(1, "big") + text


class Masks:
    """The sum of several streams of uniform words modulo `modulus`, some added, some subtracted.

    A word is 8 bytes of a stream's AES-CTR key stream, little-endian, or 4 where it is asked for. Of
    a modulus with fewer bits its low bits are taken, as many as the modulus has, and a word that is not below
    the modulus is left out: rejection keeps the rest uniform.
    """

    def __init__(
        self,
        added: Iterable[bytes],
        subtracted: Iterable[bytes],
        modulus: int,
        word_bytes: Literal[4, 8] = WORD_BYTES,
    ) -> None:
        """Begin the streams of these keys. With words of 4 bytes the modulus is below 2^32."""
        self._streams = [
            (Cipher(algorithms.AES256(key), modes.CTR(_NONCE)).encryptor(), apply)
            for keys, apply in ((added, np.add), (subtracted, np.subtract))
            for key in keys
        ]
        self._modulus = modulus
        self._word_bytes = word_bytes
        self._zeros = memoryview(bytes(_SPAN * word_bytes))
        # `update_into` asks for room of a block more than it writes.
        self._room = bytearray(_SPAN * word_bytes + 15)
        self._drawn: _Words = np.frombuffer(self._room, dtype=f"<u{word_bytes}", count=_SPAN)
        self._bits = self._drawn.dtype.type((1 << (modulus - 1).bit_length()) - 1)

    def add_to(self, words: npt.NDArray[np.int64] | _Words) -> None:
        """Add the next words of every stream to `words`, in place; they are as wide as the streams' words.

        With a smaller modulus than 2^64 the sum is not reduced: of 64 streams below 2^45 it stays below 2^51.
        """
        ring: _Words = words.view(self._drawn.dtype)
        # Span by span: what one stream writes is still in the cache when it is added.
        for start in range(0, len(ring), _SPAN):
            span = ring[start : start + _SPAN]
            for cipher, apply in self._streams:
                apply(span, self._take(cipher, len(span)), out=span)

    def _take(self, cipher: CipherContext, count: int) -> _Words:
        """Return a stream's next words. The array is overwritten by the next call."""
        words = self._draw(cipher, count)
        if self._modulus == RING:
            return words
        np.bitwise_and(words, self._bits, out=words)
        if words.max() < self._modulus:
            return words
        kept = words[words < self._modulus]
        while len(kept) < count:
            more = self._draw(cipher, count - len(kept)) & self._bits
            kept = np.concatenate((kept, more[more < self._modulus]))
        return kept

    def _draw(self, cipher: CipherContext, count: int) -> _Words:
        cipher.update_into(self._zeros[: count * self._word_bytes], self._room)
        return self._drawn[:count]
