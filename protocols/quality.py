"""How good a table is: what is missing, what is no identifier, what is there twice, how old it is.

One pass, batch by batch, in bounded memory; what is kept are counts, and of keys 64-bit hashes. The same
definitions serve a department's own preflight and a job that adds the counts of several.

A share is in thousandths, rounded to its bad side: what is complete or valid down, what is repeated or off
the catalogue up. A threshold with three places after the point is then met by the share if and only if it is
met by the exact figure, so nobody has to be told more than the share to see why something was refused.
"""

import hashlib
from collections import Counter
from collections.abc import Collection, Container, Mapping
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final, Self, TypeAlias, TypeVar

import msgspec
import numpy as np
import numpy.typing as npt

from protocols.errors import DecodeError, InputError
from protocols.identifiers import AreaTable, normalise

if TYPE_CHECKING:
    import pyarrow as pa

THOUSAND: Final = 1000
"""What a share of everything is."""

MOST_DISTINCT: Final = 10_000
"""Up to so many distinct values of a column are counted; of more it is only said that there are more."""

SEED_BYTES: Final = 32

_MARKS: Final = (
    "- -- --- — —— / // \\ . .. ? ?? * ** null nan n/a #n/a #null! 无 無 空 未知 不详 不明 暂无 暂缺 "
    "未填 未填写 待补 待补充 待定 无数据"
)
PLACEHOLDERS: Final = frozenset(_MARKS.split())
"""What people and programs write where there is nothing to write; compared after NFKC, in lower case."""

_LONGEST_PLACEHOLDER: Final = 16
"""Bytes, as typed: `ＮＵＬＬ` in full width has 12."""

_FIRST_DAY: Final = date(1900, 1, 1)
_DAY: Final = r"^([0-9]{4})[-/.]?([0-9]{2})[-/.]?([0-9]{2})([T ].*)?$"
_MONTH_DAYS: Final = np.array([0, 31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31], dtype=np.int32)
_T = TypeVar("_T")
_U64: TypeAlias = "npt.NDArray[np.uint64]"


class Metric(StrEnum):
    """What a threshold can be about.

    `completeness`: rows with a value, of all rows; per column. A value that no code table translates is none.
    `valid-keys`: rows whose key is an identifier by protocols/identifiers/SPEC.md, of those with a value.
    `age`: days begun since the table was written.
    `drift`: distinct keys against those that the catalogue says.
    `repeated`: rows whose key an earlier row has, of those with a valid key.
    """

    COMPLETENESS = "completeness"
    VALID_KEYS = "valid-keys"
    AGE = "age"
    DRIFT = "drift"
    REPEATED = "repeated"


@dataclass(frozen=True, slots=True)
class ColumnCounts:
    """What a pass counted in one column.

    Attributes:
        rows: all rows.
        null: without a value.
        blank: with nothing but white space.
        placeholder: with one of `PLACEHOLDERS`, unless the column's code table knows it.
        unmapped: with a value that the dataset's mapping does not translate.
        outside: with a value that the column's code table does not have.
        future: with a day after the one that the table was read for; None where the column has no days.
        early: with a day before 1900; None as above.
        malformed: with a text or whole number that is no day, in a column of days.
        distinct: values, missing ones apart; None for more than `MOST_DISTINCT`, or values of no simple type.
    """

    rows: int
    null: int = 0
    blank: int = 0
    placeholder: int = 0
    unmapped: int = 0
    outside: int = 0
    future: int | None = None
    early: int | None = None
    malformed: int = 0
    distinct: int | None = None

    @property
    def missing(self) -> int:
        """Rows without a value."""
        return self.null + self.blank + self.placeholder + self.unmapped

    def to_json(self) -> dict[str, Any]:
        """Return the plain JSON form; zeros and what does not apply are left out."""
        named = {name: getattr(self, name) for name in self.__slots__ if name != "rows"}
        return {"rows": self.rows, **{name: count for name, count in named.items() if count is not None}}


@dataclass(frozen=True, slots=True)
class KeyCounts:
    """What a pass counted in the column of identifiers.

    Attributes:
        rows: all rows.
        missing: without a value, see `ColumnCounts.missing`.
        valid: with an identifier.
        distinct: different identifiers among them. Counted by 64-bit hashes that agree for two different keys
            with probability 2^-64: too low by one or more with probability below 2e-5 at 2.3e7 keys.
        rejected: rows with a value that is no identifier, by reason code; `bad-check-digit` is one.
    """

    rows: int
    missing: int
    valid: int
    distinct: int
    rejected: Mapping[str, int] = field(default_factory=dict)

    @property
    def repeated(self) -> int:
        """Rows whose key another row has already."""
        return self.valid - self.distinct

    def to_json(self) -> dict[str, Any]:
        """Return the plain JSON form."""
        return {
            "rows": self.rows,
            "missing": self.missing,
            "valid": self.valid,
            "distinct": self.distinct,
            "rejected": dict(self.rejected),
        }

    @classmethod
    def from_json(cls, plain: Any) -> Self:
        """Read the plain JSON form.

        Raises:
            DecodeError: `bad-field`.
        """
        return _converted(plain, cls)


@dataclass(frozen=True, slots=True)
class QualityCounts:
    """What a pass counted. `key` is None for a table without a column of identifiers."""

    rows: int
    columns: Mapping[str, ColumnCounts]
    key: KeyCounts | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the plain JSON form."""
        columns = {name: counts.to_json() for name, counts in self.columns.items()}
        return {
            "rows": self.rows,
            "columns": columns,
            **({} if self.key is None else {"key": self.key.to_json()}),
        }

    @classmethod
    def from_json(cls, plain: Any) -> Self:
        """Read the plain JSON form.

        Raises:
            DecodeError: `bad-field`.
        """
        return _converted(plain, cls)


@dataclass(frozen=True, slots=True)
class Shares:
    """What may be said of a table to anybody: thousandths, and no count.

    Attributes:
        completeness: by column, rounded down.
        valid_keys: rounded down; this and those below None for a table without identifiers.
        repeated: rounded up.
        drift: rounded up; may be above a thousand.
    """

    completeness: Mapping[str, int]
    valid_keys: int | None = None
    repeated: int | None = None
    drift: int | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the plain JSON form."""
        of_keys = {"valid_keys": self.valid_keys, "repeated": self.repeated, "drift": self.drift}
        known = {name: share for name, share in of_keys.items() if share is not None}
        return {"completeness": dict(self.completeness), **known}

    @classmethod
    def from_json(cls, plain: Any) -> Self:
        """Read the plain JSON form.

        Raises:
            DecodeError: `bad-field`.
        """
        if not isinstance(plain, dict) or not {"completeness"} <= set(plain) <= _SHARES:
            raise DecodeError(f"shares are not exactly {', '.join(sorted(_SHARES))}", code="bad-field")
        columns = plain["completeness"]
        of_keys = [plain[name] for name in plain if name != "completeness"]
        if not isinstance(columns, dict) or not all(map(_is_share, (*columns.values(), *of_keys))):
            raise DecodeError("a share is no whole number of thousandths", code="bad-field")
        if len(of_keys) not in (0, len(_SHARES) - 1):
            raise DecodeError("some shares of keys are there and others are not", code="bad-field")
        return cls(**plain)


def _converted(plain: Any, kind: type[_T]) -> _T:
    try:
        return msgspec.convert(plain, kind, strict=True)
    except msgspec.ValidationError:
        raise DecodeError("counts of a table do not have the expected form", code="bad-field") from None


_SHARES: Final = frozenset({"completeness", "valid_keys", "repeated", "drift"})


def _is_share(value: Any) -> bool:
    return type(value) is int and value >= 0


def thousandths(part: int, whole: int, *, up: bool) -> int:
    """Return `part` of `whole` in thousandths, rounded up or down; of nothing 0, for nothing is complete."""
    if not whole:
        return 0
    return -(-THOUSAND * part // whole) if up else THOUSAND * part // whole


def drift(distinct: int, published: int) -> int:
    """Return by how many thousandths of the catalogue's number of keys a table's differs, rounded up."""
    return thousandths(abs(distinct - published), max(published, 1), up=True)


def shares_of(found: QualityCounts, published_keys: int) -> Shares:
    """Return what may be said of a table whose catalogue entry says `published_keys`."""
    complete = {
        name: thousandths(counts.rows - counts.missing, counts.rows, up=False)
        for name, counts in found.columns.items()
    }
    key = found.key
    if key is None:
        return Shares(complete)
    return Shares(
        complete,
        valid_keys=thousandths(key.valid, key.rows - key.missing, up=False),
        repeated=thousandths(key.repeated, key.valid, up=True),
        drift=drift(key.distinct, published_keys),
    )


def age_in_days(snapshot: datetime, now: datetime) -> int:
    """Return how many days have begun since `snapshot`: 0 at that moment, 8 when 7 days are over."""
    return max(-((snapshot - now) // timedelta(days=1)), 0)


class DistinctKeys:
    """Counts distinct typed keys of one width, by sorted hashes: 8 to 10 bytes for each distinct key.

    The hash is multilinear over 32-bit words, strongly universal (Lemire and Kaser 2014, "Strongly universal
    string hashing is fast", section 2): two different keys agree in both halves with probability 2^-64,
    whatever they are, over the choice of the seed.
    """

    _BUCKETS: Final = 64
    _LEAST: Final = 4096

    def __init__(self, seed: bytes) -> None:
        """Hash with what `seed`, `SEED_BYTES` random bytes, stands for."""
        self._seed = seed
        self._width = 0
        self._multipliers: _U64 = np.zeros(0, dtype=np.uint64)
        nothing = np.zeros(0, dtype=np.uint64)
        self._kept: list[_U64] = [nothing] * self._BUCKETS
        self._new: list[list[_U64]] = [[] for _ in range(self._BUCKETS)]
        self._waiting = [0] * self._BUCKETS

    def add(self, keys: npt.NDArray[np.bytes_]) -> None:
        """Take keys, as `normalise` returns them; every call has the same width."""
        if not len(keys):
            return
        hashes = np.sort(self._hash(keys))
        first = np.arange(self._BUCKETS + 1, dtype=np.float64) * (2.0**64 / self._BUCKETS)
        cuts = np.searchsorted(hashes, first[1:-1].astype(np.uint64)).tolist()
        for bucket, (start, end) in enumerate(zip((0, *cuts), (*cuts, len(hashes)), strict=True)):
            if start < end:
                # A copy: a slice would keep all of these hashes for as long as one bucket waits.
                self._new[bucket].append(hashes[start:end].copy())
                self._waiting[bucket] += end - start
                if self._waiting[bucket] > max(self._LEAST, len(self._kept[bucket]) // 4):
                    self._compact(bucket)

    def count(self) -> int:
        """Return how many distinct keys there were."""
        for bucket in range(self._BUCKETS):
            self._compact(bucket)
        return sum(map(len, self._kept))

    def _compact(self, bucket: int) -> None:
        if self._new[bucket]:
            self._kept[bucket] = np.unique(np.concatenate([self._kept[bucket], *self._new[bucket]]))
            self._new[bucket], self._waiting[bucket] = [], 0

    def _hash(self, keys: npt.NDArray[np.bytes_]) -> _U64:
        width = keys.dtype.itemsize
        words = -(-width // 4)
        if width != self._width:
            assert not self._width, "keys of one column have one width"
            self._width = width
            drawn = hashlib.shake_256(self._seed).digest(2 * (words + 1) * 8)
            self._multipliers = np.frombuffer(drawn, dtype="<u8").astype(np.uint64).reshape(2, words + 1)
        padded = np.ascontiguousarray(keys.astype(f"S{4 * words}", copy=False))
        columns = padded.view("<u4").reshape(len(keys), words).astype(np.uint64)
        halves = []
        for constant, *factors in self._multipliers:
            total = np.full(len(keys), constant, dtype=np.uint64)
            for place, factor in enumerate(factors):
                total += columns[:, place] * factor
            halves.append(total >> np.uint64(32))
        return (halves[0] << np.uint64(32)) | halves[1]


@dataclass(slots=True)
class _Column:
    """What is counted of one column so far. `values` are digests of at most MOST_DISTINCT of its values."""

    codes: Container[str] | None
    holds_days: bool
    counted: Counter[str] = field(default_factory=Counter)
    values: set[bytes] | None = field(default_factory=set)
    has_days: bool = False


class QualityBuilder:
    """Counts a table batch by batch. Keeps no value of it."""

    def __init__(
        self,
        columns: Collection[str],
        *,
        key: str = "",
        kind: str = "resident-id",
        as_of: date,
        areas: AreaTable,
        seed: bytes,
        codes: Mapping[str, Container[str]] | None = None,
        days: Collection[str] = (),
    ) -> None:
        """Count these columns.

        Args:
            columns: their names, the key's included.
            key: the column of identifiers, empty for none.
            kind: their type, see `protocols.identifiers`.
            as_of: the day on which ages are reckoned, and after which a day lies in the future.
            areas: area codes that were ever valid.
            seed: `SEED_BYTES` random bytes.
            codes: the values that a column may have, for columns with a code table.
            days: columns of text or whole numbers that hold days, as 2024-01-31 or 20240131.
        """
        known = codes or {}
        self._columns = {name: _Column(known.get(name), name in days) for name in columns}
        self._key, self._kind, self._as_of, self._areas = key, kind, as_of, areas
        self._rows = self._valid = 0
        self._rejected: Counter[str] = Counter()
        self._distinct = DistinctKeys(seed)

    def add(self, batch: "Mapping[str, pa.Array[Any]]") -> None:
        """Take one batch: column name → pyarrow array, all of one length.

        Raises:
            InputError: the key column is not text, or a text is not UTF-8.
        """
        import pyarrow as pa

        rows = 0
        for name, column in self._columns.items():
            values = batch[name]
            rows = len(values)
            try:
                present = _count(column, values, self._as_of)
            except pa.ArrowInvalid:
                # Arrow's own message could quote a value.
                raise InputError(
                    f"column {name} holds text that is not UTF-8",
                    code="not-utf8",
                    hint="convert it first, for example with iconv -f GB18030 -t UTF-8",
                ) from None
            if name == self._key:
                found = normalise(present, self._kind, as_of=self._as_of, areas=self._areas)
                self._valid += len(found.keys)
                self._rejected.update(found.counts())
                self._distinct.add(found.keys)
        self._rows += rows

    def finish(
        self, unmapped: Mapping[str, int] | None = None, outside: Mapping[str, int] | None = None
    ) -> QualityCounts:
        """Return what was counted.

        Args:
            unmapped: by column, how many of the nulls stand for values that a mapping does not translate.
            outside: by column, how many values a mapping left as they are, though its table has them not.
        """
        untold, kept = unmapped or {}, outside or {}
        columns = {
            name: self._counts(column, untold.get(name, 0), kept.get(name, 0))
            for name, column in self._columns.items()
        }
        if not self._key:
            return QualityCounts(self._rows, columns, None)
        rejected = {code: count for code, count in self._rejected.items() if count}
        key = KeyCounts(self._rows, columns[self._key].missing, self._valid, self._distinct.count(), rejected)
        return QualityCounts(self._rows, columns, key)

    def _counts(self, column: _Column, unmapped: int, outside: int) -> ColumnCounts:
        counted = column.counted
        return ColumnCounts(
            rows=self._rows,
            null=counted["null"] - unmapped,
            blank=counted["blank"],
            placeholder=counted["placeholder"],
            unmapped=unmapped,
            outside=counted["outside"] + outside,
            future=counted["future"] if column.has_days else None,
            early=counted["early"] if column.has_days else None,
            malformed=counted["malformed"],
            distinct=None if column.values is None else len(column.values),
        )


def _count(column: _Column, values: Any, as_of: date) -> Any:
    """Count one batch of a column; return its values without the missing ones."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if pa.types.is_dictionary(values.type):
        values = values.dictionary_decode()
    column.counted["null"] += values.null_count
    present = values.drop_null() if values.null_count else values
    if any(test(present.type) for test in (pa.types.is_string, pa.types.is_large_string)):
        present, trimmed = _count_text(column, present)
        if column.holds_days:
            _count_text_days(column, trimmed, as_of)
    else:
        trimmed = present
        if pa.types.is_date(present.type) or pa.types.is_timestamp(present.type):
            days = present.cast(pa.date32(), safe=False)
            column.has_days = True
            column.counted["future"] += _true(pc.greater(days, pa.scalar(as_of, pa.date32())))
            column.counted["early"] += _true(pc.less(days, pa.scalar(_FIRST_DAY, pa.date32())))
        elif column.holds_days and _is_whole(present.type):
            _count_text_days(column, present.cast(pa.string()), as_of)
    _count_values(column, trimmed)
    return present


def _count_text(column: _Column, present: Any) -> tuple[Any, Any]:
    """Count what stands for nothing; return the other values, as they are and without white space around."""
    import pyarrow as pa
    import pyarrow.compute as pc

    trimmed = pc.utf8_trim_whitespace(present)
    lengths = pc.binary_length(trimmed)
    blank = pc.equal(lengths, 0)
    short = pc.less_equal(lengths, _LONGEST_PLACEHOLDER)
    # Most columns hold nothing short enough, or few different values: the rest is looked at once each.
    few = pc.unique(trimmed.filter(short))
    plain = pc.utf8_lower(pc.utf8_normalize(few, form="NFKC"))
    marks = (
        [
            typed
            for typed, mark in zip(few.to_pylist(), plain.to_pylist(), strict=True)
            if mark in PLACEHOLDERS and (column.codes is None or typed not in column.codes)
        ]
        if pc.any(pc.is_in(plain, value_set=_placeholders(plain.type))).as_py()
        else []
    )
    empty = _true(blank)
    column.counted["blank"] += empty
    missing = blank
    if marks:
        placeholder = pc.is_in(trimmed, value_set=pa.array(marks, trimmed.type))
        column.counted["placeholder"] += _true(placeholder)
        missing = pc.or_(blank, placeholder)
    if not marks and not empty:
        return present, trimmed
    kept = pc.invert(missing)
    return present.filter(kept), trimmed.filter(kept)


def _placeholders(kind: Any) -> Any:
    import pyarrow as pa

    return pa.array(sorted(PLACEHOLDERS), kind)


def _is_whole(kind: Any) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_integer(kind) or (pa.types.is_decimal(kind) and kind.scale == 0))


def _count_text_days(column: _Column, trimmed: Any, as_of: date) -> None:
    import pyarrow as pa
    import pyarrow.compute as pc

    column.has_days = True
    fits = pc.match_substring_regex(trimmed, pattern=_DAY)
    compact = pc.replace_substring_regex(trimmed.filter(fits), pattern=_DAY, replacement=r"\1\2\3")
    numbers = compact.cast(pa.int32()).to_numpy(zero_copy_only=False)
    numbers = numbers[_in_calendar(numbers)]
    column.counted["malformed"] += len(trimmed) - len(numbers)
    # yyyymmdd: their order is that of the days.
    column.counted["future"] += int((numbers > _number(as_of)).sum())
    column.counted["early"] += int((numbers < _number(_FIRST_DAY)).sum())


def _in_calendar(numbers: "npt.NDArray[np.int32]") -> "npt.NDArray[np.bool_]":
    """Return which numbers of up to eight digits, yyyymmdd, are days of the Gregorian calendar."""
    year, month, day = numbers // 10_000, numbers // 100 % 100, numbers % 100
    leap = (year % 4 == 0) & ((year % 100 != 0) | (year % 400 == 0))
    last = _MONTH_DAYS[np.where(month <= 12, month, 0)] + ((month == 2) & leap)
    there: npt.NDArray[np.bool_] = (year > 0) & (day > 0) & (day <= last)
    return there


def _number(day: date) -> int:
    return day.year * 10_000 + day.month * 100 + day.day


def _count_values(column: _Column, present: Any) -> None:
    """Count values that no code table has, and distinct ones while there are few."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if column.values is None and column.codes is None:
        return
    try:
        counted = pc.value_counts(present)
        texts = counted.field(0).cast(pa.string())
    except (pa.ArrowNotImplementedError, pa.ArrowInvalid):
        column.values = None  # nested values, or bytes that are no text
        return
    if column.codes is not None:
        counts = counted.field(1).to_pylist()
        column.counted["outside"] += sum(
            count for value, count in zip(texts.to_pylist(), counts, strict=True) if value not in column.codes
        )
    if column.values is not None:
        if len(texts) <= MOST_DISTINCT:
            column.values.update(_digest(value) for value in texts.to_pylist())
        if len(texts) > MOST_DISTINCT or len(column.values) > MOST_DISTINCT:
            column.values = None


def _digest(value: str) -> bytes:
    return hashlib.blake2b(value.encode("utf-8"), digest_size=16).digest()


def _true(mask: Any) -> int:
    return int(mask.true_count)
