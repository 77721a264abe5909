"""How well weights score the rows that were held out: counts by label and bin of the score, on shares.

Scores v and labels y are shared modulo p, and small. Both add a word that they share to 0, so the shares are
uniform, and M takes v_M, H v_H - p, as whole numbers: their sum is v, but for a chance of (|v| + 1)/p, below
2^-44, with which a row is in a wrong bin. So comparisons are those of protocols/joined/bits.py: for each row
and edge, v ≥ edge ∧ y, and v ≥ edge ∧ ¬y. A bit is the exclusive or of z_M and z_H, and Σz = Σz_M + Σz_H -
2Σz_M·z_H, a product as in protocols/joined/triples.py. Opened are counts, with the noise of both. SPEC.md,
section 6.
"""

import hashlib
from dataclasses import dataclass
from functools import cached_property
from math import ceil, log
from typing import Final

import numpy as np
import numpy.typing as npt

from protocols.joined import bits
from protocols.joined.field import NARROW, WIDE, Words
from protocols.joined.triples import COIN_BYTES, Multiplier, Shape, corrections_bytes, deal
from protocols.party import Rand
from protocols.sums.masks import stream_key
from protocols.training.joined.cubic import Cubic
from protocols.training.joined.masking import HELPER, MATCHER, coin_of
from protocols.training.joined.talk import Need, Part, both, said
from protocols.training.scores import Bins

MAX_COMPARED: Final = 1 << 26
"""Most comparisons in one attempt: the bound on a dealer's luck is for so many bits."""

_DOMAIN: Final = b"minshu/train-joined/1"
_RERANDOM: Final = b"train-joined/held"

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Histogram:
    """Counts of held-out rows by label and bin of the chance that the model gives.

    Attributes:
        rows: places for rows.
        cubic: scores are within its bound.
        bins: how many, even, of equal width.
        ctx: 32 bytes of the attempt.
        fewest: see `bits.Plan`.
    """

    rows: int
    cubic: Cubic
    bins: int
    ctx: bytes
    fewest: int = bits.FEWEST

    @property
    def edges(self) -> tuple[float, ...]:
        """Of the bins, in chances; one half is among them."""
        return Bins.even(self.bins).edges

    @property
    def thresholds(self) -> tuple[int, ...]:
        """The least whole score in each bin but the first."""
        return tuple(ceil(log(edge / (1 - edge)) * (1 << self.cubic.bits)) for edge in self.edges)

    @property
    def vectors(self) -> int:
        """Bits of a row: for each edge, with label 1 and with label 0."""
        return 2 * (self.bins - 1)

    @cached_property
    def words(self) -> int:
        """Words that hold a bit of each row."""
        return -(-self.rows // bits.WORD_BITS)

    @cached_property
    def plan(self) -> bits.Plan:
        """How bits are computed: rows are those of one vector after the other."""
        most = (self.cubic.bound << self.cubic.bits) + max(abs(each) for each in self.thresholds)
        circuit = bits.Circuit((most.bit_length() + 1,), 1)
        return bits.Plan(circuit, self.compared, self._bound(b"bits"), self.fewest)

    @property
    def shape(self) -> Shape:
        """Of the product that turns bits into counts: of its cells the diagonal counts."""
        vectors = self.vectors + 1  # labels are counted, too
        return Shape(self.words * bits.WORD_BITS, vectors, vectors, NARROW)

    @property
    def compared(self) -> int:
        """How many comparisons there are: of every place with each edge, for each label."""
        return self.vectors * self.words * bits.WORD_BITS

    @property
    def room(self) -> int:
        """Bytes that a holder has at most.

        Scores and labels, anew and as words; bits of every place, packed, and one byte each, three times
        while they are put together; blocks of the product.
        """
        places, shape = self.words * bits.WORD_BITS, self.shape
        vectors = self.vectors + 1
        block = 8 * NARROW.bytes * shape.block_rows * shape.columns
        return places * (5 * 8 + vectors // 8 + 3 * vectors) + block

    def _bound(self, what: bytes) -> bytes:
        return hashlib.sha256(_DOMAIN + b"\0" + what + self.ctx).digest()

    def dealt_bytes(self) -> tuple[int, ...]:
        """Return the lengths of the dealer's batches, in order."""
        return (*(batch.correction_bytes for batch in self.plan.batches), corrections_bytes(self.shape))

    def deal(self, number: int, seed_m: bytes, seed_h: bytes) -> bytes:
        """Return a batch of the dealer's, counted from 0."""
        batches = self.plan.batches
        if number < len(batches):
            return bits.deal(self.plan, batches[number], seed_m, seed_h).tobytes()
        return deal(self.shape, seed_m, seed_h, self._bound(b"counts"))

    def counted(  # noqa: PLR0917  # what is counted, of whom, with whose randomness
        self,
        score: Words,
        label: Words,
        n: int,
        seed: bytes,
        rand: Rand,
        number: int,
        *,
        first: bool,
    ) -> Part[Words]:
        """Return own shares of the counts modulo 2^31 - 1: of label 0 by bin, then of label 1.

        Args:
            score: own shares of scores, one for each place.
            label: own shares of labels.
            n: how many places hold a row; the others come after and count nowhere.
            seed: 32 bytes from the dealer.
            rand: draws coins.
            number: of the dealer's first batch for this.
            first: whether this is M.

        Raises:
            ProtocolAborted: `bad-triple`, at both; `bad-word`.
        """
        columns = yield from self._whole(score, label, rand, first=first)
        compared = yield from self._compared(columns, seed, rand, number, first=first)
        bit = np.concatenate((compared, _lowest(columns[1])[None]))
        # What fills up the places has no meaning.
        bit[:, n:] = False
        found = yield from self._summed(bit, seed, rand, number + len(self.plan.batches), first=first)
        above = np.zeros((2, self.bins + 1), dtype=NARROW.dtype)
        above[1, 0] = found[-1]
        above[0, :1] = NARROW.subtract(
            np.array([n if first else 0], dtype=NARROW.dtype), found[-1:].astype(NARROW.dtype)
        )
        above[1, 1:-1], above[0, 1:-1] = found[0:-1:2], found[1:-1:2]
        return NARROW.subtract(above[:, :-1], above[:, 1:]).reshape(-1)

    def _whole(self, score: Words, label: Words, rand: Rand, *, first: bool) -> Part[tuple[Words, Words]]:
        """Return shares modulo 2^64 of scores and labels, filled up to whole words of bits."""
        tossed = yield from coin_of(rand(COIN_BYTES), first=first)
        stream = WIDE.stream(stream_key(tossed, self.ctx, MATCHER, HELPER, _RERANDOM))
        found = []
        for own in (score, label):
            zero = stream.take(1, len(own))[0]
            fresh = WIDE.add(own, zero) if first else WIDE.subtract(own, zero)
            filled = np.zeros(self.words * bits.WORD_BITS, dtype=np.uint64)
            # M's share and H's are p more than what they share, nearly always.
            filled[: len(own)] = fresh if first else fresh - np.uint64(WIDE.prime)
            found.append(filled)
        return found[0], found[1]

    def _compared(
        self, columns: tuple[Words, Words], seed: bytes, rand: Rand, number: int, *, first: bool
    ) -> Part[npt.NDArray[np.bool_]]:
        """Return own shares of the bits, vectors x places."""
        score, label = columns
        plan, places = self.plan, len(score)
        of_label = bits.packed(_lowest(label))
        results = []
        for at, batch in enumerate(plan.batches):
            corrections = b"" if first else (yield Need(number + at))
            if first:
                dealt = bits.Triples.first(plan, batch, seed)
            else:
                dealt = bits.Triples.second(plan, batch, seed, corrections)
            triples = yield from said(bits.checked(plan, batch, dealt, rand(COIN_BYTES), first=first))
            word = np.arange(batch.start, batch.start + batch.words)
            vector, place = word // self.words, word % self.words
            rows = (place[:, None] * bits.WORD_BITS + np.arange(bits.WORD_BITS)).reshape(-1)
            values = score[rows]
            flags = of_label[place]
            if first:
                thresholds = np.array(self.thresholds, dtype=np.int64).view(np.uint64)
                values = values - np.repeat(thresholds[vector // 2], bits.WORD_BITS)
                # Even vectors are of label 1, odd ones of label 0.
                flags = np.where(vector % 2 == 1, ~flags, flags)
            results.append((yield from said(bits.conjoined(plan, [values], [flags], triples, first=first))))
        return bits.unpacked(np.concatenate(results)).reshape(self.vectors, places)

    def _summed(
        self, bit: npt.NDArray[np.bool_], seed: bytes, rand: Rand, number: int, *, first: bool
    ) -> Part[Words]:
        """Return own shares of the number of rows whose bit is 1, for each vector."""
        shape = self.shape
        corrections = None if first else (yield Need(number))
        multiplier = Multiplier(shape, seed, self._bound(b"counts"), first=first, corrections=corrections)
        multiplier.challenge((yield from coin_of(rand(COIN_BYTES), first=first)))
        for start in range(0, shape.rows, shape.block_rows):
            own = bit[:, start : start + shape.block_rows].T.astype(NARROW.dtype)
            nothing = np.zeros_like(own)
            x, y = (own, nothing) if first else (nothing, own)
            multiplier.take((yield from both(multiplier.open(x, y))))
        multiplier.verify((yield from both(multiplier.check_share())))
        crossed = multiplier.result().diagonal()
        ones = NARROW.encode(bit.sum(axis=1, dtype=np.int64))
        return NARROW.subtract(ones, NARROW.add(crossed, crossed))


def _lowest(words: Words) -> npt.NDArray[np.bool_]:
    """Return the lowest bit of each word: of a sum modulo 2^64 it is the exclusive or of both shares'."""
    return (words & np.uint64(1)).astype(np.bool_)
