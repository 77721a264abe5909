"""The public numbers of a comparison: form, buckets, bounds, rows, lengths of masks and messages. SPEC.md, 1.

All follow from the two sizes, in whole numbers: both sides, whatever their machine, have to agree.
"""

from dataclasses import dataclass
from math import isqrt
from typing import Final, Literal, Self

from protocols.ids import Role
from protocols.match.cuckoo import HASHES
from protocols.match.hashing import PLANES
from protocols.match.transpose import SIDE
from protocols.party import MAX_BODY_BYTES, UNDER_WAY
from protocols.psi.tagging import CHUNK_POINTS

Form = Literal["dh", "kkrt"]

PLANE_COLUMNS: Final = 2 * SIDE
"""Columns that make one block of every row."""
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
        dh_below: fewer entries than this on both sides are compared in the DH form anyway.
        least: a table of the receiver is made for at least so many items.
        receiver_mean: most items of the receiver in a bucket, on average.
        sender_most: most entries of the sender in a bucket, on average.
        message: bytes of a full message.
        points: points of a full message of the DH form.
    """

    dh_below: int = 1 << 11
    least: int = 1 << 16
    receiver_mean: int = 1 << 17
    sender_most: int = 1_000_000
    message: int = MAX_BODY_BYTES
    points: int = CHUNK_POINTS

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
    matrix_cut: tuple[int, ...]
    """Columns of each message of a unit's matrix, `COLUMNS` together."""
    mask_cut: tuple[int, ...]
    """Masks of each message of a unit's masks, `masks` together."""

    @classmethod
    def of(cls, receiver_items: int, sender_items: int, values: int, sizing: Sizing) -> Self:
        """Return the shape for so many items, and ids with so many entries each."""
        entries = sender_items * values
        bits = _SECURITY_BITS + (HASHES * receiver_items * entries - 1).bit_length()
        mask_bytes = max(_MIN_MASK_BYTES, -(-bits // 8))
        buckets = max(-(-receiver_items // sizing.receiver_mean), -(-entries // sizing.sender_most))
        # Until a unit's masks fit one message. A bucket for less than `least` would only add rows.
        while (
            buckets < receiver_items // sizing.least
            and bucket_bound(sender_items, buckets) * values * mask_bytes > sizing.message
        ):
            buckets += 1
        receiver_most, sender_most = (
            bucket_bound(items, buckets) for items in (receiver_items, sender_items)
        )
        rows = -(-127 * max(receiver_most, sizing.least) // (100 * HASHES))
        # Whole blocks of every column's stream.
        segment = -(-rows // PLANE_COLUMNS) * PLANE_COLUMNS
        return cls(
            values=values,
            buckets=buckets,
            receiver_most=receiver_most,
            sender_most=sender_most,
            segment=segment,
            mask_bytes=mask_bytes,
            matrix_cut=cut(COLUMNS, segment // 8, sizing.message),
            mask_cut=cut(sender_most * values, mask_bytes, sizing.message),
        )

    @property
    def masks(self) -> int:
        """Masks of a unit."""
        return self.sender_most * self.values

    @property
    def window(self) -> int:
        """Units that the receiver has under way at most.

        All masks of the units before the last one fit the receiver's inbox: SPEC.md, section 6.
        """
        return min(MAX_WINDOW, 1 + UNDER_WAY // len(self.mask_cut))

    @property
    def units(self) -> int:
        """Parts of the comparison that are sent and answered one by one: segments of all buckets."""
        return HASHES * self.buckets

    @property
    def rows(self) -> int:
        """Rows of all tables."""
        return self.units * self.segment

    @property
    def words(self) -> int:
        """Words of a unit's part of a column."""
        return self.segment // SIDE

    @property
    def column_bytes(self) -> int:
        """Length of a unit's part of a column."""
        return self.segment // 8


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
        exact: whether lists of any size are compared in the DH form, so that the receiver can compare no more
            items than it was admitted with.
    """

    receiver: Role
    sender: Role
    receiver_items: int
    sender_items: int
    values: int
    ctx: bytes
    sizing: Sizing = SIZING
    exact: bool = False

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
        """Which protocol is played. It follows from the job and the sizes alone."""
        return "dh" if self.exact else self.sizing.form(self.receiver_items, self.entries)

    @property
    def empty(self) -> bool:
        """Whether a list is empty: then the answer is known, and no message is sent."""
        return not self.receiver_items or not self.entries

    @property
    def shape(self) -> Shape:
        """The numbers of the KKRT form; only where no list is empty."""
        return Shape.of(self.receiver_items, self.sender_items, self.values, self.sizing)


def cut(items: int, size: int, message: int) -> tuple[int, ...]:
    """Return how many of `items` items of `size` bytes go into each message, so that little is padded.

    The channel pads a body to a power of two. So messages are full, and the rest goes into one that is padded
    by an eighth of a full message at most; where it would be by more, half of its power of two goes ahead.
    """
    found, room, spare = [], message, max(message // 8, size)
    while items:
        fits = room // size
        if items > fits:
            found.append(fits)
            items -= fits
        elif room - items * size > spare:
            room //= 2
        else:
            found.append(items)
            break
    return tuple(found)


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
