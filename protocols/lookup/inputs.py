"""One department's list as `lookup/1` hands it out: distinct typed keys of one scope, each with a row.

Built batch by batch from Arrow columns; no row becomes a Python object before it is sealed. SPEC.md, "Rows".
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from protocols.errors import InputError
from protocols.identifiers import AreaTable, normalise, rule_version
from protocols.ids import Digest
from protocols.months import UNKNOWN_MONTH, months_of
from protocols.psi.keyed_list import COMMIT_ROWS, commit

KEY: Final = "key"
LAST_SEEN: Final = "last_seen"

MAX_FIELDS: Final = 16
MAX_FIELD_BYTES: Final = 255

SEPARATOR: Final = "\x1f"
"""Stands between the fields of a row; texts have no control characters."""

_CONTROL: Final = r"[\x00-\x1f\x7f]"


@dataclass(frozen=True, slots=True, eq=False)
class LookupList:
    """The persons of a scope, sorted by key, each key once. Implements `PreparedInput`."""

    rows: int
    keys: npt.NDArray[np.bytes_]  # n, ascending
    texts: Any  # pyarrow large_string: rows as read, fields joined by SEPARATOR
    places: npt.NDArray[np.uint32]  # n: each key's row in `texts`
    longest: int  # bytes of the longest of those rows
    rule_version: str
    reasons: Mapping[str, int] = field(default_factory=dict)

    @property
    def distinct_keys(self) -> int:
        """Keys of the scope, after normalisation and removal of repeats."""
        return len(self.keys)

    def quality(self) -> Mapping[str, int]:
        """Return rows without key by reason code; rows with one, `outside-scope` or `repeated-key`.

        Where the role has `last_seen`, also keys with `no-month`. A reason that never applies is left out.
        """
        return dict(self.reasons)

    def plain(self, items: npt.NDArray[Any]) -> list[bytes]:
        """Return the rows of the keys at these places: UTF-8, fields joined by SEPARATOR."""
        import pyarrow as pa

        found = self.texts.take(pa.array(self.places[items])).view(pa.large_binary())
        return found.to_pylist()  # type: ignore[no-any-return]  # pyarrow has no types

    def commitment(self, salt: bytes) -> Digest:
        """Return SHA-256(salt ‖ every key ‖ `=` ‖ its row, in order of keys, each after its length as u16).

        Args:
            salt: 32 random bytes, which the node keeps for auditors.

        Raises:
            ValueError: the salt has another length.
        """
        return commit(self._items(), salt)

    def _items(self) -> Iterator[npt.NDArray[np.bytes_]]:
        for start in range(0, len(self.keys), COMMIT_ROWS):
            keys: list[bytes] = self.keys[start : start + COMMIT_ROWS].tolist()
            rows = self.plain(np.arange(start, start + len(keys)))
            yield np.array([key + b"=" + row for key, row in zip(keys, rows, strict=True)])

    def __repr__(self) -> str:
        return f"LookupList({self.rows} rows, {self.distinct_keys} keys)"


class LookupListBuilder:
    """Takes `key`, the slots of scope and fields, and perhaps `last_seen`, batch by batch.

    Of the rows of one key the one last seen counts, wherever it is: somebody who has moved away is in the
    scope no more. Of rows seen in the same month one in the scope counts, of these the one whose texts sort
    first. Without `last_seen`, rows outside the scope do not count.
    """

    def __init__(
        self,
        fields: Sequence[str],
        scope: Mapping[str, str],
        *,
        as_of: date,
        areas: AreaTable,
        kind: str = "resident-id",
    ) -> None:
        """Start an empty list.

        Args:
            fields: slots whose texts make a row, in this order.
            scope: slot → the text that a row must have there.
            as_of: the day as of which identifiers are judged.
            areas: area codes that were ever valid.
            kind: the keys' type.
        """
        self._fields, self._scope = tuple(fields), dict(scope)
        self._as_of, self._areas, self._kind = as_of, areas, kind
        self._rows = 0
        self._reasons: Counter[str] = Counter()
        self._dated = False
        self._keys: list[npt.NDArray[np.bytes_]] = []
        self._months: list[npt.NDArray[np.uint16]] = []
        self._inside: list[npt.NDArray[np.bool_]] = []
        self._texts: list[Any] = []  # of rows inside

    def add(self, batch: Mapping[str, Any]) -> None:
        """Take one batch.

        Args:
            batch: slot → pyarrow array; `key` text, `last_seen` a date, a time, or a month such as 2026-11
                or 202611; scope and fields whatever has a text form.

        Raises:
            InputError: a slot too many or too few, a column of another type or length, a text too long.
        """
        import pyarrow as pa
        import pyarrow.compute as pc

        needed = {KEY, *self._scope, *self._fields}
        if not needed <= set(batch) <= needed | {LAST_SEEN}:
            raise InputError(
                f"a batch with {len(batch)} slot(s), expected {', '.join(sorted(needed))}",
                code="unknown-slot",
            )
        count = len(batch[KEY])
        if {len(array) for array in batch.values()} != {count}:
            raise InputError("columns of a batch differ in length", code="length-mismatch")
        found = normalise(batch[KEY], self._kind, as_of=self._as_of, areas=self._areas)
        self._rows += count
        self._reasons.update(found.counts())
        self._dated = self._dated or LAST_SEEN in batch
        inside = np.ones(count, dtype=np.bool_)
        for slot, value in self._scope.items():
            equal = pc.equal(pc.utf8_trim_whitespace(_texts(batch[slot], slot)), value)
            inside &= np.asarray(equal.to_numpy(zero_copy_only=False), dtype=np.bool_)
        inside = inside[found.rows]
        counts = np.ones_like(inside) if LAST_SEEN in batch else inside
        self._reasons["outside-scope"] += int(len(counts) - counts.sum())
        chosen = pa.array(found.rows[inside])
        columns = [self._field(batch[slot].take(chosen), slot) for slot in self._fields]
        self._keys.append(found.keys[counts])
        self._months.append(months_of(batch.get(LAST_SEEN), count, LAST_SEEN)[found.rows[counts]])
        self._inside.append(inside[counts])
        self._texts.append(pc.binary_join_element_wise(*columns, pa.scalar(SEPARATOR, pa.large_string())))

    def _field(self, column: Any, slot: str) -> Any:
        import pyarrow.compute as pc

        plain = pc.replace_substring_regex(_texts(column, slot), _CONTROL, " ")
        longest = pc.max(pc.binary_length(plain)).as_py() or 0
        if longest > MAX_FIELD_BYTES:
            raise InputError(
                f"a text of {longest} bytes in the {slot} column, at most {MAX_FIELD_BYTES} are handed out",
                code="field-too-long",
                hint="shorten the column at the source, or leave it out of fields",
            )
        return plain

    def finish(self) -> LookupList:
        """Return the list."""
        import pyarrow as pa
        import pyarrow.compute as pc

        pieces, self._texts = self._texts, []
        texts = pa.concat_arrays(pieces) if pieces else pa.array([], pa.large_string())
        del pieces
        keys = np.concatenate(self._keys) if self._keys else np.empty(0, dtype="S1")
        months = np.concatenate(self._months) if self._months else np.empty(0, dtype=np.uint16)
        inside = np.concatenate(self._inside) if self._inside else np.empty(0, dtype=np.bool_)
        self._keys, self._months, self._inside = [], [], []
        order = np.lexsort((~inside, ~months, keys)).astype(np.uint32)
        keys, months = keys[order], months[order]
        first = np.ones(len(keys), dtype=np.bool_)
        first[1:] = keys[1:] != keys[:-1]
        # Persons whose row last seen is outside the scope go, with all their rows; then other rows outside.
        stays = inside[order[first]][np.cumsum(first) - 1] & inside[order]
        self._reasons["outside-scope"] += int(len(stays) - stays.sum())
        order, keys, months, first = order[stays], keys[stays], months[stays], first[stays]
        order = (np.cumsum(inside) - 1)[order].astype(np.uint32)  # texts are of rows inside alone
        _settle_ties(texts, order, first, months)
        places, keys, months = order[first], keys[first], months[first]
        self._reasons["repeated-key"] = int(len(first) - len(keys))
        if self._dated:
            self._reasons["no-month"] = int((months == UNKNOWN_MONTH).sum())
        lengths = pc.binary_length(texts)
        return LookupList(
            rows=self._rows,
            keys=keys,
            texts=texts,
            places=places,
            longest=int(pc.max(lengths).as_py() or 0),
            rule_version=rule_version(self._areas),
            reasons={code: count for code, count in self._reasons.items() if count},
        )


def _texts(column: Any, slot: str) -> Any:
    """Return a column as text, "" for null, in one piece.

    Raises:
        InputError: `not-text`.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    try:
        plain = pc.fill_null(column.cast(pa.large_string()), "")
        plain.validate(full=True)
    except pa.ArrowException:
        # Arrow's message may quote the value.
        raise InputError(
            f"the {slot} column has no text form in UTF-8",
            code="not-text",
            hint="cast it to text at the source",
        ) from None
    return plain.combine_chunks() if isinstance(plain, pa.ChunkedArray) else plain


def _settle_ties(
    texts: Any,
    order: npt.NDArray[np.uint32],
    first: npt.NDArray[np.bool_],
    months: npt.NDArray[np.uint16],
) -> None:
    """Put the row whose text sorts first where each key's rows begin, among those that were seen as late."""
    starts = np.flatnonzero(first)
    tied = starts[:-1][~first[starts[:-1] + 1] & (months[starts[:-1]] == months[starts[:-1] + 1])]
    last = starts[-1] if len(starts) else 0
    if last + 1 < len(order) and months[last] == months[last + 1]:
        tied = np.append(tied, last)
    for start in tied.tolist():
        stop = start + 1
        while stop < len(order) and not first[stop] and months[stop] == months[start]:
            stop += 1
        rows = order[start:stop].tolist()
        order[start] = min(rows, key=lambda row: texts[row].as_py())
