"""Shared ρ with ρ² and ρ³, from a dealer that is checked: what the cubes of scores are opened with.

For each word the dealer gives uniform ρ, q = ρ² and k = ρ³, shared, and for a whole batch one inner product
γ = α·β of uniform vectors. With a challenge χ, ψ of as many uniform words, drawn when all is dealt, M and H
sacrifice that product to check ρ·(χ∘ρ + ψ∘q) = χ·q + ψ·k: SPDZ's sacrifice (Damgård, Pastro, Smart and
Zakarias, CRYPTO 2012), of vectors. SPEC.md, section 6, has the proof.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np

from protocols.ids import Role
from protocols.joined.field import WIDE, Stream, Words
from protocols.sums.masks import stream_key
from protocols.training.joined.gradient import dot, times
from protocols.training.joined.masking import HELPER, MATCHER, bad_triple, challenge_key, coin_of
from protocols.training.joined.talk import Part, opened

DEALER: Final = Role("dealer")

_CUBES: Final = b"train-joined/cubes"


@dataclass(frozen=True, slots=True)
class Cubes:
    """A batch of them.

    Attributes:
        words: how many.
        ctx: 32 bytes, binds streams to the attempt and the batch.
    """

    words: int
    ctx: bytes

    @property
    def correction_bytes(self) -> int:
        """Length of what `deal` returns."""
        return WIDE.bytes * (2 * self.words + 1)

    def _stream(self, seed: bytes, party: Role) -> Stream:
        return WIDE.stream(stream_key(seed, self.ctx, DEALER, party, _CUBES))

    def deal(self, seed_m: bytes, seed_h: bytes) -> bytes:
        """Return the dealer's corrections for H: its shares of ρ², of ρ³, and of γ."""
        of_m = self._stream(seed_m, MATCHER)
        masks = of_m.take(3, self.words)
        rho, alpha, beta = WIDE.add(masks, self._stream(seed_h, HELPER).take(3, self.words))
        square = times(rho, rho)
        own = of_m.take(1, 2 * self.words + 1)[0]
        whole = np.concatenate((square, times(square, rho), dot(alpha, beta)))
        return WIDE.to_bytes(WIDE.subtract(whole, own))

    def checked(self, seed: bytes, corrections: bytes | None, coin: bytes) -> Part[Words]:
        """Return own shares of ρ, ρ² and ρ³, 3 x `words`, once they are known to be right.

        Args:
            seed: 32 bytes from the dealer.
            corrections: H's; None at M.
            coin: 16 own random bytes, drawn when `corrections` had come.

        Raises:
            ProtocolAborted: `bad-triple`, at both; `bad-word`.
        """
        first, words = corrections is None, self.words
        stream = self._stream(seed, MATCHER if first else HELPER)
        rho, alpha, beta = stream.take(3, words)
        drawn = None if corrections is not None else stream.take(1, 2 * words + 1)[0]
        dealt = WIDE.read(corrections or b"", 1)[:, 0] if drawn is None else drawn
        square, cube, gamma = dealt[:words], dealt[words:-1], dealt[-1:]
        tossed = yield from coin_of(coin, first=first)
        chi, psi = WIDE.stream(challenge_key(tossed, self.ctx)).take(2, words)
        factor = WIDE.add(times(chi, rho), times(psi, square))
        own = WIDE.subtract(np.stack((rho, factor)), np.stack((alpha, beta)))
        x, y = yield from opened(WIDE, own)
        # ρ·factor = γ + x·β + y·α + x·y
        product = WIDE.add(WIDE.add(gamma, dot(x, WIDE.add(beta, y) if first else beta)), dot(y, alpha))
        claimed = WIDE.add(dot(chi, square), dot(psi, cube))
        if (yield from opened(WIDE, WIDE.subtract(claimed, product))).any():
            raise bad_triple("powers for the scores")
        return np.stack((rho, square, cube))
