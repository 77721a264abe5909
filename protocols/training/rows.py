"""One department's rows as a model sees them: bounded person by person, encoded, some of them held out.

Built batch by batch from Arrow columns; no row becomes a Python object. Rows end in a worker process of the
same node, as columns; nothing of them is ever in a frame.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import date
from fractions import Fraction
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from protocols.encoding import canonical_json
from protocols.errors import InputError
from protocols.identifiers import AreaTable, rule_version
from protocols.ids import Digest
from protocols.jobs.job_type import UNIT, Unit
from protocols.tables import numbers
from protocols.tables.layout import Filter
from protocols.tables.tally import LATEST, NEVER, FilterRows, Units, coded, moments_of
from protocols.training.params import Feature, Label, feature_json
from protocols.training.recipe import MAX_ROWS
from protocols.training.schema import Amount, Binned, Coded, Floats

LABEL: Final = "label"
GROUP: Final = "group"
HELD: Final = "held"
"""Names of columns of a worker, beside those of features."""

RULES: Final = "training/1"
"""Version of the rules by which rows are chosen and encoded; a change that gives other columns raises it."""

_COMMITMENT: Final = b"minshu/training-rows/1\0"

I64 = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]
Columns = Mapping[str, npt.NDArray[Any]]


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a job wants of one dataset.

    Attributes:
        features: in order, what a model sees of a row.
        label: what it is to foresee.
        group: by what errors are told apart; None where all rows are one group.
        filters: which rows count.
        unit_rows: rows of one person that count.
        holdout: one person in so many is held out; 0: none, 1: all, as in a public test set.
        key: public, of the hash that says who is held out: the same persons in every department.
        public: whether the rows are about nobody, so that a refusal may tell of their labels.
    """

    features: tuple[Feature, ...]
    label: Label
    group: Coded | None
    filters: tuple[Filter, ...]
    unit_rows: int
    holdout: int
    key: bytes
    public: bool

    @property
    def required(self) -> frozenset[str]:
        """Slots that the dataset has to fill, without the unit's."""
        named = [each.name for each in (*self.features, *([self.group] if self.group else ()))]
        return frozenset({*named, self.label.slot, *(each.slot for each in self.filters)})

    def to_json(self) -> dict[str, Any]:
        """Return the plain JSON form."""
        return {
            "features": [feature_json(each) for each in self.features],
            "label": self.label.to_json(),
            "group": None if self.group is None else feature_json(self.group),
            "filters": [each.to_json() for each in self.filters],
            "unit_rows": self.unit_rows,
            "holdout": self.holdout,
            "key": self.key.hex(),
        }


@dataclass(frozen=True, slots=True, eq=False)
class TrainingRows:
    """Rows that count, encoded. Implements `PreparedInput`. Prints nothing of them."""

    wanted: Wanted
    rows: int
    distinct_keys: int  # persons that count
    rule_version: str
    _features: npt.NDArray[np.uint16]  # n x features, in the job's order
    _labels: npt.NDArray[np.uint8]  # n, each 0 or 1
    _groups: npt.NDArray[np.uint16]  # n
    _held: npt.NDArray[np.uint8]  # n, 1 for a row that is never trained on
    _reasons: Mapping[str, int] = field(default_factory=dict)

    def __len__(self) -> int:
        """Return how many rows count."""
        return len(self._labels)

    def columns(self) -> Columns:
        """Return what a worker gets: `f:` and slot → n codes or scaled amounts, `label`, `group`, `held`."""
        features = {
            f"f:{each.name}": np.ascontiguousarray(self._features[:, place])
            for place, each in enumerate(self.wanted.features)
        }
        return {**features, LABEL: self._labels, GROUP: self._groups, HELD: self._held}

    def quality(self) -> Mapping[str, int]:
        """Return what became of rows and values, by reason.

        `outside`: a filter leaves the row out; the reasons of `normalise`: no usable identifier;
        `over-bound`: more rows of one person than count; `no-date`: rows without a readable `latest`;
        `held-out`: rows that count and are never trained on. Of all rows: `no-value` numbers that may be
        missing, `clamped` amounts. A reason that never applies is left out.
        """
        return dict(self._reasons)

    def commitment(self, salt: bytes) -> Digest:
        r"""Return SHA-256(salt ‖ "minshu/training-rows/1\0" ‖ u32 length ‖ head ‖ rows), numbers big-endian.

        The head is canonical JSON of what the job wants and how many rows there are. A row is u16 for each
        feature, u16 group, u8 label and u8 whether it is held out; rows stand in ascending order.

        Args:
            salt: 32 random bytes, which the node keeps for auditors.

        Raises:
            ValueError: the salt has another length.
        """
        if len(salt) != 32:
            raise ValueError(f"salt of {len(salt)} bytes, expected 32")
        head = canonical_json({"wanted": self.wanted.to_json(), "rows": len(self)})
        digest = hashlib.sha256(salt + _COMMITMENT + len(head).to_bytes(4, "big") + head)
        wide = np.column_stack([self._features, self._groups]).astype(">u2")
        words = np.ascontiguousarray(wide).view(np.uint8).reshape(len(self), 2 * wide.shape[1])
        plain = np.ascontiguousarray(np.column_stack([words, self._labels, self._held]))
        digest.update(np.sort(plain.view(f"S{plain.shape[1]}").ravel()).tobytes())
        return Digest("sha256:" + digest.hexdigest())

    def __repr__(self) -> str:
        return f"TrainingRows({len(self.wanted.features)} features)"


@dataclass(slots=True, eq=False)
class _Found:
    """What is kept of rows, one array per batch."""

    features: list[npt.NDArray[np.uint16]] = field(default_factory=list)
    labels: list[npt.NDArray[np.uint8]] = field(default_factory=list)
    groups: list[npt.NDArray[np.uint16]] = field(default_factory=list)
    latest: list[I64] = field(default_factory=list)


class TrainingRowsBuilder:
    """Takes the slots that are wanted, the unit's column, and where mapped `latest`, batch by batch.

    Whether a dataset is sound is a matter of all its rows, whichever a job selects: otherwise a filter that
    is chosen well, and a refusal, would tell of the few rows between two filters. For the same reason no job
    ends for what its own `positive` or `at_least` makes of labels, with noise or without: whether anybody has
    one is an answer, and a search for the largest amount would be some twenty of them. It is only looked
    whether the column has more than one value at all; at a public test set the labels, too.
    """

    def __init__(self, wanted: Wanted, *, unit: Unit | None, as_of: date, areas: AreaTable) -> None:
        """Start without rows.

        Args:
            wanted: what the job wants.
            unit: whom a row is about, None where each row is about somebody of its own.
            as_of: the day on which identifiers are judged where `unit` does not say one.
            areas: the area codes that identifiers may have.
        """
        self._wanted, self._unit, self._areas = wanted, unit, areas
        self._filters = [FilterRows(each) for each in wanted.filters]
        self._reasons: Counter[str] = Counter()
        self._units = None if unit is None else Units(unit, as_of, areas, self._reasons)
        self._codes = {
            each.name: {code: place for place, code in enumerate(each.codes)}
            for each in (*wanted.features, wanted.group)
            if isinstance(each, Coded)
        }
        self._positive = dict.fromkeys(wanted.label.positive, 0)
        self._found = _Found()
        self._rows = self._bad = self._empty = self._unlabelled = 0
        self._dated: bool | None = None
        self._values: set[Any] = set()  # of the label's column, up to two
        self._labels: set[bool] = set()

    def add(self, batch: Mapping[str, Any]) -> None:
        """Take one batch: slot → Arrow array, all of one length.

        Raises:
            InputError: `unknown-slot`, a slot too many or too few; `length-mismatch`; `not-text`,
                `not-a-number`, `not-a-date`, a column of another type; `too-many-rows`; `bad-unit`.
        """
        wanted = self._wanted
        required = wanted.required | ({UNIT} if self._unit else set())
        if not required <= set(batch) <= required | {LATEST}:
            raise InputError(
                f"a batch of {len(batch)} slot(s), expected {', '.join(sorted(required))}",
                code="unknown-slot",
            )
        dated = LATEST in batch
        if self._dated not in (None, dated) or len({len(array) for array in batch.values()}) != 1:
            raise InputError("columns of a batch differ in length, or come and go", code="length-mismatch")
        self._dated = dated
        rows = len(next(iter(batch.values())))
        self._rows += rows
        if self._rows > MAX_ROWS:
            raise InputError(
                f"the dataset has more than {MAX_ROWS} rows",
                code="too-many-rows",
                hint="register the part of it that jobs are about as a dataset of its own",
            )
        if not rows:
            return
        # (1) What a model would see of every row. (2) Filters. (3) Units. (4) What is kept.
        features = np.empty((rows, len(wanted.features)), np.uint16)
        for place, each in enumerate(wanted.features):
            features[:, place] = self._encoded(each, batch[each.name])
        labels = self._labelled(batch[wanted.label.slot])
        passes = np.ones(rows, dtype=np.bool_)
        for kept in self._filters:
            passes &= kept.passes(batch[kept.slot])[0]
        here = np.flatnonzero(passes)
        self._reasons["outside"] += rows - len(here)
        if self._units is not None:
            here = self._units.take(batch[UNIT], here)
        group = wanted.group
        groups = np.zeros(rows, np.uint16) if group is None else self._encoded(group, batch[group.name])
        self._found.features.append(features[here])
        self._found.labels.append(labels[here])
        self._found.groups.append(groups[here])
        if dated:
            moments = moments_of(batch[LATEST])[here]
            self._reasons["no-date"] += int((moments == NEVER).sum())
            self._found.latest.append(moments)

    def finish(self) -> TrainingRows:
        """Bound every person's rows, hold some persons out, and return the rest.

        Raises:
            InputError: `unit-missing`, `no-usable-key`, `not-a-number`, `no-label` or `constant-label`.
        """
        self._refuse()
        found, self._found = self._found, _Found()
        none = np.zeros((0, len(self._wanted.features)), np.uint16)
        features = np.concatenate([none, *found.features])
        labels = np.concatenate([np.zeros(0, np.uint8), *found.labels])
        groups = np.concatenate([np.zeros(0, np.uint16), *found.groups])
        latest = np.concatenate(found.latest) if found.latest else None
        if self._units is None:
            persons, keep = len(labels), np.ones(len(labels), dtype=np.bool_)
            held = self._held_out(b"%d" % number for number in range(persons))
        else:
            units, keys, keep = self._units.bounded(latest, self._wanted.unit_rows)
            persons = len(keys)
            held = self._held_out(map(_plain, keys.to_pylist()))[units]
        held = held[keep]
        self._reasons["held-out"] = int(held.sum())
        return TrainingRows(
            wanted=self._wanted,
            rows=self._rows,
            distinct_keys=persons,
            rule_version=f"{RULES}+{rule_version(self._areas)}",
            _features=_fixed(features[keep]),
            _labels=_fixed(labels[keep]),
            _groups=_fixed(groups[keep]),
            _held=_fixed(held),
            _reasons={code: count for code, count in self._reasons.items() if count},
        )

    # -- batches ---------------------------------------------------------------------------------------------

    def _encoded(self, feature: Feature, column: Any) -> npt.NDArray[np.uint16]:
        """Return each row's code or scaled amount, n of them; what cannot be said of a row is counted."""
        if isinstance(feature, Coded):
            places = coded(column, self._codes[feature.name], feature.name)
            return np.where(places < 0, len(feature.codes), places).astype(np.uint16)
        found, bad = numbers.read(column, feature.name)
        empty = ~bad
        codes = np.full(len(column), 0 if isinstance(feature, Amount) else feature.width - 1, np.uint16)
        for some in found:
            empty[some.rows] = False
            if isinstance(feature, Amount):
                values = _doubles(some)
                codes[some.rows] = feature.encode(values)
                self._reasons["clamped"] += int(((values < feature.low) | (values > feature.high)).sum())
            else:
                codes[some.rows] = numbers.passed(some, _edges(feature, some))
        self._bad += int(bad.sum())
        if isinstance(feature, Binned) and feature.missing:
            self._reasons["no-value"] += int(empty.sum())
        else:
            self._empty += int(empty.sum())
        return codes

    def _labelled(self, column: Any) -> npt.NDArray[np.uint8]:
        """Return each row's label, n of them; rows without one are counted."""
        label = self._wanted.label
        if label.at_least is None:
            there = coded(column, self._positive, label.slot) >= 0
            missing = _nothing(column, label.slot)
        else:
            found, bad = numbers.read(column, label.slot)
            there, missing = np.zeros(len(column), dtype=np.bool_), ~bad
            for some in found:
                there[some.rows] = numbers.passed(some, [label.at_least]) > 0
                missing[some.rows] = False
            self._bad += int(bad.sum())
        self._unlabelled += int(missing.sum())
        self._labels.update(np.unique(there[~missing]).tolist())
        if len(self._values) < 2:
            self._values.update(_some(column))
        return there.astype(np.uint8)

    # -- the whole -------------------------------------------------------------------------------------------

    def _refuse(self) -> None:
        if self._units is not None:
            self._units.refuse(self._rows)
        if self._bad or self._empty:
            raise InputError(
                f"{self._bad} values of features or labels are no finite numbers, {self._empty} are missing "
                "where a number has to be",
                code="not-a-number",
                hint="fill or leave out such rows, or cut the feature at edges with a place for missing",
            )
        if self._unlabelled:
            raise InputError(
                f"{self._unlabelled} of {self._rows} rows have no label",
                code="no-label",
                hint="leave those rows out of the dataset: a model cannot learn from them",
            )
        if self._rows and (len(self._values) < 2 or (self._wanted.public and len(self._labels) < 2)):
            raise InputError(
                f"all {self._rows} rows have the same label",
                code="constant-label",
                hint="check which column is the label and what counts as 1; else leave the department out",
            )

    def _held_out(self, keys: Iterable[bytes]) -> npt.NDArray[np.uint8]:
        """Return for each unit whether it is held out."""
        among = self._wanted.holdout
        if among < 2:  # nobody, or everybody: whoever it is
            return np.fromiter((among for _ in keys), np.uint8)
        words = (hashlib.blake2b(key, digest_size=8, key=self._wanted.key).digest() for key in keys)
        return np.fromiter((int.from_bytes(word, "big") % among == 0 for word in words), np.uint8)


def _edges(feature: Binned, some: numbers.Numbers) -> list[Fraction]:
    """Return the edges that numbers of one form are compared with, without rounding.

    A double is compared with the double next to the edge, so that 0.3 is 0.3 however it is stored.
    """
    doubles = some.scale is None and some.values.dtype == np.float64
    return [Fraction(edge) if doubles else Fraction(repr(edge)) for edge in feature.edges]


def _doubles(some: numbers.Numbers) -> Floats:
    if some.scale is None:
        return np.asarray(some.values, np.float64)
    import pyarrow as pa

    return np.asarray(some.values.cast(pa.float64()).to_numpy(zero_copy_only=False), np.float64)


def _nothing(column: Any, slot: str) -> Mask:
    """Return which rows are null, or text without a character other than blanks."""
    import pyarrow as pa
    import pyarrow.compute as pc

    plain = column.dictionary_decode() if pa.types.is_dictionary(column.type) else column
    empty: Mask = np.asarray(pc.is_null(plain)) | (coded(column, {"": 0}, slot) >= 0)
    return empty


def _some(column: Any) -> list[Any]:
    """Return up to two different values of a column."""
    import pyarrow.compute as pc

    found: list[Any] = pc.unique(pc.drop_null(column))[:2].to_pylist()
    return found


def _plain(unit: int | bytes) -> bytes:
    """Return a unit as the same bytes in every department, however its column is stored and however wide."""
    # 1 ends a text, see `Units`: a number and the text that says it are one unit.
    return b"%d\x01" % unit if isinstance(unit, int) else unit.rstrip(b"\0")


def _fixed(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    values.setflags(write=False)
    return values
