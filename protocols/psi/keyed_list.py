"""One department's list as a matching job uses it: distinct typed keys, each with a street and a month.

Built batch by batch from Arrow columns, about 40 bytes per row; no row becomes a Python object.
"""

import hashlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from protocols.errors import InputError
from protocols.identifiers import AreaTable, normalise, rule_version
from protocols.ids import Digest

MAX_STREET_BYTES: Final = 47
MAX_STREETS: Final = 1 << 16

UNKNOWN_MONTH: Final = 0
"""A month is year x 12 + month - 1; zero means that it is not known."""

_FIRST_MONTH: Final = 1900 * 12
_END_MONTH: Final = 2200 * 12
_ISO_MONTH: Final = r"^(19|20|21)[0-9]{2}-(0[1-9]|1[0-2])(-[0-9]{2})?$"
_COMPACT_MONTH: Final = r"^([0-9]{4})([0-9]{2})$"
_COMMIT_ROWS: Final = 1 << 16


@dataclass(frozen=True, slots=True, eq=False)
class KeyedList:
    """A list, sorted by key, each key once. Implements `PreparedInput`."""

    rows: int
    keys: npt.NDArray[np.bytes_]  # n, ascending
    streets: npt.NDArray[np.uint16]  # n: place in `street_names`
    months: npt.NDArray[np.uint16]  # n: see UNKNOWN_MONTH
    street_names: tuple[str, ...]  # "" where unknown
    rule_version: str
    reasons: Mapping[str, int] = field(default_factory=dict)

    @property
    def distinct_keys(self) -> int:
        """Keys left after normalisation and removal of repeats."""
        return len(self.keys)

    def quality(self) -> Mapping[str, int]:
        """Return rows without key by reason code, `repeated-key` rows, keys with `no-street`, `no-month`.

        A reason that never applies is left out.
        """
        return dict(self.reasons)

    def commitment(self, salt: bytes) -> Digest:
        """Return SHA-256(salt ‖ every key in ascending order, each after its length as u16).

        Args:
            salt: 32 random bytes, which the node keeps for auditors.

        Raises:
            ValueError: the salt has another length.
        """
        if len(salt) != 32:
            raise ValueError(f"salt of {len(salt)} bytes, expected 32")
        digest = hashlib.sha256(salt)
        for start in range(0, len(self.keys), _COMMIT_ROWS):
            items: list[bytes] = self.keys[start : start + _COMMIT_ROWS].tolist()
            digest.update(b"".join(len(item).to_bytes(2, "big") + item for item in items))
        return Digest("sha256:" + digest.hexdigest())

    def __repr__(self) -> str:
        return f"KeyedList({self.rows} rows, {self.distinct_keys} keys)"


class KeyedListBuilder:
    """Takes slots `key`, and where the role has them `street` and `last_seen`, batch by batch.

    Of the rows of one key the one last seen stays; of equals the one whose street sorts first.
    """

    def __init__(self, *, as_of: date, areas: AreaTable, kind: str = "resident-id") -> None:
        """Start an empty list whose keys are of type `kind`, judged as of a day with a table of areas."""
        self._as_of, self._areas, self._kind = as_of, areas, kind
        self._rows = 0
        self._reasons: Counter[str] = Counter()
        self._slots: set[str] = set()
        self._street_codes: dict[str, int] = {}
        self._keys: list[npt.NDArray[np.bytes_]] = []
        self._streets: list[npt.NDArray[np.uint16]] = []
        self._months: list[npt.NDArray[np.uint16]] = []

    def add(self, batch: Mapping[str, Any]) -> None:
        """Take one batch.

        Args:
            batch: slot → pyarrow array; `key` and `street` text, `last_seen` a date, a time, or a month
                such as 2026-11 or 202611, as text or as a number.

        Raises:
            InputError: a column of another type or length, or streets that are none.
        """
        column = batch["key"]
        if unknown := set(batch) - {"key", "street", "last_seen"}:
            raise InputError(f"{len(unknown)} unknown slot(s) in a batch", code="unknown-slot")
        if len({len(array) for array in batch.values()}) != 1:
            raise InputError("columns of a batch differ in length", code="length-mismatch")
        found = normalise(column, self._kind, as_of=self._as_of, areas=self._areas)
        self._rows += len(column)
        self._slots.update(batch)
        self._reasons.update(found.counts())
        self._keys.append(found.keys)
        self._streets.append(self._coded(batch.get("street"), len(column))[found.rows])
        self._months.append(_months(batch.get("last_seen"), len(column))[found.rows])

    def finish(self) -> KeyedList:
        """Return the list."""
        keys = np.concatenate(self._keys) if self._keys else np.empty(0, dtype="S1")
        names = sorted(self._street_codes)
        rank = np.zeros(len(names) or 1, dtype=np.uint16)
        for place, name in enumerate(names):
            rank[self._street_codes[name]] = place
        streets = rank[np.concatenate(self._streets)] if self._streets else np.empty(0, dtype=np.uint16)
        months = np.concatenate(self._months) if self._months else np.empty(0, dtype=np.uint16)
        self._keys, self._streets, self._months = [], [], []
        order = np.lexsort((streets, ~months, keys))
        keys = keys[order]
        first = np.ones(len(keys), dtype=np.bool_)
        first[1:] = keys[1:] != keys[:-1]
        order, keys = order[first], keys[first]
        streets, months = streets[order], months[order]
        reasons = self._reasons.copy()
        reasons["repeated-key"] = int(len(first) - len(keys))
        if "street" in self._slots and "" in self._street_codes:
            reasons["no-street"] = int((streets == names.index("")).sum())
        if "last_seen" in self._slots:
            reasons["no-month"] = int((months == UNKNOWN_MONTH).sum())
        return KeyedList(
            rows=self._rows,
            keys=keys,
            streets=streets,
            months=months,
            street_names=tuple(names),
            rule_version=rule_version(self._areas),
            reasons={code: count for code, count in reasons.items() if count},
        )

    def _coded(self, column: Any, rows: int) -> npt.NDArray[np.uint16]:
        """Return the code of each row's street, in order of first appearance."""
        if column is None:
            code = self._street_codes.setdefault("", len(self._street_codes))
            return np.full(rows, code, dtype=np.uint16)
        import pyarrow as pa
        import pyarrow.compute as pc

        try:
            plain = pc.fill_null(column.cast(pa.string()), "")
            plain.validate(full=True)
        except pa.ArrowException:
            # Arrow's message may quote the value.
            raise InputError(
                "the street column is not text in UTF-8",
                code="not-text",
                hint="cast it to text at the source",
            ) from None
        if isinstance(plain, pa.ChunkedArray):
            plain = plain.combine_chunks()
        coded = plain.dictionary_encode()
        codes = np.zeros(len(coded.dictionary) or 1, dtype=np.uint16)
        for place, value in enumerate(coded.dictionary.to_pylist()):
            codes[place] = self._street_code(value.strip())
        return codes[np.asarray(coded.indices.to_numpy(zero_copy_only=False), dtype=np.int64)]

    def _street_code(self, name: str) -> int:
        if len(name.encode()) > MAX_STREET_BYTES or not name.isprintable():
            raise InputError(
                f"a street of {len(name)} characters, expected {MAX_STREET_BYTES} bytes of printable text",
                code="bad-street",
                hint="give the code of the street, such as its nine digits of GB/T 10114",
            )
        if len(self._street_codes) == MAX_STREETS and name not in self._street_codes:
            raise InputError(
                f"more than {MAX_STREETS} different streets",
                code="too-many-streets",
                hint="the slot street takes the street or town, not the address",
            )
        return self._street_codes.setdefault(name, len(self._street_codes))


def _months(column: Any, rows: int) -> npt.NDArray[np.uint16]:
    """Return the month of each row; UNKNOWN_MONTH where it is null, unreadable or not in 1900 to 2199."""
    if column is None:
        return np.zeros(rows, dtype=np.uint16)
    import pyarrow as pa
    import pyarrow.compute as pc

    kind = column.type
    try:
        if pa.types.is_date(kind) or pa.types.is_timestamp(kind):
            year, month = pc.year(column), pc.month(column)
        else:
            fits = (
                pa.types.is_string,
                pa.types.is_large_string,
                pa.types.is_dictionary,
                pa.types.is_integer,
            )
            if not any(fit(kind) for fit in fits):
                raise InputError(
                    f"the last_seen column is of type {kind}, expected a date, a time, text or whole numbers",
                    code="not-a-date",
                    hint="cast it to a date at the source, or give months such as 2026-11 or 202611",
                )
            text = pc.replace_substring_regex(column.cast(pa.string()), _COMPACT_MONTH, r"\1-\2")
            text = pc.if_else(pc.match_substring_regex(text, _ISO_MONTH), text, "0000-01")
            year = pc.utf8_slice_codeunits(text, 0, 4).cast(pa.int64())
            month = pc.utf8_slice_codeunits(text, 5, 7).cast(pa.int64())
    except pa.ArrowException:
        raise InputError(
            "the last_seen column cannot be read as dates", code="not-a-date", hint="cast it at the source"
        ) from None
    number = pc.fill_null(pc.add(pc.multiply(year, 12), month), 1)
    months = np.asarray(number.to_numpy(zero_copy_only=False), dtype=np.int64) - 1
    months[(months < _FIRST_MONTH) | (months >= _END_MONTH)] = UNKNOWN_MONTH
    return months.astype(np.uint16)


def month_text(month: int) -> str:
    """Return `2026-11`, or nothing where the month is unknown.

    Raises:
        ValueError: no month between 1900 and 2199, nor UNKNOWN_MONTH.
    """
    if month == UNKNOWN_MONTH:
        return ""
    if not _FIRST_MONTH <= month < _END_MONTH:
        raise ValueError("no month of 1900 to 2199")
    return f"{month // 12:04d}-{month % 12 + 1:02d}"
