"""Columns of joined lists as codes: what a source makes of its rows before they are listed.

A list holds of each feature the row's code, as an amount, and a joined job turns it into words: a 1 at the
word of the code, 0 at the feature's others. Codes are those of `protocols.training.schema`, so that a model
means the same wherever its rows are.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt

from protocols.ids import Role
from protocols.jobs.job_type import ColumnNeed, Domain, InputBuilder, PreparedInput
from protocols.joined.lists import Amount, JoinedList
from protocols.joined.params import OwnAmount
from protocols.tables import numbers
from protocols.tables.layout import NUMBER_TYPES, TEXT_TYPES, decimal_text
from protocols.tables.tally import coded
from protocols.training.schema import Binned, Coded

MAX_SCORED: Final = 64
"""Most columns that a score is made of, and so most of a model that its owners keep to score with."""

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Coding:
    """A feature or the label of one source.

    Attributes:
        source: whose it is.
        slot: the job's word for the column.
        codes: texts in order. Of a feature, every other text and none has one code more, the last. Of a
            label, a listed text is 1 and every other one 0.
        edges: of numbers, ascending: code k is [edge k-1, edge k).
        missing: whether a row without a number has a code of its own, the last; else it does not count.
        label: whether it is the label; then a row without a value does not count.
    """

    source: Role
    slot: str
    codes: tuple[str, ...] = ()
    edges: tuple[Fraction, ...] = ()
    missing: bool = False
    label: bool = False

    @property
    def width(self) -> int:
        """How many codes there are."""
        if self.label:
            return 2
        return len(self.codes) + 1 if self.codes else len(self.edges) + 1 + self.missing

    @property
    def words(self) -> int:
        """Words of a row: one for each code; of the label the one that says that it is 1."""
        return 1 if self.label else self.width

    @property
    def amount(self) -> OwnAmount:
        """The code, as a list holds it."""
        return OwnAmount(self.source, Amount(self.slot, 0, self.width - 1), ())

    @property
    def need(self) -> ColumnNeed:
        """The column it takes."""
        if self.codes:
            return ColumnNeed(self.slot, "train", TEXT_TYPES, domain=Domain(named=self.codes))
        return ColumnNeed(self.slot, "train", NUMBER_TYPES, domain=Domain(bins=self.edges))

    @property
    def feature(self) -> Coded | Binned:
        """What recipes see of it, named as in a model's card."""
        name = f"{self.source}.{self.slot}"
        if self.codes:
            return Coded(name, self.codes)
        return Binned(name, tuple(map(float, self.edges)), self.missing)

    def placed(self, column: Any) -> Any:
        """Return each row's code; see `placed`.

        Raises:
            InputError: `not-text`, `not-a-number`: a column of another type.
        """
        if not (self.label and self.codes):
            missing = self.missing or bool(self.codes)
            return placed(column, self.slot, self.codes, self.edges, missing=missing)
        import pyarrow as pa

        positive = coded(column, dict.fromkeys(self.codes, 1), self.slot) == 1
        return pa.array(positive.astype(np.float64), mask=np.array(column.is_null()))

    def to_json(self) -> dict[str, Any]:
        """Return the plain JSON form, without its source."""
        return {
            "slot": self.slot,
            "codes": [*self.codes],
            "edges": [decimal_text(edge) for edge in self.edges],
            "missing": self.missing,
            "label": self.label,
        }


def placed(column: Any, slot: str, codes: Sequence[str], edges: Sequence[Fraction], *, missing: bool) -> Any:
    """Return each row's code as an Arrow array: null for none, NaN for what is no finite number.

    Args:
        column: texts or numbers, in Arrow.
        slot: what an error calls it.
        codes: texts, in order; empty for a column of numbers.
        edges: ascending; code k is [edge k-1, edge k).
        missing: whether a row without a listed text, or without a number, has one code more, the last.

    Raises:
        InputError: `not-text`, `not-a-number`: a column of another type.
    """
    import pyarrow as pa

    found = np.full(len(column), np.nan)
    if codes:
        places = coded(column, {text: place for place, text in enumerate(codes)}, slot)
        absent = places < 0
        found[~absent] = places[~absent]
    else:
        read, broken = numbers.read(column, slot)
        absent = ~broken
        for some in read:
            found[some.rows] = numbers.passed(some, edges)
            absent[some.rows] = False
    if missing:
        found[absent] = len(codes) or len(edges) + 1
        absent[:] = False
    return pa.array(found, mask=absent)


def one_hot(listed: JoinedList, codings: Sequence[Coding], rows: npt.NDArray[np.uint32]) -> Ints:
    """Return the words of these rows of a source's list, k x words, zeros of persons who do not count.

    Args:
        listed: as its builder made it, an amount for each coding.
        codings: the source's, in the order of the list's amounts.
        rows: k places in the list.
    """
    codes, counted = listed.amounts[rows], listed.counted[rows]
    found = np.zeros((len(rows), sum(each.words for each in codings)), dtype=np.int64)
    at = 0
    for place, each in enumerate(codings):
        if each.label:
            found[:, at] = codes[:, place]
        else:
            found[np.arange(len(rows)), at + codes[:, place]] = 1
        at += each.words
    found[~counted] = 0
    return found


class Placing(Protocol):
    """A column whose rows a model sees as codes."""

    @property
    def slot(self) -> str:
        """The job's word for it."""
        ...

    def placed(self, column: Any) -> Any:
        """Return each row's code; see `placed`."""
        ...


class CodedRows:
    """Takes a list's columns batch by batch, and passes on codes in the place of some of them."""

    def __init__(self, builder: InputBuilder, codings: Sequence[Placing]) -> None:
        """Pass rows on to `builder`, whose amounts are the codes."""
        self._builder, self._codings = builder, codings

    def add(self, batch: Mapping[str, Any]) -> None:
        """Take one batch: slot → Arrow array, all of one length.

        Raises:
            InputError: see `JoinedListBuilder.add`; `not-text`.
        """
        codes = {each.slot: each.placed(batch[each.slot]) for each in self._codings if each.slot in batch}
        self._builder.add({**batch, **codes})

    def finish(self) -> PreparedInput:
        """Keep one row of each person, and return the list.

        Raises:
            InputError: `bad-measure`, a number that is none.
        """
        return self._builder.finish()
