"""What is computed in one attempt of `train-joined`, all of it public: rows, rounds, and what is dealt."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from math import isqrt
from typing import Final

from protocols.dp.cost import Cost
from protocols.dp.mechanism import Noise
from protocols.errors import ProtocolAborted
from protocols.ids import Role
from protocols.joined import bits
from protocols.joined.field import WIDE, Field
from protocols.joined.parties import MAX_ROOM, Joining
from protocols.joined.triples import Shape, corrections_bytes, deal
from protocols.training.joined.cubes import DEALER, Cubes
from protocols.training.joined.descent import Descent, OneShot
from protocols.training.joined.held import MAX_COMPARED, Histogram
from protocols.training.logistic import WEIGHT_BITS
from protocols.training.schema import Ints

BATCH_WORDS: Final = 1 << 17
"""Words of powers in a batch, unless one iteration takes more."""

_DOMAIN: Final = b"minshu/train-joined/1"


@dataclass(frozen=True, slots=True)
class Noises:
    """The noise of a run.

    Attributes:
        count: on the number of joined persons, of the matcher alone.
        round: on what each round opens: the gradient, or second moments and then products with the label;
            of matcher and helper, who each add all of it.
        histogram: on counts of held-out rows, of both; None where nobody is held out.
        cost: of the whole run, for every list.
    """

    count: Noise
    round: tuple[Noise, ...]
    histogram: Noise | None
    cost: Cost


@dataclass(frozen=True, slots=True)
class Column:
    """A feature as words: a 1 at the word of the row's code.

    Attributes:
        owner: place of its source.
        start: its first word in the source's rows.
        width: how many codes.
    """

    owner: int
    start: int
    width: int


@dataclass(frozen=True, slots=True)
class Batch:
    """What the dealer sends at once.

    Attributes:
        size: bytes that go to the helper.
        deal: makes them of the matcher's seed and the helper's.
    """

    size: int
    deal: Callable[[bytes, bytes], bytes]


@dataclass(frozen=True)
class Plan:
    """What matcher, helper and dealer compute of joined rows.

    Attributes:
        joining: lists and words.
        columns: features in the job's order.
        label: owner and word of the label.
        model: how weights come about.
        holdout: of so many persons one is held out, each by a throw of its own; 0 for none.
        bins: of the counts of held-out rows.
        least: smallest group of persons of whom anything exact is told.
        noises: None: everything is exact.
        fewest: see `bits.Plan`.
    """

    joining: Joining[Field]
    columns: tuple[Column, ...]
    label: tuple[int, int]
    model: Descent | OneShot
    holdout: int
    bins: int
    least: int
    noises: Noises | None
    fewest: int = bits.FEWEST

    @property
    def rows(self) -> int:
        """N, what rows are padded to."""
        return self.joining.rows

    @property
    def size(self) -> int:
        """d, weights: of all codes, and the constant."""
        return sum(column.width for column in self.columns) + 1

    @property
    def rounds(self) -> int:
        """T; 1 where moments are opened once."""
        return self.model.rounds if isinstance(self.model, Descent) else 1

    def held_rows(self) -> int:
        """Return the places for held-out rows: more than ever come, but for a chance of 2^-46."""
        if not self.holdout:
            return 0
        # Bernstein for a sum of mean m at most: exp(-t²/(2m + 2t/3)) with t = 8√m + 40.
        mean = -(-self.rows // self.holdout)
        return min(self.rows, mean + 8 * (isqrt(mean) + 1) + 40)

    @cached_property
    def histogram(self) -> Histogram | None:
        """How held-out rows are counted; None where there are none."""
        if not self.holdout:
            return None
        return Histogram(self.held_rows(), self.model.cubic, self.bins, self.bound(b"held"), self.fewest)

    def bound(self, what: bytes, number: int = 0) -> bytes:
        """Return 32 bytes that bind streams to the attempt and one purpose."""
        plain = _DOMAIN + b"\0" + what + b"\0" + number.to_bytes(4, "big") + self.joining.ctx
        return hashlib.sha256(plain).digest()

    @property
    def matrix(self) -> Shape:
        """The product whose left factor are the features: of gradients' vectors, or of all with all."""
        if isinstance(self.model, Descent):
            return Shape(self.rows, self.size, self.rounds, WIDE)
        return Shape(self.rows, self.size + 1, None, WIDE)

    @cached_property
    def cubes(self) -> tuple[tuple[int, Cubes], ...]:
        """Batches of powers: of how many rounds, and their words."""
        if not isinstance(self.model, Descent):
            return ()
        at_once = max(1, BATCH_WORDS // self.rows)
        spans = [min(at_once, self.rounds - start) for start in range(0, self.rounds, at_once)]
        return tuple(
            (span, Cubes(span * self.rows, self.bound(b"cubes", number))) for number, span in enumerate(spans)
        )

    @cached_property
    def batches(self) -> tuple[Batch, ...]:
        """Everything that is dealt, in order: for the matrix, powers, then for what is held out."""
        matrix, ctx = self.matrix, self.bound(b"matrix")
        found = [Batch(corrections_bytes(matrix), lambda one, other: deal(matrix, one, other, ctx))]
        found += [Batch(each.correction_bytes, each.deal) for _, each in self.cubes]
        if (histogram := self.histogram) is not None:
            for number, size in enumerate(histogram.dealt_bytes()):
                found.append(
                    Batch(size, lambda one, other, number=number: histogram.deal(number, one, other))  # type: ignore[misc]  # the loop's number
                )
        return tuple(found)

    @property
    def room(self) -> int:
        """Bytes that the matcher holds: lists, rows, masked rows, factors, and powers with their masks.

        And rows of who is held out, with what they are counted with.
        """
        most_powers = max((each.words for _, each in self.cubes), default=0)
        factors = self.rounds if isinstance(self.model, Descent) else 0
        rows = WIDE.bytes * self.rows * (2 * self.size + factors) + 16 * WIDE.bytes * most_powers
        shape = self.matrix
        product = 9 * WIDE.bytes * shape.left * (shape.right or shape.left)
        held = 0
        if (histogram := self.histogram) is not None:
            held = WIDE.bytes * histogram.rows * (self.size + 1) + histogram.room
        return self.joining.room + rows + product + held

    def check_room(self) -> None:
        """Refuse what no node has memory for, once admissions say how long the lists are.

        Raises:
            ProtocolAborted: `guard-too-large`.
        """
        compared = 0 if self.histogram is None else self.histogram.compared
        if compared > MAX_COMPARED:
            raise ProtocolAborted(
                f"{compared} comparisons of held-out rows with edges, at most {MAX_COMPARED} are made",
                code="guard-too-large",
                hint="evaluate with fewer bins, or hold fewer out: a larger holdout",
            )
        if self.room > MAX_ROOM:
            raise ProtocolAborted(
                f"lists of these sizes and {self.size} weights take {self.room >> 20} MiB at the matcher, "
                f"more than {MAX_ROOM >> 20}",
                code="guard-too-large",
                hint="list fewer codes, or ask of datasets with fewer persons",
            )

    def scaled(self, weights: Ints) -> Ints:
        """Return weights in units of 2^-`WEIGHT_BITS`, as models have them."""
        scaled: Ints = weights << (WEIGHT_BITS - self.model.cubic.bits)
        return scaled

    @property
    def dealer(self) -> Role:
        """Who deals."""
        return DEALER
