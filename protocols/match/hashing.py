"""Symmetric parts of a comparison: keys of an attempt, hashes, codes, row hash, streams. SPEC.md, section 2.

Everything is AES-128, many blocks at a time. A block is two words, little-endian as in memory; `Words` of n
blocks are 2 n words, or n x 2. Keys are public to both sides but for the streams' and the shuffle's.
"""

from collections.abc import Iterator
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from protocols.errors import InputError
from protocols.match.cuckoo import HASHES
from protocols.match.transpose import Words

SALT_BYTES: Final = 32
BLOCK_BYTES: Final = 16
MAX_KEY_BYTES: Final = 32
"""Longest item: what is hashed has one length, so that CBC-MAC is a PRF."""

PLANES: Final = 4
"""Blocks of a code: 512 bits."""

SPAN: Final = 1 << 13
"""Items handled at a time: some arrays of one block for each fit the cache of one core."""

_DOMAIN: Final = b"minshu/match-keys/1"
_ZERO: Final = bytes(BLOCK_BYTES)
_MARKS: Final = 256

Blocks = npt.NDArray[np.uint64]
"""n x 2 words, contiguous: n blocks."""


def room(blocks: int) -> Words:
    """Return 2 x `blocks` words, not set, and two more behind them: a cipher asks for room to spare."""
    return np.empty(2 * blocks + 2, dtype="<u8")


class Permutation:
    """AES-128 under one key, as a permutation of blocks."""

    def __init__(self, key: bytes) -> None:
        self._cipher = Cipher(algorithms.AES128(key), modes.ECB()).encryptor()  # noqa: S305  # block by block

    def apply(self, blocks: Words, out: Words) -> None:
        """Write the image of each block; `out` has room for a block more."""
        self._cipher.update_into(blocks.data.cast("B"), out.data.cast("B"))


class Stream:
    """AES-128 in counter mode under a key that nothing else uses: a pseudo-random stream of words."""

    def __init__(self, key: bytes) -> None:
        self._cipher = Cipher(algorithms.AES128(key), modes.CTR(_ZERO)).encryptor()

    def fill(self, zeros: memoryview, out: memoryview) -> None:
        """Write as many bytes as there are zeros; `out` has room for a block more."""
        self._cipher.update_into(zeros, out)


class Joint:
    """The keys of one attempt, from `ctx` and both salts: HKDF-SHA256, RFC 5869."""

    def __init__(self, ctx: bytes, receiver_salt: bytes, sender_salt: bytes) -> None:
        keys = 3 + HASHES * PLANES + PLANES
        derived = HKDF(algorithm=SHA256(), length=keys * BLOCK_BYTES, salt=ctx, info=_DOMAIN).derive(
            receiver_salt + sender_salt
        )
        permutations = [
            Permutation(derived[at : at + BLOCK_BYTES]) for at in range(0, len(derived), BLOCK_BYTES)
        ]
        self._item, self._place, mark, *rest = permutations
        self.codes = tuple(tuple(rest[PLANES * hashed : PLANES * (hashed + 1)]) for hashed in range(HASHES))
        """For each hash index, the permutations that make the four blocks of a code."""
        self.rows = tuple(rest[PLANES * HASHES :])
        """π_0 to π_3 of the row hash."""
        numbers = np.zeros((_MARKS, 2), dtype="<u8")
        numbers[:, 0] = np.arange(_MARKS)
        out = room(_MARKS)
        mark.apply(numbers, out)
        self._marks = out[: 2 * _MARKS].view(np.complex128)

    def hashes(self, keys: npt.NDArray[np.bytes_]) -> Blocks:
        """Return a block for each key: CBC-MAC over the key, filled up with zeros to 32 bytes.

        Raises:
            InputError: `key-too-long`.
        """
        width = keys.dtype.itemsize
        if width > MAX_KEY_BYTES:
            raise InputError(
                f"keys of up to {width} bytes, expected {MAX_KEY_BYTES} at most",
                code="key-too-long",
                hint="compare keys of a type that is shorter",
            )
        # Copies of 16 bytes for each item, instead of a loop over characters.
        head = min(width, BLOCK_BYTES)
        source = np.ascontiguousarray(keys).view([("head", f"V{head}"), ("tail", f"V{width - head}")])
        out = room(len(keys))
        first, second, middle = np.zeros((3, 2 * SPAN + 2), dtype="<u8")
        for start in range(0, len(keys), SPAN):
            batch = source[start : start + SPAN]
            size = 2 * len(batch)
            leading(first[:size].view(np.complex128), head)[:] = batch["head"]
            self._item.apply(first[:size], middle)
            if width > head:
                leading(second[:size].view(np.complex128), width - head)[:] = batch["tail"]
                middle[:size] ^= second[:size]
            self._item.apply(middle[:size], out[2 * start :])
        return out[: 2 * len(keys)].reshape(-1, 2)

    def buckets(self, hashes: Blocks, count: int) -> npt.NDArray[np.uint16]:
        """Return the bucket of each item, of `count`."""
        found = np.empty(len(hashes), dtype=np.uint16)
        for start, places in self._places(hashes):
            scaled = places[0::4].astype(np.uint64) * np.uint64(count)
            found[start : start + len(scaled)] = scaled >> np.uint64(32)
        return found

    def positions(self, hashes: Blocks, segment: int) -> npt.NDArray[np.int64]:
        """Return 3 x n: the row of each item in each segment of `segment` rows."""
        found = np.empty((HASHES, len(hashes)), dtype=np.int64)
        for start, places in self._places(hashes):
            for hashed in range(HASHES):
                scaled = places[1 + hashed :: 4].astype(np.uint64) * np.uint64(segment)
                found[hashed, start : start + len(scaled)] = scaled >> np.uint64(32)
        return found

    def _places(self, hashes: Blocks) -> Iterator[tuple[int, npt.NDArray[np.uint32]]]:
        """Yield, span by span, its start and four numbers of 32 bits for each item."""
        out = room(SPAN)
        for start in range(0, len(hashes), SPAN):
            batch = hashes[start : start + SPAN]
            self._place.apply(batch, out)
            yield start, out[: 2 * len(batch)].view("<u4")

    def marked(self, hashes: Blocks, marks: npt.NDArray[np.uint8]) -> Blocks:
        """Return each item's hash with its mark: what codes are made of."""
        masked: Blocks = hashes ^ self._marks[marks].view("<u8").reshape(-1, 2)
        return masked


def leading(items: npt.NDArray[Any], size: int) -> npt.NDArray[np.void]:
    """Return the first `size` bytes of each item, as one item to copy at once."""
    layout = np.dtype({"names": ["lead"], "formats": [f"V{size}"], "itemsize": items.itemsize})
    lead: npt.NDArray[np.void] = items.view(layout)["lead"]
    return lead
