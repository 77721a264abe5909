"""What one secure sum is: who adds what, how large a total can be, and which numbers carry it.

All of it is public and follows from the job. Nothing is chosen from data: a modulus that fitted the data
would say something about it.
"""

from dataclasses import dataclass, field
from hashlib import sha256
from typing import Final, Literal, Self, get_args

from protocols.encoding import canonical_json
from protocols.errors import InputError
from protocols.ids import Role
from protocols.sums import bfv
from protocols.sums.masks import RING, WORD_BYTES

Mode = Literal["bfv", "mask"]
MODES: Final[tuple[Mode, ...]] = get_args(Mode)

MIN_SOURCES: Final = 2
MAX_SOURCES: Final = 50

MAX_TOTAL: Final = 1 << 61
"""Bound on every bound: totals, and twice a total, which rounding takes, stay in 64 bits with their sign."""

LIMB_BITS: Final = 32
CHECKS: Final = 2
"""Words of every block that say 1: their total has to be the number of sources."""

MASK_BLOCK: Final = 1 << 17
"""Words of a block in mask mode: a message of 1 MiB."""

CIPHERTEXTS: Final = 11
"""Ciphertexts in every message but the last: as many as fill the largest size class of frames."""

MAX_WORDS: Final = {"bfv": 1 << 22, "mask": 1 << 24}
"""Most words of a sum. With BFV the aggregator holds about 32 bytes for each of them, and for each limb."""

_DOMAIN: Final = b"minshu/sums-ready/1"


@dataclass(frozen=True, slots=True)
class Parameters:
    """The numbers that carry a total, refused where a sum could wrap.

    With one limb, words are masked modulo `bfv.PRIME` and encrypted as they are. With two, they are masked
    modulo 2^64 and encrypted in halves of 32 bits, whose totals keep their carries. In mask mode there is no
    prime.

    Args:
        mode: `bfv` or `mask`.
        bound: no total is above it or below its negative.
        sources: how many add.
        limbs: 1 or 2; 1 in mask mode.
    """

    mode: Mode
    bound: int
    sources: int
    limbs: int = 1

    def __post_init__(self) -> None:
        """Check that no sum can wrap.

        Raises:
            InputError: `sum-too-large`; `bad-params` for a mode, or a number of sources or of limbs, that
                there is not.
        """
        if self.mode not in MODES or self.limbs not in ((1, 2) if self.mode == "bfv" else (1,)):
            raise InputError(
                f"a secure sum with {self.limbs} limb(s) in a mode that is none of {', '.join(MODES)}, "
                "or has no such limbs",
                code="bad-params",
                hint='write mode = "bfv"',
            )
        if not MIN_SOURCES <= self.sources <= MAX_SOURCES:
            raise InputError(
                f"{self.sources} source(s), expected {MIN_SOURCES} to {MAX_SOURCES}",
                code="bad-params",
                hint="a sum over one department needs no protocol",
            )
        # With two limbs every word is below 2^32, so totals of 50 stay below 2^38 and cannot wrap, either.
        largest = (bfv.PRIME - 1) // 2 if self.modulus == bfv.PRIME else MAX_TOTAL
        if not 0 <= self.bound <= largest:
            raise InputError(
                f"a total of up to {self.bound} could wrap: these parameters carry sums up to {largest}",
                code="sum-too-large",
                hint="declare closer bounds for the measure, or fewer decimals",
            )

    @classmethod
    def choose(cls, mode: Mode, bound: int, sources: int) -> Self:
        """Return the parameters with the fewest limbs that carry `bound`.

        Raises:
            InputError: as the constructor does.
        """
        return cls(mode, bound, sources, 2 if mode == "bfv" and 2 * bound >= bfv.PRIME else 1)

    @property
    def modulus(self) -> int:
        """What words are masked modulo."""
        return bfv.PRIME if self.mode == "bfv" and self.limbs == 1 else RING

    @property
    def block(self) -> int:
        """Words in a block that carry something; its other words are checks."""
        return (bfv.DEGREE if self.mode == "bfv" else MASK_BLOCK) - CHECKS


@dataclass(frozen=True, slots=True)
class Sums:
    """One secure sum of vectors, all public.

    Attributes:
        sources: who adds, in order; the lower of two sends the seed.
        aggregator: who adds up what it cannot read; no source.
        key_holder: the source that learns the totals.
        words: length of every source's vector.
        bound: no total is above it or below its negative; no source's own word is beyond `share`.
        mode: `bfv`, or `mask` for very long vectors.
        ctx: 32 bytes, binds everything to all admissions of this attempt.
        meaning: bytes that say what each word stands for; two sources that disagree on them do not add.
        parameters: the numbers that carry a total, chosen from the rest.
    """

    sources: tuple[Role, ...]
    aggregator: Role
    key_holder: Role
    words: int
    bound: int
    mode: Mode
    ctx: bytes
    meaning: bytes = b""
    parameters: Parameters = field(init=False)

    def __post_init__(self) -> None:
        """Choose the parameters and check the plan.

        Raises:
            InputError: `bad-roles`, `too-many-words`, and as `Parameters` does.
        """
        parameters = Parameters.choose(self.mode, self.bound, len(self.sources))
        object.__setattr__(self, "parameters", parameters)
        if len(set(self.sources)) != len(self.sources) or (
            self.aggregator in self.sources or self.key_holder not in self.sources
        ):
            raise InputError(
                "the sources of a secure sum come twice, or the aggregator is one, or the key-holder is none",
                code="bad-roles",
                hint="name each source once, one of them as key-holder, and an aggregator beside them",
            )
        if self.words < 1 or self.words * parameters.limbs > MAX_WORDS[self.mode]:
            raise InputError(
                f"a vector of {self.words} words in {parameters.limbs} limb(s), expected 1 to "
                f"{MAX_WORDS[self.mode]} in all",
                code="too-many-words",
                hint='ask for fewer cells or measures at a time, or write mode = "mask"',
            )

    @property
    def share(self) -> int:
        """Largest absolute value of a word of one source."""
        return self.bound // len(self.sources)

    @property
    def blocks(self) -> int:
        """Blocks of a vector."""
        return -(-self.words // self.parameters.block)

    @property
    def places(self) -> int:
        """Ciphertexts of a vector; in mask mode, blocks."""
        return self.blocks * self.parameters.limbs

    def size(self, block: int) -> int:
        """Return how many words a block has, checks included. In mask mode the last one may be shorter."""
        parameters = self.parameters
        if self.mode == "bfv":
            return bfv.DEGREE
        return min(parameters.block, self.words - block * parameters.block) + CHECKS

    def body_bytes(self, block: int) -> int:
        """Return the length of a message of mask mode."""
        return self.size(block) * WORD_BYTES

    def digest(self) -> bytes:
        """Return the 32 bytes that every source has to agree on before data leaves."""
        plain = {
            "sources": [*self.sources],
            "aggregator": self.aggregator,
            "key_holder": self.key_holder,
            "words": self.words,
            "bound": str(self.bound),
            "mode": self.mode,
        }
        return sha256(_DOMAIN + self.ctx + sha256(self.meaning).digest() + canonical_json(plain)).digest()
