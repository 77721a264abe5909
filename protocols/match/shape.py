"""The public numbers of a comparison: form, buckets, bounds, rows, lengths of masks and messages. SPEC.md, 1.

All follow from the two sizes, in whole numbers: both sides, whatever their machine, have to agree.
"""

from dataclasses import dataclass, field
from math import isqrt
from typing import Final, Literal, Self

from protocols.ids import Role
from protocols.match.cuckoo import HASHES
from protocols.match.hashing import PLANES
from protocols.match.transpose import SIDE
from protocols.party import MAX_BODY_BYTES, UNDER_WAY

Form = Literal["dh", "kkrt"]

PLANE_COLUMNS: Final = 2 * SIDE
"""Columns of one message of the matrix, and bits of a block."""
COLUMNS: Final = PLANES * PLANE_COLUMNS

MAX_BUCKET: Final = 1 << 20
"""Most entries of the sender in a bucket."""
MAX_WINDOW: Final = 3

_SECURITY_BITS: Final = 40
_MIN_MASK_BYTES: Final = 8


@dataclass(frozen=True, slots=True)
class Sizing:
    """How large buckets are. Only tests have other values than these.

    Args:
        dh_below: fewer entries than this on both sides are compared in the DH form.
        least: a table of the receiver is made for at least so many items.
        receiver_mean: most items of the receiver in a bucket, on average.
        sender_mean: most entries of the sender in a bucket, on average, while the receiver has `least`.
        sender_most: the same, whatever the receiver has.
    """

    dh_below: int = 1 << 16
    least: int = 1 << 16
    receiver_mean: int = 1 << 17
    sender_mean: int = 1 << 18
    sender_most: int = 1_000_000

    def form(self, receiver_items: int, sender_entries: int) -> Form:
        """Return the form in which lists of these sizes are compared."""
        return "dh" if max(receiver_items, sender_entries) < self.dh_below else "kkrt"


SIZING: Final = Sizing()


@dataclass(frozen=True, slots=True)
class Shape:
    """The numbers of the KKRT form for two sizes, neither zero."""

    values: int
    """Entries of the sender for each of its ids."""
    buckets: int
    receiver_most: int
    """Most items of the receiver in one bucket."""
    sender_most: int
    """Most ids of the sender in one bucket; masks are filled up to it."""
    segment: int
    """Rows of a unit: one of the three segments of a bucket's table."""
    mask_bytes: int

    masks: int = field(init=False)
    """Masks of a unit."""
    mask_chunk: int = field(init=False)
    """Masks of every message of a unit but the last."""
    window: int = field(init=False)
    """Units that the receiver has under way at most."""

    def __post_init__(self) -> None:
        """Work out how masks are cut into messages, and from that how far the receiver may be ahead."""
        masks = self.sender_most * self.values
        messages = -(-masks // (MAX_BODY_BYTES // self.mask_bytes))
        object.__setattr__(self, "masks", masks)
        object.__setattr__(self, "mask_chunk", -(-masks // messages))
        # All masks of the units behind the first one fit the receiver's inbox: SPEC.md, section 6.
        object.__setattr__(self, "window", min(MAX_WINDOW, 1 + UNDER_WAY // messages))

    @classmethod
    def of(cls, receiver_items: int, sender_items: int, values: int, sizing: Sizing) -> Self:
        """Return the shape for so many items, and ids with so many entries each."""
        entries = sender_items * values
        buckets = max(
            -(-receiver_items // sizing.receiver_mean),
            min(-(-entries // sizing.sender_mean), receiver_items // sizing.least),
            -(-entries // sizing.sender_most),
        )
        receiver_most = bucket_bound(receiver_items, buckets)
        rows = -(-127 * max(receiver_most, sizing.least) // (100 * HASHES))
        bits = _SECURITY_BITS + (HASHES * receiver_items * entries - 1).bit_length()
        return cls(
            values=values,
            buckets=buckets,
            receiver_most=receiver_most,
            sender_most=bucket_bound(sender_items, buckets),
            # Whole blocks of every column's stream.
            segment=-(-rows // PLANE_COLUMNS) * PLANE_COLUMNS,
            mask_bytes=max(_MIN_MASK_BYTES, -(-bits // 8)),
        )

    @property
    def units(self) -> int:
        """Parts of the comparison that are sent and answered one by one: segments of all buckets."""
        return HASHES * self.buckets

    @property
    def words(self) -> int:
        """Words of a unit's part of a column."""
        return self.segment // SIDE

    @property
    def plane_bytes(self) -> int:
        """Length of a message of the matrix."""
        return PLANE_COLUMNS * self.segment // 8


@dataclass(frozen=True, slots=True)
class Match:
    """One comparison; all public.

    Args:
        receiver: who learns which of its items the sender has.
        sender: who learns nothing.
        receiver_items: items of the receiver, as admitted.
        sender_items: keys of the sender, as admitted.
        values: entries of the sender for each of its keys, each with a mark of its own.
        ctx: 32 bytes, binds everything to all admissions.
        sizing: for tests; how large buckets are.
    """

    receiver: Role
    sender: Role
    receiver_items: int
    sender_items: int
    values: int
    ctx: bytes
    sizing: Sizing = SIZING

    @property
    def entries(self) -> int:
        """Entries of the sender in all."""
        return self.sender_items * self.values

    @property
    def sizes(self) -> bytes:
        """The three sizes as both sides state them: 17 bytes."""
        sizes = (self.receiver_items.to_bytes(8, "big"), self.sender_items.to_bytes(8, "big"))
        return b"".join((*sizes, self.values.to_bytes(1, "big")))

    @property
    def form(self) -> Form:
        """Which protocol is played. It follows from the sizes alone."""
        return self.sizing.form(self.receiver_items, self.entries)

    @property
    def empty(self) -> bool:
        """Whether a list is empty: then the answer is known, and no message is sent."""
        return not self.receiver_items or not self.entries

    @property
    def shape(self) -> Shape:
        """The numbers of the KKRT form; only where no list is empty."""
        return Shape.of(self.receiver_items, self.sender_items, self.values, self.sizing)


def bucket_bound(items: int, buckets: int) -> int:
    """Return a number that no bucket exceeds, but with probability 2^-41, if each item's bucket is random.

    Bernstein's inequality, P(X ≥ μ + d) ≤ exp(−d² / 2(μ + d/3)), and the union over buckets, rounded up.
    """
    if buckets == 1:
        return items
    # A bucket's share of 2^32 numbers is rounded: one item more, for up to 2^32 of them.
    mean = -(-items // buckets) + 1
    exponent = -(-(_SECURITY_BITS + 1 + buckets.bit_length()) * 6932 // 10000)
    excess = (exponent + isqrt(exponent**2 + 18 * exponent * mean)) // 3 + 1
    return min(items, mean + excess)
