"""What a model sees of a row: codes from public lists and bins, amounts between public bounds.

Everything here is public and part of the job: bounds, edges and code lists that were taken from the data
would be a release of their own. Two nodes whose `Schema.digest` differs do not train together.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import sha256
from itertools import pairwise
from math import isfinite
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt

from protocols.encoding import canonical_json
from protocols.errors import InputError

Ints: TypeAlias = npt.NDArray[np.int64]
Floats: TypeAlias = npt.NDArray[np.float64]

AMOUNT_BITS: Final = 8
"""An amount is a whole number of 2^-8 of the way from its lower to its upper bound."""

MAX_CODES: Final = 1 << 12
"""Codes of one feature at most."""

_DOMAIN: Final = b"minshu/train-schema/1"


@dataclass(frozen=True, slots=True)
class Coded:
    """A column of codes from a public list. A code that is not on it is counted with the missing ones.

    Attributes:
        name: of the column.
        codes: in order, without duplicates.
    """

    name: str
    codes: tuple[str, ...]

    @property
    def width(self) -> int:
        """Codes, the one of unlisted and missing values among them; it is the last."""
        return len(self.codes) + 1

    @property
    def ordered(self) -> bool:
        """Whether neighbouring codes mean neighbouring values."""
        return False

    def encode(self, values: npt.NDArray[Any]) -> npt.NDArray[np.uint16]:
        """Return the place of each value in the list, n of them."""
        places = {code: place for place, code in enumerate(self.codes)}
        unlisted = len(self.codes)
        return np.fromiter((places.get(value, unlisted) for value in values.tolist()), np.uint16, len(values))


@dataclass(frozen=True, slots=True)
class Binned:
    """A column of numbers, cut at public edges: code k is [edge k-1, edge k), and the last one is missing.

    Attributes:
        name: of the column.
        edges: ascending, in the column's own unit.
        missing: whether an empty value may occur; where not, NaN is refused.
    """

    name: str
    edges: tuple[float, ...]
    missing: bool = False

    @property
    def width(self) -> int:
        """Codes, the one of missing values among them where there are any."""
        return len(self.edges) + 1 + self.missing

    @property
    def ordered(self) -> bool:
        """Whether neighbouring codes mean neighbouring values."""
        return True

    def encode(self, values: npt.NDArray[Any]) -> npt.NDArray[np.uint16]:
        """Return the bin of each value, n of them.

        Raises:
            InputError: `not-a-number`.
        """
        numbers = _numbers(self.name, values, missing=self.missing)
        bins = np.searchsorted(np.array(self.edges), numbers, side="right").astype(np.uint16)
        bins[np.isnan(numbers)] = self.width - 1
        return bins


@dataclass(frozen=True, slots=True)
class Amount:
    """A column of numbers that enters as it is, scaled by public bounds to 0 … 1 and cut there.

    Attributes:
        name: of the column.
        low: becomes 0, in the column's own unit.
        high: becomes 1.
    """

    name: str
    low: float
    high: float

    def encode(self, values: npt.NDArray[Any]) -> npt.NDArray[np.uint16]:
        """Return n whole numbers from 0 to 2^`AMOUNT_BITS`.

        Raises:
            InputError: `not-a-number`.
        """
        numbers = _numbers(self.name, values, missing=False)
        scaled = (numbers - self.low) / (self.high - self.low) * (1 << AMOUNT_BITS)
        return np.rint(np.clip(scaled, 0, 1 << AMOUNT_BITS)).astype(np.uint16)


@dataclass(frozen=True, slots=True)
class Rows:
    """One node's rows, as a model sees them. What a node trains on never leaves it in this form.

    Attributes:
        codes: n × p, of `Schema.coded`, each below its feature's width.
        amounts: n × q, of `Schema.amounts`, 0 to 2^`AMOUNT_BITS`.
        labels: n, each 0 or 1.
        memo: what a recipe has worked out of these rows and can work out again; never part of a message.
    """

    codes: npt.NDArray[np.uint16]
    amounts: npt.NDArray[np.uint16]
    labels: npt.NDArray[np.uint8]
    memo: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, places: npt.NDArray[Any] | slice) -> "Rows":
        """Return some of the rows: places, a mask or a span."""
        return Rows(self.codes[places], self.amounts[places], self.labels[places])

    def padded(self, size: int) -> Iterator[tuple[slice, "Rows"]]:
        """Yield all rows, `size` at a time and at least once, with where they stand; zeros fill up the last.

        What is computed of so many at a time takes the same memory whether a filter left one row or none.
        """
        for at in range(0, max(len(self), 1), size):
            span = slice(at, min(at + size, len(self)))
            some, short = self.take(span), at + size - span.stop
            if short:
                some = Rows(
                    np.pad(some.codes, ((0, short), (0, 0))),
                    np.pad(some.amounts, ((0, short), (0, 0))),
                    np.pad(some.labels, (0, short)),
                )
            yield span, some


@dataclass(frozen=True)
class Schema:
    """Features in their order, the same at every node.

    Raises:
        InputError: `bad-features` for no feature, a name twice, or bounds, edges or lists that are none.
    """

    coded: tuple[Coded | Binned, ...]
    amounts: tuple[Amount, ...] = ()

    def __post_init__(self) -> None:
        """Check the features."""
        names = [each.name for each in (*self.coded, *self.amounts)]
        if not names or len(set(names)) != len(names) or not all(map(_sound, (*self.coded, *self.amounts))):
            raise InputError(
                f"{len(names)} features: a name comes twice, or one has no usable bounds, edges or codes",
                code="bad-features",
                hint="name each feature once, with ascending finite edges, low below high, or distinct codes",
            )

    @cached_property
    def widths(self) -> tuple[int, ...]:
        """Codes of each coded feature."""
        return tuple(each.width for each in self.coded)

    @cached_property
    def offsets(self) -> Ints:
        """Where each coded feature begins among all codes, and at the end how many there are."""
        return np.concatenate(([0], np.cumsum(self.widths, dtype=np.int64))).astype(np.int64)

    @property
    def size(self) -> int:
        """Coefficients of a linear model: one for each code, one for each amount, and the constant."""
        return int(self.offsets[-1]) + len(self.amounts) + 1

    @cached_property
    def digest(self) -> bytes:
        """32 bytes that two nodes have to agree on before they train."""
        plain = [_plain(each) for each in (*self.coded, *self.amounts)]
        return sha256(_DOMAIN + canonical_json(plain)).digest()

    def encode(self, table: Mapping[str, npt.NDArray[Any]], labels: npt.NDArray[Any]) -> Rows:
        """Return the rows of a table.

        Args:
            table: n values for each feature's name; other columns are not looked at.
            labels: n, each 0 or 1.

        Raises:
            InputError: `missing-column`, `not-a-number`, `bad-labels`, `no-rows` or `constant-label`.
        """
        names = [each.name for each in (*self.coded, *self.amounts)]
        absent = [name for name in names if name not in table]
        if absent:
            raise InputError(
                f"columns {', '.join(absent)} are missing",
                code="missing-column",
                hint="give every column that the job names, or leave it out of the job everywhere",
            )
        if not len(labels) or any(len(table[name]) != len(labels) for name in names):
            raise InputError(
                f"{len(labels)} labels, and columns of another length or none",
                code="no-rows",
                hint="a node without labelled rows takes no part",
            )
        if not np.isin(labels, (0, 1)).all():
            raise InputError("a label is neither 0 nor 1", code="bad-labels", hint="declare what counts as 1")
        if labels.min() == labels.max():
            raise InputError(
                "all labels are the same",
                code="constant-label",
                hint="a node whose rows all have one label has nothing to learn from: leave it out",
            )
        return Rows(
            _columns([each.encode(table[each.name]) for each in self.coded], len(labels)),
            _columns([each.encode(table[each.name]) for each in self.amounts], len(labels)),
            labels.astype(np.uint8),
        )

    def dense(self, rows: Rows) -> Floats:
        """Return n × (`size` - 1) numbers from 0 to 1: a 1 for each code that a row has, then its amounts."""
        matrix = np.zeros((len(rows), self.size - 1))
        np.put_along_axis(matrix, rows.codes + self.offsets[:-1], 1.0, axis=1)
        matrix[:, int(self.offsets[-1]) :] = rows.amounts / (1 << AMOUNT_BITS)
        return matrix


def _numbers(name: str, values: npt.NDArray[Any], *, missing: bool) -> Floats:
    numbers = values.astype(np.float64)
    if np.isinf(numbers).any() or (not missing and np.isnan(numbers).any()):
        raise InputError(
            f"column {name} has a value that is no number",
            code="not-a-number",
            hint="leave such rows out, or declare the column with a place for missing values",
        )
    return numbers


def _columns(columns: Sequence[npt.NDArray[np.uint16]], rows: int) -> npt.NDArray[np.uint16]:
    return np.stack(columns, axis=1) if columns else np.zeros((rows, 0), np.uint16)


def _sound(feature: Coded | Binned | Amount) -> bool:
    match feature:
        case Coded(_, codes):
            return 0 < len(codes) < MAX_CODES and len(set(codes)) == len(codes)
        case Binned(_, edges):
            ascending = all(low < high for low, high in pairwise(edges))
            return 0 < len(edges) < MAX_CODES - 1 and ascending and all(map(isfinite, edges))
        case Amount(_, low, high):
            return isfinite(low) and isfinite(high) and low < high


def _plain(feature: Coded | Binned | Amount) -> dict[str, Any]:
    match feature:
        case Coded(name, codes):
            return {"name": name, "codes": [*codes]}
        case Binned(name, edges, missing):
            return {"name": name, "edges": [edge.hex() for edge in edges], "missing": missing}
        case Amount(name, low, high):
            return {"name": name, "low": low.hex(), "high": high.hex()}
