"""Which joined persons meet a rule: the rule, its words, and what is public of an attempt. SPEC.md, 7.

The parties are in rule_parties.py.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property
from math import ceil, floor
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from protocols.errors import InputError, ProtocolAborted
from protocols.ids import Role
from protocols.joined import bits
from protocols.joined.align import Way
from protocols.joined.field import Body, Stream, Words, words_of
from protocols.joined.parties import Joining
from protocols.sums.masks import RING, stream_key

MAX_CLAUSES: Final = 8
MAX_WIDTH: Final = 62
"""Bits of a compared value at most: it fits a 64-bit word, and so does each source's part of it."""

LOCK_BYTES: Final = 32

_LOCK_LABEL: Final = b"rule-lock"

Ints = npt.NDArray[np.int64]


# -- the rule ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Column:
    """A column that clauses may name.

    Attributes:
        slot: the job's word for it, or `present(source-2)`.
        owner: place of its list.
        low, high: least and greatest amount, in units of 10^-decimals.
        decimals: digits after the point.
        presence: 1 where the list has the person, so no column of the list itself.
    """

    slot: str
    owner: int
    low: int
    high: int
    decimals: int = 0
    presence: bool = False


@dataclass(frozen=True, slots=True)
class Clause:
    """The sum of weight times value is at least, or at most, a bound."""

    weights: tuple[tuple[str, int], ...]
    sense: Literal["at_least", "at_most"]
    bound: Fraction


@dataclass(frozen=True, slots=True)
class Form:
    """A clause in whole numbers: it holds where the sum of factor times amount, and `constant`, is >= 0.

    Attributes:
        factors: by slot, of amounts in their own units.
        constant: what is added.
        width: least B with the sum within -2^(B-1) and 2^(B-1) - 1, whatever the amounts.
        owners: places of the lists that have a column in it, ascending.
    """

    factors: Mapping[str, int]
    constant: int
    width: int
    owners: tuple[int, ...]


@dataclass(frozen=True)
class Rule:
    """A conjunction of clauses over columns of several lists, of persons who are on them as `ways` say."""

    ways: tuple[Way, ...]
    columns: tuple[Column, ...]
    clauses: tuple[Clause, ...]

    def __post_init__(self) -> None:
        _ = self.forms

    @cached_property
    def forms(self) -> tuple[Form, ...]:
        """Every clause in whole numbers.

        Raises:
            InputError: `overflow`, the values of a clause take more than 62 bits.
        """
        return tuple(map(self._form, self.clauses))

    def _form(self, clause: Clause) -> Form:
        of = {column.slot: column for column in self.columns}
        named = [(of[slot], weight) for slot, weight in clause.weights]
        decimals = max(column.decimals for column, _ in named)
        sign = 1 if clause.sense == "at_least" else -1
        bound = clause.bound * 10**decimals
        constant = -ceil(bound) if sign > 0 else floor(bound)
        factors: dict[str, int] = {}
        least = most = constant
        for column, weight in named:
            factor = factors[column.slot] = sign * weight * 10 ** (decimals - column.decimals)
            ends = [factor * column.low, factor * column.high]
            if self.ways[column.owner] == "may":
                ends.append(0)
            least, most = least + min(ends), most + max(ends)
        width = 1 + max(
            (most if most >= 0 else ~most).bit_length(), (least if least >= 0 else ~least).bit_length()
        )
        if width > MAX_WIDTH:
            raise InputError(
                f"the values of a clause take {width} bits, at most {MAX_WIDTH} are compared",
                code="overflow",
                hint="narrow the bounds of its columns, or use smaller weights or fewer decimals",
            )
        return Form(factors, constant, width, tuple(sorted({column.owner for column, _ in named})))

    def cuts(self, column: Column) -> tuple[Fraction | None, ...]:
        """Return where clauses cut a column: the least value above each cut, rounded as amounts are.

        None: a clause compares it with other columns, and so cuts it anywhere. Cuts outside its bounds, where
        everybody is on one side, are left out.
        """
        found: list[Fraction | None] = []
        for form in self.forms:
            factor = form.factors.get(column.slot)
            if factor is None:
                continue
            if len(form.factors) > 1:
                found.append(None)
                continue
            # factor * amount + constant >= 0: from the edge on, or up to it.
            edge = Fraction(-form.constant, factor)
            above = ceil(edge) if factor > 0 else floor(edge) + 1
            if column.low < above <= column.high:
                found.append(Fraction(above, 10**column.decimals))
        return tuple(found)

    @cached_property
    def crossing(self) -> tuple[Form, ...]:
        """Forms with columns of several lists: these are compared in shares."""
        return tuple(form for form in self.forms if len(form.owners) > 1)

    def local(self, owner: int) -> tuple[Form, ...]:
        """Return the forms that one list's owner decides alone."""
        return tuple(form for form in self.forms if form.owners == (owner,))

    @property
    def counting(self) -> int:
        """The first list that is "on": its owner says of each row whether it counts at all."""
        return self.ways.index("on")

    @property
    def alone(self) -> int | None:
        """The list that is alone to be "on"; the matcher is told which of its rows count. None: more are.

        With more, who does not count on one of them is not joined. With one there is nothing to compare its
        keys with, and joined would be whoever waits there, too; then a share of those joined bounds nothing.
        """
        return self.counting if self.ways.count("on") == 1 else None

    def has_bit(self, owner: int) -> bool:
        """Whether an owner sends a bit."""
        return owner == self.counting or bool(self.local(owner))

    def parts(self, owner: int) -> tuple[int, ...]:
        """Return the places in `crossing` of the forms an owner has a part in, in the order of words."""
        return tuple(place for place, form in enumerate(self.crossing) if owner in form.owners)

    def width(self, owner: int) -> int:
        """Return how many words an owner's row has: its parts, then perhaps a bit."""
        return len(self.parts(owner)) + self.has_bit(owner)

    @property
    def circuit(self) -> bits.Circuit:
        """What is asked of each joined row."""
        owners = range(len(self.ways))
        return bits.Circuit(tuple(form.width for form in self.crossing), sum(map(self.has_bit, owners)))

    def words(self, owner: int, amounts: Ints, counted: npt.NDArray[np.bool_]) -> Ints:
        """Return an owner's words of its rows; zeros of a row that does not count.

        Args:
            owner: its place.
            amounts: k x its columns (without presence), in the order of `columns`.
            counted: which rows count, k.

        Returns:
            k x width, modulo 2^64.
        """
        own = [column for column in self.columns if column.owner == owner and not column.presence]
        at = {column.slot: place for place, column in enumerate(own)}

        def summed(form: Form, constant: int) -> npt.NDArray[np.uint64]:
            total = np.full(len(amounts), constant % RING, dtype=np.uint64)
            for column in self.columns:
                factor = form.factors.get(column.slot, 0) if column.owner == owner else 0
                if factor and column.presence:
                    total += np.uint64(factor % RING)
                elif factor:
                    total += amounts[:, at[column.slot]].view(np.uint64) * np.uint64(factor % RING)
            return total

        words = np.zeros((len(amounts), self.width(owner)), dtype=np.uint64)
        parts = self.parts(owner)
        for word, place in enumerate(parts):
            words[:, word] = summed(self.crossing[place], 0)
        if self.has_bit(owner):
            holds = np.ones(len(amounts), dtype=np.bool_)
            for form in self.local(owner):
                # Within 62 bits, so modulo 2^64 it is the number itself.
                holds &= summed(form, form.constant).view(np.int64) >= 0
            words[:, len(parts)] = holds
        words[~counted] = 0
        return words.view(np.int64)

    def absent(self, owner: int) -> npt.NDArray[np.uint64]:
        """Return the words of a person who is not on a list that is "may": of zeros, and public."""
        words = np.zeros(self.width(owner), dtype=np.uint64)
        if self.has_bit(owner):
            words[-1] = all(form.constant >= 0 for form in self.local(owner))
        return words


@dataclass(frozen=True, slots=True)
class Ring:
    """The integers modulo 2^64, as a `Modulus`: sums wrap, and every word is one."""

    @property
    def bytes(self) -> Literal[8]:
        """Bytes of a word."""
        return 8

    @property
    def dtype(self) -> str:
        """The numpy dtype of words."""
        return "<u8"

    def encode(self, values: npt.NDArray[np.int64]) -> Words:
        """Return the words of whole numbers modulo 2^64."""
        return values.view(np.uint64)

    def subtract(self, one: Words, other: Words) -> Words:
        """Return `one` - `other`."""
        difference: Words = np.subtract(one, other)
        return difference

    def to_bytes(self, words: Words) -> Body:
        """Return words row by row, little-endian."""
        return words.astype(self.dtype, copy=False).tobytes()

    def read(self, body: Body, width: int) -> Words:
        """Return a received body as rows × `width` words.

        Raises:
            ProtocolAborted: `bad-length`.
        """
        return words_of(body, width, self.dtype)

    def stream(self, key: Body) -> Stream:
        """Begin the stream of uniform words of this AES-256 key."""
        return Stream(key, RING, self.bytes)


RING64: Final = Ring()


# -- what is public ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Question:
    """What is computed in one attempt, and by whom; all public.

    Attributes:
        rule: what is asked of each joined person.
        joining: lists, masks, alignment; its `rows` are what joined rows are padded to.
        dealer: who makes triples.
        source: whose envelopes go to the recipient.
        recipient: who opens them; perhaps a source, perhaps the same one.
        max_rows: most true rows.
        max_fraction: largest share of the joined rows that may be true.
        fewest: see `bits.Plan`.
    """

    rule: Rule
    joining: Joining[Ring]
    dealer: Role
    source: Role
    recipient: Role
    max_rows: int
    max_fraction: Fraction
    fewest: int = bits.FEWEST

    @classmethod
    def of(
        cls,
        rule: Rule,
        owners: Sequence[Role],
        key_holders: Sequence[Role],
        counts: Sequence[int],
        ctx: bytes,
        *,
        matcher: Role,
        helper: Role,
        dealer: Role,
        source: Role,
        recipient: Role,
        max_rows: int,
        max_fraction: Fraction,
        fewest: int = bits.FEWEST,
    ) -> "Question":
        """Return the question about lists with these numbers of admitted distinct keys."""
        joining = Joining.of(
            owners,
            key_holders,
            counts,
            ctx,
            matcher=matcher,
            helper=helper,
            field=RING64,
            widths=[rule.width(owner) for owner in range(len(owners))],
            open_sizes=[(2,) if owner == rule.alone else () for owner in range(len(owners))],
        )
        on = [count for count, way in zip(counts, rule.ways, strict=True) if way == "on"]
        joining = replace(joining, rows=max(1, min(on)))
        return cls(rule, joining, dealer, source, recipient, max_rows, max_fraction, fewest)

    @property
    def room(self) -> int:
        """Most rows that pass the guards, from public numbers: envelopes are padded to it."""
        return min(self.max_rows, floor(self.max_fraction * self.joining.rows))

    @cached_property
    def plan(self) -> bits.Plan:
        """How bits are computed."""
        return bits.Plan(self.rule.circuit, self.joining.rows, self.joining.ctx, self.fewest)

    @property
    def number(self) -> int:
        """The number of the source of records, from 1; it stands in records."""
        return self.joining.tags.owners.index(self.source) + 1

    def check(self, true: int, joined: int) -> None:
        """Check the guards on how many rows are true.

        Raises:
            ProtocolAborted: `guard-fraction`, `guard-rows`, naming the limit, never a count.
        """
        if true > self.max_fraction * joined:
            raise ProtocolAborted(
                f"the rule holds for more than {self.max_fraction} of the joined persons",
                code="guard-fraction",
                hint="ask for a narrower rule, or check that the lists are of the same population",
            )
        if true > self.max_rows:
            raise ProtocolAborted(
                f"the rule holds for more than {self.max_rows} persons",
                code="guard-rows",
                hint="ask for a narrower rule, or agree on a larger limit",
            )

    def lock_key(self, seed: bytes) -> bytes:
        """Return the key of the source's locks, from the seed that it shares with the helper."""
        return stream_key(seed, self.joining.ctx, self.source, self.joining.helper, _LOCK_LABEL)


def row_keys(key: bytes, positions: npt.NDArray[np.integer[Any]]) -> list[bytes]:
    """Return the lock keys of rows: AES-256 as a PRF, two blocks for each. SPEC.md, 7.4.

    Args:
        key: `Question.lock_key`.
        positions: of the rows in tag order.
    """
    blocks = np.zeros((len(positions), 2, 2), dtype=">u8")
    blocks[:, :, 1] = 2 * positions.astype(np.uint64)[:, np.newaxis] + np.arange(2, dtype=np.uint64)
    # Single blocks: a PRF's inputs, all different. Nothing is encrypted that anybody would decrypt.
    cipher = Cipher(algorithms.AES256(key), modes.ECB()).encryptor()  # noqa: S305  # see above
    drawn = cipher.update(blocks.tobytes())
    return [drawn[at : at + LOCK_BYTES] for at in range(0, len(drawn), LOCK_BYTES)]
